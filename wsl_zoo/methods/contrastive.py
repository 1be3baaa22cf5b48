"""Contrastive fine-tuning of an image-text model: CLIP-IT's multimodal baseline, text at test.

Paper: the baseline of Karimian et al., "CLIP-IT: CLIP-based Pairing for Histology Images
Classification", 2025 (arXiv 2504.16181), on Radford et al., "Learning Transferable Visual Models
From Natural Language Supervision", ICML 2021 (arXiv 2103.00020).
Loss: CE(l, y) with l_k = cos(v, t_k) / tau, where v is the embedding of an image and t_k that of
the prompt of class k. Both towers learn by LoRA; tau = 0.07.
At test t_k is the mean of the unit embeddings of 22 prompts, so that l_k is the mean of their
similarities. These K vectors are in the checkpoint: what is asked of a class is fixed by then.

    encoder: open_clip      its image tower; v is what it was trained to compare with texts
    any timm network        v = W GAP(A), W learned from random weights

Map, of networks that have one: that of the linear classifier t_k W, M_k(p) = t_k . W A(p); the
baseline has none.

Deviations: published is InfoNCE between the images of a batch and the prompts of their classes,
where images of one class are each other's negatives (`negatives="batch"`); here each image is told
from all classes. The wording of the class is its name unless `class_words` are given; a prompt of
training is the first template, the published one is not known.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.cams.activation import evaluating
from wsl_zoo.data.feature_files import read_features
from wsl_zoo.encoders import ImageTower
from wsl_zoo.losses.contrast import in_batch_contrast
from wsl_zoo.methods.text_tuning import TextTuning
from wsl_zoo.types import Batch, Output

# Of CONCH (Lu et al., "A visual-language foundation model for computational pathology", Nature
# Medicine 2024, supplement), the name of the class for {}.
TEMPLATES = (
    "{}.",
    "a photomicrograph showing {}.",
    "a photomicrograph of {}.",
    "an image of {}.",
    "an image showing {}.",
    "an example of {}.",
    "{} is shown.",
    "this is {}.",
    "there is {}.",
    "a histopathological image showing {}.",
    "a histopathological image of {}.",
    "a histopathological photograph of {}.",
    "a histopathological photograph showing {}.",
    "shows {}.",
    "presence of {}.",
    "{} is present.",
    "an H&E stained image of {}.",
    "an H&E stained image showing {}.",
    "an H&E image showing {}.",
    "an H&E image of {}.",
    "{}, H&E stain.",
    "{}, H&E.",
)


class ContrastiveCLIP(TextTuning):
    """An image encoder whose embeddings are compared with those of prompts of the classes.

    Args:
        text_encoder: Arguments of an `ImageTextEncoder`, e.g. `{"name": "ViT-B-32", "weights":
            "clip.pt"}`: with the image tower of the same network, give that the same weights.
        prompt_features: Instead a file of features of the classes, by their names or in order; see
            `data/feature_files.py`. Neither: the data module's own, if it has any.
        class_words: What a prompt calls each class, in label order; None: the class names.
        templates: Prompts with {} for these words; the first is that of training. None: the 22 of
            CONCH.
        temperature: tau, positive; published: 0.07.
        negatives: What an image is told from: all "classes", or the prompts of the other images of
            its "batch" (published).
        lora_text: The text tower is adapted too (published); False: texts stand still.
        **kwargs: See `TextTuning` (size of texts, LoRA, recipe) and `ZooModule`.

    Attributes:
        class_text: `(K, D)` float32, the mean unit embeddings of the prompts; 0 before training.

    Raises:
        ValueError: Options that do not go together, or are out of their range.
    """

    class_text: Tensor
    fixed_text: Tensor | None

    def __init__(
        self,
        text_encoder: dict[str, Any] | None = None,
        prompt_features: str | None = None,
        class_words: list[str] | None = None,
        templates: list[str] | None = None,
        temperature: float = 0.07,
        negatives: Literal["classes", "batch"] = "classes",
        lora_text: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be positive")
        if negatives not in ("classes", "batch"):
            raise ValueError(f'negatives={negatives!r} must be "classes" or "batch"')
        if text_encoder is not None and prompt_features is not None:
            raise ValueError("give either text_encoder or prompt_features, not both")
        if class_words is not None and len(class_words) != self.num_classes:
            raise ValueError(f"{len(class_words)} class_words for {self.num_classes} classes")
        for template in () if templates is None else templates:
            if template.count("{}") != 1:
                raise ValueError(f"the template {template!r} must hold {{}} once, for the class")
        if templates is not None and not templates:
            raise ValueError("templates is empty: one is needed at least")
        text_dim = self.hparams["text_dim"]
        self.projection: nn.Linear | None = None
        if not isinstance(self.encoder, ImageTower):
            self.projection = nn.Linear(self.encoder.final_channels, text_dim, bias=False)
        elif self.encoder.final_channels != text_dim:
            raise ValueError(
                f"{self.encoder.name} embeds in {self.encoder.final_channels} features, texts "
                f"have text_dim={text_dim}: they must be of one network"
            )
        self.register_buffer("class_text", torch.zeros(self.num_classes, text_dim))
        # Unit features (K, T, D) of prompts that stand still; a buffer, to be where the images are.
        self.register_buffer("fixed_text", None, persistent=False)

    def prompts(self) -> list[str]:
        """Return the prompts of all classes, T of the first class first."""
        words = self.hparams["class_words"] or self.class_names
        templates = self.hparams["templates"] or TEMPLATES
        return [each.replace("{}", word) for word in words for each in templates]

    def setup(self, stage: str) -> None:
        """Read what embeds the prompts, or the embeddings."""
        super().setup(stage)
        if stage != "fit":
            return
        h = self.hparams
        self.text_tower, self.fixed_text = None, None
        if h["text_encoder"] is not None and h["lora_text"]:
            self.text_tower = self.make_tower(h["text_encoder"], self.prompts())
        else:
            found = self._features().reshape(self.num_classes, -1, h["text_dim"])
            self.fixed_text = F.normalize(found.float(), dim=2).to(self.device)

    def _features(self) -> Tensor:
        """Return features of the prompts, of one class after the other."""
        h = self.hparams
        if h["text_encoder"] is not None:
            return self.text_encoder(h["text_encoder"]).encode_texts(self.prompts())
        if h["prompt_features"] is not None:
            found = read_features(h["prompt_features"], self.class_names, "class")
        else:
            data: Any = getattr(self.trainer, "datamodule", None)
            if not hasattr(data, "prompt_features"):
                raise ValueError(
                    "prompts of the classes must be embedded: give --model.text_encoder "
                    '{"name": ..., "weights": ...}, or --model.prompt_features FILE'
                )
            found = data.prompt_features()
        if found.shape[-1] != h["text_dim"]:
            raise ValueError(
                f"prompts have {found.shape[-1]} features, the model is built for "
                f"text_dim={h['text_dim']}"
            )
        return found

    @torch.no_grad()
    def renew_class_text(self) -> None:
        """Take what the prompts are embedded as now for evaluation."""
        texts = self.fixed_text
        if self.text_tower is not None:
            tower, count = self.text_tower, len(self.text_tower.tokens)
            with evaluating(tower):
                parts = [
                    tower(each) for each in torch.split(torch.arange(count, device=self.device), 64)
                ]
            texts = torch.cat(parts).view(self.num_classes, -1, self.class_text.shape[1])
        if texts is not None:
            self.class_text.copy_(texts.mean(dim=1))

    def on_fit_start(self) -> None:
        """Start, perhaps from a checkpoint whose text has learned."""
        super().on_fit_start()
        self.renew_class_text()

    def on_validation_start(self) -> None:
        """Evaluate with the text of now."""
        super().on_validation_start()
        self.renew_class_text()

    def on_train_epoch_end(self) -> None:
        """Keep the text of now for the checkpoint of the epoch."""
        super().on_train_epoch_end()
        self.renew_class_text()

    def _text(self) -> Tensor:
        """Return the embeddings (K, D) of the classes: in training those of the first prompts."""
        if not self.training:
            return self.class_text
        if self.text_tower is None:
            return self.class_text if self.fixed_text is None else self.fixed_text[:, 0]
        every = len(self.text_tower.tokens) // self.num_classes
        first: Tensor = self.text_tower(torch.arange(self.num_classes, device=self.device) * every)
        return first

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K), `embedding` v (B, D) and, of networks with one, the `map`."""
        final = self.encoder.final(batch["features"] if "features" in batch else batch["image"])
        text = self._text()
        embedding = final.mean(dim=(2, 3))
        maps = None
        if self.projection is not None:
            if final[0, 0].numel() > 1:
                rows = text.to(final.dtype) @ self.projection.weight.to(final.dtype)
                maps = torch.einsum("kc,bchw->bkhw", rows, final)
            embedding = self.projection(embedding)
        unit = F.normalize(embedding.float(), dim=1)
        logits = unit @ text.float().T / self.hparams["temperature"]
        return Output(logits=logits, map=maps, final=final, embedding=embedding)

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the contrast of images with prompts, `contrast`."""
        assert output.logits is not None
        contrast = F.cross_entropy if self.hparams["negatives"] == "classes" else in_batch_contrast
        return {"contrast": contrast(output.logits, batch["label"])}
