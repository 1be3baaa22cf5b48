"""A table of visits per patient, with the time of an event or of censoring: longitudinal cohorts.

One row per visit, e.g. of the Mayo clinic's trial in primary biliary cirrhosis (`pbc2`; Murtaugh et
al., Hepatology 1994):

    id,years,status2,year,drug,age,serBilir,...     years: of death or censoring, from enrolment
    1,1.095,1,0.0,D-penicil,58.77,14.5,...           year: of the visit
    1,1.095,1,0.526,D-penicil,58.77,21.3,...

Every visit is an anchor: its risk is counted from there, its earlier slots hold the visits of a
year, two years, ... before (the nearest whole number; of several the latest).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsl_zoo.data.exams import ExamDataModule
from wsl_zoo.data.folder import SPLITS
from wsl_zoo.data.folds import deal_rows, one_of_each
from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.tables import TableSource, column_of, numbers_of, read_table


class VisitTableData(ExamDataModule):
    """Visits of patients, split by patient.

    Args:
        path: The CSV, one row per visit.
        patient: Column that tells patients apart.
        visit: Column of the time of the visit.
        time: Column of the time of the event or of censoring, from the same origin.
        event: Column of 1 (event) and 0 (censored).
        exclude: Further columns that are no features.
        slot: Length of a slot, in the unit of the times.
        subsets: Evaluation subsets, each of one anchor per patient; 0: all anchors at once.
        fold: The fold of patients that is `test`; the next one is `val`, the others are `train`.
        folds: Number of folds, at least 3, as alike in their shares of events as can be.
        split_seed: Seed of folds and subsets (apart from `seed`, so that runs share their splits).
        **kwargs: See `ExamDataModule`.
    """

    whole_times = False

    def __init__(
        self,
        path: str,
        patient: str = "id",
        visit: str = "year",
        time: str = "years",
        event: str = "status2",
        exclude: list[str] | None = None,
        slot: float = 1.0,
        subsets: int = 100,
        fold: int = 0,
        folds: int = 5,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not slot > 0 or subsets < 0:
            raise ValueError(f"slot={slot} must be positive, subsets={subsets} not negative")
        self.path = Path(path)
        self.columns = {"patient": patient, "visit": visit, "time": time, "event": event}
        self.exclude = exclude or []
        self.slot = slot
        self.subsets = subsets
        self.fold = fold
        self.folds = folds
        self.split_seed = split_seed
        self.feature_names: list[str] = []
        """Names of the D features, known once the table is read."""

    @property
    def origin(self) -> Path | None:
        """The CSV."""
        return self.path

    def read(self) -> dict[str, TableSource]:
        """Read the visits and deal their patients.

        Raises:
            DataError: All problems at once, with their lines.
        """
        frame = read_table(self.path, "Visits")
        names = {k: column_of(frame, name, k) for k, name in self.columns.items()}
        left_out = {*names.values(), *(column_of(frame, name, "exclude") for name in self.exclude)}
        problems: list[str] = []
        features, self.feature_names = numbers_of(
            frame, [c for c in frame.columns if c not in left_out], problems
        )
        columns = [names[k] for k in ("visit", "time", "event")]
        times, _ = numbers_of(frame, columns, problems, categories=False)
        patients = list(frame[names["patient"]])
        if not features.shape[1]:
            problems.append("line 1: there is no column of features")
        if not problems:
            problems = self._wrong(frame.index.tolist(), patients, times, names)
        if problems:
            raise DataError(f"Visits {self.path}", problems)
        visit, last, struck = times.T.astype(np.float64)
        order = np.lexsort((visit, patients))
        exams, mask = _slots(features, patients, visit, order, self.slots, self.slot)
        first = dict(zip(patients, struck.astype(int).tolist(), strict=True))
        struck_by = list(first.values())
        dealt = deal_rows(list(first), struck_by, self.fold, self.folds, self.split_seed)
        split_of = dict(zip(first, dealt, strict=True))
        found = {}
        for split in SPLITS:
            rows = [i for i, patient in enumerate(patients) if split_of[patient] == split]
            own = [patients[i] for i in rows]
            fields = {
                "features": torch.from_numpy(exams[rows]),
                "exam_mask": torch.from_numpy(mask[rows]),
                "time": torch.from_numpy((last - visit)[rows].astype(np.float32)),
                "event": torch.from_numpy(struck[rows] > 0),
            }
            if self.subsets and split != "train":
                fields["subset"] = one_of_each(own, self.subsets, f"{self.split_seed}-{split}")
            path = [f"{self.path.name}, line {frame.index[i]}" for i in rows]
            found[split] = TableSource(fields, path, own)
        return found

    def _wrong(
        self,
        lines: Sequence[int],
        patients: Sequence[str],
        times: np.ndarray,
        names: dict[str, str],
    ) -> list[str]:
        """Return what is wrong with patients and times, with lines."""
        problems = []
        outcome: dict[str, tuple[int, float, float]] = {}
        for line, patient, (visit, last, event) in zip(lines, patients, times, strict=True):
            where = f"line {line}"
            if not patient:
                problems.append(f"{where}: {names['patient']} is empty")
            if np.isnan([visit, last, event]).any():
                what = ", ".join(names[k] for k in ("visit", "time", "event"))
                problems.append(f"{where}: one of {what} is empty")
                continue
            if event not in (0, 1):
                problems.append(f"{where}: {names['event']} must be 0 or 1, found {event:g}")
            if visit < 0 or last < 0:
                problems.append(f"{where}: a negative time")
            elif visit > last:
                problems.append(f"{where}: the visit at {visit:g} comes after the end at {last:g}")
            line_before, *before = outcome.setdefault(patient, (line, last, event))
            if before != [last, event]:
                problems.append(
                    f"{where}: patient {patient} has another outcome than in line {line_before}"
                )
        return problems


def _slots(
    features: np.ndarray,
    patients: Sequence[str],
    visit: np.ndarray,
    order: np.ndarray,
    slots: int,
    length: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exams (N, T, D) float32 of every anchor, and which there are (N, T).

    Args:
        features: (N, D) of the visits, which are the anchors.
        patients: Whose visit it is.
        visit: (N,) times.
        order: Of visits by patient and time.
        slots: T.
        length: Of a slot.
    """
    exams = np.zeros((len(features), slots, features.shape[1]), np.float32)
    mask = np.zeros((len(features), slots), bool)
    start = 0
    for place, i in enumerate(order):
        if patients[i] != patients[order[start]]:
            start = place
        for j in order[start:place]:  # the later of two in one slot overwrites
            back = round((visit[i] - visit[j]) / length)
            if 0 < back < slots:
                exams[i, -1 - back], mask[i, -1 - back] = features[j], True
        exams[i, -1], mask[i, -1] = features[i], True
    return exams, mask
