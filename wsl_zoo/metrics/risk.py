"""Every metric of one split of exams: AUC of each horizon, partial AUC, concordance, calibration.

AUC and partial AUC (false positive rates up to 0.1) are those of the labels known at a horizon, as
privileged history distillation reports them; beside them the AUC weighted by the inverse
probability of censoring and both concordance indices, of the risk at the last horizon. Weighted
values are absent where an event is later than every censoring of the rows that weigh. Where rows
belong to evaluation subsets (of each woman one exam), every value is the mean over the subsets in
which it is defined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from wsl_zoo.metrics.base import synced
from wsl_zoo.metrics.split import Thresholds, WithoutClasses
from wsl_zoo.metrics.survival import (
    ConcordanceIndex,
    SurvivalMetric,
    TimeDependentAUC,
    kaplan_meier,
    value_at,
)

GROUPS = 4
MAX_FPR = 0.1

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of logits (N, Y), time (N,), event (N,): a scalar."""


class _Rows(SurvivalMetric):
    """Logits, outcomes and subsets of all processes."""

    subset: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("subset", [], dist_reduce_fx="cat")

    def update(
        self,
        risk: Tensor,
        time: Tensor,
        event: Tensor,
        valid: Tensor | None = None,
        subset: Tensor | None = None,
    ) -> None:
        """Add a batch; see `RiskMetrics.update`."""
        super().update(risk, time, event, valid)
        subset = torch.ones(len(risk), 1, dtype=torch.bool) if subset is None else subset
        subset = subset.to(risk.device)
        self.subset.append(subset if valid is None else subset[valid])

    def compute(self) -> Tensor:
        """Return the logits."""
        return self.rows()[0]


def _or_nan(
    metric: TimeDependentAUC | ConcordanceIndex, rows: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Return a weighted metric, NaN where an event is later than any censoring that weighs it."""
    try:
        return metric.of_rows(*rows)
    except ValueError:  # of few rows: the others are worth having, and so is the rest of a fit
        return torch.full((1,), torch.nan, dtype=torch.float64)


class RiskMetrics(WithoutClasses):
    """Metrics of one split of censored outcomes.

    Args:
        horizons: Times Y, increasing.
        whole_times: Times are whole years, of which an event at k came before k and a censoring at
            k after it: events count at k - 1/2, censorings at k + 1/4, so that who is last seen at
            k is at risk until k and not in the year of the next events.
        censoring: Time (N,) and event (N,) of the training rows, whose censoring weighs; None: that
            of the rows seen.
        loss: Called with the rows, gives the value `bce`.
        offset: (Y,) what to subtract from logits for risks, or 0.
    """

    def __init__(
        self,
        horizons: Sequence[float],
        *,
        whole_times: bool = True,
        censoring: tuple[Tensor, Tensor] | None = None,
        loss: Loss | None = None,
        offset: Tensor | float = 0.0,
    ) -> None:
        super().__init__()
        self.horizons = list(horizons)
        self.whole_times = whole_times
        self.loss = loss
        self.offset = torch.as_tensor(offset, dtype=torch.float64).cpu()
        self.rows = _Rows()
        self._auc = TimeDependentAUC(self.horizons)
        self._partial = TimeDependentAUC(self.horizons, max_fpr=MAX_FPR)
        self._weighted = TimeDependentAUC(self.horizons, censoring="ipcw")
        self._concordance = ConcordanceIndex()
        self._uno = ConcordanceIndex(weights="ipcw", tau=self.horizons[-1])
        if censoring is not None:
            for metric in (self._weighted, self._uno):
                metric.fit_censoring(*self._shifted(*censoring))

    def _shifted(self, time: Tensor, event: Tensor) -> tuple[Tensor, Tensor]:
        time, event = time.double(), event.bool()
        return (time + torch.where(event, -0.5, 0.25) if self.whole_times else time), event

    def update(
        self,
        logits: Tensor,
        time: Tensor,
        event: Tensor,
        valid: Tensor | None = None,
        subset: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            logits: `(B, Y)`.
            time: `(B,)`, not negative.
            event: `(B,)` bool.
            valid: `(B,)` bool, False for padded duplicates; None: all are counted.
            subset: `(B, S)` bool, which evaluation subsets a row belongs to; None: one, of all.
        """
        self.rows.update(logits, time, event, valid, subset)

    def compute(self) -> tuple[dict[str, Tensor], Thresholds]:
        """Return the values by name, and no map thresholds. All processes must call this."""
        with synced(self.rows):
            logits, time, event = self.rows.rows()
            subset = dim_zero_cat(self.rows.subset).cpu() if len(self.rows.subset) else None
        if subset is None or not subset.any():
            return {}, Thresholds()
        found = [self._values(logits[s], time[s], event[s]) for s in subset.T if s.any()]
        values = {}
        for name in found[0]:
            each = torch.stack([part[name] for part in found])
            defined = each[~each.isnan()]
            if len(defined):
                values[name] = defined.mean()
        if self.loss is not None:
            values["bce"] = self.loss(logits, time, event)
        return values, Thresholds()

    def _values(self, logits: Tensor, time: Tensor, event: Tensor) -> dict[str, Tensor]:
        rows = (logits, *self._shifted(time, event))
        last = (logits[:, -1:], *rows[1:])
        auc, partial = self._auc.of_rows(*rows), self._partial.of_rows(*rows)
        weighted, uno = _or_nan(self._weighted, rows), _or_nan(self._uno, last)
        values = {f"auc_{t:g}": value for t, value in zip(self.horizons, auc, strict=True)}
        values |= {"auc": auc.nanmean(), "pauc10": partial.nanmean()}
        values |= {"auc_ipcw": weighted.nanmean()}
        values |= {"c_index": self._concordance.of_rows(*last)[0]}
        return values | {"c_index_ipcw": uno[0]}

    def risk_groups(self, groups: int = GROUPS) -> dict[str, Tensor]:
        """Return predicted and observed risk over the horizons, by groups of predicted risk.

        Rows are cut into groups of equal size by their risk at the last horizon, lowest first.

        Returns:
            "horizon" (Y,), and "predicted" (G, Y), the mean risks, and "observed" (G, Y), one minus
            Kaplan-Meier's estimate. Empty without rows. All processes must call this.
        """
        with synced(self.rows):
            logits, time, event = self.rows.rows()
        if len(logits) < groups:
            return {}
        risk = (logits - self.offset).sigmoid()
        order = risk[:, -1].argsort(stable=True)
        horizons = torch.tensor(self.horizons, dtype=torch.float64)
        predicted, observed = [], []
        for rows in order.tensor_split(groups):
            curve = kaplan_meier(*self._shifted(time[rows], event[rows]))
            predicted.append(risk[rows].mean(dim=0))
            observed.append(1 - value_at(curve, horizons))
        return {
            "horizon": horizons,
            "predicted": torch.stack(predicted),
            "observed": torch.stack(observed),
        }
