"""CDCL: target features are contrasted with the classifier's rows, which stand for the source.

Paper: Wang et al., "Cross-domain Contrastive Learning for Unsupervised Domain Adaptation", IEEE
TMM 2022 (arXiv 2106.05528), in its source-free form.
Loss: w sum_b -log softmax_k(cos(f_b, w_k) / tau)_{c_b}.

c are clusters of the features around the classifier's rows w_k. The head is frozen; its bias is
not used. Defaults are those of the histology study (CVPR Workshops 2024).

Deviation: batches are shuffled and augmented (there, in file order and not augmented).
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from wsl_zoo.losses import anchor_contrast
from wsl_zoo.methods.clustered import Clustered
from wsl_zoo.types import Batch, Output


class CDCL(Clustered):
    """Source-free adaptation by contrast between features and the rows of the classifier.

    Args:
        contrast_weight: Weight of the contrast.
        temperature: tau. The study: 0.04; defaults of its code 0.05, some scripts 0.5.
        reduction: "sum" over the batch (published, so that the weight goes with its size) or
            "mean" (1e-3 of the sum over 32 images is 0.032 of the mean).
        **kwargs: See `Clustered`.
    """

    needs_hypothesis = True

    def __init__(
        self,
        contrast_weight: float = 1.0e-3,
        temperature: float = 0.04,
        reduction: Literal["sum", "mean"] = "sum",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be positive")
        if reduction not in ("sum", "mean"):
            raise ValueError(f'reduction={reduction!r} must be "sum" or "mean"')

    def adaptation_loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return `contrast`."""
        assert output.embedding is not None
        h, trusted = self.hparams, self.looked_up("trusted", batch)
        per_image = anchor_contrast(
            output.embedding,
            self.head.anchors(),
            self.looked_up("label", batch),
            h["temperature"],
        )
        total = (per_image * trusted).sum()
        if h["reduction"] == "mean":
            total = total / trusted.sum().clamp(min=1)
        return {"contrast": h["contrast_weight"] * total}
