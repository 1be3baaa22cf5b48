"""What the localisation metrics share: synchronisation, protocol states, checks, threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

IGNORE = 255
"""Mask value of the pixels that count nowhere."""

BAD_SCORES = "scores must lie in [0, 1] and hold no NaN; normalise the map before scoring it"
BAD_MASK = f"mask must hold 0 (background), 1 (foreground) and {IGNORE} (ignore) only"

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def synced(metric: Metric) -> Iterator[None]:
    """Sum the states of all processes inside the context.

    torchmetrics does so around `compute` only. All processes must enter it. Does nothing on one
    process, or when the states are synchronised already.
    """
    fresh = not metric._is_synced
    with metric.sync_context(
        dist_sync_fn=metric.dist_sync_fn,
        should_sync=metric._to_sync and fresh,
        should_unsync=metric._should_unsync and fresh,
    ):
        yield


def protocol_state(*settings: float) -> Tensor:
    """Encode settings as an int64 state, to be reduced by "max".

    `MetricCollection` merges metrics whose states agree after the first batch; without this
    constant it would merge, say, two thresholds that happen to give equal counts on that batch, and
    report one value for both for ever.
    """
    return torch.tensor(settings, dtype=torch.float64).view(torch.int64)


def float64_device(device: torch.device) -> torch.device:
    """Return `device`, or the CPU in place of MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Map a function that releases the interpreter lock, in as many threads as torch uses.

    A call should take a millisecond or more: to start a thread takes a tenth of one.
    """
    threads = min(torch.get_num_threads(), len(items))
    if threads < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def live_images(valid: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    """Check `valid`; return it as bool on a device, or None if nothing is dropped.

    Raises:
        ValueError: It is not `(count,)`.
    """
    if valid is None:
        return None
    if valid.shape != (count,):
        raise ValueError(f"valid must be ({count},), got {tuple(valid.shape)}")
    return valid.to(device=device, dtype=torch.bool)


def invalid_pixels(scores: Tensor, mask: Tensor, live: Tensor | None) -> Tensor:
    """Find pixels that cannot be scored; on the CPU, refuse them at once.

    Other devices are not made to wait: there the caller keeps a count, and `compute` raises.

    Args:
        scores: `(B, H, W)` float64.
        mask: `(B, H, W)`.
        live: `(B,)` bool, False where an image is dropped; None: all are live.

    Returns:
        `(B, H, W)` bool.

    Raises:
        ValueError: On the CPU, for NaN or scores outside [0, 1], or for an unknown mask value.
    """
    bad_scores = ~((scores >= 0) & (scores <= 1))
    bad_mask = (mask != 0) & (mask != 1) & (mask != IGNORE)
    if live is not None:
        bad_scores = bad_scores & live.view(-1, 1, 1)
        bad_mask = bad_mask & live.view(-1, 1, 1)
    if scores.device.type == "cpu":
        refuse_scores(scores, bad_scores)
        if bad_mask.any():
            raise ValueError(f"{BAD_MASK}; found {mask[bad_mask][0].item()}")
    return bad_scores | bad_mask


def refuse_scores(scores: Tensor, bad: Tensor) -> None:
    """Raise a ValueError that tells how many scores are bad, and the first."""
    if bad.any():
        found = scores[bad]
        raise ValueError(
            f"{BAD_SCORES}; found {len(found)} such pixels, the first is {found[0].item()}"
        )


def undefined(metric: Metric, reason: str, device: torch.device) -> Tensor:
    """Warn and return NaN."""
    rank_zero_warn(f"{type(metric).__name__} is undefined ({reason}): returning NaN", UserWarning)
    return torch.tensor(torch.nan, dtype=torch.float64, device=device)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError that lists the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")
