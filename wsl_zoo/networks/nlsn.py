"""NLSN: EDSR with attention among the pixels that hash alike.

Paper: Mei et al., "Image Super-Resolution with Non-Local Sparse Attention", CVPR 2021.
Layer: x + 0.1 sum_r p_r softmax(q k_r^T) v_r, where k_r are the pixels of the own and of the two
neighbouring chunks when all are sorted by the code of hash round r, p = softmax_r of the rounds'
log-sum-exp; code(u) = argmax [u R, -u R], R random; k = q / ||q||, no other scale.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): 41,786,945 / 44,147,265 /
46,507,585 parameters at X2 / X4 / X8, no normalisation of the image. What deviates:
- The published code draws R anew at every forward pass, in tests too. Here this is so in training;
  in evaluation R comes from a generator that starts anew at every call, so that a result can be
  had again and does not depend on what else is in the batch.
- With fewer pixels than a chunk holds (144) it makes no bucket and fails. Here there is one chunk
  of all pixels then: dense attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.networks.attention_blocks import NonLocalEDSR, pieces
from wsl_zoo.networks.blocks import conv
from wsl_zoo.precision import at_least_float32

KEY_EPS = 5e-5
MAX_BUCKETS = 128
CHUNKS = 256  # attended at once, over images and rounds: a bound of memory without gradients


class NLSN(NonLocalEDSR):
    """EDSR of 32 blocks and 256 channels with five layers of `SparseAttention`.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels.
        blocks: Residual blocks.
        every: An attention layer follows every so many of them; one more comes first.
        chunk: Pixels that attend together.
        rounds: Hash rounds.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        width: int = 256,
        blocks: int = 32,
        every: int = 8,
        chunk: int = 144,
        rounds: int = 4,
    ) -> None:
        def layer(i: int) -> nn.Module:
            return SparseAttention(width, chunk=chunk, rounds=rounds, seed=i)

        super().__init__(scale, in_chans, width, blocks, every, block_weight=0.1, layer=layer)


class SparseAttention(nn.Module):
    """Residual attention of every pixel to those that some hash rounds put near it.

    Args:
        width: Channels D.
        reduction: Queries and keys have D / reduction channels.
        chunk: Pixels that attend together.
        rounds: Hash rounds.
        weight: Of the attended values.
        seed: Of the rotations in evaluation.

    Raises:
        ValueError: No chunk or no round.
    """

    def __init__(
        self,
        width: int,
        reduction: int = 4,
        chunk: int = 144,
        rounds: int = 4,
        weight: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if chunk < 1 or rounds < 1:
            raise ValueError(f"chunk={chunk} and rounds={rounds} must be positive")
        self.match = conv(width, max(1, width // reduction))
        self.value = conv(width, width, 1)
        self.chunk = chunk
        self.rounds = rounds
        self.weight = weight
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, D, h, w)`, shape unchanged."""
        queries, values = (part(x).flatten(2).transpose(1, 2) for part in (self.match, self.value))
        keys = F.normalize(queries, dim=-1, eps=KEY_EPS)
        attended = attend_sorted(queries, keys, values, self.order(queries))
        return x + self.weight * attended.transpose(1, 2).reshape(x.shape)

    @torch.no_grad()
    def order(self, queries: Tensor) -> Tensor:
        """Return the pixels (B, R, n, chunk) of `(B, L, d)` by hash code, in n chunks.

        The last chunk is filled up with the last pixels once more.
        """
        _, length, dim = queries.shape
        device = queries.device
        chunk = min(self.chunk, length)
        full = length // chunk
        half = max(1, min(full + full % 2, MAX_BUCKETS) // 2)
        if self.training:
            rotation = torch.randn(self.rounds, dim, half, device=device)
        else:  # drawn on the CPU, to be the same on all devices
            generator = torch.Generator().manual_seed(self.seed)
            rotation = torch.randn(self.rounds, dim, half, generator=generator)
        with torch.autocast(device.type, enabled=False):
            queries = at_least_float32(queries)[:, None]
            rotated = queries @ rotation.to(queries)
        codes = torch.cat([rotated, -rotated], dim=-1).argmax(dim=-1)
        order = codes.argsort(dim=-1, stable=True)
        order = torch.cat([order, order[:, :, length - (-length % chunk) :]], dim=-1)
        return order.view(*order.shape[:2], -1, chunk)


def attend_sorted(queries: Tensor, keys: Tensor, values: Tensor, order: Tensor) -> Tensor:
    """Attention of each chunk to itself and its two neighbours in a circle, mean over rounds.

    Args:
        queries: `(B, L, d)`.
        keys: `(B, L, d)`.
        values: `(B, L, D)`.
        order: `(B, R, n, chunk)`, the L pixels in the order of each round, some of the last again.

    Returns:
        `(B, L, D)`: of the rounds' results, each weighted by its share of the sum over all rounds
        of exp(score).
    """
    batch, rounds, count, chunk = order.shape
    length = queries.shape[1]
    rows = order + length * torch.arange(batch, device=order.device)[:, None, None, None]
    queries, keys, values = (
        part.flatten(0, 1).index_select(0, rows.flatten()).view(*order.shape, -1)
        for part in (queries, keys, values)
    )
    near = torch.arange(count, device=order.device)[:, None] + order.new_tensor([-1, 0, 1])
    near = near % count
    results, masses = [], []
    for start, stop in pieces(count, CHUNKS // (batch * rounds)):
        near_keys, near_values = (
            part.index_select(2, near[start:stop].flatten()).view(
                batch, rounds, stop - start, 3 * chunk, -1
            )
            for part in (keys, values)
        )
        scores = at_least_float32(queries[:, :, start:stop] @ near_keys.transpose(-1, -2))
        masses.append(scores.logsumexp(dim=-1))
        results.append(scores.softmax(dim=-1).to(near_values.dtype) @ near_values)
    back = order.flatten(2)[:, :, :length].argsort(dim=-1)
    mass = torch.cat(masses, dim=2).flatten(2).gather(2, back)
    result = torch.cat(results, dim=2).flatten(2, 3)
    result = result.gather(2, back[..., None].expand(-1, -1, -1, result.shape[-1]))
    return (mass.softmax(dim=1)[..., None].to(result.dtype) * result).sum(dim=1)
