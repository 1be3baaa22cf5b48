"""The zoo's table of exams: one row per anchor, with the files of its exams and its outcome.

| column | |
|---|---|
| `patient_id`, `exam_id` | whose exam it is; every `exam_id` stands there once |
| `split` | "train", "val" or "test", the same in all rows of a patient; may be left out |
| `npy_-4` .. `npy_0` | file of the features (D,) of every exam, the anchor's last; empty: none |
| `img_-4_L_CC` .. `img_0_R_MLO` | or files of its four views |
| `dx_1` .. `dx_5` | "Malignant", "Not Malignant" or "Unknown" (or empty) within so many years |
| `time`, `event` | and/or years until the diagnosis (1), or known to be free of it (0) |
| `pseudo_0` .. `pseudo_99` | whether it belongs to subsets of metrics; may be left out |

Paths start from the folder of the table (or from `root`). Other columns are not read.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wsl_zoo.data.folder import SPLITS
from wsl_zoo.data.manifest import DataError, suggestion
from wsl_zoo.data.tables import EMPTY
from wsl_zoo.files import write_text

if TYPE_CHECKING:  # slow to import
    import pandas as pd

VIEWS = ("L_CC", "L_MLO", "R_CC", "R_MLO")
MALIGNANT, FREE, UNKNOWN = "Malignant", "Not Malignant", "Unknown"
LABELS = (MALIGNANT, FREE, UNKNOWN)
YEARS = 5  # columns dx_1.. that are written
TRUTH = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
OWN = re.compile(r"(npy|img|dx|pseudo)_")
KNOWN = re.compile(r"npy_(0|-[0-9]+)|img_(0|-[0-9]+)_[LR]_(CC|MLO)|dx_[1-9][0-9]*|pseudo_[0-9]+")

MissingViews = Literal["refuse", "mask"]
Exam = tuple[Path | None, ...]
"""Files of an exam: one of features, or one per view of `VIEWS`; None where there is none."""


@dataclass(frozen=True)
class Anchor:
    """An exam from which the risk is counted.

    Attributes:
        patient: Whose it is.
        name: Its own name, `exam_id`.
        exams: Files of its T exams, those of earlier years before it.
        time: Years to the diagnosis, or known to be free of it.
        event: Whether there was a diagnosis.
        split: "train", "val" or "test"; empty: not dealt yet.
        subset: Per evaluation subset whether it belongs to it.
        line: Of the table it was read from.
    """

    patient: str
    name: str
    exams: tuple[Exam, ...]
    time: float
    event: bool
    split: str = ""
    subset: tuple[bool, ...] = ()
    line: int = 0


# Outcomes -----------------------------------------------------------------------------------------


def labels_of_outcome(time: float, event: bool, years: int = YEARS) -> list[str]:
    """Return dx_1..dx_K of an outcome.

    A diagnosis after e years is one within k years for k >= e. One who was free for c years and is
    not known of since was free within k years for k <= c.

    >>> labels_of_outcome(3, True)
    ['Not Malignant', 'Not Malignant', 'Malignant', 'Malignant', 'Malignant']
    >>> labels_of_outcome(3, False)
    ['Not Malignant', 'Not Malignant', 'Not Malignant', 'Unknown', 'Unknown']
    """
    if event:
        return [MALIGNANT if k >= time else FREE for k in range(1, years + 1)]
    return [FREE if k <= time else UNKNOWN for k in range(1, years + 1)]


def outcome_of_labels(dx: Sequence[str]) -> tuple[float, bool]:
    """Return (time, event) of dx_1..dx_K: the first year with a diagnosis, else the last one free.

    This undoes `labels_of_outcome` for whole times up to K. All unknown is (0, False). What is
    unknown before a year that is known follows from that year: free in it, she was free before; a
    diagnosis of unknown year before it counts as of that year.

    Raises:
        ValueError: A text that is none of the three, or free after a diagnosis.

    >>> outcome_of_labels(["Not Malignant", "Malignant", "Malignant", "Malignant", "Malignant"])
    (2.0, True)
    """
    for k, text in enumerate(dx, start=1):
        if text not in LABELS:
            allowed = ", ".join(map(repr, LABELS))
            raise ValueError(f"dx_{k} {text!r} is none of {allowed}{suggestion(text, LABELS)}")
    first = next((k for k, text in enumerate(dx, start=1) if text == MALIGNANT), None)
    last = max((k for k, text in enumerate(dx, start=1) if text == FREE), default=0)
    if first is None:
        return float(last), False
    if last > first:
        raise ValueError(f"dx_{last} is {FREE!r} after dx_{first} {MALIGNANT!r}")
    return float(first), True


def _contradiction(dx: Sequence[str], time: float, event: bool) -> str | None:
    """Return the first dx_k that a given (time, event) rules out, as text."""
    for k, text in enumerate(dx, start=1):
        wrong_event = text == MALIGNANT and not (event and time <= k)
        wrong_free = text == FREE and (time <= k if event else time < k)
        if wrong_event or wrong_free:
            return f"dx_{k} {text!r} contradicts time={time:g}, event={int(event)}"
    return None


def _outcome(row: Mapping[str, str], years: int, timed: bool) -> tuple[float, bool]:
    """Return (time, event) of a row.

    Raises:
        ValueError: It has none, or one that cannot be.
    """
    dx = [row[f"dx_{k}"] for k in range(1, years + 1)]
    dx = [UNKNOWN if text in EMPTY else text for text in dx]
    from_dx = outcome_of_labels(dx)
    time_text, event_text = (row["time"], row["event"]) if timed else ("", "")
    if time_text in EMPTY and event_text in EMPTY:
        if not years or (timed and all(text == UNKNOWN for text in dx)):
            raise ValueError("there is no outcome: time and event are empty")
        return from_dx
    try:
        time = float(time_text)
    except ValueError:
        time = math.nan
    if not math.isfinite(time) or time < 0:
        raise ValueError(f"time must be a number of years >= 0, found {time_text!r}")
    event = TRUTH.get(event_text.lower())
    if event is None:
        raise ValueError(f"event must be 0, 1, true or false, found {event_text!r}")
    if event and time == 0:
        raise ValueError("an event at time 0 is at the exam itself: within its year is time 1")
    if wrong := _contradiction(dx, time, event):
        raise ValueError(wrong)
    return time, event


# Reading ------------------------------------------------------------------------------------------


def exam_columns(images: bool, slots: int) -> list[list[str]]:
    """Return the columns of files per slot, oldest first."""
    years = range(1 - slots, 1)
    if images:
        return [[f"img_{t}_{view}" for view in VIEWS] for t in years]
    return [[f"npy_{t}"] for t in years]


def has_images(names: Iterable[str]) -> bool:
    """Return whether a table with these columns lists images and no features."""
    prefixes = {name[:4] for name in names}
    return "img_" in prefixes and "npy_" not in prefixes


def _check_columns(names: Sequence[str], columns: Sequence[Sequence[str]], what: str) -> int:
    """Return the number K of columns dx_1..dx_K; refuse a header that lacks what is needed."""
    needed = ["patient_id", "exam_id", *(name for slot in columns for name in slot)]
    problems = [f"line 1: column {name} is missing" for name in needed if name not in names]
    dx = sorted(int(name[3:]) for name in names if re.fullmatch("dx_[1-9][0-9]*", name))
    given = [name for name in ("time", "event") if name in names]
    if len(given) == 1 or not (dx or given):
        problems.append("line 1: the outcome needs the columns dx_1, dx_2, ..., or time and event")
    if dx != list(range(1, len(dx) + 1)):
        problems.append(f"line 1: dx_1 to dx_{dx[-1]} must all be there, found {len(dx)} of them")
    candidates = [*needed, *(f"dx_{k}" for k in range(1, YEARS + 1)), "pseudo_0"]
    problems += [
        f"line 1: unknown column {name!r}{suggestion(name, candidates)}"
        for name in names
        if OWN.match(name) and not KNOWN.fullmatch(name)
    ]
    if problems:
        raise DataError(what, problems)
    return len(dx)


def read_anchors(
    frame: pd.DataFrame,
    root: Path,
    images: bool,
    slots: int,
    missing_views: MissingViews,
    problems: list[str],
    what: str = "Table",
) -> tuple[list[Anchor], dict[Path, str]]:
    """Read the anchors of a table.

    Args:
        frame: Of `read_table`.
        root: Where its paths start from.
        images: Read the views, not the features.
        slots: Slots T; older exams are not read.
        missing_views: Whether to "refuse" an exam with some of its views, or to "mask" the others.
        problems: Receives what is wrong, with its line.
        what: The table, for messages.

    Returns:
        The rows that are right, and per file the place where it is listed first.

    Raises:
        DataError: Columns are missing, or there are unknown ones.
    """
    columns = exam_columns(images, slots)
    years = _check_columns(list(frame.columns), columns, what)
    timed, dealt = "time" in frame.columns, "split" in frame.columns
    pseudo = sorted((c for c in frame.columns if c.startswith("pseudo_")), key=lambda c: int(c[7:]))
    subsets = _subsets(frame, pseudo, problems)
    found: list[Anchor] = []
    places: dict[Path, str] = {}
    there: dict[Path, bool] = {}
    names: dict[str, int] = {}
    split_of: dict[str, tuple[str, int]] = {}
    rows: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    for i, (line, row) in enumerate(zip(frame.index, rows, strict=True)):
        wrong: list[str] = []
        patient, name, split = row["patient_id"], row["exam_id"], row.get("split", "")
        if patient in EMPTY or name in EMPTY:
            wrong.append("patient_id or exam_id is empty")
        elif names.setdefault(name, line) != line:
            wrong.append(f"exam_id {name!r} stands there twice (first: line {names[name]})")
        if dealt and split not in SPLITS:
            wrong.append(f"split {split!r} must be one of {', '.join(SPLITS)}"
                         f"{suggestion(split, SPLITS)}")  # fmt: skip
        elif dealt and patient not in EMPTY:
            other, first = split_of.setdefault(patient, (split, line))
            if other != split:
                wrong.append(f"patient {patient!r} is in {split}, but in {other} in line {first}")
        time, event = 0.0, False
        try:
            time, event = _outcome(row, years, timed)
        except ValueError as error:
            wrong.append(str(error))
        exams = []
        for own in columns:
            exam: Exam = tuple(None if row[c] in EMPTY else root / row[c] for c in own)
            for column, file in zip(own, exam, strict=True):
                if file is None:
                    continue
                places.setdefault(file, f"line {line}: {column}")
                if file not in there:
                    there[file] = file.is_file()
                if not there[file]:
                    wrong.append(f"{column}: there is no file {file}")
            lacking = [c for c, file in zip(own, exam, strict=True) if file is None]
            if own is columns[-1] and len(lacking) == len(own):
                what_lacks = f"{lacking[0]}{' to ' + lacking[-1] if images else ''}"
                wrong.append(f"{what_lacks} is empty, but the current exam must be there")
            elif missing_views == "refuse" and 0 < len(lacking) < len(own):
                wrong.append(f'views are missing: {", ".join(lacking)} (missing_views="mask"?)')
            exams.append(exam)
        problems += [f"line {line}: {text}" for text in wrong]
        if not wrong:
            subset = tuple(map(bool, subsets[i]))
            found.append(Anchor(patient, name, tuple(exams), time, event, split, subset, line))
    return found, {file: place for file, place in places.items() if there[file]}


def _subsets(frame: pd.DataFrame, pseudo: list[str], problems: list[str]) -> np.ndarray:
    """Return (N, S) bool of the columns `pseudo`; no woman may be twice in one of them."""
    if not pseudo:
        return np.zeros((len(frame), 0), bool)
    text = frame[pseudo].apply(lambda column: column.str.lower())
    known = text.isin([*TRUTH, *(cell.lower() for cell in EMPTY)])
    for column in pseudo:
        bad = frame[column][~known[column]]
        problems += [
            f"line {line}: {column} must be true or false, found {cell!r}"
            for line, cell in bad.items()
        ]
    true = text.isin([cell for cell, value in TRUTH.items() if value])
    evaluated = true[frame["split"] != "train"] if "split" in frame else true
    patient = frame["patient_id"][evaluated.index]
    counts = evaluated.groupby(patient).sum()
    for column in pseudo:
        twice = counts.index[counts[column] > 1]
        if len(twice):
            own = evaluated.index[evaluated[column] & (patient == twice[0])]
            lines = ", ".join(map(str, own))
            problems.append(f"{column} holds patient {twice[0]!r} more than once: lines {lines}")
    return true.to_numpy(dtype=bool).reshape(len(frame), len(pseudo))


def read_vectors(places: Mapping[Path, str], problems: list[str]) -> dict[Path, np.ndarray]:
    """Read features (D,) float32 of files.

    Args:
        places: The files, and where each is listed.
        problems: Receives files that hold no finite vector of the size that most have.
    """
    found: dict[Path, np.ndarray] = {}
    for file, place in places.items():
        try:
            vector = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            problems.append(f"{place}: {file} cannot be read ({error})")
            continue
        if vector.ndim != 1 or vector.dtype.kind not in "fiu" or not len(vector):
            what = f"{vector.dtype} of shape {vector.shape}"
            problems.append(f"{place}: {file} must hold a vector of numbers, found {what}")
        elif not np.isfinite(vector).all():
            problems.append(f"{place}: {file} holds numbers that are not finite")
        else:
            found[file] = vector.astype(np.float32)
    sizes = Counter(len(vector) for vector in found.values())
    usual = sizes.most_common(1)[0][0] if sizes else 0
    problems += [
        f"{places[file]}: {file} has {len(vector)} features, most have {usual}"
        for file, vector in found.items()
        if len(vector) != usual
    ]
    return found


# Writing ------------------------------------------------------------------------------------------


def write_anchors(path: Path, anchors: Sequence[Anchor]) -> Path:
    """Write a table whole or not at all; files below its folder by their paths from there.

    Args:
        path: The CSV.
        anchors: All with as many slots, all with features or all with views.

    Raises:
        ValueError: There are none, or they are not alike.
    """
    shapes = {(len(anchor.exams), len(anchor.exams[-1])) for anchor in anchors}
    if len(shapes) != 1:
        raise ValueError(f"a table needs anchors of one shape (slots, files), got {sorted(shapes)}")
    ((slots, files),) = shapes
    columns = [name for slot in exam_columns(files > 1, slots) for name in slot]
    subsets = max(len(anchor.subset) for anchor in anchors)
    folder = path.parent.absolute()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["patient_id", "exam_id", "split", *columns, *(f"dx_{k}" for k in range(1, YEARS + 1)),
         "time", "event", *(f"pseudo_{s}" for s in range(subsets))]
    )  # fmt: skip
    for anchor in anchors:
        cells = [_cell(file, folder) for exam in anchor.exams for file in exam]
        time = int(anchor.time) if anchor.time == int(anchor.time) else anchor.time
        member = anchor.subset or (False,) * subsets
        dx = labels_of_outcome(anchor.time, anchor.event)
        start = [anchor.patient, anchor.name, anchor.split]
        writer.writerow([*start, *cells, *dx, time, int(anchor.event), *member])
    return write_text(path, text.getvalue())


def _cell(file: Path | None, folder: Path) -> str:
    if file is None:
        return ""
    whole = file.absolute()
    return (whole.relative_to(folder) if whole.is_relative_to(folder) else whole).as_posix()
