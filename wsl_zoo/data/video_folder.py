"""A user's own videos: class folders of video files, or of folders with the frames of a video.

    root/train/<class>/<video>/*.jpg            frames in the order of their names, 2 before 10
    root/train/<class>/<video>/<shot>/*.jpg     or cut into shots
    root/train/<class>/<video>.mp4              or a file (`pip install 'wsl-zoo[video]'`)
    root/val/...  root/test/...                 (optional)
    root/boxes.csv                              (optional; header `image,x0,y0,x1,y1`, pixels)

Both kinds may stand side by side. The name of a frame in `boxes.csv` is its path relative to the
root, in a file `train/<class>/<video>.mp4#<index>`, counted from 0. Splits that are missing are
drawn from `train` as those of `FolderData`, videos whole.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from wsl_zoo.data.base import IMAGE_SUFFIXES, find_images
from wsl_zoo.data.folder import (
    Boxes,
    class_folders,
    draw_missing,
    fractions_of,
    labelled_folders,
    lost_boxes,
    read_boxes,
    train_folder,
)
from wsl_zoo.data.manifest import DataError, Record, boxes_outside, read_image, validate
from wsl_zoo.data.transforms import Sample
from wsl_zoo.data.video import VideoDataModule
from wsl_zoo.data.videofile import VIDEO_ENDINGS, VideoFile

OPEN_FILES = 8  # video files that a process holds open: each has a decoder with its buffers


class VideoFolderData(VideoDataModule):
    """Videos of your own. `val_roots` cannot be used.

    A video is one shot, unless its folder has folders of frames: these are its shots. Nothing looks
    for cuts. Of a file, the index and the first frame are read in `setup`, with `verify="decode"`
    every frame.

    Args:
        root: Folder with `train/<class>/...` or (a flat set) directly with one folder per class.
        classes: Class names in label order; default: sorted.
        val_fraction: Part of the videos of every class drawn from `train` where there is no `val`;
            0: none.
        test_fraction: The same for `test`; both are parts of what `train` holds before any draw.
        split_seed: Seed of that draw (apart from `seed`, so that runs share their splits).
        eval_every: One of so many frames of a shot of `val` and `test` is evaluated; of a split
            with boxes, the frames that have one instead.
        **kwargs: See `VideoDataModule`.
    """

    def __init__(
        self,
        root: str,
        classes: list[str] | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        eval_every: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if eval_every < 1:
            raise ValueError(f"eval_every={eval_every} must be at least 1, which is every frame")
        self.root = Path(root)
        self.classes = classes
        self.fractions = fractions_of(val_fraction, test_fraction)
        self.split_seed = split_seed
        self.eval_every = eval_every
        self._names: list[str] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names given, or those of the folders, sorted."""
        if self.classes:
            return self.classes
        if self._names is None:
            folders = class_folders(train_folder(self.root), self.root, "videos")
            self._names = [folder.name for folder in folders]
        return self._names

    @property
    def worker_start(self) -> str | None:
        """Where there are video files "spawn": forks lack the threads of open decoders."""
        shots = (shot for name in self.sources for shot, _ in self._source(name).frames)
        return "spawn" if any(shot.file is not None for shot in shots) else None

    def _source(self, split: str) -> ShotSource:
        source = self.sources[split]
        assert isinstance(source, ShotSource)
        return source

    def read(self) -> dict[str, ShotSource]:
        """Read and check the folders and files, and draw the splits that are missing.

        Raises:
            DataError: All problems at once.
        """
        problems: list[str] = []
        boxes = read_boxes(self.root / "boxes.csv")
        splits = self._read_folders(problems)
        broken = self._open(splits, problems)
        shots = [shot for split in splits.values() for shot in split]
        frames = {shot.frame(i) for shot in shots for i in range(len(shot))} if boxes else set()
        readable = {k: v for k, v in boxes.items() if k.rpartition("#")[0] not in broken}
        problems += lost_boxes(readable, frames)
        problems += self._file_problems(shots, boxes)
        if not problems:
            draw_missing(splits, lambda shot: shot.video, self.fractions, self.split_seed)
            problems += [
                f"split {name!r} is empty: no class has a second video to draw"
                for name, drawn in splits.items()
                if not drawn
            ]
        if problems:
            raise DataError(f"Folder {self.root}", problems)
        return {
            name: ShotSource(self.root, self._used(name, split, boxes), boxes)
            for name, split in splits.items()
        }

    def _used(self, split: str, shots: Sequence[Shot], boxes: Boxes) -> dict[Shot, Sequence[int]]:
        """Return the positions of the frames of every shot that a split uses."""
        if split == "train":
            return {shot: range(len(shot)) for shot in shots}
        if boxes:
            listed = {s: [i for i in range(len(s)) if s.frame(i) in boxes] for s in shots}
            if any(listed.values()):
                return {shot: found for shot, found in listed.items() if found}
        return {shot: range(0, len(shot), self.eval_every) for shot in shots}

    def _read_folders(self, problems: list[str]) -> dict[str, list[Shot]]:
        """Return the shots of the splits that exist; video files are not opened."""
        splits: dict[str, list[Shot]] = {}
        found = labelled_folders(self.root, self.class_names, problems, "videos")
        for split, label, folder in found:
            entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
            images = [p for p in entries if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES]
            if images:
                problems.append(
                    f"{folder}: {images[0].name} is an image (one of {len(images)}): expected "
                    "video files, and folders with the frames of a video"
                )
            videos = [p for p in entries if p.is_dir() or p.suffix.lower() in VIDEO_ENDINGS]
            if not images and not videos:
                endings = ", ".join(sorted(VIDEO_ENDINGS))
                problems.append(f"{folder}: it holds no video (looked for {endings} and folders)")
            for path in videos:
                try:
                    splits.setdefault(split, []).extend(self._shots(path, label))
                except DataError as error:
                    problems.append(f"{path}: {error.problems[0]}")
        trained = {shot.label for shot in splits.get("train", ())}
        problems += [
            f"class {name!r} (label {k}) has no training video"
            for k, name in enumerate(self.class_names)
            if k not in trained and not problems  # else its folder is named already
        ]
        return splits

    def _shots(self, path: Path, label: int) -> list[Shot]:
        """Return the shots of a video: of a file one, of a folder one per folder with frames."""
        video = path.relative_to(self.root).as_posix()
        if path.is_file():
            return [Shot(video, video, label)]
        folders: dict[Path, list[str]] = {}
        for image in find_images(path):
            folders.setdefault(image.parent, []).append(image.name)
        return [
            Shot(folder.relative_to(self.root).as_posix(), video, label, in_order(names))
            for folder, names in folders.items()
        ]

    def _open(self, splits: dict[str, list[Shot]], problems: list[str]) -> set[str]:
        """Read the indices of the video files in place; return the names of those that fail."""

        def opened(shot: Shot) -> Shot | str:
            if shot.images:
                return shot
            try:
                file = VideoFile(self.root / shot.name)
                for _ in file if self.verify == "decode" else ():
                    pass
            except DataError as error:
                return error.problems[0]
            return replace(shot, file=file)

        broken = set()
        with ThreadPoolExecutor(max_workers=8) as pool:
            for split, shots in splits.items():
                splits[split] = []
                for shot, result in zip(shots, pool.map(opened, shots), strict=True):
                    if isinstance(result, Shot):
                        splits[split].append(result)
                    else:
                        problems.append(result)
                        broken.add(shot.name)
        return broken

    def _file_problems(self, shots: Sequence[Shot], boxes: Boxes) -> list[str]:
        """Return what is wrong with the image files, and the boxes that leave their frames."""
        problems = []
        records = []
        for shot in shots:
            for i in range(len(shot)) if shot.file is None or boxes else ():
                name = shot.frame(i)
                of_frame = boxes[name][1] if name in boxes else ()
                if shot.file is None:
                    image = self.root / name
                    records.append(Record(image, shot.label, boxes=of_frame, place=name))
                else:
                    size = (shot.file.size[1], shot.file.size[0])
                    problems += boxes_outside([(name, b) for b in of_frame], Path(name), size)
        if records:
            try:
                validate({"frames": records}, self.class_names, verify=self.verify)
            except DataError as error:
                problems += error.problems
        return problems


@dataclass(frozen=True, eq=False)
class Shot:
    """Consecutive frames of a video.

    Attributes:
        name: Folder of its frames, or video file; relative to the root, as all paths here.
        video: Folder or file of its video.
        label: Class index in [0, K).
        images: Names of its frames in temporal order; none where it is a file.
        file: The video file, once it has been opened.
    """

    name: str
    video: str
    label: int
    images: tuple[str, ...] = ()
    file: VideoFile | None = None

    def __len__(self) -> int:
        return len(self.images) if self.file is None else self.file.count

    def frame(self, index: int) -> str:
        """Return the path of a frame, in a file `<file>#<index>`."""
        return f"{self.name}/{self.images[index]}" if self.images else f"{self.name}#{index}"


class ShotSource:
    """Frames of shots as samples.

    Args:
        root: Where the paths of shots start.
        frames: Positions of the frames that are used, at least one, in temporal order, by shot.
        boxes: Boxes (edges) by the path of the frame.
    """

    has_masks = False

    def __init__(self, root: Path, frames: Mapping[Shot, Sequence[int]], boxes: Boxes) -> None:
        self.root = root
        self.frames = list(frames.items())
        self.ends = list(accumulate(len(used) for _, used in self.frames))
        self.shots = [
            range(end - len(used), end)
            for end, (_, used) in zip(self.ends, self.frames, strict=True)
        ]
        """Positions of the frames of every shot."""
        names = (shot.frame(i) for shot, used in self.frames for i in used) if boxes else ()
        self.boxes = {name: boxes[name][1] for name in names if name in boxes}
        self.has_boxes = bool(self.boxes)
        self._open: list[VideoFile] = []

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Read frame `index`, and its boxes if `annotations`."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        place = bisect_right(self.ends, index)
        shot, used = self.frames[place]
        position = used[index - self.shots[place].start]
        name = shot.frame(position)
        if shot.file is None:
            image = read_image(self.root / name)
        else:
            image = self._reading(shot.file).read(position)
        size = (image.shape[0], image.shape[1])
        sample = Sample(image, shot.label, group=shot.name, path=str(self.root / name), size=size)
        if annotations and name in self.boxes:
            sample.boxes = np.array(self.boxes[name], dtype=np.float64)
        return sample

    def _reading(self, file: VideoFile) -> VideoFile:
        """Return the file, which opens when it is read; close the one not read for longest."""
        self._open = [*(other for other in self._open if other is not file), file]
        if len(self._open) > OPEN_FILES:
            self._open.pop(0).close()
        return file


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Sort names by the numbers in them.

    >>> in_order(["frame10.jpg", "frame2.jpg"])
    ('frame2.jpg', 'frame10.jpg')
    """
    return tuple(sorted(names, key=lambda n: re.sub("[0-9]+", lambda m: m[0].zfill(20), n)))
