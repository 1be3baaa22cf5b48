"""Metadata folders of wsolevaluation: boxes (true or pseudo) as text files beside the images.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
arXiv 2001.07437. Files have no header, their cells are separated by commas, and every path is
relative to the root of the images. A line of `localization.txt` is one box,
`path,x0,y0,x1,y1` in pixels of the original image; an image may have several.

A folder may hold pseudo-boxes (selective search, CLIP, RPN) instead, to select by without any true
box: Murtaza et al., "A Realistic Protocol for Evaluation of Weakly Supervised Object Localization",
WACV 2025.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pytorch_lightning.utilities import rank_zero_warn

from wsl_zoo.data.manifest import (
    ROUNDING,
    SHOWN_PROBLEMS,
    Box,
    DataError,
    Record,
    parse_boxes,
    read_size,
    suggestion,
)

BOX_CELLS = ("path", "x0", "y0", "x1", "y1")

Boxes = dict[str, list[tuple[int, Box]]]
"""Image path, relative to the root of the images -> (line, box) in file order."""


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
            boxes.setdefault(PurePosixPath(cells[0]).as_posix(), []).append((line, box))
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
            problems += _outside(path, records[name], boxes[name])
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


def _outside(path: Path, record: Record, boxes: Sequence[tuple[int, Box]]) -> Iterator[str]:
    try:
        width, height = read_size(record.image)
    except DataError:
        return  # the check of the data set itself names it
    for line, box in boxes:
        if min(box) < -ROUNDING or box[2] > width + ROUNDING or box[3] > height + ROUNDING:
            yield (
                f"{path}, line {line}: box {box} leaves its image {record.image.name} of "
                f"{width}x{height} pixels"
            )
