"""Active learning with a weak annotator: few true masks, and the model's own for their neighbours.

Paper: Belharbi et al., "Deep Active Learning for Joint Classification & Segmentation with Weak
Annotator", WACV 2021 (arXiv 2010.04889).
Loss: (1/B) [sum_{L} l_i + lambda sum_{P} l_i], l_i = mean_p BCE(sigmoid(Z_p), m_p).
Map: sigmoid(Z), the same for every class; never min-max normalised.

L are images whose mask an oracle drew, P those with a mask that the model predicted in an earlier
cycle (0 or 1); B counts both, so that a batch of few L learns little. The classifier of stage 1,
trained by image labels alone, is frozen, batch norms and dropout included: classes are what they
were in every round. Every fit starts from one and the same decoder, whatever the seed.

This class is the model of one fit. Rounds, which image is asked for and which is pseudo-labelled,
are `wsl_zoo.rounds`, which `wsl-zoo run` drives; what is annotated comes as the table
`data.mask_table`. Without a table all images of the data set count as drawn by the oracle: the full
supervision.

Deviations: flips move image and mask together (the published code flips the image alone). Of equal
scores on validation the first epoch is kept (published: the last).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.cams.normalize import resize_maps
from wsl_zoo.heads import ImagePathDecoder
from wsl_zoo.methods.cam import Head, build
from wsl_zoo.methods.stage2 import SecondStage
from wsl_zoo.types import IGNORE, Batch, Output, Target


class ActiveWeakAnnotator(SecondStage):
    """Frozen classifier, and a decoder trained on masks of an oracle and of itself.

    Defaults are those of GlaS: ResNet-18, SGD from 0.1, times 0.9 every 100 of 1000 epochs,
    batches of 20.

    Args:
        pseudo_weight: Weight lambda of images with a predicted mask (paper: 0.1 on GlaS, 0.001 on
            CUB).
        decoder_args: Arguments of `wsl_zoo.heads.ImagePathDecoder`.
        decoder_seed: Seed of the decoder's start weights.
        dropout: Rate of one dropout on the levels of the encoder, before they feed its next stage
            and the decoder, and within the decoder; for acquisition by MC-dropout (0.2).
        encoder: As of `ZooModule`.
        head: Pooling head of stage 1; the paper's has `head_args={"modalities": 5, "kmax": 0.1,
            "kmin": 0.1, "alpha": 0.6, "dropout": 0.1}`.
        lr: Rate of the decoder.
        step_size: Epochs between two decays.
        gamma: Factor of a decay.
        min_lr: Floor of the rate.
        **kwargs: See `SecondStage`; a classifier that is trained too (`freeze_classifier=False`)
            adds the cross-entropy of classes, `ce`.

    Raises:
        ValueError: A weight below 0, or as the decoder says.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"label", "mask"})
    fixed_threshold: ClassVar[float | None] = 0.5
    judge: ClassVar[str | None] = "image_dice"

    def __init__(
        self,
        pseudo_weight: float = 0.1,
        decoder_args: dict[str, Any] | None = None,
        decoder_seed: int = 0,
        dropout: float = 0.0,
        encoder: str = "resnet18",
        head: Head = "wildcat",
        lr: float = 0.1,
        step_size: int = 100,
        gamma: float = 0.9,
        min_lr: float = 1.0e-7,
        **kwargs: Any,
    ) -> None:
        if pseudo_weight < 0:
            raise ValueError(f"pseudo_weight={pseudo_weight} must not be negative")
        super().__init__(
            encoder=encoder,
            head=head,
            lr=lr,
            step_size=step_size,
            gamma=gamma,
            min_lr=min_lr,
            **kwargs,
        )
        options = {"dropout": dropout, "in_chans": self.encoder.in_chans} | (decoder_args or {})
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(decoder_seed)  # the CPU alone
            self.decoder: ImagePathDecoder = build(
                "decoder", {"image_path": ImagePathDecoder}, "image_path", options,
                self.encoder.channels,
            )  # fmt: skip
        if dropout:
            for name in self.encoder.level_modules:
                level = self.encoder.model.get_submodule(name)
                level.register_forward_hook(self._drop_level)

    def _drop_level(self, module: object, args: object, output: Tensor) -> Tensor:
        dropped: Tensor = self.decoder.drop(output)
        return dropped

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K) and `map` Z (B, 1, H, W)."""
        logits, final, levels = self.classify(batch["image"])
        return Output(logits=logits, map=self.decoder(batch["image"], levels), final=final)

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return `oracle` and, where the batch tells such images apart, `pseudo`; maybe `ce`.

        Raises:
            ValueError: The batch has no masks.
        """
        assert output.map is not None
        assert output.logits is not None
        if "mask" not in batch:
            raise ValueError(
                f"{type(self).__name__} learns from masks, and the training images have none"
            )
        with torch.autocast(output.map.device.type, enabled=False):
            losses = mask_loss(output.map[:, 0].float(), batch["mask"])
            pseudo = batch.get("pseudo")
            if pseudo is None:
                terms = {"oracle": losses.mean()}
            else:
                terms = {
                    "oracle": losses.where(~pseudo, 0.0).mean(),
                    "pseudo": self.hparams["pseudo_weight"] * losses.where(pseudo, 0.0).mean(),
                }
            if not self.freezes:
                terms["ce"] = F.cross_entropy(output.logits.float(), batch["label"])
        return terms

    def class_map(self, batch: Batch, output: Output, index: Tensor) -> Tensor:
        """Return sigmoid(Z) (B, H, W), the same for every class."""
        assert output.map is not None
        return output.map[:, 0].float().sigmoid()

    def localize(self, batch: Batch, output: Output, target: Target = "label") -> Tensor:
        """Return sigmoid(Z) (B, H, W), the same for every target, as it is: no min-max."""
        assert output.map is not None
        return resize_maps(output.map[:, 0].float(), batch["image"].shape[-2:]).sigmoid()


def mask_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy over the pixels of each image that are not ignored, (B,).

    Args:
        logits: (B, H, W) float.
        mask: (B, H, W) of 0, 1 and 255 (ignored); an image that is ignored all over counts 0.
    """
    known = mask != IGNORE
    target = (mask == 1).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    counted = known.flatten(1).sum(dim=1).clamp(min=1)
    return losses.where(known, 0.0).flatten(1).sum(dim=1) / counted
