"""Every metric of one split of super-resolved images, of whole images and of their regions.

`psnr`, `ssim` and `nrmse` of all pixels inside the border and, where images come with regions of
interest, `roi_psnr`, `roi_ssim` and `roi_nrmse` of those, as SR-CACO-2 (arXiv 2406.09168) reports
both. Errors and SSIM maps are computed once for the two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from wsl_zoo.metrics.base import check_choice
from wsl_zoo.metrics.comparison import (
    EMPTY_REGION,
    Comparison,
    EmptyRegion,
    check_protocol,
    over_regions,
)
from wsl_zoo.metrics.split import Thresholds, WithoutClasses
from wsl_zoo.metrics.superres import VALUES, ImageMean


class _Means(ImageMean):
    """Means of several values, all of one pass over the images."""

    def update(self, values: Tensor, counts: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch; see `ImageMean.add`."""
        self.add(values, counts, valid)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the means, NaN where no image was counted, and the numbers of images."""
        return self.means(), self.count


class RestorationMetrics(WithoutClasses):
    """Metrics of one split of images in [0, 1] and what networks made of their small versions.

    Args:
        border: Pixels to remove from each side; published: the scale.
        roi: Images come with regions of interest.
        empty_roi: Of a region without pixels: "skip" leaves it out, "floor" counts what the
            published code does (498.13 dB, SSIM 0, NRMSE 0).

    Raises:
        ValueError: A negative border or another `empty_roi`.
    """

    def __init__(self, border: int = 0, roi: bool = False, empty_roi: EmptyRegion = "skip") -> None:
        super().__init__()
        check_protocol(1.0, border)
        check_choice("empty_roi", empty_roi, EMPTY_REGION)
        self.border, self.roi, self.empty_roi = border, roi, empty_roi
        self.names = [*VALUES, *(f"roi_{name}" for name in VALUES if roi)]
        self.means = _Means((len(self.names),))

    def update(
        self, sr: Tensor, hr: Tensor, roi: Tensor | None = None, valid: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            sr: `(B, C, H, W)` in [0, 1], clamped and rounded as the protocol has it.
            hr: `(B, C, H, W)` in [0, 1].
            roi: `(B, H, W)` or `(B, R, H, W)` bool, R regions per image whose values are averaged.
            valid: `(B,)` bool, False for padded duplicates; None: all are counted.

        Raises:
            ValueError: Regions where none were announced or the reverse, wrong shapes or types, or
                images that border and window do not fit in.
        """
        if (roi is not None) != self.roi:
            given = "no roi" if roi is None else "a roi"
            raise ValueError(f"{given} was given to RestorationMetrics(roi={self.roi})")
        comparison = Comparison(sr, hr, border=self.border)
        found = [
            over_regions(*value(comparison, region), self.empty_roi)
            for region in ((None, roi) if self.roi else (None,))
            for value in VALUES.values()
        ]
        values, counts = (torch.stack(part, dim=1) for part in zip(*found, strict=True))
        self.means.update(values, counts, valid)

    def compute(self) -> tuple[dict[str, Tensor], Thresholds]:
        """Return the values by name, and no map thresholds. All processes must call this.

        Absent is what no image counts for and, after a warning, what is NaN because a network's
        output was.
        """
        means, counts = self.means.compute()
        values = {}
        for name, mean, count in zip(self.names, means, counts, strict=True):
            if not mean.isnan():
                values[name] = mean
            elif count > 0:
                rank_zero_warn(f"{name} is NaN, as some image was: left out", UserWarning)
        return values, Thresholds()
