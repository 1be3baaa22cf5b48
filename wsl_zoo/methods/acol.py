"""ACoL: a second classifier finds what is left of an object once the first one's region is erased.

Paper: Zhang et al., "Adversarial Complementary Learning for Weakly Supervised Object Localization",
CVPR 2018 (arXiv 1804.06962).
Loss: CE(s_A, y) + CE(s_B, y). Two equal heads, conv3x3 - ReLU - conv3x3 - ReLU - conv1x1 - mean:
A sees the features, B sees them where the attention, the min-max of A's map of class y without
gradient, is below delta.
Map: max(minmax M_A,y, minmax M_B,y), then min-max again; the logits are A's.

B's input depends on the class whose map is asked for, in evaluation too: the label's in the
published protocol, the predicted class's in prediction. So B runs when a map is read, not in
`forward`, and no map of the predicted class knows the label.

Deviations: a constant attention erases nothing (published code divides 0 by 0). A VGG's features
end with a 3x3 max-pooling of stride 1, as in the paper; its form there is `encoder="vgg16",
stride=8` without conv6. wsolevaluation has delta 0.7; the histology survey's 0.1 erases almost all.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.cams.normalize import normalize_map
from wsl_zoo.encoders import surgery
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.types import Batch, Output


class ACoL(ZooModule):
    """Classifier with two complementary heads.

    Args:
        delta: Attention in [0, 1] from which on features are erased for the second head; above 1
            both heads see the same. The paper's is 0.6.
        width: Channels inside the heads.
        **kwargs: See `ZooModule`.

    Raises:
        ValueError: `delta` is not positive: everything would be erased.
    """

    def __init__(self, delta: float = 0.6, width: int = 1024, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if delta <= 0:
            raise ValueError(f"delta={delta} must be positive")
        self.delta = delta
        self.pools = surgery.family(self.encoder.model) == "VGG"
        self.head = branch(self.encoder.final_channels, width, self.num_classes)
        self.second_head = branch(self.encoder.final_channels, width, self.num_classes)

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K) and `map` (B, K, h, w) of the first head, `final` (B, C, h, w)."""
        final = self.encoder.final(batch["image"])
        if self.pools:
            final = F.max_pool2d(final, kernel_size=3, stride=1, padding=1)
        maps = self.head(final).float()
        return Output(logits=maps.mean(dim=(2, 3)), map=maps, final=final)

    def second_map(self, output: Output, index: Tensor) -> Tensor:
        """Return the second head's maps (B, K, h, w) with the classes `index` (B,) erased."""
        assert output.final is not None
        assert output.map is not None
        rows = torch.arange(len(index), device=index.device)
        attention = normalize_map(output.map[rows, index].detach())
        return self.second_head(output.final * (attention < self.delta)[:, None]).float()

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the cross-entropies of the heads, `ce` and `ce_second`."""
        assert output.logits is not None
        second = self.second_map(output, batch["label"]).mean(dim=(2, 3))
        return {
            "ce": F.cross_entropy(output.logits, batch["label"]),
            "ce_second": F.cross_entropy(second, batch["label"]),
        }

    def class_map(self, batch: Batch, output: Output, index: Tensor) -> Tensor:
        """Return the larger of both heads' normalised maps (B, h, w), in [0, 1]."""
        assert output.map is not None
        rows = torch.arange(len(index), device=index.device)
        first, second = output.map[rows, index], self.second_map(output, index)[rows, index]
        return torch.maximum(normalize_map(first), normalize_map(second))


def branch(channels: int, width: int, num_classes: int) -> nn.Sequential:
    """A head up to its class maps, (B, C, h, w) -> (B, K, h, w); He (fan-out) weights, no bias."""
    head = nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, num_classes, kernel_size=1),
    )
    for layer in head:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return head
