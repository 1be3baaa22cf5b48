"""Pairs of images for super-resolution: from files and sources to batches.

A batch holds `image` (B, C, h, w) and `target` (B, C, sh, sw); both travel as uint8 or uint16 and
become float32 in [0, 1] on the device, divided by `levels`, the highest grey level of their type.
A data set overrides `read()` alone: its splits as lists of `PairRecord`s, which the base
validates, or as ready sources.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsl_zoo.data.base import ZooDataModule, find_images
from wsl_zoo.data.dataset import collate, stable_seed
from wsl_zoo.data.manifest import DataError, Verify, decided
from wsl_zoo.data.pair_files import (
    FilePairs,
    Pair,
    PairRecord,
    place_of,
    problems_of,
    split_problems,
)
from wsl_zoo.data.pixels import (
    CentreCrop,
    Degradation,
    RandomCrop,
    Sampling,
)
from wsl_zoo.data.samplers import Key
from wsl_zoo.types import Batch

SCALES = (2, 4, 8)

Transform = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""From image, target and seed to what the network sees of them."""


class PairSource(Protocol):
    """Pairs by position."""

    has_masks: bool
    has_boxes: bool

    def __len__(self) -> int: ...

    def load(self, index: int) -> Pair:
        """Return the pair at `index`, whole."""
        ...

    def path(self, index: int) -> str:
        """Return where it comes from, for messages and written predictions."""
        ...

    def group(self, index: int) -> str:
        """Return what it belongs to."""
        ...


def collate_pairs(items: Sequence[dict[str, Any]]) -> Batch:
    """Stack items; where some have 8 bits and others 16, they travel as uint16.

    Raises:
        DataError: The images differ in size.
    """
    for key in ("image", "target") if "target" in items[0] else ("image",):
        sizes = {tuple(item[key].shape[1:]): item["path"] for item in items}
        if len(sizes) > 1:
            found = ", ".join(f"{w}x{h} ({path})" for (h, w), path in sizes.items())
            advice = "use eval_batch_size=1; in training, a crop_size"
            raise DataError("Batch", [f"its images differ in size: {found}; {advice}"])
        if len({item[key].dtype for item in items}) > 1:
            items = [item | {key: item[key].to(torch.uint16)} for item in items]
    return collate(items)


class PairDataset(Dataset[dict[str, Any]]):
    """Pairs of a source as the network sees them, by `Key` or plain index.

    Args:
        source: Where the pairs come from.
        transform: Called with (image, target, seed); None: whole pairs. Pairs without a target stay
            whole.
        repeats: Items of every pair, each with its own draw: item i is of pair i // repeats.
        seed: With the epoch and the item it fixes each draw.
        cache: Keep decoded pairs in memory (per worker process).
        only: Items that make up the data set, in this order; None: all. They keep their `index`.
    """

    has_masks = has_boxes = annotations = False

    def __init__(
        self,
        source: PairSource,
        transform: Transform | None = None,
        *,
        repeats: int = 1,
        seed: int = 0,
        cache: bool = False,
        only: Sequence[int] | None = None,
    ) -> None:
        self.source = source
        self.transform = transform
        self.repeats = repeats
        self.seed = seed
        self.only = only
        self._cache: dict[int, Pair] | None = {} if cache else None

    collate = staticmethod(collate_pairs)

    def __len__(self) -> int:
        return len(self.source) * self.repeats if self.only is None else len(self.only)

    def pair(self, index: int) -> Pair:
        """Return pair `index` of the source, whole."""
        pair = self._cache.get(index) if self._cache is not None else None
        if pair is None:
            pair = self.source.load(index)
            if self._cache is not None:
                self._cache[index] = pair
        return pair

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        """Return the item that `collate` understands; `size` is that of the whole image."""
        epoch, place, valid = key if isinstance(key, tuple) else (0, key, True)
        index = place if self.only is None else self.only[place]
        number = index // self.repeats
        image, target = self.pair(number)
        size = image.shape[1:]
        if self.transform is not None and target is not None:
            image, target = self.transform(image, target, stable_seed(self.seed, epoch, index))
        item = {
            "index": index,
            "valid": valid,
            "image": torch.from_numpy(np.ascontiguousarray(image)),
            "levels": int(np.iinfo(image.dtype).max),
            "size": torch.tensor(size),
            "path": self.source.path(number),
            "group": self.source.group(number),
        }
        if target is not None:
            item["target"] = torch.from_numpy(np.ascontiguousarray(target))
        return item


class PairDataModule(ZooDataModule):
    """Loaders of pairs of images.

    Args:
        scale: How many times larger a target is than its image: 2, 4 or 8.
        crop_size: Side of the training crop of the target, in pixels, a multiple of the scale;
            None: whole images.
        crops_per_image: Crops of every training image in an epoch.
        sampling: Where crops come from: "roi", the published sampler, which prefers cells to
            background (see `data/pixels.py`), or "uniform".
        roi_threshold: Grey level of 255 from which a pixel counts as cell for that sampler; of
            images of 16 bits, 257 times that.
        eval_crop: Evaluate on the central crop of this side of the target, in pixels, a multiple of
            the scale; None: on whole images.
        compat_misaligned_crop: Crop as the published code does, which cuts the target at a corner
            x0 that is any integer and the image at x0 // scale: the two are off by x0 mod scale
            pixels of the target, and what is learnt is the mean over these shifts.
        degradation: How images are made that the data lack: "area", the mean of scale x scale
            pixels of the target, or "bicubic" (torch, with antialias).
        dihedral: Turn and mirror training pairs by one of the 8 symmetries of the square.
        channels: Channels C: 1 (grey; colours are turned into it) or 3 (red, green, blue).
        batch_size: Images per training batch and process.
        eval_batch_size: Images per evaluation batch and process; above 1, all must be of one size.
        num_workers: Worker processes per loader.
        cache: Keep decoded pairs in memory (small data sets; once per worker process).
        drop_last: Leave out a training batch that is not full.
        verify: How `setup` checks files: "decode" (every pixel), "header" (size), "none"
            (existence), or "auto": "decode" up to 2,000 pairs, else "header".
        predict_images: Folder of low-resolution images, or one image, for `predict`, which sees
            them whole; default: the test splits.
        seed: Fixes order and crops, with the epoch and the sample.

    Raises:
        ValueError: A choice that there is not, or a crop that is no multiple of the scale.
    """

    scale: int

    def __init__(
        self,
        scale: int = 2,
        crop_size: int | None = 128,
        crops_per_image: int = 1,
        sampling: Sampling = "roi",
        roi_threshold: int = 4,
        eval_crop: int | None = None,
        compat_misaligned_crop: bool = False,
        degradation: Degradation = "area",
        dihedral: bool = True,
        channels: int = 1,
        batch_size: int = 8,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        cache: bool = False,
        drop_last: bool = False,
        verify: Verify = "auto",
        predict_images: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            cache=cache,
            drop_last=drop_last,
            verify=verify,
            predict_images=predict_images,
            seed=seed,
        )
        choices: list[tuple[str, Any, tuple[Any, ...]]] = [
            ("scale", scale, SCALES),
            ("sampling", sampling, get_args(Sampling)),
            ("degradation", degradation, get_args(Degradation)),
            ("channels", channels, (1, 3)),
        ]
        for name, given, possible in choices:
            if given not in possible:
                raise ValueError(f"{name}={given!r} must be one of {', '.join(map(str, possible))}")
        for name, side in (("crop_size", crop_size), ("eval_crop", eval_crop)):
            if side is not None and (side < scale or side % scale):
                raise ValueError(f"{name}={side} must be a multiple of scale={scale}")
        if crops_per_image < 1 or (crops_per_image > 1 and crop_size is None):
            raise ValueError(
                f"crops_per_image={crops_per_image} must be 1 or more, above 1 with a crop_size"
            )
        if not 0 <= roi_threshold <= 255:
            raise ValueError(f"roi_threshold={roi_threshold} must be a grey level in [0, 255]")
        self.scale = scale
        self.crop_size = crop_size
        self.crops_per_image = crops_per_image
        self.eval_crop = eval_crop
        self.degradation: Degradation = degradation
        self.channels = channels
        self.crop = RandomCrop(
            scale, crop_size, sampling, roi_threshold, compat_misaligned_crop, dihedral
        )
        self._pairs: dict[str, PairSource] | None = None

    @property
    def class_names(self) -> list[str]:
        """There are no classes."""
        return []

    @property
    def in_chans(self) -> int:
        """Channels C of an image."""
        return self.channels

    @abstractmethod
    def read(self) -> Mapping[str, PairSource | Sequence[PairRecord]]:  # type: ignore[override]
        """Return every split: lists of records (validated by the base) or ready sources."""

    @property
    def sources(self) -> dict[str, PairSource]:  # type: ignore[override]
        """Every split's source; read and validated at the first use.

        Raises:
            DataError: All problems of the data set at once.
        """
        if self._pairs is None:
            splits = self.read()
            records = {name: s for name, s in splits.items() if isinstance(s, Sequence)}
            self.refuse([], records)
            self._pairs = {
                name: self.files(split) if isinstance(split, Sequence) else split
                for name, split in splits.items()
            }
        return self._pairs

    def files(self, records: Sequence[PairRecord]) -> FilePairs:
        """Return the source of some records."""
        return FilePairs(records, self.scale, self.channels, self.degradation)

    def refuse(self, problems: Sequence[str], splits: Mapping[str, Sequence[PairRecord]]) -> None:
        """Raise a `DataError` of what was wrong where the splits were read and of their files.

        Args:
            problems: Found so far.
            splits: Records by split; their files are checked as `verify` says.
        """
        found = [*problems, *split_problems(splits), *self.file_problems(splits)]
        if found:
            raise DataError(f"{type(self).__name__} {self.origin or ''}".strip(), found)

    def file_problems(self, splits: Mapping[str, Sequence[PairRecord]]) -> list[str]:
        """Say, with its place, what is wrong with the files of each record."""
        records = [(split, record) for split, own in splits.items() for record in own]
        verify = decided(self.verify, len(records))

        def check(split: str, record: PairRecord) -> list[str]:
            crop = {"train": self.crop_size, "predict": None}.get(split, self.eval_crop)
            problems = [] if record.target or split == "predict" else ["there is no target"]
            problems += problems_of(record, self.scale, self.channels, crop, verify)
            return [f"{place_of(record)}: {problem}" for problem in problems]

        with ThreadPoolExecutor(max_workers=8) as pool:
            return [p for own in pool.map(lambda job: check(*job), records) for p in own]

    def selection(self) -> dict[str, str | None]:
        """Return the metric that chooses checkpoints: PSNR of the first validation split."""
        names = self.split_names("val")
        return {"cl": f"{names[0]}/psnr" if names else None, "loc": None}

    def predict_source(self) -> FilePairs:  # type: ignore[override]
        """Return the images of `predict_images` as a source without targets."""
        path = Path(str(self.predict_images))
        images = [path] if path.is_file() else find_images(path)
        records = [PairRecord(image, None, place=str(image)) for image in images]
        problems = self.file_problems({"predict": records})
        if problems:
            raise DataError(f"Images {path}", problems)
        return self.files(records)

    def dataset(self, split: str) -> PairDataset:  # type: ignore[override]
        """Return one split as the network sees it; of `train`, random crops."""
        if split != "train":
            return self._evaluated(split, cache=self.cache)
        return PairDataset(
            self.sources[split],
            self.crop,
            repeats=self.crops_per_image,
            seed=self.seed,
            cache=self.cache,
        )

    def whole_images(self, split: str, only: Sequence[int] | None = None) -> DataLoader[Any]:
        """Return a loader of a split in order, as evaluation prepares it; of `train`, whole pairs.

        Args:
            split: The split.
            only: Positions of the pairs to load; None: all.
        """
        return self._loader(self._evaluated(split, only=only), train=False)

    def _evaluated(self, split: str, **options: Any) -> PairDataset:
        side = None if split == "train" else self.eval_crop
        crop = None if side is None else CentreCrop(self.scale, side)
        return PairDataset(self.sources[split], crop, **options)

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """Return the loader of `predict_images`, or those of the test splits."""
        if self.predict_images is None:
            return super().predict_dataloader()
        return [self._loader(PairDataset(self.predict_source()), train=False)]

    def preprocessing(self) -> dict[str, Any]:
        """Return that images are not resized."""
        return {"image_size": None}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn images and targets into float32 in [0, 1], on the device."""
        for key in ("image", "target"):
            pixels: Tensor | None = batch.get(key)  # type: ignore[assignment]
            if pixels is not None and not pixels.is_floating_point():
                levels = batch["levels"].float().view(-1, 1, 1, 1)
                batch[key] = pixels.float() / levels
        return batch
