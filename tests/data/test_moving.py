"""Procedural clips: what moves, how far, and that masks and boxes follow it."""

import subprocess
import sys
import zlib
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import ndimage

from wsl_zoo.data.moving import Clip, render_clip
from wsl_zoo.data.scenes import MIN_SIZE, TEXTURES

STILL: dict[str, Any] = {name: (0.0, 0.0) for name in ("motion", "turn", "wander", "camera")} | {
    "num_distractors": 0,
    "grain": 0.0,
}


def centroids(clip: Clip) -> np.ndarray:
    """Return the centre of every frame's mask, `(T, 2)` x y."""
    return np.array([np.argwhere(mask).mean(axis=0)[::-1] for mask in clip.masks])


def steps(clip: Clip) -> np.ndarray:
    """Return the displacement of the mask from frame to frame, `(T - 1,)` pixels."""
    return np.hypot(*np.diff(centroids(clip), axis=0).T)


def moved(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return an image displaced by `shift` pixels (x, y)."""
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], float)
    return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_CUBIC)


def touches_border(mask: np.ndarray) -> bool:
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Return 60 clips of the default form."""
    return [render_clip(i) for i in range(60)]


def test_any_order_gives_the_same_clips(clips: list[Clip]) -> None:
    np.random.seed(0)  # noqa: NPY002  (the global generator must play no part)
    for i in (59, 7, 0, 7):
        again = render_clip(i)
        np.testing.assert_array_equal(again.images, clips[i].images)
        np.testing.assert_array_equal(again.masks, clips[i].masks)
        np.testing.assert_array_equal(again.boxes, clips[i].boxes)
        assert again.label == clips[i].label


def test_another_process_gives_the_same_clip(clips: list[Clip]) -> None:
    code = (
        "import zlib; from wsl_zoo.data.moving import render_clip;"
        "print(zlib.crc32(render_clip(11).images.tobytes()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == zlib.crc32(clips[11].images.tobytes())


def test_seeds_and_indices_differ() -> None:
    images = [render_clip(i, seed=s).images for i, s in ((0, 0), (0, 1), (1, 0), (4, 0), (0, 4))]
    for i, a in enumerate(images):
        for b in images[i + 1 :]:
            assert np.abs(a.astype(int) - b).mean() > 5


@pytest.mark.parametrize("num_classes", [1, 4, len(TEXTURES)])
def test_any_run_of_clips_is_balanced(num_classes: int) -> None:
    options = {"num_classes": num_classes, "size": 32, "frames": 1}
    labels = [render_clip(i, **options).label for i in range(3, 3 + 17)]
    counts = np.bincount(labels, minlength=num_classes)
    assert len(counts) == num_classes
    assert np.ptp(counts) <= 1


@pytest.mark.parametrize(("size", "frames"), [(MIN_SIZE, 3), (65, 1), (96, 8), (224, 2)])
@pytest.mark.parametrize("leave", [0.0, 1.0])
def test_types_shapes_and_ranges(size: int, frames: int, leave: float) -> None:
    for i in range(4):
        clip = render_clip(i, size=size, frames=frames, leave=leave, motion=(0.0, 0.2))
        assert clip.images.dtype == clip.masks.dtype == np.uint8
        assert clip.images.shape == (frames, size, size, 3)
        assert clip.masks.shape == (frames, size, size)
        assert clip.masks.max(initial=0) <= 1
        assert len(clip.boxes) == frames
        assert type(clip.label) is int


def test_boxes_are_those_of_the_masks(clips: list[Clip]) -> None:
    leaving = [render_clip(i, leave=1.0, motion=(0.1, 0.2)) for i in range(40)]
    empty = 0
    for clip in clips + leaving:
        for mask, boxes in zip(clip.masks, clip.boxes, strict=True):
            found = [
                (cols.start, rows.start, cols.stop - 1, rows.stop - 1)
                for rows, cols in ndimage.find_objects(mask)
            ]
            assert boxes.dtype == np.float64
            assert boxes.shape == (len(found), 4)
            assert [tuple(box) for box in boxes.tolist()] == found
            empty += not found
    assert empty > 0


@pytest.mark.parametrize("motion", [0.01, 0.05, 0.2, 0.4])
def test_the_object_moves_as_far_as_asked_and_stays_in_the_image(motion: float) -> None:
    for i in range(12):
        turned = render_clip(i, motion=(motion, motion), turn=(0.3, 0.3))
        assert not any(touches_border(mask) for mask in turned.masks)
        clip = render_clip(i, motion=(motion, motion), turn=(0.0, 0.0))
        np.testing.assert_allclose(steps(clip), 96 * motion, atol=0.45)  # of pixels
        areas = clip.masks.sum(axis=(1, 2))
        assert np.ptp(areas) < 0.05 * areas.max()
        assert not any(touches_border(mask) for mask in clip.masks)


def test_speeds_fill_their_range_and_are_even_within_a_clip() -> None:
    found = [steps(render_clip(i, motion=(0.02, 0.1), turn=(0.0, 0.0))) / 96 for i in range(40)]
    assert max(np.ptp(clip) for clip in found) < 0.01
    speeds = np.mean(found, axis=1)
    assert 0.018 < speeds.min() < 0.04
    assert 0.08 < speeds.max() < 0.102


def test_a_path_goes_on_rather_than_back_and_forth() -> None:
    """Far from the border the heading changes little: frames far apart are far apart."""
    straight = []
    for i in range(30):
        path = centroids(
            render_clip(i, motion=(0.02, 0.02), turn=(0.0, 0.0), coverage=(0.03, 0.03))
        )
        straight.append(np.hypot(*(path[-1] - path[0])) / (7 * 0.02 * 96))
    assert np.median(straight) > 0.75


def test_the_object_turns_as_far_as_asked() -> None:
    for i in range(6):
        clip = render_clip(i, motion=(0.0, 0.0), turn=(0.1, 0.1))
        first, last = clip.masks[0].astype(np.float32), clip.masks[5].astype(np.float32)
        (x, y), end = centroids(clip)[[0, 5]]
        overlap = {}
        for degrees in np.rad2deg([0.5, -0.5, 0.0]):
            matrix = cv2.getRotationMatrix2D((x, y), degrees, 1)
            matrix[:, 2] += end - (x, y)
            turned = cv2.warpAffine(first, matrix, (96, 96)) > 0.5
            overlap[degrees] = (turned & (last > 0)).sum() / (turned | (last > 0)).sum()
        *either_way, unturned = overlap.values()
        assert max(either_way) > 0.9
        assert unturned < 0.8


def test_the_texture_moves_with_the_object() -> None:
    for i in range(6):
        clip = render_clip(i, **STILL | {"motion": (0.1, 0.1)})
        path = centroids(clip)
        inside = cv2.erode(clip.masks[4], np.ones((5, 5), np.uint8)) > 0
        now = clip.images[4].astype(np.float32)
        aligned = moved(clip.images[0].astype(np.float32), path[4] - path[0])
        assert np.corrcoef(now[inside].ravel(), aligned[inside].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("camera", [0.02, 0.1])
def test_the_ground_shifts_as_far_as_asked(camera: float) -> None:
    for i in range(6):
        clip = render_clip(i, **STILL | {"camera": (camera, camera), "coverage": (0.01, 0.01)})
        x, y = np.where(centroids(clip)[0] < 48, 58, 18)  # of a patch without the object
        for before, after in pairwise(clip.images):
            patch = before[y : y + 20, x : x + 20]
            found = cv2.matchTemplate(after, patch, cv2.TM_CCOEFF_NORMED)
            _, likeness, _, at = cv2.minMaxLoc(found)
            assert likeness > 0.9
            assert np.hypot(at[0] - x, at[1] - y) == pytest.approx(camera * 96, abs=0.75)
        np.testing.assert_allclose(steps(clip), 0, atol=1e-9)


def test_masks_are_the_visible_object() -> None:
    """Before a still ground, frames differ where the object is in one of them, and only there."""
    wide = np.ones((3, 3), np.uint8)
    for i in range(8):
        clip = render_clip(i, **STILL | {"motion": (0.15, 0.15), "leave": i % 2})
        for t in range(1, 8):
            change = np.abs(clip.images[t].astype(int) - clip.images[0]).max(axis=2)
            either = clip.masks[t] | clip.masks[0]
            assert not change[cv2.dilate(either, wide) == 0].any()
            new = cv2.erode(clip.masks[t], wide, borderValue=1) > cv2.dilate(clip.masks[0], wide)
            if new.any():
                assert (change[new] > 5).mean() > 0.99


def test_colours_last_and_tell_object_from_ground(clips: list[Clip]) -> None:
    inside, gaps = [], []
    for clip in clips:
        pairs = zip(clip.images, clip.masks, strict=True)
        colours = np.array([(im[m > 0].mean(0), im[m == 0].mean(0)) for im, m in pairs])
        inside.append(colours[:, 0])
        assert np.ptp(colours, axis=0).max() < 20
        gaps.append(np.linalg.norm(colours[:, 0] - colours[:, 1], axis=1).min())
    between = np.std([c.mean(0) for c in inside], axis=0)
    within = np.mean([c.std(0) for c in inside], axis=0)
    assert (within < 0.1 * between).all()
    assert np.percentile(gaps, 5) > 30


def test_colour_tells_no_class() -> None:
    """Class means of colour and contrast differ by no more than chance."""
    clips = [render_clip(i, frames=1) for i in range(300)]
    label = np.array([c.label for c in clips])
    inside = np.array([c.images[c.masks > 0].mean(axis=0) for c in clips])
    contrast = np.array([c.images.std(axis=(0, 1, 2)) for c in clips])
    for values in (inside, contrast):
        means = np.array([values[label == k].mean(axis=0) for k in range(4)])
        error = values.std(axis=0) * np.sqrt(2 / 75)  # of the difference of two class means
        assert (np.ptp(means, axis=0) < 4 * error).all()


def test_only_the_noise_is_fresh_where_nothing_moves() -> None:
    clip = render_clip(3, **STILL)
    assert (clip.images == clip.images[0]).all()
    noisy = render_clip(3, **STILL | {"grain": 0.02}).images.astype(float)
    for a, b in ((0, 1), (1, 2), (0, 7)):
        assert (noisy[a] - noisy[b]).std() == pytest.approx(0.02 * 255 * np.sqrt(2), rel=0.05)


def test_the_clear_part_goes_round_the_object() -> None:
    """A frame shows the class in a part of the object; its neighbours show more of it."""
    alone, two, all_of_it = [], [], []
    for i in range(12):
        still = STILL | {"wander": (1.0, 1.0), "rest": 0.0}
        clip, clear = render_clip(i, **still), render_clip(i, **still | {"rest": 1.0})
        inside = clip.masks[0] > 0
        apart = np.abs(clip.images.astype(int) - clear.images).max(axis=3) < 10
        # at a pixel textures may agree by chance: most of a neighbourhood must
        shown = np.array([cv2.blur(a.astype(np.float32), (5, 5)) > 0.6 for a in apart])[:, inside]
        alone.append(shown.mean())
        two.append((shown[1:] | shown[:-1]).mean())
        all_of_it.append(shown.any(axis=0).mean())
    assert 0.1 < np.mean(alone) < 0.35
    assert np.mean(two) > 1.25 * np.mean(alone)
    assert np.mean(all_of_it) > 2 * np.mean(alone)


def test_leaving_objects_are_cut_at_an_end_of_the_clip() -> None:
    clips = [render_clip(i, leave=1.0, motion=(0.1, 0.1)) for i in range(30)]
    at_start = whole = 0
    for clip in clips:
        areas = clip.masks.sum(axis=(1, 2))
        ends = areas[[0, -1]]
        assert ends.min() < 0.95 * areas.max()
        assert ends.min() == 0 or touches_border(clip.masks[0 if ends[0] < ends[1] else -1])
        whole += not touches_border(clip.masks[areas.argmax()])
        at_start += int(ends[0] < ends[1])
    assert 5 < at_start < 25
    assert whole > 20
    crossing = [
        any(touches_border(mask) for mask in render_clip(i, leave=0.5, motion=(0.1, 0.1)).masks)
        for i in range(40)
    ]
    assert 10 < sum(crossing) < 30


def test_a_sliver_of_an_object_is_not_shown() -> None:
    clips = [render_clip(i, leave=1.0, motion=(0.02, 0.2)) for i in range(60)]
    shares = [
        mask.sum() / clip.masks.sum(axis=(1, 2)).max() for clip in clips for mask in clip.masks
    ]
    assert min(shares) == 0
    assert min(share for share in shares if share > 0) > 0.045


def test_distractors_are_no_object_and_move() -> None:
    pushed = []
    for i in range(8):
        bare, full = (
            render_clip(i, **STILL | {"motion": (0.1, 0.1), "num_distractors": n}) for n in (0, 2)
        )
        first = full.images[0].astype(int)
        free = (full.masks == 0).all(axis=0)
        pushed.append((np.abs(full.images[5] - first).max(axis=2)[free] > 10).mean())
        assert (
            np.abs(bare.images[5].astype(int) - bare.images[0])[(bare.masks == 0).all(0)].max(
                axis=1
            )
            > 10
        ).mean() < 0.05
        assert len(full.boxes[0]) == 1
    assert max(pushed) > 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": -1}, "index=-1"),
        ({"size": MIN_SIZE - 1}, f"at least {MIN_SIZE} pixels"),
        ({"num_classes": 9}, "stripes"),
        ({"coverage": (0.3, 0.9)}, "coverage"),
        ({"rest": 1.5}, "rest=1.5"),
        ({"num_distractors": -1}, "num_distractors"),
        ({"frames": 0}, "frames=0.*at least 1"),
        ({"leave": 1.2}, "leave=1.2"),
        ({"motion": (0.0, 0.6)}, "motion=.*high <= 0.5"),
        ({"camera": (-0.1, 0.1)}, "camera="),
        ({"turn": (0.3, 0.1)}, "turn="),
        ({"wander": (0.0, 4.0)}, "wander="),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_clip(**({"index": 0} | arguments))
