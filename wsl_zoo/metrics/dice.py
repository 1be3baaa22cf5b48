"""Dice, mean IoU and rates of thresholded maps, pooled over a data set or averaged over images.

Pooled Dice = 2 TP / (2 TP + FP + FN) over all pixels of the set, from the histograms of
`PixelCurve`, and the mean over images of the Dice of each are different metrics: the first is that
of the FCAM line of work, the second that of the min-max-entropy, MAXMIN and active-learning papers,
whose rules for images with nothing to find differ (`empty`).

The best threshold maximises the mean of foreground and background IoU. On a test set that is an
oracle: pass the validation set's `best_threshold()` as `threshold` for an honest number. (Published
tables use the test optimum.)
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from wsl_zoo.metrics.base import (
    BAD_MASK,
    BAD_SCORES,
    IGNORE,
    check_choice,
    float64_device,
    invalid_pixels,
    live_images,
    protocol_state,
    undefined,
)
from wsl_zoo.metrics.pixels import PixelCurve, dice_of_iou

Region = Literal["foreground", "background"]
Threshold = float | Literal["best"]

Rate = Literal["tp", "fn", "tn", "fp"]

REGIONS = ("foreground", "background")
EMPTY = ("one", "skip", "zero", "truth")
RATES = ("tp", "fn", "tn", "fp")


def _check_threshold(threshold: float | str, best: bool) -> None:
    """Raise unless the threshold is a number the curve knows, or "best" where that is allowed."""
    if isinstance(threshold, str):
        fits = best and threshold == "best"
    else:
        fits = 0 <= threshold <= 1 or threshold == 2
    if not fits:
        also = ', or "best"' if best else ""
        raise ValueError(f"threshold={threshold!r}: a number in [0, 1], 2 (predict nothing){also}")


class DiceAtThreshold(PixelCurve):
    """Dice of one region at one threshold, over the pooled pixels of a data set, in [0, 1].

    NaN and a warning if no foreground pixel (or, for the background, no background pixel) was seen.

    Args:
        threshold: "best" takes the threshold of the highest mean IoU on the same pixels, the
            highest among equals; a number is matched to the nearest of the curve's thresholds.
            Pixels with `score >= threshold` are foreground.
        region: Whose Dice to report.
        num_thresholds: Number of thresholds in [0, 1).
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> scores, mask = torch.tensor([[[0.9, 0.8, 0.3]]]), torch.tensor([[[1, 1, 0]]])
        >>> metric = DiceAtThreshold()
        >>> metric.update(scores, mask)
        >>> metric.compute().item(), metric.best_threshold()
        (1.0, 0.8)
        >>> metric = DiceAtThreshold(0.85)
        >>> metric.update(scores, mask)
        >>> round(metric.compute().item(), 4)
        0.6667
    """

    def __init__(
        self,
        threshold: Threshold = "best",
        region: Region = "foreground",
        num_thresholds: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_thresholds, **kwargs)
        _check_threshold(threshold, best=True)
        check_choice("region", region, REGIONS)
        self.threshold: Threshold = threshold
        self.region: Region = region

    def compute(self) -> Tensor:
        """Return the Dice, a float64 scalar."""
        tp, fp = self._cumulative()
        if tp[-1] == 0:
            return undefined(self, "no foreground pixel", tp.device)
        if self.region == "background" and fp[-1] == 0:
            return undefined(self, "no background pixel", tp.device)
        return dice_of_iou(self._iou(tp, fp, self.region)[self._index_of(self.threshold, tp, fp)])


class MeanIoUAtThreshold(PixelCurve):
    """Mean of foreground and background IoU at one threshold, over pooled pixels, in [0, 1].

    NaN and a warning if no foreground pixel was seen. Without background pixels their IoU is 1 if
    none is predicted, else 0.

    Args:
        threshold: As of `DiceAtThreshold`.
        num_thresholds: Number of thresholds in [0, 1).
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = MeanIoUAtThreshold(0.5)
        >>> metric.update(torch.tensor([[[0.9, 0.8, 0.3, 0.1]]]), torch.tensor([[[1, 0, 0, 0]]]))
        >>> round(metric.compute().item(), 4)
        0.5833
    """

    def __init__(
        self, threshold: Threshold = "best", num_thresholds: int = 1000, **kwargs: Any
    ) -> None:
        super().__init__(num_thresholds, **kwargs)
        _check_threshold(threshold, best=True)
        self.threshold: Threshold = threshold

    def compute(self) -> Tensor:
        """Return the mean IoU, a float64 scalar."""
        tp, fp = self._cumulative()
        if tp[-1] == 0:
            return undefined(self, "no foreground pixel", tp.device)
        return self._criterion(tp, fp)[self._index_of(self.threshold, tp, fp)]


class RateAtThreshold(PixelCurve):
    """Share of the foreground or background pixels of a data set decided one way, in [0, 1].

    "tp" (recall, sensitivity) and "fn" are shares of the foreground and add to 1, "tn"
    (specificity) and "fp" of the background. NaN and a warning if no such pixel was seen.

    Args:
        rate: "tp", "fn", "tn" or "fp".
        threshold: As of `DiceAtThreshold`.
        num_thresholds: Number of thresholds in [0, 1).
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = RateAtThreshold("fp", 0.5)
        >>> metric.update(torch.tensor([[[0.9, 0.8, 0.3, 0.1]]]), torch.tensor([[[1, 0, 0, 0]]]))
        >>> round(metric.compute().item(), 4)
        0.3333
    """

    higher_is_better = None

    def __init__(
        self,
        rate: Rate = "tp",
        threshold: Threshold = "best",
        num_thresholds: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_thresholds, **kwargs)
        check_choice("rate", rate, RATES)
        _check_threshold(threshold, best=True)
        self.rate: Rate = rate
        self.threshold: Threshold = threshold

    def compute(self) -> Tensor:
        """Return the rate, a float64 scalar."""
        tp, fp = self._cumulative()
        positive, whole = (tp, tp[-1]) if self.rate in ("tp", "fn") else (fp, fp[-1])
        if whole == 0:
            region = "foreground" if self.rate in ("tp", "fn") else "background"
            return undefined(self, f"no {region} pixel", tp.device)
        rate = positive[self._index_of(self.threshold, tp, fp)] / whole
        return rate if self.rate in ("tp", "fp") else 1 - rate


class ImageDice(Metric):
    """Mean over images of the Dice of each at a fixed threshold, in [0, 1].

    Images may differ in size, so that maps can be scored at the original resolution. Each image's
    Dice is rounded to a multiple of 2**-40 (1e-12) and added as an integer, so any order or
    sharding gives the same bits. NaN and a warning if no image was counted.

    Args:
        threshold: In [0, 1]; pixels with `score >= threshold` (in float64) are foreground; 2
            predicts nothing.
        region: Whose Dice to report; "background" scores the complements of prediction and mask.
        empty: Dice of an image in which both the region and its prediction are empty (0 / 0): "one"
            counts it as perfect, "skip" leaves the image out (min-max entropy, max-min
            uncertainty), "zero" counts 0 (active learning). An image where only one of the two is
            empty has Dice 0. "truth" leaves out every image in which the region is empty, whatever
            was predicted (max-min uncertainty on CAMELYON16: tumour patches only).
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = ImageDice(0.5)
        >>> scores = [torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[0.2]])]
        >>> metric.update(scores, [torch.tensor([[1, 0, 0]]), torch.tensor([[0]])])
        >>> round(metric.compute().item(), 4)
        0.8333
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    SCALE = 2**40
    """Integer units per 1 of Dice: 8 million images fit into int64."""

    total: Tensor
    count: Tensor
    invalid: Tensor

    def __init__(
        self,
        threshold: float = 0.5,
        region: Region = "foreground",
        empty: Literal["one", "skip", "zero", "truth"] = "one",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_threshold(threshold, best=False)
        check_choice("region", region, REGIONS)
        check_choice("empty", empty, EMPTY)
        self.threshold, self.region, self.empty = float(threshold), region, empty
        for name in ("total", "count", "invalid"):
            self.add_state(name, torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        rule = EMPTY.index(empty)
        self.add_state(
            "protocol", protocol_state(threshold, REGIONS.index(region), rule), dist_reduce_fx="max"
        )

    def update(
        self,
        scores: Tensor | Sequence[Tensor],
        mask: Tensor | Sequence[Tensor],
        valid: Tensor | None = None,
    ) -> None:
        """Add images.

        Args:
            scores: `(B, H, W)` in [0, 1], or B maps `(H, W)` of any sizes.
            mask: `(B, H, W)`, or B masks `(H, W)`, of 0, 1 and 255 (ignored pixels).
            valid: `(B,)` bool; False drops an image. All are counted by default.

        Raises:
            ValueError: For wrong shapes, NaN or scores outside [0, 1], or other mask values; the
                content of tensors on an accelerator is checked in `compute`.
        """
        if len(scores) != len(mask) or (valid is not None and valid.shape != (len(scores),)):
            raise ValueError(
                f"{len(scores)} maps, {len(mask)} masks"
                + ("" if valid is None else f", valid {tuple(valid.shape)}")
            )
        if isinstance(scores, Tensor) and isinstance(mask, Tensor):
            self._add(scores, mask, valid)
            return
        for i, (one, truth) in enumerate(zip(scores, mask, strict=True)):
            self._add(one[None], truth[None], None if valid is None else valid[i : i + 1])

    def _add(self, scores: Tensor, mask: Tensor, valid: Tensor | None) -> None:
        """Add images of one size."""
        if scores.ndim != 3 or scores.shape != mask.shape:
            raise ValueError(
                "a map and its mask must have one shape (H, W), "
                f"got {tuple(scores.shape[1:])} and {tuple(mask.shape[1:])}"
            )
        device = float64_device(scores.device)
        scores, mask = scores.detach().to(device).double(), mask.to(device)
        live = live_images(valid, len(scores), device)
        bad = invalid_pixels(scores, mask, live)

        predicted, truth = scores >= self.threshold, mask == 1
        if self.region == "background":
            predicted, truth = ~predicted, mask == 0
        predicted = predicted & (mask != IGNORE)
        overlap = 2 * (predicted & truth).sum((1, 2))
        size = predicted.sum((1, 2)) + truth.sum((1, 2))
        neither = 0.0 if self.empty == "zero" else 1.0
        dice = torch.where(size > 0, overlap / size.clamp(min=1).double(), neither)
        counted = torch.ones_like(size, dtype=torch.bool)
        if self.empty in ("skip", "truth"):
            counted = (size if self.empty == "skip" else truth.sum((1, 2))) > 0
        if live is not None:
            counted = counted & live
        units = torch.where(counted, (dice * self.SCALE).round().long(), 0)
        self.total = self.total + units.sum().to(self.total.device)
        self.count = self.count + counted.sum().to(self.count.device)
        self.invalid = self.invalid + bad.sum().to(self.invalid.device)

    def compute(self) -> Tensor:
        """Return the mean Dice, a float64 scalar."""
        device = float64_device(self.total.device)
        if self.invalid > 0:
            raise ValueError(
                f"{int(self.invalid)} pixels could not be scored: {BAD_SCORES}, and {BAD_MASK}"
            )
        if self.count == 0:
            return undefined(self, "no image was counted", device)
        return self.total.to(device).double() / self.SCALE / self.count.to(device)
