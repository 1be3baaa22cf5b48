"""Otsu's threshold, morphology, extremes and components against plain references."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from wsl_zoo.losses.regions import (
    component,
    dilate,
    erode,
    filled_box,
    highest,
    lowest,
    otsu_threshold,
)


def otsu(levels: np.ndarray) -> int:
    """Threshold of one image: scikit-image's loop-free definition, by loops over exact sums."""
    values = levels.ravel().tolist()
    best, chosen = -1.0, min(values)
    for threshold in range(min(values), max(values)):
        low = [v for v in values if v <= threshold]
        high = [v for v in values if v > threshold]
        means = sum(low) / len(low) - sum(high) / len(high)
        variance = len(low) * len(high) * means**2
        if variance > best * (1 + 1e-12):
            best, chosen = variance, threshold
    return chosen


def images() -> list[torch.Tensor]:
    """Level images: noise, two modes, few levels, one level, the whole range and two points."""
    generator = torch.Generator().manual_seed(0)
    shape = (12, 17)
    noise = torch.randint(256, shape, generator=generator)
    normal = torch.randn(shape, generator=generator)
    modes = torch.where(noise > 180, 200 + 15 * normal, 60 + 20 * normal).clamp(0, 255)
    ends = torch.where(noise > 100, 0, 255)
    return [
        image.int()
        for image in (noise, modes, noise // 60, noise * 0, noise * 0 + 255, ends, 7 + noise // 200)
    ]


def test_otsu():
    batch = torch.stack(images())
    expected = [otsu(image.numpy()) for image in images()]
    assert otsu_threshold(batch).tolist() == expected
    assert len(set(expected)) > 4


def test_otsu_on_another_device(monkeypatch):
    batch = torch.stack(images())
    expected = otsu_threshold(batch)
    monkeypatch.setattr("wsl_zoo.losses.regions.on_cpu", lambda tensor: False)
    assert torch.equal(otsu_threshold(batch), expected)


def test_otsu_of_a_symmetric_histogram_is_the_first_of_the_best():
    levels = torch.tensor(
        [[[10, 20, 30]]], dtype=torch.int32
    )  # {10} {20 30} as good as {10 20} {30}
    assert otsu_threshold(levels).tolist() == [10]
    many = torch.tensor([10] * 1001 + [20] * 77 + [30] * 1001).int().view(1, 1, -1)
    assert otsu_threshold(many).tolist() == [10]


@pytest.mark.parametrize("size", [1, 3, 5, 7, 11, 41])
def test_morphology(size):
    masks = torch.rand(6, 30, 23) > torch.tensor([0.02, 0.1, 0.5, 0.9, 0.98, 0.999])[:, None, None]
    square = np.ones((1, size, size))
    dilated = ndimage.binary_dilation(masks.numpy(), square)
    assert torch.equal(dilate(masks, size), torch.from_numpy(dilated))
    for iterations in (1, 2):
        reference = masks.numpy()
        for _ in range(iterations):
            eroded = ndimage.binary_erosion(reference, square, border_value=1)
            empty = ~eroded.any(axis=(1, 2))
            reference = np.where(empty[:, None, None], reference, eroded)
        assert torch.equal(erode(masks, size, iterations), torch.from_numpy(reference))


def test_erosion_keeps_what_it_would_empty():
    masks = torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[0, 5:8, 5:8] = True
    masks[1, 5:16, 5:16] = True
    eroded = erode(masks, 11, iterations=2)
    assert torch.equal(eroded[0], masks[0])
    assert eroded[1].nonzero().tolist() == [[10, 10]]
    assert not erode(torch.zeros(1, 5, 5, dtype=torch.bool), 3).any()


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 10, 10**6])
def test_extremes_are_those_of_a_stable_sort(levels, elsewhere, monkeypatch):
    if elsewhere:
        monkeypatch.setattr("wsl_zoo.losses.regions.on_cpu", lambda tensor: False)
    values = (torch.rand(20, 300) * levels).floor() / levels
    kept = values.clone()
    region = torch.rand(20, 300) < torch.linspace(0, 1, 20)[:, None]
    ranks = values.argsort(dim=1, stable=True).argsort(dim=1)
    for count in (0, 1, 77, 300):
        assert torch.equal(lowest(values, count), ranks < count)
    limited = torch.where(region, values, -torch.inf)
    ranks = limited.argsort(dim=1, stable=True, descending=True).argsort(dim=1)
    for fraction in (0.0, 0.004, 0.7, 1.0):
        counts = (region.sum(dim=1) * fraction).int()
        assert counts.min() == 0
        marked = highest(values, region, counts, int(fraction * 300))
        assert torch.equal(marked, ranks < counts[:, None])
    assert torch.equal(values, kept)


def plain_component(mask: np.ndarray, cam: np.ndarray, choice: str, min_area: float) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    parts = [labels == label for label in range(1, count + 1)]
    largest = max(parts, key=np.sum)  # the first of equals
    densest = max(parts, key=lambda part: cam[part].mean())
    return densest if choice == "high_density" and densest.sum() >= min_area else largest


@pytest.mark.parametrize("choice", ["largest", "high_density"])
@pytest.mark.parametrize("min_area", [0, 4, 12])
def test_components(choice, min_area):
    masks = torch.rand(30, 20, 25) < torch.linspace(0, 1, 30)[:, None, None]
    cam = torch.rand(30, 20, 25)
    kept = component(masks, cam, choice, min_area)
    for mask, one, ours in zip(masks.numpy(), cam.numpy(), kept.numpy(), strict=True):
        np.testing.assert_array_equal(ours, plain_component(mask, one, choice, min_area))


def test_equal_components_are_taken_in_raster_order():
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 1, 6:8] = True  # the first pixel in raster order
    mask[0, 2:4, 1] = True
    mask[0, 7, 4:6] = True
    expected = torch.zeros_like(mask)
    expected[0, 1, 6:8] = True
    for choice in ("largest", "high_density"):
        assert torch.equal(component(mask, mask.float(), choice, 0), expected)


def test_filled_box():
    masks = torch.zeros(5, 8, 9, dtype=torch.bool)
    masks[0, 2, 5] = masks[0, 4, 3] = True
    masks[1, 7, 8] = masks[1, 3, 2] = True  # ends at the border: without the last row and column
    masks[2, 7, 8] = True  # nothing but the last row and column
    masks[3] = True
    expected = torch.zeros_like(masks)
    expected[0, 2:5, 3:6] = True
    expected[1, 3:7, 2:8] = True
    expected[2, 7, 8] = True
    expected[3, :7, :8] = True
    assert torch.equal(filled_box(masks), expected)
