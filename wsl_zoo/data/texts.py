"""Which report each image is paired with, and what the reports' text looks like to a text encoder.

A pairing is a folder that `wsl-zoo pair` writes:

    pairing.json   what it was made of; written last, so that nothing is half made
    <split>.csv    `image,report,similarity`: an image per line, reports by their names
    reports.npy    (M, D) float32, the text features of the reports
    reports.csv    `name,text`: the M reports in the same order

Images are called what the data set calls them (`ZooDataModule.image_names`), so that a pairing fits
any part of what it was made for, in any order: folds, small training sets, tables of masks.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsl_zoo.data.manifest import DataError, suggestion
from wsl_zoo.data.reports import Report
from wsl_zoo.files import write_array, write_text

PAIRING = "pairing.json"
FEATURES, REPORTS = "reports.npy", "reports.csv"
PAIR_COLUMNS = ("image", "report", "similarity")
REPORT_COLUMNS = ("name", "text")
SHOWN = 3  # names of one kind of problem


@dataclass(frozen=True, eq=False)
class Texts:
    """Text features of the samples of a split: those of the report that each is paired with.

    Attributes:
        features: (M, D) float32, of the reports.
        report: (N,) int64 in [0, M), of the samples.
        words: The M reports themselves; empty where only features are known.
    """

    features: Tensor
    report: Tensor
    words: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.report)

    def __getitem__(self, index: int) -> Tensor:
        return self.features[self.report[index]]

    @property
    def dim(self) -> int:
        """Features D of a text."""
        return self.features.shape[1]


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of one split.

    Attributes:
        images: N names.
        report: (N,) int64 in [0, M).
        similarity: (N,) cosines.
    """

    images: Sequence[str]
    report: Tensor
    similarity: Tensor


def write_pairing(
    folder: Path,
    reports: Sequence[Report],
    features: Tensor,
    pairs: Mapping[str, Pairs],
    made_of: bytes,
    about: Mapping[str, Any],
) -> Path:
    """Write a pairing; one that is there is replaced, and is none until the new one is whole.

    Args:
        folder: Receives it.
        reports: The M reports.
        features: (M, D) of their texts.
        pairs: By split.
        made_of: What the features depend on; it goes into the hash, with the texts and the pairs.
        about: What else `pairing.json` tells.

    Returns:
        The path of `pairing.json`.

    Raises:
        ValueError: Numbers that do not fit, or names that occur twice.
    """
    names = [report.name for report in reports]
    if features.ndim != 2 or len(features) != len(reports):
        raise ValueError(f"features {tuple(features.shape)} for {len(reports)} reports")
    (folder / PAIRING).unlink(missing_ok=True)
    digest = hashlib.blake2b(made_of, digest_size=16)
    digest.update(repr([(report.name, report.text) for report in reports]).encode())
    splits: dict[str, Any] = {}
    for split, own in pairs.items():
        file = write_pairs(folder / f"{split}.csv", own, names)
        digest.update(repr((split, list(own.images), own.report.tolist())).encode())
        splits[split] = {"file": file.name} | _summary(own, names)
    write_array(folder / FEATURES, features.float().cpu().numpy())
    _write_rows(folder / REPORTS, REPORT_COLUMNS, ((r.name, r.text) for r in reports))
    numbers = {"reports": len(reports), "dim": features.shape[1], "splits": splits}
    content = {"hash": digest.hexdigest(), **about, **numbers}
    return write_text(folder / PAIRING, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_pairs(path: Path, pairs: Pairs, reports: Sequence[str]) -> Path:
    """Write pairs as CSV: `image,report,similarity`, an image per line, whole or not at all.

    Args:
        path: The file.
        pairs: Of N images.
        reports: M names of the reports.

    Raises:
        ValueError: Another number of names, or names that occur twice.
    """
    if not len(pairs.images) == len(pairs.report) == len(pairs.similarity):
        raise ValueError(f"{len(pairs.images)} names for {len(pairs.report)} pairs")
    for what, given in (("image", pairs.images), ("report", reports)):
        twice = [name for name, times in Counter(given).items() if times > 1]
        if twice:
            raise ValueError(f"two {what}s are called {twice[0]!r}")
    rows = zip(pairs.images, pairs.report.tolist(), pairs.similarity.tolist(), strict=True)
    return _write_rows(path, PAIR_COLUMNS, ((i, reports[j], f"{s:.6f}") for i, j, s in rows))


def read_texts(path: str | Path, split: str, names: Sequence[str]) -> Texts:
    """Read the text features of the images of a split.

    Pairs of images that are not asked for are left out: one may train on a part of the images.

    Args:
        path: Folder of the pairing, or its `pairing.json`.
        split: The split, as it was paired.
        names: What the data set calls the N images, in order.

    Raises:
        DataError: All problems at once: no such pairing, split or files, images without a pair,
            unknown reports, or features of another shape than expected.
    """
    path = Path(path)
    folder = path.parent if path.suffix == ".json" else path
    about = _read_about(folder, folder / PAIRING if folder == path else path)
    problems: list[str] = []
    rows = _read_rows(folder / REPORTS, REPORT_COLUMNS, problems)
    reports, words = [row[0] for row in rows], [row[1] for row in rows]
    features = _read_features(folder / FEATURES, about, len(reports), problems)
    report_of: dict[str, int] = {}
    if split in about["splits"]:
        file = folder / str(about["splits"][split]["file"])
        report_of = _read_pairs(file, reports, problems)
        missing = [name for name in names if name not in report_of]
        if missing and (report_of or not problems):
            more = ", ..." if len(missing) > SHOWN else ""
            known = next(iter(report_of), None)
            problems.append(
                f"{file.name}: {len(missing)} of {len(names)} images have no pair: "
                f"{', '.join(missing[:SHOWN])}{more}"
                + (f" (it names {known}, for instance)" if known else "")
                + ": pair the data that are read now"
            )
    else:
        held = list(about["splits"])
        problems.append(
            f"the split {split!r} is not paired: it holds {', '.join(held) or 'none'}; pair it "
            f"with --splits '[{', '.join([*held, split])}]'"
        )
    if problems or features is None:
        raise DataError(f"Pairing {folder}", problems)
    report = torch.tensor([report_of[name] for name in names], dtype=torch.int64)
    return Texts(features, report, words)


def _summary(pairs: Pairs, names: Sequence[str]) -> dict[str, Any]:
    """Return what `pairing.json` tells of a split."""
    used = Counter(pairs.report.tolist())
    summary: dict[str, Any] = {"images": len(pairs.images), "reports": len(used)}
    if used:
        report, images = min(used.items(), key=lambda item: (-item[1], item[0]))
        similarity = pairs.similarity.double()
        summary |= {
            "mean_similarity": round(similarity.mean().item(), 6),
            "min_similarity": round(similarity.min().item(), 6),
            "most_used": {"report": names[report], "images": images},
        }
    return summary


def _write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return write_text(path, table.getvalue())


def _read_about(folder: Path, path: Path) -> dict[str, Any]:
    """Return what `pairing.json` holds.

    Raises:
        DataError: There is no such folder or file, or it is of another kind.
    """
    make = f"make one with wsl-zoo pair --out {folder} ..."
    if not folder.is_dir():
        raise DataError(f"Pairing {folder}", [f"there is no such folder: {make}"])
    if not path.is_file():
        raise DataError(f"Pairing {folder}", [f"there is no {path.name} in it: {make}"])
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = [about["reports"], about["dim"], *(own["file"] for own in about["splits"].values())]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"{path.name} is not what wsl-zoo pair writes ({error}): {make}"
        raise DataError(f"Pairing {folder}", [problem]) from error
    return about


def _read_rows(path: Path, columns: Sequence[str], problems: list[str]) -> list[list[str]]:
    """Return the rows of a table of these columns; none, and a problem, where it is no such one."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except FileNotFoundError:
        problems.append(f"there is no {path.name}: pair anew")
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"{path.name} cannot be read as a UTF-8 table ({error})")
        return []
    if header != list(columns):
        problems.append(f"{path.name}: expected the columns {','.join(columns)}, found: "
                        f"{','.join(header) or 'none'}")  # fmt: skip
        return []
    wrong = [i for i, row in enumerate(rows, start=2) if len(row) != len(columns)]
    if wrong:
        problems.append(f"{path.name}: expected {len(columns)} cells in row {wrong[0]} "
                        f"({len(wrong)} such rows)")  # fmt: skip
        return []
    return rows


def _read_features(
    path: Path, about: Mapping[str, Any], reports: int, problems: list[str]
) -> Tensor | None:
    try:
        features = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        problems.append(f"there is no {path.name}: pair anew")
        return None
    except (OSError, ValueError, EOFError) as error:
        problems.append(f"{path.name} cannot be read as an array ({error})")
        return None
    expected = (reports or about["reports"], about["dim"])  # none: a problem that has been said
    if features.shape != expected or features.dtype != np.float32:
        problems.append(
            f"{path.name} is {features.shape} {features.dtype}, expected {expected} float32"
        )
    elif not np.isfinite(features).all():
        problems.append(f"{path.name} holds what is no number")
    return torch.from_numpy(features)


def _read_pairs(path: Path, reports: Sequence[str], problems: list[str]) -> dict[str, int]:
    """Return the position of the report of every image; of an unknown one, 0 and a problem."""
    rows = _read_rows(path, PAIR_COLUMNS, problems)
    position = {name: j for j, name in enumerate(reports)}
    twice = [name for name, times in Counter(row[0] for row in rows).items() if times > 1]
    if twice:
        problems.append(f"{path.name}: {twice[0]} stands there twice ({len(twice)} such images)")
    unknown = [i for i, row in enumerate(rows, start=2) if row[1] not in position]
    if unknown and reports:
        name = rows[unknown[0] - 2][1]
        problems.append(
            f"{path.name}, row {unknown[0]}: {REPORTS} has no report {name!r}"
            f"{suggestion(name, reports)} ({len(unknown)} such rows)"
        )
    return {row[0]: position.get(row[1], 0) for row in rows}
