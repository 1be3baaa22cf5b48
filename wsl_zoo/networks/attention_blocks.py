"""Parts that several attention-based super-resolution networks share."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from wsl_zoo.networks.base import SuperResolution
from wsl_zoo.networks.blocks import conv

CROP = 128  # side of the benchmark's training crops at high resolution


class ResidualBlock(nn.Module):
    """x + weight C(relu(C(x))), the block of EDSR (Lim et al., CVPR Workshops 2017).

    Args:
        width: Channels.
        kernel: Side of both convolutions.
        weight: Of the branch.
    """

    def __init__(self, width: int, kernel: int = 3, weight: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(width, width, kernel), nn.ReLU(inplace=True), conv(width, width, kernel)
        )
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, D, h, w)`, shape unchanged."""
        return x + self.weight * self.body(x)


class ChannelGate(nn.Sequential):
    """Weights of channels in (0, 1), from their means: `(B, D, h, w) -> (B, D, 1, 1)`.

    Args:
        width: Channels D.
        reduction: D / reduction channels, at least one, are between the two layers.
    """

    def __init__(self, width: int, reduction: int) -> None:
        inner = max(1, width // reduction)
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            conv(width, inner, 1), nn.ReLU(inplace=True),
            conv(inner, width, 1), nn.Sigmoid(),
        )  # fmt: skip


class Tail(nn.Sequential):
    """Double the size log2 s times by sub-pixel convolutions, then a convolution to the image.

    Args:
        width: Channels of the features.
        scale: s, a power of two.
        out_channels: Channels of the image.
    """

    def __init__(self, width: int, scale: int, out_channels: int) -> None:
        doublings = [
            nn.Sequential(conv(width, 4 * width), nn.PixelShuffle(2))
            for _ in range(scale.bit_length() - 1)
        ]
        super().__init__(*doublings, conv(width, out_channels))


class NonLocalEDSR(SuperResolution):
    """EDSR with a non-local layer before its residual blocks and after every eighth: NLSN, ENLCN.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels D.
        blocks: Residual blocks.
        every: A non-local layer follows every so many of them.
        block_weight: Of what a residual block adds.
        layer: Makes the i-th non-local layer, `(B, D, h, w)` in and out.

    Raises:
        ValueError: The blocks are no multiple of `every`.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int,
        width: int,
        blocks: int,
        every: int,
        block_weight: float,
        layer: Callable[[int], nn.Module],
    ) -> None:
        super().__init__(scale, in_chans)
        if every < 1 or blocks < 1 or blocks % every:
            raise ValueError(f"blocks={blocks} must be a positive multiple of every={every}")
        self.first = conv(in_chans, width)
        body = [layer(0)]
        for i in range(blocks // every):
            body += [ResidualBlock(width, weight=block_weight) for _ in range(every)]
            body.append(layer(i + 1))
        self.body = nn.Sequential(*body, conv(width, width))
        self.tail = Tail(width, scale, in_chans)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone."""
        features = self.first(image)
        return [self.tail(features + self.body(features))]


def extended(x: Tensor, height: int, width: int, mirror: bool) -> Tensor:
    """Return `(B, C, h, w)` with rows and columns added behind its last, of any number.

    Args:
        x: `(B, C, h, w)`.
        height: Rows of the result, at least h.
        width: Columns of the result, at least w.
        mirror: Repeat the map mirrored, edge included (0 1 2 2 1 0 0 1 ...), else its last line.
    """
    for dim, size in ((2, height), (3, width)):
        length = x.shape[dim]
        if size == length:
            continue
        index = torch.arange(size, device=x.device)
        if mirror:
            index = index % (2 * length)
            index = torch.minimum(index, 2 * length - 1 - index)
        x = x.index_select(dim, index.clamp(max=length - 1))
    return x


def to_multiple(size: int, step: int, least: int = 1) -> int:
    """Return the smallest multiple of `step` that reaches `size` and `least`."""
    return -(-max(size, least) // step) * step


def spandrel_network(name: str, **arguments: Any) -> nn.Module:
    """Build a network of the library spandrel.

    Args:
        name: Its architecture, such as SwinIR.
        **arguments: What the library's class takes.

    Raises:
        ImportError: The library is not installed; the message says how to.
    """
    try:
        module = import_module(f"spandrel.architectures.{name}")
    except ImportError as error:
        raise ImportError(f"{name} needs spandrel: pip install 'wsl-zoo[sr]'") from error
    network: nn.Module = getattr(module, name)(**arguments)
    return network


def pieces(count: int, size: int) -> list[tuple[int, int]]:
    """Split range(count) into runs (start, stop) of at most `size`."""
    return list(pairwise([*range(0, count, max(1, size)), count]))
