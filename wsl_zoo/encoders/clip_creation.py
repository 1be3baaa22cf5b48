"""How a network of open-clip is made: read from a name or a file, built, its weights loaded.

Nothing is downloaded but by `download` and, of a Hugging Face id, `describe`.
"""

from __future__ import annotations

import difflib
import json
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

HUB = "hf-hub:"  # open-clip's prefix of a model on Hugging Face
SECTIONS = ("embed_dim", "vision_cfg", "text_cfg")  # what open-clip asks of an architecture
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")  # what a pretrained tag tells of it
TOKENIZER = "hf_tokenizer_name"  # its key in "text_cfg", where the tokenizer is not CLIP's own
TOKENIZER_FILE = "tokenizer_config.json"  # that a saved tokenizer of Hugging Face always has


def require_open_clip() -> Any:
    """Return open-clip.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return import_module("open_clip")
    except ImportError as error:
        raise ImportError(
            "image-text encoders need open-clip: pip install 'wsl-zoo[clip]'"
        ) from error


def describe(
    open_clip: Any, name: str, pretrained: bool
) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """Return architecture, preprocessing and the folder that its files lie in; see `read_config`.

    With `pretrained` those of the weights that `download` takes; of a Hugging Face id its config is
    downloaded, and nothing otherwise.

    Raises:
        ValueError: There is no such network, or there are no weights of it.
        FileNotFoundError: No such config.
    """
    if not pretrained:
        return read_config(open_clip, name)
    if name.endswith(".json"):
        raise ValueError(f"{name}: a config has no weights to download: give a weight file.")
    if name.startswith(HUB):
        fetch = import_module("open_clip.pretrained").download_pretrained_from_hf
        file = Path(fetch(name.removeprefix(HUB), "open_clip_config.json"))
        whole = json.loads(file.read_text(encoding="utf-8"))
        return whole["model_cfg"], whole.get("preprocess_cfg", {}), None
    config = architecture(open_clip, name)
    chosen = open_clip.get_pretrained_cfg(name.replace("/", "-"), _tag(open_clip, name))
    config["quick_gelu"] = bool(chosen.get("quick_gelu")) or config.get("quick_gelu", False)
    return config, {key: chosen[key] for key in PREPROCESSING if key in chosen}, None


def _tag(open_clip: Any, name: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
    if not tags:
        raise ValueError(f"open-clip has no pretrained weights of {name}: give a weight file.")
    return str(tags[0])


def download(open_clip: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """Return a network with pretrained weights, and its architecture."""
    config, _, _ = describe(open_clip, name, pretrained=True)
    if name.startswith(HUB):
        return open_clip.create_model(name, require_pretrained=True), config
    model = open_clip.create_model(
        name.replace("/", "-"),
        _tag(open_clip, name),
        force_quick_gelu=config["quick_gelu"],
        require_pretrained=True,
    )
    return model, config


def architecture(open_clip: Any, name: str) -> dict[str, Any]:
    """Return the config of an architecture that open-clip has built in.

    Raises:
        ValueError: There is none of that name; says which are near.
    """
    config: dict[str, Any] | None = open_clip.get_model_config(name.replace("/", "-"))
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=5, cutoff=0.4)
        raise ValueError(
            f"open-clip has no architecture {name!r}; nearest names: {', '.join(near) or '-'}. "
            f"Otherwise: {HUB}<owner>/<model>, or the path of a .json config."
        )
    return config


def read_config(open_clip: Any, name: str) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """Return architecture, preprocessing and the folder of the file; None for a built-in name.

    Raises:
        ValueError: It would need a download, or is no config of open-clip.
        FileNotFoundError: No such file.
    """
    if name.startswith(HUB):
        raise ValueError(
            f"{name} is downloaded: pass pretrained=True. Offline, give the path of its "
            "open_clip_config.json as `name` and its weight file as `weights`."
        )
    if not name.endswith(".json"):
        return architecture(open_clip, name), {}, None
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no config {path} (relative paths start at {Path.cwd()}).")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    whole = content if isinstance(content, dict) else {}
    config = whole.get("model_cfg", whole)
    missing = [key for key in SECTIONS if key not in config]
    if missing:
        raise ValueError(f"{path} is no model config of open-clip: it lacks {', '.join(missing)}.")
    return config, whole.get("preprocess_cfg", {}), path.resolve().parent


def with_local_folders(name: str, config: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """Point what comes from Hugging Face at local folders, and refuse what is not there.

    Raises:
        ValueError: It is not there.
    """
    config = deepcopy(config)
    text = config["text_cfg"]
    for key in ("hf_model_name", TOKENIZER):
        value = text.get(key)
        if not value:
            continue
        if folder is not None and (folder / value).is_dir():
            text[key] = str(folder / value)
        elif folder is not None and key == TOKENIZER and (folder / TOKENIZER_FILE).is_file():
            text[key] = str(folder)
        else:
            raise ValueError(
                f"{name}: its {key} {value!r} would be downloaded from Hugging Face: pass "
                "pretrained=True, or give a .json config whose text_cfg names a local folder."
            )
    return config


def build(open_clip: Any, name: str, config: dict[str, Any]) -> Any:
    """Build a network with random weights, of the class that open-clip's `create_model` takes.

    Raises:
        ValueError: open-clip cannot build it.
    """
    config = deepcopy(config)
    for section, key in (("vision_cfg", "timm_model"), ("text_cfg", "hf_model")):
        if f"{key}_name" in config[section]:
            config[section][f"{key}_pretrained"] = False
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    form = "CLIP" if not custom else "CoCa" if "multimodal_cfg" in config else "CustomTextCLIP"
    try:
        return getattr(open_clip, form)(**config)
    except (TypeError, AssertionError, AttributeError) as error:
        raise ValueError(f"{name}: open-clip cannot build this architecture: {error}") from error


def make_tokenizer(open_clip: Any, text: dict[str, Any]) -> Any:
    """Return the tokenizer that open-clip's `get_tokenizer` takes for this section."""
    options = dict(text.get("tokenizer_kwargs", {}))
    options["context_length"] = text.get("context_length", 77)  # CLIP's, open-clip's default
    if not text.get(TOKENIZER):
        return open_clip.SimpleTokenizer(**options)
    if text.get("tokenizer_mode"):
        options["tokenizer_mode"] = text["tokenizer_mode"]
    return import_module("open_clip.tokenizer").HFTokenizer(text[TOKENIZER], **options)


def token_count(tokenizer: Any, text: str) -> int:
    """Tokens of a whole text, marks included."""
    if hasattr(tokenizer, "encode"):  # CLIP's own: start and end
        return len(tokenizer.encode(text)) + 2
    text = tokenizer.clean_fn(text)
    if getattr(tokenizer, "tokenizer_mode", "") == "clips":  # start, end and class
        return len(tokenizer.tokenizer(text, add_special_tokens=False).input_ids) + 3
    return len(tokenizer.tokenizer(text, truncation=False).input_ids)


def load(open_clip: Any, model: nn.Module, path: Path, name: str) -> None:
    """Read a local weight file, as weights only.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is damaged, does not fit, or holds NaN or infinite values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {path} (relative paths start at {Path.cwd()}).")
    try:
        open_clip.load_checkpoint(model, str(path), weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # a damaged or foreign file raises whatever it meets first
        lines = [line.strip()[:300] for line in str(error).splitlines()[:8]]
        raise ValueError(
            f"{path} is damaged, holds more than weights, or does not fit {name}: "
            + "\n  ".join(lines or [type(error).__name__])
        ) from error
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise ValueError(f"{path} holds NaN or infinite values.")
