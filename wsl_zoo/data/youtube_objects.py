"""YouTube-Objects: videos of ten classes by tag, with boxes on a few frames of their shots.

v1.0: Prest et al., "Learning Object Class Detectors from Weakly Annotated Video", CVPR 2012.
v2.2: Kalogeiton et al., "Analysing Domain Shift Factors between Videos and Images for Object
Detection", TPAMI 2016, arXiv 1501.01186. Layouts, of which v2.2 has two:

    1.0  <class>/data/<video>/shots/<shot>/frame<number>.jpg   annotated: beside it, the same name
         <class>/sets/{train,test}.txt                         and `_sticks.mat`
    2.2  <class>/<number>.jpg and Ranges/ranges_<class>.mat, or
         <class>/video-<video>/shot-<shot>/<number>.jpg; `shot` is the row in `Ranges`, from 0
         GroundTruth/<class>/bb_gt{Training,Test}_<class>.mat  see `data/matlab.py`

Splits of TCAM (Belharbi et al., WACV 2023, arXiv 2208.14542) and CoLo-CAM (Pattern Recognition 162,
2025, arXiv 2303.09044), by video: `test` are the annotated frames of the test videos, `val` those
of some training videos per class, `train` all frames of all shots of the others, by shot, without
boxes. A metadata folder (`data/metadata.py`) with the published lists decides the splits where it
is given; its `train` names folders of shots. The published `val` of v1.0 is another draw than ours;
that of v2.2 are the first three training videos of a class, as here. Boxes are in pixels of the
frames as published: of resized copies they are rescaled by a metadata folder alone, and not where
frames lie in no folders of shots.

Published boxes are read as edges, as of other data sets (the pixels of v2.2 count from 1). Negative
coordinates become 0; a box wider (higher) than its image ends at its last but one edge, w - 1, as
in the published lists; any other that leaves it ends at its edge (up to 5 pixels in v1.0; of 743
published boxes this changes one, in `val`, by one pixel after rescaling to 224).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsl_zoo.data.dataset import Source
from wsl_zoo.data.manifest import DataError, Record, Splits, validate
from wsl_zoo.data.metadata import read_split
from wsl_zoo.data.shots import Shot, ShotSource, clean, listing, numbered, read_shot, warn
from wsl_zoo.data.video import VideoDataModule
from wsl_zoo.data.youtube_layouts import (
    CLASSES,
    VIDEO,
    deal_by_ground_truth,
    deal_by_sets,
    shots_by_ranges,
)

VERSIONS = ("1.0", "2.2")


class YouTubeObjectsData(VideoDataModule):
    """YouTube-Objects v1.0 or v2.2.

    `verify` counts for annotated frames. Those to train on are listed, folder by folder, not
    opened: to read the headers of several 100,000 files takes minutes to hours, and one that cannot
    be read is named when its turn comes.

    Args:
        root: Folder with one folder per class.
        version: "1.0" or "2.2" (or these numbers, as YAML reads them without quotes).
        metadata: Folder with the published `train`, `val` and `test`; default: the splits follow
            from the data set's own files.
        **kwargs: See `VideoDataModule`.

    Raises:
        ValueError: There is no such version.
    """

    def __init__(
        self, root: str, version: str | float = "1.0", metadata: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if str(version) not in VERSIONS:
            raise ValueError(f"version={version!r} must be one of {', '.join(VERSIONS)}")
        self.root = Path(root)
        self.version = str(version)
        self.metadata = Path(metadata) if metadata is not None else None

    @property
    def class_names(self) -> list[str]:
        """The ten classes in alphabetical order."""
        return list(CLASSES)

    def _path_in_metadata(self, record: Record) -> str:
        return f"{record.group}/{record.image.name}"

    def read(self) -> Mapping[str, Source | Sequence[Record]]:
        """Read the lists of the metadata, or the data set's own.

        Raises:
            DataError: All problems at once, each with its file.
        """
        if not self.root.is_dir():
            problem = f"folder {self.root} does not exist"
            raise DataError(f"YouTube-Objects {self.root}", [problem])
        problems: list[str] = []
        if self.metadata is not None:
            shots, splits = self._published(problems)
        else:
            shots, splits = self._derived(problems)
        splits = {name: clean(records, problems) for name, records in splits.items()}
        empty = [shot.name for shot in shots if not shot.frames]
        warn("Shots without a frame are left out", empty)
        shots = [shot for shot in shots if shot.frames]
        if not problems:  # else these may only lack shots that a problem has taken away
            labels = {shot.label for shot in shots}
            problems += [
                f"class {name!r} (label {k}) has no shot to train on"
                for k, name in enumerate(CLASSES)
                if k not in labels
            ]
        if problems:
            try:  # what is wrong with the files belongs into the same message
                validate(splits, CLASSES, verify=self.verify)
            except DataError as error:
                problems += [text for text in error.problems if not text.startswith("split ")]
            raise DataError(f"YouTube-Objects {self.root}", list(dict.fromkeys(problems)))
        return {"train": ShotSource(shots), **splits}

    def entries(self) -> Splits:
        """Return what the metadata lists; no image needs to be there.

        Of `train`, the `image` of a record is the folder of a shot; of the others, an annotated
        frame in folders of shots. `group` is the shot's name.

        Raises:
            DataError: There is no metadata, or all problems at once, with file and line.
        """
        problems: list[str] = []
        splits = self._entries(problems)
        if problems:
            raise DataError(f"Metadata {self.metadata}", problems)
        return splits

    def _entries(self, problems: list[str]) -> Splits:
        if self.metadata is None:
            problems.append("entries() are those of a metadata folder: give metadata=")
            return {}
        splits: Splits = {}
        for split in ("train", "val", "test"):
            if split != "train" and not (self.metadata / split).is_dir():
                continue
            splits[split] = []
            for record in read_split(self.metadata / split, self.root, problems):
                path = record.image
                if path.is_relative_to(self.root):
                    path = path.relative_to(self.root)
                if CLASSES[record.label : record.label + 1] != [path.parts[0]]:
                    problems.append(
                        f"{record.place}: label {record.label} is not that of class "
                        f"{path.parts[0]!r}: labels count the classes {', '.join(CLASSES)}"
                    )
                    continue
                group = path if split == "train" else path.parent
                splits[split].append(replace(record, group=group.as_posix()))
        training = {record.group for record in splits["train"]}
        problems += [
            f"{record.place}: {record.image.name} is a frame of {record.group}, a shot of 'train'"
            for split, records in splits.items()
            if split != "train"
            for record in records
            if record.group in training
        ]
        return splits

    def _published(self, problems: list[str]) -> tuple[list[Shot], Splits]:
        """Return the shots of `train` and the annotated frames of the metadata."""
        splits = self._entries(problems)
        listed = splits.pop("train", [])
        flat = {}  # classes of v2.2 without folders of shots
        for k in range(len(CLASSES)) if self.version == "2.2" else ():
            by_name = self._by_ranges(k, problems)
            if by_name is not None:
                flat[k] = by_name
        shots = []
        for record in listed:
            if record.label not in flat:
                shot = read_shot(record.group, record.image, record.label)
                where = f"folder {record.image} does not exist"
            else:
                shot = flat[record.label].get(record.group)
                where = f"Ranges has no shot {record.group}"
            if shot is not None:
                shots.append(shot)
            elif flat.get(record.label, True):  # else all of Ranges is a problem
                problems.append(f"{record.place}: {where}")
        for split, records in splits.items():
            splits[split] = [
                replace(record, image=self.root / CLASSES[record.label] / record.image.name)
                if record.label in flat
                else record
                for record in records
            ]
        return shots, splits

    def _by_ranges(self, k: int, problems: list[str]) -> dict[str, Shot] | None:
        """Return the shots of a class of v2.2 by name; None: they have folders, or it has none."""
        folder = self.root / CLASSES[k]
        names = listing(folder) if folder.is_dir() else []
        if not names or numbered(names, VIDEO):
            return None
        try:
            return {shot.name: shot for _, shot in shots_by_ranges(self.root, k, names)}
        except DataError as error:
            problems += error.problems
            return {}

    def _derived(self, problems: list[str]) -> tuple[list[Shot], Splits]:
        """Return the shots of `train` and the annotated frames by the data set's own files."""
        shots: list[Shot] = []
        splits: Splits = {"val": [], "test": []}
        of_class = deal_by_sets if self.version == "1.0" else deal_by_ground_truth
        for k, name in enumerate(CLASSES):
            if not (self.root / name).is_dir():
                problems.append(f"class folder {self.root / name} does not exist")
                continue
            train, val, test = of_class(self.root, k, problems)
            shots += train
            splits["val"] += val
            splits["test"] += test
        return shots, splits
