"""Sums, logarithms and exponentials need float32 where a network runs in half precision."""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def at_least_float32(x: Tensor) -> Tensor:
    """Return half-precision tensors as float32, all others unchanged."""
    return x.float() if x.dtype in HALF else x


def to_float(x: Tensor) -> Tensor:
    """Return float64 as it is, anything else, integers too, as float32."""
    return x if x.dtype == torch.float64 else x.float()
