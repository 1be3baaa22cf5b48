"""The data module that every data set extends: sources in, seeded and resumable loaders out.

A data set overrides three things: `class_names` (known before `setup`), `read()` (its splits as
sources or records) and, where its protocol wants it, `val_splits`, `unannotated` and `shared`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from wsl_zoo.data.dataset import RecordSource, Source, ZooDataset
from wsl_zoo.data.manifest import DataError, Record, Verify, validate
from wsl_zoo.data.masks import MaskedSource, image_names, read_masks
from wsl_zoo.data.metadata import annotate
from wsl_zoo.data.samplers import ResumableLoader, SeededSampler, trainer_position
from wsl_zoo.data.texts import Texts
from wsl_zoo.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    height_and_width,
    normalize,
)
from wsl_zoo.types import Batch

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"})


def find_images(folder: Path) -> list[Path]:
    """Return the image files below `folder` in sorted order; hidden files and folders are left out.

    Raises:
        DataError: The folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"Folder {folder}", ["it does not exist or is no folder"])
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"Folder {folder}", [f"it holds no image (looked for {endings})"])
    return found


class ZooDataModule(LightningDataModule, ABC):
    """Loaders of one data set.

    Training sees masks and boxes only if the method declares that it reads them
    (`ZooModule.needs`). Batches travel as uint8 and are normalised on the device with the encoder's
    mean and standard deviation.

    Args:
        batch_size: Images per training batch and process.
        eval_batch_size: Images per evaluation batch and process; default: `batch_size`.
        num_workers: Worker processes per loader.
        image_size: Side of the square that the network sees, in pixels, or [height, width].
        train_resize: Size that training images are resized to before the random crop, given alike;
            default: `image_size` (no crop).
        crop_size: Size of the random crop, given alike; default: `image_size`. A smaller one trains
            on parts of the images that evaluation sees whole.
        hflip: Probability of a horizontal flip in training.
        vflip: Probability of a vertical flip in training.
        rotate90: Rotate training images by a random multiple of 90 degrees; squares only.
        color_jitter: Strengths (brightness, contrast, saturation, hue) in training; None: none.
        cache: Keep decoded and resized images in memory (small data sets).
        drop_last: Leave out a training batch that is not full.
        verify: How `setup` checks files: "decode" (every pixel), "header" (size), "none"
            (existence), or "auto": "decode" up to 2,000 images, else "header".
        predict_images: Folder of images, or one image, for `predict`; default: the test splits.
        val_roots: Metadata folders with pseudo-boxes by name (see `data/metadata.py`). Each adds a
            validation split `val_<name>`: those images of the first one that it has boxes of.
        mask_table: Table of the training images to use and the masks that stand for their own, as
            rounds of active learning write it (see `data/masks.py`); None: all, with their own.
        seed: Fixes order and augmentation, with the epoch and the sample.
    """

    unannotated: frozenset[str] = frozenset()
    """Splits whose masks and boxes the protocol hides."""
    shared: tuple[frozenset[str], ...] = ()
    """Sets of splits that may share images by protocol."""
    corloc = False
    """Whether boxes are what localisation is judged by, and CorLoc too, as in videos."""
    scale: int | None = None
    """How many times larger a target is than its image; None: there are no targets."""

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        image_size: int | list[int] = 224,
        train_resize: int | list[int] | None = None,
        crop_size: int | list[int] | None = None,
        hflip: float = 0.5,
        vflip: float = 0.0,
        rotate90: bool = False,
        color_jitter: list[float] | None = None,
        cache: bool = False,
        drop_last: bool = False,
        verify: Verify = "auto",
        predict_images: str | None = None,
        val_roots: dict[str, str] | None = None,
        mask_table: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.eval_size = height_and_width(image_size)
        """(height, width) of what the network sees."""
        self.train_size = height_and_width(train_resize or image_size)
        """(height, width) of training images before the crop."""
        crop = height_and_width(crop_size or image_size)
        name, given = ("image", image_size) if crop_size is None else ("crop", crop_size)
        if any(whole < part for whole, part in zip(self.train_size, crop, strict=True)):
            whole = image_size if train_resize is None else train_resize
            raise ValueError(f"train_resize={whole} is smaller than the crop {name}_size={given}")
        if rotate90 and crop[0] != crop[1]:
            raise ValueError(f"{name}_size={given}: rotate90=True needs squares")
        bad = [name for name in val_roots or () if not re.fullmatch("[A-Za-z0-9_]+", name)]
        if bad:
            raise ValueError(f"val_roots={bad}: a name consists of letters, digits and underscores")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.image_size = image_size
        self.augment = Augment(
            crop=crop if self.train_size != crop else None,
            hflip=hflip,
            vflip=vflip,
            rotate90=rotate90,
            color_jitter=color_jitter,
        )
        self.cache = cache
        self.drop_last = drop_last
        self.verify: Verify = verify
        self.predict_images = predict_images
        self.val_roots = val_roots or {}
        self.mask_table = None if mask_table is None else Path(mask_table)
        self.seed = seed
        self.cams: Tensor | None = None
        """Class maps (N, h, w) in [0, 1] of the training images, which a method may set before the
        training loader is made; they travel with the images as `cam`."""
        self.texts: dict[str, Texts] = {}
        """Text features of the report that each image of a split is paired with, which a method may
        set before the loaders are made; they travel with the images as `text`."""
        self._sources: dict[str, Source] | None = None

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the K classes in label order, known before `setup`."""

    @property
    def num_classes(self) -> int:
        """Number K of classes."""
        return len(self.class_names)

    @property
    def in_chans(self) -> int:
        """Channels C of an image, or features D of a row."""
        return 3

    @property
    def negative_class(self) -> int | None:
        """The class whose images hold nothing to be localised; None: every class has a region."""
        return None

    @property
    def worker_start(self) -> str | None:
        """How worker processes start, "fork" or "spawn"; None: as Python does by default."""
        return None

    @property
    def origin(self) -> Path | None:
        """The folder or file that the data set was read from, for messages."""
        places = (getattr(self, "manifest", None), getattr(self, "root", None))
        return next((place for place in places if place is not None), None)

    @abstractmethod
    def read(self) -> Mapping[str, Source | Sequence[Record]]:
        """Return every split: lists of records (validated by the base) or ready sources."""

    @property
    def sources(self) -> dict[str, Source]:
        """Every split's source; read and validated at the first use.

        Raises:
            DataError: All problems of the data set at once.
        """
        if self._sources is None:
            splits = dict(self.read())
            records = {k: v for k, v in splits.items() if isinstance(v, Sequence)}
            problems: list[str] = []
            if records:
                try:
                    validate(records, self.class_names, shared=self.shared, verify=self.verify)
                except DataError as error:
                    problems += error.problems
            splits |= self._pseudo_annotated(list(splits), records, problems)
            if problems:
                raise DataError(f"{type(self).__name__} {self.origin or ''}".strip(), problems)
            self._sources = {
                name: RecordSource(split, annotated=name not in self.unannotated)
                if isinstance(split, Sequence)
                else split
                for name, split in splits.items()
            }
            if self.mask_table is not None:
                source = self._sources["train"]
                if getattr(source, "shots", None) is not None:
                    raise DataError(
                        type(self).__name__, ["mask_table goes with images, not with videos"]
                    )
                names = self.image_names(source)
                masks = read_masks(self.mask_table, names)
                self._sources["train"] = MaskedSource(source, names, masks)
        return self._sources

    def image_names(self, source: Source) -> list[str]:
        """Return what tables of masks call the samples of a source; see `data/masks.py`."""
        return image_names(source, self._images_root)

    @property
    def _images_root(self) -> Path | None:
        """The folder that tables give paths of images below, if there is one."""
        manifest: Path | None = getattr(self, "manifest", None)
        root: Path | None = getattr(self, "root", None)
        return root or (manifest.parent if manifest is not None else None)

    def _pseudo_annotated(
        self, names: list[str], records: Mapping[str, Sequence[Record]], problems: list[str]
    ) -> dict[str, list[Record]]:
        """Return the splits of `val_roots`; add to `problems` what is wrong with them."""
        if not self.val_roots:
            return {}
        first = next((name for name in names if name.startswith("val")), None)
        if first is None or first not in records:
            what = "no validation split" if first is None else f"{first!r} is not read from files"
            problems.append(f"val_roots: {what}, so there are no images that the boxes could be of")
            return {}
        own = {self._path_in_metadata(record): record for record in records[first]}
        others = {self._path_in_metadata(record) for split in records.values() for record in split}
        found: dict[str, list[Record]] = {}
        for name, folder in self.val_roots.items():
            split = f"val_{name}"
            if split in names:
                problems.append(f"val_roots: the data set has a split {split!r}: rename {name!r}")
            try:
                found[split] = annotate(Path(folder), own, others, sizes=self.verify != "none")
            except DataError as error:
                problems += error.problems
        return found

    def _path_in_metadata(self, record: Record) -> str:
        """Return the path of an image as metadata files have it: relative to the images' root."""
        root = self._images_root
        if root is None or not record.image.is_relative_to(root):
            return record.image.as_posix()
        return record.image.relative_to(root).as_posix()

    def split_names(self, stage: str) -> list[str]:
        """Return the splits of a stage ("train", "val", "test") in loader order."""
        return [name for name in self.sources if name.startswith(stage)]

    def selection(self) -> dict[str, str | None]:
        """Return the metrics that choose checkpoints, by kind.

        "cl", classification, is judged on the first validation split; "loc", localisation, on the
        first with masks (PxAP), else with boxes (MaxBoxAcc), else None; of videos boxes come first.
        Each of `val_roots` is a judge of its own, "loc_<name>" (MaxBoxAcc).
        """
        names = self.split_names("val")
        chosen: dict[str, str | None] = {"cl": f"{names[0]}/acc" if names else None, "loc": None}
        kinds = (("maxboxacc", "has_boxes"), ("pxap", "has_masks"))  # the last one counts
        for metric, has in reversed(kinds) if self.corloc else kinds:
            annotated = [name for name in names if getattr(self.sources[name], has)]
            if annotated:
                chosen["loc"] = f"{annotated[0]}/{metric}"
        return chosen | {f"loc_{name}": f"val_{name}/maxboxacc" for name in self.val_roots}

    def setup(self, stage: str) -> None:
        """Read and check what the stage needs."""
        if stage == "predict" and self.predict_images is not None:
            self.predict_source()
        else:
            _ = self.sources
        for needed in {"fit": ("train",), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            if not self.split_names(needed):
                raise DataError(
                    type(self).__name__,
                    [f"there is no {needed!r} split; found: {', '.join(self.sources) or 'none'}"],
                )

    def predict_source(self) -> RecordSource:
        """Return the images of `predict_images` as an unlabelled source."""
        path = Path(str(self.predict_images))
        images = [path] if path.is_file() else find_images(path)
        records = [Record(image, -1, place=str(image)) for image in images]
        validate({"predict": records}, (), verify=self.verify, what=f"Images {path}")
        return RecordSource(records)

    def dataset(self, split: str) -> ZooDataset:
        """Return one split as the network sees it; `train` is augmented."""
        train = split == "train"
        return ZooDataset(
            self.sources[split],
            self.train_size if train else self.eval_size,
            self.augment if train else None,
            **self.dataset_options(split),
        )

    def dataset_options(self, split: str) -> dict[str, Any]:
        """Return the keyword arguments of a split's `ZooDataset`."""
        train = split == "train"
        return {
            "seed": self.seed,
            "annotations": not train or self._training_reads("mask", "boxes"),
            "labels": not train or self._training_reads("label"),
            "cache": self.cache,
            "cams": self.cams if train else None,
            "texts": self.texts.get(split),
        }

    @property
    def items_per_batch(self) -> int:
        """Items of the data set in a training batch."""
        return self.batch_size

    def whole_images(self, split: str, only: Sequence[int] | None = None) -> DataLoader[Any]:
        """Return a loader of a split in order, as evaluation prepares it, without annotations.

        Args:
            split: The split.
            only: Positions of the samples to load; None: all.
        """
        labels = split != "train" or self._training_reads("label")
        source = self.sources[split]
        dataset = ZooDataset(
            source,
            self.eval_size,
            annotations=False,
            labels=labels,
            only=only,
            texts=self.texts.get(split),
        )
        return self._loader(dataset, train=False)

    def drawn(self, epochs: int) -> Sequence[int]:
        """Return the positions of the training samples that the first epochs see."""
        return range(len(self.sources["train"]) if epochs else 0)

    def _training_reads(self, *what: str) -> bool:
        """Return whether the method in training reads one of "label", "mask", "boxes"."""
        module = getattr(self.trainer, "lightning_module", None)
        needs: frozenset[str] = getattr(module, "needs", frozenset({"label"}))
        return bool(needs & set(what))

    def _loader(self, dataset: Any, *, train: bool) -> DataLoader[Any]:
        trainer = self.trainer
        sampler = SeededSampler(
            len(dataset),
            shuffle=train,
            seed=self.seed,
            num_replicas=trainer.world_size if trainer is not None else 1,
            rank=trainer.global_rank if trainer is not None else 0,
        )
        arguments: dict[str, Any] = {
            "batch_size": self.items_per_batch if train else self.eval_batch_size,
            "sampler": sampler,
            "num_workers": self.num_workers,
            "multiprocessing_context": self.worker_start if self.num_workers else None,
            "collate_fn": dataset.collate,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.num_workers > 0,
            "drop_last": train and self.drop_last,
        }
        if not train:
            return DataLoader(dataset, **arguments)
        position = partial(trainer_position, trainer) if trainer is not None else None
        return ResumableLoader(dataset, position=position, **arguments)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of `train`."""
        return self._loader(self.dataset("train"), train=True)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return one loader per validation split."""
        return [self._loader(self.dataset(s), train=False) for s in self.split_names("val")]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Return one loader per test split."""
        return [self._loader(self.dataset(s), train=False) for s in self.split_names("test")]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """Return the loader of `predict_images`, or those of the test splits."""
        if self.predict_images is None:
            return [self.whole_images(name) for name in self.split_names("test")]
        dataset = ZooDataset(self.predict_source(), self.eval_size, annotations=False)
        return [self._loader(dataset, train=False)]

    def preprocessing(self) -> dict[str, Any]:
        """Return what a checkpoint must remember to prepare an image as evaluation does."""
        return {"image_size": self.image_size}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise uint8 images on the device; keep their pixels, before any jitter, as `raw`."""
        image = batch.get("image")
        if image is not None and image.dtype == torch.uint8:
            encoder = getattr(getattr(self.trainer, "lightning_module", None), "encoder", None)
            mean = getattr(encoder, "mean", IMAGENET_MEAN)
            std = getattr(encoder, "std", IMAGENET_STD)
            batch.setdefault("raw", image)
            batch["image"] = normalize(image, mean, std)
        return batch
