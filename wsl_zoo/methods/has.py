"""HaS: a classifier that learns from images with hidden tiles, to look at all of an object.

Paper: Singh and Lee, "Hide-and-Seek: Forcing a Network to be Meticulous for Weakly-supervised
Object and Action Localization", ICCV 2017 (arXiv 1704.04232).
Loss: cross-entropy on x * keep, keep constant on tiles of g x g pixels, P(keep = 0) = `drop_rate`.
Map: CAM of the whole image.

Deviations: published re-implementations fix g at 4 or 5 pixels (`grid_size=5` is the histology
survey's), which is almost a dropout of pixels; the default is the paper's, g drawn per batch from
0 (nothing is hidden), 16, 32, 44 and 56.
"""

from typing import Any

import torch
from torch import Tensor

from wsl_zoo.methods.cam import CAMClassifier
from wsl_zoo.types import Batch

PAPER_SIZES = (0, 16, 32, 44, 56)  # pixels, of images of 224 x 224


class HaS(CAMClassifier):
    """Classifier trained on images of which random tiles are hidden.

    A hidden tile has the mean colour by which images are normalised, which is 0 after it.

    Args:
        grid_size: Side g of the tiles in pixels, or sides of which one is drawn per batch; 0 hides
            nothing. None: 0, 16, 32, 44, 56.
        drop_rate: Probability in [0, 1] that a tile is hidden.
        **kwargs: See `CAMClassifier`.

    Raises:
        ValueError: A side below 0, no sides, or a probability outside of [0, 1].
    """

    def __init__(
        self, grid_size: int | list[int] | None = None, drop_rate: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        sizes = PAPER_SIZES if grid_size is None else grid_size
        self.sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
        if not self.sizes or min(self.sizes) < 0:
            raise ValueError(f"grid_size={grid_size} must be sides in pixels, 0 or more")
        if not 0 <= drop_rate <= 1:
            raise ValueError(f"drop_rate={drop_rate} must lie in [0, 1]")
        self.drop_rate = drop_rate

    def prepare_batch(self, batch: Batch) -> Batch:
        """Hide tiles of a training batch; one side for the batch, other tiles for every image."""
        # Drawn on the CPU: a number that decides shapes would make an accelerator wait.
        size = self.sizes[int(torch.randint(len(self.sizes), ()))]
        return {**batch, "image": hide(batch["image"], size, self.drop_rate)}


def hide(image: Tensor, size: int, drop_rate: float) -> Tensor:
    """Set square tiles to 0, each with the same probability.

    Args:
        image: `(B, C, H, W)`; tiles start at the top left, the last ones are cropped.
        size: Side of a tile in pixels; 0 hides nothing.
        drop_rate: Probability that a tile is hidden.

    Returns:
        `(B, C, H, W)`, a new tensor unless nothing is hidden.
    """
    if size == 0:
        return image
    batch, _, height, width = image.shape
    grid = (batch, 1, -(-height // size), -(-width // size))
    keep = torch.rand(grid, device=image.device) >= drop_rate
    keep = keep.repeat_interleave(size, dim=2).repeat_interleave(size, dim=3)
    return image * keep[..., :height, :width]
