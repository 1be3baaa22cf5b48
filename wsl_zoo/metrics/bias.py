"""How unevenly a classifier spreads its predictions over the classes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class PredictionBias(Metric):
    """KL divergence from predicted classes to uniform ones, KL(pi || U) = sum_k pi_k ln(K pi_k).

    pi_k is the share of samples whose most probable class is k; what source-free adaptation
    (SFDA-DeP, arXiv 2603.12468) measures over-predicted classes by. In [0, ln K] nats: 0 if every
    class is predicted as often, ln K if one class always is. On a set whose classes are not equally
    frequent the right answer is not 0. NaN without samples. Integer counters: the value on several
    processes equals that on one.

    Args:
        num_classes: Number K of classes.
        normalize: Divide by ln K: a fraction in [0, 1].
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = PredictionBias(2)
        >>> logits = torch.tensor([[0.0, 1.0]] * 139 + [[1.0, 0.0]] * 33)
        >>> metric.update(logits)
        >>> round(metric.compute().item(), 6)
        0.204238
    """

    higher_is_better = False
    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int, normalize: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unit = math.log(num_classes) if normalize else 1.0
        zeros = torch.zeros(num_classes, dtype=torch.int64)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, logits: Tensor, label: Tensor | None = None) -> None:
        """Add a batch of logits (or probabilities) (B, K); labels are not read."""
        predicted = logits.argmax(dim=1)
        self.counts += torch.bincount(predicted, minlength=len(self.counts))

    def shares(self) -> Tensor:
        """Return pi (K,) float64, NaN without samples; callers synchronise the states."""
        return self.counts.double() / self.counts.sum()

    def compute(self) -> Tensor:
        """Return KL(pi || U), a float64 scalar."""
        shares = self.shares()
        return torch.special.xlogy(shares, shares * len(shares)).sum() / self.unit
