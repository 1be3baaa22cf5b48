"""CorLoc: correct localisation of the frames of videos, per class.

CorLoc is the share of annotated frames in which a predicted box has IoU >= 0.5 with a true one
(Deselaers et al., IJCV 2012); boxes and IoU are those of `metrics/contours.py` with the largest
contour, as TCAM (WACV 2023, arXiv 2208.14542) and CoLo-CAM (arXiv 2303.09044) have them. Tables
give it per class, and their average is the mean over the classes.

Which map threshold is meant changes the number, so each choice has its own name: one for all
classes, the best on the evaluated frames ("global", TCAM); the best of each class ("per_class",
CoLo-CAM), never below the first; or one that was chosen on validation (a number), the honest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from wsl_zoo.metrics.base import check_choice, protocol_state, synced, undefined
from wsl_zoo.metrics.boxes import at_threshold, check_threshold
from wsl_zoo.metrics.contours import CONTOURS, Contours, localize_batch, threshold_grid

Average = Literal["macro", "micro"]


class CorLoc(Metric):
    """Share of frames localised at IoU 0.5, in [0, 1]: the mean over classes, or overall.

    Frames without a box are not counted; classes without a counted frame are left out of the mean
    and NaN in `per_class`. NaN and a warning if no frame was counted. Counters are int64: any order
    or sharding gives the same bits.

    Args:
        num_classes: Number K of classes.
        threshold: "global" takes one map threshold for all classes, the best overall (the share of
            all frames, the lowest among equals) on the frames seen; "per_class" the best of each
            class; a number in [0, 1] is matched to the nearest of the grid.
        contours: As of `BoxLocalization`.
        average: "macro" is the mean over classes, as tables have it, "micro" the share of all
            frames.
        iou_threshold: IoU that a box must reach (inclusive).
        num_thresholds: Number n of map thresholds `i / n`.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> scores = torch.zeros(3, 32, 32)
        >>> scores[:, 10:20, 10:20] = 1.0
        >>> right, wrong = torch.tensor([[10.0, 10.0, 19.0, 19.0]]), torch.tensor([[0.0, 0, 5, 5]])
        >>> metric = CorLoc(num_classes=2)
        >>> metric.update(scores, [right, right, wrong], torch.tensor([0, 1, 1]))
        >>> metric.compute().item(), metric.per_class().tolist()
        (0.75, [1.0, 0.5])
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    hits: Tensor
    total: Tensor

    def __init__(
        self,
        num_classes: int,
        threshold: float | Literal["global", "per_class"] = "global",
        contours: Contours = "largest",
        average: Average = "macro",
        iou_threshold: float = 0.5,
        num_thresholds: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_threshold(threshold, 1, ("global", "per_class"))
        check_choice("contours", contours, CONTOURS)
        check_choice("average", average, ("macro", "micro"))
        if num_classes < 1 or num_thresholds < 1:
            raise ValueError(
                f"num_classes={num_classes} and num_thresholds={num_thresholds} must be at least 1"
            )
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold={iou_threshold}: a fraction in (0, 1] is needed")
        self.num_classes = num_classes
        self.threshold = threshold
        self.contours: Contours = contours
        self.average: Average = average
        self.iou_threshold = iou_threshold
        self.num_thresholds = num_thresholds
        hits = torch.zeros((num_classes, num_thresholds), dtype=torch.int64)
        self.add_state("hits", hits, dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        settings = protocol_state(CONTOURS.index(contours), iou_threshold)
        self.add_state("protocol", settings, dist_reduce_fx="max")

    def update(
        self,
        scores: Tensor | Sequence[Tensor],
        boxes: Sequence[Tensor],
        label: Tensor,
        valid: Tensor | None = None,
    ) -> None:
        """Add a batch of frames.

        Args:
            scores: `(B, H, W)`, or B predicted boxes, as of `BoxLocalization.update`.
            boxes: B tensors `(n, 4)`, as there; n = 0 leaves the frame out.
            label: `(B,)` class in [0, K).
            valid: `(B,)` bool; False drops a frame. All are counted by default.

        Raises:
            ValueError: As of `BoxLocalization.update`, or a label that is no class.
        """
        if label.shape != (len(boxes),):
            raise ValueError(f"label must be ({len(boxes)},), got {tuple(label.shape)}")
        kept, ious = localize_batch(scores, boxes, valid, self.contours, self.num_thresholds)
        if not kept:
            return
        of_kept = label.cpu()[kept]
        if not ((of_kept >= 0) & (of_kept < self.num_classes)).all():
            raise ValueError(f"label must lie in 0..{self.num_classes - 1}, got {of_kept.tolist()}")
        correct = torch.from_numpy(ious >= self.iou_threshold).long()
        hits = torch.zeros(self.hits.shape, dtype=torch.int64).index_add_(0, of_kept, correct)
        self.hits = self.hits + hits.to(self.hits.device)
        seen = torch.bincount(of_kept, minlength=self.num_classes)
        self.total = self.total + seen.to(self.total.device)

    def _curves(self) -> tuple[Tensor, Tensor]:
        """Accuracy of all frames `(1, n)` and of each class `(K, n)`, float64 on the CPU."""
        hits, total = self.hits.cpu().double(), self.total.cpu().double()
        return hits.sum(0, keepdim=True) / total.sum(), hits / total[:, None]

    def _per_class(self) -> Tensor:
        overall, classes = self._curves()
        if self.threshold == "per_class":
            return classes.amax(-1)
        if self.threshold == "global":
            return classes[:, overall[0].argmax()]
        return at_threshold(classes, self.threshold)

    def compute(self) -> Tensor:
        """Return CorLoc, a float64 scalar."""
        total = self.total.cpu()
        if total.sum() == 0:
            return undefined(self, "no frame with a box", total.device)
        classes, seen = self._per_class()[total > 0], total[total > 0]
        if self.average == "macro":
            return classes.mean()
        return (classes * seen).round().sum() / seen.sum()

    def per_class(self) -> Tensor:
        """Return CorLoc of each class, `(K,)` float64. All processes must call it."""
        with synced(self):
            return self._per_class()

    def best_threshold(self) -> Tensor:
        """Return the lowest map threshold of the best CorLoc, float64.

        A scalar, that of all frames together; with `threshold="per_class"` `(K,)`, that of each
        class. NaN where no frame was counted. All processes must call it.
        """
        curves = self.curves()
        accuracy = curves["per_class" if self.threshold == "per_class" else "accuracy"]
        best = curves["threshold"][accuracy.argmax(-1)]
        return torch.where(accuracy.isnan().any(-1), torch.nan, best)

    def curves(self) -> dict[str, Tensor]:
        """Return `threshold (n,)`, `accuracy (n,)` of all frames and `per_class (K, n)`.

        All processes must call it.
        """
        with synced(self):
            overall, classes = self._curves()
        thresholds = torch.from_numpy(threshold_grid(self.num_thresholds))
        return {"threshold": thresholds, "accuracy": overall[0], "per_class": classes}
