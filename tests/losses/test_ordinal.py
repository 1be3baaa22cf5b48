import math
from functools import partial

import numpy as np
import pytest
import torch
from coral_pytorch.dataset import corn_label_from_logits, proba_to_label
from coral_pytorch.losses import coral_loss, corn_loss
from scipy.stats import norm
from torch.nn import functional as F

from wsl_zoo.losses import (
    CORAL,
    CORN,
    CodeVector,
    ExtendedLogBarrier,
    LabelDistribution,
    MeanVariance,
    OrdinalCrossEntropy,
    ProportionalOdds,
    SoftOrdinal,
    UnimodalityConstraint,
    adjacent_differences,
)

LOSSES = {
    "CE": OrdinalCrossEntropy,
    "SORD": SoftOrdinal,
    "SORD squared": partial(SoftOrdinal, distance="squared"),
    "LD": LabelDistribution,
    "LD flat": partial(LabelDistribution, flat=True),
    "MV": MeanVariance,
    "REN": CodeVector,
    "POM": ProportionalOdds,
    "CORAL": CORAL,
    "CORN": CORN,
}
CONSTRAINTS = ["barrier", "rectified", "penalty"]


def numbers_of(loss, batch=7, scale=1.5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = scale * torch.randn(batch, loss.outputs, generator=generator, dtype=torch.float64)
    if isinstance(loss, ProportionalOdds):
        numbers = numbers.sort(dim=1).values
    label = torch.randint(0, loss.num_classes, (batch,), generator=generator)
    return numbers.to(dtype).requires_grad_(), label


# Values by hand -----------------------------------------------------------------------------------


def test_soft_targets_by_hand():
    away = np.array([2.0, 1, 0, 1])
    label, like = torch.tensor([2]), torch.zeros(1, 4, dtype=torch.float64)
    for loss, weights in (
        (SoftOrdinal(4), np.exp(-away)),
        (SoftOrdinal(4, "squared"), np.exp(-(away**2))),
        (LabelDistribution(4, 0.5), norm.pdf(away, scale=0.5**0.5)),
        (LabelDistribution(4, 0.5, flat=True), np.exp(norm.pdf(away, scale=0.5**0.5))),
    ):
        target = loss.targets(label, like)[0]
        np.testing.assert_allclose(target, weights / weights.sum(), rtol=1e-12)


def test_values_by_hand():
    scores = torch.tensor([[0.2, -1.0, 0.7]], dtype=torch.float64)
    label = torch.tensor([1])
    p = torch.softmax(scores, 1)[0].tolist()
    assert OrdinalCrossEntropy(3)(scores, label).item() == pytest.approx(-math.log(p[1]))
    mean = p[1] + 2 * p[2]
    spread = sum(q * (j - mean) ** 2 for j, q in enumerate(p))
    expected = -math.log(p[1]) + 0.2 * 0.5 * (mean - 1) ** 2 + 0.05 * spread
    assert MeanVariance(3)(scores, label).item() == pytest.approx(expected)
    bits = torch.sigmoid(scores)[0].tolist()
    expected = (bits[0] - 1) ** 2 + (bits[1] - 1) ** 2 + bits[2] ** 2
    assert CodeVector(3)(scores, label).item() == pytest.approx(expected)
    target = LabelDistribution(3).targets(label, scores)
    divergence = F.kl_div(scores.log_softmax(1), target, reduction="batchmean")
    torch.testing.assert_close(LabelDistribution(3)(scores, label), divergence)
    cut = torch.tensor([[-0.5, 1.0]], dtype=torch.float64)
    expected = -math.log(torch.sigmoid(cut[0, 1]) - torch.sigmoid(cut[0, 0]))
    assert ProportionalOdds(3)(cut, label).item() == pytest.approx(expected)


def test_the_published_flat_target_is_all_but_uniform():
    for classes, share in ((5, 0.995), (70, 0.9994)):
        target = LabelDistribution(classes, flat=True).targets(
            torch.tensor([classes // 2]), torch.zeros(1, classes)
        )
        entropy = -(target * target.log()).sum() / math.log(classes)
        assert entropy.item() == pytest.approx(share, abs=5e-4)


def test_coral_equals_its_authors():
    logits = torch.tensor([[2.1, 1.8, -2.1, -1.8], [1.9, -1, -1.5, -1.3], [1.9, 1.8, 1.7, 1.6]])
    label = torch.tensor([2, 1, 4])
    assert CORAL(5)(logits, label).item() == pytest.approx(0.6920, abs=5e-5)
    loss = CORAL(6)
    numbers, label = numbers_of(loss, 40)
    levels = (label[:, None] > torch.arange(5)).double()
    torch.testing.assert_close(loss(numbers, label), coral_loss(numbers, levels), atol=1e-6, rtol=0)
    assert torch.equal(loss.predict(numbers), proba_to_label(numbers.sigmoid()))


@pytest.mark.parametrize("seed", range(3))
def test_corn_equals_its_authors(seed):
    loss = CORN(6)
    numbers, label = numbers_of(loss, 40, seed=seed)
    ours, theirs = loss(numbers, label), corn_loss(numbers, label, 6)
    torch.testing.assert_close(ours, theirs.to(ours), atol=1e-6, rtol=0)
    assert torch.equal(loss.predict(numbers), corn_label_from_logits(numbers))
    published = torch.tensor([[14.152, -6.1942, 0.47710, 0.96850], [65.667, 0.303, 11.500, -4.524]])
    assert CORN(5).predict(published).tolist() == [1, 3]


def test_two_ranks_are_a_binary_classification():
    numbers, label = torch.randn(9, 1), torch.arange(9) % 2
    binary = F.binary_cross_entropy_with_logits(numbers[:, 0], label.float())
    for build in (CORAL, CORN):
        torch.testing.assert_close(build(2)(numbers, label), binary)
    torch.testing.assert_close(ProportionalOdds(2)(-numbers, label), binary)


# Probabilities and predictions --------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_probabilities_sum_to_one(name):
    loss = LOSSES[name](5)
    numbers, _ = numbers_of(loss)
    p = loss.probabilities(numbers)
    assert p.shape == (7, 5)
    torch.testing.assert_close(p.sum(dim=1), torch.ones(7, dtype=torch.float64))
    assert loss.positive == (name not in ("REN", "CORAL"))
    if loss.positive:
        assert (p > 0).all()
        torch.testing.assert_close(loss.constrained(numbers).exp(), p)
    else:
        torch.testing.assert_close(loss.constrained(numbers).sinh() * 2e-3, p)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 5])
def test_numbers_that_fit_their_label_are_predicted(name, classes):
    loss = LOSSES[name](classes)
    label = torch.arange(classes)
    numbers = torch.zeros(classes, loss.outputs, requires_grad=True)
    with torch.no_grad():
        numbers += 0.01 * torch.arange(loss.outputs)
    optimizer = torch.optim.Adam([numbers], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss(numbers, label).backward()
        optimizer.step()
        if name == "POM":
            numbers.data = numbers.data.sort(dim=1).values
    assert torch.equal(loss.predict(numbers), label)


def test_expectations_are_rounded_or_cut():
    scores = torch.log(torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.5, 0.2]]))
    assert MeanVariance(3).predict(scores).tolist() == [2, 1]  # of 1.6 and 0.9
    assert MeanVariance(3, decode="floor").predict(scores).tolist() == [1, 0]


def test_the_code_is_read_to_its_first_zero():
    scores = torch.tensor([[2.0, 1, -1, 3], [-1, 2, 2, 2], [1, 1, 1, 1]])
    assert CodeVector(4).predict(scores).tolist() == [1, 0, 3]


# Gradients and numbers that hold ------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    loss = LOSSES[name](5)
    numbers, label = numbers_of(loss)
    assert torch.autograd.gradcheck(lambda x: loss(x, label), numbers)


@pytest.mark.parametrize("kind", CONSTRAINTS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_the_constraint_on_every_loss(name, kind):
    loss, constraint = LOSSES[name](5), UnimodalityConstraint(kind, t=2.0)
    numbers, label = numbers_of(loss)
    assert torch.autograd.gradcheck(lambda x: constraint(loss.constrained(x), label), numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("name", LOSSES)
def test_sixty_ranks_overflow_nowhere(name, dtype, scale):
    loss, constraint = LOSSES[name](60), UnimodalityConstraint(t=10.0)
    numbers, label = numbers_of(loss, 32, scale, dtype)
    total = loss(numbers, label) + constraint(loss.constrained(numbers), label)
    total.backward()
    assert total.dtype == torch.float32
    assert total.isfinite()
    assert numbers.grad.isfinite().all()
    assert loss.probabilities(numbers).isfinite().all()


@pytest.mark.parametrize("gap", [0.0, 1e-30, 1e-6, 1.0, 200.0])
def test_cut_points_that_meet_or_part_give_finite_gradients(gap):
    numbers = torch.tensor([[-100.0, -100.0 + gap]], requires_grad=True)
    value = ProportionalOdds(3)(numbers, torch.tensor([1]))
    value.backward()
    assert value.isfinite()
    assert numbers.grad.isfinite().all()


# Uni-modality -------------------------------------------------------------------------------------


def test_differences_by_hand():
    scores = torch.tensor([[1.0, 3.0, 2.0, 5.0]]).expand(3, 4)
    z = adjacent_differences(scores, torch.tensor([0, 2, 3]))
    assert z.tolist() == [[2, -1, 3], [-2, 1, 3], [-2, 1, -3]]


def test_constraints_by_hand():
    scores, label = torch.tensor([[1.0, 3.0, 2.0, 5.0], [0, 0, 0, 0]]), torch.tensor([2, 0])
    z = torch.tensor([[-2.0, 1, 3], [0, 0, 0]])
    barrier = ExtendedLogBarrier(2.0)(z)
    penalty = torch.tensor([[0, 1.1**2, 3.1**2], [0.01, 0.01, 0.01]])
    for kind, each in (
        ("barrier", barrier),
        ("rectified", barrier.clamp(min=0)),
        ("penalty", penalty),
    ):
        for reduction in ("sum", "mean"):
            constraint = UnimodalityConstraint(kind, reduction, t=2.0)
            expected = getattr(each, reduction)(dim=1).mean()
            torch.testing.assert_close(constraint(scores, label), expected)


def test_scores_and_their_log_probabilities_are_constrained_alike():
    scores, label = torch.randn(6, 5), torch.arange(6) % 5
    constraint = UnimodalityConstraint()
    torch.testing.assert_close(
        constraint(scores, label), constraint(OrdinalCrossEntropy(5).constrained(scores), label)
    )


def test_the_gradient_lifts_the_label_and_shifts_nothing():
    scores = torch.randn(40, 6, requires_grad=True)
    label = torch.randint(0, 6, (40,))
    UnimodalityConstraint(reduction="sum")(scores, label).backward()
    own = scores.grad.gather(1, label[:, None])
    assert (own < 0).all()
    torch.testing.assert_close(scores.grad.sum(dim=1), torch.zeros(40), atol=1e-6, rtol=0)
    assert (scores.grad[label > 0, 0] > 0).all()


def test_the_penalty_is_zero_where_all_holds_and_the_barrier_is_not():
    scores = (-(torch.arange(5.0) - 2).abs())[None].requires_grad_()
    label = torch.tensor([2])
    penalty, barrier = (UnimodalityConstraint(kind) for kind in ("penalty", "barrier"))
    assert penalty(scores, label) == 0
    barrier(scores, label).backward()
    assert scores.grad.abs().sum() > 0


def test_only_the_barrier_has_a_schedule():
    assert UnimodalityConstraint("penalty").barrier is None
    constraint = UnimodalityConstraint(factor=2.0)
    constraint.barrier.step()
    assert constraint.barrier.t == 2
    assert "barrier.t" in constraint.state_dict()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(OrdinalCrossEntropy, 1), "num_classes=1: there must be two ranks"),
        (partial(SoftOrdinal, 3, "cubic"), "distance='cubic'"),
        (partial(LabelDistribution, 3, 0.0), "variance=0.0 must be positive"),
        (partial(MeanVariance, 3, decode="ceil"), "decode='ceil'"),
        (partial(UnimodalityConstraint, "wall"), "kind='wall'"),
        (partial(UnimodalityConstraint, reduction="max"), "reduction='max'"),
        (partial(UnimodalityConstraint, margin=-1.0), "margin=-1.0"),
        (partial(UnimodalityConstraint, t=0.0), "must be 0 < t <= t_max"),
    ],
)
def test_wrong_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_another_width_is_named():
    with pytest.raises(ValueError, match=r"CORAL of 5 ranks takes \(B, 4\), got \(2, 5\)"):
        CORAL(5)(torch.zeros(2, 5), torch.zeros(2).long())
