"""SPG: labels of confident pixels, losses, where gradients stop, where branches stand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsl_zoo.methods import SPG
from wsl_zoo.methods.spg import labelled_loss, ternary
from wsl_zoo.types import Output

K = 4


def model_of(**kwargs):
    torch.manual_seed(0)
    return SPG(**{"num_classes": K, "encoder": "test_resnet"} | kwargs)


def batch_of(count=2, size=64):
    image = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return {"image": image, "label": torch.tensor([3, 1])[:count], "index": torch.arange(count)}


def plain_ternary(scores, high, low):
    """1, 0 or -1 (ignored) per pixel, one at a time."""
    out = []
    for image in scores.tolist():
        values = [v for row in image for v in row]
        above = [v > high for v in values]
        if sum(above) < 30:
            above = [v > 0.7 * max(values) for v in values]
        out.append([0 if v < low else 1 if up else -1 for v, up in zip(values, above, strict=True)])
    return torch.tensor(out).view(scores.shape)


def as_one(foreground, background):
    assert not (foreground & background).any()
    return foreground.long() - (~foreground & ~background).long()


@pytest.mark.parametrize(("high", "low"), [(0.7, 0.01), (0.5, 0.05), (0.9, 0.1), (0.3, 0.6)])
def test_labels_are_those_of_the_rule(high, low):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(4, 12, 11, generator=generator, dtype=torch.float64)
    scores[1] *= 0.65
    scores[2] = scores[2] ** 4
    assert torch.equal(as_one(*ternary(scores, high, low)), plain_ternary(scores, high, low))


def test_thirty_pixels_are_enough_and_fewer_are_not():
    scores = torch.full((2, 8, 10), 0.6)
    scores[0].view(-1)[:30] = 0.71
    scores[1].view(-1)[:29] = 0.71
    foreground, background = ternary(scores, 0.7, 0.01)
    assert int(foreground[0].sum()) == 30
    assert foreground[1].all()  # 0.6 is above 0.7 * 0.71
    assert not background.any()


def test_binary_scores_are_their_own_labels():
    scores = (torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    foreground, background = ternary(scores, 0.7, 0.1)
    assert torch.equal(foreground, scores == 1)
    assert torch.equal(background, scores == 0)
    again = ternary(foreground.float(), 0.7, 0.1)
    assert torch.equal(again[0], foreground)


def test_the_loss_is_a_mean_over_labelled_pixels_of_the_batch():
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    foreground, background = logits > 0.8, torch.zeros(3, 4, 5, dtype=torch.bool)
    background[0] = logits[0] < -0.5
    p = logits.sigmoid()
    terms = torch.cat([-p[foreground].log(), -(1 - p[background]).log()])
    torch.testing.assert_close(labelled_loss(logits, foreground, background), terms.mean())


def test_without_labelled_pixels_the_loss_is_zero_with_zero_gradient():
    logits = torch.randn(2, 4, 4, requires_grad=True)
    none = torch.zeros(2, 4, 4, dtype=torch.bool)
    value = labelled_loss(logits, none, none)
    (gradient,) = torch.autograd.grad(value, logits)
    assert float(value.detach()) == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def planted(seed=0):
    """A model whose branches are given numbers, with the output and batch that lead to them."""
    model, batch = model_of(), batch_of(size=32)
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, K, 8, 8, generator=generator, requires_grad=True)
    logits = [3 * torch.randn(2, 32, 32, generator=generator) for _ in range(3)]
    branches = [value.requires_grad_() for value in logits]
    model.branches = lambda output, size: tuple(branches)
    return model, batch, Output(logits=maps.mean((2, 3)), map=maps), branches


def test_the_terms_are_those_of_the_paper():
    model, batch, output, (b1, b2, c) = planted()
    terms = model.loss(batch, output)
    z = F.interpolate(output.map, (32, 32), mode="bilinear")[range(2), batch["label"]].detach()
    low, high = z.amin((1, 2), keepdim=True), z.amax((1, 2), keepdim=True)
    scores = (z - low) / (high - low)
    s1, s2 = b1.detach().sigmoid(), b2.detach().sigmoid()
    for name, logit, target in (
        ("b2", b2, plain_ternary(scores, 0.7, 0.01)),
        ("b1", b1, plain_ternary(s2, 0.5, 0.05)),
        ("c", c, plain_ternary(0.5 * s1 + 0.5 * s2, 0.7, 0.1)),
    ):
        known = target >= 0
        assert known.any()
        assert not known.all()
        each = nn.BCEWithLogitsLoss(reduction="none")(logit, (target == 1).float())
        torch.testing.assert_close(terms[name], each[known].mean())
    torch.testing.assert_close(terms["ce"], F.cross_entropy(output.logits, batch["label"]))
    assert set(terms) == {"ce", "b1", "b2", "c"}


def test_no_gradient_reaches_a_target():
    model, batch, output, (b1, b2, c) = planted()
    terms = model.loss(batch, output)
    for name, own in (("b1", b1), ("b2", b2), ("c", c)):
        inputs = {"b1": b1, "b2": b2, "c": c, "map": output.map}
        gradients = torch.autograd.grad(
            terms[name], list(inputs.values()), retain_graph=True, allow_unused=True
        )
        reached = {key for key, g in zip(inputs, gradients, strict=True) if g is not None}
        assert reached == {name}
        assert own.requires_grad


def test_the_branch_of_the_deep_map_teaches_nothing_to_the_others():
    model, batch = model_of(), batch_of()
    terms = model.loss(batch, model(batch))
    parameters = dict(model.named_parameters())

    def reached(name):
        gradients = torch.autograd.grad(
            terms[name], list(parameters.values()), retain_graph=True, allow_unused=True
        )
        pairs = zip(parameters, gradients, strict=True)
        parts = {key.split(".")[0] for key, g in pairs if g is not None and g.any()}
        return parts - {"encoder"}

    assert reached("c") == {"branch_c"}
    assert reached("b1") == {"branch_1", "shared"}
    assert reached("b2") == {"branch_2", "shared"}
    assert reached("ce") == {"head"}


def test_branches_are_logits_at_the_size_of_the_image_and_end_in_shared_layers():
    model, batch = model_of().eval(), batch_of(size=80)
    with torch.no_grad():
        output = model(batch)
        b1, b2, c = model.branches(output, (80, 80))
        first = model.shared(model.branch_1(output.pyramid[0]))
    assert b1.shape == b2.shape == c.shape == (2, 80, 80)
    torch.testing.assert_close(b1, F.interpolate(first, (80, 80), mode="bilinear")[:, 0])
    assert torch.equal(output.logits, output.map.mean((2, 3)))


@pytest.mark.parametrize(
    ("settings", "inner", "channels"),
    [
        ({"encoder": "resnet50", "form": "wsol"}, ["layer3.0", "layer3.5"], (1024, 1024, 2048)),
        ({"encoder": "resnet18"}, ["layer3.0", "layer3.1"], (256, 256, 512)),
        ({"encoder": "vgg16", "stride": 8}, ["features.22", "features.29"], (512, 512, 512)),
        ({"encoder": "vgg16", "form": "wsol"}, ["features.22", "features.29"], (512, 512, 1024)),
        ({"encoder": "inception_v3", "form": "wsol"}, [], (288, 768, 1024)),
        ({"encoder": "test_resnet"}, [], (48, 192, 96)),
        ({"encoder": "test_vit"}, [], (64, 64, 64)),
        ({"encoder": "mobilenetv2_100"}, [], (32, 96, 1280)),
    ],
    ids=lambda value: value["encoder"] if isinstance(value, dict) else "",
)
def test_branches_stand_where_the_paper_has_them(settings, inner, channels):
    model = model_of(**settings).eval()
    one, two, deep = channels
    assert model.inner == inner
    assert model.branch_1[0].weight.shape == (two, one, 3, 3)
    assert model.branch_2[0].weight.shape == (two, two, 3, 3)
    assert model.shared[0][0].weight.shape == (two, two, 3, 3)
    assert model.branch_c[0][0].weight.shape == (512, deep, 3, 3)
    assert model.head.conv.weight.shape[1] == deep
    batch = batch_of(count=1, size=64)
    taken = {}
    for name, module in model.encoder.model.named_modules():
        if name in inner:
            module.register_forward_hook(lambda m, a, out, name=name: taken.update({name: out}))
    with torch.no_grad():
        output = model(batch)
        assert torch.equal(output.final, model.added(model.encoder.final(batch["image"])))
        if inner:
            for name, given in zip(inner, output.pyramid, strict=True):
                assert torch.equal(taken[name], given)
        model.branches(output, (64, 64))
    added = [m for m in model.added.modules() if isinstance(m, nn.Conv2d)]
    assert len(added) == (2 if settings == {"encoder": "vgg16", "stride": 8} else 0)


def test_half_precision_upsamples_in_float32():
    model, batch = model_of(), batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
        terms = model.loss(batch, output)
    assert output.final.dtype == torch.bfloat16
    assert all(term.dtype == torch.float32 for term in terms.values())


@pytest.mark.parametrize("pairs", [[[0.7, 0.1]], [[0.7], [0.5], [0.7]], [[1.7, 0.1]] * 3])
def test_bad_thresholds_are_refused(pairs):
    with pytest.raises(ValueError, match="three pairs"):
        model_of(target_thresholds=pairs)
