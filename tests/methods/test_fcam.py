import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wsl_zoo
from tests.cases import fill, tiny_data, trainer, unannotated
from tests.cases.killing import KillAt, Killed
from tests.cases.stages import SMALL, filled_classifier, save
from wsl_zoo.cams import normalize_map
from wsl_zoo.checkpointing import LastCheckpoint
from wsl_zoo.data import ZooDataModule
from wsl_zoo.data.transforms import Sample
from wsl_zoo.methods import FCAM, CAMClassifier, HaS
from wsl_zoo.types import Output


def model_of(stage1, cls=FCAM, **changes):
    torch.manual_seed(0)
    return cls(**SMALL | {"classifier": stage1} | changes)


def batch_of(count=4, size=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return {
        "index": torch.arange(count),
        "raw": raw,
        "image": raw.float() / 255 - 0.5,
        "label": torch.arange(count) % 4,
    }


class Colours(ZooDataModule):
    """Two-coloured images: the object is red on green, its place another in each."""

    class_names = ("0", "1", "2", "3")

    def __init__(self, count=8, size=40, **kwargs):
        super().__init__(image_size=32, train_resize=size, batch_size=4, **kwargs)
        self.count, self.size = count, size

    def read(self):
        return {"train": self, "val": self}

    has_masks = True
    has_boxes = False

    def __len__(self):
        return self.count

    def load(self, index, *, annotations):
        mask = np.zeros((self.size, self.size), np.uint8)
        mask[index : index + 16, 2 * index : 2 * index + 20] = 1
        image = np.where(mask[..., None], [200, 30, 30], [30, 180, 60]).astype(np.uint8)
        return Sample(image, index % 4, mask if annotations else None, path=f"{index}.png",
                      size=mask.shape)  # fmt: skip


# The classifier -----------------------------------------------------------------------------------


def test_the_classifier_is_that_of_stage_1_and_stays_so_to_the_bit(stage1, tmp_path):
    data = tiny_data(hflip=0.5)
    model = model_of(stage1)
    decoder = {k: v.clone() for k, v in model.decoder.state_dict().items()}
    trainer(tmp_path, max_epochs=2).fit(model, data)
    first = wsl_zoo.load(stage1)
    for part in ("encoder", "head"):
        ours, theirs = getattr(model, part).state_dict(), getattr(first, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert any("running_var" in key for key in ours) or part == "head"
        for key, value in theirs.items():
            assert torch.equal(ours[key], value), f"{part}.{key}"
    changed = [k for k, v in model.decoder.state_dict().items() if not torch.equal(v, decoder[k])]
    assert len(changed) == len(decoder)
    for values in trainer(tmp_path).validate(model, data, verbose=False):
        assert values["val/acc"] == pytest.approx(
            trainer(tmp_path).validate(first, data, verbose=False)[0]["val/acc"]
        )


def test_gradients_reach_the_decoder_only(stage1):
    model = model_of(stage1).train()
    batch = batch_of()
    output = model(batch)
    sum(model.loss(batch, output).values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("decoder."), name


def test_an_unfrozen_classifier_adds_its_cross_entropy_and_nothing_from_the_decoder(stage1):
    model = model_of(stage1, freeze_classifier=False).train()
    batch = batch_of()
    output = model(batch)
    terms = model.loss(batch, output)
    torch.testing.assert_close(terms["ce"], F.cross_entropy(output.logits, batch["label"]))
    sum(v for k, v in terms.items() if k != "ce").backward(retain_graph=True)
    assert all(p.grad is None for p in model.encoder.parameters())
    terms["ce"].backward()
    assert any(p.grad is not None for p in model.encoder.parameters())
    names = [group["name"] for group in model.param_groups()]
    assert names[0] == "decoder"
    assert {"trunk", "head"} <= set(names)
    ids = [id(p) for group in model.param_groups() for p in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))


def test_the_seeder_is_no_part_of_the_checkpoint(stage1, tmp_path):
    model = model_of(stage1)
    assert isinstance(model.seeder, CAMClassifier)
    assert not any("seeder" in key for key in model.state_dict())
    assert not any(p is q for p in model.parameters() for q in model.seeder.parameters())
    assert not any(p.requires_grad for p in model.seeder.parameters())
    model.train()
    assert not model.seeder.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 8}, r"trained with stride=16, this model has 8: set model.stride to 16"),
        ({"head": "lse"}, r"head='wgap'"),
        ({"num_classes": 3}, "knows the classes 0, 1, 2, 3, this model 0, 1, 2"),
        ({"mean": [0.1, 0.1, 0.1]}, "normalised with mean"),
        ({"classifier": None}, "--model.classifier"),
        ({"classifier": "nowhere.ckpt"}, "there is no checkpoint nowhere.ckpt"),
    ],
)
def test_another_network_than_stage_1_is_refused(stage1, tmp_path, changes, message):
    model = model_of(stage1, **changes)
    data = tiny_data(classes=changes.get("num_classes", 4))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        trainer(tmp_path).fit(model, data)


def test_a_classifier_must_be_one_and_wrong_options_are_named(stage1, tmp_path):
    path = save(model_of(stage1), tmp_path / "stage2.ckpt")
    with pytest.raises(ValueError, match="holds a FCAM: no CAMClassifier"):
        trainer(tmp_path).fit(model_of(path), tiny_data())
    for changes, message in [
        ({"sampler": "otsu"}, "sampler='otsu' must be one of threshold"),
        ({"sampler_args": {"forground": 3}}, "sampler_args=.*forground"),
        ({"windows": {"crv": [1, 2]}}, "seed, crf, size, entropy"),
        ({"windows": {"crf": [1]}}, r"give \[first, last\]"),
        ({"cam_args": {"samples": 3}}, "go with cam="),
        ({"cam_source": "disk"}, "cam_source"),
    ]:
        with pytest.raises(ValueError, match=message):
            model_of(stage1, **changes)


def test_other_classifiers_of_the_family_are_taken(tmp_path):
    model = HaS(**SMALL)
    fill(model)
    path = save(model, tmp_path / "has.ckpt")
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(model_of(path), tiny_data())


# The map ------------------------------------------------------------------------------------------


def test_the_map_is_the_softmax_as_it_is_whatever_the_class(stage1):
    model = model_of(stage1).eval()
    batch = batch_of()
    with torch.no_grad():
        output = model(batch)
        maps = model.localize(batch, output)
    assert output.map.shape == (4, 2, 48, 48)
    torch.testing.assert_close(maps, output.map.softmax(1)[:, 1])
    assert torch.equal(maps, model.localize(batch, output, "pred"))
    assert torch.equal(maps, model.localize(batch, output, 3))
    assert maps.max() < 1  # no min-max


def test_a_head_of_zeros_is_undecided_everywhere(stage1):
    model = model_of(stage1).eval()
    last = [m for m in model.decoder.modules() if isinstance(m, nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        maps = model.localize(batch_of(), model(batch_of()))
    assert torch.equal(maps, torch.full_like(maps, 0.5))


# Seeds --------------------------------------------------------------------------------------------


def test_seeds_come_from_the_map_of_the_true_class(stage1):
    model = model_of(stage1, cam_source="live").eval()
    batch = batch_of()
    with torch.no_grad():
        seeder = wsl_zoo.load(stage1)
        for label in range(4):
            batch["label"] = torch.full((4,), label)
            maps = seeder(batch).map[:, label]
            torch.testing.assert_close(model.seed_maps(batch), normalize_map(maps))


def test_any_map_of_the_family_seeds(stage1):
    batch = batch_of()
    plain = model_of(stage1).seed_maps(batch)
    other = model_of(stage1, cam="layercam", cam_layer=-2).seed_maps(batch)
    assert plain.shape == other.shape
    assert not torch.equal(plain, other)
    reader = wsl_zoo.load(stage1)
    reader.read_map("layercam", -2)
    raw = reader.class_map(batch, reader(batch), batch["label"])
    torch.testing.assert_close(other, normalize_map(raw, relu=True))


def test_a_trained_decoder_may_seed_another(stage1, tmp_path):
    path = save(model_of(stage1), tmp_path / "stage2.ckpt")
    maps = model_of(stage1, seeder=path).seed_maps(batch_of())
    assert maps.shape == (4, 48, 48)
    with pytest.raises(ValueError, match="has a map of its own"):
        _ = model_of(stage1, seeder=path, cam="gradcam").seeder


def test_a_seeder_that_keeps_features_reads_every_crop_anew(tmp_path):
    path = filled_classifier(tmp_path, freeze_encoder=True, cache_features=True)
    model = model_of(path)
    first, second = batch_of(seed=0), batch_of(seed=1)
    for batch in (first, second):
        batch["path"] = ["a", "b", "c", "d"]
    expected = model_of(filled_classifier(tmp_path)).seed_maps(second)
    model.seed_maps(first)
    torch.testing.assert_close(model.seed_maps(second), expected)


def test_seeds_are_new_in_every_step_and_a_function_of_its_seed(stage1):
    model = model_of(stage1)
    batch = batch_of() | {"cam": torch.rand(4, 48, 48, generator=torch.Generator().manual_seed(0))}
    output = Output(map=torch.zeros(4, 2, 48, 48))
    torch.manual_seed(1)
    first = model.seeds(batch, output)
    torch.rand(5)  # what else is drawn in the step
    assert torch.equal(model.seeds(batch, output), first)
    torch.manual_seed(2)
    assert not torch.equal(model.seeds(batch, output), first)


def red_seeder(monkeypatch):
    """Let the seeder's map be where the image is red, at a quarter of its size."""

    def seed_maps(self, batch):
        red = (batch["raw"][:, 0] > 100).float()
        return F.avg_pool2d(red[:, None], 4)[:, 0]

    monkeypatch.setattr(FCAM, "seed_maps", seed_maps)


def test_cached_maps_follow_crop_and_flips_but_not_the_jitter(stage1, tmp_path, monkeypatch):
    red_seeder(monkeypatch)
    data = Colours(hflip=0.5, vflip=0.5, rotate90=True, color_jitter=[0.0, 0.0, 0.0, 0.4])
    model = model_of(stage1)
    seen = []
    monkeypatch.setattr(
        model, "prepare_batch", lambda batch: seen.append(batch) or batch, raising=False
    )
    trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(model, data)
    assert data.cams.shape == (8, 8, 8)
    jittered = 0
    for batch in seen:
        red = batch["raw"][:, 0] > 100
        assert batch["cam"].shape == red.shape == (4, 32, 32)
        # The map was small (a cell is five pixels of the resized image): it agrees inside.
        sure = (batch["cam"] > 0.95) | (batch["cam"] < 0.05)
        assert sure.float().mean() > 0.5
        assert torch.equal((batch["cam"] > 0.5)[sure], red[sure])
        assert set(batch["raw"][:, 0].unique().tolist()) == {30, 200}  # no jitter here
        shown = (batch["image"] * torch.tensor(model.encoder.std).view(-1, 1, 1)
                 + torch.tensor(model.encoder.mean).view(-1, 1, 1))  # fmt: skip
        jittered += int(((shown * 255 - batch["raw"]).abs() > 10).any())
    assert jittered


def test_cached_and_live_maps_agree_where_nothing_is_augmented(stage1, tmp_path):
    data = tiny_data(hflip=0.0)
    model = model_of(stage1)
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(model, data)
    for batch in data.train_dataloader():
        live = model.seed_maps(data.on_after_batch_transfer(dict(batch), 0))
        torch.testing.assert_close(data.cams[batch["index"]], live, atol=1e-5, rtol=1e-4)


def test_maps_of_another_fit_are_not_used(stage1, tmp_path):
    data = tiny_data()
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(model_of(stage1), data)
    assert data.cams is not None
    live = model_of(stage1, cam_source="live")
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(live, data)
    assert data.cams is None
    assert "cam" not in next(iter(data.train_dataloader()))


def test_a_cache_needs_a_data_module(stage1, tmp_path):
    data = tiny_data()
    with pytest.raises(ValueError, match='use cam_source="live"'):
        trainer(tmp_path).fit(model_of(stage1), data.train_dataloader())


def test_without_any_mask_the_classifier_seeds(stage1, tmp_path):
    model = model_of(stage1, seeder=None)
    data = unannotated(tiny_data())
    trainer(tmp_path).fit(model, data)
    torch.testing.assert_close(
        model.seeder.head.state_dict(), wsl_zoo.load(stage1).head.state_dict()
    )


# Resuming ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cam_source", ["cached", "live"])
def test_a_run_that_is_killed_in_an_epoch_resumes_to_the_same_weights(stage1, tmp_path, cam_source):
    def fit(folder, *callbacks, ckpt_path=None):
        model = model_of(stage1, cam_source=cam_source, lr=0.01)
        data = tiny_data(train=20, train_resize=52, color_jitter=[0.2, 0.2, 0.2, 0.05])
        last = LastCheckpoint(dirpath=folder, every_n_train_steps=1, save_on_exception=False)
        run = trainer(
            tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[last, *callbacks]
        )
        run.fit(model, data, ckpt_path=ckpt_path)
        return model.state_dict()

    whole = fit(tmp_path / "whole")
    with pytest.raises(Killed):
        fit(tmp_path / "killed", KillAt(7))
    resumed = fit(tmp_path / "killed", ckpt_path=tmp_path / "killed" / "last.ckpt")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
