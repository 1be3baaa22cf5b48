"""LoRA: low-rank adaptation of one linear or convolution layer; of a network see `adapters.py`.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685.
y = W x + (alpha / rank) B A x, W frozen, B = 0 at the start: step 0 is the identity. Of a linear
layer a -> b, A is (rank, a) and B (b, rank): rank (a + b) weights learn. Of a convolution, A is a
convolution of its kernel, stride, padding and dilation, B one of 1x1, as in Hugging Face's peft.

Where we deviate from peft: A of a convolution takes its dilation and padding mode as well. With
groups, peft's A reads the channels of every group, which no grouped weight can take up: it refuses
to merge, and ranks that the groups do not divide, so rank 16 on a depthwise layer of 32 channels.
Ours keeps the groups, with `rank` of its own for each; `across_groups=True` is peft's form.

The state dict of an adapted network is the plain one's and `<layer>.down.weight` (A) and
`<layer>.up.weight` (B): weights of the plain network are read without a change of names.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.linear import Linear as TimmLinear
from torch import Tensor, nn
from torch.func import functional_call

HELD = "layer"  # name of the original layer inside an adapter
# Layers that apply their weight as it is; what standardises it first (timm's StdConv2d) is none.
FORWARDS = (nn.Linear.forward, TimmLinear.forward, nn.Conv2d.forward, Conv2dSame.forward)
KINDS = "nn.Linear, nn.Conv2d and their timm forms that apply their weight as it is can be adapted"


def _held(name: str) -> Any:
    """A property that is the held layer's: what other code asks of a layer."""
    return property(lambda adapter: getattr(adapter.layer, name))


class Adapter(nn.Module, ABC):
    """A frozen layer and the factors that learn: what `LoRALinear` and `LoRAConv2d` share."""

    merged_weight: Tensor | None

    def __init__(
        self,
        layer: nn.Module,
        down: nn.Module,
        up: nn.Module,
        rank: int,
        alpha: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.down, self.up = down, up
        self.rank, self.alpha = rank, alpha
        nn.init.kaiming_uniform_(down.get_parameter("weight"), a=math.sqrt(5))  # loralib, peft
        nn.init.zeros_(up.get_parameter("weight"))
        # Beside the original, not over it: unmerging is exact, and checkpoints hold the original.
        self.register_buffer("merged_weight", None, persistent=False)
        self.register_state_dict_post_hook(_plain_keys)  # type: ignore[no-untyped-call]
        self.train(layer.training)

    @abstractmethod
    def delta(self) -> Tensor:
        """Return (alpha / rank) B A in the shape of the layer's weight; gradients reach A and B.

        Raises:
            ValueError: It does not fit into the weight (`across_groups`).
        """

    @property
    def scale(self) -> float:
        """Factor alpha / rank of B A."""
        return self.alpha / self.rank

    @property
    def weight(self) -> Tensor:
        """What the layer multiplies by, W + (alpha / rank) B A, in the shape of W.

        Some attentions of timm (BEiT, Swin v2) and `nn.MultiheadAttention` read a layer's weight in
        place of calling it; they are adapted by this, without dropout.
        """
        if self.merged_weight is not None:
            return self.merged_weight
        original = self.layer.get_parameter("weight")
        delta = self.delta()
        return (original.to(delta.dtype) + delta).to(original.dtype)

    @property
    def bias(self) -> nn.Parameter | None:
        """The layer's bias, which is not adapted."""
        bias: nn.Parameter | None = self.layer.bias  # type: ignore[assignment]
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer gives, and its update.

        Raises:
            RuntimeError: Merged, but about to be trained.
        """
        if self.merged_weight is not None:
            if self.training and torch.is_grad_enabled():
                raise RuntimeError(
                    "merged adapters do not learn: call unmerge(module) before training, or "
                    "module.eval() to predict"
                )
            return functional_call(self.layer, {"weight": self.merged_weight}, (x,))
        return self._adapted(x)

    def _adapted(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        reduced = self.down(self.dropout(self._for_factors(x))) * self.scale
        result: Tensor = y + self.up(reduced).to(y.dtype)
        return result

    def _for_factors(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            return x
        return x.to(self.down.get_parameter("weight").dtype)

    def extra_repr(self) -> str:
        """Rank, alpha and whether the adapter is merged."""
        merged = ", merged" if self.merged_weight is not None else ""
        return f"rank={self.rank}, alpha={self.alpha:g}{merged}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Read the plain network's names too; what was merged is no longer true."""
        for name in ("weight", "bias"):
            if prefix + name in state_dict:
                state_dict[f"{prefix}{HELD}.{name}"] = state_dict.pop(prefix + name)
        self.merged_weight = None
        super()._load_from_state_dict(state_dict, prefix, *args)


class LoRALinear(Adapter):
    """A linear layer a -> b with an update of low rank, rank (a + b) weights.

    Args:
        layer: `nn.Linear`; it is held and frozen.
        rank: Rank of the update, at least 1.
        alpha: The update is multiplied by alpha / rank; above 0.
        dropout: Probability in [0, 1) that an input of A is set to zero in training.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: The layer is of another kind.
    """

    layer: nn.Linear
    down: nn.Linear
    up: nn.Linear
    in_features, out_features = _held("in_features"), _held("out_features")

    def __init__(
        self, layer: nn.Linear, rank: int = 16, alpha: float = 8.0, dropout: float = 0.0
    ) -> None:
        check_lora(rank, alpha, dropout)
        check_layer("layer", layer, nn.Linear)
        options = _like(layer)
        down = nn.Linear(layer.in_features, rank, bias=False, **options)
        up = nn.Linear(rank, layer.out_features, bias=False, **options)
        super().__init__(layer, down, up, rank, alpha, dropout)

    def _adapted(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = self.layer(rows)
        reduced = self.down(self.dropout(self._for_factors(rows)))
        if y.dtype == reduced.dtype == self.up.weight.dtype:
            y.addmm_(reduced, self.up.weight.t(), alpha=self.scale)  # one pass over y, not three
        else:
            y = y + (self.up(reduced) * self.scale).to(y.dtype)
        return y.view(*x.shape[:-1], -1)

    def delta(self) -> Tensor:
        """Return (alpha / rank) B A, (b, a)."""
        with torch.autocast(self.up.weight.device.type, enabled=False):
            return self.up.weight @ self.down.weight * self.scale


class LoRAConv2d(Adapter):
    """A convolution C -> C' of kernel k x k' with an update of low rank.

    rank (C k k' + C') weights learn. With g groups, each has an update of this rank over its own
    channels, and the count is the same. A rank above C k k' / g or C' / g, which is 1 for a
    depthwise layer, adds weights, no freedom.

    Args:
        layer: `nn.Conv2d` or timm's `Conv2dSame`; it is held and frozen.
        rank: Rank of the update (of each group's), at least 1.
        alpha: The update is multiplied by alpha / rank; above 0.
        dropout: Probability in [0, 1) that an input of A is set to zero in training.
        across_groups: peft's form: `rank` in all, A reads the channels of every group. It cannot be
            merged, and groups must divide the rank. Without groups there is no difference.

    Raises:
        ValueError: An argument is out of its range, or groups do not divide the rank.
        TypeError: The layer is of another kind.
    """

    layer: nn.Conv2d
    down: nn.Conv2d
    up: nn.Conv2d
    in_channels, out_channels, groups = _held("in_channels"), _held("out_channels"), _held("groups")
    kernel_size, stride, dilation = _held("kernel_size"), _held("stride"), _held("dilation")
    padding, padding_mode = _held("padding"), _held("padding_mode")

    def __init__(
        self,
        layer: nn.Conv2d,
        rank: int = 16,
        alpha: float = 8.0,
        dropout: float = 0.0,
        across_groups: bool = False,
    ) -> None:
        check_lora(rank, alpha, dropout)
        check_layer("layer", layer, nn.Conv2d, rank if across_groups else None)
        groups, channels = layer.groups, rank if across_groups else rank * layer.groups
        options = _like(layer)
        form: dict[str, Any] = {
            "kernel_size": layer.kernel_size,
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": 1 if across_groups else groups,
        }
        kind: type[nn.Conv2d] = Conv2dSame
        if not isinstance(layer, Conv2dSame):  # which knows zeros only
            kind, form["padding_mode"] = nn.Conv2d, layer.padding_mode
        down = kind(layer.in_channels, channels, bias=False, **form, **options)
        up = nn.Conv2d(channels, layer.out_channels, 1, groups=groups, bias=False, **options)
        super().__init__(layer, down, up, rank, alpha, dropout)
        self.across_groups = across_groups and groups > 1

    def delta(self) -> Tensor:
        """Return (alpha / rank) B A, (C', C / g, k, k')."""
        if self.across_groups:
            raise ValueError(
                f"{self.layer} with across_groups=True has no merged weight: its update mixes "
                "channels of different groups. Adapt with across_groups=False to merge."
            )
        groups, weight = self.layer.groups, self.up.weight
        with torch.autocast(weight.device.type, enabled=False):
            down = self.down.weight.view(groups, self.rank, -1)
            up = weight.view(groups, -1, self.rank)
            return (up @ down).view_as(self.layer.weight) * self.scale


def check_lora(rank: int, alpha: float, dropout: float) -> None:
    """Refuse arguments that are out of their range.

    Raises:
        ValueError: One is.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1")
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} must be above 0")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} must lie in [0, 1)")


def check_layer(
    name: str, layer: nn.Module, kinds: type | tuple[type, ...], across: int | None = None
) -> None:
    """Refuse a layer that cannot be adapted; `across` is the rank of peft's form.

    Raises:
        TypeError: It is of another kind than those of `KINDS`.
        ValueError: Its groups do not divide `across`.
    """
    plain = type(layer).forward in FORWARDS and layer._parameters.get("weight") is not None
    if not isinstance(layer, kinds) or not plain:
        raise TypeError(f"{name} is {layer!r}, which cannot be adapted: {KINDS}")
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    if across is not None and across % groups:
        raise ValueError(
            f"{name} has {groups} groups, which do not divide rank={across}: across_groups=True "
            "needs a multiple of them. Leave the layer out, or use across_groups=False."
        )


def _like(layer: nn.Linear | nn.Conv2d) -> dict[str, Any]:
    """Device and dtype of the factors: float32 at least, since half precision loses small steps."""
    weight = layer.weight
    return {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}


def _plain_keys(adapter: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Give the held layer's tensors the names of the plain network, before those of the factors."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + key.removeprefix(prefix).removeprefix(f"{HELD}.")] = state.pop(key)
