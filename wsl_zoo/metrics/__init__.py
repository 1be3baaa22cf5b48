"""Metrics of weakly-supervised learning as torchmetrics: tensors in, fractions in [0, 1] out.

Metrics of localisation and of ranks keep integer counters only, so memory does not grow with the
data set and a value on several processes equals the value on one, bit for bit, as long as padded
duplicates are marked `valid=False`. Those of censored outcomes keep rows (1e-12), those of restored
images, some in decibels, float64 sums (1e-12).
"""

from wsl_zoo.metrics.bias import PredictionBias
from wsl_zoo.metrics.boxes import BoxAcc, BoxAccV2, BoxLocalization, MaxBoxAcc, MaxBoxAccV2
from wsl_zoo.metrics.contours import boxes_from_map
from wsl_zoo.metrics.corloc import CorLoc
from wsl_zoo.metrics.dice import DiceAtThreshold, ImageDice, MeanIoUAtThreshold, RateAtThreshold
from wsl_zoo.metrics.ordinal import OrdinalAccuracy, OrdinalMAE, SidesOrderIndex
from wsl_zoo.metrics.pixels import PeakIoU, PixelCurve, Prevalence, PxAP
from wsl_zoo.metrics.superres import NRMSE, PSNR, SSIM, image_nrmse, image_psnr, image_ssim
from wsl_zoo.metrics.survival import ConcordanceIndex, TimeDependentAUC

__all__ = [
    "NRMSE",
    "PSNR",
    "SSIM",
    "BoxAcc",
    "BoxAccV2",
    "BoxLocalization",
    "ConcordanceIndex",
    "CorLoc",
    "DiceAtThreshold",
    "ImageDice",
    "MaxBoxAcc",
    "MaxBoxAccV2",
    "MeanIoUAtThreshold",
    "OrdinalAccuracy",
    "OrdinalMAE",
    "PeakIoU",
    "PixelCurve",
    "PredictionBias",
    "Prevalence",
    "PxAP",
    "RateAtThreshold",
    "SidesOrderIndex",
    "TimeDependentAUC",
    "boxes_from_map",
    "image_nrmse",
    "image_psnr",
    "image_ssim",
]
