"""The extended log-barrier: its two branches, its limits and its schedule."""

import math

import pytest
import torch

from wsl_zoo.losses import ExtendedLogBarrier
from wsl_zoo.schedules import EpochSchedule

SHARPNESS = [0.5, 1.0, 1.645, 10.0]


def psi(z: float, t: float) -> float:
    if z <= -1 / t**2:
        return -math.log(-z) / t
    return t * z - math.log(1 / t**2) / t + 1 / t


@pytest.mark.parametrize("t", SHARPNESS)
def test_values_and_slopes(t):
    z = torch.linspace(-60000, 50, 100_001, dtype=torch.float64, requires_grad=True)
    value = ExtendedLogBarrier(t, t_max=10)(z)
    expected = torch.tensor([psi(x, t) for x in z.tolist()], dtype=torch.float64)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(value.sum(), z)
    closed = torch.where(z <= -1 / t**2, -1 / (t * z), t)
    torch.testing.assert_close(slope, closed, rtol=1e-6, atol=0)
    assert (slope > 0).all()
    assert (slope.diff() >= 0).all()


@pytest.mark.parametrize("t", SHARPNESS)
def test_branches_meet(t):
    barrier = ExtendedLogBarrier(t, t_max=10)
    edge = -1 / barrier.t.double().item() ** 2
    step = 1e-9
    z = torch.tensor([edge - step, edge, edge + step], dtype=torch.float64, requires_grad=True)
    value = barrier(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    torch.testing.assert_close(
        value.detach(), torch.full_like(z, 2 / t * math.log(t)), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(slope, torch.full_like(z, t), atol=0, rtol=1e-6)


def test_limit_is_a_hard_barrier():
    z = torch.tensor([-5.0, -1e-3, 1e-3])
    soft, hard = (ExtendedLogBarrier(t, t_max=t)(z) for t in (100.0, 1e6))
    assert hard[:2].abs().max() < 1e-4
    assert hard[2] > 900
    assert soft[2] < 1


@pytest.mark.parametrize("z", [0.0, 1e30, -1e-30, -1e30])
def test_gradients_are_finite(z):
    z = torch.tensor([z], requires_grad=True)
    ExtendedLogBarrier()(z).backward()
    assert z.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    z = torch.tensor([-50000.0, -1.0]).half()
    value = ExtendedLogBarrier()(z)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, torch.tensor([-math.log(50016), 0.0]), atol=1e-3, rtol=0)


def test_schedule():
    barrier = ExtendedLogBarrier()
    assert isinstance(barrier, EpochSchedule)
    assert barrier.steps_every_epoch
    seen = [barrier.t.item()]
    for _ in range(240):
        barrier.step()
        seen.append(barrier.t.item())
    assert seen == pytest.approx([min(1.01**epoch, 10) for epoch in range(241)], rel=1e-5)
    assert round(seen[10], 3) == 1.105
    assert round(seen[50], 3) == 1.645
    assert seen[231] < 10
    assert seen[232] == 10


def test_sharpness_is_in_the_checkpoint():
    trained, fresh = ExtendedLogBarrier(), ExtendedLogBarrier()
    trained.step()
    fresh.load_state_dict(trained.state_dict())
    assert fresh.t == trained.t != 1
    assert not list(trained.parameters())


@pytest.mark.parametrize("arguments", [{"t": 0}, {"t": 11}, {"factor": 0.99}, {"t_max": 0.5}])
def test_wrong_numbers(arguments):
    with pytest.raises(ValueError, match="0 < t <= t_max"):
        ExtendedLogBarrier(**arguments)
