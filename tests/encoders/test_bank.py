import copy

import pytest
import torch
from torch import nn

from wsl_zoo.encoders import FeatureBank, average_norms, bank

N = 11


def rows_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(N, 3, 2, generator=generator)
    return {"features": features, "logits": 100 * torch.randn(N, 4, generator=generator)}


def filled(index, size=4):
    """A bank that has seen some samples, a few at a time."""
    bank, rows = FeatureBank(N), rows_of()
    for part in torch.tensor(index).split(size):
        bank.add(part, **{name: value[part] for name, value in rows.items()})
    return bank


def gathered(mine, other):
    """What one process gathers, where another one holds `other`."""
    other = copy.deepcopy(other)
    rows = [part for value in other.rows.values() for part in value.split(bank.ROWS_AT_ONCE)]
    parts = [other.seen, *rows]
    found = mine.gather(lambda tensor: tensor + parts.pop(0))
    assert not parts
    return found


def test_every_sample_has_its_row_in_whatever_order_it_was_seen():
    found = filled(torch.randperm(N).tolist()).gather()
    for name, value in rows_of().items():
        assert torch.equal(found[name], value)


def test_rows_are_float32_on_the_cpu_and_without_a_graph():
    seen = FeatureBank(2)
    value = torch.tensor([[1.5], [2.5]], dtype=torch.bfloat16, requires_grad=True)
    seen.add(torch.tensor([1, 0]), features=value)
    rows = seen.gather()["features"]
    assert rows.dtype == torch.float32
    assert not rows.requires_grad
    assert rows.tolist() == [[2.5], [1.5]]


def test_samples_that_nobody_saw_are_refused():
    with pytest.raises(RuntimeError, match=r"2 of 11 samples .* the first is 3: a pass must see"):
        filled([0, 1, 2, 4, 5, 6, 7, 9, 10]).gather()


def test_samples_that_two_processes_saw_are_refused():
    mine, other = filled([0, 2, 4, 6, 8, 10]), filled([1, 3, 4, 5, 7, 9])
    with pytest.raises(RuntimeError, match=r"1 of 11 samples .* by two, the first is 4"):
        gathered(mine, other)


def test_copies_that_pad_a_batch_are_dropped():
    seen = filled(range(N))
    wrong = {name: torch.full_like(value[:2], 7.0) for name, value in rows_of().items()}
    wrong["logits"][1] = 9.0
    seen.add(torch.tensor([4, 5]), torch.tensor([False, True]), **wrong)
    found = seen.gather()
    assert torch.equal(found["logits"][4], rows_of()["logits"][4])
    assert (found["logits"][5] == 9).all()


def test_a_batch_of_copies_alone_changes_nothing():
    seen = filled(range(N))
    seen.add(torch.tensor([0, 1]), torch.tensor([False, False]), features=torch.zeros(2, 3, 2))
    assert torch.equal(seen.gather()["features"], rows_of()["features"])


@pytest.mark.parametrize("at_once", [1, 4, 8192])
def test_rows_of_two_processes_are_those_of_one_to_the_bit(monkeypatch, at_once):
    monkeypatch.setattr(bank, "ROWS_AT_ONCE", at_once)
    whole = filled(range(N)).gather()
    mine, other = filled(range(0, N, 2)), filled(range(1, N, 2))
    for one, two in ((mine, other), (other, mine)):
        found = gathered(copy.deepcopy(one), two)
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            assert torch.equal(found[name], value)


def test_batch_norms_of_all_processes_get_the_mean_of_their_statistics():
    def network():
        return nn.Sequential(
            nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(2)), nn.GroupNorm(1, 3),
            nn.BatchNorm2d(3, track_running_stats=False),
        )  # fmt: skip

    mine, other = network(), network()
    for module in (mine, other):
        for norm in (module[0], module[1][0]):
            nn.init.normal_(norm.weight)
            norm.running_mean.normal_()
            norm.running_var.uniform_()
    before, theirs = copy.deepcopy(mine.state_dict()), other.state_dict()
    parts = [theirs[key] for key in before if "running" in key]
    average_norms(mine.eval(), lambda tensor: parts.pop(0))  # what does not move stays
    assert all(torch.equal(value, before[key]) for key, value in mine.state_dict().items())
    average_norms(mine.train(), lambda tensor: (tensor + parts.pop(0)) / 2)
    assert not parts
    for key, value in mine.state_dict().items():
        mean = (before[key] + theirs[key]) / 2 if "running" in key else before[key]
        assert torch.equal(value, mean), key
