"""The built-in exams against what their docstring says: rates, censoring, and who tells what."""

from functools import cache

import numpy as np
import pytest
import torch

from wsl_zoo.data import SyntheticExamsData
from wsl_zoo.data.histories import (
    CENSORED,
    DENSITY_WEIGHT,
    LEVEL_WEIGHTS,
    RATES,
    SLOPE_WEIGHTS,
    VARIANTS,
    intercepts,
    mixing,
    simulate,
)
from wsl_zoo.metrics import TimeDependentAUC
from wsl_zoo.metrics.survival import kaplan_meier, value_at

MANY = 100_000
YEARS = [1.0, 2, 3, 4, 5]
BEST = [0.894, 0.880, 0.864, 0.869, 0.883]  # AUC of the true risk in each year


@cache
def many(variant="A"):
    level_noise, slope_noise, seen, _ = VARIANTS[variant]
    return simulate(MANY, 7, level_noise, slope_noise, seen, dim=8)


def outcomes(rows):
    return torch.from_numpy(rows.time).double(), torch.from_numpy(rows.event)


def log_odds(rows):
    """Of the hazards of each year, (N, 5)."""
    free = 1 - rows.risk
    hazard = 1 - free / np.concatenate([np.ones((len(free), 1)), free[:, :-1]], axis=1)
    return np.log(hazard / (1 - hazard))


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


# Outcomes


def test_cumulative_rates_are_the_stated_ones():
    risk = many().risk
    error = risk.std(axis=0) / np.sqrt(MANY)
    assert (np.abs(risk.mean(axis=0) - RATES) < 4 * error).all()
    assert (np.diff(risk, axis=1) > 0).all()
    assert risk.min() > 0
    assert risk.max() < 1


def test_outcomes_have_the_stated_rates_and_censoring():
    """Kaplan-Meier takes out who is lost: whole years, free at the year in which one is lost."""
    time, event = outcomes(many())
    years = torch.tensor(YEARS, dtype=torch.float64)
    assert set(time.tolist()) == set(YEARS)
    rates = 1 - value_at(kaplan_meier(time, event), years)
    torch.testing.assert_close(rates, torch.tensor(RATES).double(), rtol=0, atol=0.006)
    uncensored = value_at(kaplan_meier(time, event, censoring=True), years)
    expected = 1 - torch.tensor(CENSORED).double().cumsum(0)
    torch.testing.assert_close(uncensored, expected, rtol=0, atol=0.01)


def test_hazards_weigh_level_slope_and_density():
    """Mean, deviation, and covariance with what u shows of each."""
    rows = many()
    odds, u = log_odds(rows), rows.numbers
    weights = np.array([LEVEL_WEIGHTS, SLOPE_WEIGHTS, np.full(5, DENSITY_WEIGHT)])
    np.testing.assert_allclose(odds.mean(axis=0), intercepts(), atol=0.03)
    np.testing.assert_allclose(odds.std(axis=0), np.sqrt((weights**2).sum(axis=0)), rtol=0.01)
    shown = [u[:, -1, 0], u[:, -1, 3] * np.sign(u[:, -1, 2]), u[:, -1, 1]]
    for number, weight in zip(shown, weights, strict=True):
        covariance = ((number - number.mean())[:, None] * odds).mean(axis=0)
        np.testing.assert_allclose(covariance, weight, atol=0.05)


def test_the_true_risk_has_the_stated_auc():
    rows = many()
    metric = TimeDependentAUC(YEARS)
    metric.update(torch.from_numpy(rows.risk), *outcomes(rows))
    torch.testing.assert_close(metric.compute(), torch.tensor(BEST).double(), rtol=0, atol=0.01)


# Exams


@pytest.mark.parametrize("dim", [8, 32])
def test_the_mixing_is_orthonormal(dim):
    q = mixing(dim)
    assert q.shape == (dim, 8)
    np.testing.assert_allclose(q.T @ q, np.eye(8), atol=1e-12)
    np.testing.assert_array_equal(mixing(dim), q)


@pytest.mark.parametrize("dim", [8, 20])
def test_exams_are_the_numbers_mixed(dim):
    rows = simulate(2000, 0, 0.25, 0.5, 0.7, dim)
    assert rows.features.shape == (2000, 5, dim)
    found = (rows.features / 2) @ mixing(dim)
    noise = (found - rows.numbers)[rows.exam_mask]
    assert np.abs(noise.mean(axis=0)).max() < 0.01
    np.testing.assert_allclose(noise.std(axis=0), 0.15, rtol=0.05)
    left = rows.features - 2 * rows.numbers @ mixing(dim).T
    np.testing.assert_allclose(left[rows.exam_mask].std(axis=0), 0.3, rtol=0.05)


@pytest.mark.parametrize("variant", ["A", "B"])
def test_missing_exams_are_zero_and_the_current_one_is_there(variant):
    rows = many(variant)
    seen = VARIANTS[variant][2]
    assert rows.exam_mask[:, -1].all()
    np.testing.assert_allclose(rows.exam_mask[:, :-1].mean(axis=0), seen, atol=0.01)
    assert abs(correlation(rows.exam_mask[:, 0], rows.exam_mask[:, 3])) < 0.02
    assert (rows.features[~rows.exam_mask] == 0).all()
    assert (rows.features[rows.exam_mask] != 0).any(axis=1).all()


@pytest.mark.parametrize("variant", ["A", "B"])
def test_numbers_have_the_stated_noise(variant):
    level_noise, slope_noise, _, _ = VARIANTS[variant]
    u = many(variant).numbers
    np.testing.assert_allclose(u[:, -1, 0].var(), 1 + level_noise**2, rtol=0.02)
    np.testing.assert_allclose(u[:, 0, 0].var(), 1 + 1.5**2 + level_noise**2, rtol=0.02)
    np.testing.assert_allclose((u[:, 0, 1] - u[:, 4, 1]).std(), 0.1 * np.sqrt(2), rtol=0.02)
    np.testing.assert_allclose(u[..., 3].var(axis=0), 1 + slope_noise**2, rtol=0.02)
    others = u[..., [2, 4, 5, 6, 7]].reshape(MANY, -1)
    assert np.abs(np.cov(others.T) - np.eye(25)).max() < 0.02


def test_the_slope_is_linear_in_the_history():
    """The trend of u0 is 1.5 slope / 4 with the noise of a regression line through five exams."""
    u = many().numbers
    years = np.arange(-4, 1)
    trend = u[..., 0] @ (years + 2) / 10
    far = log_odds(many())[:, 4]
    noise = VARIANTS["A"][0]
    share = SLOPE_WEIGHTS[4] / np.sqrt(SLOPE_WEIGHTS[4] ** 2 + LEVEL_WEIGHTS[4] ** 2 + 0.09)
    expected = share * 0.375 / np.sqrt(0.375**2 + noise**2 / 10)
    assert correlation(trend, far) == pytest.approx(expected, abs=0.01)
    assert expected > 0.95


def test_the_slope_stands_in_one_exam_times_a_sign():
    rows = many()
    slope = log_odds(rows)[:, 4]
    now = rows.numbers[:, -1]
    signed = now[:, 3] * np.sign(now[:, 2])
    assert correlation(signed, slope) > 0.8
    assert np.abs([correlation(now[:, k], slope) for k in range(2, 8)]).max() < 0.015
    for half, sign in ((now[:, 2] > 0, 1), (now[:, 2] < 0, -1)):
        assert sign * correlation(now[half, 3], slope[half]) > 0.8
    before = rows.numbers[:, 1]
    assert abs(correlation(now[:, 3], before[:, 3])) < 0.015
    again = before[:, 3] * np.sign(before[:, 2])
    assert correlation(signed, again) == pytest.approx(1 / (1 + VARIANTS["A"][1] ** 2), abs=0.01)


def test_the_near_risk_is_the_level_and_the_far_one_the_slope():
    rows = many()
    odds, now = log_odds(rows), rows.numbers[:, -1]
    level = [correlation(now[:, 0], column) for column in odds.T]
    slope = [correlation(now[:, 3] * np.sign(now[:, 2]), column) for column in odds.T]
    assert (np.diff(level) < 0).all()
    assert (np.diff(slope) > 0).all()
    assert level[0] > 0.9 > 0.2 > level[4]


# Seeds and splits


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_rows_are_a_function_of_the_seed():
    one = simulate(50, 1, 0.25, 0.5, 0.7)
    assert same(simulate(50, 1, 0.25, 0.5, 0.7), one)
    other = simulate(50, 2, 0.25, 0.5, 0.7)
    for name in ("features", "numbers", "risk", "time"):
        assert not np.array_equal(getattr(one, name), getattr(other, name))
    assert one.features.dtype == one.time.dtype == one.numbers.dtype == np.float32
    assert one.exam_mask.dtype == one.event.dtype == bool


def small(**kwargs):
    return SyntheticExamsData(**{"train": 30, "val": 20, "test": 25} | kwargs)


def features(split="train", **kwargs):
    return small(**kwargs).sources[split].fields["features"]


def test_a_run_has_rows_of_its_own_unless_their_seed_is_given():
    assert torch.equal(features(seed=3), features(seed=3))
    assert not torch.equal(features(seed=3), features(seed=4))
    assert torch.equal(features(seed=3, data_seed=4), features(seed=4))
    assert torch.equal(features(seed=3, data_seed=9), features(seed=4, data_seed=9))


def test_no_two_splits_or_seeds_share_rows():
    sets = [
        features(split, seed=seed, train=20, test=20)
        for split in ("train", "val", "test")
        for seed in range(3)
    ]
    rows = torch.cat(sets).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows) == 180


@pytest.mark.parametrize("variant", ["A", "B"])
def test_what_a_variant_gives(variant):
    *_, seen, counts = VARIANTS[variant]
    data = SyntheticExamsData(variant, dim=9)
    assert [len(source) for source in data.sources.values()] == list(counts)
    assert list(data.sources) == ["train", "val", "test"]
    fields = data.sources["test"].fields
    assert set(fields) == {"features", "exam_mask", "time", "event"}
    assert fields["features"].shape == (5000, 5, 9)
    assert fields["exam_mask"][:, :-1].double().mean().item() == pytest.approx(seen, abs=0.01)
    assert (data.class_names, data.in_chans) == (["1", "2", "3", "4", "5"], 9)
    assert data.whole_times
    groups = [who for source in data.sources.values() for who in source.group]
    assert len(set(groups)) == sum(counts)


def test_fewer_rows_and_horizons():
    data = small(horizons=[2, 5], batch_size=7)
    assert [len(source) for source in data.sources.values()] == [30, 20, 25]
    assert data.class_names == ["2", "5"]
    batch = next(iter(data.train_dataloader()))
    assert batch["features"].shape == (7, 5, 32)
    assert batch["exam_mask"].dtype == batch["event"].dtype == torch.bool
    assert batch["time"].shape == (7,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "C"}, "variant='C' must be one of A, B"),
        ({"slots": 4}, r"slots=4, horizons=.*there are 5 yearly exams"),
        ({"horizons": [1, 6]}, r"horizons=\[1.0, 6.0\]: .*5 whole years after the last one"),
        ({"horizons": [1, 2.5]}, r"horizons=\[1.0, 2.5\]: .*whole years"),
        ({"horizons": [2, 1]}, r"horizons=\[2, 1\] must be positive and increasing"),
        ({"dim": 7}, "dim=7: an exam has 8 numbers, so 8 features at least"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)
