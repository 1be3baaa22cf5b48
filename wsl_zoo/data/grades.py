"""Procedural images of an ordinal grade: tissue that becomes crowded, coarse and dark by degrees.

A hidden severity u in [0, 1] is uniform over the grades, rank = floor(K u). It is seen only through
three cues, each with noise of its own: how many nuclei there are, how large and how dark they are.
A fourth of the range of each cue is noise, so that neighbouring ranks overlap and distant ones do
not, as grades of experts do. Colour of the stain, focus and the texture of the ground say nothing.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.dataset import Source
from wsl_zoo.data.scenes import ground
from wsl_zoo.data.synthetic import SPLIT_OFFSET, split_counts
from wsl_zoo.data.transforms import Sample

CUE_NOISE = 0.12  # deviation of a cue, in units of u
NUCLEI = (4.0, 34.0)  # in an image, from u = 0 to 1
RADIUS = (0.035, 0.075)  # relative to the side
DARKNESS = (0.25, 0.75)


def render_grade(
    index: int, seed: int, size: int, num_classes: int
) -> tuple[NDArray[np.uint8], int]:
    """Return one image (H, W, 3) uint8 and its rank; the rank of successive indices goes round.

    Args:
        index: Which image.
        seed: Of all of them.
        size: Side in pixels.
        num_classes: Ranks K.
    """
    rng = np.random.default_rng((seed, index))
    rank = index % num_classes
    severity = (rank + rng.uniform()) / num_classes
    crowd, coarse, dark = np.clip(severity + rng.normal(0, CUE_NOISE, 3), -0.1, 1.1)
    count = max(1, round(_between(NUCLEI, crowd)))
    fine = 4  # drawn at four times the size, so that edges are smooth
    nuclei = np.zeros((size * fine, size * fine), np.float32)
    for _ in range(count):
        radius = _between(RADIUS, coarse) * size * fine * rng.uniform(0.75, 1.25)
        center = rng.uniform(0, size * fine, 2)
        axes = (radius * rng.uniform(0.7, 1.0), radius)
        depth = float(np.clip(_between(DARKNESS, dark) + rng.normal(0, 0.06), 0.05, 1.0))
        box = (tuple(map(float, center)), tuple(2 * a for a in axes), float(rng.uniform(0, 180)))
        shape = np.zeros_like(nuclei)
        cv2.ellipse(shape, box, depth, -1)
        np.maximum(nuclei, shape, out=nuclei)
    covered = cv2.resize(nuclei, (size, size), interpolation=cv2.INTER_AREA)
    pale = np.array([236, 208, 222]) + rng.normal(0, 10, 3)
    ink = np.array([88, 56, 128]) + rng.normal(0, 14, 3)
    tissue = pale + 7.0 * ground(rng, size)[:, :, None] * np.array([0.7, 1.0, 0.8])
    image = tissue + (ink - tissue) * covered[:, :, None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.0))
    image += rng.normal(0, 3.0, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), rank


def _between(ends: tuple[float, float], at: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * at


class GradeSource:
    """Images of a range of indices.

    Args:
        count: How many.
        offset: Index of the first.
        seed: See `render_grade`, as of the next two.
        size: See there.
        num_classes: See there.
    """

    has_masks = False
    has_boxes = False

    def __init__(self, count: int, offset: int, seed: int, size: int, num_classes: int) -> None:
        self.count = count
        self.offset = offset
        self.seed = seed
        self.size = size
        self.num_classes = num_classes

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Render image `index`."""
        if not 0 <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        place = self.offset + index
        image, rank = render_grade(place, self.seed, self.size, self.num_classes)
        return Sample(image, rank, path=f"grade {place}", size=(self.size, self.size))


class SyntheticGradesData(ZooDataModule):
    """Images of tissue whose grade is how crowded, coarse and dark it is.

    Args:
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.
        classes: Number K of grades.
        scene_seed: Seed of the images (apart from `seed`, so that runs share their data).
        image_size: Side of the images in pixels.
        cache: Keep rendered images in memory.
        **kwargs: See `ZooDataModule`.
    """

    def __init__(
        self,
        train: int = 600,
        val: int = 200,
        test: int = 600,
        classes: int = 8,
        scene_seed: int = 0,
        image_size: int = 48,
        cache: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, cache=cache, **kwargs)
        if classes < 2:
            raise ValueError(f"classes={classes}: there must be two grades at least")
        self.counts = split_counts(classes, train=train, val=val, test=test)
        self.classes = classes
        self.scene_seed = scene_seed

    @property
    def class_names(self) -> list[str]:
        """The grades, from "grade 0" on."""
        return [f"grade {k}" for k in range(self.classes)]

    def read(self) -> dict[str, Source]:
        """Return a source per split."""
        size = max(self.train_size)
        return {
            split: GradeSource(count, SPLIT_OFFSET[split], self.scene_seed, size, self.classes)
            for split, count in self.counts.items()
        }
