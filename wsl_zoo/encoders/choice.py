"""The encoder that a method asks for by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from wsl_zoo.encoders.creation import Form
from wsl_zoo.encoders.image_tower import ImageTower
from wsl_zoo.encoders.mlp import MLPEncoder
from wsl_zoo.encoders.timm import Encoder


def make_encoder(
    name: str,
    args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    in_chans: int = 3,
    stride: int | None = None,
    stride_mode: Literal["undilated", "dilated"] = "undilated",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    form: Form = "timm",
    img_size: int | None = None,
) -> Encoder:
    """Return an encoder with random weights.

    Args:
        name: A timm name; "open_clip" for an image tower, "mlp" for rows of features.
        args: Arguments of `MLPEncoder` or `ImageTower`, or further ones of timm's network.
        pretrained: Whether `load_weights` will download weights: an image tower is then built as
            these need it. Others are built alike.
        in_chans: Channels of the image, or features of a row.
        stride: See `Encoder`, as of the following.
        stride_mode: See there.
        mean: See there.
        std: See there.
        form: See there.
        img_size: See there.

    Raises:
        ValueError: There is no such encoder, or it takes no such options.
    """
    if name == "mlp":
        return MLPEncoder(in_chans, **(args or {}))
    if name != "open_clip":
        return Encoder(
            name,
            in_chans=in_chans,
            stride=stride,
            stride_mode=stride_mode,
            mean=mean,
            std=std,
            form=form,
            img_size=img_size,
            args=args,
        )
    given = {"stride": stride, "img_size": img_size, "form": form, "in_chans": in_chans}
    plain = {"stride": None, "img_size": None, "form": "timm", "in_chans": 3}
    refused = [f"{key}={value}" for key, value in given.items() if value != plain[key]]
    if refused:
        raise ValueError(f'encoder="open_clip" is the tower as it is: leave {", ".join(refused)}')
    try:
        return ImageTower(pretrained=pretrained, mean=mean, std=std, **(args or {}))
    except TypeError as error:
        raise ValueError(f'encoder_args={args} of encoder="open_clip": {error}') from error
