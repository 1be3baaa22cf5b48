"""The pixel classifier of PixelCAM: foreground against background at every position of a map."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

HIDDEN = {0: (), 1: (4,), 3: (2, 4, 8)}
"""Divisors of the width of the hidden layers, by their number (published options)."""


class PixelHead(nn.Module):
    """Pixel logits a(p) of a feature map by 1x1 convolutions: `(B, C, h, w) -> (B, 2, h, w)`.

    Channel 0 is background, channel 1 foreground; two whatever the number of classes (the published
    code makes as many as classes, which is right for two).

    Args:
        in_channels: Channels C of the feature map.
        hidden: Hidden 1x1 layers with batch norm and ReLU: 0 (published), 1 (C/4) or 3 (C/2, C/4,
            C/8).
        batch_norm: Normalise the features first.
        orthogonal: Two fixed random orthonormal rows (QR) in the last layer; only its bias, and
            what stands before it, learns.

    Raises:
        ValueError: Another number of hidden layers.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: Literal[0, 1, 3] = 0,
        batch_norm: bool = False,
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        if hidden not in HIDDEN:
            raise ValueError(f"hidden={hidden} must be one of {', '.join(map(str, HIDDEN))}")
        layers: list[nn.Module] = [nn.BatchNorm2d(in_channels)] if batch_norm else []
        width = in_channels
        for divisor in HIDDEN[hidden]:
            narrow = max(1, in_channels // divisor)
            layers += [nn.Conv2d(width, narrow, 1), nn.BatchNorm2d(narrow), nn.ReLU()]
            width = narrow
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(width, 2, 1)
        if orthogonal:
            nn.init.orthogonal_(self.classifier.weight.view(2, width))
            self.classifier.weight.requires_grad = False

    def forward(self, features: Tensor) -> Tensor:
        """Classify every position.

        Args:
            features: `(B, C, h, w)`.

        Returns:
            Logits `(B, 2, h, w)`.
        """
        logits: Tensor = self.classifier(self.layers(features))
        return logits
