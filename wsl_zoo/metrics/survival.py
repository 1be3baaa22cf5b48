"""Metrics of censored outcomes: time-dependent AUC and the concordance index, in O(N log N).

Rows are kept and gathered; values are float64 and computed on the CPU. Of `time` only the order and
the equality count, in whatever unit; `event` says whether the outcome was seen at `time` (else the
sample was last seen free of it). IPCW weighs an event at T by 1 / G(T), where G is the Kaplan-Meier
estimate of not being censored up to and including T (events come before censorings of that time).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from wsl_zoo.metrics.survival_kernels import areas, concordance

Rows = tuple[Tensor, Tensor, Tensor]


def kaplan_meier(time: Tensor, event: Tensor, *, censoring: bool = False) -> tuple[Tensor, Tensor]:
    """Return the distinct times (M,), increasing, and the estimate (M,) from each of them on.

    Args:
        time: `(N,)` times.
        event: `(N,)` bool.
        censoring: Of not being censored instead of surviving; events come before it.
    """
    times, at = torch.unique(time, return_inverse=True)
    events = torch.bincount(at, weights=event.double(), minlength=len(times))
    leaving = torch.bincount(at, minlength=len(times)).double()
    at_risk = len(time) - leaving.cumsum(0) + leaving
    if censoring:
        at_risk = at_risk - events
        events = leaving - events
    lost = torch.where(events > 0, events / at_risk.clamp(min=1), 0.0)
    return times, (1 - lost).cumprod(0)


def value_at(curve: tuple[Tensor, Tensor], time: Tensor) -> Tensor:
    """Return a step function of `kaplan_meier` at `time`: 1 before its first step."""
    times, values = curve
    steps = torch.cat([values.new_ones(1), values])
    return steps[torch.searchsorted(times, time.contiguous(), right=True)]


class SurvivalMetric(Metric):
    """Base: keeps rows and the distribution of censoring.

    Args:
        tie_tolerance: Risks that differ by no more count as equal (1e-8 as in scikit-survival).
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    higher_is_better = True
    full_state_update = False
    risk: list[Tensor]
    time: list[Tensor]
    event: list[Tensor]

    def __init__(self, tie_tolerance: float = 1.0e-8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not tie_tolerance >= 0:
            raise ValueError(f"tie_tolerance={tie_tolerance} must not be negative")
        self.tie_tolerance = tie_tolerance
        self._censoring: tuple[Tensor, Tensor] | None = None
        for name in ("risk", "time", "event"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def fit_censoring(self, time: Tensor, event: Tensor) -> None:
        """Estimate the distribution of censoring from other rows, e.g. the training table.

        Without this it is that of the rows seen. `reset` keeps it.

        Args:
            time: `(N,)`.
            event: `(N,)`.
        """
        time, event = time.detach().double().cpu(), event.detach().bool().cpu()
        _check_times(time)
        self._censoring = kaplan_meier(time, event, censoring=True)

    def update(
        self, risk: Tensor, time: Tensor, event: Tensor, valid: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            risk: `(B, Y)` risk by horizon, or `(B,)`; higher means an earlier event.
            time: `(B,)` not negative.
            event: `(B,)` bool or 0 and 1: whether the event was seen at `time`.
            valid: `(B,)` bool, False for padded duplicates; None: all are counted.

        Raises:
            ValueError: Shapes that do not fit, a risk that is NaN, a negative time.
        """
        if risk.ndim not in (1, 2) or not len(risk) == len(time) == len(event):
            raise ValueError(
                f"risk {tuple(risk.shape)}, time {tuple(time.shape)}, event {tuple(event.shape)} "
                "must be (B, Y) or (B,), (B,) and (B,)"
            )
        risk = risk.detach().double()
        risk = risk[:, None] if risk.ndim == 1 else risk
        time, event = time.detach().double(), event.detach().bool()
        if valid is not None:
            risk, time, event = risk[valid], time[valid], event[valid]
        if risk.isnan().any():
            raise ValueError(f"risk of {int(risk.isnan().any(dim=1).sum())} samples is NaN")
        _check_times(time)
        self.check(risk)
        self.risk.append(risk)
        self.time.append(time)
        self.event.append(event)

    def check(self, risk: Tensor) -> None:
        """Refuse risks (B, Y) of which there are too many or too few."""

    def rows(self) -> Rows:
        """Return risk (N, Y), time (N,) and event (N,) of all processes, on the CPU."""
        if not len(self.risk):
            return torch.zeros(0, 1).double(), torch.zeros(0).double(), torch.zeros(0).bool()
        risk, time, event = (dim_zero_cat(v).cpu() for v in (self.risk, self.time, self.event))
        return risk, time, event

    def weights(self, time: Tensor, event: Tensor, counted: Tensor) -> Tensor:
        """Return 1 / G(T) of the events that are counted, 0 of the others, (N,).

        Args:
            time: `(N,)`.
            event: `(N,)`.
            counted: `(N,)` bool.

        Raises:
            ValueError: Nobody of the rows behind G is left at the time of an event.
        """
        curve = self._censoring or kaplan_meier(time, event, censoring=True)
        free = value_at(curve, time)
        if (counted & (free <= 0)).any():
            last = float(time[counted & (free <= 0)].min())
            raise ValueError(
                f"IPCW: nobody is uncensored at time {last:g}, where an event is: evaluate up to "
                "an earlier time, or give fit_censoring rows with a longer follow-up"
            )
        return torch.where(counted, 1 / free, 0.0)

    @abstractmethod
    def compute(self) -> Tensor:
        """Return the value per horizon, (Y,) float64; torchmetrics makes a scalar of one value."""


class TimeDependentAUC(SurvivalMetric):
    """Area under the ROC curve at each horizon t: who has the event by t, against who has it later.

    Cases had the event at T <= t, controls are those with T > t; ties of risk count one half. In
    [0, 1], 0.5 of a constant risk; NaN where there is no case or no control.

    Args:
        horizons: Times t, increasing; column y of a risk (B, Y) belongs to horizon y, a risk (B,)
            to all.
        censoring: What becomes of those who were censored before t: "drop" leaves them out, "ipcw"
            also weighs cases (cumulative/dynamic AUC: Uno et al. 2007; Hung & Chiang 2010).
        at_horizon: Who is censored exactly at t is a "control" (published code of PHD, where times
            are whole years) or left out ("drop", scikit-survival).
        max_fpr: Area up to this false positive rate in (0, 1], standardised so that chance is 0.5
            and the best 1 (McClish 1989); None: the whole.
        **kwargs: See `SurvivalMetric`.

    Example:
        >>> import torch
        >>> metric = TimeDependentAUC([2.0, 4.0])
        >>> metric.update(torch.tensor([0.9, 0.4, 0.6, 0.1]), torch.tensor([1.0, 3, 5, 5]),
        ...               torch.tensor([1, 1, 0, 0]))
        >>> metric.compute()
        tensor([1.0000, 0.7500], dtype=torch.float64)
    """

    def __init__(
        self,
        horizons: Sequence[float],
        censoring: Literal["drop", "ipcw"] = "drop",
        at_horizon: Literal["control", "drop"] = "control",
        max_fpr: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.horizons = [float(t) for t in horizons]
        if not self.horizons or sorted(set(self.horizons)) != self.horizons:
            raise ValueError(f"horizons={list(horizons)} must be increasing times, at least one")
        if censoring not in ("drop", "ipcw"):
            raise ValueError(f'censoring={censoring!r} must be "drop" or "ipcw"')
        if at_horizon not in ("control", "drop"):
            raise ValueError(f'at_horizon={at_horizon!r} must be "control" or "drop"')
        if max_fpr is not None and not 0 < max_fpr <= 1:
            raise ValueError(f"max_fpr={max_fpr} must lie in (0, 1]")
        self.censoring = censoring
        self.at_horizon = at_horizon
        self.max_fpr = max_fpr

    def check(self, risk: Tensor) -> None:
        """Refuse risks that are not one per horizon, nor one for all."""
        if risk.shape[1] not in (1, len(self.horizons)):
            raise ValueError(
                f"risk has {risk.shape[1]} columns, there are {len(self.horizons)} horizons"
            )

    def compute(self) -> Tensor:
        """Return the AUC of each horizon, (Y,) float64, a scalar of one horizon."""
        return self.of_rows(*self.rows())

    def of_rows(self, risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
        """Return the AUC of each horizon of rows that are not this metric's own, (Y,) float64.

        Args:
            risk: `(N, Y)` or `(N, 1)` float64 on the CPU.
            time: `(N,)` float64.
            event: `(N,)` bool.
        """
        weights = event.double()
        if self.censoring == "ipcw":
            weights = self.weights(time, event, event & (time <= self.horizons[-1]))
        own = risk.shape[1] > 1  # a risk per horizon, else one for all
        limit = 2.0 if self.max_fpr is None else self.max_fpr
        horizons = np.array(self.horizons)
        columns = [
            areas(
                column.numpy(), time.numpy(), event.numpy(), weights.numpy(),
                horizons[y : y + 1] if own else horizons,
                self.at_horizon == "control", limit, self.tie_tolerance,
            )
            for y, column in enumerate(risk.T.contiguous())
        ]  # fmt: skip
        found = torch.from_numpy(np.concatenate(columns))
        if self.max_fpr is None:
            return found
        least, most = self.max_fpr**2 / 2, self.max_fpr
        return 0.5 * (1 + (found - least) / (most - least))

    def summary(self) -> Tensor:
        """Return the mean over horizons by the events between them (Lambert & Chevret 2016).

        sum_y AUC(t_y) (S(t_{y-1}) - S(t_y)) / (1 - S(t_last)), S the Kaplan-Meier estimate of the
        rows seen, S(t_{-1}) = 1; of one horizon its AUC. A float64 scalar.
        """
        values = self.compute()
        if values.ndim == 0:
            return values
        _, time, event = self.rows()
        survival = value_at(kaplan_meier(time, event), values.new_tensor(self.horizons))
        lost = -torch.cat([values.new_ones(1), survival]).diff()
        return (values * lost).sum() / (1 - survival[-1])


class ConcordanceIndex(SurvivalMetric):
    """Share of comparable pairs whose risks are in the order of their events.

    A pair is comparable if the event of one was seen before the other's time, or at the time when
    the other was censored; equal risks count one half. In [0, 1], 0.5 of a constant risk; NaN
    without comparable pairs.

    Args:
        weights: None: all pairs alike (Harrell et al. 1996); "ipcw": a pair counts 1 / G(T)^2 of
            the earlier time T (Uno et al. 2011), which takes out the influence of censoring.
        tau: With "ipcw": pairs whose earlier time is below tau only.
        **kwargs: See `SurvivalMetric`.

    Example:
        >>> import torch
        >>> metric = ConcordanceIndex()
        >>> metric.update(torch.tensor([0.9, 0.4, 0.6, 0.1]), torch.tensor([1.0, 3, 5, 5]),
        ...               torch.tensor([1, 1, 0, 0]))
        >>> metric.compute()
        tensor(0.8000, dtype=torch.float64)
    """

    def __init__(
        self,
        weights: Literal["ipcw"] | None = None,
        tau: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if weights not in (None, "ipcw"):
            raise ValueError(f'weights={weights!r} must be None or "ipcw"')
        if tau is not None and weights is None:
            raise ValueError(f'tau={tau} goes with weights="ipcw"')
        self.weighting = weights
        self.tau = tau

    def compute(self) -> Tensor:
        """Return the index of each column of the risk, (Y,) float64, a scalar of one column."""
        return self.of_rows(*self.rows())

    def of_rows(self, risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
        """Return the index of each column of rows that are not this metric's own, (Y,) float64.

        Args:
            risk: `(N, Y)` float64 on the CPU.
            time: `(N,)` float64.
            event: `(N,)` bool.
        """
        if self.weighting is None:
            weights = event.double()
        else:
            counted = event if self.tau is None else event & (time < self.tau)
            weights = self.weights(time, event, counted).square()
        columns = [
            concordance(r.numpy(), time.numpy(), event.numpy(), weights.numpy(), self.tie_tolerance)
            for r in risk.T.contiguous()
        ]
        return torch.tensor(columns, dtype=torch.float64)


def _check_times(time: Tensor) -> None:
    """Refuse times that are negative or not finite."""
    wrong = ~(time >= 0) | time.isinf()
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"time of {int(wrong.sum())} samples is negative or not finite, the first is "
            f"{float(time[first]):g} of row {first}"
        )
