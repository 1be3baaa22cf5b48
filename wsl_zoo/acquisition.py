"""Which images to label next, which labelled image is near an unlabelled one, and how it went.

"Deep Active Learning for Joint Classification & Segmentation with Weak Annotator" (WACV 2021,
arXiv 2010.04889). A round scores the unlabelled images (`pixel_entropy`, `mc_variance`) or draws
them (`shuffled`), and takes equally many of every class (`ranked`, `take_per_class`); those with a
labelled image among their k nearest in colour (`wsl_zoo.colors`) get pseudo-masks
(`nearest_labelled`). `core_set` (k-centre greedy; ICLR 2018, arXiv 1708.00489) is not in the paper.

The released code ranks by -2 p ln p where the binary entropy -p ln p - (1 - p) ln(1 - p) is meant,
and by the variance of all pixels of all passes, most of it between pixels, where that over the
passes of each pixel is meant: `published=True`. It also takes an image for its own first neighbour,
which fails for duplicates; here it is left out by its index.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pixel_entropy(probs: Tensor, published: bool = False) -> Tensor:
    """Return (1/HW) sum_p -S_p ln S_p - (1 - S_p) ln(1 - S_p) of every image.

    Args:
        probs: `(B, H, W)` in [0, 1], of the foreground.
        published: (1/HW) sum_p -2 S_p ln S_p instead, as in the released code, whose maximum is at
            1/e.

    Returns:
        `(B,)` in [0, ln 2] nats, or [0, 2/e] if published, at least float32; 0 where every pixel is
        0 or 1.

    Raises:
        ValueError: For another shape, no pixels, NaN or probabilities outside [0, 1].
    """
    probs = _maps(probs)
    if not ((probs >= 0) & (probs <= 1)).all():
        raise ValueError("probabilities must be numbers in [0, 1]")
    foreground = torch.special.entr(probs)
    # 1 - p would round to 1 for small p
    background = foreground if published else -torch.special.xlog1py(1 - probs, -probs)
    return (foreground + background).mean(dim=(1, 2))


class RunningVariance:
    """Variance over T stochastic passes, one at a time (Welford), in the memory of two passes.

    Example:
        >>> import torch
        >>> variance = RunningVariance()
        >>> variance.update(torch.tensor([[[0.2, 0.5]]]))
        >>> variance.update(torch.tensor([[[0.4, 0.5]]]))
        >>> round(variance.compute().item(), 4)
        0.01
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(0)
        self._squares = torch.zeros(0)  # sum over passes of (S - mean)^2

    def update(self, probs: Tensor) -> None:
        """Add a pass.

        Args:
            probs: `(B, H, W)`, of the same images in every pass.

        Raises:
            ValueError: For another shape than `(B, H, W)` or that of the first pass, or no pixels.
        """
        probs = _maps(probs.detach())
        if self.count == 0:
            self._mean, self._squares = torch.zeros_like(probs), torch.zeros_like(probs)
        elif probs.shape != self._mean.shape:
            raise ValueError(
                f"pass {self.count + 1} has shape {tuple(probs.shape)}, "
                f"those before it {tuple(self._mean.shape)}"
            )
        self.count += 1
        change = probs - self._mean
        self._mean = self._mean + change / self.count
        self._squares = self._squares + change * (probs - self._mean)

    def compute(self, published: bool = False) -> Tensor:
        """Return the score of every image.

        Args:
            published: As of `mc_variance`.

        Returns:
            As of `mc_variance`.

        Raises:
            ValueError: For fewer than two passes.
        """
        if self.count < 2:
            raise ValueError(f"a variance needs at least 2 passes, got {self.count}")
        within = self._squares.sum(dim=(1, 2))
        pixels = self._mean[0].numel()
        if not published:
            return within / (self.count - 1) / pixels
        between = self._mean - self._mean.mean(dim=(1, 2), keepdim=True)
        total = within + self.count * between.square().sum(dim=(1, 2))
        return total / (self.count * pixels - 1)


def mc_variance(passes: Tensor, published: bool = False) -> Tensor:
    """Return the mean over pixels of the unbiased variance over T stochastic passes of each.

    Args:
        passes: `(T, B, H, W)`, T at least 2.
        published: The unbiased variance of all T H W numbers of an image, as in the released code.

    Returns:
        `(B,)` of at least 0, at least float32; 0 for equal passes, unless published.

    Raises:
        ValueError: For fewer than two passes, another shape or no pixels.
    """
    variance = RunningVariance()
    for probs in passes:
        variance.update(probs)
    return variance.compute(published)


def core_set(features: NDArray[Any], labelled: NDArray[np.bool_], count: int) -> list[int]:
    """Return images, each the farthest from its nearest labelled or already taken one.

    Args:
        features: `(N, D)`, compared by Euclidean distance.
        labelled: `(N,)` bool.
        count: How many to take, at most all that are unlabelled.

    Returns:
        Their indices in the order taken; the first index among equals, and with nothing labelled
        the very first.

    Raises:
        ValueError: For wrong shapes, numbers that are not finite, or a negative count.
    """
    points = np.asarray(features, dtype=np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError(f"features must be finite and of shape (N, D), got {points.shape}")
    labelled = _flags(labelled, len(points))
    if count < 0:
        raise ValueError(f"count={count} must be >= 0")

    nearest = np.full(len(points), np.inf)  # squared distance to the nearest centre
    for center in points[labelled]:
        nearest = np.minimum(nearest, np.square(points - center).sum(axis=1))
    nearest[labelled] = -1
    taken: list[int] = []
    for _ in range(min(count, int((~labelled).sum()))):
        taken.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(points - points[taken[-1]]).sum(axis=1))
        nearest[taken[-1]] = -1
    return taken


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Return the ids by decreasing score, equal ones by id.

    Raises:
        ValueError: For a score that is NaN.
    """
    bad = sorted(name for name, score in scores.items() if score != score)
    if bad:
        raise ValueError(f"the score is NaN for {_named(bad)}")
    return sorted(scores, key=lambda name: (-scores[name], name))


def shuffled(ids: Iterable[str], seed: int) -> list[str]:
    """Return the ids in a random order that depends on the seed and on the set of ids alone."""
    order = sorted(ids)
    random.Random(seed).shuffle(order)
    return order


def take_per_class(order: Sequence[str], labels: Mapping[str, int], budget: int) -> list[str]:
    """Take the first max(1, floor(min(budget, M) / K)) of each of the K classes among M images.

    Args:
        order: M ids of candidates, the best first.
        labels: The class of each; other ids are ignored.
        budget: Images to take, at least 1. Fewer are taken where K does not divide it or a class
            runs out, more where it is below K.

    Returns:
        The ids taken, the best first.

    Raises:
        ValueError: For a budget below 1, an id twice or an id without a label.
    """
    if budget < 1:
        raise ValueError(f"budget={budget} must be >= 1")
    if twice := [name for name, times in Counter(order).items() if times > 1]:
        raise ValueError(f"given more than once: {_named(twice)}")
    if missing := [name for name in order if name not in labels]:
        raise ValueError(f"no label for {_named(missing)}")
    classes = {labels[name] for name in order}
    share = max(1, min(budget, len(order)) // max(1, len(classes)))
    seen: Counter[int] = Counter()
    taken = []
    for name in order:
        seen[labels[name]] += 1
        if seen[labels[name]] <= share:
            taken.append(name)
    return taken


def nearest_labelled(
    distances: NDArray[Any], labelled: NDArray[np.bool_], k: int
) -> dict[int, int]:
    """Pair unlabelled images with their nearest labelled one, if it is among their k nearest.

    Args:
        distances: `(N, N)`, row i from image i to all; the diagonal is ignored. Equal distances
            rank by index.
        labelled: `(N,)` bool.
        k: Neighbours to look at, labelled or not, the image itself not among them; at least 1.

    Returns:
        The labelled image of each unlabelled one that has one, by increasing index.

    Raises:
        ValueError: For wrong shapes, NaN, or k below 1.
    """
    labelled = _flags(labelled, len(distances))
    if distances.shape != (len(labelled), len(labelled)) or np.isnan(distances).any():
        raise ValueError(f"distances must be numbers of shape (N, N), got {distances.shape}")
    if k < 1:
        raise ValueError(f"k={k} must be >= 1")
    donors, others = np.flatnonzero(labelled), np.flatnonzero(~labelled)
    if donors.size == 0:
        return {}
    rows = distances[others]
    nearest = donors[rows[:, donors].argmin(axis=1)]
    limit = np.take_along_axis(rows, nearest[:, None], axis=1)
    before = (rows < limit) | ((rows == limit) & (np.arange(len(labelled)) < nearest[:, None]))
    before[np.arange(len(others)), others] = False
    kept = before.sum(axis=1) < k
    return dict(zip(others[kept].tolist(), nearest[kept].tolist(), strict=True))


def area_under_curve(values: Sequence[float]) -> float:
    """Return the mean height of the curve through one value per round, by trapezoids.

    Args:
        values: One per round; of a single one the area is itself.

    Raises:
        ValueError: For no value.
    """
    if len(values) == 0:
        raise ValueError("a curve needs at least one value")
    if len(values) == 1:
        return float(values[0])
    return float(np.trapezoid(values, dx=1)) / (len(values) - 1)


def _maps(probs: Tensor) -> Tensor:
    """Return maps in at least float32, checked to be `(B, H, W)` with pixels."""
    if probs.ndim != 3 or probs.numel() == 0:
        raise ValueError(f"expected maps (B, H, W), got {tuple(probs.shape)}")
    return probs.to(torch.promote_types(probs.dtype, torch.float32))


def _flags(labelled: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    labelled = np.asarray(labelled)
    if labelled.shape != (count,) or labelled.dtype != np.bool_:
        raise ValueError(f"labelled must be ({count},) bool, got {labelled.shape} {labelled.dtype}")
    return labelled


def _named(ids: Sequence[str]) -> str:
    """List at most five ids."""
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
