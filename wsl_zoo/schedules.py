"""Optimisers and learning-rate schedules of the papers, per epoch, with a floor for every group."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["step", "cosine", "constant"]
OptimizerName = Literal["sgd", "adam", "adamw"]


@runtime_checkable
class EpochSchedule(Protocol):
    """A submodule that changes from epoch to epoch: a barrier weight, a sigma, a loss window.

    The base steps every submodule that says so, once per training epoch. Nothing is inherited (a
    loss knows no trainer); what changes stands in buffers, so that checkpoints hold it:

        class Barrier(nn.Module):
            steps_every_epoch = True

            def step(self) -> None: ...
    """

    steps_every_epoch: bool

    def step(self) -> None:
        """Go on by one epoch."""


def make_optimizer(
    groups: list[dict[str, Any]],
    name: OptimizerName,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Optimizer:
    """Return SGD (Nesterov where there is momentum), Adam or AdamW over parameter groups.

    AdamW decays weights apart from the gradient, the others by adding to it.

    Raises:
        ValueError: Another name.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay)
    if name != "sgd":
        raise ValueError(f"optimizer={name!r} must be 'sgd', 'adam' or 'adamw'")
    return torch.optim.SGD(
        groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0
    )


def lr_factor(
    lr: float,
    schedule: Schedule,
    step_size: int,
    gamma: float,
    min_lr: float,
    epochs: int,
    elapsed: Callable[[], float] | None = None,
) -> Callable[[int], float]:
    """Return the factor of a group's rate `lr` as a function of the epoch, counted from 0.

    "step": `max(lr gamma^floor(epoch / step_size), min_lr)`, the survey's and F-CAM's decay;
    "cosine": from `lr` to `min_lr`, which epoch `epochs` would have, or with `elapsed`, which says
    what share of a time to train is over, its end; "constant": 1. A rate below `min_lr` stays as it
    is.

    Raises:
        ValueError: Another schedule, or a step size below 1.
    """
    if schedule not in {"step", "cosine", "constant"}:
        raise ValueError(f"schedule={schedule!r} must be 'step', 'cosine' or 'constant'")
    if step_size < 1:
        raise ValueError(f"step_size={step_size} must be at least one epoch")
    floor = min(1.0, min_lr / lr) if lr else 1.0

    def factor(epoch: int) -> float:
        if schedule == "step":
            return max(gamma ** (epoch // step_size), floor)
        if schedule == "cosine":
            progress = min(1.0, epoch / max(1, epochs) if elapsed is None else elapsed())
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0

    return factor


def make_scheduler(
    optimizer: Optimizer,
    schedule: Schedule,
    step_size: int,
    gamma: float,
    min_lr: float,
    epochs: int,
    elapsed: Callable[[], float] | None = None,
) -> LambdaLR:
    """Return the schedule of every group; see `lr_factor`."""
    return LambdaLR(
        optimizer,
        [
            lr_factor(group["lr"], schedule, step_size, gamma, min_lr, epochs, elapsed)
            for group in optimizer.param_groups
        ],
    )
