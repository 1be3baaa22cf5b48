"""MemNet: memory blocks that keep what they and all blocks before them have seen.

Paper: Tai et al., "MemNet: A Persistent Memory Network for Image Restoration", ICCV 2017 (arXiv
1708.02209).
Network: m_0 = C(relu(BN(z))); m_i = gate([R m, R^2 m, ..., R^6 m, m_0, ..., m_{i-1}]) with
m = m_{i-1}; y = z + C1(relu(BN(m_6))); z = up(x); R the block's recursive unit.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): a recursive unit is a chain of
six residual blocks, 2,904,962 parameters. The paper recurses one: `residuals=1`, 685,442 parameters
and about a sixth of the work. Neither has the paper's supervision of every memory block (MemNet-M).
The benchmark does not state its initialisation: here it is torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl_zoo.networks.base import SuperResolution, upsampled
from wsl_zoo.networks.blocks import conv


class MemNet(SuperResolution):
    """Pre-activated convolutions without biases.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels of all maps inside.
        blocks: Memory blocks.
        recursions: Applications of a block's recursive unit.
        residuals: Residual blocks in a recursive unit; 1 is the paper's.

    Raises:
        ValueError: None of one of them.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        width: int = 64,
        blocks: int = 6,
        recursions: int = 6,
        residuals: int = 6,
    ) -> None:
        super().__init__(scale, in_chans)
        if min(blocks, recursions, residuals) < 1:
            raise ValueError(f"{blocks=}, {recursions=} and {residuals=} must be positive")
        self.first = _norm_relu_conv(in_chans, width, kernel=3)
        self.blocks = nn.ModuleList(
            _MemoryBlock(width, recursions, residuals, memories=i + 1) for i in range(blocks)
        )
        self.last = _norm_relu_conv(width, in_chans, kernel=1)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone."""
        enlarged = upsampled(image, self.scale)
        memories = [self.first(enlarged)]
        for block in self.blocks:
            memories.append(block(memories))
        return [enlarged + self.last(memories[-1])]


class _MemoryBlock(nn.Module):
    def __init__(self, width: int, recursions: int, residuals: int, memories: int) -> None:
        super().__init__()
        self.recursions = recursions
        self.unit = nn.Sequential(*(_Residual(width) for _ in range(residuals)))
        self.gate = _norm_relu_conv((recursions + memories) * width, width, kernel=1)

    def forward(self, memories: list[Tensor]) -> Tensor:
        """Return the next memory (B, D, H, W) after those of all blocks before."""
        current, short = memories[-1], []
        for _ in range(self.recursions):
            current = self.unit(current)
            short.append(current)
        return self.gate(torch.cat([*short, *memories], dim=1))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _norm_relu_conv(width, width, kernel=3), _norm_relu_conv(width, width, kernel=3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _norm_relu_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(in_channels), nn.ReLU(), conv(in_channels, out_channels, kernel, bias=False)
    )
