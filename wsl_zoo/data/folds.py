"""How samples, cases and patients are dealt into splits and folds: the same on every machine."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor


def require_number(what: str, number: int, count: int) -> None:
    """Raise a `ValueError` unless a split or fold is one of `count`."""
    if number not in range(count):
        raise ValueError(f"{what}={number} does not exist: there are {what}s 0 to {count - 1}")


def check_folds(fold: int, folds: int) -> None:
    """Raise a `ValueError` unless there are three folds at least, and this one."""
    if folds < 3:
        raise ValueError(f"folds={folds}: one to test, one to validate and one to train, >= 3")
    require_number("fold", fold, folds)


def shuffled(units: Iterable[str], seed: str) -> list[str]:
    """Return each unit once, in an order that depends on seed and names alone.

    Names count without their endings, so that copies in other image formats have the same splits.
    """
    order = sorted(set(units), key=os.path.splitext)
    random.Random(seed).shuffle(order)
    return order


def one_fold(order: Sequence[str], fold: int, folds: int) -> tuple[list[str], list[str]]:
    """Deal a sequence into folds and return one of them, and all others.

    >>> one_fold("abcdefg", fold=1, folds=3)
    (['b', 'e'], ['a', 'c', 'd', 'f', 'g'])
    """
    return list(order[fold::folds]), [u for i, u in enumerate(order) if i % folds != fold]


def fifths(order: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the first fifth, a fifth of the others and what is left; fifths are rounded down.

    >>> [len(part) for part in fifths(["subject"] * 82)]
    [16, 13, 53]
    """
    test = len(order) // 5
    val = test + (len(order) - test) // 5
    return list(order[:test]), list(order[test:val]), list(order[val:])


def deal_cases(tiles: Iterable[tuple[str, int]], folds: int, seed: int) -> dict[str, int]:
    """Deal cases into folds so that each has about the same part of the tiles of every class.

    The cases with the largest parts of a class come first, and each goes to the fold that has the
    smallest part of its classes; `seed` orders cases of equal parts.

    Args:
        tiles: Case and class of every tile.
        folds: Number of folds.
        seed: Seed of the order.

    Returns:
        The fold of every case, in [0, folds).
    """
    counts: dict[str, Counter[int]] = {}
    for case, label in tiles:
        counts.setdefault(case, Counter())[label] += 1
    whole = sum(counts.values(), Counter[int]())
    cases = sorted(counts)
    random.Random(seed).shuffle(cases)
    cases.sort(key=lambda case: -sum(n / whole[k] for k, n in sorted(counts[case].items())))
    held: list[Counter[int]] = [Counter() for _ in range(folds)]
    fold_of = {}
    for case in cases:
        own = sorted(counts[case].items())
        overlaps = [sum(fold[k] * n / whole[k] ** 2 for k, n in own) for fold in held]
        sizes = [fold.total() for fold in held]
        fold_of[case] = min(range(folds), key=lambda f: (overlaps[f], sizes[f]))
        held[fold_of[case]] += counts[case]
    return fold_of


def deal_groups(
    rows: Iterable[tuple[str, int]], fold: int, folds: int, seed: int
) -> dict[str, str]:
    """Return the split of every group: one fold is `test`, the next `val`, the others `train`.

    Args:
        rows: Group and class of every sample.
        fold: The fold that is `test`.
        folds: Number of folds.
        seed: Seed of `deal_cases`.
    """
    parts = {fold: "test", (fold + 1) % folds: "val"}
    dealt = deal_cases(rows, folds, seed)
    return {group: parts.get(own, "train") for group, own in dealt.items()}


def deal_rows(
    groups: Sequence[str], labels: Sequence[int], fold: int, folds: int, seed: int
) -> list[str]:
    """Return the split of every row: one fold is `test`, the next `val`, the others `train`.

    Groups are never divided, and folds are as alike in their classes as groups allow.

    Raises:
        ValueError: Fewer than 3 folds, no such fold, or fewer groups than folds.
    """
    check_folds(fold, folds)
    if len(set(groups)) < folds:
        raise ValueError(f"folds={folds}: there are only {len(set(groups))} groups to deal")
    split_of = deal_groups(zip(groups, labels, strict=True), fold, folds, seed)
    return [split_of[group] for group in groups]


def one_of_each(groups: Sequence[str], count: int, seed: str) -> Tensor:
    """Return subsets (N, S) bool with one random row of each group.

    Args:
        groups: Per row its group.
        count: Subsets S.
        seed: Seed.
    """
    rows: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        rows.setdefault(group, []).append(i)
    rng = random.Random(seed)
    subset = torch.zeros(len(groups), count, dtype=torch.bool)
    for s in range(count):
        subset[[rng.choice(own) for own in rows.values()], s] = True
    return subset


def warn_unless_whole(root: Path, found: Mapping[str, int], published: Mapping[str, int]) -> None:
    """Warn of a set that is not the published one, so that its splits or numbers are others.

    Args:
        root: Of the set, or its list.
        found: How many there are of what `published` counts.
        published: How many there should be.
    """
    other = [
        f"{found.get(what, 0):,} {what} (published: {number:,})"
        for what, number in published.items()
        if found.get(what, 0) != number
    ]
    if other:
        rank_zero_warn(f"{root} is not the whole published set: {', '.join(other)}")
