"""A user's own images: class folders or a CSV manifest, with masks and boxes where there are any.

Class folders, the layout of most classification sets:

    root/train/<class>/*.jpg     root/val/<class>/*.jpg     root/test/<class>/*.jpg
    root/masks/val/<class>/<same name>.png    (optional; non-zero pixels are the object)
    root/boxes.csv                            (optional; header `image,x0,y0,x1,y1`, pixels)

Splits that are missing are drawn from `train`, the same fraction of every class and groups whole,
by a seed of its own. `root/manifest.csv` (or `manifest=`) takes the place of the folders; see
`data/manifest.py`.
"""

from __future__ import annotations

import csv
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsl_zoo.data.base import ZooDataModule, find_images
from wsl_zoo.data.manifest import (
    SHOWN_PROBLEMS,
    Box,
    DataError,
    Record,
    Splits,
    class_names_of,
    parse_boxes,
    read_manifest,
    read_rows,
    suggestion,
)

SPLITS = ("train", "val", "test")
BOX_COLUMNS = ("image", "x0", "y0", "x1", "y1")


class FolderData(ZooDataModule):
    """Images of your own.

    Args:
        root: Folder with `train/<class>/...`, or with `manifest.csv`, or (a flat set) directly with
            one folder per class.
        manifest: A manifest elsewhere; its paths start at `root` if that is given, else beside it.
        classes: Class names in label order; default: sorted.
        val_fraction: Part of every class drawn from `train` where there is no `val`; 0: none.
        test_fraction: The same for `test`; both are parts of what `train` holds before any draw.
        split_seed: Seed of that draw (apart from `seed`, so that runs share their splits).
        negatives: Name of the class whose images hold nothing to be localised, e.g. "normal".
        **kwargs: See `ZooDataModule`.
    """

    def __init__(
        self,
        root: str | None = None,
        manifest: str | None = None,
        classes: list[str] | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        negatives: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if root is None and manifest is None:
            raise ValueError("give root= (a folder of class folders) or manifest= (a CSV file)")
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction} must be >= 0 and "
                "leave something to train on"
            )
        self.root = Path(root) if root is not None else None
        self.manifest = Path(manifest) if manifest is not None else self._manifest_in(self.root)
        self.classes = classes
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.split_seed = split_seed
        self.negatives = negatives
        self._names: list[str] | None = None

    @staticmethod
    def _manifest_in(root: Path | None) -> Path | None:
        manifest = root / "manifest.csv" if root is not None else None
        return manifest if manifest is not None and manifest.is_file() else None

    @property
    def class_names(self) -> list[str]:
        """Names given, or those of the folders or the manifest, sorted."""
        if self.classes:
            return self.classes
        if self._names is None:
            if self.manifest is not None:
                self._names = class_names_of(read_rows(self.manifest))
            else:
                self._names = [folder.name for folder in self._class_folders(self._train_folder())]
        return self._names

    @property
    def negative_class(self) -> int | None:
        """Index of the class `negatives`.

        Raises:
            ValueError: There is no such class.
        """
        if self.negatives is None:
            return None
        if self.negatives not in self.class_names:
            raise ValueError(
                f"negatives={self.negatives!r} is none of the classes {', '.join(self.class_names)}"
            )
        return self.class_names.index(self.negatives)

    def _train_folder(self) -> Path:
        assert self.root is not None
        if not self.root.is_dir():
            raise DataError(f"Folder {self.root}", ["it does not exist or is no folder"])
        train = self.root / "train"
        return train if train.is_dir() else self.root

    def _class_folders(self, folder: Path) -> list[Path]:
        reserved = {*SPLITS, "masks"} if folder == self.root else set()
        folders = [
            path
            for path in sorted(folder.iterdir())
            if path.is_dir() and not path.name.startswith(".") and path.name not in reserved
        ]
        if not folders:
            raise DataError(f"Folder {folder}", ["expected one folder of images per class in it"])
        return folders

    def read(self) -> Splits:
        """Read the manifest or the folders, and draw the splits that are missing."""
        if self.manifest is not None:
            splits, _ = read_manifest(self.manifest, self.root, self.class_names)
        else:
            splits = self._read_folders()
        if "train" not in splits:
            raise DataError(
                str(self.manifest or self.root),
                [f"there is no 'train' split; found: {', '.join(splits) or 'none'}"],
            )
        unknown = [
            f"split {name!r} would never be used: expected 'train', 'val...' or 'test...'"
            for name in splits
            if name != "train" and not name.startswith(("val", "test"))
        ]
        if unknown:
            raise DataError(str(self.manifest or self.root), unknown)
        left = 1.0
        for name, fraction in self.fractions.items():
            if fraction and not any(split.startswith(name) for split in splits):
                splits["train"], splits[name] = self._draw(splits["train"], fraction / left, name)
                left -= fraction
        return splits

    def _read_folders(self) -> Splits:
        assert self.root is not None
        boxes = self._read_boxes(self.root / "boxes.csv")
        used: set[str] = set()
        splits: Splits = {}
        problems: list[str] = []
        for split in SPLITS:
            folder = self._train_folder() if split == "train" else self.root / split
            if not folder.is_dir():
                continue
            for class_folder in self._class_folders(folder):
                if class_folder.name not in self.class_names:
                    near = suggestion(class_folder.name, self.class_names)
                    problems.append(f"{class_folder}: unknown class{near}")
                    continue
                label = self.class_names.index(class_folder.name)
                try:
                    images = find_images(class_folder)
                except DataError as error:
                    problems.append(f"{class_folder}: {error.problems[0]}")
                    continue
                for image in images:
                    name = image.relative_to(self.root).as_posix()
                    used.add(name)
                    splits.setdefault(split, []).append(
                        Record(
                            image=image,
                            label=label,
                            masks=self._masks_of(image),
                            boxes=boxes[name][1] if name in boxes else None,
                            place=name,
                        )
                    )
        lost = [(line, name) for name, (line, _) in boxes.items() if name not in used]
        problems += [
            f"boxes.csv, line {line}: no image {name!r}"
            + (suggestion(name, used) if i < SHOWN_PROBLEMS else "")  # slow in large data sets
            for i, (line, name) in enumerate(lost)
        ]
        if problems:
            raise DataError(f"Folder {self.root}", problems)
        return splits

    def _masks_of(self, image: Path) -> tuple[Path, ...]:
        assert self.root is not None
        stem = (self.root / "masks" / image.relative_to(self.root)).with_suffix("")
        candidates = [stem.with_name(stem.name + ending) for ending in (".png", ".bmp", ".tif")]
        return tuple(path for path in candidates if path.is_file())[:1]

    @staticmethod
    def _read_boxes(path: Path) -> dict[str, tuple[int, tuple[Box, ...]]]:
        """Return the first line and the boxes of every image listed."""
        if not path.is_file():
            return {}
        boxes: dict[str, tuple[int, tuple[Box, ...]]] = {}
        problems = []
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if tuple(reader.fieldnames or ()) != BOX_COLUMNS:
                found = ",".join(reader.fieldnames or ())
                problem = f"expected the header {','.join(BOX_COLUMNS)}, found {found}"
                raise DataError(f"{path}, line 1", [problem])
            for row in reader:
                numbers = [*(row[name] or "" for name in BOX_COLUMNS[1:]), *row.get(None, ())]
                try:
                    box = parse_boxes(" ".join(numbers))
                except ValueError as error:
                    problems.append(f"line {reader.line_num}: {error}")
                else:
                    line, others = boxes.get(row["image"].strip(), (reader.line_num, ()))
                    boxes[row["image"].strip()] = (line, others + box)
        if problems:
            raise DataError(str(path), problems)
        return boxes

    def _draw(
        self, records: list[Record], fraction: float, name: str
    ) -> tuple[list[Record], list[Record]]:
        """Take a fraction of every class (whole groups together) out of `records`."""
        rng = random.Random(f"{self.split_seed}-{name}")
        taken: set[str] = set()
        for label in range(len(self.class_names)):
            units = sorted({r.group or str(r.image) for r in records if r.label == label})
            rng.shuffle(units)
            count = min(round(fraction * len(units)) or 1, len(units) - 1)  # some must stay
            others = [unit for unit in units if unit not in taken]  # a group may have many labels
            taken.update(others[: max(0, count - (len(units) - len(others)))])
        drawn = [replace(r) for r in records if (r.group or str(r.image)) in taken]
        rest = [r for r in records if (r.group or str(r.image)) not in taken]
        return rest, drawn


class UnlabelledImages(ZooDataModule):
    """Images to predict on, with nothing known of them.

    Args:
        classes: The classes of the model that predicts.
        **kwargs: See `ZooDataModule`; `predict_images` says where the images are.
    """

    def __init__(self, classes: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.predict_images is None:
            raise ValueError("UnlabelledImages needs predict_images= (a folder or an image)")
        self.classes = classes

    @property
    def class_names(self) -> list[str]:
        """The names given."""
        return self.classes

    def read(self) -> Splits:
        """Return no split: there is nothing to train or to test on."""
        return {}
