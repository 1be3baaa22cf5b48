"""Exams of several years and a censored outcome: the base of data modules of risk.

A row is an anchor: the exam from which the risk is counted, with those of the years before it. Slot
t of T is a year relative to the anchor, which is the last slot. Fields of its `TableSource`:

| field | shape | |
|---|---|---|
| `features` | (N, T, D) float32 | pre-computed exams; 0 where there is none |
| `exam_mask` | (N, T) bool | which exams there are; that of the anchor always |
| `time` | (N,) float32 | from the anchor to the event, or until when its absence is known |
| `event` | (N,) bool | the event was seen |
| `subset` | (N, S) bool, optional | evaluation subsets, of which metrics are the means |

The "classes" of such a module are its horizons, by their numbers: `["1", "2", "3", "4", "5"]`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from wsl_zoo.data.tables import TableSource, TabularDataModule


class ExamDataModule(TabularDataModule):
    """Loaders of anchors with their exams.

    Args:
        horizons: Times after the anchor at which the risk is asked for, increasing.
        slots: Slots T, the anchor's included.
        **kwargs: See `TabularDataModule`.

    Raises:
        ValueError: Horizons that are not positive and increasing, or no slot.
    """

    def __init__(
        self, horizons: Sequence[float] = (1, 2, 3, 4, 5), slots: int = 5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.horizons = [float(t) for t in horizons]
        rising = all(a < b for a, b in zip([0.0, *self.horizons], self.horizons, strict=False))
        if not self.horizons or not rising:
            raise ValueError(f"horizons={list(horizons)} must be positive and increasing")
        if slots < 1:
            raise ValueError(f"slots={slots}: there must be one at least, the anchor's")
        self.slots = slots

    whole_times = True
    """Times are whole years: an event at k came before k, and who was censored at k was free at it.
    """

    @property
    def class_names(self) -> list[str]:
        """The horizons as text."""
        return [f"{t:g}" for t in self.horizons]

    @abstractmethod
    def read(self) -> Mapping[str, TableSource]:
        """Return the anchors of every split."""

    def selection(self) -> dict[str, str | None]:
        """Return the metrics that choose checkpoints: those of the first validation split."""
        names = self.split_names("val")
        return {"cl": f"{names[0]}/bce" if names else None, "loc": None}

    def training_features(self) -> Tensor:
        """Return the features (M, D) of the exams that the training rows have."""
        fields = self.rows("train").fields
        return fields["features"][fields["exam_mask"]]

    def training_outcomes(self) -> tuple[Tensor, Tensor]:
        """Return time (N,) and event (N,) of the training rows."""
        fields = self.rows("train").fields
        return fields["time"], fields["event"]
