"""Images without a region: the class that tells them, and means over part of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def negative_class(data: Any, required_by: str | None = None) -> int | None:
    """Return the class of a data module whose images hold no region; None if it has none.

    Args:
        data: The trainer's data module, or None.
        required_by: The setting that cannot do without, for the message.

    Raises:
        ValueError: It has none, but `required_by` asks for one.
    """
    index: int | None = getattr(data, "negative_class", None)
    if required_by and index is None:
        raise ValueError(
            f"{required_by}: {type(data).__name__} has no class without a region "
            "(of your own images, name it with data.negatives)"
        )
    return index


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of those chosen of (B,) values; 0 with a graph of none."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)
