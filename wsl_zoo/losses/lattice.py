"""Runs the compiled permutohedral lattice: memory that is kept, images in threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsl_zoo.losses.exact import Points
from wsl_zoo.losses.lattice_kernels import BLOCK, RANK_BITS, START_BITS, filter_image

KINDS = 4
"""Image sizes (and types) for which memory is kept."""


@dataclass(frozen=True)
class Packing:
    """How lattice coordinates become one integer: `sum_i (x_i - low_i) * stride_i`.

    The sum is linear, so to step to a neighbour is to add a constant.

    Attributes:
        low: Lowest coordinate on each of the first d axes; the last is minus the sum of the others.
        high: Highest coordinate on each of them.
        strides: d + 1 of them, the last is 0.
        span: All keys of an image lie in [0, span).
    """

    low: list[int]
    high: list[int]
    strides: list[int]
    span: int

    @classmethod
    def of(cls, limits: Sequence[tuple[float, float]]) -> Packing:
        """Fit the packing to features within limits.

        Args:
            limits: Lowest and highest value of each feature, after scaling.

        Raises:
            ValueError: A key would not fit 60 bits.
        """
        d = len(limits)
        low: list[int] = []
        high: list[int] = []
        strides: list[int] = []
        span = 1
        for i in range(d):
            below = sum(a for a, _ in limits[i:]) - (i * limits[i - 1][1] if i else 0.0)
            above = sum(b for _, b in limits[i:]) - (i * limits[i - 1][0] if i else 0.0)
            # A vertex is less than 2 (d + 1) from its point, a neighbour of it d further.
            first, last = math.floor(below) - 3 * (d + 1), math.ceil(above) + 3 * (d + 1)
            low.append(first)
            high.append(last)
            strides.append(span)
            span *= last - first + 1
        if span >= 1 << 60:
            raise ValueError(
                f"the features span {[round(b - a) for a, b in limits]} lattice units, more than a "
                "64-bit key can tell apart; raise sigma_rgb or sigma_xy, or use backend='exact'"
            )
        return cls(low, high, [*strides, 0], span)

    def steps(self) -> list[int]:
        """Return what to add to a key for a step along each of the d + 1 lattice directions."""
        size = len(self.strides)
        return [size * stride - sum(self.strides) for stride in self.strides]


class Layout(NamedTuple):
    """How vertices and simplices become integers: key `sum_i (x_i - low_i) * stride_i`."""

    low: NDArray[np.int64]
    """`(d,)` lowest coordinate of a vertex."""
    strides: NDArray[np.int64]
    """`(d + 1,)`; the last is 0."""
    lows: NDArray[np.int64]
    """`(d,)` lowest coordinate of a base point, divided by d + 1."""
    shifts: NDArray[np.int64]
    """`(d,)` bits below each of them in the code of a simplex; the ranks are below them all."""


class Workspace(NamedTuple):
    """Memory for an image of N pixels; what the kernel never touches stays virtual."""

    weights: NDArray[Any]
    """`(d + 1, N)` barycentric weights."""
    places: NDArray[np.int32]
    """`(N,)` number of each pixel's simplex."""
    corners: NDArray[np.int32]
    """`(N, d + 1)` vertices of each simplex."""
    simplex_keys: NDArray[np.int64]
    """Hash table of the simplices, at least half of it free."""
    simplex_numbers: NDArray[np.int32]
    """What it holds."""
    vertex_keys: NDArray[np.int64]
    """Hash table of the vertices, of which a prefix is in use."""
    vertex_numbers: NDArray[np.int32]
    """What it holds."""
    vertices: NDArray[np.int64]
    """`((d + 1) N,)` key of each vertex."""
    neighbours: NDArray[np.int32]
    """`(d + 1, (d + 1) N, 2)` vertices on both sides along each axis."""
    tables: NDArray[Any]
    """`(5, (d + 1) N + 1, 2)` values at the vertices: as splatted, then two for each order of the
    blurs."""

    @classmethod
    def of(cls, count: int, d: int, dtype: np.dtype[Any]) -> Workspace:
        """Reserve it for an image of `count` pixels."""
        size, most = d + 1, (d + 1) * count
        slots = 1 << (2 * count - 1).bit_length()
        more = max(1 << START_BITS, 1 << (2 * (most + size * BLOCK) - 1).bit_length())
        return cls(
            weights=np.empty((size, count), dtype),
            places=np.empty(count, np.int32),
            corners=np.empty((count, size), np.int32),
            simplex_keys=np.empty(slots, np.int64),
            simplex_numbers=np.empty(slots, np.int32),
            vertex_keys=np.empty(more, np.int64),
            vertex_numbers=np.empty(more, np.int32),
            vertices=np.empty(most, np.int64),
            neighbours=np.empty((size, most, 2), np.int32),
            tables=np.empty((5, most + 1, 2), dtype),
        )


_spare: dict[tuple[int, int, np.dtype[Any]], list[Workspace]] = {}


def _borrow(kind: tuple[int, int, np.dtype[Any]]) -> Workspace:
    """Return memory for a number of pixels, of features, and a type; kept if there is some."""
    if kind not in _spare and len(_spare) >= KINDS:
        _spare.clear()
    try:
        return _spare.setdefault(kind, []).pop()
    except IndexError:
        return Workspace.of(*kind)


def filter_on_cpu(
    points: Points, values: Tensor, factors: list[float], packing: Packing, symmetric: bool
) -> Tensor | None:
    """Filter images with the compiled kernel, in as many threads as torch uses.

    Args:
        points: B images of N pixels, on the CPU.
        values: `(B, K, N)` float32 or float64, as the positions.
        factors: What the lattice wants the d features multiplied by.
        packing: Of its coordinates.
        symmetric: Average two opposite orders of the blurs.

    Returns:
        `(B, K, N)`, or None where the lattice is too large for the kernel.
    """
    size = len(factors) + 1
    lows, shifts, bits = [], [], RANK_BITS * len(factors)
    for low, high in zip(packing.low, packing.high, strict=True):
        lows.append(low // size)
        shifts.append(bits)
        bits += (high // size - low // size).bit_length()
    if size > 1 << RANK_BITS or bits > 62:
        return None
    filtered = torch.empty_like(values, memory_format=torch.contiguous_format)
    positions, colors, maps, out = (
        tensor.detach().contiguous().numpy()
        for tensor in (points.positions, points.colors, values, filtered)
    )
    factor = np.array(factors, maps.dtype)
    layout = Layout(*(np.array(x, np.int64) for x in (packing.low, packing.strides, lows, shifts)))
    kind = (maps.shape[2], size - 1, maps.dtype)

    def run(image: int) -> None:
        work = _borrow(kind)
        color, values, found = colors[image], maps[image], out[image]
        filter_image(positions, color, factor, values, symmetric, found, layout, work)
        _spare.get(kind, []).append(work)

    images = range(len(maps))
    threads = min(torch.get_num_threads(), len(maps))
    if threads < 2:
        for image in images:
            run(image)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, images))
    return filtered
