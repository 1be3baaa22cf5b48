"""The built-in exams as mammograms: each visit of `histories.py` drawn as four small views.

The numbers u of a visit are seen as tissue and marks:

| number | in the image |
|---|---|
| u0 | a lesion in the left breast, Gaussian, of amplitude 0.30 sigmoid(u0), both views |
| u1 | the brightness of the tissue, 0.25 + 0.10 tanh(u1), in blocks that vary by 0.05 |
| u2, u3 | two small marks in fixed corners of all views, of amplitudes 0.15 u2 and 0.15 u3 |

A breast is half an ellipse at the chest wall, the left edge of a left view; MLO views show the
pectoral muscle too. Right views are mirrored, as real ones are. Everything has noise of 0.02.

The marks lie outside the breast, where the image is black and what is negative would be cut off:
each therefore stands on a grey plate, as the lead letters of real films do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsl_zoo.data.exam_table import VIEWS, Anchor, Exam, write_anchors
from wsl_zoo.data.histories import Histories

RADII = {"CC": (0.46, 0.80), "MLO": (0.48, 0.72)}  # of the breast, in heights and widths
TISSUE, TISSUE_CHANGE, BLOCK_NOISE = 0.25, 0.10, 0.05
BLOCK = 8  # pixels
PECTORAL = 0.70
PECTORAL_SIZE = (0.45, 0.35)  # in heights and widths
LESION, LESION_SIGMA = 0.30, 3.0
LESION_PLACE = 0.6  # of the radii, within which it lies
PLATE, PLATE_SIZE = 0.5, 0.08  # grey, and half its side in heights
MARK, MARK_SIGMA = 0.15, 1.5
MARKS = ((0.10, 0.88), (0.90, 0.88))  # (row, column), in heights and widths
NOISE = 0.02
WHITE = 65_535

Floats = NDArray[np.floating]


def render_exams(numbers: Floats, seed: int | tuple[int, ...], size: tuple[int, int]) -> Floats:
    """Draw the exams of a woman.

    Args:
        numbers: u (M, 8) of her exams.
        seed: Seed; the lesion keeps its place in all of them.
        size: (height, width) in pixels.

    Returns:
        (M, 4, H, W) float32 in [0, 1], views in the order of `VIEWS`, right ones mirrored.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    count = len(numbers)
    image = np.zeros((count, len(VIEWS), height, width))
    angle, radius = rng.uniform(-np.pi / 2, np.pi / 2), LESION_PLACE * np.sqrt(rng.uniform())
    amplitudes = np.asarray(numbers, np.float64)[:, :, None, None]
    for v, view in enumerate(VIEWS):
        side, position = view.split("_")
        across, deep = (r * n for r, n in zip(RADII[position], size, strict=True))
        breast = ((rows - height / 2) / across) ** 2 + (columns / deep) ** 2 < 1
        blocks = rng.standard_normal((count, -(-height // BLOCK), -(-width // BLOCK)))
        blocks = blocks.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)[:, :height, :width]
        tissue = TISSUE + TISSUE_CHANGE * np.tanh(amplitudes[:, 1]) + BLOCK_NOISE * blocks
        if side == "L":
            place = height / 2 + radius * across * np.sin(angle), radius * deep * np.cos(angle)
            lesion = _blob(rows, columns, place, LESION_SIGMA)
            tissue = tissue + LESION / (1 + np.exp(-amplitudes[:, 0])) * lesion
        drawn = tissue * breast
        if position == "MLO":
            muscle = rows / (PECTORAL_SIZE[0] * height) + columns / (PECTORAL_SIZE[1] * width) < 1
            drawn = np.where(muscle, PECTORAL, drawn)
        for k, (row, column) in enumerate(MARKS):
            place = row * height, column * width
            far = np.maximum(abs(rows - place[0]), abs(columns - place[1]))
            mark = MARK * amplitudes[:, 2 + k] * _blob(rows, columns, place, MARK_SIGMA)
            drawn = np.where(far <= PLATE_SIZE * height, PLATE + mark, drawn)
        image[:, v] = drawn
    image = (image + NOISE * rng.standard_normal(image.shape)).clip(0, 1)
    right = [v for v, view in enumerate(VIEWS) if view.startswith("R")]
    image[:, right] = image[:, right, :, ::-1]
    return image.astype(np.float32)


def _blob(rows: Floats, columns: Floats, place: tuple[float, float], sigma: float) -> Floats:
    """Return a Gaussian (H, W) of height 1."""
    square = (rows - place[0]) ** 2 + (columns - place[1]) ** 2
    return np.asarray(np.exp(-square / (2 * sigma**2)))


def write_mammograms(
    folder: str | Path,
    splits: Mapping[str, Histories],
    size: tuple[int, int] = (64, 48),
    seed: int = 0,
) -> Path:
    """Draw women and write their exams as `CSAWCCData` reads them.

    Images are `images/<split>/<woman>/<year>_<view>.png`, grey of 16 bits, 8 kB each.

    Args:
        folder: Where to; files that are there are replaced.
        splits: Women of "train", "val" and "test".
        size: (height, width) in pixels.
        seed: Seed of what the numbers u leave open.

    Returns:
        The table, `table.csv`, which is written last.
    """
    folder = Path(folder)
    anchors: list[Anchor] = []
    for s, (split, women) in enumerate(splits.items()):
        for n, there in enumerate(women.exam_mask):
            own = folder / "images" / split / str(n)
            own.mkdir(parents=True, exist_ok=True)
            images = render_exams(women.numbers[n, there], (seed, s, n), size)
            exams: list[Exam] = [(None,) * len(VIEWS) for _ in there]
            for t, views in zip(np.flatnonzero(there), images, strict=True):
                exams[t] = tuple(own / f"{t + 1 - len(there)}_{view}.png" for view in VIEWS)
                for file, view in zip(exams[t], views, strict=True):
                    assert file is not None
                    pixels = np.round(view * WHITE).astype(np.uint16)
                    file.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
            time, event = float(women.time[n]), bool(women.event[n])
            name = f"{split}_{n}"
            anchors.append(Anchor(name, f"{name}_0", tuple(exams), time, event, split))
    return write_anchors(folder / "table.csv", anchors)
