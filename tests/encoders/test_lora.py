import copy
import math
import pickle
import warnings

import pytest
import timm
import torch
from timm.layers import StdConv2d
from timm.layers.conv2d_same import Conv2dSame
from timm.models.beit import Attention as BeitAttention
from torch import nn
from torch.nn import functional as F

from wsl_zoo.encoders import (
    Encoder,
    LoRAConv2d,
    LoRALinear,
    adapt,
    fold,
    lora_parameters,
    merge,
    unmerge,
)
from wsl_zoo.encoders.adapters import adapters

RANK, ALPHA = 4, 6.0
LAYERS = {
    "linear": lambda: (nn.Linear(7, 5), (3, 7)),
    "linear of tokens, no bias": lambda: (nn.Linear(7, 5, bias=False), (2, 4, 7)),
    "1x1": lambda: (nn.Conv2d(6, 8, 1), (2, 6, 5, 4)),
    "3x3 strided": lambda: (nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), (2, 6, 7, 9)),
    "oblong": lambda: (nn.Conv2d(6, 8, (1, 3), stride=(2, 1), padding=(0, 1)), (2, 6, 7, 9)),
    "valid": lambda: (nn.Conv2d(6, 8, 3), (2, 6, 7, 9)),
}
GROUPED = {
    "groups": lambda: (nn.Conv2d(4, 8, 3, padding=1, groups=2), (2, 4, 5, 6)),
    "depthwise": lambda: (nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), (2, 4, 7, 6)),
    "depthwise, multiplied": lambda: (nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 5, 6)),
}
NOT_OF_PEFT = {
    "dilated": lambda: (nn.Conv2d(6, 8, 3, padding=2, dilation=2), (2, 6, 7, 9)),
    "dilated depthwise": lambda: (nn.Conv2d(4, 4, 3, dilation=2, groups=4), (2, 4, 8, 6)),
    "circular": lambda: (nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), (2, 6, 7, 9)),
    "same": lambda: (nn.Conv2d(6, 8, 3, padding="same"), (2, 6, 7, 9)),
    "timm's same": lambda: (Conv2dSame(6, 8, 3, stride=2), (2, 6, 8, 9)),
    "timm's same depthwise": lambda: (Conv2dSame(6, 6, 3, stride=2, groups=6), (2, 6, 8, 9)),
}
EVERY = LAYERS | GROUPED | NOT_OF_PEFT


class Holder(nn.Module):
    """A layer with something beside it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def moved(module):
    """Give every B values, as after training."""
    for adapter in adapters(module).values():
        nn.init.normal_(adapter.up.weight, std=0.3)
    return module


def adapted(inner, **kwargs):
    module = Holder(inner)
    adapt(module, **{"rank": RANK, "alpha": ALPHA, **kwargs})
    return moved(module)


SIZE = 32  # of images
OPTIONS = {"test_vit": {"img_size": SIZE}, "test_resnet": {"zero_init_last": False}}


def network(name):
    """A network whose every layer has a gradient."""
    model = timm.create_model(name, num_classes=0, **OPTIONS.get(name, {}))
    return model.double().eval()


def image(count=1):
    return torch.randn(count, 3, SIZE, SIZE).double()


@pytest.fixture(scope="module")
def mobilenet():
    return network("mobilenetv2_100")


def close(a, b, tolerance=1e-6):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


# Values ------------------------------------------------------------------------------------------


def peft_of(module, targets, rank=RANK, alpha=ALPHA):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # groups cannot be merged
        model = peft.get_peft_model(copy.deepcopy(module), config)
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A")
    }
    for layer in layers.values():
        nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
    return model, layers


def with_factors_of(module, layers):
    """Give our adapters the factors of peft's."""
    assert list(adapters(module)) == list(layers)
    with torch.no_grad():
        for adapter, layer in zip(adapters(module).values(), layers.values(), strict=True):
            adapter.down.weight.copy_(layer.lora_A["default"].weight)
            adapter.up.weight.copy_(layer.lora_B["default"].weight)
    return module


# One test, not one per case: importing peft takes seconds in every process of the suite.
def test_layers_and_networks_equal_those_of_peft():
    pytest.importorskip("peft")
    for name, case in (LAYERS | GROUPED).items():
        layer, shape = case()
        reference, layers = peft_of(Holder(layer), ["inner"])
        ours = Holder(layer)
        adapt(ours, "inner", RANK, ALPHA, across_groups=True)
        with_factors_of(ours, layers)
        x = torch.randn(shape)
        close(ours(x), reference(x))
        close(ours(x) - ours.inner.layer(x), reference(x) - ours.inner.layer(x))
        (ours(x) ** 2).sum().backward()
        (reference(x) ** 2).sum().backward()
        theirs = layers["inner"]
        close(ours.inner.down.weight.grad, theirs.lora_A["default"].weight.grad, 1e-5)
        close(ours.inner.up.weight.grad, theirs.lora_B["default"].weight.grad, 1e-5)
        if name in LAYERS:
            close(ours.inner.delta(), theirs.get_delta_weight("default"))
    # Within groups: peft's of rank g r, whose A is zero between channels of different groups.
    for case in GROUPED.values():
        layer, shape = case()
        groups, ours = layer.groups, adapted(layer)
        reference, layers = peft_of(Holder(layer), ["inner"], RANK * groups, ALPHA * groups)
        theirs, own = layers["inner"], ours.inner
        mask = torch.block_diag(*[torch.ones(RANK, layer.in_channels // groups)] * groups)
        with torch.no_grad():
            full = own.down.weight.repeat(1, groups, 1, 1) * mask[:, :, None, None]
            theirs.lora_A["default"].weight.copy_(full)
            theirs.lora_B["default"].weight.copy_(own.up.weight)
        x = torch.randn(shape)
        close(ours(x), reference(x))
    for name, targets in {"test_vit": ["qkv", "proj", "fc1", "fc2"], "test_resnet": "all"}.items():
        model = network(name)
        ours = copy.deepcopy(model)
        names = adapt(ours, targets, RANK, ALPHA)
        reference, layers = peft_of(model, names if targets == "all" else targets)
        with_factors_of(ours.float(), layers)
        x = image()
        close(ours.double()(x), reference.double()(x))
        learning = [p.numel() for p in reference.parameters() if p.requires_grad]
        assert [p.numel() for p in ours.parameters() if p.requires_grad] == learning


def test_a_linear_layer_is_its_formula():
    layer = LoRALinear(nn.Linear(3, 2), rank=1, alpha=0.5)
    with torch.no_grad():
        layer.layer.weight.copy_(torch.tensor([[1.0, 0, 2], [0, 1, 0]]))
        layer.layer.bias.copy_(torch.tensor([10.0, 20]))
        layer.down.weight.copy_(torch.tensor([[1.0, 2, 3]]))
        layer.up.weight.copy_(torch.tensor([[4.0], [-2]]))
    # A x = 1 + 2 + 3 = 6; W x + b = (13, 21); 0.5 (4, -2) 6 = (12, -6)
    assert layer(torch.ones(1, 3)).tolist() == [[25, 15]]
    assert layer.weight.tolist() == [[3, 4, 8], [-1, -1, -3]]


def test_a_depthwise_layer_updates_each_channel_by_itself():
    layer = LoRAConv2d(nn.Conv2d(2, 2, (1, 2), groups=2, bias=False), rank=2, alpha=2)
    with torch.no_grad():
        layer.layer.weight.zero_()
        layer.down.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 2]]).view(4, 1, 1, 2))
        layer.up.weight.copy_(torch.tensor([[3.0, 5], [1, -1]]).view(2, 2, 1, 1))
    assert layer.weight.flatten(1).tolist() == [[3, 5], [1, -1]]
    x = torch.tensor([[[[1.0, 10]], [[100, 1000]]]])
    assert layer(x).flatten().tolist() == [53, -900]


@pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)
def test_step_0_is_the_identity(case):
    layer, shape = case()
    x = torch.randn(shape)
    expected = layer(x)
    module = Holder(layer)
    adapt(module)
    assert torch.equal(module(x), expected)
    assert not torch.equal(moved(module)(x), expected)


@pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)
def test_merged_and_folded_equal_the_adapter(case):
    layer, shape = case()
    module = adapted(layer.double())
    x = torch.randn(shape).double()
    kind, original = type(layer), layer.weight.clone()
    expected, weight = module(x), module.inner.weight
    merge(module.eval())
    close(module(x), expected, 1e-12)
    assert torch.equal(module.inner.weight, weight)
    unmerge(module)
    assert torch.equal(module.inner.layer.weight, original)
    assert torch.equal(module(x), expected)
    assert fold(module) == ["inner"]
    assert type(module.inner) is kind
    close(module(x), expected, 1e-12)


@pytest.mark.parametrize("case", (LAYERS | GROUPED).values(), ids=LAYERS | GROUPED)
def test_a_starts_uniform_and_the_update_has_the_rank(case):
    layer, _ = case()
    adapter = adapted(layer, rank=200).inner
    fan_in = layer.weight[0].numel()
    bound = 1 / math.sqrt(fan_in)  # gain sqrt(2 / 6) times sqrt(3 / fan_in)
    assert adapter.down.weight.abs().max() <= bound
    assert adapter.down.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    one = adapted(layer, rank=1).inner
    for group in one.delta().flatten(1).chunk(getattr(layer, "groups", 1)):
        assert torch.linalg.matrix_rank(group) == 1


@pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)
def test_rank_times_the_sum_of_the_sides_learns(case):
    layer, _ = case()
    a, b = (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else (
        layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1], layer.out_channels
    )  # fmt: skip
    module = adapted(layer, rank=5)
    learning = [p for p in module.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learning) == 5 * (a + b)
    assert [id(p) for p in learning] == [id(p) for p in lora_parameters(module)]


def test_dropout_falls_on_the_update_in_training_alone():
    module = adapted(nn.Linear(1, 1), rank=1, dropout=0.5)
    x = torch.ones(200, 1)
    plain = module.inner.layer(x)
    update = module.eval()(x) - plain
    assert (update == update[0]).all()
    drawn = module.train()(x) - plain
    dropped = drawn.abs() < 1e-7
    assert 60 < dropped.sum() < 140
    close(drawn[~dropped], 2 * update[~dropped])


# Networks ----------------------------------------------------------------------------------------


def test_networks_start_as_they_were_and_merge(mobilenet):
    for model in (copy.deepcopy(mobilenet), network("test_vit"), network("test_resnet")):
        x = image()
        kinds, keys = [type(m) for m in model.modules()], list(model.state_dict())
        layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        expected = model(x)
        assert adapt(model, "all", rank=2) == layers
        assert torch.equal(model(x), expected)
        moved(model)
        original = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            after = model(x)
            assert (after - expected).abs().max() > 1e-3
            merge(model)
            close(model(x), after)
            unmerge(model)
            assert all(torch.equal(v, original[k]) for k, v in model.state_dict().items())
            assert torch.equal(model(x), after)
            assert fold(model) == layers
            close(model(x), after)
        assert [type(m) for m in model.modules()] == kinds
        assert list(model.state_dict()) == keys
        assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "mobilenet"])
def test_every_factor_learns_and_nothing_else(name, mobilenet):
    model = copy.deepcopy(mobilenet) if name == "mobilenet" else network(name)
    model.float()  # grouped convolutions are slow in double
    model(image().float()).sum().backward()  # gradients of an earlier training
    names = adapt(model, rank=2)
    if name == "test_vit":
        assert {f"blocks.{i}.attn.{part}" for i in range(6) for part in ("qkv", "proj")} < {*names}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    x = image(2).float()
    for step in range(2):
        optimizer.zero_grad(set_to_none=step == 1)
        (model(x) ** 2).mean().backward()
        for adapter in adapters(model).values():
            assert adapter.up.weight.grad.abs().max() > 0
            assert (adapter.down.weight.grad.abs().max() > 0) == (step == 1)  # B is 0 at step 0
        optimizer.step()
    factors = {f"{n}.{part}.weight" for n in names for part in ("down", "up")}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) != (key in factors)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_fused_or_not(fused):
    model = network("test_vit")
    adapt(model, ["qkv", "attn.proj"], rank=2)
    moved(model)
    x = image()
    expected = model(x)
    for block in model.blocks:
        block.attn.fused_attn = fused
    close(model(x), expected)


def test_weights_that_are_read_in_place_of_a_call_are_adapted():
    for attention in (
        BeitAttention(12, num_heads=3, qkv_bias=True),
        nn.MultiheadAttention(12, 3, batch_first=True),
    ):
        x = torch.randn(2, 5, 12)
        inputs = (x, x, x) if isinstance(attention, nn.MultiheadAttention) else (x,)

        def read(module, inputs=inputs):
            result = module(*inputs)
            return result[0] if isinstance(result, tuple) else result

        attention.double().float()
        before = read(attention).detach()
        assert adapt(attention, rank=2)
        close(read(attention), before)  # another kernel may be taken
        moved(attention)
        after = read(attention)
        assert (after - before).abs().max() > 1e-3
        after.square().sum().backward()
        assert all(p.grad.abs().max() > 0 for p in lora_parameters(attention))
        for mode in (True, False):
            with torch.no_grad():
                close(read(attention.train(mode)), after)
        fold(attention)
        close(read(attention), after)


def test_an_encoder_and_its_levels():
    encoder = Encoder("test_vit").eval()
    names = adapt(encoder, ["qkv", "proj", "fc1", "fc2"], rank=2)
    assert names[:2] == ["model.patch_embed.proj", "model.blocks.0.attn.qkv"]
    assert len(names) == 1 + 4 * 6
    moved(encoder)
    x = torch.randn(1, 3, 96, 64)
    final, levels = encoder(x)
    _, taken = encoder.model.forward_intermediates(x, indices=encoder._indices, output_fmt="NCHW")
    for level, other in zip(levels, taken, strict=True):
        close(level, other)
    activation, rest = encoder.split(x, "blocks.2")
    close(rest(activation), final)
    loaded = Encoder("test_vit").eval()
    folded = copy.deepcopy(encoder)
    fold(folded)
    loaded.load_state_dict(folded.state_dict())
    close(loaded(x)[0], final, 1e-5)


def test_other_code_reads_what_it_reads_of_a_layer():
    linear, conv = nn.Linear(4, 6), nn.Conv2d(4, 8, 3, 2, 1, groups=2, padding_mode="reflect")
    for layer, names in (
        (linear, ("in_features", "out_features")),
        (conv, (*("in_channels", "out_channels", "kernel_size", "stride", "padding"),
                "dilation", "groups", "padding_mode")),
    ):  # fmt: skip
        adapter = (LoRALinear if layer is linear else LoRAConv2d)(layer, rank=2)
        assert all(getattr(adapter, name) == getattr(layer, name) for name in names)
        assert adapter.bias is layer.bias
        assert torch.equal(adapter.weight, layer.weight)
        assert (adapter.weight.dtype, adapter.weight.shape) == (
            layer.weight.dtype,
            layer.weight.shape,
        )
    assert LoRALinear(nn.Linear(2, 2, bias=False)).bias is None


# States, precision, copies -----------------------------------------------------------------------


def test_the_state_is_that_of_the_plain_network_and_the_factors():
    plain, model = network("test_vit"), network("test_vit")
    names = adapt(model, "qkv", rank=2)
    factors = [f"{n}.{part}.weight" for n in names for part in ("down", "up")]
    state = model.state_dict()
    assert [key for key in state if key not in factors] == list(plain.state_dict())
    assert {key for key in state if key in factors} == {*factors}
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (factors, [])
    x = image()
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("assign", [True, False])
def test_a_state_comes_back(assign):
    first, second = adapted(nn.Conv2d(4, 8, 3)), adapted(nn.Conv2d(4, 8, 3))
    x = torch.randn(2, 4, 5, 6)
    expected = first(x)
    merge(first)  # its state is the same
    merge(second)  # loading ends this
    second.load_state_dict(first.state_dict(), assign=assign)
    assert torch.equal(second(x), expected)
    assert [p.requires_grad for p in second.parameters()] == [False, False, True, True]
    with pytest.raises(RuntimeError, match="nothing to unmerge"):
        unmerge(second)
    with pytest.raises(RuntimeError, match="size mismatch"):
        second.load_state_dict(adapted(nn.Conv2d(4, 8, 3), rank=2).state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_stand_by_themselves(copied):
    module = Holder(nn.Linear(3, 3))
    adapt(module, rank=2)
    other = moved(copied(module))
    x = torch.randn(2, 3)
    assert torch.equal(module(x), module.inner.layer(x))
    expected = other(x)
    merge(other.eval())
    again = copied(other)
    assert torch.equal(again(x), other(x))
    assert (again(x) - module(x)).abs().max() > 1e-3
    again.load_state_dict(other.state_dict())
    assert torch.equal(again(x), expected)
    assert list(again.state_dict()) == [
        f"inner.{name}" for name in ("weight", "bias", "down.weight", "up.weight")
    ]


@pytest.mark.parametrize("case", (LAYERS | GROUPED).values(), ids=LAYERS | GROUPED)
def test_autocast(case):
    layer, shape = case()
    module, x = adapted(layer), torch.randn(shape)
    expected, weight = module(x), module.inner.weight
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        assert torch.equal(module.inner.weight, weight)
    assert y.dtype == torch.bfloat16
    close(y.float(), expected, 0.05)
    y.float().square().sum().backward()
    for parameter in lora_parameters(module):
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().max() > 0


def test_factors_of_a_half_precise_layer_are_float32():
    module = adapted(nn.Linear(8, 8).to(torch.bfloat16))
    assert {p.dtype for p in lora_parameters(module)} == {torch.float32}
    x = torch.randn(4, 8).to(torch.bfloat16)
    y = module(x)
    assert y.dtype == module.inner.weight.dtype == torch.bfloat16
    w = module.inner.layer.weight.float() + ALPHA / RANK * (
        module.inner.up.weight @ module.inner.down.weight
    )
    close(y.float(), F.linear(x.float(), w, module.inner.bias.float()), 0.05)


def test_a_new_adapter_has_the_mode_of_its_layer():
    module = Holder(nn.Sequential(nn.Linear(2, 2).eval(), nn.Linear(2, 2)))
    adapt(module, dropout=0.5)
    assert [a.dropout.training for a in adapters(module).values()] == [False, True]


# Merging -----------------------------------------------------------------------------------------


def test_merging_again_takes_up_the_factors():
    module, x = adapted(nn.Linear(4, 4)), torch.randn(3, 4)
    merge(module.eval())
    first = module(x)
    merge(module)
    assert torch.equal(module(x), first)
    moved(module)
    merge(module)
    merged = module(x)
    assert not torch.allclose(merged, first)
    unmerge(module)
    close(module(x), merged)


def test_merging_out_of_order_is_refused():
    module, x = adapted(nn.Linear(4, 4)), torch.randn(3, 4)
    with pytest.raises(RuntimeError, match=r"call merge\(module\) first"):
        unmerge(module)
    merge(module)
    with pytest.raises(RuntimeError, match=r"call unmerge\(module\) before training"):
        module.train()(x)
    with torch.no_grad():
        module(x)
    module.eval()(x)
    for call in (merge, unmerge, fold):
        with pytest.raises(ValueError, match=r"Linear holds no adapter: call adapt"):
            call(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="in its own place"):
        fold(module.inner)


def test_an_update_across_groups_is_not_merged():
    module = Holder(nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3, groups=2)))
    adapt(module, rank=2, across_groups=True)
    for call in (merge, fold):
        with pytest.raises(ValueError, match="mixes channels of different groups"):
            call(module)
    assert list(adapters(module)) == ["inner.0", "inner.1"]
    assert all(adapter.merged_weight is None for adapter in adapters(module).values())
    alone = Holder(nn.Conv2d(4, 4, 3))
    adapt(alone, across_groups=True)
    merge(alone)


# What is adapted ---------------------------------------------------------------------------------


def test_targets_match_whole_names_and_their_ends():
    for targets, expected in (
        ("fc", ["fc"]),
        ("conv1", ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1"]),
        (["fc", r"layer1\.0\.conv\d"], ["layer1.0.conv1", "layer1.0.conv2", "fc"]),
        ("0.conv2|fc", [*(f"layer{i}.0.conv2" for i in range(1, 5)), "fc"]),
        ("layer1.0.(conv1|act1)", ["layer1.0.conv1"]),
    ):
        model = timm.create_model("test_resnet")
        assert adapt(model, targets) == expected
        assert list(adapters(model)) == expected


def test_a_layer_of_two_names_is_one_adapter():
    layer = nn.Linear(3, 3)
    module = nn.ModuleDict({"a": layer, "b": layer, "c": nn.Sequential(layer)})
    assert adapt(module, "a") == ["a"]
    assert isinstance(module["a"], LoRALinear)
    assert module["a"] is module["b"] is module["c"][0]
    fold(module)
    assert module["a"] is module["b"] is module["c"][0] is layer


def network_of_kinds():
    return nn.ModuleDict(
        {
            "qkv": nn.Linear(2, 2),
            "words": nn.Embedding(3, 2),
            "norm": nn.BatchNorm2d(2),
            "drop": nn.Dropout(),
            "standard": StdConv2d(2, 2, 3),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
            "depthwise": nn.Conv2d(6, 6, 3, groups=6),
        }
    )


@pytest.mark.parametrize(
    ("targets", "options", "kind", "message"),
    [
        ("qvk", {}, ValueError, r"target 'qvk' matches no layer; near: qkv;"),
        (["qkv", "depth"], {}, ValueError, r"target 'depth' matches no layer; near: depthwise;"),
        ("drop", {}, ValueError, r"matches only drop, without weights; .* end in qkv, standard"),
        ([], {}, ValueError, "targets is empty"),
        ("(", {}, ValueError, r"target '\(' is no regular expression"),
        ("words", {}, TypeError, r"words is Embedding\(3, 2\), which cannot be adapted: nn.Linear"),
        ("norm", {}, TypeError, r"norm is BatchNorm2d.*nn.Conv2d"),
        ("standard", {}, TypeError, r"standard is StdConv2d"),
        ("normed", {}, TypeError, r"normed is ParametrizedLinear"),
        ("all", {}, TypeError, r"standard is StdConv2d"),
        ("qkv", {"rank": 0}, ValueError, "rank=0 must be at least 1"),
        ("qkv", {"alpha": 0}, ValueError, "alpha=0 must be above 0"),
        ("qkv", {"dropout": 1.0}, ValueError, r"dropout=1.0 must lie in \[0, 1\)"),
        (
            ["qkv", "depthwise"],
            {"across_groups": True},
            ValueError,
            "depthwise has 6 groups, which do not divide rank=16",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused_and_left_alone(targets, options, kind, message):
    module = network_of_kinds()
    kinds = [type(m) for m in module.modules()]
    with pytest.raises(kind, match=message):
        adapt(module, targets, **options)
    assert [type(m) for m in module.modules()] == kinds
    assert all(p.requires_grad for p in module.parameters())


def test_adapting_twice_and_adapting_nothing_are_refused():
    module = adapted(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="adapted already: inner"):
        adapt(module, "inner")
    fold(module)
    assert adapt(module) == ["inner"]
    with pytest.raises(ValueError, match="ReLU holds no layer to adapt"):
        adapt(nn.ReLU())
    with pytest.raises(TypeError, match="cannot be adapted"):
        LoRALinear(nn.Conv2d(2, 2, 1))
    with pytest.raises(ValueError, match="rank=0"):
        LoRAConv2d(nn.Conv2d(2, 2, 1), rank=0)
