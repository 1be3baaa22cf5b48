"""Built-in tissue: what it is like, an image and a report of it, what a CLIP would see.

A tissue has nine attributes, uniform in [0, 1]. The severity s is the share of atypical nuclei,
which are larger, darker and irregular. The others change the look at least as strongly: density of
cells, fibrosis, inflammation (small dark dots), hue and strength of the stain, size of normal
nuclei, light and focus. A report tells the first four only (`TOLD`): the severity as a number, the
others as words.

The CLIP is simulated; nothing reads the text or the pixels. Both of its towers map the true values
a of `TOLD` by the same random Fourier features (Rahimi and Recht, NIPS 2007),

    f_d = sqrt(2 / D) cos(g_d . w (2a - 1) + b_d),   g ~ N(0, I),   b uniform in [0, 2 pi],

whose products approach exp(-|2 w (a - a')|^2 / 2), and add noise of their own to every image and
report: u = normalize(f + noise e / sqrt(D)), e ~ N(0, I). g and b are the same for every data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.data.scenes import ground
from wsl_zoo.data.scenes import noise as smooth_noise

Floats = NDArray[np.floating]

TOLD = ("severity", "density", "fibrosis", "inflammation")
WEIGHTS = (2.0, 1.0, 0.8, 0.8)  # w: how much of the features each of them makes
CONSTANTS = 20_250_416  # seed of what does not change: g and b
ATTRIBUTES, LOOK, NOISE, WORDS = range(4)  # streams of random numbers of one index

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

    @property
    def nuclei(self) -> int:
        """How many there are in an image, atypical or not."""
        return round(_between(NUCLEI, self.density))


def draw_tissue(index: int, seed: int) -> Tissue:
    """Return tissue `index` of a seed, all of its attributes uniform."""
    rng = np.random.default_rng((seed, index, ATTRIBUTES))
    return Tissue(*rng.uniform(size=len(fields(Tissue))).tolist())


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
    count, dots = tissue.nuclei, round(DOTS * tissue.inflammation)
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
