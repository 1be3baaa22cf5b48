"""Attention-based multiple-instance learning over the positions of a feature map.

Ilse et al., "Attention-based Deep Multiple Instance Learning", ICML 2018, arXiv 1802.04712, with
one attention per class as in the surveys of WSOL in histology: a_k = softmax_p e_k(p) with
e = U tanh(V A), gated e = U (tanh(V A) * sigmoid(G A)); v_k = sum_p a_k(p) A(p);
s_k = w_k . v_k + b_k. The map of class k is its attention: where the class was looked for, no
signed evidence; it can be high where s_k is low.

Deviations: U has no bias, which no softmax over positions would see; s_k is computed as
sum_p a_k(p) (w_k . A(p)) + b_k, the same number, so that no `(B, K, C)` tensor is made.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.heads.pooling import PoolingHead, xavier
from wsl_zoo.precision import at_least_float32


class AttentionMIL(PoolingHead):
    """Attention over positions, one per class, and a linear score of what each attends to.

    Args:
        in_channels: Channels C of the feature map.
        num_classes: Number of classes K.
        hidden: Channels d of the attention's hidden layer.
        gated: Multiply the hidden layer by a sigmoid gate of its own.
        background: Put a background row before the classes, in attention and scores.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden: int = 128,
        gated: bool = False,
        background: bool = False,
    ) -> None:
        super().__init__(in_channels, num_classes, background)
        if hidden < 1:
            raise ValueError(f"hidden must be positive, got {hidden}.")
        self.hidden = xavier(nn.Conv2d(in_channels, hidden, kernel_size=1))
        self.gate = xavier(nn.Conv2d(in_channels, hidden, kernel_size=1)) if gated else None
        self.attention = xavier(nn.Conv2d(hidden, self.rows, kernel_size=1, bias=False))
        self.fc = xavier(nn.Linear(in_channels, self.rows))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(B, K)` and attention maps `(B, K, h, w)`, each of which sums to 1."""
        hidden = torch.tanh(self.hidden(features))
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(features))
        energy = at_least_float32(self.of_classes(self.attention(hidden)))
        attention = energy.flatten(2).softmax(dim=2).view_as(energy)
        weight = self.of_classes(self.fc.weight, dim=0)[:, :, None, None]
        scores = at_least_float32(F.conv2d(features, weight.to(features.dtype)))
        bias = at_least_float32(self.of_classes(self.fc.bias, dim=0))
        return (attention * scores).sum(dim=(2, 3)) + bias, attention

    def anchors(self) -> Tensor:
        """Return the linear layer's weights `(K, C)`.

        What is clustered beside them is the mean of the features (`embed`), not what a class
        attends to, as in the published code.
        """
        return self.of_classes(self.fc.weight, dim=0)
