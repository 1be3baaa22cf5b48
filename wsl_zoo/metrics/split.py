"""Every metric of one evaluated split, made as the split's ground truth asks for them.

Classification: accuracy, balanced accuracy (mean recall of the classes that occur) and, with more
than five classes, top-5. Masks: PxAP beside the prevalence, peak IoU, Dice at the best threshold of
the split itself ("oracle") and, once a threshold was chosen on validation, Dice at that one. Boxes:
MaxBoxAcc, MaxBoxAccV2 and top-1 localisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from wsl_zoo.metrics.boxes import MaxBoxAcc, MaxBoxAccV2
from wsl_zoo.metrics.dice import DiceAtThreshold, ImageDice
from wsl_zoo.metrics.pixels import IGNORE, PeakIoU, Prevalence, PxAP

TOP = 5


class _BalancedAccuracy(MulticlassAccuracy):
    """Mean recall of the classes that occur.

    The base also counts, as 0, those that do not occur but were predicted.
    """

    def compute(self) -> Tensor:
        """Return the mean, a scalar; NaN without any sample."""
        hits, _, _, misses = self._final_state()
        occurs = hits + misses > 0
        return (hits[occurs] / (hits + misses)[occurs]).mean()


def _classification(num_classes: int) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {
        "acc": MulticlassAccuracy(num_classes, average="micro"),
        "balanced_acc": _BalancedAccuracy(num_classes, average="macro"),
    }
    if num_classes > TOP:
        metrics["top5_acc"] = MulticlassAccuracy(num_classes, average="micro", top_k=TOP)
    return MetricCollection(metrics)


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
    return MetricCollection(metrics)


def _boxes() -> MetricCollection:
    return MetricCollection({"maxboxacc": MaxBoxAcc(topk=(1,)), "maxboxacc_v2": MaxBoxAccV2()})


class SplitMetrics(nn.Module):
    """Metrics of one split; what it has no ground truth for is absent from the result.

    Args:
        num_classes: Number K of classes.
        threshold: Map threshold chosen on validation, for the values at a fixed threshold.
    """

    def __init__(self, num_classes: int, threshold: float | None = None) -> None:
        super().__init__()
        self.classification = _classification(num_classes)
        self.pixels = _pixels(threshold)
        self.boxes = _boxes()
        self._seen: set[str] = set()

    def update(
        self,
        *,
        logits: Tensor | None = None,
        label: Tensor | None = None,
        maps: Tensor | None = None,
        mask: Tensor | None = None,
        boxes: Sequence[Tensor] | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            logits: (B, K).
            label: (B,) in [0, K).
            maps: (B, H, W) in [0, 1].
            mask: (B, H, W) of 0, 1 and 255 (ignored).
            boxes: B tensors (n, 4), xyxy in pixels of the maps.
            valid: (B,) bool; False drops a sample.
        """
        if logits is not None and label is not None:
            keep = slice(None) if valid is None else valid
            if valid is None or valid.any():
                self.classification.update(logits[keep], label[keep])
            self._seen.add("classification")
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

    def compute(self) -> tuple[dict[str, Tensor], float | None]:
        """Return the values by name, and the best map threshold (None without ground truth).

        The threshold maximises the mean IoU of foreground and background over the split's pixels,
        or, where there are only boxes, MaxBoxAcc. All processes must call this.
        """
        values: dict[str, Tensor] = {}
        threshold: float | None = None
        if "classification" in self._seen:
            values |= self.classification.compute()
        if "boxes" in self._seen:
            values |= self.boxes.compute()
            accuracy = self.boxes["maxboxacc"]
            assert isinstance(accuracy, MaxBoxAcc)
            values["top1_loc"] = accuracy.topk_accuracy()[1]
            threshold = accuracy.best_threshold().item()
            if math.isnan(threshold):
                threshold = None
        if "pixels" in self._seen:
            values |= self.pixels.compute()
            curve = self.pixels["pxap"]
            assert isinstance(curve, PxAP)
            of_pixels = curve.best_threshold()
            threshold = threshold if math.isnan(of_pixels) else of_pixels
        return {k: v for k, v in values.items() if not torch.isnan(v)}, threshold

    def reset(self) -> None:
        """Forget all batches."""
        for metrics in (self.classification, self.pixels, self.boxes):
            metrics.reset()
        self._seen.clear()
