"""Parts that several super-resolution networks share: convolutions, projections, initialisation."""

from __future__ import annotations

from typing import Literal

from torch import nn

PROJECTIONS = {2: (6, 2, 2), 4: (8, 4, 2), 8: (12, 8, 2)}
"""Scale s -> (kernel, stride, padding) with (n-1) stride - 2 padding + kernel = s n (DBPN, SRFBN):
a convolution undoes the size that a transposed one gives."""


def conv(in_channels: int, out_channels: int, kernel: int = 3, bias: bool = True) -> nn.Conv2d:
    """Return a convolution of stride 1 that keeps the size, for an odd kernel."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)


def conv_prelu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Return a convolution of stride 1 and a PReLU of one slope."""
    return nn.Sequential(conv(in_channels, out_channels, kernel), nn.PReLU())


def up_prelu(channels: int, scale: int) -> nn.Sequential:
    """Return a transposed convolution (h, w) -> (s h, s w) and a PReLU of one slope."""
    return nn.Sequential(nn.ConvTranspose2d(channels, channels, *PROJECTIONS[scale]), nn.PReLU())


def down_prelu(channels: int, scale: int) -> nn.Sequential:
    """Return a convolution (s h, s w) -> (h, w) and a PReLU of one slope."""
    return nn.Sequential(nn.Conv2d(channels, channels, *PROJECTIONS[scale]), nn.PReLU())


def compress(channels: int, count: int) -> nn.Module:
    """Return what takes `count` concatenated maps back to the channels of one; of one, nothing."""
    return conv_prelu(count * channels, channels, 1) if count > 1 else nn.Identity()


def init_kaiming(module: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Draw every (transposed) convolution from N(0, 2 / fan), biases at zero (He et al. 2015).

    Args:
        module: The network or a part of it.
        mode: Inputs or outputs of a weight, times the kernel's area. torch counts both in the
            layout of a convolution, so that a transposed one has them exchanged.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode=mode, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
