"""Entropy of pixels in bits."""

import math

import pytest
import torch

from wsl_zoo.losses import pixel_entropy


def test_values():
    foreground = torch.tensor([[[0.5, 0.0], [1.0, 0.25]]])
    quarter = 0.25 * 2 + 0.75 * math.log2(4 / 3)
    value = pixel_entropy(torch.stack([1 - foreground, foreground], dim=1))
    assert value.item() == pytest.approx((1 + quarter) / 4, rel=1e-6)


def test_uniform_over_four_is_two_bits():
    assert pixel_entropy(torch.full((2, 4, 3, 3), 0.25)) == 2


def test_gradient():
    logits = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: pixel_entropy(z.softmax(dim=1)), logits)


def test_gradient_is_finite_for_certain_pixels():
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).requires_grad_()
    pixel_entropy(logits.softmax(dim=1)).backward()
    assert logits.grad.isfinite().all()


def test_half_precision():
    probs = torch.rand(1, 2, 64, 64).softmax(dim=1)
    value = pixel_entropy(probs.half())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, pixel_entropy(probs), rtol=1e-3, atol=0)
