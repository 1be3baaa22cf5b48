"""Methods whose text encoder learns with them, and is no part of what they become."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsl_zoo.encoders import ImageTextEncoder, TextTower, adapt
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.schedules import OptimizerName
from wsl_zoo.types import Batch, Output


class TextTuning(ZooModule):
    """Base of methods in which image and text encoders learn by LoRA, with CLIP-IT's recipe.

    Text towers are there in training alone: in no weights, and resumed bit for bit.
    Optimiser defaults are the published ones: Adam, rate 1e-3 for all, coupled weight decay 1e-4.

    Args:
        text_dim: Features D of a text.
        lora_targets: Layers of the image encoder that are adapted, as of
            `wsl_zoo.encoders.adapt`; "all" (published); None: none, the encoder stays as it is.
        lora_rank: Rank of the updates; published: 16.
        lora_alpha: They are multiplied by alpha / rank; published: 8, in an example 4.
        lora_dropout: On their inputs in training.
        **kwargs: See `ZooModule`.
    """

    def __init__(
        self,
        text_dim: int = 512,
        lora_targets: str | list[str] | None = "all",
        lora_rank: int = 16,
        lora_alpha: float = 8.0,
        lora_dropout: float = 0.0,
        freeze_bn: bool = True,
        optimizer: OptimizerName = "adam",
        lr: float = 1.0e-3,
        head_lr_factor: float = 1.0,
        weight_decay: float = 1.0e-4,
        schedule: Literal["step", "cosine", "constant"] = "constant",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            freeze_bn=freeze_bn,
            optimizer=optimizer,
            lr=lr,
            head_lr_factor=head_lr_factor,
            weight_decay=weight_decay,
            schedule=schedule,
            **kwargs,
        )
        self.lora: dict[str, Any] = {
            "rank": lora_rank, "alpha": lora_alpha, "dropout": lora_dropout
        }  # fmt: skip
        """Arguments of every adapter."""
        self.text_tower: TextTower | None = None
        """Text tower in training, where texts move; no part of the weights."""
        if lora_targets is not None:
            adapt(self.encoder, lora_targets, **self.lora)

    def frozen(self) -> Iterable[nn.Module]:
        """Return the image encoder, if it is not adapted: what is adapted freezes itself."""
        return [self.encoder] if self.hparams["lora_targets"] is None else []

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
        encoder = self.text_encoder(arguments)
        with self._seeded():
            return TextTower(encoder, texts, **self.lora).to(self.device)

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
