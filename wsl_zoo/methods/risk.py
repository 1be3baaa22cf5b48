"""What methods of longitudinal risk share: exams to vectors, the head, the loss, the metrics."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from wsl_zoo.data.exams import ExamDataModule
from wsl_zoo.encoders import MLPEncoder
from wsl_zoo.heads import AdditiveHazard, HistoryAggregator, RecurrentAggregator
from wsl_zoo.losses.survival import horizon_labels, masked_bce, positive_weight
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.metrics.risk import RiskMetrics
from wsl_zoo.prediction import Prediction
from wsl_zoo.types import Batch, Output, Target

Aggregator = Literal["transformer", "recurrent"]


class LongitudinalRisk(ZooModule):
    """Base: risk at several horizons from exams of several years.

    Exams are features (`encoder: mlp`, by default only standardised) or views: the encoder's final
    maps, averaged over positions and over the views there are, then a linear layer to `exam_dim`.

    Args:
        slots: Slots T of a history, the current exam's included.
        aggregator: "transformer" (LoMaR) or "recurrent" (VMRA-MaR).
        dim: Width d of the transformer, as of the next two.
        num_heads: Its heads.
        hidden: Its MLP's width.
        dropout: Of aggregator and head.
        activation: Of the hazard's increments: "relu" (published) or "softplus".
        exam_dim: Features D of an exam of images; None: as many as the encoder gives.
        pos_weight: Weight of events in the loss, #negative / #positive of the training labels: one
            for all horizons ("scalar"), one per horizon ("per_horizon", published), or "none".
        label_rule: After the event a label is 1 ("cumulative") or unknown ("mirai").
        encoder: See `ZooModule`.
        encoder_args: See `ZooModule`.
        in_chans: See `ZooModule`.
        **kwargs: See `ZooModule`.

    Raises:
        ValueError: Horizons that are no numbers, or an unknown option.
    """

    least_classes = 1
    positive: Tensor

    def __init__(
        self,
        slots: int = 5,
        aggregator: Aggregator = "transformer",
        dim: int = 512,
        num_heads: int = 4,
        hidden: int = 2048,
        dropout: float = 0.25,
        activation: Literal["relu", "softplus"] = "relu",
        exam_dim: int | None = None,
        pos_weight: Literal["scalar", "per_horizon", "none"] = "scalar",
        label_rule: Literal["cumulative", "mirai"] = "cumulative",
        encoder: str = "mlp",
        encoder_args: dict[str, Any] | None = None,
        in_chans: int = 612,
        **kwargs: Any,
    ) -> None:
        if encoder == "mlp" and encoder_args is None:
            encoder_args = {"hidden": []}
        super().__init__(encoder=encoder, encoder_args=encoder_args, in_chans=in_chans, **kwargs)
        if pos_weight not in ("scalar", "per_horizon", "none"):
            raise ValueError(f'pos_weight={pos_weight!r} must be "scalar", "per_horizon" or "none"')
        self.horizons = _horizons_of(self.class_names, named=kwargs.get("class_names") is not None)
        width = self.encoder.final_channels
        images = not isinstance(self.encoder, MLPEncoder)
        self.project: nn.Module = nn.Identity()
        if images and exam_dim is not None:
            self.project = nn.Linear(width, exam_dim)
            width = exam_dim
        elif exam_dim is not None:
            raise ValueError(f"exam_dim={exam_dim} is of images: of features use encoder_args")
        self.width = width
        self.aggregator: nn.Module
        if aggregator == "transformer":
            self.aggregator = HistoryAggregator(width, slots, dim, num_heads, hidden, dropout)
        elif aggregator == "recurrent":
            self.aggregator, dim = RecurrentAggregator(width, slots, dropout), width
        else:
            raise ValueError(f'aggregator={aggregator!r} must be "transformer" or "recurrent"')
        self.dropout = nn.Dropout(dropout)
        self.hazard = AdditiveHazard(dim, self.num_classes, activation)
        self.register_buffer("positive", torch.ones(self.num_classes))

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Return the logits of risk as `hazard` (B, Y)."""

    @property
    def selects_by(self) -> tuple[str, Literal["min", "max"]]:
        """Metric that `best_cl` is chosen by: the loss."""
        return "bce", "min"

    # Exams -------------------------------------------------------------------------------------

    def exams(self, batch: Batch, current_only: bool = False) -> tuple[Tensor, Tensor]:
        """Return the exams (B, T, D), 0 where there is none, and which are missing (B, T).

        Args:
            batch: Its `features` or `image`, `exam_mask` and `view_mask`.
            current_only: Read nothing of earlier exams; T is 1 then.
        """
        slots = slice(-1, None) if current_only else slice(None)
        missing = ~batch["exam_mask"][:, slots]
        if isinstance(self.encoder, MLPEncoder):
            found = self.encoder.embed(batch["features"][:, slots])
        else:
            found = self._of_views(batch["image"][:, slots], batch["view_mask"][:, slots])
        return found.masked_fill(missing[:, :, None], 0.0), missing

    def _of_views(self, image: Tensor, there: Tensor) -> Tensor:
        """Return the exams (B, T, D) of views (B, T, V, C, H, W) of which those `there` count."""
        pooled = self.encoder.final(image[there]).float().mean(dim=(2, 3))
        views = pooled.new_zeros(*there.shape, pooled.shape[1])
        views[there] = pooled
        count = there.sum(dim=2, keepdim=True).clamp(min=1)
        exams: Tensor = self.project(views.sum(dim=2) / count)
        return exams

    def risk_of(self, exams: Tensor, missing: Tensor) -> Output:
        """Return `hazard` (B, Y) and `embedding` (B, d) of exams (B, T, D)."""
        embedding = self.aggregator(exams, missing)
        return Output(hazard=self.hazard(self.dropout(embedding)), embedding=embedding)

    # Training ----------------------------------------------------------------------------------

    def load_start_weights(self) -> None:
        """Take the weight of events from the training rows."""
        super().load_start_weights()
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ExamDataModule) and self.hparams["pos_weight"] != "none":
            label = self.labels(*data.training_outcomes())
            each = self.hparams["pos_weight"] == "per_horizon"
            self.positive.copy_(positive_weight(label, per_horizon=each))

    def labels(self, time: Tensor, event: Tensor) -> Tensor:
        """Return y (B, Y) in {1, 0, -1}."""
        return horizon_labels(time, event, self.horizons, self.hparams["label_rule"])

    def outcome_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the weighted cross-entropy over what is known, a scalar."""
        return masked_bce(logits, label, self.positive.to(logits.device))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Train; log the share of increments that are 0, at which a ReLU learns nothing."""
        total = super().training_step(batch, batch_idx)
        if self._dead is not None:
            self.log(
                "train/dead_increments", self._dead, on_step=False, on_epoch=True, sync_dist=True,
                batch_size=len(batch["index"]),
            )  # fmt: skip
        return total

    _dead: Tensor | None = None

    def note_increments(self, logits: Tensor) -> None:
        """Remember how many increments between horizons are 0 in a training batch."""
        self._dead = (
            (logits.detach().diff(dim=1) <= 0).float().mean() if logits.shape[1] > 1 else None
        )

    # Evaluation --------------------------------------------------------------------------------

    def new_metrics(self, thresholds: Any = None) -> RiskMetrics:  # type: ignore[override]
        """Make the metrics of a split; censoring is weighed by that of the training rows."""
        data = getattr(self.trainer, "datamodule", None)
        whole_times, censoring = True, None
        if isinstance(data, ExamDataModule):
            whole_times = data.whole_times
            censoring = data.training_outcomes() if "train" in data.sources else None
        return RiskMetrics(
            self.horizons,
            whole_times=whole_times,
            censoring=censoring,
            loss=lambda logits, time, event: self.outcome_loss(logits, self.labels(time, event)),
            offset=self.positive.double().log(),
        )

    def update_metrics(  # type: ignore[override]
        self, metrics: RiskMetrics, batch: Batch, output: Output, valid: Tensor | None
    ) -> None:
        """Add the logits and outcomes of a batch."""
        assert output.hazard is not None
        metrics.update(
            output.hazard.float(), batch["time"], batch["event"], valid, batch.get("subset")
        )

    def risk(self, output: Output) -> Tensor:
        """Return the risks (B, Y), the weight of events taken out of the logits."""
        assert output.hazard is not None
        return (output.hazard.float() - self.positive.log()).sigmoid()

    def risk_groups(self, stage: str) -> dict[str, dict[str, Tensor]]:
        """Return predicted and observed risk by split; see `RiskMetrics.risk_groups`."""
        metrics: dict[str, Any] = self.metrics
        return {name: metrics[name].risk_groups() for name in self._split_names(stage)}

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return the risks (B, Y)."""
        return {
            "risk": self.risk(self(batch)),
            "valid": batch.get("valid"),
            "path": batch.get("path"),
        }

    def predict_image(self, image: str | Path | np.ndarray, target: Target = "pred") -> Prediction:
        """Refuse: an exam is no single image.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f"{type(self).__name__} predicts the risk of exams: wsl-zoo predict --data")


def _horizons_of(names: list[str], *, named: bool) -> list[float]:
    if not named:
        return [float(k + 1) for k in range(len(names))]
    try:
        return [float(name) for name in names]
    except ValueError as error:
        raise ValueError(f"class_names={names} must be horizons, as numbers") from error
