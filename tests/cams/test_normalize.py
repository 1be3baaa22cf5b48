"""The normalisation rule: values, orders, constant and broken maps."""

import pytest
import torch
from torch.nn import functional as F

from wsl_zoo.cams import normalize_map

ORDERS = ["before_upsample", "after_upsample"]
INTERPOLATIONS = ["bilinear", "bicubic"]


def test_min_max_per_image():
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[-3.0, -1.0], [-1.0, 1.0]]])
    expected = torch.tensor([[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.5], [0.5, 1.0]]])
    torch.testing.assert_close(normalize_map(maps), expected, rtol=0, atol=0)


def test_relu_before_min_max():
    maps = torch.tensor([[[-3.0, -1.0], [0.5, 1.0]]])
    expected = torch.tensor([[[0.0, 0.0], [0.5, 1.0]]])
    assert torch.equal(normalize_map(maps, relu=True), expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e30])
def test_constant_maps_become_zeros(order, interpolation, value):
    maps = torch.full((2, 7, 5), value)
    out = normalize_map(maps, 23, order=order, interpolation=interpolation)
    assert out.shape == (2, 23, 23)
    assert (out == 0).all()


def test_negative_map_with_relu_is_constant():
    assert (normalize_map(-torch.rand(1, 4, 4) - 1, relu=True) == 0).all()


def test_not_a_number_and_infinities():
    maps = torch.tensor([[[float("nan"), float("inf")], [float("-inf"), 0.5]]])
    assert torch.equal(normalize_map(maps), torch.tensor([[[0.0, 1.0], [0.0, 0.5]]]))
    assert (normalize_map(torch.full((1, 3, 3), float("nan")), 9) == 0).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_range(order, interpolation):
    out = normalize_map(torch.randn(8, 7, 7), (50, 33), order=order, interpolation=interpolation)
    assert out.shape == (8, 50, 33)
    assert out.min() >= 0
    assert out.max() <= 1
    if order == "after_upsample":
        assert (out.amin((1, 2)) == 0).all()
        assert (out.amax((1, 2)) == 1).all()


def test_order_before_loses_the_maximum():
    """One hot cell of a 7x7 map, upsampled to 224, peaks at (63/64)^2 = 0.969."""
    maps = torch.zeros(1, 7, 7)
    maps[0, 3, 3] = 5.0
    before = normalize_map(maps, 224)
    assert before.max().item() == pytest.approx((63 / 64) ** 2, abs=1e-6)
    assert normalize_map(maps, 224, order="after_upsample").max() == 1


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_orders_by_hand(interpolation):
    maps = torch.randn(2, 5, 5)

    def scaled(z: torch.Tensor) -> torch.Tensor:
        low, high = z.amin((1, 2), keepdim=True), z.amax((1, 2), keepdim=True)
        return (z - low) / (high - low)

    def resized(z: torch.Tensor) -> torch.Tensor:
        return F.interpolate(z[:, None], (16, 16), mode=interpolation, align_corners=False)[:, 0]

    before = normalize_map(maps, 16, interpolation=interpolation)
    torch.testing.assert_close(before, resized(scaled(maps)).clamp(0, 1))
    after = normalize_map(maps, 16, order="after_upsample", interpolation=interpolation)
    torch.testing.assert_close(after, scaled(resized(maps)))


@pytest.mark.parametrize("order", ORDERS)
def test_each_image_by_itself(order):
    maps = torch.randn(4, 6, 6)
    looped = torch.cat([normalize_map(one[None], 13, order=order) for one in maps])
    torch.testing.assert_close(normalize_map(maps, 13, order=order), looped, rtol=0, atol=0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_flip_and_scale(order, interpolation):
    maps = torch.randn(2, 6, 7, dtype=torch.float64)
    out = normalize_map(maps, 29, order=order, interpolation=interpolation)
    flipped = normalize_map(maps.flip(-1), 29, order=order, interpolation=interpolation)
    torch.testing.assert_close(flipped, out.flip(-1))
    moved = normalize_map(3.5 * maps - 2, 29, order=order, interpolation=interpolation)
    torch.testing.assert_close(moved, out)
    mirrored = normalize_map(-maps, 29, order=order, interpolation=interpolation)
    torch.testing.assert_close(mirrored, 1 - out)


def test_types():
    assert normalize_map(torch.rand(1, 3, 3).half()).dtype == torch.float32
    assert normalize_map(torch.rand(1, 3, 3).bfloat16()).dtype == torch.float32
    assert normalize_map(torch.rand(1, 3, 3).double()).dtype == torch.float64
    half = 60000 * torch.tensor([[[-1.0, 0.0], [0.5, 1.0]]], dtype=torch.float16)
    assert torch.equal(normalize_map(half), torch.tensor([[[0.0, 0.5], [0.75, 1.0]]]))


def test_the_input_is_not_changed():
    maps = torch.tensor([[[float("nan"), -1.0], [2.0, 3.0]]])
    before = maps.clone()
    normalize_map(maps, 4, relu=True)
    assert torch.equal(maps, before) or maps[0, 0, 0].isnan()
    assert torch.equal(maps[0, 1], before[0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maps": torch.rand(3, 3)}, r"\(B, h, w\), got shape \(3, 3\)"),
        ({"maps": torch.rand(1, 3, 3), "order": "before"}, "order must be"),
        ({"maps": torch.rand(1, 3, 3), "interpolation": "nearest"}, "interpolation must be"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        normalize_map(**arguments)
