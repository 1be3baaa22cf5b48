"""Constraints on the sizes of the regions that a map predicts, by the extended log-barrier.

The absolute size constraint of F-CAM (Belharbi et al., "F-CAM: Full Resolution Class Activation
Maps via Guided Parametric Upscaling", WACV 2022, arXiv 2109.07069), also of TCAM and CoLo-CAM; and
three terms that their published runs leave out. Sizes are sums of probabilities over pixels. Every
term holds a barrier of its own (`term.barrier`), which steps by epoch, and is unweighted.
"""

import torch
from torch import Tensor, nn

from wsl_zoo.losses.barrier import ExtendedLogBarrier


class BarrierTerm(nn.Module):
    """Base of the terms: holds the barrier.

    Args:
        t: First sharpness of the barrier, positive.
        factor: Its factor per epoch, at least 1.
        t_max: Largest sharpness.
    """

    def __init__(self, t: float = 1.0, factor: float = 1.01, t_max: float = 10.0) -> None:
        super().__init__()
        self.barrier = ExtendedLogBarrier(t, factor, t_max)


class SizeConstraint(BarrierTerm):
    """Both regions exist: -a_r <= 0 with a_br = sum_p S_brp in pixels, r in {0, 1}.

    1/2 sum_r mean_b psi_t(-a_br). Sizes are nearly always above 1/t^2, where this is
    -(1/2t) mean_b [ln a_b0 + ln a_b1]: it pushes towards two large regions and is least where they
    are equal. Published weights: 0.1 (F-CAM), 0.01 (TCAM, CoLo-CAM).
    """

    def forward(self, probs: Tensor) -> Tensor:
        """Return the term for probabilities `(B, 2, H, W)`, a scalar of at least float32."""
        return self.barrier(-areas(probs)).mean(dim=0).sum() / 2


class BackgroundLarger(BarrierTerm):
    """The background is no smaller than the foreground: mean_b psi_t(a_b1 - a_b0), in pixels."""

    def forward(self, probs: Tensor) -> Tensor:
        """Return the term for probabilities `(B, 2, H, W)`, a scalar of at least float32."""
        area = areas(probs)
        return self.barrier(area[:, 1] - area[:, 0]).mean()


class SizeNear(BarrierTerm):
    """The foreground is about as large as expected (by a neighbouring frame, say).

    mean_b 1/2 [psi_t(e - eps - s) + psi_t(s - e - eps)], where s_b is the foreground's fraction of
    the image and e_b the expected one.

    Args:
        epsilon: Allowed difference, a fraction of the image; published: 1e-3.
        t: First sharpness of the barrier, positive.
        factor: Its factor per epoch, at least 1.
        t_max: Largest sharpness.
    """

    def __init__(
        self, epsilon: float = 1.0e-3, t: float = 1.0, factor: float = 1.01, t_max: float = 10.0
    ) -> None:
        super().__init__(t, factor, t_max)
        self.epsilon = epsilon

    def forward(self, probs: Tensor, expected: Tensor) -> Tensor:
        """Return the term for probabilities `(B, 2, H, W)` and fractions `expected (B,)`."""
        difference = areas(probs)[:, 1] / probs[0, 0].numel() - expected
        both = torch.stack([-difference, difference]) - self.epsilon
        return self.barrier(both).sum(dim=0).mean() / 2


class EmptyOutside(BarrierTerm):
    """No foreground outside a region (a box, say): mean_b psi_t(sum_{p outside} S_b1p), in pixels.

    The constraint is never strictly met, so that the barrier's line, of slope t, is what acts.
    """

    def forward(self, probs: Tensor, inside: Tensor) -> Tensor:
        """Return the term for probabilities `(B, 2, H, W)` and `inside (B, H, W)` bool."""
        return self.barrier(areas(probs * ~inside[:, None])[:, 1]).mean()


def areas(probs: Tensor) -> Tensor:
    """Sum probabilities `(B, K, H, W)` over pixels: `(B, K)`, at least float32."""
    half = probs.dtype in (torch.float16, torch.bfloat16)
    return probs.sum(dim=(2, 3), dtype=torch.float32 if half else probs.dtype)
