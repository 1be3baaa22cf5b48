"""Time `predict_video`: frames per second, where they go, and the memory that a long video takes.

    python -m experiments.performance.video [--quick] [--minutes 10]

To be run from the root of the repository. The model is F-CAM over `test_resnet` with random weights
at 224 x 224, the videos are synthetic, 640 x 360 at 25 frames/s, in a temporary folder.

Three tables: the steps by themselves, one frame after the other (the model is the floor: no
pipeline is faster than its slowest step, nor, on the CPU, than all steps over all cores); the whole
beside a plain loop (decode one frame, `predict_image`, draw, encode), in turns on a short clip,
ratio of medians; the peak resident memory over a long video, above what it was after 500 frames.
"""

import argparse
import os
import resource
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from rich.table import Table

from experiments.performance.timing import CONSOLE, medians
from wsl_zoo.data.videofile import VideoFile, VideoWriter
from wsl_zoo.methods import FCAM
from wsl_zoo.prediction import predict_batch, stack_images, to_prediction
from wsl_zoo.video import BATCH, draw, predict_video

SIZE, FPS = (360, 640), 25
WARM = 500  # frames after which memory is compared


def write_clip(path: Path, count: int) -> Path:
    """Write a video of blobs that move over a smooth ground."""
    rng = np.random.default_rng(0)
    ground = np.kron(rng.integers(40, 200, (12, 20, 3), dtype=np.uint8), np.ones((60, 60, 1), "u1"))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    with VideoWriter(path, SIZE, FPS) as writer:
        for i in range(count):
            top, left = i // 2 % 200, i % 300
            frame = np.ascontiguousarray(ground[top : top + SIZE[0], left : left + SIZE[1]])
            frame[(y - 180) ** 2 + (x - 3 * i % 640) ** 2 < 3600] = (250, 200, 40)
            writer.write(frame)
    return path


def plain(model: FCAM, path: Path, folder: Path) -> None:
    """Do the same a frame at a time."""
    source = VideoFile(path)
    with VideoWriter(folder / "plain.mp4", source.size, source.fps) as writer:
        for frame in source:
            draw(frame, model.predict_image(frame))
            writer.write(frame)


def steps(model: FCAM, path: Path, folder: Path) -> dict[str, float]:
    """Return the seconds per frame of every step by itself."""
    source = VideoFile(path)

    def each(work: Callable[[], object]) -> float:
        start = perf_counter()
        work()
        return (perf_counter() - start) / source.count

    frames: list[np.ndarray] = []
    times = {"decode": each(lambda: frames.extend(source))}
    cuts = [frames[i : i + BATCH] for i in range(0, len(frames), BATCH)]
    raws: list[torch.Tensor] = []
    times["resize"] = each(lambda: raws.extend(stack_images(model, cut) for cut in cuts))
    predict_batch(model, raws[0])  # warm
    scores: list[tuple] = []
    times["model"] = each(
        lambda: scores.extend(
            tuple(part.cpu() for part in predict_batch(model, raw)) for raw in raws
        )
    )
    flat = [item for batch in scores for item in zip(*batch, strict=True)]
    found: list = []
    names, threshold = model.class_names, model.map_threshold
    times["map to size, boxes"] = each(
        lambda: found.extend(
            to_prediction(p, int(k), m, SIZE, names, threshold) for p, k, m in flat
        )
    )
    times["draw"] = each(lambda: run(draw(f, p) for f, p in zip(frames, found, strict=True)))
    with VideoWriter(folder / "steps.mp4", SIZE, FPS) as writer:
        times["encode"] = each(lambda: run(writer.write(frame) for frame in frames))
    return times


def run(work: Iterable[object]) -> None:
    """Do all of it."""
    for _ in work:
        pass


def peak() -> float:
    """Return the peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="A shorter clip, no long video.")
    parser.add_argument("--minutes", type=float, default=10.0, help="Length of the long video.")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    decoder = {"decoder_channels": [64, 32, 16, 16, 8]}
    model = FCAM(num_classes=4, encoder="test_resnet", stride=16, decoder_args=decoder)
    model.image_size = 224
    model.to(device).eval()
    cores = len(os.sched_getaffinity(0))
    CONSOLE.print(f"{cores} cores, device {device}, {torch.get_num_threads()} threads of torch")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = 96 if args.quick else 500
        clip = write_clip(folder / "clip.mp4", count)

        if not args.quick:  # first: the peak of what follows would hide it
            long = write_clip(folder / "long.mp4", round(args.minutes * 60 * FPS))
            marks: list[tuple[int, float]] = []
            result = predict_video(
                model, long, folder / "out", progress=lambda done, _: marks.append((done, peak()))
            )
            warm = next(memory for done, memory in marks if done >= WARM)
            CONSOLE.print(
                f"{result.frames} frames in {result.seconds:.0f} s: "
                f"{result.frames / result.seconds:.1f} frames/s; peak memory {warm:.0f} MiB after "
                f"{WARM} frames, {marks[-1][1] - warm:+.0f} MiB at the end"
            )

        own = steps(model, clip, folder)
        table = Table("step", "ms per frame", "frames/s", title="Steps by themselves")
        for step, seconds in [*own.items(), ("sum", sum(own.values()))]:
            table.add_row(step, f"{1e3 * seconds:.2f}", f"{1 / seconds:.0f}")
        CONSOLE.print(table)

        sides = {
            "plain loop": lambda: plain(model, clip, folder),
            "predict_video": lambda: predict_video(model, clip, folder / "out"),
        }
        times = medians(sides, 3, device)
        table = Table("", "frames/s", "ratio of medians", title=f"{count} frames")
        for side, seconds in times.items():
            table.add_row(side, f"{count / seconds:.1f}", f"{times['plain loop'] / seconds:.2f}")
        CONSOLE.print(table)


if __name__ == "__main__":
    main()
