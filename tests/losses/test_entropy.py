"""Entropies of pixels and of images."""

import math

import pytest
import torch
from torch.nn import functional as F

from wsl_zoo.losses import negative_entropy, pixel_entropy, uniform_cross_entropy

BASES = [math.e, 2.0]


def test_values():
    foreground = torch.tensor([[[0.5, 0.0], [1.0, 0.25]]])
    quarter = 0.25 * 2 + 0.75 * math.log2(4 / 3)
    value = pixel_entropy(torch.stack([1 - foreground, foreground], dim=1))
    assert value.item() == pytest.approx((1 + quarter) / 4, rel=1e-6)


def test_uniform_over_four_is_two_bits():
    assert pixel_entropy(torch.full((2, 4, 3, 3), 0.25)) == 2


def test_gradient():
    logits = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: pixel_entropy(z.softmax(dim=1)), logits)


def test_gradient_is_finite_for_certain_pixels():
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).requires_grad_()
    pixel_entropy(logits.softmax(dim=1)).backward()
    assert logits.grad.isfinite().all()


def test_half_precision():
    probs = torch.rand(1, 2, 64, 64).softmax(dim=1)
    value = pixel_entropy(probs.half())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, pixel_entropy(probs), rtol=1e-3, atol=0)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("classes", [2, 5])
def test_cross_entropy_to_uniform_is_the_divergence_plus_log_k(classes, base):
    logits = 2 * torch.randn(6, classes, dtype=torch.float64)
    value = uniform_cross_entropy(logits, base)
    q = torch.full_like(logits, 1 / classes)
    divergence = F.kl_div(logits.log_softmax(1), q, reduction="none").sum(1)
    torch.testing.assert_close(value, (divergence + math.log(classes)) / math.log(base))
    batch = F.kl_div(logits.log_softmax(1), q, reduction="batchmean")
    torch.testing.assert_close(value.mean(), (batch + math.log(classes)) / math.log(base))
    assert (value > math.log(classes, base)).all()


@pytest.mark.parametrize("base", BASES)
def test_both_are_least_where_all_classes_are_equal_and_only_there(base):
    equal = torch.tensor([[0.0], [-3.0], [70.0]], dtype=torch.float64).expand(3, 4)
    least = torch.full((3,), math.log(4, base), dtype=torch.float64)
    torch.testing.assert_close(uniform_cross_entropy(equal, base), least)
    torch.testing.assert_close(negative_entropy(equal, base), -least)
    other = equal + torch.tensor([0.01, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert (uniform_cross_entropy(other, base) > least + 1e-6).all()
    assert (negative_entropy(other, base) > -least + 1e-6).all()


@pytest.mark.parametrize("base", BASES)
def test_negative_entropy_lies_between_minus_log_k_and_zero(base):
    logits = torch.randn(50, 3, dtype=torch.float64) * torch.logspace(-3, 2, 50)[:, None].double()
    value = negative_entropy(logits, base)
    p = logits.softmax(1)
    torch.testing.assert_close(value, -torch.special.entr(p).sum(1) / math.log(base))
    assert (value <= 0).all()
    assert (value >= -math.log(3, base)).all()


def test_two_equal_classes_are_one_bit():
    logits = torch.zeros(1, 2)
    assert uniform_cross_entropy(logits, 2).item() == pytest.approx(1)
    assert negative_entropy(logits, 2).item() == pytest.approx(-1)
    assert uniform_cross_entropy(logits).item() == pytest.approx(math.log(2))


def gradient_of(loss, logits, base):
    logits = torch.as_tensor(logits, dtype=torch.float64).clone().requires_grad_()
    loss(logits, base).sum().backward()
    return logits.grad


@pytest.mark.parametrize("base", BASES)
def test_gradients_have_their_closed_forms(base):
    logits = torch.randn(4, 3, dtype=torch.float64)
    p = logits.softmax(1)
    sem = gradient_of(uniform_cross_entropy, logits, base)
    torch.testing.assert_close(sem, (p - 1 / 3) / math.log(base))
    eem = gradient_of(negative_entropy, logits, base)
    by_hand = p * (p.log() - (p * p.log()).sum(1, keepdim=True)) / math.log(base)
    torch.testing.assert_close(eem, by_hand)


def test_a_certain_background_still_learns_by_the_surrogate_alone():
    certain, equal = [[30.0, 0.0]], [[0.0, 0.0]]
    sem, eem = (gradient_of(loss, certain, 2) for loss in (uniform_cross_entropy, negative_entropy))
    assert sem.abs().max() == pytest.approx(0.5 / math.log(2))
    assert eem.abs().max() < 1e-9 * sem.abs().max()
    for loss in (uniform_cross_entropy, negative_entropy):
        assert gradient_of(loss, equal, 2).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [uniform_cross_entropy, negative_entropy])
def test_half_precision_logits_are_computed_in_float32(loss, dtype):
    logits = (8 * torch.randn(5, 4)).to(dtype)
    value = loss(logits, 2)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(logits.float(), 2))


def test_huge_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    (uniform_cross_entropy(logits) + negative_entropy(logits)).backward()
    assert logits.grad.isfinite().all()
    assert negative_entropy(logits).item() == 0
    assert uniform_cross_entropy(logits).item() == pytest.approx(1e4)
