import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import wsl_zoo
from tests.cases import tiny_data, trainer, unannotated
from tests.cases.active import DECODER
from tests.cases.stages import SMALL, filled_classifier
from wsl_zoo.checkpointing import BestCheckpoint
from wsl_zoo.data.masks import Drawn, write_masks
from wsl_zoo.methods import ActiveWeakAnnotator
from wsl_zoo.methods.active import mask_loss
from wsl_zoo.types import IGNORE, Output

WILDCAT = {"head": "wildcat", "head_args": {"modalities": 5, "kmax": 0.1, "dropout": 0.5}}
WITH_TABLE = ["oracle", "pseudo"]


def model_of(stage1=None, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"classifier": stage1, "head": "wgap", "decoder_args": DECODER}
    return ActiveWeakAnnotator(**SMALL | settings | changes)


def batch_of(count=4, size=48, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return {
        "index": torch.arange(count),
        "image": torch.randn(count, 3, size, size, generator=generator),
        "mask": torch.randint(0, 2, (count, size, size), generator=generator, dtype=torch.uint8),
        "label": torch.arange(count) % 4,
    } | more


def terms_and_gradient(batch, maps, **changes):
    """Loss terms of given map logits (B, H, W), and the gradient of their sum."""
    z = maps.clone().requires_grad_()
    output = Output(map=z[:, None], logits=torch.zeros(len(z), 4))
    terms = model_of(**changes).loss(batch, output)
    sum(terms.values()).backward()
    return {name: float(term.detach()) for name, term in terms.items()}, z.grad


def pieces(model, *parts):
    return {
        f"{part}.{name}": value.clone()
        for part in parts
        for name, value in getattr(model, part).state_dict().items()
    }


def differing(first, second):
    assert first.keys() == second.keys()
    return {name for name, value in first.items() if not torch.equal(value, second[name])}


# The loss -------------------------------------------------------------------------------------


def test_masks_of_the_oracle_alone_give_the_mean_cross_entropy():
    batch, maps = batch_of(), torch.randn(4, 48, 48)
    expected = F.binary_cross_entropy_with_logits(maps, batch["mask"].float())
    full, gradient = terms_and_gradient(batch, maps)
    assert full == {"oracle": pytest.approx(float(expected), rel=1e-5)}
    told, same = terms_and_gradient(batch | {"pseudo": torch.zeros(4, dtype=torch.bool)}, maps)
    assert told == {"oracle": pytest.approx(full["oracle"], rel=1e-6), "pseudo": 0.0}
    torch.testing.assert_close(gradient, same)


@pytest.mark.parametrize("weight", [0.0, 0.001, 0.1, 1.0])
def test_terms_are_sums_of_both_kinds_over_the_whole_batch(weight):
    pseudo = torch.tensor([False, True, True, False, True])
    batch, maps = batch_of(5, pseudo=pseudo), torch.randn(5, 48, 48)
    terms, gradient = terms_and_gradient(batch, maps, pseudo_weight=weight)
    each = [
        float(F.binary_cross_entropy_with_logits(z, m.float()))
        for z, m in zip(maps, batch["mask"], strict=True)
    ]
    assert terms["oracle"] == pytest.approx((each[0] + each[3]) / 5, rel=1e-5)
    assert terms["pseudo"] == pytest.approx(weight * (each[1] + each[2] + each[4]) / 5, rel=1e-5)
    weights = torch.where(pseudo, weight, 1.0)[:, None, None]
    expected = weights * (maps.sigmoid() - batch["mask"]) / (5 * 48 * 48)
    torch.testing.assert_close(gradient, expected)


def test_pseudo_masks_of_weight_zero_change_no_gradient_but_count_in_the_batch():
    pseudo = torch.tensor([False, True, False, True])
    model = model_of(pseudo_weight=0.0).eval()
    batch = batch_of(pseudo=pseudo)

    def gradients(batch):
        model.zero_grad()
        sum(model.loss(batch, model(batch)).values()).backward()
        return {name: p.grad.clone() for name, p in model.decoder.named_parameters()}

    first = gradients(batch)
    turned = batch["mask"].where(~pseudo[:, None, None], 1 - batch["mask"])
    assert not differing(first, gradients(batch | {"mask": turned}))
    alone = {key: value[~pseudo] for key, value in batch.items()}
    for name, gradient in gradients(alone).items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, 2 * first[name], rtol=1e-4, atol=1e-7)


def test_a_batch_of_pseudo_masks_alone():
    batch = batch_of(pseudo=torch.ones(4, dtype=torch.bool))
    terms, gradient = terms_and_gradient(batch, torch.zeros(4, 48, 48), pseudo_weight=0.0)
    assert terms == {"oracle": 0.0, "pseudo": 0.0}
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_ignored_pixels_do_not_count():
    batch, maps = batch_of(3), torch.randn(3, 48, 48)
    batch["mask"][0, :20] = IGNORE
    batch["mask"][1] = IGNORE
    losses = mask_loss(maps, batch["mask"])
    expected = [
        F.binary_cross_entropy_with_logits(maps[0, 20:], batch["mask"][0, 20:].float()),
        torch.tensor(0.0),
        F.binary_cross_entropy_with_logits(maps[2], batch["mask"][2].float()),
    ]
    torch.testing.assert_close(losses, torch.stack(expected))
    terms, gradient = terms_and_gradient(batch, maps)
    assert terms["oracle"] == pytest.approx(float(sum(expected)) / 3, rel=1e-5)
    assert gradient.isfinite().all()
    assert torch.equal(gradient == 0, batch["mask"] == IGNORE)


def test_losses_of_sure_logits_are_finite():
    maps = torch.tensor([-1e4, 1e4]).view(2, 1, 1).repeat(1, 4, 4)
    mask = torch.tensor([1, 0]).view(2, 1, 1).repeat(1, 4, 4)
    assert mask_loss(maps, mask).tolist() == [1e4, 1e4]
    assert mask_loss(maps, 1 - mask).tolist() == [0, 0]


def test_half_precision_changes_neither_kind_of_term():
    model, batch = model_of().eval(), batch_of(pseudo=torch.tensor([True, False] * 2))
    expected = model.loss(batch, model(batch))
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(batch, model(batch))
    for name, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, expected[name], rtol=0.02, atol=1e-4)


# The classifier -------------------------------------------------------------------------------


def test_the_classifier_is_that_of_stage_1_after_a_fit_to_the_bit(tmp_path):
    stage1 = filled_classifier(tmp_path, **WILDCAT)
    first = wsl_zoo.load(stage1)
    model = model_of(stage1, **WILDCAT)
    before = pieces(model, "decoder")
    trainer(tmp_path, max_epochs=2).fit(model, tiny_data())
    found = pieces(model, "encoder", "head")
    assert any("running_var" in name for name in found)
    assert not differing(found, pieces(first, "encoder", "head"))
    assert differing(pieces(model, "decoder"), before) == before.keys()
    batch = batch_of()
    with torch.no_grad():
        logits = first(batch).logits
        assert torch.equal(model.eval()(batch).logits, logits)
        assert torch.equal(model.train()(batch).logits, logits)  # its dropout is off


def test_gradients_reach_the_decoder_only(stage1):
    model, batch = model_of(stage1).train(), batch_of()
    sum(model.loss(batch, model(batch)).values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("decoder."), name


def test_a_classifier_that_is_trained_too_adds_its_cross_entropy(stage1, tmp_path):
    model, batch = model_of(stage1, freeze_classifier=False, lr=0.01), batch_of()
    output = model.train()(batch)
    terms = model.loss(batch, output)
    assert list(terms) == ["oracle", "ce"]
    assert list(model.loss(batch_of(pseudo=batch["label"] > 1), output)) == [*WITH_TABLE, "ce"]
    torch.testing.assert_close(terms["ce"], F.cross_entropy(output.logits, batch["label"]))
    terms["oracle"].backward(retain_graph=True)
    assert all(p.grad is None for part in (model.encoder, model.head) for p in part.parameters())
    terms["ce"].backward()
    assert all(
        p.grad is not None for part in (model.encoder, model.head) for p in part.parameters()
    )
    before = pieces(wsl_zoo.load(stage1), "encoder", "head")
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(model, tiny_data())
    changed = differing(pieces(model, "encoder", "head"), before)
    assert {name.split(".")[0] for name in changed} == {"encoder", "head"}
    assert any("running_var" in name for name in changed)
    assert run.callback_metrics["train/ce"] > 0


# The decoder's start --------------------------------------------------------------------------


def test_the_decoder_starts_alike_whatever_the_seed():
    first, second = model_of(seed=1), model_of(seed=2, dropout=0.2, pseudo_weight=0.5)
    assert differing(pieces(first, "encoder"), pieces(second, "encoder"))
    assert not differing(pieces(first, "decoder"), pieces(second, "decoder"))
    other = differing(pieces(first, "decoder"), pieces(model_of(seed=1, decoder_seed=1), "decoder"))
    assert {f"decoder.{n}" for n, p in first.decoder.named_parameters() if p.ndim > 1} <= other


def test_making_the_decoder_draws_from_no_global_state(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    drawn = set()
    for changes in ({}, {"decoder_seed": 1}, {"decoder_args": DECODER | {"width": 9}}):
        model_of(seed=3, **changes)
        drawn.add(float(torch.rand(())))
    assert len(drawn) == 1
    assert set(seeded) == {3}  # an accelerator's seed is `model_of`'s


# Dropout --------------------------------------------------------------------------------------


def test_dropout_perturbs_classes_and_map_in_training_alone(stage1):
    model, batch = model_of(stage1, dropout=0.2).eval(), batch_of()

    def drawn(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(batch)

    plain = model_of(stage1).eval()(batch)
    for seed in (1, 2):
        output = drawn(seed)
        assert torch.equal(output.logits, plain.logits)
        assert torch.equal(output.map, plain.map)
    model.train()
    assert model.decoder.drop.training
    assert not any(m.training for part in (model.encoder, model.head) for m in part.modules())
    first, again, second = drawn(1), drawn(1), drawn(2)
    for field in ("logits", "map"):
        assert torch.equal(getattr(first, field), getattr(again, field))
        assert not torch.allclose(getattr(first, field), getattr(second, field))


def test_one_dropout_is_on_every_level_and_in_the_decoder(stage1):
    model, batch, dropped = model_of(stage1, dropout=0.5).eval(), batch_of(), []
    model.decoder.drop.register_forward_hook(lambda _m, x, y: dropped.append((x[0], y)))
    model.decoder.drop.train()  # alone, as for acquisition
    with torch.no_grad():
        _, final, levels = model.classify(batch["image"])
    assert [y.shape[1] for _, y in dropped] == model.encoder.channels
    for level, (x, y) in zip(levels, dropped, strict=True):
        assert torch.equal(level, y)  # the decoder reads what was dropped
        assert torch.equal(y[y != 0], 2 * x[y != 0])
        assert (y[x != 0] == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(final, levels[-1])  # and so do the classes
    with torch.no_grad():
        whole = model_of(stage1).eval().classify(batch["image"])[2]
    assert torch.equal(whole[0], dropped[0][0])
    assert not torch.allclose(whole[1], dropped[1][0])  # the next stage reads it too
    dropped.clear()
    with torch.no_grad():
        model(batch)
    assert len(dropped) == 5 + 4 + 4


def test_dropout_stays_on_in_a_fit_of_a_frozen_classifier(stage1, tmp_path):
    model, modes = model_of(stage1, dropout=0.2), []
    model.decoder.drop.register_forward_hook(lambda m, _x, _y: modes.append(m.training))
    trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(model, tiny_data())
    assert modes
    assert all(modes)
    modes.clear()
    trainer(tmp_path).validate(model, tiny_data(), verbose=False)
    assert modes
    assert not any(modes)


# The map --------------------------------------------------------------------------------------


def test_the_map_is_the_sigmoid_as_it_is_whatever_the_class(stage1):
    model, batch = model_of(stage1).eval(), batch_of()
    with torch.no_grad():
        output = model(batch)
        maps = model.localize(batch, output)
    assert output.map.shape == (4, 1, 48, 48)
    assert torch.equal(maps, output.map[:, 0].sigmoid())
    assert torch.equal(maps, model.localize(batch, output, "pred"))
    assert torch.equal(maps, model.localize(batch, output, 3))
    assert torch.equal(maps, model.class_map(batch, output, batch["label"]))
    assert 0 < maps.min() < maps.max() < 1  # no min-max
    constant = Output(map=torch.full((4, 1, 48, 48), 2.0))
    assert model.localize(batch, constant).unique().tolist() == [pytest.approx(0.8808, abs=1e-4)]


def test_the_threshold_is_one_half_and_dice_chooses_the_checkpoint(stage1, tmp_path):
    best = {kind: BestCheckpoint(kind, dirpath=tmp_path) for kind in ("cl", "loc")}
    seen = []
    model = model_of(stage1, lr=0.01)
    ended = model.on_validation_epoch_end
    model.on_validation_epoch_end = lambda: (
        ended(), seen.append(float(model.trainer.callback_metrics["val/image_dice"]))
    )  # fmt: skip
    run = trainer(tmp_path, max_epochs=4, enable_checkpointing=True, callbacks=[*best.values()])
    run.fit(model, tiny_data())
    assert best["cl"].monitor == "val/acc"
    assert best["loc"].monitor == "val/image_dice"
    assert len(seen) == 4
    assert len(set(seen)) > 1
    assert float(best["loc"].best_model_score) == max(seen)
    loaded = wsl_zoo.load(tmp_path / "best_loc.ckpt")
    assert loaded.map_threshold == loaded.chosen_threshold == 0.5
    values = trainer(tmp_path).validate(loaded, tiny_data(), verbose=False)[0]
    assert values["val/image_dice"] == pytest.approx(max(seen), abs=1e-6)


# Masks ----------------------------------------------------------------------------------------


def table_of(folder, **kinds):
    """A table of noise masks by "scene_<number>": kind, and the masks."""
    masks, rows = {}, {}
    for name, kind in kinds.items():
        image, path = name.replace("_", "-"), folder / f"{name}.png"
        rng = np.random.default_rng(len(masks))
        masks[image] = torch.from_numpy(rng.integers(0, 2, (48, 48), dtype=np.uint8))
        Image.fromarray(masks[image].numpy()).save(path)
        rows[image] = Drawn(path, kind)
    return str(write_masks(folder / "masks.csv", rows)), masks


def fitted(model, data, folder):
    """Fit an epoch; return the batches that training saw, and what it logged."""
    seen = []
    model.prepare_batch = lambda batch: seen.append(batch) or batch
    run = trainer(folder, limit_val_batches=0)
    run.fit(model, data)
    return seen, {name: float(value) for name, value in run.callback_metrics.items()}


def test_training_sees_the_masks_of_a_table_and_who_drew_them(stage1, tmp_path):
    table, masks = table_of(
        tmp_path, scene_0="oracle", scene_3="pseudo", scene_5="pseudo", scene_6="pseudo"
    )
    data = tiny_data(mask_table=table, hflip=0.0)
    (batch,), logged = fitted(model_of(stage1, pseudo_weight=0.25), data, tmp_path)
    assert sorted(batch["path"]) == sorted(masks)
    assert batch["pseudo"].dtype == torch.bool
    for path, mask, pseudo in zip(batch["path"], batch["mask"], batch["pseudo"], strict=True):
        assert torch.equal(mask, masks[path]), path
        assert bool(pseudo) == (path != "scene-0")
    # At the start all losses are about ln 2: of four images one is the oracle's.
    assert logged["train/oracle"] == pytest.approx(np.log(2) / 4, rel=0.3)
    assert logged["train/pseudo"] == pytest.approx(0.25 * 3 * np.log(2) / 4, rel=0.3)
    assert logged["train/loss"] == pytest.approx(logged["train/oracle"] + logged["train/pseudo"])


def test_without_a_table_all_masks_are_the_oracle_s(stage1, tmp_path):
    seen, logged = fitted(model_of(stage1), tiny_data(), tmp_path)
    assert not any("pseudo" in batch for batch in seen)
    assert logged["train/oracle"] == logged["train/loss"] > 0


def test_data_without_masks_are_refused(stage1, tmp_path):
    data = unannotated(tiny_data())
    message = "ActiveWeakAnnotator learns from masks, and the training images have none"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(model_of(stage1), data)


# Arguments ------------------------------------------------------------------------------------


def test_defaults_are_the_published_ones():
    defaults = inspect.signature(ActiveWeakAnnotator).parameters
    assert defaults["encoder"].default == "resnet18"
    model = ActiveWeakAnnotator(encoder="test_resnet")
    h = model.hparams
    assert (h["pseudo_weight"], h["dropout"], h["head"]) == (0.1, 0.0, "wildcat")
    assert (h["lr"], h["step_size"], h["gamma"], h["min_lr"]) == (0.1, 100, 0.9, 1e-7)
    assert (h["optimizer"], h["schedule"], h["momentum"]) == ("sgd", "step", 0.9)
    assert h["weight_decay"] == 1e-4
    assert h["freeze_classifier"]
    assert [leak[0].out_channels for leak in model.decoder.leaks] == [64] * 5
    assert model.decoder.downs[0][0].out_channels == 48
    assert [(group["name"], group["lr"]) for group in model.param_groups()[:1]] == [
        ("decoder", 0.1)
    ]
    assert (model.needs, model.fixed_threshold, model.judge) == (
        {"label", "mask"},
        0.5,
        "image_dice",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pseudo_weight": -0.1}, "pseudo_weight=-0.1 must not be negative"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"decoder_args": {"widht": 4}}, "decoder_args=.* of ImagePathDecoder: .*widht"),
        ({"decoder_args": {"up_channels": [8]}}, "5 levels take 4"),
        ({"head": "wildcard"}, "head='wildcard' must be one of"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        model_of(**arguments)
