"""Losses: tensors in, unweighted scalars out; none knows a batch, a module or a trainer."""

from wsl_zoo.losses.adapt import anchor_contrast, contrastive_domain_discrepancy, suppression_loss
from wsl_zoo.losses.barrier import ExtendedLogBarrier
from wsl_zoo.losses.bilateral import bilateral_apply
from wsl_zoo.losses.clusters import (
    ClassGaussians,
    Clusters,
    Roles,
    anchored_clusters,
    centroid_labels,
    class_gaussians,
    forget_set,
    nearest_fraction,
    overpredicted,
    prediction_bias,
)
from wsl_zoo.losses.contrast import in_batch_contrast
from wsl_zoo.losses.crf import DenseCRF, JointColorCRF
from wsl_zoo.losses.distill import (
    bernoulli_distillation,
    cosine_distillation,
    double_softmax_cross_entropy,
    reconstruction_loss,
)
from wsl_zoo.losses.entropy import (
    marginal_entropy,
    negative_entropy,
    pixel_entropy,
    uniform_cross_entropy,
)
from wsl_zoo.losses.ordinal import (
    CORAL,
    CORN,
    CodeVector,
    LabelDistribution,
    MeanVariance,
    OrdinalCrossEntropy,
    OrdinalLoss,
    ProportionalOdds,
    SoftOrdinal,
    UnimodalityConstraint,
    adjacent_differences,
)
from wsl_zoo.losses.seeds import SAMPLERS, SEED_IGNORE, SeedSampler, seed_loss
from wsl_zoo.losses.size import BackgroundLarger, EmptyOutside, SizeConstraint, SizeNear
from wsl_zoo.losses.superres import pixel_loss, restoration_terms, ssim, stage_target
from wsl_zoo.losses.survival import horizon_labels, masked_bce, positive_weight

__all__ = [
    "CORAL",
    "CORN",
    "SAMPLERS",
    "SEED_IGNORE",
    "BackgroundLarger",
    "ClassGaussians",
    "Clusters",
    "CodeVector",
    "DenseCRF",
    "EmptyOutside",
    "ExtendedLogBarrier",
    "JointColorCRF",
    "LabelDistribution",
    "MeanVariance",
    "OrdinalCrossEntropy",
    "OrdinalLoss",
    "ProportionalOdds",
    "Roles",
    "SeedSampler",
    "SizeConstraint",
    "SizeNear",
    "SoftOrdinal",
    "UnimodalityConstraint",
    "adjacent_differences",
    "anchor_contrast",
    "anchored_clusters",
    "bernoulli_distillation",
    "bilateral_apply",
    "centroid_labels",
    "class_gaussians",
    "contrastive_domain_discrepancy",
    "cosine_distillation",
    "double_softmax_cross_entropy",
    "forget_set",
    "horizon_labels",
    "in_batch_contrast",
    "marginal_entropy",
    "masked_bce",
    "nearest_fraction",
    "negative_entropy",
    "overpredicted",
    "pixel_entropy",
    "pixel_loss",
    "positive_weight",
    "prediction_bias",
    "reconstruction_loss",
    "restoration_terms",
    "seed_loss",
    "ssim",
    "stage_target",
    "suppression_loss",
    "uniform_cross_entropy",
]
