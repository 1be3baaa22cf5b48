"""How alike images are in colour: histograms of their channels and the divergence of these.

D(i, j) = sum_c D_c(i, j) / sum_ij D_c(i, j), D_c the Jensen-Shannon divergence of the histograms of
channel c: what decides which unlabelled images get pseudo-masks in "Deep Active Learning for Joint
Classification & Segmentation with Weak Annotator" (WACV 2021, arXiv 2010.04889). Where its code
takes the default of Pillow, which has changed between releases, images are resized bilinearly.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy import ndimage

HEIGHT = 128
"""Pixels to which the height of an image is resized before its colours are counted."""

COLOR = 3.0
"""Factor of Pillow's `ImageEnhance.Color`: 1 leaves the colours as they are."""

SIGMA = 0.9
"""Of the 3 x 3 Gaussian, in pixels."""

BINS = 256
"""Of a histogram of colours on [0, 1]."""

CHUNK = 2**21
"""Numbers in the largest temporary array of `js_divergence`, unless one row needs more."""


def color_histogram(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the histograms of the channels of an image, resized, saturated and blurred before.

    Args:
        image: `(H, W, 3)` uint8.

    Returns:
        `(3, 256)`, positive, each row with sum 1.

    Raises:
        ValueError: For another shape or type, or no pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"an image is (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    size = max(1, round(width * HEIGHT / height)), HEIGHT
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(ImageEnhance.Color(resized).enhance(COLOR)) / 255
    pixels = ndimage.gaussian_filter(pixels, (SIGMA, SIGMA, 0), radius=1, mode="mirror")
    return channel_histograms(pixels)


def channel_histograms(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the histograms of C channels, 1e-8 added to every count, as shares.

    Args:
        pixels: `(H, W, C)`; a number outside [0, 1] is in the first or the last bin.

    Returns:
        `(C, 256)`, positive, each row with sum 1.
    """
    bins = (pixels * BINS).astype(np.int64).clip(0, BINS - 1)
    channels = bins.reshape(-1, pixels.shape[-1]).T
    counts = np.stack([np.bincount(channel, minlength=BINS) for channel in channels]) + 1e-8
    return counts / counts.sum(axis=1, keepdims=True)


def js_divergence(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return H((a_i + b_j) / 2) - (H(a_i) + H(b_j)) / 2 of all pairs, channel by channel.

    Args:
        a: `(N, C, bins)`, shares with sum 1 over the bins.
        b: `(M, C, bins)`, likewise.

    Returns:
        `(C, N, M)` in [0, ln 2] nats.

    Raises:
        ValueError: For other shapes, or rows that are no distributions.
    """
    a, b = (np.ascontiguousarray(shares, dtype=np.float64) for shares in (a, b))
    if a.ndim != 3 or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"expected (N, C, bins) and (M, C, bins), got {a.shape} and {b.shape}")
    for shares in (a, b):
        if not ((shares >= 0).all() and np.allclose(shares.sum(axis=-1), 1, rtol=0, atol=1e-6)):
            raise ValueError("the bins of a histogram must be shares: not negative, with sum 1")
    divergence = np.empty((a.shape[1], len(a), len(b)))
    rows = max(1, CHUNK // max(1, b.size))
    of_b = _entropy(b)
    for start in range(0, len(a), rows):
        part = a[start : start + rows, None]
        mixed = part + b
        mixed /= 2
        divergence[:, start : start + rows] = (
            _entropy(mixed) - (_entropy(part) + of_b) / 2
        ).transpose(2, 0, 1)
    return divergence.clip(0, np.log(2))


def color_distances(histograms: NDArray[Any]) -> NDArray[np.float64]:
    """Return sum_c D_c(i, j) / Z_c, D_c the Jensen-Shannon divergence, Z_c its sum over all pairs.

    Args:
        histograms: `(N, C, bins)`, of the images of one class.

    Returns:
        `(N, N)`, symmetric, 0 on the diagonal; a channel in which all images are equal adds 0.

    Raises:
        ValueError: As of `js_divergence`.
    """
    divergence = js_divergence(histograms, histograms)
    total = divergence.sum(axis=(1, 2), keepdims=True)
    distances = (divergence / np.where(total > 0, total, 1)).sum(axis=0)
    np.fill_diagonal(distances, 0)
    return distances


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy over the last axis, in nats, 0 ln 0 being 0."""
    logarithm = np.maximum(shares, np.finfo(np.float64).tiny)
    np.log(logarithm, out=logarithm)
    logarithm *= shares
    return -logarithm.sum(axis=-1)
