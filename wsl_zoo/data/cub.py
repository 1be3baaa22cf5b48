"""CUB-200-2011: 200 species of birds, one box per image.

Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", technical report CNS-TR-2011-001, 2011.
Two layouts:

- Original: `images.txt`, `image_class_labels.txt`, `train_test_split.txt`, `bounding_boxes.txt`
  (`id x y width height`), `classes.txt` and `images/`. There is no validation set; one is drawn
  from the training images. A copy with fewer classes is read as it is. Masks, published apart, are
  `segmentations/<class>/<image>.png`: grey is the mean of several annotators, above 127.5 it is
  bird. A few masks are entirely black.
- A metadata folder with `train` (5,994 images), `val` (CUBV2: 1,000 images of about 5 per class,
  not from CUB) and `test` (5,794): Choe et al., CVPR 2020, arXiv 2001.07437.

`split="minmax"` gives the 1,200 validation images of min-max entropy (arXiv 1907.12934), and with
`classes="cub5"` the 30 of its subset of five classes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from wsl_zoo.data.manifest import DataError, Record, Splits, parse_boxes, suggestion
from wsl_zoo.data.metadata import draw
from wsl_zoo.data.wsol import WSOLData

FILES = {
    "images.txt": ("id", "path"),
    "image_class_labels.txt": ("id", "class"),
    "train_test_split.txt": ("id", "1|0"),
    "bounding_boxes.txt": ("id", "x", "y", "width", "height"),
    "classes.txt": ("id", "name"),
}
OF_IMAGES = ("image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt")
CUB5 = [
    "019.Gray_Catbird",
    "171.Myrtle_Warbler",
    "108.White_necked_Raven",
    "099.Ovenbird",
    "178.Swainson_Warbler",
]
"""The classes of CUB5 in label order, which is also the order that its split is drawn in."""

SHUFFLES = 2000
SPLITS = ("drawn", "minmax")

Table = dict[str, tuple[int, list[str]]]
"""Id -> (line, other cells)."""


class CUBData(WSOLData):
    """CUB-200-2011, in its original layout or with the metadata of wsolevaluation (CUBV2).

    Args:
        root: `CUB_200_2011`, or a folder with one folder of images per class.
        metadata: Folder of the metadata's `train`, `val` and `test`; default: `root` where that has
            no `images.txt` (else the original files are read).
        val_images: Folder of the images of CUBV2; default: where the others are.
        val_per_class: Training images of every class that become `val` in the original layout; 0:
            no `val`. Only of `split="drawn"`.
        split: How `val` comes about in the original layout: "drawn" takes `val_per_class` images,
            "minmax" the published fifth of every class (see `minmax_split`).
        classes: Names of the classes to keep, in label order, "cub5" for those of `CUB5`; default:
            all. Original layout only.
        masks: Folder of the masks; default: `segmentations` in or beside `root`, where there is
            one. Original layout only.
        **kwargs: See `WSOLData`; its `split_seed` also draws `val_per_class`.
    """

    def __init__(
        self,
        root: str,
        metadata: str | None = None,
        val_images: str | None = None,
        val_per_class: int = 4,
        split: Literal["drawn", "minmax"] = "drawn",
        classes: list[str] | Literal["cub5"] | None = None,
        masks: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, metadata, **kwargs)
        if val_per_class < 0:
            raise ValueError(f"val_per_class={val_per_class} must be >= 0")
        self.original = metadata is None and (self.root / "images.txt").is_file()
        if self.original and (self.proxy or self.num_val_sample_per_class):
            raise ValueError(
                "proxy and num_val_sample_per_class choose from a metadata folder: give metadata="
            )
        if split not in SPLITS:
            raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
        if not self.original and (split != "drawn" or classes is not None or masks is not None):
            raise ValueError(
                "split, classes and masks are for the original layout: give a root with images.txt "
                "and no metadata="
            )
        self.val_images = Path(val_images) if val_images is not None else None
        self.val_per_class = val_per_class
        self.split = split
        self.classes = list(CUB5) if classes == "cub5" else classes
        self.mask_folder = Path(masks) if masks is not None else self._segmentations()

    def _segmentations(self) -> Path | None:
        folders = [place / "segmentations" for place in (self.root, self.root.absolute().parent)]
        found = next((folder for folder in folders if folder.is_dir()), None)
        return found if self.original else None

    @property
    def class_names(self) -> list[str]:
        """Names as of their folders, "001.Black_footed_Albatross"; only those with images.

        Raises:
            DataError: The original files cannot be read, or `classes` has others or repeats one.
        """
        if self._names is None and self.original:
            problems: list[str] = []
            tables = self._tables(problems)
            if problems:
                raise DataError(f"CUB {self.root}", problems)
            labels = tables["image_class_labels.txt"]
            used = {labels[number][1][0] for number in tables["images.txt"] if number in labels}
            classes = tables["classes.txt"]
            names = [cells[0] for number, (_, cells) in classes.items() if number in used]
            self._names = names if self.classes is None else self._chosen(self.classes, names)
        return super().class_names

    def _chosen(self, chosen: list[str], names: list[str]) -> list[str]:
        problems = [
            f"classes: no image is of a class {name!r}{suggestion(name, names)}"
            for name in chosen
            if name not in names
        ]
        problems += [
            f"classes: {name!r} is named twice"
            for i, name in enumerate(chosen)
            if name in chosen[:i]
        ]
        if not chosen:
            problems.append("classes: it names no class")
        if problems:
            raise DataError(f"CUB {self.root}", problems)
        return chosen

    def selection(self) -> dict[str, str | None]:
        """Return the metrics that choose checkpoints: boxes judge CUB, masks its minmax split."""
        chosen = super().selection()
        if self.split == "drawn" and chosen["loc"] is not None:
            chosen["loc"] = chosen["loc"].replace("/pxap", "/maxboxacc")
        return chosen

    def images(self, split: str) -> Path:
        """Return the root of a split's images: `images/` where there is one."""
        if split == "val" and self.val_images is not None:
            return self.val_images
        images = self.root / "images"
        return images if images.is_dir() else self.root

    def _path_in_metadata(self, record: Record) -> str:
        roots = [self.images(split) for split in ("train", "val")]
        root = next((root for root in roots if record.image.is_relative_to(root)), self.root)
        return record.image.relative_to(root).as_posix()

    def read_splits(self) -> Splits:
        """Read the original files or the metadata."""
        if not self.original:
            if not (self.metadata / "train").is_dir():
                problem = f"holds neither images.txt nor, in {self.metadata}, a metadata folder"
                raise DataError(f"CUB {self.root}", [f"{self.root} {problem} 'train'"])
            return super().read_splits()
        splits = self._read_original()
        if self.split == "minmax":
            val, train = minmax_split(splits["train"])
            splits = {"train": train, "val": val, "test": splits["test"]}
        elif self.val_per_class:
            val, train = draw(splits["train"], self.val_per_class, self.split_seed)
            splits = {"train": train, "val": val, "test": splits["test"]}
        return splits

    def _tables(self, problems: list[str]) -> dict[str, Table]:
        return {
            file: read_table(self.root / file, cells, problems) for file, cells in FILES.items()
        }

    def _read_original(self) -> Splits:
        problems: list[str] = []
        tables = self._tables(problems)
        readable = not problems
        if self.mask_folder is not None and not self.mask_folder.is_dir():
            problems.append(f"masks: {self.mask_folder} does not exist or is no folder")
        index = {name: k for k, name in enumerate(self.class_names)} if readable else {}
        classes = tables["classes.txt"]
        splits: Splits = {"train": [], "test": []}
        for number, (line, (path,)) in tables["images.txt"].items():
            found = [tables[file][number] for file in OF_IMAGES if number in tables[file]]
            if len(found) < len(OF_IMAGES):
                problems += [
                    f"images.txt, line {line}: image {number} is not in {file}"
                    for file in OF_IMAGES
                    if readable and number not in tables[file]  # else it may be a bad line there
                ]
                continue
            (label_line, (class_id,)), (split_line, (train,)), (box_line, cells) = found
            if readable and class_id not in classes:
                problems.append(
                    f"image_class_labels.txt, line {label_line}: class {class_id} is not in "
                    "classes.txt"
                )
            if train not in ("0", "1"):
                problems.append(
                    f"train_test_split.txt, line {split_line}: expected 1 (train) or 0 (test), "
                    f"found {train!r}"
                )
            try:
                x, y, width, height = map(float, cells)
                boxes = parse_boxes(f"{x} {y} {x + width} {y + height}")
            except ValueError as error:
                problems.append(f"bounding_boxes.txt, line {box_line}: {error}")
            if not problems and (name := classes[class_id][1][0]) in index:
                record = Record(
                    self.images("train") / path,
                    index[name],
                    masks=self._masks_of(path),
                    boxes=boxes,
                    place=f"images.txt, line {line}",
                    foreground="grey>127.5",
                )
                splits["train" if train == "1" else "test"].append(record)
        if problems:
            raise DataError(f"CUB {self.root}", problems)
        return splits

    def _masks_of(self, path: str) -> tuple[Path, ...]:
        if self.mask_folder is None:
            return ()
        return ((self.mask_folder / path).with_suffix(".png"),)


def minmax_split(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Split the official training images as min-max entropy does; takes seconds.

    The images of one class after the other, in label order, are shuffled 2,000 times by one
    generator of seed 0; the first fifth, rounded up, of each is for validation. The generator runs
    on from class to class, so a subset of the classes has a split of its own.

    Args:
        records: In the order of `images.txt`.

    Returns:
        The validation and the training images, both in their order.
    """
    by_label: dict[int, list[int]] = {}
    for i, record in enumerate(records):
        by_label.setdefault(record.label, []).append(i)
    rng = random.Random(0)
    val: set[int] = set()
    for _, indices in sorted(by_label.items()):
        for _ in range(SHUFFLES):
            rng.shuffle(indices)
        val.update(indices[: -(-len(indices) // 5)])
    return (
        [record for i, record in enumerate(records) if i in val],
        [record for i, record in enumerate(records) if i not in val],
    )


def read_table(path: Path, names: tuple[str, ...], problems: list[str]) -> Table:
    """Read lines of an id and other cells, separated by blanks; problems go to `problems`."""
    table: Table = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read ({error})")
        return table
    for line, row in enumerate(text.split("\n"), start=1):
        number, *cells = row.split() or [""]
        if len(cells) == len(names) - 1 and number not in table:
            table[number] = (line, cells)
        elif number in table:
            problems.append(f"{path.name}, line {line}: {names[0]} {number} is listed twice")
        elif row.strip():
            problems.append(f"{path.name}, line {line}: expected {' '.join(names)}, found {row!r}")
    return table
