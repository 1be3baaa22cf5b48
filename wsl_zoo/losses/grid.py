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
from wsl_zoo.losses.grid_kernels import read, read_colors, spread, spread_colors

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
    orders = [2] * len(points.sigmas) if orders is None else orders
    for order in orders:
        check_spacing(spacing, order)
    if _only_levels(points):
        return filter_levels(points, values, spacing, orders)
    features = points.features()
    place = (features - features.amin(2, keepdim=True)) / spacing
    tops = place.amax(2).tolist()
    sizes = [[_first(top, o) + o + 1 for top, o in zip(row, orders, strict=True)] for row in tops]
    cells = _count(sizes, spacing)
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


def _count(sizes: list[list[int]], spacing: float) -> int:
    """Return the cells of the largest grid, or raise a ValueError if they are too many."""
    cells = max(math.prod(size) for size in sizes)
    if cells > CELLS:
        raise ValueError(
            f"a grid of {cells} cells is needed, more than {CELLS}; raise the sigmas or the "
            f"spacing ({spacing} now), or use backend='permutohedral' or 'exact'"
        )
    return cells


def _only_levels(points: Points) -> bool:
    """Whether pixels are on the CPU and have no features but the 256 levels of three colours."""
    colors = points.colors
    levels = colors.dtype == torch.uint8 and colors.shape[1] == 3
    return levels and not len(points.positions) and colors.device.type == "cpu"


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


def filter_levels(points: Points, values: Tensor, spacing: float, orders: Sequence[int]) -> Tensor:
    """Filter images by whole-number colours alone on the CPU, one after the other.

    Splines are looked up by level, and no colours need to be merged first. Pixels are summed in
    float64: on flat images a cell gets 200,000 equal values, whose float32 sum is off by 0.2 %.

    Args:
        points: B images, uint8 `(B, 3, N)` and no positions.
        values: `(B, K, N)`.
        spacing: Of the cells, in standard deviations.
        orders: Spline order of each channel.

    Returns:
        `(B, K, N)`.
    """
    filtered = torch.empty_like(values, memory_format=torch.contiguous_format)
    scales = [sigma * spacing for sigma in points.sigmas]
    taps = (orders[0] + 1, orders[1] + 1)
    for colors, value, out in zip(points.colors, values.detach(), filtered, strict=True):
        cells, weights, size = _level_splines(colors, scales, orders)
        count = 2 * _count([size], spacing)
        steps = (2 * size[1] * size[2], 2 * size[2])
        cells *= torch.tensor([*steps, 2])[:, None]
        blurs = [
            _gaussian(length, spacing, order, values)
            for length, order in zip(size, orders, strict=True)
        ]
        blurs[2] = torch.kron(blurs[2], torch.eye(2).to(values))  # the map stays behind the cell
        where, start = colors.contiguous().numpy(), cells.numpy().view(np.uint64)
        along = (taps, (np.uint64(steps[0]), np.uint64(steps[1])))
        maps, found = value.contiguous().numpy(), out.numpy()
        for k in range(0, len(maps), 2):
            pair = [k, min(k + 1, len(maps) - 1)]  # the last of an odd number goes twice
            table = weights.new_zeros(count)
            sources = (maps[pair[0]], maps[pair[1]])
            spread_colors(where, sources, start, weights.numpy(), *along, table.numpy())
            table = table.to(values)
            for blur in blurs:  # each moves its axis to the end
                table = table.view(len(blur), -1).T @ blur
            splines, targets = weights.to(values).numpy(), (found[pair[0]], found[pair[1]])
            read_colors(where, table.flatten().numpy(), start, splines, *along, targets)
    return filtered


def _level_splines(
    colors: Tensor, scales: list[float], orders: Sequence[int]
) -> tuple[Tensor, Tensor, list[int]]:
    """Tabulate the splines of the 256 levels of an image's channels.

    Args:
        colors: uint8 `(3, N)`; the lowest level of a channel is at place 0.
        scales: Levels per cell.
        orders: Of the splines.

    Returns:
        First cell of each level `(3, 256)`, int64, right between the lowest and the highest; the
        weights from it on, float64 `(3, 256, 4)`; and the cells per axis, four beyond the highest
        level's first on the last axis, on which the kernels take four whatever its order.
    """
    low, high = colors.aminmax(dim=1)
    levels = torch.arange(256) - low[:, None].double()
    cells, weights = levels.long(), levels.new_zeros(3, 256, 4)
    for i, (scale, order) in enumerate(zip(scales, orders, strict=True)):
        cells[i], splines = _splines(levels[i] / scale, order)
        weights[i, :, : order + 1] = splines.T
    last = cells.gather(1, high.long()[:, None])[:, 0].tolist()
    counts = (orders[0] + 1, orders[1] + 1, 4)
    return cells, weights, [cell + count for cell, count in zip(last, counts, strict=True)]


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
    """Return the `(length, length)` blur between the cells of an axis.

    Weights below the fourth root of the smallest number, 3e-10 in float32, are 0: the product of
    three axes and a value is no denormal number, which processors take hundreds of cycles for.
    """
    variance = 1 / spacing**2 - (order + 1) / 6
    cell = torch.arange(length, device=like.device, dtype=like.dtype)
    square = (cell[:, None] - cell).square()
    blur = torch.exp(square * (-0.5 / variance)) * (1 / (spacing * math.sqrt(variance)))
    return blur.where(blur > torch.finfo(like.dtype).tiny ** 0.25, 0)
