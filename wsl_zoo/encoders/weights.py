"""Weight files into a network: read safely, fitted to it, and refused with a reason where not.

Files are `.safetensors`, or `.pth`, `.pt`, `.bin`, `.ckpt` read with `weights_only=True`; of the
checkpoint of a method, whatever its classes, the encoder is read. Classifier keys are ignored,
wrappers' prefixes dropped, a stem for another number of channels adapted as timm does.
"""

import difflib
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from wsl_zoo.encoders.surgery import trunk_names

CLASSIFIER_KEYS = {
    "AuxLogits",
    "classifier",
    "fc",
    "head",
    "head_dist",
    "last_linear",
    "pre_logits",
}


def load_weights(
    model: nn.Module, path: Path, in_chans: int, removed: set[str], new_layers: list[str]
) -> None:
    """Read a local weight file into a network, float32 whatever the file holds.

    Understands a bare state dict, timm and Lightning checkpoints (`state_dict`, `model`, ...), and
    the original layouts that timm converts. Keys of classifiers are ignored.

    Args:
        model: The network without its classifier.
        path: `.safetensors`, or `.pth`, `.pt`, `.bin` (read with `weights_only=True`).
        in_chans: Channels of the stem; a file with another number is adapted as timm does.
        removed: Top-level modules that the encoder does not have any more.
        new_layers: Layers that a published file cannot have; they keep their initial values.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unreadable file, NaN or infinite values, missing or unexpected tensors, wrong
            shapes; all problems in one message.
    """
    state = _bare_keys(read_state(path), model)
    ignored = (CLASSIFIER_KEYS | removed) - set(trunk_names(model))
    state = {
        k: v.float() if v.is_floating_point() else v
        for k, v in state.items()
        if k.split(".")[0] not in ignored
    }
    broken = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise ValueError(f"{path} holds NaN or infinite values in {_some(broken)}.")
    state = _adapt_stem(model, state, in_chans)
    problems = _mismatches(model, state, new_layers)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if problems and convert is not None:
        try:
            converted = dict(convert(dict(state), model))
        except Exception:  # any failure only means that this is not the original layout either
            converted = state
        converted = {k: v for k, v in converted.items() if k.split(".")[0] not in ignored}
        converted = _adapt_stem(model, converted, in_chans)
        if not _mismatches(model, converted, new_layers):
            state, problems = converted, []
    if problems:
        raise ValueError(f"{path} does not fit {type(model).__name__}:\n  " + "\n  ".join(problems))
    model.load_state_dict(state, strict=False)


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a weight file or a checkpoint, under the names that they have.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It cannot be read as weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {path} (relative paths start at {Path.cwd()}).")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix not in {".pth", ".pt", ".bin", ".ckpt"}:
            raise ValueError(f"{path}: weight files end in .safetensors, .pth, .pt, .bin or .ckpt.")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged or holds more than tensors: only weights are read from files "
            "(weights_only=True). Save the state dict of the network alone."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = content.items() if isinstance(content, dict) else ()
    state = {str(k): v for k, v in tensors if isinstance(v, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no named tensors.")
    return state


def _bare_keys(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Drop what wrappers put before the names, and what stands beside the encoder."""
    own = {key.split(".")[0] for key in model.state_dict()}
    while not own & {key.split(".")[0] for key in state}:
        for prefix in ("module.", "_orig_mod.", "encoder.", "model."):
            inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if inside:
                state = inside
                break
        else:
            break
    return state


def _adapt_stem(model: nn.Module, state: dict[str, Tensor], in_chans: int) -> dict[str, Tensor]:
    names: Any = model.pretrained_cfg["first_conv"]  # type: ignore[index]
    for name in (names,) if isinstance(names, str) else tuple(names or ()):
        weight = state.get(f"{name}.weight")
        if weight is not None and weight.ndim == 4 and weight.shape[1] == 3 != in_chans:
            state = {**state, f"{name}.weight": adapt_input_conv(in_chans, weight)}
    return state


def _mismatches(model: nn.Module, state: dict[str, Tensor], new_layers: list[str]) -> list[str]:
    """One line per kind of problem: missing, unexpected, wrong shape."""
    own = model.state_dict()
    optional = tuple(f"{name}." for name in new_layers)
    missing = [
        key
        for key in own
        if key not in state
        and not key.startswith(optional or ("?",))
        and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    lines = []
    if missing:
        lines.append(f"missing {len(missing)} of {len(own)}: {_some(missing, unexpected)}")
    if unexpected:
        lines.append(f"unexpected {len(unexpected)}: {_some(unexpected, list(own))}")
    if shapes:
        lines.append(f"wrong shape {len(shapes)}: {_some(shapes)}")
    return lines


def _some(names: list[str], others: Sequence[str] = (), limit: int = 5) -> str:
    """The first names, each with the nearest of the others."""
    shown = []
    for name in names[:limit]:
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.6)
        shown.append(f"{name} (nearest: {near[0]})" if near else name)
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")
