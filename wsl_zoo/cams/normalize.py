"""From a raw map to one in [0, 1]: the one rule by which class activation maps are normalised.

z' = (z - min z) / (max z - min z), per image; a constant map becomes zeros. Published numbers come
from two orders: the surveys of WSOL in histology and F-CAM normalise the small map and then
upsample it (the maximum then falls below 1), Choe et al. (CVPR 2020, arXiv 2001.07437) upsample the
raw map bicubically and then normalise. Thresholds relative to the maximum barely see the
difference, PxAP does, so the order is an argument.

Deviation: no epsilon in the denominator and no silent 0/0; the rule for constant maps is explicit,
and is decided before upsampling, whose rounding would otherwise be stretched to [0, 1].
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def normalize_map(
    maps: Tensor,
    size: int | Sequence[int] | None = None,
    order: Literal["before_upsample", "after_upsample"] = "before_upsample",
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    relu: bool = False,
) -> Tensor:
    """Normalise raw maps per image and upsample them.

    Args:
        maps: Raw maps `(B, h, w)`, any floating type. NaN counts as 0, +inf as 1, -inf as 0.
        size: Size `(H, W)` of the result, one number for a square; None keeps `(h, w)`.
        order: Min-max before or after upsampling.
        interpolation: How to upsample, without aligned corners.
        relu: Set negative scores to zero first.

    Returns:
        `(B, H, W)` in [0, 1], float32 (float64 for float64 maps); zeros where a map is constant.

    Raises:
        ValueError: If `maps` is not `(B, h, w)`, or `order` or `interpolation` is unknown.
    """
    if maps.ndim != 3:
        raise ValueError(f"maps must be (B, h, w), got shape {tuple(maps.shape)}.")
    if order not in ("before_upsample", "after_upsample"):
        raise ValueError(f'order must be "before_upsample" or "after_upsample", got {order!r}.')
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f'interpolation must be "bilinear" or "bicubic", got {interpolation!r}.')
    z = maps if maps.dtype == torch.float64 else maps.float()
    z = torch.nan_to_num(z, nan=0.0, posinf=1.0, neginf=0.0)
    if relu:
        z = z.relu()
    constant = z.amax(dim=(1, 2), keepdim=True) == z.amin(dim=(1, 2), keepdim=True)
    if order == "before_upsample":
        z = resize_maps(_min_max(z), size, interpolation).clamp(0.0, 1.0)  # bicubic overshoots
    else:
        z = _min_max(resize_maps(z, size, interpolation))
    return z.masked_fill(constant, 0.0)


def _min_max(z: Tensor) -> Tensor:
    low = z.amin(dim=(1, 2), keepdim=True)
    extent = z.amax(dim=(1, 2), keepdim=True) - low
    return torch.where(extent > 0, (z - low) / extent, torch.zeros_like(z))


def resize_maps(
    z: Tensor, size: int | Sequence[int] | None, interpolation: str = "bilinear"
) -> Tensor:
    """Bring maps `(B, h, w)` to `size`, without aligned corners; None keeps theirs."""
    if size is None:
        return z
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if (height, width) == tuple(z.shape[1:]):
        return z
    return F.interpolate(z[:, None], (height, width), mode=interpolation, align_corners=False)[:, 0]
