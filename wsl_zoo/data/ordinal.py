"""Images whose classes have an order: biopsies by grade, photographs by decade, faces by age.

The image sets of Belharbi et al., "Non-parametric Uni-modality Constraints for Deep Ordinal
Classification" (arXiv 1911.10720), each in its original layout:

    Photos/<class>/*.tif                    ICIAR 2018 (BACH), part A; Aresta et al., MedIA 2019
    data/imgs/decade_database/<1930s>/*.jpg Historical Color Images; Palermo et al., ECCV 2012
    images/001A43a.JPG                      FG-NET: subject, age; Lanitis et al., PAMI 2002
    <age>/<111 or 112>/*.jpg                AFAD (111 male, 112 female); Niu et al., CVPR 2016

Any image format is read. The lists of the published splits could not be had: they are drawn here by
the published rules, the same on every machine, from the sorted names and the number of the split.

Published training sees crops of 256 x 256 pixels: of biopsies at half their size, of photographs as
they are, of faces whose shorter side is 266 (see `experiments/unimodal/`). Deviation: evaluation
resizes to one size, where the published code takes every whole image at its own size, one by one.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from wsl_zoo.data.base import IMAGE_SUFFIXES, ZooDataModule
from wsl_zoo.data.dataset import RecordSource
from wsl_zoo.data.folds import fifths, one_fold, require_number, shuffled, warn_unless_whole
from wsl_zoo.data.manifest import DataError, Record, Splits, suggestion, validate

GRADES = ("Normal", "Benign", "InSitu", "Invasive")
DECADES = ("1930s", "1940s", "1950s", "1960s", "1970s")
FGNET_AGES = range(70)
FGNET_NAME = re.compile(r"([0-9]{3})A([0-9]{2})[a-z]?", re.IGNORECASE)

Variant = Literal["lite", "full"]
AFAD_AGES: dict[Variant, range] = {"lite": range(18, 40), "full": range(15, 73)}
GENDERS = {"111": "male", "112": "female"}
AFAD_IMAGES: dict[Variant, dict[str, int]] = {
    "lite": {"male": 34_817, "female": 24_527},
    "full": {"male": 101_519, "female": 63_982},
}


class OrdinalImages(ZooDataModule):
    """Base: images of ordered classes, cell by cell dealt into `test`, `val` and `train`.

    A cell is a folder; what is dealt are its images, or the groups (subjects) of these. A set
    says what it is made of in `find` and how a cell is dealt in `deal`.

    Args:
        root: Folder of the set; any of the levels above its images will do.
        split: Number of the split.
        **kwargs: See `ZooDataModule`.
    """

    folders: ClassVar[tuple[str, ...]] = ()
    """Levels of folders that may stand above the images."""
    number_of_splits: ClassVar[int] = 100
    """How many splits were published."""
    gaps: ClassVar[bool] = False
    """Whether there may be classes without an image, as in ranges of ages."""

    def __init__(self, root: str, split: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_number("split", split, self.number_of_splits)
        self.root = Path(root)
        self.split = split

    @property
    def images(self) -> Path:
        """The folder below which the images lie: `folders`, or the last of them, in `root`."""
        levels = (self.root.joinpath(*self.folders[k:]) for k in range(len(self.folders)))
        return next((folder for folder in levels if folder.is_dir()), self.root)

    @property
    @abstractmethod
    def published(self) -> Mapping[str, int]:
        """How many of what the published set has."""

    @abstractmethod
    def find(self, problems: list[str]) -> list[Record]:
        """Return all images, placed by their paths below `images`; add what is wrong with them."""

    @abstractmethod
    def deal(self, cell: str, units: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
        """Divide the images or groups of a cell into those of `test`, `val` and `train`."""

    def count(self, records: Sequence[Record]) -> Mapping[str, int]:
        """Return how many there are of what `published` counts; here images by class."""
        return Counter(self.class_names[record.label] for record in records)

    def read(self) -> dict[str, RecordSource]:
        """Find the images, deal them into splits and check the files.

        Raises:
            DataError: All problems at once.
        """
        what = f"{type(self).__name__} {self.images}"
        if not self.images.is_dir():
            raise DataError(what, ["it does not exist or is no folder"])
        problems: list[str] = []
        records = self.find(problems)
        if not records:
            raise DataError(what, problems or ["it holds no image"])
        splits = self._dealt(records, problems)
        try:
            validate(splits, self.class_names, verify=self.verify)
        except DataError as error:
            # A class or split may lack images only because these have other problems.
            unsaid = ("class ", "split ") if problems else ("class ",) if self.gaps else ()
            problems += [text for text in error.problems if not text.startswith(unsaid)]
        if problems:
            raise DataError(what, problems)
        warn_unless_whole(self.images, self.count(records), self.published)
        return {name: RecordSource(split) for name, split in splits.items()}

    def _dealt(self, records: Sequence[Record], problems: list[str]) -> Splits:
        cells: dict[str, list[str]] = {}
        for record in records:
            cells.setdefault(os.path.dirname(record.place), []).append(unit_of(record))
        split_of: dict[str, str] = {}
        for cell, units in cells.items():
            parts = dict(zip(("test", "val", "train"), self.deal(cell, units), strict=True))
            split_of |= {unit: name for name, part in parts.items() for unit in part}
            if not self.gaps and not all(parts.values()):
                found = ", ".join(f"{len(part)} in {name}" for name, part in parts.items())
                problems.append(f"{cell}: {len(units)} images are too few: {found}")
        splits: Splits = {"train": [], "val": [], "test": []}
        for record in records:
            splits[split_of[unit_of(record)]].append(record)
        return splits


class ICIARData(OrdinalImages):
    """Breast biopsies of ICIAR 2018 (BACH part A) in four grades.

    Half of every class is `test`, for all splits and folds. The rest is dealt into five folds, anew
    by each of two splits: ten runs.

    Args:
        root: Folder with `Photos/<class>/*.tif`, or `Photos` itself.
        split: Split, 0 or 1.
        fold: The fold that is `val`, 0-4; the others are `train`.
        split_seed: Seed of test part and folds (apart from `seed`, so that runs share them).
        **kwargs: See `ZooDataModule`.
    """

    folders = ("Photos",)
    number_of_splits = 2
    folds: ClassVar[int] = 5

    def __init__(
        self, root: str, split: int = 0, fold: int = 0, split_seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(root, split, **kwargs)
        require_number("fold", fold, self.folds)
        self.fold = fold
        self.split_seed = split_seed

    @property
    def class_names(self) -> list[str]:
        """Normal, Benign, InSitu and Invasive."""
        return list(GRADES)

    @property
    def published(self) -> Mapping[str, int]:
        """100 images of every class."""
        return dict.fromkeys(GRADES, 100)

    def find(self, problems: list[str]) -> list[Record]:
        """Read the class folders."""
        return read_class_folders(self.images, GRADES, problems)

    def deal(self, cell: str, units: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
        """Take half of a class for `test`, and every fifth of the others for `val`."""
        order = shuffled(units, f"iciar-{self.split_seed}-{cell}")
        half = len(order) // 2
        rest = shuffled(order[half:], f"iciar-{self.split_seed}-{cell}-{self.split}")
        return order[:half], *one_fold(rest, self.fold, self.folds)


class HCIData(OrdinalImages):
    """Historical Color Images: photographs of five decades, the 1930s to the 1970s.

    Each of ten splits has 50 of the 265 images of every decade as `test` (of copies with fewer, the
    same part) and deals the others into ten folds.

    Args:
        root: Folder with `data/imgs/decade_database/<decade>/*.jpg`, or one of these levels.
        split: Split, 0-9.
        fold: The fold that is `val`, 0-9; the others are `train`.
        **kwargs: See `ZooDataModule`.
    """

    folders = ("data", "imgs", "decade_database")
    number_of_splits = 10
    folds: ClassVar[int] = 10
    per_decade: ClassVar[int] = 265
    tested: ClassVar[int] = 50

    def __init__(self, root: str, split: int = 0, fold: int = 0, **kwargs: Any) -> None:
        super().__init__(root, split, **kwargs)
        require_number("fold", fold, self.folds)
        self.fold = fold

    @property
    def class_names(self) -> list[str]:
        """The decades, "1930s" to "1970s"."""
        return list(DECADES)

    @property
    def published(self) -> Mapping[str, int]:
        """265 images of every decade."""
        return dict.fromkeys(DECADES, self.per_decade)

    def find(self, problems: list[str]) -> list[Record]:
        """Read the folders of the decades."""
        return read_class_folders(self.images, DECADES, problems)

    def deal(self, cell: str, units: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
        """Take 50 of 265 images for `test`, and every tenth of the others for `val`."""
        order = shuffled(units, f"hci-{self.split}-{cell}")
        tested = min(self.tested, len(order) * self.tested // self.per_decade)
        return order[:tested], *one_fold(order[tested:], self.fold, self.folds)


class FGNETData(OrdinalImages):
    """FG-NET: faces of 82 subjects at ages from 0 to 69, split by subject.

    A fifth of the subjects is `test` and a fifth of the others `val`, rounded down: 16, 13 and 53
    subjects. The group of an image is its subject. Some ages may have no training image.

    Args:
        root: Folder with `images/001A43a.JPG` (subject 001 at 43, copy a), or `images` itself.
        split: Split, 0-99.
        **kwargs: See `ZooDataModule`.
    """

    folders = ("images",)
    gaps = True

    @property
    def class_names(self) -> list[str]:
        """The ages, "0" to "69"."""
        return [str(age) for age in FGNET_AGES]

    @property
    def published(self) -> Mapping[str, int]:
        """82 subjects."""
        return {"subjects": 82}

    def count(self, records: Sequence[Record]) -> Mapping[str, int]:
        """Return how many subjects there are."""
        return {"subjects": len({record.group for record in records})}

    def find(self, problems: list[str]) -> list[Record]:
        """Read subjects and ages from the names of the images."""
        expected = "expected a name such as 001A43a.JPG: subject, A, age, letter of a copy"
        records = []
        folders, images = listing(self.images)
        problems += [f"{name}: a folder, expected images" for name in folders]
        for name in images:
            match = FGNET_NAME.fullmatch(os.path.splitext(name)[0])
            if match is None:
                problems.append(f"{name}: {expected}")
            elif int(match[2]) not in FGNET_AGES:
                problems.append(f"{name}: age {match[2]}, expected 00 to {FGNET_AGES[-1]}")
            else:
                image = self.images / name
                records.append(Record(image, int(match[2]), group=match[1], place=name))
        return records

    def deal(self, cell: str, units: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
        """Take a fifth of the subjects for `test`, and of the others for `val`."""
        return fifths(shuffled(units, f"fgnet-{self.split}"))


class AFADData(OrdinalImages):
    """AFAD, the Asian Face Age Dataset: faces with age and gender.

    Of each age and gender a fifth is `test` and a fifth of the others `val`, rounded down. Classes
    are all ages of the range, with images or without.

    Args:
        root: Folder with `<age>/<gender>/*.jpg`; gender is 111 (male) or 112 (female).
        variant: "lite" (59,344 images, ages 18-39) or "full" (165,501 images, ages 15-72).
        split: Split, 0-99.
        **kwargs: See `ZooDataModule`.
    """

    gaps = True

    def __init__(self, root: str, variant: Variant = "lite", split: int = 0, **kwargs: Any) -> None:
        super().__init__(root, split, **kwargs)
        if variant not in AFAD_AGES:
            raise ValueError(f"variant={variant!r} must be one of {', '.join(get_args(Variant))}")
        self.variant: Variant = variant

    @property
    def class_names(self) -> list[str]:
        """The ages of the variant, "18" to "39" or "15" to "72"."""
        return [str(age) for age in AFAD_AGES[self.variant]]

    @property
    def published(self) -> Mapping[str, int]:
        """Images by gender."""
        return AFAD_IMAGES[self.variant]

    def count(self, records: Sequence[Record]) -> Mapping[str, int]:
        """Return how many images there are by gender."""
        return Counter(GENDERS[record.place.split("/")[1]] for record in records)

    def find(self, problems: list[str]) -> list[Record]:
        """Read the folders of ages and genders."""
        ages = {name: label for label, name in enumerate(self.class_names)}
        first, *_, last = ages
        where = "expected it in <age>/111 (male) or <age>/112 (female)"
        records = []
        folders, strays = listing(self.images)
        problems += [f"{name}: {where}" for name in strays]
        for age in folders:
            if age not in ages:
                range_of = f"one of the ages {first} to {last} of variant={self.variant!r}"
                problems.append(f"{age}: expected a folder of {range_of}")
                continue
            genders, strays = listing(self.images / age)
            problems += [f"{age}/{name}: {where}" for name in strays]
            for gender in genders:
                if gender in GENDERS:
                    records += images_of(self.images, f"{age}/{gender}", ages[age], problems)
                else:
                    problems.append(f"{age}/{gender}: expected 111 (male) or 112 (female)")
        return records

    def deal(self, cell: str, units: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
        """Take a fifth of an age and gender for `test`, and of the others for `val`."""
        return fifths(shuffled(units, f"afad-{self.variant}-{self.split}-{cell}"))


def unit_of(record: Record) -> str:
    """Return what is dealt as a whole: the group of an image, or it alone."""
    return record.group or record.place


def listing(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the images in a folder, each sorted.

    Hidden names and other files (tables, `Thumbs.db`) are left out.
    """
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                images.append(entry.name)
    return sorted(folders), sorted(images)


def images_of(root: Path, cell: str, label: int, problems: list[str]) -> list[Record]:
    """Return the images in the folder `cell` of a root; folders in it are problems."""
    folder = root / cell
    folders, images = listing(folder)
    problems += [f"{cell}/{name}: a folder, expected images" for name in folders]
    return [Record(folder / name, label, place=f"{cell}/{name}") for name in images]


def read_class_folders(root: Path, classes: Sequence[str], problems: list[str]) -> list[Record]:
    """Return the images in one folder per class, all of which must exist."""
    folders, strays = listing(root)
    unknown = [name for name in folders if name not in classes]
    problems += [f"{name}: unknown class{suggestion(name, classes)}" for name in unknown]
    problems += [f"{name}: expected it in the folder of its class" for name in strays]
    records: list[Record] = []
    for label, name in enumerate(classes):
        if name not in folders:
            problems.append(f"there is no folder {name}")
            continue
        own = images_of(root, name, label, problems)
        records += own
        if not own:
            problems.append(f"{name}: it holds no image")
    return records
