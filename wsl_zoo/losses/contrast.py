"""Contrast of images with the texts of their classes.

InfoNCE (van den Oord et al., arXiv 1807.03748) as CLIP-IT's contrastive baseline takes it (Karimian
et al., arXiv 2504.16181).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.precision import at_least_float32


def in_batch_contrast(logits: Tensor, label: Tensor) -> Tensor:
    """Return -mean_i ln(e^{l_i,y_i} / sum_j e^{l_i,y_j}), over the images j of the batch; a scalar.

    Images of one class count as each other's negatives, as published, so that it is never below
    mean_i ln n_i, n_i of the batch's images being of the class of i. Without them it would be the
    cross-entropy of the logits over the classes that are in the batch.

    Args:
        logits: `(B, K)`, similarities to the texts of the classes, by the temperature.
        label: `(B,)` int64, classes y.

    Returns:
        A scalar of at least float32.
    """
    pairs = at_least_float32(logits)[:, label]
    return F.cross_entropy(pairs, torch.arange(len(label), device=label.device))
