"""DRRN: one residual unit, applied again and again with the same weights.

Paper: Tai et al., "Image Super-Resolution via Deep Recursive Residual Network", CVPR 2017.
Network: u_0 = C(relu(z)); u_k = F(u_{k-1}) + u'; y = z + C(relu(u_U)); z = up(x),
F(u) = C(relu(C(relu(u)))).

The default is the benchmark's form (SR-CACO-2, arXiv 2406.09168): B = 1 recursive block of U = 25
units, 297,216 parameters at any U, no biases, no batch normalisation (the paper has it). In the
paper the identity u' is u_0. In the published code the unit's first ReLU works in place, on u_0
itself at the first unit, so that what it adds from then on is relu(u_0). This is reproduced here by
u' = relu(u_0), out of place; `rectified=False` is the paper's.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.networks.base import SuperResolution, upsampled
from wsl_zoo.networks.blocks import conv, init_kaiming


class DRRN(SuperResolution):
    """Convolutions 3x3 without biases, drawn from N(0, 2 / (9 out)).

    Args:
        scale: See `SuperResolution`.
        in_chans: See `SuperResolution`.
        width: Channels between the convolutions.
        units: Number U of applications of the unit.
        rectified: Whether the identity is relu(u_0), as in the published code, or u_0.

    Raises:
        ValueError: No unit.
    """

    def __init__(
        self,
        scale: int,
        in_chans: int = 1,
        width: int = 128,
        units: int = 25,
        rectified: bool = True,
    ) -> None:
        super().__init__(scale, in_chans)
        if units < 1:
            raise ValueError(f"units={units} must be positive")
        self.units = units
        self.rectified = rectified
        self.first = conv(in_chans, width, bias=False)
        self.conv1 = conv(width, width, bias=False)
        self.conv2 = conv(width, width, bias=False)
        self.last = conv(width, in_chans, bias=False)
        init_kaiming(self, mode="fan_out")

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the result alone."""
        enlarged = upsampled(image, self.scale)
        u = self.first(F.relu(enlarged))
        identity = F.relu(u) if self.rectified else u
        for _ in range(self.units):
            u = self.conv2(F.relu(self.conv1(F.relu(u)))) + identity
        return [enlarged + self.last(F.relu(u))]
