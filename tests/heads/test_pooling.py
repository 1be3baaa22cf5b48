"""Pooling heads against their closed forms."""

import pytest
import torch

from wsl_zoo.heads import GAP, WGAP, PoolingHead

HEADS = [GAP, WGAP]


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(3, 5, 4, 6, dtype=torch.float64)


@pytest.mark.parametrize("head", HEADS)
def test_shapes_and_types(head):
    module = head(5, 7)
    assert isinstance(module, PoolingHead)
    logits, maps = module(torch.randn(2, 5, 3, 4))
    assert logits.shape == (2, 7)
    assert maps.shape == (2, 7, 3, 4)
    assert module.embed(torch.randn(2, 5, 3, 4)).shape == (2, 5)
    assert module.class_weights().shape == (7, 5)
    assert "in_channels=5, num_classes=7" in repr(module)


@pytest.mark.parametrize("head", HEADS)
def test_initial_values(head):
    module = head(60, 40)
    weights = module.class_weights()
    bound = (6 / (60 + 40)) ** 0.5  # Xavier-uniform
    assert weights.abs().max() <= bound
    assert weights.abs().max() > 0.95 * bound
    bias = [p for name, p in module.named_parameters() if name.endswith("bias")]
    assert len(bias) == 1
    assert (bias[0] == 0).all()


def test_gap_is_the_mean_of_its_maps(features):
    head = GAP(5, 7).double()
    torch.nn.init.normal_(head.conv.bias)
    logits, maps = head(features)
    torch.testing.assert_close(logits, maps.mean(dim=(2, 3)), rtol=0, atol=1e-12)
    by_hand = torch.einsum("kc,bchw->bkhw", head.class_weights(), features)
    torch.testing.assert_close(maps, by_hand + head.conv.bias[:, None, None])


def test_gradient_of_gap_is_uniform(features):
    _, maps = GAP(5, 7).double()(features)
    z = maps.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(z.mean(dim=(2, 3))[:, 2].sum(), z)
    assert torch.allclose(gradient[:, 2], torch.full((3, 4, 6), 1 / 24, dtype=torch.float64))
    assert (gradient[:, [0, 1, 3, 4, 5, 6]] == 0).all()


def test_wgap_is_a_linear_layer_on_the_mean(features):
    head = WGAP(5, 7).double()
    torch.nn.init.normal_(head.fc.bias)
    logits, maps = head(features)
    assert torch.equal(logits, head.fc(features.mean(dim=(2, 3))))
    torch.testing.assert_close(maps.mean(dim=(2, 3)) + head.fc.bias, logits, rtol=0, atol=1e-12)
    by_hand = torch.einsum("kc,bchw->bkhw", head.fc.weight, features)
    torch.testing.assert_close(maps, by_hand, rtol=0, atol=1e-12)


def test_gap_and_wgap_are_one_function(features):
    gap, wgap = GAP(5, 7).double(), WGAP(5, 7).double()
    torch.nn.init.normal_(gap.conv.bias)
    wgap.fc.weight.data = gap.class_weights().data.clone()
    wgap.fc.bias.data = gap.conv.bias.data.clone()
    gap_logits, gap_maps = gap(features)
    wgap_logits, wgap_maps = wgap(features)
    torch.testing.assert_close(gap_logits, wgap_logits, rtol=0, atol=1e-12)
    shift = gap.conv.bias[:, None, None].expand_as(gap_maps[0])
    torch.testing.assert_close(gap_maps - shift, wgap_maps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_pooled_in_float32(head, dtype):
    module = head(5, 7)
    features = 100 * torch.rand(2, 5, 64, 64)
    embedded = module.embed(features.to(dtype))
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded, features.to(dtype).float().mean(dim=(2, 3)))
    with torch.autocast("cpu", dtype=dtype):
        logits, maps = module(features.to(dtype))
    assert logits.dtype == maps.dtype == torch.float32
    expected = module(features)[0]
    assert (logits - expected).abs().max() < 2e-2 * expected.abs().max()
    logits, maps = module.to(dtype)(features.to(dtype))  # a network in true half precision
    assert logits.dtype == maps.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("head", HEADS)
def test_gradcheck(head):
    module = head(3, 2).double()
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="must be positive, got 0, 3"):
        GAP(0, 3)
