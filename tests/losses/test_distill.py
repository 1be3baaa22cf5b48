import pytest
import torch
from torch.nn import functional as F

from wsl_zoo.losses import bernoulli_distillation, reconstruction_loss


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
