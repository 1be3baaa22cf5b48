"""LoRA on a network: adapt named layers in place, merge, unmerge, fold, and read plain weights.

What an adapter computes stands in `lora.py` (Hu et al., arXiv 2106.09685).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsl_zoo.encoders.lora import (
    KINDS,
    Adapter,
    LoRAConv2d,
    LoRALinear,
    check_layer,
    check_lora,
)


def adapt(
    module: nn.Module,
    targets: str | Sequence[str] | Literal["all"] = "all",
    rank: int = 16,
    alpha: float = 8.0,
    dropout: float = 0.0,
    across_groups: bool = False,
) -> list[str]:
    """Replace layers inside a module by their adapters, in place, and freeze all else.

    Batch norms in training mode still renew their statistics, which are no parameters.

    Args:
        module: Any network, before an optimiser is made for it.
        targets: Regular expressions, each of which must match a layer's qualified name as a whole,
            or its end after a dot: "qkv", "blocks.1[01].attn.proj", ["fc1", "fc2"]. (peft: a string
            is an expression for the whole name, a list is of plain ends.) Modules without weights
            of their own are passed over. "all": every linear and convolution layer.
        rank: Rank of the updates, at least 1.
        alpha: Updates are multiplied by alpha / rank; above 0.
        dropout: Probability in [0, 1) that an input of A is set to zero in training.
        across_groups: See `LoRAConv2d`.

    Returns:
        The names of the adapted layers, in the order of the module.

    Raises:
        ValueError: A target matches nothing, the module is adapted already, an argument is out of
            its range, or groups do not divide the rank of peft's form. Nothing was changed.
        TypeError: A matched layer is of another kind. Nothing was changed.
    """
    check_lora(rank, alpha, dropout)
    if adapters(module):
        raise ValueError(
            f"adapted already: {_some(list(adapters(module)))}. Fold it first, or adapt a new copy."
        )
    found = _find(module, targets)
    for name, layer in found.items():
        check_layer(name, layer, (nn.Linear, nn.Conv2d), rank if across_groups else None)
    module.requires_grad_(requires_grad=False)
    for parameter in module.parameters():
        parameter.grad = None  # an optimiser with weight decay moves whatever has one
    new: dict[nn.Module, nn.Module] = {
        layer: LoRALinear(layer, rank, alpha, dropout)
        if isinstance(layer, nn.Linear)
        else LoRAConv2d(layer, rank, alpha, dropout, across_groups)  # type: ignore[arg-type]
        for layer in found.values()
    }
    _replace(module, new)
    return list(found)


def adapters(module: nn.Module) -> dict[str, Adapter]:
    """Return the adapters inside a module by the names of their layers, in order."""
    return {name: m for name, m in module.named_modules() if isinstance(m, Adapter)}


def lora_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return A and B of every adapter inside a module, in order: what learns."""
    return [
        factor.get_parameter("weight")
        for adapter in adapters(module).values()
        for factor in (adapter.down, adapter.up)
    ]


def factor_names(module: nn.Module) -> list[str]:
    """Return the names of A and B of every adapter inside a module, in order."""
    return [f"{name}.{part}" for name in adapters(module) for part in ("down", "up")]


def load_plain(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Read the state of the plain network into an adapted one, whose A and B stay as they are.

    Args:
        module: Adapted or not.
        state: State dict of the same network without adapters.

    Raises:
        ValueError: Names are missing, or there are others. Nothing was changed.
        RuntimeError: Shapes differ.
    """
    optional = tuple(f"{name}." for name in factor_names(module))
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.startswith(optional or ("?",))]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        raise ValueError(
            f"missing: {_some(missing) or 'none'}; unexpected: {_some(unexpected) or 'none'}"
        )
    module.load_state_dict(dict(state), strict=False)


@torch.no_grad()
def merge(module: nn.Module) -> None:
    """Let every adapter compute with W + (alpha / rank) B A, as fast as the plain layer.

    Merging again takes up what A and B have become. The original weights are kept, and are what a
    state dict holds. Loading a state unmerges.

    Raises:
        ValueError: There is no adapter, or one cannot be merged (`across_groups`).
    """
    found = _adapters(module)
    weights = [_merged(adapter) for adapter in found.values()]
    for adapter, weight in zip(found.values(), weights, strict=True):
        adapter.merged_weight = weight


def unmerge(module: nn.Module) -> None:
    """Undo `merge`: the original weights stand as they were, bit for bit.

    Raises:
        ValueError: There is no adapter.
        RuntimeError: None is merged.
    """
    found = _adapters(module).values()
    if all(adapter.merged_weight is None for adapter in found):
        raise RuntimeError("nothing to unmerge: call merge(module) first")
    for adapter in found:
        adapter.merged_weight = None


@torch.no_grad()
def fold(module: nn.Module) -> list[str]:
    """Replace every adapter by its plain layer with the merged weight, in place, for good.

    The module has its original classes and state-dict keys again; it stays frozen.

    Returns:
        The names of the layers, in order.

    Raises:
        ValueError: There is no adapter, one cannot be merged (`across_groups`), or the module
            itself is one. Nothing was changed.
    """
    found = _adapters(module)
    if "" in found:
        raise ValueError("an adapter cannot be folded in its own place: fold what holds it")
    weights = [_merged(adapter) for adapter in found.values()]
    for adapter, weight in zip(found.values(), weights, strict=True):
        adapter.layer.weight = nn.Parameter(weight, requires_grad=False)
    _replace(module, {adapter: adapter.layer for adapter in found.values()})
    return list(found)


def _merged(adapter: Adapter) -> Tensor:
    adapter.merged_weight = None  # of what A and B were before
    return adapter.weight


def _adapters(module: nn.Module) -> dict[str, Adapter]:
    found = adapters(module)
    if not found:
        raise ValueError(f"{type(module).__name__} holds no adapter: call adapt(module, ...) first")
    return found


def _replace(module: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put the new layers into the places of the old, under every name that a layer has."""
    for parent in list(module.modules()):
        if parent in new:
            continue
        for name, child in list(parent._modules.items()):  # a child of two names, under both
            if child is not None and child in new:
                parent.add_module(name, new[child])


def _find(module: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Module]:
    """Return the layers that targets match by name, in order."""
    layers = {name: layer for name, layer in module.named_modules() if name}
    can: dict[str, nn.Module] = {
        name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    if targets == "all":
        if not can:
            raise ValueError(f"{type(module).__name__} holds no layer to adapt: {KINDS}")
        return can
    wanted = [targets] if isinstance(targets, str) else list(targets)
    if not wanted:
        raise ValueError('targets is empty: give names of layers, or "all"')
    matched: set[str] = set()
    for target in wanted:
        try:
            pattern = re.compile(rf"(?:.*\.)?(?:{target})")
        except re.error as error:
            raise ValueError(f"target {target!r} is no regular expression: {error}") from error
        names = {name for name in layers if pattern.fullmatch(name)}
        weighted = {name for name in names if [*layers[name].parameters(recurse=False)]}
        if not weighted:
            ends: dict[str, Any] = {name.rpartition(".")[2]: None for name in can}
            near = difflib.get_close_matches(target, list(ends | can), n=3, cutoff=0.5)
            what = f"only {_some(sorted(names))}, without weights" if names else "no layer"
            raise ValueError(
                f"target {target!r} matches {what}; near: {', '.join(near) or '-'}; "
                f"layers to adapt end in {', '.join(ends) or '-'}"
            )
        matched |= weighted
    return {name: layer for name, layer in layers.items() if name in matched}


def _some(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
