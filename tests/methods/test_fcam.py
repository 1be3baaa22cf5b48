import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from torch import nn
from torch.nn import functional as F

import wsl_zoo
from tests.cases import fill, tiny_data, trainer
from tests.cases.stages import SMALL, filled_classifier, save
from wsl_zoo.callbacks import BestCheckpoint, LastCheckpoint
from wsl_zoo.cams import normalize_map
from wsl_zoo.data import ZooDataModule
from wsl_zoo.data.transforms import Sample
from wsl_zoo.methods import FCAM, CAMClassifier, HaS, SupervisedUNet
from wsl_zoo.types import Output


@pytest.fixture
def stage1(tmp_path):
    return filled_classifier(tmp_path)


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


def test_a_cache_needs_a_data_module(stage1, tmp_path):
    data = tiny_data()
    with pytest.raises(ValueError, match='use cam_source="live"'):
        trainer(tmp_path).fit(model_of(stage1), data.train_dataloader())


def test_without_any_mask_the_classifier_seeds(stage1, tmp_path):
    model = model_of(stage1, seeder=None)
    data = tiny_data()
    read = data.read

    def unannotated():
        sources = read()
        for source in sources.values():
            source.has_masks = source.has_boxes = False
        return sources

    data.read = unannotated
    trainer(tmp_path).fit(model, data)
    torch.testing.assert_close(
        model.seeder.head.state_dict(), wsl_zoo.load(stage1).head.state_dict()
    )


# The loss -----------------------------------------------------------------------------------------


def test_true_masks_as_seeds_make_it_supervised_segmentation(stage1):
    model = model_of(stage1, SupervisedUNet).train()
    batch = batch_of() | {"mask": torch.randint(0, 2, (4, 48, 48), dtype=torch.uint8)}
    batch["mask"][0, :5] = 255
    output = model(batch)
    expected = F.cross_entropy(output.map, batch["mask"].long(), ignore_index=255)
    terms = model.loss(batch, output)
    assert terms.keys() == {"seed"}
    torch.testing.assert_close(terms["seed"], expected)


def test_boxes_stand_for_masks_where_there_are_none(stage1):
    model = model_of(stage1, SupervisedUNet)
    boxes = [torch.tensor([[2.0, 3.0, 5.2, 8.0]], dtype=torch.float64), torch.zeros(0, 4)]
    seeds = model.seeds({"boxes": boxes}, Output(map=torch.zeros(2, 2, 10, 12)))
    assert int(seeds.sum()) == 3 * 5
    assert (seeds[0, 3:8, 2:5] == 1).all()
    with pytest.raises(ValueError, match="masks or boxes"):
        model.seeds({}, Output(map=torch.zeros(2, 2, 10, 12)))


def test_terms_are_the_weighted_losses(stage1):
    model = model_of(stage1, entropy_weight=0.5)
    batch = batch_of()
    output = Output(map=torch.randn(4, 2, 48, 48), logits=torch.zeros(4, 4))
    torch.manual_seed(0)
    terms = model.loss(batch, output)
    assert terms.keys() == {"seed", "crf", "size", "entropy"}
    probabilities = output.map.softmax(1)
    seeds = model.seeds(batch, output)
    torch.testing.assert_close(terms["seed"], F.cross_entropy(output.map, seeds, ignore_index=-255))
    torch.testing.assert_close(terms["crf"], 2e-9 * model.crf(probabilities, batch["raw"]))
    # t = 1, and areas are far above one pixel: -(1/2) mean ln(a_0 a_1)
    areas = probabilities.sum((2, 3))
    torch.testing.assert_close(terms["size"], -0.1 * 0.5 * areas.log().sum(1).mean())
    bits = -(probabilities * probabilities.log2()).sum(1).mean()
    torch.testing.assert_close(terms["entropy"], 0.5 * bits)


def test_colours_come_from_the_image_where_a_loader_gives_no_pixels(stage1):
    model = model_of(stage1)
    batch = batch_of()
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (model.encoder.mean, model.encoder.std))
    batch["image"] = (batch["raw"].float() / 255 - mean) / std
    output = Output(map=torch.randn(4, 2, 48, 48), logits=torch.zeros(4, 4))
    torch.manual_seed(0)
    with_raw = model.loss(batch, output)
    del batch["raw"]
    torch.testing.assert_close(model.loss(batch, output), with_raw, rtol=1e-3, atol=1e-6)


def test_windows_count_epochs_from_1_and_the_barrier_steps_per_epoch(stage1, tmp_path):
    model = model_of(stage1, windows={"crf": [2, 2], "size": [3, -1]})
    seen = []
    loss = model.loss
    model.loss = lambda batch, output: (
        seen.append((model.current_epoch + 1, set(terms := loss(batch, output)))) or terms
    )
    trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(model, tiny_data())
    on = {epoch: terms for epoch, terms in seen}
    assert on == {1: {"seed"}, 2: {"seed", "crf"}, 3: {"seed", "size"}}
    (t,) = (v for k, v in model.state_dict().items() if k.startswith("size") and k.endswith("t"))
    assert float(t) == pytest.approx(1.01**3)


def test_where_all_terms_are_off_there_is_still_a_graph(stage1):
    model = model_of(stage1, windows={"seed": [5, -1]}, crf_weight=0.0, size_weight=0.0).train()
    batch = batch_of()
    total = sum(model.loss(batch, model(batch)).values())
    assert float(total.detach()) == 0
    total.backward()
    assert all(p.grad is not None for p in model.decoder.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampler", ["threshold", "probability", "uniform", "weighted"])
@pytest.mark.parametrize("cam", [0.0, 1.0, "half"])
def test_a_constant_map_gives_no_nan(stage1, dtype, sampler, cam):
    model = model_of(stage1, sampler=sampler).train()
    batch = batch_of()
    cams = torch.zeros(4, 48, 48) if cam == "half" else torch.full((4, 48, 48), cam)
    if cam == "half":
        cams[:2, 10:20, 10:20] = 1
    batch["cam"] = cams
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        total = sum(model.loss(batch, model(batch)).values())
    assert torch.isfinite(total)
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.decoder.parameters())


def test_from_an_epoch_on_the_best_decoder_seeds(stage1, tmp_path, monkeypatch):
    model = model_of(stage1, self_training_epoch=2, cam_source="live")
    cams, asked = [], []
    monkeypatch.setattr(
        model.sampler, "forward", lambda cam, generator: cams.append(cam) or cam.long()
    )
    seed_maps = model.seed_maps
    monkeypatch.setattr(model, "seed_maps", lambda b: asked.append(1) or seed_maps(b))
    run = trainer(
        tmp_path, max_epochs=2, enable_checkpointing=True,
        callbacks=[BestCheckpoint("cl"), BestCheckpoint("loc")],
    )  # fmt: skip
    data = tiny_data()
    run.fit(model, data)
    steps = len(data.train_dataloader())
    assert len(cams) == 2 * steps
    assert len(asked) == steps  # those of the first epoch
    best = wsl_zoo.load(next(tmp_path.rglob("best_loc.ckpt")))
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    output = best(batch)
    torch.testing.assert_close(model._best_map(output), best.localize(batch, output))


class Killed(BaseException):
    """Stands for SIGKILL: nothing is saved on the way out."""


class KillAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise Killed


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


# What the losses are for --------------------------------------------------------------------------


def two_colours(size=32):
    """A red blob on green, slightly noisy, and its mask."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = ((rows - 14) ** 2 + ((columns - 18) / 1.5) ** 2) < 64
    raw = torch.where(mask, torch.tensor([190, 40, 40]).view(3, 1, 1),
                      torch.tensor([40, 160, 60]).view(3, 1, 1)).float()  # fmt: skip
    raw = (raw + 6 * torch.randn(3, size, size, generator=generator)).clamp(0, 255)
    return raw.to(torch.uint8)[None], mask[None]


def grown(stage1, crf_weight, steps=100):
    """Train a decoder on one image, with one seed of each kind per step near the blob's centre."""
    raw, mask = two_colours()
    model = model_of(stage1, crf_weight=crf_weight, size_weight=0.0, cam_source="live",
                     sampler_args={"ksz": 1}).train()  # fmt: skip
    batch = {"raw": raw, "image": raw.float() / 127.5 - 1, "label": torch.tensor([0])}
    cam = torch.zeros(1, 32, 32)
    cam[:, 4:28, 8:28] = 0.05 + 0.01 * torch.rand(20)  # half of the region is no object
    cam[:, 12:16, 14:22] = 1.0
    batch["cam"] = cam
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=3e-3)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        sum(model.loss(batch, model(batch)).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.localize(batch, model(batch)) > 0.5
    return float((found & mask).sum() / (found | mask).sum())


def test_a_seed_and_the_crf_find_a_blob_by_its_colour(stage1):
    with_crf, without = grown(stage1, crf_weight=4e-6), grown(stage1, crf_weight=0.0)
    assert with_crf > 0.9
    assert without < 0.8


def test_the_crf_draws_a_pixel_to_the_label_of_its_colour(stage1):
    model = model_of(stage1, seed_weight=0.0, size_weight=0.0)
    raw, mask = two_colours()
    logits = torch.zeros(1, 2, 32, 32)
    logits[:, 1] = torch.where(mask, 2.0, -2.0)
    odd = {"inside": (14, 20), "outside": (2, 2)}
    for row, column in odd.values():
        logits[0, 1, row, column] = 0.0
    logits.requires_grad_()
    model.loss({"raw": raw}, Output(map=logits, logits=torch.zeros(1, 4)))["crf"].backward()
    assert logits.grad[0, 1, 14, 20] < 0  # a step against it raises the foreground
    assert logits.grad[0, 1, 2, 2] > 0
