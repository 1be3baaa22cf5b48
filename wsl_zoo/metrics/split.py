"""Every metric of one evaluated split, made as the split's ground truth asks for them.

Classification: accuracy, balanced accuracy (mean recall of the classes that occur) and, with more
than five classes, top-5; of ranks accuracy, mean absolute error and SOI around the prediction and
the label. Masks: PxAP beside the prevalence, peak IoU, Dice at the best threshold of
the split itself ("oracle"). Boxes: MaxBoxAcc, MaxBoxAccV2, and top-1 (top-5) localisation at the
best threshold ("oracle"). Videos: CorLoc, the share of frames localised at IoU 0.5, the mean over
classes, at the threshold that is best on the split: one for all classes ("oracle", TCAM's protocol)
or one per class ("class_oracle", CoLo-CAM's). Once thresholds were chosen on validation, also the
values at those: Dice, BoxAcc, BoxAccV2, top-1 (top-5) localisation, CorLoc.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from wsl_zoo.metrics.base import IGNORE, synced
from wsl_zoo.metrics.bias import PredictionBias
from wsl_zoo.metrics.boxes import BoxAcc, BoxAccV2, BoxLocalization, MaxBoxAcc, MaxBoxAccV2
from wsl_zoo.metrics.corloc import CorLoc
from wsl_zoo.metrics.dice import DiceAtThreshold, ImageDice
from wsl_zoo.metrics.ordinal import OrdinalAccuracy, OrdinalMAE, SidesOrderIndex
from wsl_zoo.metrics.pixels import PeakIoU, PixelCurve, Prevalence, PxAP

TOP = 5


@dataclass(frozen=True)
class Thresholds:
    """The map thresholds that are best on one split; None where it has no such ground truth.

    Attributes:
        pixels: Of the highest mean IoU of foreground and background; a pixel with `score >= t` is
            foreground, 2 means that predicting nothing is best.
        largest: Of MaxBoxAcc, relative to each map's maximum.
        all: Of MaxBoxAccV2, one per IoU threshold, likewise.
    """

    pixels: float | None = None
    largest: float | None = None
    all: tuple[float, ...] | None = None

    @property
    def map(self) -> float | None:
        """The one to make a mask with: of pixels, else of boxes."""
        return self.largest if self.pixels is None else self.pixels

    def state(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Thresholds:
        """Return what `state` gave."""
        several = state["all"]
        return cls(state["pixels"], state["largest"], None if several is None else tuple(several))


class _BalancedAccuracy(MulticlassAccuracy):
    """Mean recall of the classes that occur.

    The base also counts, as 0, those that do not occur but were predicted.
    """

    def compute(self) -> Tensor:
        """Return the mean, a scalar; NaN without any sample."""
        hits, _, _, misses = self._final_state()
        occurs = hits + misses > 0
        return (hits[occurs] / (hits + misses)[occurs]).mean()


def _classification(num_classes: int, bias: bool) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {
        "acc": MulticlassAccuracy(num_classes, average="micro"),
        "balanced_acc": _BalancedAccuracy(num_classes, average="macro"),
    }
    if num_classes > TOP:
        metrics["top5_acc"] = MulticlassAccuracy(num_classes, average="micro", top_k=TOP)
    if bias:
        metrics["bias"] = PredictionBias(num_classes, normalize=True)
    return MetricCollection(metrics)


def _ranks() -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {
        "acc": OrdinalAccuracy(),
        "mae": OrdinalMAE(),
        "soi": SidesOrderIndex("prediction"),
        "soi_label": SidesOrderIndex("label"),
    }
    # Their states have the same names and may happen to be equal: each keeps its own.
    return MetricCollection(metrics, compute_groups=False)


def _pixels(threshold: float | None) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {
        "pxap": PxAP(),
        "prevalence": Prevalence(),
        "peak_iou": PeakIoU(),
        "dice_oracle": DiceAtThreshold("best"),
        "dice_bg_oracle": DiceAtThreshold("best", "background"),
    }
    if threshold is not None:
        metrics["dice"] = DiceAtThreshold(threshold)
        metrics["dice_bg"] = DiceAtThreshold(threshold, "background")
        metrics["image_dice"] = ImageDice(threshold)
        metrics["image_dice_bg"] = ImageDice(threshold, "background", empty="truth")
        metrics["image_dice_present"] = ImageDice(threshold, empty="truth")
    return MetricCollection(metrics)


def _boxes(num_classes: int, thresholds: Thresholds, corloc: bool) -> MetricCollection:
    top = (1, TOP) if num_classes > TOP else (1,)
    metrics: dict[str, Metric | MetricCollection] = {
        "maxboxacc": MaxBoxAcc(topk=top),
        "maxboxacc_v2": MaxBoxAccV2(),
    }
    if thresholds.largest is not None:
        metrics["boxacc"] = BoxAcc(thresholds.largest, topk=top)
    if thresholds.all is not None:
        metrics["boxacc_v2"] = BoxAccV2(thresholds.all)
    if corloc:
        metrics["corloc_oracle"] = CorLoc(num_classes, "global")
        metrics["corloc_class_oracle"] = CorLoc(num_classes, "per_class")
        if thresholds.largest is not None:
            metrics["corloc"] = CorLoc(num_classes, thresholds.largest)
    return MetricCollection(metrics)


class WithoutClasses(nn.Module):
    """Base of metrics of a split that has neither classes nor maps."""

    def shares(self) -> dict[str, Tensor]:
        """Return none: there are no classes."""
        return {}

    def curves(self) -> dict[str, dict[str, Tensor]]:
        """Return none: there are no maps."""
        return {}

    def per_class(self) -> dict[str, Tensor]:
        """Return none: there are no classes."""
        return {}


class SplitMetrics(nn.Module):
    """Metrics of one split; what it has no ground truth for is absent from the result.

    Args:
        num_classes: Number K of classes.
        thresholds: Map thresholds chosen on validation, for the values at fixed thresholds.
        corloc: The split holds frames of videos: CorLoc too, where there are boxes.
        bias: Also how unevenly classes are predicted (`bias`, `shares`).
        ordinal: Classes are ranks.
    """

    def __init__(
        self,
        num_classes: int,
        thresholds: Thresholds | None = None,
        *,
        corloc: bool = False,
        bias: bool = False,
        ordinal: bool = False,
    ) -> None:
        super().__init__()
        thresholds = Thresholds() if thresholds is None else thresholds
        self.ordinal = ordinal
        self.classification = _ranks() if ordinal else _classification(num_classes, bias)
        self.loss = MeanMetric().set_dtype(torch.float64)  # the same on any number of processes
        self.pixels = _pixels(thresholds.pixels)
        self.boxes = _boxes(num_classes, thresholds, corloc)
        self._seen: set[str] = set()

    def update(
        self,
        *,
        logits: Tensor | None = None,
        label: Tensor | None = None,
        prediction: Tensor | None = None,
        loss: Tensor | None = None,
        maps: Tensor | None = None,
        mask: Tensor | None = None,
        boxes: Sequence[Tensor] | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            logits: (B, K), or of ranks any scores of which the order counts.
            label: (B,) in [0, K).
            prediction: (B,) predicted ranks; None: the argmax.
            loss: (B,) losses, whose mean is kept.
            maps: (B, H, W) in [0, 1].
            mask: (B, H, W) of 0, 1 and 255 (ignored).
            boxes: B tensors (n, 4), xyxy in pixels of the maps.
            valid: (B,) bool; False drops a sample.
        """
        if logits is not None and label is not None:
            keep = slice(None) if valid is None else valid
            if self.ordinal:
                self.classification.update(logits, label, prediction, valid)
            elif valid is None or valid.any():
                self.classification.update(logits[keep], label[keep])
            self._seen.add("classification")
        if loss is not None:
            self.loss.update(loss if valid is None else loss[valid])
            self._seen.add("loss")
        if maps is None:
            return
        if mask is not None:
            # An image without a mask (all ignored) is no image with an empty one.
            annotated = (mask != IGNORE).flatten(1).any(1)
            self.pixels.update(maps, mask, valid=annotated if valid is None else annotated & valid)
            self._seen.add("pixels")
        if boxes is not None:
            self.boxes.update(maps, boxes, logits=logits, label=label, valid=valid)
            self._seen.add("boxes")

    def compute(self) -> tuple[dict[str, Tensor], Thresholds]:
        """Return the values by name, and the best map thresholds. All processes must call this."""
        values: dict[str, Tensor] = {}
        best = Thresholds()
        if "classification" in self._seen:
            values |= self.classification.compute()
        if "loss" in self._seen:
            values["loss"] = self.loss.compute()
        if "boxes" in self._seen:
            values |= self.boxes.compute()
            for name, suffix in (("maxboxacc", "_oracle"), ("boxacc", "")):
                if name in self.boxes:
                    for k, value in self._localization(name).topk_accuracy().items():
                        values[f"top{k}_loc{suffix}"] = value
            largest = self._localization("maxboxacc").best_threshold().item()
            several = tuple(self._localization("maxboxacc_v2").best_threshold().tolist())
            if not math.isnan(largest):  # some image has a box
                best = replace(best, largest=largest, all=several)
        if "pixels" in self._seen:
            values |= self.pixels.compute()
            if values.get("image_dice_present") == values.get("image_dice"):
                values.pop("image_dice_present", None)  # no image without a region
            pixels = self._curve().best_threshold()
            if not math.isnan(pixels):  # some pixel is foreground
                best = replace(best, pixels=pixels)
        return {k: v for k, v in values.items() if not torch.isnan(v)}, best

    def shares(self) -> dict[str, Tensor]:
        """Return the share of predictions of each class, `share_<k>`; empty without `bias`.

        All processes must call this.
        """
        metric = dict(self.classification.items()).get("bias")
        if not isinstance(metric, PredictionBias) or "classification" not in self._seen:
            return {}
        with synced(metric):
            return {f"share_{k}": share for k, share in enumerate(metric.shares())}

    def per_class(self) -> dict[str, Tensor]:
        """Return CorLoc of every class by name, `(K,)` each, NaN of a class without frames.

        Empty where CorLoc is not asked for or no frame has a box. All processes must call this.
        """
        if "boxes" not in self._seen:
            return {}
        metrics = {k: m for k, m in self.boxes.items() if isinstance(m, CorLoc)}
        return {name: metric.per_class() for name, metric in metrics.items()}

    def curves(self) -> dict[str, dict[str, Tensor]]:
        """Return the curves over map thresholds: "pixels", and of boxes "largest" and "all".

        All processes must call this.
        """
        found: dict[str, dict[str, Tensor]] = {}
        if "pixels" in self._seen:
            found["pixels"] = self._curve().curves()
        if "boxes" in self._seen:
            for name in ("maxboxacc", "maxboxacc_v2"):
                metric = self._localization(name)
                found[metric.contours] = metric.curves()
        return found

    def _localization(self, name: str) -> BoxLocalization:
        metric = self.boxes[name]
        assert isinstance(metric, BoxLocalization)
        return metric

    def _curve(self) -> PixelCurve:
        metric = self.pixels["pxap"]
        assert isinstance(metric, PxAP)
        return metric

    def reset(self) -> None:
        """Forget all batches."""
        for metrics in (self.classification, self.loss, self.pixels, self.boxes):
            metrics.reset()
        self._seen.clear()
