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

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

IGNORE = 255
"""Mask value of the pixels that count nowhere."""

BAD_SCORES = "scores must lie in [0, 1] and hold no NaN; normalise the map before scoring it"
BAD_MASK = f"a mask holds 0 (background), 1 (foreground) and {IGNORE} (ignore) only"


@contextmanager
def synced(metric: Metric) -> Iterator[None]:
    """Sum the states of all processes inside the context.

    torchmetrics does so around `compute` only. All processes must enter it. Does nothing on one
    process, or when the states are synchronised already.
    """
    fresh = not metric._is_synced
    with metric.sync_context(
        dist_sync_fn=metric.dist_sync_fn,
        should_sync=metric._to_sync and fresh,
        should_unsync=metric._should_unsync and fresh,
    ):
        yield


def protocol_state(*settings: float) -> Tensor:
    """Encode settings as an int64 state, to be reduced by "max".

    `MetricCollection` merges metrics whose states agree after the first batch; without this
    constant it would merge, say, two thresholds that happen to give equal counts on that batch, and
    report one value for both for ever.
    """
    return torch.tensor(settings, dtype=torch.float64).view(torch.int64)


def float64_device(device: torch.device) -> torch.device:
    """Return `device`, or the CPU in place of MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def invalid_pixels(scores: Tensor, mask: Tensor, live: Tensor) -> Tensor:
    """Find pixels that cannot be scored; on the CPU, refuse them at once.

    Other devices are not made to wait: there the caller keeps a count, and `compute` raises.

    Args:
        scores: `(B, H, W)` float64.
        mask: `(B, H, W)`.
        live: Broadcastable to `(B, H, W)`, False where an image is dropped.

    Returns:
        `(B, H, W)` bool.

    Raises:
        ValueError: On the CPU, for NaN or scores outside [0, 1], or for an unknown mask value.
    """
    bad_scores = live & ~((scores >= 0) & (scores <= 1))
    bad_mask = live & (mask != 0) & (mask != 1) & (mask != IGNORE)
    if scores.device.type == "cpu":
        if bad_scores.any():
            found = scores[bad_scores]
            raise ValueError(
                f"{BAD_SCORES}; found {len(found)} such pixels, the first is {found[0].item()}"
            )
        if bad_mask.any():
            raise ValueError(f"{BAD_MASK}; found {mask[bad_mask][0].item()}")
    return bad_scores | bad_mask


def undefined(metric: Metric, reason: str, device: torch.device) -> Tensor:
    """Warn and return NaN."""
    rank_zero_warn(f"{type(metric).__name__} is undefined ({reason}): returning NaN", UserWarning)
    return torch.tensor(torch.nan, dtype=torch.float64, device=device)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError that lists the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, and 1 for 0 / 0: an empty prediction of an empty region is perfect."""
    return torch.where(whole > 0, part / whole.clamp(min=1), 1.0)


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
        scores, mask = scores.detach().to(device).double().contiguous(), mask.to(device)
        live = torch.ones(len(scores), dtype=torch.bool, device=device)
        if valid is not None:
            if valid.shape != live.shape:
                raise ValueError(f"valid must be ({len(scores)},), got {tuple(valid.shape)}")
            live = valid.to(device=device, dtype=torch.bool)
        live = live.view(-1, 1, 1)
        bad = invalid_pixels(scores, mask, live)

        bins = self.num_thresholds + 2
        index = torch.bucketize(scores, self._edges(device), right=True) - 1
        index = torch.where(mask == 1, index + bins, index)
        index = torch.where(live & (mask != IGNORE), index, 2 * bins)
        # No valid score falls into [2, 3]: that bin counts the invalid pixels until `compute`.
        index = torch.where(bad, bins - 1, index).flatten()
        # Not bincount, which makes an accelerator wait to learn the length of its result.
        counts = torch.zeros(2 * bins + 1, dtype=torch.int64, device=device)
        counts = counts.scatter_add_(0, index, torch.ones_like(index)).to(self.pos.device)
        self.neg = self.neg + counts[:bins]
        self.pos = self.pos + counts[bins : 2 * bins]

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


def dice_of_iou(iou: Tensor) -> Tensor:
    """Dice = 2 IoU / (1 + IoU), for one region."""
    return 2 * iou / (1 + iou)


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
