"""Methods that learn pixels from the class maps of an earlier model: that model, and its maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from wsl_zoo.cams.normalize import normalize_map, resize_maps
from wsl_zoo.checkpoints import load_checkpoint
from wsl_zoo.data import ZooDataModule
from wsl_zoo.data.transforms import normalize
from wsl_zoo.encoders import FeatureBank
from wsl_zoo.losses import SeedSampler
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.types import Batch, Output


class Seeded(ZooModule):
    """Base of methods with a `seeder`, whose class maps say where pixels are drawn.

    With cached maps, those of the whole training images (of videos: of the frames that will be
    drawn) are read once when training starts, kept small (N, h, w), and travel with the images, cut
    as they are. Else they are read anew from every augmented image: not the same maps.
    """

    seeder_option: ClassVar[str] = "seeder"
    """What the checkpoint of the seeder is called, for messages."""

    sampler: SeedSampler
    """How seeds are drawn; a method makes it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # In a list, so that it is no part of the weights: a trained model needs no seeder.
        self._seeder: list[ZooModule] = []

    @property
    @abstractmethod
    def seeder_path(self) -> str | None:
        """The checkpoint of the seeder; a method says which of its options holds it."""

    @property
    @abstractmethod
    def caches_cams(self) -> bool:
        """Whether the seeder's maps are read once, when training starts."""

    @property
    def seeder(self) -> ZooModule:
        """The model whose class maps seed, in eval mode; read at the first use.

        Raises:
            ValueError: No checkpoint is given, or it does not fit.
        """
        if not self._seeder:
            path = self.seeder_path
            if path is None:
                raise ValueError(
                    f"{type(self).__name__} needs a model to seed from: "
                    f"--model.{self.seeder_option} runs/.../checkpoints/best_loc.ckpt"
                )
            source = load_checkpoint(path).to(self.device)
            if not isinstance(source, ZooModule):
                raise ValueError(f"{path} holds a {type(source).__name__}, which has no class maps")
            self.prepare_seeder(path, source)
            self._seeder = [source.requires_grad_(requires_grad=False)]
        return self._seeder[0]

    def prepare_seeder(self, path: str, source: ZooModule) -> None:
        """Check the model that seeds, or change how it reads its maps."""

    def seed_labels(self, batch: Batch, output: Output) -> Tensor:
        """Return whose maps of the seeder seed, (B,), given its output: the labels'."""
        return batch["label"]

    def on_fit_start(self) -> None:
        """Read start weights; with cached maps, read those of all training images."""
        super().on_fit_start()
        self._seeder.clear()
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ZooDataModule):
            data.cams = None  # those of another fit
        if self.caches_cams:
            self._cache_cams(data)

    def _cache_cams(self, data: Any) -> None:
        if not isinstance(data, ZooDataModule):
            raise ValueError(
                'cam_source="cached" needs a data module of wsl_zoo, which cuts the maps as it '
                'cuts the images; with other loaders use cam_source="live"'
            )
        epochs = self.trainer.max_epochs
        drawn = data.drawn(epochs) if epochs is not None and epochs >= 0 else None
        only = self.seeded_from(drawn, data)
        bank = FeatureBank(len(data.sources["train"]))
        for batch in self.training_images(only):
            bank.add(batch["index"], batch["valid"], cam=self.seed_maps(batch))
        cams = self.gathered(bank, only).get("cam", torch.zeros(0))
        data.cams = self.pooled(cams, data)

    def training_images(self, only: Sequence[int] | None = None) -> Iterator[Batch]:
        """Yield this process's share of the training images, whole, as evaluation prepares them.

        Args:
            only: Positions of the samples to load; None: all.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        for batch in data.whole_images("train", only):
            batch = data.transfer_batch_to_device(batch, self.device, 0)
            yield data.on_after_batch_transfer(batch, 0)

    def gathered(self, bank: FeatureBank, only: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return the rows of a bank that all processes filled; see `FeatureBank.gather`."""
        strategy, device = self.trainer.strategy, self.device

        def total(value: Tensor) -> Tensor:
            summed: Tensor = strategy.reduce(value.to(device), reduce_op="sum").cpu()
            return summed

        return bank.gather(None if self.trainer.world_size == 1 else total, only)

    def seeded_from(self, drawn: Sequence[int] | None, data: Any) -> Sequence[int] | None:
        """Return the training samples of `data` whose maps those `drawn` need; None: all."""
        return drawn

    def pooled(self, cams: Tensor, data: Any) -> Tensor:
        """Return the maps (N, h, w) to seed from, of those of all training images of `data`."""
        return cams

    def seed_maps(self, batch: Batch) -> Tensor:
        """Read the seeder's maps: (B, h, w) in [0, 1], a constant one becomes 0."""
        seeder = self.seeder
        # Without paths: a classifier that keeps features by path would take a crop for the image.
        own: Any = {key: value for key, value in batch.items() if key != "path"}
        encoder = seeder.encoder
        if "raw" in batch and (encoder.mean, encoder.std) != (self.encoder.mean, self.encoder.std):
            own["image"] = normalize(batch["raw"], encoder.mean, encoder.std)
        with torch.no_grad():
            output = seeder(own)
            maps = seeder.class_map(own, output, self.seed_labels(batch, output))
        return normalize_map(maps, relu=seeder.drops_negative)

    def cams_of(self, batch: Batch, size: Sequence[int]) -> Tensor:
        """Return the maps to draw from, cached or read now, at a size: (B, *size) in [0, 1]."""
        cams = batch["cam"] if "cam" in batch else self.seed_maps(batch)
        return resize_maps(cams.float(), size)

    def draw_seeds(self, cams: Tensor, negative: Tensor | None = None) -> Tensor:
        """Draw seeds (B, h, w) from maps of that shape.

        From the step's seed, in a stream of its own: what else is drawn leaves it alone.

        Args:
            cams: `(B, h, w)` in [0, 1].
            negative: `(B,)` bool, images that are background all over: seeds from everywhere.
        """
        generator = torch.Generator(cams.device).manual_seed(torch.initial_seed())
        seeds: Tensor = self.sampler(cams, generator)
        if negative is None:
            return seeds
        everywhere = self.sampler.everywhere(cams.shape, generator)
        return torch.where(negative[:, None, None], everywhere, seeds)
