"""NL-CCAM: a classifier with non-local blocks, whose map combines the maps of all classes.

Paper: Yang et al., "Combinational Class Activation Maps for Weakly Supervised Object Localization",
WACV 2020 (arXiv 1910.05518).
Loss: cross-entropy on the logits. Map: M = sum_j h_j CAM_(j), classes sorted by falling logit,
h_j falling as a square from 1 at rank 1 to 0 at rank t, then to -1 at rank K. It follows the ranks
alone: an image has the same map for every target. With a `cam` other than "cam" that one is read.

Trunk: VGG16 with four poolings (stride 16), leaky ReLUs, and non-local blocks after poolings 2, 3
and 4 and at the end, which are identities at the start. In other networks the blocks follow all
levels but the first.

Deviations: the paper's t = 100 needs K > 100. For fewer classes t is K // 2, its proportion on
CUB (K = 200); two classes then give h = (1, 0), the CAM of the predicted class.
"""

from typing import Any

import torch
from torch import Tensor, nn

from wsl_zoo.cams import CAM
from wsl_zoo.encoders.nonlocal_blocks import attach_nonlocal
from wsl_zoo.methods.cam import CAMClassifier
from wsl_zoo.types import Batch, Output


class NLCCAM(CAMClassifier):
    """Non-local classifier with combinational class activation maps.

    Args:
        encoder: A convolutional timm network.
        stride: Output stride of the encoder.
        layers: What the non-local blocks follow, as named by `Encoder.layers`; None: the paper's
            places.
        reduction: Channels of a map per channel of queries and keys.
        negative_slope: Slope of the trunk's ReLUs below zero; 0 keeps them as they are.
        top: Rank t at which the weights cross zero; K // 2 where it is not below K.
        **kwargs: See `CAMClassifier`.
    """

    def __init__(
        self,
        encoder: str = "vgg16",
        stride: int | None = 16,
        layers: list[str] | None = None,
        reduction: int = 8,
        negative_slope: float = 0.2,
        top: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder=encoder, stride=stride, **kwargs)
        if negative_slope:
            leak(self.encoder, negative_slope)
        self.nonlocal_blocks = attach_nonlocal(self.encoder, layers, reduction)
        self.rank_weights: Tensor
        self.register_buffer("rank_weights", rank_weights(self.num_classes, top), persistent=False)

    def class_map(self, batch: Batch, output: Output, index: Tensor) -> Tensor:
        """Return the combinational maps (B, h, w); only other kinds of `cam` read `index`."""
        if type(self.class_maps) is not CAM:
            return super().class_map(batch, output, index)
        assert output.logits is not None
        assert output.map is not None
        ranks = output.logits.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        # Elementwise, so that autocast leaves it in float32.
        return (output.map * self.rank_weights[ranks][:, :, None, None]).sum(dim=1)


def rank_weights(num_classes: int, top: int) -> Tensor:
    """Weights h of the classes' maps by rank, float32.

    Args:
        num_classes: Number K of classes.
        top: Rank t, positive.

    Returns:
        `(K,)`: the square of (t - j) / (t - 1) up to rank j = t, then minus the square of
        (j - t - 1) / (K - t - 1).

    Raises:
        ValueError: `top` is not positive.
    """
    if top < 1:
        raise ValueError(f"top must be positive, got {top}.")
    t = top if top < num_classes else num_classes // 2
    above = torch.linspace(1, 0, t).square()
    return torch.cat([above, -torch.linspace(0, 1, num_classes - t).square()])


def leak(encoder: nn.Module, negative_slope: float) -> None:
    """Replace every ReLU by a leaky one, in place."""
    for name, module in list(encoder.named_modules()):
        if isinstance(module, nn.ReLU):
            encoder.set_submodule(name, nn.LeakyReLU(negative_slope))
