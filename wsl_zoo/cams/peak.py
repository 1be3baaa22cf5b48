"""Peak response maps: what in the image made the peaks of a class map, the winners taking all.

Zhou et al., "Weakly Supervised Instance Segmentation using Class Peak Response" (PRM), CVPR 2018,
arXiv 1804.00880. A one at each peak of the map of class y goes down to the image. A convolution
y_i = sum_j W_ij x_j shares out what reaches its output by its excitatory part, x' = x - min x:

    P(x_j) = x'_j sum_i relu(W_ij) P(y_i) / (sum_j' relu(W_ij') x'_j' + 1e-10);

batch norms pass it on as it is, all other layers by their gradients. The map is the sum over
channels and over peaks. Convolutions keep the total, so that it is the number of peaks where no
residual branch doubles it.

Deviation: min x is that of an image, not of the batch, so that maps do not depend on the others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from wsl_zoo.cams.activation import (
    ClassMap,
    Rest,
    SplitEncoder,
    apart,
    at_least_float32,
    check_target,
    no_inference,
)

EPSILON = 1e-10
CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class PeakResponse(ClassMap):
    """Responses of the image, or of an inner activation, to the peaks of the class's map.

    Args:
        encoder: Has `split(image, layer)`; convolutional.
        head: Has `peaks(maps (B, K, h, w))`, where each map has its peaks: `wsl_zoo.heads.PRM`.
        layer: Where the response is read: -1 the image, else as `Encoder.split` takes it.

    Raises:
        ValueError: The head has no peaks.
    """

    relu: ClassVar[bool] = True
    reads_image: ClassVar[bool] = True

    def __init__(self, encoder: SplitEncoder, head: nn.Module, layer: int | str = -1) -> None:
        if not callable(getattr(head, "peaks", None)):
            raise ValueError(
                f"peak responses need a head with peaks (PRM), {type(head).__name__} has none."
            )
        super().__init__(encoder, head, layer)

    def read(self, image: Tensor, target: Tensor) -> Tensor:
        """Raw maps, `(B, H, W)` at the image and `(B, h, w)` at a layer."""
        if self.layer == -1:
            return self.from_features(image, self._final, target)
        return super().read(image, target)

    def _final(self, image: Tensor) -> Tensor:
        return self.encoder.split(image)[0]

    def from_features(self, activation: Tensor, rest: Rest, target: Tensor) -> Tensor:
        """Raw maps `(B, h, w)` of an activation, detached; `rest` must not have been run yet."""
        kind = activation.device.type
        with apart(activation), torch.enable_grad():
            leaf = no_inference(activation).detach()
            if torch.is_autocast_enabled(kind):
                leaf = at_least_float32(leaf)
            leaf.requires_grad_()
            with torch.autocast(kind, enabled=False), _WinnersTakeAll():
                maps: Tensor = self.head(rest(leaf))[1]
            check_target(target, len(maps), maps.shape[1])
            start = torch.zeros_like(maps)
            rows = torch.arange(len(maps), device=maps.device), target.to(maps.device)
            peaks: Callable[[Tensor], Tensor] = self.head.peaks  # type: ignore[assignment]
            start[rows] = peaks(maps.detach())[rows].to(maps.dtype)
            (response,) = torch.autograd.grad(maps, leaf, start)
        return at_least_float32(response).sum(dim=1)


class _WinnersTakeAll(TorchFunctionMode):
    """Inside, convolutions and batch norms have their values, and winner-take-all gradients.

    A value y with another gradient is y + t - t, where only the first t, linear in x, is
    differentiated.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            x = args[0] if args else kwargs["input"]
            share = x
        elif func is F.conv2d:
            share = _shares(**dict(zip(CONV2D, args, strict=False)), **kwargs)
        else:
            return func(*args, **kwargs)
        with torch.no_grad():
            value: Tensor = func(*args, **kwargs)
        share = share.to(value.dtype)
        return value + (share - share.detach())


def _shares(input: Tensor, weight: Tensor, bias: Tensor | None = None, **geometry: Any) -> Tensor:
    """What is linear in the input of a convolution, with P(x) as its gradient for P(y)."""
    with torch.no_grad():
        x, excitatory = at_least_float32(input), at_least_float32(weight).relu()
        offset = x - x.amin(dim=(1, 2, 3), keepdim=True)
        total = F.conv2d(offset, excitatory, None, **geometry) + EPSILON
    return F.conv2d(at_least_float32(input) * offset, excitatory, None, **geometry) / total
