"""Gaussian filters: both lattices against each other and a transcription, all against the sum."""

import numpy as np
import pytest
import torch

from tests.losses import transcription
from tests.losses.transcription import blob_maps, noise, photo
from wsl_zoo.losses import DenseCRF, bilateral_apply, grid, permutohedral
from wsl_zoo.losses.exact import Points
from wsl_zoo.losses.lattice import Packing, Workspace, filter_on_cpu
from wsl_zoo.losses.permutohedral import filter_anywhere, scales


def flat(size, seed=0):
    return torch.full((1, 3, size, size), 77, dtype=torch.uint8)


def pieces(size, seed=0):
    """Four flat colours."""
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    half = size // 2
    for color, (rows, columns) in zip(
        ([200, 30, 40], [30, 180, 60], [20, 40, 220], [128, 128, 128]),
        ((0, 0), (0, half), (half, 0), (half, half)),
        strict=True,
    ):
        part = image[:, :, rows : rows + half, columns : columns + half]
        part += torch.tensor(color, dtype=torch.uint8)[:, None, None]
    return image


IMAGES = {"photo": photo, "noise": noise, "flat": flat, "pieces": pieces}


def features_of(image):
    return torch.from_numpy(transcription.scaled_features(image[0]))


def gradient(crf, probs, raw):
    probs = probs.clone().requires_grad_()
    loss = crf(probs, raw)
    return loss.item(), torch.autograd.grad(loss, probs)[0]


def compare(crf, raw, seed=0):
    """Loss and gradient of a loss against the exact ones."""
    probs = blob_maps(raw.shape[-1], seed)
    loss, ours = gradient(crf, probs, raw)
    exact_loss, exact = gradient(DenseCRF(backend="exact"), probs, raw)
    c = ((ours * exact).sum() / exact.square().sum()).item()
    fit = (ours * exact).sum() / ours.square().sum()
    return {
        "loss": abs(loss / exact_loss - 1),
        "raw": ((ours - exact).norm() / exact.norm()).item(),
        "fitted": ((fit * ours - exact).norm() / exact.norm()).item(),
        "cosine": torch.cosine_similarity(ours.flatten(), exact.flatten(), 0).item(),
        "c": c,
    }


def random_points(d, count, dtype, positions=0, seed=0):
    random = torch.Generator().manual_seed(seed)
    features = 4 * torch.rand(2, d, count, generator=random, dtype=torch.float64).to(dtype)
    sigmas = tuple(0.5 + 0.25 * i for i in range(d))
    shared = features[0, :positions]
    return Points(shared, features[:, positions:], sigmas, ((0.0, 4.0),) * d)


def both_lattices(points, values, symmetric=True):
    factors = scales(points.sigmas)
    limits = [(a * s, b * s) for (a, b), s in zip(points.limits, factors, strict=True)]
    packing = Packing.of(limits)
    compiled = filter_on_cpu(points, values, factors, packing, symmetric)
    return compiled, filter_anywhere(points, values, factors, packing, symmetric)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "positions"), [(1, 0), (2, 2), (3, 0), (5, 2), (7, 3)])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_compiled_lattice_is_the_torch_one(dtype, d, positions, channels):
    points = random_points(d, 300, dtype, positions)
    values = torch.rand(2, channels, 300, dtype=dtype)
    for symmetric in (True, False):
        compiled, plain = both_lattices(points, values, symmetric)
        assert compiled.dtype == dtype
        torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("size", [1, 2, 32, 96])
def test_compiled_lattice_is_the_torch_one_on_images(name, size):
    raw = IMAGES[name](96)[:, :, :size, :size]
    place = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="xy"))
    limits = ((0.0, size - 1.0),) * 2 + ((0.0, 255.0),) * 3
    sigmas = (100.0, 100.0, 15.0, 15.0, 15.0)
    points = Points(place.flatten(1).float(), raw.flatten(2), sigmas, limits)
    compiled, plain = both_lattices(points, blob_maps(size).flatten(2))
    torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=0)


def test_many_vertices_make_the_table_grow():
    points = random_points(5, 9000, torch.float32)
    points = Points(points.positions, 10 * points.colors, points.sigmas, ((0.0, 40.0),) * 5)
    compiled, plain = both_lattices(points, torch.rand(2, 2, 9000))
    torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", IMAGES)
def test_lattice_is_the_transcribed_one(name):
    raw, maps = IMAGES[name](48), blob_maps(48)
    loss, ours = gradient(DenseCRF(symmetric=False), maps, raw)
    expected_loss, expected = transcription.loss_and_gradient(maps[0], raw[0])
    assert loss == pytest.approx(expected_loss, rel=2e-5)
    error = (ours[0].numpy() - expected) / np.linalg.norm(expected)
    assert np.linalg.norm(error) < 2e-5


def test_groups_and_threads_change_nothing(monkeypatch):
    points = random_points(5, 400, torch.float32, positions=2)
    values = torch.rand(2, 2, 400)
    compiled, plain = both_lattices(points, values)
    monkeypatch.setattr(permutohedral, "GROUP", 1)
    assert torch.equal(both_lattices(points, values)[1], plain)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(both_lattices(points, values)[0], compiled)
    finally:
        torch.set_num_threads(threads)


def test_memory_is_used_again_without_a_trace():
    small, large = photo(24, 1), noise(24, 2)
    maps = blob_maps(24)
    first = gradient(DenseCRF(), maps, small)[1]
    gradient(DenseCRF(), maps, large)
    for size in (5, 6, 7, 8, 9):  # more sizes than are kept
        gradient(DenseCRF(), blob_maps(size), noise(size))
    assert torch.equal(gradient(DenseCRF(), maps, small)[1], first)


def test_memory_of_an_image_is_its_own():
    work = Workspace.of(10, 5, np.dtype(np.float32))
    assert work.weights.shape == (6, 10)
    assert len(work.simplex_keys) == 32
    assert len(work.vertex_keys) >= 2 * 6 * 10


@pytest.mark.parametrize("size", [24, 32, 64])
def test_permutohedral_is_close_to_the_sum(size):
    for seed in range(3):
        for crf in (DenseCRF(), DenseCRF(symmetric=False)):
            found = compare(crf, photo(size, seed), seed)
            assert found["cosine"] >= 0.99
            assert found["fitted"] <= 0.12
            assert 0.4 <= found["c"] <= 0.8


def test_permutohedral_is_close_to_the_sum_on_noise():
    found = compare(DenseCRF(), noise(32))
    assert found["cosine"] >= 0.98
    assert found["fitted"] <= 0.25
    assert 0.4 <= found["c"] <= 0.8


@pytest.mark.parametrize("name", IMAGES)
def test_calibration_finds_the_scale(name):
    found = compare(DenseCRF(calibrated=True), IMAGES[name](48))
    assert found["c"] == pytest.approx(1, abs=0.03)
    assert found["loss"] < 0.05
    # A factor per image: the direction of the gradient stays.
    assert found["cosine"] == pytest.approx(compare(DenseCRF(), IMAGES[name](48))["cosine"])


@pytest.mark.parametrize("size", [24, 64])
@pytest.mark.parametrize("name", ["photo", "noise", "pieces"])
def test_quadratic_grid_is_the_sum(name, size):
    found = compare(DenseCRF(backend="grid"), IMAGES[name](size))
    assert found["loss"] <= 0.005
    assert found["raw"] <= 0.006


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("orders", [(1, 1, 1), (2, 2, 2), (3, 3, 3), (1, 3, 2, 1, 2)])
def test_compiled_grid_is_the_torch_one(orders, dtype):
    place = 6 * torch.rand(2, len(orders), 300, dtype=dtype)
    values = torch.rand(2, 3, 300, dtype=dtype)
    size = [9 + i for i in range(len(orders))]
    compiled = grid.filter_on_cpu(place, values, [size, size], 0.5, orders)
    plain = grid.filter_anywhere(place, values, size, 0.5, orders)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(compiled, plain, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("orders", [(1, 1, 1), (2, 2, 2), (3, 3, 3), (1, 3, 2), (3, 2, 1)])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_grid_of_levels_is_the_grid(orders, channels, dtype):
    colors = torch.cat([noise(12, frames=2), photo(12, frames=2), flat(12).expand(2, -1, -1, -1)])
    colors[0, :, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    colors = colors.flatten(2)
    values = torch.rand(6, channels, 144, dtype=dtype)
    points = Points(values.new_empty(0, 144), colors, (15.0, 20.0, 30.0), ((0.0, 255.0),) * 3)
    anything = Points(points.positions, colors.to(dtype), points.sigmas, points.limits)
    found = grid.grid_filter(points, values, 0.4, orders)
    expected = grid.grid_filter(anything, values, 0.4, orders)
    # Rounded places move the splines of the others in float32.
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)


def test_sums_of_many_equal_values_are_exact():
    values = torch.full((1, 2, 200_000), 0.3)
    colors = torch.full((1, 3, 200_000), 77, dtype=torch.uint8)
    points = Points(values.new_empty(0, 200_000), colors, (15.0,) * 3, ((0.0, 255.0),) * 3)
    found, fine = grid.grid_filter(points, values), grid.grid_filter(points, values.double())
    torch.testing.assert_close(found.double(), fine, rtol=1e-6, atol=0)


def test_blur_has_no_numbers_that_are_slow():
    for dtype in (torch.float32, torch.float64):
        blur = grid._gaussian(200, 0.5, 2, torch.empty(0, dtype=dtype))
        assert (blur == 0).any()
        assert blur[blur > 0].min() ** 4 >= torch.finfo(dtype).tiny


def test_splines_of_higher_order_are_closer():
    raw = photo(32)
    errors = [
        compare(DenseCRF(backend="grid", order=order), raw)["raw"]
        for order in ("linear", "quadratic", "cubic")
    ]
    assert errors[0] <= 0.03
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1]
    mixed = compare(DenseCRF(backend="grid", order_xy="linear"), raw)["raw"]
    assert errors[1] < mixed < errors[0] * 1.2
    finer = compare(DenseCRF(backend="grid", order="linear", spacing=0.25), raw)["raw"]
    assert finer < errors[0] / 3


def test_linear_grid_is_off_on_flat_colours():
    found = compare(DenseCRF(backend="grid", order="linear"), flat(64))
    assert 0.1 < found["loss"] < 0.2


def test_grids_of_different_images_do_not_meet():
    raw = torch.cat([photo(24, 0), flat(24), noise(24)])
    probs = torch.cat([blob_maps(24, seed) for seed in range(3)])
    _, together = gradient(DenseCRF(backend="grid"), probs, raw)
    for image in range(3):
        one = slice(image, image + 1)
        _, alone = gradient(DenseCRF(backend="grid"), probs[one], raw[one])
        torch.testing.assert_close(3 * together[one], alone, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "symmetric"),
    [("permutohedral", True), ("permutohedral", False), ("grid", True), ("exact", True)],
)
def test_who_is_symmetric(method, symmetric):
    points = features_of(photo(16)).double()
    a, b = torch.rand(2, 256, 1, dtype=torch.float64)
    one = (a * bilateral_apply(points, b, method, symmetric=symmetric)).sum()
    other = (b * bilateral_apply(points, a, method, symmetric=symmetric)).sum()
    error = abs(one / other - 1).item()
    assert (error < 1e-12) is symmetric


def test_exact_is_the_definition():
    points = torch.rand(20, 4, dtype=torch.float64) * 3
    values = torch.rand(20, 3, dtype=torch.float64)
    expected = torch.zeros_like(values)
    for i in range(20):
        for j in range(20):
            distance = ((points[i] - points[j]) ** 2).sum()
            expected[i] += torch.exp(-distance / 2) * values[j]
    torch.testing.assert_close(bilateral_apply(points, values, "exact"), expected)
    torch.testing.assert_close(bilateral_apply(points, values, "auto"), expected)


def test_auto_counts_points():
    points, values = torch.rand(4097, 2), torch.rand(4097, 1)
    auto = bilateral_apply(points, values, "auto")
    assert torch.equal(auto, bilateral_apply(points, values, "permutohedral"))
    auto = bilateral_apply(points[:-1], values[:-1], "auto")
    assert torch.equal(auto, bilateral_apply(points[:-1], values[:-1], "exact"))


def test_small_sigmas_leave_the_kernel_then_the_integers():
    raw, maps = photo(16), blob_maps(16)
    # Colours a sigma of 0.4 apart: too wide for the compiled kernel, but not for torch.
    _, narrow = gradient(DenseCRF(sigma_rgb=0.3, sigma_xy=1.0), maps, raw)
    assert narrow.isfinite().all()
    with pytest.raises(ValueError, match="raise sigma_rgb or sigma_xy, or use backend='exact'"):
        DenseCRF(sigma_rgb=0.01)(maps, raw)
    with pytest.raises(ValueError, match="raise the sigmas or the spacing"):
        DenseCRF(sigma_rgb=0.1, backend="grid")(maps, raw)
    identity = DenseCRF(sigma_rgb=1e-3, sigma_xy=1e-3, backend="exact")(maps, raw)
    assert identity.item() == pytest.approx(-maps.square().sum().item(), rel=1e-5)


def test_wide_lattices_leave_the_kernel():
    points = random_points(5, 200, torch.float32)
    points = Points(points.positions, 100 * points.colors, points.sigmas, ((0.0, 400.0),) * 5)
    compiled, plain = both_lattices(points, torch.rand(2, 2, 200))
    assert compiled is None
    assert plain.isfinite().all()


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match=r"features must be \(N, d\) and values \(N, K\)"):
        bilateral_apply(torch.rand(4, 2), torch.rand(3, 1))
    with pytest.raises(ValueError, match="finite"):
        bilateral_apply(torch.tensor([[0.0], [torch.nan]]), torch.rand(2, 1))
    with pytest.raises(ValueError, match="choose one of 'permutohedral', 'grid'"):
        bilateral_apply(torch.rand(4, 2), torch.rand(4, 1), "lattice")
    with pytest.raises(ValueError, match="symmetric and true to scale"):
        bilateral_apply(torch.rand(4, 2), torch.rand(4, 1), "grid", symmetric=False)
    with pytest.raises(ValueError, match=r"spacing=2.0: must lie in \(0, 1.41\)"):
        bilateral_apply(torch.rand(4, 2), torch.rand(4, 1), "grid", spacing=2.0)
