"""Compiled CPU kernels of the bilateral grid: splines of each pixel, spread and read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from wsl_zoo.losses.lattice_kernels import entry_point

Floats = NDArray[Any]
Keys = NDArray[np.int64]


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
