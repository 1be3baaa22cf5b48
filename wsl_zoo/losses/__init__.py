"""Losses: tensors in, unweighted scalars out; none knows a batch, a module or a trainer."""

from wsl_zoo.losses.barrier import ExtendedLogBarrier
from wsl_zoo.losses.bilateral import bilateral_apply
from wsl_zoo.losses.crf import DenseCRF, JointColorCRF
from wsl_zoo.losses.entropy import negative_entropy, pixel_entropy, uniform_cross_entropy
from wsl_zoo.losses.seeds import SAMPLERS, SEED_IGNORE, SeedSampler, seed_loss
from wsl_zoo.losses.size import BackgroundLarger, EmptyOutside, SizeConstraint, SizeNear

__all__ = [
    "SAMPLERS",
    "SEED_IGNORE",
    "BackgroundLarger",
    "DenseCRF",
    "EmptyOutside",
    "ExtendedLogBarrier",
    "JointColorCRF",
    "SeedSampler",
    "SizeConstraint",
    "SizeNear",
    "bilateral_apply",
    "negative_entropy",
    "pixel_entropy",
    "seed_loss",
    "uniform_cross_entropy",
]
