"""Compiled CPU kernels of the localisation metrics: score histograms, and boxes at every threshold.

`level_ious` finds what OpenCV's `findContours` would find at all 255 thresholds of a map of bytes,
in two sweeps over its pixels instead of 255 passes. Pixels are added from bright to dark and joined
to their eight neighbours by union-find (Tarjan, JACM 1975): each component carries its bounding box
and lives unchanged over a range of thresholds, where it is scored once. What a contour box is:

- The outer contour of a component has the component's bounding box.
- The contour of a hole (a 4-connected part of the background that does not reach the border) has
  the hole's bounding box widened by one pixel on each side. Holes are the components of a second
  sweep, from dark to bright over four neighbours.
- `contourArea` of an outer contour is the area of the polygon through the pixel centres: the
  number of 2 x 2 windows inside the component, its holes filled, plus half the number of those with
  three pixels inside. It is never below that of a hole. The components of the hole-filled map (each
  pixel takes the lowest maximum over all 4-connected paths to the border) are the outermost
  components of all thresholds, so one sweep over it finds them all. Of equal areas OpenCV lists
  first the contour whose first pixel comes last in raster order.

The kernels release the global interpreter lock, so images run in threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

LEVELS = 256
SPANS = 9  # 1, 2, 4, ..., 256 levels
BLOCK = 1024  # pixels whose bins are found before they are counted


def entry_point(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call; keep the result on disk where there is a place."""
    try:
        return njit(function, nogil=True, cache=True)
    except RuntimeError:  # no writable folder
        return njit(function, nogil=True)


@entry_point
def histogram(scores: NDArray[Any], mask: NDArray[np.uint8], bins: int) -> NDArray[np.int32]:
    """Count the scores of background and foreground pixels.

    Bin `k < n` is `k * (1 / n) <= score < (k + 1) * (1 / n)`, bin n holds the ones: `n * score` is
    corrected against the edges as the protocol computes them, so counts are exact.
    The arithmetic of a block of pixels is vectorised; its counting is not, and goes to two copies
    in turn, since a count that was just written is slow to read.

    Args:
        scores: `(N,)` float32 or float64.
        mask: `(N,)` 0, 1, or 255, which counts nowhere.
        bins: Number n of thresholds below 1.

    Returns:
        `(2, n + 1)`, background first; `(0, 0)` if a score is no number in [0, 1], or a mask value
        none of the three.
    """
    width = 1.0 / bins
    row = bins + 1
    counts = np.zeros((2, 3 * row), np.int32)
    place = np.empty(BLOCK, np.int32)
    for begin in range(0, len(scores), BLOCK):
        count = min(BLOCK, len(scores) - begin)
        part, labels = scores[begin : begin + count], mask[begin : begin + count]
        bad = np.int32(0)
        for i in range(count):
            score = np.float64(part[i])
            good = (score >= 0.0) & (score <= 1.0)
            score = score if good else np.float64(0.0)
            k = np.int32(score * bins)
            edge = np.float64(k)
            k = k - np.int32(score < edge * width) + np.int32(score >= (edge + 1.0) * width)
            k = min(k, np.int32(bins - 1)) if score < 1.0 else np.int32(bins)
            label = np.int32(labels[i])
            kind = label if label < 2 else (np.int32(2) if label == 255 else np.int32(3))
            bad |= np.int32(not good) | np.int32(kind == 3)
            place[i] = kind * row + k
        if bad:
            return np.zeros((0, 0), np.int32)
        for i in range(count):
            counts[i & 1, place[i]] += 1
    return (counts[0, : 2 * row] + counts[1, : 2 * row]).reshape(2, row)


@entry_point
def quantize(scores: NDArray[Any], levels: NDArray[np.uint8]) -> np.bool_:
    """Write `floor(255 * score)`, in float64; return whether all scores lie in [0, 1].

    Args:
        scores: `(N,)` float32 or float64.
        levels: `(N,)`, written to.
    """
    fine: Any = np.bool_(True)
    for i in range(len(scores)):
        score = np.float64(scores[i])
        good = (score >= 0.0) & (score <= 1.0)
        fine &= good
        levels[i] = np.uint8(255.0 * score if good else 0.0)
    return fine


@njit(nogil=True)
def _sorted_by_level(levels: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Positions of a padded map's inner pixels by ascending level, and where each level starts."""
    height, width = levels.shape
    start = np.zeros(LEVELS + 1, np.int32)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            start[np.int64(levels[y, x]) + 1] += 1
    for value in range(LEVELS):
        start[value + 1] += start[value]
    place = start.copy()
    order = np.empty(start[LEVELS], np.int32)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            value = levels[y, x]
            order[place[value]] = y * width + x
            place[value] += 1
    return order, start


@njit(nogil=True)
def _find(parent: NDArray[np.int32], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(nogil=True)
def _long(number: Any) -> int:
    """Widen a state, so that what it is passed to is compiled once."""
    return np.int64(number)  # type: ignore[return-value]


@entry_point
def best_iou(x0: int, y0: int, x1: int, y1: int, boxes: NDArray[np.int64]) -> float:
    """Highest IoU of one box with the boxes `(n, 4)`, ends inclusive."""
    best = 0.0
    area = (x1 - x0 + 1) * (y1 - y0 + 1)
    for i in range(len(boxes)):
        width = min(x1, boxes[i, 2]) - max(x0, boxes[i, 0]) + 1
        height = min(y1, boxes[i, 3]) - max(y0, boxes[i, 1]) + 1
        if width > 0 and height > 0:
            overlap = width * height
            true = (boxes[i, 2] - boxes[i, 0] + 1) * (boxes[i, 3] - boxes[i, 1] + 1)
            best = max(best, overlap / (area + true - overlap))
    return best


@njit(nogil=True)
def _offer(
    table: NDArray[np.float64], low: int, high: int, key: float, tie: float, iou: float
) -> None:
    """Let a box that is there at levels `low..high` compete by (key, tie) for each of them.

    Two overlapping spans of a power of two cover any range; `_winners` hands them down.
    """
    k = 0
    while 2 << k <= high - low + 1:
        k += 1
    for at in (low, high + 1 - (1 << k)):
        best = table[k, at]
        if key > best[0] or (key == best[0] and tie > best[1]):
            best[0], best[1], best[2] = key, tie, iou


@njit(nogil=True)
def _winners(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of each level's winner; 0 where no box competed."""
    for k in range(SPANS - 1, 0, -1):
        half = 1 << (k - 1)
        for low in range(LEVELS - (1 << k) + 1):
            span = table[k, low]
            for at in (low, low + half):
                best = table[k - 1, at]
                if span[0] > best[0] or (span[0] == best[0] and span[1] > best[1]):
                    best[0], best[1], best[2] = span[0], span[1], span[2]
    ious = np.empty(LEVELS)
    for level in range(LEVELS):
        ious[level] = max(table[0, level, 2], 0.0)
    return ious


# The state of a component: bounding box, level of the last change, number of pixels, twice the
# polygon area, first pixel in raster order.
X0, Y0, X1, Y1, BORN, COUNT, AREA, FIRST = range(8)


@njit(nogil=True)
def _join(state: NDArray[np.int32], parent: NDArray[np.int32], a: int, b: int) -> int:
    """Unite two components; return the root."""
    if state[a, COUNT] < state[b, COUNT]:
        a, b = b, a
    parent[b] = a
    into, other = state[a], state[b]
    into[X0] = min(into[X0], other[X0])
    into[Y0] = min(into[Y0], other[Y0])
    into[X1] = max(into[X1], other[X1])
    into[Y1] = max(into[Y1], other[Y1])
    into[COUNT] += other[COUNT]
    into[AREA] += other[AREA]
    into[FIRST] = min(into[FIRST], other[FIRST])
    return a


@njit(nogil=True)
def _offer_component(
    part: NDArray[np.int32],
    low: int,
    boxes: NDArray[np.int64],
    size: tuple[int, int],
    by_area: bool,
    table: NDArray[np.float64],
) -> None:
    """Score a component that is about to change, for the levels from `low` that it lived at."""
    height, width = size
    iou = best_iou(
        part[X0], part[Y0], min(part[X1] + 1, width - 1), min(part[Y1] + 1, height - 1), boxes
    )
    if by_area:
        _offer(table, low, _long(part[BORN]) - 1, float(part[AREA]), float(part[FIRST]), iou)
    elif iou > 0:
        _offer(table, low, _long(part[BORN]) - 1, iou, 0.0, iou)


@njit(nogil=True)
def _sweep_components(
    levels: NDArray[np.uint8],
    boxes: NDArray[np.int64],
    by_area: bool,
    table: NDArray[np.float64],
) -> None:
    """Enter the components of `levels > t` at every t: all, or (`by_area`) those without holes.

    Args:
        levels: `(H + 2, W + 2)`, padded by one pixel.
        boxes: `(n, 4)` true boxes.
        by_area: Compete by polygon area; right only where no component has a hole.
        table: Competition of `_offer`.
    """
    stride = levels.shape[1]
    size = (levels.shape[0] - 2, stride - 2)
    order, start = _sorted_by_level(levels)
    parent = np.full(levels.size, -1, np.int32)
    state = np.empty((levels.size, 8), np.int32)
    # In turn around the pixel, so that a 2 x 2 window is three entries in a row.
    around = (-1, -stride - 1, -stride, 1 - stride, 1, stride + 1, stride, stride - 1)
    for level in range(LEVELS - 1, 0, -1):
        for i in range(start[level], start[level + 1]):
            p = order[i]
            root = -1
            for step in around:
                if parent[p + step] < 0:
                    continue
                other = _find(parent, p + step)
                if other == root:
                    continue
                if state[other, BORN] != level:
                    _offer_component(state[other], level, boxes, size, by_area, table)
                    state[other, BORN] = level
                root = other if root < 0 else _join(state, parent, root, other)
            y = p // stride - 1
            x = p - (y + 1) * stride - 1
            if root < 0:
                root = p
                part = state[p]
                part[X0], part[Y0], part[X1], part[Y1] = x, y, x, y
                part[BORN], part[COUNT], part[AREA], part[FIRST] = level, 1, 0, p
            else:
                part = state[root]
                part[X0] = min(part[X0], x)
                part[Y0] = min(part[Y0], y)
                part[X1] = max(part[X1], x)
                part[Y1] = max(part[Y1], y)
                part[COUNT] += 1
                part[FIRST] = min(part[FIRST], p)
                if by_area:
                    for corner in (0, 2, 4, 6):  # a window with a third pixel, or a fourth
                        inside = 0
                        for j in range(corner, corner + 3):
                            inside += parent[p + around[j % 8]] >= 0
                        part[AREA] += inside >= 2
            parent[p] = root
    for i in range(start[1], len(order)):
        if parent[order[i]] == order[i]:
            _offer_component(state[order[i]], 0, boxes, size, by_area, table)


@njit(nogil=True)
def _sweep_holes(
    levels: NDArray[np.uint8], boxes: NDArray[np.int64], table: NDArray[np.float64]
) -> None:
    """Enter the holes of `levels > t` at every t; arguments as of `_sweep_components`."""
    stride = levels.shape[1]
    height, width = levels.shape[0] - 2, stride - 2
    order, start = _sorted_by_level(levels)
    parent = np.full(levels.size, -1, np.int32)
    state = np.empty((levels.size, 8), np.int32)
    outside = 0  # the corner of the padding stands for all that reaches the border
    parent[outside] = outside
    for level in range(LEVELS):
        for i in range(start[level], start[level + 1]):
            p = order[i]
            y = p // stride - 1
            x = p - (y + 1) * stride - 1
            root = outside if x == 0 or y == 0 or x == width - 1 or y == height - 1 else -1
            for step in (-stride, -1, 1, stride):
                if parent[p + step] < 0:
                    continue
                other = _find(parent, p + step)
                if other == root:
                    continue
                if other != outside and state[other, BORN] != level:
                    part = state[other]
                    iou = best_iou(
                        part[X0] - 1,
                        part[Y0] - 1,
                        min(part[X1] + 2, width - 1),
                        min(part[Y1] + 2, height - 1),
                        boxes,
                    )
                    if iou > 0:
                        _offer(table, _long(part[BORN]), level - 1, iou, 0.0, iou)
                    part[BORN] = level
                if root < 0:
                    root = other
                elif root == outside or other == outside:
                    parent[root] = parent[other] = root = outside
                else:
                    root = _join(state, parent, root, other)
            if root < 0:
                root = p
                part = state[p]
                part[X0], part[Y0], part[X1], part[Y1] = x, y, x, y
                part[BORN], part[COUNT], part[AREA], part[FIRST] = level, 1, 0, p
            elif root != outside:
                part = state[root]
                part[X0] = min(part[X0], x)
                part[Y0] = min(part[Y0], y)
                part[X1] = max(part[X1], x)
                part[Y1] = max(part[Y1], y)
                part[COUNT] += 1
            parent[p] = root


@njit(nogil=True)
def _fill_holes(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Raise every pixel of a padded map to the lowest maximum over 4-connected ways out."""
    stride = levels.shape[1]
    height, width = levels.shape[0] - 2, stride - 2
    flat = levels.ravel()
    filled = np.zeros(levels.size, np.uint8)
    after = np.full(levels.size, -2, np.int32)  # next in the queue of its level; -2: not reached
    queue = np.full(LEVELS, -1, np.int32)
    for y in range(height + 2):
        for x in range(width + 2):
            p = y * stride + x
            if x == 0 or y == 0 or x == width + 1 or y == height + 1:
                after[p] = -1  # padding: never entered
            elif x == 1 or y == 1 or x == width or y == height:
                filled[p] = flat[p]
                after[p] = queue[flat[p]]
                queue[flat[p]] = p
    for level in range(LEVELS):
        while queue[level] >= 0:
            p = queue[level]
            queue[level] = after[p]
            for step in (-stride, -1, 1, stride):
                q = p + step
                if after[q] == -2:
                    value = max(flat[q], np.uint8(level))
                    filled[q] = value
                    after[q] = queue[value]
                    queue[value] = q
    return filled.reshape(levels.shape)


@entry_point
def level_ious(
    levels: NDArray[np.uint8], boxes: NDArray[np.int64], largest: bool
) -> NDArray[np.float64]:
    """Best IoU between predicted and true boxes at every level of a map of bytes.

    Args:
        levels: `(H, W)` bytes.
        boxes: `(n, 4)` true boxes xyxy, ends inclusive.
        largest: Predict the box of the contour of largest polygon area only, else of every contour.

    Returns:
        `(256,)`, entry t for the binary map `levels > t`; where that is empty, the IoU of the box
        (0, 0, 0, 0).
    """
    height, width = levels.shape
    padded = np.zeros((height + 2, width + 2), np.uint8)
    highest = 0
    for y in range(height):
        for x in range(width):
            padded[y + 1, x + 1] = levels[y, x]
            highest = max(highest, int(levels[y, x]))
    table = np.full((SPANS, LEVELS, 3), -1.0)
    if largest:
        _sweep_components(_fill_holes(padded), boxes, True, table)
    else:
        _sweep_components(padded, boxes, False, table)
        _sweep_holes(padded, boxes, table)
    ious = _winners(table)
    for level in range(highest, LEVELS):
        ious[level] = best_iou(0, 0, 0, 0, boxes)
    return ious
