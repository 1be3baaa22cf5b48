"""CAM heating: sharper weights of a foreground law, which end in a uniform law (an option of TCAM).

C' = exp(h (C + 1e-6)) / max_p exp(h (C + 1e-6)) for maps C in [0, 1]; the constant cancels.
"""

import torch
from torch import Tensor, nn


class Heating(nn.Module):
    """Sharper weights for a foreground law: exp(h (C + 1e-6)), divided by its maximum per image.

    h goes linearly from `heat` in the first epoch to `heat_min` in epoch `uniform_epoch`, epochs
    counted from 1; from the next epoch on the law is uniform (h = 0). Both numbers are buffers.

    Args:
        heat: First h.
        heat_min: Last h.
        uniform_epoch: Last epoch before the uniform law, at least 1; None: h stays as it is.

    Raises:
        ValueError: `uniform_epoch` below 1.
    """

    steps_every_epoch = True
    epoch: Tensor
    heat: Tensor

    def __init__(
        self, heat: float, heat_min: float = 1.0, uniform_epoch: int | None = None
    ) -> None:
        super().__init__()
        if uniform_epoch is not None and uniform_epoch < 1:
            raise ValueError(f"uniform_epoch={uniform_epoch} must be at least 1")
        self.first, self.last, self.uniform_epoch = heat, heat_min, uniform_epoch
        self.register_buffer("epoch", torch.tensor(1))
        self.register_buffer("heat", torch.tensor(float(heat)))

    def forward(self, cam: Tensor) -> Tensor:
        """Return the heated maps `(B, H, W)`, in (0, 1]."""
        return ((cam - cam.amax(dim=(1, 2), keepdim=True)) * self.heat.to(cam)).exp_()

    def step(self) -> None:
        """Go on by one epoch."""
        self.epoch += 1
        if self.uniform_epoch is None:
            return
        done = (self.epoch - 1) / max(1, self.uniform_epoch - 1)
        heat = self.first + (self.last - self.first) * done
        self.heat.copy_(heat.where(self.epoch <= self.uniform_epoch, torch.zeros_like(heat)))


def make_heating(
    heat: float | None, heat_min: float, uniform_epoch: int | None
) -> Heating | nn.Identity:
    """Return a `Heating`, or the identity without `heat`."""
    return nn.Identity() if heat is None else Heating(heat, heat_min, uniform_epoch)
