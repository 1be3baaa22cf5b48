"""Box localisation from score maps: MaxBoxAcc, MaxBoxAccV2, GT-known and top-k localisation.

Protocol: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
arXiv 2001.07437 (MaxBoxAcc: largest contour, IoU 0.5), and its journal form, TPAMI 2022, arXiv
2007.04178 (MaxBoxAccV2: all contours, mean over IoU 0.3, 0.5, 0.7).

A map becomes bytes, `u = floor(255 * score)`; threshold t keeps the pixels with
`u > int(t * max(u))`; the boxes of their contours are compared with the ground truth; an image is
correct at t if the best IoU over predicted and true boxes reaches the IoU threshold. `accuracy(t)`
is the share of correct images, the metric its maximum over t: one threshold for the data set,
chosen on the evaluated images.

The protocol's conventions are kept, since published numbers depend on them: a predicted box ends
one pixel after its contour, clipped to the map, while IoU counts both ends (so a perfect 10 x 10
blob scores 100 / 121); the largest contour is that of the largest polygon area; contours of holes
count among "all"; ground truth is truncated to integers. `int(t * max(u))` takes at most 256
values, so each distinct binary map is evaluated once: same value, less work.
"""

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from wsl_zoo.metrics.pixels import BAD_SCORES, check_choice, protocol_state, synced, undefined

Contours = Literal["largest", "all"]

CONTOURS = ("largest", "all")


def _contour_boxes(binary: NDArray[np.uint8], contours: Contours) -> NDArray[np.int64]:
    """Boxes `(m, 4)` xyxy of the contours of a binary map; (0, 0, 0, 0) if it is empty."""
    found: Sequence[Any] = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if not found:
        return np.zeros((1, 4), dtype=np.int64)
    if contours == "largest":  # the first of equal areas, in OpenCV's order
        found = [max(found, key=cv2.contourArea)]
    points = np.concatenate(found)[:, 0].astype(np.int64)
    starts = np.cumsum([0] + [len(contour) for contour in found[:-1]])
    height, width = binary.shape
    end = np.minimum(np.maximum.reduceat(points, starts) + 1, [width - 1, height - 1])
    return np.concatenate([np.minimum.reduceat(points, starts), end], axis=1)


def _best_iou(predicted: NDArray[np.int64], boxes: NDArray[np.int64]) -> float:
    """Highest IoU over all pairs of boxes `(m, 4)` and `(n, 4)`, ends inclusive."""
    a, b = predicted[:, None], boxes[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    overlap = sides.clip(min=0).prod(-1)
    union = (
        (a[..., 2:] - a[..., :2] + 1).prod(-1) + (b[..., 2:] - b[..., :2] + 1).prod(-1) - overlap
    )
    return float(np.where(union > 0, overlap / np.where(union > 0, union, 1), 0.0).max())


def level_ious(
    levels: NDArray[np.uint8], boxes: NDArray[np.int64], contours: Contours
) -> NDArray[np.float64]:
    """Best IoU between predicted and true boxes at every level of a map of bytes.

    The kernel of the box metrics. Levels between two neighbouring values of the map give one binary
    map, which is evaluated once.

    Args:
        levels: `(H, W)` bytes.
        boxes: `(n, 4)` xyxy, n >= 1.
        contours: "largest" takes the box of one contour, "all" of every contour, those of holes
            included.

    Returns:
        `(256,)`, entry t for the binary map `levels > t`.
    """
    present = np.flatnonzero(np.bincount(levels.ravel(), minlength=256))
    starts = np.union1d([0], present)
    ious = [
        _best_iou(_contour_boxes((levels > t).astype(np.uint8), contours), boxes) for t in starts
    ]
    return np.repeat(ious, np.diff(starts, append=256))


def _to_levels(scores: Tensor) -> NDArray[np.uint8]:
    """Turn checked scores of any shape into bytes, on the CPU in float64."""
    values = scores.detach().cpu().double()
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(BAD_SCORES)
    levels: NDArray[np.uint8] = (values * 255).floor().to(torch.uint8).numpy()
    return levels


def _true_boxes(boxes: Tensor, image: int) -> NDArray[np.int64]:
    """Boxes of one image, truncated to integers as the protocol does."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.isfinite().all():
        raise ValueError(
            f"boxes of image {image} of the batch must be finite and (n, 4): {boxes.tolist()}"
        )
    return boxes.detach().cpu().double().numpy().astype(np.int64)


def boxes_from_map(score_map: Tensor, threshold: float, contours: Contours = "largest") -> Tensor:
    """Boxes that the protocol predicts from one map.

    Args:
        score_map: `(H, W)` in [0, 1].
        threshold: In [0, 1], relative to the maximum of the map.
        contours: "largest" gives one box, "all" one per contour, those of holes included.

    Returns:
        `(m, 4)` int64 xyxy on the CPU, m >= 1. The right and bottom ends lie one pixel after the
        contour, clipped to the map. A map that is 0 everywhere gives (0, 0, 0, 0).

    Raises:
        ValueError: For NaN or scores outside [0, 1], or a threshold outside [0, 1].

    Example:
        >>> import torch
        >>> score_map = torch.zeros(8, 8)
        >>> score_map[2:4, 3:6] = 0.7
        >>> boxes_from_map(score_map, 0.5)
        tensor([[3, 2, 6, 4]])
    """
    check_choice("contours", contours, CONTOURS)
    if score_map.ndim != 2:
        raise ValueError(f"score_map must be (H, W), got {tuple(score_map.shape)}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must lie in [0, 1]")
    levels = _to_levels(score_map)
    binary = (levels > int(threshold * float(levels.max()))).astype(np.uint8)
    return torch.from_numpy(_contour_boxes(binary, contours))


def threshold_grid(num_thresholds: int) -> NDArray[np.float64]:
    """Map thresholds `i / n`, `(n,)`; equal to numpy's `arange(0, 1, 0.001)` for n = 1000."""
    return np.arange(num_thresholds, dtype=np.float64) * (1.0 / num_thresholds)


def ious_over_thresholds(
    levels: NDArray[np.uint8], boxes: NDArray[np.int64], contours: Contours, num_thresholds: int
) -> NDArray[np.float64]:
    """Best IoU of one image at each threshold `i / num_thresholds`; see `level_ious`."""
    cuts = (threshold_grid(num_thresholds) * float(levels.max())).astype(np.int64)
    return level_ious(levels, boxes, contours)[cuts]


class BoxLocalization(Metric):
    """Share of images localised by a box, in [0, 1], at each IoU threshold's best map threshold.

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
        self.iou_thresholds = tuple(iou_thresholds)
        self.contours: Contours = contours
        self.num_thresholds = num_thresholds
        self.topk = tuple(topk)
        shape = (1 + len(self.topk), len(self.iou_thresholds), num_thresholds)
        self.add_state("hits", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        settings = protocol_state(CONTOURS.index(contours), *self.iou_thresholds, *self.topk)
        self.add_state("protocol", settings, dist_reduce_fx="max")

    def update(
        self,
        scores: Tensor,
        boxes: Sequence[Tensor],
        logits: Tensor | None = None,
        label: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Add a batch of maps.

        Args:
            scores: `(B, H, W)` in [0, 1], at the evaluation size.
            boxes: B tensors `(n, 4)` of xyxy in the pixels of that size, float64, not yet
                truncated; n = 0 leaves the image out.
            logits: `(B, K)`, needed for `topk`.
            label: `(B,)` true class, needed for `topk`.
            valid: `(B,)` bool; False drops an image (padded duplicates). All are counted by
                default.

        Raises:
            ValueError: For wrong shapes, NaN or scores outside [0, 1], or missing `logits` or
                `label`.
        """
        if scores.ndim != 3 or len(boxes) != len(scores):
            raise ValueError(
                "scores must be (B, H, W) with B tensors of boxes, "
                f"got {tuple(scores.shape)} and {len(boxes)}"
            )
        if valid is not None and valid.shape != (len(scores),):
            raise ValueError(f"valid must be ({len(scores)},), got {tuple(valid.shape)}")
        live = [True] * len(scores) if valid is None else valid.tolist()
        truth = {
            i: _true_boxes(boxes[i], i)
            for i, counted in enumerate(live)
            if counted and boxes[i].numel()
        }
        kept = list(truth)
        right = self._right_classes(logits, label, kept)
        if not kept:
            return
        levels = _to_levels(scores[kept])
        ious = np.stack(
            [
                ious_over_thresholds(image, truth[i], self.contours, self.num_thresholds)
                for image, i in zip(levels, kept, strict=True)
            ]
        )
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
        best = self._accuracy().amax(-1)
        if self.total == 0:
            best.fill_(undefined(self, "no image with a box", best.device))
        return torch.stack([self._summary(row) for row in best])

    def compute(self) -> Tensor:
        """Return the best accuracy over map thresholds per IoU threshold, float64.

        `(D,)`, or a scalar for one IoU threshold, as torchmetrics returns all single values.
        """
        return self._values()[0]

    def topk_accuracy(self) -> dict[int, Tensor]:
        """Return `compute` for each k, with only images of right class hit.

        Each k has its own best map threshold. All processes must call it.
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
        """Return `threshold (n,)`, `accuracy (D, n)` and, for each k, `accuracy_top<k> (D, n)`.

        All processes must call it.
        """
        with synced(self):
            accuracy = self._accuracy()
        names = ["accuracy", *(f"accuracy_top{k}" for k in self.topk)]
        thresholds = torch.from_numpy(threshold_grid(self.num_thresholds))
        return {"threshold": thresholds, **dict(zip(names, accuracy, strict=True))}


class MaxBoxAcc(BoxLocalization):
    """MaxBoxAcc: share of images localised at IoU 0.5 by the largest contour, in [0, 1].

    A scalar, at the best map threshold. Images without a box are not counted; NaN and a warning if
    no image was counted.

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
        super().__init__((0.5,), "largest", num_thresholds, topk, **kwargs)


class MaxBoxAccV2(BoxLocalization):
    """MaxBoxAccV2: mean over IoU 0.3, 0.5, 0.7 of the share of images localised, in [0, 1].

    All contours count. A scalar; each IoU threshold has its own best map threshold. Images without
    a box are not counted; NaN and a warning if no image was counted.

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
        super().__init__((0.3, 0.5, 0.7), "all", num_thresholds, topk, **kwargs)

    def _summary(self, best: Tensor) -> Tensor:
        return best.mean()
