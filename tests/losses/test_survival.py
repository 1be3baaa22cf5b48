import pytest
import torch
from torch.nn import functional as F

from wsl_zoo.losses import horizon_labels, masked_bce, positive_weight

YEARS = [1.0, 2, 3, 4, 5]


def test_labels_by_hand():
    time, event = torch.tensor([3.0, 3, 2.5, 0, 9]), torch.tensor([1, 0, 1, 1, 0])
    assert horizon_labels(time, event, YEARS).tolist() == [
        [0, 0, 1, 1, 1],
        [0, 0, 0, -1, -1],
        [0, 0, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0],
    ]
    assert horizon_labels(time, event, YEARS, "mirai").tolist() == [
        [0, 0, 1, -1, -1],
        [0, 0, 0, -1, -1],
        [0, 0, 1, -1, -1],
        [1, -1, -1, -1, -1],
        [0, 0, 0, 0, 0],
    ]


def test_whole_years_come_back_from_their_labels():
    time, event = torch.randint(1, 6, (60,)), torch.rand(60) < 0.5
    label = horizon_labels(time, event, YEARS)
    had = (label == 1).any(dim=1)
    assert torch.equal(had, event)
    first = torch.where(had, (label == 1).int().argmax(dim=1) + 1, (label == 0).sum(dim=1))
    assert torch.equal(first, time)


def test_the_mean_is_over_what_is_known():
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    label = torch.randint(-1, 2, (6, 5))
    known = label >= 0
    weight = torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64)
    target = label.clamp(min=0).double()
    each = -weight * target * F.logsigmoid(logits) - (1 - target) * F.logsigmoid(-logits)
    torch.testing.assert_close(masked_bce(logits, label, weight), each[known].mean())
    assert torch.autograd.gradcheck(lambda x: masked_bce(x, label, 3.0), logits)
    masked_bce(logits, label).backward()
    assert torch.equal(logits.grad != 0, known)
    twice = masked_bce(logits.repeat(2, 1), label.repeat(2, 1))
    torch.testing.assert_close(twice, masked_bce(logits, label))
    plain = F.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(masked_bce(logits, label.clamp(min=0)), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_known_label_it_is_zero_with_a_graph(dtype):
    logits = torch.randn(3, 5, dtype=dtype, requires_grad=True)
    value = masked_bce(logits, -torch.ones(3, 5).long(), 7.0)
    value.backward()
    assert value == 0
    assert value.dtype == torch.float32
    assert (logits.grad == 0).all()


def test_weights_count_known_labels():
    label = torch.tensor([[1, 0, -1], [0, 0, 0], [0, 1, -1], [0, 1, 0]])
    assert positive_weight(label).item() == pytest.approx(7 / 3)
    assert positive_weight(label, per_horizon=True).tolist() == [3, 1, 2]
    assert positive_weight(label, per_horizon=True, highest=2.5).tolist() == [2.5, 1, 2]


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule='other'"):
        horizon_labels(torch.ones(1), torch.ones(1), YEARS, "other")
