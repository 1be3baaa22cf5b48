"""Any timm network as an encoder: `final, levels = encoder(image)`, all maps NCHW.

`final` is what timm's classifier pools (the output of `forward_features`: for mobilenetv2_100 1280
channels, for a ViT the normed patch tokens as a map), `levels` is the pyramid that timm's
`forward_intermediates` gives, shallow to deep, whose last level may be narrower than `final`.

`encoder.split(image, layer)` gives an activation *in the graph* and the function from it to
`final`. This matters for transformers: what `forward_intermediates` returns for Swin and ViT is a
permuted copy that `final` does not depend on, so its gradient is None. Networks whose trunk is a
known chain of modules (`surgery.TRUNKS`) are therefore run step by step; both ways give the same
numbers. In-place activations are switched off, because they would overwrite such an activation.

Strides: `stride=8, stride_mode="undilated"` is the form of the WSOL papers (late strides 1,
dilation 1), `"dilated"` is timm's `output_stride`. Same weights, different functions.

Deviation from timm: a ViT gives four levels, evenly spaced in depth and ending with the last block,
instead of one per block. Classifiers and whatever else does not feed `final` are removed.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsl_zoo.encoders import surgery
from wsl_zoo.encoders.adapters import factor_names
from wsl_zoo.encoders.creation import (
    ANY_SIZE,
    Form,
    check_choices,
    check_name,
    create,
    family_file,
    level_indices,
    per_channel,
)
from wsl_zoo.encoders.surgery import Tap
from wsl_zoo.encoders.weights import load_weights

# What `wsl-zoo list encoders` shows: the networks that the tests build. Any other timm name may do.
TESTED: dict[str, str] = {
    "resnet18": "stride 8 or 16, undilated or dilated",
    "resnet50": "the papers' encoder; stride 8 or 16, undilated or dilated; form wsol",
    "vgg16": "form wsol: three poolings and conv6",
    "inception_v3": "form wsol: stride 8 up to Mixed_6e and two A3 blocks",
    "densenet121": "undilated strides",
    "efficientnet_b0": "undilated or dilated strides",
    "mobilenetv2_100": "undilated or dilated strides",
    "convnext_atto": "undilated or dilated strides",
    "swin_tiny_patch4_window7_224": "any image size that its patches divide",
    "deit_tiny_patch16_224": "any image size that its patches divide",
    "test_resnet": "for tests and the demo; random weights",
    "test_vit": "for tests; random weights",
    "open_clip": "no timm network: the image tower of an image-text network",
    "mlp": "no timm network: rows of features in place of images",
}


class Encoder(nn.Module):
    """A timm network without its classifier.

    Args:
        name: timm name, with or without tag: `resnet50`, `deit_tiny_patch16_224`, `test_resnet`.
        pretrained: Download and load timm's pretrained weights. Nothing is downloaded otherwise.
        weights: Local weight file (`.safetensors`, `.pth`, `.pt`, `.bin`, `.ckpt`) instead.
        in_chans: Channels of the image; the stem's weights are adapted as timm does.
        stride: Total stride of the last stage (8, 16, 32), or None for the network's own.
        stride_mode: "undilated" (late strides 1, no dilation) or "dilated" (timm's output_stride).
        mean: Normalisation of the input, one value or one per channel; None: timm's.
        std: As `mean`.
        form: "wsol" gives the papers' forms of VGG, InceptionV3 and ResNet (stride 8 unless 16 is
            asked for); "class_token" of a transformer its class token as the final map, of one
            position, which linear probes read; "timm" the network as it is.
        img_size: Image size that a ViT or Swin is built for; fully convolutional networks ignore
            it. ViT, DeiT and Swin take other sizes than this one too.
        args: Further arguments of timm's network, e.g. `{"init_values": 1.0e-5}`: the layer scale
            that a weight file holds.

    Attributes:
        name: The timm name.
        channels: Channels of each level.
        strides: Nominal stride of each level; actual sizes may differ by rounding and padding.
        level_modules: Name of the module of `model` that ends each level.
        final_channels: Channels of `final`.
        has_map: Whether `final` is a map of the image; otherwise it is a vector of the whole.
        mean: Per-channel mean with which images must be normalised, in [0, 1].
        std: Per-channel standard deviation, likewise.
        model: The timm network.

    Raises:
        ValueError: Unknown name, a stride or form that the family does not allow, a weight file
            that does not fit.
        FileNotFoundError: No such weight file.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        weights: str | Path | None = None,
        in_chans: int = 3,
        stride: int | None = None,
        stride_mode: Literal["undilated", "dilated"] = "undilated",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        form: Form = "timm",
        img_size: int | Sequence[int] | None = None,
        args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choices(pretrained, weights, stride, stride_mode, form)
        check_name(name)
        self.name = name
        self.in_chans = in_chans
        dilated = stride if stride_mode == "dilated" else None
        model = create(name, False, in_chans, dilated, img_size, args)
        taps = [
            Tap(int(info["num_chs"]), int(info["reduction"]), str(info["module"]))
            for info in model.feature_info
        ]
        final_channels = int(model.num_features)
        self._new_layers: list[str] = []
        if form == "wsol":
            taps, self._new_layers = surgery.wsol_form(model, taps, stride or 8)
            final_channels = taps[-1].channels
        elif stride is not None and stride_mode == "undilated" and stride != taps[-1].stride:
            if stride > taps[-1].stride:
                raise ValueError(f"{name} has stride {taps[-1].stride}; it cannot become {stride}.")
            taps = surgery.undilate(model, taps, stride)
        elif dilated is not None and taps[-1].stride != dilated:
            raise ValueError(
                f"{name} came out at stride {taps[-1].stride} instead of {dilated}: use "
                'stride_mode="undilated" or leave `stride` at None.'
            )
        self._indices = level_indices(taps)
        taps = [taps[i] for i in self._indices]
        self.channels = [tap.channels for tap in taps]
        self.strides = [tap.stride for tap in taps]
        self.final_channels = final_channels
        self.level_modules = [tap.module for tap in taps]
        config = model.pretrained_cfg
        self.mean = per_channel(config["mean"] if mean is None else mean, in_chans)
        self.std = per_channel(config["std"] if std is None else std, in_chans)
        native = config["input_size"][-2:] if img_size is None else img_size
        self._native = (native, native) if isinstance(native, int) else tuple(native)
        self._any_size = not config.get("fixed_input_size") or family_file(name) in ANY_SIZE
        self._img_size, self._args = img_size, args
        self.has_map = form != "class_token"
        if not self.has_map and getattr(model, "cls_token", None) is None:
            raise ValueError(f'{name} has no class token: leave form="class_token" to ViT and DeiT')
        self._removed = surgery.remove_unused(model)
        surgery.no_inplace(model)
        self.model: nn.Module = model
        if pretrained or weights is not None:
            self.load_weights(weights)

    def load_weights(self, weights: str | Path | None = None) -> None:
        """Read weights into the network, in place; layers that it has beyond timm's keep theirs.

        These are the new layers of the WSOL forms, and the factors of LoRA.

        Args:
            weights: Local weight file; None downloads timm's pretrained weights of this network.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file cannot be read or does not fit.
        """
        if weights is None:
            source = create(self.name, True, self.in_chans, None, self._img_size, self._args)
            own = self.model.state_dict()
            state = {key: value for key, value in source.state_dict().items() if key in own}
            self.model.load_state_dict(state, strict=False)
        else:
            path = Path(weights).expanduser()
            new = [*self._new_layers, *factor_names(self.model)]
            load_weights(self.model, path, self.in_chans, self._removed, new)

    def forward(self, image: Tensor, levels: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Final map and pyramid.

        Args:
            image: `(B, in_chans, H, W)`, normalised with `mean` and `std`.
            levels: False spares the pyramid; the list is then empty.

        Returns:
            `final (B, final_channels, h, w)` and the levels, shallow to deep, each
            `(B, channels[i], h_i, w_i)`.

        Raises:
            ValueError: If the image has a size or number of channels that the network cannot take.
        """
        self._check(image)
        size = (image.shape[-2], image.shape[-1])
        ends = self.level_modules if levels else []
        steps = surgery.chain(self.model, ends)
        if not steps:
            return self._forward_unknown(image, levels, size)
        taken: list[Tensor] = []
        x = image
        for name, step in steps:
            x = step(x)
            if name in ends:
                taken.append(self._to_map(x, size)[0])
        return self._final(x, size), taken

    def final(self, image: Tensor) -> Tensor:
        """Only the final map `(B, final_channels, h, w)`, without keeping the pyramid."""
        return self.forward(image, levels=False)[0]

    def split(
        self, image: Tensor, layer: int | str = -1
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """An activation in the graph, and the function from it to `final`. No hooks.

        Args:
            image: `(B, in_chans, H, W)`.
            layer: Index into `[*levels, final]` (-1 is `final`, -2 the last level), or the name of
                a module of the trunk, such as "layer3", "layer3.1" or "blocks.7".

        Returns:
            `A (B, C, h, w)` and `rest`, with `rest(A)` equal to `final`. `rest` also takes
            `n * B` activations (as from `A.repeat(n, 1, 1, 1)`: row i belongs to image `i % B`);
            the class tokens of a ViT are kept and repeated. `layer=-1` gives the identity.

        Raises:
            ValueError: If there is no such layer, or the network's trunk is no known chain.
            IndexError: If an integer layer is out of range.
        """
        self._check(image)
        size = (image.shape[-2], image.shape[-1])
        if layer == -1 or layer == len(self.channels):
            return self.final(image), _identity
        name = self._layer_name(layer)
        steps = surgery.chain(self.model, [name])
        if not steps:
            raise ValueError(
                f"{self.name} cannot be split at an inner layer, only at layer=-1. "
                f"Families that can: {', '.join(sorted(surgery.TRUNKS))}."
            )
        if name not in dict(steps):
            near = difflib.get_close_matches(name, self.layers(), n=3, cutoff=0.3)
            raise ValueError(f"no layer {name!r} to split at; near: {near}; all: {self.layers()}.")
        end = [key for key, _ in steps].index(name) + 1
        x = image
        for _, step in steps[:end]:
            x = step(x)
        activation, prefix = self._to_map(x, size)

        def rest(activation: Tensor) -> Tensor:
            x = self._from_map(activation, prefix)
            for _, step in steps[end:]:
                x = step(x)
            return self._final(x, size)

        return activation, rest

    def layers(self) -> list[str]:
        """The finest names that `split` takes, shallow to deep, beside those of whole stages.

        Empty where only `layer=-1` is possible.
        """
        return [name for name, _ in surgery.chain(self.model)]

    def boosted_parameters(self) -> list[nn.Parameter]:
        """Parameters that the WSOL papers train with the larger learning rate of the head.

        The new layers of the VGG and InceptionV3 WSOL forms, layer4 of a ResNet, else none.
        """
        names = ["layer4"] if surgery.family(self.model) == "ResNet" else self._new_layers
        return [p for name in names for p in self.model.get_submodule(name).parameters()]

    def _layer_name(self, layer: int | str) -> str:
        if isinstance(layer, str):
            return layer
        count = len(self.channels) + 1
        if not -count <= layer < count:
            raise IndexError(
                f"layer {layer}: {self.name} has levels 0..{count - 2} and {count - 1} (or -1) "
                "for the final map."
            )
        return self.level_modules[layer % count]

    def _check(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != self.in_chans:
            raise ValueError(
                f"{self.name} reads images (B, {self.in_chans}, H, W), got {tuple(image.shape)}."
            )
        size = (image.shape[-2], image.shape[-1])
        if not self._any_size and size != self._native:
            raise ValueError(
                f"{self.name} was built for images of {self._native[0]}x{self._native[1]}, got "
                f"{size[0]}x{size[1]}: resize, or build it with img_size={size}."
            )
        patch = getattr(getattr(self.model, "patch_embed", None), "patch_size", (1, 1))
        patch = (patch, patch) if isinstance(patch, int) else patch
        if size[0] % patch[0] or size[1] % patch[1]:
            raise ValueError(
                f"{self.name} reads patches of {patch[0]}x{patch[1]}, which do not divide an image "
                f"of {size[0]}x{size[1]}: resize to a multiple."
            )

    def _forward_unknown(
        self, image: Tensor, levels: bool, size: tuple[int, int]
    ) -> tuple[Tensor, list[Tensor]]:
        model: Any = self.model
        if not levels:
            return self._final(model.forward_features(image), size), []
        final, taken = model.forward_intermediates(image, indices=self._indices, output_fmt="NCHW")
        return self._final(final, size), list(taken)

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size of the token grid for an image of this size."""
        embed: Any = getattr(self.model, "patch_embed", None)
        if hasattr(embed, "dynamic_feat_size"):
            h, w = embed.dynamic_feat_size(size)
            return int(h), int(w)
        return -(-size[0] // self.strides[-1]), -(-size[1] // self.strides[-1])

    def _final(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """What the trunk gives -> the final map, of the form that was asked for."""
        final, prefix = self._to_map(x, size)
        if self.has_map:
            return final
        assert prefix is not None
        return prefix[:, 0, :, None, None]

    def _to_map(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Tokens `(B,N,C)`, NHWC or NCHW -> NCHW map, and the class tokens `(B,P,C)` if any."""
        model: Any = self.model
        if not isinstance(x, Tensor):
            raise ValueError(f"{self.name} gives {len(x)} feature maps at the end, not one.")
        if x.ndim == 3:
            count = int(getattr(model, "num_prefix_tokens", 0))
            h, w = self._grid(size)
            if h * w != x.shape[1] - count:
                raise ValueError(
                    f"{self.name} gives {x.shape[1] - count} tokens for an image of "
                    f"{size[0]}x{size[1]}, which are no map of {h}x{w}."
                )
            tokens = x[:, count:].transpose(1, 2).reshape(x.shape[0], x.shape[2], h, w)
            return tokens, x[:, :count]
        if getattr(model, "output_fmt", "NCHW") == "NHWC":
            return x.permute(0, 3, 1, 2).contiguous(), None
        return x, None

    def _from_map(self, activation: Tensor, prefix: Tensor | None) -> Tensor:
        """Inverse of `_to_map`, for any whole multiple of the batch that `prefix` was kept for."""
        if prefix is not None:
            repeats, remainder = divmod(activation.shape[0], prefix.shape[0])
            if remainder:
                raise ValueError(
                    f"{activation.shape[0]} activations are no whole multiple of the "
                    f"{prefix.shape[0]} images whose class tokens were kept."
                )
            tokens = activation.flatten(2).transpose(1, 2)
            return torch.cat([prefix.to(tokens.dtype).repeat(repeats, 1, 1), tokens], dim=1)
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return activation.permute(0, 2, 3, 1).contiguous()
        return activation


def _identity(activation: Tensor) -> Tensor:
    return activation
