"""Min-max entropy: its terms, what trains what, and recursive mining against the pseudo-code."""

import inspect
import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

import wsl_zoo
from tests.cases import tiny_data, trainer
from tests.cases.stages import SMALL
from tests.methods.test_fcam import batch_of
from wsl_zoo.methods import MinMaxEntropy
from wsl_zoo.metrics import DiceAtThreshold, ImageDice
from wsl_zoo.metrics.split import Thresholds

K = 4


def model_of(seed=0, **changes):
    torch.manual_seed(seed)
    head = {"dropout": 0.0, "kmax": 0.3} | changes.pop("head_args", {})
    return MinMaxEntropy(**SMALL | {"erase_epoch": 1, "head_args": head} | changes).train()


def with_right_labels(model, batch, wrong=()):
    """Label every image as the model sees it in the first pass, but those that are to be wrong."""
    label = model.locate(batch["image"])[0].argmax(1)
    for b in wrong:
        label[b] = (label[b] + 1) % K
    return batch | {"label": label}


def images_seen(model, monkeypatch):
    """What the encoder is called with."""
    seen, final = [], model.final
    monkeypatch.setattr(model, "final", lambda x: seen.append(x.detach().clone()) or final(x))
    return seen


def mask_by_hand(maps, size, w=8.0, sigma=0.5):
    up = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=True)[:, 0]
    u = torch.stack([(m - m.min()) / (m.max() - m.min()) for m in up])
    return torch.sigmoid(w * (u - sigma))


def gradients_of(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


# Recursive mining ------------------------------------------------------------------------------


def published_step(model, x, y, passes, decay=10.0):
    """One step of the published code, image by image; gradients are left on the model.

    Returns the accumulated mask, the two sums of losses and what happened to the images.
    """
    count, size = len(x), x.shape[-2:]
    x0, found = x, x.new_zeros(count, *size)
    alive, first, events, total = [1] * count, [0.0] * count, set(), 0.0
    for r in range(passes):
        if sum(alive) == 0:
            events.add("stopped early")
            break
        logits, maps = model.head(model.encoder.final(x))
        p = logits.detach().softmax(1)
        expected = sum(p[:, k, None, None] * maps.detach()[:, k] for k in range(K))
        masks = mask_by_hand(expected, size)
        losses = [F.cross_entropy(logits[b : b + 1], y[b : b + 1]) for b in range(count)]
        mean = sum(losses) / count
        mean.backward()
        total += mean.item()
        following = x.clone()
        for b in range(count):
            value = losses[b].item()
            if r == 0:
                first[b] = value
            right = int(logits[b].argmax() == y[b])
            before, alive[b] = alive[b], min(alive[b], right)
            if right and not before:
                events.add("right again, but dead")
            if not right:
                events.add("wrong at once" if r == 0 else "wrong later")
            if alive[b] and value > first[b]:
                events.add("loss above the first")
            if alive[b] and value <= first[b] and r > 0:
                events.add("trusted again")
            trust = math.exp(-r / decay) * right * (value <= first[b]) * p[b].max() * alive[b]
            found[b] = torch.maximum(found[b], trust * masks[b])
            if trust != 0:
                following[b] = x[b] * (1 - found[b])
        x = following
    half = [int(0.5 * side) for side in size]
    scores = []
    for image in (x0 * found[:, None], x0 * (1 - found[:, None])):
        image = F.interpolate(image, half, mode="bilinear", align_corners=True)
        scores.append(model.classifier(model.encoder.final(image))[0])
    foreground = F.cross_entropy(scores[0], y)
    background = -scores[1].log_softmax(1).mean()
    (foreground + background).backward()
    terms = {"localizer": total, "foreground": foreground, "background": background}
    return found, {k: float(torch.as_tensor(v).detach()) for k, v in terms.items()}, events


def compared(seed, wrong, passes):
    """Run a step both ways, on a batch in which some images are wrong; return what happened."""
    model = model_of(seed, erase=passes).double()
    model.head.conv.weight.data *= 20  # regions are certain, so that erasing them tells
    batch = batch_of(6, seed=seed)
    batch = with_right_labels(model, batch | {"image": batch["image"].double()}, wrong)
    found, terms, events = published_step(model, batch["image"], batch["label"], passes)
    expected = gradients_of(model)
    output = model(batch)
    losses = model.loss(batch, output)
    sum(losses.values()).backward()
    torch.testing.assert_close(output.extra["mask"].double(), found, rtol=1e-4, atol=1e-5)
    assert {k: float(v.detach()) for k, v in losses.items()} == pytest.approx(terms, rel=1e-4)
    ours = gradients_of(model)
    assert ours.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            ours[name], gradient, rtol=2e-3, atol=2e-3 * scale + 1e-6, msg=name
        )
    return events


def test_a_step_is_that_of_the_pseudo_code():
    events = set()
    for seed in range(5):
        events |= compared(seed, wrong=(1, 4), passes=4)
    events |= compared(0, wrong=range(6), passes=4)
    assert events == {
        "stopped early", "wrong at once", "wrong later", "right again, but dead",
        "loss above the first", "trusted again",
    }  # fmt: skip


class Script:
    """A localiser whose logits and maps are given, pass by pass."""

    def __init__(self, model, monkeypatch, *logits):
        self.logits, self.images = list(logits), []
        self.maps = [maps_of(len(z), seed) for seed, z in enumerate(self.logits)]
        monkeypatch.setattr(model, "locate", self)

    def __call__(self, image):
        turn = len(self.images)
        self.images.append(image)
        return self.logits[turn], self.maps[turn]


def maps_of(count, seed):
    return torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(seed))


def logits_of(*certainties):
    """Logits of two classes (of four); positive: the first wins with about this margin."""
    rows = [[c, 0.0, -50.0, -50.0] for c in certainties]
    return torch.tensor(rows)


def p_max(c):
    return 1 / (1 + math.exp(-abs(c)))


def test_trust_follows_its_rules(monkeypatch):
    """Right with a falling loss; right, once with a higher loss; right, then wrong, then right."""
    model = model_of(erase=4)
    passes = [(1.0, 2.0, 1.0), (1.5, 1.0, -1.0), (2.0, 2.5, 3.0), (0.5, 3.0, 3.0)]
    script = Script(model, monkeypatch, *(logits_of(*c) for c in passes))
    image, label = torch.rand(3, 3, 12, 12) + 1, torch.zeros(3, dtype=torch.long)
    found = model.mine(image, label)[0]
    trusts = [
        [p_max(1.0), math.exp(-0.1) * p_max(1.5), math.exp(-0.2) * p_max(2.0), 0],
        [p_max(2.0), 0, math.exp(-0.2) * p_max(2.5), math.exp(-0.3) * p_max(3.0)],
        [p_max(1.0), 0, 0, 0],
    ]
    masks = [mask_by_hand(maps, (12, 12)) for maps in script.maps]
    for b in range(3):
        seen, mined = image[b], torch.zeros(12, 12)
        for r in range(4):
            torch.testing.assert_close(script.images[r][b], seen)
            mined = torch.maximum(mined, trusts[b][r] * masks[r][b])
            if trusts[b][r]:
                seen = seen * (1 - mined)
        torch.testing.assert_close(found["mask"][b], mined)
    losses = [F.cross_entropy(z, label) for z in script.logits]
    torch.testing.assert_close(found["mined"], sum(losses))
    assert torch.equal(found["localizer"], script.logits[0])


def test_trust_decays_by_its_constant():
    for decay in (10.0, 2.0):
        model = model_of(erase=3, trust_decay=decay)
        z = logits_of(1.0, 1.0)
        args = z, torch.ones(2), torch.ones(2), torch.tensor([True, False])
        for turn in range(3):
            found = model.trust(*args, turn)
            assert found.tolist() == pytest.approx([math.exp(-turn / decay) * p_max(1.0), 0])


def test_mining_stops_when_no_image_is_right_any_more(monkeypatch):
    model = model_of(erase=4)
    script = Script(model, monkeypatch, logits_of(1.0, -1.0), logits_of(-1.0, 2.0))
    found = model.mine(torch.rand(2, 3, 12, 12), torch.zeros(2, dtype=torch.long))[0]
    assert len(script.images) == 2
    expected = p_max(1.0) * mask_by_hand(script.maps[0], (12, 12))[0]
    torch.testing.assert_close(found["mask"], torch.stack([expected, torch.zeros(12, 12)]))


def test_of_one_pass_right_images_keep_their_probability_times_the_mask():
    model = model_of(erase=1)
    batch = with_right_labels(model, batch_of())
    logits, maps = model.locate(batch["image"])
    p = logits.softmax(1).gather(1, batch["label"][:, None])[:, :, None]
    output = model(batch)
    expected = p * mask_by_hand(maps, (48, 48))
    torch.testing.assert_close(output.extra["mask"], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.extra["mined"], F.cross_entropy(logits, batch["label"]))


def test_of_wrong_images_nothing_is_kept_and_all_is_background(monkeypatch):
    model = model_of(erase=4, scale=1.0)
    batch = with_right_labels(model, batch_of(), wrong=range(4))
    seen = images_seen(model, monkeypatch)
    output = model(batch)
    assert len(seen) == 3  # one pass of the localiser
    assert (output.extra["mask"] == 0).all()
    assert (seen[1] == 0).all()
    assert torch.equal(seen[2], batch["image"])


def test_regions_only_grow_and_images_only_fade(monkeypatch):
    grown = []
    for passes in range(1, 5):
        model = model_of(erase=passes)
        model.head.conv.weight.data *= 5
        batch = with_right_labels(model, batch_of(8), wrong=(2,))
        seen = images_seen(model, monkeypatch)
        grown.append(model(batch).extra["mask"])
        images = seen[:-2]
        for before, after in pairwise(images):
            assert (after.abs() <= before.abs()).all()
    assert len(images) == 4
    assert not torch.equal(images[0], images[3])
    for r in range(1, 4):
        assert (grown[r] >= grown[r - 1]).all()
        new = grown[r] > grown[r - 1]
        assert (grown[r][new] <= math.exp(-r / 10)).all()
    assert not torch.equal(grown[3], grown[0])
    assert float(grown[3].max()) <= 1


def test_evaluation_does_not_mine():
    batch = batch_of()
    outputs = []
    for passes in (0, 4):
        model = model_of(erase=passes).eval()
        outputs.append((model(batch), model.localize(batch, model(batch))))
    (one, map_of_one), (other, map_of_other) = outputs
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(one.map, other.map)
    assert torch.equal(map_of_one, map_of_other)
    assert other.extra.keys() == {"localizer", "mask"}


def test_mining_starts_at_its_epoch(tmp_path, monkeypatch):
    model, epochs = model_of(erase_epoch=2), []
    mine = model.mine
    monkeypatch.setattr(model, "mine", lambda *a: epochs.append(model.current_epoch) or mine(*a))
    trainer(tmp_path, max_epochs=3).fit(model, tiny_data())
    assert epochs == [1, 1, 2, 2]


# Terms and gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [0, 3])
def test_terms_are_their_formulas(passes):
    model = model_of(erase=passes)
    batch = with_right_labels(model, batch_of(), wrong=(0,))
    output = model(batch)
    terms = model.loss(batch, output)
    assert terms.keys() == {"localizer", "foreground", "background"}
    label, extra = batch["label"], output.extra
    ce = F.cross_entropy(extra["localizer"], label)
    assert (terms["localizer"] > 1.5 * ce) if passes else torch.equal(terms["localizer"], ce)
    assert torch.equal(terms["foreground"], F.cross_entropy(output.logits, label))
    p, q = extra["background"].softmax(1), torch.full((4, K), 1 / K)
    torch.testing.assert_close(terms["background"], -(q * p.log()).sum(1).mean())
    divergence = F.kl_div(p.log(), q, reduction="batchmean")
    torch.testing.assert_close(terms["background"], divergence + math.log(K))
    assert terms["background"] > math.log(K)
    z = extra["background"].detach().requires_grad_()
    output.extra = extra | {"background": z}
    model.loss(batch, output)["background"].backward()
    torch.testing.assert_close(z.grad, (p.detach() - 1 / K) / 4)


@pytest.mark.parametrize("passes", [0, 3])
def test_the_mask_learns_from_the_localiser_alone(passes):
    model = model_of(erase=passes)
    batch = with_right_labels(model, batch_of(), wrong=(0,))
    terms = model.loss(batch, model(batch))
    (terms["foreground"] + terms["background"]).backward(retain_graph=True)
    masked = gradients_of(model)
    assert all(name.startswith(("encoder.", "classifier.")) for name in masked)
    terms["localizer"].backward()
    located = gradients_of(model)
    assert all(name.startswith(("encoder.", "head.")) for name in located)
    for gradients, head in ((masked, "classifier"), (located, "head")):
        assert gradients[f"{head}.conv.weight"].abs().max() > 0
        encoder = [g for n, g in gradients.items() if n.startswith("encoder.")]
        assert len(encoder) == len(list(model.encoder.parameters()))
        assert encoder[0].abs().max() > 0


@pytest.mark.parametrize("passes", [0, 3])
def test_foreground_and_background_add_up_to_the_image(passes, monkeypatch):
    model = model_of(erase=passes, scale=1.0)
    batch = with_right_labels(model, batch_of(), wrong=(0,))
    seen = images_seen(model, monkeypatch)
    mask = model(batch).extra["mask"]
    assert torch.equal(seen[0], batch["image"])
    torch.testing.assert_close(seen[-2] + seen[-1], batch["image"])
    torch.testing.assert_close(seen[-2], batch["image"] * mask[:, None])
    low, high = (1 / (1 + math.exp(-z)) for z in (-4, 4))
    assert mask.max() <= high + 1e-6
    if not passes:
        assert mask.min() >= low - 1e-6
        assert [low, high] == pytest.approx([0.0180, 0.9820], abs=5e-5)


@pytest.mark.parametrize(("scale", "size"), [(0.5, 24), (0.8, 38), (1.0, 48)])
def test_masked_images_are_scaled_down(scale, size, monkeypatch):
    model = model_of(erase=0, scale=scale)
    seen = images_seen(model, monkeypatch)
    model(batch_of())
    assert [tuple(x.shape[-2:]) for x in seen] == [(48, 48), (size, size), (size, size)]


def test_without_a_weight_the_background_is_not_looked_at(monkeypatch):
    model = model_of(erase=0, background_weight=0.0)
    batch, seen = batch_of(), images_seen(model, monkeypatch)
    assert model.loss(batch, model(batch)).keys() == {"localizer", "foreground"}
    assert len(seen) == 2
    half, whole = model_of(erase=0, background_weight=0.5), model_of(erase=0)
    terms = [m.loss(batch, m(batch))["background"] for m in (half, whole)]
    torch.testing.assert_close(2 * terms[0], terms[1])


@pytest.mark.parametrize("passes", [0, 3])
def test_checkpointing_changes_nothing_but_memory(passes):
    found = []
    for checkpointing in (False, True):
        model = model_of(erase=passes, checkpointing=checkpointing, head_args={"dropout": 0.5})
        batch = with_right_labels(model.eval(), batch_of(), wrong=(0,))
        model.train()
        torch.manual_seed(0)
        terms = model.loss(batch, model(batch))
        sum(terms.values()).backward()
        found.append({k: v.detach() for k, v in terms.items()})
        found[-1] |= {f"gradient of {k}": v for k, v in gradients_of(model).items()}
        found[-1] |= model.state_dict()
    plain, again = found
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        assert torch.equal(again[name], value), name


# Evaluation ------------------------------------------------------------------------------------


def test_the_prediction_is_that_of_the_kept_part():
    model, batch = model_of().eval(), batch_of()
    with torch.no_grad():
        output = model(batch)
        logits, maps = model.head(model.encoder.final(batch["image"]))
        p = logits.softmax(1)
        expected = torch.einsum("bk,bkhw->bhw", p, maps)
        kept = batch["image"] * mask_by_hand(expected, (48, 48))[:, None]
        kept = F.interpolate(kept, (24, 24), mode="bilinear", align_corners=True)
        scores = model.classifier(model.encoder.final(kept))[0]
    torch.testing.assert_close(output.logits, scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.extra["localizer"], logits)
    torch.testing.assert_close(output.map[:, 0], expected)
    assert not torch.equal(output.logits, logits)
    predicted = model.predict_step(batch, 0)
    torch.testing.assert_close(predicted["probabilities"], output.logits.softmax(1))


def test_the_map_is_the_mask_of_every_target():
    model, batch = model_of().eval(), batch_of()
    output = model(batch)
    maps = model.localize(batch, output, "label")
    torch.testing.assert_close(maps, mask_by_hand(output.map[:, 0], (48, 48)), rtol=0, atol=1e-3)
    for target in ("pred", 0, 3):
        assert torch.equal(model.localize(batch, output, target), maps)
    output.map = 5 * output.map - 2
    torch.testing.assert_close(model.localize(batch, output), maps, rtol=0, atol=1e-3)


def test_the_threshold_is_one_half(tmp_path):
    model, data = model_of(erase=1), tiny_data()
    assert model.map_threshold == model.chosen_threshold == 0.5
    run = trainer(tmp_path)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = wsl_zoo.load(tmp_path / "model.ckpt")
    for each in (model, loaded):
        assert each.map_threshold == each.chosen_threshold == each.thresholds.pixels == 0.5
    loaded.thresholds = Thresholds(pixels=0.3)
    for split, validate in (("val", True), ("test", False)):
        run = trainer(tmp_path)
        values = (run.validate if validate else run.test)(loaded, data, verbose=False)[0]
        metrics = {
            "dice": DiceAtThreshold(0.5),
            "image_dice": ImageDice(0.5),
            "image_dice_bg": ImageDice(0.5, "background"),
        }
        other = ImageDice(0.3)
        loader = data.val_dataloader() if validate else data.test_dataloader()
        for batch in loader[0] if isinstance(loader, list) else loader:
            batch = data.on_after_batch_transfer(batch, 0)
            with torch.no_grad():
                maps = loaded.localize(batch, loaded(batch))
            for metric in (*metrics.values(), other):
                metric.update(maps, batch["mask"])
        for name, metric in metrics.items():
            assert values[f"{split}/{name}"] == pytest.approx(float(metric.compute()), abs=1e-6)
        assert values[f"{split}/image_dice"] != pytest.approx(float(other.compute()), abs=1e-3)
        assert loaded.map_threshold == 0.5


# Arguments -------------------------------------------------------------------------------------


def test_defaults_are_the_published_ones():
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(MinMaxEntropy).parameters.items()
    }
    assert defaults["encoder"] == "resnet101s"
    model = MinMaxEntropy(encoder="test_resnet")
    h = model.hparams
    assert (h["erase"], h["erase_epoch"], h["trust_decay"], h["background_weight"]) == (4, 2, 10, 1)
    for head in (model.head, model.classifier):
        assert (head.modalities, head.kmax, head.kmin, head.alpha) == (5, 0.09, 0, 0)
        assert head.dropout == 0.75
    assert (model.mask.sharpness, float(model.mask.sigma), model.mask.sigma_max) == (8, 0.5, 0.5)
    assert model.mask.scope == "image"
    assert (h["scale"], h["checkpointing"]) == (0.5, False)
    assert (h["optimizer"], h["momentum"], h["weight_decay"]) == ("sgd", 0.9, 1e-5)
    assert (h["schedule"], h["step_size"], h["gamma"], h["min_lr"]) == ("step", 40, 0.1, 1e-7)
    assert {group["lr"] for group in model.param_groups()} == {1e-3}
    other = MinMaxEntropy(encoder="test_resnet", head_args={"dropout": 0.85})
    assert (other.head.dropout, other.head.kmax, other.head.modalities) == (0.85, 0.09, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"erase": -1}, "erase=-1, .* must be >= 0, >= 1 and > 0"),
        ({"erase_epoch": 0}, "erase_epoch=0"),
        ({"trust_decay": 0.0}, "trust_decay=0.0"),
        ({"scale": 0.0}, r"scale=0.0 must lie in \(0, 1\]"),
        ({"scale": 1.5}, "scale=1.5 must lie in"),
        ({"mask_args": {"slope": 3}}, "mask_args=.* of PseudoMask: .*slope"),
        ({"mask_args": {"scope": "all"}}, "scope='all' must be"),
        ({"head_args": {"k": 3}}, "head_args=.* of WILDCAT: .*'k'"),
        ({"head_args": {"dropout": 1.0}}, "dropout must lie in"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        model_of(**arguments)
