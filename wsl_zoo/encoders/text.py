"""Image-text encoders: two towers whose features of images and of texts share one space.

`ImageTextEncoder` is any network of open-clip (extra `clip`), by name, from Hugging Face or from a
JSON config in open-clip's form. `ImageTextModel` says what a model that open-clip does not have,
such as CONCH, must offer to take its place.

A text longer than the context of its tower is cut: CLIP reads 77 tokens, of which two mark the ends
of the text. Reports are often longer; `cut` tells which.

Deviation from open-clip: weights of a pretrained tag that were trained with QuickGELU (OpenAI's)
run with it, whatever the architecture's name says; open-clip warns and computes other features.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

HUB = "hf-hub:"  # open-clip's prefix of a model on Hugging Face
SECTIONS = ("embed_dim", "vision_cfg", "text_cfg")  # what open-clip asks of an architecture
TOKENIZER = "hf_tokenizer_name"  # its key in "text_cfg", where the tokenizer is not CLIP's own
TOKENIZER_FILE = "tokenizer_config.json"  # that a saved tokenizer of Hugging Face always has


class ImageTextModel(Protocol):
    """What pairs images with texts. Features are float32 of length 1, the same at every call."""

    dim: int

    def prepare(self, picture: np.ndarray) -> Tensor:
        """Return a picture (H, W, 3) uint8 as the image (3, S, S) that `encode_images` reads."""

    def encode_images(self, image: Tensor) -> Tensor:
        """Return the features (B, D) of images (B, 3, S, S), without gradient."""

    def encode_texts(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Return the features (M, D) of texts, on the CPU and without gradient."""

    def cut(self, texts: Sequence[str]) -> list[bool]:
        """Say of each text whether it is longer than what the model reads."""

    def digest(self) -> bytes:
        """Return a hash of all that the features depend on, the same in every process."""


class ImageTextEncoder(nn.Module):
    """A two-tower network of open-clip.

    Weights are random unless `weights` or `pretrained` are given; nothing is downloaded unless
    `pretrained`.

    Args:
        name: An architecture of open-clip (`ViT-B-32`, `RN50`, `coca_ViT-B-32`); with `pretrained`
            also a Hugging Face id (`hf-hub:wisdomik/QuiltNet-B-32`); or the path of a JSON config:
            an architecture (`embed_dim`, `vision_cfg`, `text_cfg`), or `open_clip_config.json` with
            `model_cfg` and `preprocess_cfg`. Hugging Face tokenizers and text towers that it names
            must be folders, beside the file or by absolute path; a tokenizer may also lie in the
            folder of the file, as open-clip saves it.
        weights: Local weight file (`.pt`, `.bin`, `.safetensors`), read as weights only. Position
            embeddings of another length are resampled, as open-clip does. OpenAI's weights need
            an architecture that ends in `-quickgelu`.
        pretrained: Download and load the first pretrained tag that open-clip lists for `name`
            (OpenAI's where there are), or the weights of the Hugging Face id.

    Attributes:
        name: As given.
        dim: D, size of a feature.
        context_length: L, tokens that the text tower reads, marks of its ends included.
        image_size: (H, W) of the images that it reads.
        mean: Per-channel mean with which images are normalised, in [0, 1].
        std: Per-channel standard deviation, likewise.
        model: The network of open-clip.

    Raises:
        ImportError: open-clip is not installed.
        ValueError: Unknown name; a config or weights that do not fit; a choice that would need a
            download.
        FileNotFoundError: No such config or weight file.
    """

    def __init__(
        self, name: str, weights: str | Path | None = None, pretrained: bool = False
    ) -> None:
        super().__init__()
        if pretrained and weights is not None:
            raise ValueError("give either pretrained=True or a weight file, not both.")
        open_clip = _open_clip()
        self.name = name
        self.model: Any
        if pretrained:
            self.model, self._config = _download(open_clip, name)
            preprocess, local = self.model.visual.preprocess_cfg, self._config
        else:
            self._config, preprocess, folder = _read_config(open_clip, name)
            local = _with_local_folders(name, self._config, folder)
            self.model = _build(open_clip, name, local)
            preprocess = {**preprocess, "size": self.model.visual.image_size}
        if weights is not None:
            _load(open_clip, self.model, Path(weights).expanduser(), name)
        transform = import_module("open_clip.transform")
        chosen = transform.PreprocessCfg(**transform.merge_preprocess_dict({}, preprocess))
        self._preprocess = {key: str(value) for key, value in sorted(vars(chosen).items())}
        self._transform = transform.image_transform_v2(chosen, is_train=False)
        self._tokenizer = _tokenizer(open_clip, local["text_cfg"])
        self.dim = int(self._config["embed_dim"])
        self.context_length = int(self._tokenizer.context_length)
        self.image_size = (int(chosen.input_size[1]), int(chosen.input_size[2]))
        self.mean = tuple(float(value) for value in chosen.mean)
        self.std = tuple(float(value) for value in chosen.std)

    def prepare(self, picture: np.ndarray) -> Tensor:
        """Resize, crop and normalise a picture as open-clip does for evaluation.

        For most networks: the shorter side to S, bicubic, and the centre of the longer one.

        Args:
            picture: `(H, W, 3)` uint8.

        Returns:
            `(3, S, S)` float32, normalised with `mean` and `std`.

        Raises:
            ValueError: Another shape or type.
        """
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(
                f"a picture must be (H, W, 3) uint8, got {picture.shape} {picture.dtype}."
            )
        image: Tensor = self._transform(Image.fromarray(picture))
        return image

    def encode_images(self, image: Tensor) -> Tensor:
        """Return the features of images that were prepared.

        Args:
            image: `(B, 3, S, S)`, as of `prepare`; it is moved to the device of the network.

        Returns:
            `(B, D)` float32 of length 1 on that device, without gradient, computed in eval mode.

        Raises:
            ValueError: Another shape.
        """
        if image.ndim != 4 or tuple(image.shape[1:]) != (3, *self.image_size):
            raise ValueError(
                f"{self.name} reads images (B, 3, {self.image_size[0]}, {self.image_size[1]}), got "
                f"{tuple(image.shape)}: `prepare` makes them."
            )
        weight = next(self.model.visual.parameters())
        with _evaluating(self):
            features = self.model.encode_image(image.to(weight.device, weight.dtype))
        return F.normalize(features.float(), dim=-1)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Return the features of texts, of which those that are too long are cut.

        Args:
            texts: M texts.
            batch_size: Texts that run at once.

        Returns:
            `(M, D)` float32 of length 1, on the CPU and without gradient, computed in eval mode.

        Raises:
            TypeError: One text instead of a sequence.
            ValueError: `batch_size` below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        tokens = self.tokenize(texts)
        device = next(self.model.parameters()).device
        features = torch.empty(len(tokens), self.dim)
        with _evaluating(self):
            for start in range(0, len(tokens), batch_size):
                rows = slice(start, start + batch_size)
                part = self.model.encode_text(tokens[rows].to(device))
                features[rows] = F.normalize(part.float(), dim=-1).cpu()
        return features

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens (M, L) int64 of texts, cut or padded to the context.

        Raises:
            TypeError: One text instead of a sequence.
        """
        texts = _sequence(texts)
        if not texts:
            return torch.zeros(0, self.context_length, dtype=torch.int64)
        tokens: Tensor = self._tokenizer(texts)
        return tokens

    def cut(self, texts: Sequence[str]) -> list[bool]:
        """Say of each text whether it has more tokens than the context, so that its end is lost.

        Raises:
            TypeError: One text instead of a sequence.
        """
        return [
            _token_count(self._tokenizer, text) > self.context_length for text in _sequence(texts)
        ]

    def digest(self) -> bytes:
        """Return a hash of what the features depend on, the same in every process.

        It covers architecture, tokens, preprocessing, every weight and the release of open-clip,
        and is computed anew at each call: weights may have changed.
        """
        config = json.dumps(self._config, sort_keys=True)
        form = (_open_clip().__version__, config, self._preprocess, repr(self.model))
        digest = hashlib.blake2b(repr(form).encode())
        vocabulary = getattr(self._tokenizer, "tokenizer", None)  # files of Hugging Face may change
        if vocabulary is not None:
            digest.update(repr(sorted(vocabulary.get_vocab().items())).encode())
        for key, value in self.model.state_dict().items():
            digest.update(repr((key, value.dtype, tuple(value.shape))).encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy())
        return digest.digest()


def _open_clip() -> Any:
    try:
        return import_module("open_clip")
    except ImportError as error:
        raise ImportError(
            "ImageTextEncoder needs open-clip: pip install 'wsl-zoo[clip]'"
        ) from error


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every part is put back in the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _sequence(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of texts, got one text: put it into a list.")
    return list(texts)


def _download(open_clip: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """Return a network with pretrained weights, and its architecture."""
    if name.endswith(".json"):
        raise ValueError(f"{name}: a config has no weights to download: give a weight file.")
    if name.startswith(HUB):
        model = open_clip.create_model(name, require_pretrained=True)
        download = import_module("open_clip.pretrained").download_pretrained_from_hf
        file = Path(download(name.removeprefix(HUB), "open_clip_config.json"))
        return model, json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
    config, key = _architecture(open_clip, name), name.replace("/", "-")
    tags = open_clip.list_pretrained_tags_by_model(key)
    if not tags:
        raise ValueError(f"open-clip has no pretrained weights of {name}: give a weight file.")
    quick = bool(open_clip.get_pretrained_cfg(key, tags[0]).get("quick_gelu"))
    config["quick_gelu"] = quick or config.get("quick_gelu", False)
    model = open_clip.create_model(key, tags[0], force_quick_gelu=quick, require_pretrained=True)
    return model, config


def _architecture(open_clip: Any, name: str) -> dict[str, Any]:
    config: dict[str, Any] | None = open_clip.get_model_config(name.replace("/", "-"))
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=5, cutoff=0.4)
        raise ValueError(
            f"open-clip has no architecture {name!r}; nearest names: {', '.join(near) or '-'}. "
            f"Otherwise: {HUB}<owner>/<model>, or the path of a .json config."
        )
    return config


def _read_config(open_clip: Any, name: str) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """Return architecture, preprocessing and the folder of the file; None for a built-in name."""
    if name.startswith(HUB):
        raise ValueError(
            f"{name} is downloaded: pass pretrained=True. Offline, give the path of its "
            "open_clip_config.json as `name` and its weight file as `weights`."
        )
    if not name.endswith(".json"):
        return _architecture(open_clip, name), {}, None
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


def _with_local_folders(name: str, config: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """Point what comes from Hugging Face at local folders, and refuse what is not there."""
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


def _build(open_clip: Any, name: str, config: dict[str, Any]) -> Any:
    """Build a network with random weights, of the class that open-clip's `create_model` takes."""
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


def _tokenizer(open_clip: Any, text: dict[str, Any]) -> Any:
    """Return the tokenizer that open-clip's `get_tokenizer` takes for this section."""
    options = dict(text.get("tokenizer_kwargs", {}))
    options["context_length"] = text.get("context_length", 77)  # CLIP's, open-clip's default
    if not text.get(TOKENIZER):
        return open_clip.SimpleTokenizer(**options)
    if text.get("tokenizer_mode"):
        options["tokenizer_mode"] = text["tokenizer_mode"]
    return import_module("open_clip.tokenizer").HFTokenizer(text[TOKENIZER], **options)


def _token_count(tokenizer: Any, text: str) -> int:
    """Tokens of a whole text, marks included."""
    if hasattr(tokenizer, "encode"):  # CLIP's own: start and end
        return len(tokenizer.encode(text)) + 2
    text = tokenizer.clean_fn(text)
    if getattr(tokenizer, "tokenizer_mode", "") == "clips":  # start, end and class
        return len(tokenizer.tokenizer(text, add_special_tokens=False).input_ids) + 3
    return len(tokenizer.tokenizer(text, truncation=False).input_ids)


def _load(open_clip: Any, model: nn.Module, path: Path, name: str) -> None:
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
