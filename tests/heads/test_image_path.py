"""The decoder with an image path against the published sizes and counts, and a plain one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.heads.perturbation import perturbed
from wsl_zoo.encoders import Encoder
from wsl_zoo.heads import ImagePathDecoder

RESNET18 = [64, 64, 128, 256, 512]
SMALL = {"width": 2, "leak_channels": 3, "image_channels": 4}


def levels_of(channels, sizes, batch=2, **options):
    return [
        torch.randn(batch, c, *(s if isinstance(s, tuple) else (s, s)), **options)
        for c, s in zip(channels, sizes, strict=True)
    ]


def inputs(count=3, size=32, batch=2, **options):
    """An image, and levels of strides 2, 4, ... of 5, 6, ... channels."""
    channels = list(range(5, 5 + count))
    sizes = [size // 2 ** (i + 1) for i in range(count)]
    image = torch.randn(batch, 3, size, size, **options)
    return channels, image, levels_of(channels, sizes, batch, **options)


# As published ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "leaks", "count"), [(24, 64, 15_719_809), (12, 32, 5_311_233)])
def test_published_parameters(width, leaks, count):
    decoder = ImagePathDecoder(RESNET18, width=width, leak_channels=leaks)
    assert sum(p.numel() for p in decoder.parameters() if p.requires_grad) == count
    assert [up[0].out_channels for up in decoder.ups] == [256, 128, 128, 64]
    assert [down[3].out_channels for down in decoder.downs] == [
        width * n for n in (2, 4, 8, 16, 32)
    ]
    for name, conv in decoder.named_modules():
        if isinstance(conv, nn.Conv2d):
            assert (conv.bias is None) == name.startswith("downs."), name


@torch.no_grad()
def test_published_sizes():
    encoder = Encoder("resnet18").eval()
    assert encoder.channels == RESNET18
    decoder = ImagePathDecoder(RESNET18, up_channels=[6, 5, 4, 3], **SMALL).eval()
    seen = {}
    for name, part in decoder.named_modules():
        part.register_forward_hook(lambda _m, _i, y, name=name: seen.update({name: y.shape[-1]}))
    image = torch.randn(1, 3, 374, 374)
    levels = encoder(image)[1]
    logits = decoder(image, levels)
    assert [level.shape[-1] for level in levels] == [187, 94, 47, 24, 12]
    assert [seen[f"leaks.{i}"] for i in range(5)] == [185, 92, 45, 22, 10]
    assert [seen[f"downs.{i}"] for i in range(5)] == [47, 23, 12, 6, 3]
    assert [seen[f"ups.{i}"] for i in range(4)] == [6, 12, 23, 47]
    assert seen["image_path"] == seen["last"] == 374
    assert logits.shape == (1, 1, 374, 374)


def plain(state, image, levels, training):
    """The decoder as the paper's code writes it, from a state dict."""

    def conv(x, name, padding=1, stride=1):
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, padding)

    def down(x, name):
        for i in (0, 3):
            norm = [state[f"{name}.{i + 1}.{k}"] for k in ("weight", "bias")]
            mean, var = (state[f"{name}.{i + 1}.running_{k}"].clone() for k in ("mean", "var"))
            y = conv(x, f"{name}.{i}", stride=2)
            x = F.relu(F.batch_norm(y, mean, var, *norm, training=training))
        return x

    def to(x, size):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)

    def up(x, skip, name):
        x = to(x, (2 * x.shape[2], 2 * x.shape[3]))
        if x.shape[2:] != skip.shape[2:]:
            x = to(x, skip.shape[2:])
        return F.relu(conv(torch.cat([x, skip], dim=1), name))

    o = F.relu(conv(F.relu(conv(image, "image_path.0")), "image_path.2"))
    g = [F.relu(conv(f, f"leaks.{i}.0", padding=0)) for i, f in enumerate(levels)]
    d = [down(torch.cat([to(o, g[0].shape[2:]), g[0]], dim=1), "downs.0")]
    for i in range(1, len(g)):
        d.append(down(torch.cat([to(d[i - 1], g[i].shape[2:]), g[i]], dim=1), f"downs.{i}"))
    x = d[-1]
    for i, skip in enumerate(d[-2::-1]):
        x = up(x, skip, f"ups.{i}.0")
    return conv(up(x, o, "last.0"), "last.2", padding=0)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("image", "sizes"),
    [
        ((64, 64), [32, 16, 8, 4]),
        ((61, 47), [(31, 24), (16, 12), (8, 6), (4, 3)]),  # nothing divides
        ((40, 56), [(9, 31), (9, 31), (5, 4), (7, 11)]),  # of no encoder
        ((33, 33), [33, 17]),  # two levels, one as large as the image
        ((80, 64), [(40, 32), (20, 16), (10, 8), (5, 4), (5, 4), (3, 3)]),
    ],
    ids=["halves", "odd", "any", "two", "six"],
)
@torch.no_grad()
def test_decoder_is_the_plain_one(image, sizes, training):
    channels = [5, 6, 7, 8, 9, 10][: len(sizes)]
    up_channels = [9, 8, 7, 6, 5][: len(sizes) - 1]
    decoder = perturbed(ImagePathDecoder(channels, up_channels=up_channels, **SMALL)).double()
    x = torch.randn(3, 3, *image, dtype=torch.float64)
    levels = levels_of(channels, sizes, batch=3, dtype=torch.float64)
    expected = plain(decoder.state_dict(), x, levels, training)
    logits = decoder.train(training)(x, levels)
    assert logits.shape == (3, 1, *image)
    torch.testing.assert_close(logits, expected)


# Any encoder ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "up_channels"),
    [
        (2, [64]),
        (3, [128, 64]),
        (4, [128, 128, 64]),
        (5, [256, 128, 128, 64]),
        (6, [256, 256, 128, 128, 64]),
    ],
)
def test_every_number_of_levels(count, up_channels):
    channels, image, levels = inputs(count, size=192)
    decoder = ImagePathDecoder(channels, **SMALL)
    assert [up[0].out_channels for up in decoder.ups] == up_channels
    levels = [level.requires_grad_() for level in levels]
    logits = decoder(image, levels)
    assert logits.shape == (2, 1, 192, 192)
    logits.square().mean().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name  # else DDP waits for it
        assert parameter.grad.abs().sum() > 0, name
    assert all(level.grad.abs().sum() > 0 for level in levels)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("test_resnet", {"stride": 16}, (48, 48)),
        ("test_resnet", {}, (97, 81)),
        ("mobilenetv2_100", {}, (96, 97)),
        ("test_vit", {}, (96, 96)),
    ],
)
@torch.no_grad()
def test_any_encoder(name, options, size):
    encoder = Encoder(name, **options).eval()
    decoder = ImagePathDecoder(encoder.channels, **SMALL).eval()
    image = torch.randn(3, 3, *size)
    levels = encoder(image)[1]
    before = [level.clone() for level in levels]
    logits = decoder(image, levels)
    assert logits.shape == (3, 1, *size)
    assert all(torch.equal(a, b) for a, b in zip(levels, before, strict=True))
    for i in range(3):
        one = decoder(image[i : i + 1], [level[i : i + 1] for level in levels])
        torch.testing.assert_close(one[0], logits[i])


@torch.no_grad()
def test_image_and_every_level_count():
    channels, image, levels = inputs()
    decoder = perturbed(ImagePathDecoder(channels, **SMALL)).eval()
    logits = decoder(image, levels)
    assert not torch.allclose(decoder(image.flip(1), levels), logits)
    for i in range(len(levels)):
        other = [level.flip(1) if j == i else level for j, level in enumerate(levels)]
        assert not torch.allclose(decoder(image, other), logits), i


def test_images_of_other_channels():
    channels, _, levels = inputs()
    decoder = ImagePathDecoder(channels, in_chans=1, **SMALL)
    assert decoder(torch.randn(2, 1, 32, 32), levels).shape == (2, 1, 32, 32)


# Dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dropout", "training"), [(0.0, True), (0.0, False), (0.2, False)])
@torch.no_grad()
def test_without_dropout_the_map_is_a_function_of_the_image(dropout, training):
    channels, image, levels = inputs()
    decoder = ImagePathDecoder(channels, dropout=dropout, **SMALL).train(training)
    first = decoder(image, levels)
    torch.manual_seed(1)
    assert torch.equal(decoder(image, levels), first)


@torch.no_grad()
def test_one_dropout_on_all_blocks_but_the_deepest_and_the_last():
    channels, image, levels = inputs(5, size=128)
    decoder = ImagePathDecoder(channels, up_channels=[9, 8, 7, 6], dropout=0.5, **SMALL)
    dropped = []
    decoder.drop.register_forward_hook(lambda _m, x, y: dropped.append((x[0], y)))
    decoder.eval()
    still = decoder(image, levels)
    decoder.drop.train()  # alone: batch norms stay as they are
    dropped.clear()
    torch.manual_seed(1)
    first = decoder(image, levels)
    torch.manual_seed(2)
    second = decoder(image, levels)
    torch.manual_seed(1)
    assert torch.equal(decoder(image, levels), first)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, still)
    assert [x.shape[1] for x, _ in dropped[:8]] == [4, 8, 16, 32, 9, 8, 7, 6]
    assert len(dropped) == 3 * 8
    for x, y in dropped:  # element-wise, kept ones doubled
        assert torch.equal(y[y != 0], 2 * x[y != 0])
    x, y = (torch.cat([pair[i].flatten() for pair in dropped]) for i in (0, 1))
    assert (y[x != 0] == 0).float().mean() == pytest.approx(0.5, abs=0.03)


# Precision and memory -------------------------------------------------------------------------


@torch.no_grad()
def test_bfloat16_autocast():
    channels, image, levels = inputs(size=64)
    decoder = ImagePathDecoder(channels, **SMALL).eval()
    expected = decoder(image, levels)
    inner = []
    decoder.last.register_forward_hook(lambda _m, _i, y: inner.append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        for given in (levels, [level.bfloat16() for level in levels]):
            logits = decoder(image, given)
            assert logits.dtype == torch.float32
            assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert inner == [torch.bfloat16] * 2


@torch.no_grad()
def test_compiles_into_one_graph():
    channels, image, levels = inputs()
    decoder = ImagePathDecoder(channels, **SMALL).eval()
    compiled = torch.compile(decoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image, levels), decoder(image, levels))
    torch.compiler.reset()


# Errors ---------------------------------------------------------------------------------------


def test_levels_of_another_number_or_too_small():
    channels, image, levels = inputs()
    decoder = ImagePathDecoder(channels, **SMALL)
    small = [*levels[:2], levels[2][..., :2]]
    for given, found in [
        (levels[:2], r"\[\(16, 16\), \(8, 8\)\]"),
        ([*levels, levels[2]], r"\[\(16, 16\), \(8, 8\), \(4, 4\), \(4, 4\)\]"),
        (small, r"\[\(16, 16\), \(8, 8\), \(4, 2\)\]"),
        ([], r"\[\]"),
    ]:
        with pytest.raises(ValueError, match=f"levels of {found}: .* needs 3 of at least 3x3"):
            decoder(image, given)
    least = [*levels[:2], levels[2][..., :3, :3]]
    assert decoder(image, least).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(
    ("channels", "arguments", "message"),
    [
        ([4], {}, r"up_channels=\[\]: 1 levels take 1, and two levels are the least"),
        ([], {}, "two levels are the least"),
        ([4, 5, 6], {"up_channels": [8]}, r"up_channels=\[8\]: 3 levels take 2"),
        ([4, 5], {"up_channels": [8, 8]}, r"up_channels=\[8, 8\]: 2 levels take 1"),
        ([4, 5], {"up_channels": [0]}, "all must be positive"),
        ([4, 5], {"width": 0}, "width=0, .*all must be positive"),
        ([4, 5], {"leak_channels": -1}, "leak_channels=-1, .*all must be positive"),
        ([4, 5], {"image_channels": 0}, "image_channels=0, .*all must be positive"),
        ([4, 5], {"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ([4, 5], {"dropout": -0.1}, "dropout=-0.1"),
    ],
)
def test_impossible_arguments(channels, arguments, message):
    with pytest.raises(ValueError, match=message):
        ImagePathDecoder(channels, **arguments)
