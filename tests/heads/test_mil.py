"""Attention pooling against its closed forms."""

import pytest
import torch
from torch import nn

from wsl_zoo.heads import AttentionMIL


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(3, 5, 4, 6, dtype=torch.float64)


@pytest.mark.parametrize("gated", [False, True])
def test_logits_score_what_is_attended_to(features, gated):
    head = AttentionMIL(5, 7, hidden=8, gated=gated).double()
    nn.init.normal_(head.fc.bias)
    nn.init.normal_(head.hidden.bias)
    logits, maps = head(features)
    a = features.flatten(2)  # (B, C, N)
    hidden = torch.tanh(head.hidden.weight[:, :, 0, 0] @ a + head.hidden.bias[:, None])
    if gated:
        hidden = hidden * torch.sigmoid(head.gate.weight[:, :, 0, 0] @ a + head.gate.bias[:, None])
    energy = head.attention.weight[:, :, 0, 0] @ hidden
    attention = energy.exp() / energy.exp().sum(2, keepdim=True)
    torch.testing.assert_close(maps.flatten(2), attention)
    attended = torch.einsum("bkn,bcn->bkc", attention, a)
    torch.testing.assert_close(
        logits, torch.einsum("bkc,kc->bk", attended, head.fc.weight) + head.fc.bias
    )
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(3, 7).double())


def test_uniform_attention_is_a_linear_layer_on_the_mean(features):
    head = AttentionMIL(5, 7).double()
    nn.init.normal_(head.fc.bias)
    nn.init.zeros_(head.attention.weight)
    logits, maps = head(features)
    torch.testing.assert_close(maps, torch.full((3, 7, 4, 6), 1 / 24).double())
    torch.testing.assert_close(logits, head.fc(features.mean((2, 3))))


def test_permutation_equivariance(features):
    head, order = AttentionMIL(5, 7, gated=True).double(), torch.randperm(24)
    shuffled = features.flatten(2)[..., order].view_as(features)
    logits, maps = head(features)
    others, moved = head(shuffled)
    torch.testing.assert_close(others, logits)
    torch.testing.assert_close(moved.flatten(2), maps.flatten(2)[..., order])


def test_defaults():
    head = AttentionMIL(5, 7)
    assert head.hidden.out_channels == 128
    assert head.gate is None
    with pytest.raises(ValueError, match="hidden must be positive"):
        AttentionMIL(5, 7, hidden=0)
