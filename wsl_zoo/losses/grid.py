"""Gaussian filtering on a regular grid in feature space (the bilateral grid, Chen et al., 2007).

Values are spread over a grid, blurred along each axis, and read back, all by B-splines of order o:
1 linear (2 cells per axis), 2 quadratic (3), 3 cubic (4). A B-spline of order o has variance
`(o + 1) / 12` cells^2 and is applied twice, so the blur between cells has `1 / h^2 - (o + 1) / 6`
for a spacing of h standard deviations, and the amplitude per axis that makes the whole a Gaussian
of value 1 at distance 0. The operator is symmetric by construction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from wsl_zoo.losses.exact import Points
from wsl_zoo.losses.grid_kernels import read, spread

ORDERS = {"linear": 1, "quadratic": 2, "cubic": 3}

CELLS = 1 << 28
"""Most cells of one image's grid: 1 GB per map in float32."""

GROUP = 1 << 26
"""Cells times maps that are filtered at once on a GPU."""


def grid_filter(
    points: Points, values: Tensor, spacing: float = 0.5, orders: Sequence[int] | None = None
) -> Tensor:
    """Approximate `W v` with `W_ij = exp(-|f_i - f_j|^2 / 2)`.

    Args:
        points: B images of N pixels.
        values: `(B, K, N)` float32 or float64, as the positions.
        spacing: Of the cells, in standard deviations.
        orders: Spline order per axis; None: quadratic on all.

    Returns:
        `(B, K, N)`. The host waits for the device once, for the size of the grid.

    Raises:
        ValueError: The spacing is too coarse for the order, or the grid too large.
    """
    features = points.features()
    orders = [2] * features.shape[1] if orders is None else orders
    for order in orders:
        check_spacing(spacing, order)
    place = (features - features.amin(2, keepdim=True)) / spacing
    tops = place.amax(2).tolist()
    sizes = [[_first(top, o) + o + 1 for top, o in zip(row, orders, strict=True)] for row in tops]
    cells = max(math.prod(size) for size in sizes)
    if cells > CELLS:
        raise ValueError(
            f"a grid of {cells} cells is needed, more than {CELLS}; raise the sigmas or the "
            f"spacing ({spacing} now), or use backend='permutohedral' or 'exact'"
        )
    if features.device.type == "cpu":
        return filter_on_cpu(place, values, sizes, spacing, orders)
    group = max(1, min(len(values), GROUP // (cells * values.shape[1])))
    parts = []
    for i in range(0, len(values), group):
        size = [max(column) for column in zip(*sizes[i : i + group], strict=True)]
        parts.append(
            filter_anywhere(place[i : i + group], values[i : i + group], size, spacing, orders)
        )
    return torch.cat(parts)


def check_spacing(spacing: float, order: int) -> None:
    """Raise a ValueError if splines of this order are wider than the Gaussian itself."""
    limit = math.sqrt(6 / (order + 1))
    if not 0 < spacing < limit:
        raise ValueError(
            f"spacing={spacing}: must lie in (0, {limit:.3g}) for splines of order {order}; 0.5 is "
            "accurate"
        )


def _first(place: float, order: int) -> int:
    """Return the first of the order + 1 cells that a place touches."""
    return math.floor(place - (order - 1) / 2) + order // 2


def _splines(place: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Return the first cell of each place `(G, N)`, int64, and the order + 1 weights from it on."""
    shifted = place - (order - 1) / 2
    first = shifted.floor()
    t = shifted - first
    if order == 1:
        weights = [1 - t, t]
    elif order == 2:
        weights = [0.5 * (1 - t) ** 2, 0.75 - (t - 0.5) ** 2, 0.5 * t**2]
    else:
        middle = [((3 * s - 6) * s * s + 4) / 6 for s in (t, 1 - t)]
        weights = [(1 - t) ** 3 / 6, *middle, t**3 / 6]
    return first.long() + order // 2, torch.stack(weights)


def filter_on_cpu(
    place: Tensor, values: Tensor, sizes: list[list[int]], spacing: float, orders: Sequence[int]
) -> Tensor:
    """Filter images on the CPU with compiled kernels, one after the other.

    Args:
        place: `(B, d, N)` in cells, from 0.
        values: `(B, K, N)`.
        sizes: Cells per axis of each image.
        spacing: Of the cells, in standard deviations.
        orders: Spline order per axis.

    Returns:
        `(B, K, N)`.
    """
    channels = values.shape[1]
    most = channels * max(math.prod(size) for size in sizes)
    tables = [values.new_empty(most) for _ in range(2)]
    filtered = torch.empty_like(values, memory_format=torch.contiguous_format)
    order = np.array(orders)
    for points, value, out, size in zip(place, values.detach(), filtered, sizes, strict=True):
        cells = math.prod(size)
        source, target = (table[: cells * channels] for table in tables)
        strides = np.array([math.prod(size[i + 1 :]) for i in range(len(size))])
        where, maps = points.contiguous().numpy(), value.contiguous().numpy()
        spread(where, maps, order, channels * strides, source.zero_().numpy())
        for length, kind in zip(size, orders, strict=True):  # each moves its axis to the end
            blur = _gaussian(length, spacing, kind, values)
            torch.mm(source.view(length, -1).T, blur, out=target.view(-1, length))
            source, target = target, source
        read(where, source.view(channels, cells).numpy(), order, strides, out.numpy())
    return filtered


def filter_anywhere(
    place: Tensor, values: Tensor, size: list[int], spacing: float, orders: Sequence[int]
) -> Tensor:
    """Filter some images, in grids of one size, with torch operations.

    Args:
        place: `(G, d, N)` in cells, from 0.
        values: `(G, K, N)`.
        size: Cells per axis.
        spacing: Of the cells, in standard deviations.
        orders: Spline order per axis.

    Returns:
        `(G, K, N)`.
    """
    images, channels, count = values.shape
    splines = [_splines(place[:, i], order) for i, order in enumerate(orders)]
    strides = [math.prod(size[i + 1 :]) for i in range(len(size))]
    cells = math.prod(size)
    start = cells * torch.arange(images, device=place.device)[:, None]
    for (first, _), stride in zip(splines, strides, strict=True):
        start = start + first * stride
    axes = [
        (weights.flatten(1), stride) for (_, weights), stride in zip(splines, strides, strict=True)
    ]

    rows = values.transpose(1, 2).reshape(images * count, channels)
    table = rows.new_zeros(images * cells, channels)
    ones = rows.new_ones(len(rows))
    for weight, index in _taps(axes, ones, start.flatten()):
        table.index_add_(0, index, weight[:, None] * rows)
    table = table.view(images, *size, channels)
    for length, order in zip(size, orders, strict=True):  # each moves its axis to the end
        table = torch.tensordot(table, _gaussian(length, spacing, order, table), ([1], [0]))
    table = table.movedim(1, -1).reshape(images * cells, channels)
    found = torch.zeros_like(rows)
    for weight, index in _taps(axes, ones, start.flatten()):
        found.addcmul_(weight[:, None], table[index])
    return found.view(images, count, channels).transpose(1, 2)


def _taps(
    axes: list[tuple[Tensor, int]], weight: Tensor, index: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield weight and cell of all points, for each of the cells that a point touches."""
    if not axes:
        yield weight, index
        return
    (weights, stride), *others = axes
    for tap, along in enumerate(weights):
        yield from _taps(others, weight * along, index + tap * stride)


def _gaussian(length: int, spacing: float, order: int, like: Tensor) -> Tensor:
    """Return the `(length, length)` blur between the cells of an axis."""
    variance = 1 / spacing**2 - (order + 1) / 6
    cell = torch.arange(length, device=like.device, dtype=like.dtype)
    square = (cell[:, None] - cell).square()
    return torch.exp(square * (-0.5 / variance)) * (1 / (spacing * math.sqrt(variance)))
