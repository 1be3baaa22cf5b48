"""Omni-SR: window, grid and channel attention in turn.

Paper: Wang et al., "Omni Aggregation Networks for Lightweight Image Super-Resolution", CVPR 2023
(arXiv 2304.10244).
The network is spandrel's (extra `sr`), here with the sizes and the padding of the benchmark.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): five groups of four blocks (the
paper's light net has one block per group), 2,827,716 / 2,834,640 / 2,862,336 parameters at X2 / X4
/ X8. Images are padded by zeros to a multiple of the window, and, unlike there, small ones to the
15 rows and columns that the groups' pooling needs.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.networks.attention_blocks import spandrel_network, to_multiple
from wsl_zoo.networks.base import SuperResolution

LEAST = 15  # (15 - 3) / 2 + 1 = 7: a convolution of stride 2 leaves what a pooling of 7 takes


class OmniSR(SuperResolution):
    """spandrel's OmniSR: four heads everywhere, relative position biases.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels, a multiple of 4.
        groups: Groups of blocks.
        blocks: Blocks of a group.
        window: Side of a window, and of the grid.

    Raises:
        ImportError: spandrel is not installed.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        width: int = 64,
        groups: int = 5,
        blocks: int = 4,
        window: int = 8,
    ) -> None:
        super().__init__(scale, in_chans)
        self.window = window
        self.network = spandrel_network(
            "OmniSR",
            num_in_ch=in_chans,
            num_out_ch=in_chans,
            num_feat=width,
            res_num=groups,
            block_num=blocks,
            window_size=window,
            up_scale=scale,
        )

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone."""
        height, width = image.shape[-2:]
        down, right = (to_multiple(n, self.window, LEAST) - n for n in (height, width))
        padded = F.pad(image, (0, right, 0, down))
        return [self.network(padded)[:, :, : self.scale * height, : self.scale * width]]
