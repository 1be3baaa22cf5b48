"""How a timm network is made for an encoder: checked, built, and its levels chosen."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import timm

from wsl_zoo.encoders import surgery
from wsl_zoo.encoders.surgery import Tap

# How timm is asked to take images of another size than the network's own.
ANY_SIZE = {
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
    "vision_transformer": {"dynamic_img_size": True},
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
}
TRANSFORMER_LEVELS = 4
OWN_OPTIONS = {"pretrained", "in_chans", "num_classes", "output_stride", "img_size"}

Form = Literal["timm", "wsol", "class_token"]


def check_choices(
    pretrained: bool, weights: str | Path | None, stride: int | None, stride_mode: str, form: str
) -> None:
    """Refuse choices that do not go together, or that there are not.

    Raises:
        ValueError: Says which.
    """
    if pretrained and weights is not None:
        raise ValueError("give either pretrained=True or a weight file, not both.")
    if stride not in (None, 8, 16, 32):
        raise ValueError(f"stride must be 8, 16, 32 or None, got {stride}.")
    if stride_mode not in ("undilated", "dilated"):
        raise ValueError(f'stride_mode must be "undilated" or "dilated", got {stride_mode!r}.')
    if form not in ("timm", "wsol", "class_token"):
        raise ValueError(f'form must be "timm", "wsol" or "class_token", got {form!r}.')
    if form == "wsol" and (stride == 32 or stride_mode == "dilated"):
        raise ValueError("the WSOL forms are undilated, with stride 8 or 16.")


def check_name(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        ValueError: Names the nearest ones.
    """
    if not timm.is_model(name) or ":" in name:
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        raise ValueError(f"timm has no network {name!r}; nearest names: {', '.join(near) or '-'}.")
    architecture, _, tag = name.partition(".")
    if tag:
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        if name not in known:
            raise ValueError(f"timm has no weights {name!r}; {architecture} has: {known}.")


def family_file(name: str) -> str:
    """Return the stem of timm's file that a network stands in."""
    return str(timm.models.model_entrypoint(name.split(".")[0]).__module__).rsplit(".", 1)[-1]


def create(
    name: str,
    pretrained: bool,
    in_chans: int,
    output_stride: int | None,
    img_size: int | Sequence[int] | None,
    args: Mapping[str, Any] | None = None,
) -> Any:
    """Return timm's network without its classifier.

    Args:
        name: timm name.
        pretrained: Download its weights.
        in_chans: Channels of the image.
        output_stride: Stride of the last stage, dilated; None: the network's own.
        img_size: Image size that a ViT or Swin is built for.
        args: Further arguments of `timm.create_model`.

    Raises:
        ValueError: There is no such dilated form, or there are no such arguments.
    """
    own = sorted(OWN_OPTIONS & set(args or ()))
    if own:
        raise ValueError(f"{', '.join(own)} of {name}: give the encoder's own arguments, not args")
    options: dict[str, Any] = dict(ANY_SIZE.get(family_file(name), {}))
    if family_file(name) == "vgg" and not pretrained:
        options["mlp_ratio"] = 1 / 4096  # the two fc layers (120 M weights) are removed below
    config = timm.get_pretrained_cfg(name)
    if img_size is not None and config is not None and config.fixed_input_size:
        options["img_size"] = img_size if isinstance(img_size, int) else tuple(img_size)
    if output_stride is not None:
        options["output_stride"] = output_stride
    try:
        return timm.create_model(
            name,
            pretrained=pretrained,
            in_chans=in_chans,
            num_classes=0,
            **options | dict(args or {}),
        )
    except (AssertionError, NotImplementedError, TypeError) as error:
        if args and output_stride is None:
            raise ValueError(f"{name} takes no arguments {dict(args)}: {error}") from error
        if output_stride is None:
            raise
        raise ValueError(
            f"{name} has no dilated form at stride {output_stride}: ResNet, RegNet, ConvNeXt and "
            f"EfficientNet/MobileNet do. Undilated forms: {surgery.UNDILATED_FAMILIES}."
        ) from error


def level_indices(taps: list[Tap]) -> list[int]:
    """All levels of a pyramid; four evenly spaced blocks where every level has the same stride."""
    count = len(taps)
    if len({tap.stride for tap in taps}) > 1 or count <= TRANSFORMER_LEVELS:
        return list(range(count))
    return [count * (i + 1) // TRANSFORMER_LEVELS - 1 for i in range(TRANSFORMER_LEVELS)]


def per_channel(value: float | Iterable[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel, of one, of as many, or of the three of RGB (their mean).

    Raises:
        ValueError: Another number of values.
    """
    values = (float(value),) if isinstance(value, int | float) else tuple(float(v) for v in value)
    if len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    if len(values) == 3:  # timm's RGB values for another number of channels
        return (sum(values) / 3,) * channels
    raise ValueError(f"mean and std need 1 or {channels} values, got {len(values)}.")
