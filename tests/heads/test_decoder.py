"""The decoder against F-CAM's table, a plain transcription, and every kind of encoder."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.heads.perturbation import perturbed
from wsl_zoo.encoders import Encoder
from wsl_zoo.heads import UNetDecoder
from wsl_zoo.heads.decoder import DecoderBlock

# Encoder, parameters, (channels, size) of the result of every block at 224: F-CAM's table.
PUBLISHED = {
    "resnet50": (
        {"name": "resnet50", "stride": 8},
        9_013_218,
        [(256, 28), (128, 28), (64, 56), (32, 112), (16, 224)],
    ),
    "inception_v3": (
        {"name": "inception_v3", "form": "wsol", "stride": 8},
        5_704_674,
        [(256, 28), (128, 28), (64, 56), (32, 112), (16, 224)],
    ),
    "vgg16": (
        {"name": "vgg16", "form": "wsol", "stride": 8},
        23_120_770,
        [(256, 56), (128, 112), (64, 224)],
    ),
}
# Channels that come from the level: what each block's first convolution reads beside its map.
SKIPS = {
    "resnet50": [1024, 512, 256, 64, 0],
    "inception_v3": [768, 288, 80, 64, 0],
    "vgg16": [256, 128, 0],
}


def levels_of(channels, strides, size=64, batch=2, **options):
    return [
        torch.randn(batch, c, size // s, size // s, **options)
        for c, s in zip(channels, strides, strict=True)
    ]


def traced(decoder, levels, size):
    """Logits, and the shapes of the results of centre, blocks and head."""
    shapes = []
    modules = [decoder.center, *decoder.blocks, decoder.head]
    hooks = [m.register_forward_hook(lambda _m, _i, y: shapes.append(y.shape[1:])) for m in modules]
    logits = decoder(levels, size)
    for hook in hooks:
        hook.remove()
    return logits, shapes


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_published_forms(name):
    arguments, parameters, blocks = PUBLISHED[name]
    encoder = Encoder(**arguments).eval()
    decoder = UNetDecoder(encoder.channels, encoder.strides).eval()
    assert sum(p.numel() for p in decoder.parameters() if p.requires_grad) == parameters
    _, levels = encoder(torch.randn(1, 3, 224, 224))
    logits, shapes = traced(decoder, levels, (224, 224))
    deepest = encoder.channels[-1]
    expected = [(deepest, 28), *blocks, (2, 224)]
    assert [tuple(s) for s in shapes] == [(c, size, size) for c, size in expected]
    assert logits.shape == (1, 2, 224, 224)
    inputs = [deepest] + [c for c, _ in blocks[:-1]]
    read = [block.convs[0].in_channels for block in decoder.blocks]
    assert read == [a + b for a, b in zip(inputs, SKIPS[name], strict=True)]
    centre = [m for m in decoder.center.modules() if isinstance(m, nn.Conv2d)]
    assert [m.weight.shape for m in centre] == [(1024, 1024, 3, 3)] * 2 * (name == "vgg16")


def test_initial_values():
    decoder = UNetDecoder([24, 32, 48], [2, 4, 8], center=True)
    norms = 0
    for module in decoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
            norms += 1
        elif isinstance(module, nn.Conv2d) and module is not decoder.head:
            assert module.bias is None
            bound = math.sqrt(6 / (9 * module.in_channels))
            assert 0.99 * bound < module.weight.abs().max() <= bound
    assert norms == 2 * 4  # the centre and three blocks
    bound = math.sqrt(6 / (9 * (64 + 2)))
    assert 0.95 * bound < decoder.head.weight.abs().max() <= bound
    assert (decoder.head.bias == 0).all()


def cbr(x, conv, norm):
    """ReLU(BN(conv3x3(x))) with the running statistics."""
    y = F.conv2d(x, conv.weight, padding=1)
    scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)
    return (scale[:, None, None] * (y - norm.running_mean[:, None, None])
            + norm.bias[:, None, None]).clamp(min=0)  # fmt: skip


def plain_block(x, skip, convs):
    """One block as published: double, resize to the level, concatenate, twice CBR."""
    x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    if skip is not None:
        if x.shape[2:] != skip.shape[2:]:
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=True)
        x = torch.cat([x, skip], dim=1)
    return cbr(cbr(x, convs[0], convs[1]), convs[3], convs[4])


@pytest.mark.parametrize(
    "size", [(14, 10), (7, 5), (13, 9), (7, 10), (15, 11), (3, 2), (1, 1), None], ids=str
)
@torch.no_grad()
def test_block_is_the_plain_one(size):
    """At sizes twice the map's, equal to it (up and back is the identity), odd and others."""
    block = perturbed(DecoderBlock(6, 4 * (size is not None), 5)).double().eval()
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    skip = None if size is None else torch.randn(2, 4, *size, dtype=torch.float64)
    ours, plain = block(x, skip), plain_block(x, skip, block.convs)
    assert ours.shape == (2, 5, *(size or (14, 10)))
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("h", [1, 2, 3, 14, 28, 57])
def test_doubling_and_resizing_back_is_the_identity(h):
    """What lets a block leave both out where its level is as large as its map."""
    x = torch.randn(1, 3, h, h)
    there = F.interpolate(x, scale_factor=2.0, mode="nearest")
    back = F.interpolate(there, size=(h, h), mode="bilinear", align_corners=True)
    torch.testing.assert_close(back, x)


@pytest.mark.parametrize("size", [(64, 64), (61, 67)])
@torch.no_grad()
def test_decoder_is_the_plain_one(size):
    channels, strides = [5, 6, 7, 8], [1, 2, 4, 4]  # a level that is dropped, one twice at a stride
    decoder = perturbed(UNetDecoder(channels, strides, decoder_channels=[9, 10, 11])).double()
    nn.init.normal_(decoder.head.bias)
    decoder.eval()
    levels = levels_of(channels, strides, dtype=torch.float64)
    x = cbr(levels[3], decoder.center[0], decoder.center[1])
    x = cbr(x, decoder.center[3], decoder.center[4])
    for block, skip in zip(decoder.blocks, [levels[2], levels[1], None], strict=True):
        x = plain_block(x, skip, block.convs)
    z = F.conv2d(x, decoder.head.weight, decoder.head.bias, padding=1)
    assert z.shape[2:] == (64, 64)
    if size != (64, 64):
        z = F.interpolate(z, size=size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(decoder(levels, size), z)


# any encoder


@pytest.mark.parametrize(
    ("name", "options", "sizes", "blocks"),
    [
        ("test_resnet", {}, [(224, 224), (96, 96), (97, 65)], 5),
        ("mobilenetv2_100", {}, [(224, 224), (96, 96), (97, 65)], 5),
        ("mobilenetv2_100", {"stride": 16}, [(96, 96), (97, 65)], 5),
        ("inception_v3", {}, [(96, 96), (97, 107)], 5),  # its stem is not padded
        ("vgg16", {}, [(64, 64), (65, 71)], 5),
        ("vgg16", {"form": "wsol", "stride": 16}, [(64, 64), (65, 71)], 4),
        ("convnext_atto", {}, [(224, 224), (96, 96), (97, 65)], 5),
        ("swin_tiny_patch4_window7_224", {}, [(224, 224), (96, 96), (100, 92)], 5),
        ("test_vit", {}, [(224, 224), (96, 96), (112, 80), (16, 16)], 5),
        ("deit_tiny_patch16_224", {}, [(224, 224), (112, 80)], 5),
        ("vit_tiny_patch16_224", {"img_size": 96}, [(96, 96)], 5),
    ],
)
@torch.no_grad()
def test_any_encoder(name, options, sizes, blocks):
    encoder = Encoder(name, **options).eval()
    decoder = UNetDecoder(encoder.channels, encoder.strides).eval()
    assert len(decoder.blocks) == blocks
    for size in sizes:
        _, levels = encoder(torch.randn(1, 3, *size))
        before = [level.clone() for level in levels]
        logits, shapes = traced(decoder, levels, size)
        assert logits.shape == (1, 2, *size)
        assert logits.isfinite().all()
        assert all(torch.equal(a, b) for a, b in zip(levels, before, strict=True))
        # The last block is at the image's size or, by the encoder's padding, a little off it.
        assert all(abs(a - b) < 16 for a, b in zip(shapes[-1][1:], size, strict=True))


@pytest.mark.parametrize(
    ("channels", "strides", "inputs", "widths"),
    [
        ([16, 24], [4, 8], [24 + 16, 256, 128], [256, 128, 64]),
        ([24], [32], [24, 256, 128, 64, 32], [256, 128, 64, 32, 16]),
        ([24], [14], [24, 256, 128, 64], [256, 128, 64, 32]),  # up to 16, resized by the logits
        (
            [3, 4, 5, 6, 7, 8],
            [2, 4, 8, 16, 32, 64],
            [8 + 7, 256 + 6, 128 + 5, 64 + 4, 32 + 3, 16],
            [256, 128, 64, 32, 16, 16],
        ),
        ([9, 9], [16, 16], [18, 256, 128, 64, 32], [256, 128, 64, 32, 16]),
    ],
)
def test_one_block_per_level_then_per_factor_two(channels, strides, inputs, widths):
    decoder = UNetDecoder(channels, strides)
    assert [block.convs[0].in_channels for block in decoder.blocks] == inputs
    assert [block.convs[0].out_channels for block in decoder.blocks] == widths
    assert isinstance(decoder.center, nn.Identity)
    assert decoder.pyramid is None
    size = (128, 128)
    assert decoder(levels_of(channels, strides, size=128), size).shape == (2, 2, *size)


@pytest.mark.parametrize(("patch", "blocks"), [(8, 4), (14, 5), (16, 5), (32, 6)])
@torch.no_grad()
def test_pyramid_of_single_stride_maps(patch, blocks):
    decoder = UNetDecoder([40] * 4, [patch] * 4).eval()
    maps = decoder.pyramid([torch.randn(2, 40, 5, 6) for _ in range(4)])
    expected = [(10, 20, 24), (20, 10, 12), (40, 5, 6), (40, 3, 3)]
    assert [tuple(m.shape[1:]) for m in maps] == expected
    assert len(decoder.blocks) == blocks
    size = (5 * patch, 6 * patch)
    logits, shapes = traced(decoder, [torch.randn(2, 40, 5, 6) for _ in range(4)], size)
    assert logits.shape == (2, 2, *size)
    doubled = 4 * 2 ** (blocks - 3)
    assert tuple(shapes[-1]) == (2, 5 * doubled, 6 * doubled)


@torch.no_grad()
def test_every_level_of_a_pyramid_counts_and_images_do_not_mix():
    decoder = UNetDecoder([8] * 4, [16] * 4).eval()
    levels = [torch.randn(3, 8, 3, 4) for _ in range(4)]
    logits = decoder(levels, (48, 64))
    for i in range(4):
        other = [level.flip(1) if j == i else level for j, level in enumerate(levels)]
        assert not torch.allclose(decoder(other, (48, 64)), logits)
    for i in range(3):
        one = decoder([level[i : i + 1] for level in levels], (48, 64))
        torch.testing.assert_close(one[0], logits[i])


# properties

BUILDS = {
    "cnn": ([4, 5, 6, 7], [2, 4, 8, 8]),
    "vgg": ([4, 5, 6], [1, 2, 4]),
    "stride 4": ([4, 5], [4, 8]),
    "vit": ([8, 8, 8, 8], [16, 16, 16, 16]),
}
builds = pytest.mark.parametrize(("channels", "strides"), BUILDS.values(), ids=BUILDS)


@builds
def test_zero_head_gives_one_half_everywhere(channels, strides):
    decoder = UNetDecoder(channels, strides)
    nn.init.zeros_(decoder.head.weight)
    for size in [(64, 64), (50, 63)]:
        logits = decoder(levels_of(channels, strides), size)
        assert logits.shape == (2, 2, *size)
        assert (logits == 0).all()
        assert (logits.softmax(1) == 0.5).all()


@builds
def test_every_parameter_gets_a_gradient(channels, strides):
    decoder = UNetDecoder(channels, strides)
    levels = [level.requires_grad_() for level in levels_of(channels, strides)]
    decoder(levels, (60, 64)).square().mean().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name  # else DDP waits for it
        assert parameter.grad.abs().sum() > 0, name
    reached = [level.grad is not None for level in levels]
    assert reached == [stride != 1 for stride in strides]


@builds
@torch.no_grad()
def test_bfloat16_autocast(channels, strides):
    decoder, levels = UNetDecoder(channels, strides).eval(), levels_of(channels, strides)
    expected = decoder(levels, (60, 64))
    inner = []
    decoder.head.register_forward_hook(lambda _m, _i, y: inner.append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        for given in (levels, [level.bfloat16() for level in levels]):
            logits = decoder(given, (60, 64))
            assert logits.dtype == torch.float32  # softmax, CRF and barrier need it
            assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert inner == [torch.bfloat16] * 2


@builds
@torch.no_grad()
def test_channels_last(channels, strides):
    decoder, levels = UNetDecoder(channels, strides).eval(), levels_of(channels, strides)
    expected = decoder(levels, (64, 64))
    decoder.to(memory_format=torch.channels_last)
    levels = [level.contiguous(memory_format=torch.channels_last) for level in levels]
    logits = decoder(levels, (64, 64))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert logits.is_contiguous(memory_format=torch.channels_last)


@builds
@torch.no_grad()
def test_compiles_into_one_graph(channels, strides):
    decoder, levels = UNetDecoder(channels, strides).eval(), levels_of(channels, strides)
    compiled = torch.compile(decoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(levels, (60, 64)), decoder(levels, (60, 64)))
    torch.compiler.reset()


def test_options():
    decoder = UNetDecoder([4, 5], [2, 4], decoder_channels=(7, 6), center=True, out_channels=3)
    assert decoder(levels_of([4, 5], [2, 4]), (64, 64)).shape == (2, 3, 64, 64)
    assert [block.convs[0].out_channels for block in decoder.blocks] == [7, 6]
    assert decoder.center[0].out_channels == 5
    assert isinstance(UNetDecoder([4, 5], [1, 4], center=False).center, nn.Identity)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([4, 5], [2]), r"one stride per level, got channels \[4, 5\] and strides \[2\]"),
        (([], []), "one stride per level"),
        (([4, 5], [4, 2]), r"in order, shallow to deep; got \[4, 5\] and \[4, 2\]"),
        (([4, 0], [2, 4]), "must be positive"),
        (([4, 5], [0, 4]), "must be positive"),
        (([4, 5], [1, 1]), "all levels have stride 1"),
        (([4, 5], [2, 4], [8]), r"2 positive numbers, one per block, got \[8\]"),
        (([4, 5], [2, 4], [8, 0]), "2 positive numbers"),
        (([4, 5], [2, 4], None, None, 0), "out_channels must be positive, got 0"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNetDecoder(*arguments)


def test_other_levels_than_it_was_built_for():
    decoder = UNetDecoder([4, 5, 6], [1, 2, 4])
    levels = levels_of([4, 5, 6], [1, 2, 4])
    message = r"built for levels of \[4, 5, 6\] channels, got \["
    with pytest.raises(ValueError, match=message + r"5, 6\]"):
        decoder(levels[1:], (64, 64))
    with pytest.raises(ValueError, match=message + r"4, 5, 5\]"):
        decoder([*levels[:2], levels[2][:, :5]], (64, 64))
