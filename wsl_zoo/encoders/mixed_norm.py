"""Batch norms that mix the statistics of two domains by one learnt number (AdaDSA)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

Norm = nn.modules.batchnorm._BatchNorm
INNER = "norm"  # name of the source's batch norm inside a `MixedNorm`


class MixedNorm(nn.Module):
    """A fixed normalisation with statistics between those of the source and of the target.

    mu = a mu_t + (1 - a) mu_s, var = a (var_t + (mu_t - mu)^2) + (1 - a) (var_s + (mu_s - mu)^2),
    the moments of a mixture, y = (x - mu) / sqrt(var + eps) weight + bias, in training and
    evaluation alike. a = sigmoid(`theta`) is all that learns: clamped to [0, 1], as published, its
    gradient is 0 at the ends, where it starts.

    Args:
        norm: The source's batch norm, with running statistics; an activation that timm puts into it
            follows.
        alpha: a at the start, in (0, 1).

    Raises:
        ValueError: The norm keeps no running statistics, or alpha is out of its range.
    """

    theta: nn.Parameter
    target_mean: Tensor
    target_var: Tensor

    def __init__(self, norm: Norm, alpha: float = 0.95) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(f"{norm} keeps no running statistics that could be mixed")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha} must lie in (0, 1)")
        self.norm = norm
        self.theta = nn.Parameter(torch.tensor([math.log(alpha / (1 - alpha))]))
        self.register_buffer("target_mean", norm.running_mean.clone())
        self.register_buffer("target_var", norm.running_var.clone())

    @property
    def alpha(self) -> Tensor:
        """a, (1,) in (0, 1): the share of the target."""
        return self.theta.sigmoid()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mu and var, (C,) each."""
        a, source_mean, source_var = self.alpha, self.norm.running_mean, self.norm.running_var
        assert source_mean is not None
        assert source_var is not None
        mean = a * self.target_mean + (1 - a) * source_mean
        of_target = self.target_var + (self.target_mean - mean) ** 2
        of_source = source_var + (source_mean - mean) ** 2
        return mean, a * of_target + (1 - a) * of_source

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(B, C, ...)`."""
        mean, var = self.statistics()
        scale = (var + self.norm.eps).rsqrt()
        shift = -mean * scale
        if self.norm.affine:
            scale, shift = scale * self.norm.weight, shift * self.norm.weight + self.norm.bias
        shape = (1, -1, *(1,) * (x.ndim - 2))
        y: Any = x * scale.view(shape).to(x.dtype) + shift.view(shape).to(x.dtype)
        for name in ("drop", "act"):  # of timm's norms with an activation
            y = getattr(self.norm, name, nn.Identity())(y)
        result: Tensor = y
        return result


def mix_norms(module: nn.Module, alpha: float = 0.95) -> list[MixedNorm]:
    """Replace every batch norm below a module by a `MixedNorm` of it; return them in order."""
    found: list[MixedNorm] = []
    for name, child in list(module.named_children()):
        if isinstance(child, Norm):
            mixed = MixedNorm(child, alpha)
            setattr(module, name, mixed)
            found.append(mixed)
        else:
            found += mix_norms(child, alpha)
    return found


@torch.no_grad()
def fold_norms(module: nn.Module) -> None:
    """Replace every `MixedNorm` below a module by a batch norm that keeps its statistics."""
    for name, child in list(module.named_children()):
        if isinstance(child, MixedNorm):
            mean, var = child.statistics()
            assert child.norm.running_mean is not None
            assert child.norm.running_var is not None
            child.norm.running_mean.copy_(mean)
            child.norm.running_var.copy_(var)
            setattr(module, name, child.norm)
        else:
            fold_norms(child)


def plain_keys(module: nn.Module) -> dict[str, str]:
    """Map names of a state without mixed norms to those of `module`, which has them."""
    inside = [n for n, m in module.named_modules() if isinstance(m, MixedNorm)]
    names = {f"{name}.{INNER}.": f"{name}." for name in inside}
    keys: dict[str, str] = {}
    for key in module.state_dict():
        owner = next((prefix for prefix in names if key.startswith(prefix)), None)
        if owner is not None:
            keys[names[owner] + key[len(owner) :]] = key
        elif not any(key.startswith(f"{name}.") for name in inside):
            keys[key] = key
    return keys


@torch.no_grad()
def norm_statistics(
    network: nn.Module, batches: Iterable[Tensor], device: torch.device
) -> tuple[list[Tensor], list[Tensor], int]:
    """Measure what every batch norm of a network sees, in one pass over images.

    A copy of the network, whose batch norms normalise by each batch and average its statistics over
    batches (momentum None: with the usual 0.1, 73 % of the values before three batches would stay),
    all else in evaluation mode.

    Args:
        network: Without mixed norms.
        batches: Images `(B, C, H, W)` each, B at least 2 unless the maps are larger than one pixel.
        device: Where to compute.

    Returns:
        Means and variances (C,) in the order of its batch norms, and the number of images.
    """
    copied = copy.deepcopy(network).to(device).eval()
    norms = [m for m in copied.modules() if isinstance(m, Norm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    count = 0
    for image in batches:
        copied(image)
        count += len(image)
    means, variances = [], []
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        means.append(norm.running_mean)
        variances.append(norm.running_var)
    return means, variances, count
