"""Maps that weigh the channels of an activation by what the network scores without or with them.

With A the activation, U_c its channel c, min-max normalised and upsampled to the image x, and s_y
the logit of the target class:

    ScoreCAM (Wang et al., CVPRW 2020, arXiv 1910.01279)      w = softmax_c s_y(x U_c)
    SSCAM (Wang et al., 2020, arXiv 2006.14255)               mean over noise n of s_y(x (U_c + n))
    ISCAM (Naidu et al., 2020, arXiv 2010.03023)              mean over i of s_y(x U_c i / samples)
    AblationCAM (Desai and Ramaswamy, WACV 2020)              w_c = (s_y - s_y without A_c) / s_y

and the map sum_c w_c A_c, whose negative scores are dropped when it is normalised (`relu`).

Score-CAM's paper subtracts the score of a baseline image before the softmax, torch-cam that of the
image itself, pytorch-grad-cam nothing: a softmax over channels does not see a constant, so that all
three are `variant="paper"`. The survey of WSOL in histology (arXiv 1909.03354) uses the probability
of the class instead of a softmax over channels: `variant="survey"`.

Deviations: the activation is combined as it is; the survey's code has overwritten it with its
min-max normalised form by then. Channels are normalised before they are upsampled.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.cams.activation import (
    ClassMap,
    ImageMap,
    Rest,
    SplitEncoder,
    apart,
    at_least_float32,
    no_inference,
    weighted_sum,
)
from wsl_zoo.cams.normalize import normalize_map


class ScoreCAM(ImageMap):
    """Weight of a channel: the score of the image seen through it. C forward passes per image.

    A constant channel is an empty mask.

    Args:
        encoder: Has `split(image, layer)`.
        head: `logits (B, K), maps (B, K, h, w) = head(final)`.
        layer: The activation A: -1 the final map, or as `Encoder.split` takes it.
        variant: "paper": softmax over channels of the logits; "survey": class probabilities.
        chunk: Masked images per forward pass; bounds the memory, does not change the map.
        topk_channels: Only the channels of largest energy sum_p A_c(p)^2, per image; None: all.

    Raises:
        ValueError: Unknown variant, or a size below one.
    """

    relu: ClassVar[bool] = True

    def __init__(
        self,
        encoder: SplitEncoder,
        head: nn.Module,
        layer: int | str = -1,
        variant: Literal["paper", "survey"] = "paper",
        chunk: int = 32,
        topk_channels: int | None = None,
    ) -> None:
        if variant not in ("paper", "survey"):
            raise ValueError(f'variant must be "paper" or "survey", got {variant!r}.')
        _check_positive(chunk=chunk, topk_channels=topk_channels)
        super().__init__(encoder, head, layer)
        self.variant = variant
        self.chunk = chunk
        self.topk_channels = topk_channels

    def read(self, image: Tensor, target: Tensor) -> Tensor:
        """Raw maps `(B, h, w)`; runs without gradients, in eval mode."""
        activation = at_least_float32(self.encoder.split(image, self.layer)[0])
        if self.topk_channels is not None and self.topk_channels < activation.shape[1]:
            kept = activation.square().sum(dim=(2, 3)).topk(self.topk_channels, dim=1).indices
            activation = activation[torch.arange(len(kept), device=kept.device)[:, None], kept]
        weights = self.weights(image, activation, target)
        with torch.autocast(image.device.type, enabled=False):
            return weighted_sum(weights.to(activation.dtype), activation)

    def weights(self, image: Tensor, activation: Tensor, target: Tensor) -> Tensor:
        """Weights of the channels.

        Args:
            image: `(B, C', H, W)`.
            activation: `(B, C, h, w)`.
            target: `(B,)`.

        Returns:
            `(B, C)`; with the "paper" variant each row sums to 1.
        """
        batch, channels = activation.shape[:2]
        target = target.to(image.device)
        masks = normalize_map(activation.flatten(0, 1))[:, None]
        scores: list[Tensor] = []
        for index in torch.split(torch.arange(batch * channels, device=image.device), self.chunk):
            of = index // channels
            mask = F.interpolate(masks[index], image.shape[2:], mode="bilinear")
            seen = []
            for one in self.perturbed(mask):
                final = self.encoder.split(image[of] * one.to(image.dtype))[0]
                seen.append(self.score(final, target[of], probability=self.variant == "survey"))
            scores.append(torch.stack(seen).mean(dim=0))
        confidence = torch.cat(scores).view(batch, channels)
        return confidence.softmax(dim=1) if self.variant == "paper" else confidence

    def perturbed(self, mask: Tensor) -> Iterator[Tensor]:
        """The masks `(n, 1, H, W)` whose scores are averaged."""
        yield mask


class SSCAM(ScoreCAM):
    """Score-CAM over noisy masks, `samples` * C forward passes per image.

    The noise fields are shared by channels and images and drawn anew from `seed` in every call.

    Args:
        encoder: Has `split(image, layer)`.
        head: `logits (B, K), maps (B, K, h, w) = head(final)`.
        layer: The activation A: -1 the final map, or as `Encoder.split` takes it.
        samples: Number of noise fields.
        sigma: Standard deviation of the noise; masks lie in [0, 1].
        seed: Of the noise.
        variant: See `ScoreCAM`.
        chunk: See `ScoreCAM`.
        topk_channels: See `ScoreCAM`.

    Raises:
        ValueError: Unknown variant, a size below one or a negative sigma.
    """

    def __init__(
        self,
        encoder: SplitEncoder,
        head: nn.Module,
        layer: int | str = -1,
        samples: int = 35,
        sigma: float = 2.0,
        seed: int = 0,
        variant: Literal["paper", "survey"] = "paper",
        chunk: int = 32,
        topk_channels: int | None = None,
    ) -> None:
        _check_positive(samples=samples)
        if sigma < 0:
            raise ValueError(f"sigma must be >= 0, got {sigma}.")
        super().__init__(encoder, head, layer, variant, chunk, topk_channels)
        self.samples = samples
        self.sigma = sigma
        self.seed = seed

    def perturbed(self, mask: Tensor) -> Iterator[Tensor]:
        """The mask plus each field."""
        generator = torch.Generator().manual_seed(self.seed)  # on the CPU: equal on every device
        for _ in range(self.samples):
            yield mask + self.sigma * torch.randn(mask.shape[2:], generator=generator).to(mask)


class ISCAM(ScoreCAM):
    """Score-CAM integrated over the strength of the mask, `samples` * C forward passes per image.

    Args:
        encoder: Has `split(image, layer)`.
        head: `logits (B, K), maps (B, K, h, w) = head(final)`.
        layer: The activation A: -1 the final map, or as `Encoder.split` takes it.
        samples: Number of strengths i / samples, i = 1 .. samples.
        cumulative: Strengths as in published code, which adds them up: sum_(j <= i) j / samples,
            up to 5.5 for ten.
        variant: See `ScoreCAM`.
        chunk: See `ScoreCAM`.
        topk_channels: See `ScoreCAM`.

    Raises:
        ValueError: Unknown variant or a size below one.
    """

    def __init__(
        self,
        encoder: SplitEncoder,
        head: nn.Module,
        layer: int | str = -1,
        samples: int = 10,
        cumulative: bool = False,
        variant: Literal["paper", "survey"] = "paper",
        chunk: int = 32,
        topk_channels: int | None = None,
    ) -> None:
        _check_positive(samples=samples)
        super().__init__(encoder, head, layer, variant, chunk, topk_channels)
        self.samples = samples
        self.cumulative = cumulative

    def perturbed(self, mask: Tensor) -> Iterator[Tensor]:
        """The mask times each strength."""
        for i in range(1, self.samples + 1):
            yield mask * ((i * (i + 1) / 2 if self.cumulative else i) / self.samples)


class AblationCAM(ClassMap):
    """Weight of a channel: the share of the score that is lost without it.

    On the final map of a linear head (`class_weights()`) in closed form, w_c = W_yc mean_p A_c /
    s_y. Otherwise C passes through the network behind the layer only. As published, a negative s_y
    turns the sign of the map; a score of exactly 0 divides by 1.

    Args:
        encoder: Has `split(image, layer)`.
        head: `logits (B, K), maps (B, K, h, w) = head(final)`.
        layer: The activation A: -1 the final map, or as `Encoder.split` takes it.
        chunk: Ablated activations per pass, but at least one channel of the whole batch; bounds the
            memory, does not change the map.

    Raises:
        ValueError: A chunk below one.
    """

    relu: ClassVar[bool] = True

    def __init__(
        self, encoder: SplitEncoder, head: nn.Module, layer: int | str = -1, chunk: int = 32
    ) -> None:
        _check_positive(chunk=chunk)
        super().__init__(encoder, head, layer)
        self.chunk = chunk

    def from_features(self, activation: Tensor, rest: Rest, target: Tensor) -> Tensor:
        """Raw maps `(B, h, w)` of an activation, detached."""
        with apart(activation):
            own, target = no_inference(activation).detach(), no_inference(target)
            final = rest(own)
            score = self.score(final, target)
            linear = getattr(self.head, "class_weights", None)
            rows = linear() if linear is not None and final is own else None
            if rows is None:
                drop = score[:, None] - self.ablated(own, rest, target)
            own = at_least_float32(own)
            with torch.autocast(own.device.type, enabled=False):
                if rows is not None:
                    drop = at_least_float32(rows.detach())[target] * own.mean(dim=(2, 3))
                share = drop / torch.where(score == 0, torch.ones_like(score), score)[:, None]
                return weighted_sum(share.to(own.dtype), own)

    def ablated(self, activation: Tensor, rest: Rest, target: Tensor) -> Tensor:
        """Scores `(B, C)` without each channel."""
        batch, channels = activation.shape[:2]
        scores: list[Tensor] = []
        size = max(1, self.chunk // batch)
        for index in torch.split(torch.arange(channels, device=activation.device), size):
            kept = torch.ones(len(index), 1, channels, 1, 1, device=index.device, dtype=torch.bool)
            kept[torch.arange(len(index), device=index.device), :, index] = False
            rows = (kept * activation).flatten(0, 1)  # row i is of image i % batch
            scores.append(self.score(rest(rows), target.repeat(len(index))).view(-1, batch))
        return torch.cat(scores).T


def _check_positive(**sizes: int | None) -> None:
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
