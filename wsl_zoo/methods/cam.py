"""CAM: a classifier with one linear layer on pooled features, whose weights read the map.

Paper: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016
(arXiv 1512.04150); with `head="gap"` Lin et al., "Network In Network", ICLR 2014 (arXiv 1312.4400).
Loss: cross-entropy on the logits. Map: M_k(p) = sum_c W_kc A_c(p), no bias, no ReLU, min-max.

Deviations: no background row. The published code can carry one (`support_background`) and then
reads the map of class y from row y instead of y + 1; here class k is row k.
"""

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.heads import GAP, WGAP
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.types import Batch, Output

HEADS = {"gap": GAP, "wgap": WGAP}


class CAMClassifier(ZooModule):
    """Image classifier with class activation maps.

    Args:
        head: "wgap" pools, then classifies (CAM); "gap" classifies every position, then pools. The
            same function of the features; GAP's map holds the bias.
        **kwargs: See `ZooModule`.
    """

    def __init__(self, head: Literal["wgap", "gap"] = "wgap", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if head not in HEADS:
            raise ValueError(f"head={head!r} must be one of {', '.join(HEADS)}")
        self.head = HEADS[head](self.encoder.final_channels, self.num_classes)

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K), `map` (B, K, h, w) and `final` (B, C, h, w)."""
        final = self.encoder.final(batch["image"])
        logits, maps = self.head(final)
        return Output(logits=logits, map=maps, final=final)

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the cross-entropy, `ce`."""
        assert output.logits is not None
        return {"ce": F.cross_entropy(output.logits, batch["label"])}
