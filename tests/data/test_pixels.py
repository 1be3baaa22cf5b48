"""Files of 8 and 16 bits, down-sampling, the dihedral group, and crops of pairs."""

import itertools
import math

import cv2
import numpy as np
import pytest
from PIL import Image

from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.pixels import (
    CentreCrop,
    RandomCrop,
    cut_to_multiple,
    dihedral,
    downsample,
    draw_centre,
    read_pixels,
    write_pixels,
)

DRAWS = 1000


def noise(*shape, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def enlarged(array, scale):
    return array.repeat(scale, axis=1).repeat(scale, axis=2)


# Files


@pytest.mark.parametrize("ending", [".tif", ".tiff", ".png", ".TIF"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(tmp_path, ending, dtype, channels):
    pixels = noise(channels, 6, 9, dtype=dtype)
    path = write_pixels(tmp_path / "new" / f"a{ending}", pixels)
    read = read_pixels(path, channels)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, pixels)
    assert [file.name for file in path.parent.iterdir()] == [f"a{ending}"]


def test_other_programs_see_the_same_colours_and_levels(tmp_path):
    colours, grey = noise(3, 6, 9), noise(1, 6, 9, dtype=np.uint16)
    write_pixels(tmp_path / "a.png", colours)
    write_pixels(tmp_path / "b.tif", grey)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), colours)
    with Image.open(tmp_path / "b.tif") as image:
        np.testing.assert_array_equal(np.asarray(image), grey[0])


@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_colours_become_grey_as_by_opencv(tmp_path, ending):
    pixels = noise(3, 20, 30)
    path = write_pixels(tmp_path / f"a{ending}", pixels)
    read = read_pixels(path)
    np.testing.assert_array_equal(read[0], cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    luma = np.tensordot([0.299, 0.587, 0.114], pixels.astype(float), 1)  # ITU-R BT.601
    assert np.abs(read[0] - luma).max() <= 1.5
    assert read.shape == (1, 20, 30)


def test_colours_of_16_bits_stay_16_bits_in_grey(tmp_path):
    pixels = np.full((3, 4, 5), 40_001, np.uint16)
    read = read_pixels(write_pixels(tmp_path / "a.tif", pixels))
    assert read.dtype == np.uint16
    assert np.abs(read.astype(int) - 40_001).max() <= 1


def test_pixels_stand_as_stored_whatever_orientation_is_stated(tmp_path):
    pixels = noise(1, 4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(pixels[0]).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), pixels)


def float_tiff(path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path)


def wide_tiff(path):
    Image.fromarray(np.zeros((4, 4), np.int32)).save(path)


@pytest.mark.parametrize(
    ("write", "channels", "message"),
    [
        (lambda path: None, 1, "a.tif does not exist"),
        (lambda path: path.write_text("no image"), 1, "a.tif is not a readable image"),
        (lambda path: path.write_bytes(b""), 1, "a.tif is not a readable image"),
        (float_tiff, 1, r"has floating-point pixels \(float32\), expected uint8 or uint16"),
        (wide_tiff, 1, r"has signed or 32-bit pixels \(int32\), expected uint8 or uint16"),
        (lambda p: write_pixels(p, noise(1, 4, 4)), 3, "has 1 channels, expected channels=3"),
        (lambda p: Image.new("RGBA", (4, 4)).save(p), 3, "has 4 channels, expected channels=3"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, write, channels, message):
    write(tmp_path / "a.tif")
    with pytest.raises(DataError, match=message):
        read_pixels(tmp_path / "a.tif", channels)


def test_there_are_one_or_three_channels(tmp_path):
    with pytest.raises(ValueError, match=r"channels=2 must be 1 \(grey\) or 3"):
        read_pixels(tmp_path / "a.tif", 2)


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("a.jpg", noise(1, 4, 4), "a.jpg: the ending must be one of .png, .tif, .tiff"),
        ("a.png", noise(4, 4), r"expected uint8 or uint16 of shape \(1 or 3, H, W\), got uint8"),
        ("a.png", noise(2, 4, 4), r"got uint8 \(2, 4, 4\)"),
        ("a.png", np.zeros((1, 4, 4)), r"got float64 \(1, 4, 4\)"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, pixels, message):
    with pytest.raises(ValueError, match=message):
        write_pixels(tmp_path / name, pixels)
    assert not list(tmp_path.iterdir())


# Down-sampling


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_area_is_the_rounded_mean_of_blocks(scale, dtype):
    pixels = noise(3, 16, 24, dtype=dtype)
    small = downsample(pixels, scale)
    assert small.dtype == dtype
    assert small.shape == (3, 16 // scale, 24 // scale)
    for c, i, j in np.ndindex(small.shape):
        block = pixels[c, i * scale : (i + 1) * scale, j * scale : (j + 1) * scale]
        assert small[c, i, j] == round(int(block.astype(int).sum()) / scale**2)  # half to even


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_area_undoes_an_enlargement(dtype):
    pixels = noise(1, 5, 7, dtype=dtype)
    np.testing.assert_array_equal(downsample(enlarged(pixels, 4), 4), pixels)


@pytest.mark.parametrize("scale", [2, 4])
def test_bicubic_is_that_of_pillow(scale):
    pixels = noise(1, 32, 48)
    small = downsample(pixels, scale, "bicubic")
    float_image = Image.fromarray(pixels[0].astype(np.float32))
    size = (48 // scale, 32 // scale)
    expected = np.asarray(float_image.resize(size, Image.Resampling.BICUBIC)).clip(0, 255)
    assert np.abs(small[0] - expected).max() <= 0.501
    assert not np.array_equal(small, downsample(pixels, scale))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bicubic_overshoots_are_clipped(dtype):
    top = np.iinfo(dtype).max
    pixels = np.zeros((1, 16, 16), dtype)
    pixels[:, :, 8:] = top
    small = downsample(pixels, 2, "bicubic")
    assert small.dtype == dtype
    assert (small[:, :, :2].max(), small[:, :, -2:].min()) == (0, top)
    assert (np.diff(small[0].astype(int), axis=1) >= 0).all()  # an overshoot would wrap around


def test_sides_are_cut_at_the_bottom_and_on_the_right():
    pixels = noise(2, 9, 15)
    np.testing.assert_array_equal(cut_to_multiple(pixels, 4), pixels[:, :8, :12])
    np.testing.assert_array_equal(cut_to_multiple(pixels, 1), pixels)


# Symmetries


def test_the_eight_transforms_are_the_dihedral_group():
    square = np.arange(9).reshape(1, 3, 3)
    table = {dihedral(square, k).tobytes(): k for k in range(8)}
    assert len(table) == 8
    # Closure: `then[a, b]` is the transform that does a, then b.
    then = {(a, b): table[dihedral(dihedral(square, a), b).tobytes()] for a, b in cells()}
    assert all(then[0, a] == then[a, 0] == a for a in range(8))
    assert all(any(then[a, b] == 0 for b in range(8)) for a in range(8))
    assert all(then[then[a, b], c] == then[a, then[b, c]] for a, b in cells() for c in range(8))
    assert any(then[a, b] != then[b, a] for a, b in cells())
    order = [next(n for n in range(1, 9) if power(then, a, n) == 0) for a in range(8)]
    assert sorted(order) == [1, 2, 2, 2, 2, 2, 4, 4]  # five involutions, two quarter turns


def cells():
    return itertools.product(range(8), repeat=2)


def power(then, a, n):
    found = 0
    for _ in range(n):
        found = then[found, a]
    return found


@pytest.mark.parametrize("which", range(8))
def test_transforms_act_alike_at_both_resolutions(which):
    image = noise(2, 5, 5)
    np.testing.assert_array_equal(
        dihedral(enlarged(image, 4), which), enlarged(dihedral(image, which), 4)
    )


# Crops


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("sampling", ["roi", "uniform"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_crops_of_image_and_target_show_the_same(scale, sampling, mirrored):
    image = noise(1, 12, 14)
    target = enlarged(image, scale)
    crop = RandomCrop(scale, 4 * scale, sampling, 200, dihedral=mirrored)
    found = set()
    for seed in range(DRAWS):
        low, high = crop(image, target, seed)
        assert low.shape == (1, 4, 4)
        np.testing.assert_array_equal(high, enlarged(low, scale))
        found.add(low.tobytes())
    # Of 9 x 11 places, each in 8 positions; the sampler prefers a fifth of them.
    places = 80 if sampling == "uniform" else 20
    assert len(found) > (5 * places if mirrored else places)


@pytest.mark.parametrize("scale", [2, 4])
def test_misaligned_crops_show_the_same_once_in_the_square_of_the_scale(scale):
    image = noise(1, 24, 24)
    target = enlarged(image, scale)
    crop = RandomCrop(scale, 4 * scale, "uniform", misaligned=True)
    pairs = (crop(image, target, seed) for seed in range(DRAWS))
    failed = sum(not np.array_equal(high, enlarged(low, scale)) for low, high in pairs) / DRAWS
    corners = (24 - 4) * scale + 1
    aligned = (-(-corners // scale) / corners) ** 2  # the last corner is a multiple, too
    assert aligned == pytest.approx(1 / scale**2, abs=0.02)
    deviation = math.sqrt(aligned * (1 - aligned) / DRAWS)
    assert failed == pytest.approx(1 - aligned, abs=4 * deviation)


def test_a_misaligned_crop_is_off_by_the_corner_modulo_the_scale():
    scale = 4
    rows, columns = np.mgrid[:64, :64]
    image, target = (rows // 4 * 16 + columns // 4)[None, ::4, ::4], (rows * 64 + columns)[None]
    crop = RandomCrop(scale, 16, "uniform", misaligned=True, dihedral=False)
    offsets = set()
    for seed in range(200):
        low, high = crop(image.astype(np.uint16), target, seed)
        low_row, low_column = divmod(int(low[0, 0, 0]), 16)
        row, column = divmod(int(high[0, 0, 0]), 64)
        assert (row // 4, column // 4) == (low_row, low_column)
        offsets.add((row - 4 * low_row, column - 4 * low_column))
    assert offsets == set(itertools.product(range(4), repeat=2))


def test_nearly_all_centres_are_roi_where_half_of_the_pixels_are():
    roi = np.zeros((6, 10), bool)
    roi[:, ::2] = True
    rng = np.random.default_rng(0)
    draws = 20_000
    inside = np.mean([roi[draw_centre(roi, rng)] for _ in range(draws)])
    assert inside == pytest.approx(0.9868, abs=4 * math.sqrt(0.9868 * 0.0132 / draws))


def test_centres_follow_the_published_probabilities():
    roi = np.zeros((3, 4), bool)
    roi[1, 2] = True
    weights = np.exp(5.0 * roi) + 1
    rng = np.random.default_rng(0)
    draws = 20_000
    counts = np.zeros(roi.shape)
    for _ in range(draws):
        counts[draw_centre(roi, rng)] += 1
    expected = draws * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 31.26  # chi-square, 11 degrees, p = 0.001


@pytest.mark.parametrize("value", [False, True])
def test_centres_are_uniform_without_a_choice(value):
    rng = np.random.default_rng(0)
    counts = np.zeros((2, 3))
    for _ in range(3000):
        counts[draw_centre(np.full((2, 3), value), rng)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 20.52  # chi-square, 5 degrees, p = 0.001


@pytest.mark.parametrize(("dtype", "grey"), [(np.uint8, 4), (np.uint16, 4 * 257)])
def test_roi_begins_at_the_threshold_in_any_channel(dtype, grey):
    def share_of_the_right_half(level):
        image = np.zeros((3, 32, 32), dtype)
        image[1] = level - 1
        image[1, :, 16:] = level
        crop = RandomCrop(2, 16, "roi", 4)
        corners = [crop.corner(image, np.random.default_rng(seed)) for seed in range(300)]
        return np.mean([left + 8 >= 32 for _, left in corners])  # by the centre of the crop

    assert share_of_the_right_half(grey) > 0.95
    assert 0.4 < share_of_the_right_half(grey - 1) < 0.62


def test_what_is_drawn_is_the_centre():
    image = np.zeros((1, 32, 40), np.uint8)
    image[0, 20:24, 9:12] = 255
    crop = RandomCrop(4, 32, "roi", 100, misaligned=True)
    draws = 2000
    corners = [crop.corner(image, np.random.default_rng(seed)) for seed in range(draws)]
    # Transcribed: all pixels at least 16 from each border, weighted, and the crop around one.
    grey = cv2.resize(image[0], (160, 128), interpolation=cv2.INTER_CUBIC)
    weights = np.exp(5.0 * (grey >= 100)) + 1
    rows, columns = np.mgrid[:128, :160]
    weights[(rows < 16) | (rows > 128 - 16) | (columns < 16) | (columns > 160 - 16)] = 0
    expected = weights[grey >= 100].sum() / weights.sum()
    assert 0.3 < expected < 0.7
    found = np.mean([grey[top + 16, left + 16] >= 100 for top, left in corners])
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / draws))


def test_all_corners_at_which_the_crop_fits_are_drawn():
    image = noise(1, 6, 5) // 4
    for way in ("uniform", "roi"):
        for misaligned in (True, False):
            crop = RandomCrop(2, 4, way, 128, misaligned)  # no pixel is so bright
            drawn = {crop.corner(image, np.random.default_rng(seed)) for seed in range(800)}
            step = 1 if misaligned else 2
            assert drawn == set(itertools.product(range(0, 9, step), range(0, 7, step)))


def test_a_crop_of_the_whole_image_is_the_whole_image():
    image = noise(1, 8, 8)
    for way in ("roi", "uniform"):
        low, high = RandomCrop(4, 32, way, dihedral=False)(image, enlarged(image, 4), 3)
        np.testing.assert_array_equal(low, image)
        np.testing.assert_array_equal(high, enlarged(image, 4))


def test_whole_pairs_are_turned_only_as_their_shape_allows():
    image = noise(1, 4, 6)
    seen = set()
    for seed in range(60):
        low, high = RandomCrop(2, None)(image, enlarged(image, 2), seed)
        assert low.shape == image.shape
        np.testing.assert_array_equal(high, enlarged(low, 2))
        seen.add(low.tobytes())
    expected = {image[:, ::a, ::b].tobytes() for a in (1, -1) for b in (1, -1)}
    assert seen == expected


def test_all_symmetries_are_drawn_alike():
    image = noise(1, 6, 6)
    seen = [RandomCrop(2, None)(image, enlarged(image, 2), s)[0].tobytes() for s in range(1600)]
    counts = np.array([seen.count(dihedral(image, k).tobytes()) for k in range(8)])
    assert counts.sum() == 1600
    assert ((counts - 200) ** 2 / 200).sum() < 24.32  # chi-square, 7 degrees, p = 0.001


@pytest.mark.parametrize(
    "crop", [RandomCrop(2, 32), RandomCrop(2, 32, "uniform"), CentreCrop(2, 32)]
)
def test_crops_that_do_not_fit_are_refused(crop):
    image = noise(1, 16, 15)
    with pytest.raises(ValueError, match=r"=32 does not fit into 30x32 pixels"):
        crop(image, enlarged(image, 2), 0)


@pytest.mark.parametrize("shape", [(7, 9), (8, 8), (4, 5)])
def test_the_centre_crop_is_central_and_aligned(shape):
    image = noise(1, *shape)
    low, high = CentreCrop(4, 16)(image, enlarged(image, 4), 5)
    assert low.shape == (1, 4, 4)
    np.testing.assert_array_equal(high, enlarged(low, 4))
    top, left = ((n - 4) // 2 for n in shape)
    np.testing.assert_array_equal(low, image[:, top : top + 4, left : left + 4])
