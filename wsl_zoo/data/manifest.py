"""What a file-based data set is made of: records, the CSV manifest, and one validator for both.

A manifest is a CSV with a header, one row per image:
`split,image,label[,mask][,boxes][,group]`. Paths are relative to the manifest's folder (or to
`root`); `label` is an integer or a class name; `mask` is an image whose non-zero pixels are
foreground (several, separated by `;`, are united); `boxes` is `x0 y0 x1 y1` in pixels, several
separated by `;`; an empty cell means "not annotated". Boxes are in coordinates of pixel edges, as
those of CUB: a box over the first two columns goes from x0 = 0 to x1 = 2.

Everything is checked before training starts, and every problem is reported at once with its place.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

Verify = Literal["auto", "header", "decode", "none"]
DECODED = 2000  # images up to which "auto" decodes every pixel: a few seconds
COLUMNS = ("split", "image", "label", "mask", "boxes", "group")
REQUIRED = COLUMNS[:3]
SHOWN_PROBLEMS = 50
INTEGER = re.compile(r"-?[0-9]+")

ROUNDING = 1.0  # pixels by which a box may leave its image: boxes of resized copies (CUB) do

BLUE = (0, 0, 254)  # background of the masks of Oxford-flowers
NEAR_BLUE = 30  # Euclidean distance up to which a colour is taken for it: those files are JPEG

Box = tuple[float, float, float, float]

Foreground = Literal["nonzero", "grey>127.5", "not blue"]
"""Which pixels of a mask file are foreground. "grey>127.5" is for means of several annotators,
"not blue" for a blue background (0, 0, 254): more than 30 from it in RGB."""


class DataError(ValueError):
    """Data that cannot be used as it is; the message lists every problem with its place."""

    def __init__(self, what: str, problems: Sequence[str] = ()) -> None:
        """Join `problems` into one message headed by `what`."""
        self.problems = list(problems)
        shown = self.problems[:SHOWN_PROBLEMS]
        count = f": {len(problems)} problem{'s' * (len(problems) != 1)}" if shown else ""
        lines = [what + count]
        lines += [f"  - {problem}" for problem in shown]
        if len(self.problems) > len(shown):
            lines.append(f"  ... and {len(self.problems) - len(shown)} more")
        super().__init__("\n".join(lines))


@dataclass(frozen=True, slots=True)
class Record:
    """One image and what is known of it.

    Attributes:
        image: The image file.
        label: Class index in [0, K), or -1 where there is none (prediction).
        masks: Mask files; the union of their foreground pixels is the mask.
        empty_mask: The image is known to hold no foreground (mask all background).
        ignore: Mask file of the pixels to ignore.
        boxes: Boxes xyxy in pixels of the original image; None: not annotated.
        group: Patient, case or video that the image belongs to.
        place: Where the record was read, for messages ("labels.csv, line 7").
        foreground: Which pixels of a mask file are foreground.
    """

    image: Path
    label: int
    masks: tuple[Path, ...] = ()
    empty_mask: bool = False
    ignore: Path | None = None
    boxes: tuple[Box, ...] | None = None
    group: str = ""
    place: str = ""
    foreground: Foreground = "nonzero"

    @property
    def has_mask(self) -> bool:
        """Whether the pixels of the image are annotated."""
        return bool(self.masks) or self.empty_mask


Splits = dict[str, list[Record]]


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest of `names`, or an empty string.

    >>> suggestion("benin", ["benign", "malignant"])
    " (did you mean 'benign'?)"
    """
    near = get_close_matches(name, list(names), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def parse_boxes(text: str) -> tuple[Box, ...]:
    """Read `x0 y0 x1 y1[;x0 y0 x1 y1...]`, in pixels.

    Raises:
        ValueError: The text is not of this form, or a box ends before it starts.
    """
    boxes: list[Box] = []
    for part in text.split(";"):
        numbers = [float(number) for number in part.replace(",", " ").split()]
        if len(numbers) != 4:
            raise ValueError(f"a box needs four numbers 'x0 y0 x1 y1', got {part.strip()!r}")
        x0, y0, x1, y1 = numbers
        if not all(map(math.isfinite, numbers)) or x1 < x0 or y1 < y0:
            raise ValueError(f"a box needs finite x0 <= x1 and y0 <= y1, got {part.strip()!r}")
        boxes.append((x0, y0, x1, y1))
    return tuple(boxes)


def parse_label(text: str, class_names: Sequence[str]) -> int:
    """Turn a class name or a class number into its index.

    Raises:
        ValueError: It is neither a known name nor a number in [0, K).
    """
    if text in class_names:
        return class_names.index(text)
    if INTEGER.fullmatch(text):
        label = int(text)
        if 0 <= label < len(class_names):
            return label
        raise ValueError(
            f"label {label} is out of range: with {len(class_names)} classes it must be in "
            f"[0, {len(class_names) - 1}]"
        )
    raise ValueError(f"unknown class {text!r}{suggestion(text, class_names)}")


def read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Read the manifest's rows with the numbers of their first lines; check its header.

    What a row has beyond the header comes under the key "".

    Raises:
        DataError: The file is missing, not a CSV with the required columns, or has unknown ones.
    """
    if not path.is_file():
        raise DataError(f"Manifest {path}", ["the file does not exist"])
    rows: list[tuple[int, dict[str, str]]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, skipinitialspace=True, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            problems = [f"column {name!r} is missing" for name in REQUIRED if name not in header]
            problems += [
                f"unknown column {name!r}{suggestion(name, COLUMNS)}"
                for name in header
                if name not in COLUMNS
            ]
            problems += [
                f"column {k!r} stands there {n} times" for k, n in Counter(header).items() if n > 1
            ]
            if problems:
                expected = f"expected: {', '.join(COLUMNS)}"
                raise DataError(f"Manifest {path}, line 1", [*problems, expected])
            for row in reader:
                if row:
                    breaks = sum(len(re.findall(r"\r\n|\r|\n", cell)) for cell in row)
                    cells = {k: v.strip() for k, v in zip(header, row, strict=False)}
                    cells[""] = ",".join(row[len(header) :]).strip(", ")
                    rows.append((reader.line_num - breaks, cells))
        except csv.Error as error:
            raise DataError(f"Manifest {path}, line {reader.line_num}", [str(error)]) from error
        except UnicodeDecodeError as error:
            raise DataError(f"Manifest {path}", [f"not in UTF-8 ({error})"]) from error
    return rows


def class_names_of(rows: Iterable[tuple[int, dict[str, str]]]) -> list[str]:
    """Return the class names a manifest uses: sorted names, or "0".."K-1" where it has numbers."""
    given = [row["label"] for _, row in rows if row.get("label")]
    labels = set(given)
    if labels and all(map(INTEGER.fullmatch, labels)):
        # More classes than images cannot be meant: a larger number is then out of range.
        return [str(k) for k in range(min(max(map(int, labels)) + 1, len(given)))]
    return sorted(labels)


def read_manifest(
    path: Path, root: Path | None = None, class_names: Sequence[str] | None = None
) -> tuple[Splits, list[str]]:
    """Read a manifest.

    Args:
        path: The CSV file.
        root: Folder that its paths start from; default: the manifest's own.
        class_names: The classes in order; default: those the manifest uses, sorted.

    Returns:
        The records of every split in file order, and the class names.

    Raises:
        DataError: All bad cells at once, with their lines.
    """
    rows = read_rows(path)
    root = path.parent if root is None else root
    names = list(class_names) if class_names else class_names_of(rows)
    splits: Splits = {}
    problems: list[str] = []
    for line, row in rows:
        place = f"{path.name}, line {line}"
        missing = [name for name in REQUIRED if not row.get(name)]
        if missing:
            problems.append(f"{place}: empty {', '.join(missing)}")
            continue
        if row.get(""):
            problems.append(f"{place}: more cells than the header has columns: {row['']!r}")
            continue
        try:
            record = Record(
                image=root / row["image"],
                label=parse_label(row["label"], names),
                masks=tuple(
                    root / part.strip() for part in row.get("mask", "").split(";") if part.strip()
                ),
                boxes=parse_boxes(row["boxes"]) if row.get("boxes") else None,
                group=row.get("group", ""),
                place=place,
            )
        except ValueError as error:
            problems.append(f"{place}: {error}")
            continue
        splits.setdefault(row["split"], []).append(record)
    if problems:
        try:  # what is wrong with the other rows belongs into the same message
            validate(splits, names)
        except DataError as others:
            # A class may lack images only because its rows are among the bad ones.
            problems += [text for text in others.problems if not text.startswith("class ")]
        raise DataError(f"Manifest {path}", problems)
    return splits, names


def validate(
    splits: Mapping[str, Sequence[Record]],
    class_names: Sequence[str],
    *,
    shared: Sequence[frozenset[str]] = (),
    verify: Verify = "auto",
    what: str = "Data set",
) -> None:
    """Check every record of every split, and report all problems at once.

    Checked: there is something to train on, every class occurs in `train`, labels are in range, no
    image stands in two splits (or twice in one), files exist and are readable, masks have the size
    of their image and boxes lie in it.

    Args:
        splits: Records by split.
        class_names: The K classes.
        shared: Sets of splits that may share images by protocol (GlaS: `valpx` is part of `valcl`).
        verify: "header" opens each file and reads its size (fast), "decode" reads every pixel,
            "auto" does that up to `DECODED` images, "none" only checks that the files exist.
        what: Heads the message.

    Raises:
        DataError: All problems found, with their places.
    """
    problems = _split_problems(splits, class_names, shared)
    records = {
        (r.image, r.masks, r.ignore): r for records in splits.values() for r in records
    }.values()
    verify = decided(verify, len(records))
    with ThreadPoolExecutor(max_workers=8) as pool:
        for found in pool.map(lambda record: _file_problems(record, verify), records):
            problems += found
    if problems:
        raise DataError(what, problems)


def decided(verify: Verify, images: int) -> Verify:
    """Return what "auto" means for a number of images; the others as they are."""
    if verify != "auto":
        return verify
    return "decode" if images <= DECODED else "header"


def _split_problems(
    splits: Mapping[str, Sequence[Record]],
    class_names: Sequence[str],
    shared: Sequence[frozenset[str]],
) -> list[str]:
    problems = []
    train = splits.get("train")
    if train is not None:
        counts = Counter(record.label for record in train)
        problems += [
            f"class {name!r} (label {k}) has no training image"
            for k, name in enumerate(class_names)
            if not counts[k]
        ]
    seen: dict[str, dict[str, Record]] = {}  # image -> split -> its first record there
    for split, records in splits.items():
        if not records:
            problems.append(f"split {split!r} is empty")
        for record in records:
            if split != "predict" and not 0 <= record.label < len(class_names):
                problems.append(
                    f"{_place(record)}: label {record.label} is out of range: with "
                    f"{len(class_names)} classes it must be in [0, {len(class_names) - 1}]"
                )
            known = seen.setdefault(os.path.abspath(record.image), {})
            for other, first in known.items():
                if other != split and any({split, other} <= names for names in shared):
                    continue
                where = f"splits {other!r} and {split!r}" if other != split else f"{split!r} twice"
                problems.append(
                    f"{_place(record)}: {record.image.name} stands in {where}"
                    + (f" (first: {first.place})" if first.place else "")
                )
                break
            known.setdefault(split, record)
    return problems


def _file_problems(record: Record, verify: Verify) -> list[str]:
    problems: list[str] = []
    sizes: dict[Path, tuple[int, int]] = {}
    masks = [*record.masks, *([record.ignore] if record.ignore else [])]
    for path in (record.image, *masks):
        kind = "image" if path is record.image else "mask"
        if not path.is_file():
            problems.append(f"{_place(record)}: {kind} {path} does not exist")
        elif verify != "none":
            try:
                sizes[path] = read_size(path, decode=verify == "decode")
            except DataError as error:
                problems.append(f"{_place(record)}: {error.problems[0]}")
    size = sizes.get(record.image)
    if size is None:
        return problems
    problems += [
        f"{_place(record)}: mask {path.name} is {sizes[path][0]}x{sizes[path][1]} pixels, "
        f"its image {record.image.name} is {size[0]}x{size[1]}"
        for path in masks
        if path in sizes and sizes[path] != size
    ]
    boxes = [(_place(record), box) for box in record.boxes or ()]
    return problems + boxes_outside(boxes, record.image, size)


def boxes_outside(
    boxes: Iterable[tuple[str, Box]], image: Path, size: tuple[int, int]
) -> list[str]:
    """Name every box, given with its place, that leaves its image of `size` (width, height)."""
    width, height = size
    return [
        f"{place}: box {box} leaves its image {image.name} of {width}x{height} pixels"
        for place, box in boxes
        if min(box) < -ROUNDING or box[2] > width + ROUNDING or box[3] > height + ROUNDING
    ]


def _place(record: Record) -> str:
    return record.place or str(record.image)


def read_size(path: Path, *, decode: bool = False) -> tuple[int, int]:
    """Return (width, height) of an image file, in pixels.

    Raises:
        DataError: The file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            if decode:
                image.load()
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError("Image", [f"{path} is not a readable image ({error})"]) from error


def read_image(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8; of 16 bits, the upper eight are kept.

    Raises:
        DataError: The file cannot be read as an image, or has floating-point pixels.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise DataError(
                    "Image", [f"{path} has floating-point pixels, expected 8 or 16 bits"]
                )
            if image.mode.startswith("I"):  # Pillow's own conversion turns 256 and above into 255
                grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=-1)
            return np.asarray(image.convert("RGB"))
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError("Image", [f"{path} is not a readable image ({error})"]) from error


def read_mask(record: Record, shape: tuple[int, int]) -> np.ndarray:
    """Read the mask of a record: (H, W) uint8, 1 foreground, 0 background, 255 ignored.

    Foreground is the union of that of all mask files, as `record.foreground` says; ignored are the
    non-zero pixels of the ignore file that are not foreground (the protocol of wsolevaluation). Of
    a palette image the colours count, as where OpenCV reads it; transparency never counts.

    Raises:
        DataError: A file cannot be read as an image, or is not of the image's `shape` (H, W).
    """
    foreground = np.zeros(shape, dtype=bool)
    for path in record.masks:
        foreground |= _foreground(path, shape, record.foreground)
    mask = foreground.astype(np.uint8)
    if record.ignore is not None:
        mask[_foreground(record.ignore, shape, "nonzero") & ~foreground] = 255
    return mask


def _foreground(path: Path, shape: tuple[int, int], rule: Foreground) -> np.ndarray:
    foreground: np.ndarray
    if rule == "nonzero":
        foreground = _nonzero(path)
    elif rule == "grey>127.5":
        foreground = read_image(path).max(axis=-1) > 127.5
    else:
        difference = read_image(path).astype(np.int32) - np.array(BLUE, np.int32)
        foreground = (difference**2).sum(axis=-1) > NEAR_BLUE**2
    if foreground.shape != shape:
        height, width = foreground.shape
        sizes = f"{width}x{height} pixels, its image {shape[1]}x{shape[0]}"
        raise DataError("Mask", [f"{path} is {sizes}"])
    return foreground


def _nonzero(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB") if image.mode in ("P", "PA") else image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError("Mask", [f"{path} is not a readable image ({error})"]) from error
    if pixels.ndim == 3:
        colours = 3 if pixels.shape[2] > 2 else 1  # grey with transparency has two channels
        pixels = pixels[..., :colours].max(axis=-1)
    nonzero: np.ndarray = np.asarray(pixels, dtype=bool)
    return nonzero
