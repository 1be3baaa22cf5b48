"""Maps read out of an encoder and a head, and their normalisation."""

from wsl_zoo.cams.activation import CAM, ClassMap
from wsl_zoo.cams.confidence import ISCAM, SSCAM, AblationCAM, ScoreCAM
from wsl_zoo.cams.gradient import (
    EigenCAM,
    EigenGradCAM,
    ElementWiseCAM,
    GradCAM,
    GradCAMpp,
    HiResCAM,
    LayerCAM,
    SmoothGradCAMpp,
    XGradCAM,
)
from wsl_zoo.cams.normalize import normalize_map
from wsl_zoo.cams.peak import PeakResponse
from wsl_zoo.cams.pseudo_mask import PseudoMask, expected_map
from wsl_zoo.cams.temporal import temporal_max

__all__ = [
    "CAM",
    "ISCAM",
    "SSCAM",
    "AblationCAM",
    "ClassMap",
    "EigenCAM",
    "EigenGradCAM",
    "ElementWiseCAM",
    "GradCAM",
    "GradCAMpp",
    "HiResCAM",
    "LayerCAM",
    "PeakResponse",
    "PseudoMask",
    "ScoreCAM",
    "SmoothGradCAMpp",
    "XGradCAM",
    "expected_map",
    "normalize_map",
    "temporal_max",
]
