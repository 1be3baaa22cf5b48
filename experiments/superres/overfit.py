"""Fit every network to one patch of a real image, and print by how much it passes bicubic.

    python -m experiments.superres.overfit --root data/W2S [--scale 2] [--device cuda]

To be run from the root of the repository. The patch is the centre of an averaged frame of W2S, its
low-resolution image the mean of s x s pixels; each network is trained on that pair alone, by the
zoo's loss and Adam. A network whose gradients or skips are wrong does not pass this.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from experiments.superres.generate import NETWORKS
from wsl_zoo import networks
from wsl_zoo.data.pixels import read_pixels
from wsl_zoo.losses.superres import restoration_terms
from wsl_zoo.metrics.superres import image_psnr
from wsl_zoo.networks import SuperResolution

SIDE = 64  # of the patch at high resolution
FIELD = "001_0"


def patch_of(path: Path, side: int, scale: int) -> tuple[Tensor, Tensor]:
    """Return the centre of an image, (1, 1, side, side) in [0, 1], and the mean of its squares."""
    pixels = torch.from_numpy(read_pixels(path)).float()[None] / 255
    top, left = (pixels.shape[-2] - side) // 2, (pixels.shape[-1] - side) // 2
    target = pixels[..., top : top + side, left : left + side]
    return F.avg_pool2d(target, scale), target


def margin(result: Tensor, image: Tensor, target: Tensor) -> float:
    """Return the PSNR of a result above that of bicubic interpolation, in dB."""
    kinds = {"size": target.shape[-2:], "mode": "bicubic", "antialias": True}
    bicubic = F.interpolate(image, **kinds)
    results = (x.clamp(0, 1).mul(255).round() / 255 for x in (result.float(), bicubic))
    ours, theirs = (float(image_psnr(x, target)) for x in results)
    return ours - theirs


def overfit(
    network: SuperResolution, image: Tensor, target: Tensor, steps: int, lr: float
) -> Tensor:
    """Train on one pair; return the result (1, C, H, W) in evaluation."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        terms = restoration_terms(network.stages(image), target)
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return network.eval()(image)


def row(
    name: str, settings: dict[str, Any], image: Tensor, target: Tensor, steps: int, lr: float
) -> list[str]:
    """Return what the table shows of one network."""
    torch.manual_seed(0)
    scale = target.shape[-1] // image.shape[-1]
    network = getattr(networks, name)(scale, **settings).to(image.device)
    with torch.no_grad():
        before = margin(network.eval()(image), image, target)
    start = perf_counter()
    after = margin(overfit(network, image, target, steps, lr), image, target)
    return [f"{before:+.2f}", f"{after:+.2f}", f"{perf_counter() - start:.0f}"]


def main(args: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of W2S")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--networks", nargs="*", help="all, unless named")
    options = parser.parse_args(args)
    console = Console(width=None if os.isatty(1) else 120)
    image, target = (
        part.to(options.device)
        for part in patch_of(options.root / "clean" / f"{FIELD}.png", SIDE, options.scale)
    )
    table = Table("network", "before, dB over bicubic", f"after {options.steps} steps", "seconds")
    for name, title in NETWORKS.values():
        if options.networks and title not in options.networks:
            continue
        found = row(name, {}, image, target, options.steps, options.lr)
        console.print(f"{title}: {found[1]} dB over bicubic, {found[2]} s")
        table.add_row(title, *found)
    console.print(table)


if __name__ == "__main__":
    main()
