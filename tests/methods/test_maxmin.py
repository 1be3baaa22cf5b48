"""Max-min uncertainty: its terms on glands and on CAMELYON16, and what trains what."""

import inspect
import math

import pytest
import torch
from torch.nn import functional as F

import wsl_zoo
from tests.cases import tiny_data, trainer
from tests.cases.stages import SMALL
from tests.methods.test_fcam import batch_of
from tests.methods.test_minmax_entropy import gradients_of, images_seen, mask_by_hand
from wsl_zoo.methods import MaxMin
from wsl_zoo.metrics import ImageDice
from wsl_zoo.metrics.split import Thresholds

K, NORMAL = 4, 3
PIXELS = 48 * 48
CAMELYON = ("camelyon16", "camelyon16_full")


def model_of(seed=0, variant="glas", **changes):
    torch.manual_seed(seed)
    head = {"dropout": 0.0} | changes.pop("head_args", {})
    model = MaxMin(**SMALL | {"variant": variant, "head_args": head} | changes).train()
    if variant != "glas":
        model.negative_class = NORMAL
    return model


def labelled(*labels):
    return batch_of(len(labels)) | {"label": torch.tensor(labels)}


def terms_of(model, batch):
    torch.manual_seed(0)
    return model.loss(batch, model(batch))


def plain(terms):
    return {k: float(v.detach()) for k, v in terms.items()}


def psi(z, t):
    if z <= -1 / t**2:
        return -math.log(-z) / t
    return t * z - math.log(1 / t**2) / t + 1 / t


def scaled(image, scale=0.8):
    size = [int(scale * side) for side in image.shape[-2:]]
    return F.interpolate(image, size, mode="bilinear", align_corners=True)


# The loss on glands ----------------------------------------------------------------------------


def glas_by_hand(model, batch, regularizer, weight, t=5.0, sigma=0.15):
    """The formula, on three passes of the encoder in the published order."""
    x, y = batch["image"], batch["label"]
    logits, maps = model.head(model.encoder.final(x))
    mask = mask_by_hand((logits.softmax(1)[:, :, None, None] * maps).sum(1), (48, 48), 5.0, sigma)
    kept = model.classifier(model.encoder.final(scaled(x * mask[:, None])))[0]
    left = model.classifier(model.encoder.final(scaled(x * (1 - mask[:, None]))))[0]
    p = left.softmax(1)
    uncertain = -p.log2().mean(1) if regularizer == "sem" else (p * p.log2()).sum(1)
    sizes = [psi(-float(m.sum()), t) + psi(-float((1 - m).sum()), t) for m in mask.detach()]
    return {
        "localizer": F.cross_entropy(logits, y),
        "foreground": F.cross_entropy(kept, y),
        "background": weight * uncertain.mean(),
        "size": torch.tensor(sizes).mean(),
    }


@pytest.mark.parametrize("regularizer", ["sem", "eem"])
def test_terms_on_glands_are_their_formulas(regularizer):
    model = model_of(regularizer=regularizer, background_weight=0.3)
    batch = batch_of()
    expected = glas_by_hand(model, batch, regularizer, 0.3)
    found = terms_of(model, batch)
    assert plain(found) == pytest.approx(plain(expected), rel=1e-4)
    assert list(found) == list(expected)
    if regularizer == "sem":
        assert found["background"] > 0.3 * math.log2(K)
    else:
        assert -0.3 * math.log2(K) <= found["background"] < 0


def test_the_published_weight_of_the_background_is_tiny():
    model, batch = model_of(), batch_of()
    expected = glas_by_hand(model, batch, "sem", 1e-7)
    assert plain(terms_of(model, batch)) == pytest.approx(plain(expected), rel=1e-4)


def test_the_surrogate_is_the_divergence_from_uniform_in_bits():
    model, batch = model_of(background_weight=1.0), batch_of()
    output = model(batch)
    log_p = output.extra["background"].log_softmax(1)
    divergence = F.kl_div(log_p, torch.full((4, K), 1 / K), reduction="batchmean")
    found = model.loss(batch, output)["background"]
    torch.testing.assert_close(found, (divergence + math.log(K)) / math.log(2))


@pytest.mark.parametrize(("t", "value"), [(1.0, 0.0), (5.0, 0.6438), (10.0, 0.4605)])
def test_the_barrier_is_smooth_where_its_branches_meet(t, value):
    model = model_of(size_args={"t": t})
    edge = -1 / t**2
    z = torch.tensor([edge * (1 + 1e-9), edge * (1 - 1e-9)], dtype=torch.float64).requires_grad_()
    found = model.size.barrier(z)
    found.sum().backward()
    assert found.tolist() == pytest.approx([value] * 2, abs=5e-5)
    assert z.grad.tolist() == pytest.approx([t, t], rel=1e-6)


def size_term(model, fraction, side=416):
    return float(model.sizes(torch.full((1, side, side), fraction)))


def test_size_terms_have_their_published_values_and_are_least_at_half_of_the_image():
    model = model_of()
    half = -2 / 5 * math.log(416**2 / 2)
    assert size_term(model, 0.5) == pytest.approx(half, rel=1e-5)
    assert half == pytest.approx(-4.5473, abs=5e-5)
    for fraction in (0.1, 0.9):
        assert size_term(model, fraction) == pytest.approx(-4.3430, abs=1e-4)
    values = [size_term(model, f) for f in (0.01, 0.2, 0.4, 0.5, 0.6, 0.8, 0.99)]
    assert min(values) == values[3]
    assert values[:3] == pytest.approx(values[:3:-1], rel=1e-5)
    assert sorted(values[:4], reverse=True) == values[:4]


def test_every_pixel_of_a_mask_has_the_gradient_of_the_sizes():
    model = model_of()
    mask = torch.rand(2, 10, 12).requires_grad_()
    model.sizes(mask).sum().backward()
    for m, gradient in zip(mask.detach(), mask.grad, strict=True):
        expected = -(1 / 5) * (1 / float(m.sum()) - 1 / float((1 - m).sum()))
        torch.testing.assert_close(gradient, torch.full((10, 12), expected))
    swapped = model.sizes(1 - mask.detach())
    torch.testing.assert_close(swapped, model.sizes(mask.detach()))


def test_empty_regions_are_finite():
    model = model_of()
    mask = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)]).requires_grad_()
    value = model.sizes(mask)
    value.sum().backward()
    assert value.tolist() == pytest.approx([psi(0.0, 5) + psi(-64.0, 5)] * 2, rel=1e-5)
    assert mask.grad.isfinite().all()


def test_sizes_of_large_images_fit_half_precision():
    model = model_of()
    batch = batch_of(2, 64)
    mask = torch.full((2, 416, 416), 0.7)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
        assert output.extra["mask"].dtype == torch.float32
        output.extra["mask"] = mask
        found = model.loss(batch, output)["size"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(size_term(model, 0.7), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "missing", "passes"),
    [
        ({"background_weight": 0.0}, {"background"}, 2),
        ({"size_weight": 0.0}, {"size"}, 3),
        ({"background_weight": 0.0, "size_weight": 0.0}, {"background", "size"}, 2),
        ({}, set(), 3),
    ],
)
def test_terms_without_a_weight_are_left_out(changes, missing, passes, monkeypatch):
    model = model_of(**changes)
    seen = images_seen(model, monkeypatch)
    terms = terms_of(model, batch_of())
    assert terms.keys() == {"localizer", "foreground", "background", "size"} - missing
    assert len(seen) == passes


def test_the_size_weight_scales_its_term():
    batch = batch_of()
    one, half = terms_of(model_of(), batch), terms_of(model_of(size_weight=0.5), batch)
    torch.testing.assert_close(half["size"], 0.5 * one["size"])


@pytest.mark.parametrize("term", ["foreground", "background", "size"])
def test_the_localiser_learns_through_the_mask_from_every_term(term):
    model = model_of(background_weight=1.0)
    terms_of(model, batch_of())[term].backward()
    gradients = gradients_of(model)
    assert gradients["head.conv.weight"].abs().max() > 0
    assert any(g.abs().max() > 0 for n, g in gradients.items() if n.startswith("encoder."))
    assert ("classifier.conv.weight" in gradients) == (term != "size")


def test_regions_add_up_to_the_image(monkeypatch):
    model, batch = model_of(scale=1.0), batch_of()
    seen = images_seen(model, monkeypatch)
    mask = model(batch).extra["mask"].detach()
    torch.testing.assert_close(seen[0], batch["image"])
    torch.testing.assert_close(seen[1] + seen[2], batch["image"])
    torch.testing.assert_close(seen[1], batch["image"] * mask[:, None])
    low, high = (1 / (1 + math.exp(-5 * z)) for z in (-0.15, 0.85))
    assert [float(mask.min()), float(mask.max())] == pytest.approx([low, high], abs=1e-4)


def test_masked_images_are_scaled_down_and_cut_to_whole_pixels(monkeypatch):
    for scale, side in ((0.8, 38), (0.7, 33)):  # of 38.4 and 33.6
        model = model_of(scale=scale)
        seen = images_seen(model, monkeypatch)
        model(batch_of())
        assert [x.shape[-1] for x in seen] == [48, side, side]


def test_the_prediction_is_that_of_the_kept_part():
    model, batch = model_of().eval(), batch_of()
    with torch.no_grad():
        output = model(batch)
        logits, maps = model.head(model.encoder.final(batch["image"]))
        expected = (logits.softmax(1)[:, :, None, None] * maps).sum(1)
        mask = mask_by_hand(expected, (48, 48), 5.0, 0.15)
        scores = model.classifier(model.encoder.final(scaled(batch["image"] * mask[:, None])))[0]
    torch.testing.assert_close(output.logits, scores, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(output.map[:, 0], expected)
    torch.testing.assert_close(model.localize(batch, output), mask, rtol=0, atol=1e-3)
    assert torch.equal(model.localize(batch, output, 2), model.localize(batch, output, "pred"))
    predicted = model.predict_step(batch, 0)
    torch.testing.assert_close(predicted["probabilities"], output.logits.softmax(1))


# CAMELYON16 ------------------------------------------------------------------------------------


def camelyon_by_hand(model, batch, full, weight=0.3, t=5.0):
    """Image by image, after the passes of the encoder."""
    x, y = batch["image"], batch["label"]
    final = model.encoder.final(x)
    logits, maps = model.head(final)[0], model.map_head(final)[1]
    c = F.interpolate(maps, (48, 48), mode="bilinear", align_corners=True)[:, 0]
    mask = torch.sigmoid(5 * c)
    tumors = [b for b in range(len(y)) if y[b] != NORMAL]
    normals = [b for b in range(len(y)) if y[b] == NORMAL]
    ce = [F.cross_entropy(logits[b : b + 1], y[b : b + 1]) for b in range(len(y))]
    zero = torch.zeros(())
    terms = {"localizer": 10 * sum(ce) / len(ce)}
    if full:
        terms["localizer"] = (sum((ce[b] for b in tumors), zero)
                              + 10 * sum((ce[b] for b in normals), zero)) / len(ce)  # fmt: skip
        kept = model.classifier(model.encoder.final(scaled(x * mask[:, None])))[0]
        left = model.classifier(model.encoder.final(scaled(x * (1 - mask[:, None]))))[0]
        share = max(1, len(tumors))
        terms["foreground"] = sum(
            (F.cross_entropy(kept[b : b + 1], y[b : b + 1]) for b in tumors), zero
        ) / share  # fmt: skip
        terms["background"] = weight * sum(
            (-left[b].log_softmax(0).mean() / math.log(2) for b in tumors), zero
        ) / share  # fmt: skip
    sizes = []
    for b in tumors:
        sizes.append(psi(-float(mask[b].detach().sum()), t))
        if full:
            sizes[-1] += psi(-float((1 - mask[b].detach()).sum()), t)
    terms["size"] = torch.tensor(sizes).mean() if sizes else zero
    empty = torch.zeros(48, 48)
    each = [F.binary_cross_entropy(torch.sigmoid(c[b]), empty) for b in normals]
    terms["negative"] = sum(each, zero) / max(1, len(normals))
    return terms


@pytest.mark.parametrize("labels", [(0, 3, 1, 3, 3), (3, 3, 3), (0, 1, 2)])
@pytest.mark.parametrize("variant", CAMELYON)
def test_terms_on_camelyon16_are_their_formulas(variant, labels):
    full = variant == "camelyon16_full"
    model, batch = model_of(variant=variant, background_weight=0.3), labelled(*labels)
    expected = camelyon_by_hand(model, batch, full)
    found = terms_of(model, batch)
    assert list(found) == list(expected)
    assert plain(found) == pytest.approx(plain(expected), rel=1e-4, abs=1e-7)
    if labels == (3, 3, 3):
        assert {k for k, v in plain(found).items() if v == 0} == found.keys() - {
            "localizer", "negative",
        }  # fmt: skip
    sum(found.values()).backward()
    gradients = gradients_of(model)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("labels", [(3, 3), (0, 1), (0, 3)])
@pytest.mark.parametrize("variant", CAMELYON)
def test_half_precision_gives_no_nan(variant, labels):
    model, batch = model_of(variant=variant), labelled(*labels)
    with torch.autocast("cpu", torch.bfloat16):
        terms = terms_of(model, batch)
    total = torch.stack(list(terms.values())).sum()
    assert total.dtype == torch.float32
    total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_published_code_has_one_loss_for_both_regularisers():
    batch = labelled(0, 3, 1, 3)
    sem, eem = (
        plain(terms_of(model_of(variant="camelyon16", regularizer=r), batch))
        for r in ("sem", "eem")
    )
    assert sem == eem
    sem, eem = (
        plain(terms_of(model_of(variant="camelyon16_full", regularizer=r), batch))
        for r in ("sem", "eem")
    )
    assert sem.pop("background") > 0 > eem.pop("background")
    assert sem == eem


def test_without_weights_camelyon16_has_no_such_terms():
    batch = labelled(0, 3, 1, 3)
    changes = {"background_weight": 0.0, "size_weight": 0.0}
    full = terms_of(model_of(variant="camelyon16_full", **changes), batch)
    assert full.keys() == {"localizer", "foreground", "negative"}
    code = terms_of(model_of(variant="camelyon16", **changes), batch)
    assert code.keys() == {"localizer", "negative"}


@pytest.mark.parametrize(
    ("labels", "term"), [((3, 3, 3), "negative"), ((0, 1, 2), "size")]
)  # fmt: skip
def test_the_map_learns_apart_from_the_classes(labels, term):
    model, batch = model_of(variant="camelyon16"), labelled(*labels)
    terms = terms_of(model, batch)
    assert not hasattr(model, "classifier")
    terms["localizer"].backward(retain_graph=True)
    gradients = gradients_of(model)
    assert gradients["head.conv.weight"].abs().max() > 0
    assert not any(name.startswith("map_head.") for name in gradients)
    terms[term].backward()
    gradients = gradients_of(model)
    assert gradients["map_head.conv.weight"].abs().max() > 0
    assert not any(name.startswith("head.") for name in gradients)


def test_scores_rise_on_tumors_and_fall_on_normals():
    model, batch = model_of(variant="camelyon16"), labelled(0, 3, 1, 3)
    output = model(batch)
    c = output.map.detach()

    def total(offset):
        output.map = c + torch.tensor(offset).view(-1, 1, 1, 1)
        output.extra["mask"] = model.mask_of(output.map[:, 0], batch["image"])
        return sum(plain(model.loss(batch, output)).values())

    steps = (-1.0, -0.5, 0.0, 0.5, 1.0)
    tumors = [total([s, 0.0, s, 0.0]) for s in steps]
    normals = [total([0.0, s, 0.0, s]) for s in steps]
    assert sorted(tumors, reverse=True) == tumors
    assert sorted(normals) == normals
    assert len(set(tumors)) == len(set(normals)) == 5


@pytest.mark.parametrize("variant", CAMELYON)
def test_on_camelyon16_the_localiser_classifies_and_the_second_map_is_the_mask(
    variant, monkeypatch
):
    model, batch = model_of(variant=variant).eval(), labelled(0, 3, 1, 3)
    seen = images_seen(model, monkeypatch)
    with torch.no_grad():
        output = model(batch)
        final = model.encoder.final(batch["image"])
    assert len(seen) == 1
    assert torch.equal(output.logits, model.head(final)[0])
    assert output.map.shape[1] == 1
    assert torch.equal(output.map, model.map_head(final)[1])
    up = F.interpolate(output.map, (48, 48), mode="bilinear", align_corners=True)[:, 0]
    maps = model.localize(batch, output)
    torch.testing.assert_close(maps, torch.sigmoid(5 * up))
    assert torch.equal(maps >= 0.5, up >= 0)
    predicted = model.predict_step(batch, 0)
    torch.testing.assert_close(predicted["probabilities"], output.logits.softmax(1))


@pytest.mark.parametrize("variant", CAMELYON)
def test_the_negative_class_comes_from_the_data(variant, tmp_path):
    model = model_of(variant=variant)
    model.negative_class = None
    data = tiny_data(classes=3, negatives=True)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(model, data)
    assert model.negative_class == 3
    assert run.callback_metrics["train/negative"] > 0
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = wsl_zoo.load(tmp_path / "model.ckpt")
    batch = labelled(0, 3)
    assert torch.equal(loaded(batch).map, model.eval()(batch).map)
    message = f"variant='{variant}': SyntheticData has no class without a region .*data.negatives"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(model_of(variant=variant), tiny_data())
    trainer(tmp_path).validate(loaded, tiny_data(), verbose=False)


@pytest.mark.parametrize("variant", CAMELYON)
def test_until_the_negative_class_is_known_every_image_holds_a_region(variant):
    model, batch = model_of(variant=variant), labelled(0, 3, 1, 3)
    model.negative_class = 7
    expected = plain(terms_of(model, batch))
    model.negative_class = None
    assert plain(terms_of(model, batch)) == expected
    assert expected["negative"] == 0


def test_glands_need_no_negative_class(tmp_path):
    model = model_of()
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(model, tiny_data(classes=3, negatives=True))
    assert "train/negative" not in run.callback_metrics


# Schedules, checkpoints, thresholds --------------------------------------------------------------


def test_sigma_and_t_step_by_epoch_and_are_restored(tmp_path):
    model, seen = model_of(), []
    loss = model.loss
    model.loss = lambda batch, output: (
        seen.append((model.current_epoch, float(model.mask.sigma), float(model.size.barrier.t)))
        or loss(batch, output)
    )
    run = trainer(tmp_path, max_epochs=3, limit_val_batches=0)
    run.fit(model, tiny_data())
    for epoch, sigma, t in seen:
        assert sigma == pytest.approx(0.15 + 0.001 * epoch)
        assert t == pytest.approx(5 * 1.01**epoch)
    assert {epoch for epoch, _, _ in seen} == {0, 1, 2}
    del model.loss
    run.save_checkpoint(tmp_path / "model.ckpt")
    assert {"mask.sigma", "size.barrier.t"} <= model.state_dict().keys()
    loaded = wsl_zoo.load(tmp_path / "model.ckpt")
    assert float(loaded.mask.sigma) == pytest.approx(0.153)
    assert float(loaded.size.barrier.t) == pytest.approx(5 * 1.01**3)


def test_sigma_and_t_reach_their_last_values():
    model = model_of()
    schedules = list(model.schedules())
    assert len(schedules) == 2
    for epoch in range(90):
        expected = (min(0.15 + 0.001 * epoch, 0.20), min(5 * 1.01**epoch, 10))
        found = (float(model.mask.sigma), float(model.size.barrier.t))
        assert found == pytest.approx(expected, rel=1e-4)
        for schedule in schedules:
            schedule.step()
    assert float(model.size.barrier.t) == 10


def test_the_last_sigma_can_be_that_of_every_checkpoint():
    own, last = model_of(), model_of(mask_args={"eval_sigma": "last"})
    batch = batch_of()
    assert torch.equal(own(batch).extra["mask"], last(batch).extra["mask"])
    maps = own.eval()(batch).map[:, 0]
    expected = mask_by_hand(maps, (48, 48), 5.0, 0.20)
    torch.testing.assert_close(
        last.eval().mask_of(maps, batch["image"]), expected, rtol=0, atol=1e-3
    )
    assert last.mask.sharpness == 5


@pytest.mark.parametrize("variant", ["glas", *CAMELYON])
def test_checkpointing_changes_nothing_but_memory(variant):
    found = []
    for checkpointing in (False, True):
        model = model_of(
            variant=variant, checkpointing=checkpointing, head_args={"dropout": 0.5},
            background_weight=1.0,
        )  # fmt: skip
        terms = terms_of(model, labelled(0, 3, 1, 3))
        sum(terms.values()).backward()
        found.append({k: v.detach() for k, v in terms.items()})
        found[-1] |= {f"gradient of {k}": v for k, v in gradients_of(model).items()}
        found[-1] |= model.state_dict()
    without, again = found
    assert without.keys() == again.keys()
    for name, value in without.items():
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize("variant", ["glas", "camelyon16"])
def test_the_threshold_is_one_half(variant, tmp_path):
    model = model_of(variant=variant)
    data = tiny_data(classes=3, negatives=True)
    assert model.map_threshold == model.chosen_threshold == 0.5
    run = trainer(tmp_path)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = wsl_zoo.load(tmp_path / "model.ckpt")
    for each in (model, loaded):
        assert each.map_threshold == each.chosen_threshold == each.thresholds.pixels == 0.5
    loaded.thresholds = Thresholds(pixels=0.9)
    values = trainer(tmp_path).test(loaded, data, verbose=False)[0]
    metrics = {
        "image_dice": ImageDice(0.5),
        "image_dice_bg": ImageDice(0.5, "background"),
        "image_dice_present": ImageDice(0.5, empty="truth"),
    }
    loaders = data.test_dataloader()
    for batch in loaders[0] if isinstance(loaders, list) else loaders:
        batch = data.on_after_batch_transfer(batch, 0)
        with torch.no_grad():
            maps = loaded.localize(batch, loaded(batch))
        for metric in metrics.values():
            metric.update(maps, batch["mask"])
    found = {name: float(metric.compute()) for name, metric in metrics.items()}
    assert {name: values[f"test/{name}"] for name in metrics} == pytest.approx(found, abs=1e-6)
    assert values["test/dice"] > 0


# Arguments -------------------------------------------------------------------------------------


def test_defaults_are_the_published_ones():
    signature = inspect.signature(MaxMin).parameters
    assert signature["encoder"].default == "resnet18"
    model = MaxMin(encoder="test_resnet")
    h = model.hparams
    assert (h["regularizer"], h["background_weight"], h["size_weight"]) == ("sem", 1e-7, 1)
    for head in (model.head, model.classifier):
        assert (head.modalities, head.kmax, head.kmin, head.alpha) == (5, 0.3, 0, 0)
        assert head.dropout == 0.1
    mask, barrier = model.mask, model.size.barrier
    assert (mask.sharpness, mask.sigma_step, mask.sigma_max) == (5, 0.001, 0.2)
    assert float(mask.sigma) == pytest.approx(0.15)
    assert (mask.scope, mask.eval_sigma) == ("image", "own")
    assert (float(barrier.t), barrier.factor, barrier.t_max) == (5, 1.01, 10)
    assert (h["scale"], h["variant"], h["checkpointing"]) == (0.8, "glas", False)
    assert (h["optimizer"], h["momentum"], h["weight_decay"]) == ("sgd", 0.9, 1e-4)
    assert (h["schedule"], h["step_size"], h["gamma"], h["min_lr"]) == ("step", 10, 0.9, 1e-7)
    assert {group["lr"] for group in model.param_groups()} == {1e-3}


@pytest.mark.parametrize("variant", CAMELYON)
def test_defaults_on_camelyon16_are_the_published_ones(variant):
    model = MaxMin(encoder="test_resnet", variant=variant)
    assert (model.head.modalities, model.head.kmax, model.head.dropout) == (4, 0.1, 0)
    assert (model.map_head.modalities, model.map_head.num_classes) == (5, 1)
    assert (model.mask.sharpness, float(model.mask.sigma), model.mask.scope) == (5, 0, "none")
    model.mask.step()
    assert float(model.mask.sigma) == 0
    assert float(model.size.barrier.t) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regularizer": "kl"}, "regularizer='kl' must be one of sem, eem"),
        ({"variant": "full"}, "variant='full' one of glas, camelyon16, camelyon16_full"),
        ({"scale": 0.0}, r"scale=0.0 must lie in \(0, 1\]"),
        ({"mask_args": {"sigma": 0.3}}, "sigma=0.3, .*sigma <= sigma_max"),
        ({"mask_args": {"slope": 3}}, "mask_args=.* of PseudoMask: .*slope"),
        ({"size_args": {"t": 11.0}}, "t=11.0, .*t_max=10.0: must be 0 < t <= t_max"),
        ({"head_args": {"k": 3}}, "head_args=.* of WILDCAT: .*'k'"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        model_of(**arguments)
