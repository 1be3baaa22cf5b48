"""The procedural scenes: determinism, labels, masks, boxes, and what colour must not tell."""

import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from wsl_zoo.data.scenes import (
    MIN_SIZE,
    TEXTURES,
    Scene,
    blob,
    class_texture,
    evidence,
    ground,
    neutral_texture,
    outline,
    paint,
    palette,
    render_scene,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Return 400 scenes of the default form."""
    return [render_scene(i) for i in range(400)]


def _assert_equal(a: Scene, b: Scene) -> None:
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.mask, b.mask)
    np.testing.assert_array_equal(a.boxes, b.boxes)
    assert a.label == b.label


def test_any_order_gives_the_same_scenes(scenes: list[Scene]) -> None:
    np.random.seed(0)  # noqa: NPY002  (the global generator must play no part)
    for i in (399, 7, 0, 7):
        _assert_equal(render_scene(i), scenes[i])


def test_another_process_gives_the_same_scene(scenes: list[Scene]) -> None:
    code = (
        "import zlib; from wsl_zoo.data.scenes import render_scene;"
        "print(zlib.crc32(render_scene(11).image.tobytes()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == zlib.crc32(scenes[11].image.tobytes())


def test_seeds_and_indices_differ() -> None:
    images = [render_scene(i, seed=s).image for i, s in ((0, 0), (0, 1), (1, 0), (4, 0), (0, 4))]
    for i, a in enumerate(images):
        for b in images[i + 1 :]:
            assert np.abs(a.astype(int) - b).mean() > 5


@pytest.mark.parametrize("num_classes", [1, 2, 4, len(TEXTURES)])
def test_any_run_of_scenes_is_balanced(num_classes: int) -> None:
    labels = [render_scene(i, num_classes=num_classes, size=32).label for i in range(3, 3 + 17)]
    counts = np.bincount(labels, minlength=num_classes)
    assert len(counts) == num_classes
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("size", [MIN_SIZE, 65, 96, 224])
def test_types_shapes_and_ranges(size: int) -> None:
    for i in range(8):
        scene = render_scene(i, size=size)
        assert scene.image.dtype == np.uint8
        assert scene.image.shape == (size, size, 3)
        assert scene.image.flags.c_contiguous
        assert scene.mask.dtype == np.uint8
        assert scene.mask.shape == (size, size)
        assert set(np.unique(scene.mask)) == {0, 1}
        assert scene.boxes.dtype == np.float64
        assert scene.boxes.ndim == 2
        assert scene.boxes.shape[1] == 4
        assert type(scene.label) is int


def test_boxes_are_those_of_the_components(scenes: list[Scene]) -> None:
    for scene in scenes:
        parts, count = ndimage.label(scene.mask, structure=np.ones((3, 3)))
        assert count == len(scene.boxes)
        found = [
            (cols.start, rows.start, cols.stop - 1, rows.stop - 1)
            for rows, cols in ndimage.find_objects(parts)
        ]
        assert sorted(found) == sorted(map(tuple, scene.boxes.tolist()))


@pytest.mark.parametrize("number", [1, 2, 3, (1, 4)])
def test_number_of_objects(number: int | tuple[int, int]) -> None:
    low, high = (number, number) if isinstance(number, int) else number
    counts = [len(render_scene(i, num_objects=number).boxes) for i in range(40)]
    assert min(counts) >= 1
    assert max(counts) == high
    assert np.mean([low <= n for n in counts]) > 0.9  # an object without room is left out


def test_coverage(scenes: list[Scene]) -> None:
    cover = np.array([scene.mask.mean() for scene in scenes])
    assert cover.min() > 0.05
    assert cover.max() < 0.35
    assert 0.17 < cover.mean() < 0.25
    small = [render_scene(i, coverage=(0.05, 0.05)).mask.mean() for i in range(30)]
    np.testing.assert_allclose(small, 0.05, atol=0.015)


def test_objects_are_not_convex(scenes: list[Scene]) -> None:
    fill = [
        scene.mask.sum() / np.prod(scene.boxes[0, 2:] - scene.boxes[0, :2] + 1)
        for scene in scenes
        if len(scene.boxes) == 1
    ]
    assert 0.3 < np.median(fill) < 0.65  # an ellipse fills 0.785 of its box


def test_colour_tells_no_class(scenes: list[Scene]) -> None:
    """Class means of colour and contrast differ by no more than chance, on objects and images."""
    label = np.array([s.label for s in scenes])
    inside = np.array([s.image[s.mask > 0].mean(axis=0) for s in scenes])
    whole = np.array([s.image.mean(axis=(0, 1)) for s in scenes])
    contrast = np.array([s.image.std(axis=(0, 1)) for s in scenes])
    for values in (inside, whole, contrast):
        means = np.array([values[label == k].mean(axis=0) for k in range(4)])
        error = values.std(axis=0) * np.sqrt(2 / 100)  # of the difference of two class means
        assert (np.ptp(means, axis=0) < 4 * error).all()


def test_object_contrast_is_that_of_the_rest(scenes: list[Scene]) -> None:
    inside = np.mean([s.image[s.mask > 0].std() for s in scenes])
    outside = np.mean([s.image[s.mask == 0].std() for s in scenes])
    assert 0.75 < inside / outside < 1.25


@pytest.mark.parametrize("label", range(len(TEXTURES)))
def test_textures_are_standardised_and_of_either_sign(label: int) -> None:
    rng = np.random.default_rng(label)
    fields = [class_texture(rng, 96, label) for _ in range(10)]
    for field in fields:
        assert field.dtype == np.float32
        assert field.shape == (96, 96)
        assert abs(field.mean()) < 1e-3
        assert field.std() == pytest.approx(1, abs=1e-3)
        # the period is that of the class, not of the pixel grid: neighbours are alike
        assert np.mean(field[:, 1:] * field[:, :-1]) > 0.2
    assert max(abs(np.corrcoef(fields[0].ravel(), f.ravel())[0, 1]) for f in fields[1:]) < 0.6


def test_textures_differ_between_classes() -> None:
    """Rotation-free spectra separate the classes: the nearest class mean is mostly right."""

    def spectrum(field: np.ndarray) -> np.ndarray:
        power = np.fft.fftshift(np.abs(np.fft.fft2(field))) ** 2
        y, x = np.indices(power.shape) - 48
        radius, angle = np.hypot(x, y).astype(int), np.arctan2(y, x)
        rings = np.bincount(radius.ravel(), power.ravel(), 49)[:49]
        # how far the energy is spread over angles, at 2, 4 and 6 lobes
        lobes = [abs((power * np.exp(1j * k * angle)).sum()) / power.sum() for k in (2, 4, 6)]
        return np.concatenate((np.sqrt(rings / rings.sum()), lobes))

    rng = np.random.default_rng(0)
    known, fresh = (
        np.array([[spectrum(class_texture(rng, 96, k)) for _ in range(16)] for k in range(8)])
        for _ in range(2)
    )
    gaps = np.linalg.norm(fresh[:, :, None] - known.mean(axis=1), axis=-1)
    assert (gaps.argmin(axis=-1) == np.arange(8)[:, None]).mean() > 0.7


def test_ground_and_neutral_texture_are_standardised() -> None:
    for make in (ground, neutral_texture):
        field = make(np.random.default_rng(0), 64)
        assert field.dtype == np.float32
        assert field.shape == (64, 64)
        assert field.mean() == pytest.approx(0, abs=1e-3)
        assert field.std() == pytest.approx(1, abs=1e-3)


def test_blob_stays_clear_of_the_border() -> None:
    rng = np.random.default_rng(0)
    for coverage in (0.02, 0.2, 0.5):
        for _ in range(30):
            mask = blob(rng, outline(rng), 64, coverage)
            assert mask.sum() == mask[1:-1, 1:-1].sum() > 0
            assert ndimage.label(mask, structure=np.ones((3, 3)))[1] == 1


def test_evidence_fades_from_one_to_rest() -> None:
    rng = np.random.default_rng(0)
    mask = blob(rng, outline(rng), 96, 0.2)
    clarity = evidence(rng, mask, 0.25)
    assert clarity.dtype == np.float32
    assert clarity[mask > 0].max() == 1
    assert clarity.min() == pytest.approx(0.25, abs=1e-3)
    assert 0.2 < (clarity[mask > 0] > 0.6).mean() < 0.95


def test_paint_changes_the_region_only() -> None:
    rng = np.random.default_rng(0)
    mask = blob(rng, outline(rng), 48, 0.2)
    image = np.zeros((3, 48, 48), np.float32)
    mean, axis = palette(rng, 0.3)
    paint(image, np.ones((48, 48), np.float32), (mean, axis), mask)
    square = np.ones((3, 3), bool)
    inside = ndimage.binary_erosion(mask, square)
    outside = ~ndimage.binary_dilation(mask, square)
    np.testing.assert_allclose(image, np.where(inside, mean + axis, image), atol=1e-6)
    np.testing.assert_array_equal(image, np.where(outside, 0, image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": -1}, "index=-1"),
        ({"seed": -2}, "seed=-2"),
        ({"size": MIN_SIZE - 1}, f"at least {MIN_SIZE} pixels"),
        ({"num_classes": 0}, r"1\.\.8"),
        ({"num_classes": 9}, "stripes"),
        ({"num_objects": 0}, r"num_objects=0.*1\.\.4"),
        ({"num_objects": (2, 1)}, "num_objects"),
        ({"num_distractors": -1}, "num_distractors"),
        ({"coverage": (0.0, 0.3)}, "coverage"),
        ({"coverage": (0.3, 0.9)}, "coverage"),
        ({"rest": 1.5}, "rest=1.5"),
        ({"grain": -0.1}, "grain=-0.1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_scene(**({"index": 0} | arguments))
