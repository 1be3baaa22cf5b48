"""Time the dense-CRF losses beside a plain permutohedral lattice, and measure their errors.

    python -m experiments.performance.crf [--quick] [--device cuda]

To be run from the root of the repository: the transcription is the one that the tests compare with,
`tests.losses.transcription` (compiled by numba too, on one thread: one image, one pixel after the
other, a hash table of the vertices' coordinates, one channel at a time, one order of the blurs).

Speed: loss and gradient of a batch of 8 images of 224 x 224, two maps each, after a call that
compiles; both sides take turns. The floor is the time in which the machine copies the bytes that
must be read and written, pixels, maps and gradient.

Errors: of loss and gradient against the exact sum, on one image (for the joint loss on four frames
of 224 x 224, which takes minutes). c is the factor of the gradient's projection on the exact one;
the fitted error is what the best factor leaves.
"""

import argparse
import os
from collections.abc import Callable
from importlib.metadata import version
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from tests.losses.transcription import blob_maps, loss_and_gradient, noise, photo
from wsl_zoo.losses import DenseCRF, JointColorCRF

BATCH = 8
SIZE = 224
CONSOLE = Console(width=None if os.isatty(1) else 120)

PER_IMAGE: dict[str, nn.Module] = {
    "permutohedral": DenseCRF(),
    "permutohedral, one order": DenseCRF(symmetric=False),
    "permutohedral, calibrated": DenseCRF(calibrated=True),
    "grid, linear": DenseCRF(backend="grid", order="linear"),
    "grid, quadratic, linear xy": DenseCRF(backend="grid", order_xy="linear"),
    "grid, quadratic": DenseCRF(backend="grid"),
}
JOINT: dict[str, nn.Module] = {
    "permutohedral": JointColorCRF(backend="permutohedral"),
    "grid, linear": JointColorCRF(order="linear"),
    "grid, quadratic": JointColorCRF(),
}


def evaluate(crf: nn.Module, probs: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient."""
    probs = probs.detach().requires_grad_()
    loss = crf(probs, raw)
    return loss.detach(), torch.autograd.grad(loss, probs)[0]


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Time a call until the device is idle."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def speed(raw: Tensor, device: str, repeats: int, threads: int) -> dict[str, float]:
    """Return median ms per image of each side; the sides take turns."""
    probs = blob_maps(SIZE, frames=len(raw))
    there, pixels = probs.to(device), raw.to(device)
    buffers = [(x, torch.empty_like(x)) for x in (pixels, there)]

    def floor() -> None:
        for source, target in buffers:
            target.copy_(source)

    sides: dict[str, Callable[[], object]] = {
        name: lambda crf=crf: evaluate(crf, there, pixels)
        for name, crf in PER_IMAGE.items()
        if "calibrated" not in name
    }
    sides["floor"] = floor
    if threads == 1:
        sides["transcription"] = lambda: [
            loss_and_gradient(*pair) for pair in zip(probs, raw, strict=True)
        ]
    torch.set_num_threads(threads)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(1 + repeats):
        for name, work in sides.items():
            if turn > 1 and name.startswith("grid") and device == "cpu":
                continue  # seconds per call
            taken = seconds(work, device)
            if turn:
                times[name].append(1e3 * taken / len(raw))
    torch.set_num_threads(1)
    return {name: median(taken) for name, taken in times.items()}


def speed_table(device: str, repeats: int) -> Table:
    """Return the times of all sides on photo-like images and on noise."""
    every = os.cpu_count() or 1
    table = Table(title=f"ms per image, batch of {BATCH}, {repeats} repeats", title_justify="left")
    for column in ("image", "side", "1 thread", "transcription / side", "side / floor"):
        table.add_column(column, justify="left" if column in ("image", "side") else "right")
    table.add_column(f"{every} threads", justify="right")
    for kind, make in (("photo-like", photo), ("noise", noise)):
        raw = torch.cat([make(SIZE, seed) for seed in range(BATCH)])
        one, many = (speed(raw, device, repeats, threads) for threads in (1, every))
        for name, taken in one.items():
            ratio = f"{one['transcription'] / taken:.2f}"
            floor = f"{taken / one['floor']:.0f}"
            others = f"{many[name]:.2f}" if name in many else ""
            table.add_row(kind, name, f"{taken:.2f}", ratio, floor, others)
        table.add_section()
    return table


def error_row(loss: Tensor, gradient: Tensor, true: Tensor, exact: Tensor) -> list[str]:
    """Return the errors of a loss and its gradient as text."""
    product = (gradient * exact).sum()
    fitted = product / gradient.square().sum() * gradient
    cosine = product / gradient.norm() / exact.norm()
    return [
        f"{100 * (loss / true - 1):+.2f} %",
        f"{100 * (gradient - exact).norm() / exact.norm():.2f} %",
        f"{100 * (fitted - exact).norm() / exact.norm():.2f} %",
        f"{cosine:.5f}",
        f"{product / exact.square().sum():.3f}",
    ]


def error_table(sizes: list[int], joint: int) -> Table:
    """Return time and errors of every back-end, each beside the exact sum."""
    table = Table(title="Loss and gradient against the exact sum", title_justify="left")
    for column in ("images", "back-end"):
        table.add_column(column)
    for column in ("s", "loss", "gradient", "fitted", "cosine", "c"):
        table.add_column(column, justify="right")
    cases = [(f"{size} x {size}", photo(size), blob_maps(size), "") for size in sizes]
    cases += [("32 x 32 noise", noise(32), blob_maps(32), "")]
    frames = f"4 x {joint} x {joint}, colour only"
    cases += [(frames, photo(joint, frames=4), blob_maps(joint, frames=4), "joint")]
    for name, raw, probs, kind in cases:
        exact = JointColorCRF(backend="exact") if kind else DenseCRF(backend="exact")
        start = perf_counter()
        true = evaluate(exact, probs, raw)
        table.add_row(name, "exact", f"{perf_counter() - start:.4f}")
        for backend, crf in (JOINT if kind else PER_IMAGE).items():
            found = evaluate(crf, probs, raw)
            taken = min(seconds(lambda crf=crf: evaluate(crf, probs, raw)) for _ in range(3))
            table.add_row(name, backend, f"{taken:.4f}", *error_row(*found, *true))
        table.add_section()
    return table


def main() -> None:
    """Read the options and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="rough numbers in about a minute")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the times")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    torch.set_num_threads(1)
    CONSOLE.print(
        f"{os.cpu_count()} CPUs, " + ", ".join(f"{x} {version(x)}" for x in ("torch", "numba"))
    )
    CONSOLE.print(speed_table(options.device, 3 if options.quick else options.repeats))
    sizes, joint = ([32, 64], 64) if options.quick else ([32, 64, SIZE], SIZE)
    CONSOLE.print(error_table(sizes, joint))


if __name__ == "__main__":
    main()
