"""Risk over several horizons from censored outcomes: labels and the masked cross-entropy.

Discrete-time survival as in Mirai (Yala et al., Science Translational Medicine 2021) and privileged
history distillation (PHD, arXiv 2603.15814): y_k = 1 if the event comes within horizon k, 0 if its
absence is known so far, -1 if unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.precision import at_least_float32

UNKNOWN = -1


def horizon_labels(
    time: Tensor,
    event: Tensor,
    horizons: Sequence[float],
    rule: Literal["cumulative", "mirai"] = "cumulative",
) -> Tensor:
    """Return y (B, K) int64 in {1, 0, -1}.

    Args:
        time: `(B,)` of the event, or until when its absence is known.
        event: `(B,)` bool.
        horizons: K increasing times.
        rule: After the event y is 1 at every horizon ("cumulative") or at the first one that
            reaches it, and unknown later ("mirai").

    Raises:
        ValueError: Unknown rule.
    """
    if rule not in ("cumulative", "mirai"):
        raise ValueError(f'rule={rule!r} must be "cumulative" or "mirai"')
    limits = torch.as_tensor(horizons, dtype=torch.float64, device=time.device)
    event, reached = event.bool()[:, None], time.double()[:, None] <= limits
    after = torch.where(event, 1, UNKNOWN)  # censored at c: known to be free at c itself
    labels = torch.where(torch.where(event, reached, time.double()[:, None] < limits), after, 0)
    if rule == "mirai":
        later = reached & F.pad(reached[:, :-1], (1, 0))
        labels = torch.where(event & later, UNKNOWN, labels)
    return labels


def positive_weight(
    label: Tensor, per_horizon: bool = False, lowest: float = 1.0, highest: float = 1000.0
) -> Tensor:
    """Return #negative / #positive of the known labels, clipped: a scalar, or (K,) per horizon.

    One weight for all horizons is what a head that cannot fall over horizons can follow: weights
    per horizon (published) ask the first logit to exceed the last, and increments die.

    Args:
        label: `(N, K)` in {1, 0, -1} of the training split.
        per_horizon: One weight per horizon.
        lowest: Lower limit.
        highest: Upper limit.
    """
    over = 0 if per_horizon else (0, 1)
    positive, negative = ((label == y).sum(dim=over).float() for y in (1, 0))
    return (negative / positive.clamp(min=1)).clamp(lowest, highest)


def masked_bce(logits: Tensor, label: Tensor, positive: Tensor | float = 1.0) -> Tensor:
    """Return sum_bk m [-w_k y log sigmoid(o) - (1 - y) log sigmoid(-o)] / max(1, sum_bk m).

    Args:
        logits: `(B, K)`.
        label: `(B, K)` in {1, 0, -1}; m is 1 where it is known.
        positive: w, a number or `(K,)`.

    Returns:
        A scalar of at least float32; 0 with a graph if nothing is known.
    """
    logits = at_least_float32(logits)
    known = (label != UNKNOWN).to(logits)
    weight = torch.as_tensor(positive, dtype=logits.dtype, device=logits.device)
    target = (label == 1).to(logits)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weight)
    return (each * known).sum() / known.sum().clamp(min=1)
