"""Sums and logarithms need float32."""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def at_least_float32(x: Tensor) -> Tensor:
    """Return half-precision tensors as float32, all others unchanged."""
    return x.float() if x.dtype in HALF else x
