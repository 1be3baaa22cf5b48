"""Entropy of the pixels' predictions, in bits: (1/BN) sum_bp H(S_bp), H(s) = -sum_k s_k log2 s_k.

An optional term of F-CAM (WACV 2022, arXiv 2109.07069), off in its published runs.
"""

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
