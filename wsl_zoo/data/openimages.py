"""OpenImages30k for localisation: 100 classes, instance masks.

Benenson et al., "Large-Scale Interactive Object Segmentation with Human Annotators", CVPR 2019,
arXiv 1903.10830; subset and splits of Choe et al. (CVPR 2020, arXiv 2001.07437) by a metadata
folder: `train` 29,819 images, `val` 2,500 and `test` 5,000, in `root/<split>/<class>/`. The masks
of all instances of an image are united; pixels of its ignore mask that none covers do not count.

The masks of Open Images have the aspect of their image, mostly not its size. They are resized from
their own size to that of evaluation in one step (nearest), as the published evaluation does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from wsl_zoo.data.dataset import RecordSource, Source
from wsl_zoo.data.manifest import (
    DataError,
    Record,
    Splits,
    Verify,
    decided,
    read_mask,
    read_size,
)
from wsl_zoo.data.transforms import Sample, resize_mask
from wsl_zoo.data.wsol import WSOLData


class OpenImagesData(WSOLData):
    """OpenImages30k with the metadata of wsolevaluation; classes are Open Images ids.

    See `WSOLData` for the arguments; `val_roots` cannot be used.
    """

    masks: ClassVar[bool] = True

    def read(self) -> Mapping[str, Source | Sequence[Record]]:
        """Read and check the splits, whose masks may differ from their images in size.

        Raises:
            DataError: All problems at once.
        """
        splits = self.read_splits()
        problems = self.file_problems(splits)
        if problems:
            raise DataError(f"OpenImages {self.root}", problems)
        return {split: MaskSource(records) for split, records in splits.items()}

    def file_problems(self, splits: Splits) -> list[str]:
        """Return what `validate` finds, but allow masks of other sizes of the same aspect."""
        images = {
            split: [replace(r, masks=(), ignore=None) for r in records]
            for split, records in splits.items()
        }
        problems = super().file_problems(images)
        records = [r for split in splits.values() for r in split]
        verify = decided(self.verify, len(records))
        with ThreadPoolExecutor(max_workers=8) as pool:
            for found in pool.map(lambda r: list(mask_problems(r, verify)), records):
                problems += found
        return problems


class MaskSource(RecordSource):
    """Records whose masks may be of another size than their images."""

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Read image `index`, and its mask at the mask's own size."""
        sample = super().load(index, annotations=False)
        record = self.records[index]
        if annotations and record.has_mask:
            sample.mask = read_masks(record, sample.size)
        return sample


def read_masks(record: Record, shape: tuple[int, int]) -> np.ndarray:
    """Read the mask of a record at the size of its first file, or `shape` (H, W) without one.

    See `read_mask` for the values.
    """

    def region(path: Path) -> np.ndarray:
        width, height = read_size(path)
        return read_mask(replace(record, masks=(path,), ignore=None), (height, width))

    mask = region(record.masks[0]) if record.masks else np.zeros(shape, np.uint8)
    size = (mask.shape[0], mask.shape[1])
    for path in record.masks[1:]:
        mask |= resize_mask(region(path), size)
    if record.ignore is not None:
        mask[(resize_mask(region(record.ignore), size) == 1) & (mask == 0)] = 255
    return mask


def mask_problems(record: Record, verify: Verify) -> Iterator[str]:
    """Yield what is wrong with the mask files of a record."""
    for path in (*record.masks, *([record.ignore] if record.ignore else [])):
        if not path.is_file():
            yield f"{record.place}: mask {path} does not exist"
            continue
        if verify == "none":
            continue
        try:
            width, height = read_size(path, decode=verify == "decode")
        except DataError as error:
            yield f"{record.place}: {error.problems[0]}"
            continue
        try:
            image = read_size(record.image)
        except DataError:
            continue  # `validate` names it
        # Each of the four sides is rounded, by less than a pixel.
        if abs(width * image[1] - height * image[0]) > width + height + sum(image):
            yield (
                f"{record.place}: mask {path.name} of {width}x{height} pixels has not the "
                f"aspect of its image {record.image.name} of {image[0]}x{image[1]}"
            )
