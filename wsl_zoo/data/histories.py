"""The built-in exams: numbers whose level tells the near risk, and whose slope the far one.

A woman has a level, a slope and a density, all N(0, 1). In the year t = -4..0 her exam holds,
before it is mixed by an orthonormal Q and noise is added,

    u0 = level + 1.5 slope t / 4 + noise      u1 = density + 0.1 noise
    u2 = a ~ N(0, 1)                          u3 = slope sign(a) + noise      u4..u7 ~ N(0, 1)

so that the slope is linear in the history, but in one exam stands only times the sign of a
nuisance: hard to learn from few events, easy from exams to be reconstructed and from soft labels of
teachers that see the history. Yearly hazards sigmoid(b_k + wl_k level + ws_k slope + 0.3 density)
move from the level (k = 1) to the slope (k = 5); the b_k give cumulative rates of 4, 7, 11, 16 and
22 %. Some are lost to follow-up earlier. This is the set by which privileged history distillation
is judged here (`methods/phd.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from wsl_zoo.data.exams import ExamDataModule
from wsl_zoo.data.folder import SPLITS
from wsl_zoo.data.tables import TableSource

YEARS = 5
MIXED = 8  # numbers u of an exam
LEVEL_WEIGHTS = (2.0, 1.6, 1.0, 0.5, 0.25)
SLOPE_WEIGHTS = (0.2, 0.6, 1.4, 2.2, 2.6)
DENSITY_WEIGHT = 0.3
RATES = (0.04, 0.07, 0.11, 0.16, 0.22)
CENSORED = (0.05, 0.08, 0.12, 0.15, 0.60)  # in the years 1 to 5; the last is the end of follow-up
FIXED_SAMPLE = 200_000  # by which the hazards are calibrated
CONSTANTS = 20_260_316  # seed of what does not change: Q and that sample

Floats = NDArray[np.floating]
Variant = Literal["A", "B"]
# Noise of u0, noise of u3, probability of an earlier exam, and sizes of train, val, test.
VARIANTS: dict[Variant, tuple[float, float, float, tuple[int, int, int]]] = {
    "A": (0.25, 0.5, 0.7, (2000, 1000, 5000)),
    "B": (0.15, 0.8, 0.85, (3000, 1000, 5000)),
}


@dataclass(frozen=True)
class Histories:
    """Women with their exams and outcomes.

    Attributes:
        features: (N, 5, D) float32, years -4..0; 0 where there is no exam.
        exam_mask: (N, 5) bool; that of year 0 is always there.
        time: (N,) float32, year of the event or of the last year known to be free of it.
        event: (N,) bool.
        numbers: (N, 5, 8) float32: u, which images are drawn from.
        risk: (N, 5) float64, the true probability of an event within each year.
    """

    features: Floats
    exam_mask: NDArray[np.bool_]
    time: Floats
    event: NDArray[np.bool_]
    numbers: Floats
    risk: Floats


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def _linear(level: Floats, slope: Floats, density: Floats) -> Floats:
    weights = np.array([LEVEL_WEIGHTS, SLOPE_WEIGHTS])
    parts = np.stack([level, slope], axis=1) @ weights
    return np.asarray(parts + DENSITY_WEIGHT * density[:, None])


@lru_cache(maxsize=1)
def intercepts() -> tuple[float, ...]:
    """Return b_1..b_5, the roots for a fixed sample, year after year."""
    from scipy.optimize import brentq  # slow to import

    rng = np.random.default_rng(CONSTANTS)
    linear = _linear(*rng.standard_normal((3, FIXED_SAMPLE)))
    free = np.ones(FIXED_SAMPLE)
    found = []
    for year, rate in enumerate(RATES):

        def excess(b: float, year: int = year, rate: float = rate, free: Floats = free) -> float:
            return float(1 - rate - (free * (1 - _sigmoid(b + linear[:, year]))).mean())

        found.append(float(brentq(excess, -30.0, 10.0, xtol=1e-13)))
        free = free * (1 - _sigmoid(found[-1] + linear[:, year]))
    return tuple(found)


def mixing(dim: int) -> Floats:
    """Return Q (D, 8) with orthonormal columns, the same for every set.

    Raises:
        ValueError: Fewer than 8 features.
    """
    if dim < MIXED:
        raise ValueError(f"dim={dim}: an exam has {MIXED} numbers, so {MIXED} features at least")
    rng = np.random.default_rng(CONSTANTS + 1)
    return np.asarray(np.linalg.qr(rng.standard_normal((dim, MIXED)))[0])


def simulate(
    count: int, seed: int, level_noise: float, slope_noise: float, seen: float, dim: int = 32
) -> Histories:
    """Draw women.

    Args:
        count: How many, N.
        seed: Seed.
        level_noise: Deviation of the noise of u0.
        slope_noise: Deviation of the noise of u3.
        seen: Probability that an earlier exam took place.
        dim: Features D of an exam.
    """
    rng = np.random.default_rng((CONSTANTS, seed))
    level, slope, density = rng.standard_normal((3, count))
    years = np.arange(-(YEARS - 1), 1)
    u = rng.standard_normal((count, YEARS, MIXED))
    u[..., 0] = level[:, None] + 1.5 * slope[:, None] * years / 4 + level_noise * u[..., 0]
    u[..., 1] = density[:, None] + 0.1 * u[..., 1]
    u[..., 3] = slope[:, None] * np.sign(u[..., 2]) + slope_noise * u[..., 3]
    x = 2 * u @ mixing(dim).T + 0.3 * rng.standard_normal((count, YEARS, dim))
    mask = rng.uniform(size=(count, YEARS)) < seen
    mask[:, -1] = True
    hazard = _sigmoid(np.array(intercepts()) + _linear(level, slope, density))
    struck = rng.uniform(size=hazard.shape) < hazard
    when = np.where(struck.any(axis=1), struck.argmax(axis=1) + 1, YEARS + 1)
    last = rng.choice(np.arange(1, YEARS + 1), size=count, p=CENSORED)
    return Histories(
        features=(x * mask[..., None]).astype(np.float32),
        exam_mask=mask,
        time=np.minimum(when, last).astype(np.float32),
        event=when <= last,
        numbers=u.astype(np.float32),
        risk=1 - np.cumprod(1 - hazard, axis=1),
    )


class SyntheticExamsData(ExamDataModule):
    """Women with up to five yearly exams, and an event within five years or none.

    Args:
        variant: "A": noisy levels, 70 % of earlier exams, 2,000 to train; "B": noisy slopes in a
            single exam, 85 %, 3,000 to train.
        train: Number of training rows; None: the variant's, as of the next two.
        val: Number of validation rows.
        test: Number of test rows.
        dim: Features D of an exam.
        data_seed: Seed of the rows; None: `seed`, so that each run has data of its own.
        **kwargs: See `ExamDataModule`.
    """

    def __init__(
        self,
        variant: Variant = "A",
        train: int | None = None,
        val: int | None = None,
        test: int | None = None,
        dim: int = 32,
        data_seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant!r} must be one of {', '.join(VARIANTS)}")
        if self.slots != YEARS or not set(self.horizons) <= set(range(1, YEARS + 1)):
            raise ValueError(
                f"slots={self.slots}, horizons={self.horizons}: there are {YEARS} yearly exams "
                f"before, and {YEARS} whole years after the last one"
            )
        mixing(dim)
        self.variant: Variant = variant
        given = zip((train, val, test), VARIANTS[variant][3], strict=True)
        self.counts = [own if count is None else count for count, own in given]
        self.dim = dim
        self.data_seed = data_seed

    def read(self) -> dict[str, TableSource]:
        """Draw the rows of every split."""
        level_noise, slope_noise, seen, _ = VARIANTS[self.variant]
        seed = self.seed if self.data_seed is None else self.data_seed
        found = {}
        for i, (split, count) in enumerate(zip(SPLITS, self.counts, strict=True)):
            rows = simulate(count, 10 * seed + i, level_noise, slope_noise, seen, self.dim)
            fields = ("features", "exam_mask", "time", "event")
            found[split] = TableSource(
                {name: torch.from_numpy(getattr(rows, name)) for name in fields},
                path=[f"{split} {n}" for n in range(count)],
                group=[f"{split} {n}" for n in range(count)],
            )
        return found
