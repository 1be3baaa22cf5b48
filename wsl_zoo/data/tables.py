"""Rows in place of images: what data modules of tables and exams are made of, and labelled tables.

A `TableSource` holds the rows of a split as tensors; batches are slices of them. `TableData` reads
one CSV with a label per row, for ordinal classification.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.dataset import collate
from wsl_zoo.data.folder import SPLITS
from wsl_zoo.data.folds import deal_rows
from wsl_zoo.data.manifest import INTEGER, DataError, suggestion
from wsl_zoo.types import Batch

if TYPE_CHECKING:  # slow to import
    import pandas as pd

EMPTY = frozenset({"", "NA", "NaN", "nan"})  # cells that hold nothing
OUTCOMES = ("label", "time", "event", "subset")  # what a method that reads no labels does not see


@dataclass(frozen=True)
class TableSource:
    """Rows of a split.

    Attributes:
        fields: Names of `Batch` -> tensors (N, ...).
        path: Per row where it came from, for messages and written predictions.
        group: Per row its patient or group; empty: none.
    """

    fields: Mapping[str, Tensor]
    path: Sequence[str]
    group: Sequence[str] = ()
    has_masks = False
    has_boxes = False

    def __len__(self) -> int:
        return len(self.path)

    def load(self, index: int, *, annotations: bool) -> Any:
        """Refuse: rows are no images.

        Raises:
            TypeError: Always.
        """
        raise TypeError("this data set holds rows of features, no images")


class TableDataset(Dataset[dict[str, Any]]):
    """Rows of a source by `Key` or plain index, a whole batch at once.

    Args:
        source: The rows.
        labels: Give labels and outcomes; False for training that must not read them.
        only: Indices that make up the data set, in this order; None: all.
        named: Give `path` and `group` of every row, which prediction writes; without them batches
            move to a device in a quarter less time.
    """

    has_masks = has_boxes = annotations = False

    def __init__(
        self,
        source: TableSource,
        *,
        labels: bool = True,
        only: Sequence[int] | None = None,
        named: bool = True,
    ) -> None:
        self.source = source
        self.labels = labels
        self.only = only
        self.named = named

    def __len__(self) -> int:
        return len(self.source) if self.only is None else len(self.only)

    def __getitems__(self, keys: Sequence[Any]) -> Batch:
        """Return the batch of some keys."""
        parts = [key if isinstance(key, tuple) else (0, key, True) for key in keys]
        index = [i if self.only is None else self.only[i] for _, i, _ in parts]
        rows = torch.tensor(index)
        batch: dict[str, Any] = {"index": rows, "valid": torch.tensor([v for *_, v in parts])}
        for name, values in self.source.fields.items():
            if self.labels or name not in OUTCOMES:
                batch[name] = values[rows]
        if self.named:
            batch["path"] = [self.source.path[i] for i in index]
        if self.named and self.source.group:
            batch["group"] = [self.source.group[i] for i in index]
        return batch  # type: ignore[return-value]

    def __getitem__(self, key: Any) -> dict[str, Any]:
        """Return one row as `collate` understands it."""
        batch: dict[str, Any] = dict(self.__getitems__([key]))
        return {name: value[0] for name, value in batch.items()}

    @staticmethod
    def collate(items: Any) -> Batch:
        """Return a batch as it is; make one of single rows."""
        return items if isinstance(items, dict) else collate(items)  # type: ignore[return-value]


class TabularDataModule(ZooDataModule):
    """Loaders of rows of features.

    Args:
        batch_size: Rows per training batch and process.
        eval_batch_size: Rows per evaluation batch and process; default: `batch_size`.
        num_workers: Worker processes per loader.
        drop_last: Leave out a training batch that is not full.
        seed: Fixes the order, with the epoch.
    """

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            drop_last=drop_last,
            seed=seed,
        )

    @abstractmethod
    def read(self) -> Mapping[str, TableSource]:
        """Return the rows of every split."""

    @property
    def in_chans(self) -> int:
        """Features D of a row."""
        return int(self.rows("train").fields["features"].shape[-1])

    def rows(self, split: str) -> TableSource:
        """Return the rows of a split."""
        source = self.sources[split]
        assert isinstance(source, TableSource)
        return source

    def training_features(self) -> Tensor:
        """Return the features (N, D) that are standardised by: those of the training rows."""
        return self.rows("train").fields["features"].flatten(0, -2)

    def dataset(self, split: str) -> TableDataset:  # type: ignore[override]
        """Return one split as the network sees it."""
        return self.rows_of(split, named=False)

    def whole_images(self, split: str, only: Sequence[int] | None = None) -> DataLoader[Any]:
        """Return a loader of a split in order."""
        return self._loader(self.rows_of(split, only=only), train=False)

    def rows_of(self, split: str, **options: Any) -> TableDataset:
        """Return the rows of a split as a data set; options as of `TableDataset`."""
        labels = split != "train" or self._training_reads("label")
        return TableDataset(self.rows(split), labels=labels, **options)

    def preprocessing(self) -> dict[str, Any]:
        """Return that there is no image size."""
        return {"image_size": None}


# Reading ------------------------------------------------------------------------------------------


def read_table(path: Path, what: str) -> pd.DataFrame:
    """Read a CSV as text: cells stripped, indexed by line numbers, the header in line 1.

    Lines without a filled cell are left out.

    Args:
        path: The file.
        what: What it is, for messages.

    Raises:
        DataError: It cannot be read, is empty, columns have one name, or there are more cells than
            columns.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(
            path, dtype=str, keep_default_na=False, skipinitialspace=True, skip_blank_lines=False
        )
        header = pd.read_csv(path, dtype=str, keep_default_na=False, header=None, nrows=1)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{what} {path}", [f"cannot be read ({str(error).strip()})"]) from error
    names = [str(name).strip() for name in header.iloc[0]]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{what} {path}", [f"line 1: columns that occur twice: {', '.join(twice)}"])
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the cells in excess for an index
        cells = frame.index.nlevels + len(names)
        raise DataError(f"{what} {path}", [f"line 2: {cells} cells under {len(names)} columns"])
    frame.columns = names[: len(frame.columns)]
    frame.index = pd.RangeIndex(2, len(frame) + 2)
    frame = frame.apply(lambda column: column.str.strip())
    frame = frame[(frame != "").any(axis=1)]
    if frame.empty:
        raise DataError(f"{what} {path}", ["there are no rows below the header"])
    return frame


def column_of(frame: pd.DataFrame, column: int | str, what: str) -> str:
    """Return the name of a column, of its position (from 0, or from the end below 0) too.

    Raises:
        ValueError: There is none.
    """
    names = list(frame.columns)
    if isinstance(column, int):
        if not -len(names) <= column < len(names):
            raise ValueError(f"{what}={column}: there are {len(names)} columns")
        return str(names[column])
    if column not in names:
        raise ValueError(f"{what}={column!r} is no column{suggestion(column, names)}")
    return column


def numbers_of(
    frame: pd.DataFrame, columns: Sequence[str], problems: list[str], *, categories: bool = True
) -> tuple[np.ndarray, list[str]]:
    """Return features (N, D) float32 of columns, and their names; an empty cell is NaN.

    A column in which nothing is a number becomes one feature per value but the first, in their
    alphabetic order: 1 where the row has it. "NA" counts as empty.

    Args:
        frame: Of `read_table`.
        columns: Which.
        problems: Receives what is wrong, with its line.
        categories: Take columns without numbers for categories; False: they are wrong.
    """
    import pandas as pd

    found: list[np.ndarray] = []
    names: list[str] = []
    for name in columns:
        text = frame[name].where(~frame[name].isin(EMPTY), "")
        given = text[text != ""]
        values = pd.to_numeric(given, errors="coerce")
        wrong = values.isna() | (values.abs() > np.finfo(np.float32).max)
        if categories and len(given) and values.isna().all():
            kinds = sorted(set(given))
            columns_of_kinds = np.stack([(text == kind) for kind in kinds[1:]] or [text != ""], 1)
            encoded = columns_of_kinds.astype(np.float32)
            encoded[(text == "").to_numpy()] = np.nan
            found.append(encoded)
            names += [f"{name}={kind}" for kind in kinds[1:]] or [name]
            continue
        problems += [
            f"line {line}: {name} must be a finite number, found {cell!r}"
            for line, cell in given[wrong].items()
        ]
        numbers = values.mask(wrong).reindex(text.index).to_numpy(np.float32)
        found.append(numbers[:, None])
        names.append(name)
    return np.concatenate(found, axis=1) if found else np.zeros((len(frame), 0), np.float32), names


class TableData(TabularDataModule):
    """A CSV with a label per row and features in the other columns, for ordinal classification.

    Labels are whole numbers, of which the lowest becomes rank 0 (all between lowest and highest are
    ranks, whether they occur or not), or names whose order `classes` gives.

    Args:
        path: The CSV, with a header.
        label: Column of the labels: its position (0 the first, -1 the last), or its name.
        classes: Names of the ranks in their order, where labels are names.
        exclude: Columns that are no features.
        group: Column of patients or groups, which are never divided; None: rows are single.
        split: Column with "train", "val" and "test"; None: rows are dealt into folds.
        fold: The fold that is `test`; the next one is `val`, the others are `train`.
        folds: Number of folds, at least 3.
        split_seed: Seed of the folds (apart from `seed`, so that runs share their splits).
        **kwargs: See `TabularDataModule`.
    """

    def __init__(
        self,
        path: str,
        label: int | str = 0,  # this order: the command line takes a number for a position
        classes: list[str] | None = None,
        exclude: list[str] | None = None,
        group: str | None = None,
        split: str | None = None,
        fold: int = 0,
        folds: int = 5,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if classes is not None and (len(classes) < 2 or len(set(classes)) < len(classes)):
            raise ValueError(f"classes={classes}: there must be two different ones at least")
        self.path = Path(path)
        self.label = label
        self.classes = classes
        self.exclude = exclude or []
        self.group = group
        self.split = split
        self.fold = fold
        self.folds = folds
        self.split_seed = split_seed
        self._frame: pd.DataFrame | None = None

    @property
    def origin(self) -> Path | None:
        """The CSV."""
        return self.path

    @property
    def frame(self) -> pd.DataFrame:
        """The table as text."""
        if self._frame is None:
            self._frame = read_table(self.path, "Table")
        return self._frame

    @property
    def class_names(self) -> list[str]:
        """Names of the ranks, or the numbers from the lowest to the highest."""
        if self.classes is not None:
            return list(self.classes)
        given = self.frame[column_of(self.frame, self.label, "label")]
        numbers = [int(cell) for cell in given if INTEGER.fullmatch(cell)]  # `read` names the rest
        if not numbers or max(numbers) == min(numbers):
            what = "whole numbers of two ranks at least: name others in their order by `classes`"
            raise DataError(f"Table {self.path}", [f"column {given.name!r} must hold {what}"])
        if max(numbers) - min(numbers) >= len(given):
            what = f"labels from {min(numbers)} to {max(numbers)}, more ranks than rows"
            raise DataError(f"Table {self.path}", [f"column {given.name!r} holds {what}"])
        return [str(k) for k in range(min(numbers), max(numbers) + 1)]

    def read(self) -> dict[str, TableSource]:
        """Read the table and deal its rows.

        Raises:
            DataError: All problems at once, with their lines.
        """
        frame, names = self.frame, self.class_names
        label = column_of(frame, self.label, "label")
        special = [column_of(frame, c, "group") for c in [self.group] if c is not None]
        special += [column_of(frame, c, "split") for c in [self.split] if c is not None]
        special += [column_of(frame, c, "exclude") for c in self.exclude]
        problems = [
            f"line {line}: label {cell!r} is none of {', '.join(names)}{suggestion(cell, names)}"
            for line, cell in frame[label].items()
            if cell not in names
        ]
        features, _ = numbers_of(
            frame, [c for c in frame.columns if c not in {label, *special}], problems
        )
        if not features.shape[1]:
            problems.append("line 1: there is no column of features")
        if self.split is not None:
            problems += [
                f"line {line}: split {cell!r} must be one of {', '.join(SPLITS)}"
                for line, cell in frame[self.split].items()
                if cell not in SPLITS
            ]
        if problems:
            raise DataError(f"Table {self.path}", problems)
        labels = [names.index(cell) for cell in frame[label]]
        groups = [str(i) for i in frame.index] if self.group is None else list(frame[self.group])
        split = (
            deal_rows(groups, labels, self.fold, self.folds, self.split_seed)
            if self.split is None
            else list(frame[self.split])
        )
        found = {}
        for part in SPLITS:
            rows = [i for i, own in enumerate(split) if own == part]
            if rows:
                found[part] = TableSource(
                    {
                        "features": torch.from_numpy(features[rows]),
                        "label": torch.tensor([labels[i] for i in rows]),
                    },
                    path=[f"{self.path.name}, line {frame.index[i]}" for i in rows],
                    group=[groups[i] for i in rows],
                )
        return found
