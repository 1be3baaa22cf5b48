"""Which checkpoints a run keeps: the best ones, the last one; and what stands before training."""

from __future__ import annotations

import re
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best_<kind>.ckpt`: best classification (cl) or localisation (loc, loc_<root>).

    What is monitored comes from the data module (`selection`): accuracy (of ranks the mean absolute
    error, of risks the loss: what the method's `selects_by` says), and PxAP or MaxBoxAcc on
    the validation split with ground truth, or MaxBoxAcc on the pseudo-boxes of one of `val_roots`.
    Without any there is no `best_loc`. A checkpoint of localisation holds the thresholds chosen on
    the split that it was judged on. Of equal scores the first is kept, as F-CAM does (the survey
    and the adaptation methods kept the last).

    Args:
        kind: "cl", "loc" or "loc_<root>".
        **kwargs: As of `ModelCheckpoint`.
    """

    def __init__(self, kind: str, **kwargs: Any) -> None:
        if not re.fullmatch("cl|loc(_[A-Za-z0-9_]+)?", kind):
            raise ValueError(f"kind={kind!r} must be 'cl', 'loc' or 'loc_<root>'")
        settings: dict[str, Any] = {
            "filename": f"best_{kind}",
            "mode": "max",
            "save_on_train_epoch_end": False,  # before `last.ckpt`, which remembers what was best
            "auto_insert_metric_name": False,
            "enable_version_counter": False,
        }
        super().__init__(**settings | kwargs)
        self.kind = kind

    @property
    def state_key(self) -> str:
        """Key in checkpoints: one per kind."""
        return f"{type(self).__qualname__}-{self.kind}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look up what to monitor."""
        data = getattr(trainer, "datamodule", None)
        if self.monitor is None and stage == "fit":
            select = getattr(data, "selection", None)
            chosen = select() if select is not None else {"cl": "val/acc"}
            self.monitor = chosen.get(self.kind)
            if self.kind == "cl" and self.monitor is not None:
                metric, mode = getattr(pl_module, "selects_by", ("acc", "max"))
                self.monitor = f"{self.monitor.partition('/')[0]}/{metric}"
                if mode != self.mode:
                    self.mode, self.kth_value = mode, -self.kth_value
            judge = getattr(pl_module, "judge", None)
            if self.kind == "loc" and self.monitor is not None and judge is not None:
                self.monitor = f"{self.monitor.partition('/')[0]}/{judge}"
            if self.kind.startswith("loc_") and self.monitor is None:
                raise ValueError(f"kind={self.kind!r}: the data have only {', '.join(chosen)}")
        super().setup(trainer, pl_module, stage)
        self._last_global_step_saved = -1  # else what stands before the first step is no candidate

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the model, where there is something to judge it by."""
        if self._judged(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the model, where there is something to judge it by."""
        if self._judged(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Save; of localisation, with the thresholds of the split that judges."""
        module: Any = trainer.lightning_module
        split = (self.monitor or "").partition("/")[0]
        own = getattr(module, "thresholds_of", {}).get(split) if self.kind != "cl" else None
        if own is None:
            super()._save_checkpoint(trainer, filepath)
            return
        in_use = module.thresholds
        module.thresholds = own
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            module.thresholds = in_use

    def _judged(self, trainer: Trainer) -> bool:
        """Return whether there is a score: not without validation, nor without any foreground."""
        return self.monitor is not None and self.monitor in trainer.callback_metrics


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: after every epoch, every `every_n_train_steps`, and when interrupted.

    Resume with `--ckpt_path .../last.ckpt`; the run goes on as if it had not stopped.

    Args:
        every_n_train_steps: Also save in the middle of epochs, for long ones.
        **kwargs: As of `ModelCheckpoint`.
    """

    def __init__(self, every_n_train_steps: int | None = None, **kwargs: Any) -> None:
        settings: dict[str, Any] = {
            "filename": "last",
            "enable_version_counter": False,
            "save_on_exception": True,
            "every_n_train_steps": every_n_train_steps,
            "save_on_train_epoch_end": True,
        }
        super().__init__(**settings | kwargs)
        if every_n_train_steps:
            self._every_n_epochs = 1  # the base takes either steps or epochs, here both count


class StartValidation(Callback):
    """Validates before the first step, for methods that choose among all states of a given model.

    Adaptation starts from a trained model: without a step is what it must beat (`best_cl` and
    `best_loc` may be that). Methods say so by `selects_from_start`.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, unless the run was resumed, as the Trainer does after an epoch."""
        wanted = getattr(pl_module, "selects_from_start", False) and trainer.enable_validation
        if not wanted or trainer.global_step:
            return
        first = trainer._logger_connector._first_loop_iter
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = first
