"""VDSR: twenty convolutions guess what the bicubically enlarged image lacks.

Paper: Kim et al., "Accurate Image Super-Resolution Using Very Deep Convolutional Networks", CVPR
2016 (arXiv 1511.04587).
Network: y = z + r(z), z = up(x).

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168), which is the published one
without biases: 664,704 parameters. One network per scale; the paper trains one for all.
"""

from __future__ import annotations

from torch import Tensor, nn

from wsl_zoo.networks.base import SuperResolution, upsampled
from wsl_zoo.networks.blocks import conv, init_kaiming


class VDSR(SuperResolution):
    """Convolutions 3x3 without biases, drawn from N(0, 2 / (9 out)).

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels between the convolutions.
        depth: Number of convolutions, the first and the last included.

    Raises:
        ValueError: `depth` below 2.
    """

    def __init__(self, scale: int, in_chans: int = 1, width: int = 64, depth: int = 20) -> None:
        super().__init__(scale, in_chans)
        if depth < 2:
            raise ValueError(f"depth={depth}: there are a first and a last convolution")
        channels = [in_chans] + [width] * (depth - 2)
        layers = [nn.Sequential(conv(c, width, bias=False), nn.ReLU()) for c in channels]
        self.body = nn.Sequential(*layers)
        self.last = conv(width, in_chans, bias=False)
        init_kaiming(self, mode="fan_out")

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone."""
        enlarged = upsampled(image, self.scale)
        return [enlarged + self.last(self.body(enlarged))]
