"""BACH, ICIAR 2018 part A: 400 photographs of breast biopsies of 2048 x 1536 pixels, four classes.

Paper: Aresta et al., "BACH: Grand challenge on breast cancer histology images", Medical Image
Analysis 2019, arXiv 1808.04277.

Original layout: `Photos/{Benign,InSitu,Invasive,Normal}/*.tif`, 100 of each, 0.42 µm a pixel; any
image format is read. `ICIARData` has the same photographs as an ordered set with other splits.

Splits are positions in the sorted list of all 400 files. Those of `test` keep patients apart from
the others; they are ranges of the benchmark `kaiko-ai/eva`. By the protocol of CLIP-IT (arXiv
2504.16181) every 20th of the other 268 is `val`: 254 to train, 14 to validate, 132 to test. As so
few choose a checkpoint at random, the 268 may be dealt into stratified folds instead; which of them
share a patient is not published, so that folds may divide patients.

Deviation: the published code crops the central square of 1536 x 1536 pixels. Here the network sees
the whole photograph in one size: `image_size: [224, 298]` keeps its aspect.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.folds import require_number
from wsl_zoo.data.manifest import DataError, Record, Splits
from wsl_zoo.data.ordinal import read_class_folders

CLASSES = ("Benign", "InSitu", "Invasive", "Normal")
PER_CLASS = 100
# Positions in the sorted list of files, ends exclusive; a class starts at every hundred.
TRAIN = ((0, 41), (59, 60), (90, 139), (169, 240), (258, 260), (273, 345), (368, 400))
TEST = ((41, 59), (60, 90), (139, 169), (240, 258), (260, 273), (345, 368))
EVERY = 20  # of the positions to train on, this one is `val`
SMALLEST = 52  # positions to train on of the class that has the fewest, Benign
NUMBER = re.compile(r"([0-9]+)\.[^.]+$")


class BACHData(ZooDataModule):
    """Breast biopsies of BACH part A in four unordered classes, tested on patients of their own.

    Training does not augment unless told to, as published.

    Args:
        root: Folder with `Photos/<class>/*.tif`, or `Photos` itself.
        fold: The fold of the 268 that is `val`; None: every 20th of them, as published.
        folds: Number of folds, 2 to 52.
        split_seed: Seed of the folds (apart from `seed`, so that runs share their splits).
        hflip: Probability of a horizontal flip in training.
        **kwargs: See `ZooDataModule`.

    Raises:
        ValueError: There is no such fold, or no such number of folds.
    """

    def __init__(
        self,
        root: str,
        fold: int | None = None,
        folds: int = 5,
        split_seed: int = 0,
        hflip: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(hflip=hflip, **kwargs)
        self.positions = bach_positions(fold, folds, split_seed)
        """Positions in the sorted list of files, by split."""
        self.root = Path(root)

    @property
    def class_names(self) -> list[str]:
        """Benign (0), InSitu (1), Invasive (2) and Normal (3)."""
        return list(CLASSES)

    def read(self) -> Splits:
        """Read the class folders and deal the photographs by their positions.

        Raises:
            DataError: All problems at once; so is a class of another number of photographs.
        """
        photos = self.root / "Photos" if (self.root / "Photos").is_dir() else self.root
        if not photos.is_dir():
            raise DataError(f"BACHData {photos}", ["it does not exist or is no folder"])
        problems: list[str] = []
        records = read_class_folders(photos, CLASSES, problems)
        for label, name in enumerate(CLASSES):
            problems += _order_problems(name, [r for r in records if r.label == label])
        if problems:
            raise DataError(f"BACHData {photos}", problems)
        return {split: [records[i] for i in own] for split, own in self.positions.items()}


def bach_positions(fold: int | None = None, folds: int = 5, seed: int = 0) -> dict[str, list[int]]:
    """Return the positions of `train`, `val` and `test` in the sorted list of all 400 files.

    Args:
        fold: The fold that is `val`; None: every 20th of the 268 that are not `test`.
        folds: Number of folds; each has the same part of every class, up to one photograph.
        seed: Seed of the folds.

    Raises:
        ValueError: There is no such fold, or no such number of folds.

    >>> [len(positions) for positions in bach_positions().values()]
    [254, 14, 132]
    """
    trained, tested = (
        [i for part in starmap(range, parts) for i in part] for parts in (TRAIN, TEST)
    )
    if fold is None:
        val = set(trained[::EVERY])
    else:
        if not 2 <= folds <= SMALLEST:
            raise ValueError(
                f"folds={folds} must be 2 to {SMALLEST}, so that every fold has every class"
            )
        require_number("fold", fold, folds)
        val = set(_shuffled_by_class(trained, seed)[fold::folds])
    return {
        "train": [i for i in trained if i not in val],
        "val": [i for i in trained if i in val],
        "test": tested,
    }


def _shuffled_by_class(positions: Sequence[int], seed: int) -> list[int]:
    """Return positions class after class, each class in random order."""
    order: list[int] = []
    for label, name in enumerate(CLASSES):
        own = [i for i in positions if i // PER_CLASS == label]
        random.Random(f"bach-{seed}-{name}").shuffle(own)
        order += own
    return order


def _order_problems(name: str, records: Sequence[Record]) -> list[str]:
    """Say why the sorted files of a class are not those that positions count."""
    if not records:
        return []  # that the folder is missing or empty has been said
    if len(records) != PER_CLASS:
        return [
            f"{name}: {len(records)} photographs, expected {PER_CLASS}: the splits are positions "
            "in the sorted list of all files"
        ]
    found = [NUMBER.search(record.image.name) for record in records]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) == len(records) and numbers != sorted(numbers):
        i = next(i for i in range(1, len(numbers)) if numbers[i] < numbers[i - 1])
        return [
            f"{name}: {records[i].image.name} sorts behind a higher number: pad the numbers with "
            "zeros (b001.tif), the splits are positions in the sorted list of all files"
        ]
    return []
