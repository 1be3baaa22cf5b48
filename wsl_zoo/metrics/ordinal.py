"""Metrics of ordinal classification: ranks 0..K-1, of which neighbours are alike."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric


class OrdinalMetric(Metric):
    """Base: integer sums over samples, so that two processes give the value of one.

    NaN without samples. The value is a fraction or a number of ranks, float64.

    Args:
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "count"):
            zero = torch.zeros((), dtype=torch.int64)
            self.add_state(name, zero, dist_reduce_fx="sum")

    def update(
        self,
        probs: Tensor,
        label: Tensor,
        prediction: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            probs: `(B, K)` probabilities of the ranks, or any scores of which only the order counts
                (take float32 or more: half precision makes ties).
            label: `(B,)` true ranks in 0..K-1.
            prediction: `(B,)` predicted ranks; None: the argmax.
            valid: `(B,)` bool, False for padded duplicates; None: all are counted.

        Raises:
            ValueError: Shapes that do not fit, or labels outside 0..K-1.
        """
        if probs.ndim != 2 or label.shape != probs.shape[:1]:
            raise ValueError(
                f"probs {tuple(probs.shape)} and label {tuple(label.shape)} must be (B, K) and (B,)"
            )
        prediction = probs.argmax(dim=1) if prediction is None else prediction
        if valid is not None:
            probs, label, prediction = probs[valid], label[valid], prediction[valid]
        classes = probs.shape[1]
        if len(label) and not 0 <= int(label.min()) <= int(label.max()) < classes:
            raise ValueError(f"label must lie in 0..{classes - 1}, as probs have {classes} columns")
        self.total += self.points(probs, label, prediction).sum()
        self.count += self.per_sample(classes) * len(label)

    @abstractmethod
    def points(self, probs: Tensor, label: Tensor, prediction: Tensor) -> Tensor:
        """Return what the samples add, integers or bools of any shape."""

    def per_sample(self, classes: int) -> int:
        """Return what one sample can add at most, or 1."""
        return 1

    def compute(self) -> Tensor:
        """Return the mean over samples, a float64 scalar."""
        return self.total.double() / self.count


class SidesOrderIndex(OrdinalMetric):
    """Share of neighbours in the right order: rising up to rank r, falling after it (SOI).

    SOI_r(p) = (1 / (K-1)) sum_k 1[p_k < p_{k+1} if k < r else p_{k+1} < p_k], over samples the
    mean. From Belharbi et al., "Non-parametric Uni-modality Constraints for Deep Ordinal
    Classification" (arXiv 1911.10720). In [0, 1]; 1 if every sample is strictly unimodal with its
    mode at r; ties count as violations. Independent scores give 1/2 at the label and 1/2 + 1/K at
    their own argmax. With K = 2 it asks whether rank r is the likelier one.

    Args:
        side: Which r: the "prediction" (published as the headline) or the "label".
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = SidesOrderIndex()
        >>> metric.update(torch.tensor([[1.0, 0.85, 0.75, 0.9]]), torch.tensor([0]))
        >>> round(metric.compute().item(), 4)
        0.6667
    """

    higher_is_better = True

    def __init__(self, side: Literal["label", "prediction"] = "prediction", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if side not in ("label", "prediction"):
            raise ValueError(f'side={side!r} must be "label" or "prediction"')
        self.side = side

    def points(self, probs: Tensor, label: Tensor, prediction: Tensor) -> Tensor:
        """Return which neighbours are in order, (B, K-1)."""
        mode = label if self.side == "label" else prediction
        left = torch.arange(probs.shape[1] - 1, device=probs.device) < mode[:, None]
        rises = probs[:, :-1] < probs[:, 1:]
        falls = probs[:, 1:] < probs[:, :-1]
        return torch.where(left, rises, falls)

    def per_sample(self, classes: int) -> int:
        """Return the number of neighbours, K-1."""
        return classes - 1


class OrdinalMAE(OrdinalMetric):
    """Mean absolute difference of predicted and true rank: in [0, K-1], 0 if all are right."""

    higher_is_better = False

    def points(self, probs: Tensor, label: Tensor, prediction: Tensor) -> Tensor:
        """Return the differences, (B,)."""
        return (prediction - label).abs()


class OrdinalAccuracy(OrdinalMetric):
    """Share of samples whose predicted rank is the true one, in [0, 1]."""

    higher_is_better = True

    def points(self, probs: Tensor, label: Tensor, prediction: Tensor) -> Tensor:
        """Return which are right, (B,)."""
        return prediction == label
