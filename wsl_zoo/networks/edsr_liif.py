"""EDSR-LIIF: an MLP that answers, from the nearest features, what the image is at a point.

Paper: Chen et al., "Learning Continuous Image Representation with Local Implicit Image Function",
CVPR 2021 (arXiv 2012.09161); encoder of Lim et al., "Enhanced Deep Residual Networks for Single
Image Super-Resolution", CVPR Workshops 2017 (arXiv 1707.02921).
Network: y(q) = sum_v a_opp(v) MLP([F(c_v), (q - c_v) (h, w), 2 / s]) / sum_v a_v over the four
nearest feature centres c_v, a_v = |area between q and c_v| + 1e-9, opp(v) diagonally opposite.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): 1,565,633 parameters at every
scale. All pixel centres of the fixed scale are queried, images are in [0, 1] (the paper: scales
drawn from U(1, 4), 2,304 query pixels, images in [-1, 1]).

The MLP's first layer is linear in the features of 3x3 neighbours, so that it acts on them before
they are looked up, as a convolution at low resolution: the same numbers for a fraction of the
work and memory. As the scale is a whole number, which centre is nearest is integer arithmetic here;
the published look-up by `grid_sample`, moved by 1e-6 from ties, gives the same centres.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.networks.attention_blocks import ResidualBlock, pieces
from wsl_zoo.networks.base import SuperResolution
from wsl_zoo.networks.blocks import conv

AREA_EPS = 1e-9
QUERIES = 2**16  # answered at once, a bound of memory without gradients


class EDSRLIIF(SuperResolution):
    """EDSR without its upsampling, then `LocalImplicitImage`.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels of the features.
        blocks: Residual blocks.
        hidden: Widths of the MLP's hidden layers.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        width: int = 64,
        blocks: int = 16,
        hidden: Sequence[int] = (256, 256, 256, 256),
    ) -> None:
        super().__init__(scale, in_chans)
        self.first = conv(in_chans, width)
        self.body = nn.Sequential(
            *(ResidualBlock(width) for _ in range(blocks)), conv(width, width)
        )
        self.decoder = LocalImplicitImage(width, in_chans, hidden)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone."""
        features = self.first(image)
        return [self.decoder(features + self.body(features), self.scale)]


class LocalImplicitImage(nn.Module):
    """The image at all pixel centres of a whole-numbered scale, from features.

    Args:
        width: Channels D of the features.
        out_channels: Channels C of the image.
        hidden: Widths of the MLP's hidden layers, one at least.

    Raises:
        ValueError: No hidden layer.
    """

    def __init__(
        self, width: int, out_channels: int, hidden: Sequence[int] = (256, 256, 256, 256)
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("hidden=(): the MLP needs a hidden layer")
        # Columns: nine neighbours of each channel, two of the offset, two of a pixel's size.
        self.enter = nn.Linear(9 * width + 4, hidden[0])
        layers: list[nn.Module] = []
        for before, after in zip(hidden, [*hidden[1:], out_channels], strict=True):
            layers += [nn.ReLU(), nn.Linear(before, after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor, scale: int) -> Tensor:
        """Return (B, C, s h, s w) of features (B, D, h, w)."""
        batch, _, height, width = features.shape
        seen, offset, size = torch.split(
            self.enter.weight, [self.enter.in_features - 4, 2, 2], dim=1
        )
        constant = self.enter.bias + size.sum(dim=1) * (2 / scale)
        known = F.conv2d(features, seen.reshape(len(seen), -1, 3, 3), constant, padding=1)
        known = known.permute(0, 2, 3, 1).contiguous()
        rows = nearest(height, scale, features.device)
        columns = nearest(width, scale, features.device)
        bands = [
            self._answer(known, offset, [(i[start:stop], d[start:stop]) for i, d in rows], columns)
            for start, stop in pieces(scale * height, QUERIES // (batch * scale * width))
        ]
        return torch.cat(bands, dim=1).permute(0, 3, 1, 2)

    def _answer(
        self,
        known: Tensor,
        offset: Tensor,
        rows: list[tuple[Tensor, Tensor]],
        columns: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Return some rows of the image, (B, rows, columns, C)."""
        weights = corner_weights([d for _, d in rows], [d for _, d in columns])
        corners = [(row, column) for row in rows for column in columns]
        total = known.new_zeros(())
        for weight, ((i, dy), (j, dx)) in zip(weights, corners, strict=True):
            there = known.index_select(1, i).index_select(2, j)
            moved = dy[:, None, None] * offset[:, 0] + dx[:, None] * offset[:, 1]
            total = total + weight[:, :, None] * self.layers(there + moved)
        return total


def nearest(size: int, scale: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Return, for the centres along one axis, the feature centres before and behind.

    Each as index `(s n,)` and as offset to it, in units of half a feature's side. At the ends both
    are the last one.
    """
    pixel = torch.arange(scale * size, device=device)
    result = []
    for side in (-1, 1):
        index = torch.div(2 * pixel + 1 + side * scale, 2 * scale, rounding_mode="floor")
        index = index.clamp(0, size - 1)
        result.append((index, (2 * pixel + 1) / scale - (2 * index + 1)))
    return result


def corner_weights(dy: list[Tensor], dx: list[Tensor]) -> Tensor:
    """Return the corners' weights (4, rows, columns), rows before columns; they sum to one.

    Args:
        dy: Offsets `(rows,)` to the centre before and to the one behind.
        dx: Likewise `(columns,)`.
    """
    areas = torch.stack([(y[:, None] * x).abs() + AREA_EPS for y in dy for x in dx])
    return areas.flip(0) / areas.sum(dim=0)
