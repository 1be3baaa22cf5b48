"""Peak stimulation: logits from the local maxima of class maps.

Zhou et al., "Weakly Supervised Instance Segmentation using Class Peak Response" (PRM), CVPR 2018,
arXiv 1804.00880: with P_k the positions where z_k = conv1x1(A) is the maximum of a window around
it, s_k = (1/|P_k|) sum_{p in P_k} z_k(p), so that only peaks get a gradient.

`variant="survey"` is what the surveys of WSOL in histology call PRM, and what their tables hold:
s_k = mean of the max-pooled map (window, stride 1, no padding). Every window counts there, so that
an isolated peak counts once per window that sees it and a plateau as often as it is large.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.heads.pooling import ConvHead


class PRM(ConvHead):
    """Class maps by a 1x1 convolution, then the mean of their peaks.

    Args:
        in_channels: Channels C of the feature map.
        num_classes: Number of classes K.
        variant: "paper": mean over the peaks; "survey": mean of the max-pooled map.
        window: Side of the window in which a peak is the maximum; odd. Where it is larger than the
            map, "survey" takes the map.
        median_filter: Keep only peaks not below the median of their map ("paper" only).
        background: Put a background row before the classes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        variant: Literal["paper", "survey"] = "paper",
        window: int = 3,
        median_filter: bool = False,
        background: bool = False,
    ) -> None:
        super().__init__(in_channels, num_classes, background)
        if variant not in ("paper", "survey"):
            raise ValueError(f'variant must be "paper" or "survey", got {variant!r}.')
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window must be odd and positive, got {window}.")
        if median_filter and variant == "survey":
            raise ValueError('median_filter belongs to variant="paper".')
        self.variant = variant
        self.window = window
        self.median_filter = median_filter

    def pool(self, maps: Tensor) -> Tensor:
        """Mean over the peaks, or of the max-pooled maps."""
        if self.variant == "survey":
            window = (min(self.window, maps.shape[2]), min(self.window, maps.shape[3]))
            return F.max_pool2d(maps, window, stride=1).mean(dim=(2, 3))
        peaks = self.peaks(maps.detach())
        return maps.where(peaks, 0.0).sum(dim=(2, 3)) / peaks.sum(dim=(2, 3))

    def peaks(self, maps: Tensor) -> Tensor:
        """Where maps have a peak: `(B, K, h, w) -> (B, K, h, w)` bool, at least one per map.

        Of equal scores in a window the first in raster order is its maximum.
        """
        index = F.max_pool2d(maps, self.window, 1, self.window // 2, return_indices=True)[1]
        own = torch.arange(maps[0, 0].numel(), device=maps.device).view(maps.shape[2:])
        peaks = index == own
        if self.median_filter:
            peaks &= maps >= maps.flatten(2).median(dim=2).values[..., None, None]
        return peaks
