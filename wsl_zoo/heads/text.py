"""What CLIP-IT puts on embeddings: a map from vision to text, and a classifier of text.

Paper: Karimian et al., "CLIP-IT: CLIP-based Pairing for Histology Images Classification",
arXiv 2504.16181. Slopes and widths are the published code's.
"""

from __future__ import annotations

from torch import nn

SLOPE = 0.1  # of the leaky ReLU, as published


class TextHead(nn.Sequential):
    """Linear(D, hidden), LeakyReLU(0.1), Linear(hidden, K): text features (B, D) to logits (B, K).

    Args:
        dim: Features D of a text.
        num_classes: Number K of classes.
        hidden: Width between the two layers; published: 512.

    Raises:
        ValueError: A width below 1.
    """

    def __init__(self, dim: int, num_classes: int, hidden: int = 512) -> None:
        if min(dim, num_classes, hidden) < 1:
            raise ValueError(
                f"dim={dim}, num_classes={num_classes}, hidden={hidden}: must be positive"
            )
        super().__init__(
            nn.Linear(dim, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, num_classes)
        )


def text_map(vision_dim: int, text_dim: int, layers: int = 1) -> nn.Module:
    """Return what guesses text features (B, D') from vision features (B, D).

    Args:
        vision_dim: D.
        text_dim: D'.
        layers: 1: Linear(D, D'); 2: Linear(D, D), LeakyReLU(0.1), Linear(D, D').

    Raises:
        ValueError: Another number of layers.
    """
    if layers not in (1, 2):
        raise ValueError(f"layers={layers} must be 1 or 2")
    last = nn.Linear(vision_dim, text_dim)
    if layers == 1:
        return last
    return nn.Sequential(nn.Linear(vision_dim, vision_dim), nn.LeakyReLU(SLOPE), last)
