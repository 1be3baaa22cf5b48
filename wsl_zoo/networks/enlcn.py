"""ENLCN: EDSR with non-local attention in linear time, by random features of the kernel exp(q.k).

Paper: Xia et al., "Efficient Non-Local Contrastive Attention for Image Super-Resolution", AAAI 2022
(arXiv 2201.03794).
Layer: x + 0.1 phi(q_i)^T (sum_j phi(k_j) v_j^T) / (phi(q_i)^T sum_j phi(k_j)), where
phi(u) = m^{-1/2} (exp(W u - ||u||^2 / 2) + 1e-4), W (m, d) random and fixed, ||q||^2 = ||k||^2 = 6.

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): 41,213,825 / 43,574,145 /
45,934,465 parameters at X2 / X4 / X8, no normalisation of the image. The paper's contrastive loss
is not here: the benchmark computes it, in a matrix of all pairs of pixels, and throws it away.
W is made of orthogonal matrices that are uniform on the group (signs of QR settled), without which
the estimate of exp(q.k) is biased.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.networks.attention_blocks import NonLocalEDSR
from wsl_zoo.networks.blocks import conv
from wsl_zoo.precision import at_least_float32

FEATURE_EPS = 1e-4
NORM_EPS = 5e-5  # of queries and keys; the benchmark does not say, NLSN's is taken


class ENLCN(NonLocalEDSR):
    """EDSR of 32 blocks and 256 channels with five layers of `EfficientAttention`.

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels.
        blocks: Residual blocks.
        every: An attention layer follows every so many of them; one more comes first.
        features: Random features m.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        width: int = 256,
        blocks: int = 32,
        every: int = 8,
        features: int = 128,
    ) -> None:
        def layer(i: int) -> nn.Module:
            return EfficientAttention(width, features=features)

        super().__init__(scale, in_chans, width, blocks, every, block_weight=0.1, layer=layer)


class EfficientAttention(nn.Module):
    """Residual attention of all pixels to all, softmax kernel estimated by random features.

    Args:
        width: Channels D.
        reduction: Queries and keys have D / reduction channels.
        features: Random features m. Their directions are a buffer, kept in checkpoints.
        sharpness: ||q||^2 and ||k||^2; exp(q.k) spans exp(-sharpness) to exp(sharpness).
        weight: Of the attended values.
    """

    projection: Tensor

    def __init__(
        self,
        width: int,
        reduction: int = 4,
        features: int = 128,
        sharpness: float = 6.0,
        weight: float = 0.1,
    ) -> None:
        super().__init__()
        inner = max(1, width // reduction)
        self.query = conv(width, inner, 1)
        self.key = conv(width, inner, 1)
        self.value = conv(width, width, 1)
        self.sharpness = sharpness
        self.weight = weight
        projection = orthogonal_gaussian(features, inner).to(self.query.weight.device)
        self.register_buffer("projection", projection)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, D, h, w)`, shape unchanged. Features are at least float32."""
        queries, keys, values = (
            part(x).flatten(2).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        with torch.autocast(x.device.type, enabled=False):
            queries, keys = (
                random_features(self.sharpness**0.5 * unit(part), self.projection)
                for part in (queries, keys)
            )
            attended = attend_linear(queries, keys, values.to(keys.dtype))
        return x + self.weight * attended.transpose(1, 2).reshape(x.shape).to(x.dtype)


def unit(vectors: Tensor) -> Tensor:
    """Return vectors (..., d) of length one, at least float32."""
    return F.normalize(at_least_float32(vectors), dim=-1, eps=NORM_EPS)


def attend_linear(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return sum_j (q_i.k_j) v_j / sum_j q_i.k_j, (B, L, D), without the matrix q.k.

    Args:
        queries: Positive, `(B, L, m)`.
        keys: Positive, `(B, L, m)`.
        values: `(B, L, D)`.
    """
    total = queries @ keys.sum(dim=1)[:, :, None]
    attended: Tensor = queries @ (keys.transpose(1, 2) @ values) / total
    return attended


def random_features(vectors: Tensor, projection: Tensor, eps: float = FEATURE_EPS) -> Tensor:
    """Return positive features phi(u) (..., m) with E[phi(u).phi(v)] = exp(u.v) up to `eps`.

    Args:
        vectors: u, `(..., d)`.
        projection: W, `(m, d)`; every row is distributed as N(0, I).
        eps: Added to each exponential.
    """
    half_norm = vectors.square().sum(dim=-1, keepdim=True) / 2
    grown = (vectors @ projection.to(vectors.dtype).T - half_norm).exp()
    return (grown + eps) * len(projection) ** -0.5


def orthogonal_gaussian(rows: int, dim: int) -> Tensor:
    """Return W (rows, dim), rows from N(0, I), those of each block of `dim` orthogonal.

    Drawn on the CPU: a seed gives the same on all devices.
    """
    blocks = torch.randn(-(-rows // dim), dim, dim, device="cpu")
    q, r = torch.linalg.qr(blocks)
    directions = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    lengths = torch.randn(rows, dim, device="cpu").norm(dim=1, keepdim=True)
    return directions.flatten(0, 1)[:rows] * lengths
