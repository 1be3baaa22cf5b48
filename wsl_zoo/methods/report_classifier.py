"""The class of an image from the report that it is paired with: CLIP-IT's stage of text alone.

Paper: Karimian et al., "CLIP-IT: CLIP-based Pairing for Histology Images Classification", 2025
(arXiv 2504.16181).
Loss: CE(Linear(LeakyReLU_0.1(Linear(u))), y), where u (D) is the text of the report that the image
is paired with, a feature of a frozen text encoder, and y the image's label: reports have none.

How often it is right tells how much of the label the pairing carries. It is the branch of text of
`CLIPIT(branches="report")`, which needs text at test.

Deviations: the cross-entropy is that of logits (published: of their softmax once more,
`double_softmax`). The published cosine of 12,500 steps runs per epoch, so that the rate is constant
in effect; here it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.heads import TextHead
from wsl_zoo.losses.distill import double_softmax_cross_entropy
from wsl_zoo.methods.paired import give_texts, text_of
from wsl_zoo.methods.training import Trained
from wsl_zoo.schedules import OptimizerName
from wsl_zoo.types import Batch, Output, Target


class ReportClassifier(Trained):
    """A classifier of the text that images are paired with; images themselves are not read.

    Optimiser defaults are the published ones. Evaluation needs the text of the images to evaluate:
    pair these too (`wsl-zoo pair --splits '[train, val, test]'`), or set
    `trainer.limit_val_batches` to 0 and take the last checkpoint.

    Args:
        num_classes: Number K of classes (the command line takes it from the data).
        class_names: Their names in label order; stored in checkpoints.
        pairs: Folder that `wsl-zoo pair` wrote; None: batches hold `text` anyway.
        text_dim: Features D of a text.
        text_hidden: Width of the hidden layer.
        double_softmax: The published cross-entropy; see `double_softmax_cross_entropy`.
        optimizer: "sgd", "adam" or "adamw".
        lr: Learning rate.
        momentum: SGD's.
        weight_decay: Weight decay.
        schedule: "step", "cosine" or "constant", per epoch.
        step_size: Epochs between two decays.
        gamma: Factor of a decay.
        min_lr: Floor of the rate.
        seed: Fixes what is drawn in a training step, with the epoch and the step.

    Raises:
        ValueError: Fewer than two classes, or another number of names.
    """

    def __init__(
        self,
        num_classes: int = 2,
        class_names: list[str] | None = None,
        pairs: str | None = None,
        text_dim: int = 512,
        text_hidden: int = 512,
        double_softmax: bool = False,
        optimizer: OptimizerName = "adam",
        lr: float = 1.0e-3,
        momentum: float = 0.9,
        weight_decay: float = 1.0e-4,
        schedule: Literal["step", "cosine", "constant"] = "constant",
        step_size: int = 15,
        gamma: float = 0.1,
        min_lr: float = 1.0e-6,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["in_chans"])  # what the data say of images
        self.set_classes(num_classes, class_names)
        self.head = TextHead(text_dim, num_classes, text_hidden)

    def setup(self, stage: str) -> None:
        """Let the data carry the texts of the pairing."""
        super().setup(stage)
        h = self.hparams
        give_texts(self.trainer, h["pairs"], stage, ("train", "val", "test"), h["text_dim"])

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K)."""
        text = text_of(batch, type(self).__name__, self.hparams["text_dim"])
        return Output(logits=self.head(text))

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the cross-entropy, `ce`."""
        assert output.logits is not None
        if self.hparams["double_softmax"]:
            return {"ce": double_softmax_cross_entropy(output.logits, batch["label"])}
        return {"ce": F.cross_entropy(output.logits, batch["label"])}

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return probabilities (B, K) and class (B,)."""
        output = self(batch)
        assert output.logits is not None
        return {
            "probabilities": output.logits.float().softmax(dim=1),
            "label": self.predicted(output),
            "map": None,
            "valid": batch.get("valid"),
            "path": batch.get("path"),
            "size": batch.get("size"),
        }

    def predict_image(self, image: str | Path | np.ndarray, target: Target = "pred") -> Any:
        """Refuse: it reads text.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f"{type(self).__name__} classifies the text that an image is paired with")
