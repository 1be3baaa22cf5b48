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

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.encoders.clip_creation import (
    build,
    download,
    load,
    make_tokenizer,
    read_config,
    require_open_clip,
    token_count,
    with_local_folders,
)


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
        open_clip = require_open_clip()
        self.name = name
        self.model: Any
        if pretrained:
            self.model, self._config = download(open_clip, name)
            preprocess, local = self.model.visual.preprocess_cfg, self._config
        else:
            self._config, preprocess, folder = read_config(open_clip, name)
            local = with_local_folders(name, self._config, folder)
            self.model = build(open_clip, name, local)
            preprocess = {**preprocess, "size": self.model.visual.image_size}
        if weights is not None:
            load(open_clip, self.model, Path(weights).expanduser(), name)
        transform = import_module("open_clip.transform")
        chosen = transform.PreprocessCfg(**transform.merge_preprocess_dict({}, preprocess))
        self._preprocess = {key: str(value) for key, value in sorted(vars(chosen).items())}
        self._transform = transform.image_transform_v2(chosen, is_train=False)
        self._tokenizer = make_tokenizer(open_clip, local["text_cfg"])
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
            token_count(self._tokenizer, text) > self.context_length for text in _sequence(texts)
        ]

    def digest(self) -> bytes:
        """Return a hash of what the features depend on, the same in every process.

        It covers architecture, tokens, preprocessing, every weight and the release of open-clip,
        and is computed anew at each call: weights may have changed.
        """
        config = json.dumps(self._config, sort_keys=True)
        form = (require_open_clip().__version__, config, self._preprocess, repr(self.model))
        digest = hashlib.blake2b(repr(form).encode())
        vocabulary = getattr(self._tokenizer, "tokenizer", None)  # files of Hugging Face may change
        if vocabulary is not None:
            digest.update(repr(sorted(vocabulary.get_vocab().items())).encode())
        for key, value in self.model.state_dict().items():
            digest.update(repr((key, value.dtype, tuple(value.shape))).encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy())
        return digest.digest()


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
