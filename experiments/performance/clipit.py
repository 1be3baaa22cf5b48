"""Time the pairing of CLIP-IT and its LoRA beside what one would use instead.

    python -m experiments.performance.clipit [--quick]

To be run from the root of the repository; one thread. Pairing: 100,000 images and 20,000 reports of
512 features; the other side takes the argmax of float64 products of blocks, which is as exact, and
float32 products, which is not: how many of its pairs differ is told. The peak is how far the memory
of a process of its own grows. LoRA: a training step (forward and backward) of a ViT-S/16 whose
linear and convolution layers all have updates of rank 16, beside Hugging Face's peft on the same
layers, and evaluation with the updates apart, merged, and of the plain network.

Times: medians of sides that take turns, after a call that warms up.
"""

import argparse
import multiprocessing
import os
import resource
import sys
from copy import deepcopy
from importlib.metadata import version
from time import perf_counter
from typing import Any

import timm
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.performance.timing import CONSOLE, medians
from wsl_zoo.encoders import adapt, merge
from wsl_zoo.pairing import nearest_reports

BLOCK = 2**26  # similarities held at once by every side


def features(images: int, reports: int, dim: int = 512) -> tuple[Tensor, Tensor]:
    """Return features of images that lie about those of reports, as those of a CLIP do."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(reports, dim, generator=generator)
    owner = torch.randint(reports, (images,), generator=generator)
    noise = 6 * torch.randn(images, dim, generator=generator)
    return texts[owner] + noise, texts


def by_products(images: Tensor, reports: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the argmax of products of unit vectors, block by block."""
    texts = F.normalize(reports.to(dtype), dim=1).T.contiguous()
    rows = max(1, BLOCK // len(reports))
    return torch.cat(
        [(F.normalize(part.to(dtype), dim=1) @ texts).argmax(dim=1) for part in images.split(rows)]
    )


def peak_of_pairing(images: int, reports: int, answer: Any) -> None:
    """Put into a queue by how many MiB memory grew at most while pairs were found."""
    torch.set_num_threads(1)
    sides = features(images, reports)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    nearest_reports(*sides)
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before) / 2**20)


def pairing(images: int, reports: int, repeats: int) -> None:
    """Print the table of pairing."""
    sides = features(images, reports)
    start = perf_counter()
    index, _ = nearest_reports(*sides)
    first = perf_counter() - start
    exact = by_products(*sides, torch.float64)
    rough = by_products(*sides, torch.float32)
    times = medians(
        {
            "ours": lambda: nearest_reports(*sides),
            "float64": lambda: by_products(*sides, torch.float64),
            "float32": lambda: by_products(*sides, torch.float32),
        },
        repeats,
    )
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=peak_of_pairing, args=(images, reports, answer))
    process.start()
    grown = answer.get()
    process.join()
    CONSOLE.print(f"{images} x {reports}: first call {first:.0f} s, memory + {grown:.0f} MiB")
    table = Table("pairing", "s", "ratio to ours", "pairs that differ from float64")
    for name, found in (("ours", index), ("float64", exact), ("float32", rough)):
        ratio, wrong = times[name] / times["ours"], int((found != exact).sum())
        table.add_row(name, f"{times[name]:.1f}", f"{ratio:.2f}x", str(wrong))
    CONSOLE.print(table)


def lora(batch: int, repeats: int) -> None:
    """Print the table of LoRA."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    image = torch.randn(batch, 3, 224, 224)

    def network() -> Any:
        return timm.create_model("vit_small_patch16_224", num_classes=0)

    plain, ours, theirs = network().eval(), network(), network()
    for other in (ours, theirs):
        other.load_state_dict(plain.state_dict())
    adapt(ours, rank=16, alpha=8.0)
    names = [n for n, m in plain.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    theirs = get_peft_model(theirs, LoraConfig(r=16, lora_alpha=8, target_modules=names))
    trained = {
        side: sum(p.numel() for p in net.parameters() if p.requires_grad)
        for side, net in (("ours", ours), ("peft", theirs))
    }
    assert trained["ours"] == trained["peft"]

    def step(net: Any) -> None:
        net.train()
        net(image).square().mean().backward()

    @torch.no_grad()
    def seen(net: Any) -> Tensor:
        result: Tensor = net.eval()(image)
        return result

    factors = [p for p in ours.parameters() if p.requires_grad]
    twins = [p for p in theirs.parameters() if p.requires_grad]
    with torch.no_grad():
        for mine, twin in zip(factors, twins, strict=True):
            twin.copy_(mine.normal_(std=0.02))
    off = float((seen(ours) - seen(theirs)).abs().max() / seen(plain).abs().max())
    steps = medians({"ours": lambda: step(ours), "peft": lambda: step(theirs)}, repeats)
    whole = deepcopy(ours)
    merge(whole)
    sides = {"plain": lambda: seen(plain), "ours": lambda: seen(ours), "peft": lambda: seen(theirs),
             "ours, merged": lambda: seen(whole)}  # fmt: skip
    looks = medians(sides, repeats)
    table = Table(f"LoRA, {trained['ours']:,} weights", "ms an image", "ratio")
    for name, value in steps.items():
        table.add_row(f"step, {name}", f"{1000 * value / batch:.1f}",
                      f"{value / steps['ours']:.2f}x ours")  # fmt: skip
    for name, value in looks.items():
        table.add_row(f"evaluation, {name}", f"{1000 * value / batch:.1f}",
                      f"{value / looks['plain']:.2f}x plain")  # fmt: skip
    CONSOLE.print(table)
    CONSOLE.print(f"ours and peft differ by {off:.0e}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of images and reports")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    CONSOLE.print(f"{os.cpu_count()} CPUs, torch {torch.__version__}, peft {version('peft')}")
    pairing(*((5_000, 1_000) if options.quick else (100_000, 20_000)), options.repeats)
    lora(2 if options.quick else 8, 2 * options.repeats)


if __name__ == "__main__":
    main()
