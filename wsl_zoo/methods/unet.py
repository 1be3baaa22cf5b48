"""The decoder of F-CAM trained on true masks: what its seeds could at most teach it.

Paper: the fully supervised rows of Belharbi et al., "F-CAM", WACV 2022 (arXiv 2109.07069); the
decoder is a U-Net, Ronneberger et al., MICCAI 2015 (arXiv 1505.04597).
Loss: mean cross-entropy over the annotated pixels. Map: S_1, as F-CAM's.

With `freeze_classifier=True` the trainable part is that of F-CAM, so the rows differ only in what
the pixels are labelled by.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from wsl_zoo.losses import SEED_IGNORE
from wsl_zoo.methods.fcam import FCAM
from wsl_zoo.types import IGNORE, Batch, Output


class SupervisedUNet(FCAM):
    """F-CAM whose seeds are the true masks (or filled boxes): an upper bound.

    Args:
        crf_weight: As of F-CAM; off.
        size_weight: As of F-CAM; off.
        cam_source: As of F-CAM; no map is read.
        **kwargs: See `FCAM`.

    Raises:
        ValueError: A training batch has neither masks nor boxes.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"label", "mask", "boxes"})

    def __init__(
        self,
        crf_weight: float = 0.0,
        size_weight: float = 0.0,
        cam_source: Literal["cached", "live"] = "live",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            crf_weight=crf_weight, size_weight=size_weight, cam_source=cam_source, **kwargs
        )

    def seeds(self, batch: Batch, output: Output) -> Tensor:
        """Return the masks (B, H, W), else the filled boxes; ignored pixels are -255."""
        assert output.map is not None
        if "mask" in batch:
            mask = batch["mask"].long()
            return mask.masked_fill(mask == IGNORE, SEED_IGNORE)
        if "boxes" not in batch:
            raise ValueError("SupervisedUNet needs masks or boxes of training images")
        height, width = output.map.shape[-2:]
        filled = torch.zeros(len(batch["boxes"]), height, width, dtype=torch.long)
        for image, boxes in zip(filled, batch["boxes"], strict=True):
            for x0, y0, x1, y1 in boxes.round().long().clamp(min=0).tolist():
                image[y0:y1, x0:x1] = 1
        return filled.to(output.map.device)
