"""How every method of the zoo is evaluated: metrics by split, and thresholds from validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from wsl_zoo.data.samplers import valid_mask
from wsl_zoo.metrics.split import SplitMetrics, Thresholds
from wsl_zoo.types import Batch, Output, Target

DEFAULT_THRESHOLD = 0.5
SHOWN = frozenset({"acc", "mae", "auc", "pxap", "psnr"})  # in the progress bar


class Evaluated(LightningModule):
    """The evaluation part of `ZooModule`: wires metrics by what a batch holds."""

    num_classes: int
    fixed_threshold: ClassVar[float | None] = None
    """Threshold of maps by definition of the method; None: it is chosen on validation."""
    measures_bias: ClassVar[bool] = False
    """Whether it is of interest how unevenly classes are predicted."""
    measures_order: ClassVar[bool] = False
    """Whether classes are ranks, of which neighbours are alike."""
    judge: ClassVar[str | None] = None
    """Metric that `best_loc` is chosen by; None: the data module says (`selection`)."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, SplitMetrics] = {}
        """Metrics by split; made anew for every pass, on the device, so no part of the weights."""
        self.thresholds = Thresholds()
        """Thresholds of maps chosen on validation; a checkpoint stores them."""
        self.thresholds_of: dict[str, Thresholds] = {}
        """Those that each validation split with ground truth would choose."""

    def localize(self, batch: Batch, output: Output, target: Target = "label") -> Tensor:
        """Return the maps of the target classes, (B, H, W) in [0, 1], at the size of the image."""
        raise NotImplementedError

    @property
    def selects_by(self) -> tuple[str, Literal["min", "max"]]:
        """Metric that `best_cl` is chosen by, and which end of it is best."""
        return "acc", "max"

    def predicted(self, output: Output) -> Tensor:
        """Return the predicted classes (B,): the highest logits."""
        assert output.logits is not None
        return output.logits.argmax(dim=1)

    def judged(self, batch: Batch, output: Output) -> tuple[Tensor | None, Tensor | None]:
        """Return the scores (B, K) that classification is judged by, and losses (B,), or None.

        The mean loss of a split is logged as `<split>/loss`.
        """
        return output.logits, None

    def new_metrics(self, thresholds: Thresholds | None = None) -> SplitMetrics:
        """Make the metrics of a split.

        Args:
            thresholds: Map thresholds chosen on validation.
        """
        corloc = getattr(getattr(self.trainer, "datamodule", None), "corloc", False)
        return SplitMetrics(
            self.num_classes,
            thresholds,
            corloc=corloc,
            bias=self.measures_bias,
            ordinal=self.measures_order,
        )

    def update_metrics(
        self, metrics: SplitMetrics, batch: Batch, output: Output, valid: Tensor | None
    ) -> None:
        """Add a batch to the metrics of its split."""
        localizes = output.map is not None and ("mask" in batch or "boxes" in batch)
        labelled = "label" in batch
        scores, losses = self.judged(batch, output) if labelled else (output.logits, None)
        metrics.update(
            logits=scores,
            label=batch.get("label"),
            prediction=self.predicted(output) if self.measures_order and labelled else None,
            loss=losses,
            maps=self.localize(batch, output, "label") if localizes else None,
            mask=batch.get("mask"),
            boxes=batch.get("boxes"),
            valid=valid,
        )

    def _split_names(self, stage: str) -> list[str]:
        """Return the splits of a stage; of loaders without a data module "val", or "val_0", ..."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "split_names"):
            names: list[str] = data.split_names(stage)
            return names
        batches = self.trainer.num_test_batches if stage == "test" else self.trainer.num_val_batches
        count = len(batches)
        return [stage] if count == 1 else [f"{stage}_{i}" for i in range(count)]

    def _start_metrics(self, stage: str, thresholds: Thresholds | None = None) -> None:
        for name in self._split_names(stage):
            self.metrics[name] = self.new_metrics(thresholds).to(self.device)

    def on_validation_start(self) -> None:
        """Make the metrics anew."""
        fixed = self.fixed_threshold
        self._start_metrics("val", None if fixed is None else Thresholds(pixels=fixed))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update the metrics of the validation split."""
        self._evaluate("val", batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update the metrics of the test split."""
        self._evaluate("test", batch, batch_idx, dataloader_idx)

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int, dataloader_idx: int) -> None:
        metrics = self.metrics[self._split_names(stage)[dataloader_idx]]
        valid = self._valid(stage, batch, batch_idx, dataloader_idx)
        self.update_metrics(metrics, batch, self(batch), valid)

    def _valid(
        self, stage: str, batch: Batch, batch_idx: int, dataloader_idx: int
    ) -> Tensor | None:
        """Return which samples are no padding; for loaders not ours, from Lightning's sampler."""
        if "valid" in batch or self.trainer.world_size == 1:
            return batch.get("valid")
        loaders: Any = (
            self.trainer.test_dataloaders if stage == "test" else self.trainer.val_dataloaders
        )
        loader = loaders[dataloader_idx] if isinstance(loaders, list) else loaders
        if not isinstance(getattr(loader, "sampler", None), DistributedSampler):
            return None
        start, size = batch_idx * loader.batch_size, len(loader.dataset)
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        count = len(next(value for value in batch.values() if isinstance(value, Tensor)))
        return valid_mask(start, count, size, rank, world_size).to(self.device)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics; keep the thresholds of the split that localisation is judged on."""
        chosen: dict[str, Thresholds] = {}
        for name in self._split_names("val"):
            values, thresholds = self.metrics[name].compute()
            if thresholds.map is not None:
                chosen[name] = self._with_fixed(thresholds)
            self._log_metrics(name, values | self.metrics[name].shares())
        if chosen and not self.trainer.sanity_checking:
            # The same split that `best_loc` is chosen on, else the first that has a threshold.
            select = getattr(getattr(self.trainer, "datamodule", None), "selection", None)
            judge = str(select().get("loc") if select is not None else None).partition("/")[0]
            self.thresholds_of = chosen
            self.thresholds = chosen.get(judge, next(iter(chosen.values())))

    def on_test_start(self) -> None:
        """Make the metrics anew: the thresholds came with the checkpoint, after `setup`."""
        self._start_metrics("test", self._with_fixed(self.thresholds))

    def _with_fixed(self, thresholds: Thresholds) -> Thresholds:
        fixed = self.fixed_threshold
        return thresholds if fixed is None else replace(thresholds, pixels=fixed)

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        for name in self._split_names("test"):
            values, _ = self.metrics[name].compute()
            self._log_metrics(name, values)

    def curves(self, stage: str) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Return the curves over map thresholds of the last pass, by split and kind of truth.

        See `SplitMetrics.curves`. All processes must call this.
        """
        return {name: self.metrics[name].curves() for name in self._split_names(stage)}

    def per_class(self, stage: str) -> dict[str, dict[str, Tensor]]:
        """Return the metrics per class of the last pass, by split; see `SplitMetrics.per_class`."""
        return {name: self.metrics[name].per_class() for name in self._split_names(stage)}

    def _log_metrics(self, split: str, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            # Equal on all processes already: the metrics summed their integer states.
            self.log(f"{split}/{name}", value.float(), prog_bar=name in SHOWN)

    def target_index(self, batch: Batch, output: Output, target: Target) -> Tensor:
        """Return the class index (B,) whose map is meant."""
        size, device = len(batch["image"]), batch["image"].device
        if isinstance(target, int):
            if not 0 <= target < self.num_classes:
                raise ValueError(f"target={target} must be in [0, {self.num_classes - 1}]")
            return torch.full((size,), target, dtype=torch.long, device=device)
        if target == "label":
            return batch["label"]
        if target != "pred":
            raise ValueError(f"target={target!r} must be 'label', 'pred' or a class index")
        if output.logits is None:
            raise ValueError("target='pred' needs logits, which this model does not return")
        return self.predicted(output)

    @property
    def chosen_threshold(self) -> float | None:
        """Threshold of maps, fixed or chosen on validation; None before one with ground truth."""
        return self._with_fixed(self.thresholds).map

    @property
    def map_threshold(self) -> float:
        """The threshold to use: the chosen one, else 0.5."""
        return DEFAULT_THRESHOLD if self.chosen_threshold is None else self.chosen_threshold
