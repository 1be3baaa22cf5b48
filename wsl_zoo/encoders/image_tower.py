"""The image tower of an image-text network, with the interface of `Encoder`.

Its one final map is the embedding that images share with texts, projected and not normalised, of
one position: what vision-language models are classified and tuned by. There is no pyramid and no
map of places.

A checkpoint holds the architecture itself, so that it loads where the config that named it is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wsl_zoo.encoders.adapters import load_plain
from wsl_zoo.encoders.clip_creation import (
    build,
    describe,
    download,
    load,
    require_open_clip,
    with_local_folders,
)
from wsl_zoo.encoders.creation import per_channel
from wsl_zoo.encoders.vector import VectorEncoder
from wsl_zoo.encoders.weights import read_state

STUB = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
"""A text tower that is thrown away."""


class ImageTower(VectorEncoder):
    """An image tower of open-clip (extra `clip`).

    Args:
        name: As of `ImageTextEncoder`: an architecture, a Hugging Face id (with `pretrained`), or
            the path of a JSON config.
        config: `{"model_cfg": ..., "preprocess_cfg": ...}` instead, as a checkpoint holds it.
        pretrained: The weights to come are those that open-clip downloads; see `load_weights`.
            Networks of OpenAI's weights differ (QuickGELU), so that this must be known here.
        mean: Normalisation of the input per channel; None: the network's.
        std: As `mean`.

    Attributes:
        final_channels: D, size of an embedding.
        config: What `config` takes.

    Raises:
        ImportError: open-clip is not installed.
        ValueError: Neither or both of `name` and `config`; an unknown name; a config that open-clip
            cannot build.
        FileNotFoundError: No such config.
    """

    kind = "an image tower"

    def __init__(
        self,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        pretrained: bool = False,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        nn.Module.__init__(self)  # there is no timm network to build
        if (name is None) == (config is None):
            raise ValueError(
                'encoder="open_clip" needs the name of a network: '
                '--model.encoder_args {"name": "ViT-B-32"}'
            )
        open_clip = require_open_clip()
        self._folder: Path | None = None
        if name is not None:
            architecture, preprocess, self._folder = describe(open_clip, name, pretrained)
        else:
            assert config is not None
            architecture, preprocess = config["model_cfg"], config.get("preprocess_cfg", {})
        self.name = name or "open_clip"
        self.config = {"model_cfg": dict(architecture), "preprocess_cfg": dict(preprocess)}
        self.model: nn.Module = build(open_clip, self.name, _of_images(architecture)).visual
        size: Any = self.model.image_size
        self._native = (size, size) if isinstance(size, int) else tuple(size)
        self.in_chans = 3
        self.final_channels = int(architecture["embed_dim"])
        self.channels: list[int] = []
        self.strides: list[int] = []
        self.level_modules: list[str] = []
        self.mean = per_channel(
            preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN) if mean is None else mean, 3
        )
        self.std = per_channel(
            preprocess.get("std", open_clip.OPENAI_DATASET_STD) if std is None else std, 3
        )

    def load_weights(self, weights: str | Path | None = None) -> None:
        """Read weights into the tower, in place; the factors of LoRA keep theirs.

        Args:
            weights: Weight file of the whole image-text network (`.pt`, `.bin`, `.safetensors`), or
                the checkpoint of a method (`.ckpt`); None downloads what open-clip has.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file cannot be read or does not fit, or what is downloaded is of another
                network than this.
        """
        open_clip = require_open_clip()
        if weights is not None and Path(weights).suffix == ".ckpt":
            self._load_checkpoint(Path(weights).expanduser())
            return
        architecture = self.config["model_cfg"]
        if weights is None:
            whole, theirs = download(open_clip, self.name)
            if theirs != architecture:
                raise ValueError(
                    f"{self.name} is pretrained as another network than this one: build it with "
                    "pretrained=True"
                )
        else:
            local = with_local_folders(self.name, architecture, self._folder)
            whole = build(open_clip, self.name, local)
            load(open_clip, whole, Path(weights).expanduser(), self.name)
        load_plain(self.model, whole.visual.state_dict())

    def _load_checkpoint(self, path: Path) -> None:
        """Read the encoder of a method's checkpoint."""
        state, prefix = read_state(path), "encoder.model."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        try:
            load_plain(self.model, own)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} holds another encoder than {self.name}: {error}") from error

    def forward(self, image: Tensor, levels: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Return the embeddings (B, D, 1, 1) of images (B, 3, H, W), and no levels.

        Raises:
            ValueError: Images of another size than the tower's.
        """
        self._check(image)
        embedding = self.model(image)
        return embedding[:, :, None, None], []

    def _check(self, image: Tensor) -> None:
        if image.ndim != 4 or tuple(image.shape[1:]) != (3, *self._native):
            raise ValueError(
                f"{self.name} reads images (B, 3, {self._native[0]}, {self._native[1]}), got "
                f"{tuple(image.shape)}: --data.image_size {self._native[0]}"
            )


def _of_images(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the text tower, whose image tower gives the embedding alone."""
    kept = {key: architecture[key] for key in ("embed_dim", "quick_gelu") if key in architecture}
    vision = {**architecture["vision_cfg"], "output_tokens": False}
    return {**kept, "vision_cfg": vision, "text_cfg": dict(STUB)}
