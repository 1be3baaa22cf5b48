"""Pseudo-labels without a source: clusters of features, trusted samples, over-predicted classes.

SHOT (ICML 2020, arXiv 2002.08546): `centroid_labels`. SFDA-DE (CVPR 2022) and CDCL (IEEE TMM 2022,
arXiv 2106.05528): `anchored_clusters`, `nearest_fraction`; SFDA-DE's surrogate of the source:
`class_gaussians`. SFDA-DeP (arXiv 2603.12468): `forget_set`; how biased predictions are:
`prediction_bias`.

Everything is computed in float64, without gradients, on the tensors' device, and the same twice: no
sum depends on an order of threads; of equal distances, probabilities or entropies the lower index
comes first. float64 is also what is returned. Fractions of a count are rounded down.

Deviations from the published code: centres are matched with anchors by the permutation (there by
its inverse, wrong for cycles of three); k-means stops after `max_iterations`; entropies are exact
(there with 1e-6 in the logarithm).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.losses.entropy import marginal_entropy
from wsl_zoo.losses.seeds import require_fraction

ZERO_STD = 1e-4  # in the place of a standard deviation of 0; published code


class Clusters(NamedTuple):
    """Clusters named after the anchors: see `anchored_clusters`."""

    labels: Tensor
    centres: Tensor
    distances: Tensor


class ClassGaussians(NamedTuple):
    """Diagonal Gaussians, one per class: see `class_gaussians`."""

    mean: Tensor
    std: Tensor
    usable: Tensor


@dataclass(frozen=True)
class Roles:
    """Which images forget their prediction; those of no such role retain it.

    Args:
        forget: `(N,)` bool.
        prediction: `(N,)` int64, the most probable class.
        second: `(N,)` int64, the next one.
        assigned: `(N,)` int64, the second choice of what is forgotten, else the prediction.
        entropy: `(N,)` float64 in [0, ln K] nats, of the prediction.
    """

    forget: Tensor
    prediction: Tensor
    second: Tensor
    assigned: Tensor
    entropy: Tensor


@torch.no_grad()
def centroid_labels(
    features: Tensor,
    probabilities: Tensor,
    iterations: int = 2,
    metric: Literal["cosine", "euclidean"] = "cosine",
    normalize: bool = True,
    append_one: bool = True,
    min_count: int = 0,
) -> Tensor:
    """Label features by the nearest class centroid, first of the probabilities, then of the labels.

    Repeated with A = P at first, then the labels' one-hot rows:
    c_k = sum_i A_ik f_i / (1e-8 + sum_i A_ik); label_i = argmin_k d(f_i, c_k). The published
    histology code is `normalize=False, append_one=False, min_count=-1`.

    Args:
        features: `(N, D)`.
        probabilities: `(N, K)`.
        iterations: At least 1.
        metric: "cosine", 1 - cos (1 to a zero vector), or "euclidean".
        normalize: Divide every feature by its norm, after `append_one`.
        append_one: Append a 1 to every feature (labels then depend on the features' scale).
        min_count: Only classes predicted for more images than this compete, and none that has lost
            its images. Negative: all compete; one without images has its centroid at 0.

    Returns:
        `(N,)` int64.

    Raises:
        ValueError: Wrong shapes, numbers that are not finite, an unknown metric, fewer than one
            iteration, or no class that competes.
    """
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric={metric!r} must be 'cosine' or 'euclidean'")
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")
    points = _rows(features, "features")
    weights = _rows(probabilities, "probabilities", like=points)
    if append_one:
        points = torch.cat([points, points.new_ones(len(points), 1)], dim=1)
    if normalize:
        points = F.normalize(points, dim=1)
    classes = weights.shape[1]
    labels = weights.argmax(dim=1)
    competing = F.one_hot(labels, classes).sum(dim=0) > min_count
    if len(points) and not competing.any():
        raise ValueError(f"no class is predicted for more than min_count={min_count} images")
    directions = F.normalize(points, dim=1) if metric == "cosine" else points
    for _ in range(iterations):
        mass = weights.sum(dim=0)
        centroids = weights.T @ points / (1e-8 + mass)[:, None]  # 1e-8: published code
        if metric == "cosine":
            distances = 1 - directions @ F.normalize(centroids, dim=1).T
        else:
            exact = "donot_use_mm_for_euclid_dist"
            distances = torch.cdist(points, centroids, compute_mode=exact)
        excluded = ~competing if min_count < 0 else ~competing | (mass == 0)
        labels = distances.masked_fill(excluded, torch.inf).argmin(dim=1)
        weights = F.one_hot(labels, classes).double()
    return labels


@torch.no_grad()
def anchored_clusters(
    features: Tensor, anchors: Tensor, tolerance: float = 1e-3, max_iterations: int = 100
) -> Clusters:
    """Cluster features by spherical k-means from the anchors, and name the clusters after these.

    With d = (1 - cos) / 2 (1/2 to a zero vector): every feature goes to its nearest centre; a
    centre becomes the sum of its features, its anchor if it has none; until centres move by less
    than `tolerance`. After a last assignment, centres and anchors are matched one to one with the
    least sum of distances.

    Args:
        features: `(N, D)`.
        anchors: `(K, D)`, the classifier's rows.
        tolerance: Of the mean over centres of d(new, old). Published: 1e-3, a script 1e-2.
        max_iterations: Cap, ours.

    Returns:
        `labels (N,)` int64, `centres (K, D)` in the order of the anchors, `distances (N,)` in
        [0, 1] of every feature to its centre.

    Raises:
        ValueError: Wrong shapes or numbers that are not finite.
    """
    points, rows = _rows(features, "features"), _rows(anchors, "anchors")
    centres, classes = rows, len(rows)
    directions = F.normalize(points, dim=1)

    def assign() -> tuple[Tensor, Tensor]:
        distances = _half_cosine_distance(directions @ F.normalize(centres, dim=1).T)
        labels = distances.argmin(dim=1)
        return labels, distances.gather(1, labels[:, None])[:, 0]

    for _ in range(max_iterations):
        members = F.one_hot(assign()[0], classes).double()
        new = torch.where(members.any(dim=0)[:, None], members.T @ points, rows)
        moved = _half_cosine_distance(F.cosine_similarity(new, centres, dim=1))
        centres = new
        if moved.mean() < tolerance:
            break
    labels, distances = assign()
    cost = _half_cosine_distance(F.normalize(centres, dim=1) @ F.normalize(rows, dim=1).T)
    anchor = torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(labels)
    ordered = torch.empty_like(centres)
    ordered[anchor] = centres  # anchor[k]: the one of centre k
    return Clusters(anchor[labels], ordered, distances)


@torch.no_grad()
def nearest_fraction(
    labels: Tensor, distances: Tensor, fraction: float, num_classes: int
) -> Tensor:
    """Mark in every class the floor(fraction n_k) of its n_k samples nearest to their centre.

    Args:
        labels: `(N,)` int64 in [0, num_classes).
        distances: `(N,)`.
        fraction: theta in [0, 1]. Histology: 0.8 (SFDA-DE), 1.0 (CDCL).
        num_classes: K.

    Returns:
        `(N,)` bool.

    Raises:
        ValueError: A fraction outside [0, 1].
    """
    require_fraction(fraction=fraction)
    counts = F.one_hot(labels, num_classes).sum(dim=0)
    order = distances.double().argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]  # by class, then by distance, then by index
    first = (counts.cumsum(dim=0) - counts)[labels[order]]
    quota = (fraction * counts.double()).long()[labels[order]]
    keep = torch.empty_like(labels, dtype=torch.bool)
    keep[order] = torch.arange(len(labels), device=labels.device) - first < quota
    return keep


@torch.no_grad()
def class_gaussians(
    features: Tensor,
    labels: Tensor,
    keep: Tensor,
    anchors: Tensor,
    gamma: float = 1.5,
    min_count: int = 5,
) -> ClassGaussians:
    """Return SFDA-DE's surrogate of the source: N(|mu_k| w_k / |w_k|, diag((gamma sigma_k)^2)).

    mu_k and sigma_k are the mean and the unbiased standard deviation of the kept features of class
    k; a sigma of 0 counts as 1e-4.

    Args:
        features: `(N, D)`.
        labels: `(N,)` int64 in [0, K).
        keep: `(N,)` bool.
        anchors: `(K, D)`, the classifier's rows w_k.
        gamma: Histology: 1.5 (default of its code: 1.0).
        min_count: Kept samples that make a class usable.

    Returns:
        `mean (K, D)`, `std (K, D)`, both 0 for classes that are not usable, and `usable (K,)` bool.

    Raises:
        ValueError: Wrong shapes or numbers that are not finite.
    """
    points, rows = _rows(features, "features"), _rows(anchors, "anchors")
    members = F.one_hot(labels, len(rows)).double() * keep[:, None]
    counts = members.sum(dim=0)[:, None]
    mean = members.T @ points / counts.clamp(min=1)
    squares = members.T @ (points - mean[labels]).square()
    std = (squares / (counts - 1).clamp(min=1)).sqrt()
    std = gamma * torch.where(std == 0, ZERO_STD, std)
    mean = torch.linalg.vector_norm(mean, dim=1, keepdim=True) * F.normalize(rows, dim=1)
    usable = counts >= min_count
    return ClassGaussians(mean * usable, std * usable, usable[:, 0])


@torch.no_grad()
def overpredicted(predictions: Tensor, num_classes: int) -> Tensor:
    """Return `(K,)` bool: the classes predicted, `(N,)` int64, for more than N / K images."""
    counts = F.one_hot(predictions, num_classes).sum(dim=0)
    return counts * num_classes > len(predictions)


@torch.no_grad()
def forget_set(
    probabilities: Tensor,
    ratio: float = 0.15,
    entropy_threshold: float | None = None,
    subsample: float = 1.0,
    generator: torch.Generator | None = None,
) -> Roles:
    """Choose the images that are to forget their prediction: the least certain over-predicted ones.

    Of the M images predicted as an over-predicted class, of all such classes together, the
    floor(ratio M) of highest entropy. Balanced predictions leave none.

    Args:
        probabilities: `(N, K)`, K at least 2, of all images in their order.
        ratio: rho in [0, 1]. Published: 0.15, scripts 0.05.
        entropy_threshold: In [0, 1]; instead of `ratio`, those with H / ln K of at least this.
        subsample: Fraction in [0, 1] of the choice that is drawn at random, at least one image of a
            choice that is not empty; 1: all, nothing is drawn.
        generator: Of the draw; None: the global one.

    Returns:
        The roles of all images.

    Raises:
        ValueError: A single class, numbers that are not finite, or fractions outside [0, 1].
    """
    p = _rows(probabilities, "probabilities")
    classes = p.shape[1]
    if classes < 2:
        raise ValueError("a second choice needs probabilities of at least 2 classes, got 1")
    require_fraction(ratio=ratio, subsample=subsample)
    prediction = p.argmax(dim=1)
    second = p.scatter(1, prediction[:, None], -torch.inf).argmax(dim=1)
    entropy = torch.special.entr(p).sum(dim=1)
    candidate = overpredicted(prediction, classes)[prediction]
    if entropy_threshold is None:
        order = torch.where(candidate, entropy, -torch.inf).argsort(descending=True, stable=True)
        chosen = order[: int(ratio * int(candidate.sum()))]
    else:
        require_fraction(entropy_threshold=entropy_threshold)
        chosen = (candidate & (entropy / math.log(classes) >= entropy_threshold)).nonzero()[:, 0]
    if subsample < 1 and len(chosen):
        device = p.device if generator is None else generator.device
        drawn = torch.randperm(len(chosen), generator=generator, device=device).to(p.device)
        chosen = chosen[drawn[: max(1, int(subsample * len(chosen)))]]
    forget = torch.zeros_like(candidate)
    forget[chosen] = True
    assigned = torch.where(forget, second, prediction)
    return Roles(forget, prediction, second, assigned, entropy)


@torch.no_grad()
def prediction_bias(
    predictions: Tensor, num_classes: int, probabilities: Tensor | None = None
) -> dict[str, Tensor]:
    """Return how unequally the classes are predicted.

    Args:
        predictions: `(N,)` int64 in [0, num_classes), N at least 1.
        num_classes: K.
        probabilities: `(N, K)`, for `marginal_entropy`.

    Returns:
        `counts (K,)` int64, n_k; `kl`, KL(pi || uniform) = sum_k pi_k ln(K pi_k) of pi_k = n_k / N,
        in [0, ln K]; `ratio`, max n / max(1, min n); with probabilities `marginal_entropy`, of
        their mean, in [0, ln K]. Scalars are float64, in nats.

    Raises:
        ValueError: No predictions.
    """
    if not len(predictions):
        raise ValueError("no predictions: their bias is undefined")
    counts = F.one_hot(predictions, num_classes).sum(dim=0)
    share = counts.double() / len(predictions)
    bias = {
        "counts": counts,
        "kl": torch.xlogy(share, num_classes * share).sum(),
        "ratio": counts.max().double() / counts.min().clamp(min=1),
    }
    if probabilities is not None:
        bias["marginal_entropy"] = marginal_entropy(probabilities.double())
    return bias


def _half_cosine_distance(cosine: Tensor) -> Tensor:
    """Return (1 - cos) / 2 in [0, 1]: rounding may leave a cosine outside [-1, 1]."""
    return (1 - cosine.clamp(-1, 1)) / 2


def _rows(tensor: Tensor, name: str, like: Tensor | None = None) -> Tensor:
    """Return finite rows `(N, D)` as float64; as many as `like` has."""
    if tensor.ndim != 2 or (like is not None and len(tensor) != len(like)):
        rows = "N" if like is None else len(like)
        raise ValueError(f"{name} must have shape ({rows}, ...), got {tuple(tensor.shape)}")
    if not tensor.isfinite().all():
        bad = int((~tensor.isfinite()).any(dim=1).sum())
        raise ValueError(f"{name} are not finite in {bad} of {len(tensor)} rows")
    return tensor.double()
