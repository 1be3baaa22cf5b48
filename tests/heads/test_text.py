import pytest
import torch
from torch import nn

from wsl_zoo.heads import TextHead, text_map


def test_it_is_two_layers_with_a_leaky_slope_between():
    head = TextHead(5, 3, hidden=4)
    u = torch.randn(6, 5)
    first, _, second = head
    hidden = u @ first.weight.T + first.bias
    hidden = hidden.clamp(min=0) + 0.1 * hidden.clamp(max=0)
    torch.testing.assert_close(head(u), hidden @ second.weight.T + second.bias)
    assert TextHead(512, 4)[0].weight.shape == (512, 512)


def test_maps_have_one_layer_or_two():
    one = text_map(7, 5)
    assert isinstance(one, nn.Linear)
    assert one.weight.shape == (5, 7)
    first, slope, last = text_map(7, 5, layers=2)
    assert (first.weight.shape, slope.negative_slope, last.weight.shape) == ((7, 7), 0.1, (5, 7))


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match="hidden=0: must be positive"):
        TextHead(5, 3, hidden=0)
    with pytest.raises(ValueError, match="layers=0 must be 1 or 2"):
        text_map(7, 5, layers=0)
