"""What a localiser and a classifier of what it found share: two heads, a soft mask between them.

The localiser (encoder and a first WILDCAT head) makes the mask M+ of an image x; the same encoder
and a second head classify what it keeps, x M+, and, in training, what it leaves, x (1 - M+).
Masks are applied after normalisation: where M+ = 0 an image shows the mean colour of its data set.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.cams import PseudoMask, expected_map
from wsl_zoo.encoders import recomputed
from wsl_zoo.heads import WILDCAT
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.methods.cam import build
from wsl_zoo.types import Batch, Output, Target

WILDCAT_ARGS = {"modalities": 5, "kmin": 0, "alpha": 0.0}
"""What both papers' heads have in common: no minimum term."""


class Localizer(ZooModule):
    """Base of localiser and classifier; for encoders that take images of any size.

    Args:
        head_args: Arguments of both heads, see `wsl_zoo.heads.WILDCAT`.
        mask_args: Arguments of the mask, see `wsl_zoo.cams.PseudoMask`.
        scale: Size of masked images relative to the image, in (0, 1].
        checkpointing: Compute activations again in the backward pass instead of keeping those of
            every pass of the encoder.
        **kwargs: See `ZooModule`.

    Raises:
        ValueError: `scale` is out of its range, or the mask or heads take no such arguments.
    """

    fixed_threshold: ClassVar[float | None] = 0.5

    def __init__(
        self,
        head_args: dict[str, Any] | None = None,
        mask_args: dict[str, Any] | None = None,
        scale: float = 1.0,
        checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < scale <= 1:
            raise ValueError(f"scale={scale} must lie in (0, 1]")
        self._head_args = WILDCAT_ARGS | (head_args or {})  # `hparams` may lack a subclass's own
        self.head = self.wildcat(self.num_classes)
        self.classifier = self.wildcat(self.num_classes)
        self.mask: PseudoMask = build("mask", {"mask": PseudoMask}, "mask", mask_args)

    def wildcat(self, num_classes: int, **changes: Any) -> WILDCAT:
        """Make a WILDCAT head over the encoder by `head_args`."""
        options = self._head_args | changes
        channels = self.encoder.final_channels
        head: WILDCAT = build(
            "head", {"wildcat": WILDCAT}, "wildcat", options, channels, num_classes
        )
        return head

    def final(self, image: Tensor) -> Tensor:
        """Return the encoder's final map (B, C, h, w)."""
        if self.hparams["checkpointing"] and torch.is_grad_enabled():
            return recomputed(self.encoder.final, self.encoder, image)
        return self.encoder.final(image)

    def locate(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the localiser's logits (B, K) and the raw expected map (B, h, w)."""
        logits, maps = self.head(self.final(image))
        return logits, expected_map(logits, maps)

    def mask_of(self, maps: Tensor, image: Tensor) -> Tensor:
        """Return M+ (B, H, W), float32, at the size of the images."""
        with torch.autocast(maps.device.type, enabled=False):
            mask: Tensor = self.mask(maps, image.shape[-2:])
        return mask

    def classify(self, image: Tensor, mask: Tensor) -> Tensor:
        """Return the logits (B, K) of images under a mask (B, H, W)."""
        masked, scale = image * mask[:, None].to(image.dtype), self.hparams["scale"]
        if scale != 1:
            size = [max(1, int(scale * side)) for side in masked.shape[-2:]]
            masked = F.interpolate(masked, size, mode="bilinear", align_corners=True)
        logits: Tensor = self.classifier(self.final(masked))[0]
        return logits

    @abstractmethod
    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the weighted terms."""

    def class_map(self, batch: Batch, output: Output, index: Tensor) -> Tensor:
        """Return the raw map (B, h, w), the same for every class."""
        assert output.map is not None
        return output.map[:, 0]

    def localize(self, batch: Batch, output: Output, target: Target = "label") -> Tensor:
        """Return M+ (B, H, W), the same for every target: no label is read."""
        assert output.map is not None
        return self.mask_of(output.map[:, 0], batch["image"])
