"""MemNet: memory blocks that keep what they and all blocks before them have seen.

Paper: Tai et al., "MemNet: A Persistent Memory Network for Image Restoration", ICCV 2017 (arXiv
1708.02209).
Network: m_0 = C(relu(BN(z))); m_i = gate([R m, R^2 m, ..., R^6 m, m_0, ..., m_{i-1}]) with
m = m_{i-1}; y = z + C1(relu(BN(m_6))); z = up(x); R the block's recursive unit.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): a recursive unit is a chain of
six residual blocks, 2,904,962 parameters. The paper recurses one: `residuals=1`, 685,442 parameters
and about a sixth of the work. Neither has the paper's supervision of every memory block (MemNet-M).
The benchmark does not state its initialisation: here it is torch's.

Deviation: batch norms of a recursive unit keep running statistics for each of its recursions, whose
maps are not alike. The published ones are shared: what evaluation normalises by is a mixture that
fits no recursion, and a network that has learned an image by heart (12 dB over bicubic as training
sees it) falls below bicubic in evaluation. `statistics="shared"` is that. Parameters are the same.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        statistics: Running statistics of its batch norms: "per_recursion", or "shared", published.

    Raises:
        ValueError: None of one of them, or other statistics.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        width: int = 64,
        blocks: int = 6,
        recursions: int = 6,
        residuals: int = 6,
        statistics: Literal["per_recursion", "shared"] = "per_recursion",
    ) -> None:
        super().__init__(scale, in_chans)
        if statistics not in ("per_recursion", "shared"):
            raise ValueError(f'statistics={statistics!r} must be "per_recursion" or "shared"')
        if min(blocks, recursions, residuals) < 1:
            raise ValueError(f"{blocks=}, {recursions=} and {residuals=} must be positive")
        self.first = _norm_relu_conv(in_chans, width, kernel=3)
        self.blocks = nn.ModuleList(
            _MemoryBlock(width, recursions, residuals, i + 1, shared=statistics == "shared")
            for i in range(blocks)
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
    def __init__(
        self, width: int, recursions: int, residuals: int, memories: int, *, shared: bool
    ) -> None:
        super().__init__()
        self.recursions = recursions
        kept = 1 if shared else recursions
        self.unit = nn.ModuleList(_Residual(width, kept) for _ in range(residuals))
        self.gate = _norm_relu_conv((recursions + memories) * width, width, kernel=1)

    def forward(self, memories: list[Tensor]) -> Tensor:
        """Return the next memory (B, D, H, W) after those of all blocks before."""
        current, short = memories[-1], []
        for recursion in range(self.recursions):
            for residual in self.unit:
                current = residual(current, recursion)
            short.append(current)
        return self.gate(torch.cat([*short, *memories], dim=1))


class _Residual(nn.Module):
    def __init__(self, width: int, recursions: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_RecursiveNorm(width, recursions) for _ in range(2))
        self.convs = nn.ModuleList(conv(width, width, bias=False) for _ in range(2))

    def forward(self, x: Tensor, recursion: int) -> Tensor:
        change = x
        for norm, layer in zip(self.norms, self.convs, strict=True):
            change = layer(F.relu(norm(change, recursion)))
        return x + change


class _RecursiveNorm(nn.BatchNorm2d):
    """Batch norm with the running statistics of every recursion; of one, those of all."""

    def __init__(self, channels: int, recursions: int) -> None:
        super().__init__(channels)
        self.running_mean = torch.zeros(recursions, channels)
        self.running_var = torch.ones(recursions, channels)

    def forward(self, x: Tensor, recursion: int) -> Tensor:  # type: ignore[override]
        """Return (B, C, H, W) normalised as in that recursion."""
        assert self.running_mean is not None
        assert self.running_var is not None
        kept = recursion % len(self.running_mean)
        return F.batch_norm(
            x, self.running_mean[kept], self.running_var[kept], self.weight, self.bias,
            self.training, self.momentum or 0.0, self.eps,
        )  # fmt: skip


def _norm_relu_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(in_channels), nn.ReLU(), conv(in_channels, out_channels, kernel, bias=False)
    )
