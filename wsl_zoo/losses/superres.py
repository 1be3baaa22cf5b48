"""Losses of super-resolution: pixel errors and the structural similarity (SSIM) of images.

`restoration_terms`: L2 - 5 SSIM, averaged over the outputs that a network is judged by, the loss of
all networks in SR-CACO-2 (NeurIPS 2024 Datasets and Benchmarks, arXiv 2406.09168). SSIM is that of
Wang et al. (IEEE TIP 2004) with a window of 19 x 19 and images padded by zeros, which is not the
metric's. Images are not clamped.

SSIM of an image and its negative is 1, since both its factors are -1: the published loss has a
second valley there, with L2 alone, some hundredths of it, to speak against it. Networks without a
skip from the image, whose first outputs may be negative, fall into it and stay.

Deviations from the published code: structure has no credit where the means differ in sign
(`luminance`; elsewhere nothing changes); outputs of lower resolutions are compared with the true
image brought down with antialiasing ("published": without, corners aligned, so that it is sampled
off the pixels' grid and aliases); SSIM is computed from the difference of the images (the same
value, without the cancellation), in float32 at least, and never in TF32, whose ten bits C2 drowns
in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.precision import at_least_float32

PixelLoss = Literal["l2", "l1", "charbonnier"]
StageTarget = Literal["antialias", "published"]
Luminance = Literal["positive", "published"]

C1, C2 = 1e-4, 9e-4
"""(0.01 L)^2 and (0.03 L)^2 for images of the range L = 1."""

CHARBONNIER_EPSILON = 1e-3  # of images in [0, 1]; LapSRN (CVPR 2017, arXiv 1704.03915)


class _Blur(torch.autograd.Function):
    """Weighted means over windows of images padded by zeros; the weights are symmetric.

    It is its own adjoint. Sums of shifted images: no convolution, which a GPU may be set to round
    to ten bits, forwards or backwards.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weights: tuple[float, ...]) -> Tensor:
        ctx.weights = weights
        radius = len(weights) // 2
        for side, pad in ((-2, (0, 0, radius, radius)), (-1, (radius, radius))):
            length, padded = images.shape[side], F.pad(images, pad)
            images = torch.zeros_like(images)
            for k, weight in enumerate(weights):
                images.add_(padded.narrow(side, k, length), alpha=weight)
        return images

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Blur.apply(grad, ctx.weights), None


def ssim(
    sr: Tensor,
    target: Tensor,
    window: int = 19,
    sigma: float = 1.5,
    c1: float = C1,
    c2: float = C2,
    luminance: Luminance = "positive",
) -> Tensor:
    """Return the mean SSIM of every image, over channels and all pixels; differentiable.

    With d = sr - target, a pixel has (1 - m_d^2 / (m_s^2 + m_t^2 + C1)) (1 - v_d / (v_s + v_t +
    C2)), m and v the Gaussian means and biased variances of its window, zeros beyond the border
    included. This is the usual product of quotients: 1, with gradient 0, for equal images.

    Args:
        sr: `(B, C, H, W)`, near [0, 1] but not clamped.
        target: `(B, C, H, W)` in [0, 1].
        window: Side of the Gaussian window, odd; published: 19.
        sigma: Of the Gaussian, in pixels.
        c1: C1, for images of range 1.
        c2: C2, likewise.
        luminance: What counts where the first factor is negative, as the means differ in sign: that
            factor alone ("positive"), or the product, which is 1 for the negative ("published").

    Returns:
        `(B,)` in [-1, 1], at least float32, computed outside autocast.

    Raises:
        ValueError: Images of two shapes, an even window, a sigma that is not positive, or another
            `luminance`.
    """
    _check_pair(sr, target)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window={window} must be odd and positive, so that it has a middle")
    if not sigma > 0:
        raise ValueError(f"sigma={sigma} must be positive")
    if luminance not in ("positive", "published"):
        raise ValueError(f'luminance={luminance!r} must be "positive" or "published"')
    gauss = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-(window // 2), window // 2 + 1)]
    weights = tuple(weight / sum(gauss) for weight in gauss)
    with torch.autocast(sr.device.type, enabled=False):
        sr, target = at_least_float32(sr), at_least_float32(target)
        difference = sr - target
        maps = torch.stack([difference, target.to(difference), difference**2, sr**2 + target**2])
        mean_d, mean_t, square_d, squares = _Blur.apply(maps, weights)
        power = (mean_t + mean_d) ** 2 + mean_t**2
        # The rounding of outputs far from [0, 1] exceeds C2: hold what it can push out of bounds.
        variances, var_d = (x.clamp(min=0) for x in (squares - power, square_d - mean_d**2))
        structure = (1 - var_d / (variances + c2)).clamp(min=-1)
        brightness = 1 - mean_d**2 / (power + c1)
        similarity = brightness * structure
        if luminance == "positive":
            similarity = torch.where(brightness < 0, brightness, similarity)
        return similarity.mean(dim=(1, 2, 3))


def pixel_loss(sr: Tensor, target: Tensor, kind: PixelLoss = "l2") -> Tensor:
    """Return the mean over all values of d^2, |d| or sqrt(d^2 + 1e-6), d = sr - target.

    Args:
        sr: `(B, C, H, W)`.
        target: `(B, C, H, W)`.
        kind: "l2", "l1" or "charbonnier", whose least value is 1e-3.

    Returns:
        A scalar of at least float32.

    Raises:
        ValueError: Images of two shapes, or an unknown kind.
    """
    _check_pair(sr, target)
    difference = at_least_float32(sr) - at_least_float32(target)
    if kind == "l2":
        return (difference**2).mean()
    if kind == "l1":
        return difference.abs().mean()
    if kind == "charbonnier":
        return (difference**2 + CHARBONNIER_EPSILON**2).sqrt().mean()
    raise ValueError(f'kind={kind!r} must be "l2", "l1" or "charbonnier"')


def stage_target(target: Tensor, size: tuple[int, int], kind: StageTarget = "antialias") -> Tensor:
    """Return the true image at the size of a stage, clamped to [0, 1]; of its own size, itself.

    Args:
        target: `(B, C, H, W)` in [0, 1].
        size: Height and width of the stage, at most H and W.
        kind: Bicubic with antialiasing, pixels aligned as everywhere else ("antialias"), or without
            and corners aligned ("published").

    Returns:
        `(B, C, *size)`, at least float32 where it was resized.

    Raises:
        ValueError: A larger size, or an unknown kind.
    """
    if kind not in ("antialias", "published"):
        raise ValueError(f'kind={kind!r} must be "antialias" or "published"')
    whole = tuple(target.shape[-2:])
    if tuple(size) == whole:
        return target
    if size[0] > whole[0] or size[1] > whole[1]:
        raise ValueError(f"a stage of {tuple(size)} is larger than its target {whole}")
    published = kind == "published"
    resized = F.interpolate(
        at_least_float32(target),
        size=size,
        mode="bicubic",
        align_corners=published,
        antialias=not published,
    )
    return resized.clamp(0, 1)


def restoration_terms(
    stages: Sequence[Tensor],
    target: Tensor,
    *,
    pixel: PixelLoss = "l2",
    pixel_weight: float = 1.0,
    ssim_weight: float = 5.0,
    window: int = 19,
    stage_targets: StageTarget = "antialias",
    luminance: Luminance = "positive",
) -> dict[str, Tensor]:
    """Return the weighted terms, each averaged over the stages: their sum is the loss.

    It is least, -`ssim_weight`, where every stage equals its target (the Charbonnier term adds
    1e-3 of its weight).

    Args:
        stages: Outputs `(B, C, H_i, W_i)` that are judged, of any floating type.
        target: `(B, C, H, W)` in [0, 1], the true image of the highest resolution.
        pixel: Which pixel loss, and the name of its term.
        pixel_weight: Its weight; published: 1. A weight of 0 leaves a term out.
        ssim_weight: Weight of "ssim", which enters with a minus sign; published: 5.
        window: Of SSIM.
        stage_targets: How the target is brought to the size of a smaller stage.
        luminance: Of SSIM.

    Raises:
        ValueError: No stage, no weight, or what the terms raise.
    """
    if not stages:
        raise ValueError("no stage is given: the last output at least must be judged")
    if pixel_weight == 0 and ssim_weight == 0:
        raise ValueError("pixel_weight and ssim_weight are both 0: nothing is left to minimise")
    targets = [stage_target(target, (x.shape[-2], x.shape[-1]), stage_targets) for x in stages]
    pairs = list(zip(stages, targets, strict=True))
    terms: dict[str, Tensor] = {}
    if pixel_weight != 0:
        each = torch.stack([pixel_loss(sr, truth, pixel) for sr, truth in pairs])
        terms[pixel] = pixel_weight * each.mean()
    if ssim_weight != 0:
        each = torch.stack(
            [ssim(sr, truth, window, luminance=luminance).mean() for sr, truth in pairs]
        )
        terms["ssim"] = -ssim_weight * each.mean()
    return terms


def _check_pair(sr: Tensor, target: Tensor) -> None:
    if sr.ndim != 4 or sr.shape != target.shape:
        raise ValueError(
            "sr and target must have one shape (B, C, H, W), "
            f"got {tuple(sr.shape)} and {tuple(target.shape)}"
        )
