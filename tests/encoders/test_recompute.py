"""Activation checkpointing changes nothing but the memory it takes."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wsl_zoo.encoders import Encoder, recomputed
from wsl_zoo.encoders.recompute import _no_statistics


def small(momentum=0.1, dropout=0.3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6, momentum=momentum),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.BatchNorm2d(4, momentum=momentum),
    )


def encoder():
    torch.manual_seed(0)
    return Encoder("test_resnet")


def inputs(passes, size=32):
    generator = torch.Generator().manual_seed(1)
    return [(1 + i) * torch.randn(4, 3, size, size, generator=generator) for i in range(passes)]


def trained(module, passes, again, dtype=torch.float32):
    """Values, gradients and state after one backward pass through several forward passes."""
    module = copy.deepcopy(module).train()
    call = module.final if isinstance(module, Encoder) else module
    images = [x.requires_grad_() for x in inputs(passes)]
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        values = [recomputed(call, module, x) if again else call(x) for x in images]
        loss = sum((v.float() ** 2).mean() * (i + 1) for i, v in enumerate(values))
    after = torch.rand(3)
    loss.backward()
    gradients = {n: p.grad for n, p in module.named_parameters()}
    gradients |= {f"input {i}": x.grad for i, x in enumerate(images)}
    return {"loss": loss.detach(), "after": after, **gradients, **module.state_dict()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] is None) == (value is None), name
        if value is not None:
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", [small, encoder])
def test_gradients_and_statistics_are_those_without(build, dtype, passes):
    module = build()
    plain = trained(module, passes, again=False, dtype=dtype)
    assert_same(trained(module, passes, again=True, dtype=dtype), plain)
    counts = [v for k, v in plain.items() if k.endswith("num_batches_tracked")]
    assert counts
    assert all(int(v) == passes for v in counts)
    before = module.state_dict()
    assert all(not torch.equal(v, before[k]) for k, v in plain.items() if "running_mean" in k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cumulative_mean_is_the_same_too(dtype):
    module = small(momentum=None)
    plain = trained(module, 3, again=False, dtype=dtype)
    assert_same(trained(module, 3, again=True, dtype=dtype), plain)


def test_plain_checkpointing_would_count_twice():
    module = small().train()
    checkpoint(module, inputs(1)[0], use_reentrant=False).sum().backward()
    assert int(module[1].num_batches_tracked) == 2


def test_the_pass_is_computed_again_in_the_backward_pass():
    module, calls = small(), []
    module[0].register_forward_hook(lambda *_: calls.append(1))
    value = recomputed(module, module, inputs(1)[0]).sum()
    assert len(calls) == 1
    value.backward()
    assert len(calls) == 2


def test_norms_are_as_before_afterwards():
    module = small().train()
    norms = [m for m in module if isinstance(m, nn.BatchNorm2d)]
    counts = [norm.num_batches_tracked for norm in norms]
    recomputed(module, module, inputs(1)[0]).sum().backward()
    assert [norm.momentum for norm in norms] == [0.1, 0.1]
    assert all(a.num_batches_tracked is b for a, b in zip(norms, counts, strict=True))
    with pytest.raises(RuntimeError, match="stop"), _no_statistics(module):
        raise RuntimeError("stop")
    assert [norm.momentum for norm in norms] == [0.1, 0.1]
    assert all(a.num_batches_tracked is b for a, b in zip(norms, counts, strict=True))


def test_frozen_norms_stay_frozen():
    module = small()
    module[1].eval()
    before = {k: v.clone() for k, v in module[1].state_dict().items()}
    recomputed(module, module, inputs(1)[0]).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in module[1].state_dict().items())
    assert int(module[5].num_batches_tracked) == 1


def test_norms_that_need_a_count_or_have_none_are_served():
    for norm, count in (
        (nn.SyncBatchNorm(3), 1),
        (nn.BatchNorm2d(3, track_running_stats=False), None),
    ):
        recomputed(norm, norm, inputs(1)[0].requires_grad_()).sum().backward()
        tracked = norm.num_batches_tracked
        assert (None if tracked is None else int(tracked)) == count
