"""What SFDA-DE and CDCL share: clusters of target features, started at the classifier's rows."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from wsl_zoo.losses import anchored_clusters, nearest_fraction
from wsl_zoo.losses.seeds import require_fraction
from wsl_zoo.methods.adaptation import SourceFree
from wsl_zoo.types import Batch, Output


class Clustered(SourceFree):
    """Base of methods whose pseudo-labels are clusters around the anchors of the frozen head.

    Args:
        nearest: Share in [0, 1] of each cluster that is trusted: the nearest to its centre.
        tolerance: Clusters are done when their centres move by less, in mean cosine distance.
        **kwargs: See `SourceFree`; the head must have anchors ("wgap", "gap", "mil").

    Raises:
        ValueError: The head has none.
    """

    def __init__(self, nearest: float = 1.0, tolerance: float = 1.0e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_fraction(nearest=nearest)
        self.head.anchors()  # refuses a head without, here and not when training has begun

    @abstractmethod
    def adaptation_loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the method's weighted terms."""

    def assign(self, bank: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the `label` of each image's cluster, and which images are `trusted`."""
        h = self.hparams
        anchors = self.head.anchors().detach().cpu()
        clusters = anchored_clusters(bank["features"], anchors, h["tolerance"])
        trusted = nearest_fraction(
            clusters.labels, clusters.distances, h["nearest"], self.num_classes
        )
        return {"label": clusters.labels, "trusted": trusted}
