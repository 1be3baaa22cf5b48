"""Sampling whose order is a function of (seed, epoch), also after a resume and over processes.

A sample travels to the data set as a `Key`: the epoch seeds its augmentation, and `valid` tells
apart the copies by which a distributed run pads its last round (metrics drop them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler


class Key(NamedTuple):
    """What a sampler asks the data set for."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    valid: bool


def valid_mask(start: int, count: int, size: int, rank: int = 0, world_size: int = 1) -> Tensor:
    """Tell real samples from padding among `count` samples of one process, from its `start`-th.

    Distributed samplers deal samples round-robin and repeat the first ones until every process has
    equally many: the i-th sample of rank r of W is position `i * W + r`, real while that is < size.
    For batch b of size B, `start = b * B`.

    Args:
        start: Position in this process's sequence.
        count: How many samples from there on.
        size: Size N of the data set.
        rank: This process.
        world_size: Number of processes.

    Returns:
        (count,) bool.

    >>> valid_mask(0, 4, 7, rank=1, world_size=2).tolist()  # rank 1 holds 1, 3, 5 and a repeated 0
    [True, True, True, False]
    """
    return (start + torch.arange(count)) * world_size + rank < size


class SeededSampler(DistributedSampler[Any]):
    """Distributed sampler of `Key`s whose permutation depends on (seed, epoch) alone.

    One process is the special case `num_replicas=1`. Lightning leaves samplers of this base class
    as they are and calls `set_epoch` on them.

    Args:
        size: Size N of the data set.
        shuffle: Draw a new permutation every epoch.
        seed: Seed of the permutations.
        num_replicas: Number of processes.
        rank: This process.
    """

    def __init__(
        self, size: int, *, shuffle: bool, seed: int = 0, num_replicas: int = 1, rank: int = 0
    ) -> None:
        super().__init__(
            range(size),  # type: ignore[arg-type]  # only its length is read
            num_replicas=num_replicas,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
        )
        self.skip = 0
        """Samples of this process to leave out at the start of the next pass (a resumed epoch)."""

    def __iter__(self) -> Iterator[Any]:
        """Yield the keys of this process's samples, padded to equal length on all processes."""
        indices = list(super().__iter__())
        size = len(self.dataset)  # type: ignore[arg-type]
        valid = valid_mask(0, len(indices), size, self.rank, self.num_replicas).tolist()
        keys = [Key(self.epoch, i, v) for i, v in zip(indices, valid, strict=True)]
        skip, self.skip = self.skip, 0
        return iter(keys[skip:])


class ResumableLoader(DataLoader[Any]):
    """Data loader whose passes start where the trainer stands, also in the middle of an epoch.

    Lightning creates the iterator of a resumed run before it tells the sampler the epoch, and with
    workers the first batches are then already under way; so each new pass asks for the position.

    Args:
        position: Returns (epoch, batches of it already trained on).
        *args: As for `DataLoader`; the sampler must be a `SeededSampler`.
        **kwargs: As for `DataLoader`.
    """

    def __init__(
        self, *args: Any, position: Callable[[], tuple[int, int]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.position = position

    def __iter__(self) -> Any:
        """Start a pass at the current position."""
        if self.position is not None and isinstance(self.sampler, SeededSampler):
            epoch, batches = self.position()
            self.sampler.set_epoch(epoch)
            self.sampler.skip = batches * (self.batch_size or 1)
        return super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the position is the trainer's own progress, which checkpoints hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing, see `state_dict`."""


def trainer_position(trainer: Any) -> tuple[int, int]:
    """Return (epoch, batches of it already trained on) of a Lightning trainer, resumed or not."""
    epochs = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress
    if epochs.started <= epochs.processed:  # between epochs
        return epochs.processed, 0
    current = batches.current
    # A checkpoint written in `on_train_batch_end` lacks only the "completed" of a finished batch.
    finished = current.started == current.ready and current.processed == current.started
    done = current.processed if finished else current.completed
    if done and batches.is_last_batch:  # saved after the last batch: next comes the next epoch
        return epochs.processed + 1, 0
    return epochs.processed, done
