"""DFCAN: residual groups whose channels are weighted by what their Fourier spectra hold.

Paper: Qiao et al., "Evaluation and development of deep neural networks for image super-resolution
in optical microscopy", Nature Methods 18, 2021.
Block: x + a w, a = gelu(C(gelu(C(x)))), w = sigmoid(C(relu(C(mean(relu(C(S))))))) per channel,
S = shift((|FFT a| + 1e-8)^0.8).

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): 1,930,753 / 2,373,889 /
4,146,433 parameters at X2 / X4 / X8, kernels 3x3, a sigmoid at the end, no skip over the whole
network. Spectra and the weights made from them are computed outside autocast: the spectrum of a
large image leaves the range of float16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl_zoo.networks.attention_blocks import ChannelGate
from wsl_zoo.networks.base import SuperResolution
from wsl_zoo.networks.blocks import conv
from wsl_zoo.precision import at_least_float32

SPECTRUM_EPS = 1e-8
SPECTRUM_POWER = 0.8


class DFCAN(SuperResolution):
    """The result is in (0, 1).

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels.
        groups: Residual groups.
        blocks: Blocks of a group.
        reduction: Of the channels, in a block's weights.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        width: int = 64,
        groups: int = 4,
        blocks: int = 4,
        reduction: int = 16,
    ) -> None:
        super().__init__(scale, in_chans)
        self.first = nn.Sequential(conv(in_chans, width), nn.GELU())
        self.groups = nn.ModuleList(
            nn.Sequential(*(FourierAttentionBlock(width, reduction) for _ in range(blocks)))
            for _ in range(groups)
        )
        self.up = nn.Sequential(conv(width, width * scale**2), nn.GELU(), nn.PixelShuffle(scale))
        self.last = conv(width, in_chans)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone."""
        features = self.first(image)
        for group in self.groups:
            features = features + group(features)
        return [self.last(self.up(features)).sigmoid()]


class FourierAttentionBlock(nn.Module):
    """Residual block, its branch weighted per channel.

    Args:
        width: Channels D.
        reduction: D / reduction channels are between the gate's layers.
    """

    def __init__(self, width: int, reduction: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), nn.GELU(), conv(width, width), nn.GELU())
        self.spectral = conv(width, width)
        self.gate = ChannelGate(width, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, D, h, w)`, shape unchanged."""
        a = self.body(x)
        with torch.autocast(a.device.type, enabled=False):
            spectrum = amplitude(a).to(self.spectral.weight.dtype)
            weight = self.gate(self.spectral(spectrum).relu())
        return x + a * weight.to(a.dtype)


def amplitude(x: Tensor) -> Tensor:
    """Return shift((|FFT x| + 1e-8)^0.8) over the last two axes, at least float32."""
    spectrum = (torch.fft.fft2(at_least_float32(x)).abs() + SPECTRUM_EPS) ** SPECTRUM_POWER
    return torch.fft.fftshift(spectrum, dim=(-2, -1))
