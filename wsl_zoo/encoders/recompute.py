"""Activation checkpointing of an encoder whose batch norms learn.

`torch.utils.checkpoint` runs a forward pass again in the backward pass. Batch norms in training
mode would then count every batch twice; here the second pass leaves their statistics alone, so that
weights and statistics are the same with and without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(call: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    """Return `call(x)`, of which only `x` is kept for the backward pass.

    Args:
        call: A function of `module`, its weights included.
        module: Its batch norms' statistics count the first pass only.
        x: Its input.
    """
    return checkpoint(
        call, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _no_statistics(module))
    )


@contextmanager
def _no_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms normalise by the batch as they would, without keeping its statistics."""
    norms = [
        (norm, norm.momentum, norm.num_batches_tracked)
        for norm in module.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training
    ]
    for norm, _, count in norms:  # running <- (1 - 0) running + 0 batch; a copy counts
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum, norm.num_batches_tracked = momentum, count
