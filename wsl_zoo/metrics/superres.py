"""PSNR, SSIM and NRMSE of super-resolved images, over whole images or over their regions.

Every image has one value, the mean over its regions where it has several; the mean over images is
reported. Definitions and constants are those of SR-CACO-2 (arXiv 2406.09168): see `Comparison`'s
module. Images are taken as they are: clamp and round them first (published: to 8 bits). Values are
computed in float64 and have no gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from wsl_zoo.metrics.base import check_choice, live_images, protocol_state, undefined
from wsl_zoo.metrics.comparison import (
    EMPTY_REGION,
    Comparison,
    EmptyRegion,
    check_protocol,
    over_regions,
)

VALUES: dict[str, Callable[[Comparison, Tensor | None], tuple[Tensor, Tensor]]] = {
    "psnr": Comparison.psnr,
    "ssim": Comparison.ssim,
    "nrmse": Comparison.nrmse,
}


def image_psnr(
    sr: Tensor,
    hr: Tensor,
    roi: Tensor | None = None,
    data_range: float = 1.0,
    border: int = 0,
    empty_roi: EmptyRegion = "skip",
) -> Tensor:
    """Return the PSNR of every image in dB, `(B,)` float64; 498.13 of an exact one.

    Args:
        sr: `(B, C, H, W)`; a NaN or infinity gives NaN or minus infinity.
        hr: `(B, C, H, W)`. The error is the mean over channels too.
        roi: `(B, H, W)` bool, or `(B, R, H, W)` for the mean over R regions; None: all pixels.
        data_range: Highest value that an image could have, less the lowest.
        border: Pixels to remove from each side.
        empty_roi: Of a region without pixels inside the border: "skip" leaves it out (NaN where
            all are), "floor" counts 498.13 dB.

    Raises:
        ValueError: Wrong shapes or types, or images that the border covers.
    """
    return _of_images("psnr", sr, hr, roi, data_range, border, empty_roi)


def image_ssim(
    sr: Tensor,
    hr: Tensor,
    roi: Tensor | None = None,
    data_range: float = 1.0,
    border: int = 0,
    empty_roi: EmptyRegion = "skip",
) -> Tensor:
    """Return the SSIM of every image in [-1, 1], `(B,)` float64, mean over channels.

    Arguments are those of `image_psnr`. A region is empty if all its pixels are within 5 px of the
    border, where no window is centred; "floor" counts 0.

    Raises:
        ValueError: As `image_psnr`, or images smaller than 11 px inside the border.
    """
    return _of_images("ssim", sr, hr, roi, data_range, border, empty_roi)


def image_nrmse(
    sr: Tensor,
    hr: Tensor,
    roi: Tensor | None = None,
    data_range: float = 1.0,
    border: int = 0,
    empty_roi: EmptyRegion = "skip",
) -> Tensor:
    """Return the NRMSE of every image, not negative, `(B,)` float64; 0 is best.

    The range that divides is the highest of `hr` in the region less the lowest anywhere inside the
    border; where it is 0, it is data_range / 255, one level of 8 bits.

    Arguments are those of `image_psnr`. Of a region without pixels "floor" counts 0.

    Raises:
        ValueError: As `image_psnr`.
    """
    return _of_images("nrmse", sr, hr, roi, data_range, border, empty_roi)


def _of_images(
    name: str,
    sr: Tensor,
    hr: Tensor,
    roi: Tensor | None,
    data_range: float,
    border: int,
    empty_roi: EmptyRegion,
) -> Tensor:
    check_choice("empty_roi", empty_roi, EMPTY_REGION)
    return over_regions(*VALUES[name](Comparison(sr, hr, data_range, border), roi), empty_roi)[0]


class ImageMean(Metric):
    """Base: sums and counts of values per image, whose means `means` returns.

    Args:
        shape: Of what one image gives.
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False

    total: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add a batch, by `add`."""

    def add(self, values: Tensor, counts: Tensor, valid: Tensor | None) -> None:
        """Add images.

        Args:
            values: `(B, *shape)` float64; a NaN that counts stays in the mean.
            counts: `(B, *shape)` bool.
            valid: `(B,)` bool; False drops an image. All are counted by default.

        Raises:
            ValueError: `valid` is not `(B,)`.
        """
        live = live_images(valid, len(values), values.device)
        if live is not None:
            counts = counts & live.view(-1, *[1] * (counts.ndim - 1))
        added = torch.where(counts, values, 0).sum(dim=0)
        self.total = self.total + added.to(self.total.device)
        self.count = self.count + counts.sum(dim=0).to(self.count.device)

    def means(self) -> Tensor:
        """Return the means, `shape` float64, NaN without images."""
        return self.total / self.count


class _Restoration(ImageMean):
    """Base of the three: the mean over images of one of `VALUES`."""

    name: ClassVar[str]

    def __init__(
        self,
        data_range: float = 1.0,
        border: int = 0,
        empty_roi: EmptyRegion = "skip",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_protocol(data_range, border)
        check_choice("empty_roi", empty_roi, EMPTY_REGION)
        self.data_range, self.border, self.empty_roi = float(data_range), border, empty_roi
        settings = (
            data_range,
            border,
            EMPTY_REGION.index(empty_roi),
            list(VALUES).index(self.name),
        )
        self.add_state("protocol", protocol_state(*settings), dist_reduce_fx="max")

    def update(
        self,
        sr: Tensor,
        hr: Tensor,
        roi: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            sr: `(B, C, H, W)`, clamped and rounded as the protocol has it. NaN makes the mean NaN.
            hr: `(B, C, H, W)`.
            roi: `(B, H, W)` bool, or `(B, R, H, W)`: an image's value is the mean over R regions,
                and an image of which all are empty does not count ("skip"). None: all pixels.
            valid: `(B,)` bool; False drops an image. All are counted by default.

        Raises:
            ValueError: Wrong shapes or types, or images that border and window do not fit in.
        """
        found = VALUES[self.name](Comparison(sr, hr, self.data_range, self.border), roi)
        self.add(*over_regions(*found, self.empty_roi), valid)

    def compute(self) -> Tensor:
        """Return the mean over images, a float64 scalar; NaN and a warning if none was counted."""
        if self.count == 0:
            return undefined(self, "no image was counted", self.total.device)
        return self.means()


class PSNR(_Restoration):
    """Peak signal-to-noise ratio, in dB: 20 log10(data_range / d) for a constant error d.

    Args:
        data_range: Highest value that an image could have, less the lowest: 1, 255 or 65535.
        border: Pixels to remove from each side; published: the scale.
        empty_roi: Of a region without pixels: "skip" leaves it out, "floor" counts 498.13 dB, what
            an exact image has.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = PSNR()
        >>> metric.update(torch.full((1, 1, 8, 8), 0.6), torch.full((1, 1, 8, 8), 0.5))
        >>> round(metric.compute().item(), 3)
        20.0
    """

    higher_is_better = True
    name = "psnr"


class SSIM(_Restoration):
    """Structural similarity in [-1, 1]: 11 x 11 Gaussian of sigma 1.5, no padding.

    Images must have 11 px or more inside the border. torchmetrics' own pads by reflection and
    averages the padded border too; `return_full_image` less 5 px on each side is this map.

    Args:
        data_range: Highest value that an image could have, less the lowest: 1, 255 or 65535.
        border: Pixels to remove from each side; published: the scale.
        empty_roi: Of a region without pixels 5 px inside: "skip" leaves it out, "floor" counts 0.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = SSIM()
        >>> metric.update(torch.full((1, 1, 16, 16), 0.6), torch.full((1, 1, 16, 16), 0.5))
        >>> round(metric.compute().item(), 4)
        0.9836
    """

    higher_is_better = True
    name = "ssim"


class NRMSE(_Restoration):
    """Root mean squared error divided by the range of the true image; 0 is best.

    The range is the highest in the region less the lowest anywhere in the image; where it is 0, it
    is data_range / 255, one level of 8 bits.

    Args:
        data_range: Highest value that an image could have, less the lowest: 1, 255 or 65535.
        border: Pixels to remove from each side; published: the scale.
        empty_roi: Of a region without pixels: "skip" leaves it out, "floor" counts 0.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric, ramp = NRMSE(), torch.linspace(0, 0.5, 64).view(1, 1, 8, 8)
        >>> metric.update(ramp + 0.1, ramp)
        >>> round(metric.compute().item(), 4)
        0.2
    """

    higher_is_better = False
    name = "nrmse"
