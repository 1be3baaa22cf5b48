"""Entropies of predictions, of pixels and of images, each from the numbers that are stable.

`pixel_entropy`: (1/BN) sum_bp H(S_bp), an optional term of F-CAM (WACV 2022, arXiv 2109.07069), off
in its published runs. `uniform_cross_entropy`: H(q, p) to the uniform q, what min-max entropy
(arXiv 1907.12934) and the surrogate of max-min uncertainty (SEM; IEEE TMI 2022, arXiv 2011.07221)
make small on the background, so that no class is favoured there. `negative_entropy`: -H(p), its
explicit form (EEM), whose gradient vanishes for a certain p. `marginal_entropy`: H(mean_b p_b),
the diversity that SHOT (ICML 2020, arXiv 2002.08546) makes large while -`negative_entropy`, the
entropy of each image, becomes small.
"""

import math

import torch
from torch import Tensor


def pixel_entropy(probs: Tensor) -> Tensor:
    """Return the mean entropy of the pixels.

    Args:
        probs: `(B, K, H, W)`, probabilities over dimension 1.

    Returns:
        A scalar in [0, log2 K] bits, at least float32. Its gradient is finite where a probability
        is 0.
    """
    probs = probs.float() if probs.dtype in (torch.float16, torch.bfloat16) else probs
    logarithm = probs.clamp_min(torch.finfo(probs.dtype).tiny).log2()
    return -(probs * logarithm).sum(dim=1).mean()


def uniform_cross_entropy(logits: Tensor, base: float = math.e) -> Tensor:
    """Return -(1/K) sum_k log p_bk = KL(q || p_b) + log K of every image, q uniform.

    Args:
        logits: `(B, K)`.
        base: Of the logarithm: e in min-max entropy, 2 in max-min uncertainty.

    Returns:
        `(B,)` of at least log K, which it is for equal logits alone, at least float32. Its gradient
        is (p - 1/K) / ln base.
    """
    return -_log_softmax(logits).mean(dim=1) / math.log(base)


def negative_entropy(logits: Tensor, base: float = math.e) -> Tensor:
    """Return sum_k p_bk log p_bk of every image.

    Args:
        logits: `(B, K)`.
        base: Of the logarithm: 2 in max-min uncertainty.

    Returns:
        `(B,)` in [-log K, 0], at least float32.
    """
    logarithm = _log_softmax(logits)
    return (logarithm.exp() * logarithm).sum(dim=1) / math.log(base)


def marginal_entropy(probs: Tensor, base: float = math.e) -> Tensor:
    """Return the entropy of the mean prediction, -sum_k m_k log m_k with m = mean_b p_b.

    Args:
        probs: `(B, K)`, probabilities of a batch, of all processes' batches, or of a data set.
        base: Of the logarithm: 2 in the histology code of SHOT.

    Returns:
        A scalar in [0, log K], at least float32. Its gradient is finite where a class has mean
        probability 0.
    """
    half = probs.dtype in (torch.float16, torch.bfloat16)
    mean = (probs.float() if half else probs).mean(dim=0)
    logarithm = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    return -(mean * logarithm).sum() / math.log(base)


def _log_softmax(logits: Tensor) -> Tensor:
    half = logits.dtype in (torch.float16, torch.bfloat16)
    return (logits.float() if half else logits).log_softmax(dim=1)
