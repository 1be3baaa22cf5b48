from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sksurv import datasets
from sksurv.metrics import (
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
)
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from tests.metrics.processes import assert_same_on_processes
from wsl_zoo.metrics import ConcordanceIndex, TimeDependentAUC
from wsl_zoo.metrics.survival import kaplan_meier, value_at

REAL = {
    "whas500": datasets.load_whas500,
    "gbsg2": datasets.load_gbsg2,
    "veterans": datasets.load_veterans_lung_cancer,
}
EXACT = {"rtol": 0, "atol": 1e-9}


def real(name, decimals):
    """A risk with ties (of so many decimals), time, event; training and test rows."""
    table, outcome = REAL[name]()
    event, time = (outcome[field] for field in outcome.dtype.names)
    numbers = table.select_dtypes("number").to_numpy(float)
    numbers = (numbers - numbers.mean(axis=0)) / numbers.std(axis=0)
    risk = np.round(numbers @ np.linspace(-1, 1, numbers.shape[1]), decimals)
    train = np.arange(len(time)) % 2 == 0
    test = ~train & (time < time[train].max())
    return risk, time.astype(float), event.copy(), train, test


def made(n, seed=0, censored=0.4, columns=1):
    """Whole years and few risks: ties of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.randint(1, 7, (n,), generator=generator).double()
    event = torch.rand(n, generator=generator) > censored
    risk = torch.randint(0, 9, (n, columns), generator=generator) / 4 - time[:, None] / 6
    return {"risk": risk.double().round(decimals=1), "time": time, "event": event}


def filled(metric, risk, time, event, train=None):
    as_tensor = torch.as_tensor
    if train is not None:
        metric.fit_censoring(*map(as_tensor, train))
    for rows in torch.arange(len(time)).split(37):
        metric.update(*(as_tensor(v)[rows] for v in (risk, time, event)))
    return metric


# Against scikit-survival --------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [0, 1, 6])
@pytest.mark.parametrize("name", REAL)
def test_auc_equals_scikit_survival(name, decimals):
    risk, time, event, train, test = real(name, decimals)
    at = np.unique(np.quantile(time[test & event], [0.1, 0.3, 0.5, 0.7, 0.9]))
    outcomes = (Surv.from_arrays(event[part], time[part]) for part in (train, test))
    areas, mean = cumulative_dynamic_auc(*outcomes, risk[test], at)
    metric = TimeDependentAUC(at.tolist(), censoring="ipcw", at_horizon="drop")
    filled(metric, risk[test], time[test], event[test], (time[train], event[train]))
    torch.testing.assert_close(metric.compute(), torch.tensor(areas), **EXACT)
    torch.testing.assert_close(metric.summary().item(), float(mean), **EXACT)


@pytest.mark.parametrize("decimals", [0, 1, 6])
@pytest.mark.parametrize("name", REAL)
def test_concordance_equals_scikit_survival(name, decimals):
    risk, time, event, train, test = real(name, decimals)
    ours = filled(ConcordanceIndex(), risk, time, event).compute()
    assert ours.item() == pytest.approx(concordance_index_censored(event, time, risk)[0], abs=1e-9)
    outcomes = [Surv.from_arrays(event[part], time[part]) for part in (train, test)]
    for tau in (None, float(np.quantile(time, 0.6))):
        metric = ConcordanceIndex("ipcw", tau=tau)
        filled(metric, risk[test], time[test], event[test], (time[train], event[train]))
        theirs = concordance_index_ipcw(*outcomes, risk[test], tau=tau)[0]
        assert metric.compute().item() == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("name", REAL)
def test_kaplan_meier_equals_scikit_survival(name):
    _, time, event, *_ = real(name, 1)
    for censoring in (False, True):
        times, values = kaplan_meier_estimator(event, time, reverse=censoring)
        found = kaplan_meier(torch.tensor(time), torch.tensor(event), censoring=censoring)
        np.testing.assert_array_equal(found[0], times)
        np.testing.assert_allclose(found[1], values, rtol=0, atol=1e-12)
        before = value_at(found, torch.tensor([times[0] - 1, times[0], times[-1] + 1]))
        np.testing.assert_allclose(before, [1, values[0], values[-1]], atol=1e-12)


# Against the definitions --------------------------------------------------------------------------


def pairs_auc(risk, time, event, horizon, control):
    """Plain AUC over all pairs of a case and a control."""
    cases = risk[(time <= horizon) & event]
    later = time > horizon
    if control:
        later |= (time == horizon) & ~event
    difference = cases[:, None] - risk[later][None]
    return ((difference > 0).double() + 0.5 * (difference == 0)).mean()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("control", [True, False])
def test_plain_auc_is_over_pairs_of_cases_and_controls(seed, control):
    rows = made(150, seed, columns=3)
    horizons = [2.0, 3.0, 5.0]
    at_horizon = "control" if control else "drop"
    metric = filled(TimeDependentAUC(horizons, at_horizon=at_horizon), **rows)
    expected = [
        pairs_auc(rows["risk"][:, y], rows["time"], rows["event"], t, control)
        for y, t in enumerate(horizons)
    ]
    torch.testing.assert_close(metric.compute(), torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_plain_concordance_is_over_comparable_pairs(seed):
    rows = made(90, seed)
    risk, time, event = rows["risk"][:, 0], rows["time"], rows["event"]
    earlier = time[:, None] < time[None]
    at_once = (time[:, None] == time[None]) & ~event[None]
    comparable = event[:, None] & (earlier | at_once)
    difference = risk[:, None] - risk[None]
    right = (difference > 0).double() + 0.5 * (difference == 0)
    expected = (right * comparable).sum() / comparable.sum()
    found = filled(ConcordanceIndex(), **rows).compute()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_without_early_censoring_both_ways_of_it_agree():
    """The bridge of whole years: events half a year before, censorings half a year after."""
    rows = made(300, censored=0.0, columns=5)
    event = rows["time"] <= 5
    time = torch.where(event, rows["time"] - 0.5, 5.5)
    years = [1.0, 2, 3, 4, 5]
    plain = filled(TimeDependentAUC(years), rows["risk"], time, event).compute()
    weighted = TimeDependentAUC(years, censoring="ipcw", at_horizon="drop")
    torch.testing.assert_close(
        filled(weighted, rows["risk"], time, event).compute(), plain, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("max_fpr", [0.05, 0.2, 0.5, 1.0])
def test_partial_area_equals_scikit_learn(max_fpr):
    rows = made(400, censored=0.0)
    metric = filled(TimeDependentAUC([3.0], max_fpr=max_fpr), **rows)
    theirs = roc_auc_score(rows["time"] <= 3, rows["risk"][:, 0], max_fpr=max_fpr)
    assert metric.compute().item() == pytest.approx(theirs, abs=1e-12)


# Properties ---------------------------------------------------------------------------------------


def test_only_the_order_of_risks_counts_and_turning_it_mirrors_the_value():
    rows = made(200, columns=2)
    for build in (partial(TimeDependentAUC, [2.0, 4.0]), ConcordanceIndex):
        value = filled(build(), **rows).compute()
        bent = rows | {"risk": rows["risk"].exp() * 3 - 1}
        torch.testing.assert_close(filled(build(), **bent).compute(), value)
        turned = rows | {"risk": -rows["risk"]}
        torch.testing.assert_close(filled(build(), **turned).compute(), 1 - value)
        constant = rows | {"risk": torch.zeros_like(rows["risk"])}
        assert filled(build(), **constant).compute().tolist() == [0.5, 0.5]


def test_the_order_of_events_is_worth_one():
    time = torch.arange(1.0, 9.0)
    event = torch.ones(8, dtype=torch.bool)
    assert filled(ConcordanceIndex(), -time, time, event).compute() == 1
    assert filled(ConcordanceIndex(), time, time, event).compute() == 0
    assert filled(ConcordanceIndex("ipcw"), -time, time, event).compute() == 1
    assert filled(TimeDependentAUC([3.5]), -time, time, event).compute() == 1


def test_risks_within_the_tolerance_are_tied():
    risk = torch.tensor([0.5, 0.5 + 1e-9, 0.5 + 1e-6], dtype=torch.float64)
    time = torch.tensor([1.0, 2, 3])
    event = torch.tensor([True, False, False])
    assert filled(ConcordanceIndex(), risk, time, event).compute() == 0.25
    assert filled(TimeDependentAUC([1.0]), risk, time, event).compute() == 0.25
    exact = filled(ConcordanceIndex(tie_tolerance=0.0), risk, time, event)
    assert exact.compute() == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_cases_controls_or_pairs_it_is_undefined():
    risk, time = torch.tensor([0.1, 0.9]), torch.tensor([2.0, 3.0])
    nobody, all_ = torch.tensor([False, False]), torch.tensor([True, True])
    values = filled(TimeDependentAUC([1.0, 2.5, 4.0]), risk, time, all_).compute()
    assert values.isnan().tolist() == [True, False, True]
    assert filled(ConcordanceIndex(), risk, time, nobody).compute().isnan().all()
    assert TimeDependentAUC([1.0]).compute().isnan().all()
    assert ConcordanceIndex().compute().isnan().all()


def test_reset_forgets_rows_and_keeps_the_distribution_of_censoring():
    rows, train = made(80), made(200, seed=1)
    metric = TimeDependentAUC([2.0, 4.0], censoring="ipcw")
    filled(metric, **rows, train=(train["time"], train["event"]))
    first = metric.compute()
    metric.reset()
    torch.testing.assert_close(filled(metric, **rows).compute(), first, rtol=0, atol=0)
    other = filled(TimeDependentAUC([2.0, 4.0], censoring="ipcw"), **rows).compute()
    assert not torch.equal(other, first)


def test_several_processes_give_the_value_of_one():
    rows = made(21, columns=3)
    assert_same_on_processes(
        {
            "auc": (partial(TimeDependentAUC, [1.0, 3.0, 5.0]), rows),
            "ipcw": (partial(TimeDependentAUC, [1.0, 3.0, 4.0], censoring="ipcw"), rows),
            "partial": (partial(TimeDependentAUC, [1.0, 3.0, 5.0], max_fpr=0.3), rows),
            "harrell": (ConcordanceIndex, rows),
            "uno": (partial(ConcordanceIndex, "ipcw", tau=5.0), rows),
        },
        atol=1e-12,
    )


# Wrong input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": torch.tensor([1.0, -2.0])}, "negative or not finite, the first is -2 of row 1"),
        ({"time": torch.tensor([1.0, float("nan")])}, "the first is nan of row 1"),
        ({"time": torch.tensor([float("inf"), 1.0])}, "the first is inf of row 0"),
        ({"risk": torch.tensor([float("nan"), 1.0])}, "risk of 1 samples is NaN"),
        ({"event": torch.tensor([True])}, r"must be \(B, Y\) or \(B,\), \(B,\) and \(B,\)"),
        ({"risk": torch.zeros(2, 3)}, "risk has 3 columns, there are 2 horizons"),
    ],
)
def test_wrong_rows_are_named(changes, message):
    rows = {"risk": torch.zeros(2), "time": torch.ones(2), "event": torch.ones(2).bool()}
    with pytest.raises(ValueError, match=message):
        TimeDependentAUC([1.0, 2.0]).update(**rows | changes)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(TimeDependentAUC, []), r"horizons=\[\] must be increasing"),
        (partial(TimeDependentAUC, [2.0, 1.0]), "must be increasing"),
        (partial(TimeDependentAUC, [1.0], censoring="no"), "censoring='no'"),
        (partial(TimeDependentAUC, [1.0], at_horizon="no"), "at_horizon='no'"),
        (partial(TimeDependentAUC, [1.0], max_fpr=0.0), r"max_fpr=0.0 must lie in \(0, 1\]"),
        (partial(TimeDependentAUC, [1.0], tie_tolerance=-1), "tie_tolerance=-1"),
        (partial(ConcordanceIndex, "harrell"), "weights='harrell'"),
        (partial(ConcordanceIndex, tau=1.0), "tau=1.0 goes with"),
    ],
)
def test_wrong_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_events_when_nobody_is_uncensored_are_refused():
    metric = ConcordanceIndex("ipcw")
    metric.fit_censoring(torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
    metric.update(torch.zeros(2), torch.tensor([1.0, 3.0]), torch.tensor([True, True]))
    with pytest.raises(ValueError, match="nobody is uncensored at time 3"):
        metric.compute()
