"""Features and scores of a whole data set, kept by sample index on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

ROWS_AT_ONCE = 8192  # that travel between processes together: 64 MiB of 2,048 features


class FeatureBank:
    """What a pass over a data set found, row i of sample i, whichever process saw it.

    Every process adds its own samples; `gather` then gives all of them the same rows, bit for bit
    those of one process: a row is the one that was added, plus zeros of the others. 100,000 samples
    of D features and K classes take 0.4 (D + K) MB in float32.

    Args:
        size: Number N of samples.
    """

    def __init__(self, size: int) -> None:
        self.rows: dict[str, Tensor] = {}
        self.seen = torch.zeros(size, dtype=torch.float32)

    def add(self, index: Tensor, valid: Tensor | None = None, **values: Tensor) -> None:
        """Keep values of samples.

        Args:
            index: `(B,)` int64 positions in the data set.
            valid: `(B,)` bool, False for copies that only pad a batch; None: all are.
            **values: `(B, ...)` each, kept as float32.
        """
        if valid is not None:
            index, values = index[valid], {name: value[valid] for name, value in values.items()}
        index = index.cpu()
        for name, value in values.items():
            if name not in self.rows:
                self.rows[name] = torch.zeros(len(self.seen), *value.shape[1:])
            self.rows[name][index] = value.detach().float().cpu()
        self.seen[index] = 1.0

    def gather(
        self,
        total: Callable[[Tensor], Tensor] | None = None,
        only: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Return the rows of all samples, (N, ...) float32 on the CPU.

        Args:
            total: Sums a CPU tensor over processes; None: there is one process. All must call this.
            only: The samples of the pass, the rows of others are zero; None: all.

        Raises:
            RuntimeError: A sample of the pass was seen by no process, or by two.
        """
        seen = self.seen if total is None else total(self.seen)
        if only is not None:
            seen = seen[list(only)]
        wrong = (seen != 1.0).nonzero()[:, 0].tolist()
        if wrong:
            first = wrong[0] if only is None else only[wrong[0]]
            raise RuntimeError(
                f"{len(wrong)} of {len(seen)} samples were seen by no process or by two, the first "
                f"is {first}: a pass must see every sample once"
            )
        if total is not None:
            for value in self.rows.values():
                for start in range(0, len(value), ROWS_AT_ONCE):
                    part = value[start : start + ROWS_AT_ONCE]
                    part.copy_(total(part.contiguous()))
        return self.rows


def average_norms(module: nn.Module, mean: Callable[[Tensor], Tensor]) -> None:
    """Give the batch norms of all processes the mean of their running statistics, in place.

    Each process moves its own; without this a sample's features depend on who looks at it. Norms
    in evaluation mode move nothing and stay as they are.

    Args:
        module: The network.
        mean: Averages a tensor over processes.
    """
    for norm in module.modules():
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not norm.training:
            continue
        if norm.running_mean is not None:
            assert norm.running_var is not None
            norm.running_mean.copy_(mean(norm.running_mean))
            norm.running_var.copy_(mean(norm.running_var))
