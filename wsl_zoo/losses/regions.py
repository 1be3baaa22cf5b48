"""Regions of class maps for pixel seeds: Otsu's threshold, morphology, extremes, components.

Everything is vectorised over the batch and exact; only the components leave the device.
"""

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 256


def on_cpu(tensor: Tensor) -> bool:
    """Whether to take what is faster on a CPU and would make another device wait."""
    return tensor.device.type == "cpu"


def otsu_threshold(levels: Tensor) -> Tensor:
    """Return Otsu's threshold of each image; what lies above it is one class.

    The first level of the image's range that maximises the between-class variance
    w1 w2 (mu1 - mu2)^2 of {<= level} and {> level} (Otsu, IEEE Trans. SMC 1979). Sums are integers,
    so that equal splits are equal: the first of them is taken, as scikit-image does.

    Args:
        levels: `(B, H, W)` int32 in [0, 255].

    Returns:
        `(B,)` int64; the level itself where an image has only one.
    """
    batch, device = len(levels), levels.device
    bins = (
        levels.flatten(1) + LEVELS * torch.arange(batch, device=device)[:, None].int()
    ).flatten()
    if on_cpu(bins):
        counts = bins.bincount(minlength=LEVELS * batch)
    else:  # elsewhere `bincount` waits for the device
        counts = torch.zeros(LEVELS * batch, dtype=torch.int64, device=device)
        counts.scatter_add_(0, bins.long(), torch.ones_like(counts[:1]).expand(len(bins)))
    counts = counts.view(batch, LEVELS)
    below = counts.cumsum(1)
    sums = (counts * torch.arange(LEVELS, device=device)).cumsum(1)
    total = below[:, -1:]
    # w1 w2 (mu1 - mu2)^2 = (S1 n - S w1)^2 / (w1 w2)
    difference = (sums * total - sums[:, -1:] * below).double()
    variance = difference**2 / (below * (total - below)).clamp(min=1)
    return variance.masked_fill(below == 0, -1).argmax(dim=1)


def dilate(mask: Tensor, size: int) -> Tensor:
    """Dilate `(B, H, W)` bool by a square of odd `size`; outside the image nothing is set."""
    reach = size // 2
    mask = F.pad(mask, (reach, reach, reach, reach))
    for dim in (1, 2):
        width = 1  # windows double: 1, 2, 4, ..., size
        while width < size:
            step = min(width, size - width)
            length = mask.shape[dim] - step
            mask = mask.narrow(dim, 0, length) | mask.narrow(dim, step, length)
            width += step
    return mask


def erode(mask: Tensor, size: int, iterations: int = 1) -> Tensor:
    """Erode `(B, H, W)` bool by a square of odd `size`; the border of the image does not erode.

    An erosion that would leave nothing of an image's mask is not applied to it.
    """
    for _ in range(iterations):
        eroded = ~dilate(~mask, size)
        left = eroded.sum(dim=(1, 2), dtype=torch.int32) > 0
        mask = torch.where(left[:, None, None], eroded, mask)
    return mask


def lowest(values: Tensor, count: int) -> Tensor:
    """Mark the `count` lowest of each row; of equal ones the first, as a stable sort does.

    Args:
        values: `(B, N)` float32, finite.
        count: How many, at most N.

    Returns:
        `(B, N)` bool.
    """
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    limit = kth_lowest(values, count)
    return without_last_ties(values <= limit, values, limit, count)


def highest(values: Tensor, region: Tensor, counts: Tensor, bound: int) -> Tensor:
    """Mark the highest of each row within a region; of equal ones the first.

    Args:
        values: `(B, N)` float32, finite.
        region: `(B, N)` bool.
        counts: `(B,)` int32: how many, at most as many as the row's region has.
        bound: Largest count there can be.

    Returns:
        `(B, N)` bool.
    """
    if bound == 0:
        return torch.zeros_like(region)
    size = values.shape[1]
    # Beside bound - count times +inf, all rows seek the value that `bound - 1` are above.
    padded = values.new_empty(len(values), size + bound)
    inside, beside = padded[:, :size], padded[:, size:]
    torch.where(region, values, values.new_full((), -torch.inf), out=inside)
    column = torch.arange(bound, dtype=torch.int32, device=values.device)
    beside.fill_(-torch.inf).masked_fill_(column < bound - counts[:, None], torch.inf)
    limit = kth_lowest(padded, size + 1)
    return without_last_ties(inside >= limit, inside, limit, counts[:, None])


def kth_lowest(values: Tensor, k: int) -> Tensor:
    """Return the k-th lowest value of each row, k from 1: `(B, N) -> (B, 1)`."""
    if on_cpu(values):  # several times as fast as `kthvalue`
        return torch.from_numpy(np.partition(values.numpy(), k - 1, axis=1)[:, k - 1 : k])
    return values.kthvalue(k, dim=1, keepdim=True).values


def without_last_ties(
    marked: Tensor, values: Tensor, limit: Tensor, counts: int | Tensor
) -> Tensor:
    """Unmark the last pixels of value `limit (B, 1)`, in place, until `counts (B, 1)` are left."""
    excess = marked.sum(dim=1, keepdim=True, dtype=torch.int32) - counts
    # Few maps have any; which do is a question that only a CPU answers without waiting.
    rows = excess[:, 0].nonzero()[:, 0] if on_cpu(excess) else slice(None)
    ties = values[rows] == limit[rows]
    rank = ties.cumsum(dim=1, dtype=torch.int32)
    marked[rows] ^= ties & (rank > rank[:, -1:] - excess[rows])
    return marked


def component(
    mask: Tensor, cam: Tensor, choice: Literal["largest", "high_density"], min_area: float
) -> Tensor:
    """Keep one 4-connected component of each image's mask. Runs on the CPU, image by image.

    Args:
        mask: `(B, H, W)` bool.
        cam: `(B, H, W)`, read by "high_density" only.
        choice: "largest": most pixels; "high_density": highest mean of `cam`. Of equals the first
            in raster order.
        min_area: A densest component of fewer pixels is replaced by the largest one.

    Returns:
        `(B, H, W)` bool on the device of `mask`; empty where the mask is.
    """
    images = mask.to("cpu", torch.uint8).numpy()
    activations = cam.double().cpu().numpy() if choice == "high_density" else None
    kept = np.zeros(images.shape, dtype=bool)
    for i, image in enumerate(images):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(image, connectivity=4)
        if count == 1:
            continue
        area = stats[1:, cv2.CC_STAT_AREA]
        best = int(area.argmax())
        if activations is not None:
            density = np.bincount(labels.ravel(), activations[i].ravel())[1:] / area
            densest = int(density.argmax())
            best = densest if area[densest] >= min_area else best
        np.equal(labels, best + 1, out=kept[i])
    return torch.from_numpy(kept).to(mask.device)


def filled_box(mask: Tensor) -> Tensor:
    """Fill the bounding box of each image's mask, as CoLo-CAM's published code paints it.

    Rows y0 to y1 and columns x0 to x1, half open, with y1 = min(y_max + 1, H - 1) and x1 likewise:
    the last row and column of the image are left out, unless they are all there is.

    Args:
        mask: `(B, H, W)` bool.

    Returns:
        `(B, H, W)` bool; empty where the mask is.
    """
    rows, columns = (mask.sum(dim=dim, dtype=torch.int32) > 0 for dim in (2, 1))
    return inner_span(rows)[:, :, None] & inner_span(columns)[:, None, :]


def inner_span(hit: Tensor) -> Tensor:
    """Mark from the first to the last of `hit (B, n)` bool, without position n - 1."""
    index = torch.arange(hit.shape[1], device=hit.device)
    start = torch.where(hit, index, hit.shape[1]).amin(dim=1, keepdim=True)
    last = torch.where(hit, index, -1).amax(dim=1, keepdim=True)
    end = torch.maximum((last + 1).clamp(max=hit.shape[1] - 1), torch.minimum(start, last) + 1)
    return (index >= start) & (index < end)
