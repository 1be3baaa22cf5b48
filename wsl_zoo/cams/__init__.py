"""Maps read out of an encoder and a head, and their normalisation."""

from wsl_zoo.cams.activation import CAM, ClassMap
from wsl_zoo.cams.normalize import normalize_map

__all__ = ["CAM", "ClassMap", "normalize_map"]
