"""Time PixelCAM and source-free adaptation beside plain fine-tuning, and measure their memory.

    python -m experiments.performance.adaptation [--quick] [--parts step refresh assign bank]

To be run from the root of the repository. Four tables:

"step": a training step (forward, loss, backward, SGD) on one batch; the floor is that of a
`CAMClassifier` of the same encoder. Half of the batch is pseudo-labelled as either class, at least
three trusted images of each: with fewer, SFDA-DE has nothing to compute. Pixel losses draw from
cached maps. What a method adds to the floor by its definition is shown as a side of its own:
AdaDSA asks the source too, one more forward pass without gradients.

"refresh": a look at all images and what it finds (`look`, then `found`); the floor is a forward
pass of that classifier, without gradients, over the same batches in memory. `norm_statistics` is
what AdaDSA does once, when training starts.

"assign": `found`, which holds `assign`, on a synthetic bank; AdaDSA assigns nothing, so its row is
what all share. The floor is one reading of what is read (features and probabilities, or logits and
probabilities) at the bandwidth of a plain copy, bytes read and written.

"bank": the tensors of a `FeatureBank`, and what a process grows by as one is filled.

Times: medians of sides that take turns, after a call that warms up; with `--cpu-time` those of the
processor, of use where others work on the machine. Memory: the growth of the peak of a process of
its own over one call (Linux), of a step the median of three after the first.
"""

import argparse
import ctypes
import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from experiments.performance.localizer import resident
from experiments.performance.timing import CONSOLE, Side, medians
from wsl_zoo.encoders import FeatureBank
from wsl_zoo.encoders.mixed_norm import norm_statistics
from wsl_zoo.methods import CDCL, SFDE, SHOT, AdaDSA, CAMClassifier, PixelCAM, SFDADeP
from wsl_zoo.methods.adaptation import SourceFree
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.schedules import make_optimizer

CLASSES = 2
FEATURES = 2048  # D of a ResNet-50
WIDE = "resnet50"  # whose head has anchors of that size
PER_BATCH = 32  # images that fill the bank together
ADAPTATION: dict[str, tuple[type[SourceFree], dict[str, Any]]] = {
    "SHOT": (SHOT, {}),
    "SFDA-DE": (SFDE, {}),
    "CDCL": (CDCL, {}),
    "AdaDSA": (AdaDSA, {}),
    "SFDA-DeP": (SFDADeP, {}),
    "SFDA-DeP, pixel": (SFDADeP, {"pixel": True}),
}
STEPS: dict[str, tuple[type[ZooModule], dict[str, Any]]] = {
    "fine-tuning": (CAMClassifier, {}),
    "PixelCAM": (PixelCAM, {}),
    "PixelCAM, low_res": (PixelCAM, {"low_res": True}),
    **ADAPTATION,
}
READS_FEATURES = (SHOT, SFDE, CDCL)
Clock = Callable[[], float]


class Images:
    """A data module whose training images are batches in memory: nothing is read or decoded."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.sources = {"train": range(sum(len(batch["index"]) for batch in batches))}

    def whole_images(self, split: str, only: Any = None) -> list[Any]:
        """Return the batches."""
        return self.batches

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        """Return the batch: it is there."""
        return batch

    def on_after_batch_transfer(self, batch: Any, index: int) -> Any:
        """Return the batch: its images are normalised."""
        return batch


def make(name: str, network: str, data: Images | None = None) -> Any:
    """Return a model as a fit sets it up, but for its start weights: the source has others."""
    torch.manual_seed(0)
    method, options = STEPS[name]
    settings: dict[str, Any] = {"num_classes": CLASSES, "encoder": network, "stride": 16}
    model = method(**settings, **options)
    model._trainer = SimpleNamespace(  # type: ignore[assignment]
        datamodule=data, world_size=1, is_global_zero=True, strategy=None, current_epoch=0,
        global_step=0, estimated_stepping_batches=1,
    )  # fmt: skip
    model.setup("fit")
    if isinstance(model, AdaDSA):
        model._seeder = [CAMClassifier(**settings).eval().requires_grad_(requires_grad=False)]
    return model.train()


def synthetic_bank(anchors: Tensor, samples: int) -> dict[str, Tensor]:
    """Return features of no negative number, as pooled ones, drawn to the anchor of their class.

    Args:
        anchors: `(K, D)`.
        samples: N; sample i is of class i mod K.
    """
    generator = torch.Generator().manual_seed(0)
    features = torch.empty(samples, anchors.shape[1]).normal_(generator=generator).abs_()
    direction = torch.nn.functional.normalize(anchors, dim=1)
    for k in range(len(anchors)):
        features[k :: len(anchors)] += 3 * direction[k]
    logits = features @ anchors.T
    logits -= logits.mean(dim=0)
    return {"features": features, "logits": logits, "probabilities": logits.softmax(dim=1)}


def training_batch(model: Any, size: int, batch: int) -> Any:
    """Return a batch of either class's pseudo-labels by halves; the model keeps these.

    Raises:
        RuntimeError: Too few images of a class are trusted.
    """
    index = torch.arange(batch)
    if isinstance(model, SourceFree):
        model.pseudo = model.found(synthetic_bank(model.head.anchors().detach(), 16 * batch))
        label = model.pseudo.get("label", model.pseudo["prediction"])
        trusted = model.pseudo.get("trusted", torch.ones_like(label, dtype=torch.bool))
        halves = [(trusted & (label == k)).nonzero()[: batch // 2, 0] for k in range(CLASSES)]
        index = torch.cat(halves)
        if len(index) < batch:
            raise RuntimeError(f"{len(index)} trusted images for a batch of {batch}")
    generator = torch.Generator().manual_seed(0)
    return {
        "index": index,
        "image": torch.randn(batch, 3, size, size, generator=generator),
        "label": torch.arange(batch) * CLASSES // batch,
        "cam": torch.rand(batch, size, size, generator=generator),
    }


def optimizer_of(model: ZooModule) -> torch.optim.Optimizer:
    """Return the optimiser that a fit would have."""
    h = model.hparams
    return make_optimizer(
        model.param_groups(), h["optimizer"], h["lr"], h["momentum"], h["weight_decay"]
    )


def step(model: ZooModule, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    """Do a forward and a backward pass, and move the weights."""
    optimizer.zero_grad(set_to_none=True)
    terms = model.loss(batch, model(batch))
    torch.stack([term.float() for term in terms.values()]).sum().backward()
    optimizer.step()


@torch.no_grad()
def forward(model: ZooModule, batches: list[Any]) -> None:
    """Do forward passes in evaluation mode; the mode stays."""
    model.eval()
    for batch in batches:
        model(batch)


def growth(work: Side) -> float:
    """Return the MiB by which a call takes the peak of this process above what it held before."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would hide what is taken
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    kept = work()
    peak = resident("VmHWM")
    del kept
    return (peak - before) / 2**10


def alone(measure: Callable[..., float], *job: Any) -> float:
    """Return what a function measures in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wsl_zoo.methods"])  # imported once, not per process
    with context.Pool(1) as pool:
        return pool.apply(measure, job)


def step_memory(name: str, network: str, size: int, batch: int) -> float:
    """Return the MiB of gradients, activations and what else a step holds at its peak."""
    torch.set_num_threads(1)
    model = make(name, network)
    own = training_batch(model, size, batch)
    optimizer = optimizer_of(model)
    found = []
    for _ in range(4):
        optimizer.zero_grad(set_to_none=True)
        found.append(growth(partial(step, model, optimizer, own)))
    return median(found[1:])  # the first allocates for good, momenta too


def assign_memory(name: str, samples: int) -> float:
    """Return the MiB that `found` holds at its peak beside the bank."""
    torch.set_num_threads(1)
    model = make(name, WIDE)
    anchors = model.head.anchors().detach()
    model.found(synthetic_bank(anchors, 16))  # what a first call allocates for good
    return growth(partial(model.found, synthetic_bank(anchors, samples)))


def bank_memory(samples: int) -> float:
    """Return the MiB that a process grows by as the bank is filled."""
    torch.set_num_threads(1)
    filled(PER_BATCH)
    return growth(partial(filled, samples))


def filled(samples: int) -> FeatureBank:
    """Return a bank, filled a batch at a time and gathered, as `look` does."""
    torch.manual_seed(0)
    bank = FeatureBank(samples)
    features, logits = torch.randn(PER_BATCH, FEATURES), torch.randn(PER_BATCH, CLASSES)
    for index in torch.arange(samples).split(PER_BATCH):
        own = logits[: len(index)]
        bank.add(index, features=features[: len(index)], logits=own)
    bank.gather()
    return bank


def table(title: str, *columns: str) -> Table:
    """Return an empty Markdown table whose first column is text."""
    found = Table(title=title, box=box.MARKDOWN)
    for i, column in enumerate(columns):
        found.add_column(column, justify="right" if i else "left")
    return found


def step_table(network: str, size: int, batch: int, repeats: int, clock: Clock) -> Table:
    """Return the time and memory of a step of every method."""
    sides: dict[str, Side] = {}
    for name in STEPS:
        model = make(name, network)
        own = training_batch(model, size, batch)
        sides[name] = partial(step, model, optimizer_of(model), own)
        if name == "fine-tuning":
            # Of another model: the mode of the one that is trained stays.
            sides["forward alone, no gradients"] = partial(forward, make(name, network), [own])
    taken = medians(sides, repeats, clock=clock)
    title = f"A step: {network}, stride 16, batch {batch} of {size} x {size}, {repeats} repeats"
    found = table(title, "step", "ms", "/ fine-tuning", "memory MiB", "/ fine-tuning")
    peaks = {name: alone(step_memory, name, network, size, batch) for name in STEPS}
    for name, time in taken.items():
        row = [name, f"{1e3 * time:.0f}", f"{time / taken['fine-tuning']:.2f}"]
        if name in peaks:
            row += [f"{peaks[name]:.0f}", f"{peaks[name] / peaks['fine-tuning']:.2f}"]
        found.add_row(*row)
    return found


def refresh_table(
    network: str, size: int, batch: int, images: int, repeats: int, clock: Clock
) -> Table:
    """Return the time of a refresh of every method that has one."""
    torch.manual_seed(0)
    batches = [
        {
            "index": index,
            "image": torch.randn(len(index), 3, size, size),
            "valid": torch.ones(len(index), dtype=torch.bool),
        }
        for index in torch.arange(images).split(batch)
    ]
    data = Images(batches)
    plain = make("fine-tuning", network)
    sides: dict[str, Side] = {"forward alone": partial(forward, plain, batches)}
    for name in ADAPTATION:
        model = make(name, network, data)
        sides[name] = lambda model=model: model.found(model.look())
    views, cpu = [own["image"] for own in batches], torch.device("cpu")
    sides["norm_statistics"] = partial(norm_statistics, plain.encoder, views, cpu)
    taken = medians(sides, repeats, clock=clock)
    title = f"A refresh: {network}, stride 16, {images} of {size} x {size}, {repeats} repeats"
    found = table(title, "refresh", "ms per image", "/ forward alone")
    for name, time in taken.items():
        ratio = time / taken["forward alone"]
        found.add_row(name, f"{1e3 * time / images:.1f}", f"{ratio:.3f}")
    return found


def assign_table(samples: int, repeats: int, clock: Clock) -> Table:
    """Return time and memory of `found` on a synthetic bank, beside one reading of it."""
    models = {name: make(name, WIDE) for name in ADAPTATION if "pixel" not in name}
    peaks = {name: alone(assign_memory, name, samples) for name in models}
    bank = synthetic_bank(models["SHOT"].head.anchors().detach(), samples)  # all have one seed
    source, target = bank["features"], torch.empty_like(bank["features"])
    sides: dict[str, Side] = {"copy": partial(target.copy_, source)}
    for name, model in models.items():
        sides[name] = partial(model.found, bank)
    taken = medians(sides, repeats, clock=clock)
    bandwidth = 2 * source.nbytes / taken["copy"]
    title = (
        f"A bank of {samples:,} x {FEATURES:,}, K = {CLASSES}: a copy moves "
        f"{bandwidth / 1e9:.1f} GB/s, {repeats} repeats"
    )
    found = table(title, "found", "s", "floor s", "/ floor", "peak MiB")
    for name, model in models.items():
        reads = "features" if isinstance(model, READS_FEATURES) else "logits"
        floor = (bank[reads].nbytes + bank["probabilities"].nbytes) / bandwidth
        found.add_row(
            name,
            f"{taken[name]:.3g}",
            f"{floor:.2g}",
            f"{taken[name] / floor:.0f}",
            f"{peaks[name]:.0f}",
        )
    return found


def bank_table(samples: int) -> Table:
    """Return the bytes of a bank per 100,000 samples, and the growth of a process that fills it."""
    bank, per = filled(samples), 100_000 / samples
    sizes = {name: value.nbytes for name, value in bank.rows.items()} | {"seen": bank.seen.nbytes}
    title = f"The bank per 100,000 samples, of {samples:,}: D = {FEATURES:,}, K = {CLASSES}"
    found = table(title, "tensor", "MB")
    for name, count in [*sizes.items(), ("all tensors", sum(sizes.values()))]:
        found.add_row(name, f"{per * count / 1e6:.1f}")
    del bank
    grown = alone(bank_memory, samples) * 2**20
    found.add_row("peak of the process, filling it", f"{per * grown / 1e6:.1f}")
    return found


def main() -> None:
    """Read the options and print the tables."""
    parts = ("step", "refresh", "assign", "bank")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8, help="even, 6 or more")
    parser.add_argument("--images", type=int, default=64, help="of a refresh")
    parser.add_argument("--samples", type=int, default=100_000, help="of the bank")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="the processor's, not the clock's")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument(
        "--quick", action="store_true", help="96 pixels, 10,000 samples, fewer repeats"
    )
    options = parser.parse_args()
    if options.batch < 6 or options.batch % 2:
        parser.error(f"--batch {options.batch}: SFDA-DE needs three images of each of two classes")
    torch.set_num_threads(1)
    network, batch, images = options.network, options.batch, options.images
    size, samples, repeats = options.size, options.samples, options.repeats
    if options.quick:
        size, samples, images, repeats = 96, 10_000, 32, 3
    clock = process_time if options.cpu_time else perf_counter
    unit = "of the processor" if options.cpu_time else "of the clock"
    CONSOLE.print(f"{os.cpu_count()} CPUs, torch {version('torch')}, one thread, times {unit}")
    tables: dict[str, Callable[[], Table]] = {
        "step": lambda: step_table(network, size, batch, repeats, clock),
        "refresh": lambda: refresh_table(network, size, batch, images, repeats, clock),
        "assign": lambda: assign_table(samples, min(repeats, 3), clock),
        "bank": lambda: bank_table(samples),
    }
    for part in parts:
        if part in options.parts:
            found = tables[part]()
            title, found.title = found.title, None  # which would be no wider than its table
            CONSOLE.print(f"\n{title}\n")
            CONSOLE.print(found)


if __name__ == "__main__":
    main()
