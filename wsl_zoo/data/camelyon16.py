"""CAMELYON16 as patches of 512 x 512 pixels (PNG) of lymph-node slides: normal (0) or tumor (1).

Ehteshami Bejnordi et al., "Diagnostic Assessment of Deep Learning Algorithms for Detection of Lymph
Node Metastases in Women With Breast Cancer", JAMA 2017. Protocol of the survey (arXiv 1909.03354):
15,664 test patches and a pool of 33,206, as many normal as tumor; five folds of the pool by class,
not by patient, of which one is `valcl`; `valpx` is five patches per class of `valcl`, the only ones
whose masks selection may see. Patches are read from lists, with masks (a normal patch needs none,
it is all background), the first two forms in the files of `data/metadata.py`:

    metadata/fold-<k>/{train,valcl,test}        published folds; `valpx` too, or it is drawn
    metadata/{train,test}                       the pool, which is dealt into folds here
    metadata/{train,valid,test}_s_0_f_<k>.csv   CAMELYON16-P512 of MAXMIN (arXiv 2011.07221), as in
                                                `data/lists.py`; `valid` is `valcl`

CAMELYON16-P512 has 24,348, 8,858 and 15,664 patches and is split by slide.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsl_zoo.data.lists import read_list
from wsl_zoo.data.manifest import DataError, Record, Splits
from wsl_zoo.data.patches import CLASSES, TUMOR, TumorPatches

FOLDS = 5
LISTS = {"train": "train", "valcl": "valid", "test": "test"}
SLIDE = re.compile(r"(?:normal|tumor|test)_[0-9]+", re.IGNORECASE)
FRACTION = re.compile(r"(?<![0-9.])[01]\.[0-9]+")


class Camelyon16Data(TumorPatches):
    """Patches of CAMELYON16.

    Args:
        root: Folder that the paths of the lists start from.
        metadata: Folder of the lists; default: `root`.
        fold: Fold, 0-4; its fifth of the pool is `valcl`.
        min_fraction: Leave out tumor patches whose file name states a smaller metastatic fraction
            (its last decimal number in [0, 1]); 0: keep all. Published lists start at 0.2.
        **kwargs: See `TumorPatches`; `split_seed` is also that of the folds dealt here.
    """

    def __init__(
        self,
        root: str,
        metadata: str | None = None,
        fold: int = 0,
        min_fraction: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, metadata, **kwargs)
        if fold not in range(FOLDS):
            raise ValueError(f"fold={fold} does not exist: there are folds 0 to {FOLDS - 1}")
        self.fold = fold
        self.min_fraction = min_fraction

    def read(self) -> Splits:
        """Read the lists of the fold, or deal the pool into folds."""
        problems: list[str] = []
        lists = self._lists(problems)
        splits = {name: self._patches(patches, problems) for name, patches in lists.items()}
        if problems:
            raise DataError(f"{type(self).__name__} {self.metadata}", problems)
        if "valcl" not in splits:
            splits["train"], splits["valcl"] = deal(splits["train"], self.fold, self.split_seed)
        return self.complete(splits)

    def _lists(self, problems: list[str]) -> Splits:
        """Return the patches as listed, without `valcl` where the lists are those of the pool."""
        folder = self.metadata / f"fold-{self.fold}"
        if not folder.is_dir() and any(self.metadata.glob("*_s_0_f_*.csv")):
            return {
                name: read_list(
                    self.metadata / f"{file}_s_0_f_{self.fold}.csv", self.root, CLASSES, problems
                )
                for name, file in LISTS.items()
            }
        if folder.is_dir():
            return self.read_lists(folder, ["train", "valcl", "test"], problems)
        return self.read_lists(self.metadata, ["train", "test"], problems)

    def _patches(self, records: list[Record], problems: list[str]) -> list[Record]:
        patches = []
        for record in records:
            if record.label == TUMOR and self.min_fraction:
                fraction = metastatic_fraction(record.image.name)
                if fraction is None:
                    problems.append(f"{record.place}: {record.image.name} states no fraction")
                elif fraction < self.min_fraction:
                    continue
            slide = SLIDE.search(record.image.as_posix())
            patches.append(replace(record, group=slide.group().lower() if slide else ""))
        return patches


def metastatic_fraction(name: str) -> float | None:
    """Return the last decimal number in [0, 1] of a file name, or None.

    >>> metastatic_fraction("tumor_036_x_12.5_y_7_0.3125.png")
    0.3125
    """
    fractions = [float(text) for text in FRACTION.findall(Path(name).stem)]
    return next((value for value in reversed(fractions) if value <= 1), None)


def deal(records: list[Record], fold: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Split records into those outside and those in a fold, class by class.

    A class is shuffled and cut into consecutive chunks of `ceil(n / 5)`; the last is the remainder.
    """
    inside: set[int] = set()
    for label in range(len(CLASSES)):
        indices = [i for i, record in enumerate(records) if record.label == label]
        random.Random(f"{seed}-{label}").shuffle(indices)
        size = -(-len(indices) // FOLDS)
        inside.update(indices[fold * size : (fold + 1) * size])
    return (
        [record for i, record in enumerate(records) if i not in inside],
        [record for i, record in enumerate(records) if i in inside],
    )
