import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.cases.networks import TINY
from wsl_zoo.networks import edsr_liif, nlsn
from wsl_zoo.networks.act import ACT, to_map, to_tokens
from wsl_zoo.networks.attention_blocks import NonLocalEDSR, extended, pieces, to_multiple
from wsl_zoo.networks.dfcan import DFCAN, FourierAttentionBlock, amplitude
from wsl_zoo.networks.edsr_liif import EDSRLIIF, LocalImplicitImage, corner_weights, nearest
from wsl_zoo.networks.enlcn import (
    ENLCN,
    EfficientAttention,
    attend_linear,
    orthogonal_gaussian,
    random_features,
    unit,
)
from wsl_zoo.networks.grl import GRL
from wsl_zoo.networks.nlsn import NLSN, SparseAttention, attend_sorted
from wsl_zoo.networks.omni_sr import OmniSR
from wsl_zoo.networks.swinir import SwinIR

# Trainable parameters at X2, X4, X8, measured on the benchmark's code.
COUNTS = {
    EDSRLIIF: (1_565_633, 1_565_633, 1_565_633),
    NLSN: (41_786_945, 44_147_265, 46_507_585),
    ENLCN: (41_213_825, 43_574_145, 45_934_465),
    DFCAN: (1_930_753, 2_373_889, 4_146_433),
    ACT: (46_027_393, 46_175_105, 46_322_817),
    SwinIR: (7_768_624, 7_788_076, 7_865_884),
    GRL: (20_049_193, 20_196_905, 20_344_617),
    OmniSR: (2_827_716, 2_834_640, 2_862_336),
}
LIBRARY = (SwinIR, GRL, OmniSR)

networks = pytest.mark.parametrize("network_class", COUNTS, ids=lambda c: c.__name__)
library = pytest.mark.parametrize("network_class", LIBRARY, ids=lambda c: c.__name__)


def tiny(network_class, scale=2, **arguments):
    if network_class in LIBRARY:
        pytest.importorskip("spandrel")
    torch.manual_seed(0)
    return network_class(scale, **{**TINY[network_class.__name__], **arguments})


def zero(module):
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def images(batch=2, height=9, width=11, channels=1):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, channels, height, width, generator=generator)


# All networks -------------------------------------------------------------------------------------


@networks
def test_parameters_are_the_benchmarks(network_class, monkeypatch):
    if network_class in LIBRARY:  # these read numbers from tensors when they are built
        pytest.importorskip("spandrel")
        device = "cpu"
        for slow in ("uniform_", "erfinv_"):  # the initialisation, which no count needs
            monkeypatch.setattr(torch.Tensor, slow, lambda x, *_, **__: x)
    else:
        device = "meta"
    for scale, count in zip((2, 4, 8), COUNTS[network_class], strict=True):
        with torch.device(device):
            parameters = list(network_class(scale).parameters())
        assert sum(p.numel() for p in parameters) == count
        assert all(p.requires_grad for p in parameters)


@networks
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_size_is_multiplied(network_class, scale):
    network = tiny(network_class, scale).eval()
    with torch.no_grad():
        for height, width in ((9, 12), (7, 5)):
            image = images(1, height, width)
            (result,) = network.stages(image)
            assert result.shape == (1, 1, scale * height, scale * width)
            assert result.isfinite().all()
            assert torch.equal(network(image), result)


@networks
def test_several_channels_come_back(network_class):
    with torch.no_grad():
        assert tiny(network_class, in_chans=2)(images(channels=2)).shape == (2, 2, 18, 22)


@networks
def test_evaluation_repeats_and_does_not_depend_on_the_batch(network_class):
    network, batch = tiny(network_class).eval(), images(3)
    with torch.no_grad():
        result = network(batch)
        torch.manual_seed(5)
        assert torch.equal(network(batch), result)
        torch.testing.assert_close(network(batch[1:2]), result[1:2], atol=1e-5, rtol=0)
    assert (result[0] - result[1]).abs().max() > 1e-3  # the network does look at its image


@networks
def test_every_parameter_learns(network_class):
    network = tiny(network_class).eval()  # no skipped paths
    network(images(4, 16, 13)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.ne(0).any(), name


@networks
def test_mixed_precision_stays_close(network_class):
    network, image = tiny(network_class).eval(), images()
    with torch.no_grad():
        exact = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(image)
    assert mixed.isfinite().all()
    assert (mixed.float() - exact).abs().max() < 0.1


@networks
def test_scales_are_two_four_eight(network_class):
    with pytest.raises(ValueError, match=r"scale=3: \w+ is for the scales 2, 4, 8"):
        network_class(3)


@pytest.mark.parametrize("network_class", [EDSRLIIF, ENLCN, DFCAN, ACT, OmniSR])
def test_training_computes_what_evaluation_does(network_class):
    network, image = tiny(network_class), images()
    with torch.no_grad():
        torch.testing.assert_close(network.train()(image), network.eval()(image))


# Shared parts -------------------------------------------------------------------------------------


def test_maps_are_extended_by_mirror_or_last_line():
    line = torch.arange(3.0).view(1, 1, 1, 3)
    mirrored = extended(line, 2, 10, mirror=True)
    assert mirrored.tolist() == [[[[0, 1, 2, 2, 1, 0, 0, 1, 2, 2]] * 2]]
    assert extended(line, 1, 5, mirror=False).tolist() == [[[[0, 1, 2, 2, 2]]]]
    assert extended(line, 1, 3, mirror=True) is line


def test_multiples_and_pieces():
    assert [to_multiple(n, 4, least=5) for n in (1, 8, 9)] == [8, 8, 12]
    assert pieces(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert pieces(2, 0) == [(0, 1), (1, 2)]


def test_attention_layers_stand_before_the_blocks_and_behind_each_run():
    network = tiny(NLSN, blocks=4, every=2)
    kinds = [type(part).__name__ for part in network.body]
    run = ["ResidualBlock"] * 2 + ["SparseAttention"]
    assert kinds == ["SparseAttention", *run, *run, "Conv2d"]
    with pytest.raises(ValueError, match="blocks=3 must be a positive multiple of every=2"):
        NonLocalEDSR(2, 1, 4, 3, 2, 1.0, lambda i: nn.Identity())


# EDSR-LIIF ----------------------------------------------------------------------------------------


def as_written(decoder, features, scale):
    """LIIF as its paper has it: unfolded features, looked up by `grid_sample`, corner by corner."""
    batch, width, h, w = features.shape

    def centres(height, width):
        lines = [(2 * torch.arange(n) + 1) / n - 1 for n in (height, width)]
        return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).expand(batch, -1, -1, 2)

    unfolded = F.unfold(features, 3, padding=1).view(batch, 9 * width, h, w)
    query, centre = centres(scale * h, scale * w), centres(h, w).permute(0, 3, 1, 2)
    sides = torch.tensor([h, w])
    answers, areas = [], []
    for vx in (-1, 1):
        for vy in (-1, 1):
            near = query + torch.tensor([vx / h, vy / w]) + 1e-6
            grid = near.clamp(-1 + 1e-6, 1 - 1e-6).flip(-1)
            feature, at = (
                F.grid_sample(x, grid, mode="nearest", align_corners=False).permute(0, 2, 3, 1)
                for x in (unfolded, centre)
            )
            offset = (query - at) * sides
            cell = torch.full_like(offset, 2 / scale)
            answers.append(decoder.layers(decoder.enter(torch.cat([feature, offset, cell], -1))))
            areas.append(offset.prod(dim=-1, keepdim=True).abs() + 1e-9)
    total = sum(a * p for a, p in zip(areas[::-1], answers, strict=True)) / sum(areas)
    return total.permute(0, 3, 1, 2)


@pytest.mark.parametrize("scale", [2, 3, 8])
def test_local_implicit_image_is_the_papers(scale):
    torch.manual_seed(0)
    decoder, features = LocalImplicitImage(3, 2, (8, 8)), torch.randn(2, 3, 4, 5)
    with torch.no_grad():
        expected = as_written(decoder, features, scale)
        torch.testing.assert_close(decoder(features, scale), expected, atol=1e-5, rtol=1e-5)


def test_queries_may_be_answered_in_bands(monkeypatch):
    network, image = tiny(EDSRLIIF), images()
    with torch.no_grad():
        whole = network(image)
        monkeypatch.setattr(edsr_liif, "QUERIES", 100)
        torch.testing.assert_close(network(image), whole)


def test_a_constant_mlp_gives_a_constant_image():
    network = tiny(EDSRLIIF, 4)
    nn.init.zeros_(network.decoder.layers[-1].weight)
    nn.init.constant_(network.decoder.layers[-1].bias, 0.3)
    torch.testing.assert_close(network(images()), torch.full((2, 1, 36, 44), 0.3))


def test_at_scale_one_a_pixel_is_the_mlp_of_its_own_feature():
    torch.manual_seed(0)
    decoder, features = LocalImplicitImage(3, 1, (8, 8)), torch.randn(1, 3, 4, 5)
    own = F.unfold(features, 3, padding=1).transpose(1, 2)
    extra = torch.tensor([0.0, 0.0, 2.0, 2.0]).expand(1, 20, 4)
    expected = decoder.layers(decoder.enter(torch.cat([own, extra], dim=2)))
    expected = expected.transpose(1, 2).view(1, 1, 4, 5)
    # In the last row and column the corner behind is the pixel itself too: no area is left there.
    torch.testing.assert_close(decoder(features, 1)[..., :-1, :-1], expected[..., :-1, :-1])


def test_weights_come_from_the_opposite_corner():
    (_, up), (_, down) = nearest(3, 2, torch.device("cpu"))
    assert up.tolist() == [-0.5, 0.5, 1.5, 0.5, 1.5, 0.5]  # row 0 has nothing before it: itself
    assert down.tolist() == [-0.5, -1.5, -0.5, -1.5, -0.5, 0.5]
    weights = corner_weights([up, down], [up, down])
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(6, 6))
    # Pixel (1, 2): 1/4 of the way down from row 0, 3/4 of the way right from column 0.
    bilinear = torch.tensor([0.75 * 0.25, 0.75 * 0.75, 0.25 * 0.25, 0.25 * 0.75])
    torch.testing.assert_close(weights[:, 1, 2], bilinear)


def test_the_mlp_needs_a_hidden_layer():
    with pytest.raises(ValueError, match="hidden"):
        LocalImplicitImage(3, 1, ())


# NLSN ---------------------------------------------------------------------------------------------


def dense(queries, keys, values):
    return (queries @ keys.transpose(-1, -2)).softmax(dim=-1) @ values


@pytest.mark.parametrize("height", [12, 3])
def test_one_chunk_is_dense_attention(height):
    torch.manual_seed(0)
    layer, x = SparseAttention(8), torch.randn(2, 8, height, 12)  # 144 pixels, and fewer
    q, v = (conv(x).flatten(2).transpose(1, 2) for conv in (layer.match, layer.value))
    expected = x + 0.1 * dense(q, F.normalize(q, dim=-1), v).transpose(1, 2).view_as(x)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), expected)


def by_loops(queries, keys, values, order):
    """Round by round, chunk by chunk, and one softmax over what the rounds show a pixel."""
    batch, rounds, count, _ = order.shape
    scores = [[[] for _ in range(queries.shape[1])] for _ in range(batch)]
    seen = [[[] for _ in range(queries.shape[1])] for _ in range(batch)]
    for b in range(batch):
        for r in range(rounds):
            placed = set()
            for c in range(count):
                others = torch.cat([order[b, r, (c + step) % count] for step in (-1, 0, 1)])
                for pixel in order[b, r, c].tolist():
                    if pixel not in placed:  # filled-up ones are only seen
                        placed.add(pixel)
                        scores[b][pixel].append(keys[b, others] @ queries[b, pixel])
                        seen[b][pixel].append(values[b, others])
    return torch.stack([
        torch.stack([
            torch.cat(s).softmax(dim=0) @ torch.cat(v)
            for s, v in zip(scores[b], seen[b], strict=True)
        ])
        for b in range(batch)
    ])  # fmt: skip


@pytest.mark.parametrize("length", [15, 12, 8])
def test_chunks_see_their_neighbours_and_rounds_share_one_softmax(length, monkeypatch):
    torch.manual_seed(0)
    layer = SparseAttention(8, chunk=4, rounds=3).double()
    q, k, v = (torch.randn(2, length, d, dtype=torch.float64) for d in (2, 2, 8))
    order = layer.order(q)
    assert order.shape == (2, 3, -(-length // 4), 4)
    expected = by_loops(q, k, v, order)
    torch.testing.assert_close(attend_sorted(q, k, v, order), expected)
    monkeypatch.setattr(nlsn, "CHUNKS", 1)
    torch.testing.assert_close(attend_sorted(q, k, v, order), expected)


def test_pixels_are_sorted_by_code():
    layer = SparseAttention(8, chunk=4, rounds=2).eval()
    towards = torch.tensor([[1.0, 2.0], [-2.0, 1.0], [-1.0, -2.0], [2.0, -1.0]])
    pixels = (towards * torch.arange(1.0, 5.0)[:, None, None]).view(1, 16, 2)
    for row in layer.order(pixels)[0].flatten(1):
        assert sorted(row.tolist()) == list(range(16))
        place = row.argsort().view(4, 4)  # of each length and direction
        for one, opposite in ((0, 2), (1, 3)):  # one direction has one code, -u another than u
            gap = place[:, one] - place[:, opposite]
            assert gap.sign().unique().numel() == 1
            assert place[:, one].max() - place[:, one].min() < 8


def test_rotations_are_drawn_anew_in_training_only():
    layer, queries = SparseAttention(16, chunk=4), torch.randn(1, 40, 4)
    assert not torch.equal(layer.order(queries), layer.order(queries))
    layer.eval()
    assert torch.equal(layer.order(queries), layer.order(queries))
    other = SparseAttention(16, chunk=4, seed=1).eval()
    assert not torch.equal(layer.order(queries), other.order(queries))


def test_chunks_and_rounds_are_positive():
    with pytest.raises(ValueError, match="rounds=0"):
        SparseAttention(8, rounds=0)


# ENLCN --------------------------------------------------------------------------------------------


def test_a_constant_value_is_returned():
    layer, x = EfficientAttention(8), torch.randn(2, 8, 5, 6)
    nn.init.zeros_(layer.value.weight)
    torch.testing.assert_close(layer(x), x + 0.1 * layer.value.bias[:, None, None])


def test_linear_attention_is_the_same_as_with_its_matrix():
    torch.manual_seed(0)
    q, k, v = torch.rand(2, 7, 5), torch.rand(2, 7, 5), torch.randn(2, 7, 3)
    matrix = q @ k.transpose(1, 2)
    torch.testing.assert_close(attend_linear(q, k, v), matrix @ v / matrix.sum(dim=2, keepdim=True))


@pytest.mark.parametrize("cosine", [1.0, 0.0, -1.0])
def test_random_features_estimate_the_kernel_without_bias(cosine):
    torch.manual_seed(0)
    projection = orthogonal_gaussian(32_000, 8).double()
    q, other = torch.eye(8, dtype=torch.float64)[:2] * 0.5**0.5
    k = cosine * q + (1 - cosine**2) ** 0.5 * other
    estimate = random_features(q, projection) @ random_features(k, projection)
    torch.testing.assert_close(estimate, (q @ k).exp(), rtol=0.05, atol=2e-4)


def test_directions_are_orthogonal_and_lengths_those_of_gaussian_vectors():
    torch.manual_seed(0)
    w = orthogonal_gaussian(40, 16)
    assert w.shape == (40, 16)
    for block in w.split(16):
        gram = block @ block.T
        torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-4, rtol=0)
    assert abs(orthogonal_gaussian(1600, 16).square().sum(dim=1).mean() - 16) < 0.5


def test_more_features_come_closer_to_dense_attention():
    torch.manual_seed(0)
    x = 3 * torch.randn(1, 8, 4, 5)
    layer = EfficientAttention(8, features=20_000, sharpness=1.0, weight=1.0)
    q, k, v = (conv(x).flatten(2).transpose(1, 2) for conv in (layer.query, layer.key, layer.value))
    exact, mean = dense(unit(q), unit(k), v), v.mean(dim=1, keepdim=True)
    error = (layer(x) - x).flatten(2).transpose(1, 2) - exact
    assert error.abs().max() < 0.1 * (exact - mean).abs().max()


def test_projection_travels_in_the_checkpoint():
    first, second = EfficientAttention(8), EfficientAttention(8)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.projection, first.projection)


# DFCAN --------------------------------------------------------------------------------------------


def test_dfcan_ends_in_a_sigmoid():
    network, image = tiny(DFCAN), images()
    result = network(image)
    assert result.min() > 0
    assert result.max() < 1
    zero(network.last)
    assert (network(image) == 0.5).all()


def test_spectrum_has_its_mean_in_the_middle():
    flat = torch.full((1, 1, 4, 6), 0.5, dtype=torch.float64)
    spectrum = amplitude(flat)[0, 0]
    assert spectrum.argmax() == 2 * 6 + 3
    torch.testing.assert_close(spectrum[2, 3], torch.tensor(12.0**0.8, dtype=torch.float64))


def test_spectrum_of_a_large_image_is_finite_in_half_precision():
    assert amplitude(torch.ones(1, 1, 512, 512, dtype=torch.float16)).isfinite().all()
    block, seen = FourierAttentionBlock(4), []
    block.spectral.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert block(torch.rand(1, 4, 8, 8)).isfinite().all()
    assert seen == [torch.float32]


# ACT ----------------------------------------------------------------------------------------------


def test_tokens_go_back_to_where_they_came_from():
    x = torch.randn(2, 4, 6, 9)
    assert to_tokens(x, 3).shape == (2, 6, 36)
    torch.testing.assert_close(to_map(to_tokens(x, 3), 3, (6, 9)), x)
    covered = to_map(to_tokens(torch.ones(1, 1, 9, 9), 6), 6, (9, 9))  # overlaps are summed
    assert covered[0, 0, ::3, ::3].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


def test_padding_changes_no_image_of_whole_tokens():
    image = images(1, 9, 12)
    pad, drop = tiny(ACT), tiny(ACT, remainder="drop")
    assert torch.equal(pad(image), drop(image))
    assert not torch.equal(pad(images(1, 9, 11)), drop(images(1, 9, 11)))


@pytest.mark.parametrize(("remainder", "seen"), [("pad", True), ("drop", False)])
def test_the_last_columns_reach_the_tokens_or_not(remainder, seen):
    network, tokens = tiny(ACT, remainder=remainder), []
    network.first = nn.Conv2d(1, 8, 1)  # so that a column reaches itself only
    network.encode.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0]))
    image = images(1, 9, 11)
    changed = image.clone()
    changed[..., 9:] = 0
    network(image), network(changed)
    assert torch.equal(*tokens) != seen


def test_small_images_are_padded_or_refused():
    assert tiny(ACT)(images(1, 1, 2)).shape == (1, 1, 2, 4)
    with pytest.raises(ValueError, match="5x9 is smaller than the 6x6"):
        tiny(ACT, remainder="drop")(images(1, 5, 9))


def test_the_closing_convolution_is_what_the_notes_do_not_place():
    with torch.device("meta"):
        count = sum(p.numel() for p in ACT(2, closing=False).parameters())
    assert count == COUNTS[ACT][0] - (64 * 64 * 9 + 64)


def test_act_says_what_does_not_divide():
    for wrong in ({"width": 7}, {"heads": 3}, {"width": 10, "heads": 4}, {"depth": 0}):
        with pytest.raises(ValueError, match="must be even, 9 width a multiple of heads"):
            tiny(ACT, **wrong)
    with pytest.raises(ValueError, match="remainder='crop'"):
        tiny(ACT, remainder="crop")


# The library's ------------------------------------------------------------------------------------


@library
def test_a_zero_tail_gives_zeros(network_class):
    network = tiny(network_class, 4)
    tail = {SwinIR: "upsample", GRL: "conv_last", OmniSR: "up"}[network_class]
    zero(getattr(network.network, tail))
    assert (network(images()) == 0).all()


def test_swinir_sees_a_mirrored_window_more_in_evaluation():
    network, image = tiny(SwinIR).eval(), images(1, 8, 6)
    padded = torch.cat([image, image.flip(2)[:, :, :4]], dim=2)
    padded = torch.cat([padded, padded.flip(3)[..., :2]], dim=3)
    with torch.no_grad():
        assert torch.equal(network(image), network.network(padded)[:, :, :16, :12])
        network.train(), network.network.eval()
        plain = torch.cat([image, image.flip(3)[..., :2]], dim=3)
        assert torch.equal(network(image), network.network(plain)[..., :12])


def test_swinir_may_have_the_other_tail():
    network = tiny(SwinIR, 4, upsampler="pixelshuffle").eval()
    assert network(images()).shape == (2, 1, 36, 44)


def test_omni_sr_pads_by_zeros():
    network, image = tiny(OmniSR).eval(), images(1, 17, 18)
    with torch.no_grad():
        torch.testing.assert_close(network(image), network.network(image))  # pads by itself
        padded = F.pad(image[:, :, :3], (0, 2, 0, 13))
        assert torch.equal(network(image[:, :, :3]), network.network(padded)[:, :, :6, :36])


@library
def test_the_missing_library_is_named(network_class, monkeypatch):
    name = network_class.__name__
    monkeypatch.setitem(sys.modules, f"spandrel.architectures.{name}", None)
    with pytest.raises(ImportError, match=rf"{name} needs spandrel: pip install 'wsl-zoo\[sr\]'"):
        network_class(2)
