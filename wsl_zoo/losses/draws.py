"""Exact draws of pixels without replacement, for all images of a batch at once.

Every function returns `index (B, k')` int64 positions in raster order and `found (B, k')` bool with
k' <= k: an image whose region is smaller than k gives all of it, its found draws first. Nothing
waits for the device. Draws come from `generator`, on its device; without one from the global
generator of the tensors' device.
"""

import numpy as np
import torch
from torch import Tensor

from wsl_zoo.losses.regions import on_cpu

Draw = tuple[Tensor, Tensor]
FEW = 16
"""Up to so many draws are made one after the other, none with a pass over all pixels."""


def draw_uniform(
    region: Tensor, k: int, bound: int, generator: torch.Generator | None = None
) -> Draw:
    """Draw k pixels of each image's region, all equally likely.

    Args:
        region: `(B, N)` bool.
        k: Number of draws.
        bound: Largest number of pixels that a region can have.
        generator: Source of randomness.
    """
    members = region.cumsum(dim=1, dtype=torch.int32)
    rank, found = distinct_ranks(members[:, -1:], k, bound, generator)
    index = torch.searchsorted(members, (rank + 1).int())
    return index.clamp(max=region.shape[1] - 1), found  # what is not found may be beyond the end


def distinct_ranks(
    sizes: Tensor, k: int, bound: int, generator: torch.Generator | None = None
) -> Draw:
    """Draw k distinct ranks in [0, size) for each row of `sizes (B, 1)`, none above `bound`.

    Few: one after the other, each among those that are left; else the positions of the k highest of
    `bound` random keys.
    """
    k = min(k, bound)
    device = sizes.device
    if k > FEW:
        keys = random((len(sizes), bound), torch.int32, device, generator)
        keys.masked_fill_(torch.arange(bound, dtype=torch.int32, device=device) >= sizes, -1)
        key, rank = top(keys, k)
        return rank, key >= 0
    uniform = random((k, len(sizes), 1), torch.float64, device, generator)
    turns = torch.arange(k, device=device)
    drawn = uniform.new_empty((len(sizes), 0), dtype=torch.int64)
    for turn in range(k):
        rank = (uniform[turn] * (sizes - turn)).long()
        # The rank among those left, as a rank among all: past the drawn ones that are not above it.
        passed = drawn.sort(dim=1).values - turns[:turn] <= rank
        drawn = torch.cat([drawn, rank + passed.sum(dim=1, keepdim=True)], dim=1)
    return drawn, turns < sizes


def draw_weighted(weights: Tensor, k: int, generator: torch.Generator | None = None) -> Draw:
    """Draw k pixels of each image one after the other, each time in proportion to what is left.

    The law of `torch.multinomial(..., replacement=False)`: by inversion (row, then column) for few
    draws, else by an exponential race: the k smallest E / w with E of the unit exponential law.

    Args:
        weights: `(B, H, W)` float32, non-negative; zero is never drawn.
        k: Number of draws.
        generator: Source of randomness.
    """
    k = min(k, weights.shape[1] * weights.shape[2])
    if k <= FEW:
        return _invert(weights, k, generator)
    keys = random(weights.shape, torch.int32, weights.device, generator).float()
    # In (0, 1): 31 random bits, of which float32 keeps those that matter near 0, and never 1.
    keys.add_(0.5).mul_(-(2.0**-31) * (1 - 2.0**-24))
    key, index = top(keys.log1p_().div_(weights).flatten(1), k)
    return index, key > -torch.inf


def _invert(weights: Tensor, k: int, generator: torch.Generator | None) -> Draw:
    """Draw by inverting the cumulative weights of rows, then of columns."""
    batch, _, width = weights.shape
    image = torch.arange(batch, device=weights.device)
    uniform = random((k, 2, batch, 1), torch.float64, weights.device, generator)
    if k > 1:
        weights = weights.clone()
    rows = weights.sum(dim=2)
    drawn: list[Tensor] = []
    found: list[Tensor] = []
    for turn in range(k):
        row = pick(rows, uniform[turn, 0])
        found.append(rows.gather(1, row)[:, 0] > 0)
        line = weights[image, row[:, 0]]
        column = pick(line, uniform[turn, 1])
        drawn.append((row * width + column)[:, 0])
        if turn + 1 < k:
            line.scatter_(1, column, 0.0)
            weights[image, row[:, 0]] = line
            rows.scatter_(1, row, line.sum(dim=1, keepdim=True))
    if k == 0:
        return image.new_zeros(batch, 0), image.new_zeros(batch, 0).bool()
    return torch.stack(drawn, dim=1), torch.stack(found, dim=1)


def top(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest of each row of `keys (B, N)` and their positions, highest first."""
    if k == 0 or not on_cpu(keys):
        highest = keys.topk(k, dim=1)
        return highest.values, highest.indices
    # Several times as fast as `topk`.
    index = torch.from_numpy(np.argpartition(keys.numpy(), -k, axis=1)[:, -k:])
    values, order = keys.gather(1, index).sort(dim=1, descending=True)
    return values, index.gather(1, order)


def pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return `(B, 1)`: where the cumulative `weights (B, n)` pass the fraction `uniform (B, 1)`."""
    cumulative = weights.double().cumsum(dim=1)
    # uniform <= 1 - 2^-53, so that its product with the total is below the total.
    position = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return position.clamp(max=weights.shape[1] - 1)


def random(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw floats of [0, 1) or integers of [0, 2^31 - 1), on the generator's device, then move."""
    source = device if generator is None else generator.device
    if dtype.is_floating_point:
        drawn = torch.rand(shape, dtype=dtype, device=source, generator=generator)
    else:
        drawn = torch.randint(2**31 - 1, shape, dtype=dtype, device=source, generator=generator)
    return drawn.to(device)
