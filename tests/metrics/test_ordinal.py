from functools import partial

import pytest
import torch

from tests.metrics.processes import assert_same_on_processes
from wsl_zoo.metrics import OrdinalAccuracy, OrdinalMAE, SidesOrderIndex


def soi(probs, label=None, side="prediction", **kwargs):
    probs = torch.as_tensor(probs, dtype=torch.float64)
    probs = probs[None] if probs.ndim == 1 else probs
    label = torch.zeros(len(probs)).long() if label is None else torch.as_tensor(label).reshape(-1)
    metric = SidesOrderIndex(side)
    metric.update(probs, label, **kwargs)
    return metric.compute().item()


def by_hand(scores, rank):
    """One sample, as the sentence says it."""
    inner = [
        scores[k] < scores[k + 1] if k < rank else scores[k + 1] < scores[k]
        for k in range(len(scores) - 1)
    ]
    return sum(inner) / len(inner)


def test_published_case():
    assert soi([1, 0.85, 0.75, 0.9]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_it_counts_neighbours_in_order(classes):
    generator = torch.Generator().manual_seed(classes)
    probs = torch.rand(50, classes, generator=generator).double()
    label = torch.randint(0, classes, (50,), generator=generator)
    for side, ranks in (("label", label), ("prediction", probs.argmax(dim=1))):
        hand = [by_hand(p.tolist(), int(r)) for p, r in zip(probs, ranks, strict=True)]
        assert soi(probs, label, side) == pytest.approx(sum(hand) / 50, abs=1e-12)


def test_unimodal_is_one_constant_is_zero():
    for mode in range(5):
        scores = -(torch.arange(5.0) - mode).abs()
        assert soi(scores) == 1
        assert soi(scores, mode, "label") == 1
    assert soi(torch.ones(5)) == 0


def test_only_the_order_counts_and_mirroring_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 6, generator=generator).double()
    label = torch.randint(0, 6, (200,), generator=generator)
    for side in ("label", "prediction"):
        value = soi(scores, label, side)
        assert soi(scores.softmax(dim=1), label, side) == value
        assert soi(scores.exp() * 2 - 5, label, side) == value
        assert soi(scores.flip(1), 5 - label, side) == pytest.approx(value, abs=1e-12)


def test_a_mode_is_worth_its_neighbours():
    generator = torch.Generator().manual_seed(1)
    for scores in torch.rand(100, 6, generator=generator):
        inner = 0 < int(scores.argmax()) < 5
        assert soi(scores) >= (2 if inner else 1) / 5 - 1e-9


@pytest.mark.parametrize("classes", [4, 22, 70])
def test_independent_scores(classes):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20_000, classes, generator=generator)
    label = torch.randint(0, classes, (20_000,), generator=generator)
    assert soi(scores) == pytest.approx(0.5 + 1 / classes, abs=0.005)
    assert soi(scores, label, "label") == pytest.approx(0.5, abs=0.005)


def test_the_prediction_may_be_given():
    scores = torch.tensor([[0.1, 0.5, 0.4]])
    assert soi(scores) == 1
    assert soi(scores, prediction=torch.tensor([2])) == 0.5


def test_error_and_accuracy_by_hand():
    probs = torch.eye(5)[[0, 4, 2, 1]]
    label = torch.tensor([0, 1, 1, 4])
    for build, expected in ((OrdinalMAE, 7 / 4), (OrdinalAccuracy, 1 / 4)):
        metric = build()
        metric.update(probs[:2], label[:2])
        metric.update(probs[2:], label[2:])
        assert metric.compute().item() == expected
        metric.reset()
        metric.update(probs, label, prediction=label, valid=torch.tensor([True, False, True, True]))
        assert metric.compute().item() == (build is OrdinalAccuracy)


def test_several_processes_give_the_value_of_one():
    generator = torch.Generator().manual_seed(0)
    rows = {
        "probs": torch.rand(11, 5, generator=generator),
        "label": torch.randint(0, 5, (11,), generator=generator),
    }
    builds = {
        "prediction": SidesOrderIndex,
        "label": partial(SidesOrderIndex, "label"),
        "mae": OrdinalMAE,
        "accuracy": OrdinalAccuracy,
    }
    assert_same_on_processes({name: (build, rows) for name, build in builds.items()})


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("build", [SidesOrderIndex, OrdinalMAE, OrdinalAccuracy])
def test_without_samples_it_is_undefined(build):
    assert build().compute().isnan()


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"must be \(B, K\) and \(B,\)"):
        OrdinalMAE().update(torch.zeros(3), torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"label must lie in 0..2"):
        OrdinalMAE().update(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="side='both'"):
        SidesOrderIndex("both")
