"""Metrics of weakly-supervised learning as torchmetrics: tensors in, fractions in [0, 1] out.

Localisation metrics keep integer counters only, so memory does not grow with the data set and a
value on several processes equals the value on one, bit for bit, as long as padded duplicates are
marked `valid=False`.
"""

from wsl_zoo.metrics.bias import PredictionBias
from wsl_zoo.metrics.boxes import BoxAcc, BoxAccV2, BoxLocalization, MaxBoxAcc, MaxBoxAccV2
from wsl_zoo.metrics.contours import boxes_from_map
from wsl_zoo.metrics.corloc import CorLoc
from wsl_zoo.metrics.dice import DiceAtThreshold, ImageDice, MeanIoUAtThreshold, RateAtThreshold
from wsl_zoo.metrics.pixels import PeakIoU, PixelCurve, Prevalence, PxAP

__all__ = [
    "BoxAcc",
    "BoxAccV2",
    "BoxLocalization",
    "CorLoc",
    "DiceAtThreshold",
    "ImageDice",
    "MaxBoxAcc",
    "MaxBoxAccV2",
    "MeanIoUAtThreshold",
    "PeakIoU",
    "PixelCurve",
    "PredictionBias",
    "Prevalence",
    "PxAP",
    "RateAtThreshold",
    "boxes_from_map",
]
