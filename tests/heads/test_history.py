from functools import partial

import pytest
import torch

from wsl_zoo.heads import (
    AdditiveHazard,
    HistoryAggregator,
    HistoryImputer,
    RecurrentAggregator,
)

AGGREGATORS = {
    "transformer": partial(HistoryAggregator, 6, 5, dim=8, num_heads=2, hidden=16),
    "recurrent": partial(RecurrentAggregator, 6, 5),
}


def exams_of(batch=4):
    torch.manual_seed(0)
    missing = torch.rand(batch, 5) < 0.5
    missing[:, -1] = False
    return torch.randn(batch, 5, 6), missing


# Hazard -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_risk_does_not_fall_over_horizons(activation):
    head = AdditiveHazard(6, 5, activation)
    logits = head(torch.randn(20, 6))
    assert logits.shape == (20, 5)
    assert (logits.diff(dim=1) >= 0).all()


def test_logits_are_base_and_the_increments_so_far():
    head, h = AdditiveHazard(6, 4).double(), torch.randn(3, 6, dtype=torch.float64)
    triangle = torch.tril(torch.ones(4, 4)).double()
    expected = head.base(h) + torch.relu(head.hazard(h)) @ triangle.T
    torch.testing.assert_close(head(h), expected)
    torch.nn.init.zeros_(head.hazard.weight)
    torch.nn.init.zeros_(head.hazard.bias)
    torch.testing.assert_close(head(h), head.base(h).expand(3, 4))


def test_a_horizon_teaches_no_later_increment():
    head, h = AdditiveHazard(6, 4, "softplus"), torch.randn(3, 6)
    head(h)[:, 1].sum().backward()
    assert head.hazard.bias.grad.ne(0).tolist() == [True, True, False, False]


# Aggregators --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGGREGATORS)
def test_what_a_missing_slot_holds_does_not_matter(name):
    model, (exams, missing) = AGGREGATORS[name]().eval(), exams_of()
    garbage = torch.where(missing[:, :, None], torch.full_like(exams, float("nan")), exams)
    assert torch.equal(model(garbage, missing), model(exams, missing))
    other = torch.where(missing[:, :, None], exams, exams + torch.randn(6))
    assert not torch.allclose(model(other, missing), model(exams, missing))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_exam_is_seen_and_its_place_too(name):
    model, (exams, _) = AGGREGATORS[name]().eval(), exams_of()
    none = torch.zeros(4, 5, dtype=torch.bool)
    exams = exams.requires_grad_()
    (model(exams, none) ** 3).sum().backward()
    assert (exams.grad.abs().sum(dim=2) > 0).all()
    turned = model(exams.flip(1), none)
    assert not torch.allclose(turned, model(exams, none))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_row_does_not_depend_on_its_batch(name):
    model, (exams, missing) = AGGREGATORS[name]().eval(), exams_of()
    alone = torch.cat([model(exams[i : i + 1], missing[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, model(exams, missing))


def test_the_transformer_averages_over_exams():
    model, (exams, _) = AGGREGATORS["transformer"]().eval(), exams_of()
    none = torch.zeros(4, 5, dtype=torch.bool)
    tokens = model.layer(model.embed(exams) + model.encoding)
    torch.testing.assert_close(model(exams, none), tokens.mean(dim=1))
    torch.testing.assert_close(model.encoding[0], torch.tensor([0.0, 1] * 4))
    assert "encoding" not in model.state_dict()


def test_the_recurrence_by_hand():
    model, (exams, missing) = AGGREGATORS["recurrent"](), exams_of()
    x = exams.masked_fill(missing[:, :, None], 0.0)
    hidden = cell = torch.zeros(4, 6)
    for t in range(5):
        o = model.join(torch.cat([model.norm(x[:, t]), hidden], dim=1))
        value, gate = model.gate(o).chunk(2, dim=1)
        o = o + model.out(value * torch.nn.functional.silu(gate))
        cell = o.sigmoid() * (cell + o.tanh())
        hidden = o.sigmoid() * cell.tanh()
    torch.testing.assert_close(model(exams, missing), hidden)


# The imputer --------------------------------------------------------------------------------------


def test_the_past_is_guessed_from_the_current_exam():
    model = HistoryImputer(6, 5, hidden=8)
    assert model(torch.randn(3, 6)).shape == (3, 4, 6)
    with pytest.raises(ValueError, match="slots=1"):
        HistoryImputer(6, 1)


# Wrong input --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGGREGATORS)
def test_wrong_exams_are_named(name):
    model, (exams, missing) = AGGREGATORS[name](), exams_of()
    with pytest.raises(ValueError, match=r"must be \(B, 5, D\) and \(B, 5\)"):
        model(exams[:, 1:], missing[:, 1:])
    missing[2, -1] = True
    with pytest.raises(ValueError, match="the current exam of 1 rows is missing, the first is 2"):
        model(exams, missing)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(AdditiveHazard, 0, 5), "in_features=0"),
        (partial(AdditiveHazard, 6, 5, "tanh"), "activation='tanh'"),
        (partial(HistoryAggregator, 6, 5, dim=9, num_heads=3), "dim=9 must be even"),
        (partial(HistoryAggregator, 6, 5, dim=8, num_heads=3), "a multiple of num_heads=3"),
    ],
)
def test_wrong_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
