"""SwinIR: shifted-window transformer blocks between two convolutions.

Paper: Liang et al., "SwinIR: Image Restoration Using Swin Transformer", ICCV Workshops 2021 (arXiv
2108.10257).
The network is spandrel's (extra `sr`), here with the sizes and the padding of the benchmark.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168, command of its readme): four
groups and one sub-pixel convolution, 7,768,624 / 7,788,076 / 7,865,884 parameters at X2 / X4 / X8.
`depths=(6,) * 6, upsampler="pixelshuffle"` is the form that its parser has by default. Before an
image is judged, the benchmark adds mirrored rows and columns up to the next multiple of the window,
a whole window if the size is one already. This is done here in evaluation; in training, only what a
multiple lacks is added. Images of three channels have DIV2K's mean subtracted by the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from wsl_zoo.networks.attention_blocks import CROP, extended, spandrel_network, to_multiple
from wsl_zoo.networks.base import SuperResolution


class SwinIR(SuperResolution):
    """spandrel's SwinIR: MLP ratio 2, biases on q, k, v, norm of patches, one convolution a group.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels.
        depths: Blocks of each group.
        heads: Heads of attention.
        window: Side of a window.
        drop_path: Chance that the last block is skipped in training; grows linearly from 0.
        upsampler: One sub-pixel convolution, or one per factor of two with 64 channels.

    Raises:
        ImportError: spandrel is not installed.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        width: int = 180,
        depths: Sequence[int] = (6, 6, 6, 6),
        heads: int = 6,
        window: int = 8,
        drop_path: float = 0.1,
        upsampler: Literal["pixelshuffledirect", "pixelshuffle"] = "pixelshuffledirect",
    ) -> None:
        super().__init__(scale, in_chans)
        self.window = window
        self.network = spandrel_network(
            "SwinIR",
            # Masks of this size are kept, others computed at every call. One window never shifts.
            img_size=to_multiple(CROP // scale, window, least=2 * window),
            in_chans=in_chans,
            embed_dim=width,
            depths=list(depths),
            num_heads=[heads] * len(depths),
            window_size=window,
            mlp_ratio=2.0,
            drop_path_rate=drop_path,
            upscale=scale,
            upsampler=upsampler,
        )

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone."""
        height, width = image.shape[-2:]
        more = 0 if self.training else 1
        padded = extended(
            image,
            to_multiple(height + more, self.window),
            to_multiple(width + more, self.window),
            mirror=True,
        )
        return [self.network(padded)[:, :, : self.scale * height, : self.scale * width]]
