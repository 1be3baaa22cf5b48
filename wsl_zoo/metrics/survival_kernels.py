"""Time-dependent AUC and concordance index of one risk in O(N log N), compiled by numba."""

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


def areas(
    risk: NDArray[np.float64],
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    weights: NDArray[np.float64],
    horizons: NDArray[np.float64],
    at_horizon: bool,
    max_fpr: float,
    tolerance: float,
) -> NDArray[np.float64]:
    """Return the area under the ROC curve up to a false positive rate, at each horizon.

    Args:
        risk: `(N,)`.
        time: `(N,)`.
        event: `(N,)`.
        weights: `(N,)` of samples that are cases.
        horizons: `(Y,)`.
        at_horizon: Whether those who were censored exactly at a horizon are controls.
        max_fpr: Upper limit of the false positive rate; above 1 there is none.
        tolerance: Neighbours in the order of risk that differ by no more are equal.
    """
    order = np.argsort(-risk, kind="stable")
    columns = (risk[order], time[order], event[order], weights[order])
    found: NDArray[np.float64] = _areas(*columns, horizons, at_horizon, max_fpr, tolerance)
    return found


@entry_point
def _areas(
    risk: NDArray[np.float64],
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    weights: NDArray[np.float64],
    horizons: NDArray[np.float64],
    at_horizon: bool,
    max_fpr: float,
    tolerance: float,
) -> NDArray[np.float64]:
    n = len(risk)
    found = np.full(len(horizons), np.nan)
    for y in range(len(horizons)):
        horizon = horizons[y]
        positive = 0.0
        negative = 0.0
        for i in range(n):
            if time[i] <= horizon and event[i]:
                positive += weights[i]
            elif time[i] > horizon or (at_horizon and time[i] == horizon):
                negative += 1.0
        if positive == 0 or negative == 0:
            continue
        hits = 0.0
        alarms = 0.0
        reached = 0.0  # the curve so far: true and false positive rate
        passed = 0.0
        area = 0.0
        for i in range(n):
            if time[i] <= horizon and event[i]:
                hits += weights[i]
            elif time[i] > horizon or (at_horizon and time[i] == horizon):
                alarms += 1.0
            if i + 1 == n or risk[i] - risk[i + 1] > tolerance:
                rate = hits / positive
                false = alarms / negative
                if false > max_fpr:  # up to the limit, on the line to this point
                    rate = reached + (rate - reached) * (max_fpr - passed) / (false - passed)
                    area += (max_fpr - passed) * (reached + rate) / 2
                    break
                area += (false - passed) * (reached + rate) / 2
                reached = rate
                passed = false
        found[y] = area
    return found


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
