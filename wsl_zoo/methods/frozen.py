"""Classifiers that may hold their encoder still, and then compute its maps once per image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from wsl_zoo.encoders import FeatureCache
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.types import Batch, Output


class FreezableEncoder(ZooModule):
    """Base of methods that train a head, or head and encoder.

    Args:
        freeze_encoder: Train the head only.
        cache_features: With a frozen encoder, keep the final map of every image in memory after its
            first pass (about 1 MB for 1280 channels of 14 x 14); or the name of a folder to keep
            them in as well, which other heads, folds and seeds then read. Needs images that are the
            same in every epoch: no augmentation.
        **kwargs: See `ZooModule`.

    Raises:
        ValueError: Cached features of an encoder that is trained.
    """

    def __init__(
        self, freeze_encoder: bool = False, cache_features: bool | str = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if cache_features and not freeze_encoder:
            raise ValueError(f"cache_features={cache_features!r} needs freeze_encoder=True")
        self._features: FeatureCache | None = None

    @abstractmethod
    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the weighted terms."""

    def setup(self, stage: str) -> None:
        """Refuse to keep the features of images that change."""
        super().setup(stage)
        self._features = None
        if stage != "fit" or not self.hparams["cache_features"]:
            return
        augment = getattr(getattr(self.trainer, "datamodule", None), "augment", None)
        mixes = type(self).prepare_batch is not ZooModule.prepare_batch
        if mixes or not getattr(augment, "identity", True):
            what = type(self).__name__ if mixes else "the augmentation of the data"
            raise ValueError(
                f"cache_features needs images that stay the same, but {what} changes them; "
                "switch off hflip, vflip, rotate90, color_jitter and train_resize"
            )

    def frozen(self) -> Iterable[nn.Module]:
        """Return the encoder, if only the head is trained."""
        return [self.encoder] if self.hparams["freeze_encoder"] else []

    def final(self, batch: Batch) -> Tensor:
        """Return the encoder's final map (B, C, h, w), of images seen before from memory."""
        inputs = batch["features"] if "features" in batch else batch["image"]
        kept = self.hparams["cache_features"]
        if not kept or "path" not in batch:
            return self.encoder.final(inputs)
        if self._features is None:
            self._features = FeatureCache(self.encoder, kept if isinstance(kept, str) else None)
        return self._features(inputs, batch["path"])
