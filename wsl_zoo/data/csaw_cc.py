"""CSAW-CC: the mammograms of women over the years, and who had cancer when.

Either the original table, one row per mammogram (`csaw_original.py`), or the zoo's, one row per
anchor exam, with views or with pre-computed features (`exam_table.py`). `wsl-zoo features` turns
views into features. Of the tables, the outcome is what is predicted, and nothing becomes a feature.

A woman has several anchors, so splits are by patient, and validation and test are judged on subsets
with one anchor of each woman: a hundred are drawn for the original table; the zoo's may hold them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from wsl_zoo.data import csaw_original
from wsl_zoo.data.csaw_original import LateExams, read_screening
from wsl_zoo.data.exam_images import ExamImageDataset, ExamImages, ViewReader, check_images
from wsl_zoo.data.exam_table import Anchor, MissingViews, has_images, read_anchors, read_vectors
from wsl_zoo.data.exams import ExamDataModule
from wsl_zoo.data.folder import SPLITS
from wsl_zoo.data.folds import one_of_each, shuffled
from wsl_zoo.data.manifest import DataError, Verify
from wsl_zoo.data.tables import TableDataset, TableSource, read_table
from wsl_zoo.data.transforms import height_and_width

TABLES = (csaw_original.TABLE, "table.csv")
FRACTIONS = (0.5, 0.2, 0.3)  # of patients in train, val and test: those of BCR
SUBSETS = 100  # PHD's
MEAN, STD = 7047.99, 12005.5  # of 16-bit grey values: Mirai's
SIZE = (2048, 1664)  # (height, width): Mirai's, which names the width first

Mode = Literal["features", "images", "auto"]


class CSAWCCData(ExamDataModule):
    """Mammograms of several years, or features of them, and the time to a cancer.

    Images come as `image` (B, T, 4, 1, H, W) float32, normalised and 0 where there is none, with
    `view_mask` (B, T, 4) and `exam_mask` (B, T); features as `features` (B, T, D).

    Args:
        root: Folder with the table, and below it the images; default: the folder of `table`.
        table: The table; default: the original's in `root`, or `table.csv`.
        mode: Read "features" or "images"; "auto": features if the table lists some.
        image_size: [height, width] that the network sees.
        mean: Mean of the 16-bit grey values.
        std: Their deviation.
        mirror: Mirror right views to the side of left ones.
        missing_views: Whether to "refuse" an exam with some of its views only, or to "mask" the
            views that it lacks.
        late_exams: Whether to "refuse" exams after the diagnosis, in the original table, or to
            "drop" them.
        fractions: Parts of the patients in `train`, `val` and `test`, of a table without splits.
        split_seed: Seed of these splits and of subsets (apart from `seed`, so that runs share
            them).
        subsets: Subsets to draw for the original table; 0: none.
        verify: How `setup` checks images; see `ZooDataModule`.
        **kwargs: See `ExamDataModule`.

    Raises:
        ValueError: Neither `root` nor `table`, or an unknown option.
    """

    def __init__(
        self,
        root: str | None = None,
        table: str | None = None,
        mode: Mode = "auto",
        image_size: int | Sequence[int] = SIZE,
        mean: float = MEAN,
        std: float = STD,
        mirror: bool = True,
        missing_views: MissingViews = "refuse",
        late_exams: LateExams = "refuse",
        fractions: Sequence[float] = FRACTIONS,
        split_seed: int = 0,
        subsets: int = SUBSETS,
        verify: Verify = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if root is None and table is None:
            raise ValueError("give root, the folder of the data set, or table, its CSV")
        choices: dict[str, tuple[str, tuple[str, ...]]] = {
            "mode": (mode, ("features", "images", "auto")),
            "missing_views": (missing_views, ("refuse", "mask")),
            "late_exams": (late_exams, ("refuse", "drop")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(allowed)}")
        if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"fractions={list(fractions)} must be three parts >= 0 of 1 in all")
        if std <= 0 or subsets < 0:
            raise ValueError(f"std={std} must be > 0 and subsets={subsets} >= 0")
        self.root = Path(table or "").parent if root is None else Path(root)
        self._table = None if table is None else Path(table)
        self.mode: Mode = mode
        self.eval_size = self.train_size = height_and_width(image_size)
        self.image_size = list(self.eval_size)
        self.reader = ViewReader(self.eval_size, mean, std, mirror)
        self.missing_views: MissingViews = missing_views
        self.late_exams: LateExams = late_exams
        self.fractions = [float(part) for part in fractions]
        self.split_seed = split_seed
        self.subsets = subsets
        self.verify = verify
        self._anchors: dict[str, list[Anchor]] | None = None
        self._images = False
        self._vectors: dict[Path, Any] = {}

    @property
    def table(self) -> Path:
        """The table.

        Raises:
            DataError: None was given, and the root holds none or two.
        """
        if self._table is not None:
            return self._table
        found = [self.root / name for name in TABLES if (self.root / name).is_file()]
        if len(found) != 1:
            what = f"it holds both {' and '.join(TABLES)}: choose by table=" if found else (
                f"it holds neither {' nor '.join(TABLES)}"
            )  # fmt: skip
            raise DataError(f"CSAW-CC {self.root}", [what])
        return found[0]

    @property
    def origin(self) -> Path | None:
        """The table."""
        return self.table

    @property
    def images(self) -> bool:
        """Whether exams are images and not features; reads the table."""
        _ = self.anchors
        return self._images

    @property
    def in_chans(self) -> int:
        """One channel of an image, or features D."""
        return 1 if self.images else super().in_chans

    @property
    def anchors(self) -> dict[str, list[Anchor]]:
        """The anchors of every split, checked with their files; read at the first use.

        Raises:
            DataError: All problems at once, with their lines.
        """
        if self._anchors is None:
            self._anchors = self._read_anchors()
        return self._anchors

    def _read_anchors(self) -> dict[str, list[Anchor]]:
        what, problems = f"Table {self.table}", list[str]()
        frame = read_table(self.table, "Table")
        original = csaw_original.COLUMNS[0] in frame.columns
        if not original and "patient_id" not in frame.columns:
            told = f"neither {csaw_original.COLUMNS[0]!r} (original) nor 'patient_id' (the zoo's)"
            raise DataError(what, [f"line 1: it has {told} among its columns"])
        if original and self.mode == "features":
            raise DataError(what, ["it lists images: `wsl-zoo features` makes features of them"])
        self._images = original or self.mode == "images" or (
            self.mode == "auto" and has_images(frame.columns)
        )  # fmt: skip
        if original:
            anchors, places = read_screening(
                frame, self.root, self.slots, self.missing_views, self.late_exams, problems, what
            )
        else:
            anchors, places = read_anchors(
                frame, self.root, self._images, self.slots, self.missing_views, problems, what
            )
        if self._images:
            check_images(places, self.verify, problems)
        else:
            self._vectors = read_vectors(places, problems)
        if problems:
            raise DataError(what, problems)
        self.whole_times = all(anchor.time == int(anchor.time) for anchor in anchors)
        if "split" not in frame.columns or original:
            split_of = deal_patients(anchors, self.fractions, self.split_seed)
            anchors = [replace(anchor, split=split_of[anchor.patient]) for anchor in anchors]
        found = {split: [a for a in anchors if a.split == split] for split in SPLITS}
        found = {split: rows for split, rows in found.items() if rows}
        repeated = [s for s, rows in found.items() if s != "train" and _repeats(rows)]
        if original and self.subsets:
            for split in repeated:
                found[split] = with_subsets(found[split], self.subsets, self.split_seed)
        elif repeated and not any(a.subset for split in repeated for a in found[split]):
            rank_zero_warn(
                f"{self.table}: women have several exams in {' and '.join(repeated)}, and there "
                "are no columns pseudo_0, pseudo_1, ... with one of each: all count"
            )
        return found

    def read(self) -> Mapping[str, TableSource]:
        """Return the anchors of every split."""
        return {split: self._source(split, rows) for split, rows in self.anchors.items()}

    def _source(self, split: str, rows: Sequence[Anchor]) -> TableSource:
        there = torch.tensor([[[f is not None for f in e] for e in a.exams] for a in rows])
        fields: dict[str, Tensor] = {
            "exam_mask": there.any(dim=2),
            "time": torch.tensor([anchor.time for anchor in rows]),
            "event": torch.tensor([anchor.event for anchor in rows]),
        }
        if split != "train" and rows[0].subset:
            fields["subset"] = torch.tensor([anchor.subset for anchor in rows])
        path = [anchor.name for anchor in rows]
        group = [anchor.patient for anchor in rows]
        if self._images:
            exams = [anchor.exams for anchor in rows]
            fields["view_mask"] = there
            return ExamImages(fields, path, group, exams=exams, reader=self.reader)
        size = len(next(iter(self._vectors.values())))
        features = torch.zeros(len(rows), self.slots, size)
        for n, anchor in enumerate(rows):
            for t, (file,) in enumerate(anchor.exams):
                if file is not None:
                    features[n, t] = torch.from_numpy(self._vectors[file])
        return TableSource({"features": features} | fields, path, group)

    def training_features(self) -> Tensor:
        """Return the features (M, D) of the exams that the training rows have.

        Raises:
            ValueError: The exams are images.
        """
        if self.images:
            raise ValueError(
                'the exams are images and encoder="mlp" reads features: name a network as encoder, '
                "or make features of the images by `wsl-zoo features`"
            )
        return super().training_features()

    def rows_of(self, split: str, **options: Any) -> TableDataset:
        """Return the rows of a split as a data set; options as of `TableDataset`."""
        if not self.images:
            return super().rows_of(split, **options)
        labels = split != "train" or self._training_reads("label")
        return ExamImageDataset(self.rows(split), labels=labels, **options)

    def preprocessing(self) -> dict[str, Any]:
        """Return the size of images, None of features."""
        return {"image_size": self.image_size if self.images else None}


# Splits and subsets -------------------------------------------------------------------------------


def deal_patients(
    anchors: Sequence[Anchor], fractions: Sequence[float], seed: int
) -> dict[str, str]:
    """Return the split of every patient; women with a cancer are dealt apart from those without.

    Args:
        anchors: All anchors.
        fractions: Parts of `train`, `val` and `test`, 1 in all.
        seed: Seed; the same on every machine, whatever the order of the anchors.
    """
    cases = {anchor.patient for anchor in anchors if anchor.event}
    controls = {anchor.patient for anchor in anchors} - cases
    split_of: dict[str, str] = {}
    for kind, patients in (("cases", cases), ("controls", controls)):
        order = shuffled(patients, f"csaw-cc-{seed}-{kind}")
        ends = [round(sum(fractions[: k + 1]) * len(order)) for k in range(2)]
        for split, part in zip(
            SPLITS, (order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]), strict=True
        ):
            split_of |= dict.fromkeys(part, split)
    return split_of


def with_subsets(anchors: Sequence[Anchor], count: int, seed: int) -> list[Anchor]:
    """Return the anchors of a split with subsets that each hold one random anchor of every woman.

    Args:
        anchors: Of one split.
        count: Number of subsets S.
        seed: Seed.
    """
    subset = one_of_each([anchor.patient for anchor in anchors], count, f"csaw-cc-subsets-{seed}")
    return [
        replace(anchor, subset=tuple(own))
        for anchor, own in zip(anchors, subset.tolist(), strict=True)
    ]


def _repeats(anchors: Sequence[Anchor]) -> bool:
    return max(Counter(anchor.patient for anchor in anchors).values()) > 1
