"""Spatial pooling heads: from a feature map to class logits and class maps.

With z = conv1x1(A), N = h w positions p:
GAP (Lin et al., "Network In Network", ICLR 2014, arXiv 1312.4400): s_k = mean_p z_k(p).
WGAP (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, arXiv
1512.04150): s = W mean_p A(p) + b, maps M_k(p) = sum_c W_kc A_c(p). The same function as GAP, whose
maps differ by the bias, which no normalised map sees.
MaxPool (Oquab et al., "Is Object Localization for Free?", CVPR 2015): s_k = max_p z_k(p).
LogSumExp (Pinheiro and Collobert, "From Image-level to Pixel-level Labeling with Convolutional
Networks", CVPR 2015, arXiv 1411.6228): s_k = (1/r) log mean_p exp(r z_k(p)), here by `logsumexp` in
float32: the published code exponentiates first, which overflows in half precision from z = 1.1.
WILDCAT: see the class.

Every head is called alike, `logits (B,K), maps (B,K,h,w) = head(features (B,C,h,w))`, and its maps
are raw scores: no ReLU, no normalisation. Weights are Xavier-uniform, biases zero.

Deviation: class k is row k. The published WSOL code has a background row 0 before them, which no
loss of a classifier trains; `background=True` gives that layout (its logit and map are not
returned), so that old weights fit.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.precision import at_least_float32

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class PoolingHead(nn.Module, ABC):
    """Base of the pooling heads.

    A subclass gives `forward` and, where it pools features before it scores them, `embed`.

    Args:
        in_channels: Channels C of the feature map.
        num_classes: Number of classes K.
        background: Put a background row before the classes (K + 1 rows, class k in row k + 1).
    """

    def __init__(self, in_channels: int, num_classes: int, background: bool = False) -> None:
        super().__init__()
        if in_channels < 1 or num_classes < 1:
            raise ValueError(
                f"in_channels and num_classes must be positive, got {in_channels}, {num_classes}."
            )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.background = background
        self.rows = num_classes + int(background)

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
        """Weights `W (K, C)` if logits are W mean_p A(p) + b and maps W A (+ b), else None."""
        return None

    def anchors(self) -> Tensor:
        """Return the direction `(K, C)` of each class in the space of `embed`.

        The rows of the linear layer that scores pooled features; what source-free adaptation takes
        for the source's classes.

        Raises:
            ValueError: This head scores before it pools, so it has none.
        """
        weights = self.class_weights()
        if weights is None:
            raise ValueError(
                f"a {type(self).__name__} head has no anchors: use a head that pools features and "
                "then scores them (wgap, gap, mil)"
            )
        return weights

    def classify(self, embedding: Tensor) -> Tensor:
        """Score pooled features `(B, C)` as those of one position: logits `(B, K)`."""
        logits: Tensor = self(embedding[:, :, None, None])[0]
        return logits

    def of_classes(self, rows: Tensor, dim: int = 1) -> Tensor:
        """The classes' part of what the rows give: all but the background."""
        return rows.narrow(dim, 1, self.num_classes) if self.background else rows

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        sizes = f"in_channels={self.in_channels}, num_classes={self.num_classes}"
        return f"{sizes}, background=True" if self.background else sizes


class ConvHead(PoolingHead):
    """Class maps z by a 1x1 convolution, then a pooling of each map: subclasses give `pool`.

    Args:
        in_channels: Channels C of the feature map.
        num_classes: Number of classes K.
        background: Put a background row before the classes.
        modalities: Rows m per class, whose mean is the class's map; row k * m + j is class k's.
    """

    def __init__(
        self, in_channels: int, num_classes: int, background: bool = False, modalities: int = 1
    ) -> None:
        super().__init__(in_channels, num_classes, background)
        if modalities < 1:
            raise ValueError(f"modalities must be positive, got {modalities}.")
        self.modalities = modalities
        self.conv = xavier(nn.Conv2d(in_channels, self.rows * modalities, kernel_size=1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(B, K)` and the maps z `(B, K, h, w)` that they are pooled from."""
        maps = at_least_float32(self.conv(features))
        if self.modalities > 1:
            batch, _, h, w = maps.shape
            maps = maps.reshape(batch, self.rows, self.modalities, h, w).mean(dim=2)
        maps = self.of_classes(maps)
        return self.pool(maps), maps

    @abstractmethod
    def pool(self, maps: Tensor) -> Tensor:
        """Pool maps over positions: `(B, K, h, w) -> (B, K)`."""


class GAP(ConvHead):
    """Class maps by a 1x1 convolution, then their mean: s_k = (1/N) sum_p z_k(p).

    Args:
        in_channels: Channels C of the feature map.
        num_classes: Number of classes K.
        background: Put a background row before the classes.
    """

    def __init__(self, in_channels: int, num_classes: int, background: bool = False) -> None:
        super().__init__(in_channels, num_classes, background)

    def pool(self, maps: Tensor) -> Tensor:
        """Mean over positions."""
        return maps.mean(dim=(2, 3))

    def class_weights(self) -> Tensor:
        """The convolution's weights as `(K, C)`."""
        return self.of_classes(self.conv.weight[:, :, 0, 0], dim=0)


class WGAP(PoolingHead):
    """Mean of the features, then a linear layer: s = W mean_p A(p) + b; maps W A without b.

    Args:
        in_channels: Channels C of the feature map.
        num_classes: Number of classes K.
        background: Put a background row before the classes.
    """

    def __init__(self, in_channels: int, num_classes: int, background: bool = False) -> None:
        super().__init__(in_channels, num_classes, background)
        self.fc = xavier(nn.Linear(in_channels, self.rows))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(B, K)` and class activation maps `(B, K, h, w)`: mean_p M_k(p) + b_k = s_k."""
        logits = self.fc(self.embed(features).to(self.fc.weight.dtype))
        weight = self.class_weights()
        maps = F.conv2d(features, weight[:, :, None, None].to(features.dtype))
        return at_least_float32(self.of_classes(logits)), at_least_float32(maps)

    def class_weights(self) -> Tensor:
        """The linear layer's weights `(K, C)`."""
        return self.of_classes(self.fc.weight, dim=0)


class MaxPool(ConvHead):
    """Class maps by a 1x1 convolution, then their maximum: s_k = max_p z_k(p).

    One position per class and image gets a gradient; of equal ones the first.

    Args:
        in_channels: Channels C of the feature map.
        num_classes: Number of classes K.
        background: Put a background row before the classes.
    """

    def __init__(self, in_channels: int, num_classes: int, background: bool = False) -> None:
        super().__init__(in_channels, num_classes, background)

    def pool(self, maps: Tensor) -> Tensor:
        """Maximum over positions."""
        return maps.flatten(2).max(dim=2).values  # `amax` would share the gradient among equals


class LogSumExp(ConvHead):
    """Class maps by a 1x1 convolution, then a soft maximum: s_k = (1/r) log mean_p exp(r z_k(p)).

    Args:
        in_channels: Channels C of the feature map.
        num_classes: Number of classes K.
        r: Sharpness, positive: towards 0 the mean, towards infinity the maximum.
        background: Put a background row before the classes.
    """

    def __init__(
        self, in_channels: int, num_classes: int, r: float = 10.0, background: bool = False
    ) -> None:
        super().__init__(in_channels, num_classes, background)
        if not 0 < r < float("inf"):
            raise ValueError(f"r must be positive and finite, got {r}.")
        self.r = r

    def pool(self, maps: Tensor) -> Tensor:
        """Soft maximum over positions, between their mean and their maximum."""
        z = maps.flatten(2)
        return (torch.logsumexp(self.r * z, dim=2) - math.log(z.shape[2])) / self.r


class WILDCAT(ConvHead):
    """Means of the highest and of the lowest scores of class maps with several modalities.

    Durand et al., "WILDCAT: Weakly Supervised Learning of Deep ConvNets for Image Classification,
    Pointwise Localization and Segmentation", CVPR 2017. z_k is the mean of the class's m rows and
    s_k = 1/2 (mean of the k+ highest z_k + alpha * mean of the k- lowest z_k). Without lowest
    scores (k- = 0) s_k is the first mean, not halved.

    A number of positions, `kmax` or `kmin`, is a fraction of N if it lies between 0 and 1 (rounded
    half to even, as Python does), all N if it is 1.0, one if it is the integer 1, and min(k, N)
    above. k+ is at least 1.

    Deviation: `min_term="reference"` is what the published survey ran: its code computes the second
    term and drops it, so that s_k is the mean of the k+ highest alone.

    Args:
        in_channels: Channels C of the feature map.
        num_classes: Number of classes K.
        modalities: Rows m per class.
        kmax: Number or fraction of highest scores, positive.
        kmin: Number or fraction of lowest scores; 0: none; None: as `kmax`.
        alpha: Weight of the lowest scores.
        dropout: Probability by which sorted scores are dropped in training, in [0, 1).
        min_term: "paper" or "reference".
        background: Put a background row before the classes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        modalities: int = 5,
        kmax: float = 0.5,
        kmin: float | None = 0.1,
        alpha: float = 0.6,
        dropout: float = 0.0,
        min_term: Literal["paper", "reference"] = "paper",
        background: bool = False,
    ) -> None:
        super().__init__(in_channels, num_classes, background, modalities)
        if kmax <= 0 or (kmin is not None and kmin < 0):
            raise ValueError(f"kmax must be positive and kmin >= 0, got {kmax} and {kmin}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        if min_term not in ("paper", "reference"):
            raise ValueError(f'min_term must be "paper" or "reference", got {min_term!r}.')
        self.kmax = kmax
        self.kmin = kmax if kmin is None else kmin
        self.alpha = alpha
        self.dropout = dropout
        self.min_term = min_term

    def pool(self, maps: Tensor) -> Tensor:
        """Mean of the highest and weighted mean of the lowest scores."""
        z = maps.flatten(2).sort(dim=2, descending=True).values
        z = F.dropout(z, self.dropout, self.training)
        highest = max(1, positions(self.kmax, z.shape[2]))
        lowest = positions(self.kmin, z.shape[2])
        score = z[..., :highest].mean(dim=2)
        if lowest == 0 or self.min_term == "reference":
            return score
        return (score + self.alpha * z[..., -lowest:].mean(dim=2)) / 2


def positions(k: float, count: int) -> int:
    """How many of `count` positions WILDCAT's `k` means: a fraction, all, one or a number."""
    if k < 1:
        return round(k * count)
    if k == 1 and isinstance(k, float):
        return count
    return min(int(k), count)


def xavier(layer: Layer) -> Layer:
    """Xavier-uniform weights and zero bias, in place; gives the layer back."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
