"""What every method of the zoo shares: encoder, optimiser groups, schedules, metrics, prediction.

A method is one file with one subclass of `ZooModule`. It overrides its constructor (which passes
`**kwargs` on), `forward(batch) -> Output`, `loss(batch, output) -> dict` and, where its paper needs
it, `param_groups`, `frozen`, `prepare_batch`, `refresh`. Everything else stands here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from wsl_zoo import __version__
from wsl_zoo.cams.normalize import normalize_map
from wsl_zoo.data.dataset import stable_seed
from wsl_zoo.encoders import Encoder, MLPEncoder
from wsl_zoo.methods.evaluation import Evaluated
from wsl_zoo.metrics.split import Thresholds
from wsl_zoo.prediction import Prediction, predict_image
from wsl_zoo.schedules import EpochSchedule, make_optimizer, make_scheduler
from wsl_zoo.types import Batch, Output, Target

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
LOOK_AT_LOSS = 50  # steps between two checks of the loss on an accelerator


class ZooModule(Evaluated, ABC):
    """Base of all methods over a shared timm encoder.

    Optimiser and schedule defaults are the survey's recipe (arXiv 1909.03354): SGD with Nesterov
    momentum 0.9 and weight decay 1e-4; the head (and layer4 of a ResNet, and layers that are new
    to a trunk) learn ten times faster; the rate decays by `gamma` every `step_size` epochs, never
    below `min_lr`.

    Args:
        num_classes: Number K of classes (the command line takes it from the data).
        class_names: Their names in label order; stored in checkpoints.
        encoder: Any timm model name; "mlp" for rows of features (see `MLPEncoder`).
        encoder_args: Arguments of "mlp", e.g. `{"hidden": [64, 64]}`.
        pretrained: Download timm's weights for it.
        weights: Local weight file (`.safetensors`, `.pth`) to start from; read when training
            starts, so that a trained checkpoint loads and resumes when the file is gone.
        in_chans: Channels C of the input, or features D of a row (the command line takes it from
            the data).
        stride: Output stride of the encoder, 8, 16 or 32; None: its own.
        stride_mode: "undilated" (the papers': stride removed, weights as they are) or "dilated".
        form: "wsol" gives the papers' forms of VGG16 and InceptionV3.
        img_size: Image size that a ViT or Swin is built for.
        mean: Mean of the input normalisation per channel, in [0, 1]; default: the encoder's.
        std: Its standard deviation; default: the encoder's.
        freeze_bn: Keep the running statistics of the encoder's batch norms as they are.
        optimizer: "sgd" or "adamw".
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

    needs: ClassVar[frozenset[str]] = frozenset({"label"})
    """What training reads of "label", "mask" and "boxes"; data modules give it nothing else."""
    least_classes: ClassVar[int] = 2
    """How many classes (of risks: horizons) there must be at least."""
    selects_from_start: ClassVar[bool] = False
    """Whether what stands before the first step is a candidate for the best checkpoints."""

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
        form: Literal["timm", "wsol"] = "timm",
        img_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        freeze_bn: bool = False,
        optimizer: Literal["sgd", "adamw"] = "sgd",
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
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"{len(class_names)} class_names for num_classes={num_classes}")
        if num_classes < self.least_classes:
            least = {1: "one is needed at least", 2: "a classifier needs at least two"}
            raise ValueError(f"num_classes={num_classes}: {least[self.least_classes]}")
        self.num_classes = num_classes
        self.class_names = class_names or [str(k) for k in range(num_classes)]
        if encoder_args is not None and encoder != "mlp":
            raise ValueError(f'encoder_args={encoder_args} goes with encoder="mlp", not {encoder}')
        self.encoder = (
            MLPEncoder(in_chans, **(encoder_args or {}))
            if encoder == "mlp"
            else Encoder(
                encoder,
                in_chans=in_chans,
                stride=stride,
                stride_mode=stride_mode,
                mean=mean,
                std=std,
                form=form,
                img_size=img_size,
            )
        )
        self.image_size: int | list[int] | None = None
        """What images are resized to, as in training: the side of a square, or [height, width];
        None: as they are."""
        self._started = False  # start weights are read, or a checkpoint's took their place
        self._scheduled = 0  # epochs that the schedules have done
        self._begun = -1  # the epoch that was begun last

    # What a method overrides -------------------------------------------------------------------

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Return raw scores."""

    @abstractmethod
    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the weighted loss terms by name; the total is their sum."""

    def prepare_batch(self, batch: Batch) -> Batch:
        """Change a training batch before `forward` (mixing, erasing)."""
        return batch

    def frozen(self) -> Iterable[nn.Module]:
        """Return submodules that are held in eval mode and not trained."""
        return ()

    def refresh(self) -> None:
        """Renew banks and pseudo-labels; called at the start of every training epoch.

        Keep them in buffers: a run that resumes in the middle of an epoch does not call this again.
        """

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

    # Training ----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Hold what is frozen; learn the size of images."""
        if stage == "fit":
            self._scheduled, self._begun = 0, -1
        for module in self.frozen():
            module.requires_grad_(requires_grad=False)
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "preprocessing"):
            self.image_size = data.preprocessing()["image_size"]

    def on_fit_start(self) -> None:
        """Read start weights, unless they were or a checkpoint was loaded; set the modes.

        This is the first hook that comes after the checkpoint of a resumed run: `setup` cannot tell
        that there is one. The Trainer leaves the modes as they are, so `train` is called here.
        """
        if not self._started:
            self.load_start_weights()
            self._started = True
        self.train()

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

    def train(self, mode: bool = True) -> ZooModule:
        """Set the mode, holding frozen modules (and batch norms, with `freeze_bn`) in eval."""
        super().train(mode)
        if mode:
            for module in self.frozen():
                module.eval()
            if self.hparams["freeze_bn"]:
                for module in self.encoder.modules():
                    if isinstance(module, BATCH_NORMS):
                        module.eval()
        return self

    def schedules(self) -> Iterator[EpochSchedule]:
        """Yield the submodules that step once per epoch (barrier weights, sigmas, loss windows)."""
        for module in self.modules():
            if isinstance(module, EpochSchedule) and module.steps_every_epoch:
                yield module

    def on_train_epoch_start(self) -> None:
        """Begin the epoch: renew banks and pseudo-labels."""
        self._begin_epoch()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Begin the epoch if the Trainer did not: resumed from the last batch of the one before."""
        if self._begun != self.current_epoch:
            self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._schedule_to(self.current_epoch)
        self.refresh()
        self._begun = self.current_epoch

    def on_train_epoch_end(self) -> None:
        """Step every schedule."""
        self._schedule_to(self.current_epoch + 1)

    def _schedule_to(self, epochs: int) -> None:
        for _ in range(self._scheduled, epochs):
            for module in self.schedules():
                module.step()
        self._scheduled = max(self._scheduled, epochs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the loss terms; log each as `train/<term>`, and `train/acc`.

        That is the accuracy of the batches as training sees them: augmented, mixed, masked.
        """
        # What a step draws depends on (seed, epoch, step, process): a resumed run equals an
        # unbroken one, and processes differ.
        torch.manual_seed(
            stable_seed(self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank)
        )
        batch = self.prepare_batch(batch)
        output = self(batch)
        terms = self.loss(batch, output)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        # Looking at the value makes an accelerator wait, so there it is done now and then.
        due = total.device.type == "cpu" or batch_idx % LOOK_AT_LOSS == 0
        if due and not torch.isfinite(total.detach()).item():
            shown = ", ".join(f"{name}={value.item():g}" for name, value in terms.items())
            raise FloatingPointError(
                f"the loss is not finite at epoch {self.current_epoch}, batch {batch_idx} "
                f"({shown}): lower lr, or use precision 32"
            )
        size = len(batch["index"])
        values = {f"train/{name}": value.detach() for name, value in terms.items()}
        if output.logits is not None and "label" in batch:
            right = self.predicted(output) == batch["label"]
            values["train/acc"] = right.float().mean()
        self.log_dict(
            values | {"train/loss": total.detach()},
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=size,
        )
        self.log("loss", total.detach(), prog_bar=True, logger=False, batch_size=size)
        return total

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser over `param_groups` and its schedule.

        It moves once per epoch; a cosine under `max_steps` without `max_epochs` once per step.

        Raises:
            ValueError: A cosine without a last epoch or step to come down to.
        """
        h = self.hparams
        span, interval = self.trainer.max_epochs or 1, "epoch"
        if span < 0 and h["schedule"] == "cosine":
            span, interval = self.trainer.max_steps, "step"
            if span < 0:
                raise ValueError(
                    'schedule="cosine" comes down to a last epoch or step: set trainer.max_epochs '
                    'or trainer.max_steps, or use "constant"'
                )
        optimizer = make_optimizer(
            self.param_groups(), h["optimizer"], h["lr"], h["momentum"], h["weight_decay"]
        )
        scheduler = make_scheduler(
            optimizer, h["schedule"], h["step_size"], h["gamma"], h["min_lr"], span
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval, "name": "lr"},
        }

    # Prediction and checkpoints ----------------------------------------------------------------

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
        """Store what `wsl_zoo.load` needs: class, version, preprocessing, thresholds."""
        checkpoint["wsl_zoo"] = {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "version": __version__,
            "image_size": self.image_size,
            "thresholds": self.thresholds.state(),
            "scheduled_epochs": self._scheduled,
            "begun_epoch": self._begun,
            "mean": list(self.encoder.mean),
            "std": list(self.encoder.std),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore preprocessing, thresholds and how far the schedules are."""
        ours = checkpoint.get("wsl_zoo", {})
        self.image_size = ours.get("image_size")
        if "thresholds" in ours:
            self.thresholds = Thresholds.from_state(ours["thresholds"])
        self._scheduled = ours.get("scheduled_epochs", 0)
        self._begun = ours.get("begun_epoch", -1)
        self._started = True
