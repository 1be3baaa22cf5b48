"""A change of domain for the built-in scenes: other colours, another focus, another scanner.

Three changes that tell one laboratory's images from another's, each with a strength in [0, 1] (0:
none, the pixels stay as they are) and applied in the order in which light meets them:

    stain    optical density d = -log(x) of each pixel, d' = ((1 - s) I + s M) d with a fixed 3 x 3
             matrix M of positive determinant: the dyes change, no colour is lost. After the
             separation of stains by densities, Ruifrok and Johnston, Anal. Quant. Cytol. Histol.
             2001
    blur     Gaussian, its deviation 2 % of the image's side at strength 1
    scanner  gains of white balance (1 + 0.15 s, 1, 1 - 0.2 s), gamma 1 + 0.8 s and noise of
             deviation 0.03 s on the scale 0..1

Nothing moves, so masks and boxes hold. All numbers are ours, such that at strength 1 an image looks
plainly different and its textures can still be told apart. The scenes have random colours, so that
a classifier of their textures hardly minds `stain`; `blur` costs it most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from wsl_zoo.data.manifest import suggestion

KINDS = ("stain", "blur", "scanner")

# Densities of R, G and B after the change, from those before: green absorbed most, as by eosin.
MIXING = np.array([[0.3, 0.2, 0.1], [0.4, 1.0, 0.3], [0.0, 0.3, 0.6]], np.float32)
DARKEST = 1 / 256  # where a density is still finite
BLUR = 0.02  # of the side
GAINS = np.array([0.15, 0.0, -0.20], np.float32)
GAMMA = 0.8
NOISE = 0.03

Image = NDArray[np.float32]  # (H, W, 3), RGB in [0, 1]


def check_shift(shift: Mapping[str, float]) -> dict[str, float]:
    """Return the strengths as a dictionary.

    Raises:
        ValueError: A key is unknown, or a strength is no number in [0, 1].
    """
    for kind, strength in shift.items():
        if kind not in KINDS:
            known = f"expected {', '.join(KINDS)}"
            raise ValueError(f"shift has no kind {kind!r}{suggestion(kind, KINDS)}: {known}")
        if not (isinstance(strength, int | float) and 0 <= strength <= 1):  # refuses nan as well
            raise ValueError(f"shift: {kind}={strength!r} must be a strength in [0, 1]")
    return {kind: float(strength) for kind, strength in shift.items()}


def shift_image(
    image: NDArray[np.uint8], shift: Mapping[str, float], seed: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Return an image as another domain shows it, the same for the same arguments.

    Args:
        image: `(H, W, 3)` uint8, RGB.
        shift: Strengths in [0, 1] of some of `KINDS`; those not named are 0.
        seed: Of the noise.

    Returns:
        `(H, W, 3)` uint8; `image` itself if every strength is 0.
    """
    if not any(shift.values()):
        return image
    pixels: Image = image.astype(np.float32) / np.float32(255)
    if strength := shift.get("stain", 0.0):
        pixels = stain(pixels, strength)
    if strength := shift.get("blur", 0.0):
        pixels = blur(pixels, strength)
    if strength := shift.get("scanner", 0.0):
        pixels = scanner(pixels, strength, np.random.default_rng(seed))
    return np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def stain(image: Image, strength: float) -> Image:
    """Mix the optical densities of the three colours: `(H, W, 3)` in [0, 1]."""
    mixing = np.float32(1 - strength) * np.eye(3, dtype=np.float32) + np.float32(strength) * MIXING
    density = -np.log(np.maximum(image, np.float32(DARKEST)))
    return np.asarray(np.exp(-(density @ mixing.T)))


def blur(image: Image, strength: float) -> Image:
    """Blur by a Gaussian relative to the longer side: `(H, W, 3)` in [0, 1]."""
    sigma = strength * BLUR * max(image.shape[:2])
    size = 2 * math.ceil(4 * sigma) + 1  # 4 deviations to each side
    return np.asarray(cv2.GaussianBlur(image, (size, size), sigma), np.float32)


def scanner(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Change white balance and gamma, and add noise: `(H, W, 3)`, beyond [0, 1] by the noise."""
    gain = np.float32(1) + np.float32(strength) * GAINS
    pixels = np.clip(image * gain, 0, 1) ** np.float32(1 + strength * GAMMA)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(pixels + np.float32(strength * NOISE) * noise)
