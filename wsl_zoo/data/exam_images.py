"""Mammograms of exams: read one batch at a time, on a common side, as normalised grey images.

An exam is four views, L-CC, L-MLO, R-CC and R-MLO, in files of 16-bit grey; what is missing is 0,
the mean grey after normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wsl_zoo.data.exam_table import VIEWS, Exam
from wsl_zoo.data.manifest import DataError, Verify, decided
from wsl_zoo.data.tables import TableDataset, TableSource
from wsl_zoo.types import Batch

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ViewReader:
    """Reads views as the network sees them.

    Attributes:
        size: (height, width) they are resized to, antialiased bilinear (Pillow).
        mean: Mean of the grey values, on their scale of 16 bits.
        std: Their deviation.
        mirror: Mirror right views, so that all breasts point the same way.
    """

    size: tuple[int, int]
    mean: float
    std: float
    mirror: bool = True

    def view(self, file: Path, view: int) -> Tensor:
        """Return a view, one of `VIEWS` by its number, as (1, H, W) float32.

        Raises:
            DataError: The file cannot be read as a grey image of 16 bits.
        """
        try:
            with Image.open(file) as image:
                if problem := _not_grey16(image):
                    raise DataError("Mammogram", [f"{file} {problem}"])
                grey = np.asarray(image).astype(np.float32)
        except DataError:
            raise
        except UNREADABLE as error:
            raise DataError("Mammogram", [f"{file} is no readable image ({error})"]) from error
        if grey.shape != self.size:
            resized = Image.fromarray(grey).resize(self.size[::-1], Image.Resampling.BILINEAR)
            grey = np.array(resized)
        if self.mirror and VIEWS[view].startswith("R"):
            grey = grey[:, ::-1]
        return torch.from_numpy((grey - self.mean) / self.std)[None]

    def exam(self, files: Exam) -> Tensor:
        """Return the views of an exam (4, 1, H, W), 0 where there is none."""
        views = torch.zeros(len(files), 1, *self.size)
        for v, file in enumerate(files):
            if file is not None:
                views[v] = self.view(file, v)
        return views


@dataclass(frozen=True)
class ExamImages(TableSource):
    """Rows whose exams are images, read when they are asked for.

    Attributes:
        exams: Per row the files of its T exams.
        reader: Reads them.
    """

    exams: Sequence[tuple[Exam, ...]] = field(kw_only=True)
    reader: ViewReader = field(kw_only=True)


class ExamImageDataset(TableDataset):
    """Rows of `ExamImages` with their `image` (B, T, 4, 1, H, W); see `TableDataset`."""

    source: ExamImages

    def __getitems__(self, keys: Sequence[Any]) -> Batch:
        """Return the batch of some keys."""
        batch = super().__getitems__(keys)
        rows = [self.source.exams[i] for i in batch["index"].tolist()]
        batch["image"] = torch.stack(
            [torch.stack([self.source.reader.exam(exam) for exam in row]) for row in rows]
        )
        return batch


def check_images(places: Mapping[Path, str], verify: Verify, problems: list[str]) -> None:
    """Name the files that are no grey images of 16 bits.

    Args:
        places: The files, and where each is listed.
        verify: "header" reads what a file says of itself, "decode" every pixel, "auto" that up to
            2,000 files; "none": nothing is read.
        problems: Receives what is wrong.
    """
    verify = decided(verify, len(places))
    if verify == "none":
        return

    def problem(file: Path) -> str | None:
        try:
            with Image.open(file) as image:
                if verify == "decode":
                    image.load()
                return _not_grey16(image)
        except UNREADABLE as error:
            return f"is no readable image ({error})"

    with ThreadPoolExecutor(max_workers=8) as pool:
        for (file, place), wrong in zip(places.items(), pool.map(problem, places), strict=True):
            if wrong:
                problems.append(f"{place}: {file} {wrong}")


def _not_grey16(image: Image.Image) -> str | None:
    if image.mode.startswith("I"):  # "I;16" and its byte orders; older Pillow reads PNG as "I"
        return None
    return f"has pixels of mode {image.mode}, expected grey of 16 bits"
