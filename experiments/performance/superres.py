"""Time the super-resolution networks, measure their memory, and enlarge one large image.

    python -m experiments.performance.superres [--quick] [--scale 4] [--networks SRCNN VDSR ...]
        [--device cpu|cuda] [--dtype float32|bfloat16] [--large 4096]

To be run from the root of the repository. One line per network of the benchmark, in the order of
its table, after bicubic interpolation. Networks of an extra that is not installed are left out.

Operations are those of one image of 64 x 64, as `torch.utils.flop_counter` finds them without
computing anything: convolutions and matrix products (attention included), an addition and a
multiplication each one. It leaves out what is done element by element (activations, norms, softmax,
interpolation), FFTs, sorting and look-ups. Forward passes are of 64 x 64 images (quick: 32 x 32) in
evaluation mode: latency with one image, speed and memory with a batch. Training steps (forward, the
zoo's loss, backward, no optimiser) are of the benchmark's crops, 128 / scale, and the same batch.

Times: medians of networks that take turns, after a call that warms up; networks of more than 300
GFLOP are repeated a third as often. Memory: the growth of the peak of a process of its own over one
call (Linux), or `max_memory_allocated` above what was there (CUDA); weights are there before,
gradients are not.

`--large N`, instead of the table: SRCNN and VDSR enlarge a uint16 image of N x N by two, in windows
(`wsl_zoo.tiling`), in a process of its own. Its whole peak is shown, input and output included,
beside what one forward pass of the whole image needs at least: a layer's input and output.
"""

import argparse
import gc
import multiprocessing
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.performance.localizer import resident
from experiments.performance.timing import CONSOLE, Side, medians
from wsl_zoo import networks
from wsl_zoo.losses.superres import restoration_terms
from wsl_zoo.networks import SuperResolution
from wsl_zoo.tiling import enlarge_tiled, tiles

FAMILIES: tuple[tuple[str, ...], ...] = (
    ("Interpolation",),
    ("SRCNN", "VDSR", "DRRN", "MemNet"),
    ("NLSN", "DFCAN", "SwinIR", "EDSRLIIF", "ENLCN", "GRL", "ACT", "OmniSR"),
    ("DBPN", "SRFBN"),
    ("ProSR", "MSLapSRN"),
)
NAMES = [name for family in FAMILIES for name in family]
CROP = 128  # side of the benchmark's training crops at high resolution
COUNTED = 64  # side of the image whose operations are counted
HEAVY = 300e9  # operations; more are repeated less often
TILE, OVERLAP, LARGE_SCALE = 128, 16, 2  # of --large


class Case(NamedTuple):
    """A network and what it is run on."""

    name: str
    scale: int
    size: int
    batch: int
    device: str
    dtype: str
    training: bool = False


def built(name: str, scale: int) -> SuperResolution:
    """Return a network with random weights, on the CPU, in evaluation mode."""
    torch.manual_seed(0)
    network: SuperResolution = getattr(networks, name)(scale)
    return network.eval()


def precision(case: Case) -> AbstractContextManager[Any]:
    """Return the context that a network runs in."""
    return torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "bfloat16")


def ready(case: Case, network: SuperResolution) -> Side:
    """Return a forward pass or a training step as a function without arguments."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(case.batch, 1, case.size, case.size, generator=generator)
    target = image.repeat_interleave(case.scale, 2).repeat_interleave(case.scale, 3)
    image, target = image.to(case.device), target.to(case.device)

    @torch.no_grad()
    def forward() -> None:
        with precision(case):
            network(image)

    def step() -> None:
        network.train()
        with precision(case):
            terms = restoration_terms(network.stages(image), target)
        torch.stack(list(terms.values())).sum().backward()
        network.zero_grad(set_to_none=True)
        network.eval()

    return step if case.training else forward


def operations(network: SuperResolution) -> int:
    """Return the counted operations for one image of 64 x 64."""
    counter = FlopCounterMode(display=False)
    # The fused attention of some devices is not counted, its two products are.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), fake, counter:
        network(torch.zeros(1, 1, COUNTED, COUNTED))
    return counter.get_total_flops()


def memory(case: Case) -> float | None:
    """Return the MiB that a call needs beyond what is there before it; None: there are not enough.

    On the CPU, to be called in a process of its own.
    """
    torch.set_num_threads(1)
    network = built(case.name, case.scale).to(case.device)
    ready(case._replace(size=16, batch=1), network)()  # what a first call allocates for good
    work = ready(case, network)
    gc.collect()
    try:
        if case.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        work()
        return (resident("VmHWM") - before) / 2**10
    except torch.OutOfMemoryError:
        return None


def apart(work: Any, *arguments: Any) -> Any:
    """Return what a function gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def table(case: Case, names: Sequence[str], repeats: int) -> Table:
    """Return the table of networks, each run as the case says but for its name."""
    found = Table(
        title=f"X{case.scale}, {case.dtype} on {case.device}: forward {case.size} x {case.size}, "
        f"steps {CROP // case.scale} x {CROP // case.scale}, batch {case.batch}",
        title_justify="left",
    )
    for column in ("network", "parameters", "GFLOP", "ms / image", "images/s", "MiB"):
        found.add_column(column, justify="left" if column == "network" else "right")
    for column in ("step ms", "images/s", "MiB"):
        found.add_column(column, justify="right")

    made, flops, peaks = {}, {}, {}
    sides: dict[str, Side] = {}
    counts: dict[str, int] = {}
    for name in names:
        try:
            made[name] = network = built(name, case.scale)
        except ImportError as error:
            CONSOLE.print(f"{name} is left out: {error}", markup=False)
            continue
        flops[name] = operations(network)
        forward = case._replace(name=name)
        cases = {"one": forward._replace(batch=1), "forward": forward}
        if any(p.requires_grad for p in network.parameters()):
            cases["step"] = forward._replace(size=CROP // case.scale, training=True)
        if case.batch == 1:
            del cases["one"]  # it is the batch
        for what, each in cases.items():
            if what != "one":
                own = memory if case.device == "cuda" else partial(apart, memory)
                peaks[f"{name} {what}"] = own(each)
            if what == "one" or peaks[f"{name} {what}"] is not None:
                sides[f"{name} {what}"] = ready(each, network)
                heavy = flops[name] > HEAVY
                counts[f"{name} {what}"] = max(1, repeats // 3) if heavy else repeats
    for network in made.values():
        network.to(case.device)
    taken = medians(sides, counts, case.device)

    for family in FAMILIES:
        for name in [n for n in family if n in made]:
            size = sum(p.numel() for p in made[name].parameters())
            one = taken.get(f"{name} one", taken.get(f"{name} forward"))
            row = [name, f"{size:,}", f"{flops[name] / 1e9:.1f}", shown(one, 1e3)]
            for what in ("forward", "step"):
                seconds, peak = taken.get(f"{name} {what}"), peaks.get(f"{name} {what}", 0.0)
                if what == "step":
                    row.append(shown(seconds, 1e3))
                row.append(shown(seconds and case.batch / seconds))
                row.append("out of memory" if peak is None else shown(peak or None))
            found.add_row(*row)
        found.add_section()
    return found


def shown(number: float | None, unit: float = 1.0) -> str:
    """Return a number with three digits that count, or nothing for none."""
    if number is None:
        return ""
    number *= unit
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def whole_image(name: str, size: int) -> int:
    """Return the bytes of the largest input and output of one layer for a whole float32 image."""
    network, largest = built(name, LARGE_SCALE), 0

    def weigh(_: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal largest
        largest = max(largest, result.nbytes + sum(x.nbytes for x in given))

    for part in network.modules():
        if not list(part.children()):
            part.register_forward_hook(weigh)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        network(torch.zeros(1, 1, size, size))
    return largest


def enlarge(case: Case) -> tuple[float, float, float]:
    """Enlarge one image in windows; return seconds, this process' peak and CUDA's in MiB.

    To be called in a process of its own.
    """
    torch.set_num_threads(1)
    network = built(case.name, case.scale).to(case.device)
    shape = (1, case.size, case.size)
    image = np.random.default_rng(0).integers(0, 2**16, shape, dtype=np.uint16)
    out = np.empty((1, case.scale * case.size, case.scale * case.size), np.uint16)
    start = perf_counter()
    with precision(case):
        enlarge_tiled(
            network, image, case.scale, tile=TILE, overlap=OVERLAP, batch=case.batch,
            device=case.device, out=out,
        )  # fmt: skip
    seconds = perf_counter() - start  # the result is on the CPU: nothing is left to be waited for
    on_device = torch.cuda.max_memory_allocated() / 2**20 if case.device == "cuda" else 0.0
    return seconds, resident("VmHWM") / 2**10, on_device


def large_table(case: Case, names: Sequence[str]) -> Table:
    """Return the table of one large image, enlarged by each network as the case says."""
    found = Table(
        title=f"{case.size} x {case.size} uint16 at X{LARGE_SCALE}, {case.dtype} on {case.device}, "
        f"windows of {TILE}, overlap {OVERLAP}, batch {case.batch}",
        title_justify="left",
    )
    for column in ("network", "windows", "s", "peak MiB", "CUDA MiB", "whole image, MiB"):
        found.add_column(column, justify="left" if column == "network" else "right")
    windows = len(tiles(case.size, TILE, OVERLAP)) ** 2
    for name in names:
        seconds, peak, on_device = apart(enlarge, case._replace(name=name))
        least = f"> {shown(whole_image(name, case.size) / 2**20)}"
        cuda = shown(on_device or None)
        found.add_row(name, f"{windows:,}", shown(seconds), shown(peak), cuda, least)
    return found


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", type=int, choices=networks.base.SCALES, default=4)
    parser.add_argument("--networks", nargs="+", choices=NAMES, metavar="NAME", help=str(NAMES))
    parser.add_argument("--batch", type=int, help="images of a batch (8; quick and --large: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="of every side")
    parser.add_argument("--quick", action="store_true", help="32 x 32, batch 1, fewer repeats")
    parser.add_argument("--large", type=int, metavar="N", help="enlarge an image of N x N instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    torch.set_num_threads(1)
    card = torch.cuda.get_device_name() if options.device == "cuda" else "one thread"
    CONSOLE.print(f"{os.cpu_count()} CPUs, torch {torch.__version__}, {card}")
    case = partial(Case, device=options.device, dtype=options.dtype)
    if options.large:
        job = case("", LARGE_SCALE, options.large, options.batch or 1)
        CONSOLE.print(large_table(job, options.networks or ["SRCNN", "VDSR"]))
        return
    size, batch, repeats = (32, 1, 2) if options.quick else (64, 8, options.repeats)
    job = case("", options.scale, size, options.batch or batch)
    CONSOLE.print(table(job, options.networks or NAMES, repeats))


if __name__ == "__main__":
    main()
