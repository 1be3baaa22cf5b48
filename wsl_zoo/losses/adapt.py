"""Losses of source-free adaptation: contrast to anchors, domain discrepancy, suppressed classes.

`anchor_contrast`: CDCL (IEEE TMM 2022, arXiv 2106.05528). `contrastive_domain_discrepancy`:
SFDA-DE (CVPR 2022). `suppression_loss`: SFDA-DeP (arXiv 2603.12468). With f target features, w_k
the classifier's rows (anchors), p predictions and c the label that a refresh stored:
-ln softmax_k(cos(f, w_k) / tau)_c;  (1/K) sum_c mmd_cc - 1/(K (K - 1)) sum_{c != k} mmd_ck;
-ln(1 - p_c). SHOT's terms are `F.cross_entropy(..., label_smoothing=)`, `negative_entropy` and
`marginal_entropy`.

Deviations from the published code: the bandwidth of mmd_ck looks at the pairs of S_c with T_k
(there S_c with T_c); the suppression has no dead zone (there -ln(1 - p_c + 1e-6), whose gradient
fades beyond a margin of ln 1e6 = 14: the most biased images would stay as they are).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.precision import to_float

NORM_EPSILON = 1e-6
"""Features of no greater norm have no direction: cosine 0, gradient 0. Ours."""

KERNELS = (0.25, 0.5, 1.0, 2.0, 4.0)  # bandwidths, in mean squared distances; published code
MIN_BANDWIDTH = 1e-5  # published code
EXPONENTS = (1e-5, 1e5)  # the range to which d / bandwidth is clamped; published code


def anchor_contrast(
    features: Tensor, anchors: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """Return InfoNCE of every feature with its class's anchor against all anchors.

    Args:
        features: `(B, D)`.
        anchors: `(K, D)`, the classifier's rows; they get no gradient.
        target: `(B,)` int64, classes.
        temperature: tau, positive. Histology: 0.04 (defaults 0.05, some scripts 0.5).

    Returns:
        `(B,)`, at least float32: sum it as published, whose weight of 1e-3 then depends on B.
        Orthogonal to its feature is each gradient; a zero feature gets ln K and no gradient.

    Raises:
        ValueError: A temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
    with torch.autocast(features.device.type, enabled=False):
        features, anchors = to_float(features), to_float(anchors.detach())
        cosine = _direction(features) @ _direction(anchors).T
        return F.cross_entropy(cosine / temperature, target, reduction="none")


def _direction(rows: Tensor) -> Tensor:
    """Divide rows `(N, D)` by their norms; 0, with gradient 0, where there is none."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norm > NORM_EPSILON, rows / norm.clamp_min(NORM_EPSILON), 0.0)


def contrastive_domain_discrepancy(
    source: Sequence[Tensor], target: Sequence[Tensor], compat_cross_block: bool = False
) -> Tensor:
    """Return CDD of blocks S_c, T_k: small within a class, large between classes.

    mmd_ck = mean k(S_c, S_c) + mean k(T_k, T_k) - 2 mean k(S_c, T_k) over all pairs, those of a
    sample with itself included. k(u, v) = sum over layers and m in `KERNELS` of
    exp(-|u - v|^2 / (m g_ck)), where g_ck, without gradient, is the sum of |u - v|^2 over ordered
    pairs of the union of S_c and T_k by their number: per layer, the same in all three means.

    Args:
        source: Layers `(..., K, n_S, D_l)`, n_S samples of each class; they get no gradient.
        target: Layers `(..., K, n_T, D_l)`. Leading dimensions are independent groups.
        compat_cross_block: The published g_ck, which takes the pairs of S_c with T_c for S_c, T_k.

    Returns:
        `(...)`, at least float32, within [-10, 10] per layer; K = 1 has no second term. A layer
        needs memory for K^2 n_S n_T D_l numbers per group.

    Raises:
        ValueError: Not equally many layers, or none.
    """
    if not source:
        raise ValueError("no layer is given")
    return torch.stack(
        [
            _layer_discrepancy(to_float(s.detach()), to_float(t), compat_cross_block)
            for s, t in zip(source, target, strict=True)
        ]
    ).sum(dim=0)


def _layer_discrepancy(source: Tensor, target: Tensor, compat_cross_block: bool) -> Tensor:
    classes = source.shape[-3]
    within_source = _squared_distances(source, source)[..., :, None, :, :]  # (..., K, 1, n_S, n_S)
    within_target = _squared_distances(target, target)[..., None, :, :, :]  # (..., 1, K, n_T, n_T)
    across = _squared_distances(source[..., :, None, :, :], target[..., None, :, :, :])
    with torch.no_grad():
        pairs = across.sum(dim=(-2, -1))  # (..., K, K)
        if compat_cross_block:
            pairs = pairs.diagonal(dim1=-2, dim2=-1)[..., :, None]
        total = within_source.sum((-2, -1)) + within_target.sum((-2, -1)) + 2 * pairs
        union = source.shape[-2] + target.shape[-2]
        mean_distance = total / (union * (union - 1))  # (..., K, K)

    def mean_kernel(distances: Tensor) -> Tensor:
        kernels = [
            torch.exp(-(distances / bandwidth[..., None, None]).clamp(*EXPONENTS))
            for bandwidth in ((mean_distance * m).clamp_min(MIN_BANDWIDTH) for m in KERNELS)
        ]
        return torch.stack(kernels).sum(dim=0).mean(dim=(-2, -1))

    mmd = mean_kernel(within_source) + mean_kernel(within_target) - 2 * mean_kernel(across)
    intra = mmd.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    inter = mmd.sum(dim=(-2, -1)) - intra
    return intra / classes - inter / max(1, classes * (classes - 1))


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Return `(..., n, m)` of `(..., n, D)` and `(..., m, D)`; differences, so that 0 is exact."""
    return (first[..., :, None, :] - second[..., None, :, :]).square().sum(dim=-1)


def suppression_loss(
    logits: Tensor,
    label: Tensor,
    second: Tensor | None = None,
    variant: Literal["suppress", "flip", "ascent"] = "suppress",
) -> Tensor:
    """Return a loss that lowers the confidence of every image in the class it was given.

    "suppress": -ln(1 - p_c) = logsumexp(z) - logsumexp(z_{j != c}), computed as the softplus of
    z_c - logsumexp(z_{j != c}); its gradient is p_c in z_c and -p_j p_c / (1 - p_c) in the others.
    "flip": -ln p of the second choice, the same for K = 2. "ascent": +ln p_c, unbounded below.

    Args:
        logits: `(B, K)`, K at least 2.
        label: `(B,)` int64, the class c to suppress: the prediction stored at the last refresh.
        second: `(B,)` int64, the second choice of that refresh; "flip" alone reads it.
        variant: Which of them.

    Returns:
        `(B,)`, at least float32.

    Raises:
        ValueError: A single class, an unknown variant, or "flip" without `second`.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"logits have shape {tuple(logits.shape)}: suppression needs 2 classes")
    logits = to_float(logits)
    if variant == "suppress":
        chosen = label[:, None]
        others = logits.scatter(1, chosen, -torch.inf).logsumexp(dim=1)
        return F.softplus(logits.gather(1, chosen)[:, 0] - others)
    if variant == "flip":
        if second is None:
            raise ValueError("variant='flip' needs the second choices")
        return F.cross_entropy(logits, second, reduction="none")
    if variant == "ascent":
        return -F.cross_entropy(logits, label, reduction="none")
    raise ValueError(f"variant={variant!r} must be 'suppress', 'flip' or 'ascent'")
