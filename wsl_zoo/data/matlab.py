"""Annotation of videos in MATLAB files, as YouTube-Objects is published.

- `<frame>.jpg_sticks.mat` (v1.0): `coor`, one vector x0, y0, x1, y1 per instance, as a cell or as a
  matrix with four columns.
- `ranges_<class>.mat` (v2.2): one matrix whose rows are first and last frame of a shot, and video.
- `bb_gt*_<class>.mat` (v2.2): boxes by frame, in any of the forms of `read_frame_boxes`, since its
  publication does not state the form.

Corners are returned as they stand; nothing is clipped or swapped here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from wsl_zoo.data.manifest import Box, DataError

FRAME_NAME = re.compile(r"^(fr|id|im|ind|num)|frame|file|name", re.IGNORECASE)
BOX_NAME = re.compile(r"^(bb|coor|rect)|box", re.IGNORECASE)
CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"))
NUMBER = re.compile(r"([0-9]+)(?:\.[A-Za-z]+)?$")
FORMS = (
    "a matrix whose five columns are frame, x0, y0, x1, y1; a structure (one, an array or a cell "
    "of them) or variables with frames in one field and boxes of four columns in another; or a "
    "cell of two columns, frame and boxes"
)

Entries = list[tuple[int, list[Box]]]
"""Frame number and its boxes, in file order; a frame may stand there again."""


def load_mat(path: Path) -> dict[str, Any]:
    """Return the variables of a file: structures as dicts, cells as object arrays, squeezed.

    Raises:
        DataError: It is missing, corrupt or of MATLAB's format 7.3.
    """
    if not path.is_file():
        raise DataError("MATLAB file", [f"{path} does not exist"])
    try:
        variables: dict[str, Any] = loadmat(path, simplify_cells=True)
    except NotImplementedError as error:
        problem = f"{path} is of MATLAB's format 7.3: save it again with '-v7'"
        raise DataError("MATLAB file", [problem]) from error
    except Exception as error:  # of a corrupt file, scipy raises nearly anything
        problem = f"{path} is not a readable MATLAB file ({type(error).__name__}: {error})"
        raise DataError("MATLAB file", [problem]) from error
    return {name: value for name, value in variables.items() if not name.startswith("__")}


def read_sticks(path: Path) -> list[Box]:
    """Return the boxes of a frame's `_sticks.mat`; none where `coor` is empty.

    Raises:
        DataError: The file cannot be read, or has no such `coor`.
    """
    variables = load_mat(path)
    boxes = _boxes(variables["coor"]) if "coor" in variables else None
    if boxes is None:
        problem = f"expected 'coor' with a vector x0, y0, x1, y1 per instance, {_found(variables)}"
        raise DataError("Sticks", [f"{path}: {problem}"])
    return boxes


def read_ranges(path: Path) -> list[tuple[int, int, int]]:
    """Return (first frame, last frame, video) of every shot.

    Raises:
        DataError: The file cannot be read, or does not hold exactly one matrix with three columns
            of integers, or a shot ends before it starts.
    """
    variables = load_mat(path)
    rows = [
        rows
        for value in variables.values()
        if (rows := _matrix(value, 3)) is not None and np.array_equal(rows, rows.round())
    ]
    if len(rows) != 1 or not len(rows[0]):
        problem = "expected one matrix of integers with the columns first frame, last frame, video"
        raise DataError("Ranges", [f"{path}: {problem}, {_found(variables)}"])
    shots = [(int(first), int(last), int(video)) for first, last, video in rows[0]]
    problems = [
        f"{path}, row {i}: the shot ends at frame {last}, before its first frame {first}"
        for i, (first, last, _) in enumerate(shots, start=1)
        if last < first
    ]
    if problems:
        raise DataError("Ranges", problems)
    return shots


def read_frame_boxes(path: Path) -> dict[int, list[Box]]:
    """Return the boxes of every frame that has any, by frame number.

    Accepted is one of these, and only one in a file:

    - a matrix whose five columns are frame, x0, y0, x1, y1;
    - a structure, an array of them or a cell of them, each with one or several frames in a field
      and their boxes in another (as many rows of four as frames, or a cell with as many matrices;
      all rows where it is one frame), or with a field for each of the four coordinates (`xmin`...,
      `x0`... or `x1`, `y1`, `x2`, `y2`); the file's variables themselves may be such fields. More
      than one field that could be meant is told apart by its name;
    - a cell of two columns, frame and boxes.

    A frame is a number, or a file name that ends in one. Other levels of cells, or of structures
    with one such field, may be around it. A frame that stands there again gives its other boxes;
    equal ones count once.

    Raises:
        DataError: The file cannot be read or has another form.
    """
    variables = load_mat(path)
    entries = _entries(variables)
    if not entries:
        problem = f"no boxes by frame: expected {FORMS}, {_found(variables)}"
        raise DataError("Ground truth", [f"{path}: {problem}"])
    frames: dict[int, list[Box]] = {}
    for frame, boxes in entries:
        known = frames.setdefault(frame, [])
        known += [box for box in dict.fromkeys(boxes) if box not in known]
    return {frame: boxes for frame, boxes in frames.items() if boxes}


def _matrix(value: Any, columns: int) -> np.ndarray | None:
    """Return a numeric value as a finite (n, columns) float64 matrix, or None; n may be 0."""
    array = np.asarray(value)
    if array.dtype.kind not in "iufb" or array.ndim not in (1, 2):
        return None
    if array.size == 0:
        return np.zeros((0, columns))
    array = np.atleast_2d(array)
    if array.shape[1] != columns or not np.isfinite(array).all():
        return None
    return array.astype(np.float64)


def _boxes(value: Any) -> list[Box] | None:
    """Return the rows of a matrix with four columns, or of all matrices of a cell, else None."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        parts = [_boxes(part) for part in value.flat]
        return None if None in parts else [box for part in parts if part for box in part]
    rows = _matrix(value, 4)
    return None if rows is None else [(x0, y0, x1, y1) for x0, y0, x1, y1 in rows.tolist()]


def _frames(value: Any) -> list[int] | None:
    """Return frame numbers, given as integers or as file names that end in one, else None."""
    numbers: list[int] = []
    for item in np.asarray(value).ravel().tolist():
        if isinstance(item, str):
            match = NUMBER.search(item.strip())
            if match is None:
                return None
            numbers.append(int(match[1]))
        elif isinstance(item, int | float) and item >= 0 and float(item).is_integer():
            numbers.append(int(item))
        else:
            return None
    return numbers


def _pairs(frames: Any, boxes: Any) -> Entries | None:
    """Match frames with their boxes, or return None where these are not such."""
    numbers = _frames(frames)
    if not numbers:
        return None
    if len(numbers) == 1:
        found = _boxes(boxes)
        return None if found is None else [(numbers[0], found)]
    cell = isinstance(boxes, np.ndarray) and boxes.dtype == object
    rows = list(boxes.flat) if cell else _matrix(boxes, 4)
    if rows is None or len(rows) != len(numbers):
        return None
    parts = [_boxes(row) for row in rows]
    if None in parts:
        return None
    return [(number, part or []) for number, part in zip(numbers, parts, strict=True)]


def _entries(node: Any) -> Entries | None:
    """Find the one place with frames and boxes at any depth; None: there is none, or several."""
    if isinstance(node, dict):
        return _of_structure(node)
    rows = None if isinstance(node, list) else _matrix(node, 5)
    if rows is not None:
        return _pairs(rows[:, 0], rows[:, 1:]) if len(rows) else []
    if isinstance(node, list) or (isinstance(node, np.ndarray) and node.dtype == object):
        items = node if isinstance(node, list) else list(node.flat)
        table = isinstance(node, np.ndarray) and node.shape[-1:] == (2,)
        rows_of_two = zip(items[::2], items[1::2], strict=True) if table else ()
        parts = [_pairs(frame, boxes) for frame, boxes in rows_of_two]
        if not parts or None in parts:
            parts = [_entries(item) for item in items]
        return None if None in parts else [entry for part in parts for entry in part or ()]
    return None


def _of_structure(fields: dict[str, Any]) -> Entries | None:
    lower = {name.lower(): value for name, value in fields.items()}
    for names in CORNERS:
        if all(name in lower for name in names):
            columns = [np.atleast_1d(lower.pop(name)) for name in names]
            if len({column.shape for column in columns}) == 1:
                lower["box"] = np.stack(columns, axis=-1)
    found = {
        (frame, box): entries
        for frame, box in permutations(lower, 2)
        if (entries := _pairs(lower[frame], lower[box])) is not None
    }
    if len(found) > 1:
        found = {
            (frame, box): entries
            for (frame, box), entries in found.items()
            if FRAME_NAME.search(frame) and BOX_NAME.search(box)
        }
    if not found:
        nested = [entries for value in fields.values() if (entries := _entries(value))]
        return nested[0] if len(nested) == 1 else None
    return next(iter(found.values())) if len(found) == 1 else None


def _found(variables: dict[str, Any]) -> str:
    """Say which variables a file holds, and of which form."""
    return "found " + ("; ".join(f"{k}: {_form(v)}" for k, v in variables.items()) or "nothing")


def _form(value: Any) -> str:
    if isinstance(value, dict):
        return f"structure ({', '.join(f'{k}: {_form(v)}' for k, v in value.items())})"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{len(value)} x {_form(value[0])}" if value else "empty"
    array = np.asarray(value)
    kind = "cell" if array.dtype == object else "text" if array.dtype.kind == "U" else array.dtype
    return f"{kind} {'x'.join(map(str, array.shape)) or 'scalar'}"
