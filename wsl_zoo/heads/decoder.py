"""U-Net decoder: from the levels of an encoder to logits at the size of the image.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
arXiv 1505.04597, in the form of Belharbi et al., "F-CAM: Full Resolution Class Activation Maps via
Guided Parametric Upscaling", WACV 2022, arXiv 2109.07069. Per block, with s the next level:
x <- up2(x); x <- resize(x, size(s)); x <- CBR(CBR(cat(x, s))), CBR = ReLU(BN(conv3x3)); then
Z = conv3x3(x), resized to the image. up2 repeats pixels; `resize` is bilinear with aligned corners,
also of Z.

A level of stride 1 is not used: the last block has no level.

Encoders whose late strides are 1 (28, 28, 28 in a ResNet-50 of stride 8) have blocks whose level is
as large as x. There up2 and the resize back cancel, and are left out: row k of h reads the
doubled map at k (2h - 1) / (h - 1) = 2k + k / (h - 1), between rows 2k and 2k + 1, which are both
row k of x. (Doing both costs a ResNet-50's decoder as much again, forward on a CPU.)

For other encoders than the paper's: one block per level but the deepest, then one without a level
per factor 2 that is left up to the image (one for a first level of stride 2, two for ConvNeXt and
Swin, stride 4). Four levels of one stride s, as a ViT gives, become a pyramid first.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.heads.pooling import xavier
from wsl_zoo.precision import at_least_float32

# Widths of the blocks, deep to shallow, of F-CAM; further blocks have the last width.
WIDTHS = (256, 128, 64, 32, 16)
# A third less time per step than with channels first, in float32 and in bfloat16 on a CPU.
CHANNELS_LAST = torch.channels_last


class UNetDecoder(nn.Module):
    """U-Net decoder over the levels of an encoder.

    Kaiming-uniform convolutions (fan-in, ReLU) and a Xavier-uniform segmentation head with zero
    bias. Trainable parameters on the encoders of F-CAM: 9,013,218 (ResNet-50), 5,704,674
    (InceptionV3), 23,120,770 (VGG16).

    Args:
        channels: Channels of each level, shallow to deep: `encoder.channels`.
        strides: Stride of each level, not decreasing: `encoder.strides`.
        decoder_channels: Channels of each block, deep to shallow; None: 256, 128, 64, 32, 16 as far
            as there are blocks, and 16 for further ones.
        center: Put two convolutions of its own width on the deepest level; None: if there is a
            level of stride 1, which only VGG has (F-CAM).
        out_channels: Channels of the logits; 2 are background and foreground.

    Attributes:
        blocks: The blocks, deep to shallow.
        head: The segmentation head, a 3x3 convolution with bias.

    Raises:
        ValueError: Channels, strides or decoder channels that do not go together.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        decoder_channels: Sequence[int] | None = None,
        center: bool | None = None,
        out_channels: int = 2,
    ) -> None:
        super().__init__()
        _check_levels(channels, strides)
        if out_channels < 1:
            raise ValueError(f"out_channels must be positive, got {out_channels}.")
        self.channels = list(channels)
        self.strides = list(strides)
        self._dropped = sum(stride == 1 for stride in strides)
        kept, finest = list(channels)[self._dropped :], float(strides[self._dropped])
        self.pyramid: Pyramid | None = None
        if len(kept) == 4 and len(set(strides)) == 1:
            self.pyramid = Pyramid(kept)
            kept, finest = self.pyramid.channels, finest / 4
        skips = [*reversed(kept[:-1]), *[0] * max(0, math.ceil(math.log2(finest)))]
        widths = _widths(len(skips), decoder_channels)
        wanted = self._dropped > 0 if center is None else center
        self.center: nn.Module = conv_pair(kept[-1], kept[-1]) if wanted else nn.Identity()
        inputs = [kept[-1], *widths[:-1]]
        self.blocks = nn.ModuleList(
            DecoderBlock(*sizes) for sizes in zip(inputs, skips, widths, strict=True)
        )
        self.head = xavier(nn.Conv2d(widths[-1], out_channels, kernel_size=3, padding=1))
        self.to(memory_format=CHANNELS_LAST)

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits at the size of the image.

        Args:
            levels: Maps `(B, channels[i], h_i, w_i)`, shallow to deep, as an encoder gives them;
                their actual sizes count, not the nominal strides.
            size: Height H and width W of the image, in pixels.

        Returns:
            Logits `(B, out_channels, H, W)`, at least float32.

        Raises:
            ValueError: If there are not as many levels as strides, or one has other channels.
        """
        given = [level.shape[1] for level in levels]
        if given != self.channels:
            raise ValueError(
                f"the decoder was built for levels of {self.channels} channels, got {given}."
            )
        maps = [level.contiguous(memory_format=CHANNELS_LAST) for level in levels[self._dropped :]]
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        x = self.center(maps.pop())
        for block in self.blocks:
            x = block(x, maps.pop() if maps else None)
        return resize(at_least_float32(self.head(x)), size)


class DecoderBlock(nn.Module):
    """Double a map, put a level beside it, convolve twice.

    Args:
        in_channels: Channels of the map.
        skip_channels: Channels of the level; 0: none.
        out_channels: Channels of the result.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convs = conv_pair(in_channels + skip_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """`x (B, C, h, w)`, `skip (B, C', h', w')` -> `(B, C'', h', w')`; `2h, 2w` without skip."""
        if skip is None or skip.shape[-2:] != x.shape[-2:]:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if skip is not None:
            x = torch.cat([resize(x, (skip.shape[-2], skip.shape[-1])), skip], dim=1)
        out: Tensor = self.convs(x)
        return out


class Pyramid(nn.Module):
    """Four levels of one stride s as levels of strides s/4, s/2, s and 2s.

    Transposed 2x2 convolutions, each of which halves the channels and is followed by BN and ReLU,
    and a 2x2 max-pool: the simple pyramid of Li et al., "Exploring Plain Vision Transformer
    Backbones for Object Detection", ECCV 2022, arXiv 2203.16527. Here each map of the pyramid
    comes from a level of its own, shallow to deep, and the norm is the one of the decoder.

    Args:
        channels: Channels of the four levels.

    Attributes:
        channels: Channels of the pyramid: C_0 // 4, C_1 // 2, C_2, C_3.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        c = channels
        self.channels = [c[0] // 4, c[1] // 2, c[2], c[3]]
        self.finest = nn.Sequential(*_doubling(c[0], c[0] // 2), *_doubling(c[0] // 2, c[0] // 4))
        self.finer = nn.Sequential(*_doubling(c[1], c[1] // 2))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Four maps `(B, C_i, h, w)` -> maps of sizes 4h, 2h, h and h / 2, rounded up."""
        first, second, third, last = levels
        pooled = F.max_pool2d(last, kernel_size=2, ceil_mode=True)
        return [self.finest(first), self.finer(second), third, pooled]


def conv_pair(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two times 3x3 convolution without bias, BN, ReLU: `(B, C, h, w) -> (B, C', h, w)`."""
    layers: list[nn.Module] = []
    for c in (in_channels, out_channels):
        conv = nn.Conv2d(c, out_channels, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_uniform_(conv.weight, mode="fan_in", nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners; `(B, C, h, w) -> (B, C, *size)`, untouched at that size."""
    if (x.shape[-2], x.shape[-1]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def _doubling(in_channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2, bias=False)
    bound = math.sqrt(6 / in_channels)  # Kaiming: each output reads one position
    nn.init.uniform_(conv.weight, -bound, bound)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def _check_levels(channels: Sequence[int], strides: Sequence[int]) -> None:
    if len(channels) != len(strides) or not channels:
        raise ValueError(
            f"a decoder needs one stride per level, got channels {list(channels)} and strides "
            f"{list(strides)}."
        )
    if min(channels) < 1 or min(strides) < 1 or list(strides) != sorted(strides):
        raise ValueError(
            f"channels and strides must be positive and strides in order, shallow to deep; got "
            f"{list(channels)} and {list(strides)}."
        )
    if strides[-1] == 1:
        raise ValueError(f"all levels have stride 1, which a decoder does not use: {strides}.")


def _widths(count: int, given: Sequence[int] | None) -> list[int]:
    if given is None:
        return [WIDTHS[min(i, len(WIDTHS) - 1)] for i in range(count)]
    if len(given) != count or min(given) < 1:
        raise ValueError(
            f"decoder_channels must be {count} positive numbers, one per block, got {list(given)}."
        )
    return list(given)
