"""Ordinal heads: from the logits of a pooling head to the numbers that an ordinal loss takes.

`PoissonScores` and `BinomialScores`: Beckham & Pal, "Unimodal Probability Distributions for Deep
Ordinal Classification", ICML 2017 (arXiv 1705.05278). `CutPoints`: the proportional odds model
(McCullagh 1980). `SharedRank`: CORAL (Cao et al. 2020, arXiv 1901.07884).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.precision import at_least_float32


class OrdinalHead(nn.Module):
    """Base: the numbers as they are.

    Args:
        num_classes: Number K of ranks, at least 2.

    Attributes:
        inputs: Logits that it takes of a pooling head.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: there must be two ranks at least")
        self.num_classes = num_classes
        self.inputs = num_classes

    def forward(self, logits: Tensor) -> Tensor:
        """Return the logits (B, W)."""
        return logits


class Cumulative(OrdinalHead):
    """K-1 free logits (CORN)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.inputs = num_classes - 1


class PoissonScores(OrdinalHead):
    """s_j = (j ln(lambda) - lambda - ln Gamma(j+1)) / tau, lambda = softplus(w . logits + b).

    Unimodal by construction, with the mode at floor(lambda). The published code of arXiv 1911.10720
    has the opposite sign, which puts the mass into the tails (its SOI of 20 %), and takes the
    logarithm of a factorial that overflows float32 from 35 ranks on.

    Args:
        num_classes: Number K of ranks.
        tau: Temperature.
        sign: 1; -1 to reproduce the published code.
    """

    steps: Tensor
    log_factorials: Tensor

    def __init__(self, num_classes: int, tau: float = 1.0, sign: int = 1) -> None:
        super().__init__(num_classes)
        _check_tau(tau)
        if sign not in (1, -1):
            raise ValueError(f"sign={sign} must be 1 or -1")
        self.tau = tau
        self.sign = sign
        self.rate = nn.Linear(num_classes, 1)
        steps = torch.arange(float(num_classes))
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("log_factorials", torch.lgamma(steps + 1), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the scores (B, K), at least float32, of logits (B, K)."""
        rate = F.softplus(at_least_float32(self.rate(logits))).clamp(min=1e-8)
        return self.sign * (self.steps * rate.log() - rate - self.log_factorials) / self.tau


class BinomialScores(OrdinalHead):
    """s_j = (ln C(K-1, j) + j ln(p) + (K-1-j) ln(1-p)) / tau, p = sigmoid(f).

    Args:
        num_classes: Number K of ranks.
        tau: Temperature.
    """

    steps: Tensor
    log_choices: Tensor

    def __init__(self, num_classes: int, tau: float = 1.0) -> None:
        super().__init__(num_classes)
        _check_tau(tau)
        self.inputs = 1
        self.tau = tau
        steps = torch.arange(float(num_classes))
        n = torch.tensor(float(num_classes - 1))
        choices = torch.lgamma(n + 1) - torch.lgamma(steps + 1) - torch.lgamma(n - steps + 1)
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("log_choices", choices, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the scores (B, K), at least float32, of a scalar f (B, 1)."""
        f = at_least_float32(logits)
        up, down = self.steps * F.logsigmoid(f), self.steps.flip(0) * F.logsigmoid(-f)
        return (self.log_choices + up + down) / self.tau


class CutPoints(OrdinalHead):
    """a_k = theta_k - f with increasing theta_k = theta_{k-1} + softplus(delta_k): P(Y <= k).

    At the start all ranks are as probable at f = 0.

    Args:
        num_classes: Number K of ranks.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.inputs = 1
        theta = torch.logit(torch.arange(1.0, num_classes) / num_classes)
        gaps = theta.diff()
        self.first = nn.Parameter(theta[:1].clone())
        self.gaps = nn.Parameter(gaps + torch.log(-torch.expm1(-gaps)))  # the inverse of softplus

    def cut_points(self) -> Tensor:
        """Return theta (K-1,), increasing."""
        return torch.cat([self.first, self.first + F.softplus(self.gaps).cumsum(0)])

    def forward(self, logits: Tensor) -> Tensor:
        """Return a (B, K-1), at least float32, of a scalar f (B, 1)."""
        return self.cut_points() - at_least_float32(logits)


class SharedRank(OrdinalHead):
    """l_k = f + b_k, with biases that start at (K-1, ..., 1) / (K-1) (CORAL).

    The pooling head's own bias is one more constant, which changes nothing.

    Args:
        num_classes: Number K of ranks.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.inputs = 1
        start = torch.arange(num_classes - 1, 0, -1).float() / (num_classes - 1)
        self.biases = nn.Parameter(start)

    def forward(self, logits: Tensor) -> Tensor:
        """Return l (B, K-1), at least float32, of a scalar f (B, 1)."""
        return at_least_float32(logits) + self.biases


def _check_tau(tau: float) -> None:
    if not tau > 0:
        raise ValueError(f"tau={tau} must be positive")
