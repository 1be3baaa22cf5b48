"""Pixel seeds: a few foreground and background pixels drawn from a class map at every step.

F-CAM (Belharbi et al., WACV 2022, arXiv 2109.07069), NEGEV (Belharbi et al., MIDL 2022), TCAM
(Belharbi et al., WACV 2023) and CoLo-CAM (Belharbi et al., Pattern Recognition 162, 2025) train a
decoder by L = mean_{b,p : Y_bp labelled} CE(Z_bp, Y_bp) on seeds Y that are renewed for every image
at every step. The papers write a sum over the labelled pixels; this is the mean, as their code's.

Samplers by name, with N = H W pixels, `fg` and `bg` draws per image, all without replacement:

"threshold" (F-CAM): foreground uniform in {J > Otsu(J)}, J = trunc(255 C), eroded; background
uniform in the floor(min_p N) lowest activations.
"probability" (NEGEV): foreground in proportion to C, background by `bg_law`, in the whole image.
"probability_negative_area": likewise, background in the floor(min_p N) lowest activations.
"pixelcam" (PixelCAM): foreground as "probability", background uniform in the floor(min_p N) lowest
activations.
"uniform": foreground uniform in the floor(max_p card(ROI)) highest activations of a region of
interest, background as "threshold".
"weighted" (TCAM, CoLo-CAM): likewise, foreground in proportion to C.

Deviations from the published code: the background weights of `probability_negative_area` go with
their own pixels (there they stand in sorted order beside candidates in raster order); an erosion
that would empty a region is left out in batches too; all images are drawn at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.losses.draws import Draw, draw_uniform, draw_weighted
from wsl_zoo.losses.heating import make_heating
from wsl_zoo.losses.regions import component, erode, filled_box, highest, lowest, otsu_threshold

SEED_IGNORE = -255
"""Label of the pixels that are no seeds (that of masks is 255)."""

EPSILON = 1e-6  # added to the probabilities' weights; published code
WEIGHTED_EPSILON = 1e-8  # likewise to the weights of `weighted`


def seed_loss(logits: Tensor, seeds: Tensor) -> Tensor:
    """Return the cross-entropy at the seeds: the mean over all labelled pixels of the batch.

    Args:
        logits: `(B, K, H, W)`.
        seeds: `(B, H, W)` int64, classes or `SEED_IGNORE`.

    Returns:
        A scalar of at least float32; 0 with a graph if no pixel is labelled.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    total = F.cross_entropy(logits, seeds, ignore_index=SEED_IGNORE, reduction="sum")
    return total / (seeds != SEED_IGNORE).sum().clamp(min=1)


class SeedSampler(nn.Module, ABC):
    """Base of the samplers: `sampler(cam, generator) -> seeds`.

    A subclass says where the seeds of either kind are drawn. Around every drawn pixel a square is
    labelled, and what both kinds label is ignored. Everything is float32 without gradients,
    outside autocast, on the map's device, and waits for it only where the subclass says so.

    Args:
        fg: Foreground pixels drawn per image; fewer if the region has fewer.
        bg: Background pixels drawn per image.
        ksz: Odd side of the square that a drawn pixel labels. Published: 1 + 1 draws with 3
            (F-CAM, NEGEV, TCAM), 1000 + 1000 with 3 (CoLo-CAM).
        min_p: Fraction of the image, in [0, 1], where its background may be: the lowest
            activations, of equal ones the first in raster order.

    Raises:
        ValueError: Numbers outside these ranges.
    """

    constant_maps = False
    """Whether maps of one value get seeds."""

    def __init__(self, fg: int = 1, bg: int = 1, ksz: int = 3, min_p: float = 0.1) -> None:
        super().__init__()
        if fg < 0 or bg < 0:
            raise ValueError(f"fg={fg} and bg={bg} must not be negative")
        require_odd(ksz=ksz)
        require_fraction(min_p=min_p)
        self.fg, self.bg, self.ksz, self.min_p = fg, bg, ksz, min_p

    @torch.no_grad()
    def forward(self, cam: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw seeds.

        Args:
            cam: `(B, H, W)` in [0, 1], any float type; NaN counts as 0, and what is outside the
                range as its ends. B may be 0.
            generator: Source of randomness, on any device; None: the global one.

        Returns:
            `(B, H, W)` int64: 1 foreground, 0 background, `SEED_IGNORE`.

        Raises:
            ValueError: A map of another shape.
        """
        if cam.ndim != 3:
            raise ValueError(f"cam must be (B, H, W), got shape {tuple(cam.shape)}")
        with torch.autocast(cam.device.type, enabled=False):
            cam = cam.float().nan_to_num(nan=0.0).clamp_(0, 1).contiguous()
            active = cam.new_ones((), dtype=torch.bool)
            if not self.constant_maps:
                active = (cam.amax(dim=(1, 2)) > cam.amin(dim=(1, 2)))[:, None]
            seeds = torch.full_like(cam, SEED_IGNORE, dtype=torch.int64).flatten(1)
            if self.bg:
                self._label(seeds, self.background(cam, generator), active, cam, label=0)
            if self.fg:
                self._label(seeds, self.foreground(cam, generator), active, cam, label=1)
            return seeds.view(cam.shape)

    @abstractmethod
    def foreground(self, cam: Tensor, generator: torch.Generator | None) -> Draw:
        """Draw foreground pixels of maps `(B, H, W)`."""

    def background(self, cam: Tensor, generator: torch.Generator | None) -> Draw:
        """Draw background pixels of maps `(B, H, W)`: uniformly in `low_region`."""
        region = self.low_region(cam).flatten(1)
        return draw_uniform(region, self.bg, share(self.min_p, cam), generator)

    @torch.no_grad()
    def everywhere(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw background alone, uniformly in whole images: seeds of a shape `(B, H, W)`."""
        seeds = torch.full(tuple(shape), SEED_IGNORE, device=generator.device).flatten(1)
        region = torch.ones_like(seeds, dtype=torch.bool)
        draw = draw_uniform(region, self.bg, region.shape[1], generator)
        flat = torch.zeros(tuple(shape), device=generator.device)
        self._label(seeds, draw, region[:, :1], flat, label=0)
        return seeds.view(flat.shape)

    def low_region(self, cam: Tensor) -> Tensor:
        """Mark the floor(min_p N) lowest activations of maps `(B, H, W)`."""
        return lowest(cam.flatten(1), share(self.min_p, cam)).view(cam.shape)

    def _label(self, seeds: Tensor, draw: Draw, active: Tensor, cam: Tensor, label: int) -> None:
        """Write a label into the squares around drawn pixels; over the other label: ignore."""
        index, found = draw
        if index.shape[1] == 0:
            return
        height, width = cam.shape[1:]
        found = found & active
        index = torch.where(found, index, index[:, :1])  # the first draw once more: found or none
        reach = torch.arange(self.ksz, device=cam.device) - self.ksz // 2
        # A square that sticks out is clamped to pixels of its own.
        y = ((index // width)[..., None] + reach).clamp(0, height - 1)
        x = ((index % width)[..., None] + reach).clamp(0, width - 1)
        place = (y[..., :, None] * width + x[..., None, :]).flatten(1)
        there = seeds.gather(1, place)
        value = torch.where((there == SEED_IGNORE) | (there == label), label, SEED_IGNORE)
        seeds.scatter_(1, place, torch.where(found[:, :1], value, there))


class ThresholdSampler(SeedSampler):
    """F-CAM's: uniform above Otsu's threshold and in the lowest part of the image.

    The foreground region is {J > tau} with J = trunc(255 C) and Otsu's tau kept within [1, 254],
    eroded; a map of one value has no seeds.

    Args:
        fg: Foreground pixels drawn per image.
        bg: Background pixels drawn per image.
        ksz: Odd side of the square that a drawn pixel labels.
        min_p: Lowest fraction of the image where the background is drawn; F-CAM: 0.1.
        erode_k: Odd side of the square by which the region is eroded; published: 11.
        erode_iter: How often; an erosion that would empty the region is left out. F-CAM: 1.
    """

    def __init__(
        self,
        fg: int = 1,
        bg: int = 1,
        ksz: int = 3,
        min_p: float = 0.1,
        erode_k: int = 11,
        erode_iter: int = 1,
    ) -> None:
        super().__init__(fg, bg, ksz, min_p)
        require_odd(erode_k=erode_k)
        self.erode_k, self.erode_iter = erode_k, erode_iter

    def high_region(self, cam: Tensor) -> Tensor:
        """Mark the foreground region of maps `(B, H, W)`."""
        levels = (cam * 255).int()
        threshold = otsu_threshold(levels).clamp(1, 254).int()
        return erode(levels > threshold[:, None, None], self.erode_k, self.erode_iter)

    def foreground(self, cam: Tensor, generator: torch.Generator | None) -> Draw:
        """Draw uniformly in `high_region`."""
        region = self.high_region(cam).flatten(1)
        return draw_uniform(region, self.fg, region.shape[1], generator)


class ProbabilitySampler(SeedSampler):
    """NEGEV's: all pixels, the foreground in proportion to the activation; constant maps too.

    Foreground weights C + 1e-6. Background weights, "code": 1 - (C + 1e-6) / sum (C + 1e-6), which
    over 50,176 pixels is almost uniform; "inverse": 1 - C + 1e-6, what the text lets one expect.

    Args:
        fg: Foreground pixels drawn per image.
        bg: Background pixels drawn per image.
        ksz: Odd side of the square that a drawn pixel labels.
        bg_law: "code" or "inverse".
        heat: Option `Heating.heat` of the foreground's weights; None: not heated.
        heat_min: See `Heating`.
        uniform_epoch: See `Heating`.
    """

    constant_maps = True

    def __init__(
        self,
        fg: int = 1,
        bg: int = 1,
        ksz: int = 3,
        bg_law: Literal["code", "inverse"] = "code",
        heat: float | None = None,
        heat_min: float = 1.0,
        uniform_epoch: int | None = None,
    ) -> None:
        super().__init__(fg, bg, ksz)
        if bg_law not in ("code", "inverse"):
            raise ValueError(f"bg_law={bg_law!r} must be 'code' or 'inverse'")
        self.bg_law = bg_law
        self.heating = make_heating(heat, heat_min, uniform_epoch)

    def foreground(self, cam: Tensor, generator: torch.Generator | None) -> Draw:
        """Draw in proportion to the (heated) activation."""
        return draw_weighted(self.heating(cam) + EPSILON, self.fg, generator)

    def background(self, cam: Tensor, generator: torch.Generator | None) -> Draw:
        """Draw by `bg_law`."""
        return draw_weighted(self.low_weights(cam), self.bg, generator)

    def low_weights(self, cam: Tensor) -> Tensor:
        """Return the background's weights of maps `(B, H, W)`."""
        if self.bg_law == "inverse":
            return 1 + EPSILON - cam
        weights = cam + EPSILON
        return weights.div_(weights.sum(dim=(1, 2), keepdim=True)).neg_().add_(1)


class ProbabilityNegativeAreaSampler(ProbabilitySampler):
    """NEGEV's option: as `ProbabilitySampler`, the background within the lowest part of the image.

    Args:
        min_p: Lowest fraction of the image, in [0, 1], where the background is drawn.
        **kwargs: Arguments of `ProbabilitySampler`.
    """

    def __init__(self, min_p: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_fraction(min_p=min_p)
        self.min_p = min_p

    def low_weights(self, cam: Tensor) -> Tensor:
        """Return the background's weights of maps `(B, H, W)`: zero outside `low_region`."""
        return super().low_weights(cam) * self.low_region(cam)


class PixelCAMSampler(ProbabilitySampler):
    """PixelCAM's: foreground in proportion to the activation, background uniform in the lowest.

    The published background weights 1 - C / sum C are uniform to about 1e-5 at 224 x 224, and stand
    beside the wrong pixels (indices in sorted order, candidates in raster order): they are uniform.

    Args:
        fg: Foreground pixels drawn per image; searched over 1, 5, 10, 20.
        bg: Background pixels drawn per image.
        ksz: Odd side of the square that a drawn pixel labels.
        min_p: Lowest fraction of the image where the background is drawn. Published: 0.2 is what
            ran (the option that asks for 0.4 is ignored there).
        heat: Option `Heating.heat` of the foreground's weights; None: not heated.
        heat_min: See `Heating`.
        uniform_epoch: See `Heating`.
    """

    def __init__(
        self,
        fg: int = 5,
        bg: int = 5,
        ksz: int = 1,
        min_p: float = 0.2,
        heat: float | None = None,
        heat_min: float = 1.0,
        uniform_epoch: int | None = None,
    ) -> None:
        super().__init__(fg, bg, ksz, heat=heat, heat_min=heat_min, uniform_epoch=uniform_epoch)
        require_fraction(min_p=min_p)
        self.min_p = min_p

    def background(self, cam: Tensor, generator: torch.Generator | None) -> Draw:
        """Draw uniformly in `low_region`."""
        return SeedSampler.background(self, cam, generator)


class UniformSampler(SeedSampler):
    """TCAM's and CoLo-CAM's with uniform foreground: in the highest part of a region of interest.

    The blobs are {J >= Otsu(J)}, J = trunc(255 C): the threshold itself, the highest level of the
    lower class, is among them (a map of two values is one blob). Of the region, `roi` and
    `roi_shape`, eroded if asked for, the floor(max_p card) highest activations are candidates, of
    equal ones the first in raster order.

    Args:
        fg: Foreground pixels drawn per image.
        bg: Background pixels drawn per image.
        ksz: Odd side of the square that a drawn pixel labels.
        min_p: Lowest fraction of the image where the background is drawn; TCAM, CoLo-CAM: 0.1.
        max_p: Highest fraction of the region where the foreground is; TCAM: 0.6, CoLo-CAM: 0.7.
        roi: "all" blobs (TCAM), the "largest" 4-connected one (CoLo-CAM), or the one of
            "high_density", of highest mean activation. The last two wait for the device: components
            are found on the CPU.
        roi_shape: "mask": the blobs themselves (TCAM); "bbox": the filled bounding box (CoLo-CAM),
            which is all but the last row and column for "all". See `regions.filled_box`.
        roi_min_size: Fraction of the image: a densest blob below it is replaced by the largest one
            (our default; the published runs do not use this choice).
        erode_k: Odd side of the square by which the region is eroded; published: 11.
        erode_iter: How often; published: 0.
    """

    def __init__(
        self,
        fg: int = 1,
        bg: int = 1,
        ksz: int = 3,
        min_p: float = 0.1,
        max_p: float = 0.6,
        roi: Literal["all", "largest", "high_density"] = "all",
        roi_shape: Literal["mask", "bbox"] = "mask",
        roi_min_size: float = 0.05,
        erode_k: int = 11,
        erode_iter: int = 0,
    ) -> None:
        super().__init__(fg, bg, ksz, min_p)
        if roi not in ("all", "largest", "high_density"):
            raise ValueError(f"roi={roi!r} must be 'all', 'largest' or 'high_density'")
        if roi_shape not in ("mask", "bbox"):
            raise ValueError(f"roi_shape={roi_shape!r} must be 'mask' or 'bbox'")
        require_fraction(max_p=max_p, roi_min_size=roi_min_size)
        require_odd(erode_k=erode_k)
        self.max_p = max_p
        self.roi: Literal["all", "largest", "high_density"] = roi
        self.roi_shape, self.roi_min_size = roi_shape, roi_min_size
        self.erode_k, self.erode_iter = erode_k, erode_iter

    def region_of_interest(self, cam: Tensor) -> Tensor:
        """Mark the region of interest of maps `(B, H, W)`."""
        levels = (cam * 255).int()
        region = levels >= otsu_threshold(levels).int()[:, None, None]
        if self.roi != "all":
            min_area = self.roi_min_size * cam.shape[1] * cam.shape[2]
            region = component(region, cam, self.roi, min_area)
        if self.roi_shape == "bbox":
            region = filled_box(torch.ones_like(region) if self.roi == "all" else region)
        return erode(region, self.erode_k, self.erode_iter)

    def high_region(self, cam: Tensor) -> Tensor:
        """Mark the candidates of maps `(B, H, W)`."""
        region = self.region_of_interest(cam).flatten(1)
        area = region.sum(dim=1, dtype=torch.int32)
        counts = (area.double() * self.max_p).int()
        marked = highest(cam.flatten(1), region, counts, share(self.max_p, cam))
        return marked.view(cam.shape)

    def foreground(self, cam: Tensor, generator: torch.Generator | None) -> Draw:
        """Draw uniformly in `high_region`."""
        region = self.high_region(cam).flatten(1)
        return draw_uniform(region, self.fg, share(self.max_p, cam), generator)


class WeightedSampler(UniformSampler):
    """TCAM's and CoLo-CAM's with a weighted foreground: weights C + 1e-8 in the same region.

    Args:
        heat: Option `Heating.heat` of the weights; None: not heated.
        heat_min: See `Heating`.
        uniform_epoch: See `Heating`.
        **kwargs: Arguments of `UniformSampler`.
    """

    def __init__(
        self,
        heat: float | None = None,
        heat_min: float = 1.0,
        uniform_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.heating = make_heating(heat, heat_min, uniform_epoch)

    def foreground(self, cam: Tensor, generator: torch.Generator | None) -> Draw:
        """Draw in `high_region` in proportion to the (heated) activation."""
        weights = (self.heating(cam) + WEIGHTED_EPSILON) * self.high_region(cam)
        return draw_weighted(weights, self.fg, generator)


def share(fraction: float, cam: Tensor) -> int:
    """Return how many pixels the fraction of an image of maps `(B, H, W)` is, rounded down."""
    return int(fraction * (cam.shape[1] * cam.shape[2]))


def require_odd(**sizes: int) -> None:
    """Raise ValueError for a size that is not odd and positive."""
    for name, size in sizes.items():
        if size < 1 or size % 2 == 0:
            raise ValueError(f"{name}={size} must be odd and positive")


def require_fraction(**fractions: float) -> None:
    """Raise ValueError for a number outside [0, 1]."""
    for name, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise ValueError(f"{name}={fraction} must lie in [0, 1]")


SAMPLERS: dict[str, type[SeedSampler]] = {
    "threshold": ThresholdSampler,
    "probability": ProbabilitySampler,
    "probability_negative_area": ProbabilityNegativeAreaSampler,
    "pixelcam": PixelCAMSampler,
    "uniform": UniformSampler,
    "weighted": WeightedSampler,
}
"""Samplers by name."""
