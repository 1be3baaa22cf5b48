"""The extended log-barrier: inequality constraints as a smooth penalty that tightens by epoch.

Kervadec et al., "Constrained Deep Networks: Lagrangian Optimization via Log-Barrier Extensions"
(arXiv 1904.04205), with the schedule of F-CAM (WACV 2022, arXiv 2109.07069). For z <= 0:
psi_t(z) = -(1/t) ln(-z) if z <= -1/t^2, else t z - (1/t) ln(1/t^2) + 1/t.
"""

import torch
from torch import Tensor, nn


class ExtendedLogBarrier(nn.Module):
    """psi_t elementwise: finite and increasing everywhere, C1, convex; the caller reduces.

    Both branches have value (2/t) ln t and slope t at z = -1/t^2. As t grows psi_t goes to 0 where
    the constraint holds (z < 0) and to infinity where it does not (z > 0). With the published
    numbers t starts at 1, grows by 1 % after each epoch and reaches 10 after 232 of them. Every
    term owns its barrier; `t` is a buffer, so that checkpoints hold it.

    Args:
        t: First sharpness, positive.
        factor: Factor of `t` per epoch, at least 1.
        t_max: Largest sharpness, at least `t`.

    Raises:
        ValueError: Numbers outside these ranges.
    """

    steps_every_epoch = True
    t: Tensor

    def __init__(self, t: float = 1.0, factor: float = 1.01, t_max: float = 10.0) -> None:
        super().__init__()
        if not (0 < t <= t_max and factor >= 1):
            raise ValueError(
                f"t={t}, factor={factor}, t_max={t_max}: must be 0 < t <= t_max and factor >= 1"
            )
        self.factor = factor
        self.t_max = t_max
        self.register_buffer("t", torch.tensor(float(t)))

    def forward(self, z: Tensor) -> Tensor:
        """Return psi_t(z), of the shape of `z`; half-precision input gives float32."""
        z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        t = self.t.to(z)
        edge = 1 / t**2
        # The logarithm sees safe values only: NaN of a branch not taken would reach its gradient.
        inner = z <= -edge
        logarithm = -torch.where(inner, -z, edge).log() / t
        return torch.where(inner, logarithm, t * z - edge.log() / t + 1 / t)

    def step(self) -> None:
        """Go on by one epoch: t <- min(factor t, t_max)."""
        self.t.mul_(self.factor).clamp_(max=self.t_max)

    def extra_repr(self) -> str:
        """The schedule, for printing."""
        return f"factor={self.factor}, t_max={self.t_max}"
