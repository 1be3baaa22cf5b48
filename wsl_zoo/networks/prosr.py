"""ProSR: a pyramid that doubles the size level by level, of densely connected compression units.

Paper: Wang et al., "A Fully Progressive Approach to Single-Image Super-Resolution", CVPR Workshops
2018 (arXiv 1804.02900).
Network: v_l = relu(PS(C(v_{l-1} + body_l(v_{l-1})))), y_l = up_{2^l}(x) + C(v_l), l = 1..log2 s.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): 9 / 3 / 1 units in the levels, no
curriculum, no blending of levels, no GAN. 9,464,641 / 13,414,082 / 15,517,123 parameters at X2 / X4
/ X8. The benchmark counts 1,600 more at X4 and 3,200 more at X8: its network has one first
convolution per level and uses one of them; here there is the one.
The benchmark does not state its initialisation: here it is torch's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsl_zoo.networks.base import SuperResolution, upsampled

RESIDUAL_SCALE = 0.2  # of a unit's output before it is added to its input


class ProSR(SuperResolution):
    """Convolutions 3x3 pad by reflection, so that an image has two rows and columns at least.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels between units.
        growth: Channels that a dense layer adds.
        layers: Dense layers in a unit.
        units: Units of the levels X2, X4, X8; those beyond the scale are ignored.

    Raises:
        ValueError: Fewer entries in `units` than levels.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        width: int = 160,
        growth: int = 40,
        layers: int = 8,
        units: Sequence[int] = (9, 3, 1),
    ) -> None:
        super().__init__(scale, in_chans)
        levels = scale.bit_length() - 1
        if len(units) < levels:
            raise ValueError(f"units={tuple(units)} must name {levels} levels for X{scale}")
        self.first = _conv3(in_chans, width)
        self.levels = nn.ModuleList(
            _Level(in_chans, width, growth, layers, units[i], start=i == 0) for i in range(levels)
        )

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return (B, C, 2^l h, 2^l w) for l = 1..log2 s."""
        features, results = self.first(image), []
        for number, level in enumerate(self.levels, start=1):
            features, residual = level(features)
            results.append(upsampled(image, 2**number) + residual)
        return results


class _Level(nn.Module):
    def __init__(
        self, in_chans: int, width: int, growth: int, layers: int, units: int, start: bool
    ) -> None:
        super().__init__()
        enter = nn.Identity() if start else nn.Conv2d(width, width, 1, bias=False)
        dense = (_CompressionUnit(width, growth, layers) for _ in range(units))
        self.body = nn.Sequential(enter, *dense, _conv3(width, width))
        self.up = nn.Sequential(_conv3(width, 4 * width), nn.PixelShuffle(2), nn.ReLU())
        self.last = _conv3(width, in_chans)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, D, 2h, 2w) and the residual (B, C, 2h, 2w)."""
        features = self.up(features + self.body(features))
        return features, self.last(features)


class _CompressionUnit(nn.Module):
    def __init__(self, width: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width + i * growth, width, 1), nn.ReLU(), _conv3(width, growth))
            for i in range(layers)
        )
        self.compress = nn.Conv2d(width + layers * growth, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        dense = x
        for layer in self.layers:
            dense = torch.cat([dense, layer(dense)], dim=1)
        return x + RESIDUAL_SCALE * self.compress(dense)


def _conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="reflect")
