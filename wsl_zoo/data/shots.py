"""Videos as files: shots by the names of their frames, and boxes on some of these."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_warn

from wsl_zoo.data.manifest import Box, DataError, Record, read_image, read_size
from wsl_zoo.data.transforms import Sample

FRAME = re.compile(r"(?:frame)?([0-9]+)\.jpg", re.IGNORECASE)
LEAVES = 1 / 32  # part of its side by which a box may leave an image without a warning
SHOWN = 5  # names in a warning


@dataclass(frozen=True, slots=True)
class Shot:
    """A run of frames without a cut.

    Attributes:
        name: Unique in the data set: "boat/data/0006/shots/026".
        folder: Holds its frames.
        label: Class index.
        frames: File names of its frames in temporal order.
    """

    name: str
    folder: Path
    label: int
    frames: Sequence[str]


class ShotSource:
    """All frames of shots, without annotation: several 100,000, of which only names are kept.

    Args:
        found: The shots, each with one frame at least.
    """

    has_masks = False
    has_boxes = False

    def __init__(self, found: Iterable[Shot]) -> None:
        self.found = list(found)
        self.shots: list[range] = []
        """Positions of the frames of every shot."""
        for shot in self.found:
            self.shots.append(range(len(self), len(self) + len(shot.frames)))

    def __len__(self) -> int:
        return self.shots[-1].stop if self.shots else 0

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Read frame `index`; its group is the shot's name."""
        i = bisect_right(self.shots, index, key=lambda span: span.start) - 1
        shot = self.found[i]
        path = shot.folder / shot.frames[index - self.shots[i].start]
        image = read_image(path)
        size = (image.shape[0], image.shape[1])
        return Sample(image, shot.label, group=shot.name, path=str(path), size=size)


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
