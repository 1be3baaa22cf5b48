"""Time the dense-CRF losses beside a plain permutohedral lattice, and measure their errors.

    python -m experiments.performance.crf [--quick] [--device cuda]

To be run from the root of the repository: the transcription is the one that the tests compare with,
`tests.losses.transcription` (compiled by numba too, on one thread: one image, one pixel after the
other, a hash table of the vertices' coordinates, one channel at a time, one order of the blurs).

Speed: loss and gradient of a batch of 8 images of 224 x 224, or of a sequence of 4 frames under the
joint loss, two maps each, after a call that compiles; all sides take turns. The floor is the time
in which the machine copies the bytes that must be read and written, pixels, maps and gradient.

Errors: of loss and gradient against the exact sum, on one image (for the joint loss on four frames
of 224 x 224, which takes minutes). c is the factor of the gradient's projection on the exact one;
the fitted error is what the best factor leaves.
"""

import argparse
import os
from functools import partial
from importlib.metadata import version
from time import perf_counter

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from experiments.performance.timing import CONSOLE, Side, medians, timed
from tests.losses.transcription import apply, blob_maps, build, loss_and_gradient, noise, photo
from wsl_zoo.losses import DenseCRF, JointColorCRF

BATCH = 8
FRAMES = 4
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


def transcribed(maps: Tensor, images: Tensor) -> None:
    """Compute loss and gradient of each image with the transcription."""
    for pair in zip(maps, images, strict=True):
        loss_and_gradient(*pair)


def transcribed_joint(maps: Tensor, frames: Tensor) -> list[tuple[float, np.ndarray]]:
    """Return loss and gradient of each map under the joint loss with the transcription."""
    colors = frames.movedim(1, -1).flatten(0, 2).numpy() / np.float32(15)
    lattice = build(colors)
    channels = maps.transpose(0, 1).flatten(1).numpy()
    filtered = [apply(*lattice, values) for values in channels]
    return [
        (-float(values @ found), -2 * found)
        for values, found in zip(channels, filtered, strict=True)
    ]


def speed_rows(
    kind: str, images: Tensor, joint: bool, device: str, repeats: int
) -> list[list[str]]:
    """Return the times of all sides on `(B, 3, H, W)` images, on one thread and on all."""
    maps = blob_maps(SIZE, frames=len(images))
    probs, raw = maps.to(device), images.to(device)
    buffers = [(x, torch.empty_like(x)) for x in (raw, probs)]
    count = 1 if joint else len(images)

    def floor() -> None:
        for source, target in buffers:
            target.copy_(source)

    sides: dict[str, Side] = {
        name: partial(evaluate, crf, probs, raw)
        for name, crf in (JOINT if joint else PER_IMAGE).items()
        if "calibrated" not in name
    }
    plain = partial(transcribed_joint if joint else transcribed, maps, images)
    alone = medians({"floor": floor, "transcription": plain, **sides}, repeats, device)
    torch.set_num_threads(os.cpu_count() or 1)
    together = medians(sides, repeats, device)
    torch.set_num_threads(1)
    return [
        [
            kind,
            name,
            f"{1e3 * taken / count:.2f}",
            f"{alone['transcription'] / taken:.2f}",
            f"{taken / alone['floor']:.0f}",
            f"{1e3 * together[name] / count:.2f}" if name in together else "",
        ]
        for name, taken in alone.items()
    ]


def speed_table(joint: bool, device: str, repeats: int) -> Table:
    """Return the times on photo-like images and on noise, per image or of the joint loss."""
    what = f"sequence of {FRAMES} frames, joint" if joint else f"image, batch of {BATCH}"
    table = Table(title=f"ms per {what}, {repeats} repeats", title_justify="left")
    for column in ("images", "side", "1 thread", "transcription / side", "side / floor"):
        table.add_column(column, justify="left" if column in ("images", "side") else "right")
    table.add_column(f"{os.cpu_count()} threads", justify="right")
    for kind, make in (("photo-like", photo), ("noise", noise)):
        if joint:
            images = make(SIZE, frames=FRAMES)
        else:
            images = torch.cat([make(SIZE, seed) for seed in range(BATCH)])
        for row in speed_rows(kind, images, joint, device, repeats):
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
    frames = f"{FRAMES} x {joint} x {joint}, colour only"
    cases += [(frames, photo(joint, frames=FRAMES), blob_maps(joint, frames=FRAMES), "joint")]
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
    for joint in (False, True):
        CONSOLE.print(speed_table(joint, options.device, 3 if options.quick else options.repeats))
    sizes, side = ([32, 64], 64) if options.quick else ([32, 64, SIZE], SIZE)
    CONSOLE.print(error_table(sizes, side))


if __name__ == "__main__":
    main()
