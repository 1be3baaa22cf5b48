"""Pixels as points in feature space, and the exact Gaussian filter of a few thousand of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

CHUNK = 1 << 18
"""Pairs computed at once on the CPU: 1 MB in float32, which stays in a core's cache."""

CHUNK_GPU = 1 << 25


@dataclass(frozen=True)
class Points:
    """Features of the pixels of some images.

    Attributes:
        positions: `(p, N)` features that all images share, floating, not divided by sigma.
        colors: `(B, c, N)` those that differ, uint8 or of the type of `positions`.
        sigmas: p + c standard deviations.
        limits: Lowest and highest value of each feature, at least.
    """

    positions: Tensor
    colors: Tensor
    sigmas: tuple[float, ...]
    limits: tuple[tuple[float, float], ...]

    def __getitem__(self, images: slice) -> Points:
        """Return some of the images."""
        return replace(self, colors=self.colors[images])

    def times(self, factors: list[float]) -> Tensor:
        """Return all features times factors, `(B, d, N)`."""
        images = len(self.colors)
        factor = torch.tensor(factors, dtype=torch.float64).to(self.positions)[:, None]
        positions = self.positions.expand(images, *self.positions.shape)
        return torch.cat([positions, self.colors.to(self.positions.dtype)], dim=1) * factor

    def features(self) -> Tensor:
        """Return all features in standard deviations, `(B, d, N)`."""
        return self.times([1 / sigma for sigma in self.sigmas])


def exact_filter(points: Points, values: Tensor) -> Tensor:
    """Return `W v` with `W_ij = exp(-|f_i - f_j|^2 / 2)`, the diagonal included.

    Args:
        points: B images of N pixels.
        values: `(B, K, N)`.

    Returns:
        `(B, K, N)`.
    """
    pairs = zip(points.features(), values.mT, strict=True)
    return torch.stack([exact_rows(features, features, value).T for features, value in pairs])


def exact_rows(rows: Tensor, features: Tensor, values: Tensor) -> Tensor:
    """Return some rows of `W v`.

    Args:
        rows: `(d, R)` in standard deviations.
        features: `(d, N)`.
        values: `(N, K)`.

    Returns:
        `(R, K)`.
    """
    chunk = CHUNK if values.device.type == "cpu" else CHUNK_GPU
    parts = torch.split(rows, max(1, chunk // len(values)), dim=1)
    return torch.cat([gaussian(part, features) @ values for part in parts])


def gaussian(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the `(R, N)` kernel between features `(d, R)` and `(d, N)`.

    Differences are taken before they are squared: no matrix product, which a GPU may be set to
    round to ten bits, and no difference of large squares.
    """
    exponent = rows.new_zeros(rows.shape[1], columns.shape[1])
    for row, column in zip(rows, columns, strict=True):
        exponent += (row[:, None] - column).square_()
    return exponent.mul_(-0.5).exp_()
