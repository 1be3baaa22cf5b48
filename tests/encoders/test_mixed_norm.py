import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from wsl_zoo.encoders import Encoder
from wsl_zoo.encoders.mixed_norm import (
    MixedNorm,
    fold_norms,
    mix_norms,
    norm_statistics,
    plain_keys,
)

C = 5
INPUTS = {1: (nn.BatchNorm1d, (6, C)), 2: (nn.BatchNorm2d, (4, C, 3, 7)),
          3: (nn.BatchNorm3d, (2, C, 2, 3, 4))}  # fmt: skip


def norm_of(kind=nn.BatchNorm2d, **kwargs):
    """A batch norm of a source, with statistics of its own."""
    norm = kind(C, **kwargs).eval().requires_grad_(False)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if norm.affine:
        norm.weight.normal_()
        norm.bias.normal_()
    return norm


def mixed_of(theta=0.3, norm=None):
    mixed = MixedNorm(norm or norm_of())
    mixed.target_mean.normal_()
    mixed.target_var.uniform_(0.5, 2)
    nn.init.constant_(mixed.theta, theta)
    return mixed


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_all_of_the_target_is_a_batch_norm_with_its_statistics(dims, affine):
    kind, shape = INPUTS[dims]
    norm, x = norm_of(kind, affine=affine), torch.randn(shape)
    mixed = mixed_of(theta=100, norm=norm)
    assert mixed.alpha == 1
    expected = F.batch_norm(x, mixed.target_mean, mixed.target_var, norm.weight, norm.bias)
    torch.testing.assert_close(mixed(x), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_none_of_the_target_is_the_source(dims):
    kind, shape = INPUTS[dims]
    norm, x = norm_of(kind), torch.randn(shape)
    mixed = mixed_of(theta=-200, norm=norm)
    assert mixed.alpha == 0
    torch.testing.assert_close(mixed(x), norm(x))


@pytest.mark.parametrize("theta", [-2.0, 0.0, 3.0])
def test_the_variance_is_that_of_the_mixture(theta):
    mixed = mixed_of(theta).double()
    a, source, target = mixed.alpha, mixed.norm.running_mean, mixed.target_mean
    mean, var = mixed.statistics()
    torch.testing.assert_close(mean, a * target + (1 - a) * source)
    within = a * mixed.target_var + (1 - a) * mixed.norm.running_var
    torch.testing.assert_close(var, within + a * (1 - a) * (target - source) ** 2)
    assert (var >= within).all()


def test_statistics_of_samples_pooled_by_their_numbers():
    source, target = torch.randn(10, C, dtype=torch.float64), torch.randn(30, C).double() + 4
    mixed = MixedNorm(norm_of(nn.BatchNorm1d), alpha=0.75).double()
    mixed.norm.running_mean, mixed.target_mean = source.mean(0), target.mean(0)
    mixed.norm.running_var = source.var(0, unbiased=False)
    mixed.target_var = target.var(0, unbiased=False)
    mean, var = mixed.statistics()
    both = torch.cat([source, target])
    torch.testing.assert_close(mean, both.mean(0), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(var, both.var(0, unbiased=False), atol=1e-6, rtol=1e-6)


def test_training_is_as_evaluation_and_images_do_not_mix():
    mixed, x = mixed_of(), torch.randn(4, C, 3, 7)
    before = copy.deepcopy(mixed.state_dict())
    outputs = mixed.train()(x)
    assert torch.equal(outputs, mixed.eval()(x))
    torch.testing.assert_close(outputs[:1], mixed(x[:1]))
    assert all(torch.equal(value, before[key]) for key, value in mixed.state_dict().items())


def test_gradients_reach_theta_and_are_right():
    mixed, x = mixed_of().double(), torch.randn(4, C, 3, 7, dtype=torch.float64)
    mixed(x).square().sum().backward()
    reached = [name for name, p in mixed.named_parameters() if p.grad is not None]
    assert reached == ["theta"]
    assert mixed.theta.grad.abs() > 1e-3
    theta = mixed.theta.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: functional_call(mixed, {"theta": t}, (x,)), theta)


def test_a_start_near_the_target_has_a_gradient():
    mixed = mixed_of(norm=norm_of())
    assert MixedNorm(norm_of()).alpha.item() == pytest.approx(0.95)
    nn.init.constant_(mixed.theta, MixedNorm(norm_of()).theta.item())
    mixed(torch.randn(4, C, 3, 7)).square().sum().backward()
    assert mixed.theta.grad.abs() > 1e-3


def test_of_equal_statistics_theta_does_not_matter():
    norm, x = norm_of().double(), torch.randn(4, C, 3, 7, dtype=torch.float64)
    mixed = MixedNorm(norm).double()
    outputs = []
    for theta in (-3.0, 0.0, 5.0):
        nn.init.constant_(mixed.theta, theta)
        mixed.theta.grad = None
        outputs.append(mixed(x))
        (outputs[-1] ** 3).sum().backward()
        assert mixed.theta.grad.abs() < 1e-12
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type(dtype):
    mixed, x = mixed_of(), torch.randn(4, C, 3, 7)
    half = mixed(x.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), mixed(x), atol=0.1, rtol=0.1)


def test_an_activation_that_timm_puts_into_a_norm_follows():
    norm, x = norm_of(BatchNormAct2d, act_layer=nn.ReLU), torch.randn(4, C, 3, 7)
    torch.testing.assert_close(mixed_of(theta=-200, norm=norm)(x), norm(x))
    assert norm(x).min() == 0


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
def test_impossible_shares_are_refused(alpha):
    with pytest.raises(ValueError, match=rf"alpha={alpha} must lie in \(0, 1\)"):
        MixedNorm(norm_of(), alpha)


def test_norms_without_running_statistics_are_refused():
    with pytest.raises(ValueError, match="keeps no running statistics"):
        MixedNorm(nn.BatchNorm2d(C, track_running_stats=False))


# In a network


@pytest.fixture
def encoder():
    encoder = Encoder("test_resnet", stride=16).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return encoder


def mixed_encoder(encoder):
    """A copy with mixed norms, each with numbers of its own."""
    other = copy.deepcopy(encoder)
    for norm in mix_norms(other):
        norm.target_mean.normal_(std=0.3)
        norm.target_var.uniform_(0.5, 2)
        nn.init.normal_(norm.theta)
    return other


def names_of(module, kind):
    return [name for name, child in module.named_modules() if isinstance(child, kind)]


def test_every_batch_norm_is_replaced_in_order(encoder):
    names = names_of(encoder, nn.BatchNorm2d)
    found = mix_norms(encoder, alpha=0.8)
    assert names_of(encoder, MixedNorm) == names
    assert [id(m) for m in found] == [id(encoder.get_submodule(name)) for name in names]
    assert all(m.alpha.item() == pytest.approx(0.8) for m in found)
    assert names_of(encoder, nn.BatchNorm2d) == [f"{name}.norm" for name in names]


def test_mixed_norms_fold_into_batch_norms_of_the_same_function(encoder):
    mixed, image = mixed_encoder(encoder), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        before = mixed.final(image)
        assert not torch.allclose(before, encoder.final(image), atol=0.01)
        fold_norms(mixed)
        torch.testing.assert_close(mixed.eval().final(image), before)
    assert not names_of(mixed, MixedNorm)
    assert mixed.state_dict().keys() == encoder.state_dict().keys()


def test_a_state_goes_into_mixed_norms_and_back(encoder):
    state, mixed = encoder.state_dict(), mixed_encoder(encoder)
    keys = plain_keys(mixed)
    assert set(keys) == set(state)
    assert len(set(keys.values())) == len(keys)
    rest = set(mixed.state_dict()) - set(keys.values())
    own = ("theta", "target_mean", "target_var")
    assert rest == {f"{name}.{part}" for name in names_of(mixed, MixedNorm) for part in own}
    other = Encoder("test_resnet", stride=16)
    mix_norms(other)
    other.load_state_dict(other.state_dict() | {keys[key]: state[key] for key in state})
    for key, value in state.items():
        assert torch.equal(other.state_dict()[keys[key]], value), key


def test_names_of_a_network_without_mixed_norms_stay(encoder):
    keys = plain_keys(encoder)
    assert keys == {key: key for key in encoder.state_dict()}


# Statistics of a data set


def test_statistics_are_means_over_batches_of_what_each_norm_sees(encoder):
    batches = [torch.randn(count, 3, 48, 48) + count for count in (4, 4, 2)]
    seen = {name: [] for name in names_of(encoder, nn.BatchNorm2d)}
    watched = copy.deepcopy(encoder)
    for name in seen:
        norm = watched.get_submodule(name).train()
        norm.register_forward_pre_hook(lambda m, x, name=name: seen[name].append(x[0].detach()))
    with torch.no_grad():
        for image in batches:
            watched.final(image)
    before = copy.deepcopy(encoder.state_dict())
    means, variances, count = norm_statistics(encoder, batches, torch.device("cpu"))
    assert count == 10
    assert len(means) == len(variances) == len(seen)
    for inputs, mean, variance in zip(seen.values(), means, variances, strict=True):
        over = (0, 2, 3)
        torch.testing.assert_close(mean, torch.stack([x.mean(over) for x in inputs]).mean(0))
        torch.testing.assert_close(variance, torch.stack([x.var(over) for x in inputs]).mean(0))
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert not any(module.training for module in encoder.modules())


def test_three_batches_are_enough_for_the_true_mean():
    batches = [torch.randn(32, 3, 8, 8) * 2 + 4.9 for _ in range(3)]
    (mean,), (variance,), _ = norm_statistics(nn.BatchNorm2d(3), batches, torch.device("cpu"))
    torch.testing.assert_close(mean, torch.cat(batches).mean((0, 2, 3)))
    torch.testing.assert_close(variance, torch.full((3,), 4.0), atol=0.15, rtol=0)
    published = nn.BatchNorm2d(3)
    for image in batches:
        published(image)
    assert published.running_mean.max() < 0.3 * 4.9  # 73 % of the 0 before the first are left


def test_all_but_batch_norms_is_as_in_evaluation():
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3), nn.Dropout2d(0.5)).train()
    image = torch.ones(2, 3, 8, 8)
    (mean,), (variance,), _ = norm_statistics(network, [image], torch.device("cpu"))
    assert torch.equal(mean, torch.ones(3))
    assert torch.equal(variance, torch.zeros(3))
    assert all(module.training for module in network.modules())
