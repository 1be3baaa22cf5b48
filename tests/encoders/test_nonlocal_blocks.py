"""Non-local blocks: their formula, and how they follow the layers of an encoder."""

import copy
import io

import pytest
import torch
from torch import nn

from wsl_zoo.encoders import Encoder
from wsl_zoo.encoders.nonlocal_blocks import NonLocalBlock, attach_nonlocal, default_layers


def awake(blocks):
    """Scales and shifts away from zero, so that blocks are no identities."""
    for block in blocks:
        nn.init.normal_(block.norm.weight)
        nn.init.normal_(block.norm.bias)


@pytest.mark.parametrize("mode", [True, False])
def test_formula(mode):
    block, x = NonLocalBlock(16).double().train(mode), torch.randn(2, 16, 3, 5).double()
    awake([block])

    def linear(conv, y):
        return conv.weight[:, :, 0, 0] @ y + conv.bias[:, None]

    flat = x.flatten(2)
    q, k, v = (linear(conv, flat) for conv in (block.query, block.key, block.value))
    assert q.shape == k.shape == (2, 2, 15)
    weights = torch.einsum("bci,bcj->bij", q, k).softmax(2)  # of position i over positions j
    mixed = linear(block.out, torch.einsum("bij,bcj->bci", weights, v))
    mean, variance = torch.zeros(16).double(), torch.ones(16).double()
    if mode:
        mean, variance = mixed.mean((0, 2)), mixed.var((0, 2), unbiased=False)
    normed = (mixed - mean[:, None]) / (variance[:, None] + 1e-5).sqrt()
    normed = normed * block.norm.weight[:, None] + block.norm.bias[:, None]
    torch.testing.assert_close(block(x), x + normed.view_as(x))


@pytest.mark.parametrize("mode", [True, False])
def test_identity_at_the_start(mode):
    block, x = NonLocalBlock(16).train(mode), torch.randn(2, 16, 4, 4)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    assert block.norm.weight.grad.abs().max() > 0  # it can wake up


def test_few_channels():
    assert NonLocalBlock(4).query.out_channels == 1
    assert NonLocalBlock(64, reduction=4).query.out_channels == 16


def test_vgg_has_the_papers_places():
    encoder = Encoder("vgg16", stride=16)
    names = default_layers(encoder)
    modules = [encoder.model.get_submodule(name) for name in names]
    features = list(encoder.model.features)
    pools = [i for i, m in enumerate(features) if isinstance(m, nn.MaxPool2d)]
    assert len(pools) == 4
    assert [features.index(m) for m in modules[:3]] == pools[1:]
    assert modules[3] is features[-2]  # the last ReLU, before what was the fifth pooling
    blocks = attach_nonlocal(encoder)
    assert [block.query.in_channels for block in blocks] == [128, 256, 512, 512]
    plain = Encoder("vgg16", stride=16)
    plain.load_state_dict(encoder.state_dict())  # no key is new
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder.final(image), plain.final(image))
        awake(blocks)
        assert encoder.final(image).shape == (1, 512, 4, 4)
        assert not torch.allclose(encoder.final(image), plain.final(image))


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_convnext", "test_efficientnet", "densenet121"]
)
@torch.no_grad()
def test_every_way_through_an_encoder_runs_the_blocks(name):
    encoder, image = Encoder(name).eval(), torch.randn(2, 3, 64, 64)
    before = encoder.final(image)
    blocks = attach_nonlocal(encoder)
    assert torch.equal(encoder.final(image), before)
    assert len(blocks) == len(default_layers(encoder)) >= 3
    for block in blocks:
        awake([block])
        block.eval()
        after = encoder.final(image)
        assert not torch.allclose(after, before)  # each block is run
        before = after
    assert torch.equal(encoder(image)[0], after)
    for layer in (0, -2, encoder.layers()[0]):
        activation, rest = encoder.split(image, layer)
        torch.testing.assert_close(rest(activation), after)


@torch.no_grad()
def test_a_stage_is_followed_at_its_end_and_once():
    encoder, image = Encoder("resnet18").eval(), torch.randn(1, 3, 64, 64)
    before, _ = encoder.split(image, "layer2")
    (block,) = attach_nonlocal(encoder, ["layer2"])
    awake([block.eval()])
    for layer in ("layer2", "layer2.1"):  # the stage as one module, and taken apart
        torch.testing.assert_close(encoder.split(image, layer)[0], block(before))
    activation, rest = encoder.split(image, "layer2.0")
    assert activation.shape == before.shape
    torch.testing.assert_close(rest(activation), encoder.final(image))


def test_attaching_leaves_the_encoder_as_it_was():
    encoder = Encoder("test_resnet")
    encoder.model.layer1.eval()
    flags = [part.training for part in encoder.modules()]
    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    attach_nonlocal(encoder, ["layer2"])
    assert [part.training for part in encoder.modules()] == flags
    assert encoder.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_copies_run_their_own_blocks(how):
    model = nn.Module()
    model.encoder = Encoder("test_resnet").eval()
    model.blocks = attach_nonlocal(model.encoder, ["layer2"]).eval()
    if how == "deepcopy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    image = torch.randn(1, 3, 64, 64)
    before = model.encoder.final(image)
    awake(other.blocks)
    assert torch.equal(model.encoder.final(image), before)
    assert not torch.allclose(other.encoder.final(image), before)


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("test_vit", None, "blocks.* gives no .* map"),
        ("swin_tiny_patch4_window7_224", None, "layers.* gives no .* map"),
        ("test_resnet", ["layer9"], "no layer 'layer9'; it has conv1.0, "),
        ("test_resnet", ["layer"], "no layer 'layer'"),
    ],
)
def test_impossible_layers(name, layers, message):
    encoder = Encoder(name, img_size=96) if name != "test_resnet" else Encoder(name)
    with pytest.raises(ValueError, match=message):
        attach_nonlocal(encoder, layers)
