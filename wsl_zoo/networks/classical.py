"""Interpolation: networks without parameters, which every other one should beat.

Kernels, with d the distance to a pixel's centre in pixels of low resolution:
- nearest and bilinear: as everywhere; with whole-numbered scales, libraries agree.
- bicubic: Keys' kernel with a = -0.5, weights beyond a border left out and the others normalised.
  Pillow's BICUBIC and torch's with antialiasing (which changes the kernel, too): the row "Bicubic"
  of the benchmark (SR-CACO-2, arXiv 2406.09168).
- bicubic_opencv: a = -0.75, pixels at a border repeated. OpenCV's INTER_CUBIC, torch's without
  antialiasing and what networks of the benchmark enlarge their input with (`upsampled`).
- lanczos: sinc(d) sinc(d / 3) for |d| < 3, at a border as bicubic: Pillow's LANCZOS.

Nearest, bilinear and Lanczos are no rows of the benchmark.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.networks.base import SuperResolution, upsampled
from wsl_zoo.precision import at_least_float32

Kind = Literal["nearest", "bilinear", "bicubic", "bicubic_opencv", "lanczos"]

KINDS: tuple[Kind, ...] = ("nearest", "bilinear", "bicubic", "bicubic_opencv", "lanczos")
LOBES = 3


class Interpolation(SuperResolution):
    """Interpolation by a fixed kernel; unlike other networks' results, its are within [0, 1].

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`; any number is interpolated alike.
        kind: The kernel.

    Raises:
        ValueError: Another kernel.

    Example:
        >>> import torch
        >>> Interpolation(2, kind="bilinear")(torch.tensor([[[[0.0, 1.0]]]]))[0, 0, 0]
        tensor([0.0000, 0.2500, 0.7500, 1.0000])
    """

    def __init__(self, scale: int, in_chans: int = 1, kind: Kind = "bicubic") -> None:
        super().__init__(scale, in_chans)
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: there are {', '.join(KINDS)}")
        self.kind = kind

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone."""
        if self.kind == "bicubic_opencv":
            return [upsampled(image, self.scale)]
        if self.kind == "lanczos":
            return [lanczos(image, self.scale).clamp(0, 1)]
        enlarged = F.interpolate(
            image, scale_factor=self.scale, mode=self.kind, antialias=self.kind == "bicubic"
        )
        return [enlarged.clamp(0, 1)]


def lanczos(image: Tensor, scale: int) -> Tensor:
    """Return an image (B, C, h, w) enlarged by Pillow's LANCZOS, columns first as there.

    Every pixel is a weighted sum of six by six. They are looked up one after the other, so that no
    more than the result and one term of it are in memory, and the sums are exact in float32 where
    a convolution on CUDA would round to TF32.

    Args:
        image: Any range; half precision is computed in float32.
        scale: s, any positive integer.
    """
    result = at_least_float32(image)
    for dim in (3, 2):
        index, weight = lanczos_taps(image.shape[dim], scale)
        index, weight = index.to(image.device), weight.to(image.device, result.dtype)
        weight = weight if dim == 3 else weight[..., None]
        terms = (w * result.index_select(dim, i) for i, w in zip(index, weight, strict=True))
        total = next(terms)
        for term in terms:
            total += term
        result = total
    return result.to(image.dtype)


def lanczos_taps(size: int, scale: int) -> tuple[Tensor, Tensor]:
    """Return which pixels of a line make one of the enlarged line, and by what weights.

    Args:
        size: Pixels n of the line.
        scale: s.

    Returns:
        Indices (6, s n), int64, and weights (6, s n), float64, whose sum over the six is one. Those
        beyond the line's ends have weight zero, and an index within.
    """
    center = (torch.arange(scale * size, dtype=torch.float64) + 0.5) / scale
    first = (center - LOBES + 0.5).floor().long()
    index = first + torch.arange(2 * LOBES)[:, None]
    distance = index + 0.5 - center
    weight = torch.sinc(distance) * torch.sinc(distance / LOBES)
    weight = weight * ((index >= 0) & (index < size))
    return index.clamp(0, size - 1), weight / weight.sum(dim=0)
