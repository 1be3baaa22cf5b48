"""What all super-resolution networks share: an image in, one of a higher resolution out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

SCALES = (2, 4, 8)


class SuperResolution(nn.Module, ABC):
    """Base: `network(image (B, C, h, w) in [0, 1]) -> (B, C, s h, s w)`, not clamped.

    Args:
        scale: s: 2, 4 or 8.
        in_chans: Channels C.

    Raises:
        ValueError: Another scale, or no channel.
    """

    scales: ClassVar[tuple[int, ...]] = SCALES
    """Scales that it can be built for."""

    def __init__(self, scale: int, in_chans: int = 1) -> None:
        super().__init__()
        if scale not in self.scales:
            known = ", ".join(map(str, self.scales))
            raise ValueError(f"scale={scale}: {type(self).__name__} is for the scales {known}")
        if in_chans < 1:
            raise ValueError(f"in_chans={in_chans} must be positive")
        self.scale = scale
        self.in_chans = in_chans

    @abstractmethod
    def stages(self, image: Tensor) -> list[Tensor]:
        """Return every output that training judges; the last is the result.

        Progressive networks give one per factor of two, recurrent ones one per step.
        """

    def forward(self, image: Tensor) -> Tensor:
        """Return the high-resolution image (B, C, s h, s w)."""
        return self.stages(image)[-1]


def upsampled(image: Tensor, scale: int) -> Tensor:
    """Return an image (B, C, h, w) enlarged by bicubic interpolation and clamped to [0, 1].

    The kernel is torch's without antialiasing, a = -0.75, which is OpenCV's INTER_CUBIC too.
    """
    enlarged = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    return enlarged.clamp(0, 1)
