"""Pooling heads against their closed forms."""

import pytest
import torch

from wsl_zoo.heads import GAP, WGAP, WILDCAT, LogSumExp, MaxPool
from wsl_zoo.heads.pooling import positions


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(3, 5, 4, 6, dtype=torch.float64)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_embedded_in_float32(dtype):
    features = (100 * torch.rand(2, 5, 64, 64)).to(dtype)
    embedded = GAP(5, 7).embed(features)
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded, features.float().mean(dim=(2, 3)))


def gradient_of(head, z):
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(head.pool(z).sum(), z)
    return gradient


def test_maps_of_convolutional_heads_hold_the_bias(features):
    for head in (MaxPool(5, 7), LogSumExp(5, 7)):
        head = head.double()
        torch.nn.init.normal_(head.conv.bias)
        logits, maps = head(features)
        by_hand = torch.einsum("kc,bchw->bkhw", head.conv.weight[:, :, 0, 0], features)
        torch.testing.assert_close(maps, by_hand + head.conv.bias[:, None, None])
        assert torch.equal(logits, head.pool(maps))


def test_max_is_one_position(features):
    head = MaxPool(5, 7).double()
    logits, maps = head(features)
    assert torch.equal(logits, maps.amax((2, 3)))
    gradient = gradient_of(head, maps.detach()).flatten(2)
    assert torch.equal(gradient.argmax(2), maps.flatten(2).argmax(2))
    assert (gradient.count_nonzero(2) == 1).all()
    assert (gradient.sum(2) == 1).all()
    below = maps - (maps < logits[..., None, None]).double()
    assert torch.equal(head.pool(below), logits)


def test_max_of_equal_scores_has_one_gradient():
    gradient = gradient_of(MaxPool(2, 2), torch.ones(1, 2, 3, 3))
    assert (gradient.flatten(2).count_nonzero(2) == 1).all()


def test_log_sum_exp_lies_between_mean_and_maximum(features):
    head = LogSumExp(5, 7, r=3.0).double()
    logits, maps = head(features)
    naive = torch.exp(3.0 * maps).mean((2, 3)).log() / 3.0
    torch.testing.assert_close(logits, naive, rtol=1e-12, atol=1e-12)
    assert (logits > maps.mean((2, 3))).all()
    assert (logits < maps.amax((2, 3))).all()
    assert LogSumExp(5, 7).r == 10.0


def test_limits_of_log_sum_exp(features):
    maps = MaxPool(5, 7).double()(features)[1].detach()
    small, large = LogSumExp(5, 7, r=1e-6), LogSumExp(5, 7, r=1e6)
    torch.testing.assert_close(small.pool(maps), maps.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(large.pool(maps), maps.amax((2, 3)), rtol=0, atol=1e-5)


def test_log_sum_exp_is_shift_equivariant_with_softmax_gradient(features):
    head, maps = LogSumExp(5, 7, r=4.0), MaxPool(5, 7).double()(features)[1].detach()
    torch.testing.assert_close(head.pool(maps + 2.5), head.pool(maps) + 2.5)
    gradient = gradient_of(head, maps).flatten(2)
    torch.testing.assert_close(gradient, (4.0 * maps.flatten(2)).softmax(2))
    torch.testing.assert_close(gradient.sum(2), torch.ones(3, 7).double())


def test_log_sum_exp_does_not_overflow():
    """exp(10 * 1.2) is beyond float16, exp(10 * 1000) beyond float64."""
    head = LogSumExp(2, 2, r=10.0).half()
    torch.nn.init.constant_(head.conv.weight, 0.6)
    with torch.autocast("cpu", dtype=torch.float16):
        logits, _ = head(torch.ones(1, 2, 4, 4).half())
    torch.testing.assert_close(logits, torch.full((1, 2), 1.2), rtol=1e-3, atol=0)
    assert torch.equal(head.pool(torch.full((1, 2, 4, 4), 1000.0)), torch.full((1, 2), 1000.0))


@pytest.mark.parametrize(
    ("k", "count", "expected"),
    [
        (0.5, 25, 12),  # 12.5 goes to the even neighbour
        (0.5, 27, 14),
        (0.1, 784, 78),
        (0.1, 4, 0),
        (1.0, 49, 49),
        (1, 49, 1),
        (0, 49, 0),
        (0.0, 49, 0),
        (3, 49, 3),
        (60, 49, 49),
    ],
)
def test_numbers_of_positions(k, count, expected):
    assert positions(k, count) == expected


def test_wildcat_is_half_the_two_means(features):
    head = WILDCAT(5, 7, kmax=0.25, kmin=0.125, alpha=0.6).double()
    logits, maps = head(features)
    z = maps.flatten(2).sort(2).values  # 24 positions: 6 highest, 3 lowest
    expected = (z[..., -6:].mean(2) + 0.6 * z[..., :3].mean(2)) / 2
    torch.testing.assert_close(logits, expected)
    gradient = gradient_of(head, maps.detach()).flatten(2)
    order = maps.flatten(2).argsort(2)
    gradient = gradient.gather(2, order)
    torch.testing.assert_close(gradient[..., -6:], torch.full((3, 7, 6), 1 / 12).double())
    torch.testing.assert_close(gradient[..., :3], torch.full((3, 7, 3), 0.6 / 6).double())
    assert (gradient[..., 3:-6] == 0).all()


def test_wildcat_as_published_has_no_minimum_term(features):
    paper = WILDCAT(5, 7, kmax=0.25, kmin=0.125).double()
    reference = WILDCAT(5, 7, kmax=0.25, kmin=0.125, min_term="reference").double()
    reference.load_state_dict(paper.state_dict())
    logits, maps = reference(features)
    torch.testing.assert_close(logits, maps.flatten(2).topk(6).values.mean(2))
    assert torch.equal(maps, paper(features)[1])
    assert not torch.allclose(logits, paper(features)[0])


def test_limits_of_wildcat(features):
    maps = MaxPool(5, 7).double()(features)[1].detach()
    everywhere, nowhere = WILDCAT(5, 7, kmax=1.0, kmin=0), WILDCAT(5, 7, kmax=1, kmin=0)
    torch.testing.assert_close(everywhere.pool(maps), maps.mean((2, 3)))
    torch.testing.assert_close(nowhere.pool(maps), maps.amax((2, 3)))
    both = WILDCAT(5, 7, kmax=1, kmin=None, alpha=1.0)  # as many lowest as highest
    middle = (maps.amax((2, 3)) + maps.amin((2, 3))) / 2
    torch.testing.assert_close(both.pool(maps), middle)
    at_least_one = WILDCAT(5, 7, kmax=0.01, kmin=0)
    torch.testing.assert_close(at_least_one.pool(maps), maps.amax((2, 3)))


def test_pools_do_not_see_where_positions_are(features):
    maps = MaxPool(5, 7).double()(features)[1].detach()
    order = torch.randperm(24)
    shuffled = maps.flatten(2)[..., order].view_as(maps)
    for head in (GAP(5, 7), MaxPool(5, 7), LogSumExp(5, 7), WILDCAT(5, 7)):
        torch.testing.assert_close(head.pool(shuffled), head.pool(maps))


def test_modalities_of_wildcat_stand_together(features):
    """Row k * m + j is modality j of class k, and the class's map is the mean of its modalities."""
    head = WILDCAT(5, 7, modalities=3).double()
    torch.nn.init.normal_(head.conv.bias)
    rows = head.conv(features)
    expected = torch.stack([rows[:, 3 * k : 3 * k + 3].mean(1) for k in range(7)], dim=1)
    torch.testing.assert_close(head(features)[1], expected)
    assert WILDCAT(5, 7).conv.weight.shape == (35, 5, 1, 1)


def test_modalities_are_one_convolution_with_mean_weights(features):
    head, single = WILDCAT(5, 7, modalities=5, kmax=0.3).double(), WILDCAT(5, 7, 1, 0.3).double()
    torch.nn.init.normal_(head.conv.bias)
    single.conv.weight.data = head.conv.weight.data.unflatten(0, (7, 5)).mean(1)
    single.conv.bias.data = head.conv.bias.data.unflatten(0, (7, 5)).mean(1)
    for found, expected in zip(head(features), single(features), strict=True):
        torch.testing.assert_close(found, expected)
    gap = GAP(5, 7).double()
    gap.load_state_dict(single.state_dict())
    everywhere = WILDCAT(5, 7, modalities=5, kmax=1.0, kmin=0, alpha=0.0).double()
    everywhere.load_state_dict(head.state_dict())
    torch.testing.assert_close(everywhere(features)[0], gap(features)[0])


@pytest.mark.parametrize("kmax", [0.09, 0.3])
def test_without_dropout_shuffled_pixels_give_the_same_logits_in_training(features, kmax):
    head = WILDCAT(5, 7, kmax=kmax, kmin=0, alpha=0.0).double().train()
    shuffled = features.flatten(2)[..., torch.randperm(24)].view_as(features)
    torch.testing.assert_close(head(shuffled)[0], head(features)[0])
    dropping = WILDCAT(5, 7, kmax=kmax, kmin=0, alpha=0.0, dropout=0.75).double().train()
    assert not torch.allclose(dropping(features)[0], dropping(features)[0])


def test_dropout_of_wildcat():
    head = WILDCAT(2, 3, kmax=1.0, kmin=0, dropout=0.5)
    maps = torch.ones(40, 3, 10, 10)
    dropped = head.pool(maps)
    assert dropped.std() > 0.05  # mean of 100 values in {0, 2}: 0.1
    assert abs(dropped.mean() - 1) < 0.05
    assert torch.equal(head.eval().pool(maps), torch.ones(40, 3))
    assert torch.equal(WILDCAT(2, 3, kmax=1.0, kmin=0).train().pool(maps), torch.ones(40, 3))


@pytest.mark.parametrize(
    ("head", "arguments", "message"),
    [
        (LogSumExp, {"r": 0.0}, "r must be positive"),
        (LogSumExp, {"r": float("inf")}, "r must be positive and finite"),
        (WILDCAT, {"kmax": 0.0}, "kmax must be positive"),
        (WILDCAT, {"kmin": -1}, "kmin >= 0, got 0.5 and -1"),
        (WILDCAT, {"dropout": 1.0}, "dropout must lie"),
        (WILDCAT, {"min_term": "both"}, "min_term must be"),
        (WILDCAT, {"modalities": 0}, "modalities must be positive"),
    ],
)
def test_impossible_arguments(head, arguments, message):
    with pytest.raises(ValueError, match=message):
        head(5, 7, **arguments)
