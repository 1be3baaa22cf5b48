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
from functools import partial
from importlib.metadata import version
from time import perf_counter

import torch
from rich.table import Table
from torch import Tensor, nn

from experiments.performance.timing import CONSOLE, Side, medians, timed
from tests.losses.transcription import blob_maps, loss_and_gradient, noise, photo
from wsl_zoo.losses import DenseCRF, JointColorCRF

BATCH = 8
SIZE = 224

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


def speed_rows(kind: str, images: Tensor, device: str, repeats: int) -> list[list[str]]:
    """Return the times of all sides on `(B, 3, H, W)` images, on one thread and on all."""
    maps = blob_maps(SIZE, frames=len(images))
    probs, raw = maps.to(device), images.to(device)
    buffers = [(x, torch.empty_like(x)) for x in (raw, probs)]

    def floor() -> None:
        for source, target in buffers:
            target.copy_(source)

    def transcribed() -> None:
        for pair in zip(maps, images, strict=True):
            loss_and_gradient(*pair)

    sides: dict[str, Side] = {
        name: partial(evaluate, crf, probs, raw)
        for name, crf in PER_IMAGE.items()
        if "calibrated" not in name
    }
    alone = medians({"floor": floor, "transcription": transcribed, **sides}, repeats, device)
    torch.set_num_threads(os.cpu_count() or 1)
    together = medians(sides, repeats, device)
    torch.set_num_threads(1)
    return [
        [
            kind,
            name,
            f"{1e3 * taken / len(images):.2f}",
            f"{alone['transcription'] / taken:.2f}",
            f"{taken / alone['floor']:.0f}",
            f"{1e3 * together[name] / len(images):.2f}" if name in together else "",
        ]
        for name, taken in alone.items()
    ]


def speed_table(device: str, repeats: int) -> Table:
    """Return the times on photo-like images and on noise."""
    table = Table(title=f"ms per image, batch of {BATCH}, {repeats} repeats", title_justify="left")
    for column in ("images", "side", "1 thread", "transcription / side", "side / floor"):
        table.add_column(column, justify="left" if column in ("images", "side") else "right")
    table.add_column(f"{os.cpu_count()} threads", justify="right")
    for kind, make in (("photo-like", photo), ("noise", noise)):
        images = torch.cat([make(SIZE, seed) for seed in range(BATCH)])
        for row in speed_rows(kind, images, device, repeats):
            table.add_row(*row)
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
            taken = min(timed(partial(evaluate, crf, probs, raw)) for _ in range(3))
            table.add_row(name, backend, f"{taken:.4f}", *error_row(*found, *true))
        table.add_section()
    return table


def main() -> None:
    """Read the options and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
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
