"""SFDA-DE: the source's feature distribution is estimated, and target features are drawn to it.

Paper: Ding et al., "Source-Free Domain Adaptation via Distribution Estimation", CVPR 2022
(arXiv 2204.11257).
Loss: w sum_j CDD_j over groups j of the batch.

The features of the target images are clustered around the classifier's rows w_k. Of each cluster
the nearest are trusted; their mean mu_k and deviation sigma_k give a surrogate of the source's
class, N(|mu_k| w_k / |w_k|, diag((gamma sigma_k)^2)). In a batch, groups of three images per class
meet three draws of each surrogate: their contrastive domain discrepancy (Kang et al., CVPR 2019;
`wsl_zoo.losses.contrastive_domain_discrepancy`), over the features and the predictions of the
frozen head, becomes small. Defaults are those of the histology study (CVPR Workshops 2024).

Deviations: batches are shuffled and augmented (there in file order, so that of sorted files every
batch holds one class and the loss is 0); the bandwidth of different classes looks at these classes;
one forward pass a step; a batch with fewer than two complete classes gives 0 with a graph.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from wsl_zoo.losses import class_gaussians, contrastive_domain_discrepancy
from wsl_zoo.methods.clustered import Clustered
from wsl_zoo.types import Batch, Output

PER_CLASS = 3  # images and draws per class of a group; published code


class SFDE(Clustered):
    """Source-free adaptation by an estimate of the source's distribution of features.

    Args:
        discrepancy_weight: Weight of the discrepancy. The study: 1e-3; default of its code 1e-2,
            later scripts 1.
        gamma: Factor of the standard deviations of the surrogate; default of the code: 1.
        nearest: As of `Clustered`; default of the code: 1.
        group_reduction: "sum" over the groups of a batch (published) or their "mean".
        **kwargs: See `Clustered`.
    """

    def __init__(
        self,
        discrepancy_weight: float = 1.0e-3,
        gamma: float = 1.5,
        nearest: float = 0.8,
        group_reduction: Literal["sum", "mean"] = "sum",
        **kwargs: Any,
    ) -> None:
        super().__init__(nearest=nearest, **kwargs)
        if gamma < 0:
            raise ValueError(f"gamma={gamma} must not be negative")
        if group_reduction not in ("sum", "mean"):
            raise ValueError(f'group_reduction={group_reduction!r} must be "sum" or "mean"')

    def assign(self, bank: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `label`, `trusted`, and the surrogate: `mean`, `std` (K, D), `usable` (K,)."""
        found = super().assign(bank)
        surrogate = class_gaussians(
            bank["features"],
            found["label"],
            found["trusted"],
            self.head.anchors().detach().cpu(),
            self.hparams["gamma"],
        )
        return found | {
            "mean": surrogate.mean.float(),
            "std": surrogate.std.float(),
            "usable": surrogate.usable,
        }

    def adaptation_loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return `discrepancy`."""
        assert output.embedding is not None
        embedding = output.embedding.float()
        label = self.looked_up("label", batch)
        trusted = self.looked_up("trusted", batch) & self.pseudo["usable"][label]
        members = [(trusted & (label == k)).nonzero()[:, 0] for k in range(self.num_classes)]
        present = [k for k, rows in enumerate(members) if len(rows) >= PER_CLASS]
        if len(present) < 2:
            return {"discrepancy": 0.0 * embedding.sum()}
        groups = min(len(members[k]) for k in present) // PER_CLASS
        rows = torch.stack([members[k][: groups * PER_CLASS] for k in present])
        # (classes, groups, 3, D) -> (groups, classes, 3, D)
        grouped = embedding[rows].reshape(len(present), groups, PER_CLASS, -1)
        target = grouped.transpose(0, 1)
        mean, std = (self.pseudo[name][present][:, None] for name in ("mean", "std"))
        source = mean + std * torch.randn(target.shape, device=mean.device)
        per_group = contrastive_domain_discrepancy(
            [source, self._predictions(source)], [target, self._predictions(target)]
        )
        mean_of = self.hparams["group_reduction"] == "mean"
        total = per_group.mean() if mean_of else per_group.sum()
        return {"discrepancy": self.hparams["discrepancy_weight"] * total}

    def _predictions(self, features: Tensor) -> Tensor:
        """Return the frozen head's probabilities (..., K) of pooled features (..., D)."""
        logits = self.head.classify(features.flatten(0, -2))
        return logits.softmax(dim=1).reshape(*features.shape[:-1], -1)
