"""A video in, the same video with classes and places out: `wsl-zoo predict --video FILE`.

Frames are independent of each other, so they go through the model in batches, with one forward pass
each. Four steps work at once, each a batch ahead of the next: decoding and resizing, the model,
drawing, encoding. No more than `STEPS` batches of frames are in memory, however long the video is.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn, TypeVar

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from wsl_zoo import pictures
from wsl_zoo.arguments import hint
from wsl_zoo.checkpoints import load_checkpoint, run_of
from wsl_zoo.commands import device_named
from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.videofile import VIDEO_ENDINGS, VideoFile, VideoWriter
from wsl_zoo.prediction import Prediction, predict_batch, stack_images, to_prediction

COLUMNS = ("frame", "time", "label", "class", "probability", "x0", "y0", "x1", "y1")
BATCH = 32
STEPS = 4  # batches in memory: decoded, in the model, drawn, encoded
MEMORY = 2**30  # bytes that their frames may take
THREADS = min(4, os.cpu_count() or 1)
SECONDS = 10.0  # between two lines about the progress where there is no terminal
TABLE = pictures.colorize(np.arange(256) / 255)[:, None]

T = TypeVar("T")
Scored = tuple[list[np.ndarray], Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class VideoPrediction:
    """What `predict_video` wrote.

    Attributes:
        video: The mp4.
        table: The CSV.
        frames: Number of frames.
        seconds: What it took.
    """

    video: Path
    table: Path
    frames: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.frames} frames in {self.seconds:.1f} s "
            f"({self.frames / self.seconds:.1f} frames/s): {self.video}, {self.table}"
        )


def predict_video(
    model: Any,
    video: str | Path | VideoFile,
    folder: str | Path,
    name: str | None = None,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> VideoPrediction:
    """Predict on every frame of a video; write `<name>.mp4` and `<name>.csv`, both or neither.

    The video shows the map of the predicted class over the frame (turbo), the box of its largest
    part at the model's threshold, class and probability. It has the frames and the mean rate of the
    source, no sound, and even sides (the last row or column is doubled).

    The table has one row per frame: `frame` from 0, `time` in s, `label`, `class`, `probability`,
    and the box drawn, xyxy in pixels, last column and row included; empty where there is none. All
    is what `model.predict_image` says of the frame.

    Args:
        model: A method, on the device where it shall run.
        video: The file.
        folder: Where to write; made if need be.
        name: Stem of the two files; default: that of the video.
        batch: Frames per batch; fewer if the frames are large (`MEMORY`).
        progress: Called with the number of frames done and that of all, after each batch.

    Raises:
        DataError: The video cannot be read; of damage in the middle, the message names the frame.
        ImportError: PyAV is not installed.
        ValueError: The output would overwrite the video, or `batch` is below 1.
        RuntimeError: The model failed; the message names the frames.
        KeyboardInterrupt: Interrupted; the message names the frame.
    """
    if batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")
    start = monotonic()
    source = video if isinstance(video, VideoFile) else VideoFile(video, THREADS)
    stem = Path(folder) / (name or source.path.stem)
    output, table = (stem.with_name(stem.name + ending) for ending in (".mp4", ".csv"))
    if output.resolve() == source.path.resolve():
        raise ValueError(f"{output} is the video itself: choose another folder")
    height, width = source.size
    batch = max(1, min(batch, MEMORY // (STEPS * height * width * 3)))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = table.with_name(f".{table.name}.partial")
    done = 0
    decoded = ahead(_decoded(model, source, batch))
    predicted = ahead(_predicted(model, source, decoded))
    drawn = ahead(_drawn(model, predicted))
    try:
        with (
            VideoWriter(output, source.size, source.fps) as writer,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(COLUMNS)
            for frames, predictions in drawn:
                for frame, prediction in zip(frames, predictions, strict=True):
                    writer.write(frame)
                    rows.writerow(_row(done, source.times[done], prediction))
                    done += 1
                del frames, frame, predictions  # before the next batch comes
                if progress is not None:
                    progress(done, source.count)
        partial.replace(table)
    except KeyboardInterrupt:
        place = f"{source.path}: stopped at frame {done} of {source.count}, nothing was written"
        raise KeyboardInterrupt(place) from None
    except OSError as error:
        raise OSError(f"{output}, frame {done}: {error}") from error
    finally:
        drawn.close()
        partial.unlink(missing_ok=True)
    return VideoPrediction(output, table, done, monotonic() - start)


def _row(index: int, time: float, prediction: Prediction) -> tuple[Any, ...]:
    has_box = prediction.boxes is not None and len(prediction.boxes) > 0
    box = prediction.boxes[0].tolist() if has_box and prediction.boxes is not None else [""] * 4
    probability = f"{prediction.probability:.6f}"
    return (index, f"{time:.3f}", prediction.label, prediction.class_name, probability, *box)


# The steps -----------------------------------------------------------------------------------


def ahead(items: Generator[T]) -> Generator[T]:
    """Yield the items; a thread makes the next one while the last one is in use.

    Errors come out where the item would have. Closing stops the thread and closes `items` in it; it
    must not be left to the garbage collector, which may come while a thread holds a lock.
    """
    end = object()
    with ThreadPoolExecutor(1) as thread:
        try:
            coming = thread.submit(next, items, end)
            while (item := coming.result()) is not end:
                coming = thread.submit(next, items, end)
                yield item  # type: ignore[misc]
                del item
        finally:
            thread.submit(items.close)


def _decoded(
    model: Any, video: VideoFile, batch: int
) -> Generator[tuple[list[np.ndarray], Tensor]]:
    """Yield batches of frames, as they are and as the model sees them."""
    pinned = model.device.type == "cuda"
    with closing(iter(video)) as frames:
        while found := list(islice(frames, batch)):
            raw = stack_images(model, found)
            yield found, raw.pin_memory() if pinned else raw


def _predicted(
    model: Any, video: VideoFile, batches: Generator[tuple[list[np.ndarray], Tensor]]
) -> Generator[Scored]:
    """Yield frames with probabilities (B, K), classes (B,) and maps (B, H, W) on the CPU."""
    first = 0
    with closing(batches):
        for frames, raw in batches:
            last = first + len(frames) - 1
            try:
                probabilities, labels, maps = predict_batch(model, raw)
                scores = (probabilities.cpu(), labels.cpu(), None if maps is None else maps.cpu())
            except RuntimeError as error:
                raise RuntimeError(f"{video.path}, frames {first} to {last}: {error}") from error
            yield frames, *scores
            first = last + 1


def _drawn(
    model: Any, batches: Generator[Scored]
) -> Generator[tuple[list[np.ndarray], list[Prediction]]]:
    """Draw on the frames, several at once; yield them with the predictions."""
    names, threshold = model.class_names, model.map_threshold

    def work(frame: np.ndarray, scores: Tensor, label: Tensor, found: Tensor | None) -> Prediction:
        size = (frame.shape[0], frame.shape[1])
        prediction = to_prediction(scores, int(label), found, size, names, threshold)
        draw(frame, prediction)
        # Full maps of a whole batch would be larger than its frames.
        return replace(prediction, map=None, mask=None)

    with closing(batches), ThreadPoolExecutor(THREADS) as pool:
        for frames, probabilities, labels, maps in batches:
            each = [None] * len(frames) if maps is None else maps
            yield frames, list(pool.map(work, frames, probabilities, labels, each))


def draw(frame: np.ndarray, prediction: Prediction) -> None:
    """Draw map, box of the largest part, class and probability on a frame (H, W, 3) uint8."""
    if prediction.map is not None:
        levels = cv2.convertScaleAbs(prediction.map, alpha=256, beta=-0.5)  # floor, up to 255
        opacity = pictures.OPACITY
        cv2.addWeighted(frame, 1 - opacity, cv2.applyColorMap(levels, TABLE), opacity, 0, dst=frame)
    side = min(frame.shape[:2])
    if prediction.boxes is not None and len(prediction.boxes):
        x0, y0, x1, y1 = prediction.boxes[0].tolist()
        cv2.rectangle(frame, (x0, y0), (x1, y1), pictures.PREDICTED, max(1, round(side / 150)))
    text = _text(f"{prediction.class_name} {prediction.probability:.2f}", max(10, side // 20))
    part = frame[: text.shape[0], : text.shape[1]]
    part[:] = text[: part.shape[0], : part.shape[1]]


@lru_cache(maxsize=1024)
def _text(text: str, height: int) -> np.ndarray:
    """Return a line of text, light on dark, (h, w, 3) uint8."""
    font = ImageFont.load_default(height)
    x0, y0, x1, y1 = map(round, font.getbbox(text))
    canvas = Image.new("RGB", (x1 - min(0, x0) + height, y1 - min(0, y0) + height // 2))
    ImageDraw.Draw(canvas).text(
        (height // 2, height // 8), text, fill=pictures.BACKGROUND, font=font
    )
    return np.asarray(canvas)


# The command line ----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print the message with a suggestion and exit with status 2."""
        print(f"error: {message}{hint(message)}", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wsl-zoo predict",
        allow_abbrev=False,
        description="Write videos with class, map and box on every frame, and a table per video.",
    )
    parser.add_argument("--ckpt_path", required=True, help="Checkpoint of any method.")
    parser.add_argument(
        "--video", required=True, nargs="+", help="Video files, or folders of them."
    )
    parser.add_argument(
        "--video_batch", type=int, default=BATCH, help="Frames per batch (default: %(default)s)."
    )
    parser.add_argument(
        "--maps.folder", dest="folder", help="Where to write (default: predictions in the run)."
    )
    parser.add_argument(
        "--device", help="As torch names it (default: cuda where there is one, else cpu)."
    )
    return parser


def command(args: Sequence[str]) -> list[VideoPrediction]:
    """Run `wsl-zoo predict --video`; return what was written."""
    given = _parser().parse_args(args)
    videos = find_videos(given.video)
    model = load_checkpoint(given.ckpt_path).to(device_named(given.device or "auto"))
    folder = given.folder or run_of(Path(given.ckpt_path)) / "predictions"
    results = []
    for name, video in videos.items():
        with _progress(name) as progress:
            results.append(predict_video(model, video, folder, name, given.video_batch, progress))
        print(results[-1], flush=True)
    return results


def find_videos(paths: Sequence[str]) -> dict[str, VideoFile]:
    """Open videos, and all those below folders, by the names of what will be written.

    A name is the path below the folder without its ending; `a.avi` and `a.mp4` beside each other
    become `a_avi` and `a_mp4`.

    Raises:
        DataError: Some cannot be read, a folder has none, or two would be written as one.
    """
    found: list[tuple[Path, Path]] = []
    problems: list[str] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append((path.with_suffix("").relative_to(path.parent), path))
            continue
        below = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_ENDINGS)
        if not below:
            problems.append(f"{path} holds no video ({', '.join(VIDEO_ENDINGS)})")
        found += [(file.relative_to(path).with_suffix(""), file) for file in below]
    count = Counter(stem for stem, _ in found)
    videos: dict[str, VideoFile] = {}
    for stem, path in found:
        unique = stem if count[stem] == 1 else stem.with_name(f"{stem.name}_{path.suffix[1:]}")
        try:
            video = VideoFile(path, THREADS)
        except DataError as error:
            problems += error.problems
            continue
        other = videos.setdefault(unique.as_posix(), video)
        if other is not video:
            problems.append(f"{other.path} and {path} would both be written as {unique}")
    if problems:
        raise DataError("Videos", problems)
    return videos


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that shows the progress: by a bar on a terminal, elsewhere by lines."""
    if sys.stdout.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn()) as bars:
            task = bars.add_task(name)
            yield lambda done, count: bars.update(task, completed=done, total=count)
        return
    shown = monotonic()

    def line(done: int, count: int) -> None:
        nonlocal shown
        if monotonic() - shown > SECONDS:
            shown = monotonic()
            print(f"{name}: {done} of {count} frames", flush=True)

    yield line
