import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsl_zoo.networks.base import SCALES, upsampled
from wsl_zoo.networks.blocks import PROJECTIONS, down_prelu, init_kaiming, up_prelu
from wsl_zoo.networks.dbpn import DBPN
from wsl_zoo.networks.drrn import DRRN
from wsl_zoo.networks.memnet import MemNet
from wsl_zoo.networks.mslapsrn import MSLapSRN
from wsl_zoo.networks.prosr import ProSR
from wsl_zoo.networks.srcnn import SRCNN
from wsl_zoo.networks.srfbn import SRFBN
from wsl_zoo.networks.vdsr import VDSR

# Parameters at X2, X4, X8 as measured on the benchmark's own code.
COUNTS = {
    SRCNN: (157_953, 157_953, 157_953),
    VDSR: (664_704, 664_704, 664_704),
    DRRN: (297_216, 297_216, 297_216),
    MemNet: (2_904_962, 2_904_962, 2_904_962),
    DBPN: (5_938_548, 10_411_380, 23_190_900),
    SRFBN: (2_134_748, 3_625_692, 7_885_532),
    ProSR: (9_464_641, 13_415_682, 15_520_323),
    MSLapSRN: (436_114, 871_588, 1_307_062),
}
# First convolutions 1 -> 160 of other scales, which the benchmark's ProSR has and never uses.
UNUSED = {ProSR: (0, 1_600, 3_200)}

SMALL = {
    "srcnn": partial(SRCNN, widths=[12, 6]),
    "srcnn-original": partial(SRCNN, variant="original", widths=[6, 4]),
    "vdsr": partial(VDSR, width=8, depth=4),
    "drrn": partial(DRRN, width=8, units=3),
    "drrn-paper": partial(DRRN, width=8, units=3, rectified=False),
    "memnet": partial(MemNet, width=4, blocks=2, recursions=2, residuals=2),
    "dbpn": partial(DBPN, features=8, width=4, depth=3, passes=2),
    "srfbn": partial(SRFBN, features=8, width=4, groups=3, steps=3),
    "prosr": partial(ProSR, width=8, growth=4, layers=2, units=[2, 1, 1]),
    "mslapsrn": partial(MSLapSRN, width=4, depth=2),
    "mslapsrn-original": partial(MSLapSRN, variant="original", width=4, depth=2, recursions=2),
}
PROGRESSIVE = [name for name in SMALL if name.startswith(("prosr", "mslapsrn"))]


def small(name, scale=2, **kwargs):
    torch.manual_seed(0)
    return SMALL[name](scale, **kwargs)


def image_of(batch=2, channels=1, size=(6, 5)):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def without_last(network):
    """The network with zeros in every convolution that makes an image."""
    for name, parameter in network.named_parameters():
        if "last" in name.split("."):
            nn.init.zeros_(parameter)
    return network


def count(network):
    return sum(p.numel() for p in network.parameters())


# Sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(3), ids=["X2", "X4", "X8"])
@pytest.mark.parametrize("network", COUNTS, ids=lambda network: network.__name__)
def test_parameters_are_the_benchmarks(network, position):
    with torch.device("meta"):
        built = network(SCALES[position])
    unused = UNUSED.get(network, (0, 0, 0))[position]
    assert count(built) + unused == COUNTS[network][position]
    assert all(p.requires_grad for p in built.parameters())


def test_parameters_of_published_forms():
    with torch.device("meta"):
        assert count(SRCNN(2, variant="original")) == 57_281
        assert count(MemNet(2, residuals=1)) == 685_442
        assert {count(MSLapSRN(s, variant="original")) for s in SCALES} == {251_474}
        assert {count(DRRN(2, units=u)) for u in (1, 9, 40)} == {297_216}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", SMALL)
def test_shapes(name, scale):
    outputs = small(name, scale).stages(image_of())
    per_level = [(2, 1, 6 * 2**i, 5 * 2**i) for i in range(1, scale.bit_length())]
    final = (2, 1, 6 * scale, 5 * scale)
    expected = per_level if name in PROGRESSIVE else [final] * (3 if name == "srfbn" else 1)
    assert [tuple(output.shape) for output in outputs] == expected


@pytest.mark.parametrize("name", SMALL)
def test_several_channels(name):
    assert small(name, in_chans=3)(image_of(channels=3)).shape == (2, 3, 12, 10)


@pytest.mark.parametrize(("scale", "triple"), PROJECTIONS.items())
def test_projections_invert_sizes(scale, triple):
    kernel, stride, padding = triple
    assert all((n - 1) * stride - 2 * padding + kernel == n * scale for n in range(1, 50))
    x = torch.rand(1, 2, 3, 7)
    high = up_prelu(2, scale)(x)
    assert high.shape == (1, 2, 3 * scale, 7 * scale)
    assert down_prelu(2, scale)(high).shape == x.shape


# What all of them keep ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name):
    network, image = small(name, scale=4), image_of()
    sum((stage - 0.5).square().mean() for stage in network.stages(image)).backward()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_is_its_images_and_nothing_is_remembered(name):
    network, image = small(name).eval(), image_of(batch=3)
    before = set(vars(network)), copy.deepcopy(network.state_dict())
    whole = network(image)
    single = torch.cat([network(one) for one in image.split(1)])
    torch.testing.assert_close(single, whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(network(image), whole)
    assert set(vars(network)) == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in network.state_dict().items())
    assert not any(isinstance(v, torch.Tensor) for v in vars(network).values())


@pytest.mark.parametrize("name", SMALL)
def test_training_mode_differs_with_batch_norm_alone(name):
    network, image = small(name), image_of()
    trained = network.train()(image)
    assert torch.equal(trained, network.eval()(image)) == (name != "memnet")


@pytest.mark.parametrize("name", SMALL)
def test_the_input_is_left_alone(name):
    image = image_of() - 0.5
    given = image.clone()
    small(name)(image)
    assert torch.equal(image, given)


@pytest.mark.parametrize("name", SMALL)
def test_seed_decides(name):
    image = image_of()
    assert torch.equal(small(name)(image), small(name)(image))


@pytest.mark.parametrize("name", SMALL)
def test_half_precision(name):
    network, image = small(name), image_of()
    expected = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(image)
        output.float().square().mean().backward()
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.1)
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_scale_and_channels_are_checked(name):
    with pytest.raises(ValueError, match=r"scale=3: .* 2, 4, 8"):
        small(name, scale=3)
    with pytest.raises(ValueError, match="in_chans=0"):
        small(name, in_chans=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(SRCNN, variant="915"), "variant='915'"),
        (partial(SRCNN, widths=[64]), "two maps"),
        (partial(VDSR, depth=1), "depth=1"),
        (partial(DRRN, units=0), "units=0"),
        (partial(MemNet, recursions=0), "recursions=0"),
        (partial(DBPN, depth=1), "depth=1"),
        (partial(DBPN, depth=2, passes=0), "passes=0"),
        (partial(SRFBN, steps=0), "steps=0"),
        (partial(ProSR, units=[1]), "2 levels for X4"),
        (partial(MSLapSRN, variant="lapsrn"), "variant='lapsrn'"),
        (partial(MSLapSRN, depth=0), "depth=0"),
    ],
)
def test_other_arguments_are_checked(build, message):
    with pytest.raises(ValueError, match=message):
        build(4)


# What each of them is -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["vdsr", "drrn", "drrn-paper", "memnet", "prosr"])
def test_without_the_last_convolution_it_is_bicubic(name, scale):
    image = image_of()
    network = without_last(small(name, scale))
    assert torch.equal(network(image), upsampled(image, scale))
    for stage in network.stages(image):
        assert torch.equal(stage, upsampled(image, stage.shape[-1] // image.shape[-1]))


@pytest.mark.parametrize("scale", SCALES)
def test_srfbn_without_the_last_convolution_is_bilinear_at_every_step(scale):
    image = image_of()
    expected = F.interpolate(image, scale_factor=scale, mode="bilinear")
    stages = without_last(small("srfbn", scale)).stages(image)
    assert all(torch.equal(stage, expected) for stage in stages)


@pytest.mark.parametrize("scale", SCALES)
def test_original_mslapsrn_starts_from_bilinear(scale):
    image = image_of(size=(12, 12))
    output = without_last(small("mslapsrn-original", scale))(image)
    expected = F.interpolate(image, scale_factor=2, mode="bilinear")
    for _ in range(scale.bit_length() - 2):
        expected = F.interpolate(expected, scale_factor=2, mode="bilinear")
    border = scale  # beyond it, a transposed convolution sees zeros
    inner = (..., slice(border, -border), slice(border, -border))
    torch.testing.assert_close(output[inner], expected[inner])


@pytest.mark.parametrize("name", ["srcnn", "dbpn"])
def test_without_the_last_convolution_and_a_skip_nothing_is_left(name):
    assert not without_last(small(name))(image_of()).any()


def test_first_steps_do_not_depend_on_later_ones():
    long, short = small("srfbn"), SRFBN(2, features=8, width=4, groups=3, steps=1)
    short.load_state_dict(long.state_dict())
    first, second, third = long.stages(image_of())
    assert torch.equal(short(image_of()), first)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)


@pytest.mark.parametrize("name", PROGRESSIVE)
def test_a_pyramid_holds_the_smaller_ones(name):
    tall, low = small(name, scale=8), small(name, scale=2)
    weights = tall.state_dict()
    low.load_state_dict({key: weights[key] for key in low.state_dict()})
    assert torch.equal(low(image_of()), tall.stages(image_of())[0])


@pytest.mark.parametrize("name", ["drrn", "drrn-paper"])
def test_identity_of_drrn_is_what_a_relu_in_place_leaves(name):
    network, image = small(name), image_of()
    z = upsampled(image, 2)
    with torch.no_grad():
        start = network.first(z)
        u = start
        for _ in range(3):
            inner = network.conv1(F.relu(u, inplace=network.rectified))
            u = network.conv2(F.relu(inner)) + start
        expected = z + network.last(F.relu(u))
    torch.testing.assert_close(network(image), expected)
    assert (network.first(z) < 0).any()


def test_drrn_unit_is_one_for_all_runs():
    network = small("drrn")
    nn.init.zeros_(network.conv2.weight)
    more = SMALL["drrn"](2, units=7)
    more.load_state_dict(network.state_dict())
    assert torch.equal(network(image_of()), more(image_of()))


def test_memory_gate_sees_short_and_long_term():
    network, image = small("memnet").eval(), image_of()
    m0 = network.first(upsampled(image, 2))
    first, second = network.blocks

    def unit(block, x, recursion):
        for residual in block.unit:
            x = residual(x, recursion)
        return x

    a = unit(first, m0, 0)
    m1 = first.gate(torch.cat([a, unit(first, a, 1), m0], dim=1))
    b = unit(second, m1, 0)
    m2 = second.gate(torch.cat([b, unit(second, b, 1), m0, m1], dim=1))
    torch.testing.assert_close(network(image), upsampled(image, 2) + network.last(m2))


def test_statistics_of_each_recursion_make_evaluation_what_training_was():
    image = image_of(batch=4, size=(12, 10))
    differences = {}
    for statistics in ("per_recursion", "shared"):
        network = small("memnet", statistics=statistics)
        with torch.no_grad():
            for _ in range(200):  # 0.9^200: nothing of the start is left
                trained = network.train()(image)
            differences[statistics] = (network.eval()(image) - trained).abs().max().item()
    assert differences["per_recursion"] < 0.02  # variances are unbiased in one, not in the other
    assert differences["shared"] > 0.2
    shared, own = (small("memnet", statistics=s).blocks[0].unit[0] for s in list(differences)[::-1])
    assert shared.norms[0].running_var.shape == (1, 4)
    assert own.norms[0].running_var.shape == (2, 4)
    with pytest.raises(ValueError, match="statistics='none' must be"):
        MemNet(2, statistics="none")


def test_dbpn_projects_and_corrects():
    network, image = small("dbpn"), image_of()
    low = network.first(image)
    unit = network.ups[0][1]
    high = unit.there(low)
    torch.testing.assert_close(network.ups[0](low), high + unit.again(unit.back(high) - low))
    unit.again.apply(lambda part: [nn.init.zeros_(p) for p in part.parameters()])
    assert torch.equal(network.ups[0](low), high)


def test_kaiming_is_normal_with_zero_biases():
    torch.manual_seed(0)
    network = SRCNN(2)
    wide, middle, last = network.body[0], network.body[2], network.last
    assert wide.weight.std().item() == pytest.approx((2 / (1024 * 25)) ** 0.5, rel=0.02)
    assert middle.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.02)
    assert last.weight.std().item() == pytest.approx(1e-3, rel=0.2)
    layer = nn.Conv2d(64, 16, 3)
    init_kaiming(layer)
    assert layer.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert not any(p.bias.any() for p in (wide, middle, last, layer))


# Learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [partial(SRCNN, 2, widths=[16, 8]), partial(VDSR, 2, width=8, depth=4)],
    ids=["SRCNN", "VDSR"],
)
def test_one_patch_is_learnt_beyond_bicubic(network):
    torch.manual_seed(0)
    target = 0.2 + 0.6 * F.interpolate((torch.rand(1, 1, 6, 6) > 0.5).float(), scale_factor=4)
    image = F.avg_pool2d(target, 2)
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def error():
        optimizer.zero_grad()
        loss = F.mse_loss(model(image), target)
        loss.backward()
        return loss

    optimizer.step(error)
    assert error() < 0.5 * F.mse_loss(upsampled(image, 2), target)
