"""The text tower of an image-text encoder with LoRA, which reads the reports of one corpus.

Karimian et al., "CLIP-IT", arXiv 2504.16181: as published, the text that a student learns to guess
moves while it learns. It is there in training alone: state dicts leave it out, and loading one
leaves it as it is; `factors` are what a run that resumes must keep.

Layers inside `nn.MultiheadAttention` are adapted as far as they are layers: the output projection
(which peft's form leaves without gradient), not the packed weights of query, key and value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.encoders.adapters import adapt, lora_parameters
from wsl_zoo.encoders.text import ImageTextEncoder


class TextTower(nn.Module):
    """Text features of reports by their positions, with gradients to the factors of LoRA.

    Args:
        encoder: Its network is taken over, its image tower dropped.
        texts: M reports, of which those that are too long are cut.
        rank: Rank of the updates of every linear layer.
        alpha: They are multiplied by alpha / rank.
        dropout: On their inputs in training.
    """

    tokens: Tensor

    def __init__(
        self,
        encoder: ImageTextEncoder,
        texts: Sequence[str],
        rank: int = 16,
        alpha: float = 8.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.model: Any = encoder.model
        del self.model.visual
        self.model.requires_grad_(requires_grad=False)
        adapt(getattr(self.model, "text", self.model), rank=rank, alpha=alpha, dropout=dropout)
        self.register_buffer("tokens", encoder.tokenize(texts))
        self.dim = encoder.dim
        self.register_load_state_dict_pre_hook(_keep)  # type: ignore[no-untyped-call]

    def forward(self, report: Tensor) -> Tensor:
        """Return the features (B, D) of length 1 of the reports at positions (B,)."""
        features: Tensor = F.normalize(self.model.encode_text(self.tokens[report]).float(), dim=1)
        return features

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Return nothing of its own."""
        return {} if destination is None else destination

    def factors(self) -> list[Tensor]:
        """Return copies of what LoRA has learned, in order, on the CPU."""
        return [factor.detach().cpu().clone() for factor in lora_parameters(self.model)]

    @torch.no_grad()
    def take_factors(self, factors: Sequence[Tensor]) -> None:
        """Take what `factors` gave.

        Raises:
            ValueError: They are of another tower.
        """
        own = lora_parameters(self.model)
        if [f.shape for f in own] != [f.shape for f in factors]:
            raise ValueError(f"{len(factors)} factors of LoRA do not fit {len(own)} of this tower")
        for mine, theirs in zip(own, factors, strict=True):
            mine.copy_(theirs)


def _keep(tower: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a state that is loaded hold what stands in the tower."""
    state.update(nn.Module.state_dict(tower, prefix=prefix))
