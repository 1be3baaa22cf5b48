"""Peak response maps against the recursion that defines them, done with dense matrices."""

import pytest
import torch
from torch import nn

from tests.cams.networks import Through
from wsl_zoo.cams.peak import PeakResponse
from wsl_zoo.encoders import Encoder
from wsl_zoo.heads import PRM, WGAP


class Chain(nn.Module):
    """An encoder that is a sequence of layers, split after the first `layer` of them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def split(self, image, layer=-1):
        if layer == -1:
            return self.layers(image), lambda final: final
        return self.layers[:layer](image), self.layers[layer:]


def peak_head(channels, classes=3):
    head = PRM(channels, classes).double().eval()
    nn.init.normal_(head.conv.bias)
    return head


def response(layer, x, above):
    """P(x) from P(y) = `above` for one image, by the formula of the paper."""
    shape = x.shape
    if isinstance(layer, nn.Conv2d):
        offset = (x - x.min()).flatten()
        basis = torch.eye(x.numel(), dtype=x.dtype).view(-1, *shape)
        bias = layer(torch.zeros(1, *shape, dtype=x.dtype))
        matrix = (layer(basis) - bias).flatten(1).relu()  # (inputs j, outputs i); W enters as relu
        share = offset[:, None] * matrix / ((offset[:, None] * matrix).sum(0) + 1e-10)
        return (share @ above.flatten()).view(shape)
    if isinstance(layer, nn.BatchNorm2d):
        return above
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(layer(leaf[None])[0], leaf, above)[0]


def by_hand(layers, head, image, target, stop=0):
    maps = []
    for x, k in zip(image, target.tolist(), strict=True):
        taken = [x]
        for layer in [*layers, head.conv]:
            taken.append(layer(taken[-1][None])[0].detach())
        above = torch.zeros_like(taken[-1])
        above[k] = head.peaks(taken[-1][None])[0, k].to(x.dtype)
        for layer, before in zip(
            [head.conv, *layers[::-1]][: len(layers) + 1 - stop], taken[-2::-1], strict=False
        ):
            above = response(layer, before, above)
        maps.append(above.sum(0))
    return torch.stack(maps)


def network():
    layers = [
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
    ]
    encoder = Chain(*layers).double().eval()
    encoder.layers[1].running_mean.normal_()
    nn.init.normal_(encoder.layers[1].weight)
    return encoder, peak_head(4)


@pytest.mark.parametrize("layer", [-1, 3])
def test_recursion(layer):
    encoder, head = network()
    image, target = torch.randn(3, 2, 12, 12).double(), torch.tensor([2, 0, 1])
    maps = PeakResponse(encoder, head, layer=layer)(image, target)
    expected = by_hand(list(encoder.layers), head, image, target, stop=max(layer, 0))
    torch.testing.assert_close(maps, expected, rtol=1e-8, atol=1e-12)
    assert maps.shape == (3, 12, 12)
    assert maps.min() >= 0
    assert maps.max() > 0


def test_one_convolution_leaves_the_peaks():
    """On the features of the head alone the shares of each peak sum to one at its place."""
    head, features = peak_head(6), torch.rand(2, 6, 7, 7).double()
    target = torch.tensor([1, 2])
    maps = PeakResponse(Through(), head)(features, target)
    peaks = head.peaks(head(features)[1])[torch.arange(2), target]
    torch.testing.assert_close(maps, peaks.double(), rtol=0, atol=1e-6)


def test_convolutions_keep_the_number_of_peaks():
    encoder = Chain(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 5, stride=2, padding=2), nn.ReLU()
    ).double()
    head, image = peak_head(8), torch.rand(2, 3, 16, 16).double()
    for layer in encoder.layers[::2]:
        nn.init.zeros_(layer.bias)
        layer.weight.data.abs_()  # no unit is dead
    target = torch.tensor([0, 1])
    head.conv.weight.data.abs_()
    maps = PeakResponse(encoder, head)(image, target)
    peaks = head.peaks(head(encoder.layers(image))[1])[torch.arange(2), target]
    torch.testing.assert_close(maps.sum((1, 2)), peaks.sum((1, 2)).double(), rtol=1e-6, atol=0)


def test_only_what_a_peak_sees_responds():
    encoder = Chain(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    encoder, head = encoder.double(), peak_head(4, 1)
    image, target = torch.rand(1, 3, 24, 24).double(), torch.tensor([0])
    maps = PeakResponse(encoder, head)(image, target)[0]
    peaks = head.peaks(head(encoder.layers(image))[1])[0, 0]
    field = nn.functional.max_pool2d(peaks[None, None].double(), 5, 1, 2)[0, 0] > 0
    assert not field.all()
    assert (maps[~field] == 0).all()
    assert (maps[field] > 0).any()


@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "vgg11", "densenet121"])
def test_real_networks(name):
    encoder = Encoder(name).eval()
    head = PRM(encoder.final_channels, 4).eval()
    image, target = torch.randn(3, 3, 64, 64), torch.tensor([3, 0, 1])
    read = PeakResponse(encoder, head)
    maps = read(image, target)
    assert maps.shape == (3, 64, 64)
    assert maps.isfinite().all()
    assert maps.min() >= 0
    assert (maps.sum((1, 2)) > 0).all()
    looped = torch.cat([read(image[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(maps, looped, rtol=1e-3, atol=1e-5)
    inner = PeakResponse(encoder, head, layer=1)(image, target)
    assert inner.shape[1:] == encoder(image)[1][1].shape[2:]


def test_model_is_left_as_it_was():
    encoder = Encoder("test_resnet").train()
    head = PRM(encoder.final_channels, 4)
    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    image, target = torch.randn(2, 3, 64, 64), torch.tensor([3, 0])
    with torch.inference_mode():
        maps = PeakResponse(encoder, head)(image + 0, target + 0)
    assert not maps.requires_grad
    assert torch.equal(maps, PeakResponse(encoder, head)(image, target))
    assert encoder.training
    assert all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())
    assert all(p.grad is None for p in [*encoder.parameters(), *head.parameters()])
    other = torch.randn_like(image).requires_grad_()  # ordinary gradients are back
    gradient = torch.autograd.grad(head(encoder.final(other))[0].sum(), other)[0]
    assert gradient.min() < 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    encoder = Encoder("test_resnet").eval()
    head = PRM(encoder.final_channels, 4).eval()
    image, target = torch.randn(2, 3, 64, 64), torch.tensor([3, 0])
    expected = PeakResponse(encoder, head)(image, target)
    with torch.autocast("cpu", dtype=dtype):
        maps = PeakResponse(encoder, head)(image, target)
    assert torch.equal(maps, expected)  # it runs in float32
    half = PeakResponse(encoder.to(torch.bfloat16), head.to(torch.bfloat16))
    maps = half(image.to(torch.bfloat16), target)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="need a head with peaks"):
        PeakResponse(Through(), WGAP(3, 2))
    with pytest.raises(ValueError, match="target classes must lie"):
        PeakResponse(Through(), PRM(3, 2))(torch.rand(1, 3, 4, 4), torch.tensor([2]))
