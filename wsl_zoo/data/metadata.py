"""Metadata folders of wsolevaluation: splits, labels, boxes and masks as text files.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
arXiv 2001.07437. One folder per split; files have no header, their cells are separated by commas,
and every path is relative to the root of the images:

    image_ids.txt        path                      (the order of evaluation)
    image_ids_proxy.txt  path                      (optional: a part of `train` for searches)
    class_labels.txt     path,class                (an integer from 0)
    image_sizes.txt      path,width,height         (may be empty)
    localization.txt     path,x0,y0,x1,y1          (one line per box, in pixels of that size)
                    or   path,mask,ignore          (one line per mask; either may be empty or None)

An image may have several boxes or masks. A line without a mask says that the image is all
background. The survey's code (arXiv 1909.03354) reads a mask file that does not exist so as well;
here that is an error. Where an image is of another size than listed (a resized copy), its boxes
are rescaled, as the published evaluation does.

A folder may hold pseudo-boxes (selective search, CLIP, RPN) instead, to select by without any true
box: Murtaza et al., "A Realistic Protocol for Evaluation of Weakly Supervised Object Localization",
WACV 2025.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from posixpath import normpath

from pytorch_lightning.utilities import rank_zero_warn

from wsl_zoo.data.manifest import (
    INTEGER,
    SHOWN_PROBLEMS,
    Box,
    DataError,
    Record,
    boxes_outside,
    parse_boxes,
    read_size,
    suggestion,
)

ID_CELLS = ("path",)
LABEL_CELLS = ("path", "class")
SIZE_CELLS = ("path", "width", "height")
BOX_CELLS = ("path", "x0", "y0", "x1", "y1")
MASK_CELLS = ("path", "mask", "ignore")
NOTHING = ("", "None")  # a mask or ignore path that is none

Boxes = dict[str, list[tuple[int, Box]]]
"""Image path, relative to the root of the images -> (line, box) in file order."""
Masks = dict[str, list[tuple[int, str, str]]]
"""Such a path -> (line, mask path, ignore path) in file order; an empty path: there is none."""


def read_localization(path: Path, problems: list[str] | None = None) -> Boxes:
    """Read the boxes of a `localization.txt`.

    Args:
        path: The file.
        problems: Receives what is wrong with single lines, which are then left out; None: raise it.

    Returns:
        The boxes of every image, with their lines.

    Raises:
        DataError: The file is missing or not in UTF-8, or lines are bad (all at once).
    """
    found: list[str] = []
    boxes: Boxes = {}
    for line, cells in _read_cells(path, BOX_CELLS, found):
        try:
            (box,) = parse_boxes(" ".join(str(float(cell)) for cell in cells[1:]))
        except ValueError as error:
            found.append(f"{path}, line {line}: {error}")
        else:
            boxes.setdefault(normpath(cells[0]), []).append((line, box))
    if problems is not None:
        problems += found
    elif found:
        raise DataError(f"Metadata {path}", found)
    return boxes


def _read_cells(
    path: Path, names: Sequence[str], problems: list[str]
) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of every line that is not empty and has as many cells as `names`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Metadata {path}", [f"{path} cannot be read ({error})"]) from error
    for line, row in enumerate(text.split("\n"), start=1):
        cells = [cell.strip() for cell in row.split(",")]
        if len(cells) == len(names) and cells[0]:
            yield line, cells
        elif row.strip():
            problems.append(f"{path}, line {line}: expected {','.join(names)}, found {row!r}")


def _read_integers(
    path: Path, names: Sequence[str], low: int, problems: list[str]
) -> dict[str, tuple[int, ...]]:
    """Read lines `path,integer,...` with integers from `low`."""
    found: dict[str, tuple[int, ...]] = {}
    for line, cells in _read_cells(path, names, problems):
        name = normpath(cells[0])
        numbers = [int(cell) if INTEGER.fullmatch(cell) else low - 1 for cell in cells[1:]]
        if min(numbers) < low:
            problems.append(
                f"{path}, line {line}: {', '.join(names[1:])} must be integers from {low} on, "
                f"found {','.join(cells[1:])!r}"
            )
        elif name in found:
            problems.append(f"{path}, line {line}: {name!r} is listed twice")
        else:
            found[name] = tuple(numbers)
    return found


def class_names_of(folder: Path) -> list[str]:
    """Return the classes of a split's `class_labels.txt` in label order.

    The name of a class is that of the folder its images lie in, where every class has one of its
    own; else, and for a number that no image has, the number.

    Raises:
        DataError: The file is missing or not in UTF-8.
    """
    labels = _read_integers(folder / "class_labels.txt", LABEL_CELLS, 0, [])  # `read_split` reports
    folders: dict[int, set[str]] = {}
    for name, (label,) in labels.items():
        folders.setdefault(label, set()).add(name.rpartition("/")[0].rpartition("/")[2])
    # More classes than images cannot be meant: a larger number is then out of range.
    numbers = range(min(max(folders, default=-1) + 1, len(labels)))
    names = [name for k in numbers for name in folders.get(k, {str(k)})]
    own = len(names) == len(numbers) == len(set(names)) and all(names)
    return names if own else [str(k) for k in numbers]


def read_split(
    folder: Path,
    images: Path,
    problems: list[str],
    *,
    masks: bool = False,
    proxy: bool = False,
) -> list[Record]:
    """Read one split: the images of `image_ids.txt` in its order.

    Where `localization.txt` is missing or empty, nothing is annotated; else every image must stand
    in it, except those of `train`.

    Args:
        folder: Holds the text files; its name is the split's.
        images: Root of the images and masks.
        problems: Receives everything that is wrong, with file and line.
        masks: `localization.txt` holds masks, not boxes.
        proxy: Read `image_ids_proxy.txt` instead of `image_ids.txt`.
    """
    before = len(problems)
    try:
        ids_file = folder / ("image_ids_proxy.txt" if proxy else "image_ids.txt")
        ids: dict[str, int] = {}
        for line, cells in _read_cells(ids_file, ID_CELLS, problems):
            name = normpath(cells[0])
            if ids.setdefault(name, line) != line:
                problems.append(
                    f"{ids_file}, line {line}: {name!r} is listed twice (first: line {ids[name]})"
                )
        labels = _read_integers(folder / "class_labels.txt", LABEL_CELLS, 0, problems)
        file = folder / "localization.txt"
        boxes = read_localization(file, problems) if file.is_file() and not masks else {}
        regions = _read_masks(file, problems) if file.is_file() and masks else {}
        sizes_file = folder / "image_sizes.txt"
        sizes = (
            _read_integers(sizes_file, SIZE_CELLS, 1, problems)
            if boxes and sizes_file.is_file()
            else {}
        )
    except DataError as error:
        problems += error.problems
        return []
    listed = {name: lines[0][0] for name, lines in (boxes or regions).items()}
    if len(problems) == before:  # a line that cannot be read is not missing as well
        problems += [
            f"{ids_file}, line {line}: {name!r} has no line in {other.name}"
            for other, names, needed in (
                (folder / "class_labels.txt", labels.keys(), True),
                (file, listed.keys(), bool(listed) and folder.name != "train"),
            )
            for name, line in ids.items()
            if needed and name not in names
        ]
    problems += [
        f"{file}, line {line}: no image {name!r} in class_labels.txt"
        for name, line in listed.items()
        if name not in labels
    ]
    records = {
        name: Record(
            images / name, labels[name][0], place=f"{folder.name}/{ids_file.name}, line {line}"
        )
        for name, line in ids.items()
        if name in labels
    }
    for name in records:
        if name in regions:
            records[name] = _with_masks(records[name], regions[name], images, file, problems)
        elif name in boxes:
            records[name] = replace(records[name], boxes=tuple(box for _, box in boxes[name]))
    _rescale_boxes(records, sizes, sizes_file)
    return list(records.values())


def _read_masks(path: Path, problems: list[str]) -> Masks:
    masks: Masks = {}
    for line, cells in _read_cells(path, MASK_CELLS, problems):
        mask, ignore = ("" if cell in NOTHING else cell for cell in cells[1:])
        masks.setdefault(normpath(cells[0]), []).append((line, mask, ignore))
    return masks


def _with_masks(
    record: Record, lines: list[tuple[int, str, str]], images: Path, file: Path, problems: list[str]
) -> Record:
    masks = tuple(images / mask for _, mask, _ in lines if mask)
    ignores = list(dict.fromkeys(ignore for _, _, ignore in lines if ignore))
    if len(ignores) > 1:
        problems.append(
            f"{file}, line {lines[0][0]}: {record.image.name} has more than one ignore mask: "
            + ", ".join(ignores)
        )
    ignore = images / ignores[0] if ignores else None
    return replace(record, masks=masks, empty_mask=not masks, ignore=ignore)


def _rescale_boxes(
    records: dict[str, Record], sizes: Mapping[str, tuple[int, ...]], sizes_file: Path
) -> None:
    """Bring boxes from the listed size of an image to its own."""

    def own_size(name: str) -> tuple[int, int] | None:
        try:
            return read_size(records[name].image)
        except DataError:
            return None  # the check of the data set itself names it

    names = [name for name in records if records[name].boxes and name in sizes]
    resized = 0
    with ThreadPoolExecutor(max_workers=8) as pool:
        for name, size in zip(names, pool.map(own_size, names), strict=True):
            if size is not None and size != sizes[name]:
                resized += 1
                x, y = (new / old for new, old in zip(size, sizes[name], strict=True))
                records[name] = replace(
                    records[name],
                    boxes=tuple(
                        (x0 * x, y0 * y, x1 * x, y1 * y)
                        for x0, y0, x1, y1 in records[name].boxes or ()
                    ),
                )
    if resized:
        rank_zero_warn(
            f"{resized} of {len(names)} images are not of the size that {sizes_file} lists: their "
            "boxes are rescaled"
        )


def draw(records: Sequence[Record], per_class: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Draw up to `per_class` records of every class, without replacement.

    Returns:
        The records drawn and the others, both in their order.
    """
    by_label: dict[int, list[int]] = {}
    for i, record in enumerate(records):
        by_label.setdefault(record.label, []).append(i)
    drawn = {
        i
        for label, of_class in by_label.items()
        for i in random.Random(f"{seed}-{label}").sample(of_class, min(per_class, len(of_class)))
    }
    return (
        [record for i, record in enumerate(records) if i in drawn],
        [record for i, record in enumerate(records) if i not in drawn],
    )


def annotate(
    folder: Path, records: Mapping[str, Record], others: Collection[str], *, sizes: bool = True
) -> list[Record]:
    """Return records with the boxes of a metadata folder in place of their own annotation.

    An image that the folder does not list is left out, with a warning that says how many were.

    Args:
        folder: Holds `localization.txt` or `val/localization.txt`.
        records: Records by image path relative to the root of the images.
        others: Such paths of the images of other splits, whose boxes are not used.
        sizes: Open the images to check that boxes lie in them.

    Raises:
        DataError: All problems at once, with file and line.
    """
    candidates = [folder / "localization.txt", folder / "val" / "localization.txt"]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        problem = "holds no localization.txt (nor val/)" if folder.is_dir() else "does not exist"
        raise DataError(f"Metadata {folder}", [f"folder {folder} {problem}"])
    problems: list[str] = []
    boxes = read_localization(path, problems)
    unknown = [name for name in boxes if name not in records and name not in others]
    problems += [
        f"{path}, line {boxes[name][0][0]}: no image {name!r}"
        + (suggestion(name, records) if i < SHOWN_PROBLEMS else "")  # slow in large data sets
        for i, name in enumerate(unknown)
    ]
    listed = [name for name in records if name in boxes]
    if sizes:
        for name in listed:
            places = [(f"{path}, line {line}", box) for line, box in boxes[name]]
            image = records[name].image
            # What cannot be read is named by the check of the data set itself.
            with suppress(DataError):
                problems += boxes_outside(places, image, read_size(image))
    if not listed:
        like = f"; their paths are like {next(iter(records))!r}" if records else ""
        problems.insert(0, f"{path} has no box of any validation image{like}")
    if problems:
        raise DataError(f"Metadata {path}", problems)
    if len(listed) < len(records):
        rank_zero_warn(
            f"{path} has no box of {len(records) - len(listed)} of {len(records)} validation "
            "images: they do not count where it judges"
        )
    return [
        replace(
            records[name],
            masks=(),
            empty_mask=False,
            ignore=None,
            boxes=tuple(box for _, box in boxes[name]),
            place=f"{path}, line {boxes[name][0][0]}",
        )
        for name in listed
    ]
