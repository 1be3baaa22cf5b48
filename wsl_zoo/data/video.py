"""Videos that carry a tag: data modules whose training items are shots.

A shot is a run of frames without a cut. An epoch visits every shot once and draws one frame of it,
or a group of frames (`FrameSampling`); every frame is cropped and flipped by itself. Samplers deal
whole shots, so no batch and no process ever splits a group. Validation and test read single,
annotated frames.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.dataset import RecordSource, Source, ZooDataset, collate, stable_seed
from wsl_zoo.data.frames import Dist, FrameSampling, Style
from wsl_zoo.data.manifest import DataError, Record
from wsl_zoo.data.samplers import Key
from wsl_zoo.types import Batch

DRAW = 0xF4A3  # apart from the seeds of augmentation


def shots_of(records: Sequence[Record]) -> list[range]:
    """Return the positions of the frames of every shot: runs of records of one `group`.

    Raises:
        DataError: The frames of a shot do not follow one another.
    """
    starts = [i for i, r in enumerate(records) if i == 0 or r.group != records[i - 1].group]
    shots = [range(*pair) for pair in pairwise([*starts, len(records)])]
    seen: set[str] = set()
    problems = []
    for shot in shots:
        group = records[shot.start].group
        if group in seen:
            problems.append(f"{records[shot.start].image}: the frames of {group!r} are scattered")
        seen.add(group)
    if problems:
        raise DataError("Frames of a shot must follow one another", problems)
    return shots


class ShotDataset(ZooDataset):
    """Shots as items: a list of frames each.

    Args:
        source: Where frames come from.
        shots: Positions of the frames of every shot, in temporal order.
        sampling: Which frames of a shot are drawn, by (seed, epoch, shot).
        *args: As of `ZooDataset`, as are `**kwargs`; maps in `cams` are by frame.
        **kwargs: See there.
    """

    def __init__(
        self,
        source: Source,
        shots: Sequence[range],
        sampling: FrameSampling,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, *args, **kwargs)
        self.shots = list(shots)
        self.sampling = sampling

    def __len__(self) -> int:
        return len(self.shots)

    def frames(self, shot: int, epoch: int) -> list[int]:
        """Return the positions in the source of the frames of a shot that `epoch` sees."""
        span = self.shots[shot]
        rng = np.random.default_rng(stable_seed(self.seed, epoch, shot, DRAW))
        return [span[i] for i in self.sampling.draw(len(span), rng)]

    def __getitem__(self, key: Key | int) -> Any:
        """Return the items of the frames drawn, with their positions in the shot as `frame`."""
        epoch, shot, valid = key if isinstance(key, tuple) else (0, key, True)
        start = self.shots[shot].start
        return [
            super(ShotDataset, self).__getitem__(Key(epoch, i, valid)) | {"frame": i - start}
            for i in self.frames(shot, epoch)
        ]

    @staticmethod
    def collate(items: Sequence[Any]) -> Batch:
        """Stack the frames of whole shots; `sequence` (B,) tells which belong together."""
        batch = collate([frame for shot in items for frame in shot])
        counts = torch.tensor([len(shot) for shot in items])
        batch["sequence"] = torch.arange(len(items)).repeat_interleave(counts)
        return batch


class VideoDataModule(ZooDataModule):
    """Loaders of a data set of tagged videos.

    A training batch holds `batch_size // frames` shots with up to `frames` frames each. Where shots
    are short it is smaller: nothing is repeated to fill it. (The published code repeats frames,
    which then count twice in CoLo-CAM's joint term.)

    Args:
        frames: Frames of a shot in a training batch: 1 for classifiers, F-CAM and TCAM.
        frame_style: See `FrameSampling`, as of the others.
        frame_dist: See there.
        frame_limit: See there.
        **kwargs: See `ZooDataModule`.

    Raises:
        ValueError: An option of the sampling is wrong, or a batch smaller than a group of frames.
    """

    corloc = True

    def __init__(
        self,
        frames: int = 1,
        frame_style: Style = "before",
        frame_dist: Dist = "uniform",
        frame_limit: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sampling = FrameSampling(frames, frame_style, frame_dist, frame_limit)
        if self.batch_size < frames:
            raise ValueError(f"batch_size={self.batch_size} cannot hold frames={frames} of a shot")

    @property
    def items_per_batch(self) -> int:
        """Shots in a training batch."""
        return self.batch_size // self.sampling.frames

    @abstractmethod
    def read(self) -> Mapping[str, Source | Sequence[Record]]:
        """Return every split: of records, or ready sources (`train` with `shots: list[range]`).

        Records of `train` are all frames of all its shots: those of a shot one after the other in
        temporal order, its name their `group`. Other splits hold the annotated frames.
        """

    def shots(self, split: str = "train") -> list[range]:
        """Return the positions of the frames of every shot of a split, in temporal order."""
        source = self.sources[split]
        if isinstance(source, RecordSource):
            return shots_of(source.records)
        shots: list[range] = source.shots  # type: ignore[attr-defined]
        return shots

    def dataset(self, split: str) -> ZooDataset:
        """Return one split as the network sees it: of `train` augmented shots, else frames."""
        return self._shot_dataset() if split == "train" else super().dataset(split)

    def _shot_dataset(self) -> ShotDataset:
        return ShotDataset(
            self.sources["train"],
            self.shots(),
            self.sampling,
            self.train_size,
            self.augment,
            **self.dataset_options("train"),
        )

    def drawn(self, epochs: int) -> list[int]:
        """Return the positions of the training frames that the first epochs see, sorted."""
        dataset = self._shot_dataset()
        shots = range(len(dataset))
        return sorted({i for e in range(epochs) for shot in shots for i in dataset.frames(shot, e)})
