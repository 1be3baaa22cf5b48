"""MS-LapSRN: a Laplacian pyramid; each level doubles the image and adds the detail it guesses.

Paper: Lai et al., "Fast and Accurate Image Super-Resolution with Deep Laplacian Pyramid Networks",
TPAMI 2019 (arXiv 1710.01992); LapSRN is of CVPR 2017 (arXiv 1704.03915).
Network: v_l = D(body(v_{l-1})), y_l = D1(y_{l-1}) + C(v_l), y_0 = x, l = 1..log2 s.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168), a plain LapSRN: every level has
its own ten convolutions, without recursion or local skips, and the image's transposed convolution
D1 starts at random, which likely explains published results below bicubic. 436,114 / 871,588 /
1,307,062 parameters at X2 / X4 / X8.
The benchmark does not state its initialisation: here it is torch's.

`variant="original"` follows MS-LapSRN as the paper describes it (D5R8): one level's weights serve
all, its body is 8 runs of a block of 5 pre-activated convolutions, each added to the level's input,
and D1 starts as bilinear interpolation; 251,474 parameters at any scale. The paper trains one
network for several scales at once, here it has one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wsl_zoo.networks.base import SuperResolution
from wsl_zoo.networks.blocks import conv

Variant = Literal["benchmark", "original"]

DEPTHS: dict[Variant, int] = {"benchmark": 10, "original": 5}
SLOPE = 0.2  # of the leaky ReLU


class MSLapSRN(SuperResolution):
    """Each channel of the image is enlarged by a kernel of its own.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        variant: See above.
        width: Channels of all maps inside.
        depth: Convolutions of a level, or of its recursive block. None: the variant's 10 or 5.
        recursions: Runs of the block ("original" alone).

    Raises:
        ValueError: Another variant, or no convolution or no run.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        variant: Variant = "benchmark",
        width: int = 64,
        depth: int | None = None,
        recursions: int = 8,
    ) -> None:
        super().__init__(scale, in_chans)
        if variant not in DEPTHS:
            raise ValueError(f"variant={variant!r}: there are {', '.join(DEPTHS)}")
        depth = DEPTHS[variant] if depth is None else depth
        if min(depth, recursions) < 1:
            raise ValueError(f"{depth=} and {recursions=} must be positive")
        self.num_levels = scale.bit_length() - 1
        if variant == "benchmark":
            self.first = nn.Sequential(conv(in_chans, width), _leaky())
            self.levels = nn.ModuleList(
                _Level(in_chans, width, _plain(width, depth)) for _ in range(self.num_levels)
            )
        else:
            self.first = nn.Sequential(conv(in_chans, width))
            body = nn.Sequential(_Recursion(width, depth, recursions), _leaky(), _double(width))
            shared = _Level(in_chans, width, body)
            _init_bilinear(shared.enlarge)
            self.levels = nn.ModuleList([shared])

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return (B, C, 2^l h, 2^l w) for l = 1..log2 s."""
        features, results = self.first(image), []
        for number in range(self.num_levels):
            level = self.levels[number % len(self.levels)]
            features, image = level(features, image)
            results.append(image)
        return results


class _Level(nn.Module):
    def __init__(self, in_chans: int, width: int, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.last = conv(width, in_chans)
        self.enlarge = nn.ConvTranspose2d(in_chans, in_chans, 4, 2, 1, groups=in_chans)

    def forward(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, D, 2h, 2w) and the image (B, C, 2h, 2w)."""
        features = self.body(features)
        return features, self.enlarge(image) + self.last(features)


class _Recursion(nn.Module):
    def __init__(self, width: int, depth: int, recursions: int) -> None:
        super().__init__()
        self.recursions = recursions
        layers = (nn.Sequential(_leaky(), conv(width, width)) for _ in range(depth))
        self.block = nn.Sequential(*layers)

    def forward(self, source: Tensor) -> Tensor:
        x = source
        for _ in range(self.recursions):
            x = source + self.block(x)
        return x


def _plain(width: int, depth: int) -> nn.Sequential:
    layers = (nn.Sequential(conv(width, width), _leaky()) for _ in range(depth))
    return nn.Sequential(*layers, _double(width), _leaky())


def _double(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)


def _leaky() -> nn.LeakyReLU:
    return nn.LeakyReLU(SLOPE)


def _init_bilinear(conv: nn.ConvTranspose2d) -> None:
    """Make a doubling 4x4 kernel per channel interpolate bilinearly, apart from the border."""
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        conv.weight.copy_(torch.outer(taps, taps).to(conv.weight))
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
