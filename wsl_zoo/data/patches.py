"""What CAMELYON16 and CAMELYON17 share: normal or tumor patches, and the splits of the survey.

Rony et al., "Deep Weakly-Supervised Learning Methods for Classification and Localization in
Histology Images: A Survey", MELBA 2023, arXiv 1909.03354: `valcl` judges classification and shows
no mask; `valpx`, a few patches per class of it, is the only split whose masks selection may see.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.manifest import DataError, Record, Splits
from wsl_zoo.data.metadata import draw, read_split

CLASSES = ["normal", "tumor"]
NORMAL, TUMOR = range(2)
SPLITS = ("train", "valcl", "valpx", "test")


class TumorPatches(ZooDataModule):
    """Normal (0) and tumor (1) patches in the splits `train`, `valcl`, `valpx` and `test`.

    Args:
        root: Folder that the paths of the lists start from.
        metadata: Folder of the lists; default: `root`.
        valpx_per_class: Patches of every class of `valcl` that become `valpx` where no list says.
        split_seed: Seed of what is drawn here (apart from `seed`, so that runs share their splits).
        **kwargs: See `ZooDataModule`.
    """

    unannotated = frozenset({"valcl"})
    shared = (frozenset({"valcl", "valpx"}),)

    def __init__(
        self,
        root: str,
        metadata: str | None = None,
        valpx_per_class: int = 5,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if valpx_per_class < 1:
            raise ValueError(f"valpx_per_class={valpx_per_class} must be >= 1")
        self.root = Path(root)
        self.metadata = Path(metadata) if metadata is not None else self.root
        self.valpx_per_class = valpx_per_class
        self.split_seed = split_seed

    @property
    def class_names(self) -> list[str]:
        """Normal (0) and tumor (1)."""
        return list(CLASSES)

    @property
    def negative_class(self) -> int:
        """Normal: no pixel of such a patch is tumor."""
        return NORMAL

    @abstractmethod
    def read(self) -> Splits:
        """Return the four splits."""

    def read_lists(
        self, folder: Path, names: Sequence[str], problems: list[str]
    ) -> dict[str, list[Record]]:
        """Read metadata folders with masks (see `data/metadata.py`).

        Args:
            folder: Holds the folders of the splits.
            names: The splits; `valpx` is read too where it has a folder beside `valcl`.
            problems: Receives everything that is wrong, with file and line.
        """
        names = [*names, *(["valpx"] if "valcl" in names and (folder / "valpx").is_dir() else [])]
        return {name: read_split(folder / name, self.root, problems, masks=True) for name in names}

    def complete(self, splits: Splits, *, masks: bool = True) -> Splits:
        """Return the four splits in order, with `valpx` drawn from `valcl` where it is not given.

        Args:
            splits: `train`, `valcl`, `test` and perhaps `valpx`.
            masks: Pixels are annotated: normal patches are background as a whole, and tumor patches
                of `valpx` and `test` have masks. Otherwise records stay as they are.

        Raises:
            DataError: There are other splits, or a tumor patch of `valpx` or `test` has no mask.
        """
        where = f"{type(self).__name__} {self.metadata}"
        if {*splits, "valpx"} != set(SPLITS):
            expected = "expected the splits train, valcl, test and perhaps valpx"
            raise DataError(where, [f"{expected}, found {', '.join(splits) or 'none'}"])
        if masks:
            splits = {name: list(map(_with_background, split)) for name, split in splits.items()}
        if "valpx" not in splits:
            splits["valpx"], _ = draw(splits["valcl"], self.valpx_per_class, self.split_seed)
        problems = [
            f"{record.place}: tumor patch {record.image.name} has no mask"
            for name in ("valpx", "test")
            for record in splits[name]
            if masks and record.label == TUMOR and not record.masks
        ]
        if problems:
            raise DataError(where, problems)
        return {name: splits[name] for name in SPLITS}


def _with_background(record: Record) -> Record:
    empty = not record.masks and (record.empty_mask or record.label == NORMAL)
    return replace(record, empty_mask=empty)
