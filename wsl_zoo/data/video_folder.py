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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from wsl_zoo.data.manifest import DataError, Record, boxes_outside, validate
from wsl_zoo.data.shots import Shot, ShotSource
from wsl_zoo.data.video import VideoDataModule
from wsl_zoo.data.videofile import VIDEO_ENDINGS, VideoFile


class VideoFolderData(VideoDataModule):
    """Videos of your own.

    A video is one shot, unless its folder has folders of frames: these are its shots. Nothing looks
    for cuts. Of a file, the index and the first frame are read in `setup`, with `verify="decode"`
    every frame. `val_roots` cannot be used.

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
        sources = self.sources.values()
        files = any(isinstance(source, ShotSource) and source.has_files for source in sources)
        return "spawn" if files else None

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
        of_frames = {name: found for name, (_, found) in boxes.items()}
        return {
            name: ShotSource(*self._used(name, shots, boxes), of_frames)
            for name, shots in splits.items()
        }

    def _used(
        self, split: str, shots: Sequence[Shot], boxes: Boxes
    ) -> tuple[Sequence[Shot], list[Sequence[int]]]:
        """Return the shots that a split uses, and the positions of the frames of each."""
        if split != "train" and boxes:
            listed = [[i for i in range(len(s)) if s.frame(i) in boxes] for s in shots]
            if any(listed):
                return [s for s, own in zip(shots, listed, strict=True) if own], list(
                    filter(None, listed)
                )
        step = 1 if split == "train" else self.eval_every
        return shots, [range(0, len(shot), step) for shot in shots]

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
            return [Shot(video, path, label, video=video)]
        folders: dict[Path, list[str]] = {}
        for image in find_images(path):
            folders.setdefault(image.parent, []).append(image.name)
        return [
            Shot(
                folder.relative_to(self.root).as_posix(),
                folder,
                label,
                in_order(names),
                video=video,
            )
            for folder, names in folders.items()
        ]

    def _open(self, splits: dict[str, list[Shot]], problems: list[str]) -> set[str]:
        """Read the indices of the video files in place; return the names of those that fail."""

        def opened(shot: Shot) -> Shot | str:
            if shot.frames:
                return shot
            try:
                file = VideoFile(shot.folder)
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


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Sort names by the numbers in them.

    >>> in_order(["frame10.jpg", "frame2.jpg"])
    ('frame2.jpg', 'frame10.jpg')
    """
    return tuple(sorted(names, key=lambda n: re.sub("[0-9]+", lambda m: m[0].zfill(20), n)))
