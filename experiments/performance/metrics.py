"""Time the localisation metrics beside a plain transcription of their protocol.

    python -m experiments.performance.metrics [--quick] [--repeats N] [--device cuda]
    python -m experiments.performance.metrics --memory [UPDATES]

To be run from the root of the repository: the transcription is the one that the tests compare with,
`tests.metrics.transcription` (`numpy.histogram` per image; threshold, contours and boxes by OpenCV
at each of 1000 thresholds). Maps are 224 x 224, float32, min-max normalised, with one to three true
boxes. Both sides take turns on the same tensors, after one update that compiles ours. The
transcription takes seconds per noisy map, so it is given fewer maps than the metric, and noisy ones
once; the table says how many its median stands on. `--quick` gives rough numbers, from few repeats
and every 20th threshold of the transcription.

The floor of PxAP is the time in which the machine copies the bytes that it must read, scores and
mask, from tensors as warm in the caches as the metric's.
"""

import argparse
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter

import cv2
import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torchmetrics import Metric

from experiments.performance.timing import CONSOLE, medians
from tests.metrics import transcription
from wsl_zoo.metrics import MaxBoxAcc, MaxBoxAccV2, PxAP

SIZE = 224
KINDS = ("smooth", "several modes", "noisy")
BATCHES = (1, 32)


def make_maps(kind: str, count: int, random: np.random.Generator) -> Tensor:
    """Return `(count, 224, 224)` float32 maps, each from 0 to 1."""
    maps = []
    for _ in range(count):
        if kind == "several modes":
            one = transcription.blobs(random, SIZE, SIZE, count=6)
        else:
            one = random.random((SIZE, SIZE))
        if kind == "smooth":
            one = cv2.GaussianBlur(one, (0, 0), 24)
        maps.append((one - one.min()) / np.ptp(one))
    return torch.from_numpy(np.stack(maps).astype(np.float32))


def make_masks(count: int, random: np.random.Generator) -> Tensor:
    """Return `(count, 224, 224)` uint8: a blob of foreground, its edge ignored."""
    blobs = torch.stack([make_maps("smooth", 1, random)[0] for _ in range(count)])
    masks = (blobs > 0.6).to(torch.uint8)
    masks[(blobs > 0.58) & (blobs < 0.62)] = 255
    return masks


def make_boxes(count: int, random: np.random.Generator) -> list[Tensor]:
    """Return one to three boxes `(n, 4)` per image, float64."""
    corners = [np.sort(random.uniform(0, SIZE, (i % 3 + 1, 2, 2)), axis=1) for i in range(count)]
    return [torch.from_numpy(box.reshape(-1, 4)) for box in corners]


def table_of(title: str, *columns: str) -> Table:
    """Return an empty table whose rows begin with metric, maps and batch."""
    table = Table(title=title, title_justify="left")
    for column in ("metric", "maps", "batch", *columns):
        table.add_column(column, justify="left" if column in ("metric", "maps") else "right")
    return table


def time_boxes(
    build: type[MaxBoxAcc | MaxBoxAccV2], kind: str, batch: int, repeats: int, step: int
) -> list[str]:
    """Return a row; the transcription takes every `step`-th threshold, its time is scaled."""
    random = np.random.default_rng(0)
    scores, boxes = make_maps(kind, batch, random), make_boxes(batch, random)
    few = 1 if kind == "noisy" else min(batch, 4)
    plain, truth = scores[:few].numpy(), [box.numpy() for box in boxes[:few]]
    thresholds = transcription.THRESHOLDS[::step]
    metric = build()
    metric.update(scores, boxes)  # compiles
    times = {"ours": repeats, "theirs": 1 if kind == "noisy" else min(repeats, 5)}
    taken = medians(
        {
            "ours": lambda: metric.update(scores, boxes),
            "theirs": lambda: transcription.data_set_ious(
                plain, truth, metric.contours, thresholds
            ),
        },
        times,
    )
    ours, theirs = 1e3 * taken["ours"] / batch, 1e3 * taken["theirs"] * step / few
    row = [f"{ours:.3f}", f"{theirs:.1f}", f"{theirs / ours:.0f}", f"{few} x {times['theirs']}"]
    return [build.__name__, kind, str(batch), *row]


def time_pixels(kind: str, batch: int, repeats: int) -> list[str]:
    """Return a row: `PxAP`, and how far it is from copying the bytes that it reads."""
    random = np.random.default_rng(0)
    scores, masks = make_maps(kind, batch, random), make_masks(batch, random)
    images = scores.numpy(), masks.numpy()
    metric = PxAP()
    metric.update(scores, masks)  # compiles
    copies = torch.empty_like(scores), torch.empty_like(masks)
    taken = medians(
        {
            "ours": lambda: metric.update(scores, masks),
            "theirs": lambda: transcription.histograms(*images),
            "floor": lambda: (copies[0].copy_(scores), copies[1].copy_(masks)),
        },
        {"ours": 4 * repeats, "theirs": repeats, "floor": 4 * repeats},
    )
    ours, theirs, floor = (1e3 * taken[name] / batch for name in ("ours", "theirs", "floor"))
    speed = (scores.nbytes + masks.nbytes) / taken["floor"] / 1e9
    row = [f"{ours:.4f}", f"{theirs:.3f}", f"{theirs / ours:.0f}", f"{batch} x {repeats}"]
    row += [f"{floor:.4f}", f"{speed:.1f}", f"{ours / floor:.1f}"]
    return ["PxAP", kind, str(batch), *row]


def time_on_gpu(kind: str, batch: int, repeats: int) -> list[str]:
    """Return a row: `PxAP` on a GPU, where no update may wait for it, beside the CPU's."""
    random = np.random.default_rng(0)
    here = make_maps(kind, batch, random), make_masks(batch, random)
    there = here[0].cuda(), here[1].cuda()
    copies = torch.empty_like(there[0]), torch.empty_like(there[1])
    metrics = PxAP(), PxAP().cuda()
    metrics[0].update(*here)  # compiles
    on_cpu = medians({"ours": lambda: metrics[0].update(*here)}, {"ours": repeats})["ours"]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    taken = []
    for _ in range(1 + repeats):
        torch.cuda.set_sync_debug_mode("error")
        try:
            marks[0].record()
            metrics[1].update(*there)
            marks[1].record()
            copies[0].copy_(there[0])
            copies[1].copy_(there[1])
            marks[2].record()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        taken.append((marks[0].elapsed_time(marks[1]), marks[1].elapsed_time(marks[2])))
    cpu = 1e3 * on_cpu / batch
    gpu, floor = (median(column) / batch for column in zip(*taken[1:], strict=True))
    row = [f"{cpu:.4f}", f"{gpu:.5f}", f"{cpu / gpu:.1f}", f"{floor:.5f}", f"{gpu / floor:.1f}"]
    return ["PxAP", kind, str(batch), *row]


def resident() -> float:
    """Return the resident memory of this process in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure_memory(updates: int) -> None:
    """Print the memory over many updates with small maps, and the size of the states."""
    random = np.random.default_rng(0)
    scores = torch.from_numpy(random.random((64, 2, 16, 16), dtype=np.float32))
    masks = (scores > 0.7).to(torch.uint8)
    boxes = [torch.tensor([[2.0, 3.0, 9.0, 12.0]], dtype=torch.float64)] * 2
    metrics: dict[Metric, Callable[[int], tuple[object, object]]] = {
        PxAP(): lambda i: (scores[i], masks[i]),
        MaxBoxAccV2(): lambda i: (scores[i], boxes),
    }
    for metric, batch in metrics.items():
        name = type(metric).__name__
        CONSOLE.print(f"{name}: {resident():.1f} MiB resident before, ", end="")
        metric.update(*batch(0))  # compiles
        CONSOLE.print(f"{resident():.1f} MiB after the first update")
        start = perf_counter()
        for i in range(1, updates + 1):
            metric.update(*batch(i % len(scores)))
            if i % max(updates // 4, 1) == 0:
                CONSOLE.print(f"{name}: {resident():.1f} MiB after {i} more")
        each = (perf_counter() - start) / updates
        states = sum(state.nbytes for state in metric.metric_state.values())
        CONSOLE.print(f"{name}: {states} bytes in all states; {1e6 * each:.0f} us per update")


def main() -> None:
    """Read the options and print what they ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15, help="of the metrics, per row")
    parser.add_argument("--quick", action="store_true", help="rough numbers in about a minute")
    parser.add_argument("--memory", type=int, nargs="?", const=100_000, metavar="UPDATES")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: PxAP there")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    CONSOLE.print(
        f"{os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads, "
        f"torch {torch.__version__}, numpy {np.__version__}, OpenCV {cv2.__version__}"
    )
    if options.memory is not None:
        measure_memory(options.memory)
        return
    repeats, step = (min(options.repeats, 3), 20) if options.quick else (options.repeats, 1)
    cells = list(product(KINDS, (1, 4) if options.quick else BATCHES))
    if options.device == "cuda":
        table = table_of("Median ms per image", "CPU", "GPU", "ratio", "GPU floor", "GPU / floor")
        for kind, batch in cells:
            table.add_row(*time_on_gpu(kind, batch, repeats))
        CONSOLE.print(table)
        return
    columns = ("ours", "transcription", "ratio", "its maps x repeats")
    table = table_of("Median ms per image", *columns, "floor", "its GB/s", "ours / floor")
    for kind, batch in cells:
        table.add_row(*time_pixels(kind, batch, repeats))
    CONSOLE.print(table)
    scaled = f"; transcription: 1 of {step} thresholds, scaled" if step > 1 else ""
    table = table_of(f"Median ms per image{scaled}", *columns)
    for build, (kind, batch) in product((MaxBoxAcc, MaxBoxAccV2), cells):
        table.add_row(*time_boxes(build, kind, batch, repeats, step))
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
