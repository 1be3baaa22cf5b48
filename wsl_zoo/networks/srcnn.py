"""SRCNN: three convolutions on the bicubically enlarged image.

Paper: Dong et al., "Learning a Deep Convolutional Network for Image Super-Resolution", ECCV 2014.
Network: y = C(relu(C(relu(C(up(x)))))), without a skip from the enlarged image.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): kernels 5-1-1 and widths 1024
and 128, 157,953 parameters. `variant="original"` is the published 9-5-5 net of widths 64 and 32.
The image is enlarged inside, so that this network takes low-resolution images as all others do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from wsl_zoo.networks.base import SuperResolution, upsampled
from wsl_zoo.networks.blocks import conv, init_kaiming

Variant = Literal["benchmark", "original"]

# Kernels of the three convolutions and channels of the two maps between them.
VARIANTS: dict[Variant, tuple[tuple[int, int, int], tuple[int, int]]] = {
    "benchmark": ((5, 1, 1), (1024, 128)),
    "original": ((9, 5, 5), (64, 32)),
}
LAST_STD = 1e-3  # of the last convolution's weights at the start


class SRCNN(SuperResolution):
    """Convolutions drawn from N(0, 2 / (out k^2)), the last one from N(0, 1e-3^2), biases zero.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        variant: Kernels, and the widths unless given.
        widths: Channels of the two maps between the convolutions. None: the variant's.

    Raises:
        ValueError: Another variant, or not two widths.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        variant: Variant = "benchmark",
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__(scale, in_chans)
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant!r}: there are {', '.join(VARIANTS)}")
        kernels, default = VARIANTS[variant]
        widths = default if widths is None else tuple(widths)
        if len(widths) != 2:
            raise ValueError(f"widths={widths}: there are two maps between three convolutions")
        self.body = nn.Sequential(
            conv(in_chans, widths[0], kernels[0]), nn.ReLU(),
            conv(widths[0], widths[1], kernels[1]), nn.ReLU(),
        )  # fmt: skip
        self.last = conv(widths[1], in_chans, kernels[2])
        init_kaiming(self, mode="fan_out")
        nn.init.normal_(self.last.weight, std=LAST_STD)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone."""
        return [self.last(self.body(upsampled(image, self.scale)))]
