"""ACT: a transformer over 3x3 tokens beside a residual channel-attention network, fused in stages.

Paper: Yoo et al., "Enriched CNN-Transformer Feature Aggregation Networks for Super-Resolution",
WACV 2023 (arXiv 2203.07682).
Stage: tokens attend to one another; half of their channels is read again as overlapping 6x6 tokens,
and the two halves attend to each other; beside it, a residual group; 1x1 convolutions fuse both.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): 46,027,393 / 46,175,105 /
46,322,817 parameters at X2 / X4 / X8. What deviates, and what is not known of it:
- The published code drops the last h mod 3 rows and w mod 3 columns in the token branch, and the
  benchmark's sizes are no multiples of 3. Here the branch sees them, its map continued by its last
  row and column to a multiple of 3; `remainder="drop"` is the published way.
- The layers that are known have 36,928 parameters less: one convolution 3x3 of 64 channels. RCAN,
  whose groups these are, closes its body by such a one; here it closes the convolutional branch
  before the last fusion. `closing=False` leaves it out.
- Overlapping tokens are summed where they are put back on the map. Each skip starts at the input of
  what it skips. Projections to queries, keys and values have no biases, as the count says.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.networks.attention_blocks import (
    ChannelGate,
    ResidualBlock,
    Tail,
    extended,
    to_multiple,
)
from wsl_zoo.networks.base import SuperResolution
from wsl_zoo.networks.blocks import conv

TOKEN = 3  # side of a token, and step of all tokens
LARGE = 6  # side of the overlapping tokens


class ACT(SuperResolution):
    """Tokens have 9 D channels; D, heads and 9 D / heads must be whole and even where halved.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels D of the maps, even.
        depth: Stages.
        heads: Heads of attention among tokens, even; half as many between the halves.
        blocks: Channel-attention blocks of a stage.
        reduction: Of the channels, in these blocks' weights.
        fusions: Blocks that fuse a stage's branches.
        remainder: Rows and columns beyond a multiple of 3 are seen by the token branch or not.
        closing: A convolution ends the convolutional branch.

    Raises:
        ValueError: Sizes that do not divide as said, or another `remainder`.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        width: int = 64,
        depth: int = 4,
        heads: int = 8,
        blocks: int = 12,
        reduction: int = 16,
        fusions: int = 4,
        remainder: Literal["pad", "drop"] = "pad",
        closing: bool = True,
    ) -> None:
        super().__init__(scale, in_chans)
        dim = TOKEN**2 * width
        if width % 2 or heads < 2 or heads % 2 or dim % heads or depth < 1:
            raise ValueError(
                f"width={width} and heads={heads} must be even, 9 width a multiple of heads, and "
                f"depth={depth} positive"
            )
        if remainder not in ("pad", "drop"):
            raise ValueError(f"remainder={remainder!r} must be 'pad' or 'drop'")
        self.remainder = remainder
        self.first = nn.Sequential(
            conv(in_chans, width), ResidualBlock(width, kernel=5), ResidualBlock(width, kernel=5)
        )
        self.encode = nn.Linear(dim, dim)
        self.tokens = nn.ModuleList(_TokenStage(dim, heads) for _ in range(depth))
        self.groups = nn.ModuleList(_ResidualGroup(width, blocks, reduction) for _ in range(depth))
        if closing:
            self.groups[-1] = nn.Sequential(self.groups[-1], conv(width, width))
        self.fusions = nn.ModuleList(
            nn.Sequential(*(_FusionBlock(2 * width) for _ in range(fusions))) for _ in range(depth)
        )
        self.token_bridges = nn.ModuleList(_FeedForward(dim) for _ in range(depth - 1))
        self.map_bridges = nn.ModuleList(ResidualBlock(width) for _ in range(depth - 1))
        self.last = conv(2 * width, width)
        self.tail = Tail(width, scale, in_chans)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone.

        Raises:
            ValueError: Less than 6 rows or columns and `remainder="drop"`.
        """
        height, width = image.shape[-2:]
        size = (height, width)
        if self.remainder == "pad":
            size = (to_multiple(height, TOKEN, LARGE), to_multiple(width, TOKEN, LARGE))
        elif min(size) < LARGE:
            raise ValueError(f"an image of {height}x{width} is smaller than the 6x6 of a token")
        first = convolved = self.first(image)
        tokens = to_tokens(extended(first, *size, mirror=False), TOKEN)
        tokens = tokens + self.encode(tokens)
        both = first
        for i, (stage, group, fusion) in enumerate(
            zip(self.tokens, self.groups, self.fusions, strict=True)
        ):
            if i > 0:
                convolved, token_map = both.chunk(2, dim=1)
                convolved = self.map_bridges[i - 1](convolved)
                tokens = to_tokens(extended(token_map, *size, mirror=False), TOKEN)
                tokens = self.token_bridges[i - 1](tokens)
            tokens = stage(tokens, size)
            token_map = to_map(tokens, TOKEN, size)[:, :, :height, :width]
            both = torch.cat([group(convolved), token_map], dim=1)
            both = both + fusion(both)
        return [self.tail(first + self.last(both))]


def to_tokens(x: Tensor, side: int) -> Tensor:
    """Return the squares (B, N, C side^2) of a map (B, C, h, w), at every third row and column."""
    return F.unfold(x, side, stride=TOKEN).transpose(1, 2)


def to_map(tokens: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Return the map (B, C, h, w) that tokens (B, N, C side^2) sum up to; 0 where there is none."""
    return F.fold(tokens.transpose(1, 2), size, side, stride=TOKEN)


class _TokenStage(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        half, large = dim // 2, dim // 2 * (LARGE // TOKEN) ** 2
        self.attend = _Attention(dim, heads)
        self.feed = _FeedForward(dim)
        self.enter = nn.Sequential(
            nn.LayerNorm(large), nn.Linear(large, half), nn.GELU(), nn.Linear(half, half)
        )
        self.small_from_large = _Attention(half, heads // 2, cross=True)
        self.large_from_small = _Attention(half, heads // 2, cross=True)
        self.leave = nn.Sequential(
            nn.LayerNorm(half), nn.Linear(half, half), nn.GELU(), nn.Linear(half, large)
        )
        self.feed_both = _FeedForward(dim)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Return tokens (B, N, 9 D) of a map of `size`, shape unchanged."""
        tokens = self.feed(self.attend(tokens))
        small, large = tokens.chunk(2, dim=2)
        large = self.enter(to_tokens(to_map(large, TOKEN, size), LARGE))
        small, large = self.small_from_large(small, large), self.large_from_small(large, small)
        large = to_tokens(to_map(self.leave(large), LARGE, size), TOKEN)
        return self.feed_both(torch.cat([small, large], dim=2))


class _Attention(nn.Module):
    """Tokens plus what they read among themselves, or in others (`cross`), normalised before."""

    def __init__(self, dim: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.source_norm = nn.LayerNorm(dim) if cross else nn.Identity()
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, source: Tensor | None = None) -> Tensor:
        target = self.norm(tokens)
        read = self.source_norm(target if source is None else source)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(target), *self.key_value(read).chunk(2, dim=2))
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return tokens + self.out(attended.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.body(tokens)


class _ResidualGroup(nn.Module):
    def __init__(self, width: int, blocks: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(_ChannelAttentionBlock(width, reduction) for _ in range(blocks)), conv(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class _ChannelAttentionBlock(nn.Module):
    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), nn.ReLU(inplace=True), conv(width, width))
        self.gate = ChannelGate(width, reduction)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.body(x)
        return x + branch * self.gate(branch)


class _FusionBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(width, width, 1, bias=False),
            nn.ReLU(inplace=True),
            conv(width, width, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
