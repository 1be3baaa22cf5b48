"""What training shares, whatever the network: hooks, schedules, logged terms, checkpoints.

A method over a shared timm encoder extends `ZooModule` (`base.py`), which extends this; one with a
complete network of its own, as for super-resolution, extends this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from wsl_zoo import __version__
from wsl_zoo.data.dataset import stable_seed
from wsl_zoo.methods.evaluation import Evaluated
from wsl_zoo.metrics.split import Thresholds
from wsl_zoo.schedules import EpochSchedule, make_optimizer, make_scheduler
from wsl_zoo.types import Batch, Output, Target

LOOK_AT_LOSS = 50  # steps between two checks of the loss on an accelerator


class Trained(Evaluated, ABC):
    """The training part of every method.

    A subclass calls `save_hyperparameters()` in its constructor; of these are read `optimizer`,
    `lr`, `momentum`, `weight_decay`, `schedule`, `step_size`, `gamma`, `min_lr`, `seed` and, where
    it has one, `schedule_interval` ("epoch" or "step").
    """

    needs: ClassVar[frozenset[str]] = frozenset({"label"})
    """What training reads of "label", "mask" and "boxes"; data modules give it nothing else."""
    least_classes: ClassVar[int] = 2
    """How many classes (of risks: horizons) there must be at least."""
    selects_from_start: ClassVar[bool] = False
    """Whether what stands before the first step is a candidate for the best checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 0
        self.class_names: list[str] = []
        self.image_size: int | list[int] | None = None
        """What images are resized to, as in training: the side of a square, or [height, width];
        None: as they are."""
        self._started = False  # start weights are read, or a checkpoint's took their place
        self._scheduled = 0  # epochs that the schedules have done
        self._begun = -1  # the epoch that was begun last

    def set_classes(self, num_classes: int, class_names: list[str] | None) -> None:
        """Take the number of classes and their names; without names, their numbers.

        Raises:
            ValueError: Too few classes, or another number of names.
        """
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"{len(class_names)} class_names for num_classes={num_classes}")
        if num_classes < self.least_classes:
            least = {1: "one is needed at least", 2: "a classifier needs at least two"}
            raise ValueError(f"num_classes={num_classes}: {least[self.least_classes]}")
        self.num_classes = num_classes
        self.class_names = class_names or [str(k) for k in range(num_classes)]

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
        """Return the optimiser's groups."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [{"name": "all", "params": parameters, "lr": self.hparams["lr"]}]

    @abstractmethod
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return what is predicted of a batch, with its `valid` and `path`."""

    @abstractmethod
    def predict_image(self, image: str | Path | np.ndarray, target: Target = "pred") -> Any:
        """Return what is predicted of one image."""

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
        """Read start weights and what stages before this one left; called before training."""

    def train(self, mode: bool = True) -> Self:
        """Set the mode, holding frozen modules in eval."""
        super().train(mode)
        if mode:
            for module in self.frozen():
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

        It moves once per epoch, or step where `schedule_interval` says so. A cosine comes down to
        the last epoch; where there is none, at every step to `max_steps` or to `max_time`.

        Raises:
            ValueError: A cosine without an end to come down to.
        """
        h = self.hparams
        trainer = self.trainer
        span, interval = trainer.max_epochs or 1, h.get("schedule_interval", "epoch")
        elapsed: Callable[[], float] | None = None
        if h["schedule"] == "cosine" and span < 0:
            span, interval = trainer.max_steps, "step"
            timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)  # type: ignore[attr-defined]
            if span < 0 and timer is not None:
                elapsed = partial(_share_of_time, timer)
            elif span < 0:
                raise ValueError(
                    'schedule="cosine" comes down to a last epoch or step: set trainer.max_epochs, '
                    'trainer.max_steps or trainer.max_time, or use "constant"'
                )
        elif h["schedule"] == "cosine" and interval == "step":
            span = int(trainer.estimated_stepping_batches)
        optimizer = make_optimizer(
            self.param_groups(), h["optimizer"], h["lr"], h["momentum"], h["weight_decay"]
        )
        scheduler = make_scheduler(
            optimizer, h["schedule"], h["step_size"], h["gamma"], h["min_lr"], span, elapsed
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval, "name": "lr"},
        }

    # Checkpoints -------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what `wsl_zoo.load` needs: class, version, preprocessing, thresholds."""
        checkpoint["wsl_zoo"] = {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "version": __version__,
            "image_size": self.image_size,
            "thresholds": self.thresholds.state(),
            "scheduled_epochs": self._scheduled,
            "begun_epoch": self._begun,
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


def _share_of_time(timer: Timer) -> float:
    """Return which share of the time to train is over."""
    left = timer.time_remaining()
    elapsed = timer.time_elapsed()
    return elapsed / (elapsed + left) if left else 1.0
