"""Ordinal classification: what the numbers of a head mean, and constraints of uni-modality on them.

Ranks are 0..K-1. An `OrdinalLoss` takes the numbers of a head, (B, W), and gives the loss, the
probabilities of the ranks and a prediction:

| class | W | paper |
|---|---|---|
| `OrdinalCrossEntropy` | K | softmax; of `heads.PoissonScores`, `heads.BinomialScores` too |
| `CodeVector` (REN) | K | Cheng et al., "A Neural Network Approach ...", IJCNN 2008 |
| `LabelDistribution` (LD) | K | Huo et al., CVPR Workshops 2016; Gao et al., IEEE TIP 2017 |
| `MeanVariance` (MV) | K | Pan et al., "Mean-Variance Loss for Deep Age Estimation", CVPR 2018 |
| `SoftOrdinal` (SORD) | K | Diaz & Marathe, "Soft Labels for Ordinal Regression", CVPR 2019 |
| `ProportionalOdds` (POM) | K-1 | McCullagh 1980; with `heads.CutPoints` |
| `CORAL` | K-1 | Cao et al., Pattern Recognition Letters 2020; with `heads.SharedRank` |
| `CORN` | K-1 | Shi et al., Pattern Analysis and Applications 2023 |

`UnimodalityConstraint` (Belharbi et al., "Non-parametric Uni-modality Constraints for Deep Ordinal
Classification", arXiv 1911.10720) joins any of them: z_k = s_k - s_{k+1} < 0 left of the true rank
and z_k = s_{k+1} - s_k < 0 from it on. On scores under a softmax, z is the same as on its
log-probabilities, so for every loss that has positive probabilities s is their logarithm;
`CodeVector` and `CORAL`, whose probabilities may be negative, are constrained on the increasing
function asinh(p / 2e) of these, e = 1e-3, which is ln(p / e) far above e and p / 2e far below.

Everything is computed in float32 at least, outside autocast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.losses.barrier import ExtendedLogBarrier
from wsl_zoo.precision import at_least_float32

LINEAR_BELOW = 1e-3  # e: probabilities of either sign count by their logarithm above it


class OrdinalLoss(nn.Module, ABC):
    """Base: `loss(numbers (B, W), label (B,)) -> scalar`, the mean over the batch.

    Args:
        num_classes: Number K of ranks, at least 2.

    Attributes:
        outputs: Numbers W per sample.
        positive: Whether `constrained` are logarithms of probabilities, which are positive then.
    """

    positive = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: there must be two ranks at least")
        self.num_classes = num_classes
        self.outputs = num_classes

    def forward(self, numbers: Tensor, label: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            ValueError: Another number of columns than `outputs`.
        """
        if numbers.ndim != 2 or numbers.shape[1] != self.outputs:
            raise ValueError(
                f"{type(self).__name__} of {self.num_classes} ranks takes (B, {self.outputs}), "
                f"got {tuple(numbers.shape)}"
            )
        return self.per_sample(at_least_float32(numbers), label).mean()

    @abstractmethod
    def per_sample(self, numbers: Tensor, label: Tensor) -> Tensor:
        """Return the loss of each sample, (B,)."""

    @abstractmethod
    def probabilities(self, numbers: Tensor) -> Tensor:
        """Return the probabilities of the ranks, (B, K), which sum to 1."""

    def constrained(self, numbers: Tensor) -> Tensor:
        """Return what constraints of uni-modality act on, (B, K): asinh(p / 2e).

        Of losses whose probabilities are positive their logarithms, which those compute stably.
        """
        return (self.probabilities(numbers) / (2 * LINEAR_BELOW)).asinh()

    def predict(self, numbers: Tensor) -> Tensor:
        """Return the predicted ranks (B,): the most probable."""
        return self.probabilities(numbers).argmax(dim=1)


# Under a softmax ----------------------------------------------------------------------------------


class OrdinalCrossEntropy(OrdinalLoss):
    """-log softmax(s)_y: ranks as if they were classes."""

    def per_sample(self, numbers: Tensor, label: Tensor) -> Tensor:
        """Return the cross-entropies, (B,)."""
        return F.cross_entropy(numbers, label, reduction="none")

    def probabilities(self, numbers: Tensor) -> Tensor:
        """Return softmax(s)."""
        return at_least_float32(numbers).softmax(dim=1)

    def constrained(self, numbers: Tensor) -> Tensor:
        """Return log softmax(s)."""
        return at_least_float32(numbers).log_softmax(dim=1)


class SoftOrdinal(OrdinalCrossEntropy):
    """Cross-entropy with q_j proportional to exp(-phi(j, y)) (SORD).

    Args:
        num_classes: Number K of ranks.
        distance: phi: "absolute" |j - y| or "squared" (j - y)^2.
    """

    def __init__(
        self, num_classes: int, distance: Literal["absolute", "squared"] = "absolute"
    ) -> None:
        super().__init__(num_classes)
        if distance not in ("absolute", "squared"):
            raise ValueError(f'distance={distance!r} must be "absolute" or "squared"')
        self.distance = distance

    def targets(self, label: Tensor, like: Tensor) -> Tensor:
        """Return q (B, K)."""
        away = (_ranks(like) - label[:, None]).abs()
        return (-(away if self.distance == "absolute" else away**2)).softmax(dim=1)

    def per_sample(self, numbers: Tensor, label: Tensor) -> Tensor:
        """Return -sum_j q_j log softmax(s)_j, (B,)."""
        return -(self.targets(label, numbers) * numbers.log_softmax(dim=1)).sum(dim=1)


class LabelDistribution(SoftOrdinal):
    """KL(q || softmax(s)) with a Gaussian q_j proportional to exp(-(j - y)^2 / (2 variance)) (LD).

    Args:
        num_classes: Number K of ranks.
        variance: Of the Gaussian; published: 1.
        flat: q as in the published code of arXiv 1911.10720: the softmax of the *values* of the
            density, which is all but uniform (entropy / ln K = 0.995 for 5 ranks); to reproduce it.
    """

    def __init__(self, num_classes: int, variance: float = 1.0, flat: bool = False) -> None:
        super().__init__(num_classes, "squared")
        if not variance > 0:
            raise ValueError(f"variance={variance} must be positive")
        self.variance = variance
        self.flat = flat

    def targets(self, label: Tensor, like: Tensor) -> Tensor:
        """Return q (B, K)."""
        exponent = -((_ranks(like) - label[:, None]) ** 2) / (2 * self.variance)
        if self.flat:
            exponent = exponent.exp() / (2 * torch.pi * self.variance) ** 0.5
        return exponent.softmax(dim=1)

    def per_sample(self, numbers: Tensor, label: Tensor) -> Tensor:
        """Return the divergences, (B,)."""
        q = self.targets(label, numbers)
        return super().per_sample(numbers, label) + torch.special.xlogy(q, q).sum(dim=1)


class MeanVariance(OrdinalCrossEntropy):
    """CE + w_m (mu - y)^2 / 2 + w_v sum_j p_j (j - mu)^2, mu = sum_j j p_j (MV).

    Args:
        num_classes: Number K of ranks.
        mean_weight: w_m; published: 0.2.
        variance_weight: w_v; published: 0.05.
        decode: "round" predicts the rank next to mu; "floor", as in the published code of arXiv
            1911.10720, is half a rank too low on average.
    """

    def __init__(
        self,
        num_classes: int,
        mean_weight: float = 0.2,
        variance_weight: float = 0.05,
        decode: Literal["round", "floor"] = "round",
    ) -> None:
        super().__init__(num_classes)
        if decode not in ("round", "floor"):
            raise ValueError(f'decode={decode!r} must be "round" or "floor"')
        self.mean_weight = mean_weight
        self.variance_weight = variance_weight
        self.decode = decode

    def per_sample(self, numbers: Tensor, label: Tensor) -> Tensor:
        """Return the sums of the three terms, (B,)."""
        p, ranks = numbers.softmax(dim=1), _ranks(numbers)
        mean = (p * ranks).sum(dim=1)
        variance = (p * (ranks - mean[:, None]) ** 2).sum(dim=1)
        error = 0.5 * (mean - label) ** 2
        entropy = super().per_sample(numbers, label)
        return entropy + self.mean_weight * error + self.variance_weight * variance

    def predict(self, numbers: Tensor) -> Tensor:
        """Return mu as a rank, (B,)."""
        p = self.probabilities(numbers)
        mean = (p * _ranks(p)).sum(dim=1)
        return (mean.round() if self.decode == "round" else mean.floor()).long()


# Of cumulative probabilities ----------------------------------------------------------------------


class CodeVector(OrdinalLoss):
    """sum_j (sigmoid(s_j) - 1[j <= y])^2 over the K bits of a rank's code (REN).

    Bit j says Y >= j; bit 0 is always 1. Probabilities p_k = P(Y >= k) - P(Y >= k+1), with
    P(Y >= 0) = 1 and P(Y >= K) = 0, may be negative where bits are out of order.
    """

    positive = False

    def per_sample(self, numbers: Tensor, label: Tensor) -> Tensor:
        """Return the squared errors, (B,)."""
        code = (_ranks(numbers) <= label[:, None]).to(numbers)
        return ((numbers.sigmoid() - code) ** 2).sum(dim=1)

    def probabilities(self, numbers: Tensor) -> Tensor:
        """Return p (B, K), maybe negative."""
        return _of_survival(at_least_float32(numbers)[:, 1:].sigmoid())

    def predict(self, numbers: Tensor) -> Tensor:
        """Return the rank before the first bit below one half, at least 0; (B,)."""
        ones = (at_least_float32(numbers) >= 0).to(torch.int64).cumprod(dim=1).sum(dim=1)
        return (ones - 1).clamp(min=0)


class ProportionalOdds(OrdinalLoss):
    """-log P(Y = y) of P(Y <= k) = sigmoid(a_k), a increasing in k (POM).

    The logarithm of the difference of two neighbours, a = a_k and b = a_{k-1}, is
    log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)), which loses nothing in the tails.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.outputs = num_classes - 1

    def constrained(self, numbers: Tensor) -> Tensor:
        """Return the log-probabilities of the ranks, (B, K)."""
        a = at_least_float32(numbers)
        upper, lower = a[:, 1:], a[:, :-1]
        inner = F.logsigmoid(upper) + F.logsigmoid(-lower) + _log1mexp(upper - lower)
        return torch.cat([F.logsigmoid(a[:, :1]), inner, F.logsigmoid(-a[:, -1:])], dim=1)

    def per_sample(self, numbers: Tensor, label: Tensor) -> Tensor:
        """Return -log P(Y = y), (B,)."""
        return -self.constrained(numbers).gather(1, label[:, None])[:, 0]

    def probabilities(self, numbers: Tensor) -> Tensor:
        """Return the probabilities, (B, K)."""
        return self.constrained(numbers).exp()


class CORAL(OrdinalLoss):
    """Sum of the K-1 binary cross-entropies of Y > k, whose logits differ by a bias only.

    P(Y > k) = sigmoid(l_k). Probabilities may be negative where the biases are out of order.
    """

    positive = False

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.outputs = num_classes - 1

    def per_sample(self, numbers: Tensor, label: Tensor) -> Tensor:
        """Return the sums over k, (B,)."""
        above = (label[:, None] > _ranks(numbers)).to(numbers)
        each = F.binary_cross_entropy_with_logits(numbers, above, reduction="none")
        return each.sum(dim=1)

    def probabilities(self, numbers: Tensor) -> Tensor:
        """Return P(Y > k-1) - P(Y > k), (B, K), maybe negative."""
        return _of_survival(at_least_float32(numbers).sigmoid())

    def predict(self, numbers: Tensor) -> Tensor:
        """Return how many P(Y > k) exceed one half, (B,)."""
        return (at_least_float32(numbers).sigmoid() > 0.5).sum(dim=1)


class CORN(OrdinalLoss):
    """Binary cross-entropies of Y > k given Y >= k, over all of them the mean.

    P(Y > k) = prod_{j <= k} sigmoid(l_j). The mean is over the pairs of a sample and a k <= y of
    the whole batch (published code), no mean of means.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.outputs = num_classes - 1

    def per_sample(self, numbers: Tensor, label: Tensor) -> Tensor:
        """Return what each sample adds, times B, (B,): their mean is the loss."""
        k = _ranks(numbers)
        asked = (label[:, None] >= k).to(numbers)
        above = (label[:, None] > k).to(numbers)
        each = F.binary_cross_entropy_with_logits(numbers, above, reduction="none") * asked
        return each.sum(dim=1) * len(label) / asked.sum().clamp(min=1)

    def probabilities(self, numbers: Tensor) -> Tensor:
        """Return the probabilities, (B, K)."""
        return self.constrained(numbers).exp()

    def constrained(self, numbers: Tensor) -> Tensor:
        """Return the log-probabilities: sum_{j < k} log sigmoid(l_j) + log sigmoid(-l_k)."""
        numbers = at_least_float32(numbers)
        reached = F.pad(F.logsigmoid(numbers).cumsum(dim=1), (1, 0))
        return reached + F.pad(F.logsigmoid(-numbers), (0, 1))

    def predict(self, numbers: Tensor) -> Tensor:
        """Return how many P(Y > k) exceed one half, (B,)."""
        return (at_least_float32(numbers).sigmoid().cumprod(dim=1) > 0.5).sum(dim=1)


# Uni-modality -------------------------------------------------------------------------------------


def adjacent_differences(scores: Tensor, mode: Tensor) -> Tensor:
    """Return z (B, K-1), negative where neighbours are in order around a mode.

    Args:
        scores: `(B, K)`.
        mode: `(B,)` ranks r: z_k = s_k - s_{k+1} for k < r, else s_{k+1} - s_k.
    """
    rise = scores[:, :-1] - scores[:, 1:]
    left = torch.arange(rise.shape[1], device=scores.device) < mode[:, None]
    return torch.where(left, rise, -rise)


class UnimodalityConstraint(nn.Module):
    """K-1 inequalities z_k < 0 around the true rank, as a penalty or a barrier; a scalar.

    Args:
        kind: "barrier": the extended log-barrier psi_t(z) (the method; may be negative, and repels
            where the inequality holds too); "rectified": max(psi_t(z), 0); "penalty":
            1[z >= 0] (z + margin)^2.
        reduction: Over the K-1 pairs of a sample: "sum" (published) or "mean"; over samples the
            mean. The sum outweighs a cross-entropy where ranks are many and samples few.
        margin: epsilon of the penalty; published: 0.1.
        t: First sharpness of the barrier.
        factor: Factor of t per epoch: published 1.01.
        t_max: Largest t.

    Raises:
        ValueError: Unknown kind or reduction, a negative margin, or a wrong schedule.
    """

    def __init__(
        self,
        kind: Literal["barrier", "rectified", "penalty"] = "barrier",
        reduction: Literal["sum", "mean"] = "mean",
        margin: float = 0.1,
        t: float = 1.0,
        factor: float = 1.01,
        t_max: float = 10.0,
    ) -> None:
        super().__init__()
        if kind not in ("barrier", "rectified", "penalty"):
            raise ValueError(f'kind={kind!r} must be "barrier", "rectified" or "penalty"')
        if reduction not in ("sum", "mean"):
            raise ValueError(f'reduction={reduction!r} must be "sum" or "mean"')
        if not margin >= 0:
            raise ValueError(f"margin={margin} must not be negative")
        self.kind = kind
        self.reduction = reduction
        self.margin = margin
        self.barrier = None if kind == "penalty" else ExtendedLogBarrier(t, factor, t_max)

    def forward(self, scores: Tensor, label: Tensor) -> Tensor:
        """Return the mean over samples, a scalar.

        Args:
            scores: `(B, K)`: `OrdinalLoss.constrained`.
            label: `(B,)` true ranks.
        """
        z = adjacent_differences(at_least_float32(scores), label)
        if self.barrier is None:
            each = torch.where(z >= 0, (z + self.margin) ** 2, torch.zeros_like(z))
        else:
            each = self.barrier(z)
            each = each.clamp(min=0) if self.kind == "rectified" else each
        pairs = each.sum(dim=1) if self.reduction == "sum" else each.mean(dim=1)
        return pairs.mean()


def _ranks(like: Tensor) -> Tensor:
    """0, 1, ... of each column, in the type of `like`."""
    return torch.arange(like.shape[1], device=like.device, dtype=like.dtype)


def _of_survival(above: Tensor) -> Tensor:
    """P(Y = k), (B, K), of P(Y > k), (B, K-1)."""
    return F.pad(above, (1, 0), value=1.0) - F.pad(above, (0, 1))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) of x >= 0, finite: below the smallest normal number it stands still."""
    x = x.clamp(min=torch.finfo(x.dtype).tiny)
    return torch.where(x < 0.693, (-torch.expm1(-x)).log(), torch.log1p(-torch.exp(-x)))
