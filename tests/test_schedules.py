"""Optimisers and schedules against the published formula."""

import pytest
import torch
from torch import nn

from wsl_zoo.schedules import EpochSchedule, lr_factor, make_optimizer, make_scheduler


def weights():
    return [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in (0.1, 1.0)]


def test_step_decay_has_a_floor():
    factor = lr_factor(0.003, "step", 250, 0.1, 1e-6, 1000)  # GlaS of the survey
    rates = {epoch: 0.003 * factor(epoch) for epoch in (0, 249, 250, 499, 500, 750, 999, 1000)}
    assert rates == pytest.approx(
        {0: 3e-3, 249: 3e-3, 250: 3e-4, 499: 3e-4, 500: 3e-5, 750: 3e-6, 999: 3e-6, 1000: 1e-6}
    )


def test_cosine_goes_from_the_rate_to_the_floor_and_stays():
    factor = lr_factor(0.2, "cosine", 1, 0.1, 0.02, 10)
    rates = [0.2 * factor(epoch) for epoch in range(12)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[5] == pytest.approx(0.11)
    assert rates[10] == rates[11] == pytest.approx(0.02)
    assert rates[:11] == sorted(rates[:11], reverse=True)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.2), T_max=10, eta_min=0.02
    )
    for rate in rates[:10]:
        assert rate == pytest.approx(reference.get_last_lr()[0])
        reference.optimizer.step()
        reference.step()


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_a_rate_below_the_floor_is_left_alone(schedule):
    factor = lr_factor(1e-7, schedule, 1, 0.1, 1e-6, 5)
    assert [factor(epoch) for epoch in range(5)] == [1.0] * 5
    frozen = lr_factor(0.0, schedule, 1, 0.1, 1e-6, 5)
    assert frozen(3) == 1.0


def test_constant_ignores_everything_else():
    factor = lr_factor(0.1, "constant", 1, 0.1, 0.05, 2)
    assert [factor(epoch) for epoch in range(4)] == [1.0] * 4


def test_every_group_has_its_own_floor():
    optimizer = make_optimizer(weights(), "sgd", 0.1, 0.9, 0.0)
    scheduler = make_scheduler(optimizer, "step", 1, 0.1, 0.01, 5)
    seen = []
    for _ in range(4):
        seen.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    expected = [[0.1, 1.0], [0.01, 0.1], [0.01, 0.01], [0.01, 0.01]]
    for rates, right in zip(seen, expected, strict=True):
        assert rates == pytest.approx(right)


def test_a_restored_schedule_goes_on():
    first = make_optimizer(weights(), "sgd", 0.1, 0.9, 0.0)
    scheduler = make_scheduler(first, "cosine", 1, 0.1, 0.01, 8)
    for _ in range(3):
        first.step()
        scheduler.step()
    second = make_optimizer(weights(), "sgd", 0.1, 0.9, 0.0)
    again = make_scheduler(second, "cosine", 1, 0.1, 0.01, 8)
    second.load_state_dict(first.state_dict())
    again.load_state_dict(scheduler.state_dict())
    for each, plan in ((first, scheduler), (second, again)):
        each.step()
        plan.step()
    assert again.get_last_lr() == scheduler.get_last_lr()
    assert [g["lr"] for g in second.param_groups] == [g["lr"] for g in first.param_groups]


def test_sgd_is_nesterov_where_there_is_momentum():
    with_momentum = make_optimizer(weights(), "sgd", 0.1, 0.9, 0.01)
    without = make_optimizer(weights(), "sgd", 0.1, 0.0, 0.01)
    assert [g["nesterov"] for g in with_momentum.param_groups] == [True, True]
    assert [g["nesterov"] for g in without.param_groups] == [False, False]
    assert [g["lr"] for g in with_momentum.param_groups] == [0.1, 1.0]
    assert [g["weight_decay"] for g in with_momentum.param_groups] == [0.01, 0.01]
    adamw = make_optimizer(weights(), "adamw", 0.1, 0.9, 0.01)
    assert type(adamw) is torch.optim.AdamW
    assert [g["weight_decay"] for g in adamw.param_groups] == [0.01, 0.01]
    adam = make_optimizer(weights(), "adam", 0.1, 0.9, 0.01)
    assert type(adam) is torch.optim.Adam  # whose decay is part of the gradient
    assert [g["weight_decay"] for g in adam.param_groups] == [0.01, 0.01]


def test_bad_names_are_refused():
    with pytest.raises(ValueError, match="schedule='poly' must be"):
        lr_factor(0.1, "poly", 1, 0.1, 0.0, 1)
    with pytest.raises(ValueError, match="step_size=0"):
        lr_factor(0.1, "step", 0, 0.1, 0.0, 1)
    with pytest.raises(ValueError, match="optimizer='lion' must be"):
        make_optimizer(weights(), "lion", 0.1, 0.9, 0.0)


def test_only_what_says_so_is_a_schedule():
    class Silent(nn.Module):
        def step(self):
            pass

    class Said(Silent):
        steps_every_epoch = True

    assert isinstance(Said(), EpochSchedule)
    assert not isinstance(Silent(), EpochSchedule)
    assert not isinstance(nn.Linear(1, 1), EpochSchedule)
