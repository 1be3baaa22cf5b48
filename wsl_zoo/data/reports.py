r"""Corpora of pathology reports: read as they are, and cleaned of what OCR left in them.

Paper: Karimian et al., "CLIP-IT: CLIP-based Pairing for Histology Images Classification",
arXiv 2504.16181.

Reports that belong to no image are privileged information at training. A corpus is one of

    reports.txt         one report per line
    reports/**/*.txt    one report per file
    reports.csv         column `text`, and perhaps `name`, `label` and `group`; others are left out

Reports are indexed by position (pairings of images and reports refer to it), so that empty and
repeated ones are kept, and a warning tells of them.

The published clean-up starts by removing `[1Ii|]*`, which was meant for the bars of bar codes and
takes every 1, I, i and | out of the text: "differentiated, pT1" becomes "dfferentated, pT". The
default removes `|`, and the others only in runs of four or more (Roman numbers have up to three);
`published=True` gives the published rule.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_warn

from wsl_zoo.data.manifest import DataError, suggestion

COLUMNS = ("text", "name", "label", "group")
SHOWN = 5  # empty and repeated reports that a warning names

PUBLISHED_BARS = re.compile("[1Ii|]+")  # `*` in the published code, to the same end
# A run of ones alone is a bar code only if it is no part of a number: 211114 stays. A | ends a run,
# as it does between the cells of a table: III|II.
BARS = re.compile(r"\|+|(?=1*[Ii])[1Ii]{4,}|(?<![0-9])1{4,}(?![0-9])")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
DASHES = re.compile(r"-(?:\s*-)+")
METS = re.compile(r"\b([Mm])ets\b")
# Two characters of a word before it: not in "e.g." and "U.S.A.", nor in numbers, "4.5".
UNSPACED = re.compile(r"(?<=\w\w[.,;:!?])(?=[^\W\d_])")


@dataclass(frozen=True, slots=True)
class Report:
    """One report.

    Attributes:
        text: As it was read.
        name: What it is called: "line 7" of a file, "row 7" of a table, the path of its own file
            below the folder (without ending), or what the table calls it.
        label: Class, if the table has one.
        group: Patient, case or organ, if the table has one.
    """

    text: str
    name: str
    label: str = ""
    group: str = ""


def read_reports(path: Path | str) -> list[Report]:
    """Read a corpus: a `.csv` table, a folder of `.txt` files, or a file with a report per line.

    Warns of empty and repeated reports, which are kept; `empty_and_repeated` names them.

    Args:
        path: The file or folder.

    Returns:
        The reports, in the order of their lines, rows or sorted paths.

    Raises:
        DataError: There is no such file, no report in it, or all bad rows at once.
    """
    path = Path(path)
    problems: list[str] = []
    if path.is_dir():
        reports = _read_folder(path, problems)
    elif path.suffix.lower() == ".csv":
        reports = _read_table(path, problems)
    else:
        lines = _text(path, problems).removesuffix("\n").split("\n")  # \f and the like end no line
        reports = [Report(text.strip(), f"line {i}") for i, text in enumerate(lines, start=1)]
    if not problems and not any(report.text for report in reports):
        problems.append("it holds no report")
    if problems:
        raise DataError(f"Reports {path}", problems)
    empty, repeated = empty_and_repeated(reports)
    if empty:
        rank_zero_warn(f"{path}: {len(empty)} of {len(reports)} reports are empty: {_few(empty)}")
    if repeated:
        twins = [f"{name} ({first})" for name, first in repeated.items()]
        rank_zero_warn(
            f"{path}: {len(repeated)} of {len(reports)} reports repeat an earlier one: "
            f"{_few(twins)}"
        )
    return reports


def empty_and_repeated(reports: Sequence[Report]) -> tuple[list[str], dict[str, str]]:
    """Return the names of the empty reports, and of those that repeat an earlier one, with its.

    White space makes no difference; an empty report repeats none.

    >>> texts = ["No tumor.", "", "No  tumor. "]
    >>> empty_and_repeated([Report(text, f"line {i}") for i, text in enumerate(texts, start=1)])
    (['line 2'], {'line 3': 'line 1'})
    """
    empty: list[str] = []
    repeated: dict[str, str] = {}
    seen: dict[str, str] = {}
    for report in reports:
        words = " ".join(report.text.split())
        if not words:
            empty.append(report.name)
        elif words in seen:
            repeated[report.name] = seen[words]
        else:
            seen[words] = report.name
    return empty, repeated


def clean_report(text: str, published: bool = False) -> str:
    """Clean a report of what OCR left in it.

    In this order: bars of bar codes go; control characters, "Redacted", `_` and `*` become blanks;
    runs of dashes and of white space become one; "Mets" is spelt out; a blank follows punctuation
    between words. Only the first rule differs between the two; how the published code writes the
    others (their order, what "Mets" becomes) could not be read: they are by its description.

    Args:
        text: The report.
        published: Remove every 1, I, i and |, as the published code does (see the file's head).

    >>> clean_report("Stage III|II IIIII1__pT1:tumor -- no Mets.Redacted")
    'Stage III II pT1: tumor - no Metastases.'
    >>> clean_report("differentiated, pT1", published=True)
    'dfferentated, pT'
    """
    text = PUBLISHED_BARS.sub("", text) if published else BARS.sub(" ", text)
    text = CONTROL.sub(" ", text)
    for mark in ("Redacted", "_", "*"):
        text = text.replace(mark, " ")
    text = DASHES.sub("-", text)
    text = METS.sub(r"\1etastases", text)
    text = UNSPACED.sub(" ", text)
    return " ".join(text.split())


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _text(path: Path, problems: list[str]) -> str:
    """Return the text of a file; empty, and a problem, if it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read as UTF-8 text ({error})")
        return ""


def _read_folder(folder: Path, problems: list[str]) -> list[Report]:
    files = sorted(
        path
        for path in folder.rglob("*.txt")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        problems.append("it holds no .txt file")
    return [
        Report(_text(file, problems).strip(), file.relative_to(folder).with_suffix("").as_posix())
        for file in files
    ]


def _read_table(path: Path, problems: list[str]) -> list[Report]:
    reports: list[Report] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True, strict=True)
            header = [name.strip() for name in rows.fieldnames or ()]
            rows.fieldnames = header
            if "text" not in header:
                found = f"found: {', '.join(header) or 'none'}{suggestion('text', header)}"
                problems.append(f"line 1: there is no column 'text'; {found}")
                return []
            for i, row in enumerate(rows, start=1):
                if None in row or None in row.values():
                    problems.append(f"line {rows.line_num}: expected {len(header)} cells")
                    continue
                cells = {name: row.get(name, "").strip() for name in COLUMNS}
                reports.append(Report(**cells | {"name": cells["name"] or f"row {i}"}))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"{path} cannot be read as a UTF-8 table ({error})")
    times = Counter(report.name for report in reports)
    problems += [f"name {name!r} stands there {n} times" for name, n in times.items() if n > 1]
    return reports
