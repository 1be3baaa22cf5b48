"""DAVIS: short videos with the masks of their main object, and a table of tags.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation",
CVPR 2016; Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation", arXiv
1704.00675. Original layout, with or without the folder of a resolution:

    JPEGImages/[480p/]<sequence>/00000.jpg
    Annotations/[480p/]<sequence>/00000.png     (non-zero pixels, of any instance, are the object)

DAVIS has no classes. A table with a header, of one or many rows per sequence, gives each sequence
in use its tag: `sequence,label[,frame,x0,y0,x1,y1][,...]`. Its boxes are in coordinates of pixel
edges (see `data/manifest.py`); a frame without one gets the box around its mask.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from wsl_zoo.data.base import IMAGE_SUFFIXES
from wsl_zoo.data.manifest import (
    Box,
    DataError,
    Record,
    Splits,
    parse_boxes,
    read_mask,
    read_size,
    validate,
)
from wsl_zoo.data.video import VideoDataModule

FRAMES, MASKS = "JPEGImages", "Annotations"
RESOLUTIONS = ("480p", "1080p", "Full-Resolution")
BOX_COLUMNS = ("x0", "y0", "x1", "y1")


class DAVISData(VideoDataModule):
    """DAVIS by tags; a sequence is one shot.

    Splits rotate by sequence: fold k tests the k-th sequence, by name, of every tag, and all others
    train. `val` are single frames of the training sequences, which are not trained on: it chooses
    epochs and thresholds, but is no independent test. In a frame whose mask is empty there is
    nothing to be localised: CorLoc leaves it out.

    Args:
        root: Folder with `JPEGImages` and `Annotations`. Of several resolutions 480p is taken.
        table: The table of tags; default: `index.csv` in `root`.
        fold: Which sequence of every tag is tested, from 0.
        folds: Number of folds; every tag needs as many sequences, of which others always train.
        val_every: One of so many frames of the training sequences is one of `val`; 0: no `val`.
        **kwargs: See `VideoDataModule`.
    """

    def __init__(
        self,
        root: str,
        table: str | None = None,
        fold: int = 0,
        folds: int = 3,
        val_every: int = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if folds < 2:
            raise ValueError(f"folds={folds} must be at least 2: one is tested, the others train")
        if fold not in range(folds):
            raise ValueError(
                f"fold={fold} does not exist: with folds={folds} it is 0 to {folds - 1}"
            )
        if val_every < 0 or val_every == 1:
            raise ValueError(f"val_every={val_every} must be at least 2, or 0 for no validation")
        self.root = Path(root)
        self.table = Path(table) if table is not None else self.root / "index.csv"
        self.fold = fold
        self.folds = folds
        self.val_every = val_every
        self._tagged: dict[str, Tagged] | None = None

    @property
    def tagged(self) -> dict[str, Tagged]:
        """What the table says, by the name of the sequence, in its order."""
        if self._tagged is None:
            self._tagged = read_table(self.table)
        return self._tagged

    @property
    def class_names(self) -> list[str]:
        """The tags, sorted."""
        return sorted({tagged.label for tagged in self.tagged.values()})

    def read(self) -> Splits:
        """Read the sequences of the table and deal them to the splits of the fold.

        Raises:
            DataError: All problems of the table and the files at once, with their places.
        """
        problems: list[str] = []
        tested = self._tested(problems)
        sequences = self._read_sequences(problems)
        if problems:
            raise DataError(f"DAVIS {self.root}", problems)
        splits: Splits = {"train": [], **({"val": []} if self.val_every else {}), "test": []}
        for name, records in sequences.items():
            for i, record in enumerate(records):
                held_out = self.val_every and i % self.val_every == self.val_every // 2
                split = "test" if name in tested else "val" if held_out else "train"
                splits[split].append(record)
        splits["train"] = [replace(record, boxes=None) for record in splits["train"]]
        evaluated = [split for split in splits if split != "train"]
        for split in evaluated:
            splits[split] = with_boxes(splits[split], problems)
        if problems:
            try:  # what is wrong with other files belongs into the same message
                validate(splits, self.class_names, verify=self.verify)
            except DataError as others:
                problems = list(dict.fromkeys(problems + others.problems))
            raise DataError(f"DAVIS {self.root}", problems)
        return splits

    def _tested(self, problems: list[str]) -> set[str]:
        """Return the names of the sequences that the fold tests."""
        tested = set()
        for label in self.class_names:
            names = sorted(name for name, tagged in self.tagged.items() if tagged.label == label)
            if len(names) < self.folds:
                problems.append(
                    f"tag {label!r} has {len(names)} sequence{'s' * (len(names) != 1)} "
                    f"({', '.join(names)}), folds={self.folds} needs as many"
                )
            else:
                tested.add(names[self.fold])
        return tested

    def _folder(self, kind: str) -> Path:
        folder = self.root / kind
        if not folder.is_dir():
            raise DataError(f"DAVIS {self.root}", [f"there is no folder {kind} in it"])
        return next((folder / r for r in RESOLUTIONS if (folder / r).is_dir()), folder)

    def _read_sequences(self, problems: list[str]) -> dict[str, list[Record]]:
        """Return the frames of every sequence in temporal order, with the boxes of the table."""
        frames, masks = self._folder(FRAMES), self._folder(MASKS)
        untagged = sorted({path.name for path in folders_in(frames)} - self.tagged.keys())
        if untagged:
            rank_zero_warn(f"{self.table} has no tag of {', '.join(untagged)}: left out")
        sequences: dict[str, list[Record]] = {}
        for name, tagged in sorted(self.tagged.items()):
            line = f"{self.table.name}, line {tagged.line}"
            absent = [str(f / name) for f in (frames, masks) if not (f / name).is_dir()]
            if absent:
                problems += [f"{line}: there is no folder {folder}" for folder in absent]
                continue
            images, annotations = files_in(frames / name), files_in(masks / name)
            if not images:
                problems.append(f"{line}: {frames / name} holds no image")
                continue
            problems += [
                f"{images[stem]}: there is no annotation {masks / name / stem}.png"
                for stem in sorted(images.keys() - annotations.keys())
            ]
            problems += [
                f"{annotations[stem]}: there is no frame {frames / name / stem}.jpg"
                for stem in sorted(annotations.keys() - images.keys())
            ]
            problems += [
                f"{self.table.name}, line {number}: there is no frame {stem!r} of {name!r}"
                for stem, (number, _) in tagged.frames.items()
                if stem not in images
            ]
            sequences[name] = [
                Record(
                    image=images[stem],
                    label=self.class_names.index(tagged.label),
                    masks=(annotations[stem],),
                    boxes=tagged.frames.get(stem, (0, ()))[1] or None,
                    group=name,
                    place=f"{name}/{stem}",
                )
                for stem in images
                if stem in annotations
            ]
        return sequences


@dataclass(frozen=True)
class Tagged:
    """What the table says of a sequence.

    Attributes:
        line: Its first row.
        label: Its tag.
        frames: First row and boxes (edges) of the frames listed, by their names without ending.
    """

    line: int
    label: str
    frames: dict[str, tuple[int, tuple[Box, ...]]] = field(default_factory=dict)


def read_table(path: Path) -> dict[str, Tagged]:
    """Read a table of tags. Boxes are read where it has the columns `frame,x0,y0,x1,y1`.

    Raises:
        DataError: The file is missing or no table of tags, or rows are bad (all at once).
    """
    if not path.is_file():
        raise DataError(f"Table {path}", ["the file does not exist"])
    table: dict[str, Tagged] = {}
    problems: list[str] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True, restval="")
        header = reader.fieldnames or ()
        missing = [name for name in ("sequence", "label") if name not in header]
        if missing:
            raise DataError(
                f"Table {path}, line 1",
                [f"column {name!r} is missing; found: {', '.join(header)}" for name in missing],
            )
        boxed = {"frame", *BOX_COLUMNS} <= set(header)
        for row in reader:
            name, label = row["sequence"].strip(), row["label"].strip()
            if not name or not label:
                problems.append(f"line {reader.line_num}: empty sequence or label")
                continue
            tagged = table.setdefault(name, Tagged(reader.line_num, label))
            if label != tagged.label:
                problems.append(
                    f"line {reader.line_num}: the tag of {name!r} is {label!r}, but "
                    f"{tagged.label!r} in line {tagged.line}"
                )
            elif boxed:
                numbers = " ".join(row[column] for column in BOX_COLUMNS)
                stem = row["frame"].strip()
                try:
                    boxes = parse_boxes(numbers) if numbers.strip() else ()
                except ValueError as error:
                    problems.append(f"line {reader.line_num}: {error}")
                    continue
                line, others = tagged.frames.get(stem, (reader.line_num, ()))
                tagged.frames[stem] = (line, others + boxes)
    if not table and not problems:
        problems.append("it lists no sequence")
    if problems:
        raise DataError(f"Table {path}", problems)
    return table


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in `folder` that are not hidden."""
    return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]


def files_in(folder: Path) -> dict[str, Path]:
    """Return the images in `folder` by their names without ending, sorted."""
    return {
        path.stem: path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    }


def with_boxes(records: Iterable[Record], problems: list[str]) -> list[Record]:
    """Add the box around its mask to every record without boxes; an empty mask has none.

    Args:
        records: Records with one mask file.
        problems: Receives the masks that cannot be read, with their places.
    """

    def boxes(record: Record) -> tuple[Box, ...] | str:
        if record.boxes is not None:
            return record.boxes
        try:
            width, height = read_size(record.masks[0])
            mask = read_mask(record, (height, width))
        except DataError as error:
            return f"{record.place}: {error.problems[0]}"
        rows, columns = (np.flatnonzero(mask.any(axis)).tolist() for axis in (1, 0))
        return ((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1),) if rows else ()

    records = list(records)
    with ThreadPoolExecutor(max_workers=8) as pool:
        found = list(pool.map(boxes, records))
    problems += [problem for problem in found if isinstance(problem, str)]
    return [
        replace(record, boxes=box)
        for record, box in zip(records, found, strict=True)
        if not isinstance(box, str)
    ]
