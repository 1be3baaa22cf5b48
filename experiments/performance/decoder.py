"""Time the map of F-CAM, a decoder over a frozen classifier, beside the maps that it refines.

    python -m experiments.performance.decoder [--quick] [--batches 1 8] [--perturbation]

To be run from the root of the repository. All sides read the same random classifier (encoder and
linear head), for the same normal images of 224 x 224, and give one map per image at that size in
[0, 1]: F-CAM the class logits and the softmax of its decoder, the others the normalised and
upsampled map of a given class. Gradient maps are read at the final map, where only the head is
differentiated, and LayerCAM also at the level before the last one, where part of the encoder is.
`--perturbation` adds Score-CAM, which runs the network once per channel, and Ablation-CAM (a closed
form at the final map); one call each, after the others.

The sides take turns, after one call each that warms up; times are medians, ratios those of medians.
"""

import argparse
import os
from importlib.metadata import version
from itertools import product

import torch
from rich.table import Table
from torch import Tensor, nn

from experiments.performance.timing import CONSOLE, Side, medians, timed
from wsl_zoo import cams
from wsl_zoo.encoders import Encoder
from wsl_zoo.heads import WGAP, UNetDecoder

SIZE = 224
CLASSES = 200
NETWORKS = (("resnet50", 8), ("mobilenetv2_100", 16))
GRADIENT = ("GradCAM", "GradCAMpp", "SmoothGradCAMpp", "XGradCAM", "LayerCAM")
PERTURBATION = ("AblationCAM", "ScoreCAM")
INNER = -3  # in [*levels, final]: the level before the last one


class Bench:
    """One classifier with its decoder, one batch, and every map as a function."""

    def __init__(self, network: str, stride: int, batch: int, device: str) -> None:
        torch.manual_seed(0)
        self.encoder = Encoder(network, stride=stride).to(device).eval().requires_grad_(False)
        head = WGAP(self.encoder.final_channels, CLASSES)
        self.head = head.to(device).eval().requires_grad_(False)
        decoder = UNetDecoder(self.encoder.channels, self.encoder.strides)
        self.decoder = decoder.to(device).eval()
        self.image = torch.randn(batch, 3, SIZE, SIZE).to(device)
        self.target = torch.randint(CLASSES, (batch,)).to(device)

    def sides(self) -> dict[str, Side]:
        """Return every side but those of `PERTURBATION`; the first is what none can do without."""
        found: dict[str, Side] = {"classifier": self.classify, "F-CAM": self.fcam}
        found |= {name: self.class_map(name) for name in ("CAM", *GRADIENT)}
        found["LayerCAM, inner level"] = self.class_map("LayerCAM", INNER)
        return found

    @torch.no_grad()
    def classify(self) -> Tensor:
        """Return the logits, without a map."""
        logits: Tensor = self.head(self.encoder.final(self.image))[0]
        return logits

    @torch.no_grad()
    def fcam(self) -> tuple[Tensor, Tensor]:
        """Return the logits and the foreground's probability `(B, 224, 224)`."""
        final, levels = self.encoder(self.image)
        logits: Tensor = self.head(final)[0]
        return logits, self.decoder(levels, (SIZE, SIZE)).softmax(dim=1)[:, 1]

    def class_map(self, name: str, layer: int = -1) -> Side:
        """Return a map of `wsl_zoo.cams` as a function: `(B, 224, 224)` in [0, 1]."""
        cam = getattr(cams, name)(self.encoder, self.head, layer)

        def run() -> Tensor:
            return cams.normalize_map(cam(self.image, self.target), SIZE, relu=cam.relu)

        return run


def millions(*modules: nn.Module, trainable: bool = False) -> str:
    """Return the number of parameters in millions, all or the trainable ones."""
    found = [p for module in modules for p in module.parameters()]
    return f"{sum(p.numel() for p in found if p.requires_grad or not trainable) / 1e6:.2f} M"


def main() -> None:
    """Read the options and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="of every side, per batch size")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--perturbation", action="store_true", help="add Score- and Ablation-CAM")
    parser.add_argument("--quick", action="store_true", help="rough numbers in about a minute")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    repeats, batches = (2, [1, 4]) if options.quick else (options.repeats, options.batches)
    CONSOLE.print(
        f"{os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "timm"))
    )
    table = Table(title=f"{repeats} repeats on {options.device}", title_justify="left")
    for column in ("network, parameters", "batch", "side", "ms/image", "time / CAM"):
        right = column not in ("network, parameters", "side")
        table.add_column(column, justify="right" if right else "left")
    for (network, stride), batch in product(NETWORKS, batches):
        bench = Bench(network, stride, batch, options.device)
        parts = bench.encoder, bench.head, bench.decoder
        labels = [
            f"{network}, stride {stride}",
            f"F-CAM: {millions(*parts)} in all",
            f"of which trained: {millions(*parts, trainable=True)}",
        ]
        taken = medians(bench.sides(), repeats, options.device)
        if options.perturbation:
            taken |= {n: timed(bench.class_map(n), options.device) for n in PERTURBATION}
        for i, (side, time) in enumerate(taken.items()):
            label = labels[i] if i < len(labels) else ""
            ratio = f"{time / taken['CAM']:.2f}"
            table.add_row(label, str(batch), side, f"{1e3 * time / batch:.1f}", ratio)
        table.add_section()
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
