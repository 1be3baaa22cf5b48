"""SAT: a location token that queries which patches the last blocks of a ViT may attend to.

Paper: Wu et al., "Spatial-Aware Token for Weakly Supervised Object Localization", ICCV 2023
(arXiv 2303.10438).
Loss: CE(s, y) + |mean_b mean_p m - a| + mean(n (1 - n)), n the 3x3 mean of m.
Map: m(p) = sigmoid(mean over heads of q_loc k_p^T / sqrt(d)), mean over the masked blocks; one for
all classes.

In the masked blocks, the last quarter of all (the last 3 of 12), attention after the softmax is
multiplied by m along its columns and not renormalised: patches with m = 0 reach no token.

Decisions: the logits are a linear layer on the class token. m covers all columns, the class and
location tokens' too; loss and map read its patches. Both constraints judge the map, that is the
mean over blocks, not every block by itself. The 3x3 mean counts real neighbours only at the border.
The location token has no position embedding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.encoders.attention import (
    attend_by,
    attention_scores,
    forward_tokens,
    require_class_token,
)
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.precision import at_least_float32
from wsl_zoo.schedules import OptimizerName
from wsl_zoo.types import Batch, Output

TOKEN_STD = 0.02  # DeiT's


class SAT(ZooModule):
    """ViT classifier whose last blocks see only what a location token lets through.

    Args:
        masked_blocks: How many of the last blocks are masked; None: a quarter of all, at least one.
        area: Mean of the map that is aimed at, a in [0, 1]; depends on the data and is searched for
            (Murtaza et al., WACV 2025, draw it uniformly).
        area_weight: Weight of the area term.
        binary_weight: Weight of the term that drives the map to 0 and 1.
        encoder: A ViT or DeiT with class token.
        optimizer: "sgd", "adam" or "adamw".
        lr: Learning rate.
        head_lr_factor: Factor of the rate for the head and the location token.
        weight_decay: Weight decay.
        **kwargs: See `ZooModule`.

    Raises:
        ValueError: `area` or `masked_blocks` is out of range, or the encoder has no class token.
    """

    def __init__(
        self,
        masked_blocks: int | None = None,
        area: float = 0.25,
        area_weight: float = 1.0,
        binary_weight: float = 1.0,
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
        if not 0 <= area <= 1:
            raise ValueError(f"area={area} is a fraction of the image, within 0..1")
        self.area = area
        self.area_weight = area_weight
        self.binary_weight = binary_weight
        self.depth = depth = require_class_token(self.encoder)
        count = max(1, depth // 4) if masked_blocks is None else masked_blocks
        if not 1 <= count <= depth:
            raise ValueError(f"masked_blocks={masked_blocks} must lie in 1..{depth}")
        self.first_masked = depth - count
        channels = self.encoder.final_channels
        self.location_token = nn.Parameter(torch.empty(1, 1, channels))
        self.head = nn.Linear(channels, self.num_classes)
        nn.init.trunc_normal_(self.location_token, std=TOKEN_STD)
        nn.init.trunc_normal_(self.head.weight, std=TOKEN_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K), `map` (B, K, h, w), `final`, and `extra["mask"]` (B, 1, h, w).

        The map is the mask, the same for every class, in (0, 1).
        """
        masks: list[Tensor] = []
        block = 0

        def masked(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
            nonlocal block
            block += 1
            if block <= self.first_masked:
                return F.scaled_dot_product_attention(query, key, value, **options)
            scores = attention_scores(query, key, **options)
            mask = scores[:, :, -1].mean(dim=1).sigmoid()
            masks.append(mask)
            weights = scores.softmax(dim=-1) * mask[:, None, None]
            weights = F.dropout(weights, options.get("dropout_p", 0.0))
            return weights.to(value.dtype) @ value

        with attend_by(masked):
            prefix, final, _ = forward_tokens(self.encoder, batch["image"], self.location_token)
        if block != self.depth:
            raise ValueError(
                f"{self.encoder.name}: {self.depth} blocks attended {block} times; the mask is "
                "defined for ViT and DeiT, whose blocks attend once."
            )
        h, w = final.shape[-2:]
        first = prefix.shape[1]
        mask = torch.stack(masks).mean(dim=0)[:, first : first + h * w].reshape(-1, 1, h, w)
        logits = at_least_float32(self.head(prefix[:, 0]))
        maps = mask.expand(-1, self.num_classes, -1, -1)
        return Output(logits=logits, map=maps, final=final, extra={"mask": mask})

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the cross-entropy, `ce`, and the constraints on the map, `area` and `binary`."""
        assert output.logits is not None
        mask = output.extra["mask"]
        smooth = F.avg_pool2d(mask, 3, stride=1, padding=1, count_include_pad=False)
        return {
            "ce": F.cross_entropy(output.logits, batch["label"]),
            # The batch's mean: single images may hold large and small objects.
            "area": self.area_weight * (mask.mean() - self.area).abs(),
            "binary": self.binary_weight * (smooth * (1 - smooth)).mean(),
        }
