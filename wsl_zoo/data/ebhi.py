"""EBHI-Seg: tiles of 224 x 224 pixels of colorectal biopsies in six classes, with masks.

Shi et al., "EBHI-Seg: A novel enteroscope biopsy histopathological hematoxylin and eosin image
dataset for image segmentation tasks", Frontiers in Medicine 2023, arXiv 2212.00532 (CC BY 4.0).
Masks show the glands of every class, normal ones too. Two layouts:

    index.csv  images/<name>.jpg  masks/<name>.png       columns name,case,label,ordinal
    <Class>/image/<tile>.png  <Class>/label/<tile>.png   the public release, e.g. `High-grade IN`

A case is the part of a tile's name before its first hyphen, in lower case: GT2012165-1-400-001 is
of case gt2012165. A case may have tiles of several classes. There are no published splits: cases
are dealt into folds, as balanced by class as they allow, and never divided.
"""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from wsl_zoo.data.base import ZooDataModule, find_images
from wsl_zoo.data.folds import check_folds, deal_groups
from wsl_zoo.data.manifest import DataError, Record, Splits, suggestion

Task = Literal["malignant", "grade", "class"]
COLUMNS = ("name", "case", "label", "ordinal")
GRADES = ("normal", "polyp", "low_grade_in", "high_grade_in", "adenocarcinoma")
CLASSES = (*GRADES, "serrated_adenoma")  # the last one has no grade
# Task -> names of its labels, and the label of every class that takes part.
TASKS: dict[Task, tuple[list[str], dict[str, int]]] = {
    "malignant": (
        ["benign", "malignant"],
        {"normal": 0, "polyp": 0, "high_grade_in": 1, "adenocarcinoma": 1},
    ),
    "grade": (list(GRADES), {name: k for k, name in enumerate(GRADES)}),
    "class": (list(CLASSES), {name: k for k, name in enumerate(CLASSES)}),
}


class EBHIData(ZooDataModule):
    """Colorectal biopsy tiles of EBHI-Seg, split by case.

    Args:
        root: Folder with `index.csv`, `images` and `masks`, or with one folder per class.
        task: What the label is: "malignant" (normal and polyp against high-grade IN and
            adenocarcinoma), "grade" (0 normal, 1 polyp, 2 low-grade IN, 3 high-grade IN,
            4 adenocarcinoma) or "class" (those and serrated adenoma). Other tiles are left out.
        fold: The fold that is `test`; the next one is `val`, the others are `train`.
        folds: Number of folds, at least 3. They are the same for every task.
        split_seed: Seed of the folds (apart from `seed`, so that runs share their splits).
        **kwargs: See `ZooDataModule`.
    """

    def __init__(
        self,
        root: str,
        task: Task = "malignant",
        fold: int = 0,
        folds: int = 5,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if task not in TASKS:
            raise ValueError(f"task={task!r} must be one of {', '.join(get_args(Task))}")
        check_folds(fold, folds)
        self.root = Path(root)
        self.task: Task = task
        self.fold = fold
        self.folds = folds
        self.split_seed = split_seed

    @property
    def class_names(self) -> list[str]:
        """Names of the task's labels, in their order."""
        return list(TASKS[self.task][0])

    def read(self) -> Splits:
        """Read the index or the class folders, and deal the cases into folds.

        Raises:
            DataError: All problems at once.
        """
        indexed = (self.root / "index.csv").is_file()
        tiles = read_index(self.root) if indexed else read_class_folders(self.root)
        cases = ((tile.group, tile.label) for tile in tiles)
        split_of = deal_groups(cases, self.fold, self.folds, self.split_seed)
        _, labels = TASKS[self.task]
        splits: Splits = {"train": [], "val": [], "test": []}
        for tile in tiles:
            name = CLASSES[tile.label]
            if name in labels:
                splits[split_of[tile.group]].append(replace(tile, label=labels[name]))
        return splits


def read_index(root: Path) -> list[Record]:
    """Read the tiles of an `index.csv`: labels are indices of `CLASSES`, groups are cases.

    Where there is a folder `masks`, every tile must have one.

    Raises:
        DataError: All problems at once, with their lines.
    """
    path = root / "index.csv"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"EBHI-Seg {root}", [f"{path} cannot be read ({error})"]) from error
    reader = csv.DictReader(lines, skipinitialspace=True)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        expected = f"expected the columns {','.join(COLUMNS)}; missing: {', '.join(missing)}"
        raise DataError(f"EBHI-Seg {root}", [f"index.csv, line 1: {expected}"])
    problems: list[str] = []
    tiles: dict[str, Record] = {}
    images = _by_stem(root / "images", problems)
    masks = _by_stem(root / "masks", problems) if (root / "masks").is_dir() else None
    for row in reader:
        place = f"index.csv, line {reader.line_num}"
        name, case, label, grade = ((row[key] or "").strip() for key in COLUMNS)
        expected = str(GRADES.index(label)) if label in GRADES else ""
        if not (name and case):
            problems.append(f"{place}: expected {','.join(COLUMNS)}, name or case is empty")
        elif label not in CLASSES:
            problems.append(f"{place}: unknown class {label!r}{suggestion(label, CLASSES)}")
        elif grade != expected:
            problems.append(f"{place}: {label} has grade {expected!r}, found {grade!r}")
        elif name in tiles:
            problems.append(f"{place}: {name} is listed twice (first: {tiles[name].place})")
        else:
            tile = Record(root, CLASSES.index(label), group=case.lower(), place=place)
            tiles[name] = _with_files(tile, name, images, masks, problems)
    if problems:
        raise DataError(f"EBHI-Seg {root}", problems)
    return list(tiles.values())


def read_class_folders(root: Path) -> list[Record]:
    """Read the tiles of the public release: labels are indices of `CLASSES`, groups are cases.

    Names of classes count without case, blanks and hyphens. Where a class has a folder `label`,
    each of its tiles must have a mask in it.

    Raises:
        DataError: All problems at once.
    """
    problems: list[str] = []
    tiles: list[Record] = []
    folders = sorted(path for path in root.glob("[!.]*") if path.is_dir())
    if not folders:
        problems.append("it holds neither index.csv nor one folder per class")
    for folder in folders:
        name = re.sub("[^a-z]+", "_", folder.name.lower())
        if name not in CLASSES:
            problems.append(f"{folder.name}: unknown class{suggestion(name, CLASSES)}")
            continue
        images = _by_stem(folder / "image", problems)
        labels = folder / "label"
        masks = _by_stem(labels, problems) if labels.is_dir() else None
        for stem, image in images.items():
            place = image.relative_to(root).as_posix()
            tile = Record(image, CLASSES.index(name), group=case_of(stem), place=place)
            tiles.append(_with_files(tile, stem, images, masks, problems))
    if problems:
        raise DataError(f"EBHI-Seg {root}", problems)
    return tiles


def case_of(tile: str) -> str:
    """Return the case that the name of a tile tells.

    >>> case_of("GTxc2012436-2-400-001")
    'gtxc2012436'
    """
    return tile.partition("-")[0].lower()


def _by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    try:
        return {path.stem: path for path in find_images(folder)}
    except DataError as error:
        problems.append(f"{folder}: {error.problems[0]}")
        return {}


def _with_files(
    tile: Record,
    stem: str,
    images: dict[str, Path],
    masks: dict[str, Path] | None,
    problems: list[str],
) -> Record:
    """Return a tile with its image and mask; add to `problems` what of them is missing."""
    for what, files in (("image", images), ("mask", masks)):
        if files and stem not in files:  # that a whole folder is empty has been said
            problems.append(f"{tile.place}: there is no {what} {stem}")
    mask = None if masks is None else masks.get(stem)
    return replace(tile, image=images.get(stem, tile.image), masks=() if mask is None else (mask,))
