"""Shots on disk, as folders of frames or as video files, and boxes on some of their frames."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from wsl_zoo.data.manifest import Box, DataError, Record, read_image, read_size
from wsl_zoo.data.transforms import Sample
from wsl_zoo.data.videofile import VideoFile

FRAME = re.compile(r"(?:frame)?([0-9]+)\.jpg", re.IGNORECASE)
LEAVES = 1 / 32  # part of its side by which a box may leave an image without a warning
SHOWN = 5  # names in a warning


OPEN_FILES = 8  # video files that a process holds open: each has a decoder with its buffers


@dataclass(frozen=True, slots=True)
class Shot:
    """A run of frames without a cut: images in a folder, or a video file.

    Attributes:
        name: Unique in the data set, its path there: "boat/data/0006/shots/026".
        folder: Holds its frames; or the path of the file.
        label: Class index.
        frames: File names of its frames in temporal order; none where it is a file.
        file: The video file.
        video: Name of the video that it is part of, where that matters.
    """

    name: str
    folder: Path
    label: int
    frames: Sequence[str] = ()
    file: VideoFile | None = None
    video: str = ""

    def __len__(self) -> int:
        return len(self.frames) if self.file is None else self.file.count

    def frame(self, index: int) -> str:
        """Return the name of a frame in the data set, in a file `<file>#<index>`."""
        return f"{self.name}/{self.frames[index]}" if self.file is None else f"{self.name}#{index}"

    def path(self, index: int) -> str:
        """Return the path of a frame, in a file `<file>#<index>`."""
        return f"{self.folder}#{index}" if self.file else str(self.folder / self.frames[index])


class ShotSource:
    """Frames of shots as samples: several 100,000, of which only names are kept.

    Args:
        found: The shots, each with one frame at least.
        used: Positions of the frames that are used, in temporal order, of each shot; None: all.
        boxes: Boxes (edges) by the name of the frame.
    """

    has_masks = False

    def __init__(
        self,
        found: Iterable[Shot],
        used: Sequence[Sequence[int]] | None = None,
        boxes: Mapping[str, tuple[Box, ...]] | None = None,
    ) -> None:
        self.found = list(found)
        self.used = [range(len(shot)) for shot in self.found] if used is None else used
        ends = list(accumulate(map(len, self.used), initial=0))
        self.shots = [range(start, end) for start, end in pairwise(ends)]
        """Positions of the frames of every shot."""
        names = (s.frame(i) for s, own in zip(self.found, self.used, strict=True) for i in own)
        self.boxes = {name: boxes[name] for name in names if name in boxes} if boxes else {}
        self.has_boxes = bool(self.boxes)
        self._open: list[VideoFile] = []

    def __len__(self) -> int:
        return self.shots[-1].stop if self.shots else 0

    @property
    def has_files(self) -> bool:
        """Whether a shot is a video file."""
        return any(shot.file is not None for shot in self.found)

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Read frame `index`, and its boxes if `annotations`; its group is the shot's name."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        place = bisect_right(self.shots, index, key=lambda span: span.start) - 1
        shot = self.found[place]
        position = self.used[place][index - self.shots[place].start]
        if shot.file is None:
            image = read_image(shot.folder / shot.frames[position])
        else:
            image = self._reading(shot.file).read(position)
        size = (image.shape[0], image.shape[1])
        path = shot.path(position)
        sample = Sample(image, shot.label, group=shot.name, path=path, size=size)
        boxes = self.boxes.get(shot.frame(position)) if annotations and self.boxes else None
        if boxes is not None:
            sample.boxes = np.array(boxes, dtype=np.float64)
        return sample

    def _reading(self, file: VideoFile) -> VideoFile:
        """Return the file, which opens when it is read; close the one not read for longest."""
        self._open = [*(other for other in self._open if other is not file), file]
        if len(self._open) > OPEN_FILES:
            self._open.pop(0).close()
        return file


def listing(folder: Path) -> list[str]:
    """Return the names in a folder, in no order."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def numbered(names: Iterable[str], pattern: re.Pattern[str] = FRAME) -> list[tuple[int, str]]:
    """Return (number, name) of names that match, by number; by default those of frames.

    >>> numbered(["frame10000.jpg", "frame9999.jpg", "frame9999.jpg_sticks.mat"])
    [(9999, 'frame9999.jpg'), (10000, 'frame10000.jpg')]
    """
    return sorted((int(match[1]), name) for name in names if (match := pattern.fullmatch(name)))


def read_shot(name: str, folder: Path, label: int) -> Shot | None:
    """Return the shot in a folder of its own; None: there is no such folder."""
    try:
        return Shot(name, folder, label, [file for _, file in numbered(listing(folder))])
    except (FileNotFoundError, NotADirectoryError):
        return None


def clean(records: Sequence[Record], problems: list[str]) -> list[Record]:
    """Put the boxes of annotated frames right, as `clean_box` does.

    Warns of swapped corners, and of boxes that leave their image by more than `LEAVES`. The boxes
    of an image that cannot be read are not cut: its size is not known.

    Args:
        records: The frames.
        problems: Receives boxes outside their image.
    """

    def size_of(record: Record) -> tuple[float, float]:
        try:
            return read_size(record.image)
        except DataError:
            return (float("inf"), float("inf"))  # the check of the data set itself names it

    cleaned = []
    swapped = []
    large = []
    with ThreadPoolExecutor(max_workers=8) as pool:
        for record, (width, height) in zip(records, pool.map(size_of, records), strict=True):
            boxes = []
            for box in record.boxes or ():
                x0, y0, x1, y1 = clean_box(box, (width, height))
                boxes.append((x0, y0, x1, y1))
                if x0 > x1 or y0 > y1:
                    problems.append(
                        f"{record.place}: box {box} lies outside its image {record.image} of "
                        f"{width}x{height} pixels"
                    )
                    continue
                if box[0] > box[2] or box[1] > box[3]:
                    swapped.append(str(record.image))
                if any(v > (1 + LEAVES) * w for v, w in zip(box, (width, height) * 2, strict=True)):
                    large.append(str(record.image))
            cleaned.append(replace(record, boxes=tuple(boxes)) if boxes else record)
    warn("Swapped corners of boxes are put right", swapped)
    warn("Boxes that leave their image by far are cut", large)
    return cleaned


def clean_box(box: Box, size: tuple[float, float]) -> Box:
    """Order the corners, make negative ones 0, and end the box inside its image.

    A side longer than that of the image, w, ends at w - 1 (so the published lists), any other at w.
    Of a box that lies outside the image, a side ends before it starts.

    >>> clean_box((21, -2, 4, 9), (20, 10))
    (4, 0, 20, 9)
    >>> clean_box((-3, 1, 25, 9), (20, 10))
    (0, 1, 19, 9)
    """
    x0, x1 = _inside(box[0], box[2], size[0])
    y0, y1 = _inside(box[1], box[3], size[1])
    return (x0, y0, x1, y1)


def _inside(start: float, end: float, extent: float) -> tuple[float, float]:
    low, high = max(min(start, end), 0), max(start, end)
    return (low, extent - 1) if high - low > extent else (low, min(high, extent))


def warn(what: str, names: Sequence[str]) -> None:
    """Warn of `what`, with the number of `names` and the first ones, if there are any."""
    if names:
        more = f", ... and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        rank_zero_warn(f"{what} ({len(names)}): {', '.join(names[:SHOWN])}{more}")
