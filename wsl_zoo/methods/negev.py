"""NEGEV: F-CAM for histology, with background seeds and images that hold no region at all.

Paper: Belharbi et al., "Negative Evidence Matters in Interpretable Histology Image Classification",
MIDL 2022 (arXiv 2201.02445).
Loss: w_s mean_{labelled p of B+} CE(Z_p, Y_p) + w_n mean_{p of B-} -ln(1 - S_1p).
Map: S_1, as F-CAM's.

B- are the images of the fully negative class, which the data set knows (CAMELYON16: normal; GlaS:
none, both grades hold glands), B+ the others. Seeds are drawn from the whole map, foreground with
a probability proportional to the CAM, background almost evenly. CRF and size constraint exist as
options of F-CAM; the paper has them off.

Deviations: two means, as the published code has it (the paper writes sums), apart from each other:
pooled, the seeds would drown in the pixels of the negatives.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.losses import SEED_IGNORE
from wsl_zoo.methods.fcam import FCAM, Sampler
from wsl_zoo.methods.negatives import WithNegatives, mean_over
from wsl_zoo.types import Batch, Output


class NEGEV(FCAM, WithNegatives):
    """Decoder trained on positive and negative evidence of a frozen classifier.

    Defaults are those of GlaS with a ResNet-50: SGD from 0.1, divided by ten every 250 of 1,000
    epochs, batches of 32, flips and colour jitter.

    Args:
        negatives: Use the images of the data set's fully negative class as background. None: where
            there is such a class; True refuses data without one; False: seed them as all others.
        negative_weight: Weight of their term.
        sampler: As of F-CAM.
        crf_weight: As of F-CAM; off in the paper.
        size_weight: As of F-CAM; off in the paper.
        lr: Rate of the decoder.
        step_size: Epochs between two decays.
        min_lr: Floor of the rate.
        **kwargs: See `FCAM`.
    """

    def __init__(
        self,
        negatives: bool | None = None,
        negative_weight: float = 1.0,
        sampler: Sampler = "probability",
        crf_weight: float = 0.0,
        size_weight: float = 0.0,
        lr: float = 0.1,
        step_size: int = 250,
        min_lr: float = 1.0e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            negatives=negatives,
            sampler=sampler,
            crf_weight=crf_weight,
            size_weight=size_weight,
            lr=lr,
            step_size=step_size,
            min_lr=min_lr,
            **kwargs,
        )

    def seeds(self, batch: Batch, output: Output) -> Tensor:
        """Draw the seeds of F-CAM, none in negative images."""
        negative = self.is_negative(batch)[:, None, None]
        return super().seeds(batch, output).masked_fill(negative, SEED_IGNORE)

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return F-CAM's terms, and `negative` where there is such a class."""
        terms = super().loss(batch, output)
        if self.negative_class is not None:
            assert output.map is not None
            terms["negative"] = self.hparams["negative_weight"] * negative_loss(
                output.map.float(), self.is_negative(batch)
            )
        return terms


def negative_loss(logits: Tensor, negative: Tensor) -> Tensor:
    """Mean of -ln(1 - S_1) = softplus(Z_1 - Z_0) over all pixels of negative images; 0 of none.

    Args:
        logits: (B, 2, H, W) float.
        negative: (B,) bool.
    """
    per_image = F.softplus(logits[:, 1] - logits[:, 0]).mean(dim=(1, 2))
    return mean_over(per_image, negative)
