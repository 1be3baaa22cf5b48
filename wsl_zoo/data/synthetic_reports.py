"""Procedural images of tissue, and reports that belong to none of them: a trial of CLIP-IT.

Paper: Karimian et al., "CLIP-IT: CLIP-based Pairing for Histology Images Classification", 2025
(arXiv 2504.16181), which learns from reports of other patients.

A tissue has nine attributes, uniform in [0, 1]. The severity s is the share of atypical nuclei,
which are larger, darker and irregular; the grade of an image is a bin of it, floor(K s). The others
change the look at least as strongly: density of cells, fibrosis, inflammation (small dark dots),
hue and strength of the stain, size of normal nuclei, light and focus. A report tells the first four
only (`TOLD`): the severity as a number, the others as words.

The CLIP is simulated; nothing reads the text or the pixels. Both of its towers map the true values
a of `TOLD` by the same random Fourier features (Rahimi and Recht, NIPS 2007),

    f_d = sqrt(2 / D) cos(g_d . w (2a - 1) + b_d),   g ~ N(0, I),   b uniform in [0, 2 pi],

whose products approach exp(-|2 w (a - a')|^2 / 2), and add noise of their own to every image and
report: u = normalize(f + noise e / sqrt(D)), e ~ N(0, I). g and b are the same for every data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.dataset import Source
from wsl_zoo.data.reports import Report
from wsl_zoo.data.scenes import ground
from wsl_zoo.data.scenes import noise as smooth_noise
from wsl_zoo.data.synthetic import SPLIT_OFFSET, split_counts
from wsl_zoo.data.transforms import Sample

Task = Literal["grade", "pretext"]
Floats = NDArray[np.floating]

TOLD = ("severity", "density", "fibrosis", "inflammation")
WEIGHTS = (2.0, 1.0, 0.8, 0.8)  # w: how much of the features each of them makes
CONSTANTS = 20_250_416  # seed of what does not change: g and b
# Beside the splits of the grade: images of the pretext, and tissues of the reports.
PRETEXT_OFFSET, REPORT_OFFSET = 100_000_000, 200_000_000
ATTRIBUTES, LOOK, NOISE, WORDS = range(4)  # streams of random numbers of one index
PRETEXT_BINS = 3  # of the hue and of the density each

FINE = 4  # drawn at four times the size, so that edges are smooth
GRID = 5  # nuclei lie in cells of a grid, one in each: they do not hide one another
NUCLEI = (10, 25)  # in an image, from density 0 to 1
DOTS = 10  # inflammatory cells at inflammation 1
RADIUS = 0.036  # of a normal nucleus, relative to the side; times what follows
SIZE = (0.85, 1.25)
ATYPICAL_SIZE, ATYPICAL_DEPTH, IRREGULARITY = 1.7, 1.6, 0.28
# Optical densities of red, green and blue, at hue 0 (pink) and 1 (violet).
PALE = np.array([[0.05, 0.22, 0.12], [0.16, 0.22, 0.06]])
STROMA = np.array([[0.05, 0.45, 0.22], [0.22, 0.45, 0.12]])
INK = np.array([[0.75, 1.5, 0.6], [1.3, 1.4, 0.45]])

SEVERITY_TEXT = (
    "Nuclear atypia in approximately {} % of cells.",
    "About {} % of the nuclei are enlarged, hyperchromatic and irregular.",
    "Atypical nuclei make up {} % of the cell population.",
)
# Words of four equal parts of [0, 1], and phrasings that take them.
GRADED: dict[str, tuple[tuple[str, str, str, str], tuple[str, ...]]] = {
    "density": (
        ("low", "moderate", "high", "very high"),
        ("Cellularity is {}.", "The tissue shows {} cellularity.", "Cell density: {}."),
    ),
    "fibrosis": (
        ("hardly", "mildly", "moderately", "markedly"),
        ("The stroma is {} fibrotic.", "There is {} fibrotic stroma.", "Stroma {} fibrotic."),
    ),
    "inflammation": (
        ("minimal", "mild", "moderate", "dense"),
        ("A {} lymphocytic infiltrate is seen.", "Inflammation is {}.", "Infiltrate: {}."),
    ),
}


@dataclass(frozen=True, slots=True)
class Tissue:
    """What an image or a report is made of, each in [0, 1].

    Attributes:
        severity: Share s of atypical nuclei.
        density: Of cells.
        fibrosis: Share of the ground that is fibrous.
        inflammation: Amount of inflammatory cells.
        hue: Of the stain, from pink to violet.
        strength: Of the stain.
        size: Of normal nuclei.
        light: Brightness of the picture.
        focus: 1 is sharp.
    """

    severity: float
    density: float
    fibrosis: float
    inflammation: float
    hue: float
    strength: float
    size: float
    light: float
    focus: float

    @property
    def told(self) -> list[float]:
        """The values of `TOLD`."""
        return [getattr(self, name) for name in TOLD]


def draw_tissue(index: int, seed: int) -> Tissue:
    """Return tissue `index` of a seed, all of its attributes uniform."""
    rng = np.random.default_rng((seed, index, ATTRIBUTES))
    return Tissue(*rng.uniform(size=len(fields(Tissue))).tolist())


def labelled_tissue(index: int, seed: int, task: Task, classes: int) -> tuple[Tissue, int]:
    """Return tissue `index` and its label; the labels of successive indices go round.

    Args:
        index: Which.
        seed: Of all of them.
        task: "grade": the label is floor(K severity). "pretext": 3 times the third that the hue
            lies in, plus that of the density.
        classes: Grades K.
    """
    tissue = draw_tissue(index, seed)
    if task == "grade":
        label = index % classes
        return replace(tissue, severity=(label + tissue.severity) / classes), label
    hue, density = divmod(index % PRETEXT_BINS**2, PRETEXT_BINS)
    tissue = replace(
        tissue,
        hue=(hue + tissue.hue) / PRETEXT_BINS,
        density=(density + tissue.density) / PRETEXT_BINS,
    )
    return tissue, hue * PRETEXT_BINS + density


def render_tissue(tissue: Tissue, index: int, seed: int, size: int) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) uint8 of a tissue.

    Args:
        tissue: What it shows.
        index: With `seed`, fixes what the attributes leave open.
        seed: See there.
        size: Side in pixels.
    """
    rng = np.random.default_rng((seed, index, LOOK))
    nuclei = _nuclei(rng, tissue, size * FINE)
    covered = cv2.resize(nuclei, (size, size), interpolation=cv2.INTER_AREA)[:, :, None]
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:size, :size] / size
    turns = 5 * (x * np.cos(angle) + y * np.sin(angle)) + 0.6 * smooth_noise(rng, size, 3)
    fibres = np.clip(np.sin(2 * np.pi * turns) + 2 * tissue.fibrosis - 1, 0, 1)[:, :, None]
    depth = _between(PALE, tissue.hue) * (1 + 0.15 * ground(rng, size)[:, :, None])
    depth = depth + _between(STROMA, tissue.hue) * fibres + _between(INK, tissue.hue) * covered
    image = 255 * np.exp(-depth * _between((0.5, 1.15), tissue.strength))
    image = image * _between((0.8, 1.0), tissue.light)
    image = cv2.GaussianBlur(image, (0, 0), float(_between((0.9, 0.35), tissue.focus)))
    image += rng.normal(0, 4.0, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def _between(ends: Sequence[float] | Floats, at: float) -> Any:
    return ends[0] + (ends[1] - ends[0]) * at


def _nuclei(rng: np.random.Generator, tissue: Tissue, side: int) -> NDArray[np.float32]:
    """Return how dark nuclei and dots are, (side, side), 0 where there are none."""
    count, dots = round(_between(NUCLEI, tissue.density)), round(DOTS * tissue.inflammation)
    # Whole nuclei are atypical, and one in part, so that their share is the severity.
    atypical = np.clip(count * tissue.severity - np.arange(count), 0, 1)
    vary = rng.uniform(0.9, 1.1, (2, count))
    normal = RADIUS * side * _between(SIZE, tissue.size)
    radius = normal * (1 + (ATYPICAL_SIZE - 1) * atypical) * vary[0]
    radius = np.append(radius, np.full(dots, 0.02 * side))
    depth = np.append(0.55 * (1 + (ATYPICAL_DEPTH - 1) * atypical) * vary[1], np.ones(dots))
    bumpy = np.append(IRREGULARITY * atypical, np.zeros(dots))
    cell = rng.permutation(GRID**2)[:count]
    corner = np.stack([cell % GRID, cell // GRID], axis=1)
    centre = (corner + rng.uniform(0.28, 0.72, (count, 2))) * side / GRID
    infiltrate = rng.uniform(0, side, 2) + rng.normal(0, 0.18 * side, (dots, 2))
    centre = np.concatenate([centre, infiltrate % side])
    outline = _outlines(rng, radius, bumpy) + centre[:, None]
    canvas = np.zeros((side, side), np.float32)
    for k in np.argsort(depth, kind="stable"):  # the darkest on top
        points = np.rint(outline[k] * 16).astype(np.int32)
        cv2.fillPoly(canvas, [points], float(depth[k]), shift=4)
    return canvas


def _outlines(rng: np.random.Generator, radius: Floats, bumpy: Floats) -> Floats:
    """Return outlines (n, 20, 2) around 0 of ellipses with bumps, in random directions."""
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    flat = rng.uniform(0.75, 1.0, (len(radius), 1))
    turn = rng.uniform(0, 2 * np.pi, (len(radius), 3, 1))
    waves = np.cos(np.array([2, 3, 4])[:, None] * angle + turn).mean(axis=1)
    length = radius[:, None] * (1 + bumpy[:, None] * waves)
    x, y = length * np.cos(angle), length * flat * np.sin(angle)
    cos, sin = np.cos(turn[:, 0]), np.sin(turn[:, 0])
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=2)


def write_report(tissue: Tissue, rng: np.random.Generator) -> str:
    """Return a text that tells `TOLD`: the severity in per cent, the only number, others in words.

    Args:
        tissue: What it tells of.
        rng: Chooses the phrasings and the order of the sentences.
    """
    sentences = [str(rng.choice(SEVERITY_TEXT)).format(round(100 * tissue.severity))]
    for name, (words, phrasings) in GRADED.items():
        word = words[min(3, int(4 * getattr(tissue, name)))]
        sentences.append(str(rng.choice(phrasings)).format(word))
    return " ".join(sentences[i] for i in rng.permutation(len(sentences)))


def clip_features(
    tissues: Sequence[Tissue], indices: Sequence[int], seed: int, dim: int, noise: float
) -> Tensor:
    """Return the simulated features (N, D) float32 of unit length, of images or of reports.

    Args:
        tissues: N tissues.
        indices: N indices, which with `seed` fix the noise.
        seed: See there.
        dim: Features D.
        noise: Length of the noise relative to that of f; cos(u, f) is near 1 / sqrt(1 + noise^2).
    """
    constants = np.random.default_rng((CONSTANTS, dim))
    directions = constants.standard_normal((len(TOLD), dim)) * np.array(WEIGHTS)[:, None]
    phases = constants.uniform(0, 2 * np.pi, dim)
    told = np.array([tissue.told for tissue in tissues])
    clean = np.sqrt(2 / dim) * np.cos((2 * told - 1) @ directions + phases)
    own = [np.random.default_rng((seed, i, NOISE)).standard_normal(dim) for i in indices]
    found = torch.from_numpy(clean + noise / np.sqrt(dim) * np.stack(own))
    return F.normalize(found, dim=1).float()


class TissueSource:
    """Images of a range of indices.

    Args:
        count: How many.
        offset: Index of the first.
        seed: See `labelled_tissue`, as of the last two.
        size: Side in pixels.
        task: See there.
        classes: See there.
    """

    has_masks = False
    has_boxes = False

    def __init__(
        self, count: int, offset: int, seed: int, size: int, task: Task, classes: int
    ) -> None:
        self.count = count
        self.offset = offset
        self.seed = seed
        self.size = size
        self.task: Task = task
        self.classes = classes

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Render image `index`."""
        if not 0 <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        place = self.offset + index
        tissue, label = labelled_tissue(place, self.seed, self.task, self.classes)
        image = render_tissue(tissue, place, self.seed, self.size)
        return Sample(image, label, path=f"tissue {place}", size=(self.size, self.size))


class SyntheticReportsData(ZooDataModule):
    """Few graded images of tissue, and a corpus of reports of other tissues.

    The features of both are simulated from what they were made of: see the head of the file. At the
    default noise and number of reports, the report nearest to an image has another severity by
    0.05 (median), and another density by 0.09, where those of any report differ by 0.29.

    Args:
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.
        classes: Number K of grades.
        reports: Number M of reports.
        text_dim: Length D of features.
        noise: How imperfect the simulated CLIP is: see `clip_features`.
        task: "grade", or "pretext": nine classes of stain and density, of images that are no other
            task's, by which an encoder can be trained as a foundation model of pathology was.
        scene_seed: Seed of images and reports (apart from `seed`, so that runs share their data).
        image_size: Side of the images in pixels.
        cache: Keep rendered images in memory.
        **kwargs: See `ZooDataModule`.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        train: int = 32,
        val: int = 100,
        test: int = 400,
        classes: int = 3,
        reports: int = 2000,
        text_dim: int = 64,
        noise: float = 0.3,
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
        self.classes = classes
        self.reports = reports
        self.text_dim = text_dim
        self.noise = noise
        self.task: Task = task
        self.scene_seed = scene_seed
        self.counts = split_counts(self.num_classes, train=train, val=val, test=test)

    @property
    def class_names(self) -> list[str]:
        """The grades, from "grade 0" on, or "stain i, density j"."""
        if self.task == "grade":
            return [f"grade {k}" for k in range(self.classes)]
        bins = range(PRETEXT_BINS)
        return [f"stain {i}, density {j}" for i in bins for j in bins]

    def read(self) -> dict[str, Source]:
        """Return a source per split."""
        size = max(self.train_size)
        return {
            split: TissueSource(
                count, self._offset(split), self.scene_seed, size, self.task, self.classes
            )
            for split, count in self.counts.items()
        }

    def _offset(self, split: str) -> int:
        return SPLIT_OFFSET[split] + (PRETEXT_OFFSET if self.task == "pretext" else 0)

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

    def image_features(self, split: str) -> Tensor:
        """Return the simulated features (N, D) float32 of unit length of a split's images, in order.

        Raises:
            ValueError: There is no such split.
        """
        if split not in self.counts:
            raise ValueError(f"split={split!r} must be one of {', '.join(self.counts)}")
        first = self._offset(split)
        indices = range(first, first + self.counts[split])
        tissues = [labelled_tissue(i, self.scene_seed, self.task, self.classes)[0] for i in indices]
        return self._features(tissues, indices)

    def _features(self, tissues: Sequence[Tissue], indices: Sequence[int]) -> Tensor:
        return clip_features(tissues, indices, self.scene_seed, self.text_dim, self.noise)
