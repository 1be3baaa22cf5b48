import math

import pytest
import torch
from torch.nn import functional as F

from wsl_zoo.metrics import PredictionBias
from wsl_zoo.metrics.split import SplitMetrics


def logits_of(*counts):
    """Predictions of class k for `counts[k]` samples, mixed."""
    predicted = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    predicted = predicted[torch.randperm(len(predicted))]
    return F.one_hot(predicted, len(counts)) + 0.5 * torch.rand(1, len(counts))


def bias_of(*counts, **kwargs):
    metric = PredictionBias(len(counts), **kwargs)
    for part in logits_of(*counts).split(10):
        metric.update(part)
    return metric.compute()


def test_the_published_row():
    assert bias_of(33, 139).item() == pytest.approx(0.204238, abs=5e-7)
    relative = bias_of(33, 139, normalize=True).item()
    assert relative == pytest.approx(0.204238 / math.log(2), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_bounds(classes):
    assert bias_of(*[5] * classes).item() == pytest.approx(0, abs=1e-12)
    one = [0] * (classes - 1) + [9]
    assert bias_of(*one).item() == pytest.approx(math.log(classes))
    assert bias_of(*one, normalize=True).item() == pytest.approx(1)


def test_a_sum_over_classes_by_hand():
    counts = (1, 4, 0, 7)
    expected = sum(n / 12 * math.log(4 * n / 12) for n in counts if n)
    assert bias_of(*counts).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_samples_it_is_undefined():
    assert PredictionBias(3).compute().isnan()


def test_labels_are_not_read():
    metric = PredictionBias(2)
    metric.update(logits_of(3, 9), torch.full((12,), -1))
    assert metric.compute() == bias_of(3, 9)


def test_states_of_two_processes_sum_to_that_of_one():
    logits = logits_of(8, 3, 20)
    whole, mine, other = (PredictionBias(3, normalize=True) for _ in range(3))
    whole.update(logits)
    mine.update(logits[::2])
    other.update(logits[1::2])
    mine.merge_state(other)
    assert torch.equal(mine.counts, whole.counts)
    assert mine.compute() == whole.compute()
    assert mine.counts.dtype == torch.int64


# In the metrics of a split


def of_split(logits, bias=True, **kwargs):
    metrics = SplitMetrics(logits.shape[1], bias=bias)
    for place in torch.arange(len(logits)).split(5):
        rest = {name: value[place] for name, value in kwargs.items()}
        label = torch.zeros(len(place), dtype=torch.long)
        metrics.update(logits=logits[place], label=label, **rest)
    return metrics


def test_a_split_has_bias_and_shares_where_it_is_asked_for():
    logits = logits_of(3, 9)
    metrics = of_split(logits)
    values, _ = metrics.compute()
    assert set(values) == {"acc", "balanced_acc", "bias"}
    assert values["bias"] == bias_of(3, 9, normalize=True)
    shares = metrics.shares()
    assert {name: float(share) for name, share in shares.items()} == {
        "share_0": 0.25, "share_1": 0.75,
    }  # fmt: skip
    plain = of_split(logits, bias=False)
    assert "bias" not in plain.compute()[0]
    assert plain.shares() == {}


def test_copies_that_pad_are_not_counted():
    logits = logits_of(3, 9)
    valid = torch.ones(12, dtype=torch.bool)
    valid[logits.argmax(1) == 0] = False
    assert float(of_split(logits, valid=valid).shares()["share_1"]) == 1


def test_a_split_without_samples_has_no_shares():
    metrics = SplitMetrics(2, bias=True)
    assert metrics.shares() == {}
    assert metrics.compute()[0] == {}


def test_reset_forgets():
    metrics = of_split(logits_of(3, 9))
    metrics.reset()
    assert metrics.shares() == {}
    metrics.update(logits=logits_of(2, 2), label=torch.zeros(4, dtype=torch.long))
    assert metrics.compute()[0]["bias"] == 0
