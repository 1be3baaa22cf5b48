"""Class activation maps: M_y(p) = sum_c W_yc A_c(p) (Zhou et al., CVPR 2016, arXiv 1512.04150).

A is the final feature map of the encoder and W the weights of the head that follows its mean. No
ReLU, no bias: the bias shifts a map by a constant, which no normalised map sees. The class is row y
of the head: the published WSOL code reads row y of a head whose row 0 is a background class that no
loss trains, so that maps of class y are those of class y - 1; there is no such row here.

`ClassMap` is the base of every map that is read out of an encoder and a head, whether by weights,
gradients or perturbation. It holds the two without owning them: it is no `nn.Module`, so that a
model that keeps one does not register its encoder twice.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

Rest = Callable[[Tensor], Tensor]

# Of the score that is differentiated: gradients below 1e-6 are lost in float16. Exact elsewhere.
SCALE = 1024.0


class SplitEncoder(Protocol):
    """What maps need of an encoder: an activation in the graph and the way from it to `final`."""

    def split(self, image: Tensor, layer: int | str = -1) -> tuple[Tensor, Rest]:
        """`(A (B,C,h,w), rest)` with `rest(A)` the final map."""


class ClassMap(ABC):
    """A map per image for one class, read out of an encoder and a head.

    A subclass says in `from_features` how the map arises from an activation, or in `read` if it
    runs the network on other images too. Calling an instance leaves the model as it was: training
    flags are restored, running statistics and `.grad` are not touched. The networks run in eval
    mode, so that a map does not depend on the rest of its batch.

    Args:
        encoder: Has `split(image, layer)`.
        head: `logits (B, K), maps (B, K, h, w) = head(final)`.
        layer: The activation that is read: -1 the final map, or as `Encoder.split` takes it.
    """

    relu: ClassVar[bool] = False
    """Whether the papers drop negative scores before normalising (`normalize_map(relu=...)`)."""

    reads_image: ClassVar[bool] = False
    """Whether the network runs on other images, so that an activation is not enough."""

    def __init__(self, encoder: SplitEncoder, head: nn.Module, layer: int | str = -1) -> None:
        self.encoder = encoder
        self.head = head
        self.layer = layer

    @property
    def reads_final(self) -> bool:
        """Whether the final map is all that it needs."""
        return self.layer == -1 and not self.reads_image

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Raw maps of the target classes.

        Args:
            image: `(B, C, H, W)`, normalised for the encoder.
            target: `(B,)` int64, class of each image in [0, K).

        Returns:
            `(B, h, w)`, at least float32, detached, any range.
        """
        with apart(image), evaluating(self.encoder, self.head):
            return self.read(no_inference(image), no_inference(target)).detach()

    def read(self, image: Tensor, target: Tensor) -> Tensor:
        """Raw maps `(B, h, w)`; runs without gradients, in eval mode."""
        activation, rest = self.encoder.split(image, self.layer)
        return self.from_features(activation.detach(), rest, target)

    def of_final(self, final: Tensor, target: Tensor) -> Tensor:
        """Raw maps from the final map that a forward pass has made already.

        Args:
            final: `(B, C, h, w)`.
            target: `(B,)` int64, class of each image in [0, K).

        Returns:
            `(B, h, w)`, at least float32, detached.

        Raises:
            ValueError: If the maps need more than that: `reads_image`, or an inner layer.
        """
        if not self.reads_final:
            raise ValueError(
                f"{type(self).__name__} at layer={self.layer!r} cannot be read from the final map: "
                "call it with the images."
            )
        with apart(final), evaluating(self.head):
            own = no_inference(final).detach()
            return self.from_features(own, identity, no_inference(target)).detach()

    def score(self, final: Tensor, target: Tensor, probability: bool = False) -> Tensor:
        """Logits (or probabilities) of the target classes `(B,)`, at least float32."""
        logits = at_least_float32(self.head(final)[0])
        check_target(target, len(logits), logits.shape[1])
        scores = logits.softmax(dim=1) if probability else logits
        return scores.gather(1, target.to(logits.device)[:, None])[:, 0]

    def gradient(self, activation: Tensor, rest: Rest, target: Tensor) -> Tensor:
        """`ds_y/dA (B, C, h, w)`, at least float32, without touching any `.grad`."""
        kind = activation.device.type
        with apart(activation), torch.enable_grad():
            leaf = no_inference(activation).detach()
            if torch.is_autocast_enabled(kind):
                leaf = at_least_float32(leaf)
            leaf.requires_grad_()
            score = self.score(rest(leaf), no_inference(target)).sum()
            (gradient,) = torch.autograd.grad(SCALE * score, leaf)
            return at_least_float32(gradient) / SCALE

    @abstractmethod
    def from_features(self, activation: Tensor, rest: Rest, target: Tensor) -> Tensor:
        """Raw maps from an activation that the caller has already.

        Args:
            activation: `A (B, C, h, w)`.
            rest: Function from `A` to the final map.
            target: `(B,)` int64.

        Returns:
            `(B, h, w)`, at least float32. The caller sees to eval mode.
        """


class ImageMap(ClassMap):
    """Base of maps for which `read` runs the network on other images; see `ClassMap`."""

    reads_image: ClassVar[bool] = True

    @abstractmethod
    def read(self, image: Tensor, target: Tensor) -> Tensor:
        """Raw maps `(B, h, w)`; runs without gradients, in eval mode."""

    def from_features(self, activation: Tensor, rest: Rest, target: Tensor) -> Tensor:
        """Not possible.

        Raises:
            ValueError: Always; the map is made of what other images give.
        """
        raise ValueError(f"{type(self).__name__} needs the images: call it with them.")


class CAM(ClassMap):
    """Class activation map: the target's row of the head's weights times the final map.

    Heads whose maps are not linear in the features (no `class_weights()`) give their own map.

    Args:
        encoder: Has `split(image, layer)`.
        head: A pooling head.
        layer: Only -1, the final map: W belongs to no other. Gradient CAMs read inner layers.

    Raises:
        ValueError: For another layer.
    """

    def __init__(self, encoder: SplitEncoder, head: nn.Module, layer: int | str = -1) -> None:
        if layer != -1:
            raise ValueError(
                f"CAM is defined on the final map only (layer=-1), got layer={layer!r}; "
                "LayerCAM and GradCAM read inner layers."
            )
        super().__init__(encoder, head, layer)

    def from_features(self, activation: Tensor, rest: Rest, target: Tensor) -> Tensor:
        """`sum_c W_yc A_c (B, h, w)`, differentiable."""
        features = rest(activation)
        linear = getattr(self.head, "class_weights", None)
        weights = linear() if linear is not None else None
        if weights is None:
            maps: Tensor = self.head(features)[1]
            check_target(target, len(features), maps.shape[1])
            return at_least_float32(maps[torch.arange(len(maps), device=maps.device), target])
        check_target(target, len(features), len(weights))
        rows = at_least_float32(weights)[target.to(weights.device)]
        with torch.autocast(features.device.type, enabled=False):
            return weighted_sum(rows, at_least_float32(features).to(rows.dtype))


def check_target(target: Tensor, batch: int, num_classes: int) -> None:
    """Raise unless `target` is one class index in [0, num_classes) per image.

    Raises:
        ValueError: On a wrong shape, type or index.
    """
    if target.shape != (batch,) or target.is_floating_point():
        raise ValueError(
            f"target must be one class index per image, shape ({batch},) and integer, "
            f"got shape {tuple(target.shape)}, {target.dtype}."
        )
    if batch and (int(target.min()) < 0 or int(target.max()) >= num_classes):
        raise ValueError(f"target classes must lie in [0, {num_classes}), got {target.tolist()}.")


def weighted_sum(weights: Tensor, activation: Tensor) -> Tensor:
    """`sum_c w_c A_c (B, h, w)` of weights `(B, C)` and an activation `(B, C, h, w)`."""
    return torch.einsum("bc,bchw->bhw", weights, activation)


def identity(activation: Tensor) -> Tensor:
    """The way from the final map to itself."""
    return activation


def no_inference(x: Tensor) -> Tensor:
    """A copy of a tensor that was made in inference mode, which no graph can hold; else itself."""
    return x.clone() if x.is_inference() else x


@contextmanager
def apart(x: Tensor) -> Iterator[None]:
    """Neither inference mode nor gradients inside; autocast of x's device without its cache.

    Autocast keeps the weights it casts, before torch 2.10 or so together with the mode it cast them
    in: those kept in inference mode cannot enter our graph, and those that we would leave behind
    have no graph, so that a training step would not learn them.
    """
    kind = x.device.type
    cast = torch.autocast(
        kind,
        dtype=torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=False,
    )
    with torch.inference_mode(False), torch.no_grad(), cast:
        yield


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision tensors as float32, all others unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@contextmanager
def evaluating(*modules: Any) -> Iterator[None]:
    """Eval mode inside the context; afterwards every submodule has its own training flag again."""
    parts = [part for m in modules if isinstance(m, nn.Module) for part in m.modules()]
    flags = [(part, part.training) for part in parts]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, flag in flags:
            part.training = flag
