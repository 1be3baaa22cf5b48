"""Confidence maps against plain loops, closed forms and other libraries."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.cams.networks import (
    CONFIDENCE,
    Classifier,
    Curved,
    Through,
    make,
    model,
    pictures,
    relative,
)
from tests.cams.test_gradient import raw_of_torchcam
from wsl_zoo.cams import normalize_map
from wsl_zoo.cams.activation import identity
from wsl_zoo.heads import GAP, WGAP, MaxPool

EXACT = {"rtol": 1e-10, "atol": 1e-13}


class Blind(nn.Module):
    """A head that ignores what it is given."""

    def forward(self, features):
        maps = 0.0 * features[:, :4]
        return maps.mean((2, 3)) + torch.tensor([1.0, 2.0, 3.0, 4.0]), maps


def loop(encoder, head, layer, image, target, variants, probability=False):
    """Score-CAM as its paper writes it: one image, one channel and one mask at a time."""
    maps = []
    with torch.no_grad():
        activations = encoder.split(image, layer)[0]
        for x, y, activation in zip(image, target, activations, strict=True):
            confidence = []
            for channel in activation:
                low, high = channel.min(), channel.max()
                mask = (channel - low) / (high - low) if high > low else torch.zeros_like(channel)
                mask = F.interpolate(mask[None, None], x.shape[1:], mode="bilinear")[0]
                scores = []
                for variant in variants(mask):
                    logits = head(encoder.final((x * variant)[None]))[0][0]
                    baseline = head(encoder.final(torch.zeros_like(x)[None]))[0][0]
                    scores.append(logits.softmax(0)[y] if probability else (logits - baseline)[y])
                confidence.append(sum(scores) / len(scores))
            weights = torch.stack(confidence)
            weights = weights if probability else weights.softmax(0)
            maps.append(sum(w * a for w, a in zip(weights, activation, strict=True)))
    return torch.stack(maps)


def noise_of(mask):
    generator = torch.Generator().manual_seed(7)
    return [mask + 2.0 * torch.randn(mask.shape[1:], generator=generator) for _ in range(2)]


@pytest.mark.parametrize("variant", ["paper", "survey"])
@pytest.mark.parametrize(
    ("name", "options", "variants"),
    [
        ("ScoreCAM", {}, lambda mask: [mask]),
        ("SSCAM", {"samples": 2, "seed": 7}, noise_of),
        ("ISCAM", {"samples": 3}, lambda mask: [mask / 3, mask * 2 / 3, mask]),
        (
            "ISCAM",
            {"samples": 3, "cumulative": True},
            lambda mask: [mask / 3, mask, mask * 2],
        ),
    ],
)
def test_equals_the_loop(name, options, variants, variant):
    encoder, head = model()
    image, target = pictures(2, 32)
    ours = make(name, encoder, head, layer="layer1", variant=variant, **options)(image, target)
    theirs = loop(encoder, head, "layer1", image, target, variants, variant == "survey")
    assert relative(ours, theirs) < 1e-5


def test_paper_and_both_libraries_have_the_same_weights():
    """A baseline subtracted before a softmax over channels changes nothing."""
    scores = torch.randn(3, 50)
    baseline, own = torch.randn(3, 1), torch.randn(3, 1)
    torch.testing.assert_close((scores - baseline).softmax(1), scores.softmax(1))
    torch.testing.assert_close((scores - own).softmax(1), scores.softmax(1))


@pytest.mark.parametrize("name", ["ScoreCAM", "SSCAM", "ISCAM"])
def test_weights_sum_to_one(name):
    encoder, head = model()
    image, target = pictures(2, 32)
    activation = encoder.split(image, "layer2")[0].detach()
    with torch.no_grad():
        weights = make(name, encoder, head).weights(image, activation, target)
        assert weights.shape == activation.shape[:2]
        torch.testing.assert_close(weights.sum(1), torch.ones(2))
        survey = make(name, encoder, head, variant="survey")  # over classes, not channels
        each = [survey.weights(image, activation, torch.full((2,), y)) for y in range(4)]
    torch.testing.assert_close(sum(each), torch.ones_like(weights))


def test_network_that_ignores_the_image():
    image, target = torch.rand(2, 6, 8, 8), torch.tensor([1, 3])
    for name in ("ScoreCAM", "SSCAM", "ISCAM"):
        maps = make(name, Through(), Blind())(image, target)
        torch.testing.assert_close(maps, image.mean(1))
    assert torch.equal(make("AblationCAM", Through(), Blind())(image, target), torch.zeros(2, 8, 8))


@pytest.mark.parametrize("layer", ["layer2", -1])
@pytest.mark.parametrize("name", CONFIDENCE)
def test_chunks_do_not_change_the_map(name, layer):
    encoder, head = model(classes=4)
    image, target = pictures(2, 32)
    whole = make(name, encoder, head, layer, chunk=10**6)(image, target)
    for chunk in (5, 32):
        maps = make(name, encoder, head, layer, chunk=chunk)(image, target)
        assert relative(maps, whole) < 1e-5


def test_chunk_bounds_what_is_run_at_once():
    class Watched(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.sizes = inner, []

        def forward(self, features):
            self.sizes.append(len(features))
            return self.inner(features)

    encoder, head = model()
    head = Watched(head)
    image, target = pictures(2, 32)
    channels = encoder.channels[1]
    make("ScoreCAM", encoder, head, 1, chunk=5)(image, target)
    assert max(head.sizes) == 5
    assert sum(head.sizes) == 2 * channels
    head.sizes.clear()
    make("AblationCAM", encoder, head, 1, chunk=6)(image, target)
    assert max(head.sizes) == 6
    assert sum(head.sizes) == 2 * channels + 2


def test_topk_channels():
    encoder, head = model()
    image, target = pictures(2, 32)
    activation = encoder.split(image, "layer1")[0].detach()
    every = make("ScoreCAM", encoder, head, "layer1")(image, target)
    count = activation.shape[1]
    more = make("ScoreCAM", encoder, head, "layer1", topk_channels=count + 1)(image, target)
    assert torch.equal(more, every)
    few = make("ScoreCAM", encoder, head, "layer1", topk_channels=3)(image, target)
    assert not torch.allclose(few, every)
    for i in range(2):
        kept = activation[i].square().sum((1, 2)).argsort(descending=True)[:3]
        own = activation[i : i + 1, kept]
        with torch.no_grad():
            weights = make("ScoreCAM", encoder, head).weights(
                image[i : i + 1], own, target[i : i + 1]
            )
        expected = torch.einsum("bc,bchw->bhw", weights, own)[0]
        torch.testing.assert_close(few[i], expected, rtol=1e-5, atol=1e-6)


def test_dead_channels_are_empty_masks():
    head = Curved(4, 3)
    image, target = torch.rand(1, 4, 6, 6), torch.tensor([1])
    activation = torch.rand(1, 5, 3, 3)
    activation[0, 1], activation[0, 3] = 0.0, 2.5
    cam = make("ScoreCAM", Through(), head, variant="survey")
    with torch.no_grad():
        weights = cam.weights(image, activation, target)[0]
        empty = head(torch.zeros_like(image))[0].softmax(1)[0, 1]
    torch.testing.assert_close(weights[1], empty)
    torch.testing.assert_close(weights[3], empty)
    assert (weights[[0, 2, 4]] - empty).abs().min() > 1e-6


# Ablation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [GAP, WGAP])
def test_ablation_closed_form_equals_brute_force(head):
    module = head(6, 3).double()
    nn.init.normal_(next(p for n, p in module.named_parameters() if n.endswith("bias")))
    features, target = torch.randn(2, 6, 5, 7, dtype=torch.float64), torch.tensor([1, 2])
    cam = make("AblationCAM", Through(), module)
    maps = cam.from_features(features, identity, target)
    rows = module.class_weights()[target].detach()
    score = module(features)[0].gather(1, target[:, None]).detach()
    weights = rows * features.mean((2, 3)) / score
    torch.testing.assert_close(maps, torch.einsum("bc,bchw->bhw", weights, features), **EXACT)
    # A way to the final map that is not the identity: every channel is taken out.
    brute = cam.from_features(features, lambda a: a * 1.0, target)
    torch.testing.assert_close(brute, maps, **EXACT)
    with torch.inference_mode():
        assert torch.equal(cam.of_final(features.clone(), target), maps)


@pytest.mark.parametrize("head", [Curved, MaxPool])
def test_ablation_by_hand(head):
    module = head(6, 3).double()
    features, target = torch.randn(2, 6, 4, 4, dtype=torch.float64), torch.tensor([2, 0])
    maps = make("AblationCAM", Through(), module, chunk=5)(features, target)
    for i, y in enumerate(target):
        score = module(features[i : i + 1])[0][0, y].detach()
        expected = torch.zeros(4, 4, dtype=torch.float64)
        for c in range(6):
            without = features[i : i + 1].clone()
            without[0, c] = 0
            lost = (score - module(without)[0][0, y].detach()) / score
            expected += lost * features[i, c]
        torch.testing.assert_close(maps[i], expected, **EXACT)


def test_ablation_at_an_inner_layer_of_a_vit_keeps_its_class_tokens():
    encoder, head = model("test_vit")
    image, target = pictures(2, 48)
    maps = make("AblationCAM", encoder, head, layer=1, chunk=7)(image, target)
    with torch.no_grad():
        activation, rest = encoder.split(image, 1)
        score = head(rest(activation))[0].gather(1, target[:, None])
        lost = []
        for c in range(activation.shape[1]):
            without = activation.clone()
            without[:, c] = 0
            lost.append(score - head(rest(without))[0].gather(1, target[:, None]))
        weights = torch.cat(lost, 1) / score
    assert relative(maps, torch.einsum("bc,bchw->bhw", weights, activation)) < 1e-5


def test_a_score_of_zero_divides_by_nothing():
    head = WGAP(6, 3)
    nn.init.zeros_(head.fc.weight)
    maps = make("AblationCAM", Through(), head)(torch.rand(1, 6, 3, 3), torch.tensor([0]))
    assert torch.equal(maps, torch.zeros(1, 3, 3))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("ScoreCAM", {"variant": "g"}, "variant"),
        ("ScoreCAM", {"chunk": 0}, "chunk"),
        ("ScoreCAM", {"topk_channels": 0}, "topk_channels"),
        ("SSCAM", {"samples": 0}, "samples"),
        ("SSCAM", {"sigma": -1.0}, "sigma"),
        ("ISCAM", {"samples": 0}, "samples"),
        ("AblationCAM", {"chunk": 0}, "chunk"),
    ],
)
def test_wrong_options(name, options, match):
    with pytest.raises(ValueError, match=match):
        make(name, Through(), WGAP(6, 3), **options)


def test_maps_of_other_images_need_them():
    for name in ("ScoreCAM", "SSCAM", "ISCAM"):
        cam = make(name, Through(), WGAP(6, 3))
        with pytest.raises(ValueError, match="needs the images"):
            cam.from_features(torch.rand(1, 6, 3, 3), identity, torch.tensor([0]))
        with pytest.raises(ValueError, match="call it with the images"):
            cam.of_final(torch.rand(1, 6, 3, 3), torch.tensor([0]))


# Other libraries --------------------------------------------------------------------------------


class Drawn:
    """Noise fields as `SSCAM` draws them, one for all channels."""

    def __init__(self, count: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.fields = [2.0 * torch.randn(size, size, generator=generator) for _ in range(count)]

    def sample(self, size):
        return self.fields.pop(0).expand(size)


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("ScoreCAM", {}, {}),
        ("SSCAM", {"samples": 2}, {"num_samples": 2, "_distrib": Drawn(2, 32)}),
        ("ISCAM", {"samples": 3, "cumulative": True}, {"num_samples": 3}),  # theirs adds up
    ],
)
def test_equals_torchcam(name, ours, theirs):
    encoder, head = model()
    image, target = pictures(2, 32)
    raw = raw_of_torchcam(name, encoder, head, "layer1", image, target, **theirs)
    maps = make(name, encoder, head, "layer1", **ours)(image, target).relu()
    assert relative(maps, raw) < 1e-5


def test_scorecam_equals_grad_cam_up_to_the_order_of_upsampling():
    """They upsample with aligned corners and normalise afterwards; the rest is the same."""
    library = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    encoder, head = model()
    image, target = pictures(2, 32)
    choose = [targets.ClassifierOutputTarget(int(y)) for y in target]
    cam = library.ScoreCAM(Classifier(encoder, head), [encoder.model.layer1])
    activation = encoder.split(image, "layer1")[0].detach()
    theirs = cam.get_cam_weights(image, None, choose, activation.numpy(), None)

    masks = F.interpolate(activation, (32, 32), mode="bilinear", align_corners=True)
    masks = normalize_map(masks.flatten(0, 1)).view(masks.shape)
    with torch.no_grad():
        ours = make("ScoreCAM", encoder, head).weights(image, masks, target)
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("layer", ["layer2", "layer4"])
def test_ablationcam_equals_grad_cam(layer):
    library = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    encoder, head = model()
    image, target = pictures(2, 32)
    module = encoder.model.get_submodule(layer)
    cam = library.AblationCAM(Classifier(encoder, head), [module])
    choose = [targets.ClassifierOutputTarget(int(y)) for y in target]
    activation = encoder.split(image, layer)[0].detach()
    assert activation.min() == 0  # otherwise they put -1e7 in place of a channel
    weights = torch.as_tensor(cam.get_cam_weights(image, module, choose, activation.numpy(), None))
    raw = torch.einsum("bc,bchw->bhw", weights, activation)
    ours = make("AblationCAM", encoder, head, layer)(image, target)
    assert relative(ours, raw) < 1e-4  # scores in float32, subtracted
