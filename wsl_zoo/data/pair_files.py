"""The files of pairs for super-resolution: read, and checked before they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsl_zoo.data.manifest import DataError, Verify, read_size
from wsl_zoo.data.pixels import Degradation, cut_to_multiple, downsample, read_pixels

Pair = tuple[np.ndarray, np.ndarray | None]
"""Image (C, h, w) and target (C, sh, sw), of one type, uint8 or uint16."""


@dataclass(frozen=True, slots=True)
class PairRecord:
    """The files of one pair.

    Attributes:
        image: The low-resolution image; None: made by down-sampling.
        target: The high-resolution image; None: there is none, for prediction only.
        group: What the pair belongs to: field, tile, patient.
        place: Where the record was read, for messages ("pairs.csv, line 7").
        made_from: What a missing `image` is made from, of the size of the target (such as a noisier
            scan of it); None: the target.
    """

    image: Path | None
    target: Path | None
    group: str = ""
    place: str = ""
    made_from: Path | None = None

    @property
    def path(self) -> Path | None:
        """The file that the network's input comes from."""
        return self.image or self.made_from or self.target


class FilePairs:
    """Pairs read from files.

    A target whose sides are no multiples of the scale is cut at the bottom and on the right.

    Args:
        records: The split's records.
        scale: s.
        channels: C, see `read_pixels`.
        degradation: How missing images are made, see `downsample`.
    """

    has_masks = False
    has_boxes = False

    def __init__(
        self,
        records: Sequence[PairRecord],
        scale: int,
        channels: int = 1,
        degradation: Degradation = "area",
    ) -> None:
        self.records = list(records)
        self.scale = scale
        self.channels = channels
        self.degradation: Degradation = degradation

    def __len__(self) -> int:
        return len(self.records)

    def load(self, index: int) -> Pair:
        """Read pair `index`.

        Raises:
            DataError: A file cannot be read, or the two do not fit.
        """
        record = self.records[index]
        target = None if record.target is None else self._read(record.target)
        if record.image is not None:
            image = read_pixels(record.image, self.channels)
        else:
            frame = target if record.made_from is None else self._read(record.made_from)
            assert frame is not None
            image = downsample(frame, self.scale, self.degradation)
        if target is not None:
            sizes = (image.shape[1:], target.shape[1:])
            problem = mismatch(record, sizes, (image.dtype, target.dtype), self.scale)
            if problem:
                raise DataError("Pair", [f"{record.place or record.path}: {problem}"])
        return image, target

    def path(self, index: int) -> str:
        """Return the file of the low-resolution image, or what that is made from."""
        return str(self.records[index].path)

    def group(self, index: int) -> str:
        """Return the record's group."""
        return self.records[index].group

    def _read(self, path: Path) -> np.ndarray:
        return cut_to_multiple(read_pixels(path, self.channels), self.scale)


def mismatch(
    record: PairRecord,
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
    types: tuple[np.dtype[Any] | None, np.dtype[Any] | None],
    scale: int,
) -> str:
    """Say why an image and its target are no pair; an empty text if they are one.

    Args:
        record: Of the two.
        sizes: (height, width) of the image, and of the target before or after it is cut.
        types: Of their pixels; None: not known.
        scale: s.
    """
    (height, width), (high, wide) = sizes
    names = [path.name for path in (record.path, record.target) if path is not None]
    if (high // scale, wide // scale) != (height, width):
        return (
            f"image {names[0]} is {width}x{height} pixels, its target {names[-1]} {wide}x{high}; "
            f"at scale {scale} expected {scale * width}x{scale * height}"
        )
    if types[0] != types[1]:
        return f"image {names[0]} has {types[0]} pixels, its target {names[-1]} {types[1]}"
    return ""


def place_of(record: PairRecord) -> str:
    """Return where a record stands, for messages."""
    return record.place or str(record.path)


def split_problems(splits: Mapping[str, Sequence[PairRecord]]) -> list[str]:
    """Say which splits are empty, which files stand in two of them, and which pairs twice in one.

    Several images may have one target, and one image several targets, within a split.
    """
    problems = [f"split {name!r} is empty" for name, records in splits.items() if not records]
    files: dict[Path, tuple[str, str]] = {}  # -> split and place of the first pair that has it
    pairs: dict[tuple[Path | None, ...], str] = {}
    for split, records in splits.items():
        for record in records:
            place = place_of(record)
            paths = (record.image, record.made_from, record.target)
            for path in filter(None, paths):
                other, first = files.setdefault(path, (split, place))
                if other != split:
                    where = f"splits {other!r} and {split!r} (first: {first})"
                    problems.append(f"{place}: {path.name} stands in {where}")
                    break
            else:
                if paths in pairs:
                    first = pairs[paths]
                    problems.append(f"{place}: the pair stands in {split!r} twice (first: {first})")
            pairs.setdefault(paths, place)
    return problems


def problems_of(
    record: PairRecord, scale: int, channels: int, crop: int | None, verify: Verify
) -> list[str]:
    """Say what is wrong with the files of a record.

    Args:
        record: The pair.
        scale: s.
        channels: C, see `read_pixels`.
        crop: Side of the crop that the target must hold; None: no crop.
        verify: "decode", "header" (sizes alone) or "none" (existence).
    """
    problems: list[str] = []
    looks: dict[str, tuple[tuple[int, ...], np.dtype[Any] | None]] = {}
    named = {"image": record.image, "frame": record.made_from, "target": record.target}
    for kind, path in named.items():
        if path is None:
            continue
        if not path.is_file():
            problems.append(f"{kind} {path} does not exist")
        elif verify != "none":
            try:
                looks[kind] = _look(path, channels, decode=verify == "decode")
            except DataError as error:
                problems += error.problems
    if "target" not in looks or record.target is None:
        return problems
    high, type_of_target = looks["target"]
    least = max(scale, crop or 0)
    if min(high) < least:
        size = f"{high[1]}x{high[0]} pixels, expected {least}x{least} or more"
        return [*problems, f"target {record.target.name} is {size}"]
    for kind in ("image", "frame"):
        if kind in looks:
            low, type_of_image = looks[kind]
            low = low if kind == "image" else tuple(n // scale for n in low)
            wrong = mismatch(record, (low, high), (type_of_image, type_of_target), scale)
            problems += [wrong] if wrong else []
    return problems


def _look(path: Path, channels: int, *, decode: bool) -> tuple[tuple[int, ...], Any]:
    """Return (height, width) of a file, and if decoded the type of its pixels."""
    if not decode:
        try:
            return read_size(path)[::-1], None
        except DataError:  # Pillow knows fewer files than OpenCV, such as TIFF of 16-bit colours
            return read_pixels(path, channels).shape[1:], None
    pixels = read_pixels(path, channels)
    return pixels.shape[1:], pixels.dtype
