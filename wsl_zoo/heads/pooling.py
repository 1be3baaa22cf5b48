"""Spatial pooling heads: from a feature map to class logits and class maps.

GAP (Lin et al., "Network In Network", ICLR 2014, arXiv 1312.4400): z = conv1x1(A), s_k =
mean_p z_k(p). WGAP (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR
2016, arXiv 1512.04150): s = W mean_p A(p) + b, maps M_k(p) = sum_c W_kc A_c(p). The two are the
same function, and their maps differ by the bias, which no normalised map sees.

Every head is called alike, `logits (B,K), maps (B,K,h,w) = head(features (B,C,h,w))`, and its maps
are raw scores: no ReLU, no normalisation. Weights are Xavier-uniform, biases zero. Unlike the
published WSOL code there is no background row: class k is row k.
"""

from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision tensors as float32, all others unchanged: sums over positions need it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class PoolingHead(nn.Module, ABC):
    """Base of the pooling heads.

    A subclass gives `forward` and, where it pools features before it scores them, `embed`.

    Args:
        in_channels: Channels C of the feature map.
        num_classes: Number of classes K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        if in_channels < 1 or num_classes < 1:
            raise ValueError(
                f"in_channels and num_classes must be positive, got {in_channels}, {num_classes}."
            )
        self.in_channels = in_channels
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Score a feature map.

        Args:
            features: `(B, C, h, w)`.

        Returns:
            `logits (B, K)` and raw class maps `(B, K, h, w)`, both at least float32.
        """

    def embed(self, features: Tensor) -> Tensor:
        """Pool features over positions: `(B, C, h, w) -> (B, C)`, at least float32."""
        half = features.dtype in (torch.float16, torch.bfloat16)
        return features.mean(dim=(2, 3), dtype=torch.float32 if half else features.dtype)

    def class_weights(self) -> Tensor | None:
        """Weights `(K, C)` if the maps are linear in the features, W A + b, else None."""
        return None

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"in_channels={self.in_channels}, num_classes={self.num_classes}"


class GAP(PoolingHead):
    """Class maps by a 1x1 convolution, then their mean: s_k = (1/N) sum_p z_k(p).

    Args:
        in_channels: Channels C of the feature map.
        num_classes: Number of classes K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.conv = xavier(nn.Conv2d(in_channels, num_classes, kernel_size=1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(B, K)` and the maps z `(B, K, h, w)` that they are the means of."""
        maps = at_least_float32(self.conv(features))
        return maps.mean(dim=(2, 3)), maps

    def class_weights(self) -> Tensor:
        """The convolution's weights as `(K, C)`."""
        return self.conv.weight[:, :, 0, 0]


class WGAP(PoolingHead):
    """Mean of the features, then a linear layer: s = W mean_p A(p) + b; maps W A without b.

    Args:
        in_channels: Channels C of the feature map.
        num_classes: Number of classes K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.fc = xavier(nn.Linear(in_channels, num_classes))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(B, K)` and class activation maps `(B, K, h, w)`: mean_p M_k(p) + b_k = s_k."""
        weight = self.fc.weight
        logits = at_least_float32(self.fc(self.embed(features).to(weight.dtype)))
        maps = F.conv2d(features, weight[:, :, None, None].to(features.dtype))
        return logits, at_least_float32(maps)

    def class_weights(self) -> Tensor:
        """The linear layer's weights `(K, C)`."""
        return self.fc.weight


def xavier(layer: Layer) -> Layer:
    """Xavier-uniform weights and zero bias, in place; gives the layer back."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
