"""In-batch contrast against a plain loop, and its bounds."""

import math

import pytest
import torch

from wsl_zoo.losses import in_batch_contrast


def plain(logits, label):
    """InfoNCE of the specification: image i and the prompt of its class, against all prompts j."""
    total = 0.0
    for i in range(len(label)):
        scores = [math.exp(float(logits[i, int(k)])) for k in label]
        total -= math.log(scores[i] / sum(scores))
    return total / len(label)


@pytest.mark.parametrize("label", [[0, 1, 2], [0, 0, 1, 2, 2, 2], [1]])
def test_it_is_info_nce(label):
    label = torch.tensor(label)
    logits = torch.randn(len(label), 3)
    assert float(in_batch_contrast(logits, label)) == pytest.approx(plain(logits, label), rel=1e-6)


def test_images_of_one_class_keep_it_from_zero():
    label = torch.tensor([0, 0, 0, 1])
    logits = torch.tensor([[50.0, -50.0]] * 3 + [[-50.0, 50.0]])
    assert float(in_batch_contrast(logits, label)) == pytest.approx(0.75 * math.log(3))


def test_different_classes_make_it_a_cross_entropy():
    logits, label = torch.randn(3, 3), torch.tensor([2, 0, 1])
    expected = torch.nn.functional.cross_entropy(logits, label)
    torch.testing.assert_close(in_batch_contrast(logits, label), expected)


def test_half_precision_is_computed_in_float32():
    logits, label = torch.randn(4, 3).bfloat16(), torch.tensor([2, 0, 1, 1])
    found = in_batch_contrast(logits, label)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, in_batch_contrast(logits.float(), label))
