"""Gaussian filtering in feature space: one call for the three back-ends of the dense-CRF losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from wsl_zoo.losses.exact import Points, exact_filter, exact_rows
from wsl_zoo.losses.grid import check_spacing, grid_filter
from wsl_zoo.losses.permutohedral import permutohedral_filter
from wsl_zoo.precision import to_float

Backend = Literal["permutohedral", "grid", "exact", "auto"]

EXACT_PIXELS = 4096
"""The most pixels that `auto` filters exactly."""

CALIBRATION_ROWS = 512
"""Rows of the exact kernel that the factor c is estimated from."""


@dataclass(frozen=True)
class Options:
    """A back-end and its settings, as `DenseCRF` explains them."""

    backend: str
    symmetric: bool = True
    calibrated: bool = False
    spacing: float = 0.5
    orders: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.backend not in get_args(Backend):
            choices = ", ".join(map(repr, get_args(Backend)))
            raise ValueError(f"backend={self.backend!r}: choose one of {choices}")
        if self.backend in ("grid", "exact") and (self.calibrated or not self.symmetric):
            raise ValueError(
                f"backend={self.backend!r} is symmetric and true to scale: symmetric=False and "
                "calibrated=True are for 'permutohedral'"
            )
        for order in self.orders or (2,):
            check_spacing(self.spacing, order)

    def chosen(self, count: int, default: str) -> Options:
        """Return the options with `auto` resolved, for this number of points."""
        if self.backend != "auto":
            return self
        backend = default if count > EXACT_PIXELS else "exact"
        if backend == "permutohedral":
            return replace(self, backend=backend)
        return replace(self, backend=backend, symmetric=True, calibrated=False)

    def filter(self, points: Points, values: Tensor) -> Tensor:
        """Approximate `W v` for B images of N pixels and `(B, K, N)` values of their type."""
        if self.backend == "exact":
            return exact_filter(points, values)
        if self.backend == "grid":
            return grid_filter(points, values, self.spacing, self.orders)
        if not self.calibrated:
            return permutohedral_filter(points, values, self.symmetric)
        both = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
        both = permutohedral_filter(points, both, self.symmetric)
        return both[:, :-1] / scale_factor(points, both[:, -1])[:, None, None]


def scale_factor(points: Points, filtered: Tensor) -> Tensor:
    """Fit `A 1 = c * W 1` by least squares on up to 512 rows of W.

    The rows are spread evenly by the golden ratio: no random state is touched.

    Args:
        points: B images of N pixels.
        filtered: `(B, N)`, what an operator A makes of ones.

    Returns:
        c, `(B,)`.
    """
    count = filtered.shape[1]
    steps = torch.arange(min(count, CALIBRATION_ROWS), dtype=torch.float64)
    rows = (count * (steps * ((5**0.5 - 1) / 2)).frac()).long().to(filtered.device)
    features = points.features()
    ones = torch.ones_like(filtered[0])[:, None]
    exact = torch.cat([exact_rows(image[:, rows], image, ones).T for image in features])
    return (filtered[:, rows] * exact).sum(1) / exact.square().sum(1)


def bilateral_apply(
    features: Tensor,
    values: Tensor,
    method: str = "permutohedral",
    symmetric: bool = True,
    calibrated: bool = False,
    spacing: float = 0.5,
    orders: Sequence[int] | None = None,
) -> Tensor:
    """Approximate `W v` with `W_ij = exp(-|f_i - f_j|^2 / 2)`, for features of any kind.

    Args:
        features: `(N, d)`, in standard deviations, finite.
        values: `(N, K)`.
        method: "permutohedral", which gives `c * W v` unless calibrated, "grid", "exact" or "auto".
        symmetric: As in `DenseCRF`.
        calibrated: As in `DenseCRF`.
        spacing: As in `DenseCRF`.
        orders: Grid only: spline order (1, 2 or 3) of each feature; None: 2.

    Returns:
        `(N, K)`, without gradient.

    Raises:
        ValueError: Shapes do not fit, features are not finite, or an option is unknown.
    """
    if features.ndim != 2 or values.ndim != 2 or len(features) != len(values):
        raise ValueError(
            "features must be (N, d) and values (N, K), got "
            f"{tuple(features.shape)} and {tuple(values.shape)}"
        )
    if not features.isfinite().all():
        raise ValueError("features must be finite")
    options = Options(method, symmetric, calibrated, spacing, tuple(orders) if orders else None)
    options = options.chosen(len(features), "permutohedral")
    with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
        rows = to_float(values).T[None]
        colors = features.to(rows).T[None]
        limits = tuple(zip(colors[0].amin(1).tolist(), colors[0].amax(1).tolist(), strict=True))
        ones = (1.0,) * len(limits)
        points = Points(rows.new_empty(0, len(values)), colors, ones, limits)
        return options.filter(points, rows)[0].T
