from functools import partial

import numpy as np
import pytest
import torch
from coral_pytorch.layers import CoralLayer
from scipy.stats import binom, poisson

from wsl_zoo.heads import (
    BinomialScores,
    Cumulative,
    CutPoints,
    OrdinalHead,
    PoissonScores,
    SharedRank,
)

HEADS = {
    "plain": (OrdinalHead, 5, 5),
    "cumulative": (Cumulative, 4, 4),
    "poisson": (PoissonScores, 5, 5),
    "binomial": (BinomialScores, 1, 5),
    "cut points": (CutPoints, 1, 4),
    "shared": (SharedRank, 1, 4),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("batch", [1, 6])
def test_widths(name, batch):
    build, inputs, outputs = HEADS[name]
    head = build(5)
    assert head.inputs == inputs
    assert head(torch.randn(batch, inputs)).shape == (batch, outputs)


def falls_from_its_mode(scores):
    """Whether every row rises strictly to its mode and falls strictly after it."""
    mode = scores.argmax(dim=1, keepdim=True)
    left = torch.arange(scores.shape[1] - 1) < mode
    return torch.equal(scores.diff(dim=1) > 0, left)


def test_poisson_is_its_law_and_unimodal():
    head = PoissonScores(22).double()
    logits = torch.randn(40, 22, dtype=torch.float64) * 8
    rate = torch.nn.functional.softplus(head.rate(logits)).detach().numpy()
    np.testing.assert_allclose(
        head(logits).detach(), poisson.logpmf(np.arange(22), rate), rtol=1e-6, atol=1e-6
    )
    assert falls_from_its_mode(head(logits))
    half = PoissonScores(22, tau=2.0).double()
    half.load_state_dict(head.state_dict())
    torch.testing.assert_close(half(logits), head(logits) / 2)


def test_the_published_sign_puts_the_mass_into_the_tails():
    head, wrong = PoissonScores(22), PoissonScores(22, sign=-1)
    torch.nn.init.constant_(head.rate.bias, 8.0)
    wrong.load_state_dict(head.state_dict())
    logits = torch.randn(5, 22)
    assert torch.equal(wrong(logits), -head(logits))
    assert not falls_from_its_mode(wrong(logits))


def test_binomial_is_its_law_and_unimodal():
    f = torch.linspace(-4.1, 4.2, 23, dtype=torch.float64)[:, None]
    scores = BinomialScores(7).double()(f)
    np.testing.assert_allclose(
        scores, binom.logpmf(np.arange(7), 6, torch.sigmoid(f).numpy()), rtol=1e-5, atol=1e-5
    )
    assert falls_from_its_mode(scores)
    even = BinomialScores(7)(torch.zeros(1, 1))
    torch.testing.assert_close(even, even.flip(1))


def test_cut_points_increase_and_start_even():
    head = CutPoints(6)
    a = head(torch.zeros(1, 1))
    torch.testing.assert_close(a.sigmoid()[0], torch.arange(1.0, 6) / 6)
    with torch.no_grad():
        head.gaps.normal_(std=5)
    assert (head.cut_points().diff() > 0).all()
    higher = head(torch.ones(1, 1))
    torch.testing.assert_close(higher, head(torch.zeros(1, 1)) - 1)


def test_shared_ranks_equal_coral():
    theirs, ours = CoralLayer(1, 6), SharedRank(6)
    torch.testing.assert_close(ours.biases, theirs.coral_bias)
    f = torch.randn(9, 1)
    torch.testing.assert_close(ours(f), theirs.coral_weights(f) / theirs.coral_weights.weight
                               + theirs.coral_bias)  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sixty_ranks_overflow_nowhere(name, dtype):
    head = HEADS[name][0](60).to(dtype)
    logits = (100 * torch.randn(8, head.inputs)).to(dtype).requires_grad_()
    numbers = head(logits)
    numbers.float().sum().backward()
    assert numbers.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(OrdinalHead, 1), "num_classes=1"),
        (partial(PoissonScores, 3, tau=0.0), "tau=0.0 must be positive"),
        (partial(BinomialScores, 3, tau=-1.0), "tau=-1.0 must be positive"),
        (partial(PoissonScores, 3, sign=0), "sign=0 must be 1 or -1"),
    ],
)
def test_wrong_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
