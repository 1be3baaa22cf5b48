"""Surgery on timm networks: a chain of steps, undilated strides, the WSOL forms, local weights.

The papers of weakly-supervised localisation read 28x28 maps from 224x224 images. They get them by
setting the late strides of a network to 1 *without* dilation, weights unchanged, which is another
function than timm's `output_stride` (that one dilates). VGG16 additionally gets one new convolution
("conv6", 512 -> 1024), and InceptionV3 is cut after Mixed_6e and gets two ("A3", 768 -> 1024 ->
1024); see Zhou et al., CVPR 2016, and Choe et al., "Evaluating Weakly Supervised Object
Localization Methods Right", CVPR 2020, arXiv 2001.07437. Written from these definitions.

Where we deviate: the new convolutions are He-initialised (fan-out, as timm's VGG), and stride 16
is offered for both forms beside the papers' 8.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

Step = tuple[str, Callable[[Tensor], Tensor]]


class Tap(NamedTuple):
    """One level of the pyramid: its channels, its nominal stride, and the module that ends it."""

    channels: int
    stride: int
    module: str


# Top-level modules that timm's `forward_features` runs, in order, by timm class. Families that are
# absent here still give `final` and levels; they cannot be split at inner layers.
TRUNKS: dict[str, tuple[str, ...]] = {
    "ByobNet": ("stem", "stages", "final_conv"),
    "ConvNeXt": ("stem", "stages", "norm_pre"),
    "DenseNet": ("features",),
    "EfficientNet": ("conv_stem", "bn1", "blocks", "conv_head", "bn2"),
    "InceptionV3": (
        *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Pool1", "Conv2d_3b_1x1"),
        *("Conv2d_4a_3x3", "Pool2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b"),
        *("Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"),
    ),
    "MambaOut": ("stem", "stages"),
    "MaxxVit": ("stem", "stages", "norm"),
    "MobileNetV3": ("conv_stem", "bn1", "blocks"),
    "NormFreeNet": ("stem", "stages", "final_conv", "final_act"),
    "RegNet": ("stem", "s1", "s2", "s3", "s4", "final_conv"),
    "ResNet": ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    "ResNetV2": ("stem", "stages", "norm"),
    "SwinTransformer": ("patch_embed", "layers", "norm"),
    "SwinTransformerV2": ("patch_embed", "layers", "norm"),
    "VGG": ("features",),
    "VisionTransformer": ("patch_embed", "patch_drop", "norm_pre", "blocks", "norm"),
}
# Stages whose forward is `blocks(downsample(x))`, so that single blocks can be steps.
DOWNSAMPLE_THEN_BLOCKS = {"ConvNeXtStage", "SwinTransformerStage"}
# First parts of the keys that classifiers have in published weight files.
# What families without a known chain run only after `forward_features`.
AFTER_FINAL = {"attn_pool", "classifier", "fc", "fc_norm", "head", "head_dist", "pre_logits"}
UNDILATED_FAMILIES = "ResNet, VGG, InceptionV3, DenseNet, EfficientNet/MobileNet, ConvNeXt"


def family(model: nn.Module) -> str | None:
    """Name of the timm class in `TRUNKS` whose `forward_features` this model runs, else None."""
    for cls in type(model).__mro__:
        if cls.__name__ in TRUNKS and cls.__module__.startswith("timm."):
            same = getattr(type(model), "forward_features", None) is cls.__dict__.get(
                "forward_features"
            )
            return cls.__name__ if same else None
    return None


def trunk_names(model: nn.Module) -> tuple[str, ...]:
    """Top-level modules that make `final`, in order; empty for families without a known chain."""
    kept = getattr(model, "wsl_trunk", None)
    if kept is not None:
        return tuple(kept)
    return TRUNKS.get(family(model) or "", ())


def vgg_poolings(model: Any) -> list[int]:
    """Indices in a VGG's `features` of its poolings, whether or not `undilate` took them out."""
    return [
        int(key)
        for key, layer in model.features.named_children()
        if isinstance(layer, nn.MaxPool2d | nn.Identity)  # an identity takes a pooling's place
    ]


def chain(model: nn.Module, names: Iterable[str] | None = None) -> list[Step]:
    """The trunk as named steps; applying all of them in order is timm's `forward_features`.

    Args:
        model: A timm network.
        names: Modules whose ends must be ends of steps. A stage is taken apart only where one of
            these lies inside it, so that forward hooks on whole stages fire. None: the finest
            steps.

    Returns:
        `(name, function)` pairs, names as in `named_modules`; empty where the family has no
        known chain.
    """
    steps: list[Step] = []
    names = None if names is None else tuple(names)
    for name in trunk_names(model):
        module = getattr(model, name)
        if name == "patch_embed" and hasattr(model, "_pos_embed"):
            steps.append((name, _token_embedding(model)))
        else:
            steps.extend(_expand(name, module, names))
    return steps


def _token_embedding(model: Any) -> Callable[[Tensor], Tensor]:
    def embed(image: Tensor) -> Tensor:
        tokens: Tensor = model._pos_embed(model.patch_embed(image))
        return tokens

    return embed


def _expand(name: str, module: nn.Module, names: tuple[str, ...] | None) -> list[Step]:
    if names is not None and not any(wanted.startswith(f"{name}.") for wanted in names):
        return [(name, module)]
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        children = list(module.named_children())
    elif type(module).__name__ in DOWNSAMPLE_THEN_BLOCKS:
        children = [(key, module.get_submodule(key)) for key in ("downsample", "blocks")]
    else:
        return [(name, module)]
    return [step for key, child in children for step in _expand(f"{name}.{key}", child, names)]


def remove_unused(model: nn.Module) -> set[str]:
    """Replace every top-level module that does not feed `final` by an identity, in place.

    Returns:
        The names of the replaced modules (classifier, VGG's fully connected layers, ...).
    """
    children = {name for name, _ in model.named_children()}
    used = set(trunk_names(model))
    # ViT's `_pos_embed` calls `pos_drop`, which is no module of the chain.
    removed = children - used - {"pos_drop"} if used else children & AFTER_FINAL
    for name in removed:
        setattr(model, name, nn.Identity())
    return removed


def no_inplace(model: nn.Module) -> None:
    """Switch in-place activations off: they would overwrite an activation that `split` gave out."""
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


def undilate(model: Any, taps: list[Tap], stride: int) -> list[Tap]:
    """Set the late strides of a network to 1, dilation 1, weights unchanged, in place.

    Args:
        model: A timm network of one of the supported families.
        taps: Its levels.
        stride: Wanted total stride of the last stage, 8, 16 or 32.

    Returns:
        The levels with their new strides.

    Raises:
        ValueError: If the family has no stride to remove, or uses a layer that cannot take it.
    """
    name = family(model)
    total, units = _downsamplers(model, name)
    if not units:
        raise ValueError(
            f"{type(model).__name__} has no undilated form at stride {stride}: its stride is fixed "
            f"by the patch size or unknown here. Families that allow it: {UNDILATED_FAMILIES}; "
            "else leave `stride` at None, or use a larger `img_size` for a finer map."
        )
    for unit in units:
        if total < stride:
            total *= 2
        else:
            _remove_stride(model, unit)
    if name == "VGG" and isinstance(model.features[-1], nn.Identity):
        taps = taps[:-1]  # the last pool is gone: its output is the last convolution's level
    return [tap._replace(stride=min(tap.stride, stride)) for tap in taps]


def _downsamplers(model: Any, name: str | None) -> tuple[int, list[str]]:
    """Stride before the first removable unit, and the units, each of which halves the map."""
    if name == "ResNet":
        return 4, ["layer2.0", "layer3.0", "layer4.0"]
    if name in {"EfficientNet", "MobileNetV3"}:
        blocks = [
            f"blocks.{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))
        ]
        return 2, [key for key in blocks if _is_strided(model.get_submodule(key))]
    if name == "ConvNeXt":
        units = [f"stages.{i}.downsample" for i in range(len(model.stages))]
        units = [key for key in units if _is_strided(model.get_submodule(key))]
        return int(next(iter(model.feature_info))["reduction"]), units
    if name == "DenseNet":
        return 4, [f"features.{k}" for k, _ in model.features.named_children() if "transition" in k]
    if name == "VGG":
        pools = [k for k, m in model.features.named_children() if isinstance(m, nn.MaxPool2d)]
        return 1, [f"features.{k}" for k in pools]
    if name == "InceptionV3":
        return 8, ["Mixed_6a", "Mixed_7a"]
    return 0, []


def _is_strided(module: nn.Module) -> bool:
    return any(
        max(_pair(layer.stride)) > 1
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d)
    )


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _remove_stride(model: nn.Module, unit: str) -> None:
    module = model.get_submodule(unit)
    if type(module).__name__ in {"InceptionB", "InceptionD"}:
        model.set_submodule(unit, _PaddedReduction(module, stride=1))
        return
    for key, layer in list(module.named_modules()):
        path = f"{unit}.{key}" if key else unit
        if "BlurPool" in type(layer).__name__:
            raise ValueError(
                f"{path} is an anti-aliasing layer, whose stride cannot be removed: use the "
                'variant of the network without it, or stride_mode="dilated".'
            )
        if isinstance(layer, nn.Conv2d) and max(_pair(layer.stride)) > 1:
            if layer.kernel_size[0] % 2 == 0 and not isinstance(layer, Conv2dSame):
                layer = _same_padding(layer)  # ConvNeXt's 2x2 must keep the size at stride 1
                model.set_submodule(path, layer)
            layer.stride = (1, 1)
        elif isinstance(layer, nn.AvgPool2d | nn.MaxPool2d) and max(_pair(layer.stride)) > 1:
            if _pair(layer.kernel_size) != (2, 2):
                raise ValueError(f"{path}: the stride of {layer} cannot be removed.")
            model.set_submodule(path, nn.Identity())
    if hasattr(module, "stride"):
        module.stride = 1  # type: ignore[assignment]


def _same_padding(conv: nn.Conv2d) -> Conv2dSame:
    """The same weights in a convolution that pads right and below as its stride needs."""
    kernel, stride = _pair(conv.kernel_size), _pair(conv.stride)
    padded = Conv2dSame(conv.in_channels, conv.out_channels, kernel, stride)
    padded.weight, padded.bias = conv.weight, conv.bias
    return padded


class _PaddedReduction(nn.Module):
    """InceptionV3's reduction block (Mixed_6a, Mixed_7a) with padding 1: stride 1 keeps h, w.

    The branches are the block's own modules under their own names: weights and keys are unchanged.

    Args:
        block: timm's `InceptionB` or `InceptionD`.
        stride: 1 or 2.
    """

    def __init__(self, block: nn.Module, stride: int) -> None:
        super().__init__()
        self.stride = stride
        for name, branch in block.named_children():
            self.add_module(name, branch)
            conv = branch.get_submodule("conv")
            if isinstance(conv, nn.Conv2d) and max(conv.stride) > 1:
                conv.stride = (stride, stride)
                conv.padding = (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the convolution branches and the max-pool: `(B,C,h,w) -> (B,C',h',w')`."""
        branches: dict[str, Tensor] = {}
        for name, branch in self.named_children():
            stem = name.rsplit("_", 1)[0] if "_" in name else name
            branches[stem] = branch(branches.get(stem, x))
        pooled = F.max_pool2d(x, kernel_size=3, stride=self.stride, padding=1)
        return torch.cat([*branches.values(), pooled], dim=1)


def wsol_form(
    model: Any,
    taps: list[Tap],
    stride: int,
) -> tuple[list[Tap], list[str]]:
    """Turn a VGG, InceptionV3 or ResNet into the form that the WSOL papers train, in place.

    VGG: without its late max-pools, plus a new 3x3 convolution 512 -> 1024 and ReLU. InceptionV3:
    padded stem, Mixed_6a at stride 1, cut after Mixed_6e, plus two new 3x3 convolutions with ReLU,
    768 -> 1024 -> 1024. ResNet: late strides 1.

    Args:
        model: A timm network.
        taps: Its levels.
        stride: 8 (the papers) or 16.

    Returns:
        The levels of the new form, and the names of its new layers.

    Raises:
        ValueError: For any other family.
    """
    name = family(model)
    if name == "ResNet":
        return undilate(model, taps, stride), []
    if name == "VGG":
        taps = undilate(model, taps, stride)
        model.features.add_module("conv6", _he_conv(model.num_features, 1024))
        model.features.add_module("relu6", nn.ReLU())
        # One level per resolution: 64, 128, 256 (512 too at stride 16), then the new 1024.
        taps = [tap for tap in taps if tap.stride < stride]
        return [*taps, Tap(1024, stride, "features.relu6")], ["features.conv6"]
    if name == "InceptionV3":
        for stem in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4a_3x3"):
            getattr(model, stem).conv.padding = (1, 1)
        model.Pool1.padding = model.Pool2.padding = 1
        model.Mixed_6a = _PaddedReduction(model.Mixed_6a, stride=stride // 8)
        model.A3_1 = nn.Sequential(_he_conv(768, 1024), nn.ReLU())
        model.A3_2 = nn.Sequential(_he_conv(1024, 1024), nn.ReLU())
        trunk = TRUNKS["InceptionV3"]
        model.wsl_trunk = (*trunk[: trunk.index("Mixed_6e") + 1], "A3_1", "A3_2")
        taps = [
            Tap(64, 2, "Conv2d_2b_3x3"),
            Tap(80, 4, "Conv2d_3b_1x1"),
            Tap(288, 8, "Mixed_5d"),
            Tap(768, stride, "Mixed_6e"),
            Tap(1024, stride, "A3_2"),
        ]
        return taps, ["A3_1", "A3_2"]
    raise ValueError(
        f"{type(model).__name__} has no WSOL form; VGG, InceptionV3 and ResNet do. "
        "For a finer map of another network set `stride`."
    )


def _he_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
