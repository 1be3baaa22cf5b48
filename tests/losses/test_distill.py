import math

import pytest
import torch
from torch.nn import functional as F

from wsl_zoo.losses import (
    bernoulli_distillation,
    cosine_distillation,
    double_softmax_cross_entropy,
    reconstruction_loss,
)


def logits_of(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_least_where_the_student_is_the_teacher(temperature):
    teacher = logits_of(6, 5)
    student = teacher.clone().requires_grad_()
    value = bernoulli_distillation(student, teacher, temperature=temperature)
    value.backward()
    p = (teacher / temperature).sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    torch.testing.assert_close(value, temperature**2 * entropy)
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-12, rtol=0)


def test_the_gradient_pulls_to_the_teacher():
    student, teacher = logits_of(6, 5).requires_grad_(), logits_of(6, 5, seed=1).requires_grad_()
    bernoulli_distillation(student, teacher, temperature=100.0).backward()
    assert teacher.grad is None
    expected = (student - teacher).detach() / 4 / 30
    torch.testing.assert_close(student.grad, expected, rtol=1e-3, atol=1e-6)


def test_hard_teachers_are_labels():
    student, label = logits_of(6, 5), torch.arange(30).view(6, 5) % 2
    teacher = (2 * label - 1) * 1e4
    value = bernoulli_distillation(student, teacher.double(), temperature=1.0)
    torch.testing.assert_close(value, F.binary_cross_entropy_with_logits(student, label.double()))


def test_only_what_is_known_counts():
    student, teacher = logits_of(6, 5).requires_grad_(), logits_of(6, 5, seed=1)
    known = torch.arange(30).view(6, 5) % 3 == 0
    value = bernoulli_distillation(student, teacher, known)
    expected = bernoulli_distillation(student[known], teacher[known])
    torch.testing.assert_close(value, expected)
    value.backward()
    assert torch.equal(student.grad != 0, known)
    nothing = bernoulli_distillation(student, teacher, torch.zeros_like(known))
    nothing.backward()
    assert nothing == 0


@pytest.mark.parametrize("kind", ["squared", "cosine"])
def test_reconstruction_counts_available_exams(kind):
    found, true = logits_of(4, 3, 6).requires_grad_(), logits_of(4, 3, 6, seed=1)
    available = torch.arange(12).view(4, 3) % 2 == 0
    value = reconstruction_loss(found, true, available, kind)
    per_exam = (
        ((found - true) ** 2).mean(2)
        if kind == "squared"
        else 1 - F.cosine_similarity(found, true, dim=2)
    )
    torch.testing.assert_close(value, per_exam[available].mean())
    value.backward()
    assert torch.equal((found.grad != 0).any(dim=2), available)
    assert reconstruction_loss(true, true, available, kind).item() == pytest.approx(0, abs=1e-12)
    assert reconstruction_loss(found, true, torch.zeros_like(available), kind) == 0


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="temperature=0 must be positive"):
        bernoulli_distillation(torch.zeros(1), torch.zeros(1), temperature=0)
    with pytest.raises(ValueError, match="kind='l1'"):
        reconstruction_loss(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1), "l1")


def test_cosine_distillation_in_closed_form():
    u = torch.randn(5, 7, dtype=torch.float64)
    assert float(cosine_distillation(3.0 * u, u)) == pytest.approx(0.0, abs=1e-12)
    assert float(cosine_distillation(-0.2 * u, u)) == pytest.approx(2.0, abs=1e-12)
    a, b = torch.eye(4)[:2], torch.eye(4)[2:]
    assert float(cosine_distillation(a, b)) == pytest.approx(1.0)
    scaled = torch.rand(5, 1, dtype=torch.float64) + 0.1
    other = torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(
        cosine_distillation(other * scaled, u), cosine_distillation(other, u / scaled)
    )
    expected = (1 - F.cosine_similarity(other, u)).mean()
    torch.testing.assert_close(cosine_distillation(other, u), expected)


def test_cosine_distillation_turns_and_does_not_stretch():
    u = torch.randn(3, 6, dtype=torch.float64)
    found = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    cosine_distillation(found, u).backward()
    along = (found.grad * found.detach()).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda x: cosine_distillation(x, u), (found,))


def test_cosine_distillation_moves_the_target_only_if_told():
    student = torch.randn(3, 6, requires_grad=True)
    teacher = torch.randn(3, 6, requires_grad=True)
    cosine_distillation(student, teacher).backward()
    assert teacher.grad is None
    cosine_distillation(student, teacher, detach=False).backward()
    assert teacher.grad.abs().max() > 0


def test_cosine_distillation_of_zeros_and_of_half_precision():
    zero = torch.zeros(2, 4, requires_grad=True)
    loss = cosine_distillation(zero, torch.ones(2, 4))
    assert float(loss) == 1.0
    loss.backward()
    assert torch.isfinite(zero.grad).all()
    half = cosine_distillation(torch.ones(2, 4).bfloat16(), torch.ones(2, 4).bfloat16())
    assert half.dtype == torch.float32
    with pytest.raises(ValueError, match=r"must be \(B, D\)"):
        cosine_distillation(torch.ones(2, 4), torch.ones(2, 5))


@pytest.mark.parametrize("classes", [2, 4, 9])
def test_the_double_softmax_is_bounded(classes):
    sure = 1e4 * torch.eye(classes)
    right, wrong = torch.arange(classes), torch.arange(classes).roll(1)
    high = math.log(math.e + classes - 1)
    torch.testing.assert_close(
        double_softmax_cross_entropy(sure, right), torch.tensor(high - 1), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        double_softmax_cross_entropy(sure, wrong), torch.tensor(high), rtol=1e-6, atol=1e-6
    )
    uniform = torch.zeros(3, classes)
    label = torch.zeros(3, dtype=torch.int64)
    for loss in (double_softmax_cross_entropy, F.cross_entropy):
        assert float(loss(uniform, label)) == pytest.approx(math.log(classes), abs=1e-6)


def test_the_double_softmax_learns_slowly():
    largest = {}
    for loss in (double_softmax_cross_entropy, F.cross_entropy):
        logits = torch.zeros(1, 4, requires_grad=True)
        loss(logits, torch.tensor([2])).backward()
        largest[loss] = float(logits.grad.abs().max())
    assert list(largest.values()) == pytest.approx([0.1875, 0.75])
