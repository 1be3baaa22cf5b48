"""Class maps of a localiser as one soft mask, at the size of the image and in the graph.

Min-max entropy (Belharbi et al., arXiv 1907.12934) and max-min uncertainty (Belharbi et al., IEEE
TMI 2022, arXiv 2011.07221): m = sum_k softmax(s)_k S_k, u = (m - min m) / (max m - min m) of the
upsampled m, M = sigmoid(w (u - sigma)). M >= 0.5 where u >= sigma, whatever w is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1.0e-6
"""Added to the extent of a map: a constant one becomes 0, and its gradient stays finite."""


def expected_map(logits: Tensor, maps: Tensor) -> Tensor:
    """Return the class maps' mean under the predicted probabilities; no label is read.

    Args:
        logits: (B, K).
        maps: (B, K, h, w).

    Returns:
        (B, h, w).
    """
    return (logits.softmax(dim=1)[:, :, None, None] * maps).sum(dim=1)


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bring maps (B, h, w) to `size` = (H, W), bilinear with aligned corners, in float32."""
    return F.interpolate(maps.float()[:, None], tuple(size), mode="bilinear", align_corners=True)[
        :, 0
    ]


class PseudoMask(nn.Module):
    """From a raw map to a soft mask in (0, 1).

    Published: w = 8, sigma = 0.5 (min-max entropy: M in [0.018, 0.982]); w = 5, sigma from 0.15 by
    0.001 per epoch to 0.20 (max-min uncertainty on GlaS: M in [0.27, 0.986]); w = 5 on the map as
    it is (CAMELYON16, `scope="none"`, sigma = 0).

    `sigma` is a buffer that steps once per epoch: a checkpoint is evaluated with its own. (In the
    published code it is none, so that the best checkpoint met the last epoch's sigma; for that,
    `eval_sigma="last"`.)

    Args:
        sharpness: Slope w, positive.
        sigma: First threshold of the normalised map, in [0, 1].
        sigma_step: What is added to it after every epoch.
        sigma_max: Its largest value; default: `sigma`.
        scope: Min-max over each "image"; over the "batch", as the published code has it (so that a
            map depends on its neighbours, and differs between training and test); or "none".
        eval_sigma: In eval mode "own", or "last": `sigma_max`.

    Raises:
        ValueError: A number or a choice outside these.
    """

    steps_every_epoch = True
    sigma: Tensor

    def __init__(
        self,
        sharpness: float = 8.0,
        sigma: float = 0.5,
        sigma_step: float = 0.0,
        sigma_max: float | None = None,
        scope: Literal["image", "batch", "none"] = "image",
        eval_sigma: Literal["own", "last"] = "own",
    ) -> None:
        super().__init__()
        last = sigma if sigma_max is None else sigma_max
        if not (sharpness > 0 and 0 <= sigma <= last <= 1 and sigma_step >= 0):
            raise ValueError(
                f"sharpness={sharpness}, sigma={sigma}, sigma_step={sigma_step}, sigma_max={last}: "
                "must be sharpness > 0, 0 <= sigma <= sigma_max <= 1 and sigma_step >= 0"
            )
        if scope not in ("image", "batch", "none") or eval_sigma not in ("own", "last"):
            raise ValueError(
                f"scope={scope!r} must be 'image', 'batch' or 'none', eval_sigma={eval_sigma!r} "
                "'own' or 'last'"
            )
        self.sharpness = sharpness
        self.sigma_step = sigma_step
        self.sigma_max = last
        self.scope = scope
        self.eval_sigma = eval_sigma
        self.register_buffer("sigma", torch.tensor(float(sigma)))

    def forward(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Return the masks (B, H, W), float32, of raw maps (B, h, w)."""
        u = upsample(maps, size)
        if self.scope != "none":
            over = (1, 2) if self.scope == "image" else (0, 1, 2)
            low = u.amin(dim=over, keepdim=True)
            u = (u - low) / (u.amax(dim=over, keepdim=True) - low + EPSILON)
        last = self.eval_sigma == "last" and not self.training
        return torch.sigmoid(self.sharpness * (u - (self.sigma_max if last else self.sigma)))

    def step(self) -> None:
        """Go on by one epoch: sigma <- min(sigma + step, sigma_max)."""
        self.sigma.add_(self.sigma_step).clamp_(max=self.sigma_max)

    def extra_repr(self) -> str:
        """The numbers, for printing."""
        return f"sharpness={self.sharpness}, sigma_max={self.sigma_max}, scope={self.scope}"
