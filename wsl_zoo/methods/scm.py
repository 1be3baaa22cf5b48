"""SCM: TS-CAM trained through diffusion over similar and neighbouring patches.

Paper: Bai et al., "Weakly Supervised Object Localization via Transformer with Implicit Spatial
Calibration", ECCV 2022 (arXiv 2207.10447).
Loss: cross-entropy on s_k = mean_p conv3x3(S^L (1 + F^L))_k(p). Map: TS-CAM's.

In training, the patch tokens S (D, N) and the class token's attention F (N), both maps over the
N = h w patches, pass L diffusion blocks. Each solves for the equilibrium of a diffusion and adds
what stands out of it: X <- X + T(Q^-1 X), for X = S and X = F, with
    Q = L_grid * (lambda E - 1) elementwise, lambda learnt, E_ij = cos(S_i, S_j),
    Q^-1 by 5 Newton-Schulz steps R <- R (2 - Q R) from R = 0.002 Q^T,
    T(x) = sign(x) max(|x| - shrink max|x|, 0), the maximum over the patches of a map.
At inference the blocks are left out: forward is TS-CAM's.

Decisions: the grid's Laplacian is that of the 4 neighbours. lambda starts at 2, where equal patches
(E = 1) give Q = L_grid. The attention F^0 is TS-CAM's sum over blocks, in the graph; it enters the
loss as 1 + F, so that training and inference score patches of one scale. The threshold of T is
`shrink=0.5`. Cut off after 5 steps, R is not the inverse but f(s) = (1 - (1 - 0.002 s^2)^32) / s
of the singular values s of Q: below 0.17, and 0 for s = 0, so the singular Laplacian is no problem.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.encoders.attention import read_attention
from wsl_zoo.methods.tscam import TSCAM, token_attention
from wsl_zoo.precision import at_least_float32
from wsl_zoo.types import Batch, Output

NEWTON_STEPS = 5
NEWTON_START = 0.002
LAMBDA = 2.0


class SCM(TSCAM):
    """TS-CAM with a spatial calibration module in training.

    Args:
        blocks: Number L of diffusion blocks.
        shrink: Threshold of a diffused map relative to its maximum, in [0, 1].
        **kwargs: See `TSCAM`.

    Raises:
        ValueError: `blocks` or `shrink` is out of its range.
    """

    def __init__(self, blocks: int = 4, shrink: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if blocks < 1 or not 0 <= shrink <= 1:
            raise ValueError(
                f"blocks={blocks}, shrink={shrink}: at least one block, shrink within 0..1"
            )
        self.diffusion = nn.ModuleList(DiffusionBlock(shrink) for _ in range(blocks))

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K), in training of the calibrated patches, `map` and `final`."""
        if not self.training:
            return super().forward(batch)
        final, attention = read_attention(self.encoder, batch["image"], rows=1)
        focus = token_attention(attention, final)
        coupled = at_least_float32(self.head(final)).detach() * focus.detach()
        with torch.autocast(final.device.type, enabled=False):
            patches = at_least_float32(final)
            for block in self.diffusion:
                patches, focus = block(patches, focus)
        semantic = at_least_float32(self.head(patches * (1 + focus)))
        return Output(logits=semantic.mean(dim=(2, 3)), map=coupled, final=final)


class DiffusionBlock(nn.Module):
    """One diffusion of patch tokens and attention over the grid, weighted by similarity.

    Args:
        shrink: Threshold relative to the maximum of a map.
    """

    def __init__(self, shrink: float) -> None:
        super().__init__()
        self.shrink = shrink
        self.similarity = nn.Parameter(torch.full((1,), LAMBDA))

    def forward(self, patches: Tensor, focus: Tensor) -> tuple[Tensor, Tensor]:
        """Diffuse `patches (B, D, h, w)` and `focus (B, 1, h, w)`; sizes are kept."""
        unit = F.normalize(patches.flatten(2), dim=1)
        cosine = unit.transpose(1, 2) @ unit
        laplacian = grid_laplacian(patches.shape[-2], patches.shape[-1]).to(cosine)
        inverse = newton_schulz(laplacian * (self.similarity * cosine - 1))

        def diffuse(maps: Tensor) -> Tensor:
            spread = maps.flatten(2) @ inverse.transpose(1, 2)
            return maps + soft_shrink(spread, self.shrink).view_as(maps)

        return diffuse(patches), diffuse(focus)


def grid_laplacian(height: int, width: int) -> Tensor:
    """Degree minus adjacency of the 4-neighbour grid: `(h w, h w)` float32, raster order."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    adjacent = ((y[:, None] - y).abs() + (x[:, None] - x).abs() == 1).float()
    return torch.diag(adjacent.sum(dim=1)) - adjacent


def newton_schulz(matrix: Tensor, steps: int = NEWTON_STEPS, start: float = NEWTON_START) -> Tensor:
    """Approximate inverse of square matrices `(..., N, N)` by R <- R (2 - Q R), R = start Q^T.

    Converges for largest singular values below sqrt(2 / start), here 31.
    """
    inverse = start * matrix.transpose(-2, -1)
    for _ in range(steps):
        inverse = 2 * inverse - inverse @ matrix @ inverse
    return inverse


def soft_shrink(maps: Tensor, shrink: float) -> Tensor:
    """Move values of `(..., N)` towards 0 by `shrink` times the largest of their row."""
    size = maps.abs()
    return maps.sign() * (size - shrink * size.amax(dim=-1, keepdim=True)).relu()
