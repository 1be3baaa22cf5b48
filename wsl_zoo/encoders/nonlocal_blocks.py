"""Non-local blocks behind named layers of a convolutional encoder.

Wang et al., "Non-local Neural Networks", CVPR 2018, arXiv 1711.07971, embedded Gaussian form:
y = x + BN(conv1x1(sum_j softmax_j(q_i . k_j) v_j)), without a division by sqrt(d). The scale and
the shift of BN start at zero, so that a block is the identity until it is trained and pretrained
weights keep their meaning.

The blocks follow their layers by forward hooks: the encoder's parameters keep their names, so that
weight files fit, and `Encoder.split` sees the blocks too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.encoders.timm import Encoder


class NonLocalBlock(nn.Module):
    """Residual self-attention over the positions of a map; the identity at the start.

    Args:
        channels: Channels C of the map.
        reduction: C / reduction are the channels of queries and keys, at least 1.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.query = nn.Conv2d(channels, inner, kernel_size=1)
        self.key = nn.Conv2d(channels, inner, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.out = nn.Conv2d(channels, channels, kernel_size=1)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Add to every position what the others hold: `(B, C, h, w)`, shape unchanged."""
        q, k, v = (
            conv(x).flatten(2).transpose(1, 2) for conv in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return x + self.norm(self.out(attended.transpose(1, 2).reshape(x.shape)))

    def behind(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Follow a layer, as its forward hook."""
        return self(output)


def attach_nonlocal(
    encoder: Encoder, layers: Sequence[str] | None = None, reduction: int = 8
) -> nn.ModuleList:
    """Put a non-local block behind each of some layers.

    Args:
        encoder: A convolutional encoder; it runs the blocks, but does not own them.
        layers: Names as `Encoder.split` takes them. None: what `default_layers` gives.
        reduction: See `NonLocalBlock`.

    Returns:
        The blocks in the order of `layers`, for the caller to own.

    Raises:
        ValueError: No such layer, or one that gives no `(B, C, h, w)` map.
    """
    steps = encoder.layers()
    modules: dict[str, nn.Module] = {}
    for layer in default_layers(encoder) if layers is None else layers:
        inside = [name for name in steps if f"{name}.".startswith(f"{layer}.")]
        if not inside:
            raise ValueError(f"{encoder.name} has no layer {layer!r}; it has {', '.join(steps)}.")
        # A stage's last step: the stage is not called as a module where `split` takes it apart.
        modules[layer] = encoder.model.get_submodule(inside[-1])
    blocks = nn.ModuleList()
    for layer, channels in _channels(encoder, modules).items():
        block = NonLocalBlock(channels, reduction)
        modules[layer].register_forward_hook(block.behind)
        blocks.append(block)
    return blocks


def default_layers(encoder: Encoder) -> list[str]:
    """Where NL-CCAM has its blocks: behind the poolings of a VGG but the first, and at its end.

    In other networks: the ends of all levels but the first.
    """
    steps = {name: encoder.model.get_submodule(name) for name in encoder.layers()}
    pools = [name for name, module in steps.items() if isinstance(module, nn.MaxPool2d)]
    if len(pools) > 2:
        end = [name for name, module in steps.items() if not isinstance(module, nn.Identity)][-1]
        return list(dict.fromkeys([*pools[1:], end]))
    info: Any = encoder.model.feature_info
    return [str(level["module"]) for level in info][1:]


def _channels(encoder: Encoder, modules: dict[str, nn.Module]) -> dict[str, int]:
    """Channels of what each module gives, from one small image."""
    shapes: dict[nn.Module, torch.Size] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        shapes[module] = output.shape

    handles = [module.register_forward_hook(note) for module in modules.values()]
    modes = [(part, part.training) for part in encoder.modules()]
    try:
        with torch.no_grad():
            weight = next(encoder.parameters())
            encoder.eval().final(weight.new_zeros(1, encoder.in_chans, 96, 96))
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in modes:
            part.training = mode
    nhwc = getattr(encoder.model, "output_fmt", "NCHW") == "NHWC"
    for layer, module in modules.items():
        if len(shapes[module]) != 4 or nhwc:
            raise ValueError(
                f"{layer} of {encoder.name} gives no (B, C, h, w) map: non-local blocks belong to "
                "convolutional encoders."
            )
    return {layer: shapes[module][1] for layer, module in modules.items()}
