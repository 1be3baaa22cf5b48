import hashlib
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from wsl_zoo.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    Sample,
    normalize,
    resize,
    resize_boxes,
    resize_image,
    resize_mask,
)

ROOT = Path(__file__).resolve().parents[2]
JITTER = [0.5, 0.5, 0.5, 0.05]
# Boxes of objects that do not overlap; the last two touch the borders of a 40 x 48 image.
BOXES = [(3, 4, 9, 20), (20, 2, 21, 3), (12, 25, 33, 30), (40, 5, 48, 17), (0, 33, 6, 40)]


def coordinate_image(height, width):
    """Red is the column, green the row, blue their pattern: each pixel tells where it came from."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, (7 * rows + 13 * columns) % 256], axis=-1).astype(np.uint8)


def annotated_sample(height=40, width=48):
    """Image, mask and boxes of the same objects, and which object each pixel belongs to."""
    objects = np.zeros((height, width), dtype=int)
    for number, (x0, y0, x1, y1) in enumerate(BOXES, start=1):
        objects[y0:y1, x0:x1] = number
    mask = (objects > 0).astype(np.uint8)
    mask[20:24, 36:44] = 255
    boxes = np.array(BOXES, dtype=np.float64)
    image = coordinate_image(height, width)
    return Sample(image, 3, mask, boxes, "patient", "a.png", (400, 480)), objects


def extents(objects):
    """Edge boxes of the objects that are still to be seen."""
    found = []
    for number in range(1, len(BOXES) + 1):
        rows, columns = np.nonzero(objects == number)
        if len(rows):
            found.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return np.array(found, dtype=np.float64).reshape(-1, 4)


@pytest.mark.parametrize(
    ("crop", "hflip", "vflip", "rotate90"),
    [
        (None, 1, 0, False),
        (None, 0, 1, False),
        (None, 1, 1, False),
        (None, 0, 0, True),
        (24, 0, 0, False),
        (24, 1, 0, False),
        (17, 0.5, 0.5, True),
    ],
)
def test_image_mask_and_boxes_move_together(crop, hflip, vflip, rotate90):
    sample, objects = annotated_sample()
    augment = Augment(crop, hflip, vflip, rotate90)
    moved = dropped = 0
    shapes = set()
    for seed in range(40):
        out = augment(sample, seed)
        columns, rows = out.image[..., 0].astype(int), out.image[..., 1].astype(int)
        assert (out.image == sample.image[rows, columns]).all()
        assert (out.mask == sample.mask[rows, columns]).all()
        expected = extents(objects[rows, columns])
        assert out.boxes.dtype == np.float64
        np.testing.assert_allclose(out.boxes, expected, atol=1e-4)
        shapes.add(out.mask.shape)
        moved += rows[0, 0] > 0 or columns[0, 0] > 0
        dropped += len(out.boxes) < len(BOXES)
        assert out.image.shape == (*(out.mask.shape), 3)
        assert (out.label, out.group, out.path, out.size) == (3, "patient", "a.png", (400, 480))
    assert moved >= 10
    assert (dropped > 10) == (crop is not None)
    upright = (crop, crop) if crop else (40, 48)
    assert shapes == ({upright, upright[::-1]} if rotate90 else {upright})


def test_a_flip_takes_x_to_width_minus_x_as_torchvision_does():
    """Coordinates of edges: the box of the left third becomes that of the right third."""
    boxes = np.array([[0.0, 5, 16, 40], [3.25, 0, 47.5, 1]])
    sample = Sample(coordinate_image(40, 48), boxes=boxes)
    out = Augment(crop=None, hflip=1)(sample, 0).boxes
    np.testing.assert_allclose(out[0], [32, 5, 48, 40], atol=1e-4)
    theirs = tv_tensors.BoundingBoxes(torch.tensor(boxes), format="XYXY", canvas_size=(40, 48))
    np.testing.assert_allclose(out, F.horizontal_flip(theirs).numpy(), atol=1e-4)
    out = Augment(crop=None, hflip=0, vflip=1)(sample, 0).boxes
    np.testing.assert_allclose(out[0], [0, 0, 16, 35], atol=1e-4)


def test_flips_and_crops_are_drawn_independently():
    sample = Sample(coordinate_image(8, 8))
    augment = Augment(crop=None, hflip=0.5, vflip=0.5)
    images = [augment(sample, seed).image for seed in range(400)]
    flips = Counter((int(image[0, 0, 0] > 0), int(image[0, 0, 1] > 0)) for image in images)
    assert set(flips) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert min(flips.values()) > 70
    assert max(flips.values()) < 130

    augment = Augment(crop=None, hflip=0.5, rotate90=True)
    corners = Counter(tuple(augment(sample, seed).image[0, :2].ravel()) for seed in range(400))
    assert len(corners) == 8  # all symmetries of the square
    assert min(corners.values()) > 30

    augment = Augment(crop=6, hflip=0.5)
    images = [augment(sample, seed).image for seed in range(540)]
    seen = Counter(
        (int(i[..., 0].min()), int(i[..., 1].min()), bool(i[0, 0, 0] > i[0, 5, 0])) for i in images
    )
    assert len(seen) == 3 * 3 * 2  # 18 combinations, 30 draws each on average
    assert min(seen.values()) > 12


def test_colour_jitter_changes_the_image_only():
    sample, _ = annotated_sample()
    plain, jittered = Augment(30, 0.5, 0.5), Augment(30, 0.5, 0.5, color_jitter=JITTER)
    changed = 0
    for seed in range(20):
        a, b = plain(sample, seed), jittered(sample, seed)
        assert (a.mask == b.mask).all()
        assert (a.boxes == b.boxes).all()
        assert set(np.unique(b.mask)) <= {0, 1, 255}
        changed += (a.image != b.image).mean() > 0.5
    assert changed == 20


def test_strengths_of_colour_jitter_are_those_of_torchvision():
    sample = Sample(np.full((4, 4, 3), 100, np.uint8))
    augment = Augment(None, 0, color_jitter=[0.5, 0, 0, 0])
    values = np.array([augment(sample, seed).image for seed in range(200)])
    assert (values == values[:, :1, :1, :1]).all()
    assert 50 <= values.min() < 55
    assert 145 < values.max() <= 150
    # Contrast leaves a constant image as it is; no strength leaves every image as it is.
    assert (Augment(None, 0, color_jitter=[0, 0.9, 0, 0])(sample, 1).image == 100).all()
    image = coordinate_image(40, 48)
    assert (Augment(None, 0, color_jitter=[0, 0, 0, 0])(Sample(image), 1).image == image).all()


def test_inputs_are_left_as_they_are():
    sample, _ = annotated_sample()
    original, _ = annotated_sample()
    augment = Augment(None, 0.5, 0.5, color_jitter=JITTER)
    for seed in range(20):
        augment(sample, seed)
    assert (sample.image == original.image).all()
    assert (sample.mask == original.mask).all()
    assert (sample.boxes == original.boxes).all()


DIGEST = """
import hashlib, sys
from wsl_zoo.data.transforms import Augment, Sample
import numpy as np
image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
augment = Augment(32, 0.5, 0.5, True, [0.5, 0.5, 0.5, 0.05])
for seed in map(int, sys.argv[1:]):
    sample = Sample(image, mask=image[..., 0], boxes=np.array([[4.0, 5, 40, 38]]))
    out = augment(sample, seed)
    parts = (out.image.tobytes(), out.mask.tobytes(), out.boxes.tobytes())
    print(seed, hashlib.sha256(b"".join(parts)).hexdigest())
"""


def digests(seeds):
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    augment = Augment(32, 0.5, 0.5, True, JITTER)
    found = {}
    for seed in seeds:
        sample = Sample(image, mask=image[..., 0], boxes=np.array([[4.0, 5, 40, 38]]))
        out = augment(sample, seed)
        parts = (out.image.tobytes(), out.mask.tobytes(), out.boxes.tobytes())
        found[seed] = hashlib.sha256(b"".join(parts)).hexdigest()
    return found


def test_a_seed_gives_the_same_result_in_any_order_and_process():
    seeds = [0, 1, 2, 3, 2**32 - 1]
    here = digests(seeds)
    assert digests(reversed(seeds)) == here
    assert len(set(here.values())) == len(seeds)
    arguments = [sys.executable, "-c", DIGEST, *map(str, [3, 1, *reversed(seeds)])]
    printed = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    there = [line.split() for line in printed.splitlines()]
    assert {int(seed): digest for seed, digest in there} == here
    assert len(there) == len(seeds) + 2


def test_global_random_state_is_neither_used_nor_moved():
    here = digests([5])
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - the global state is the subject
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert digests([5]) == here
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize("jitter", [None, JITTER])
def test_without_geometry_nothing_moves_and_nothing_warns(jitter):
    sample, _ = annotated_sample()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = Augment(None, 0, color_jitter=jitter)(sample, 0)
    assert (out.mask == sample.mask).all()
    np.testing.assert_allclose(out.boxes, sample.boxes, atol=1e-4)
    assert (out.image == sample.image).all() == (jitter is None)


def test_what_is_not_annotated_stays_so():
    image = coordinate_image(20, 20)
    out = Augment(10)(Sample(image), 0)
    assert out.mask is None
    assert out.boxes is None
    out = Augment(10)(Sample(image, boxes=np.zeros((0, 4))), 0)
    assert out.boxes.shape == (0, 4)
    assert out.boxes.dtype == np.float64


def test_boxes_without_extent_are_dropped_and_others_clipped():
    boxes = np.array([[5.0, 5, 5, 9], [4, 6, 30.5, 12], [2, 2, 2.5, 3]])
    out = Augment(None, hflip=1)(Sample(coordinate_image(20, 30), boxes=boxes), 0).boxes
    np.testing.assert_allclose(out, [[0, 6, 26, 12]], atol=1e-4)


def test_a_crop_larger_than_the_image_is_refused():
    sample = Sample(coordinate_image(20, 31), path="small.png")
    with pytest.raises(ValueError, match=r"crop 24x24 from small.png of 31x20 .*train_resize"):
        Augment(24)(sample, 0)
    assert Augment(20)(sample, 0).image.shape == (20, 20, 3)
    assert Augment([18, 31])(sample, 0).image.shape == (18, 31, 3)
    with pytest.raises(ValueError, match=r"crop 31x21 from small.png of 31x20"):
        Augment([21, 31])(sample, 0)


def test_masks_are_resized_as_opencv_does():
    rng = np.random.default_rng(0)
    pairs = [(522, 224), (775, 224), (453, 256), (1, 5), (5, 1), (224, 224)]
    pairs += [tuple(pair) for pair in rng.integers(1, 1200, (4000, 2)).tolist()]
    for old, new in pairs:
        row = np.arange(old, dtype=np.float32)[None]
        expected = cv2.resize(row, (new, 1), interpolation=cv2.INTER_NEAREST)
        assert (resize_mask(row, (1, new)) == expected).all(), (old, new)
        assert (resize_mask(row.T, (new, 1)) == expected.T).all(), (old, new)


@pytest.mark.parametrize("old", [(522, 775), (433, 574), (7, 9), (300, 100)])
@pytest.mark.parametrize("new", [(224, 224), (256, 256), (31, 64)])
def test_resized_masks_hold_the_same_values(old, new):
    mask = np.random.default_rng(1).choice(np.array([0, 1, 255], np.uint8), old)
    out = resize_mask(mask, new)
    assert out.dtype == np.uint8
    assert (out == cv2.resize(mask, new[::-1], interpolation=cv2.INTER_NEAREST)).all()


@pytest.mark.parametrize("old", [(52, 77), (335, 500), (20, 30), (64, 64)])
@pytest.mark.parametrize("new", [(64, 64), (33, 90)])
def test_images_are_resized_antialiased_as_torchvision_does(old, new):
    image = np.random.default_rng(2).integers(0, 256, (*old, 3), dtype=np.uint8)
    out = resize_image(image, new)
    assert out.dtype == np.uint8
    theirs = v2.Resize(new, antialias=True)(Image.fromarray(image))
    assert (out == np.asarray(theirs)).all()
    tensor = F.resize(torch.from_numpy(image).permute(2, 0, 1), list(new), antialias=True)
    difference = out.astype(int) - tensor.permute(1, 2, 0).numpy()
    assert abs(difference).max() <= 1


def test_the_box_of_the_protocol():
    boxes = resize_boxes(np.array([[60.0, 27, 385, 331]]), (335, 500), (224, 224))
    assert boxes.dtype == np.float64
    assert boxes.astype(int).tolist() == [[26, 18, 172, 221]]
    assert boxes[0, 2] == 385 * 224 / 500  # untruncated


def test_truncated_boxes_equal_the_published_ones_at_every_coordinate():
    """float32 would fall below an integer here and there, and lose a pixel by truncation."""
    for width in (96, 224, 333, 500, 775):
        x = np.arange(width + 1.0)
        boxes = resize_boxes(np.stack([x, 0 * x, x, x], 1), (width, width), (224, 224))
        assert boxes[:, 0].astype(int).tolist() == [int(v * 224 / width) for v in x.tolist()]
        assert boxes[-1].tolist() == [224, 0, 224, 224]


def test_resize_takes_all_along_at_two_factors():
    image = coordinate_image(20, 40)
    mask = np.zeros((20, 40), np.uint8)
    mask[4:8, 10:30] = 1
    sample = Sample(image, 2, mask, np.array([[10.0, 4, 30, 8]]), "g", "p", (200, 400))
    out = resize(sample, (40, 20))
    assert out.image.shape == (40, 20, 3)
    assert out.boxes.tolist() == [[5, 8, 15, 16]]
    rows, columns = np.nonzero(out.mask)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (5, 8, 15, 16)
    assert (out.label, out.group, out.path, out.size) == (2, "g", "p", (200, 400))
    assert sample.mask.shape == (20, 40)
    bare = resize(Sample(image), (10, 10))
    assert bare.mask is None
    assert bare.boxes is None


@pytest.mark.parametrize(
    ("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.5, 0.5, 0.5), (0.5, 0.25, 1.0))]
)
def test_normalisation_is_that_of_torchvision(mean, std):
    image = np.random.default_rng(3).integers(0, 256, (16, 18, 3), dtype=np.uint8)
    image[0, 0], image[0, 1] = 0, 255
    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    )
    expected = transform(image)
    out = normalize(torch.from_numpy(image).permute(2, 0, 1)[None], mean, std)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[0], torch.as_tensor(expected), rtol=0, atol=1e-6)
    assert out.shape == (1, 3, 16, 18)


def test_normalisation_of_clips_is_that_of_their_frames():
    clip = torch.randint(0, 256, (2, 5, 3, 6, 7), dtype=torch.uint8)
    out = normalize(clip, IMAGENET_MEAN, IMAGENET_STD)
    frames = normalize(clip.flatten(0, 1), IMAGENET_MEAN, IMAGENET_STD)
    assert torch.equal(out.flatten(0, 1), frames)
