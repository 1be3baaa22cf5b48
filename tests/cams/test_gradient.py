"""Gradient maps against closed forms, transcribed formulas and other libraries."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.cams.networks import (
    GRADIENT,
    Classifier,
    Curved,
    Through,
    make,
    model,
    pictures,
    relative,
)
from wsl_zoo import cams
from wsl_zoo.cams import CAM, normalize_map
from wsl_zoo.cams.activation import identity
from wsl_zoo.cams.gradient import first_component
from wsl_zoo.encoders import Encoder
from wsl_zoo.heads import GAP, WGAP

EXACT = {"rtol": 1e-10, "atol": 1e-13}
TARGET = torch.tensor([1, 2])


@pytest.fixture
def features():
    return torch.rand(2, 6, 5, 7, dtype=torch.float64)


@pytest.fixture(params=[GAP, WGAP])
def linear(request):
    """A head s = W mean_p A + b."""
    head = request.param(6, 3).double()
    nn.init.normal_(next(p for name, p in head.named_parameters() if name.endswith("bias")))
    return head


def curved():
    return Curved(6, 3).double()


def by_autograd(head: nn.Module, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    leaf = features.clone().requires_grad_()
    head(leaf)[0].gather(1, target[:, None]).sum().backward()
    head.zero_grad()
    return leaf.grad


# Closed forms on a linear head -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GradCAM", "XGradCAM", "HiResCAM"])
def test_is_the_class_activation_map(name, linear, features):
    maps = make(name, Through(), linear)(features, TARGET)
    cam = CAM(Through(), linear)(features, TARGET)
    torch.testing.assert_close(maps, cam / 35, **EXACT)
    assert maps.min() < 0  # raw: no ReLU
    torch.testing.assert_close(
        normalize_map(maps, 20, relu=True), normalize_map(cam, 20, relu=True), **EXACT
    )


def test_hirescam_sums_to_the_score(linear, features):
    maps = make("HiResCAM", Through(), linear)(features, TARGET)
    logits, bias = linear(features)[0], linear(torch.zeros_like(features))[0]
    torch.testing.assert_close(
        maps.sum((1, 2)), (logits - bias).gather(1, TARGET[:, None])[:, 0].detach(), **EXACT
    )


def test_layercam_and_elementwise_closed_form(linear, features):
    rows = linear.class_weights()[TARGET].detach()[:, :, None, None]
    expected = (rows.relu() * features).sum(1) / 35
    for name in ("LayerCAM", "ElementWiseCAM"):  # one and the same where A >= 0
        maps = make(name, Through(), linear)(features, TARGET)
        torch.testing.assert_close(maps, expected, **EXACT)
    signed = features - 0.5
    maps = make("ElementWiseCAM", Through(), linear)(signed, TARGET)
    torch.testing.assert_close(maps, (rows * signed).relu().sum(1) / 35, **EXACT)


def test_gradcampp_closed_form(linear, features):
    rows = linear.class_weights()[TARGET].detach()
    weights = rows.relu() / (2 + rows * features.mean((2, 3)))
    expected = torch.einsum("bc,bchw->bhw", weights, features)
    maps = make("GradCAMpp", Through(), linear)(features, TARGET)
    torch.testing.assert_close(maps, expected, **EXACT)
    reference = make("GradCAMpp", Through(), linear, variant="reference")(features, TARGET)
    expected = torch.einsum("bc,bchw->bhw", rows.relu().pow(3) / 35**2, features)
    torch.testing.assert_close(reference, expected, **EXACT)


@pytest.mark.parametrize("gradients", ["mean", "last"])
def test_smooth_gradcampp_is_gradcampp_on_a_linear_head(gradients, linear, features):
    smooth = make("SmoothGradCAMpp", Through(), linear, samples=5, gradients=gradients)
    expected = make("GradCAMpp", Through(), linear)(features, TARGET)
    torch.testing.assert_close(smooth(features, TARGET), expected, **EXACT)


# Transcribed formulas where gradients vary -------------------------------------------------------


def test_formulas_on_a_curved_head(features):
    head = curved()
    signed = features - 0.3
    g = by_autograd(head, signed, TARGET)
    assert (g < 0).any()
    assert (g > 0).any()
    total = signed.sum((2, 3), keepdim=True)
    alpha = g**2 / (2 * g**2 + g**3 * total)
    positive = g.clamp(min=0)
    channel = {
        "GradCAM": g.mean((2, 3)),
        "GradCAMpp": (alpha * positive).sum((2, 3)),
        "XGradCAM": (g * signed).sum((2, 3)) / total[:, :, 0, 0],
    }
    for name, weights in channel.items():
        maps = make(name, Through(), head)(signed, TARGET)
        expected = sum(weights[:, c, None, None] * signed[:, c] for c in range(6))
        torch.testing.assert_close(maps, expected, **EXACT)
    position = {
        "LayerCAM": positive * signed,
        "HiResCAM": g * signed,
        "ElementWiseCAM": (g * signed).clamp(min=0),
    }
    for name, terms in position.items():
        torch.testing.assert_close(
            make(name, Through(), head)(signed, TARGET), terms.sum(1), **EXACT
        )


@pytest.mark.parametrize("gradients", ["mean", "last"])
def test_smooth_gradcampp_on_a_curved_head(gradients, features):
    head = curved()
    smooth = make(
        "SmoothGradCAMpp", Through(), head, samples=3, sigma=0.2, seed=4, gradients=gradients
    )
    generator = torch.Generator().manual_seed(4)
    noise = [torch.randn(features.shape[1:], generator=generator).double() * 0.2 for _ in range(3)]
    g = torch.stack([by_autograd(head, features + n, TARGET) for n in noise])
    squares, cubes = (g**2).mean(0), (g**3).mean(0)
    alpha = squares / (2 * squares + cubes * features.sum((2, 3), keepdim=True))
    positive = g.clamp(min=0).mean(0) if gradients == "mean" else g[-1].clamp(min=0)
    weights = (alpha * positive).sum((2, 3))
    maps = smooth(features, TARGET)
    torch.testing.assert_close(maps, torch.einsum("bc,bchw->bhw", weights, features), **EXACT)
    torch.manual_seed(99)
    assert torch.equal(smooth(features, TARGET), maps)  # whatever was drawn before
    other = make("SmoothGradCAMpp", Through(), head, samples=3, sigma=0.2, seed=5)
    assert not torch.allclose(other(features, TARGET), maps)


@pytest.mark.parametrize("size", [(6, 5, 7), (40, 3, 4)], ids=["fewer channels", "fewer positions"])
def test_eigencam_is_the_first_singular_vector(size):
    features = torch.randn(2, *size, dtype=torch.float64)
    maps = make("EigenCAM", Through(), WGAP(size[0], 3).double())(features, TARGET)
    for one, activation in zip(maps, features, strict=True):
        rows = activation.flatten(1).T.numpy()
        rows = rows - rows.mean(0)
        expected = (rows @ np.linalg.svd(rows)[2][0]).reshape(one.shape)
        expected *= 1 if expected.max() > -expected.min() else -1
        np.testing.assert_allclose(one.numpy(), expected, atol=1e-9)


def test_eigengradcam_is_that_of_the_product(features):
    head = curved()
    g = by_autograd(head, features, TARGET)
    maps = make("EigenGradCAM", Through(), head)(features, TARGET)
    torch.testing.assert_close(maps, first_component(g * features), **EXACT)
    eigen = make("EigenCAM", Through(), head)(g * features, TARGET)
    torch.testing.assert_close(maps, eigen, **EXACT)


# How they are called ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRADIENT)
def test_from_features_enables_gradients_itself(name, features):
    """As a classifier calls it in a validation step, with the map that it has made already."""
    if name == "SmoothGradCAMpp":
        with pytest.raises(ValueError, match="needs the images"):
            make(name, Through(), curved()).from_features(features, identity, TARGET)
        return
    cam = make(name, Through(), curved())
    expected = cam(features, TARGET)
    with torch.no_grad():
        assert torch.equal(cam.from_features(features, identity, TARGET), expected)
    with torch.inference_mode():
        mine, target = features.clone(), TARGET.clone()
        assert mine.is_inference()
        maps = cam.from_features(mine, identity, target)
        assert torch.equal(maps, expected)
        assert torch.equal(cam.of_final(mine, target), expected)
        assert not maps.requires_grad
    with torch.no_grad():
        assert torch.equal(cam.from_features(features, lambda a: a * 1.0, TARGET), expected)


def test_only_the_head_is_differentiated_at_the_final_map():
    calls = []

    class Watched(Through):
        def split(self, image, layer=-1):
            calls.append(torch.is_grad_enabled())
            return super().split(image, layer)

    make("GradCAM", Watched(), curved())(torch.rand(2, 6, 5, 5, dtype=torch.float64), TARGET)
    assert calls == [False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_autocast_cache_of_inference_mode_does_no_harm(dtype):
    """Autocast keeps cast weights; those cast in inference mode must not enter the graph.

    This and the next test fail without `cache_enabled=False` on the oldest supported torch only.
    """
    encoder, head = model()
    image, target = pictures()
    cam = make("GradCAM", encoder, head, layer=1)
    expected = cam(image, target)
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        head(encoder.final(image))
        maps = cam(image, target)
    assert maps.dtype == torch.float32
    assert relative(maps, expected) < 0.2


@pytest.mark.parametrize("name", ["CAM", "GradCAM", "ScoreCAM"])
def test_a_map_read_in_a_training_step_cuts_no_gradient(name):
    """Weights that autocast cast without a graph must not be kept for the pass that trains."""
    encoder, head = model()
    image, target = pictures(2, 32)
    cam = getattr(cams, name)(encoder, head)
    with torch.autocast("cpu", torch.bfloat16):
        cam(image, target)
        head(encoder.final(image))[0].sum().backward()
    assert all(p.grad is not None for p in [*encoder.parameters(), *head.parameters()])


def test_small_gradients_survive_float16():
    """g is of the order of 1e-7 in float16 layers behind the activation."""
    encoder, head = model("test_vit")
    head.fc.weight.data *= 1e-5
    image, target = pictures()
    cam = make("HiResCAM", encoder, head, layer=1)
    expected = cam(image, target)
    with torch.autocast("cpu", torch.float16):
        maps = cam(image, target)
    assert relative(maps, expected) < 2e-2


def test_positions_without_gradient_and_dead_channels_weigh_nothing():
    """Where a denominator vanishes: 2 + g S = 0, S = 0."""

    class Steep(nn.Module):
        def forward(self, features):
            return features.sum((2, 3)) * torch.tensor([1.0, -2.0]), features

    features = torch.tensor([[[[-1.0, -1.0]], [[3.0, 1.0]]]])  # S = -2, 4; g = 1, 0 or 0, -2
    for target, expected in ((0, [[0.0, 0.0]]), (1, [[0.0, 0.0]])):
        maps = make("GradCAMpp", Through(), Steep())(features, torch.tensor([target]))
        assert torch.equal(maps[0], torch.tensor(expected))
    balanced = torch.tensor([[[[1.0, -1.0]], [[3.0, 1.0]]]])
    maps = make("XGradCAM", Through(), Steep())(balanced, torch.tensor([0]))
    assert torch.equal(maps, torch.zeros(1, 1, 2))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("GradCAMpp", {"variant": "code"}, "variant"),
        ("SmoothGradCAMpp", {"samples": 0}, "samples"),
        ("SmoothGradCAMpp", {"sigma": -1.0}, "sigma"),
        ("SmoothGradCAMpp", {"gradients": "first"}, "gradients"),
    ],
)
def test_wrong_options(name, options, match):
    with pytest.raises(ValueError, match=match):
        make(name, Through(), curved(), **options)


# Other libraries --------------------------------------------------------------------------------


def raw_of_grad_cam(name: str, encoder: Encoder, head: nn.Module, layer: nn.Module, image, target):
    """The map that pytorch-grad-cam has before it drops, rescales and resizes."""
    library = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    theirs = getattr(library, name)(Classifier(encoder, head), [layer])
    raw = []
    inner = theirs.get_cam_image

    def keep(*args, **kwargs):
        raw.append(inner(*args, **kwargs))
        return raw[-1]

    theirs.get_cam_image = keep
    theirs(image, [targets.ClassifierOutputTarget(int(y)) for y in target])
    encoder.zero_grad()
    head.zero_grad()
    return torch.as_tensor(raw[0])


def raw_of_torchcam(
    name: str,
    encoder: Encoder,
    head: nn.Module,
    layer: str,
    image,
    target,
    _distrib=None,
    **options,
):
    """The map that torch-cam has after its ReLU; `_distrib` is what it draws its noise from."""
    library = pytest.importorskip("torchcam.methods")
    classifier = Classifier(encoder, head).eval()
    theirs = getattr(library, name)(classifier, f"encoder.model.{layer}", **options)
    if _distrib is not None:
        theirs._distrib = _distrib
    with theirs:
        scores = classifier(image)
        return theirs(target.tolist(), scores, normalized=False)[0].detach()


@pytest.mark.parametrize("layer", ["layer1", "layer4"])
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("GradCAM", "GradCAM"),
        ("XGradCAM", "XGradCAM"),
        ("LayerCAM", "LayerCAM"),
        ("HiResCAM", "HiResCAM"),
        ("ElementWiseCAM", "GradCAMElementWise"),
        ("GradCAMpp", "GradCAMPlusPlus"),
        ("EigenCAM", "EigenCAM"),
        ("EigenGradCAM", "EigenGradCAM"),
    ],
)
def test_equals_grad_cam(name, theirs, layer):
    encoder, head = model()
    head.fc.weight.data *= 1e6  # g^2 far above the 1e-6 that they add to denominators
    image, target = pictures()
    raw = raw_of_grad_cam(theirs, encoder, head, encoder.model.get_submodule(layer), image, target)
    ours = make(name, encoder, head, -1 if layer == "layer4" else layer)(image, target)
    if "Eigen" in name:  # their sign is the decomposition's
        raw = raw * (raw * ours).sum((1, 2), keepdim=True).sign()
    assert relative(ours, raw) < 1e-5 * (10 if "Eigen" in name else 1)


@pytest.mark.parametrize("layer", ["layer1", "layer4"])
@pytest.mark.parametrize("name", ["GradCAM", "XGradCAM", "LayerCAM"])
def test_equals_torchcam(name, layer):
    encoder, head = model()
    image, target = pictures()
    raw = raw_of_torchcam(name, encoder, head, layer, image, target)
    ours = make(name, encoder, head, layer)(image, target).relu()
    assert relative(ours, raw) < 1e-5


def test_smooth_gradcampp_of_torchcam_combines_a_noisy_activation():
    """Their passes over noisy images replace the stored activation, which is then combined.

    Where g is constant this is the only difference; elsewhere they also have sum_q A(q) g(q)^3 in
    place of g(p)^3 sum_q A(q).
    """
    encoder, head = model()
    head.fc.weight.data *= 1e6
    image, target = pictures()
    noise = 0.3 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))

    class Drawn:
        def sample(self, size):
            return noise.expand(size)

    raw = raw_of_torchcam(
        "SmoothGradCAMpp", encoder, head, "layer4", image, target, num_samples=1, _distrib=Drawn()
    )
    ours = make("SmoothGradCAMpp", encoder, head, samples=1)(image, target)
    assert relative(ours.relu(), raw) > 1e-2
    clean, noisy = encoder.final(image).detach(), encoder.final(image + noise).detach()
    rows = head.fc.weight.detach()[target]
    weights = rows.relu() / (2 + rows * clean.mean((2, 3)))
    assert relative(ours, torch.einsum("bc,bchw->bhw", weights, clean)) < 1e-5
    assert relative(raw, torch.einsum("bc,bchw->bhw", weights, noisy)) < 1e-5


def test_gradcampp_of_torchcam_lost_its_denominator():
    """They divide a boolean-indexed copy, so that alpha stays g^2: our variant "reference"."""
    encoder, head = model()
    image, target = pictures()
    raw = raw_of_torchcam("GradCAMpp", encoder, head, "layer1", image, target)
    reference = make("GradCAMpp", encoder, head, "layer1", variant="reference")(image, target)
    assert relative(reference.relu(), raw) < 1e-5
    paper = make("GradCAMpp", encoder, head, "layer1")(image, target)
    assert relative(normalize_map(paper), normalize_map(raw)) > 0.02


def test_gradcampp_of_grad_cam_is_decided_by_its_epsilon():
    """They add 1e-6 to 2 g^2 + g^3 S; for g of 1e-4, as behind a mean, alpha is then g^2 / 1e-6."""
    encoder, head = model()
    head.fc.weight.data *= 1e-3
    image, target = pictures()
    raw = raw_of_grad_cam(
        "GradCAMPlusPlus", encoder, head, encoder.model.get_submodule("layer4"), image, target
    )
    with torch.no_grad():
        final = encoder.final(image)
    g = head.fc.weight.detach()[target] / final[0, 0].numel()
    total = final.sum((2, 3))
    count = final[0, 0].numel()
    weights = count * g.relu() * g**2 / (2 * g**2 + g**3 * total + 1e-6)
    theirs = torch.einsum("bc,bchw->bhw", weights, final)
    assert relative(theirs, raw) < 1e-4
    ours = make("GradCAMpp", encoder, head)(image, target)
    assert relative(ours, raw) > 1  # theirs is far too small,
    assert relative(normalize_map(ours), normalize_map(raw)) > 0.02  # and another map
