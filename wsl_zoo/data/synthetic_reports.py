"""The built-in data for privileged reports: a few graded images, and reports on other tissue.

Made for CLIP-IT (Karimian et al., arXiv 2504.16181), which learns from reports of other patients.
The grade of an image is a bin of its severity (see `data/tissue.py`), floor(K s).

The few images to train on come from laboratories that saw grades unevenly: for most of them the
colour of the stain is that of their grade too (`confounding`), which is by far the easier cue. In
validation and test it tells nothing. Reports do not know the stain: they tell how many nuclei are
atypical, and what else is found. So the text that an image is paired with holds what its label
lacks: why it has its grade.

Images and reports are brought together by the features of a *simulated* CLIP.

Pretext: an encoder may first learn what tissue looks like, as a foundation model of pathology has,
from many images of its own, whose label is how many nuclei are atypical (few, some, many), how many
there are, and the hue of the stain, in thirds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.dataset import Source
from wsl_zoo.data.reports import Report
from wsl_zoo.data.synthetic import SPLIT_OFFSET, split_counts
from wsl_zoo.data.tissue import (
    WORDS,
    Tissue,
    clip_features,
    draw_tissue,
    render_tissue,
    write_report,
)
from wsl_zoo.data.transforms import Sample

Task = Literal["grade", "pretext"]
# Beside the splits of the grade: images of the pretext, tissues of the reports, and prompts.
PRETEXT_OFFSET, REPORT_OFFSET, PROMPT_OFFSET = 100_000_000, 200_000_000, 300_000_000
PROMPTS = 8  # of a grade
CONFOUNDED = 4  # a stream of random numbers apart from those of `data/tissue.py`
FEW, SOME = 5.47, 10.98  # atypical nuclei that a third, and two thirds, of all tissues are below
THIRDS = {
    "atypical": ("few", "some", "many"),
    "density": ("sparse", "medium", "dense"),
    "hue": ("pink", "mauve", "violet"),
}


def graded_tissue(
    index: int, seed: int, classes: int, confounding: float = 0.0
) -> tuple[Tissue, int]:
    """Return tissue `index` and its grade, floor(K s); grades of successive indices go round.

    Args:
        index: Which.
        seed: Of all of them.
        classes: Grades K.
        confounding: Probability that the hue lies in the bin of the grade, floor(K hue).
    """
    tissue, grade = draw_tissue(index, seed), index % classes
    tissue = replace(tissue, severity=(grade + tissue.severity) / classes)
    if np.random.default_rng((seed, index, CONFOUNDED)).uniform() < confounding:
        tissue = replace(tissue, hue=(grade + tissue.hue) / classes)
    return tissue, grade


def pretext_tissue(index: int, seed: int) -> tuple[Tissue, int]:
    """Return tissue `index` and its label, 9 of the atypical nuclei + 3 of density + of the hue."""
    tissue = draw_tissue(index, seed)
    atypical = tissue.nuclei * tissue.severity
    first = int(atypical >= FEW) + int(atypical >= SOME)
    return tissue, 9 * first + 3 * int(3 * tissue.density) + int(3 * tissue.hue)


class TissueSource:
    """Images of a range of indices.

    Args:
        count: How many.
        offset: Index of the first.
        seed: Of all tissue.
        size: Side in pixels.
        task: What the label is.
        classes: Grades K; see `graded_tissue`, as of the next one.
        confounding: See there.
    """

    has_masks = False
    has_boxes = False

    def __init__(
        self,
        count: int,
        offset: int,
        seed: int,
        size: int,
        task: Task,
        classes: int,
        confounding: float = 0.0,
    ) -> None:
        self.count = count
        self.offset = offset
        self.seed = seed
        self.size = size
        self.task: Task = task
        self.classes = classes
        self.confounding = confounding

    def __len__(self) -> int:
        return self.count

    @property
    def indices(self) -> range:
        """Indices of the tissue, in order."""
        return range(self.offset, self.offset + self.count)

    @property
    def paths(self) -> list[str]:
        """What the images are called, in order."""
        return [f"tissue {index}" for index in self.indices]

    def tissue(self, index: int) -> tuple[Tissue, int]:
        """Return tissue `index` and its label."""
        if self.task == "pretext":
            return pretext_tissue(index, self.seed)
        return graded_tissue(index, self.seed, self.classes, self.confounding)

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Render image `index`."""
        if not 0 <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        place = self.offset + index
        tissue, label = self.tissue(place)
        image = render_tissue(tissue, place, self.seed, self.size)
        return Sample(image, label, path=f"tissue {place}", size=(self.size, self.size))


class SyntheticReportsData(ZooDataModule):
    """Few graded images of tissue, and a corpus of reports on other tissues.

    The features of both are simulated from what they were made of: see `data/tissue.py`. At the
    default noise and number of reports, the report nearest to an image has another severity by
    0.02 (median) and another density, fibrosis and inflammation by 0.07; those of any report differ
    by 0.3.

    Args:
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.
        classes: Number K of grades.
        reports: Number M of reports.
        text_dim: Length D of features.
        noise: How imperfect the simulated CLIP is: see `clip_features`.
        confounding: Part of the training images whose stain is coloured as their grade, in [0, 1];
            that of the others, and of all other splits, has any colour.
        task: "grade", or "pretext": 27 classes of other images, to train an encoder by.
        scene_seed: Seed of images and reports (apart from `seed`, so that runs share their data).
        image_size: Side of the images in pixels.
        cache: Keep rendered images in memory.
        **kwargs: See `ZooDataModule`.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        train: int = 128,
        val: int = 100,
        test: int = 400,
        classes: int = 2,
        reports: int = 2000,
        text_dim: int = 64,
        noise: float = 0.5,
        confounding: float = 0.8,
        task: Task = "grade",
        scene_seed: int = 0,
        image_size: int = 48,
        cache: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, cache=cache, **kwargs)
        if classes < 2:
            raise ValueError(f"classes={classes}: there must be two grades at least")
        if task not in get_args(Task):
            raise ValueError(f'task={task!r} must be "grade" or "pretext"')
        for name, value, least in (("reports", reports, 1), ("text_dim", text_dim, 8)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if not 0 <= noise < float("inf"):
            raise ValueError(f"noise={noise} must be 0 or more, and finite")
        if not 0 <= confounding <= 1:
            raise ValueError(f"confounding={confounding} must be in [0, 1]")
        self.classes = classes
        self.reports = reports
        self.text_dim = text_dim
        self.noise = noise
        self.confounding = confounding
        self.task: Task = task
        self.scene_seed = scene_seed
        self.counts = split_counts(self.num_classes, train=train, val=val, test=test)

    @property
    def class_names(self) -> list[str]:
        """The grades, from "grade 0" on, or what the pretext asks for: "few sparse pink"."""
        if self.task == "grade":
            return [f"grade {k}" for k in range(self.classes)]
        return [" ".join(words) for words in product(*THIRDS.values())]

    def read(self) -> dict[str, Source]:
        """Return a source per split."""
        return {split: self._source(split) for split in self.counts}

    def _source(self, split: str) -> TissueSource:
        offset = SPLIT_OFFSET[split] + (PRETEXT_OFFSET if self.task == "pretext" else 0)
        return TissueSource(
            self.counts[split],
            offset,
            self.scene_seed,
            max(self.train_size),
            self.task,
            self.classes,
            self.confounding if split == "train" else 0.0,
        )

    def corpus(self) -> tuple[list[Report], Tensor]:
        """Return the reports, and their simulated features (M, D) float32 of unit length.

        They are of tissues of their own, uniform in all attributes, that no image shows.
        """
        indices = range(REPORT_OFFSET, REPORT_OFFSET + self.reports)
        tissues = [draw_tissue(i, self.scene_seed) for i in indices]
        texts = [
            write_report(tissue, np.random.default_rng((self.scene_seed, i, WORDS)))
            for tissue, i in zip(tissues, indices, strict=True)
        ]
        reports = [Report(text, f"report {j}") for j, text in enumerate(texts)]
        return reports, self._features(tissues, indices)

    def prompt_features(self) -> Tensor:
        """Return the simulated features (K, 8, D) of prompts, e.g. "tissue of grade 1".

        A prompt knows its grade and nothing else: the eight of a grade are of severities evenly
        spread over it, the other attributes in the middle of their range.

        Raises:
            ValueError: The task is the pretext, whose classes no prompt is made for.
        """
        if self.task != "grade":
            raise ValueError(f"task={self.task!r}: there are prompts of grades only")
        middle = Tissue(*[0.5] * len(fields(Tissue)))
        places = range(PROMPT_OFFSET, PROMPT_OFFSET + self.classes * PROMPTS)
        spread = (np.arange(len(places)) + 0.5) / len(places)
        tissues = [replace(middle, severity=float(severity)) for severity in spread]
        return self._features(tissues, places).view(self.classes, PROMPTS, self.text_dim)

    def image_features(self, split: str) -> Tensor:
        """Return the simulated features (N, D) float32 of a split's images, in order.

        Raises:
            ValueError: There is no such split.
        """
        if split not in self.counts:
            raise ValueError(f"split={split!r} must be one of {', '.join(self.counts)}")
        source = self._source(split)
        return self._features([source.tissue(i)[0] for i in source.indices], source.indices)

    def _features(self, tissues: Sequence[Tissue], indices: Sequence[int]) -> Tensor:
        return clip_features(tissues, indices, self.scene_seed, self.text_dim, self.noise)
