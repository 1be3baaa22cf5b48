"""The encoder against timm itself: same numbers, right gradients, right strides, clear errors."""

import copy
import functools
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.cases.stages import filled_classifier
from wsl_zoo.checkpoints import load_checkpoint
from wsl_zoo.encoders import Encoder, surgery

# name, image size, an inner module
FAMILIES = [
    ("test_resnet", 64, "layer3"),
    ("resnet18", 64, "layer3.0"),
    ("vgg16", 32, "features.22"),
    ("inception_v3", 96, "Mixed_6c"),
    ("densenet121", 64, "features.denseblock3"),
    ("test_efficientnet", 64, "blocks.2"),
    ("efficientnet_b0", 64, "blocks.3"),
    ("mobilenetv2_100", 64, "blocks.3.1"),
    ("test_convnext", 64, "stages.2"),
    ("convnext_atto", 64, "stages.2"),
    ("swin_tiny_patch4_window7_224", 64, "layers.2"),
    ("test_vit", 64, "blocks.3"),
    ("test_vit4", 64, "blocks.3"),
    ("deit_tiny_patch16_224", 64, "blocks.7"),
]
# A ViT that takes one image size only.
FIXED_SIZE = next(
    n for n in ("test_vit_relpos", "vit_relpos_small_patch16_rpn_224") if timm.is_model(n)
)  # fmt: skip
IDS = [name for name, _, _ in FAMILIES]
families = pytest.mark.parametrize(("name", "size", "inner"), FAMILIES, ids=IDS)


@functools.cache
def built(name: str) -> Encoder:
    """One encoder per family, in eval mode; tests do not change it."""
    torch.manual_seed(0)
    encoder = Encoder(name).eval()
    for module in encoder.modules():  # statistics that are not the identity
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return encoder


def picture(size: int, batch: int = 2, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, size, size, generator=generator)


def unused(encoder: Encoder, size: int) -> list[str]:
    encoder.final(picture(size)).sum().backward()
    names = [name for name, p in encoder.named_parameters() if p.grad is None]
    encoder.zero_grad(set_to_none=True)
    return names


@families
@torch.no_grad()
def test_final_and_levels_are_timms_own(name, size, inner):
    encoder = built(name)
    image = picture(size)
    final, levels = encoder(image)
    options = {"dynamic_img_size": True} if "vit" in name or "deit" in name else {}
    options = {"strict_img_size": False} if "swin" in name else options
    options = {"mlp_ratio": 1 / 4096} if "vgg" in name else options
    reference = timm.create_model(name, num_classes=0, **options).eval()
    keys = reference.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not keys.unexpected_keys
    features = reference.forward_features(image)
    if features.ndim == 3:
        grid = size // 16
        features = features[:, reference.num_prefix_tokens :]
        features = features.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    elif "swin" in name:
        features = features.permute(0, 3, 1, 2)
    assert torch.equal(final, features)
    assert final.shape[1] == encoder.final_channels
    if not hasattr(reference, "forward_intermediates"):
        return  # VGG, Inception, DenseNet before timm 1.0.31: nothing to compare the levels with
    taken = reference.forward_intermediates(image, output_fmt="NCHW", intermediates_only=True)
    if "vit" in name or "deit" in name:
        taken = [taken[len(taken) * (i + 1) // 4 - 1] for i in range(4)]
    assert len(taken) == len(levels)
    for ours, theirs, channels in zip(levels, taken, encoder.channels, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.shape[1] == channels
    if name != "inception_v3":  # its stem is not padded
        sizes = [level.shape[-1] for level in levels]
        assert sizes == [size // stride for stride in encoder.strides]


@families
@torch.no_grad()
def test_split_reproduces_final(name, size, inner):
    encoder = built(name)
    image = picture(size)
    final, levels = encoder(image)
    names = encoder.layers()
    for layer in [*range(len(levels) + 1), inner, names[0], names[-2]]:
        activation, rest = encoder.split(image, layer)
        before = activation.clone()
        assert torch.equal(rest(activation), final), layer
        assert torch.equal(activation, before), layer  # nothing works in place on it
        if isinstance(layer, int) and 0 <= layer < len(levels):
            assert torch.equal(activation, levels[layer])
    activation, rest = encoder.split(image, -2)
    assert torch.equal(activation, levels[-1])
    tripled = rest(torch.cat([activation, 0.5 * activation, activation]))
    torch.testing.assert_close(tripled[:2], final)
    torch.testing.assert_close(tripled[4:], final)


@families
def test_gradients_of_split_are_those_of_the_whole_network(name, size, inner):
    encoder = copy.deepcopy(built(name)).double()
    image = picture(size).double()
    weights = torch.randn(encoder.final_channels, dtype=torch.float64)
    seen = []
    hook = encoder.model.get_submodule(inner).register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    final = encoder.final(image)
    hook.remove()
    (expected,) = torch.autograd.grad((final.mean((2, 3)) @ weights).square().sum(), seen[0])
    if expected.ndim == 3:
        grid = size // 16
        expected = expected[:, encoder.model.num_prefix_tokens :]
        expected = expected.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    elif "swin" in name:
        expected = expected.permute(0, 3, 1, 2)
    activation, rest = encoder.split(image, inner)
    for a in (activation, activation.detach().requires_grad_()):
        score = (rest(a).mean((2, 3)) @ weights).square().sum()
        (gradient,) = torch.autograd.grad(score, a, retain_graph=True)
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-12)


@families
def test_no_parameter_is_unused(name, size, inner):
    assert unused(copy.deepcopy(built(name)).train(), size) == []


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_batched_equals_looped(name):
    image = picture(64, batch=3)
    batched = built(name).final(image)
    looped = torch.cat([built(name).final(one[None]) for one in image])
    torch.testing.assert_close(batched, looped, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_final_without_levels():
    encoder = built("test_resnet")
    final, levels = encoder(picture(64), levels=False)
    assert levels == []
    assert torch.equal(final, encoder.final(picture(64)))
    assert torch.equal(final, encoder(picture(64))[0])


def test_layer_minus_one_is_the_final_map_itself():
    activation, rest = built("test_vit").split(picture(64), -1)
    assert rest(activation) is activation
    assert torch.equal(activation, built("test_vit").final(picture(64)))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@torch.no_grad()
def test_copies_are_independent(name):
    encoder = built(name)
    other = copy.deepcopy(encoder)
    next(other.parameters()).add_(1.0)
    assert not torch.equal(other.final(picture(64)), encoder.final(picture(64)))


def test_hooks_on_whole_stages_fire():
    encoder, calls = copy.deepcopy(built("test_resnet")), []
    encoder.model.layer3.register_forward_hook(lambda *_: calls.append(1))
    encoder(picture(64))
    encoder.final(picture(64))
    encoder.split(picture(64), "layer3")
    assert len(calls) == 3


# strides


@pytest.mark.parametrize(
    ("name", "stride", "strides"),
    [
        ("test_resnet", 8, [2, 4, 8, 8, 8]),
        ("resnet18", 16, [2, 4, 8, 16, 16]),
        ("resnet50d", 8, [2, 4, 8, 8, 8]),
        ("vgg16", 8, [1, 2, 4, 8, 8]),
        ("vgg16", 16, [1, 2, 4, 8, 16]),
        ("densenet121", 8, [2, 4, 8, 8, 8]),
        ("efficientnet_b0", 16, [2, 4, 8, 16, 16]),
        ("mobilenetv2_100", 8, [2, 4, 8, 8, 8]),
        ("mobilenetv2_100", 16, [2, 4, 8, 16, 16]),
        ("test_convnext", 8, [4, 8, 8, 8]),
        ("mobilenetv2_100", 32, [2, 4, 8, 16, 32]),
    ],
)
@torch.no_grad()
def test_undilated_strides(name, stride, strides):
    plain = Encoder(name)
    encoder = Encoder(name, stride=stride).eval()
    encoder.model.load_state_dict(plain.model.state_dict(), strict=True)  # same weights fit
    final, levels = encoder(picture(64, batch=1))
    assert encoder.strides == strides
    assert [level.shape[-1] for level in levels] == [64 // s for s in strides]
    assert final.shape == (1, plain.final_channels, 64 // stride, 64 // stride)
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.dilation == (1, 1) for m in convolutions)
    activation, rest = encoder.split(picture(64, batch=1), 1)
    assert torch.equal(rest(activation), final)


@pytest.mark.parametrize(
    ("name", "block"), [("resnet26", "layer3.0"), ("mobilenetv2_100", "blocks.3.0")]
)
@torch.no_grad()
def test_undilated_is_the_same_function_on_a_finer_grid(name, block):
    """In these blocks only 1x1 convolutions follow the strided one: every second pixel agrees."""
    plain = Encoder(name).eval()
    encoder = Encoder(name, stride=8).eval()
    encoder.model.load_state_dict(plain.model.state_dict())
    coarse = plain.split(picture(64), block)[0]
    fine = encoder.split(picture(64), block)[0]
    torch.testing.assert_close(fine[:, :, ::2, ::2], coarse)


@torch.no_grad()
def test_dilated_is_timms_output_stride():
    encoder = Encoder("test_resnet", stride=8, stride_mode="dilated").eval()
    reference = timm.create_model("test_resnet", output_stride=8).eval()
    reference.load_state_dict(encoder.model.state_dict(), strict=False)
    final = encoder.final(picture(64))
    assert torch.equal(final, reference.forward_features(picture(64)))
    undilated = Encoder("test_resnet", stride=8).eval()
    undilated.model.load_state_dict(encoder.model.state_dict())
    assert undilated.final(picture(64)).shape == final.shape
    assert not torch.allclose(undilated.final(picture(64)), final)


@torch.no_grad()
def test_resnet50_of_the_papers():
    final, levels = Encoder("resnet50", stride=8).eval()(picture(224, batch=1))
    shapes = [(64, 112), (256, 56), (512, 28), (1024, 28), (2048, 28)]
    assert [(level.shape[1], level.shape[2]) for level in levels] == shapes
    assert final.shape == (1, 2048, 28, 28)


@pytest.mark.parametrize(
    ("name", "size", "stride", "levels"),
    [
        ("vgg16", 64, None, [(64, 64), (128, 32), (256, 16), (1024, 8)]),
        ("vgg16", 64, 16, [(64, 64), (128, 32), (256, 16), (512, 8), (1024, 4)]),
        ("inception_v3", 96, 8, [(64, 48), (80, 24), (288, 12), (768, 12), (1024, 12)]),
        ("inception_v3", 96, 16, [(64, 48), (80, 24), (288, 12), (768, 6), (1024, 6)]),
        ("resnet18", 64, None, [(64, 32), (64, 16), (128, 8), (256, 8), (512, 8)]),
    ],
)
def test_wsol_forms(name, size, stride, levels):
    encoder = Encoder(name, form="wsol", stride=stride)
    with torch.no_grad():
        final, maps = encoder(picture(size))
    assert [(level.shape[1], level.shape[2]) for level in maps] == levels
    assert encoder.channels == [channels for channels, _ in levels]
    assert final.shape == maps[-1].shape
    assert torch.equal(final, maps[-1])
    assert final.min() >= 0  # after a ReLU
    assert unused(encoder, size) == []
    encoder.eval()
    with torch.no_grad():
        final = encoder.final(picture(size, batch=1))
        for layer in (0, -2):
            activation, rest = encoder.split(picture(size, batch=1), layer)
            assert torch.equal(rest(activation), final)


def test_wsol_trunks_keep_the_published_keys():
    for name, new in (("vgg16", "features.conv6"), ("inception_v3", "A3_")):
        plain = Encoder(name).model.state_dict()
        form = Encoder(name, form="wsol").model.state_dict()
        added = {key for key in form if key not in plain}
        assert added
        assert all(key.startswith(new) for key in added)
        assert all(plain[key].shape == form[key].shape for key in form if key not in added)


def test_padded_inception_reduction_is_the_published_one_inside():
    """At stride 2 with padding the block equals the unpadded one on an image padded by hand."""
    model = timm.create_model("inception_v3", num_classes=0).eval()
    block = copy.deepcopy(model.Mixed_6a)
    padded = surgery._PaddedReduction(copy.deepcopy(block), stride=1)
    x = torch.rand(1, 288, 9, 9)
    ours, theirs = padded(x), block(x)
    torch.testing.assert_close(ours[:, :384, 1:-1:2, 1:-1:2], theirs[:, :384])
    torch.testing.assert_close(ours[:, 480:, 1:-1:2, 1:-1:2], theirs[:, 480:])
    assert ours.shape == (1, 768, 9, 9)


def test_boosted_parameters():
    def names(encoder: Encoder) -> set[str]:
        boosted = {id(p) for p in encoder.boosted_parameters()}
        found = {
            key.removeprefix("model.") for key, p in encoder.named_parameters() if id(p) in boosted
        }
        return {key.rsplit(".", 1)[0].split(".conv")[0].split(".0")[0] for key in found}

    resnet = built("resnet18")
    assert {id(p) for p in resnet.boosted_parameters()} == {
        id(p) for p in resnet.model.layer4.parameters()
    }
    vgg = Encoder("vgg16", form="wsol")
    assert [tuple(p.shape) for p in vgg.boosted_parameters()] == [(1024, 512, 3, 3), (1024,)]
    assert names(Encoder("inception_v3", form="wsol")) == {"A3_1", "A3_2"}
    assert built("vgg16").boosted_parameters() == []
    assert built("test_vit").boosted_parameters() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "test_vit", "stride": 8}, r"patch size.*ResNet, VGG"),
        ({"name": "swin_tiny_patch4_window7_224", "stride": 16}, "patch size"),
        ({"name": "vgg11", "stride": 8, "stride_mode": "dilated"}, "no dilated form"),
        ({"name": "test_vit", "stride": 8, "stride_mode": "dilated"}, "no dilated form"),
        ({"name": "resnetblur50", "stride": 8}, "anti-aliasing"),
        ({"name": "test_vit", "stride": 32}, "cannot become 32"),
        ({"name": "test_vit", "form": "wsol"}, "no WSOL form"),
        ({"name": "vgg16", "form": "wsol", "stride": 32}, "stride 8 or 16"),
        ({"name": "test_resnet", "form": "papers"}, "form must be"),
        ({"name": "test_resnet", "stride": 7}, "8, 16, 32 or None"),
        ({"name": "test_resnet", "stride_mode": "dilate"}, "stride_mode must be"),
        ({"name": "restnet50"}, "nearest names: resnet50"),
        ({"name": "hf-hub:timm/resnet18"}, "no network"),
        ({"name": "resnet18.none"}, r"resnet18 has:.*resnet18\.a1_in1k"),
        ({"name": "test_resnet", "mean": [0.1, 0.2]}, "1 or 3 values"),
        ({"name": "test_resnet", "pretrained": True, "weights": "w.pth"}, "not both"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Encoder(**arguments)


def test_own_stride_is_accepted_everywhere():
    assert Encoder("test_vit", stride=16).strides == [16] * 4


# inputs


def test_input_errors():
    vit, resnet = built("test_vit"), built("test_resnet")
    with pytest.raises(ValueError, match="16x16, which do not divide"):
        vit(picture(70))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(2, 4, 64, 64\)"):
        resnet(picture(64, channels=4))
    with pytest.raises(ValueError, match="img_size"):
        Encoder(FIXED_SIZE)(picture(64))
    with pytest.raises(IndexError, match=r"levels 0\.\.4"):
        resnet.split(picture(64), 6)
    with pytest.raises(ValueError, match=r"near: .*layer4"):
        resnet.split(picture(64), "layer5")
    with pytest.raises(ValueError, match="only at layer=-1"):
        Encoder(FIXED_SIZE, img_size=160).split(picture(160), 1)
    activation, rest = vit.split(picture(64), "blocks.2")
    with pytest.raises(ValueError, match="3 activations are no whole multiple of the 2"):
        rest(torch.cat([activation, activation[:1]]))


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224", FIXED_SIZE])
@torch.no_grad()
def test_img_size(name):
    encoder = Encoder(name, img_size=[96, 64]).eval()
    image = torch.randn(1, 3, 96, 64)
    final, levels = encoder(image)
    stride = encoder.strides[-1]
    assert final.shape[2:] == (96 // stride, 64 // stride)
    assert levels[-1].shape[2:] == final.shape[2:]


@torch.no_grad()
def test_rectangular_images():
    for name in ("test_resnet", "test_vit", "swin_tiny_patch4_window7_224"):
        encoder = built(name)
        final, levels = encoder(torch.randn(1, 3, 64, 96))
        assert final.shape[3] * 2 == final.shape[2] * 3
        activation, rest = encoder.split(torch.randn(1, 3, 64, 96), 0)
        assert activation.shape == levels[0].shape
        assert rest(activation).shape == final.shape


@pytest.mark.parametrize("channels", [1, 4])
@torch.no_grad()
def test_other_numbers_of_channels(channels):
    encoder = Encoder("test_resnet", in_chans=channels).eval()
    assert encoder.final(picture(64, channels=channels)).shape == (2, 96, 2, 2)
    assert len(encoder.mean) == len(encoder.std) == channels


def test_mean_and_std():
    assert built("resnet18").mean == (0.485, 0.456, 0.406)
    assert built("resnet18").std == (0.229, 0.224, 0.225)
    encoder = Encoder("test_resnet", mean=0.5, std=[0.1, 0.2, 0.3])
    assert encoder.mean == (0.5, 0.5, 0.5)
    assert encoder.std == (0.1, 0.2, 0.3)


# weights


def test_nothing_is_downloaded_unless_asked(monkeypatch):
    asked = []
    create = timm.create_model

    def recorded(name, pretrained=False, **options):
        asked.append(pretrained)
        model = create(name, **options)
        if pretrained:
            nn.init.constant_(model.conv1[0].weight, 0.25)
        return model

    monkeypatch.setattr(timm, "create_model", recorded)
    Encoder("test_resnet", stride=8)
    assert asked == [False]
    encoder = Encoder("test_resnet", pretrained=True, stride=8)
    assert asked[1:] == [False, True]
    assert (encoder.model.conv1[0].weight == 0.25).all()
    assert encoder.strides[-1] == 8


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".safetensors"])
def test_weight_files(tmp_path, ending):
    source = built("test_resnet")
    state = {
        k: v.half() if v.is_floating_point() else v for k, v in source.model.state_dict().items()
    }
    state["fc.weight"] = torch.zeros(7, 96)
    path = tmp_path / f"weights{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    encoder = Encoder("test_resnet", weights=path, stride=8)
    for key, value in encoder.model.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.equal(value, state[key].to(value.dtype)), key


def test_checkpoints_around_weights(tmp_path):
    source = built("test_resnet").model.state_dict()
    wrapped = {"state_dict": {f"module.encoder.model.{k}": v for k, v in source.items()}}
    wrapped["state_dict"]["head.fc.weight"] = torch.zeros(2, 96)
    wrapped["epoch"] = 3
    torch.save(wrapped, tmp_path / "last.pth")
    encoder = Encoder("test_resnet", weights=str(tmp_path / "last.pth"))
    assert all(torch.equal(v, source[k]) for k, v in encoder.model.state_dict().items())
    torch.save(encoder.state_dict(), tmp_path / "own.pt")
    again = Encoder("test_resnet")
    again.load_weights(tmp_path / "own.pt")
    assert all(torch.equal(v, source[k]) for k, v in again.model.state_dict().items())


def test_weights_of_the_trunk_fit_the_wsol_form(tmp_path):
    plain = built("inception_v3").model.state_dict()
    plain = {k: v for k, v in plain.items() if "num_batches" not in k}
    torch.save({**plain, "fc.weight": torch.zeros(3, 2048)}, tmp_path / "w.pth")
    form = Encoder("inception_v3", form="wsol", weights=tmp_path / "w.pth")
    assert torch.equal(
        form.model.Mixed_6a.branch3x3.conv.weight, plain["Mixed_6a.branch3x3.conv.weight"]
    )


def test_stem_of_a_weight_file_is_adapted(tmp_path):
    source = built("test_resnet").model.state_dict()
    torch.save(source, tmp_path / "w.pth")
    grey = Encoder("test_resnet", weights=tmp_path / "w.pth", in_chans=1)
    expected = source["conv1.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(grey.model.conv1[0].weight.detach(), expected)


@torch.no_grad()
def test_weights_of_another_image_size_are_resampled(tmp_path):
    source = Encoder("test_vit", img_size=96).eval()
    torch.save(source.model.state_dict(), tmp_path / "w.pth")
    encoder = Encoder("test_vit", weights=tmp_path / "w.pth").eval()  # built for 160
    assert encoder.model.pos_embed.shape[1] > source.model.pos_embed.shape[1]
    assert torch.equal(encoder.model.cls_token, source.model.cls_token)


def test_weight_file_errors(tmp_path):
    state = built("test_resnet").model.state_dict()
    with pytest.raises(FileNotFoundError, match=r"no weight file .*none\.pth"):
        Encoder("test_resnet", weights=tmp_path / "none.pth")

    def refused(content, ending=".pth"):
        path = tmp_path / f"w{ending}"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the texts are compared below
            Encoder("test_resnet", weights=path)
        return str(caught.value)

    renamed = {k.replace("layer3.0.conv2", "layer3.0.conv_two"): v for k, v in state.items()}
    renamed["layer1.0.conv1.weight"] = torch.zeros(4, 4, 3, 3)
    text = refused(renamed)
    assert "missing 1 of" in text
    assert "layer3.0.conv2.weight (nearest: layer3.0.conv_two.weight)" in text
    assert "unexpected 1: layer3.0.conv_two.weight (nearest: layer3.0.conv" in text
    assert "layer1.0.conv1.weight (4, 4, 3, 3) instead of (32, 32, 3, 3)" in text
    poisoned = {k: v.clone() for k, v in state.items()}
    poisoned["layer2.0.bn1.running_var"][3] = float("nan")
    poisoned["layer4.0.conv1.weight"][0, 0, 0, 0] = float("inf")
    text = refused(poisoned)
    assert "NaN or infinite values in layer2.0.bn1.running_var, layer4.0.conv1.weight" in text
    assert "damaged or holds more than tensors" in refused(b"no weights")
    assert "damaged or holds more than tensors" in refused({"a": Path("x")})
    assert "cannot be read as weights" in refused(b"no weights", ".safetensors")
    assert "end in .safetensors, .pth" in refused(b"no weights", ".ckpt2")
    assert "holds no named tensors" in refused({"epoch": 3})


@torch.no_grad()
def test_real_weights(real_data):
    path = real_data / "weights" / "mobilenetv2_100_tfq_fp16.safetensors"
    if not path.is_file():
        pytest.skip(f"no weight file {path}")
    encoder = Encoder("mobilenetv2_100", weights=path, mean=0.5, std=0.5).eval()
    file = load_file(path)
    assert encoder.mean == encoder.std == (0.5, 0.5, 0.5)
    assert torch.equal(encoder.model.conv_head.weight, file["conv_head.weight"].float())
    reference = timm.create_model("mobilenetv2_100", checkpoint_path=path).eval()
    final, levels = encoder(picture(96))
    assert torch.equal(final, reference.forward_features(picture(96)))
    assert final.shape[1] == encoder.final_channels == 1280
    assert levels[-1].shape[1] == encoder.channels[-1] == 320
    fine = Encoder("mobilenetv2_100", weights=path, stride=8).eval()
    assert fine.final(picture(96)).shape == (2, 1280, 12, 12)


def test_the_class_token_may_stand_for_the_map():
    torch.manual_seed(0)
    encoder = Encoder("test_vit", form="class_token").eval()
    image = torch.randn(2, 3, 160, 160)
    final, levels = encoder(image)
    model = encoder.model
    pooled = model.forward_head(model.forward_features(image), pre_logits=True)  # timm: the token
    assert torch.equal(final, pooled[:, :, None, None])
    assert levels[-1].shape == (2, 64, 10, 10)
    assert torch.equal(encoder.final(image), final)
    activation, rest = encoder.split(image, -2)
    assert torch.equal(rest(activation), final)
    with pytest.raises(ValueError, match="test_resnet has no class token"):
        Encoder("test_resnet", form="class_token")


def test_timm_takes_further_arguments(tmp_path):
    scaled = Encoder("test_vit", args={"init_values": 0.5})
    gammas = {key: value for key, value in scaled.state_dict().items() if key.endswith("gamma")}
    assert gammas
    assert all((value == 0.5).all() for value in gammas.values())
    torch.save(scaled.model.state_dict(), tmp_path / "scaled.pth")
    Encoder("test_vit", args={"init_values": 1.0}, weights=tmp_path / "scaled.pth")
    with pytest.raises(ValueError, match="does not fit"):
        Encoder("test_vit", weights=tmp_path / "scaled.pth")
    with pytest.raises(ValueError, match="test_vit takes no arguments"):
        Encoder("test_vit", args={"no_such_option": 1})
    with pytest.raises(ValueError, match="img_size of test_vit: give the encoder's own"):
        Encoder("test_vit", args={"img_size": 32})


def test_the_encoder_of_a_checkpoint_is_read_whatever_its_classes(tmp_path):
    path = filled_classifier(tmp_path, num_classes=7, stride=None)
    encoder = Encoder("test_resnet", weights=path)
    expected = load_checkpoint(path).encoder.state_dict()
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, expected[key]), key
    with pytest.raises(ValueError, match="does not fit"):
        Encoder("test_vit", weights=path)
