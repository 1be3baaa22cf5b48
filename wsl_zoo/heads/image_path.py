"""Decoder with a path of its own from the image: where features of a frozen classifier leak in.

Belharbi et al., "Deep Active Learning for Joint Classification & Segmentation with Weak Annotator",
WACV 2021, arXiv 2010.04889. With f_i the levels of the encoder, shallow to deep:

    o   = R(conv3(R(conv3(x))))                      at the size of the image
    g_i = R(conv3(f_i)), without padding             the leaks
    d_i = down(cat(resize(d_{i-1}), g_i)), d_{-1} = o
    u   = d_n; u <- R(conv3(cat(up2(u), d_i))) for the other d_i, deep to shallow
    Z   = conv1(R(conv3(cat(up2(u), o))))

R is the ReLU; down is twice ReLU(BN(conv3)) of stride 2, so that each d_i is a quarter as wide as
g_i; resize (wherever sizes differ) and up2 are bilinear with aligned corners. Convolutions have a
bias unless a batch norm follows.

The published code calls the leaks 1x1 convolutions; they are 3x3, and each side shrinks by two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsl_zoo.heads.decoder import CHANNELS_LAST, resize
from wsl_zoo.precision import at_least_float32

UP_CHANNELS = (256, 128, 128, 64)
"""Of the blocks upwards, deep to shallow, over the five levels of a ResNet."""


class ImagePathDecoder(nn.Module):
    """Logits of one foreground from the image and the levels of an encoder.

    Args:
        channels: Channels of each level, shallow to deep, two or more.
        width: Channels b: d_i has b 2^(i + 1) (paper: 24 on GlaS, 12 on CUB).
        leak_channels: Channels of every leak (paper: 64 on GlaS, 32 on CUB).
        image_channels: Channels of the image path.
        up_channels: Channels of the blocks upwards, deep to shallow, one per level but one; of
            fewer or more levels than five the deep end is cut or repeated by default.
        dropout: Rate of dropout on d_i (but the deepest) and on the blocks upwards; also in `drop`,
            which the encoder's levels are to pass through.
        in_chans: Channels of the image.

    Raises:
        ValueError: A number of channels that does not fit, or a rate out of [0, 1).
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int = 24,
        leak_channels: int = 64,
        image_channels: int = 64,
        up_channels: Sequence[int] | None = None,
        dropout: float = 0.0,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        steps = len(channels) - 1
        if up_channels is None:
            deeper = [UP_CHANNELS[0]] * max(0, steps - 4)
            up_channels = [*deeper, *UP_CHANNELS[max(0, 4 - steps) :]]
        if steps < 1 or len(up_channels) != steps:
            raise ValueError(
                f"up_channels={list(up_channels)}: {len(channels)} levels take {max(steps, 1)}, "
                "and two levels are the least"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must lie in [0, 1)")
        if min(width, leak_channels, image_channels, *up_channels) < 1:
            raise ValueError(
                f"width={width}, leak_channels={leak_channels}, image_channels={image_channels}, "
                f"up_channels={list(up_channels)}: all must be positive"
            )
        self.image_path = nn.Sequential(
            *_conv(in_chans, image_channels), *_conv(image_channels, image_channels)
        )
        self.leaks = nn.ModuleList(
            nn.Sequential(*_conv(c, leak_channels, padding=0)) for c in channels
        )
        downs = [width * 2 ** (i + 1) for i in range(len(channels))]
        before = [image_channels, *downs[:-1]]
        self.downs = nn.ModuleList(
            _down(c + leak_channels, out) for c, out in zip(before, downs, strict=True)
        )
        below = [downs[-1], *up_channels[:-1]]
        self.ups = nn.ModuleList(
            nn.Sequential(*_conv(c + skip, out))
            for c, skip, out in zip(below, downs[-2::-1], up_channels, strict=True)
        )
        self.last = nn.Sequential(
            *_conv(up_channels[-1] + image_channels, image_channels),
            nn.Conv2d(image_channels, 1, kernel_size=1),
        )
        self.drop = nn.Dropout(dropout)
        """One module, so that who wants stochastic passes turns it on alone."""
        self.to(memory_format=CHANNELS_LAST)

    def forward(self, image: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """Logits (B, 1, H, W), at least float32.

        Args:
            image: (B, C, H, W), normalised.
            levels: Maps (B, channels[i], h_i, w_i), shallow to deep, of at least 3x3.

        Raises:
            ValueError: Another number of levels, or one smaller than 3x3.
        """
        if len(levels) != len(self.leaks) or min(s for m in levels for s in m.shape[-2:]) < 3:
            sizes = [tuple(level.shape[-2:]) for level in levels]
            raise ValueError(
                f"levels of {sizes}: the decoder needs {len(self.leaks)} of at least 3x3 (larger "
                "images, or a smaller stride)"
            )
        path = self.image_path(image)
        x, downs = path, []
        for i, (level, leak, down) in enumerate(zip(levels, self.leaks, self.downs, strict=True)):
            leaked = leak(level)
            x = down(torch.cat([resize(x, _size(leaked)), leaked], dim=1))
            if i < len(self.downs) - 1:
                x = self.drop(x)
            downs.append(x)
        downs.pop()
        for up in self.ups:
            skip = downs.pop()
            x = self.drop(up(torch.cat([resize(_up2(x), _size(skip)), skip], dim=1)))
        x = self.last(torch.cat([resize(_up2(x), _size(path)), path], dim=1))
        return at_least_float32(x)


def _conv(in_channels: int, out_channels: int, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=padding), nn.ReLU()]


def _down(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for c in (in_channels, out_channels):
        conv = nn.Conv2d(c, out_channels, kernel_size=3, stride=2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)


def _up2(x: Tensor) -> Tensor:
    return resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
