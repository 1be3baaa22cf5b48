"""Box localisation over a data set: MaxBoxAcc, MaxBoxAccV2, GT-known and top-k localisation.

Protocol: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
arXiv 2001.07437 (MaxBoxAcc: largest contour, IoU 0.5), and its journal form, TPAMI 2022, arXiv
2007.04178 (MaxBoxAccV2: all contours, mean over IoU 0.3, 0.5, 0.7). `metrics/contours.py` says what
is predicted from a map.

An image is correct at a map threshold t if the best IoU over predicted and true boxes reaches the
IoU threshold; `accuracy(t)` is the share of correct images. One t serves the whole data set.
MaxBoxAcc takes the best t on the evaluated images themselves, an oracle, as all published numbers
do; `BoxAcc` and `BoxAccV2` take one that was chosen elsewhere, on validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from wsl_zoo.metrics.base import check_choice, protocol_state, synced, undefined
from wsl_zoo.metrics.contours import CONTOURS, Contours, localize_batch, threshold_grid

Threshold = float | Sequence[float] | Literal["best"]


def at_threshold(accuracy: Tensor, threshold: Threshold) -> Tensor:
    """Reduce `(..., n)` over a grid of map thresholds: its maximum, or the value nearest to one.

    Args:
        accuracy: `(..., D, n)`.
        threshold: "best", or one number in [0, 1] for all or for each of the D.

    Returns:
        `(..., D)`.
    """
    if threshold == "best":
        return accuracy.amax(-1)
    count, n = accuracy.shape[-2:]
    wanted = np.broadcast_to(np.asarray(threshold, dtype=np.float64), (count,))
    place = np.abs(threshold_grid(n) - wanted[:, None]).argmin(1)
    return accuracy[..., torch.arange(count), torch.from_numpy(place)]


def check_threshold(
    threshold: str | float | Sequence[float], count: int, words: tuple[str, ...]
) -> None:
    """Raise a ValueError unless it is a word, a number in [0, 1], or `count` of them."""
    numbers = [threshold] if isinstance(threshold, int | float) else threshold
    if isinstance(threshold, str):
        fits = threshold in words
    else:
        fits = len(numbers) in (1, count) and all(0 <= float(t) <= 1 for t in numbers)
    if not fits:
        choices = ", ".join(map(repr, words))
        each = f", or {count} of them" if count > 1 else ""
        raise ValueError(f"threshold={threshold!r}: {choices}, or a number in [0, 1]{each}")


class BoxLocalization(Metric):
    """Share of images localised by a box, in [0, 1], at each IoU threshold.

    This is GT-known localisation when the map is that of the true class. **Images without a box are
    not counted.** NaN and a warning if no image was counted. Counters are int64: any order or
    sharding gives the same bits.

    Args:
        iou_thresholds: IoU that a box must reach (inclusive), e.g. `(0.3, 0.5, 0.7)`.
        contours: "largest" predicts the box of the contour of largest polygon area, "all" those of
            all contours.
        num_thresholds: Number n of map thresholds `i / n`; 1000 in the protocol (250 in common
            validation runs).
        topk: Also count images whose class is among the k highest logits, for each k; see
            `topk_accuracy`.
        threshold: "best" takes, for each IoU threshold, the map threshold of the highest accuracy
            on the images seen; a number in [0, 1], or one per IoU threshold, is matched to the
            nearest of the grid.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> scores = torch.zeros(1, 32, 32)
        >>> scores[0, 10:20, 10:20] = 1.0
        >>> metric = BoxLocalization((0.5, 0.9))
        >>> metric.update(scores, [torch.tensor([[10.0, 10.0, 19.0, 19.0]])])
        >>> metric.compute().tolist()
        [1.0, 0.0]
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    hits: Tensor
    total: Tensor

    def __init__(
        self,
        iou_thresholds: Sequence[float] = (0.5,),
        contours: Contours = "largest",
        num_thresholds: int = 1000,
        topk: Sequence[int] = (),
        threshold: Threshold = "best",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("contours", contours, CONTOURS)
        if not iou_thresholds or not all(0 < iou <= 1 for iou in iou_thresholds):
            raise ValueError(
                f"iou_thresholds={iou_thresholds}: one or more fractions in (0, 1] are needed"
            )
        if num_thresholds < 1 or not all(k >= 1 for k in topk):
            raise ValueError(f"num_thresholds={num_thresholds} and topk={topk} must be at least 1")
        check_threshold(threshold, len(iou_thresholds), ("best",))
        self.iou_thresholds = tuple(iou_thresholds)
        self.contours: Contours = contours
        self.num_thresholds = num_thresholds
        self.topk = tuple(topk)
        self.threshold: Threshold = threshold
        shape = (1 + len(self.topk), len(self.iou_thresholds), num_thresholds)
        self.add_state("hits", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        settings = protocol_state(CONTOURS.index(contours), *self.iou_thresholds, *self.topk)
        self.add_state("protocol", settings, dist_reduce_fx="max")

    def update(
        self,
        scores: Tensor | Sequence[Tensor],
        boxes: Sequence[Tensor],
        logits: Tensor | None = None,
        label: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Add a batch of maps.

        Args:
            scores: `(B, H, W)` in [0, 1], at the evaluation size; or, of methods that give boxes,
                B tensors `(m, 4)` of xyxy in the pixels of that size, which then stand at every map
                threshold (truncated to integers; what is no box is wrong).
            boxes: B tensors `(n, 4)` of xyxy in the pixels of that size, float64, not yet
                truncated; n = 0 leaves the image out. They may leave the map by 1/32 of its side.
            logits: `(B, K)`, needed for `topk`.
            label: `(B,)` true class, needed for `topk`.
            valid: `(B,)` bool; False drops an image (padded duplicates). All are counted by
                default.

        Raises:
            ValueError: For wrong shapes, NaN or scores outside [0, 1], boxes that are reversed, not
                finite or outside the map, or missing `logits` or `label`.
        """
        kept, ious = localize_batch(scores, boxes, valid, self.contours, self.num_thresholds)
        right = self._right_classes(logits, label, kept)
        if not kept:
            return
        correct = ious[:, None] >= np.asarray(self.iou_thresholds)[:, None]  # (kept, D, n)
        hits = np.stack([correct[chosen].sum(0) for chosen in right])
        self.hits = self.hits + torch.from_numpy(hits).to(self.hits.device)
        self.total = self.total + len(kept)

    def _right_classes(
        self, logits: Tensor | None, label: Tensor | None, kept: list[int]
    ) -> NDArray[np.bool_]:
        """`(1 + len(topk), kept)`: all True; whether the class is among the k highest logits."""
        right = np.ones((1 + len(self.topk), len(kept)), dtype=np.bool_)
        if not self.topk:
            return right
        if logits is None or label is None:
            raise ValueError(f"topk={self.topk} needs logits (B, K) and label (B,)")
        order = logits[kept].detach().cpu().sort(dim=1, descending=True, stable=True).indices
        place = order == label[kept].cpu()[:, None]
        if not place.any(dim=1).all():
            raise ValueError(
                f"label must lie in 0..{logits.shape[1] - 1}, got {label[kept].tolist()}"
            )
        rank = place.int().argmax(dim=1).numpy()
        right[1:] = rank < np.asarray(self.topk)[:, None]
        return right

    def _accuracy(self) -> Tensor:
        """`(1 + len(topk), D, n)` float64 on the CPU; NaN if no image was counted."""
        return self.hits.cpu().double() / self.total.cpu()

    def _summary(self, best: Tensor) -> Tensor:
        """Reduce the maxima `(D,)`, one per IoU threshold, to the value of the metric."""
        return best.squeeze()

    def _values(self) -> Tensor:
        """The metric without and with each `topk`, stacked."""
        best = at_threshold(self._accuracy(), self.threshold)
        if self.total == 0:
            best.fill_(undefined(self, "no image with a box", best.device))
        return torch.stack([self._summary(row) for row in best])

    def compute(self) -> Tensor:
        """Return the accuracy per IoU threshold, at the best map threshold or the given one.

        Float64 `(D,)`, or a scalar for one IoU threshold, as torchmetrics returns single values.
        """
        return self._values()[0]

    def topk_accuracy(self) -> dict[int, Tensor]:
        """Return `compute` for each k, with only images of right class hit.

        Each k has its own best map threshold (or the given one). All processes must call it.
        """
        with synced(self):
            return dict(zip(self.topk, self._values()[1:], strict=True))

    def best_threshold(self) -> Tensor:
        """Return the lowest map threshold of the best GT-known accuracy, `(D,)` float64.

        NaN if no image was counted. All processes must call it.
        """
        curves = self.curves()
        best = curves["threshold"][curves["accuracy"].argmax(-1)]
        return torch.where(curves["accuracy"].isnan().any(-1), torch.nan, best)

    def curves(self) -> dict[str, Tensor]:
        """Return the accuracy at every threshold, float64. All processes must call it.

        Returns:
            `threshold (n,)` of maps, `iou_threshold (D,)`, `accuracy (D, n)` and, for each k,
            `accuracy_top<k> (D, n)`.
        """
        with synced(self):
            accuracy = self._accuracy()
        names = ["accuracy", *(f"accuracy_top{k}" for k in self.topk)]
        return {
            "threshold": torch.from_numpy(threshold_grid(self.num_thresholds)),
            "iou_threshold": torch.tensor(self.iou_thresholds, dtype=torch.float64),
            **dict(zip(names, accuracy, strict=True)),
        }


class BoxAcc(BoxLocalization):
    """BoxAcc: share of images localised at IoU 0.5 by the largest contour, in [0, 1].

    A scalar, at one map threshold: an honest number if that was chosen on other images. Images
    without a box are not counted; NaN and a warning if no image was counted.

    Args:
        threshold: Map threshold in [0, 1], relative to each map's maximum; as of
            `BoxLocalization`.
        num_thresholds: As of `BoxLocalization`.
        topk: As of `BoxLocalization`.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> scores = torch.zeros(1, 32, 32)
        >>> scores[0, 5:25, 5:25], scores[0, 10:20, 10:20] = 0.4, 1.0
        >>> boxes = [torch.tensor([[10.0, 10.0, 19.0, 19.0]])]
        >>> for metric in (BoxAcc(0.3), BoxAcc(0.6)):
        ...     metric.update(scores, boxes)
        ...     print(metric.compute().item())
        0.0
        1.0
    """

    def __init__(
        self,
        threshold: Threshold,
        num_thresholds: int = 1000,
        topk: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__((0.5,), "largest", num_thresholds, topk, threshold, **kwargs)


class MaxBoxAcc(BoxAcc):
    """MaxBoxAcc: BoxAcc at the best map threshold, in [0, 1].

    A scalar. The threshold is chosen on the same images, as in all published numbers.

    Args:
        num_thresholds: As of `BoxLocalization`.
        topk: As of `BoxLocalization`.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> scores = torch.zeros(1, 32, 32)
        >>> scores[0, 10:20, 10:20] = 1.0
        >>> metric = MaxBoxAcc()
        >>> metric.update(scores, [torch.tensor([[10.0, 10.0, 19.0, 19.0]])])
        >>> metric.compute().item()
        1.0
    """

    def __init__(self, num_thresholds: int = 1000, topk: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__("best", num_thresholds, topk, **kwargs)


class BoxAccV2(BoxLocalization):
    """BoxAccV2: mean over IoU 0.3, 0.5, 0.7 of the share of images localised, in [0, 1].

    All contours count. A scalar, at one map threshold or one per IoU threshold: an honest number if
    they were chosen on other images. Images without a box are not counted; NaN and a warning if no
    image was counted.

    Args:
        threshold: Map threshold in [0, 1], or three, as `MaxBoxAccV2.best_threshold` gives them.
        num_thresholds: As of `BoxLocalization`.
        topk: As of `BoxLocalization`.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> scores = torch.zeros(1, 32, 32)
        >>> scores[0, 10:20, 10:20] = 1.0
        >>> metric = BoxAccV2((0.2, 0.3, 0.4))
        >>> metric.update(scores, [torch.tensor([[10.0, 10.0, 19.0, 24.0]])])
        >>> round(metric.compute().item(), 4)
        0.6667
    """

    def __init__(
        self,
        threshold: Threshold,
        num_thresholds: int = 1000,
        topk: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__((0.3, 0.5, 0.7), "all", num_thresholds, topk, threshold, **kwargs)

    def _summary(self, best: Tensor) -> Tensor:
        return best.mean()


class MaxBoxAccV2(BoxAccV2):
    """MaxBoxAccV2: BoxAccV2 at the best map threshold of each IoU threshold, in [0, 1].

    A scalar. The thresholds are chosen on the same images, as in all published numbers.

    Args:
        num_thresholds: As of `BoxLocalization`.
        topk: As of `BoxLocalization`.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> scores = torch.zeros(1, 32, 32)
        >>> scores[0, 10:20, 10:20] = 1.0
        >>> metric = MaxBoxAccV2()
        >>> metric.update(scores, [torch.tensor([[10.0, 10.0, 19.0, 24.0]])])
        >>> round(metric.compute().item(), 4)
        0.6667
    """

    def __init__(self, num_thresholds: int = 1000, topk: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__("best", num_thresholds, topk, **kwargs)
