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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

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

Boxes = dict[str, tuple[int, tuple[Box, ...]]]
"""First line and boxes of every image of a `boxes.csv`, by its path relative to the root."""


class Labelled(Protocol):
    """What has a label."""

    @property
    def label(self) -> int:
        """Class index in [0, K)."""


T = TypeVar("T", bound=Labelled)


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
        self.root = Path(root) if root is not None else None
        self.manifest = Path(manifest) if manifest is not None else self._manifest_in(self.root)
        self.classes = classes
        self.fractions = fractions_of(val_fraction, test_fraction)
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
                assert self.root is not None
                self._names = [
                    folder.name for folder in class_folders(train_folder(self.root), self.root)
                ]
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
        draw_missing(splits, lambda r: r.group or str(r.image), self.fractions, self.split_seed)
        return splits

    def _read_folders(self) -> Splits:
        assert self.root is not None
        boxes = read_boxes(self.root / "boxes.csv")
        used: set[str] = set()
        splits: Splits = {}
        problems: list[str] = []
        for split, label, folder in labelled_folders(self.root, self.class_names, problems):
            try:
                images = find_images(folder)
            except DataError as error:
                problems.append(f"{folder}: {error.problems[0]}")
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
        problems += lost_boxes(boxes, used)
        if problems:
            raise DataError(f"Folder {self.root}", problems)
        return splits

    def _masks_of(self, image: Path) -> tuple[Path, ...]:
        assert self.root is not None
        stem = (self.root / "masks" / image.relative_to(self.root)).with_suffix("")
        candidates = [stem.with_name(stem.name + ending) for ending in (".png", ".bmp", ".tif")]
        return tuple(path for path in candidates if path.is_file())[:1]


def fractions_of(val_fraction: float, test_fraction: float) -> dict[str, float]:
    """Return the parts to draw, by split.

    Raises:
        ValueError: A part is negative, or nothing is left to train on.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise ValueError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction} must be >= 0 and "
            "leave something to train on"
        )
    return {"val": val_fraction, "test": test_fraction}


def train_folder(root: Path) -> Path:
    """Return the folder of the training classes: `train`, else the root itself (a flat set).

    Raises:
        DataError: The root does not exist.
    """
    if not root.is_dir():
        raise DataError(f"Folder {root}", ["it does not exist or is no folder"])
    train = root / "train"
    return train if train.is_dir() else root


def class_folders(folder: Path, root: Path, what: str = "images") -> list[Path]:
    """Return the folders of the classes in that of a split, sorted; in the root, no split's.

    Raises:
        DataError: There is none; `what` they should hold.
    """
    reserved = {*SPLITS, "masks"} if folder == root else set()
    folders = [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and path.name not in reserved
    ]
    if not folders:
        raise DataError(f"Folder {folder}", [f"expected one folder of {what} per class in it"])
    return folders


def labelled_folders(
    root: Path, class_names: Sequence[str], problems: list[str], what: str = "images"
) -> Iterator[tuple[str, int, Path]]:
    """Yield split, label and folder of every class of every split that exists.

    Args:
        root: Holds the splits or, flat, the classes.
        class_names: The K classes.
        problems: Receives the folders of unknown classes.
        what: What the folders should hold, for messages.
    """
    for split in SPLITS:
        parent = train_folder(root) if split == "train" else root / split
        for folder in class_folders(parent, root, what) if parent.is_dir() else ():
            if folder.name in class_names:
                yield split, class_names.index(folder.name), folder
            else:
                problems.append(f"{folder}: unknown class{suggestion(folder.name, class_names)}")


def read_boxes(path: Path) -> Boxes:
    """Read a `boxes.csv`; without the file, nothing.

    Raises:
        DataError: Another header, or bad boxes (all at once).
    """
    if not path.is_file():
        return {}
    boxes: Boxes = {}
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


def lost_boxes(boxes: Boxes, images: Collection[str]) -> list[str]:
    """Name what `boxes.csv` lists, but is none of the images."""
    lost = [(line, name) for name, (line, _) in boxes.items() if name not in images]
    return [
        f"boxes.csv, line {line}: no image {name!r}"
        + (suggestion(name, images) if i < SHOWN_PROBLEMS else "")  # slow in large data sets
        for i, (line, name) in enumerate(lost)
    ]


def draw_missing(
    splits: dict[str, list[T]], unit: Callable[[T], str], fractions: Mapping[str, float], seed: int
) -> None:
    """Draw the splits that are missing from `train`, the same fraction of every class.

    Args:
        splits: The items of every split, changed in place.
        unit: Name of what an item belongs to (image, group, video), which is drawn as a whole.
        fractions: Parts of `train` before any draw, by split; 0: none.
        seed: Seed of the draw.
    """
    left = 1.0
    for name, fraction in fractions.items():
        if fraction and not any(split.startswith(name) for split in splits):
            taken = _draw(splits["train"], unit, fraction / left, random.Random(f"{seed}-{name}"))
            splits[name] = [item for item in splits["train"] if unit(item) in taken]
            splits["train"] = [item for item in splits["train"] if unit(item) not in taken]
            left -= fraction


def _draw(
    items: Sequence[T], unit: Callable[[T], str], fraction: float, rng: random.Random
) -> set[str]:
    """Return a fraction of the units of every class."""
    taken: set[str] = set()
    for label in sorted({item.label for item in items}):
        units = sorted({unit(item) for item in items if item.label == label})
        rng.shuffle(units)
        count = min(round(fraction * len(units)) or 1, len(units) - 1)  # some must stay
        others = [name for name in units if name not in taken]  # a group may have many labels
        taken.update(others[: max(0, count - (len(units) - len(others)))])
    return taken


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
