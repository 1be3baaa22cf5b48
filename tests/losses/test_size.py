"""Size constraints: closed forms, their minimum, their gradients."""

import math

import pytest
import torch

from wsl_zoo.losses import BackgroundLarger, EmptyOutside, SizeConstraint, SizeNear
from wsl_zoo.schedules import EpochSchedule


def two(foreground: torch.Tensor) -> torch.Tensor:
    return torch.stack([1 - foreground, foreground], dim=1)


@pytest.mark.parametrize("t", [1.0, 1.5])
def test_half_and_half(t):
    probs = torch.full((3, 2, 20, 30), 0.5)
    assert SizeConstraint(t)(probs).item() == pytest.approx(-math.log(300) / t, rel=1e-6)


def test_definition_and_gradient():
    probs = torch.rand(4, 2, 9, 7, dtype=torch.float64).softmax(dim=1).requires_grad_()
    t = 1.25
    value = SizeConstraint(t)(probs)
    a = probs.detach().sum(dim=(2, 3))
    assert value.item() == pytest.approx((-a.log() / t).mean(dim=0).sum().item() / 2, rel=1e-9)
    value.backward()
    closed = (-1 / (2 * t * 4 * a))[:, :, None, None].expand_as(probs)
    torch.testing.assert_close(probs.grad, closed, rtol=1e-9, atol=0)


def test_equal_regions_are_the_only_minimum():
    levels = torch.linspace(0, 1, 201)
    term = SizeConstraint()
    values = torch.stack([term(two(torch.full((1, 16, 16), s))) for s in levels.tolist()])
    assert levels[values.argmin()] == 0.5
    assert (values.diff()[:100] < 0).all()
    assert (values.diff()[100:] > 0).all()
    assert values.isfinite().all(), "empty regions cost much, not infinitely much"


def test_mean_over_images():
    maps = two(torch.rand(5, 8, 8))
    term = SizeConstraint()
    singles = torch.stack([term(one[None]) for one in maps])
    torch.testing.assert_close(term(maps), singles.mean())


def test_sums_of_half_precision_are_float32():
    probs = two(torch.full((1, 224, 224), 0.25))
    value = SizeConstraint()(probs.bfloat16())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, SizeConstraint()(probs), rtol=1e-6, atol=0)


def test_background_larger():
    maps = two(torch.tensor([0.25, 0.75])[:, None, None].expand(2, 10, 10))
    barrier = BackgroundLarger()
    expected = (-math.log(50) + (50 + 1)) / 2  # z = -50 and 50, t = 1: psi = z + 1 above the edge
    assert barrier(maps).item() == pytest.approx(expected, rel=1e-6)


def test_size_near():
    maps = two(torch.full((1, 10, 10), 0.3, dtype=torch.float64))
    term = SizeNear(epsilon=0.05, t=10.0)
    expected = 0.5 * (psi(0.32 - 0.05 - 0.3, 10) + psi(0.3 - 0.32 - 0.05, 10))
    assert term(maps, torch.tensor([0.32])).item() == pytest.approx(expected, rel=1e-5)
    errors = [term(maps, torch.tensor([e])).item() for e in (0.3, 0.36, 0.5, 0.9)]
    assert errors == sorted(errors)


def psi(z: float, t: float) -> float:
    return -math.log(-z) / t if z <= -1 / t**2 else t * z - math.log(1 / t**2) / t + 1 / t


def test_empty_outside():
    inside = torch.zeros(2, 6, 6, dtype=torch.bool)
    inside[:, 1:3, 1:3] = True
    foreground = torch.full((2, 6, 6), 0.5, requires_grad=True)
    value = EmptyOutside(t=2.0)(two(foreground), inside)
    assert value.item() == pytest.approx(2 * 16 - math.log(0.25) / 2 + 0.5)
    value.backward()
    torch.testing.assert_close(foreground.grad, (~inside).float())  # t / B
    same = EmptyOutside(t=2.0)(two(torch.where(inside, 0.9, foreground)), inside)
    assert same == value


@pytest.mark.parametrize("term", [SizeConstraint, BackgroundLarger, SizeNear, EmptyOutside])
def test_every_term_has_a_barrier_of_its_own(term):
    first, second = term(t=2.0, factor=2.0, t_max=5.0), term(t=2.0, factor=2.0, t_max=5.0)
    schedules = [m for m in first.modules() if isinstance(m, EpochSchedule)]
    assert schedules == [first.barrier]
    first.barrier.step()
    first.barrier.step()
    assert (first.barrier.t, second.barrier.t) == (5, 2)
    assert set(first.state_dict()) == {"barrier.t"}
