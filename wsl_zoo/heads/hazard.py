"""The additive-hazard head: cumulative risk over horizons that cannot fall.

Yala et al., "Toward robust mammography-based models for breast cancer risk" (Mirai), Science
Translational Medicine 2021; so in privileged history distillation (PHD, arXiv 2603.15814).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.precision import at_least_float32


class AdditiveHazard(nn.Module):
    """logit_k = b(h) + sum_{i <= k} act(w_i . h + c_i): logits (B, K) that do not fall over k.

    Args:
        in_features: Features D of h.
        num_horizons: Horizons K.
        activation: "relu" (published; an increment at 0 learns nothing any more) or "softplus".

    Raises:
        ValueError: A number below 1, or another activation.
    """

    def __init__(
        self,
        in_features: int,
        num_horizons: int,
        activation: Literal["relu", "softplus"] = "relu",
    ) -> None:
        super().__init__()
        if in_features < 1 or num_horizons < 1:
            raise ValueError(
                f"in_features={in_features}, num_horizons={num_horizons}: must be positive"
            )
        if activation not in ("relu", "softplus"):
            raise ValueError(f'activation={activation!r} must be "relu" or "softplus"')
        self.activation = activation
        self.base = nn.Linear(in_features, 1)
        self.hazard = nn.Linear(in_features, num_horizons)

    def increments(self, features: Tensor) -> Tensor:
        """Return what each horizon adds, (B, K), not negative."""
        raw = self.hazard(features)
        return F.relu(raw) if self.activation == "relu" else F.softplus(raw)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, K), at least float32, of features (B, D)."""
        base, increments = self.base(features), self.increments(features)
        logits: Tensor = at_least_float32(base) + at_least_float32(increments).cumsum(dim=1)
        return logits
