"""Maps that weigh an activation by the gradient of the class score.

With A the activation, g = ds_y/dA of the logit s_y, N positions p and S_c = sum_p A_c(p), the maps
are sum_c w_c A_c with weights per channel (a sum over p) or per position:

    GradCAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391)         mean_p g
    GradCAMpp (Chattopadhay et al., WACV 2018, arXiv 1710.11063)    sum_p a relu(g),
                                                                    a = g^2 / (2 g^2 + g^3 S)
    SmoothGradCAMpp (Omeiza et al., 2019, arXiv 1908.01224)         the same over noisy images
    XGradCAM (Fu et al., BMVC 2020, arXiv 2008.02312)               sum_p g A / S
    LayerCAM (Jiang et al., IEEE TIP 2021)                          relu(g)
    HiResCAM (Draelos and Carin, 2020, arXiv 2011.08891)            g
    ElementWiseCAM (without a paper)                                g where g A > 0

and two that are no such sum, the first principal components over positions of A, EigenCAM (Muhammad
and Yeasin, IJCNN 2020, arXiv 2008.00299), and of g A, EigenGradCAM.

Maps are raw: all of these drop negative scores (`relu`) when they are normalised, not before.

On a head s = W mean_p A + b and its own input, g = W / N is constant, so that GradCAM, XGradCAM and
HiResCAM are the class activation map divided by N; they differ at inner layers (`layer`).

Deviations: g enters the weights as it is, although the derivation of GradCAM++ is for exp(s_y);
all published implementations do so. No epsilon in any denominator: peers add 1e-6 to terms of the
order of g^2, which for usual g decides the weights; here a term without denominator is zero.
"""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

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


class GradientMap(ClassMap):
    """Base: `sum_c w_c A_c`, with `weights(A, g)` left to a subclass.

    Costs one forward pass without gradients up to the layer, and forward and backward pass from
    there on: at the final map (`layer=-1`) only the head is differentiated.

    Args:
        encoder: Has `split(image, layer)`.
        head: `logits (B, K), maps (B, K, h, w) = head(final)`.
        layer: The activation A: -1 the final map, or as `Encoder.split` takes it.
    """

    relu: ClassVar[bool] = True

    def from_features(self, activation: Tensor, rest: Rest, target: Tensor) -> Tensor:
        """Raw maps `(B, h, w)` of an activation, detached; gradients need not be enabled."""
        gradient = self.gradient(activation, rest, target)
        with apart(activation), torch.autocast(activation.device.type, enabled=False):
            return self.combine(at_least_float32(no_inference(activation).detach()), gradient)

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Maps `(B, h, w)` from A and g, both `(B, C, h, w)`."""
        return (self.weights(activation, gradient) * activation).sum(dim=1)

    @abstractmethod
    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Weights from A and g, `(B, C, 1, 1)` per channel or `(B, C, h, w)` per position."""


class GradCAM(GradientMap):
    """Weight of a channel: its mean gradient. Arguments: see `GradientMap`."""

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """`(B, C, 1, 1)`."""
        return gradient.mean(dim=(2, 3), keepdim=True)


class GradCAMpp(GradientMap):
    """Weight of a channel: its positive gradients, weighted by a = g^2 / (2 g^2 + g^3 S).

    Args:
        encoder: Has `split(image, layer)`.
        head: `logits (B, K), maps (B, K, h, w) = head(final)`.
        layer: The activation A: -1 the final map, or as `Encoder.split` takes it.
        variant: "paper", or "reference": published WSOL tables were made with a = g^2, because the
            division was written to a copy.

    Raises:
        ValueError: Unknown variant.
    """

    def __init__(
        self,
        encoder: SplitEncoder,
        head: nn.Module,
        layer: int | str = -1,
        variant: Literal["paper", "reference"] = "paper",
    ) -> None:
        if variant not in ("paper", "reference"):
            raise ValueError(f'variant must be "paper" or "reference", got {variant!r}.')
        super().__init__(encoder, head, layer)
        self.variant = variant

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """`(B, C, 1, 1)`."""
        positive = gradient.relu()
        if self.variant == "reference":
            return positive.pow(3).sum(dim=(2, 3), keepdim=True)
        # g^2 cancels: a = 1 / (2 + g S), whose powers cannot underflow.
        total = activation.sum(dim=(2, 3), keepdim=True)
        return _divide(positive, 2 + positive * total).sum(dim=(2, 3), keepdim=True)


class SmoothGradCAMpp(ImageMap):
    """GradCAM++ with gradients of noisy images; A is that of the clean one.

    a = mean_i(g_i^2) / (2 mean_i(g_i^2) + mean_i(g_i^3) S) over images x + N(0, sigma^2). Every
    image gets the same noise, drawn anew from `seed` in every call, so that its map depends neither
    on its batch nor on what was drawn before.

    Args:
        encoder: Has `split(image, layer)`.
        head: `logits (B, K), maps (B, K, h, w) = head(final)`.
        layer: The activation A: -1 the final map, or as `Encoder.split` takes it.
        samples: Number of noisy images.
        sigma: Standard deviation of the noise, in units of the normalised image.
        gradients: relu(g) as the "mean" over the noisy images or, as published, of the "last".
        seed: Of the noise.

    Raises:
        ValueError: On less than one sample, a negative sigma or unknown `gradients`.
    """

    relu: ClassVar[bool] = True

    def __init__(
        self,
        encoder: SplitEncoder,
        head: nn.Module,
        layer: int | str = -1,
        samples: int = 4,
        sigma: float = 0.3,
        gradients: Literal["mean", "last"] = "mean",
        seed: int = 0,
    ) -> None:
        if samples < 1 or sigma < 0:
            raise ValueError(f"samples must be >= 1 and sigma >= 0, got {samples}, {sigma}.")
        if gradients not in ("mean", "last"):
            raise ValueError(f'gradients must be "mean" or "last", got {gradients!r}.')
        super().__init__(encoder, head, layer)
        self.samples = samples
        self.sigma = sigma
        self.gradients = gradients
        self.seed = seed

    def read(self, image: Tensor, target: Tensor) -> Tensor:
        """Raw maps `(B, h, w)`; runs without gradients, in eval mode."""
        activation = at_least_float32(self.encoder.split(image, self.layer)[0])
        squares, cubes, positive = (torch.zeros_like(activation) for _ in range(3))
        generator = torch.Generator().manual_seed(self.seed)  # on the CPU: equal on every device
        for _ in range(self.samples):
            noise = torch.randn(image.shape[1:], generator=generator).to(image)
            noisy, rest = self.encoder.split(image + self.sigma * noise, self.layer)
            gradient = self.gradient(noisy, rest, target)
            squares += gradient.square()
            cubes += gradient.pow(3)
            if self.gradients == "last":
                positive = gradient.relu()
            else:
                positive += gradient.relu() / self.samples
        with torch.autocast(image.device.type, enabled=False):
            total = activation.sum(dim=(2, 3), keepdim=True)
            alpha = _divide(squares, 2 * squares + cubes * total)
            return weighted_sum((alpha * positive).sum(dim=(2, 3)), activation)


class XGradCAM(GradientMap):
    """Weight of a channel: its mean gradient, positions weighted by A. See `GradientMap`."""

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """`(B, C, 1, 1)`; 0 where A sums to 0."""
        evidence = (gradient * activation).sum(dim=(2, 3), keepdim=True)
        return _divide(evidence, activation.sum(dim=(2, 3), keepdim=True))


class LayerCAM(GradientMap):
    """Weight of a position: its positive gradient. Arguments: see `GradientMap`."""

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """`(B, C, h, w)`."""
        return gradient.relu()


class HiResCAM(GradientMap):
    """Weight of a position: its gradient. Arguments: see `GradientMap`."""

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """`(B, C, h, w)`."""
        return gradient


class ElementWiseCAM(GradientMap):
    """HiResCAM of the channels that speak for the class at a position. See `GradientMap`."""

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """`(B, C, h, w)`: g where g A > 0."""
        return torch.where(gradient * activation > 0, gradient, torch.zeros_like(gradient))


class EigenCAM(ClassMap):
    """First principal component of the activation; blind to the class. See `GradientMap`."""

    relu: ClassVar[bool] = True

    def from_features(self, activation: Tensor, rest: Rest, target: Tensor) -> Tensor:
        """Raw maps `(B, h, w)` of an activation, detached."""
        with apart(activation), torch.autocast(activation.device.type, enabled=False):
            return first_component(at_least_float32(no_inference(activation).detach()))


class EigenGradCAM(HiResCAM):
    """First principal component of gradient times activation. See `GradientMap`."""

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Maps `(B, h, w)` from A and g, both `(B, C, h, w)`."""
        return first_component(self.weights(activation, gradient) * activation)


def first_component(x: Tensor) -> Tensor:
    """Project positions on their first principal direction in channel space.

    The sign of a component is arbitrary: the larger of the two extremes is made positive.

    Args:
        x: `(B, C, h, w)`; non-finite values count as 0.

    Returns:
        `(B, h, w)`; zeros where `x` is constant.
    """
    batch, channels, height, width = x.shape
    rows = torch.nan_to_num(x, posinf=0.0, neginf=0.0).flatten(2).transpose(1, 2)
    rows = rows - rows.mean(dim=1, keepdim=True)
    # Of the two Gram matrices the smaller one: a singular value decomposition costs far more.
    if channels <= height * width:
        scores = rows @ torch.linalg.eigh(rows.mT @ rows).eigenvectors[..., -1:]
    else:
        values, vectors = torch.linalg.eigh(rows @ rows.mT)
        scores = vectors[..., -1:] * values[:, None, -1:].clamp(min=0).sqrt()
    scores = scores.reshape(batch, height, width)
    low, high = scores.amin(dim=(1, 2), keepdim=True), scores.amax(dim=(1, 2), keepdim=True)
    return torch.where(-low > high, -scores, scores)


def _divide(x: Tensor, by: Tensor) -> Tensor:
    """`x / by`, 0 where `by` is 0."""
    safe = torch.where(by == 0, torch.ones_like(by), by)
    return torch.where(by == 0, torch.zeros_like(x), x / safe)
