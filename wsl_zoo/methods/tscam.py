"""TS-CAM: semantic maps of a ViT's patches, coupled with what its class token attends to.

Paper: Gao et al., "TS-CAM: Token Semantic Coupled Attention Map for Weakly Supervised Object
Localization", ICCV 2021 (arXiv 2103.14862).
Loss: cross-entropy on s_k = mean_p M_k(p), M = conv3x3 of the patch tokens after the last norm.
Map: sum over blocks of the class token's attention to patch p, mean over heads, times M_y(p).

Deviations: the published code indexes the label's map wrongly for more than one image; here every
image has its own class. Attention is read in the map only, so that no loss passes through it.
Decisions: the convolution's bias is zero at the start; the position embedding is resampled for
other image sizes than the network's own, where the paper knows 224 only.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.encoders.attention import read_attention, require_class_token
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.precision import at_least_float32
from wsl_zoo.schedules import OptimizerName
from wsl_zoo.types import Batch, Output

HEAD_STD = 0.02  # DeiT's


class TSCAM(ZooModule):
    """ViT classifier by patches, whose class maps are weighted with the class token's attention.

    Trained with AdamW at one rate for all; the paper's is 5e-5 per 512 images in a batch, with
    weight decay 5e-4.

    Args:
        encoder: A ViT or DeiT with class token.
        optimizer: "sgd", "adam" or "adamw".
        lr: Learning rate.
        head_lr_factor: Factor of the rate for the head.
        weight_decay: Weight decay.
        **kwargs: See `ZooModule`.

    Raises:
        ValueError: The encoder has no class token.
    """

    def __init__(
        self,
        encoder: str = "deit_small_patch16_224",
        optimizer: OptimizerName = "adamw",
        lr: float = 5.0e-5,
        head_lr_factor: float = 1.0,
        weight_decay: float = 5.0e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            encoder=encoder,
            optimizer=optimizer,
            lr=lr,
            head_lr_factor=head_lr_factor,
            weight_decay=weight_decay,
            **kwargs,
        )
        require_class_token(self.encoder)
        self.head = patch_head(self.encoder.final_channels, self.num_classes)

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K), `map` (B, K, h, w) and `final` (B, D, h, w)."""
        final, attention = read_attention(self.encoder, batch["image"], rows=1)
        semantic = at_least_float32(self.head(final))
        coupled = semantic * token_attention(attention, final).detach()
        return Output(logits=semantic.mean(dim=(2, 3)), map=coupled, final=final)

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the cross-entropy, `ce`."""
        assert output.logits is not None
        return {"ce": F.cross_entropy(output.logits, batch["label"])}


def patch_head(channels: int, num_classes: int) -> nn.Conv2d:
    """A 3x3 convolution D -> K with truncated normal weights and no bias at the start."""
    head = nn.Conv2d(channels, num_classes, kernel_size=3, padding=1)
    nn.init.trunc_normal_(head.weight, std=HEAD_STD)
    assert head.bias is not None
    nn.init.zeros_(head.bias)
    return head


def token_attention(attention: list[Tensor], final: Tensor) -> Tensor:
    """Sum over blocks of the class token's attention `(B, 1 or N, N)` to patches: (B, 1, h, w)."""
    h, w = final.shape[-2:]
    total = torch.stack([weights[:, 0] for weights in attention]).sum(dim=0)
    return total[:, -h * w :].reshape(len(total), 1, h, w)
