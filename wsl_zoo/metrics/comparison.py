"""Super-resolved images beside the true ones: of which maps and sums PSNR, SSIM, NRMSE are made.

The protocol of SR-CACO-2 (NeurIPS 2024 Datasets and Benchmarks, arXiv 2406.09168) and of its code:
a border is removed from all sides of an image and every image has one value. In units in which the
data range is 255, over the pixels of a region R, or over all:
PSNR = 20 log10(255 / sqrt(max(MSE_R, 1e-45))); NRMSE = sqrt(MSE_R) / (max_R hr - min hr), whose
minimum is that of the whole image, a denominator 0 taken as 1; SSIM_R the mean over R of the map of
Wang et al. (IEEE TIP 2004), whose windows lie inside the image and may reach out of R. With several
regions per image (of several thresholds), its value is the mean over them.

Deviation from the published code: a region without pixels is left out; there ("floor") it counts
PSNR 498.13 dB, SSIM 0 and NRMSE 0: one such image in a thousand adds almost half a decibel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsl_zoo.metrics.base import float64_device, in_threads
from wsl_zoo.metrics.comparison_kernels import region_maxima, region_sums, ssim_map

EmptyRegion = Literal["skip", "floor"]

EMPTY_REGION = ("skip", "floor")
LEVELS = 255
"""The data range in whose units the constants are published."""

LEAST_MSE = 1e-45
"""In squared levels: an exact image has 498.13 dB. Published code."""

WINDOW, SIGMA = 11, 1.5  # of the SSIM's Gaussian; Wang et al.
K1, K2 = 0.01, 0.03  # its constants, in data ranges; Wang et al.
MARGIN = WINDOW // 2
"""Pixels that the SSIM map loses on each side."""

COMPILED = ("cpu",)  # types of devices whose images the compiled kernels are for

_BELL = [math.exp(-0.5 * (k / SIGMA) ** 2) for k in range(-MARGIN, MARGIN + 1)]
GAUSSIAN = [weight / sum(_BELL) for weight in _BELL]
"""Weights of a line of the window."""


class Comparison:
    """Images beside their targets: the maps of which all values are made, each computed once.

    Args:
        sr: `(B, C, H, W)`, what a network made. NaN and infinity stay in the values.
        hr: `(B, C, H, W)`, the true images.
        data_range: Highest value that an image could have, less the lowest.
        border: Pixels to remove from each side.

    Raises:
        ValueError: Wrong shapes, a data range that is not positive, a negative border, or nothing
            left inside the border.
    """

    def __init__(self, sr: Tensor, hr: Tensor, data_range: float = 1.0, border: int = 0) -> None:
        check_protocol(data_range, border)
        if sr.ndim != 4 or sr.shape != hr.shape or 0 in sr.shape[1:]:
            raise ValueError(
                "sr and hr must have one shape (B, C, H, W), "
                f"got {tuple(sr.shape)} and {tuple(hr.shape)}"
            )
        if min(sr.shape[2:]) <= 2 * border:
            raise ValueError(
                f"border={border} leaves nothing of images {tuple(sr.shape[2:])}: "
                f"both sides must be longer than {2 * border}"
            )
        self.data_range, self.border = data_range, border
        self.images, _, self.height, self.width = sr.shape
        self.device = float64_device(sr.device)
        self._regions: tuple[Tensor | None, Tensor | None] = (None, None)
        # Contiguous: what is compiled for that is faster.
        self.sr, self.hr = (
            self._inside(x.detach().to(self.device)).double().contiguous() for x in (sr, hr)
        )

    def _inside(self, image: Tensor) -> Tensor:
        edge = self.border
        return image[..., edge : self.height - edge, edge : self.width - edge]

    @cached_property
    def squared_error(self) -> Tensor:
        """Squared differences `(B, H', W')` inside the border, mean over channels."""
        return (self.sr - self.hr).square_().mean(dim=1)

    @cached_property
    def ssim_map(self) -> Tensor:
        """SSIM `(B, H' - 10, W' - 10)` of every window inside the border, mean over channels.

        With d = sr - hr, SSIM = (1 - mean(d)^2 / (m_s^2 + m_h^2 + C1)) (1 - var(d) / (v_s + v_h +
        C2)): the usual quotients, written so that equal images give 1 exactly. Variances are
        biased. C1 = (0.01 L)^2 and C2 = (0.03 L)^2, L the data range.

        Raises:
            ValueError: A side inside the border is shorter than a window.
        """
        if min(self.sr.shape[2:]) < WINDOW:
            raise ValueError(
                f"SSIM needs {WINDOW} x {WINDOW} pixels inside the border of {self.border}, "
                f"images are {(self.height, self.width)}"
            )
        c1, c2 = (self.data_range * K1) ** 2, (self.data_range * K2) ** 2
        if self.device.type in COMPILED:
            weights = np.array(GAUSSIAN)
            maps = in_threads(
                lambda pair: ssim_map(*pair, weights, c1, c2).mean(axis=0),
                list(zip(self.sr.numpy(), self.hr.numpy(), strict=True)),
            )
            return _stacked(maps, self.sr.new_empty(0, *_valid(self.sr.shape[2:])))
        difference = self.sr - self.hr
        mean_d, mean_h = _windowed(difference), _windowed(self.hr)
        var_d = _windowed(difference.square_()) - mean_d**2
        power = (mean_h + mean_d) ** 2 + mean_h**2
        variances = _windowed(self.sr**2 + self.hr**2) - power
        return ((1 - mean_d**2 / (power + c1)) * (1 - var_d / (variances + c2))).mean(dim=1)

    def regions(self, roi: Tensor | None) -> Tensor | None:
        """Check regions `(B, H, W)` or `(B, R, H, W)`; return them inside the border, with R."""
        if roi is None:
            return None
        given, kept = self._regions
        if roi is given:  # by all three metrics
            return kept
        self._regions = (roi, self._checked(roi))
        return self._regions[1]

    def _checked(self, roi: Tensor) -> Tensor:
        roi = roi[:, None] if roi.ndim == 3 else roi
        size = (self.images, self.height, self.width)
        fits = roi.ndim == 4 and (roi.shape[0], *roi.shape[2:]) == size and roi.shape[1] > 0
        if not fits or roi.dtype != torch.bool:
            raise ValueError(
                f"roi must be bool (B, H, W) or (B, R, H, W) with (B, H, W) = {size}, "
                f"got {roi.dtype} {tuple(roi.shape)}"
            )
        return self._inside(roi.to(self.device)).contiguous()

    def psnr(self, roi: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return PSNR in dB and the number of pixels of each region, both `(B, R)`."""
        total, pixels = _region_sums(self.squared_error, self.regions(roi))
        least = LEAST_MSE * (self.data_range / LEVELS) ** 2
        mse = (total / pixels.clamp(min=1)).clamp(min=least)  # which keeps NaN
        return 20 * math.log10(self.data_range) - 10 * mse.log10(), pixels

    def nrmse(self, roi: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return NRMSE and the number of pixels of each region, both `(B, R)`.

        Of several channels, errors and range are those of all values together.
        """
        regions = self.regions(roi)
        total, pixels = _region_sums(self.squared_error, regions)
        lowest, brightest = self.hr.amin((1, 2, 3)), self.hr.amax(1)
        if regions is None:
            highest = brightest.amax((1, 2))[:, None]
        elif self.device.type in COMPILED:
            maxima = in_threads(
                lambda image: region_maxima(*image),
                list(zip(brightest.numpy(), regions.numpy(), lowest.tolist(), strict=True)),
            )
            highest = _stacked(maxima, self.hr.new_empty(0, regions.shape[1]))
            highest = torch.where(lowest.isnan()[:, None], torch.nan, highest)
        else:  # one region at a time: R float images would not fit where R Boolean ones do
            floor = lowest[:, None, None]
            each = [torch.where(r, brightest, floor).amax((1, 2)) for r in regions.unbind(1)]
            highest = torch.stack(each, dim=1)
        width = highest - lowest[:, None]
        width = torch.where(width == 0, self.data_range / LEVELS, width)
        return (total / pixels.clamp(min=1)).sqrt() / width, pixels

    def ssim(self, roi: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return SSIM and the number of windows centred in each region, both `(B, R)`.

        Raises:
            ValueError: A side inside the border is shorter than a window.
        """
        values, regions = self.ssim_map, self.regions(roi)
        if regions is not None:
            regions = regions[..., MARGIN:-MARGIN, MARGIN:-MARGIN].contiguous()
        total, windows = _region_sums(values, regions)
        return total / windows.clamp(min=1), windows


def over_regions(
    values: Tensor, pixels: Tensor, empty_roi: EmptyRegion = "skip"
) -> tuple[Tensor, Tensor]:
    """Return the mean `(B,)` over each image's regions, and which images have one that counts.

    Args:
        values: `(B, R)`.
        pixels: `(B, R)`, the number of pixels of each region.
        empty_roi: "skip" leaves regions without pixels out, and the mean of none is NaN; "floor"
            takes the values that they were given.
    """
    counts = pixels > 0 if empty_roi == "skip" else torch.ones_like(pixels, dtype=torch.bool)
    return torch.where(counts, values, 0).sum(dim=1) / counts.sum(dim=1), counts.any(dim=1)


def check_protocol(data_range: float, border: int) -> None:
    """Raise a ValueError unless the data range is positive and the border not negative."""
    if not 0 < data_range < math.inf:
        raise ValueError(f"data_range={data_range} must be positive: 1, 255 or 65535, say")
    if border < 0:
        raise ValueError(f"border={border} must be a number of pixels, 0 or more")


def _region_sums(values: Tensor, regions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return sums and numbers of pixels, `(B, R)`, of maps `(B, H, W)` over `(B, R, H, W)`.

    One region at a time, so that no more than one float map is made beside the values; what lies
    outside does not matter, be it NaN.
    """
    if regions is None:
        total = values.sum((1, 2))[:, None]
        return total, torch.full_like(total, values.shape[1] * values.shape[2], dtype=torch.int64)
    if values.device.type in COMPILED:
        pairs = list(zip(values.numpy(), regions.numpy(), strict=True))
        found = in_threads(lambda pair: region_sums(*pair), pairs)
        none = values.new_empty(0, regions.shape[1])
        sums = _stacked([total for total, _ in found], none)
        return sums, _stacked([count for _, count in found], none.long())
    each = [torch.where(region, values, 0).sum((1, 2)) for region in regions.unbind(1)]
    return torch.stack(each, dim=1), regions.sum((2, 3))


def _stacked(arrays: list[NDArray[Any]], none: Tensor) -> Tensor:
    """Stack the results of images, `none` if there are no images."""
    return torch.from_numpy(np.stack(arrays)) if arrays else none


def _valid(size: Sequence[int]) -> tuple[int, ...]:
    """Return the sides of what a window inside an image gives."""
    return tuple(side - 2 * MARGIN for side in size)


def _windowed(images: Tensor) -> Tensor:
    """Return Gaussian means of all windows inside images: `(..., H, W)` -> `(..., H-10, W-10)`.

    Weighted sums of shifted images, for devices that the compiled kernels are not for.
    """
    for side in (-2, -1):
        length = images.shape[side] - 2 * MARGIN
        total = torch.zeros_like(images.narrow(side, 0, length))
        for k, weight in enumerate(GAUSSIAN):
            total.add_(images.narrow(side, k, length), alpha=weight)
        images = total
    return images
