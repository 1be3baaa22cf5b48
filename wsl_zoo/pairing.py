"""Which report is nearest to which image: the pairing stage of CLIP-IT, in bounded memory.

Paper: Karimian et al., "CLIP-IT: CLIP-based Pairing for Histology Images Classification", 2025
(arXiv 2504.16181).
psi(i) = argmax_j cos(f(image_i), g(report_j)): no label is used, and images may share a report.

Similarities are found by float32 products of a block of images with all reports. Where those cannot
tell which of several is the nearest, these few are compared again in float64; of equal ones the
first counts. So the result is that of float64 throughout, whatever the size of the blocks.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.files import write_text

BLOCK = 2**26  # similarities that are held at once: 256 MiB
HEADER = ("image", "report", "similarity")


def nearest_reports(images: Tensor, reports: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Return the most similar report of every image.

    Args:
        images: `(N, D)` features, of any length, none of them 0.
        reports: `(M, D)` likewise.
        block: Similarities that are held at once.

    Returns:
        Indices `(N,)` int64 in [0, M), and cosines `(N,)` float64, on the CPU.

    Raises:
        ValueError: Shapes do not fit, there is no report, or features are 0 or no numbers.
    """
    if images.ndim != 2 or reports.ndim != 2 or images.shape[1] != reports.shape[1]:
        raise ValueError(
            "images (N, D) and reports (M, D) must have features of one length, got "
            f"{tuple(images.shape)} and {tuple(reports.shape)}"
        )
    if not len(reports):
        raise ValueError("reports: there is none to pair with")
    for name, features in (("images", images), ("reports", reports)):
        length = features.double().norm(dim=1)
        wrong = (~torch.isfinite(length) | (length == 0)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(f"{name}: row {wrong[0]} is 0 or no number ({len(wrong)} in all)")
    texts = F.normalize(reports.double(), dim=1)
    coarse = texts.float().T.contiguous()
    # A product of two unit vectors of D float32 values is off by no more than (D + 2) 2^-24.
    unsure = 2 * (images.shape[1] + 4) * 2.0**-24
    index = torch.empty(len(images), dtype=torch.int64)
    cosine = torch.empty(len(images), dtype=torch.float64)
    rows = max(1, block // len(reports))
    for start in range(0, len(images), rows):
        vision = F.normalize(images[start : start + rows].double(), dim=1)
        similarity = vision.float() @ coarse
        best, first = similarity.max(dim=1)
        near = similarity >= (best - unsure)[:, None]
        several = near.sum(dim=1) > 1
        found = first.clone()
        for row in several.nonzero().flatten().tolist():
            candidates = near[row].nonzero().flatten()
            found[row] = candidates[(texts[candidates] * vision[row]).sum(dim=1).argmax()]
        index[start : start + rows] = found.cpu()
        cosine[start : start + rows] = (vision * texts[found]).sum(dim=1).cpu()
    return index, cosine


def write_pairs(
    path: Path, names: Sequence[str], index: Tensor, cosine: Tensor, reports: Sequence[str]
) -> Path:
    """Write the pairs as CSV: `image,report,similarity`, an image per line, whole or not at all.

    Args:
        path: The file.
        names: N names of the images.
        index: `(N,)` of `nearest_reports`.
        cosine: `(N,)` likewise.
        reports: M names of the reports.

    Raises:
        ValueError: Another number of names, or names that occur twice.
    """
    if not len(names) == len(index) == len(cosine):
        raise ValueError(f"{len(names)} names for {len(index)} pairs")
    for what, given in (("image", names), ("report", reports)):
        if len(set(given)) < len(given):
            twice = next(name for i, name in enumerate(given) if name in given[:i])
            raise ValueError(f"two {what}s are called {twice!r}")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(HEADER)
    rows = zip(names, index.tolist(), cosine.tolist(), strict=True)
    writer.writerows((name, reports[j], f"{value:.6f}") for name, j, value in rows)
    return write_text(path, table.getvalue())
