"""Methods whose text encoder learns with them, and is no part of what they become."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from wsl_zoo.encoders import ImageTextEncoder, TextTower
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.types import Batch, Output


class TextTuning(ZooModule):
    """Base of methods with a text tower in training: it is in no weights, and resumes bit for bit.

    Options `text_dim`, `lora_rank`, `lora_alpha` and `lora_dropout` are read.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.text_tower: TextTower | None = None
        """Text tower in training, where texts move; no part of the weights."""

    @abstractmethod
    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the weighted terms."""

    def make_tower(self, arguments: dict[str, Any], texts: Sequence[str]) -> TextTower:
        """Return the tower of an `ImageTextEncoder` over texts, with LoRA drawn by `seed`.

        Args:
            arguments: Those of the encoder.
            texts: M texts.

        Raises:
            ValueError: Its features are of another size than the model is built for.
        """
        h = self.hparams
        encoder = self.text_encoder(arguments)
        with self._seeded():
            tower = TextTower(encoder, texts, h["lora_rank"], h["lora_alpha"], h["lora_dropout"])
        return tower.to(self.device)

    def text_encoder(self, arguments: dict[str, Any]) -> ImageTextEncoder:
        """Return an encoder whose features the model is built for.

        Raises:
            ValueError: They are of another size.
        """
        with self._seeded():
            encoder = ImageTextEncoder(**arguments)
        if encoder.dim != self.hparams["text_dim"]:
            raise ValueError(
                f"text_encoder has {encoder.dim} features: text_dim={self.hparams['text_dim']}"
            )
        return encoder

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Draw by `seed` inside, and leave what is drawn outside as it is."""
        with torch.random.fork_rng():
            torch.manual_seed(self.hparams["seed"])
            yield

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store also what the text tower has learned, for a run that resumes."""
        super().on_save_checkpoint(checkpoint)
        if self.text_tower is not None:
            checkpoint["wsl_zoo"]["text_factors"] = self.text_tower.factors()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it where there is such a tower."""
        super().on_load_checkpoint(checkpoint)
        factors = checkpoint.get("wsl_zoo", {}).get("text_factors")
        if self.text_tower is not None and factors is not None:
            self.text_tower.take_factors(factors)
