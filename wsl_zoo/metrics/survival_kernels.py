"""The concordance index of one risk in O(N log N), compiled by numba."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsl_zoo.metrics.kernels import entry_point


def concordance(
    risk: NDArray[np.float64],
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    weights: NDArray[np.float64],
    tolerance: float,
) -> float:
    """Return the weighted share of comparable pairs in order; NaN without any.

    Args:
        risk: `(N,)`.
        time: `(N,)`.
        event: `(N,)`.
        weights: `(N,)` of the pairs in which a sample has the earlier event.
        tolerance: Risks that differ by no more are equal.
    """
    if not len(risk):
        return float("nan")
    by_risk = np.argsort(risk, kind="stable")
    # Of one time, the censored come first on the way back: events are compared with them.
    by_time = np.lexsort((event, -time))
    return float(_concordance(risk, time, event, weights, by_risk, by_time, tolerance))


@entry_point
def _enter(tree: NDArray[np.int64], rank: int) -> None:
    while rank < len(tree):
        tree[rank] += 1
        rank += rank & -rank


@entry_point
def _count(tree: NDArray[np.int64], rank: int) -> int:
    total = 0
    while rank > 0:
        total += tree[rank]
        rank -= rank & -rank
    return total


@entry_point
def _concordance(
    risk: NDArray[np.float64],
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    weights: NDArray[np.float64],
    by_risk: NDArray[np.int64],
    by_time: NDArray[np.int64],
    tolerance: float,
) -> float:
    n = len(risk)
    rank = np.empty(n, np.int64)  # by risk, from 1
    below = np.empty(n, np.int64)  # how many risks are lower, ties apart
    upto = np.empty(n, np.int64)  # how many are lower or tied
    low = 0
    high = 0
    for i in range(n):
        own = risk[by_risk[i]]
        while own - risk[by_risk[low]] > tolerance:
            low += 1
        while high < n and risk[by_risk[high]] - own <= tolerance:
            high += 1
        rank[by_risk[i]] = i + 1
        below[by_risk[i]] = low
        upto[by_risk[i]] = high
    # A Fenwick tree over ranks counts the samples that are later.
    tree = np.zeros(n + 1, np.int64)
    entered = 0
    group = 0  # where the samples of this time begin
    right = 0.0
    pairs = 0.0
    for position in range(n):
        j = by_time[position]
        if time[by_time[group]] != time[j]:
            # Events of one time are not compared; they enter when it is over.
            for k in range(group, position):
                if event[by_time[k]]:
                    _enter(tree, rank[by_time[k]])
                    entered += 1
            group = position
        if not event[j]:
            _enter(tree, rank[j])
            entered += 1
        elif weights[j] != 0:
            lower = _count(tree, below[j])
            tied = _count(tree, upto[j]) - lower
            right += weights[j] * (lower + 0.5 * tied)
            pairs += weights[j] * entered
    return right / pairs if pairs > 0 else np.nan
