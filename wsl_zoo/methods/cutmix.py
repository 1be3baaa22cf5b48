"""CutMix: a classifier of images into which a box of another image is pasted, labels by area.

Paper: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
Features", ICCV 2019 (arXiv 1905.04899).
Loss: l CE(s, y) + (1 - l) CE(s, y'), l the share of pixels that are the image's own.
Map: CAM.

The box has a uniform centre and sides sqrt(1 - l0) of the image's, l0 ~ Beta(beta, beta); after it
is clipped at the borders, l is taken anew from its area. One box and one permutation per batch.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.methods.cam import CAMClassifier
from wsl_zoo.types import Batch, Output


class _Mixed(Batch, total=False):
    other: Tensor
    """(B,) int64, labels of the images that the boxes come from."""
    own: float
    """Share in [0, 1] of pixels that are the image's own."""


class CutMix(CAMClassifier):
    """Classifier trained on mixed images.

    Args:
        beta: Parameter of the Beta law of the share that an image keeps; 1: uniform.
        mix_rate: Probability in [0, 1] that a batch is mixed.
        **kwargs: See `CAMClassifier`.

    Raises:
        ValueError: `beta` is not positive, or `mix_rate` outside of [0, 1].
    """

    def __init__(self, beta: float = 1.0, mix_rate: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if beta <= 0:
            raise ValueError(f"beta={beta} must be positive")
        if not 0 <= mix_rate <= 1:
            raise ValueError(f"mix_rate={mix_rate} must lie in [0, 1]")
        self.beta = beta
        self.mix_rate = mix_rate

    def prepare_batch(self, batch: Batch) -> Batch:
        """Mix a training batch; adds the other labels and the own share, which the loss reads."""
        # Shares and boxes are drawn on the CPU: as shapes they would make an accelerator wait.
        if float(torch.rand(())) >= self.mix_rate:
            return batch
        image = batch["image"]
        height, width = image.shape[-2:]
        share = float(torch.distributions.Beta(self.beta, self.beta).sample())
        centre = int(torch.randint(height, ())), int(torch.randint(width, ()))
        top, left, bottom, right = box(height, width, share, centre)
        order = torch.rand(len(image), device=image.device).argsort()
        mixed = image.clone()
        mixed[..., top:bottom, left:right] = image[order, :, top:bottom, left:right]
        own = 1 - (bottom - top) * (right - left) / (height * width)
        result: _Mixed = {**batch, "image": mixed, "other": batch["label"][order], "own": own}
        return result

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the cross-entropy, `ce`, of a mixed batch that of both labels by their shares."""
        assert output.logits is not None
        ce = F.cross_entropy(output.logits, batch["label"])
        if "own" in batch:
            mixed = cast(_Mixed, batch)
            other = F.cross_entropy(output.logits, mixed["other"])
            ce = mixed["own"] * ce + (1 - mixed["own"]) * other
        return {"ce": ce}


def box(
    height: int, width: int, share: float, centre: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Box of sides sqrt(1 - share) of the image's, in whole pixels, clipped at its borders.

    Args:
        height: Height of the image in pixels.
        width: Its width.
        share: Share of the image outside of the box before clipping, in [0, 1].
        centre: Row and column of the box's centre.

    Returns:
        Top, left, bottom, right; bottom and right are the first row and column after the box.
    """
    side = (1 - share) ** 0.5
    half = int(height * side) // 2, int(width * side) // 2
    top, left = max(centre[0] - half[0], 0), max(centre[1] - half[1], 0)
    return top, left, min(centre[0] + half[0], height), min(centre[1] + half[1], width)
