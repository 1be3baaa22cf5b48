"""Data sets whose splits, labels, boxes or masks are given by a metadata folder.

See `data/metadata.py` for its files. ILSVRC, OpenImages and (with CUBV2) CUB are published so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.dataset import Source
from wsl_zoo.data.manifest import DataError, Record, Splits, validate
from wsl_zoo.data.metadata import class_names_of, draw, read_split


class WSOLData(ZooDataModule):
    """Images with a metadata folder that holds `train`, `val` and `test` (boxes).

    Args:
        root: Folder that the paths of the metadata start from.
        metadata: The metadata folder; default: `root`.
        proxy: Train on the images of `image_ids_proxy.txt` only.
        num_val_sample_per_class: Use this many images of every class of `val`, drawn without
            replacement (all of a class that has fewer); 0: all.
        split_seed: Seed of that draw (apart from `seed`, so that runs share their splits).
        **kwargs: See `ZooDataModule`.
    """

    masks: ClassVar[bool] = False
    """Whether `localization.txt` holds masks, not boxes."""

    def __init__(
        self,
        root: str,
        metadata: str | None = None,
        proxy: bool = False,
        num_val_sample_per_class: int = 0,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_val_sample_per_class < 0:
            raise ValueError(f"num_val_sample_per_class={num_val_sample_per_class} must be >= 0")
        self.root = Path(root)
        self.metadata = Path(metadata) if metadata is not None else self.root
        self.proxy = proxy
        self.num_val_sample_per_class = num_val_sample_per_class
        self.split_seed = split_seed
        self._names: list[str] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the folders that hold the training images of each class, in label order."""
        if self._names is None:
            self._names = class_names_of(self.metadata / "train")
        return self._names

    def images(self, split: str) -> Path:
        """Return the root of a split's images."""
        return self.root

    def read(self) -> Mapping[str, Source | Sequence[Record]]:
        """Read the splits whose folders exist."""
        return self.read_splits()

    def read_splits(self) -> Splits:
        """Read `train`, and `val` and `test` where they exist.

        Raises:
            DataError: All problems at once, with file and line, those of other files included.
        """
        problems: list[str] = []
        splits = {
            split: read_split(
                self.metadata / split,
                self.images(split),
                problems,
                masks=self.masks,
                proxy=self.proxy and split == "train",
            )
            for split in ("train", "val", "test")
            if split == "train" or (self.metadata / split / "image_ids.txt").is_file()
        }
        if problems:
            # A class or split may lack images only because its lines are among the bad ones.
            others = self.file_problems(splits)
            problems += [text for text in others if not text.startswith(("class ", "split "))]
            raise DataError(f"Metadata {self.metadata}", list(dict.fromkeys(problems)))
        if self.num_val_sample_per_class and "val" in splits:
            splits["val"], _ = draw(splits["val"], self.num_val_sample_per_class, self.split_seed)
        return splits

    def file_problems(self, splits: Splits) -> list[str]:
        """Return what `validate` finds."""
        try:
            validate(splits, self.class_names, shared=self.shared, verify=self.verify)
        except DataError as error:
            return error.problems
        return []
