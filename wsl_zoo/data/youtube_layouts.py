"""The layouts of YouTube-Objects and the splits that its own files state; see `youtube_objects`."""

from __future__ import annotations

import random
import re
from bisect import bisect_left, bisect_right
from pathlib import Path

from wsl_zoo.data.manifest import Box, DataError, Record
from wsl_zoo.data.matlab import read_frame_boxes, read_ranges, read_sticks
from wsl_zoo.data.shots import Shot, listing, numbered, read_shot, warn

CLASSES = ["aeroplane", "bird", "boat", "car", "cat", "cow", "dog", "horse", "motorbike", "train"]
VAL_VIDEOS = {"1.0": 5, "2.2": 3}  # per class
DIGITS = re.compile(r"([0-9]+)")
VIDEO = re.compile(r"video-([0-9]+)")
SHOT = re.compile(r"shot-([0-9]+)")
STICKS = "_sticks.mat"

ClassSplits = tuple[list[Shot], list[Record], list[Record]]
"""Shots to train on, and annotated frames of `val` and `test`."""


def deal_by_sets(root: Path, k: int, problems: list[str]) -> ClassSplits:
    """Deal the videos of a class of v1.0."""
    folder = root / CLASSES[k]
    found: dict[str, dict[int, list[tuple[Shot, list[str]]]]] = {"train": {}, "test": {}}
    first: dict[int, str] = {}
    for split, videos in found.items():
        for place, video in _read_set(folder / "sets" / f"{split}.txt", problems):
            shots = folder / "data" / f"{video:04d}" / "shots"
            if video in first:
                problems.append(f"{place}: video {video} is listed twice: {first[video]}")
            elif not shots.is_dir():
                problems.append(f"{place}: folder {shots} does not exist")
            else:
                videos[video] = [
                    _with_sticks(root, k, shots / name)
                    for _, name in numbered(listing(shots), DIGITS)
                ]
            first.setdefault(video, place)
    boxed = sorted(v for v, shots in found["train"].items() if any(s for _, s in shots))
    val = random.Random(k).sample(boxed, min(VAL_VIDEOS["1.0"], len(boxed)))
    return (
        [shot for v, shots in found["train"].items() if v not in val for shot, _ in shots],
        _by_sticks([shot for v in sorted(val) for shot in found["train"][v]], problems),
        _by_sticks([shot for shots in found["test"].values() for shot in shots], problems),
    )


def _with_sticks(root: Path, k: int, folder: Path) -> tuple[Shot, list[str]]:
    """Return a shot and the names of its annotated frames, of one look into its folder."""
    names = listing(folder)
    shot = Shot(folder.relative_to(root).as_posix(), folder, k, [n for _, n in numbered(names)])
    annotated = (name.removesuffix(STICKS) for name in names if name.endswith(STICKS))
    return shot, [name for _, name in numbered(annotated)]


def deal_by_ground_truth(root: Path, k: int, problems: list[str]) -> ClassSplits:
    """Deal the videos of a class of v2.2."""
    folder = root / "GroundTruth" / CLASSES[k]
    shots: list[tuple[int, Shot]] = []
    boxes: dict[str, dict[int, list[Box]]] = {}
    files = {
        split: folder / f"bb_gt{name}_{CLASSES[k]}.mat"
        for split, name in (("train", "Training"), ("test", "Test"))
    }
    before = len(problems)
    try:
        shots = _videos(root, k)
    except DataError as error:
        problems += error.problems
    for split, file in files.items():
        try:
            boxes[split] = read_frame_boxes(file)
        except DataError as error:
            problems += error.problems
    if len(problems) > before:
        return [], [], []
    frames: dict[int, tuple[int, Shot, str]] = {}
    for video, shot in shots:
        for number, name in numbered(shot.frames):
            frames.setdefault(number, (video, shot, name))
    annotated: dict[str, dict[int, list[Record]]] = {"train": {}, "test": {}}
    for split, of_frame in boxes.items():
        for number, of_it in sorted(of_frame.items()):
            place = f"{files[split]}, frame {number}"
            if number not in frames:
                problems.append(f"{place}: no shot of {CLASSES[k]} has this frame")
                continue
            video, shot, name = frames[number]
            record = Record(shot.folder / name, k, boxes=tuple(of_it), group=shot.name, place=place)
            annotated[split].setdefault(video, []).append(record)
    problems += [
        f"{files['test']}: video {video} of {CLASSES[k]} has frames here and in "
        f"{files['train'].name}"
        for video in annotated["test"]
        if video in annotated["train"]
    ]
    val = sorted(annotated["train"])[: VAL_VIDEOS["2.2"]]
    training = annotated["train"].keys() - set(val)
    return (
        [shot for video, shot in shots if video in training],
        [record for video in val for record in annotated["train"][video]],
        [record for video in annotated["test"] for record in annotated["test"][video]],
    )


def _videos(root: Path, k: int) -> list[tuple[int, Shot]]:
    """Return the shots of a class of v2.2, in either layout, with their videos."""
    folder = root / CLASSES[k]
    names = listing(folder)
    videos = numbered(names, VIDEO)
    if not videos:
        return shots_by_ranges(root, k, names)
    return [
        (number, shot)
        for number, video in videos
        for _, name in numbered(listing(folder / video), SHOT)
        if (shot := read_shot(f"{CLASSES[k]}/{video}/{name}", folder / video / name, k))
    ]


def shots_by_ranges(root: Path, k: int, names: list[str]) -> list[tuple[int, Shot]]:
    """Deal the frames of a class to the shots of `Ranges`; a repeated one to its first."""
    path = root / "Ranges" / f"ranges_{CLASSES[k]}.mat"
    frames = numbered(names)
    numbers = [number for number, _ in frames]
    dealt: set[int] = set()
    shots: list[tuple[int, Shot]] = []
    repeated: list[str] = []
    lacking: list[str] = []
    for i, (first, last, video) in enumerate(read_ranges(path)):
        name = f"{CLASSES[k]}/video-{video:04d}/shot-{i:06d}"
        inside = frames[bisect_left(numbers, first) : bisect_right(numbers, last)]
        own = [file for number, file in inside if number not in dealt]
        if len(own) < len(inside):
            repeated.append(name)
        if inside and len(inside) <= last - first:
            lacking.append(name)
        dealt.update(number for number, _ in inside)
        shots.append((video, Shot(name, root / CLASSES[k], k, own)))
    warn(f"Shots of {path} repeat frames of earlier ones, which keep them", repeated)
    warn(f"Shots of {path} lack frames", lacking)
    return shots


def _read_set(path: Path, problems: list[str]) -> list[tuple[str, int]]:
    """Read the videos of `sets/train.txt` or `test.txt`: (place, video)."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read ({error})")
        return []
    videos = []
    for number, line in enumerate(lines, start=1):
        if DIGITS.fullmatch(line.strip()):
            videos.append((f"{path}, line {number}", int(line)))
        elif line.strip():
            problems.append(
                f"{path}, line {number}: expected the number of a video, found {line!r}"
            )
    return videos


def _by_sticks(shots: list[tuple[Shot, list[str]]], problems: list[str]) -> list[Record]:
    """Return the annotated frames of shots of v1.0."""
    records = []
    empty = []
    for shot, annotated in shots:
        frames = set(shot.frames)
        for frame in annotated:
            path = shot.folder / (frame + STICKS)
            try:
                boxes = read_sticks(path)
            except DataError as error:
                problems += error.problems
                continue
            if frame not in frames:
                problems.append(f"{path}: there is no frame {frame}")
            elif boxes:
                records.append(
                    Record(
                        shot.folder / frame,
                        shot.label,
                        boxes=tuple(boxes),
                        group=shot.name,
                        place=str(path),
                    )
                )
            else:
                empty.append(str(path))
    warn("Frames whose annotation holds no box are left out", empty)
    return records
