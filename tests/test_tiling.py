import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from wsl_zoo.networks import SRCNN, VDSR, Interpolation, upsampled
from wsl_zoo.tiling import blend_weights, enlarge_tiled, tiles


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def repeated(scale=2):
    return lambda image: image.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def neighbourhood(radius, scale=2):
    """Receptive radius known: the mean of a square, with zeros around the image, repeated."""
    side = 2 * radius + 1
    return lambda image: repeated(scale)(F.avg_pool2d(image, side, 1, radius))


def whole(network, image):
    with torch.no_grad():
        return network(image[None])[0]


def built(network, *args, **kwargs):
    torch.manual_seed(0)
    return network(*args, **kwargs).eval()


# Windows ------------------------------------------------------------------------------------------


def test_windows_by_hand():
    assert tiles(11, 5, 1) == [(0, 5), (4, 9), (6, 11)]
    assert tiles(9, 5, 1) == [(0, 5), (4, 9)]
    assert tiles(5, 5, 1) == [(0, 5)]
    assert tiles(3, 5, 1) == [(0, 3)]
    assert tiles(6, 2, 0) == [(0, 2), (2, 4), (4, 6)]
    assert tiles(6, 4, 3) == [(0, 4), (1, 5), (2, 6)]


@pytest.mark.parametrize(("tile", "overlap"), [(8, 2), (8, 0), (8, 7), (5, 3), (1, 0)])
def test_windows_cover_and_overlap_enough(tile, overlap):
    for length in range(1, 60):
        windows = tiles(length, tile, overlap)
        assert windows[0][0] == 0
        assert windows[-1][1] == length
        assert {stop - start for start, stop in windows} == {min(tile, length)}
        for (start, stop), (after, _) in pairwise(windows):
            assert start < after <= stop - overlap
        if length > tile:  # no more windows than needed
            assert len(windows) == math.ceil((length - overlap) / (tile - overlap))


@pytest.mark.parametrize("arguments", [(0, 8, 2), (9, 0, 0), (9, 8, 8), (9, 8, -1)])
def test_windows_that_cannot_be(arguments):
    with pytest.raises(ValueError, match=r"must be (positive|in \[0, tile)"):
        tiles(*arguments)


def test_weights_by_hand():
    # An overlap of 8 on a line of low = high resolution: 3 unseen, a ramp of 2, then 3 in full.
    left = [1.0] * 4 + [1.0, 1.0, 1.0, 0.75, 0.25, 0.0, 0.0, 0.0]
    assert blend_weights(16, 12, 8, 1).tolist() == [left, left[::-1]]
    assert blend_weights(5, 12, 8, 2).tolist() == [[1.0] * 10]


@pytest.mark.parametrize(("tile", "overlap"), [(8, 2), (8, 0), (8, 7), (5, 3), (16, 4)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_weights_sum_to_one(tile, overlap, scale):
    for length in range(1, 41):
        weights = blend_weights(length, tile, overlap, scale)
        total = torch.zeros(scale * length, dtype=torch.float64)
        for (start, stop), weight in zip(tiles(length, tile, overlap), weights, strict=True):
            total[scale * start : scale * stop] += weight
        assert weights.min() >= 0
        assert (total - 1).abs().max() < 1e-7


# Results ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [1, 7, 8, 9, 14, 15, 40])
def test_every_size_gives_the_whole_image(height):
    for width in range(1, 41):
        image = noise(1, height, width)
        result = enlarge_tiled(repeated(), image, 2, tile=8, overlap=2)
        torch.testing.assert_close(result, whole(repeated(), image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_small_neighbourhoods_give_the_whole_image(scale, channels):
    network, image = neighbourhood(3, scale), noise(channels, 41, 58)
    expected = whole(network, image)
    for batch in (1, 3, 64):
        result = enlarge_tiled(network, image, scale, tile=20, overlap=8, batch=batch)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    # 3 is the largest radius that 3/8 of the overlap allow
    cut = enlarge_tiled(neighbourhood(4, scale), image, scale, tile=20, overlap=8)
    assert (cut - whole(neighbourhood(4, scale), image)).abs().max() > 1e-4


def outside_overlaps(length, tile, overlap, scale):
    """Whether no pixel within `overlap` of a cut counts for a pixel of high resolution."""
    clear = torch.ones(length, dtype=torch.bool)
    for start, stop in tiles(length, tile, overlap):
        if start > 0:
            clear[start : start + overlap] = False
        if stop < length:
            clear[stop - overlap : stop] = False
    return clear.repeat_interleave(scale)


@pytest.mark.parametrize("size", [(50, 61), (33, 90)])
def test_outside_overlaps_a_radius_of_the_overlap_gives_the_whole_image(size):
    network, image = neighbourhood(6), noise(1, *size)
    rows, columns = (outside_overlaps(n, 24, 6, 2) for n in size)
    clear = rows[:, None] & columns
    result, expected = enlarge_tiled(network, image, 2, tile=24, overlap=6), whole(network, image)
    assert 0.2 < clear.float().mean() < 0.9
    torch.testing.assert_close(result[0, clear], expected[0, clear], rtol=0, atol=1e-6)
    assert (result - expected)[0, ~clear].abs().max() > 1e-4


@pytest.mark.parametrize(("height", "width"), [(29, 31), (10, 45)])
def test_equals_a_transcription(height, width):
    """The whole image accumulated at once, with weights from distances; the mean shows windows."""
    scale, tile, overlap = 2, 12, 5

    def network(image):
        return repeated()(image) + image.mean(dim=(2, 3), keepdim=True)

    def weight(k, start, stop, length):
        before = (k + 0.5 - scale * start) if start else math.inf
        behind = (scale * stop - k - 0.5) if stop < length else math.inf
        unseen = 3 * scale * overlap // 8
        return min(1, max(0, (min(before, behind) - unseen) / (scale * overlap - 2 * unseen)))

    image = noise(1, height, width).double()
    total, weights = np.zeros((2, scale * height, scale * width))
    for top, bottom in tiles(height, tile, overlap):
        for left, right in tiles(width, tile, overlap):
            part = network(image[None, :, top:bottom, left:right])[0, 0].numpy()
            for y in range(scale * top, scale * bottom):
                for x in range(scale * left, scale * right):
                    w = weight(y, top, bottom, height) * weight(x, left, right, width)
                    total[y, x] += w * part[y - scale * top, x - scale * left]
                    weights[y, x] += w
    result = enlarge_tiled(network, image, scale, tile=tile, overlap=overlap)
    np.testing.assert_allclose(result[0], total / weights, rtol=0, atol=2e-6)


# Seams --------------------------------------------------------------------------------------------


def jump(image):
    """The largest difference between neighbours."""
    return max(image.diff(dim=dim).abs().max().item() for dim in (-2, -1))


@pytest.mark.parametrize(
    "network",
    [
        lambda: built(VDSR, 2, width=8),
        lambda: built(VDSR, 4, width=8),
        lambda: built(SRCNN, 2, widths=[16, 8]),
        lambda: built(SRCNN, 4, variant="original", widths=[16, 8]),
    ],
    ids=["VDSR X2", "VDSR X4", "SRCNN X2", "SRCNN X4, 9-5-5"],
)
def test_no_seams(network):
    """What tiling changes is smoother than the image itself, which a cut is not."""
    network = network()
    y, x = torch.meshgrid(torch.arange(70.0), torch.arange(62.0), indexing="ij")
    image = (0.5 + 0.2 * torch.sin(y / 6) + 0.2 * torch.cos(x / 5))[None]
    expected, scale = whole(network, image), network.scale
    inner = expected[:, 14 * scale : -14 * scale, 14 * scale : -14 * scale]  # no zeros beyond it
    bar = jump(inner) / 4
    blended = enlarge_tiled(network, image, scale, tile=32, overlap=16)
    assert jump(blended - expected) < bar
    cut = enlarge_tiled(network, image, scale, tile=32, overlap=0)
    assert jump(cut - expected) > bar


def test_a_difference_between_windows_is_spread_over_the_ramp():
    def network(image):  # every window with a constant of its own
        return repeated(4)(image) + image[:, :, :1, :1]

    image = torch.zeros(1, 8, 24)
    image[..., 8] = 1.0  # where the second window begins
    result = enlarge_tiled(network, image, 4, tile=16, overlap=8) - whole(repeated(4), image)
    ramp = (torch.arange(8) + 0.5) / 8  # a quarter of 4 x 8 pixels
    expected = torch.cat([torch.zeros(32 + 12), ramp, torch.ones(12 + 32)])
    torch.testing.assert_close(result, expected.expand(1, 32, 96))


# Types and memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "peak"), [("uint8", 255), ("uint16", 65535)])
@pytest.mark.parametrize("as_tensor", [False, True], ids=["array", "tensor"])
def test_integers_in_and_out(kind, peak, as_tensor):
    grey = np.random.default_rng(0).integers(0, peak + 1, (2, 21, 17)).astype(kind)
    network = Interpolation(2, kind="bicubic")
    given, out = grey, np.zeros((2, 42, 34), kind)
    if as_tensor:
        given, out = torch.from_numpy(grey), torch.from_numpy(out)
    real = enlarge_tiled(network, given, 2, tile=16, overlap=8)
    expected = whole(network, torch.from_numpy(grey.astype(np.float32)) / peak)
    assert isinstance(real, type(given))
    np.testing.assert_allclose(real, expected, rtol=0, atol=1e-6)
    assert enlarge_tiled(network, given, 2, tile=16, overlap=8, out=out) is out
    np.testing.assert_array_equal(out, np.rint(np.float32(peak) * np.asarray(real)).astype(kind))


def test_integers_are_clamped_and_floats_are_not():
    image = torch.tensor([[[-0.5, 0.25, 1.5]]])
    assert enlarge_tiled(repeated(1), image, 1, tile=2, overlap=0).tolist() == image.tolist()
    out = np.empty((1, 1, 3), "uint16")
    enlarge_tiled(repeated(1), image, 1, tile=2, overlap=0, out=out)
    assert out.tolist() == [[[0, 16384, 65535]]]
    half = torch.empty(1, 1, 3, dtype=torch.float16)
    assert enlarge_tiled(repeated(1), image, 1, out=half) is half
    assert half.tolist() == image.tolist()


def test_files_are_mapped(tmp_path):
    source = np.memmap(tmp_path / "in.raw", ">u2", "w+", shape=(1, 30, 40))  # as TIFF files may be
    source[:] = np.random.default_rng(0).integers(0, 65536, source.shape)
    source.flush()
    given = np.memmap(tmp_path / "in.raw", ">u2", "r", shape=(1, 30, 40))
    out = np.memmap(tmp_path / "out.raw", "uint16", "w+", shape=(1, 60, 80))
    enlarge_tiled(repeated(), given, 2, tile=16, overlap=4, out=out)
    out.flush()
    again = np.fromfile(tmp_path / "out.raw", "uint16").reshape(60, 80)
    np.testing.assert_array_equal(again, source[0].repeat(2, 0).repeat(2, 1))


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gives."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.nbytes)
        return result


@pytest.mark.parametrize("batch", [1, 4])
def test_memory_is_a_band(tmp_path, batch):
    given = np.zeros((1, 512, 512), "uint16")
    out = np.memmap(tmp_path / "out.raw", "uint16", "w+", shape=(1, 1024, 1024))
    seen = []

    def network(image):
        seen.append(image.shape)
        return repeated()(image)

    with Largest() as largest:
        enlarge_tiled(network, given, 2, tile=64, overlap=8, batch=batch, out=out)
    band = 4 * (2 * 64) * (2 * 512)
    assert largest.nbytes == band
    assert 8 * band == 4 * out.size
    assert set(seen) <= {(n, 1, 64, 64) for n in range(1, batch + 1)}
    assert sum(shape[0] for shape in seen) == 9 * 9


def test_network_and_gradients_are_left_alone():
    network = built(VDSR, 2, width=4, depth=3)
    for mode in (True, False):
        network.train(mode)
        result = enlarge_tiled(network, noise(1, 9, 9), 2, tile=8, overlap=2)
        assert network.training == mode
        assert not result.requires_grad


def test_half_precision_is_accumulated_in_float32():
    image = noise(1, 20, 20)
    result = enlarge_tiled(lambda x: repeated()(x).bfloat16(), image, 2, tile=8, overlap=4)
    assert result.dtype == torch.float32
    expected = whole(repeated(), image).bfloat16().float()
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 8, "overlap": 8}, r"overlap=8 must be in \[0, tile=8\)"),
        ({"tile": 0}, "tile=0"),
        ({"overlap": -1}, "overlap=-1"),
        ({"batch": 0}, "batch=0"),
        ({"scale": 0}, "scale=0"),
        ({"image": torch.zeros(9, 9)}, r"shape \(9, 9\): must be \(C, h, w\)"),
        ({"image": torch.zeros(1, 0, 9)}, r"shape \(1, 0, 9\)"),
        ({"out": np.empty((1, 18, 9), "uint8")}, r"out of shape \(1, 18, 9\).* \(1, 18, 18\)"),
        (
            {"scale": 4},
            r"made \(1, 1, 18, 18\) of \(1, 1, 9, 9\); with scale=4 it must be \(1, 1, 36, 36\)",
        ),
        ({"network": lambda x: upsampled(x, 2)[:, :, :-1]}, r"made \(1, 1, 17, 18\)"),
        ({"network": lambda x: repeated()(x).expand(-1, 3, -1, -1)}, r"made \(1, 3, 18, 18\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"network": repeated(), "image": torch.zeros(1, 9, 9), "scale": 2} | change
    with pytest.raises(ValueError, match=message):
        enlarge_tiled(**arguments)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="image of type int32: must be uint8, uint16 or floating"):
        enlarge_tiled(repeated(), np.zeros((1, 9, 9), "int32"), 2)
    with pytest.raises(TypeError, match="image of type bool"):
        enlarge_tiled(repeated(), torch.zeros(1, 9, 9, dtype=torch.bool), 2)
    with pytest.raises(TypeError, match="out of type int16"):
        enlarge_tiled(repeated(), torch.zeros(1, 9, 9), 2, out=np.zeros((1, 18, 18), "int16"))
