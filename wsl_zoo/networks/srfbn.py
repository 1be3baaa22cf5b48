"""SRFBN: a recurrent network whose hidden map carries what it saw back to its early layers.

Paper: Li et al., "Feedback Network for Image Super-Resolution", CVPR 2019 (arXiv 1903.09814).
Network: f = C1(C3(x)); m_t = feedback(f, m_{t-1}), m_0 = f; y_t = bilinear(x) + C3(D(m_t)).

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168), which is the published SRFBN-L
for one channel: T = 4 steps, a feedback block of 6 groups, 2,134,748 / 3,625,692 / 7,885,532
parameters at X2 / X4 / X8. The hidden map is an argument and never kept on the network.
The benchmark does not state its initialisation: here it is DBPN's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.networks.base import SuperResolution
from wsl_zoo.networks.blocks import (
    compress,
    conv,
    conv_prelu,
    down_prelu,
    init_kaiming,
    up_prelu,
)


class SRFBN(SuperResolution):
    """Every convolution but the last has a PReLU of one slope; Kaiming-normal, biases zero.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        features: Channels of the first map.
        width: Channels of all others.
        groups: Pairs of an up- and a down-sampling convolution in the feedback block.
        steps: Number T of steps.

    Raises:
        ValueError: No group, or no step.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        features: int = 256,
        width: int = 64,
        groups: int = 6,
        steps: int = 4,
    ) -> None:
        super().__init__(scale, in_chans)
        if min(groups, steps) < 1:
            raise ValueError(f"{groups=} and {steps=} must be positive")
        self.steps = steps
        self.first = nn.Sequential(
            conv_prelu(in_chans, features, 3), conv_prelu(features, width, 1)
        )
        self.feedback = _FeedbackBlock(width, scale, groups)
        self.up = up_prelu(width, scale)
        self.last = conv(width, in_chans)
        init_kaiming(self)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the results of all steps."""
        enlarged = F.interpolate(
            image, scale_factor=self.scale, mode="bilinear", align_corners=False
        )
        features = self.first(image)
        hidden, results = features, []
        for _ in range(self.steps):
            hidden = self.feedback(features, hidden)
            results.append(enlarged + self.last(self.up(hidden)))
        return results


class _FeedbackBlock(nn.Module):
    def __init__(self, width: int, scale: int, groups: int) -> None:
        super().__init__()
        self.enter = compress(width, 2)
        self.ups = nn.ModuleList(
            nn.Sequential(compress(width, i + 1), up_prelu(width, scale)) for i in range(groups)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(compress(width, i + 1), down_prelu(width, scale)) for i in range(groups)
        )
        self.leave = conv_prelu(groups * width, width, 1)

    def forward(self, features: Tensor, hidden: Tensor) -> Tensor:
        """Return the next hidden map (B, D, h, w)."""
        lows: list[Tensor] = [self.enter(torch.cat([features, hidden], dim=1))]
        highs: list[Tensor] = []
        for up, down in zip(self.ups, self.downs, strict=True):
            highs.append(up(torch.cat(lows, dim=1)))
            lows.append(down(torch.cat(highs, dim=1)))
        return self.leave(torch.cat(lows[1:], dim=1))
