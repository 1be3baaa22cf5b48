"""Features in place of images: an MLP with the interface of `Encoder`, its maps of one position.

Rows of tables and pre-computed embeddings meet the same heads as images do. The features come as
they are; what they are standardised by, the mean and deviation of the training rows, are buffers,
so that a checkpoint needs nothing beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from wsl_zoo.encoders.vector import VectorEncoder


class MLPEncoder(VectorEncoder):
    """(x - mean) / std, then linear layers with ReLU; missing cells (NaN) count as the mean.

    Args:
        in_features: Features D of a row.
        hidden: Width of each layer; none: the standardised features are the result.
        dropout: After each layer.

    Attributes:
        final_channels: Features C of the result.

    Raises:
        ValueError: A width below 1.
    """

    kind = "features"
    center: Tensor
    scale: Tensor

    def __init__(
        self, in_features: int, hidden: Sequence[int] = (64,), dropout: float = 0.0
    ) -> None:
        nn.Module.__init__(self)  # there is no timm network to build
        widths = [in_features, *hidden]
        if min(widths) < 1:
            raise ValueError(f"in_features={in_features}, hidden={list(hidden)}: must be positive")
        self.name = "mlp"
        self.in_chans = in_features
        self.channels = list(hidden) or [in_features]
        self.strides = [1] * len(self.channels)
        self.level_modules = [str(i) for i in range(len(hidden))]
        self.final_channels = widths[-1]
        self.mean: tuple[float, ...] = ()
        self.std: tuple[float, ...] = ()
        self.register_buffer("center", torch.zeros(in_features))
        self.register_buffer("scale", torch.ones(in_features))
        self.model = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout))
                for a, b in zip(widths, hidden, strict=False)
            )
        )

    def standardize(self, features: Tensor) -> None:
        """Take mean and deviation from training rows; a constant feature keeps its scale.

        Args:
            features: `(N, D)`, NaN where a cell is missing.

        Raises:
            ValueError: Another number of features.
        """
        self._check(features)
        known = ~features.isnan()
        count = known.sum(dim=0).clamp(min=1)
        features = features.double().nan_to_num()
        mean = features.sum(dim=0) / count
        spread = ((features - mean) * known).square().sum(dim=0).div(count).sqrt()
        self.center.copy_(mean)
        self.scale.copy_(torch.where(spread > 1e-8 * mean.abs().clamp(min=1e-8), spread, 1.0))

    def embed(self, features: Tensor) -> Tensor:
        """Return the result (..., C) of features (..., D)."""
        embedded: Tensor = self.model(self._standardized(features))
        return embedded

    def _standardized(self, features: Tensor) -> Tensor:
        return ((features - self.center) / self.scale).nan_to_num(nan=0.0)

    def forward(self, image: Tensor, levels: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Return the result (B, C, 1, 1) of rows (B, D), and that of each layer."""
        self._check(image)
        x = self._standardized(image)[:, :, None, None]
        taken = []
        for layer in self.model.children():
            x = layer(x.flatten(1))[:, :, None, None]
            taken.append(x)
        return x, (taken or [x]) if levels else []

    def load_weights(self, weights: str | Path | None = None) -> None:
        """Refuse: there are no published weights of it.

        Raises:
            ValueError: Always.
        """
        raise ValueError('encoder="mlp" has no weights to start from: leave pretrained and weights')

    def _check(self, image: Tensor) -> None:
        if image.ndim != 2 or image.shape[1] != self.in_chans:
            raise ValueError(f"mlp reads rows (B, {self.in_chans}), got {tuple(image.shape)}.")
