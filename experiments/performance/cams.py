"""Time the class maps beside pytorch-grad-cam and torch-cam.

    python -m experiments.performance.cams [--quick] [--memory] [--batches 1 16] [--device cuda]

To be run from the root of the repository, with the packages of the `test` extra. All sides read the
same random ResNet-50 at its last layer, for the same normal images of 224 x 224; Score-CAM and
Ablation-CAM, which run the network once per channel, the 512 channels of a ResNet-18 on images of
64 x 64 (Ablation-CAM at its last but one stage, too: at the last ours is a closed form). The sides
take turns, after one call each that warms up. Each gives raw maps for one class per image; what
pytorch-grad-cam does to them afterwards (NumPy, min-max, resizing) is part of its call and cannot
be left out.

The floor is what a gradient map at the final layer cannot do without: the encoder once without
gradients, and the head's gradient. The floor of Score-CAM and Ablation-CAM are the same passes
without masks: through the whole network, or through what follows the layer.

`--memory` measures one call per side, each in a process of its own: the growth of its peak over
what was resident after one pass without gradients on a single image (CPU), or
`max_memory_allocated` above what was allocated before the call (CUDA).
"""

import argparse
import multiprocessing
import os
import resource
from contextlib import redirect_stderr
from importlib.metadata import version
from io import StringIO
from itertools import product
from typing import Any

import pytorch_grad_cam
import torch
import torchcam.methods
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from rich.table import Table
from torch import Tensor, nn

from experiments.performance.timing import CONSOLE, Side, medians
from wsl_zoo import cams
from wsl_zoo.encoders import Encoder
from wsl_zoo.heads import WGAP

CLASSES = 200
GRADIENT = {"GradCAM": "GradCAM", "GradCAMpp": "GradCAMPlusPlus"} | {
    name: name for name in ("XGradCAM", "LayerCAM")
}


class Classifier(nn.Module):
    """Encoder and head as the one module that the libraries hook."""

    def __init__(self, encoder: Encoder, head: WGAP) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.encoder.final(image))[0]


class Bench:
    """One network, one batch, and every side of a map as a function without arguments."""

    def __init__(self, network: str, size: int, batch: int, device: str) -> None:
        torch.manual_seed(0)
        self.encoder = Encoder(network).to(device).eval()
        self.head = WGAP(self.encoder.final_channels, CLASSES).to(device).eval()
        self.classifier = Classifier(self.encoder, self.head)
        self.image = torch.randn(batch, 3, size, size).to(device)
        self.target = torch.randint(CLASSES, (batch,)).to(device)

    def sides(self, name: str, layer: str | int = -1) -> dict[str, Side]:
        """Return the sides of a map; a library that lacks it is left out."""
        ours = getattr(cams, name)(self.encoder, self.head, layer)
        floor = self.head_gradient
        if name == "ScoreCAM":
            floor = self.masked_passes
        elif name == "AblationCAM":
            floor = self.passes_behind(layer)
        found: dict[str, Side] = {"floor": floor, "ours": lambda: ours(self.image, self.target)}
        module = "layer4" if layer == -1 else str(layer)
        found["grad-cam"] = self.grad_cam(GRADIENT.get(name, name), module)
        if hasattr(torchcam.methods, name):
            found["torch-cam"] = self.torch_cam(name, module)
        return found

    def head_gradient(self) -> Tensor:
        """Return the head's gradient after one pass of the encoder without gradients."""
        with torch.no_grad():
            final = self.encoder.final(self.image)
        final.requires_grad_()
        score = self.head(final)[0].gather(1, self.target[:, None]).sum()
        return torch.autograd.grad(score, final)[0]

    @torch.no_grad()
    def masked_passes(self) -> None:
        """Run the network on as many images as there are channels, 32 at a time, beside one."""
        self.classifier(self.image)
        count = len(self.image) * self.encoder.final_channels
        rows = self.image[torch.arange(32, device=self.image.device) % len(self.image)]
        for _ in range(count // 32):
            self.classifier(rows)

    def passes_behind(self, layer: str | int) -> Side:
        """Run what follows the layer once per channel, 32 at a time, after the network itself."""

        @torch.no_grad()
        def run() -> None:
            activation, rest = self.encoder.split(self.image, layer)
            self.head(rest(activation))
            batch, channels = activation.shape[:2]
            rows = activation[:1].expand(32, -1, -1, -1).contiguous()
            for _ in range(batch * channels // 32 if layer != -1 else 0):
                self.head(rest(rows))

        return run

    def grad_cam(self, name: str, layer: str) -> Side:
        """Return a call of pytorch-grad-cam."""
        module = self.encoder.model.get_submodule(layer)

        def run() -> object:
            # Hooks are set and removed with each map: those of one would slow down the others.
            with getattr(pytorch_grad_cam, name)(self.classifier, [module]) as cam:
                cam.batch_size = 32
                targets = [ClassifierOutputTarget(int(y)) for y in self.target]
                with redirect_stderr(StringIO()):  # its progress bars
                    return cam(self.image, targets)

        return run

    def torch_cam(self, name: str, layer: str) -> Side:
        """Return a call of torch-cam."""

        def run() -> object:
            with getattr(torchcam.methods, name)(self.classifier, f"encoder.model.{layer}") as cam:
                needed = name not in ("CAM", "ScoreCAM")
                with torch.set_grad_enabled(needed):
                    scores = self.classifier(self.image)
                return cam(self.target.tolist(), scores, normalized=False)

        return run


def memory(where: tuple[Any, ...], name: str, layer: str | int, side: str) -> float:
    """Return the memory in MiB that one call needs beyond what is there before it."""
    bench = Bench(*where)
    device = where[-1]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        bench.sides(name, layer)[side]()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.no_grad():
        bench.classifier(bench.image[:1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bench.sides(name, layer)[side]()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10  # Linux: KiB


def rows(
    where: tuple[Any, ...], name: str, layer: str | int, repeats: int, measure: bool
) -> list[list[str]]:
    """Return a row per side: images per second, ratio to the floor, memory if it is measured."""
    bench = Bench(*where)
    taken = medians(bench.sides(name, layer), repeats, where[-1])
    table = []
    for side in taken:
        peak = ""
        if measure:  # a peak is that of a process
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peak = f"{pool.apply(memory, (where, name, layer, side)):.0f}"
        speed, ratio = where[2] / taken[side], taken[side] / taken["floor"]
        what = f"{name} at {layer}" if layer != -1 else name
        table.append([what, str(where[2]), side, f"{speed:.2f}", f"{ratio:.2f}", peak])
    return table


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="of every side, per row")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--memory", action="store_true", help="measure it too, a process per side")
    parser.add_argument("--quick", action="store_true", help="rough numbers in about a minute")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    repeats, batches = (2, [1, 4]) if options.quick else (options.repeats, options.batches)
    packages = ("torch", "timm", "grad-cam", "torchcam")
    CONSOLE.print(
        f"{os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
    )
    table = Table(title=f"{repeats} repeats on {options.device}", title_justify="left")
    for column in ("map", "batch", "side", "images/s", "time / floor", "memory MiB"):
        table.add_column(column, justify="left" if column in ("map", "side") else "right")
    names = list(GRADIENT)[: 2 if options.quick else None]
    jobs: list[tuple[tuple[Any, ...], str, str | int, int]] = [
        (("resnet50", 224, batch, options.device), name, -1, repeats)
        for name, batch in product(names, batches)
    ]
    small = ("resnet18", 64, 1, options.device)
    layers: list[tuple[str, str | int]] = [("ScoreCAM", -1), ("AblationCAM", -1)]
    for name, layer in [*layers, ("AblationCAM", "layer3")]:
        jobs.append((small, name, layer, min(repeats, 3)))
    for job in jobs:
        for row in rows(*job, measure=options.memory):
            table.add_row(*row)
        table.add_section()
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
