"""The original table of CSAW-CC, one row per mammogram, as anchors with their earlier exams.

CSAW-CC (Strand, Karolinska Institutet, Swedish National Data Service 2022): mammograms of 873 women
with breast cancer and of 7,850 without, in `CSAW-CC_breast_cancer_screening_data.csv`. Read are

    anon_patientid  exam_year  imagelaterality (Left, Right)  viewposition (CC, MLO)
    anon_filename   x_case (1: a woman with cancer)
    rad_timing (1: found at this exam, 2: in the interval after it, 3: at a later one)

and nothing else: the other x_ and rad_ columns tell the outcome. The images are DICOM files, to be
converted to grey PNG or TIFF files of 16 bits with the same stems, which lie anywhere below the
root. Times are years only:

- The year of the cancer is that of the exam with timing 1, or the year after that with timing 2,
  and 2016 at the latest; the time of an anchor is from its exam's year to that, 0 counting as 1.
- A woman without cancer is known to be free of it until her last exam's year, 0 counting as 1.
- Slot t = -4..-1 of an anchor holds the exam of that many years before it, if there is one.
- Rows of a woman and year are one exam, of which the first image of a view counts (three exams have
  eight). With different timings they are several exams, of which the one listed last counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wsl_zoo.data.exam_table import VIEWS, Anchor, Exam, MissingViews
from wsl_zoo.data.manifest import DataError, suggestion
from wsl_zoo.data.tables import EMPTY

if TYPE_CHECKING:  # slow to import
    import pandas as pd

TABLE = "CSAW-CC_breast_cancer_screening_data.csv"
COLUMNS = ("anon_patientid", "exam_year", "imagelaterality", "viewposition", "anon_filename",
           "x_case", "rad_timing")  # fmt: skip
SIDES = {"left": "L", "right": "R"}
ENDINGS = (".png", ".tif", ".tiff")
LAST_YEAR = 2016
FOUND, INTERVAL, EARLIER = 1, 2, 3

LateExams = Literal["refuse", "drop"]


@dataclass(frozen=True)
class _Row:
    line: int
    year: int
    view: int
    file: Path
    case: bool
    timing: int | None


@dataclass
class _Exam:
    year: int
    lines: list[int] = field(default_factory=list)
    views: dict[int, Path] = field(default_factory=dict)

    @property
    def files(self) -> Exam:
        return tuple(self.views.get(v) for v in range(len(VIEWS)))


def read_screening(
    frame: pd.DataFrame,
    root: Path,
    slots: int,
    missing_views: MissingViews,
    late_exams: LateExams,
    problems: list[str],
    what: str = "Table",
) -> tuple[list[Anchor], dict[Path, str]]:
    """Turn the rows of the original table into anchors.

    Args:
        frame: Of `read_table`.
        root: Folder of the images, on any level below it.
        slots: Slots T.
        missing_views: Whether to "refuse" exams that lack views, or to "mask" these.
        late_exams: Whether to "refuse" exams after the diagnosis, or to "drop" them.
        problems: Receives what is wrong, with its line.
        what: The table, for messages.

    Returns:
        The anchors, patient by patient, and per image the place where it is listed.

    Raises:
        DataError: Columns are missing.
    """
    names = list(frame.columns)
    missing = [f"line 1: column {c} is missing{suggestion(c, names)}" for c in COLUMNS
               if c not in names]  # fmt: skip
    if missing:
        raise DataError(what, missing)
    files = _files_by_stem(root)
    rows: defaultdict[str, list[_Row]] = defaultdict(list)
    broken: set[str] = set()  # patients with a row that is wrong: no more is said of them
    table: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    for line, cells in zip(frame.index, table, strict=True):
        patient = cells["anon_patientid"]
        wrong: list[str] = []
        if patient in EMPTY:
            wrong.append("anon_patientid is empty")
        row = _parse(int(line), cells, files, root, wrong)
        if wrong or row is None:
            problems += [f"line {line}: {text}" for text in wrong]
            broken.add(patient)
        else:
            rows[patient].append(row)
    anchors: list[Anchor] = []
    places: dict[Path, str] = {}
    for patient, own in rows.items():
        if patient in broken:
            continue
        for row in own:
            first = places.setdefault(row.file, f"line {row.line}")
            if first != f"line {row.line}":
                problems.append(
                    f"line {row.line}: {row.file.name} is listed twice (first: {first})"
                )
        anchors += _anchors(patient, own, slots, missing_views, late_exams, problems)
    return anchors, places


def _anchors(
    patient: str,
    rows: Sequence[_Row],
    slots: int,
    missing_views: MissingViews,
    late_exams: LateExams,
    problems: list[str],
) -> list[Anchor]:
    """Return the anchors of a woman, by year."""
    case = any(row.case for row in rows)
    exams = _exams(rows)
    diagnosed = [
        min(row.year + (row.timing == INTERVAL), LAST_YEAR)
        for row in rows
        if row.timing in (FOUND, INTERVAL)
    ]
    if case and not diagnosed:
        lines = _listed(row.line for row in rows)
        problems.append(f"{lines}: no exam of case {patient!r} has rad_timing 1 or 2")
        return []
    if diagnosed and not case:
        lines = _listed(row.line for row in rows if row.timing in (FOUND, INTERVAL))
        problems.append(f"{lines}: rad_timing of {patient!r} tells a cancer, her x_case is 0")
        return []
    end = min(diagnosed) if case else max(exams)
    found: list[Anchor] = []
    for year in sorted(exams):
        exam = exams[year]
        lacking = [VIEWS[v] for v in range(len(VIEWS)) if v not in exam.views]
        if case and year > end:
            if late_exams == "refuse":
                problems.append(
                    f"{_listed(exam.lines)}: exam after diagnosis: {patient!r} in {year}, "
                    f'diagnosed in {end} (late_exams="drop"?)'
                )
            continue
        if lacking and missing_views == "refuse":
            problems.append(
                f"{_listed(exam.lines)}: the exam of {patient!r} in {year} lacks "
                f'{", ".join(lacking)} (missing_views="mask"?)'
            )
        blank: Exam = (None,) * len(VIEWS)
        years = range(year - slots + 1, year + 1)
        history = tuple(exams[y].files if y in exams else blank for y in years)
        found.append(
            Anchor(
                patient=patient,
                name=f"{patient}_{year}",
                exams=history,
                time=float(max(end - year, 1)),
                event=case,
                line=exam.lines[0],
            )
        )
    return found


def _exams(rows: Sequence[_Row]) -> dict[int, _Exam]:
    """Return the exam of every year: of several with different timings the one listed last."""
    by_year: defaultdict[int, list[_Row]] = defaultdict(list)
    for row in rows:
        by_year[row.year].append(row)
    exams: dict[int, _Exam] = {}
    for year, own in by_year.items():
        timing = next((row.timing for row in own if row.timing is not None), None)
        several: dict[int | None, _Exam] = {}
        for row in own:  # a row that tells no timing is of the exam before it
            timing = timing if row.timing is None else row.timing
            exam = several.setdefault(timing, _Exam(year))
            exam.lines.append(row.line)
            exam.views.setdefault(row.view, row.file)
        exams[year] = list(several.values())[-1]
    return exams


def _parse(
    line: int, cells: dict[str, str], files: dict[str, list[Path]], root: Path, wrong: list[str]
) -> _Row | None:
    """Return a row, or None where it cannot be read; add to `wrong` what is wrong with it."""
    year = _whole(cells["exam_year"])
    if year is None:
        wrong.append(f"exam_year must be a year, found {cells['exam_year']!r}")
    elif year > LAST_YEAR:
        wrong.append(f"exam_year {year} is after the end of follow-up, {LAST_YEAR}")
    side = SIDES.get(cells["imagelaterality"].lower())
    if side is None:
        wrong.append(f"imagelaterality must be Left or Right, found {cells['imagelaterality']!r}")
    position = cells["viewposition"].upper()
    if position not in ("CC", "MLO"):
        wrong.append(f"viewposition must be CC or MLO, found {cells['viewposition']!r}")
    case = _whole(cells["x_case"])
    if case not in (0, 1):
        wrong.append(f"x_case must be 0 or 1, found {cells['x_case']!r}")
    timing = _whole(cells["rad_timing"])
    if case == 1 and cells["rad_timing"] not in EMPTY and timing not in (FOUND, INTERVAL, EARLIER):
        wrong.append(f"rad_timing of a case must be 1, 2 or 3, found {cells['rad_timing']!r}")
    file = _find(cells["anon_filename"], files, root, wrong)
    if wrong or year is None or file is None:
        return None
    return _Row(line, year, VIEWS.index(f"{side}_{position}"), file, case == 1, timing)


def _whole(text: str) -> int | None:
    """Return a whole number, also one that was written as "2016.0"; None: it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _files_by_stem(root: Path) -> dict[str, list[Path]]:
    """Return the images and DICOM files below a folder by their stems.

    Raises:
        DataError: The folder does not exist.
    """
    if not root.is_dir():
        raise DataError(f"Folder {root}", ["it does not exist or is no folder"])
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in (*ENDINGS, ".dcm") and not path.name.startswith("."):
            found[path.stem].append(path)
    return found


def _find(name: str, files: dict[str, list[Path]], root: Path, wrong: list[str]) -> Path | None:
    """Return the converted image of an `anon_filename`."""
    if name in EMPTY:
        wrong.append("anon_filename is empty")
        return None
    stem = Path(name).stem if Path(name).suffix.lower() in (*ENDINGS, ".dcm") else Path(name).name
    below = files.get(stem, [])
    images = [path for path in below if path.suffix.lower() != ".dcm"]
    if len(images) == 1:
        return images[0]
    endings = ", ".join(ENDINGS)
    if images:
        shown = ", ".join(path.relative_to(root).as_posix() for path in images)
        wrong.append(f"{name} could be any of {shown}")
    elif below:
        shown = below[0].relative_to(root).as_posix()
        wrong.append(
            f"DICOM is not read: convert {shown} to a grey image of 16 bits of the same stem "
            f"({endings})"
        )
    else:
        wrong.append(f"there is no image {stem} ({endings}) below {root}")
    return None


def _listed(lines: Any) -> str:
    numbers = list(lines)
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
