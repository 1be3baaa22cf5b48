from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsl_zoo.heads import (
    GAP,
    PRM,
    WGAP,
    WILDCAT,
    AttentionMIL,
    LogSumExp,
    MaxPool,
    PixelHead,
)

C = 16
VARIANTS = [{}, {"batch_norm": True}, {"hidden": 1}, {"hidden": 3}, {"orthogonal": True}]


@pytest.fixture
def features():
    return torch.randn(3, C, 5, 7)


def foreground(head, features):
    return head(features).softmax(dim=1)[:, 1]


# The pixel classifier


@pytest.mark.parametrize(
    ("arguments", "widths", "normed"),
    [
        ({}, [C, 2], []),
        ({"batch_norm": True}, [C, 2], [C]),
        ({"orthogonal": True}, [C, 2], []),
        ({"hidden": 1}, [C, C // 4, 2], [C // 4]),
        ({"hidden": 3}, [C, C // 2, C // 4, C // 8, 2], [C // 2, C // 4, C // 8]),
        ({"hidden": 1, "batch_norm": True}, [C, C // 4, 2], [C, C // 4]),
    ],
)
def test_number_of_parameters(features, arguments, widths, normed):
    head = PixelHead(C, **arguments)
    convolutions = sum(a * b + b for a, b in pairwise(widths))
    assert sum(p.numel() for p in head.parameters()) == convolutions + 2 * sum(normed)
    assert head(features).shape == (3, 2, 5, 7)


def test_the_map_is_a_sigmoid_of_one_direction(features):
    head = PixelHead(C)
    weight = head.classifier.weight[:, :, 0, 0].detach()
    nn.init.zeros_(head.classifier.bias)
    expected = torch.einsum("c,bchw->bhw", weight[1] - weight[0], features).sigmoid()
    torch.testing.assert_close(foreground(head, features), expected)


def test_swapped_channels_swap_the_two_classes(features):
    head = PixelHead(C, hidden=1).eval()
    before = foreground(head, features)
    head.classifier.weight.data = head.classifier.weight.data.flip(0)
    head.classifier.bias.data = head.classifier.bias.data.flip(0)
    torch.testing.assert_close(foreground(head, features), 1 - before)


@pytest.mark.parametrize("arguments", VARIANTS)
@pytest.mark.parametrize("dim", [2, 3])
def test_a_flipped_map_gives_the_flipped_logits(features, arguments, dim):
    head = PixelHead(C, **arguments).eval()
    torch.testing.assert_close(head(features.flip(dim)), head(features).flip(dim))


@pytest.mark.parametrize("hidden", [0, 3])
def test_orthogonal_rows_are_orthonormal_and_stay(features, hidden):
    head = PixelHead(C, hidden=hidden, orthogonal=True)
    rows = head.classifier.weight[:, :, 0, 0].clone()
    torch.testing.assert_close(rows @ rows.T, torch.eye(2))
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    learning = [p for p in head.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1, weight_decay=0.1)
    F.cross_entropy(head(features), torch.zeros(3, 5, 7, dtype=torch.long)).backward()
    optimizer.step()
    for name, parameter in head.named_parameters():
        assert torch.equal(parameter, before[name]) == (name == "classifier.weight"), name


def test_another_number_of_hidden_layers_is_refused():
    with pytest.raises(ValueError, match="hidden=2 must be one of 0, 1, 3"):
        PixelHead(C, hidden=2)


# Anchors of image heads


def with_biases(head):
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return head


@pytest.mark.parametrize("kind", [WGAP, GAP, AttentionMIL])
@pytest.mark.parametrize("background", [False, True])
def test_anchors_are_the_rows_that_classify_pooled_features(features, kind, background):
    head = with_biases(kind(C, 4, background=background))
    embedding = head.embed(features)
    torch.testing.assert_close(embedding, features.mean((2, 3)))
    layer = head.conv if kind is GAP else head.fc
    bias = layer.bias[-4:]
    assert head.anchors().shape == (4, C)
    expected = F.linear(embedding, head.anchors(), bias)
    torch.testing.assert_close(head.classify(embedding), expected)
    if kind is AttentionMIL:
        nn.init.zeros_(head.attention.weight)  # attends to all positions alike
    torch.testing.assert_close(head(features)[0], expected)


@pytest.mark.parametrize("kind", [MaxPool, LogSumExp, WILDCAT, PRM])
def test_heads_that_score_before_they_pool_have_no_anchors(kind):
    with pytest.raises(ValueError, match=rf"a {kind.__name__} head has no anchors.*wgap, gap, mil"):
        kind(C, 4).anchors()
