"""PatchCamelyon (PCam): 327,680 patches of 96 x 96 pixels of lymph-node slides, normal or tumor.

Paper: Veeling et al., "Rotation Equivariant CNNs for Digital Pathology", MICCAI 2018,
arXiv 1806.03962.

A patch of CAMELYON16 at 10x is tumor (1) where its central 32 x 32 pixels hold a pixel of tumor, so
that a normal one may hold tumor at its border: no class is free of what could be localised.

Published as HDF5 files, by split (`train`, `valid`, `test`) and part:

    camelyonpatch_level_2_split_<split>_x.h5   data set "x", (N, 96, 96, 3) uint8
    camelyonpatch_level_2_split_<split>_y.h5   data set "y", (N, 1, 1, 1) uint8

torchvision's `PCAM` keeps the same files in a folder `pcam`. They are distributed packed (`.gz`)
and read unpacked: rows of a packed file cannot be reached one by one. h5py reads them:
`pip install 'wsl-zoo[histology]'`.

Training augments as published by CLIP-IT (arXiv 2504.16181): flips both ways, colours jittered.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.folds import warn_unless_whole
from wsl_zoo.data.manifest import DataError, Verify, decided
from wsl_zoo.data.transforms import Sample

CLASSES = ("normal", "tumor")
FILE = "camelyonpatch_level_2_split_{}_{}.h5"
FILED = {"train": "train", "val": "valid", "test": "test"}  # what file names call a split
PUBLISHED = {"train": 262_144, "val": 32_768, "test": 32_768}
PATCH = (96, 96, 3)
LABEL = (1, 1, 1)
BLOCK = 512  # patches read at once where every pixel is checked: 14 MB
JITTER = [0.5, 0.5, 0.5, 0.05]

T = TypeVar("T")


class PCamData(ZooDataModule):
    """Patches of PatchCamelyon in its published splits, read row by row from its HDF5 files.

    Args:
        root: Folder with the six files, or one whose folder `pcam` holds them.
        hflip: Probability of a horizontal flip in training.
        vflip: Probability of a vertical flip in training.
        color_jitter: Strengths (brightness, contrast, saturation, hue) in training; None: none.
        **kwargs: See `ZooDataModule`. Shapes, types and labels are checked whatever `verify` says;
            "decode" reads every pixel too ("auto": of splits of at most 2,000 patches).
    """

    def __init__(
        self,
        root: str,
        hflip: float = 0.5,
        vflip: float = 0.5,
        color_jitter: list[float] | None = JITTER,
        **kwargs: Any,
    ) -> None:
        super().__init__(hflip=hflip, vflip=vflip, color_jitter=color_jitter, **kwargs)
        self.root = Path(root)

    @property
    def class_names(self) -> list[str]:
        """Normal (0) and tumor (1)."""
        return list(CLASSES)

    def read(self) -> dict[str, PCamSource]:
        """Open the files of every split, check them and read their labels.

        Raises:
            DataError: All problems at once.
            ImportError: h5py is not installed.
        """
        folder = self.root / "pcam" if (self.root / "pcam").is_dir() else self.root
        if not folder.is_dir():
            raise DataError(f"PCamData {folder}", ["it does not exist or is no folder"])
        problems: list[str] = []
        sources: dict[str, PCamSource] = {}
        for split in FILED:
            source = read_split(folder, split, problems, self.verify)
            if source is not None:
                sources[split] = source
        if problems:
            raise DataError(f"PCamData {folder}", problems)
        warn_unless_whole(folder, {name: len(s) for name, s in sources.items()}, PUBLISHED)
        return sources


class PCamSource:
    """The patches of one split; nothing of them is kept in memory.

    May be pickled and forked: every process opens the file for itself.

    Args:
        images: The file of the patches.
        labels: (N,) integers in {0, 1}.
    """

    has_masks = False
    has_boxes = False

    def __init__(self, images: Path, labels: np.ndarray) -> None:
        self.images = images
        self.labels = labels
        self._file: Any = None
        self._opener = -1  # the process that `_file` is of

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Read patch `index`; there is nothing to annotate.

        Raises:
            DataError: The row cannot be read.
            IndexError: There is no such patch.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"patch {index} of {len(self)} in {self.images.name}")
        try:
            if self._file is None or self._opener != os.getpid():
                self._file, self._opener = hdf5().File(self.images, "r"), os.getpid()
            image = self._file["x"][index]
        except OSError as error:
            raise DataError(
                "Patch", [f"{self.images}: patch {index} is not readable ({error})"]
            ) from error
        return Sample(image, int(self.labels[index]), path=self._path(index), size=PATCH[:2])

    @property
    def paths(self) -> list[str]:
        """What the patches are called, in order."""
        return [self._path(index) for index in range(len(self))]

    def _path(self, index: int) -> str:
        return str(self.images / f"{index:06d}")  # as if the file were a folder of patches


def hdf5() -> Any:
    """Return the module `h5py`.

    Raises:
        ImportError: It is not installed; the message says how to.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("PatchCamelyon needs h5py: pip install 'wsl-zoo[histology]'") from error
    return h5py


def read_split(
    folder: Path, split: str, problems: list[str], verify: Verify = "auto"
) -> PCamSource | None:
    """Check the two files of a split and read its labels.

    Args:
        folder: Holds the files.
        split: "train", "val" or "test".
        problems: Receives everything that is wrong.
        verify: See `PCamData`.

    Returns:
        The split, or None if one of its files is wrong.
    """
    images, targets = (folder / FILE.format(FILED[split], part) for part in "xy")
    count = _read(images, "x", PATCH, lambda rows: _count(rows, verify), problems)
    labels = _read(targets, "y", LABEL, lambda rows: rows[()].reshape(-1), problems)
    if labels is not None:
        wrong = np.flatnonzero((labels != 0) & (labels != 1))
        if len(wrong):
            first = f"the first is {labels[wrong[0]]} in row {wrong[0]}"
            problems.append(f"{targets.name}: {len(wrong)} labels are neither 0 nor 1, {first}")
        problems += [
            f"{targets.name}: class {name!r} (label {k}) has no training patch"
            for k, name in enumerate(CLASSES)
            if split == "train" and len(labels) and not (labels == k).any()
        ]
    if count is None or labels is None:
        return None
    if count != len(labels):
        problems.append(f"{images.name} has {count} patches, {targets.name} {len(labels)} labels")
    elif not count:
        problems.append(f"{images.name} holds no patch")
    return PCamSource(images, labels)


def _count(rows: Any, verify: Verify) -> int:
    """Return the number of patches; read each if it should be verified."""
    if decided(verify, len(rows)) == "decode":
        for start in range(0, len(rows), BLOCK):
            _ = rows[start : start + BLOCK]
    return len(rows)


def _read(
    path: Path,
    key: str,
    row: tuple[int, ...],
    take: Callable[[Any], T],
    problems: list[str],
) -> T | None:
    """Return what `take` makes of a data set of rows; None, and a problem, where there is none.

    Args:
        path: The HDF5 file.
        key: Name of the data set.
        row: Shape of a row; its numbers are uint8.
        take: Called with the open data set.
        problems: Receives what is wrong.
    """
    packed = path.with_name(f"{path.name}.gz")
    if not path.is_file():
        missing = f"there is no file {path.name}"
        unpack = f"{packed.name} is still packed: unpack it (gunzip --keep {packed})"
        problems.append(unpack if packed.is_file() else missing)
        return None
    h5py = hdf5()
    try:
        with h5py.File(path, "r") as file:
            rows = file.get(key)
            if not isinstance(rows, h5py.Dataset):
                found = ", ".join(file) or "none"
                problems.append(f"{path.name}: there is no data set {key!r}; found: {found}")
            elif rows.shape[1:] != row or rows.dtype != np.uint8:
                expected = f"(N, {', '.join(map(str, row))}) uint8"
                problems.append(
                    f"{path.name}: {key!r} is {rows.shape} {rows.dtype}, expected {expected}"
                )
            else:
                return take(rows)
    except OSError as error:
        problems.append(f"{path.name} cannot be read as HDF5 ({error})")
    return None
