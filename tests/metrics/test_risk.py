"""Metrics of a split of exams: the values are those of the metrics they are made of."""

import math

import numpy as np
import pytest
import torch

from wsl_zoo.data.histories import simulate
from wsl_zoo.losses.survival import horizon_labels, masked_bce
from wsl_zoo.metrics import ConcordanceIndex, TimeDependentAUC
from wsl_zoo.metrics.risk import RiskMetrics
from wsl_zoo.metrics.split import Thresholds

YEARS = [1.0, 2.0, 3.0, 4.0, 5.0]
EXACT = {"rtol": 0, "atol": 1e-12}


def made(n=240, seed=0, censored=0.4):
    """Logits (N, 5) with ties, and whole years of the event or of the last exam."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.randint(1, 6, (n,), generator=generator).float()
    event = torch.rand(n, generator=generator) > censored
    logits = torch.randn(n, 5, generator=generator) - time[:, None] / 2
    return {"logits": logits.mul(4).round() / 4, "time": time, "event": event}


# Of rows that are all followed beyond the horizons, so that nobody's censoring weighs.
FOLLOWED = (torch.full((9,), 9.0), torch.zeros(9).bool())


def filled(rows, batch=1000, **kwargs):
    metrics = RiskMetrics(YEARS, **kwargs)
    for part in torch.arange(len(rows["time"])).split(batch):
        metrics.update(**{name: values[part] for name, values in rows.items()})
    return metrics


def values_of(rows, **kwargs):
    values, thresholds = filled(rows, **kwargs).compute()
    assert thresholds == Thresholds()
    return values


def direct(metric, rows, column=slice(None), censoring=None):
    """A metric of the logits of some horizons."""
    if censoring is not None:
        metric.fit_censoring(*censoring)
    metric.update(rows["logits"][:, column], rows["time"], rows["event"])
    return metric.compute()


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **EXACT, msg=name)


# Against the metrics themselves


@pytest.mark.parametrize("whole_times", [True, False])
def test_plain_values_are_those_of_the_metrics(whole_times):
    """Only order counts, and an event at k comes before a censoring at k in either case."""
    rows = made()
    values = values_of(rows, whole_times=whole_times, censoring=FOLLOWED)
    auc = direct(TimeDependentAUC(YEARS, at_horizon="control"), rows)
    expected = {f"auc_{k}": auc[k - 1] for k in range(1, 6)}
    expected |= {"auc": auc.mean()}
    expected |= {"pauc10": direct(TimeDependentAUC(YEARS, max_fpr=0.1), rows).mean()}
    expected |= {"c_index": direct(ConcordanceIndex(), rows, -1)}
    expected |= {"auc_ipcw": auc.mean()}
    index = direct(
        ConcordanceIndex("ipcw", tau=5.0 if not whole_times else 6.0), rows, -1, FOLLOWED
    )
    expected |= {"c_index_ipcw": index}
    assert_same(values, expected)
    assert all(0 < value < 1 for value in values.values())


def test_weighted_values_are_those_of_the_metrics():
    rows, train = made(), made(300, seed=1)
    for part in (rows, train):
        part["time"] += 0.1 * ~part["event"]  # someone is uncensored at the last event
    found = []
    for censoring in (None, (train["time"], train["event"])):
        values = values_of(rows, whole_times=False, censoring=censoring)
        auc = direct(TimeDependentAUC(YEARS, censoring="ipcw"), rows, censoring=censoring).mean()
        index = direct(ConcordanceIndex("ipcw", tau=5.0), rows, -1, censoring)
        torch.testing.assert_close(values["auc_ipcw"], auc, **EXACT)
        torch.testing.assert_close(values["c_index_ipcw"], index, **EXACT)
        found.append(values)
    own, other = found
    assert own["auc_ipcw"] != other["auc_ipcw"]
    assert own["c_index_ipcw"] != other["c_index_ipcw"]
    assert own["auc"] == other["auc"]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_whole_years_equal_scikit_survival(seed, own):
    """Of times without ties between events and censorings; weighed by own or by other rows."""
    metrics = pytest.importorskip("sksurv.metrics")
    surv = pytest.importorskip("sksurv.util").Surv
    rows, train = made(200, seed), made(300, seed + 10)
    train = rows if own else train
    values = values_of(rows, censoring=None if own else (train["time"], train["event"]))
    fit, test = (
        surv.from_arrays(
            part["event"].numpy(),
            (part["time"] + torch.where(part["event"], -0.5, 0.25)).double().numpy(),
        )
        for part in (train, rows)
    )
    risk = rows["logits"].double().numpy()
    areas = [
        metrics.cumulative_dynamic_auc(fit, test, risk[:, k], [t])[0][0]
        for k, t in enumerate(YEARS)
    ]
    assert values["auc_ipcw"].item() == pytest.approx(np.mean(areas), abs=1e-9)
    uno = metrics.concordance_index_ipcw(fit, test, risk[:, -1], tau=5.0)[0]
    assert values["c_index_ipcw"].item() == pytest.approx(uno, abs=1e-9)
    harrell = metrics.concordance_index_censored(test["event"], test["time"], risk[:, -1])[0]
    assert values["c_index"].item() == pytest.approx(harrell, abs=1e-9)


def test_weights_take_out_censoring():
    """Of women who are lost as they come, the weighted AUC is that of all followed to the end."""
    rows = simulate(40_000, 3, 0.25, 0.5, 0.7, dim=8)
    risk = torch.from_numpy(rows.risk)
    lost = {"logits": risk.logit(), "time": rows.time, "event": rows.event}
    lost = {name: torch.as_tensor(value) for name, value in lost.items()}
    hazard = 1 - torch.cat([1 - risk[:, :1], (1 - risk[:, 1:]) / (1 - risk[:, :-1])], dim=1)
    struck = torch.rand(hazard.shape) < hazard
    event = struck.any(dim=1)
    time = torch.where(event, struck.double().argmax(dim=1) + 1.0, 5.0)
    followed = {"logits": risk.logit(), "time": time, "event": event}
    truth, found = values_of(followed), values_of(lost)
    for weighted, plain in (("auc_ipcw", "auc"), ("c_index_ipcw", "c_index")):
        assert found[weighted].item() == pytest.approx(truth[plain].item(), abs=0.008)
        torch.testing.assert_close(truth[weighted], truth[plain])


# Subsets, rows that do not count, the loss


def test_values_are_means_over_subsets():
    rows = made(60)
    subset = torch.rand(60, 7) < 0.5
    values = values_of(rows | {"subset": subset})
    each = [values_of({name: v[s] for name, v in rows.items()}) for s in subset.T]
    expected = {
        name: torch.stack([part[name] for part in each if name in part]).mean() for name in values
    }
    assert_same(values, expected)
    assert any("auc_1" not in part for part in each)
    whole = values_of(rows)
    assert_same(values_of(rows | {"subset": torch.ones(60, 1).bool()}), whole)
    assert values["auc"] != whole["auc"]


def test_where_a_subset_has_no_value_it_does_not_count():
    rows = made(60)
    subset = torch.ones(60, 3).bool()
    subset[:, 1] = rows["time"] > 1  # no event by year 1
    subset[:, 2] = False
    values = values_of(rows | {"subset": subset})
    late = values_of({name: v[subset[:, 1]] for name, v in rows.items()})
    whole = values_of(rows)
    assert set(late) == set(whole) - {"auc_1"}
    torch.testing.assert_close(values["auc_1"], whole["auc_1"], **EXACT)
    torch.testing.assert_close(values["auc_2"], (whole["auc_2"] + late["auc_2"]) / 2, **EXACT)


def test_padded_rows_are_dropped():
    rows = made(50)
    valid = torch.rand(50) < 0.7
    kept = {name: values[valid] for name, values in rows.items()}
    assert_same(values_of(rows | {"valid": valid}), values_of(kept))
    subset = torch.rand(50, 4) < 0.6
    assert_same(
        values_of(rows | {"valid": valid, "subset": subset}, batch=20),
        values_of(kept | {"subset": subset[valid]}),
    )
    wrong = rows | {"valid": valid, "logits": rows["logits"].masked_fill(~valid[:, None], math.nan)}
    assert_same(values_of(wrong), values_of(kept))


@pytest.mark.parametrize("batch", [1, 7, 29])
def test_batches_give_the_value_of_one(batch):
    rows = made(29) | {"subset": torch.rand(29, 3) < 0.8}
    assert_same(values_of(rows, batch=batch), values_of(rows))
    for name, value in filled(rows).risk_groups().items():
        torch.testing.assert_close(filled(rows, batch=batch).risk_groups()[name], value, **EXACT)


def test_the_loss_is_of_all_rows():
    rows = made(40)

    def loss(logits, time, event):
        assert set(time.tolist()) <= set(YEARS)
        return masked_bce(logits, horizon_labels(time, event, YEARS), 3.0)

    assert "bce" not in values_of(rows)
    values = values_of(rows | {"subset": torch.rand(40, 5) < 0.2}, loss=loss, batch=16)
    expected = loss(rows["logits"].double(), rows["time"], rows["event"])
    torch.testing.assert_close(values["bce"], expected, **EXACT)


def test_of_no_rows_there_are_no_values():
    nothing = ({}, Thresholds())
    metrics = RiskMetrics(YEARS, loss=lambda *rows: rows[0].mean())
    assert metrics.compute() == nothing
    assert metrics.risk_groups() == {}
    rows = made(6)
    metrics.update(**rows, valid=torch.zeros(6).bool())
    assert metrics.compute() == nothing
    assert metrics.risk_groups() == {}
    metrics = filled(rows | {"subset": torch.zeros(6, 2).bool()})
    assert metrics.compute() == nothing
    assert (metrics.shares(), metrics.curves(), metrics.per_class()) == ({}, {}, {})


# Calibration


def outcome(*cells):
    """Time and event of "3+" (last seen at 3) and "3" (event)."""
    time = torch.tensor([float(cell.rstrip("+")) for cell in cells])
    return time, torch.tensor([not cell.endswith("+") for cell in cells])


def test_groups_of_risk_by_hand():
    """Who was last seen at 1 is no longer at risk in year 2."""
    risk = torch.tensor([[0.3, 0.7], [0.1, 0.2], [0.2, 0.6], [0.1, 0.4], [0.4, 0.8], [0.1, 0.3]])
    time, event = outcome("2", "2", "2+", "1+", "1", "2+")
    metrics = RiskMetrics([1.0, 2.0], offset=torch.tensor(3.0).log())
    metrics.update(risk.logit() + math.log(3), time, event)
    found = metrics.risk_groups(groups=2)
    assert found["horizon"].tolist() == [1, 2]
    predicted = torch.tensor([[0.1, 0.3], [0.3, 0.7]]).double()
    torch.testing.assert_close(found["predicted"], predicted, rtol=0, atol=1e-6)
    # Lowest: 2, 1+, 2+, so nobody of 3 and then one of 2. Highest: 2, 1, 2+: one of 3, one of 2.
    observed = torch.tensor([[0, 1 / 2], [1 / 3, 1 - 2 / 3 * 1 / 2]]).double()
    torch.testing.assert_close(found["observed"], observed, rtol=0, atol=1e-6)


def test_groups_of_times_that_are_no_whole_years():
    """An event at 1.5 counts from there; who is last seen at 1.6 is at risk of it."""
    time, event = outcome("1.5", "1.6+", "3+", "1.7")
    metrics = RiskMetrics([1.0, 1.5, 2.0], whole_times=False)
    metrics.update(torch.zeros(4, 3), time, event)
    found = metrics.risk_groups(groups=1)
    expected = torch.tensor([[0, 1 / 4, 1 - 3 / 4 * 1 / 2]]).double()
    torch.testing.assert_close(found["observed"], expected, rtol=0, atol=1e-6)
    assert (found["predicted"] == 0.5).all()


def test_offsets_per_horizon_are_subtracted():
    metrics = RiskMetrics([1.0, 2.0], offset=torch.tensor([1.0, -2.0]))
    logits = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    metrics.update(logits, *outcome("1", "2+"))
    expected = torch.tensor([[0.0, 0.0], [2.0, 2.0]]).double().sigmoid()
    torch.testing.assert_close(metrics.risk_groups(groups=2)["predicted"], expected)


def test_the_true_risk_is_calibrated():
    rows = simulate(40_000, 5, 0.25, 0.5, 0.7, dim=8)
    metrics = RiskMetrics(YEARS)
    risk = torch.from_numpy(rows.risk)
    metrics.update(risk.logit(), torch.from_numpy(rows.time), torch.from_numpy(rows.event))
    found = metrics.risk_groups()
    assert found["predicted"].shape == found["observed"].shape == (4, 5)
    for name in ("predicted", "observed"):
        assert (found[name].diff(dim=1) > 0).all()
        assert (found[name].diff(dim=0) > 0).all()
    torch.testing.assert_close(found["observed"], found["predicted"], rtol=0, atol=0.02)
    assert metrics.risk_groups(groups=10)["observed"].shape == (10, 5)


@pytest.mark.parametrize(("count", "found"), [(3, False), (4, True), (5, True)])
def test_fewer_rows_than_groups_give_none(count, found):
    assert bool(filled(made(count)).risk_groups()) is found


def test_weighted_values_are_absent_where_nothing_can_weigh():
    metrics = RiskMetrics(
        [1, 2],
        whole_times=False,
        censoring=(torch.tensor([0.5, 0.6]), torch.tensor([False, False])),
    )
    metrics.update(
        torch.randn(6, 2), torch.tensor([0.7, 0.8, 1.5, 3, 3, 3]), torch.tensor([1, 1, 1, 0, 0, 0])
    )
    values, _ = metrics.compute()
    assert {"auc_1", "auc", "c_index"} <= values.keys()
    assert {"auc_ipcw", "c_index_ipcw"}.isdisjoint(values)
