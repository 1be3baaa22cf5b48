"""Procedural fluorescence micrographs in pairs, rendered when asked for; no files.

Cells lie on a dim ground. A cell is a faint body, a mottled nucleus, filaments that wind away from
it and vesicles around it. Lengths are in pixels of the target, so that a larger image shows more
cells; filaments and vesicles are so fine that a scan at 1/s of the resolution blurs them. The image
is such a scan: the target, blurred and averaged over s x s pixels, with shot noise and read noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from wsl_zoo.data.pairs import PairDataModule, PairSource
from wsl_zoo.data.synthetic import SPLIT_OFFSET

NOISE_STREAM = 1  # apart from the numbers that the cells of the same seed and index are drawn from
CELL_AREA = 56.0**2  # square pixels of the field per cell
RADIUS = (15.0, 23.0)  # of a cell
GROUND = 1.2  # grey level of the ground, below the 4 from which benchmarks count cells
FRACTION = 4  # bits of coordinates behind the point, for OpenCV
POINT_SPREAD = 0.7  # deviation of the target's blur, in its pixels
SCAN_SPREAD = 0.35  # deviation of the blur before averaging, in pixels of the image
PHOTONS = 4.0  # per grey level
READ_NOISE = 0.5  # deviation, in grey levels


def render_micrograph(index: int, seed: int, side: int) -> np.ndarray:
    """Return one field (1, H, W) uint8.

    Args:
        index: Which.
        seed: Of all of them.
        side: In pixels.
    """
    rng = np.random.default_rng((seed, index))
    body, nuclei, fine = (np.zeros((side, side), np.uint8) for _ in range(3))
    for _ in range(max(1, round(side**2 / CELL_AREA * rng.uniform(0.8, 1.4)))):
        _draw_cell(rng, side, body, nuclei, fine)
    mottled = 0.75 + 0.5 * _smooth(rng, side, side / 5)
    field: np.ndarray = GROUND * (0.5 + _smooth(rng, side, side / 24))
    field += cv2.GaussianBlur(body, (0, 0), 2.5)
    field += mottled * cv2.GaussianBlur(nuclei, (0, 0), 1.0)
    field = cv2.GaussianBlur(np.maximum(field, fine), (0, 0), POINT_SPREAD)
    return np.rint(field).clip(0, 255).astype(np.uint8)[None]


def scan(field: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    """Return a scan (1, H/s, W/s) uint8 of a field (1, H, W) uint8 at 1/s of its resolution."""
    blurred = cv2.GaussianBlur(field[0].astype(np.float32), (0, 0), SCAN_SPREAD * scale)
    height, width = blurred.shape
    mean = blurred.reshape(height // scale, scale, width // scale, scale).mean(axis=(1, 3))
    seen = rng.poisson(PHOTONS * mean) / PHOTONS + rng.normal(0, READ_NOISE, mean.shape)
    return np.rint(seen).clip(0, 255).astype(np.uint8)[None]


def _smooth(rng: np.random.Generator, side: int, cells: float) -> np.ndarray:
    """Return smooth noise (side, side) float32 in [0, 1], of so many grains per side."""
    grains = max(2, round(cells))
    coarse = rng.random((grains, grains), dtype=np.float32)
    enlarged: np.ndarray = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR)
    return enlarged


def _draw_cell(
    rng: np.random.Generator, side: int, body: np.ndarray, nuclei: np.ndarray, fine: np.ndarray
) -> None:
    """Draw a cell into the layers (side, side) uint8 of bodies, nuclei and fine structures."""
    centre = rng.uniform(0, side, 2)
    radius, light = rng.uniform(*RADIUS), rng.uniform(60, 170)
    angle = rng.uniform(0, 180)
    for layer, size, level in ((body, 1.0, 0.12), (nuclei, 0.42, 0.55)):
        axes = radius * size * rng.uniform(0.75, 1.0, 2)
        box = (tuple(map(float, centre)), tuple(map(float, 2 * axes)), float(angle))
        cv2.ellipse(layer, box, round(level * light), -1, cv2.LINE_AA)
    count = int(rng.integers(5, 10))
    turns = rng.uniform(0, 2 * np.pi, (count, 1)) + rng.normal(0, 0.35, (count, 8)).cumsum(axis=1)
    steps = radius / 6 * np.stack([np.cos(turns), np.sin(turns)], axis=2)
    lines = centre + 1.5 * steps[:, :1] + steps.cumsum(axis=1)  # they start inside the nucleus
    cv2.polylines(fine, list(_fixed(lines)), False, round(light), 1, cv2.LINE_AA, FRACTION)
    count = int(rng.integers(5, 12))
    around = rng.uniform(0, 2 * np.pi, count)
    far = radius * rng.uniform(0.45, 1.0, count)
    places = centre + far[:, None] * np.stack([np.cos(around), np.sin(around)], axis=1)
    levels = np.minimum(255, light * rng.uniform(0.9, 1.5, count))
    sizes = rng.uniform(0.5, 1.8, count)
    for place, own, level in zip(_fixed(places), _fixed(sizes), levels.tolist(), strict=True):
        point = (int(place[0]), int(place[1]))
        cv2.circle(fine, point, int(own), round(level), -1, cv2.LINE_AA, FRACTION)


def _fixed(lengths: np.ndarray) -> np.ndarray:
    """Return lengths in pixels as the integers that OpenCV takes, of `FRACTION` bits more."""
    return np.rint(lengths * (1 << FRACTION)).astype(np.int32)


class MicrographSource:
    """Fields of a range of indices, each with its scan.

    Args:
        count: How many.
        offset: Index of the first.
        seed: Of the fields.
        side: Of the target, in pixels.
        scale: s.
    """

    has_masks = False
    has_boxes = False

    def __init__(self, count: int, offset: int, seed: int, side: int, scale: int) -> None:
        self.count = count
        self.offset = offset
        self.seed = seed
        self.side = side
        self.scale = scale

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Render the scan (1, h, w) and the field (1, sh, sw) at position `index`."""
        if not 0 <= index < self.count:
            raise IndexError(f"micrograph {index} of {self.count}")
        number = self.offset + index
        field = render_micrograph(number, self.seed, self.side)
        rng = np.random.default_rng((self.seed, number, NOISE_STREAM))
        return scan(field, self.scale, rng), field

    def path(self, index: int) -> str:
        """Return the name of the field."""
        return f"micrograph-{self.offset + index}"

    def group(self, index: int) -> str:
        """Return nothing: fields belong together in no way."""
        return ""


class SyntheticPairsData(PairDataModule):
    """Procedural fluorescence micrographs of cells, in pairs.

    Args:
        train: Number of training pairs.
        val: Number of validation pairs.
        test: Number of test pairs.
        side: Of the targets, in pixels, a multiple of the scale.
        scale: How many times larger a target is than its image: 2, 4 or 8.
        crop_size: Side of the training crop of the target, a multiple of the scale; None: whole
            images.
        scene_seed: Seed of the fields (apart from `seed`, so that runs share their data).
        cache: Keep rendered pairs in memory.
        **kwargs: See `PairDataModule`; `degradation` changes nothing here.
    """

    def __init__(
        self,
        train: int = 200,
        val: int = 20,
        test: int = 40,
        side: int = 128,
        scale: int = 2,
        crop_size: int | None = 64,
        scene_seed: int = 0,
        cache: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(scale=scale, crop_size=crop_size, cache=cache, **kwargs)
        self.counts = {"train": train, "val": val, "test": test}
        if min(self.counts.values()) < 1:
            sizes = ", ".join(f"{split}={count}" for split, count in self.counts.items())
            raise ValueError(f"{sizes}: every split needs a pair at least")
        least = max(scale, crop_size or 0, self.eval_crop or 0)
        if side < least or side % scale:
            raise ValueError(f"side={side} must be a multiple of scale={scale}, {least} or more")
        if self.channels != 1:
            raise ValueError(f"channels={self.channels}: these images have 1, grey")
        self.side = side
        self.scene_seed = scene_seed

    def read(self) -> Mapping[str, PairSource]:  # type: ignore[override]
        """Return a source per split."""
        return {
            split: MicrographSource(
                count, SPLIT_OFFSET[split], self.scene_seed, self.side, self.scale
            )
            for split, count in self.counts.items()
        }
