"""Oxford-flowers-102: 102 species of flowers, with masks of the flower.

Nilsback and Zisserman, "Automated Flower Classification over a Large Number of Classes", ICVGIP
2008. Original layout: `jpg/image_00001.jpg`, `imagelabels.mat` (`labels`, 1 to 102, by image
number), `setid.mat` (`trnid`, `valid`, `tstid`: 1,020, 1,020 and 6,149 image numbers) and, where
they were fetched too, masks `segmim/segmim_00001.jpg` on a blue background.

Foreground is what lies further than 30 from (0, 0, 254) in RGB. The code of min-max entropy (arXiv
1907.12934) subtracts that colour with clipping, takes any non-zero residue for foreground, stores
that as JPEG in `segmim_bin/` and reads it back as "non-zero": the noise of two compressions leaks
into its foreground. A `segmim_bin/` is read so here as well; PNG files in it have no such noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsl_zoo.data.base import IMAGE_SUFFIXES, ZooDataModule
from wsl_zoo.data.manifest import DataError, Foreground, Record, Splits
from wsl_zoo.data.matlab import load_mat

CLASSES = 102
SETS = {"train": "trnid", "val": "valid", "test": "tstid"}
BLUE_MASKS, BINARY_MASKS = "segmim", "segmim_bin"


class FlowersData(ZooDataModule):
    """Oxford-flowers-102 in its original layout.

    Args:
        root: Folder with `jpg/`, `imagelabels.mat` and `setid.mat`.
        masks: Folder of the masks `segmim_<number>`, in any image format; default: `segmim` in
            `root`, else `segmim_bin`, else no masks.
        foreground: Which pixels of a mask file are foreground; default: "nonzero" in a folder
            named `segmim_bin`, else "not blue".
        **kwargs: See `ZooDataModule`.
    """

    def __init__(
        self,
        root: str,
        masks: str | None = None,
        foreground: Foreground | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.mask_folder = Path(masks) if masks is not None else self._masks_in(self.root)
        binary = self.mask_folder is not None and self.mask_folder.name == BINARY_MASKS
        self.foreground: Foreground = foreground or ("nonzero" if binary else "not blue")

    @staticmethod
    def _masks_in(root: Path) -> Path | None:
        folders = (root / BLUE_MASKS, root / BINARY_MASKS)
        return next((folder for folder in folders if folder.is_dir()), None)

    @property
    def class_names(self) -> list[str]:
        """The numbers "0" to "101": the files name no class."""
        return [str(k) for k in range(CLASSES)]

    def read(self) -> Splits:
        """Read the two `.mat` files and match images with masks.

        Raises:
            DataError: All problems at once.
        """
        problems: list[str] = []
        labels = read_numbers(self.root / "imagelabels.mat", ["labels"], problems)
        sets = read_numbers(self.root / "setid.mat", list(SETS.values()), problems)
        masks = self._mask_files(problems)
        if problems:
            raise DataError(f"Flowers {self.root}", problems)
        problems += [
            f"imagelabels.mat: image {number} has label {label}, expected 1 to {CLASSES}"
            for number, label in enumerate(labels["labels"], start=1)
            if not 1 <= label <= CLASSES
        ]
        splits = {
            split: self._records(name, sets[name], labels["labels"], masks, problems)
            for split, name in SETS.items()
        }
        if problems:
            raise DataError(f"Flowers {self.root}", problems)
        return splits

    def _records(
        self,
        name: str,
        numbers: list[int],
        labels: list[int],
        masks: Mapping[str, Path] | None,
        problems: list[str],
    ) -> list[Record]:
        records = []
        for position, number in enumerate(numbers, start=1):
            place, stem = f"setid.mat, {name} {position}", f"segmim_{number:05d}"
            if not 1 <= number <= len(labels):
                problems.append(
                    f"{place}: image {number} is not in imagelabels.mat, which has 1 to "
                    f"{len(labels)}"
                )
            elif masks is not None and stem not in masks:
                problems.append(f"{place}: there is no mask {stem} in {self.mask_folder}")
            else:
                records.append(
                    Record(
                        self.root / "jpg" / f"image_{number:05d}.jpg",
                        labels[number - 1] - 1,
                        masks=() if masks is None else (masks[stem],),
                        place=place,
                        foreground=self.foreground,
                    )
                )
        return records

    def _mask_files(self, problems: list[str]) -> Mapping[str, Path] | None:
        """Return the mask files by stem, or None where there are none to be read."""
        if self.mask_folder is None:
            return None
        if not self.mask_folder.is_dir():
            problems.append(f"masks: {self.mask_folder} does not exist or is no folder")
            return None
        return {
            path.stem: path
            for path in sorted(self.mask_folder.iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        }


def read_numbers(path: Path, names: list[str], problems: list[str]) -> dict[str, list[int]]:
    """Read vectors of integers from a `.mat` file; problems go to `problems`."""
    try:
        variables = load_mat(path)
    except DataError as error:
        problems += error.problems
        return {}
    numbers: dict[str, list[int]] = {}
    for name in names:
        vector = np.atleast_1d(np.asarray(variables.get(name, ())))
        if vector.ndim != 1 or not vector.size or vector.dtype.kind not in "iuf":
            problems.append(f"{path}: expected a vector of integers {name!r}")
        elif not np.isfinite(vector).all() or not np.array_equal(vector, np.round(vector)):
            problems.append(f"{path}: {name!r} has values that are no integers")
        else:
            numbers[name] = [int(number) for number in vector]
    return numbers
