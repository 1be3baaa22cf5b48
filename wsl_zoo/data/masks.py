"""A table of masks that stands for those of a data set: which training images, and who drew them.

CSV with the columns `image` (the image as the data set calls it: its path below the root), `mask`
(a file of the image's size, relative to the table; non-zero is foreground) and `kind`: "oracle",
drawn by an annotator, or "pseudo", by a model. Images that it does not list are not trained on, and
of those that it lists the data set's own mask is never read.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from wsl_zoo.data.dataset import Source
from wsl_zoo.data.manifest import DataError, Record, read_mask, suggestion
from wsl_zoo.data.transforms import Sample
from wsl_zoo.files import write_whole

KINDS = ("oracle", "pseudo")
COLUMNS = ("image", "mask", "kind")


@dataclass(frozen=True)
class Drawn:
    """One mask.

    Attributes:
        mask: The file.
        kind: "oracle" or "pseudo".
    """

    mask: Path
    kind: str


def image_names(source: Source, root: Path | None = None) -> list[str]:
    """Return what a data set calls the samples of a source: their paths, below `root` if they are.

    Raises:
        DataError: Two samples have one name.
    """
    paths: Sequence[str] | None = getattr(source, "paths", None)  # known without reading pixels
    if paths is None:
        paths = [source.load(i, annotations=False).path for i in range(len(source))]
    names = [
        path if root is None or not Path(path).is_relative_to(root)
        else Path(path).relative_to(root).as_posix()
        for path in paths
    ]  # fmt: skip
    doubled = sorted(name for name, times in Counter(names).items() if times > 1)
    if doubled:
        raise DataError("Images", [f"{name} stands there more than once" for name in doubled])
    return names


def write_mask(path: Path, mask: np.ndarray) -> Path:
    """Write a mask (H, W) bool as PNG, 255 where it is foreground, whole or not at all."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return write_whole(path, partial(picture.save, format="PNG"))


def write_masks(path: Path, masks: Mapping[str, Drawn]) -> Path:
    """Write the table whole or not at all, sorted by image; files below its folder relative."""

    def write(file: Path) -> None:
        with file.open("w", encoding="utf-8", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(COLUMNS)
            for image, drawn in sorted(masks.items()):
                own = Path(os.path.relpath(drawn.mask, path.parent)).as_posix()
                rows.writerow([image, own, drawn.kind])

    return write_whole(path, write)


def read_masks(path: Path, images: Sequence[str]) -> dict[str, Drawn]:
    """Read the table.

    Args:
        path: Of the table.
        images: What the data set calls its training images.

    Raises:
        DataError: All problems at once: no such table, columns, images, files or kinds, or an image
            that stands there twice.
    """
    if not path.is_file():
        raise DataError(f"Masks {path}", ["there is no such table"])
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        if not set(COLUMNS) <= set(rows.fieldnames or ()):
            found = ", ".join(rows.fieldnames or ()) or "none"
            raise DataError(
                f"Masks {path}", [f"it needs the columns {', '.join(COLUMNS)}; found: {found}"]
            )
        known, drawn, problems = set(images), {}, []
        for row in rows:
            line, image = rows.line_num, row["image"]
            mask = path.parent / (row["mask"] or "")
            if image not in known:
                near = suggestion(image, images)
                problems.append(f"line {line}: the training split has no image {image!r}{near}")
            elif image in drawn:
                problems.append(f"line {line}: {image} stands there twice")
            elif row["kind"] not in KINDS:
                problems.append(f"line {line}: kind {row['kind']!r} must be {' or '.join(KINDS)}")
            elif not mask.is_file():
                problems.append(f"line {line}: there is no file {mask}")
            else:
                drawn[image] = Drawn(mask, row["kind"])
    if not drawn and not problems:
        problems.append("it lists no image")
    if problems:
        raise DataError(f"Masks {path}", problems)
    return drawn


class MaskedSource:
    """Those samples of a source that a table lists, with its masks instead of their own.

    Args:
        source: The samples; its masks and boxes are never read.
        names: What the data set calls them, in order.
        masks: Of `read_masks`.
    """

    has_masks = True
    has_boxes = False

    def __init__(self, source: Source, names: Sequence[str], masks: Mapping[str, Drawn]) -> None:
        self.source = source
        self.listed = [(i, masks[name]) for i, name in enumerate(names) if name in masks]

    def __len__(self) -> int:
        return len(self.listed)

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Read sample `index`, and the mask that stands for its own."""
        position, drawn = self.listed[index]
        sample = self.source.load(position, annotations=False)
        sample.pseudo = drawn.kind == "pseudo"
        if annotations:
            record = Record(Path(sample.path), sample.label, masks=(drawn.mask,))
            sample.mask = read_mask(record, (sample.image.shape[0], sample.image.shape[1]))
        return sample
