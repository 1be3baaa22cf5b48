"""GRL: blocks of window attention, anchored stripe attention and channel attention side by side.

Paper: Li et al., "Efficient and Explicit Modelling of Image Hierarchies for Image Restoration",
CVPR 2023 (arXiv 2303.00748).
The network is spandrel's (extra `sr`), here with the sizes of the benchmark.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): stripes of 8x8 that are not
shifted, anchors of half the resolution, windows of 8, 20,049,193 / 20,196,905 / 20,344,617
parameters at X2 / X4 / X8; the paper's GRL-B has larger stripes. Inside, images are padded by
reflection to a multiple of the window, or by zeros where they are too small for that. Images of
three channels have DIV2K's mean subtracted by the library.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wsl_zoo.networks.attention_blocks import CROP, spandrel_network, to_multiple
from wsl_zoo.networks.base import SuperResolution


class GRL(SuperResolution):
    """spandrel's GRL: cosine attention, norms behind it, MLP ratio 2.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels.
        depths: Blocks of each stage.
        heads: Heads of attention in each of the two branches.
        window: Side of a window.
        stripe: Height and width of a stripe, turned in every other block.
        drop_path: Chance that the last block is skipped in training; grows linearly from 0.

    Raises:
        ImportError: spandrel is not installed.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        width: int = 180,
        depths: Sequence[int] = (4, 4, 8, 8, 8, 4, 4),
        heads: int = 3,
        window: int = 8,
        stripe: Sequence[int] = (8, 8),
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(scale, in_chans)
        self.network = spandrel_network(
            "GRL",
            # Masks of this size are kept, others are computed at every call.
            img_size=to_multiple(CROP // scale, max(window, *stripe)),
            in_channels=in_chans,
            out_channels=in_chans,
            embed_dim=width,
            depths=list(depths),
            num_heads_window=[heads] * len(depths),
            num_heads_stripe=[heads] * len(depths),
            window_size=window,
            stripe_size=list(stripe),
            stripe_groups=[None, None],
            stripe_shift=False,
            anchor_window_down_factor=2,
            local_connection=True,
            mlp_ratio=2.0,
            drop_path_rate=drop_path,
            upscale=scale,
            upsampler="pixelshuffle",
        )

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone."""
        return [self.network(image)]
