"""TS-CAM against its formula, computed with timm's unfused blocks, and its limit cases."""

import pytest
import torch
from torch.nn import functional as F

from tests.methods.vits import K, batch_of, uneven
from wsl_zoo.methods import TSCAM, CAMClassifier


def model_of(**changes):
    return uneven(TSCAM, **changes).eval()


@pytest.mark.parametrize("encoder", ["test_vit", "deit_tiny_patch16_224"])
@torch.no_grad()
def test_the_map_is_attention_times_semantics(encoder):
    model, batch = model_of(encoder=encoder), batch_of()
    output = model(batch)
    seen = []
    for block in model.encoder.model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda *a: seen.append(a[2]))
    tokens = model.encoder.model.forward_features(batch["image"])[:, 1:]
    patches = tokens.transpose(1, 2).unflatten(2, (3, 4))
    semantic = F.conv2d(patches, model.head.weight, model.head.bias, padding=1)
    attention = sum(weights.mean(1)[:, 0, 1:] for weights in seen).view(3, 1, 3, 4)
    assert len(seen) == len(model.encoder.model.blocks)
    assert attention.std() > 0.1 * attention.mean()
    torch.testing.assert_close(output.map, attention * semantic, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(output.logits, semantic.mean((2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(output.final, patches, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_every_image_has_the_map_of_its_own_class():
    """The published code indexes the maps of a batch wrongly."""
    model, batch = model_of(), batch_of()
    together = model.localize(batch, model(batch), "label")
    assert together.shape == (3, 48, 64)
    for i, label in enumerate(batch["label"].tolist()):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        alone = model(one)
        z = alone.map[0, label]
        z = (z - z.min()) / (z.max() - z.min())
        expected = F.interpolate(z[None, None], (48, 64), mode="bilinear")[0, 0]
        torch.testing.assert_close(together[i], expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model.localize(one, alone, label)[0], together[i])


@torch.no_grad()
def test_with_uniform_attention_the_map_is_the_semantic_map():
    model, batch = model_of(), batch_of()
    width = model.encoder.final_channels
    for block in model.encoder.model.blocks:  # no queries, so all scores are 0
        block.attn.qkv.weight[:width] = 0
        block.attn.qkv.bias[:width] = 0
    output = model(batch)
    depth, tokens = len(model.encoder.model.blocks), 1 + 3 * 4
    torch.testing.assert_close(output.map, model.head(output.final) * depth / tokens)
    assert output.map.flatten(2).std(-1).min() > 0.01


@torch.no_grad()
def test_without_neighbours_the_classifier_is_cams():
    model, batch = model_of(), batch_of()
    cam = CAMClassifier(num_classes=K, encoder="test_vit", head="wgap").eval()
    cam.encoder.load_state_dict(model.encoder.state_dict())
    model.head.weight.zero_()
    model.head.weight[:, :, 1, 1] = cam.head.fc.weight
    model.head.bias.copy_(cam.head.fc.bias)
    torch.testing.assert_close(model(batch).logits, cam(batch).logits, rtol=1e-4, atol=1e-4)


def test_the_head_starts_as_deits_and_learns_at_the_rate_of_all():
    model = TSCAM(num_classes=50, encoder="deit_tiny_patch16_224")
    assert model.head.weight.shape == (50, 192, 3, 3)
    assert model.head.weight.detach().std() == pytest.approx(0.02, rel=0.02)
    assert not model.head.bias.any()
    assert {group["lr"] for group in model.param_groups()} == {5.0e-5}
    assert TSCAM(encoder="test_vit").hparams["optimizer"] == "adamw"
    model = TSCAM(encoder="test_vit", lr=0.01, head_lr_factor=10.0)
    assert [group["lr"] for group in model.param_groups()] == [0.01, 0.1]


def test_the_loss_is_the_cross_entropy_and_reaches_every_weight():
    model, batch = model_of().train(), batch_of()
    output = model(batch)
    terms = model.loss(batch, output)
    log_softmax = output.logits - output.logits.exp().sum(1, keepdim=True).log()
    assert list(terms) == ["ce"]
    torch.testing.assert_close(terms["ce"], -log_softmax[range(3), batch["label"]].mean())
    terms["ce"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_half_precision_gives_float32_maps_near_the_exact_ones():
    model, batch = model_of(), batch_of()
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)
        maps = model.localize(batch, half, "label")
    assert half.logits.dtype == half.map.dtype == maps.dtype == torch.float32
    assert (half.map - exact.map).abs().max() / exact.map.std() < 0.3
    assert (maps - model.localize(batch, exact, "label")).abs().mean() < 0.03


def test_an_encoder_without_class_token_is_refused():
    with pytest.raises(ValueError, match="test_resnet has no class token"):
        TSCAM(encoder="test_resnet")
