"""Built-in tissue: what it is like, an image of it, a report on it, and what a CLIP would see of it.

A piece of tissue is nine numbers in [0, 1]. A report tells the first four, the findings; the others
are of the laboratory and the scanner, and only the image shows them.

Features are those of a *simulated* image-text model: findings f in [-1, 1]^4, weighed so that
atypia counts most, go through tanh(f W) for one fixed random W, are brought to length 1, noise of
their own is added, and the sum is brought to length 1. Images and reports have the same map, so that
the nearest report of an image is one of like findings, up to the noise and the size of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.data.scenes import Field, ground
from wsl_zoo.data.scenes import noise as smooth_noise

FINE = 4  # drawn at so many times the size, so that edges are smooth
NUCLEI = (10, 25)  # in an image, from density 0 to 1
GRID = 5  # nuclei stand in cells of so many by so many
DOTS = 10  # of inflammation, at most
RADIUS, DOT_RADIUS = 0.036, 0.02  # relative to the side
SIZES = (0.85, 1.25)  # factor of the radius, from size 0 to 1
BIGGER, DARKER, UNEVEN = 0.7, 0.6, 0.28  # what atypia adds to radius, darkness and outline
# Absorption of red, green and blue, at hue 0 and 1.
PALE = (np.array([0.05, 0.22, 0.12]), np.array([0.16, 0.22, 0.06]))
PINK = (np.array([0.05, 0.45, 0.22]), np.array([0.22, 0.45, 0.12]))
INK = (np.array([0.75, 1.5, 0.6]), np.array([1.3, 1.4, 0.45]))
GRAIN = 4.0  # deviation of the scanner's noise, in grey levels

ATTRIBUTES, LOOK, SEEN, WORDS = range(4)  # streams of random numbers of one piece of tissue
WEIGHTS = (1.6, 0.8, 0.8, 0.8)  # of the findings in features
SHARED = 20_250_416  # seed of the map that images and reports have in common

AMOUNTS = ("no", "mild", "moderate", "marked")
OPENINGS = ("Microscopy:", "Sections show", "Histology:", "On examination,")
ATYPIA = (
    "atypical nuclei in approximately {share} % of the cells",
    "nuclear atypia, involving about {share} % of the cells",
    "enlarged, dark and irregular nuclei make up {share} % of the cells",
)


@dataclass(frozen=True, slots=True)
class Tissue:
    """One piece of tissue; every number is in [0, 1].

    Attributes:
        severity: Share of nuclei that are atypical: large, dark and irregular.
        density: From few nuclei to many.
        fibrosis: Share of fibres in the ground.
        inflammation: From no small dark cells to many.
        hue: Colour of the stain, from red to blue.
        strength: Of the stain.
        size: Of all nuclei.
        light: Of the lamp.
        focus: From blurred to sharp.
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
    def findings(self) -> tuple[float, ...]:
        """What a report tells: severity, density, fibrosis and inflammation."""
        return astuple(self)[: len(WEIGHTS)]

    @property
    def nuclei(self) -> int:
        """How many there are in an image."""
        return round(_between(NUCLEI, self.density))


def draw_tissue(index: int, seed: int) -> Tissue:
    """Return tissue `index`, its numbers uniform and independent."""
    rng = np.random.default_rng((seed, index, ATTRIBUTES))
    return Tissue(*rng.uniform(size=len(fields(Tissue))).tolist())


def render_tissue(tissue: Tissue, index: int, seed: int, size: int) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) uint8.

    Args:
        tissue: What it shows.
        index: With the seed it fixes where things lie.
        seed: Of all images.
        size: Side in pixels.
    """
    rng = np.random.default_rng((seed, index, LOOK))
    nuclei = cv2.resize(_nuclei(tissue, rng, size), (size, size), interpolation=cv2.INTER_AREA)
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:size, :size] / size
    along = x * np.cos(angle) + y * np.sin(angle)
    waves = np.sin(2 * np.pi * (5 * along + 0.6 * smooth_noise(rng, size, 3)))
    fibres = np.clip(waves + 2 * tissue.fibrosis - 1, 0, 1)
    absorbed = (
        _mixed(PALE, tissue.hue) * (1 + 0.15 * ground(rng, size)[:, :, None])
        + _mixed(PINK, tissue.hue) * fibres[:, :, None]
        + _mixed(INK, tissue.hue) * nuclei[:, :, None]
    )
    light = 255 * _between((0.8, 1.0), tissue.light)
    image = light * np.exp(-absorbed * _between((0.5, 1.15), tissue.strength))
    image = cv2.GaussianBlur(image, (0, 0), _between((0.9, 0.35), tissue.focus))
    image = image + rng.normal(0, GRAIN, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def describe_tissue(tissue: Tissue, index: int, seed: int) -> str:
    """Return a report in words: the share of atypical nuclei as a number, the rest by degrees."""
    rng = np.random.default_rng((seed, index, WORDS))
    atypia = str(rng.choice(ATYPIA)).format(share=round(100 * tissue.severity))
    others = [
        f"cellularity is {('low', 'moderate', 'high')[_degree(tissue.density, 3)]}",
        f"{AMOUNTS[_degree(tissue.fibrosis, 4)]} fibrosis of the stroma",
        f"{AMOUNTS[_degree(tissue.inflammation, 4)]} inflammatory infiltrate",
    ]
    rng.shuffle(others)
    return f"{rng.choice(OPENINGS)} {atypia}; {', '.join(others)}."


def tissue_features(
    tissues: Sequence[Tissue], indices: Sequence[int], seed: int, dim: int, noise: float
) -> Tensor:
    """Return what the simulated image-text model gives, (N, D) float32 of length 1.

    Args:
        tissues: N pieces, of images or of reports.
        indices: Theirs; with the seed they fix the noise.
        seed: Of all of them.
        dim: D.
        noise: Its length relative to what the findings give.
    """
    findings = 2 * torch.tensor([t.findings for t in tissues], dtype=torch.float64) - 1
    shared = torch.Generator().manual_seed(SHARED)
    w = torch.randn(len(WEIGHTS), dim, generator=shared, dtype=torch.float64)
    told = F.normalize(torch.tanh(findings * torch.tensor(WEIGHTS).double() @ w), dim=1)
    own = [np.random.default_rng((seed, i, SEEN)).standard_normal(dim) for i in indices]
    features = told + noise / dim**0.5 * torch.from_numpy(np.array(own).reshape(-1, dim))
    return F.normalize(features, dim=1).float()


def _nuclei(tissue: Tissue, rng: np.random.Generator, size: int) -> Field:
    """Draw how dark nuclei are, (FINE size, FINE size) in [0, 1.1]."""
    side, count = size * FINE, tissue.nuclei
    atypical = np.clip(count * tissue.severity - np.arange(count), 0, 1)  # the last one in part
    radii = RADIUS * side * _between(SIZES, tissue.size) * (1 + BIGGER * atypical)
    depths = 0.55 * (1 + DARKER * atypical)
    radii, depths = (values * rng.uniform(0.9, 1.1, count) for values in (radii, depths))
    cells = rng.permutation(GRID * GRID)[:count]
    place = np.stack([cells % GRID, cells // GRID], axis=1) + rng.uniform(0.28, 0.72, (count, 2))
    dots = round(tissue.inflammation * DOTS)
    crowd = rng.uniform(0, 1, (1, 2)) + rng.normal(0, 0.18, (dots, 2))
    centers = np.concatenate([place / GRID, crowd % 1]) * side
    radii = np.concatenate([radii, np.full(dots, DOT_RADIUS * side)])
    depths = np.concatenate([depths, np.ones(dots)])
    uneven = np.concatenate([UNEVEN * atypical, np.zeros(dots)])
    outlines = _outlines(rng, centers, radii, uneven)
    canvas = np.zeros((side, side), np.float32)
    for k in np.argsort(depths, kind="stable"):
        points = np.rint(outlines[k] * 16).astype(np.int32)
        cv2.fillPoly(canvas, [points], float(depths[k]), shift=4)
    return canvas


def _outlines(
    rng: np.random.Generator,
    centers: NDArray[np.floating],
    radii: NDArray[np.floating],
    uneven: NDArray[np.floating],
) -> NDArray[np.floating]:
    """Return n closed outlines (n, P, 2): ellipses with bumps."""
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    flat, turn = rng.uniform(0.75, 1.0, (len(radii), 1)), rng.uniform(0, 2 * np.pi, (len(radii), 3))
    waves = [np.cos((k + 2) * angle + turn[:, k, None]) for k in range(3)]
    reach = radii[:, None] * (1 + uneven[:, None] * np.mean(waves, axis=0))
    x, y = reach * np.cos(angle), reach * flat * np.sin(angle)
    c, s = np.cos(turn[:, :1]), np.sin(turn[:, :1])
    return centers[:, None] + np.stack([c * x - s * y, s * x + c * y], axis=2)


def _degree(value: float, count: int) -> int:
    return min(int(value * count), count - 1)


def _between(ends: tuple[float, float], at: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * at


def _mixed(
    ends: tuple[NDArray[np.floating], NDArray[np.floating]], at: float
) -> NDArray[np.floating]:
    return ends[0] + (ends[1] - ends[0]) * at
