"""Class activation maps against their closed forms, and what reading one leaves untouched."""

import pytest
import torch
from torch import nn

from tests.cams.networks import Through
from wsl_zoo.cams import CAM, normalize_map
from wsl_zoo.cams.activation import evaluating, identity
from wsl_zoo.encoders import Encoder
from wsl_zoo.heads import GAP, WGAP, PoolingHead


class MeanOfMax(PoolingHead):
    """A head whose maps are not linear in the features."""

    def forward(self, features):
        maps = features[:, : self.num_classes].square()
        return maps.amax((2, 3)), maps


def model(name: str = "test_resnet", head: type[PoolingHead] = WGAP, classes: int = 4):
    encoder = Encoder(name).eval()
    module = head(encoder.final_channels, classes).eval()
    nn.init.normal_(next(p for n, p in module.named_parameters() if n.endswith("bias")))
    return encoder, module


@pytest.mark.parametrize("head", [GAP, WGAP])
def test_closed_form(head):
    encoder, module = model(head=head)
    cam = CAM(encoder.double(), module.double())
    image, target = torch.randn(3, 3, 64, 64, dtype=torch.float64), torch.tensor([2, 0, 3])
    maps = cam(image, target)
    final = encoder.final(image)
    by_hand = torch.stack(
        [
            sum(module.class_weights()[y, c] * a[c] for c in range(96))
            for y, a in zip(target, final, strict=True)
        ]
    )
    torch.testing.assert_close(maps, by_hand, rtol=1e-10, atol=1e-12)
    bias = module.fc.bias if head is WGAP else module.conv.bias
    logits = module(final)[0].gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(maps.mean((1, 2)) + bias[target], logits, rtol=1e-10, atol=1e-12)
    assert maps.min() < 0  # raw: no ReLU


def test_map_of_gap_is_the_cam_of_wgap():
    gap, wgap = GAP(6, 3).double(), WGAP(6, 3).double()
    nn.init.normal_(gap.conv.bias)
    wgap.fc.weight.data = gap.class_weights().data.clone()
    features, target = torch.rand(2, 6, 5, 5, dtype=torch.float64), torch.tensor([1, 2])
    encoder = Through()
    ours = normalize_map(CAM(encoder, wgap)(features, target))
    own = normalize_map(gap(features)[1][torch.arange(2), target].detach())
    torch.testing.assert_close(ours, own, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        CAM(encoder, gap)(features, target), CAM(encoder, wgap)(features, target)
    )


def test_scale_sign_and_bias():
    head, features = WGAP(6, 3).double(), torch.rand(2, 6, 5, 5, dtype=torch.float64)
    cam, target = CAM(Through(), head), torch.tensor([1, 2])
    out = normalize_map(cam(features, target))
    head.fc.bias.data += 5.0
    assert torch.equal(normalize_map(cam(features, target)), out)
    torch.testing.assert_close(normalize_map(cam(3.0 * features, target)), out)
    head.fc.weight.data *= 2.0
    torch.testing.assert_close(normalize_map(cam(features, target)), out)
    head.fc.weight.data *= -1.0
    torch.testing.assert_close(normalize_map(cam(features, target)), 1 - out)


def test_head_without_linear_maps_gives_its_own():
    features = torch.randn(3, 6, 5, 5)
    cam = CAM(Through(), MeanOfMax(6, 4))
    expected = features[torch.arange(3), torch.tensor([0, 3, 1])].square()
    assert torch.equal(cam(features, torch.tensor([0, 3, 1])), expected)


def test_from_features_can_be_differentiated():
    head, features = WGAP(6, 3), torch.rand(2, 6, 5, 5, requires_grad=True)
    maps = CAM(Through(), head).from_features(features, identity, torch.tensor([1, 2]))
    (gradient,) = torch.autograd.grad(maps.sum(), features)
    expected = head.fc.weight[torch.tensor([1, 2])][:, :, None, None].expand_as(gradient)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_batched_equals_looped(name):
    encoder, head = model(name)
    image, target = torch.randn(4, 3, 64, 64), torch.tensor([3, 1, 0, 2])
    batched = CAM(encoder, head)(image, target)
    looped = torch.cat([CAM(encoder, head)(image[i : i + 1], target[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(batched, looped, rtol=1e-5, atol=1e-5)


def test_horizontal_flip():
    """Mirror-symmetric kernels and odd sizes, for which ResNet's strides are symmetric too."""
    encoder, head = model("resnet18")
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = (layer.weight.data + layer.weight.data.flip(-1)) / 2
    image, target = torch.randn(2, 3, 65, 65), torch.tensor([0, 1])
    cam = CAM(encoder, head)
    maps = cam(image, target)
    scale = maps.abs().max()
    flipped = cam(image.flip(-1), target)
    torch.testing.assert_close(flipped / scale, maps.flip(-1) / scale, rtol=0, atol=1e-4)


def test_model_is_left_as_it_was():
    encoder, head = model()
    encoder.train()
    encoder.model.layer2.eval()
    head.train()
    parts = [*encoder.modules(), *head.modules()]
    flags = [part.training for part in parts]
    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    image = torch.randn(2, 3, 64, 64, requires_grad=True)
    maps = CAM(encoder, head)(image, torch.tensor([0, 1]))
    assert not maps.requires_grad
    assert image.grad is None
    assert [part.training for part in parts] == flags
    assert all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())
    assert all(
        p.grad is None and p.requires_grad for p in [*encoder.parameters(), *head.parameters()]
    )
    encoder.eval()
    assert torch.equal(maps, CAM(encoder, head)(image, torch.tensor([0, 1])))


def test_mode_is_restored_after_an_error():
    encoder, head = model()
    encoder.train()
    with pytest.raises(ValueError, match="target classes"):
        CAM(encoder, head)(torch.randn(1, 3, 64, 64), torch.tensor([4]))
    assert all(part.training for part in encoder.modules())


def test_a_model_that_keeps_a_cam_owns_its_encoder_once():
    encoder, head = model()
    keeper = nn.Module()
    keeper.encoder, keeper.head = encoder, head
    keys = list(keeper.state_dict())
    keeper.cam = CAM(encoder, head)
    assert list(keeper.state_dict()) == keys


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_autocast(dtype, tolerance):
    encoder, head = model()
    image, target = torch.randn(2, 3, 96, 96), torch.tensor([1, 3])
    full = normalize_map(CAM(encoder, head)(image, target))
    with torch.autocast("cpu", dtype=dtype):
        maps = CAM(encoder, head)(image, target)
    assert maps.dtype == torch.float32
    assert (normalize_map(maps) - full).abs().max() < tolerance


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([0, 4]), r"\[0, 4\), got \[0, 4\]"),
        (torch.tensor([-1, 0]), r"\[0, 4\)"),
        (torch.tensor([0]), r"shape \(2,\)"),
        (torch.tensor([0.0, 1.0]), "integer"),
    ],
)
def test_wrong_targets(target, message):
    features = torch.rand(2, 6, 3, 3)
    for head in (WGAP(6, 4), MeanOfMax(6, 4)):
        with pytest.raises(ValueError, match=message):
            CAM(Through(), head)(features, target)


def test_only_the_final_map():
    with pytest.raises(ValueError, match="final map only"):
        CAM(Through(), WGAP(2, 2), layer="layer3")


def test_evaluating_takes_what_is_no_module():
    norm = nn.BatchNorm2d(2)
    with evaluating(norm, object()):
        assert not norm.training
    assert norm.training
