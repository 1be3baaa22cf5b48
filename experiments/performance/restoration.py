"""Time metrics and loss of super-resolution beside scikit-image and a plain transcription.

    python -m experiments.performance.restoration [--quick]

To be run from the root of the repository; one thread. Metrics: PSNR, SSIM and NRMSE of 8 images of
512 x 512 and of their regions at 7 grey levels; scikit-image computes its SSIM map once per image
and the rest is written plainly in numpy, image by image and level by level, as the protocol reads.
Loss: L2 - 5 SSIM of 8 crops of 128 x 128, forward and backward; the other side is SSIM as usually
written, four blurs by depthwise convolutions of 19 x 19 weights. Values are compared first.

Times: medians of sides that take turns, after a call that warms up.
"""

import argparse
import os
from importlib.metadata import version

import numpy as np
import torch
from rich.table import Table
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional as F

from experiments.performance.timing import CONSOLE, medians
from wsl_zoo.losses.superres import C1, C2, restoration_terms
from wsl_zoo.metrics.restored import RestorationMetrics

LEVELS = torch.arange(4, 11) / 255
BORDER, WINDOW = 2, 5  # pixels that are left out for the protocol, and for SSIM's window


def made(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Return results and targets (B, 1, side, side): blobs on black, and the same with noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, side // 32, side // 32, generator=generator) - 0.6
    target = F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    noise = 0.02 * torch.randn(target.shape, generator=generator)
    return ((target + noise).clamp(0, 1) * 255).round() / 255, (target * 255).round() / 255


def ours(sr: Tensor, hr: Tensor) -> dict[str, float]:
    """Return the values of the zoo's metrics."""
    metrics = RestorationMetrics(BORDER, roi=True)
    metrics.update(sr.double(), hr.double(), hr >= LEVELS.view(1, -1, 1, 1) - 1e-6)
    return {name: float(value) for name, value in metrics.compute()[0].items()}


def plainly(sr: Tensor, hr: Tensor) -> dict[str, float]:
    """Return the same by scikit-image and numpy."""
    rows = []
    for result, target in zip(sr.double().numpy(), hr.double().numpy(), strict=True):
        made, true = (x[0, BORDER:-BORDER, BORDER:-BORDER] for x in (result, target))
        whole = structural_similarity(
            true, made, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )[1]  # fmt: skip
        row = []
        for level in (-1.0, *LEVELS.tolist()):
            region = true >= level - 1e-6
            error = np.sqrt(((made - true)[region] ** 2).mean())
            inner = (slice(WINDOW, -WINDOW),) * 2
            similar = whole[inner][region[inner]].mean()
            spread = true[region].max() - true.min()
            row.append((20 * np.log10(1 / error), similar, error / spread))
        rows.append([*row[0], *np.mean(row[1:], axis=0)])
    means = np.mean(rows, axis=0)
    names = ("psnr", "ssim", "nrmse", "roi_psnr", "roi_ssim", "roi_nrmse")
    return dict(zip(names, means.tolist(), strict=True))


def usual(sr: Tensor, hr: Tensor) -> Tensor:
    """Return L2 - 5 SSIM with blurs by convolution."""
    line = torch.exp(-0.5 * (torch.arange(-9, 10) / 1.5) ** 2)
    weights = torch.outer(line, line)[None, None] / line.sum() ** 2

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, weights, padding=9)

    a, b = blur(sr), blur(hr)
    var_a, var_b, both = blur(sr * sr) - a * a, blur(hr * hr) - b * b, blur(sr * hr) - a * b
    similarity = (2 * a * b + C1) * (2 * both + C2) / ((a * a + b * b + C1) * (var_a + var_b + C2))
    return ((sr - hr) ** 2).mean() - 5 * similarity.mean()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two images")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = 2 if options.quick else 8
    images, crops = made(count, 512), made(count, 128)
    learned = crops[0].clone().requires_grad_()

    def step(loss: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss, learned)
        return gradient

    def zoo() -> Tensor:
        terms = restoration_terms([learned], crops[1])
        return step(torch.stack(list(terms.values())).sum())

    def other() -> Tensor:
        return step(usual(learned, crops[1]))

    first, second = ours(*images), plainly(*images)
    off = {
        "metrics": max(abs(first[name] - value) for name, value in second.items()),
        "loss": float((zoo() - other()).abs().max() / other().abs().max()),
    }
    times = {
        "metrics": medians(
            {"ours": lambda: ours(*images), "other": lambda: plainly(*images)}, options.repeats
        ),
        "loss": medians({"ours": zoo, "other": other}, 4 * options.repeats),
    }
    CONSOLE.print(
        f"{os.cpu_count()} CPUs, torch {torch.__version__}, scikit-image {version('scikit-image')}"
    )
    table = Table("", "ours, ms", "other, ms", "ratio", "differ by")
    for name, taken in times.items():
        ratio = taken["other"] / taken["ours"]
        cells = (f"{1000 * taken[side]:.1f}" for side in ("ours", "other"))
        table.add_row(name, *cells, f"{ratio:.1f}x", f"{off[name]:.0e}")
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
