"""NCT-CRC-HE: tiles of 224 x 224 pixels (0.5 µm each) of colorectal slides in nine tissues.

Paper: Kather et al., "Predicting survival from colorectal cancer histology slides using
deep learning: A retrospective multicenter study", PLOS Medicine 2019 (data: Zenodo 1214456).

Classes: adipose, background, debris, lymphocytes, mucus, smooth muscle, normal mucosa,
cancer-associated stroma, tumor epithelium. Original layout:

    NCT-CRC-HE-100K/{ADI,BACK,DEB,LYM,MUC,MUS,NORM,STR,TUM}/*.tif   100,000 tiles
    CRC-VAL-HE-7K/{...}/*.tif                                         7,180 tiles, other patients

The protocol of CLIP-IT (arXiv 2504.16181): `test` is the 7K, and of the 100K a stratified fifth is
`val`. No tile tells its patient, so `train` and `val` share patients and neighbouring tiles: `val`
flatters, and only `test` shows how a model generalises.

Deviation: the published fifth is that of scikit-learn's `train_test_split` with seed 42, which
depends on the order of files and on numpy's generator. Ours has the same numbers of tiles and
depends on seed and names alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.folds import shuffled, warn_unless_whole
from wsl_zoo.data.manifest import DataError, Record, Splits
from wsl_zoo.data.ordinal import read_class_folders
from wsl_zoo.data.synthetic import class_counts

CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
TRAINED, TESTED = "NCT-CRC-HE-100K", "CRC-VAL-HE-7K"
PUBLISHED = {TRAINED: 100_000, TESTED: 7_180}


class CRCData(ZooDataModule):
    """Tiles of NCT-CRC-HE-100K for training and validation, of CRC-VAL-HE-7K for the test.

    Training does not augment unless told to, as published.

    Args:
        root: Folder that holds `NCT-CRC-HE-100K` and `CRC-VAL-HE-7K`.
        val_fraction: Part of every class of the 100K that is `val`, in (0, 1).
        split_seed: Seed of that draw (apart from `seed`, so that runs share their splits).
        hflip: Probability of a horizontal flip in training.
        **kwargs: See `ZooDataModule`.

    Raises:
        ValueError: `val_fraction` is not in (0, 1).
    """

    def __init__(
        self,
        root: str,
        val_fraction: float = 0.2,
        split_seed: int = 42,
        hflip: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(hflip=hflip, **kwargs)
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction={val_fraction} must be in (0, 1)")
        self.root = Path(root)
        self.val_fraction = val_fraction
        self.split_seed = split_seed

    @property
    def class_names(self) -> list[str]:
        """The nine tissues by their folders, ADI (0) to TUM (8)."""
        return list(CLASSES)

    def read(self) -> Splits:
        """Read the class folders of both sets, and draw `val` from the 100K.

        Raises:
            DataError: All problems of the folders at once.
        """
        problems: list[str] = []
        tiles = {name: read_tiles(self.root, name, problems) for name in PUBLISHED}
        if problems:
            raise DataError(f"CRCData {self.root}", problems)
        found = {name: len(records) for name, records in tiles.items()}
        warn_unless_whole(self.root, found, PUBLISHED)
        names: dict[str, list[str]] = {name: [] for name in CLASSES}
        for record in tiles[TRAINED]:
            names[CLASSES[record.label]].append(record.place)
        val = draw_stratified(names, self.val_fraction, self.split_seed)
        return {
            "train": [record for record in tiles[TRAINED] if record.place not in val],
            "val": [record for record in tiles[TRAINED] if record.place in val],
            "test": tiles[TESTED],
        }


def read_tiles(root: Path, name: str, problems: list[str]) -> list[Record]:
    """Return the tiles of one of the two sets, placed by their paths below the root.

    Args:
        root: Folder that holds the sets.
        name: Folder of the set.
        problems: Receives everything that is wrong.
    """
    if not (root / name).is_dir():
        problems.append(f"there is no folder {name}")
        return []
    wrong: list[str] = []
    records = read_class_folders(root / name, CLASSES, wrong)
    problems += [f"{name}: {text}" for text in wrong]
    return [replace(record, place=f"{name}/{record.place}") for record in records]


def draw_stratified(names: Mapping[str, Sequence[str]], fraction: float, seed: int) -> set[str]:
    """Draw a fraction of all names, rounded up, and of every class its part of them.

    The parts are rounded by the largest remainder, as scikit-learn does it; of equal remainders the
    first class's comes first, where scikit-learn draws. The first so many of the names of a class,
    as `shuffled` orders them, are taken.

    Args:
        names: Names by class.
        fraction: Part to draw, in (0, 1).
        seed: Seed of the draw.

    >>> drawn = draw_stratified({"a": ["a1", "a2", "a3", "a4"], "b": ["b1", "b2"]}, 0.5, seed=0)
    >>> sorted(name[0] for name in drawn)
    ['a', 'a', 'b']
    """
    sizes = [len(own) for own in names.values()]
    counts = class_counts(math.ceil(fraction * sum(sizes)), sizes)
    drawn: set[str] = set()
    for (name, own), count in zip(names.items(), counts, strict=True):
        drawn.update(shuffled(own, f"crc-{seed}-{name}")[:count])
    return drawn
