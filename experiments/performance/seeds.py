"""Time the seed samplers beside a plain NumPy form of the published ones, image by image.

    python -m experiments.performance.seeds [--batch 32] [--size 224] [--repeats 15] [--threads 1]

To be run from the root of the repository. The peer is written from the definitions, one image at a
time as published: full stable sorts, Otsu's threshold by cumulative sums over the histogram,
morphology and components by SciPy, `numpy.random.Generator.choice` without replacement. Both sides
get the same smooth maps (28 x 28, resized) and take turns, after one call each that warms up; the
ratio is that of the medians of one run.
"""

import argparse
from typing import Any

import numpy as np
import torch
from rich.table import Table
from scipy import ndimage
from torch.nn import functional as F

from experiments.performance.timing import CONSOLE, medians
from wsl_zoo.losses import SAMPLERS, SEED_IGNORE

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("F-CAM", "threshold", {"min_p": 0.1}),
    ("NEGEV", "probability", {}),
    ("NEGEV, area", "probability_negative_area", {"min_p": 0.1}),
    ("TCAM, uniform", "uniform", {"min_p": 0.1, "max_p": 0.6}),
    ("TCAM", "weighted", {"min_p": 0.1, "max_p": 0.6}),
    ("code defaults", "threshold", {"fg": 10, "bg": 10, "ksz": 1, "min_p": 0.2}),
    ("1000 + 1000", "threshold", {"fg": 1000, "bg": 1000, "min_p": 0.1}),
    (
        "CoLo-CAM",
        "weighted",
        {
            "fg": 1000,
            "bg": 1000,
            "min_p": 0.1,
            "max_p": 0.7,
            "roi": "largest",
            "roi_shape": "bbox",
        },
    ),
]


class Peer:
    """The published samplers, an image at a time.

    Args:
        name: Name of the sampler.
        arguments: Its arguments; those that are left out as the package has them.
    """

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        options = {"fg": 1, "bg": 1, "ksz": 3, "min_p": 0.1, "max_p": 0.6, "erode_k": 11}
        self.name = name
        self.options = {**options, "roi": "all", "roi_shape": "mask", **arguments}
        self.random = np.random.default_rng(0)

    def __call__(self, cams: np.ndarray) -> np.ndarray:
        """Draw the seeds of maps `(B, H, W)`."""
        return np.stack([self.seeds(cam) for cam in cams])

    def seeds(self, cam: np.ndarray) -> np.ndarray:
        """Draw the seeds of one map `(H, W)`."""
        seeds = np.full(cam.shape, SEED_IGNORE, dtype=np.int64)
        if not self.name.startswith("probability") and cam.min() == cam.max():
            return seeds
        foreground = self.dilated(self.foreground(cam), cam.shape)
        background = self.dilated(self.background(cam), cam.shape)
        seeds[foreground & ~background] = 1
        seeds[background & ~foreground] = 0
        return seeds

    def draw(self, candidates: np.ndarray, count: int, weights: np.ndarray | None) -> np.ndarray:
        """Draw candidates without replacement."""
        law = None if weights is None else weights / weights.sum()
        return self.random.choice(candidates, min(count, len(candidates)), replace=False, p=law)

    def dilated(self, index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Mark the squares around drawn pixels."""
        mask = np.zeros(shape, dtype=bool)
        mask.flat[index] = True
        return ndimage.binary_dilation(mask, np.ones((self.options["ksz"],) * 2))

    def foreground(self, cam: np.ndarray) -> np.ndarray:
        """Draw foreground pixels of one map."""
        options, count = self.options, self.options["fg"]
        flat = cam.ravel().astype(np.float64)
        if self.name.startswith("probability"):
            return self.draw(np.arange(flat.size), count, flat + 1e-6)
        levels = (cam * 255).astype(np.int64)
        threshold = otsu(levels)
        if self.name == "threshold":
            region = levels > min(max(threshold, 1), 254)
            square = np.ones((options["erode_k"],) * 2)
            eroded = ndimage.binary_erosion(region, square, border_value=1)
            region = eroded if eroded.any() else region
            return self.draw(np.flatnonzero(region), count, None)
        region = self.region_of_interest(levels >= threshold)
        area = int(options["max_p"] * region.sum())
        activations = np.where(region, cam, -np.inf).ravel()
        highest = np.argsort(-activations, kind="stable")[:area]
        return self.draw(highest, count, flat[highest] + 1e-8 if self.name == "weighted" else None)

    def region_of_interest(self, blobs: np.ndarray) -> np.ndarray:
        """Keep the largest component or all blobs, or their filled box."""
        height, width = blobs.shape
        if self.options["roi"] == "largest":
            labels, _ = ndimage.label(blobs)
            blobs = labels == np.bincount(labels.ravel())[1:].argmax() + 1
        if self.options["roi_shape"] == "bbox":
            rows, columns = np.flatnonzero(blobs.any(axis=1)), np.flatnonzero(blobs.any(axis=0))
            bottom, right = min(rows[-1] + 1, height - 1), min(columns[-1] + 1, width - 1)
            blobs = np.zeros_like(blobs)
            blobs[rows[0] : bottom, columns[0] : right] = True
        return blobs

    def background(self, cam: np.ndarray) -> np.ndarray:
        """Draw background pixels of one map."""
        flat = cam.ravel().astype(np.float64)
        count = self.options["bg"]
        weights = 1 - (flat + 1e-6) / (flat + 1e-6).sum()
        if self.name == "probability":
            return self.draw(np.arange(flat.size), count, weights)
        low = np.argsort(flat, kind="stable")[: int(self.options["min_p"] * flat.size)]
        law = weights[low] if self.name == "probability_negative_area" else None
        return self.draw(low, count, law)


def otsu(levels: np.ndarray) -> int:
    """Return Otsu's threshold of integer levels."""
    low, high = levels.min(), levels.max()
    if low == high:
        return int(low)
    counts = np.bincount(levels.ravel() - low).astype(np.float64)
    centres = np.arange(low, high + 1)
    below, above = counts.cumsum(), counts[::-1].cumsum()[::-1]
    mean_below = (counts * centres).cumsum() / below
    mean_above = (counts * centres)[::-1].cumsum()[::-1] / above
    variance = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return int(centres[variance.argmax()])


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=15, help="of either side, per row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cams = F.interpolate(torch.rand(options.batch, 1, 28, 28), options.size, mode="bilinear")[:, 0]
    low, high = cams.amin(dim=(1, 2), keepdim=True), cams.amax(dim=(1, 2), keepdim=True)
    cams = ((cams - low) / (high - low)).contiguous()

    table = Table(
        title=f"Seeds of {options.batch} maps of {options.size} x {options.size}, "
        f"{options.threads} threads: ms per image"
    )
    for column in ("case", "sampler", "fg + bg", "ours", "peer", "ratio"):
        table.add_column(column, justify="left" if column in ("case", "sampler") else "right")
    for case, name, arguments in CASES:
        ours, peer = SAMPLERS[name](**arguments), Peer(name, arguments)
        taken = medians(
            {
                "ours": lambda ours=ours: ours(cams),
                "peer": lambda peer=peer: peer(cams.numpy()),
            },
            options.repeats,
        )
        mine, theirs = (1e3 * taken[side] / options.batch for side in ("ours", "peer"))
        draws = f"{ours.fg} + {ours.bg}"
        table.add_row(case, name, draws, f"{mine:.3f}", f"{theirs:.3f}", f"{theirs / mine:.1f}")
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
