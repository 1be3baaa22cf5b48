"""SHOT: a source's hypothesis is kept, and target features are moved until they fit it.

Paper: Liang et al., "Do We Really Need to Access the Source Data? Source Hypothesis Transfer for
Unsupervised Domain Adaptation", ICML 2020 (arXiv 2002.08546).
Loss: w_ce CE_eps(z, c) + w_ent mean_b H(p_b) - w_div H(mean_b p_b).

c are centroid pseudo-labels (`wsl_zoo.losses.centroid_labels`), made anew at every refresh: class
centres weighted by the predictions, nearest centre, twice. The head is frozen, the encoder learns.

Defaults are those of the histology study (CVPR Workshops 2024), whose entropies are in bits:
0.3 and 0.1 there are 0.3 / ln 2 = 0.433 and 0.1 / ln 2 = 0.144 of natural ones, which these are.
The original: 1, 1, 0.3, no smoothing.

Deviations: pseudo-labels in their original form (features with a 1 appended, normalised; empty
classes do not compete); the histology code's form is an option. The original's bottleneck is not
added, as in the study. The diversity term asks for equally frequent classes, a wrong prior where
the target is imbalanced, and says little of a small batch: see `sync_diversity`.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.losses import centroid_labels, marginal_entropy, negative_entropy
from wsl_zoo.methods.adaptation import SourceFree
from wsl_zoo.types import Batch, Output


class SHOT(SourceFree):
    """Source-free adaptation by information maximisation and centroid pseudo-labels.

    Args:
        ce_weight: Weight of the cross-entropy with pseudo-labels; 0 is SHOT-IM.
        entropy_weight: Weight of the mean entropy of predictions, in nats.
        diversity_weight: Weight of the entropy of the mean prediction, in nats.
        label_smoothing: Of the cross-entropy, in [0, 1).
        metric: Distance to the centres: "cosine" or "euclidean".
        published_centres: The histology code's pseudo-labels: raw features, all classes compete.
        sync_diversity: Take the mean prediction over the batches of all processes.
        **kwargs: See `SourceFree`.
    """

    def __init__(
        self,
        ce_weight: float = 0.3,
        entropy_weight: float = 0.433,
        diversity_weight: float = 0.144,
        label_smoothing: float = 0.1,
        metric: Literal["cosine", "euclidean"] = "cosine",
        published_centres: bool = False,
        sync_diversity: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f'metric={metric!r} must be "cosine" or "euclidean"')
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1)")

    def assign(self, bank: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the centroid pseudo-labels, `label`."""
        h = self.hparams
        raw: dict[str, Any] = {"normalize": False, "append_one": False, "min_count": -1}
        form = raw if h["published_centres"] else {}
        labels = centroid_labels(
            bank["features"], bank["probabilities"], metric=h["metric"], **form
        )
        return {"label": labels}

    def adaptation_loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return `ce`, `entropy` and `diversity`."""
        assert output.logits is not None
        h, logits = self.hparams, output.logits.float()
        label, smoothing = self.looked_up("label", batch), h["label_smoothing"]
        probabilities = logits.softmax(dim=1)
        if h["sync_diversity"] and self._trainer is not None and self.trainer.world_size > 1:
            gathered = self.all_gather(probabilities, sync_grads=True)
            assert isinstance(gathered, Tensor)
            probabilities = gathered.flatten(0, 1)
        return {
            "ce": h["ce_weight"] * F.cross_entropy(logits, label, label_smoothing=smoothing),
            "entropy": -h["entropy_weight"] * negative_entropy(logits).mean(),
            "diversity": -h["diversity_weight"] * marginal_entropy(probabilities),
        }
