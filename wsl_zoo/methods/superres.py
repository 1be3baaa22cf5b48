"""Super-resolution: an image of low resolution in, one of 2, 4 or 8 times the side out.

Paper: Belharbi et al., "SR-CACO-2: A Dataset for Confocal Fluorescence Microscopy Image
Super-Resolution", NeurIPS 2024 Datasets and Benchmarks (arXiv 2406.09168).
Loss: mean (y' - y)^2 - 5 SSIM(y', y) with images in [0, 1], a window of 19 x 19 pixels; the mean
over all that a network gives (every level of progressive ones, every step of recurrent ones).

One method for the sixteen networks of the benchmark, which stand in `networks/`, and for
interpolation, which has nothing to learn. Networks whose levels end at lower resolutions are judged
there against the target made smaller.

Deviations (each has its published form): SSIM gives no credit for the negative of an image, in
which networks without a skip from the image may be caught (`ssim_luminance="published"` does); a
level's target is made smaller by antialiased bicubic interpolation (`stage_targets="published"`:
without antialiasing, its corners aligned, which moves its pixels); the rate halves every 30 epochs
(`schedule_interval="step"`: every 30 steps, as the published code does, which is at 1e-4 after
210); an image without a region of interest is left out of the metrics of regions
(`empty_roi="floor"`: it counts 498 dB).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from wsl_zoo import networks
from wsl_zoo.cams.activation import evaluating
from wsl_zoo.data.pixels import read_pixels
from wsl_zoo.losses.superres import restoration_terms
from wsl_zoo.methods.training import Trained
from wsl_zoo.metrics.restored import RestorationMetrics
from wsl_zoo.networks import SuperResolution
from wsl_zoo.schedules import OptimizerName
from wsl_zoo.tiling import enlarge_tiled
from wsl_zoo.types import Batch, Output, Target

GREY_LEVELS = 255  # thresholds of regions are grey levels of 8 bits, whatever the file's type


class SuperResolver(Trained):
    """A super-resolution network with its loss, metrics and prediction of whole images.

    Optimiser defaults are the benchmark's: SGD with Nesterov momentum 0.9, rate 0.01, halved every
    30 down to 1e-4, no weight decay.

    Args:
        network: A class of `wsl_zoo.networks`: "SRCNN", "SwinIR", ... or "Interpolation".
        network_args: Its further arguments, e.g. `{"kind": "bicubic"}`.
        scale: s: 2, 4 or 8, that of the data.
        in_chans: Channels C (the command line takes it from the data).
        pixel_loss: "l2", "l1" or "charbonnier", the mean over pixels.
        pixel_weight: Its weight; 0: without.
        ssim_weight: Weight of -SSIM; 0: without.
        ssim_window: Side of SSIM's window in the loss, odd.
        ssim_luminance: "published" also gives credit for the negative of an image; see `ssim`.
        stage_targets: How the target of a lower resolution is made: "antialias" or "published".
        border: Pixels at high resolution that metrics leave out at each side; None: s, published.
        roi_thresholds: Regions of interest hold the pixels of the target that reach a grey level,
            of 255; metrics of regions are the mean over these levels. None: no regions.
        empty_roi: An image without region is left out ("skip") or counts as published ("floor").
        tile: Side of the windows, in pixels of low resolution, that evaluation and prediction cut a
            larger image into; None: whole images.
        tile_overlap: Pixels that windows have in common; outside of these a result is that of the
            whole image if no pixel further away than this counts.
        optimizer: "sgd", "adam" or "adamw".
        lr: Learning rate.
        momentum: SGD's.
        weight_decay: Weight decay.
        schedule: "step", "cosine" or "constant".
        schedule_interval: The rate changes per "epoch" or "step".
        step_size: Epochs or steps between two decays.
        gamma: Factor of a decay.
        min_lr: Floor of the rate.
        seed: Fixes what is drawn in a training step, with the epoch and the step.

    Raises:
        ValueError: There is no such network, or an option is out of its range.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        network: str = "SRCNN",
        network_args: dict[str, Any] | None = None,
        scale: int = 2,
        in_chans: int = 1,
        pixel_loss: Literal["l2", "l1", "charbonnier"] = "l2",
        pixel_weight: float = 1.0,
        ssim_weight: float = 5.0,
        ssim_window: int = 19,
        ssim_luminance: Literal["positive", "published"] = "positive",
        stage_targets: Literal["antialias", "published"] = "antialias",
        border: int | None = None,
        roi_thresholds: list[int] | None = [4, 5, 6, 7, 8, 9, 10],  # noqa: B006  (never changed)
        empty_roi: Literal["skip", "floor"] = "skip",
        tile: int | None = None,
        tile_overlap: int = 16,
        optimizer: OptimizerName = "sgd",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        schedule: Literal["step", "cosine", "constant"] = "step",
        schedule_interval: Literal["epoch", "step"] = "epoch",
        step_size: int = 30,
        gamma: float = 0.5,
        min_lr: float = 1.0e-4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["num_classes", "class_names"])  # what the data say
        if pixel_weight < 0 or ssim_weight < 0 or not pixel_weight + ssim_weight:
            raise ValueError(
                f"pixel_weight={pixel_weight} and ssim_weight={ssim_weight} must not be negative, "
                "nor both 0"
            )
        if ssim_window < 1 or ssim_window % 2 == 0:
            raise ValueError(f"ssim_window={ssim_window} must be odd")
        if border is not None and border < 0:
            raise ValueError(f"border={border} must not be negative")
        if roi_thresholds is not None and not roi_thresholds:
            raise ValueError("roi_thresholds=[]: one at least, or None for no regions")
        if tile is not None and not 0 <= tile_overlap < tile:
            raise ValueError(f"tile_overlap={tile_overlap} must be in [0, tile={tile})")
        if schedule_interval not in ("epoch", "step"):
            raise ValueError(f'schedule_interval={schedule_interval!r} must be "epoch" or "step"')
        self.scale = scale
        self.network = _network(network)(scale, in_chans, **(network_args or {}))
        self.border = scale if border is None else border

    # Training ----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that the data are of this scale.

        Raises:
            ValueError: They are of another, or no pairs of images.
        """
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        found = getattr(data, "scale", self.scale)
        if found != self.scale:
            what = "hold no pairs of images" if found is None else f"are of scale {found}"
            raise ValueError(
                f"the model is of scale {self.scale}, {type(data).__name__} {what}: "
                "model.scale and data.scale must be the same"
            )

    def forward(self, batch: Batch) -> Output:
        """Return `sr` (B, C, s h, s w), not clamped, and in `extra` what came before it."""
        image = batch["image"]
        tile = self.hparams["tile"]
        if not self.training and tile is not None and max(image.shape[-2:]) > tile:
            return Output(sr=torch.stack([self._enlarged(one) for one in image]))
        *before, last = self.network.stages(image)
        return Output(sr=last, extra={f"stage_{i}": stage for i, stage in enumerate(before)})

    def _enlarged(self, image: Any, out: np.ndarray | None = None) -> Any:
        """Return (C, s h, s w) of one image (C, h, w), in windows if there is a `tile`."""
        tile, overlap = self.hparams["tile"], self.hparams["tile_overlap"]
        if tile is None:
            tile, overlap = max(image.shape[-2:]), 0
        return enlarge_tiled(
            self.network, image, self.scale, tile=tile, overlap=overlap, device=self.device, out=out
        )

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the terms of pixels and of SSIM, each the mean over the stages."""
        assert output.sr is not None
        h = self.hparams
        return restoration_terms(
            [*output.extra.values(), output.sr],
            batch["target"],
            pixel=h["pixel_loss"],
            pixel_weight=h["pixel_weight"],
            ssim_weight=h["ssim_weight"],
            window=h["ssim_window"],
            stage_targets=h["stage_targets"],
            luminance=h["ssim_luminance"],
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Train; interpolation has nothing to learn, and backward does nothing."""
        total = super().training_step(batch, batch_idx)
        return total if total.requires_grad else total.requires_grad_()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser and its schedule; nothing where there is nothing to learn."""
        if not any(p.requires_grad for p in self.parameters()):
            return None
        return super().configure_optimizers()

    # Evaluation and prediction -----------------------------------------------------------------

    @property
    def selects_by(self) -> tuple[str, Literal["min", "max"]]:
        """Metric that `best_cl` is chosen by: PSNR, of regions where there are thresholds."""
        return "psnr" if self.hparams["roi_thresholds"] is None else "roi_psnr", "max"

    def new_metrics(self, thresholds: Any = None) -> RestorationMetrics:  # type: ignore[override]
        """Make the metrics of a split."""
        regions = self.hparams["roi_thresholds"] is not None
        return RestorationMetrics(self.border, regions, self.hparams["empty_roi"])

    def update_metrics(  # type: ignore[override]
        self, metrics: RestorationMetrics, batch: Batch, output: Output, valid: Tensor | None
    ) -> None:
        """Add a batch: results as a file would hold them."""
        assert output.sr is not None
        sr, target = (rounded(x, batch["levels"]) for x in (output.sr, batch["target"]))
        metrics.update(sr, target, self.regions(target), valid)

    def regions(self, target: Tensor) -> Tensor | None:
        """Return the regions (B, R, H, W) of a target (B, C, H, W): any channel that bright."""
        thresholds = self.hparams["roi_thresholds"]
        if thresholds is None:
            return None
        bright = (GREY_LEVELS * target.amax(dim=1, keepdim=True)).round()
        return bright >= torch.tensor(thresholds, device=target.device).view(1, -1, 1, 1)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return `sr` (B, C, s h, s w) in [0, 1]."""
        output = self(batch)
        assert output.sr is not None
        return {
            "sr": output.sr.float().clamp(0, 1),
            "levels": batch["levels"],
            "valid": batch.get("valid"),
            "path": batch.get("path"),
        }

    def predict_image(self, image: str | Path | np.ndarray, target: Target = "pred") -> np.ndarray:
        """Enlarge one image, in windows if it is larger than `tile`.

        Args:
            image: A file of 8 or 16 bits, or an array (h, w) or (h, w, C), uint8 or uint16.
            target: Not used.

        Returns:
            (s h, s w) or (s h, s w, C), of the image's type.

        Raises:
            DataError: The file is not a readable image.
            TypeError: `image` is neither a file nor such an array.
        """
        channels = self.hparams["in_chans"]
        flat = isinstance(image, np.ndarray) and image.ndim == 2
        if isinstance(image, str | Path):
            pixels = read_pixels(Path(image), channels)
            flat = channels == 1
        else:
            pixels = _planes(image, channels)
        out = np.empty(
            (channels, self.scale * pixels.shape[1], self.scale * pixels.shape[2]), pixels.dtype
        )
        with evaluating(self):
            self._enlarged(pixels, out)
        return out[0] if flat else out.transpose(1, 2, 0)


def rounded(image: Tensor, levels: Tensor) -> Tensor:
    """Return images (B, C, H, W) clamped to [0, 1] and rounded to the grey levels of their files.

    Args:
        image: Any floating type.
        levels: (B,), 255 or 65535.
    """
    levels = levels.view(-1, 1, 1, 1)
    return (image.double().clamp(0, 1) * levels).round() / levels


def _network(name: str) -> type[SuperResolution]:
    found = getattr(networks, name, None)
    if not (isinstance(found, type) and issubclass(found, SuperResolution)) or name == (
        SuperResolution.__name__
    ):
        known = sorted({n for n in networks.__all__ if n[0].isupper()} - {SuperResolution.__name__})
        raise ValueError(f"network={name!r}: there are {', '.join(known)}")
    return found


def _planes(image: object, channels: int) -> np.ndarray:
    """Return (C, h, w) of an array (h, w) or (h, w, C)."""
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image is a file or a numpy array, got {type(image).__name__}")
    planes = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
    if planes.ndim != 3 or len(planes) != channels or image.dtype not in (np.uint8, np.uint16):
        shape = "(h, w)" if channels == 1 else f"(h, w, {channels})"
        raise TypeError(
            f"an image array must be {shape} of uint8 or uint16, got {image.shape} {image.dtype}"
        )
    return planes
