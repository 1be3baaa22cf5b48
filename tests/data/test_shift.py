import numpy as np
import pytest

from wsl_zoo.data.scenes import render_scene
from wsl_zoo.data.shift import KINDS, MIXING, blur, check_shift, scanner, shift_image, stain

SEED = (0, 3, 1)


@pytest.fixture(scope="module")
def image():
    return render_scene(3, size=64).image


def distance(a, b):
    return np.abs(a.astype(float) - b).mean()


def plain(color, side=16):
    return np.full((side, side, 3), color, np.float32)


def test_strength_0_is_the_image_bit_for_bit(image):
    before = image.copy()
    for shift in ({}, dict.fromkeys(KINDS, 0.0), {"blur": 0}):
        assert shift_image(image, shift, SEED) is image
    full = shift_image(image, dict.fromkeys(KINDS, 1.0), SEED)
    np.testing.assert_array_equal(image, before)  # not changed in place
    assert (full.shape, full.dtype) == (image.shape, np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_grows_with_its_strength_from_none(image, kind):
    steps = [shift_image(image, {kind: s}, SEED) for s in (1e-4, 0.3, 0.6, 1.0)]
    none, *others = (distance(step, image) for step in steps)
    assert none < 0.02
    assert others == sorted(others)
    assert others[-1] > 5


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_noise_of_the_scanner_has_a_seed(image, kind):
    first = shift_image(image, {kind: 0.5}, SEED)
    np.testing.assert_array_equal(first, shift_image(image, {kind: 0.5}, SEED))
    other = shift_image(image, {kind: 0.5}, (0, 4, 1))
    assert np.array_equal(first, other) == (kind != "scanner")


def test_a_shift_is_its_parts_in_order(image):
    pixels = blur(stain(image.astype(np.float32) / np.float32(255), 0.4), 0.2)
    pixels = scanner(pixels, 0.7, np.random.default_rng(SEED))
    expected = np.rint(255 * pixels.clip(0, 1)).astype(np.uint8)
    shift = {"scanner": 0.7, "blur": 0.2, "stain": 0.4}
    np.testing.assert_array_equal(shift_image(image, shift, SEED), expected)


def test_stain_mixes_densities():
    for strength in (0.0, 0.5, 1.0):
        mixing = (1 - strength) * np.eye(3) + strength * MIXING
        assert np.linalg.det(mixing) > 0.1  # no colour is lost on the way
        color = np.array([0.8, 0.5, 0.3])
        expected = np.prod(color**mixing, axis=1)  # exp(-M d) with d = -log(color)
        np.testing.assert_allclose(stain(plain(color), strength)[5, 7], expected, rtol=1e-5)
    np.testing.assert_array_equal(stain(plain(1.0), 1.0), plain(1.0))  # no dye, no colour
    assert (stain(plain(0.0), 1.0) > 0).all()


def test_blur_is_relative_to_the_side():
    for side in (100, 200):
        point = np.zeros((side, side, 3), np.float32)
        point[side // 2, side // 2] = 1
        spread = blur(point, 0.5)[..., 0].astype(float)
        offsets = np.arange(side) - side // 2
        np.testing.assert_allclose(spread.sum(), 1, rtol=1e-5)
        deviation = np.sqrt((spread.sum(0) * offsets**2).sum())
        np.testing.assert_allclose(deviation, 0.01 * side, rtol=0.02)
    np.testing.assert_allclose(blur(plain(0.4), 1.0), plain(0.4), rtol=1e-6)


def test_scanner_changes_gains_gamma_and_noise():
    rng = np.random.default_rng(0)
    pixels = scanner(plain(0.5, 200), 1.0, rng)
    expected = (0.5 * np.array([1.15, 1.0, 0.8])) ** 1.8
    np.testing.assert_allclose(pixels.mean((0, 1)), expected, atol=1e-3)
    np.testing.assert_allclose(pixels.std((0, 1)), 0.03, rtol=0.02)
    white = scanner(plain(1.0, 200), 1.0, rng)
    np.testing.assert_allclose(white[..., 0].mean(), 1, atol=1e-3)  # a full sensor stays full


def test_good_strengths_are_taken():
    assert check_shift({}) == {}
    assert check_shift({"blur": 1, "stain": 0.25}) == {"blur": 1.0, "stain": 0.25}


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ({"scaner": 0.5}, r"no kind 'scaner' \(did you mean 'scanner'\?\): expected stain, blur,"),
        ({"blur": 1.5}, r"shift: blur=1\.5 must be a strength in \[0, 1\]"),
        ({"stain": -0.1}, r"shift: stain=-0\.1 must"),
        ({"stain": float("nan")}, "shift: stain=nan must"),
        ({"blur": "strong"}, "shift: blur='strong' must"),
        ({"blur": None}, "shift: blur=None must"),
    ],
)
def test_bad_strengths_are_refused(shift, message):
    with pytest.raises(ValueError, match=message):
        check_shift(shift)
