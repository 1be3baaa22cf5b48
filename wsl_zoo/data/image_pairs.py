"""A user's own pairs of images for super-resolution: a CSV manifest, `split,image,target[,group]`.

Paths are relative to the manifest's folder. An empty `image` is made from the target by
down-sampling. Splits are `train`, and names that begin with `val` and `test`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsl_zoo.data.manifest import DataError, suggestion
from wsl_zoo.data.pair_files import PairRecord
from wsl_zoo.data.pairs import PairDataModule
from wsl_zoo.data.tables import read_table

COLUMNS = ("split", "image", "target", "group")
REQUIRED = COLUMNS[:3]


class ImagePairsData(PairDataModule):
    """Pairs of your own.

    Args:
        manifest: The CSV, one row per pair; None: there are no pairs, only the images of
            `predict_images`.
        **kwargs: See `PairDataModule`.

    Raises:
        ValueError: Neither a manifest nor images to predict on.
    """

    def __init__(self, manifest: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if manifest is None and self.predict_images is None:
            what = "manifest= (a CSV of pairs) or predict_images= (a folder or an image)"
            raise ValueError(f"ImagePairsData needs {what}")
        self.manifest = None if manifest is None else Path(manifest)

    def read(self) -> dict[str, list[PairRecord]]:  # type: ignore[override]
        """Read the manifest; without one, return no split.

        Raises:
            DataError: All problems at once, with their lines.
        """
        if self.manifest is None:
            return {}
        frame = read_table(self.manifest, "Manifest")
        problems = [f"column {name!r} is missing" for name in REQUIRED if name not in frame.columns]
        problems += [
            f"unknown column {name!r}{suggestion(name, COLUMNS)}"
            for name in frame.columns
            if name not in COLUMNS
        ]
        if problems:
            expected = f"expected: {', '.join(COLUMNS)}"
            raise DataError(f"Manifest {self.manifest}, line 1", [*problems, expected])
        if "group" not in frame.columns:
            frame["group"] = ""
        splits: dict[str, list[PairRecord]] = {}
        for line, split, image, target, group in frame[list(COLUMNS)].itertuples():
            place = f"{self.manifest.name}, line {line}"
            if split != "train" and not split.startswith(("val", "test")):
                expected = "expected 'train', 'val...' or 'test...'"
                problems.append(f"{place}: split {split!r} would never be used: {expected}")
                continue
            if not target:
                problems.append(f"{place}: empty target")
                continue
            root = self.manifest.parent
            low, high = root / image if image else None, root / target
            splits.setdefault(split, []).append(PairRecord(low, high, group=group, place=place))
        if problems:
            self.refuse(problems, splits)
        return splits
