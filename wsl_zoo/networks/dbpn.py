"""DBPN: up- and down-projections in turn, each corrected by what it got wrong.

Paper: Haris et al., "Deep Back-Projection Networks for Super-Resolution", CVPR 2018 (arXiv
1803.02735); "MR64-3" is a form of its journal version (arXiv 1904.05677).
Network: l = C1(C3(x)); (l, h_p) = chain(l) for p = 1..3; y = C3([h_1, h_2, h_3]).
Up-projection: h_0 = D(l), h = h_0 + D(C(h_0) - l); the down-projection is its mirror image.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): a chain of 7 up- and 6
down-projections between them, of which each takes all earlier maps of its kind; the chain runs
three times with the same weights, fed its own last low-resolution map. 5,938,548 / 10,411,380 /
23,190,900 parameters at X2 / X4 / X8. No skip from the image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl_zoo.networks.base import SuperResolution
from wsl_zoo.networks.blocks import (
    compress,
    conv,
    conv_prelu,
    down_prelu,
    init_kaiming,
    up_prelu,
)


class DBPN(SuperResolution):
    """Every convolution but the last has a PReLU of one slope; Kaiming-normal, biases zero.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        features: Channels of the first map.
        width: Channels of all others.
        depth: Up-projections in the chain; there is one down-projection less.
        passes: Runs of the chain.

    Raises:
        ValueError: `depth` below 2, or no pass.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        features: int = 256,
        width: int = 64,
        depth: int = 7,
        passes: int = 3,
    ) -> None:
        super().__init__(scale, in_chans)
        if depth < 2 or passes < 1:
            raise ValueError(f"{depth=} must be at least 2 and {passes=} positive")
        self.passes = passes
        self.first = nn.Sequential(
            conv_prelu(in_chans, features, 3), conv_prelu(features, width, 1)
        )
        self.ups = nn.ModuleList(
            nn.Sequential(compress(width, max(i, 1)), _up_projection(width, scale))
            for i in range(depth)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(compress(width, i), _down_projection(width, scale))
            for i in range(1, depth)
        )
        self.last = conv(passes * width, in_chans)
        init_kaiming(self)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone."""
        low, results = self.first(image), []
        for _ in range(self.passes):
            low, high = self._chain(low)
            results.append(high)
        return [self.last(torch.cat(results, dim=1))]

    def _chain(self, low: Tensor) -> tuple[Tensor, Tensor]:
        """The last maps (B, D, h, w) and (B, D, s h, s w) of one run; `low` starts it only."""
        highs: list[Tensor] = [self.ups[0](low)]
        lows: list[Tensor] = []
        for down, up in zip(self.downs, self.ups[1:], strict=True):
            lows.append(down(torch.cat(highs, dim=1)))
            highs.append(up(torch.cat(lows, dim=1)))
        return lows[-1], highs[-1]


class _Projection(nn.Module):
    def __init__(self, there: nn.Module, back: nn.Module, again: nn.Module) -> None:
        super().__init__()
        self.there = there
        self.back = back
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        """Project, and add the projection of the error seen on the way back."""
        projected = self.there(x)
        return projected + self.again(self.back(projected) - x)


def _up_projection(width: int, scale: int) -> _Projection:
    return _Projection(up_prelu(width, scale), down_prelu(width, scale), up_prelu(width, scale))


def _down_projection(width: int, scale: int) -> _Projection:
    return _Projection(down_prelu(width, scale), up_prelu(width, scale), down_prelu(width, scale))
