"""What a student learns of teachers that saw more: their risks, and the features they saw.

Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), for the Bernoulli
risks of several horizons as in privileged history distillation (PHD, arXiv 2603.15814); the
direction of text features as in CLIP-IT (arXiv 2504.16181).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.precision import at_least_float32

SHORTEST = 1e-12  # of a vector that is normalised, as published


def bernoulli_distillation(
    student: Tensor, teacher: Tensor, known: Tensor | None = None, temperature: float = 4.0
) -> Tensor:
    """Return T^2 sum m CE(sigmoid(t / T), sigmoid(s / T)) / max(1, sum m), a scalar.

    Its least value, at s = t, is T^2 times the mean entropy of the teacher; its gradient there is
    0, and near it (s - t) / 4 for large T. Of several teachers, take the horizons of each and sum.

    Args:
        student: Logits s, of any shape.
        teacher: Logits t of the same shape; no gradient goes there.
        known: Which count, m, bool of that shape; None: all.
        temperature: T, positive; published: 4.

    Returns:
        A scalar of at least float32; 0 with a graph if none counts.

    Raises:
        ValueError: T is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
    student, teacher = at_least_float32(student), at_least_float32(teacher).detach()
    soft = (teacher / temperature).sigmoid()
    each = F.binary_cross_entropy_with_logits(student / temperature, soft, reduction="none")
    counts = torch.ones_like(each) if known is None else known.to(each)
    return temperature**2 * (each * counts).sum() / counts.sum().clamp(min=1)


def reconstruction_loss(
    found: Tensor,
    true: Tensor,
    available: Tensor,
    kind: Literal["squared", "cosine"] = "squared",
) -> Tensor:
    """Return the mean over available vectors of |x' - x|^2 / D, or of 1 - cos(x', x); a scalar.

    The published sum over D features is divided by D here, so that its weight does not depend on
    the encoder.

    Args:
        found: x' `(B, T, D)`.
        true: x `(B, T, D)`; no gradient goes there.
        available: `(B, T)` bool: where x is known.
        kind: Which.

    Returns:
        A scalar of at least float32; 0 with a graph if nothing is available.

    Raises:
        ValueError: Unknown kind.
    """
    if kind not in ("squared", "cosine"):
        raise ValueError(f'kind={kind!r} must be "squared" or "cosine"')
    found, true = at_least_float32(found), at_least_float32(true).detach()
    if kind == "squared":
        each = ((found - true) ** 2).mean(dim=-1)
    else:
        each = 1 - F.cosine_similarity(found, true, dim=-1)
    counts = available.to(each)
    return (each * counts).sum() / counts.sum().clamp(min=1)


def cosine_distillation(student: Tensor, teacher: Tensor, detach: bool = True) -> Tensor:
    """Return mean_b (1 - u_b . u'_b / (|u_b| |u'_b|)) in [0, 2], a scalar; CLIP-IT's KD.

    Lengths do not count, and the gradient of u' is orthogonal to u'. Vectors shorter than 1e-12
    count as if they were that long, as published.

    Args:
        student: u' `(B, D)`.
        teacher: u `(B, D)`.
        detach: No gradient goes to u; published: False, where both may meet in one direction that
            tells nothing.

    Returns:
        A scalar of at least float32.

    Raises:
        ValueError: Shapes differ.
    """
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(
            f"student and teacher must be (B, D), got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    teacher = F.normalize(teacher.detach() if detach else teacher, dim=1, eps=SHORTEST)
    return (1 - (F.normalize(student, dim=1, eps=SHORTEST) * teacher).sum(dim=1)).mean()


def double_softmax_cross_entropy(
    logits: Tensor, label: Tensor, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    """Return the cross-entropy of softmax(logits) taken for logits: CLIP-IT's published one.

    Of K classes it lies between log(e + K - 1) - 1 and log(e + K - 1): no confidence brings it to
    0, and its gradient is several times smaller than the plain one's.

    Args:
        logits: `(B, K)`.
        label: `(B,)` int64.
        reduction: "mean" over the batch, or "none".
    """
    return F.cross_entropy(at_least_float32(logits).softmax(dim=1), label, reduction=reduction)
