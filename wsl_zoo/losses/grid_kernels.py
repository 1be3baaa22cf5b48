"""Compiled CPU kernels of the bilateral grid: splines of each pixel, spread and read.

Two for features of any kind and number, two for whole-number colours alone, whose splines are
looked up in tables of the 256 levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from wsl_zoo.losses.lattice_kernels import entry_point

Floats = NDArray[Any]
Keys = NDArray[np.int64]
Levels = NDArray[np.uint8]
Cells = NDArray[np.uint64]


@njit(nogil=True)
def _taps(place: Floats, p: int, orders: Keys, strides: Keys, cells: Keys, weights: Floats) -> Any:
    """Write cell and weight of every tap of a pixel; return their number.

    Args:
        place: `(d, N)` in cells, from 0.
        p: The pixel.
        orders: `(d,)`, 1 to 3.
        strides: `(d,)`.
        cells: Overwritten, the last axis fastest.
        weights: Overwritten.
    """
    number = place.dtype.type
    one, spline = number(1), np.empty(4, place.dtype)
    cells[0], weights[0], count = 0, 1, 1
    for i in range(len(orders) - 1, -1, -1):
        order = orders[i]
        shifted = place[i, p] - number(0.5) * number(order - 1)
        first = np.floor(shifted)
        t = shifted - first
        s = one - t
        if order == 1:
            spline[0], spline[1] = s, t
        elif order == 2:
            spline[0], spline[2] = number(0.5) * s * s, number(0.5) * t * t
            spline[1] = one - spline[0] - spline[2]
        else:
            spline[0], spline[3] = s * s * s / number(6), t * t * t / number(6)
            spline[1] = ((number(3) * t - number(6)) * t * t + number(4)) / number(6)
            spline[2] = one - spline[0] - spline[1] - spline[3]
        start = np.int64(first) + order // 2
        for tap in range(order, -1, -1):  # the first, which the others start from, comes last
            along, step = spline[tap], (start + tap) * strides[i]
            for c in range(count):
                cells[tap * count + c] = cells[c] + step
                weights[tap * count + c] = weights[c] * along
        count *= order + 1
    return count


@entry_point
def spread(place: Floats, values: Floats, orders: Keys, strides: Keys, table: Floats) -> None:
    """Add the maps of an image to the grid.

    Args:
        place: `(d, N)` in cells, from 0.
        values: `(K, N)`.
        orders: `(d,)` of the splines, 1 to 3.
        strides: `(d,)` of the table.
        table: Added to; flat, cells times K, the map fastest.
    """
    most = 4 ** len(orders)
    cells, weights = np.empty(most, np.int64), np.empty(most, place.dtype)
    for p in range(place.shape[1]):
        count = _taps(place, p, orders, strides, cells, weights)
        for k in range(len(values)):
            value = values[k, p]
            for c in range(count):
                table[cells[c] + k] += weights[c] * value


@entry_point
def read(place: Floats, table: Floats, orders: Keys, strides: Keys, values: Floats) -> None:
    """Read the maps of an image back from the grid.

    Args:
        place: `(d, N)` in cells, from 0.
        table: `(K, cells)`.
        orders: `(d,)` of the splines, 1 to 3.
        strides: `(d,)` of the cells.
        values: `(K, N)`, overwritten.
    """
    most = 4 ** len(orders)
    cells, weights = np.empty(most, np.int64), np.empty(most, place.dtype)
    for p in range(place.shape[1]):
        count = _taps(place, p, orders, strides, cells, weights)
        for k in range(len(values)):
            total = place.dtype.type(0)
            for c in range(count):
                total += weights[c] * table[k, cells[c]]
            values[k, p] = total


@entry_point
def spread_colors(
    colors: Levels,
    maps: tuple[Floats, Floats],
    cells: Cells,
    weights: Floats,
    taps: tuple[int, int],
    steps: tuple[np.uint64, np.uint64],
    table: Floats,
) -> None:
    """Add two maps of an image to a grid over its colours alone.

    Four cells of the last axis are taken whatever its order, as a loop of known length is unrolled.
    Indices are unsigned: of others numba looks whether they count from the end.

    Args:
        colors: `(3, N)`.
        maps: Two of `(N,)`.
        cells: `(3, 256)` where in the table the cells of a level begin, to be summed over channels.
        weights: `(3, 256, 4)` of these cells, in the type of the table; 0 beyond the splines.
        taps: Number of cells along the first two axes.
        steps: From one cell to the next along these, in entries of the table.
        table: Added to; flat, the last axis and then the map fastest.
    """
    for p in range(colors.shape[1]):
        red, green, blue = colors[0, p], colors[1, p], colors[2, p]
        u, v = maps[0][p], maps[1][p]
        w0, w1 = weights[2, blue, 0], weights[2, blue, 1]
        w2, w3 = weights[2, blue, 2], weights[2, blue, 3]
        line = (w0 * u, w0 * v, w1 * u, w1 * v, w2 * u, w2 * v, w3 * u, w3 * v)
        start = cells[0, red] + cells[1, green] + cells[2, blue]
        for i in range(taps[0]):
            for j in range(taps[1]):
                w = weights[0, red, i] * weights[1, green, j]
                cell = start + np.uint64(i) * steps[0] + np.uint64(j) * steps[1]
                for k in range(8):
                    table[cell + np.uint64(k)] += w * line[k]


@entry_point
def read_colors(
    colors: Levels,
    table: Floats,
    cells: Cells,
    weights: Floats,
    taps: tuple[int, int],
    steps: tuple[np.uint64, np.uint64],
    maps: tuple[Floats, Floats],
) -> None:
    """Read two maps of an image back from a grid over its colours alone.

    Args:
        colors: `(3, N)`.
        table: As `spread_colors` leaves it.
        cells: As in `spread_colors`.
        weights: As in `spread_colors`.
        taps: As in `spread_colors`.
        steps: As in `spread_colors`.
        maps: Two of `(N,)`, overwritten.
    """
    one, two, four, six = np.uint64(1), np.uint64(2), np.uint64(4), np.uint64(6)
    for p in range(colors.shape[1]):
        red, green, blue = colors[0, p], colors[1, p], colors[2, p]
        w0, w1 = weights[2, blue, 0], weights[2, blue, 1]
        w2, w3 = weights[2, blue, 2], weights[2, blue, 3]
        u = v = table.dtype.type(0)
        start = cells[0, red] + cells[1, green] + cells[2, blue]
        for i in range(taps[0]):
            for j in range(taps[1]):
                w = weights[0, red, i] * weights[1, green, j]
                a = start + np.uint64(i) * steps[0] + np.uint64(j) * steps[1]
                b = a + one
                near, far = w0 * table[a] + w1 * table[a + two], w2 * table[a + four]
                u += w * (near + far + w3 * table[a + six])
                near, far = w0 * table[b] + w1 * table[b + two], w2 * table[b + four]
                v += w * (near + far + w3 * table[b + six])
        maps[0][p], maps[1][p] = u, v
