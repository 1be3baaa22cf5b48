"""What every pooling head must do."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from wsl_zoo.heads import (
    GAP,
    PRM,
    WGAP,
    WILDCAT,
    AttentionMIL,
    LogSumExp,
    MaxPool,
    PoolingHead,
)

HEADS = {
    "gap": GAP,
    "wgap": WGAP,
    "max": MaxPool,
    "lse": LogSumExp,
    "wildcat": WILDCAT,
    "wildcat-reference": partial(WILDCAT, min_term="reference"),
    "mil": AttentionMIL,
    "mil-gated": partial(AttentionMIL, gated=True),
    "prm": PRM,
    "prm-survey": partial(PRM, variant="survey"),
}


@pytest.fixture(params=HEADS)
def head(request):
    return HEADS[request.param]


def with_biases(module):
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return module


def test_shapes_and_types(head):
    module = head(5, 7)
    assert isinstance(module, PoolingHead)
    for h, w in [(3, 4), (7, 7), (2, 2), (1, 1)]:
        logits, maps = module(torch.randn(2, 5, h, w))
        assert logits.shape == (2, 7)
        assert maps.shape == (2, 7, h, w)
        assert logits.dtype == maps.dtype == torch.float32
        assert logits.isfinite().all()
    assert module.embed(torch.randn(2, 5, 3, 4)).shape == (2, 5)
    assert "in_channels=5, num_classes=7" in repr(module)
    assert "background" not in repr(module)


def test_initial_values(head):
    for name, parameter in head(60, 40).named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            bound = (6 / sum(parameter.shape[:2])) ** 0.5  # Xavier-uniform
            assert 0.95 * bound < parameter.abs().max() <= bound


def test_background_is_a_row_before_the_classes(head):
    """The layout of the published weights: class k answers to row k + 1 and to no other."""
    plain, module = with_biases(head(5, 3)), head(5, 3, background=True)
    for name, parameter in module.named_parameters():
        own = dict(plain.named_parameters())[name]
        per_class = own.shape[0] // 3 if parameter.shape != own.shape else 0
        assert parameter.shape[0] == own.shape[0] + per_class
        with torch.no_grad():
            parameter[per_class:] = own
            parameter[:per_class] = 1e6
    features = torch.rand(2, 5, 6, 6)
    for ours, theirs in zip(module(features), plain(features), strict=True):
        torch.testing.assert_close(ours, theirs)
    weights = module.class_weights()
    assert (weights is None) == (plain.class_weights() is None)
    if weights is not None:
        assert torch.equal(weights, plain.class_weights())
    assert "background=True" in repr(module)


@pytest.mark.parametrize("background", [False, True])
def test_every_parameter_gets_a_gradient(head, background):
    module = head(5, 3, background=background)
    logits, _ = module(torch.randn(2, 5, 6, 6))
    logits.square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())  # else DDP waits for them


def test_weights_belong_to_linear_logits_only(head):
    module, features = with_biases(head(5, 7).double()), torch.randn(2, 5, 4, 4).double()
    weights = module.class_weights()
    logits, maps = module(features)
    if not isinstance(module, GAP | WGAP):
        assert weights is None
        return
    assert weights.shape == (7, 5)
    bias = module.fc.bias if isinstance(module, WGAP) else module.conv.bias
    torch.testing.assert_close(logits, features.mean((2, 3)) @ weights.T + bias)
    by_hand = torch.einsum("kc,bchw->bkhw", weights, features)
    centred = maps - maps.mean((2, 3), keepdim=True)
    torch.testing.assert_close(centred, by_hand - by_hand.mean((2, 3), keepdim=True))


def test_images_do_not_mix(head):
    module, features = head(5, 7), torch.randn(3, 5, 6, 6)
    together = module(features)
    for i in range(3):
        for one, all_ in zip(module(features[i : i + 1]), together, strict=True):
            torch.testing.assert_close(one[0], all_[i])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_pooled_in_float32(head, dtype):
    module = head(5, 7)
    features = 100 * torch.rand(2, 5, 16, 16)
    expected, _ = module(features)
    with torch.autocast("cpu", dtype=dtype):
        logits, maps = module(features.to(dtype))
    assert logits.dtype == maps.dtype == torch.float32
    # The peaks of PRM jump with the rounding of a map; its means over them need not be near.
    if getattr(module, "variant", None) != "paper":
        assert (logits - expected).abs().max() < 3e-2 * expected.abs().max()
    half = copy.deepcopy(module).to(dtype)  # a network in true half precision
    logits, maps = half(features.to(dtype))
    assert logits.dtype == maps.dtype == torch.float32
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in half.parameters())


@pytest.mark.parametrize("background", [False, True])
def test_gradcheck(head, background):
    module = with_biases(head(3, 2, background=background).double())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


def test_compiles_to_one_graph(head):
    module, features = head(5, 3), torch.randn(2, 5, 6, 6)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for ours, theirs in zip(compiled(features), module(features), strict=True):
        assert torch.equal(ours, theirs)


def test_sizes_must_be_positive(head):
    with pytest.raises(ValueError, match="must be positive, got 0, 3"):
        head(0, 3)
