"""SSIM maps, and sums and maxima over regions, of images on the CPU: compiled, row by row.

A window's sums are made of rows that are still in the cache, so that an image is read once. The
kernels release the global interpreter lock, so images run in threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsl_zoo.metrics.kernels import entry_point


@entry_point
def ssim_map(
    sr: NDArray[np.float64],
    hr: NDArray[np.float64],
    weights: NDArray[np.float64],
    c1: float,
    c2: float,
) -> NDArray[np.float64]:
    """Return SSIM `(C, H - K + 1, W - K + 1)` of every window inside `(C, H, W)`.

    The formula is that of `Comparison.ssim_map`.

    Args:
        sr: `(C, H, W)`.
        hr: `(C, H, W)`.
        weights: `(K,)` of a line of the window.
        c1: C1.
        c2: C2.
    """
    channels, height, width = sr.shape
    taps = len(weights)
    rows, columns = height - taps + 1, width - taps + 1
    values = np.empty((channels, rows, columns))
    # Means of difference, target, squared difference, and of both squares: by column, by window.
    down, whole = np.empty((4, width)), np.empty((4, columns))
    for c in range(channels):
        for y in range(rows):
            down[:] = 0.0
            for k in range(taps):
                weight = weights[k]
                for x in range(width):
                    made, true = sr[c, y + k, x], hr[c, y + k, x]
                    d = made - true
                    down[0, x] += weight * d
                    down[1, x] += weight * true
                    down[2, x] += weight * (d * d)
                    down[3, x] += weight * (made * made + true * true)
            whole[:] = 0.0
            for i in range(4):
                for k in range(taps):
                    weight = weights[k]
                    for x in range(columns):
                        whole[i, x] += weight * down[i, x + k]
            for x in range(columns):
                mean_d, mean_h = whole[0, x], whole[1, x]
                power = (mean_h + mean_d) * (mean_h + mean_d) + mean_h * mean_h
                same = 1.0 - mean_d * mean_d / (power + c1)
                alike = 1.0 - (whole[2, x] - mean_d * mean_d) / (whole[3, x] - power + c2)
                values[c, y, x] = same * alike
    return values


@entry_point
def region_sums(
    values: NDArray[np.float64], regions: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return sums and numbers of pixels, `(R,)`, of a map `(H, W)` over regions `(R, H, W)`.

    What lies outside does not matter, be it NaN. Rows are summed first, for their rounding's sake.
    """
    totals, counts = np.zeros(len(regions)), np.zeros(len(regions), np.int64)
    for r in range(len(regions)):
        for y in range(values.shape[0]):
            total, count = 0.0, 0
            for x in range(values.shape[1]):
                if regions[r, y, x]:
                    total += values[y, x]
                    count += 1
            totals[r] += total
            counts[r] += count
    return totals, counts


@entry_point
def region_maxima(
    values: NDArray[np.float64], regions: NDArray[np.bool_], least: float
) -> NDArray[np.float64]:
    """Return the maxima `(R,)` of a map `(H, W)` over regions `(R, H, W)`, `least` of an empty one.

    Args:
        values: None is NaN.
        regions: The regions.
        least: No value is below it.
    """
    highest = np.full(len(regions), least)
    for r in range(len(regions)):
        for y in range(values.shape[0]):
            for x in range(values.shape[1]):
                if regions[r, y, x] and values[y, x] > highest[r]:
                    highest[r] = values[y, x]
    return highest
