"""PixelCAM: image and pixel classification over one feature map, trained together.

Paper: Guichemerre et al., "PixelCAM: Pixel Class Activation Mapping for Histology Image
Classification and ROI Localization", MIDL 2025 (arXiv 2503.24135).
Loss: mean_B CE(z, y) + w_s mean_{labelled p of the batch} CE(a(p), Y(p)).
Map: softmax(a)_1, the same for every class; never min-max normalised.

Stage 1 trains a classifier. Stage 2, this class, starts from its encoder and image head
(`classifier`, `best_cl`), puts a 1x1 convolution q (`wsl_zoo.heads.PixelHead`) on the final map F,
of a CNN or of a ViT's patches, and trains all of it. The labels Y are `fg` foreground and `bg`
background pixels, drawn anew at every step from the class map of the true label that an earlier
model, `seeder`, shows. Of a data set's fully negative class (CAMELYON16: normal), an image gives
background pixels only, from everywhere.

Deviations: background pixels are uniform in the lowest part (see `PixelCAMSampler`). The last batch
of an epoch is not filled up with copies. The start is no candidate of `best_cl` and `best_loc`, as
it is there: stage 1 often classifies best, and a pixel head that has learnt nothing shows noise.
Where the pixels are labelled at full size, the logits are brought there before the softmax, as
published; the map of evaluation is the softmax brought there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.heads import PixelHead
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.methods.fcam import FCAM, Sampler
from wsl_zoo.methods.negatives import WithNegatives
from wsl_zoo.types import Batch, Output


class PixelCAM(FCAM, WithNegatives):
    """Classifier with a pixel classifier beside it, seeded by the class maps of an earlier model.

    Defaults are those of GlaS: SGD from 0.001, divided by ten every 250 of 1,000 epochs, batches of
    32, flips and colour jitter; head, pixel head and layer4 of a ResNet ten times faster.

    Args:
        low_res: Label pixels at the resolution of the final map (published for ViTs), to which the
            seeder's map is brought; False: at the size of the image, to which the pixel logits are
            brought (published for CNNs). Not with `crf_weight`, which needs the image's colours.
        detach_pixels: Keep the gradients of the pixel loss from the encoder.
        feature_dropout: Probability at which channels of the final map are dropped before the image
            head (the pixel head sees them all).
        negatives: As of `WithNegatives`; published with it on CAMELYON16.
        sampler: As of `FCAM`.
        crf_weight: As of `FCAM`; off in the paper, as are its other terms.
        size_weight: As of `FCAM`; off in the paper.
        decoder_args: Arguments of `wsl_zoo.heads.PixelHead`.
        freeze_classifier: As of `SecondStage`.
        lr: Rate of the trunk.
        step_size: Epochs between two decays.
        min_lr: Floor of the rate.
        **kwargs: See `FCAM`.

    Raises:
        ValueError: As of `FCAM`; `low_res` with `crf_weight`.
    """

    def __init__(
        self,
        low_res: bool = False,
        detach_pixels: bool = False,
        feature_dropout: float = 0.1,
        negatives: bool | None = None,
        sampler: Sampler = "pixelcam",
        crf_weight: float = 0.0,
        size_weight: float = 0.0,
        decoder_args: dict[str, Any] | None = None,
        freeze_classifier: bool = False,
        lr: float = 0.001,
        step_size: int = 250,
        min_lr: float = 1.0e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            negatives=negatives,
            sampler=sampler,
            crf_weight=crf_weight,
            size_weight=size_weight,
            decoder_args=decoder_args,
            freeze_classifier=freeze_classifier,
            lr=lr,
            step_size=step_size,
            min_lr=min_lr,
            **kwargs,
        )
        if low_res and crf_weight:
            raise ValueError(
                f"crf_weight={crf_weight} compares pixels of the image, and low_res=True labels "
                "those of the final map: use one of the two"
            )
        self.dropout = nn.Dropout2d(feature_dropout)

    def make_decoder(self, options: dict[str, Any]) -> nn.Module:
        """Return the pixel head."""
        return PixelHead(self.encoder.final_channels, **options)

    def frozen(self) -> Iterable[nn.Module]:
        """Return what stage 2 holds, and a pixel head that no term teaches beside a classifier."""
        taught = any(self.hparams[f"{term}_weight"] for term in self.terms)
        return [*super().frozen(), *([] if taught or self.freezes else [self.decoder])]

    def decode(self, decoder: nn.Module, output: Output, size: Sequence[int]) -> Tensor:
        """Return a pixel head's logits (B, 2, h, w), at the resolution of the final map."""
        logits: Tensor = decoder(output.final)
        return logits

    def param_groups(self) -> list[dict[str, Any]]:
        """Return trunk and head, whose rate the pixel head shares."""
        return ZooModule.param_groups(self)

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K), `map` a (B, 2, h, w) and `final` F (B, C, h, w)."""
        final = self.encoder.final(batch["image"])
        logits = self.head(self.dropout(final))[0]
        seen = final.detach() if self.hparams["detach_pixels"] else final
        output = Output(logits=logits, final=seen)
        output.map = self.decode(self.decoder, output, batch["image"].shape[-2:])
        output.final = final
        return output

    def everywhere_background(self, batch: Batch) -> Tensor | None:
        """Return the images of the fully negative class."""
        return None if self.negative_class is None else self.is_negative(batch)

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return `ce` (unless frozen) and `seed`, and the other terms of F-CAM that are on."""
        assert output.map is not None
        if not self.hparams["low_res"]:
            size = batch["image"].shape[-2:]
            full = F.interpolate(output.map, size, mode="bilinear", align_corners=False)
            output = replace(output, map=full)
        return super().loss(batch, output)
