"""AdaDSA: every batch norm learns how much of the target's statistics it takes; nothing else moves.

Paper: AdaDSA, adaptive domain-specific statistics alignment, IEEE TNSRE 2022 (for sleep stages), as
the histology study (CVPR Workshops 2024, arXiv 2404.19113) takes it up.
Loss: w_ce CE(z, c) + w_ent mean_b H(p_b).

Statistics: mu = a mu_t + (1 - a) mu_s, and the variance of the mixture (`MixedNorm`); a is one
number per batch norm. The target's are measured once, in a pass over the training images. The
labels of a step are c = argmax((1 - l) p_source + l p), both in evaluation mode, with
l = tanh(5 step / steps): the source's at first, the adapted model's at the end.

Deviations: a = sigmoid(theta), from 0.95, without weight decay; published is a clamp to [0, 1] that
starts at 1, where its gradient is 0, under weight decay. The target's statistics are averages over
batches; published are running ones of momentum 0.1, in which 73 % of (0, 1) remain after three
batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.encoders.mixed_norm import MixedNorm, mix_norms, norm_statistics, plain_keys
from wsl_zoo.losses import negative_entropy
from wsl_zoo.methods.adaptation import SourceFree
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.types import Batch, Output

RAMP = 10.0  # l = 2 / (1 + exp(-10 s)) - 1 = tanh(5 s); published


class AdaDSA(SourceFree):
    """Source-free adaptation of the statistics of batch norms.

    Args:
        ce_weight: Weight of the cross-entropy with the labels of the step.
        entropy_weight: Weight of the mean entropy of predictions, in nats (0.3 bits as published).
        label_smoothing: Of the cross-entropy, in [0, 1).
        alpha: Share of the target's statistics at the start, in (0, 1).
        feature_dropout: Always off: labels and training see the same network.
        **kwargs: See `SourceFree`. The encoder must have batch norms.

    Raises:
        ValueError: The encoder has none (ViT, DeiT): nothing could be adapted.
    """

    needs_hypothesis = True

    def __init__(
        self,
        ce_weight: float = 0.3,
        entropy_weight: float = 0.433,
        label_smoothing: float = 0.0,
        alpha: float = 0.95,
        feature_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_dropout=feature_dropout, **kwargs)
        if feature_dropout:
            raise ValueError(
                f"feature_dropout={feature_dropout}: AdaDSA drops nothing, set it to 0"
            )
        if not mix_norms(self.encoder, alpha):
            raise ValueError(
                f"encoder={self.hparams['encoder']!r} has no batch norms, and AdaDSA adapts "
                "nothing else: use a CNN"
            )

    @property
    def mixed(self) -> list[MixedNorm]:
        """The batch norms, in the encoder's order."""
        return [module for module in self.encoder.modules() if isinstance(module, MixedNorm)]

    def frozen(self) -> Iterable[nn.Module]:
        """Return encoder and head; `setup` lets the mixing numbers go again."""
        return [self.encoder, self.head, *super().frozen()]

    def setup(self, stage: str) -> None:
        """Hold everything but the mixing numbers."""
        super().setup(stage)
        for norm in self.mixed:
            norm.theta.requires_grad = True

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the mixing numbers (those of layer4 of a ResNet faster), without weight decay."""
        return [group | {"weight_decay": 0.0} for group in super().param_groups()]

    def load_encoder(self, source: ZooModule) -> None:
        """Take the source's encoder, then measure the target's statistics with it."""
        keys = plain_keys(self.encoder)
        state = {keys[key]: value for key, value in source.encoder.state_dict().items()}
        self.encoder.load_state_dict(self.encoder.state_dict() | state)
        self._measure(source.encoder)

    @torch.no_grad()
    def _measure(self, network: nn.Module) -> None:
        """Fill the target's statistics with what the source's batch norms see of it."""
        images = (batch["image"][batch["valid"]] for batch in self.training_images())
        means, variances, count = norm_statistics(network, images, self.device)
        total = torch.tensor(float(count), device=self.device)
        reduce = self.trainer.strategy.reduce
        everyone = reduce(total.clone(), reduce_op="sum")
        for norm, mean, var in zip(self.mixed, means, variances, strict=True):
            # Of all processes, by their numbers of images.
            pooled = reduce(mean * total, reduce_op="sum") / everyone
            around = var + (mean - pooled) ** 2
            norm.target_mean.copy_(pooled)
            norm.target_var.copy_(reduce(around * total, reduce_op="sum") / everyone)

    def adaptation_loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return `ce` and `entropy`."""
        assert output.logits is not None
        h, logits = self.hparams, output.logits.float()
        # Both networks are as in evaluation: norms fixed, nothing dropped.
        trust = self.trust()
        mixture = trust * logits.detach().softmax(dim=1)
        mixture = mixture + (1 - trust) * self.source_probabilities(batch)
        label, smoothing = mixture.argmax(dim=1), h["label_smoothing"]
        return {
            "ce": h["ce_weight"] * F.cross_entropy(logits, label, label_smoothing=smoothing),
            "entropy": -h["entropy_weight"] * negative_entropy(logits).mean(),
        }

    def trust(self) -> float:
        """Return l, how much the adapted model's prediction counts: from 0 to tanh(5)."""
        steps = self.trainer.estimated_stepping_batches if self._trainer is not None else 1
        if steps == math.inf:
            raise ValueError("AdaDSA needs a last step: set trainer.max_epochs or max_steps")
        return math.tanh(RAMP / 2 * self.global_step / max(1.0, float(steps)))

    @torch.no_grad()
    def source_probabilities(self, batch: Batch) -> Tensor:
        """Return p_source (B, K)."""
        source = self.seeder
        logits = source.head(source.encoder.final(batch["image"]))[0]  # type: ignore[operator]
        return torch.as_tensor(logits).float().softmax(dim=1)
