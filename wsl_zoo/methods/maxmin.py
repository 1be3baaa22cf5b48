"""Max-min uncertainty: certain on the foreground, uncertain on the background, neither one empty.

Paper: Belharbi et al., "Deep Interpretable Classification and Weakly-Supervised Segmentation of
Histology Images via Max-Min Uncertainty", IEEE TMI 41(3), 2022 (arXiv 2011.07221); short form MIDL
2022 (arXiv 2205.05841).
Loss: CE(s, y) + CE(s+, y) + w_b R(p-) + w_s (1/B) sum_b [psi_t(-|M+_b|) + psi_t(-|M-_b|)], on x,
x M+ and x M-, M- = 1 - M+; R in bits is the cross-entropy to the uniform distribution (SEM) or the
negative entropy (EEM); sizes |M| are in pixels, psi_t is the extended log-barrier.
Map: M+ = sigmoid(w (u - sigma)), u the min-max normalised expected class map; M+ >= 0.5 is the
object. The class is that of x M+.

The mask stays in the graph: every term trains the localiser. w_b = 1e-7 is the published weight, so
small that R hardly acts; the size terms pull both regions to half of the image, which suits glands.

CAMELYON16, whose normal patches hold no region (`variant="camelyon16"`): the class is that of the
localiser's head, a second map head gives c, and M+ = sigmoid(w c), without min-max. Loss: 10 CE(s,
y) + mean_{p of normal} -ln(1 - sigmoid(c_p)) + w_s (1/B_t) sum_{tumor} psi_t(-|M+|). That is what
the published code trains: its SEM and EEM do not differ there. `variant="camelyon16_full"` is how
we read the paper, unverified: on tumor patches the loss of GlaS with that M+, on normal ones 10 CE
and the mean above.

Deviations: min-max over each image (published: over the batch, `mask_args={"scope": "batch"}`), and
sigma of a checkpoint's own epoch (published: of the last, `{"eval_sigma": "last"}`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.cams.pseudo_mask import upsample
from wsl_zoo.losses import SizeConstraint, negative_entropy, uniform_cross_entropy
from wsl_zoo.losses.size import areas
from wsl_zoo.methods.localizer import Localizer
from wsl_zoo.methods.negatives import mean_over, negative_class
from wsl_zoo.types import Batch, Output

Variant = Literal["glas", "camelyon16", "camelyon16_full"]
VARIANTS = ("glas", "camelyon16", "camelyon16_full")
REGULARIZERS = {"sem": uniform_cross_entropy, "eem": negative_entropy}
BARRIER = {"t": 5.0, "factor": 1.01, "t_max": 10.0}
MASKS: dict[str, dict[str, Any]] = {
    "glas": {"sharpness": 5.0, "sigma": 0.15, "sigma_step": 0.001, "sigma_max": 0.20},
    "camelyon16": {"sharpness": 5.0, "sigma": 0.0, "scope": "none"},
}
HEADS: dict[str, dict[str, Any]] = {
    "glas": {"kmax": 0.3, "dropout": 0.1},
    "camelyon16": {"modalities": 4, "kmax": 0.1, "dropout": 0.0},
}
MAP_MODALITIES = 5
CLASS_WEIGHT = 10.0
"""Of the classes' cross-entropy on CAMELYON16."""


class MaxMin(Localizer):
    """Localiser and classifier of two regions, certain and uncertain.

    Defaults are those of GlaS: ResNet-18, SGD from 0.001, times 0.9 every 10 of 80 epochs, batches
    of 4 crops of 416 pixels.

    Args:
        regularizer: "sem": cross-entropy of the background to the uniform distribution; "eem": its
            negative entropy.
        background_weight: Weight w_b of it; 0: the background is not looked at.
        size_weight: Weight w_s of the size terms.
        size_args: Arguments of their barrier (t, factor, t_max); default t from 5 to 10.
        variant: "glas", or for data whose negative class holds no region "camelyon16" (published
            code) or "camelyon16_full".
        head_args: As of `Localizer`; they change `{"modalities": 5, "kmin": 0, "alpha": 0,
            "kmax": 0.3, "dropout": 0.1}` (CAMELYON16: 4 modalities, kmax 0.1, no dropout).
        mask_args: Arguments of the mask; they change w = 5, sigma from 0.15 by 0.001 per epoch to
            0.20 (CAMELYON16: w = 5, no min-max).
        scale: Size of masked images relative to the image.
        encoder: As of `ZooModule`; the published one is a ResNet-18 with a stem of three layers.
        head_lr_factor: As of `ZooModule`, as the next three.
        step_size: See there.
        gamma: See there.
        min_lr: See there.
        **kwargs: See `Localizer`.

    Raises:
        ValueError: `regularizer` or `variant` is unknown.
    """

    def __init__(
        self,
        regularizer: Literal["sem", "eem"] = "sem",
        background_weight: float = 1.0e-7,
        size_weight: float = 1.0,
        size_args: dict[str, Any] | None = None,
        variant: Variant = "glas",
        head_args: dict[str, Any] | None = None,
        mask_args: dict[str, Any] | None = None,
        scale: float = 0.8,
        encoder: str = "resnet18",
        head_lr_factor: float = 1.0,
        step_size: int = 10,
        gamma: float = 0.9,
        min_lr: float = 1.0e-7,
        **kwargs: Any,
    ) -> None:
        if regularizer not in REGULARIZERS or variant not in VARIANTS:
            raise ValueError(
                f"regularizer={regularizer!r} must be one of {', '.join(REGULARIZERS)}, "
                f"variant={variant!r} one of {', '.join(VARIANTS)}"
            )
        data = variant.removesuffix("_full")
        head_args = HEADS[data] | (head_args or {})
        mask_args = MASKS[data] | (mask_args or {})
        super().__init__(
            head_args=head_args,
            mask_args=mask_args,
            scale=scale,
            encoder=encoder,
            head_lr_factor=head_lr_factor,
            step_size=step_size,
            gamma=gamma,
            min_lr=min_lr,
            **kwargs,
        )
        self.size = SizeConstraint(**BARRIER | (size_args or {}))
        self.negative_class: int | None = None
        """The class whose images hold no region; the data set's, known in `setup`."""
        if variant != "glas":
            self.map_head = self.wildcat(1, modalities=MAP_MODALITIES)
        if variant == "camelyon16":
            del self.classifier  # nothing is masked

    def setup(self, stage: str) -> None:
        """Ask the data set for its fully negative class, which CAMELYON16's variants need.

        Raises:
            ValueError: It has none.
        """
        super().setup(stage)
        variant = self.hparams["variant"]
        required = f"variant={variant!r}" if stage == "fit" and variant != "glas" else None
        data = getattr(self.trainer, "datamodule", None)
        self.negative_class = negative_class(data, required)

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K) and the raw `map` (B, 1, h, w).

        In `extra`, in training: `localizer` (B, K), `mask` M+ (B, H, W), and where they count
        `foreground` and `background` (B, K).
        """
        image, variant = batch["image"], self.hparams["variant"]
        if variant == "glas":
            logits, maps = self.locate(image)
        else:
            final = self.final(image)
            logits, maps = self.head(final)[0], self.map_head(final)[1][:, 0]
        extra: dict[str, Tensor] = {"localizer": logits}
        masked = variant == "glas" or (variant == "camelyon16_full" and self.training)
        if masked or self.training:
            extra["mask"] = self.mask_of(maps, image)
        if masked:
            extra["foreground"] = self.classify(image, extra["mask"])
        if masked and self.training and self.hparams["background_weight"]:
            extra["background"] = self.classify(image, 1 - extra["mask"])
        return Output(
            logits=extra["foreground"] if variant == "glas" else logits,
            map=maps[:, None],
            extra=extra,
        )

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return `localizer`; where they count `foreground`, `background`, `size`, `negative`."""
        assert output.map is not None
        h, label, extra = self.hparams, batch["label"], output.extra
        with torch.autocast(output.map.device.type, enabled=False):
            positive = self._positive(label)
            weight = self._class_weight(positive)
            ce = F.cross_entropy(extra["localizer"].float(), label, reduction="none")
            terms = {"localizer": (weight * ce).mean()}
            if "foreground" in extra:
                ce = F.cross_entropy(extra["foreground"].float(), label, reduction="none")
                terms["foreground"] = mean_over(ce, positive)
            if "background" in extra:
                uncertainty = REGULARIZERS[h["regularizer"]](extra["background"], base=2)
                terms["background"] = h["background_weight"] * mean_over(uncertainty, positive)
            if h["size_weight"]:
                terms["size"] = h["size_weight"] * mean_over(self.sizes(extra["mask"]), positive)
            if h["variant"] != "glas":
                scores = upsample(output.map[:, 0], batch["image"].shape[-2:])
                terms["negative"] = mean_over(F.softplus(scores).mean(dim=(1, 2)), ~positive)
        return terms

    def _positive(self, label: Tensor) -> Tensor:
        """Return which images hold a region, (B,) bool."""
        if self.hparams["variant"] == "glas" or self.negative_class is None:
            return torch.ones_like(label, dtype=torch.bool)
        return label.ne(self.negative_class)

    def _class_weight(self, positive: Tensor) -> Tensor | float:
        if self.hparams["variant"] == "camelyon16_full":
            return torch.where(positive, 1.0, CLASS_WEIGHT)
        return 1.0 if self.hparams["variant"] == "glas" else CLASS_WEIGHT

    def sizes(self, mask: Tensor) -> Tensor:
        """Return psi_t(-|M+|) + psi_t(-|M-|) of masks (B, H, W), (B,); on CAMELYON16 the first."""
        area = areas(torch.stack([mask, 1 - mask], dim=1))
        if self.hparams["variant"] == "camelyon16":
            area = area[:, :1]
        sizes: Tensor = self.size.barrier(-area).sum(dim=1)
        return sizes
