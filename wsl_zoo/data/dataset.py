"""From a source of samples to batches: the map-style data set and its collation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from wsl_zoo.data.manifest import Record, read_image, read_mask
from wsl_zoo.data.samplers import Key
from wsl_zoo.data.texts import Texts
from wsl_zoo.data.transforms import Sample, resize, resize_cam
from wsl_zoo.types import IGNORE, Batch


def stable_seed(*parts: int) -> int:
    """Hash integers into a 32-bit seed, the same on every machine and in every process."""
    text = repr(tuple(map(int, parts)))  # a numpy integer prints differently
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


class Source(Protocol):
    """Samples by position; `annotations` says whether to read masks and boxes.

    A source that knows the `path` of every sample without loading it may list them as `paths`.
    """

    has_masks: bool
    has_boxes: bool

    def __len__(self) -> int: ...

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Return the sample at `index`, at its original size."""
        ...


class RecordSource:
    """Samples read from the files of records.

    Args:
        records: The split's records.
        annotated: False hides masks and boxes (a split whose protocol forbids them).
    """

    def __init__(self, records: Sequence[Record], *, annotated: bool = True) -> None:
        self.records = list(records)
        self.has_masks = annotated and any(record.has_mask for record in records)
        self.has_boxes = annotated and any(record.boxes is not None for record in records)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def paths(self) -> list[str]:
        """What the images are called, in order, without reading them."""
        return [record.image.as_posix() for record in self.records]

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Read image `index`, and its mask and boxes if `annotations`."""
        record = self.records[index]
        image = read_image(record.image)
        shape = (image.shape[0], image.shape[1])
        sample = Sample(image, record.label, group=record.group, path=str(record.image), size=shape)
        if annotations and self.has_masks and record.has_mask:
            sample.mask = read_mask(record, shape)
        if annotations and self.has_boxes and record.boxes is not None:
            sample.boxes = np.array(record.boxes, dtype=np.float64).reshape(-1, 4)
        return sample


def collate(items: Sequence[Mapping[str, Any]]) -> Batch:
    """Stack items into a batch; boxes and strings stay lists. Images are (B, C, H, W) uint8."""
    batch: dict[str, Any] = {}
    for key, first in items[0].items():
        values = [item[key] for item in items]
        if key == "boxes" or isinstance(first, str):
            batch[key] = values
        elif isinstance(first, Tensor):
            batch[key] = torch.stack(values)
        else:
            batch[key] = torch.tensor(values)
    return batch  # type: ignore[return-value]


class ZooDataset(Dataset[dict[str, Any]]):
    """Resized and (for training) augmented samples, by `Key` or plain index.

    Args:
        source: Where samples come from.
        size: (height, width) that every image is resized to.
        augment: Random transform called with (sample, seed); None for evaluation.
        seed: With the epoch and the index it fixes each augmentation.
        annotations: Read masks and boxes.
        cache: Keep resized samples in memory (per worker process).
        cams: Class maps (N, h, w) in [0, 1] by index, of the whole images; each travels with its
            image as `cam`, resized, cropped and flipped as it is.
        labels: Give labels; False for training that must not read them.
        only: Indices of the source that make up the data set, in this order; None: all. Samples
            keep their `index` in the source.
        texts: Text features of the report that each sample is paired with; they travel as `text`.

    Raises:
        ValueError: Another number of maps or texts than of samples.
    """

    def __init__(
        self,
        source: Source,
        size: tuple[int, int],
        augment: Callable[[Sample, int], Sample] | None = None,
        *,
        seed: int = 0,
        annotations: bool = True,
        cache: bool = False,
        cams: Tensor | None = None,
        labels: bool = True,
        only: Sequence[int] | None = None,
        texts: Texts | None = None,
    ) -> None:
        if cams is not None and len(cams) != len(source):
            raise ValueError(f"{len(cams)} class maps for {len(source)} images")
        if texts is not None and len(texts) != len(source):
            raise ValueError(f"{len(texts)} texts for {len(source)} images")
        self.source = source
        self.cams = cams
        self.labels = labels
        self.only = only
        self.texts = texts
        self.size = size
        self.augment = augment
        self.seed = seed
        self.has_masks = annotations and source.has_masks
        self.has_boxes = annotations and source.has_boxes
        self.annotations = self.has_masks or self.has_boxes
        self._cache: dict[int, Sample] | None = {} if cache else None

    collate = staticmethod(collate)

    def __len__(self) -> int:
        return len(self.source) if self.only is None else len(self.only)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return the transformed sample at `index` as it comes in `epoch`."""
        sample = self._cache.get(index) if self._cache is not None else None
        if sample is None:
            sample = resize(self.source.load(index, annotations=self.annotations), self.size)
            if self._cache is not None:
                self._cache[index] = sample
        if self.cams is not None:
            sample = replace(sample, cam=resize_cam(self.cams[index].numpy(), self.size))
        if self.augment is not None:
            sample = self.augment(replace(sample), stable_seed(self.seed, epoch, index))
        return sample

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        """Return the item that `collate` understands."""
        epoch, index, valid = key if isinstance(key, tuple) else (0, key, True)
        index = index if self.only is None else self.only[index]
        sample = self.sample(index, epoch)
        item: dict[str, Any] = {
            "index": index,
            "valid": valid,
            "image": torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1))),
            "group": sample.group,
            "path": sample.path,
            "size": torch.tensor(sample.size),
        }
        if self.labels:
            item["label"] = sample.label
        if sample.raw is not None:
            item["raw"] = torch.from_numpy(np.ascontiguousarray(sample.raw.transpose(2, 0, 1)))
        if sample.cam is not None:
            item["cam"] = torch.from_numpy(np.ascontiguousarray(sample.cam))
        if self.texts is not None:
            item["text"] = self.texts[index]
            item["report"] = int(self.texts.report[index])
        if sample.pseudo is not None:
            item["pseudo"] = sample.pseudo
        if self.has_masks:
            mask = sample.mask
            shape = sample.image.shape[:2]
            item["has_mask"] = mask is not None
            item["mask"] = torch.from_numpy(
                np.full(shape, IGNORE, np.uint8) if mask is None else np.ascontiguousarray(mask)
            )
        if self.has_boxes:
            boxes = np.zeros((0, 4)) if sample.boxes is None else sample.boxes
            item["boxes"] = torch.from_numpy(np.ascontiguousarray(boxes, dtype=np.float64))
        return item
