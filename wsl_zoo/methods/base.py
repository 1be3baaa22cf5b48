"""What every method of the zoo shares: encoder, optimiser groups, schedules, metrics, prediction.

A method is one file with one subclass of `ZooModule`. It overrides its constructor (which passes
`**kwargs` on), `forward(batch) -> Output`, `loss(batch, output) -> dict` and, where its paper needs
it, `param_groups`, `frozen`, `prepare_batch`, `refresh`. Everything else stands here or in
`training.py` and `evaluation.py`, once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from wsl_zoo.cams.normalize import normalize_map
from wsl_zoo.encoders import ImageTower, MLPEncoder, make_encoder
from wsl_zoo.methods.training import Trained
from wsl_zoo.prediction import Prediction, predict_image
from wsl_zoo.schedules import OptimizerName
from wsl_zoo.types import Batch, Output, Target

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


class ZooModule(Trained):
    """Base of all methods over a shared timm encoder.

    Optimiser and schedule defaults are the survey's recipe (arXiv 1909.03354): SGD with Nesterov
    momentum 0.9 and weight decay 1e-4; the head (and layer4 of a ResNet, and layers that are new
    to a trunk) learn ten times faster; the rate decays by `gamma` every `step_size` epochs, never
    below `min_lr`.

    Args:
        num_classes: Number K of classes (the command line takes it from the data).
        class_names: Their names in label order; stored in checkpoints.
        encoder: Any timm model name; "open_clip" for the image tower of an image-text network (see
            `ImageTower`), "mlp" for rows of features (see `MLPEncoder`).
        encoder_args: Arguments of "open_clip", e.g. `{"name": "ViT-B-32"}`, of "mlp", e.g.
            `{"hidden": [64, 64]}`, or further ones of timm's, e.g. `{"init_values": 1.0e-5}`.
        pretrained: Download timm's weights for it, or open-clip's.
        weights: Local weight file (`.safetensors`, `.pth`) to start from, or the checkpoint of
            any method, of which the encoder is taken; read when training starts, so that a trained
            checkpoint loads and resumes when the file is gone.
        in_chans: Channels C of the input, or features D of a row (the command line takes it from
            the data).
        stride: Output stride of the encoder, 8, 16 or 32; None: its own.
        stride_mode: "undilated" (the papers': stride removed, weights as they are) or "dilated".
        form: "wsol" gives the papers' forms of VGG16 and InceptionV3; "class_token" of a ViT its
            class token, as linear probes read it, in place of the map.
        img_size: Image size that a ViT or Swin is built for.
        mean: Mean of the input normalisation per channel, in [0, 1]; default: the encoder's.
        std: Its standard deviation; default: the encoder's.
        freeze_bn: Keep the running statistics of the encoder's batch norms as they are.
        optimizer: "sgd", "adam" or "adamw".
        lr: Learning rate of the trunk.
        head_lr_factor: Factor of the rate for the head and the layers that learn with it.
        momentum: SGD's.
        weight_decay: Weight decay.
        schedule: "step", "cosine" (towards `min_lr` at the end) or "constant"; per epoch
            (a cosine per step where the trainer has max_steps alone).
        step_size: Epochs between two decays.
        gamma: Factor of a decay.
        min_lr: Floor of every group's rate.
        norm_order: Min-max of a map "before_upsample" (survey, F-CAM) or "after_upsample"
            (wsolevaluation).
        interpolation: How maps are brought to the size of the image: "bilinear" or "bicubic".
        seed: Fixes what is drawn in a training step, with the epoch and the step.
    """

    def __init__(
        self,
        num_classes: int = 2,
        class_names: list[str] | None = None,
        encoder: str = "resnet50",
        encoder_args: dict[str, Any] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        in_chans: int = 3,
        stride: int | None = None,
        stride_mode: Literal["undilated", "dilated"] = "undilated",
        form: Literal["timm", "wsol", "class_token"] = "timm",
        img_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        freeze_bn: bool = False,
        optimizer: OptimizerName = "sgd",
        lr: float = 0.001,
        head_lr_factor: float = 10.0,
        momentum: float = 0.9,
        weight_decay: float = 1.0e-4,
        schedule: Literal["step", "cosine", "constant"] = "step",
        step_size: int = 15,
        gamma: float = 0.1,
        min_lr: float = 1.0e-6,
        norm_order: Literal["before_upsample", "after_upsample"] = "before_upsample",
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.set_classes(num_classes, class_names)
        self.encoder = make_encoder(
            encoder,
            encoder_args,
            pretrained=pretrained,
            in_chans=in_chans,
            stride=stride,
            stride_mode=stride_mode,
            mean=mean,
            std=std,
            form=form,
            img_size=img_size,
        )

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups: the trunk, and what learns `head_lr_factor` faster."""
        boosted = {id(p) for p in self.encoder.boosted_parameters()}
        trunk = [p for p in self.encoder.parameters() if id(p) not in boosted]
        in_trunk = {id(p) for p in trunk}
        fast = [p for p in self.parameters() if id(p) not in in_trunk]
        lr = self.hparams["lr"]
        groups = [
            {"name": "trunk", "params": [p for p in trunk if p.requires_grad], "lr": lr},
            {
                "name": "head",
                "params": [p for p in fast if p.requires_grad],
                "lr": lr * self.hparams["head_lr_factor"],
            },
        ]
        return [group for group in groups if group["params"]]

    def localize(self, batch: Batch, output: Output, target: Target = "label") -> Tensor:
        """Return the maps of the target classes, (B, H, W) in [0, 1], at the size of the image.

        This is the one place where a map is activated and normalised: min-max per image.
        """
        index = self.target_index(batch, output, target)
        return normalize_map(
            self.class_map(batch, output, index),
            size=batch["image"].shape[-2:],
            order=self.hparams["norm_order"],
            interpolation=self.hparams["interpolation"],
            relu=self.drops_negative,
        )

    @property
    def drops_negative(self) -> bool:
        """Whether negative scores of a map are set to zero before it is normalised."""
        return False

    def class_map(self, batch: Batch, output: Output, index: Tensor) -> Tensor:
        """Return the raw maps (B, h, w) of the classes `index` (B,)."""
        if output.map is None:
            raise ValueError(f"{type(self).__name__}.forward returned no map to localise with")
        return output.map[torch.arange(len(index), device=index.device), index]

    def load_start_weights(self) -> None:
        """Read the encoder's start weights; methods with a stage before them read its files too.

        An encoder of features takes from the training rows what it standardises by.
        """
        data = getattr(self.trainer, "datamodule", None)
        features = getattr(data, "training_features", None)
        if isinstance(self.encoder, MLPEncoder) and features is not None:
            self.encoder.standardize(features())
        if self.hparams["weights"] is not None or self.hparams["pretrained"]:
            self.encoder.load_weights(self.hparams["weights"])

    def train(self, mode: bool = True) -> Self:
        """Set the mode, holding frozen modules (and batch norms, with `freeze_bn`) in eval."""
        super().train(mode)
        if mode and self.hparams["freeze_bn"]:
            for module in self.encoder.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return probabilities (B, K), class (B,) and map (B, H, W) of the predicted class."""
        output = self(batch)
        assert output.logits is not None
        probabilities = output.logits.float().softmax(dim=1)
        maps = self.localize(batch, output, "pred") if output.map is not None else None
        return {
            "probabilities": probabilities,
            "label": self.predicted(output),
            "map": maps,
            "valid": batch.get("valid"),
            "path": batch.get("path"),
            "size": batch.get("size"),
        }

    def predict_image(self, image: str | Path | np.ndarray, target: Target = "pred") -> Prediction:
        """Classify one image and show where, at its own size.

        Args:
            image: A file, or an array (H, W, 3) uint8.
            target: Whose map: the predicted class's ("pred") or that of a class index.

        Returns:
            Class, probability, map, boxes and mask; see `Prediction`.

        Raises:
            DataError: The file is not a readable image.
            TypeError: `image` is neither a file nor such an array.
            ValueError: There is no such target.
        """
        return predict_image(self, image, target)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store also what images are normalised by, and an image tower's architecture."""
        super().on_save_checkpoint(checkpoint)
        if isinstance(self.encoder, ImageTower):
            checkpoint["hyper_parameters"]["encoder_args"] = {"config": self.encoder.config}
        checkpoint["wsl_zoo"] |= {"mean": list(self.encoder.mean), "std": list(self.encoder.std)}
