"""Pixel localisation from two histograms: PxAP, peak IoU and every quantity of the threshold curve.

Protocol: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
arXiv 2001.07437.

Scores of all pixels of the data set fall into the bins `[t_i, t_i+1)` with `t_i = i / n`, `[1, 2)`
and `[2, 3]` (always empty), one histogram for foreground pixels and one for background pixels. A
pixel is predicted foreground when `score >= t`, and `PxAP = sum_j precision_j (recall_j -
recall_j-1)` over descending `t`: a step sum, no interpolation.

Deviations from the published code, all deliberate: histograms are really summed over processes
(there, a multi-GPU value is that of the first shard); the reported threshold is the true one
(there, it is mirrored, about `1.001 - t`); values are fractions, not percent; a set without any
foreground pixel gives NaN and a warning.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from wsl_zoo.metrics.base import (
    BAD_MASK,
    BAD_SCORES,
    IGNORE,
    float64_device,
    invalid_pixels,
    live_images,
    synced,
    undefined,
)
from wsl_zoo.metrics.kernels import histogram


def _count_on_cpu(scores: Tensor, mask: Tensor, num_thresholds: int) -> Tensor:
    """Histograms `(2, n + 2)` of background and foreground scores `(N,)`, in compiled code.

    Raises:
        ValueError: For NaN or scores outside [0, 1], or for an unknown mask value.
    """
    values = scores if scores.dtype in (torch.float32, torch.float64) else scores.double()
    labels = mask.to(torch.uint8)
    if mask.dtype not in (torch.uint8, torch.bool) and not torch.equal(labels.to(mask.dtype), mask):
        invalid_pixels(scores, mask, None)
    counts = histogram(values.numpy(), labels.numpy(), num_thresholds)
    if counts.size == 0:
        invalid_pixels(scores.double(), mask, None)
    return torch.nn.functional.pad(torch.from_numpy(counts).long(), (0, 1))


def _count_on_accelerator(
    scores: Tensor, mask: Tensor, live: Tensor | None, edges: Tensor
) -> Tensor:
    """Histograms `(2, n + 2)` of background and foreground, without waiting for the device.

    No valid score falls into the last bin, [2, 3]: that of the background counts the invalid
    pixels, for `compute` to raise.
    """
    scores = scores.double().contiguous()
    bins = len(edges) + 1
    index = torch.bucketize(scores, edges, right=True) - 1
    index = torch.where(mask == 1, index + bins, index)
    index = torch.where(mask == IGNORE, 2 * bins, index)
    if live is not None:
        index = torch.where(live.view(-1, 1, 1), index, 2 * bins)
    index = torch.where(invalid_pixels(scores, mask, live), bins - 1, index).flatten()
    # Not bincount, which makes an accelerator wait to learn the length of its result.
    counts = torch.zeros(2 * bins + 1, dtype=torch.int64, device=scores.device)
    return counts.scatter_add_(0, index, torch.ones_like(index))[:-1].view(2, bins)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, and 1 for 0 / 0: an empty prediction of an empty region is perfect."""
    return torch.where(whole > 0, part / whole.clamp(min=1), 1.0)


def dice_of_iou(iou: Tensor) -> Tensor:
    """Dice = 2 IoU / (1 + IoU), for one region."""
    return 2 * iou / (1 + iou)


class PixelCurve(Metric):
    """Histograms of foreground and background scores over a data set, and the curve they give.

    Base of the pixel metrics, which share one pair of histograms inside a `MetricCollection`.
    Counters are int64, so any order, partition or sharding of the images gives the same bits.
    Memory is O(num_thresholds).

    Args:
        num_thresholds: Number n of thresholds `i / n` in [0, 1); 1000 in the protocol. 1 and 2 are
            added to them.
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False

    pos: Tensor
    neg: Tensor

    def __init__(self, num_thresholds: int = 1000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_thresholds < 1:
            raise ValueError(f"num_thresholds={num_thresholds}: at least 1 is needed")
        self.num_thresholds = num_thresholds
        empty = torch.zeros(num_thresholds + 2, dtype=torch.int64)
        self.add_state("pos", empty, dist_reduce_fx="sum")
        self.add_state("neg", empty.clone(), dist_reduce_fx="sum")

    def _edges(self, device: torch.device) -> Tensor:
        """Ascending thresholds `0, 1/n, ..., 1`, `(n + 1,)` float64."""
        edges = torch.arange(self.num_thresholds + 1, dtype=torch.float64, device=device)
        edges *= 1.0 / self.num_thresholds
        edges[-1] = 1.0
        return edges

    def update(self, scores: Tensor, mask: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch of maps.

        Args:
            scores: `(B, H, W)` in [0, 1]; binned in float64.
            mask: `(B, H, W)` of 0 (background), 1 (foreground) and 255 (ignored).
            valid: `(B,)` bool; False drops an image (padded duplicates). All are counted by
                default.

        Raises:
            ValueError: For wrong shapes, NaN or scores outside [0, 1], or other mask values; the
                content of tensors on an accelerator is checked in `compute`, so that `update` need
                not wait for it.
        """
        if scores.ndim != 3 or scores.shape != mask.shape:
            raise ValueError(
                "scores and mask must both be (B, H, W), "
                f"got {tuple(scores.shape)} and {tuple(mask.shape)}"
            )
        device = float64_device(scores.device)
        scores, mask = scores.detach().to(device), mask.to(device)
        live = live_images(valid, len(scores), device)
        if device.type == "cpu":
            if live is not None and not live.all():
                scores, mask = scores[live], mask[live]
            counts = _count_on_cpu(scores.flatten(), mask.flatten(), self.num_thresholds)
        else:
            counts = _count_on_accelerator(scores, mask, live, self._edges(device))
        counts = counts.to(self.pos.device)
        self.neg = self.neg + counts[0]
        self.pos = self.pos + counts[1]

    def compute(self) -> Tensor:
        """Return the metric; a scalar in subclasses."""
        raise NotImplementedError(
            "PixelCurve is a base: use PxAP, PeakIoU, DiceAtThreshold, or curves()"
        )

    def _cumulative(self) -> tuple[Tensor, Tensor]:
        """True and false positives `(n + 2,)` float64, by **descending** threshold from 2."""
        device = float64_device(self.pos.device)
        pos, neg = self.pos.to(device), self.neg.to(device)
        if neg[-1] > 0:
            raise ValueError(
                f"{int(neg[-1])} pixels could not be scored: {BAD_SCORES}, and {BAD_MASK}"
            )
        return pos.flip(0).cumsum(0).double(), neg.flip(0).cumsum(0).double()

    def _thresholds(self, device: torch.device) -> Tensor:
        """`(n + 2,)` descending thresholds 2, 1, (n - 1) / n, ..., 0."""
        edges = self._edges(device)
        return torch.cat([edges.new_full((1,), 2.0), edges.flip(0)])

    def _criterion(self, tp: Tensor, fp: Tensor) -> Tensor:
        """What `best_threshold` maximises: the mean of foreground and background IoU."""
        return (self._iou(tp, fp, "foreground") + self._iou(tp, fp, "background")) / 2

    @staticmethod
    def _iou(tp: Tensor, fp: Tensor, region: Literal["foreground", "background"]) -> Tensor:
        """IoU of a region at each threshold."""
        if region == "foreground":
            return _share(tp, tp[-1] + fp)
        return _share(fp[-1] - fp, fp[-1] + (tp[-1] - tp))

    def _index_of(self, threshold: float | Literal["best"], tp: Tensor, fp: Tensor) -> int:
        """Position on the descending curve: the nearest threshold, or the first maximum."""
        if threshold == "best":
            return int(self._criterion(tp, fp).argmax())
        return int((self._thresholds(tp.device) - float(threshold)).abs().argmin())

    def best_threshold(self) -> float:
        """Threshold of the highest mean IoU on the pixels seen; the highest threshold among equals.

        The decision is `score >= threshold`. 2 means that predicting nothing is best. NaN without a
        foreground pixel. All processes must call it.
        """
        with synced(self):
            tp, fp = self._cumulative()
            if tp[-1] == 0:
                return float(undefined(self, "no foreground pixel", tp.device))
            return float(self._thresholds(tp.device)[self._index_of("best", tp, fp)])

    def curves(self) -> dict[str, Tensor]:
        """Return the curve over thresholds, ascending from 0 to 1, each entry `(n + 1,)` float64.

        Rates are those of the foreground and background pixels; NaN where 0 / 0. Dice and IoU pool
        the pixels of the data set and are 1 where region and prediction are both empty. All
        processes must call it.

        Returns:
            `threshold`, `precision`, `tp_rate` (recall), `fn_rate`, `tn_rate`, `fp_rate`,
            `dice_foreground`, `dice_background`, `iou_foreground`, `iou_background`, `miou`.
        """
        with synced(self):
            tp, fp = self._cumulative()
        foreground, background = self._iou(tp, fp, "foreground"), self._iou(tp, fp, "background")
        recall, fallout = tp / tp[-1], fp / fp[-1]
        descending = {
            "threshold": self._thresholds(tp.device),
            "precision": tp / (tp + fp),
            "tp_rate": recall,
            "fn_rate": 1 - recall,
            "tn_rate": 1 - fallout,
            "fp_rate": fallout,
            "dice_foreground": dice_of_iou(foreground),
            "dice_background": dice_of_iou(background),
            "iou_foreground": foreground,
            "iou_background": background,
            "miou": (foreground + background) / 2,
        }
        return {name: values[1:].flip(0) for name, values in descending.items()}

    def areas(self) -> dict[str, Tensor]:
        """Return the integral of each curve over the threshold, float64 scalars in [0, 1].

        The sum over the thresholds `1/n, 2/n, ..., 1`, times `1/n` (the "area" values of the
        histology survey, MELBA 2023, arXiv 1909.03354). All processes must call it.

        Returns:
            The names of `curves`, without `threshold` and `precision`.
        """
        curves = self.curves()
        names = [name for name in curves if name not in ("threshold", "precision")]
        return {name: curves[name][1:].sum() / self.num_thresholds for name in names}


class PxAP(PixelCurve):
    """Pixel average precision over a data set, in [0, 1].

    One curve for all pixels, not a mean over images: large objects weigh more. A constant map gives
    the prevalence (`Prevalence`), a perfect binary map 1, an inverted one the prevalence. NaN and a
    warning if no foreground pixel was seen.

    Protocol: CVPR 2020 and TPAMI 2022 evaluation of weakly-supervised localisation (arXiv
        2001.07437, 2007.04178).

    Args:
        num_thresholds: Number of thresholds in [0, 1), 1000 in the protocol.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = PxAP()
        >>> scores, mask = torch.tensor([[[0.9, 0.8, 0.3]]]), torch.tensor([[[1, 0, 1]]])
        >>> metric.update(scores, mask)
        >>> round(metric.compute().item(), 4)
        0.8333
    """

    def compute(self) -> Tensor:
        """Return PxAP, a float64 scalar."""
        tp, fp = self._cumulative()
        if tp[-1] == 0:
            return undefined(self, "no foreground pixel", tp.device)
        precision = tp / (tp + fp).clamp(min=1)
        return (precision[1:] * (tp / tp[-1]).diff()).sum()


class PeakIoU(PixelCurve):
    """Highest foreground IoU over all thresholds, pooled over the pixels of a data set, in [0, 1].

    Known as pIoU, reported next to PxAP. `best_threshold` is here the threshold of that IoU. NaN
    and a warning if no foreground pixel was seen.

    Args:
        num_thresholds: Number of thresholds in [0, 1).
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = PeakIoU()
        >>> scores, mask = torch.tensor([[[0.9, 0.8, 0.3]]]), torch.tensor([[[1, 0, 1]]])
        >>> metric.update(scores, mask)
        >>> round(metric.compute().item(), 4), metric.best_threshold()
        (0.6667, 0.3)
    """

    def _criterion(self, tp: Tensor, fp: Tensor) -> Tensor:
        return self._iou(tp, fp, "foreground")

    def compute(self) -> Tensor:
        """Return the peak IoU, a float64 scalar."""
        tp, fp = self._cumulative()
        if tp[-1] == 0:
            return undefined(self, "no foreground pixel", tp.device)
        return self._criterion(tp, fp).max()


class Prevalence(PixelCurve):
    """Share of foreground among the counted pixels: the PxAP of a constant map.

    The floor that PxAP is read against. NaN and a warning if no foreground pixel was seen, as for
    PxAP.

    Args:
        num_thresholds: As of the metrics that it shares histograms with; the value does not depend
            on it.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = Prevalence()
        >>> metric.update(torch.zeros(1, 2, 2), torch.tensor([[[1, 0], [0, 255]]]))
        >>> round(metric.compute().item(), 4)
        0.3333
    """

    higher_is_better = None

    def compute(self) -> Tensor:
        """Return P / (P + Q), a float64 scalar."""
        tp, fp = self._cumulative()
        if tp[-1] == 0:
            return undefined(self, "no foreground pixel", tp.device)
        return tp[-1] / (tp[-1] + fp[-1])
