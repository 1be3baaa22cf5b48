"""Time a training step of min-max entropy and max-min uncertainty, and measure its memory.

    python -m experiments.performance.localizer [--quick] [--network resnet18] [--device cuda]

To be run from the root of the repository. The floor is a step (forward, backward) of WILDCAT, whose
encoder sees each image once, by the number of passes a row makes, at the sizes that these see: the
localiser's at the full size, masked images at 0.8 (max-min) or 0.5 (min-max entropy) of it. Every
image of the batch is classified right at first (its label is what the localiser says), so mining
goes on as long as that holds; the number of passes that were made is shown. "again" computes
activations in the backward pass instead of keeping them.

Times: medians of steps that take turns, after one that warms up. Memory: the growth of the peak of
a process of its own over one step (Linux), or `max_memory_allocated` above what was there (CUDA).
"""

import argparse
import multiprocessing
import os
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from experiments.performance.timing import CONSOLE, Side, medians
from wsl_zoo.methods import CAMClassifier, MaxMin, MinMaxEntropy
from wsl_zoo.methods.base import ZooModule

CLASSES = 2
WILDCAT: dict[str, Any] = {"kmax": 0.3, "kmin": 0, "alpha": 0.0}
ROWS: dict[str, tuple[type[ZooModule], dict[str, Any]]] = {
    "WILDCAT": (CAMClassifier, {"head": "wildcat", "head_args": WILDCAT}),
    "max-min, FG": (MaxMin, {"background_weight": 0.0}),
    "max-min": (MaxMin, {}),
    "min-max entropy, no mining": (MinMaxEntropy, {"erase": 0}),
    "min-max entropy, u = 2": (MinMaxEntropy, {"erase": 2}),
    "min-max entropy, u = 4": (MinMaxEntropy, {"erase": 4}),
}


def make(name: str, again: bool, network: str, size: int, batch: int, device: str) -> Any:
    """Return a model, and a batch whose labels are what its localiser says."""
    torch.manual_seed(0)
    method, options = ROWS[name]
    if method is not CAMClassifier:
        options = options | {"checkpointing": again}
    if method is MinMaxEntropy:
        options = options | {"erase_epoch": 1, "head_args": {"dropout": 0.0}}
    model = method(num_classes=CLASSES, encoder=network, **options).to(device).train()
    image = torch.randn(batch, 3, size, size, device=device)
    with torch.no_grad():
        label = model.head(model.encoder.final(image))[0].argmax(dim=1)
    return model, {"image": image, "label": label, "index": torch.arange(batch)}


def step(model: ZooModule, batch: Any) -> None:
    """Do a forward and a backward pass."""
    model.zero_grad(set_to_none=True)
    terms = model.loss(batch, model(batch))
    torch.stack([term.float() for term in terms.values()]).sum().backward()


def passes(model: ZooModule, batch: Any) -> list[tuple[int, int]]:
    """Return the sizes of the images that the encoder sees in a step."""
    seen: list[tuple[int, int]] = []
    encoder: Any = model.encoder
    final = encoder.final

    def counting(image: torch.Tensor) -> torch.Tensor:
        seen.append((image.shape[-2], image.shape[-1]))
        return final(image)  # type: ignore[no-any-return]

    encoder.final = counting
    try:
        with torch.no_grad():
            model(batch)
    finally:
        encoder.final = final
    return seen


def memory(job: tuple[Any, ...]) -> float:
    """Return the memory in MiB that a step needs beyond what is there before it."""
    torch.set_num_threads(1)
    model, batch = make(*job)
    if job[-1] == "cuda":
        step(model, batch)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, batch)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    small = {k: v[:1, ..., :64, :64] if k == "image" else v[:1] for k, v in batch.items()}
    model.eval()
    step(model, small)  # what a first call allocates for good
    model.train()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    step(model, batch)
    return (resident("VmHWM") - before) / 2**10


def resident(what: str) -> int:
    """Return the resident memory of this process, now (VmRSS) or at its peak (VmHWM), in KiB.

    `getrusage` would give the peak of the process that started this one, if that was higher.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def table(network: str, size: int, batch: int, device: str, repeats: int) -> Table:
    """Return the times and the memory of every row."""
    jobs = {
        (name, again): (name, again, network, size, batch, device)
        for name, (method, _) in ROWS.items()
        for again in ((False,) if method is CAMClassifier else (False, True))
    }
    made = {key: make(*job) for key, job in jobs.items()}
    sides: dict[str, Side] = {str(key): partial(step, *each) for key, each in made.items()}
    plain, own = made[("WILDCAT", False)]
    seen = {key: passes(*each) for key, each in made.items()}
    for side in sorted({s for sizes in seen.values() for s in sizes}):
        image = torch.nn.functional.interpolate(own["image"], side, mode="bilinear")
        sides[f"floor {side}"] = partial(step, plain, own | {"image": image})
    taken = medians(sides, repeats, device)
    found = Table(title=f"{network}, batch {batch} of {size} x {size}", title_justify="left")
    for column in ("step", "activations", "passes", "ms", "/ WILDCAT", "/ floor", "memory MiB"):
        found.add_column(column, justify="left" if column in ("step", "activations") else "right")
    context = multiprocessing.get_context("spawn")
    for key, job in jobs.items():
        own_time = taken[str(key)]
        floor = sum(taken[f"floor {side}"] for side in seen[key])
        with context.Pool(1) as pool:
            peak = pool.apply(memory, (job,))
        found.add_row(
            key[0],
            "again" if key[1] else "kept",
            str(len(seen[key])),
            f"{1e3 * own_time:.0f}",
            f"{own_time / taken[str(('WILDCAT', False))]:.2f}",
            f"{own_time / floor:.2f}",
            f"{peak:.0f}",
        )
    return found


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="224 pixels, fewer repeats")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    torch.set_num_threads(1)
    size, repeats = (224, 2) if options.quick else (options.size, options.repeats)
    CONSOLE.print(f"{os.cpu_count()} CPUs, torch {version('torch')}, one thread")
    CONSOLE.print(table(options.network, size, options.batch, options.device, repeats))


if __name__ == "__main__":
    main()
