"""PHD: the risk that a history tells, from the current exam alone.

Paper: "Privileged History Distillation", 2026 (arXiv 2603.15814, later called SEM-HD), for
mammography risk.
Loss: of a teacher the weighted binary cross-entropy of its group of horizons, where the label is
known; of the student that of all horizons + a sum_k T^2 CE(sigmoid(o_teacher / T),
sigmoid(o_student / T)) at every horizon k from the teacher whose group holds it, + b L_rec, the
squared error of the exams that it guesses. Prediction: sigmoid of logits that do not fall over the
horizons. There is no map.

1. `PHDTeacher` sees the true history. With `group` it is a specialist: loss, selection and what the
   student takes of it are those horizons'. Without, it is the full-history model; with
   `history="current"` the model that never had a history.
2. `PHDStudent(stage="imputer")` learns to guess the earlier exams from the current one.
3. `PHDStudent` guesses the history, aggregates it with the current exam and takes the teachers'
   risks as soft labels. Its `forward` reads the current exam only.

Deviations: all horizons share one weight of events (published: one each, which a head that cannot
fall over horizons cannot follow; `pos_weight="per_horizon"`). The student masks none of the exams
that it guesses (the published code masks those that truly are missing, and so knows how many there
were). Each horizon is distilled where its own label is known (published: years 1 to 3 where that of
year 4 is). L_rec is the mean over features, not their sum. Teachers' groups are this file's reading
of "horizon-specific teachers"; no published code trains them so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsl_zoo.checkpoints import load_checkpoint
from wsl_zoo.heads import HistoryImputer
from wsl_zoo.losses.distill import bernoulli_distillation, reconstruction_loss
from wsl_zoo.losses.survival import UNKNOWN
from wsl_zoo.methods.risk import LongitudinalRisk
from wsl_zoo.metrics.split import SplitMetrics
from wsl_zoo.types import Batch, Output


class PHDTeacher(LongitudinalRisk):
    """Risk from the true history: the full-history model, a teacher, or one without a history.

    Args:
        group: Horizons that it is a specialist of; None: all.
        history: "full", or "current": no earlier exam is ever read.
        hide: Slots hidden in evaluation, one bool each (the current exam last), e.g. all earlier
            ones, to see what a model does that had a history in training only; None: none.
        start: Checkpoint of a `PHDTeacher` to start from; None: random weights.
        **kwargs: See `LongitudinalRisk`.

    Raises:
        ValueError: Horizons that there are not, or slots that do not fit.
    """

    def __init__(
        self,
        group: list[float] | None = None,
        history: Literal["full", "current"] = "full",
        hide: list[bool] | None = None,
        start: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if history not in ("full", "current"):
            raise ValueError(f'history={history!r} must be "full" or "current"')
        slots = self.hparams["slots"]
        if hide is not None and (len(hide) != slots or hide[-1]):
            raise ValueError(f"hide={hide}: one bool for each of {slots} slots, the last one False")
        unknown = [t for t in group or () if t not in self.horizons]
        if unknown or group == []:
            raise ValueError(f"group={group}: the horizons are {self.horizons}")
        self.columns = [k for k, t in enumerate(self.horizons) if group is None or t in group]

    def load_start_weights(self) -> None:
        """Start from another teacher, if there is one to start from."""
        super().load_start_weights()
        path = self.hparams["start"]
        if path is not None:
            self.load_state_dict(_teacher_of("start", path, self.class_names).state_dict())

    def forward(self, batch: Batch) -> Output:
        """Return `hazard` (B, Y) and `embedding` (B, d)."""
        exams, missing = self.exams(batch, current_only=self.hparams["history"] == "current")
        hide = self.hparams["hide"]
        if missing.shape[1] == 1:
            exams, missing = _alone(exams, self.hparams["slots"])
        elif hide is not None and not self.training:
            missing = missing | torch.tensor(hide, device=missing.device)
        return self.risk_of(exams, missing)

    def outcome_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the cross-entropy of the group's horizons."""
        own = torch.full_like(label, UNKNOWN)
        own[:, self.columns] = label[:, self.columns]
        return super().outcome_loss(logits, own)

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return `bce`."""
        assert output.hazard is not None
        self.note_increments(output.hazard)
        label = self.labels(batch["time"], batch["event"])
        return {"bce": self.outcome_loss(output.hazard, label)}


class PHDStudent(LongitudinalRisk):
    """Risk from the current exam and a history guessed from it.

    Args:
        stage: "student", or "imputer": only what guesses the history is trained, on L_rec.
        impute: The earlier exams are guessed by an MLP ("mlp"), are the mean exam ("mean"), the
            current one ("carry"), or there are none ("none": plain distillation).
        imputer: Checkpoint of a `PHDStudent` of stage "imputer" to start from; None: random.
        imputer_hidden: Width of the imputer's layers.
        imputer_dropout: Its dropout.
        teachers: Checkpoints of `PHDTeacher`s with different groups; none: nothing is distilled.
        kd_weight: a, of the distillation at each horizon.
        temperature: T.
        kd_rows: Rows that are distilled at a horizon: those whose label is "known" there, or "all".
        rec_weight: b, of L_rec in stage "student".
        rec_kind: L_rec: "squared" error, or 1 - "cosine".
        **kwargs: See `LongitudinalRisk`.

    Raises:
        ValueError: Options that do not go together.
    """

    def __init__(
        self,
        stage: Literal["student", "imputer"] = "student",
        impute: Literal["mlp", "mean", "carry", "none"] = "mlp",
        imputer: str | None = None,
        imputer_hidden: int = 512,
        imputer_dropout: float = 0.1,
        teachers: list[str] | None = None,
        kd_weight: float = 0.1,
        temperature: float = 4.0,
        kd_rows: Literal["known", "all"] = "known",
        rec_weight: float = 0.0,
        rec_kind: Literal["squared", "cosine"] = "squared",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if stage not in ("student", "imputer"):
            raise ValueError(f'stage={stage!r} must be "student" or "imputer"')
        if impute not in ("mlp", "mean", "carry", "none"):
            raise ValueError(f'impute={impute!r} must be "mlp", "mean", "carry" or "none"')
        if kd_rows not in ("known", "all"):
            raise ValueError(f'kd_rows={kd_rows!r} must be "known" or "all"')
        if impute != "mlp" and (stage == "imputer" or rec_weight or imputer is not None):
            raise ValueError(f'impute={impute!r} guesses nothing that could be trained: use "mlp"')
        slots = self.hparams["slots"]
        self.imputer = (
            HistoryImputer(self.width, slots, imputer_hidden, imputer_dropout)
            if impute == "mlp"
            else None
        )
        self._teachers: list[PHDTeacher] = []  # a list: no part of the weights

    def on_fit_start(self) -> None:
        """Read start weights, and the teachers (of a resumed run too)."""
        super().on_fit_start()
        self._teachers = []
        if self.hparams["stage"] == "student":
            for path in self.hparams["teachers"] or ():
                teacher = _teacher_of("teachers", path, self.class_names).to(self.device)
                self._teachers.append(teacher.requires_grad_(requires_grad=False).eval())
            _check_groups(self._teachers, self.hparams["teachers"] or ())

    def load_start_weights(self) -> None:
        """Take the imputer of the stage before.

        Raises:
            ValueError: It is another network.
        """
        super().load_start_weights()
        path = self.hparams["imputer"]
        if path is None or self.imputer is None:
            return
        source = load_checkpoint(path)
        if not isinstance(source, PHDStudent) or source.imputer is None:
            raise ValueError(f"imputer={path} holds no PHDStudent with an imputer")
        for part in ("encoder", "project", "imputer"):
            try:
                getattr(self, part).load_state_dict(getattr(source, part).state_dict())
            except RuntimeError as error:
                raise ValueError(f"imputer={path} has another {part}: {error}") from error

    def frozen(self) -> Sequence[nn.Module]:
        """Return what the stage does not train."""
        if self.hparams["stage"] == "student":
            return []
        return [self.aggregator, self.hazard]

    @property
    def selects_by(self) -> tuple[str, Literal["min", "max"]]:
        """Metric that `best_cl` is chosen by: the loss of the stage."""
        return ("loss", "min") if self.hparams["stage"] == "imputer" else ("bce", "min")

    def forward(self, batch: Batch) -> Output:
        """Return `hazard` (B, Y), `embedding` (B, d) and `guessed` (B, T, D); no history is read.

        The last slot of what is guessed is the current exam itself.
        """
        current, _ = self.exams(batch, current_only=True)
        slots, impute = self.hparams["slots"], self.hparams["impute"]
        exams, missing = _alone(current, slots)
        if self.imputer is not None:
            exams = torch.cat([self.imputer(current[:, 0]).to(current), current], dim=1)
        elif impute == "carry":
            exams = current.expand(-1, slots, -1)
        if impute != "none":
            missing = torch.zeros_like(missing)
        output = self.risk_of(exams, missing)
        output.extra["guessed"] = exams
        return output

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return `bce`, `kd` and `rec` as far as the stage has them."""
        h = self.hparams
        if h["stage"] == "imputer":
            return {"rec": self._reconstruction(batch, output)}
        assert output.hazard is not None
        self.note_increments(output.hazard)
        label = self.labels(batch["time"], batch["event"])
        terms = {"bce": self.outcome_loss(output.hazard, label)}
        if self._teachers and h["kd_weight"]:
            terms["kd"] = h["kd_weight"] * self._distillation(batch, output.hazard, label)
        if h["rec_weight"]:
            terms["rec"] = h["rec_weight"] * self._reconstruction(batch, output)
        return terms

    def _distillation(self, batch: Batch, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over horizons of what their teachers teach."""
        terms = []
        for teacher in self._teachers:
            with torch.no_grad():
                taught = teacher(batch).hazard
            assert taught is not None
            for k in teacher.columns:
                known = label[:, k] != UNKNOWN if self.hparams["kd_rows"] == "known" else None
                terms.append(
                    bernoulli_distillation(
                        logits[:, k], taught[:, k], known, self.hparams["temperature"]
                    )
                )
        return torch.stack(terms).sum()

    def _reconstruction(self, batch: Batch, output: Output) -> Tensor:
        with torch.no_grad():
            true, missing = self.exams(batch)
        guessed = output.extra["guessed"][:, :-1]
        return reconstruction_loss(
            guessed, true[:, :-1], ~missing[:, :-1], self.hparams["rec_kind"]
        )

    def new_metrics(self, thresholds: Any = None) -> Any:
        """Make the metrics of a split: of an imputer its loss."""
        if self.hparams["stage"] == "imputer":
            return SplitMetrics(2)
        return super().new_metrics(thresholds)

    def update_metrics(
        self, metrics: Any, batch: Batch, output: Output, valid: Tensor | None
    ) -> None:
        """Add a batch."""
        if self.hparams["stage"] != "imputer":
            super().update_metrics(metrics, batch, output, valid)
            return
        rows: Any = {
            k: v[valid] if isinstance(v, Tensor) and valid is not None else v
            for k, v in batch.items()
        }
        guessed = output.extra["guessed"] if valid is None else output.extra["guessed"][valid]
        found = self._reconstruction(rows, Output(extra={"guessed": guessed}))
        metrics.update(loss=found.expand(int(rows["exam_mask"][:, :-1].sum())))


def _alone(current: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Return exams (B, T, D) that hold the current one only, and what is missing (B, T)."""
    exams = torch.cat([current.new_zeros(len(current), slots - 1, current.shape[2]), current], 1)
    missing = torch.ones(len(current), slots, dtype=torch.bool, device=current.device)
    missing[:, -1] = False
    return exams, missing


def _teacher_of(what: str, path: str, horizons: Sequence[str]) -> PHDTeacher:
    source = load_checkpoint(path)
    if not isinstance(source, PHDTeacher):
        raise ValueError(f"{what}={path} holds a {type(source).__name__}: no PHDTeacher")
    if source.class_names != list(horizons):
        raise ValueError(
            f"{what}={path} knows the horizons {', '.join(source.class_names)}, this model "
            f"{', '.join(horizons)}"
        )
    return source


def _check_groups(teachers: Sequence[PHDTeacher], paths: Sequence[str]) -> None:
    """Refuse two teachers of one horizon."""
    owner: dict[int, str] = {}
    for teacher, path in zip(teachers, paths, strict=True):
        for k in teacher.columns:
            if k in owner:
                raise ValueError(
                    f"teachers: {owner[k]} and {path} both teach horizon {teacher.class_names[k]}; "
                    "give teachers whose `group`s are disjoint"
                )
            owner[k] = path
