"""Attention that is read against timm's own unfused blocks; what must not change does not."""

import copy
import threading

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from wsl_zoo.encoders import Encoder
from wsl_zoo.encoders.attention import (
    attend_by,
    attention_scores,
    forward_tokens,
    prefix_tokens,
    read_attention,
    require_class_token,
)

# With class token: small, twelve blocks, distilled (two prefix tokens), rotary positions.
NETWORKS = [
    ("test_vit", 48), ("deit_tiny_patch16_224", 48), ("deit_tiny_distilled_patch16_224", 48),
    ("eva02_tiny_patch14_224", 42), ("qk_norm", 48),
]  # fmt: skip


def built(name):
    torch.manual_seed(0)
    if name == "qk_norm":
        encoder = Encoder("test_vit")
        encoder.model = timm.create_model(
            "test_vit", num_classes=0, qk_norm=True, init_values=0.1, dynamic_img_size=True
        )
    else:
        encoder = Encoder(name)
    for parameter in encoder.parameters():  # away from the near-uniform attention of a fresh net
        if parameter.ndim == 2:
            parameter.data *= 4
    return encoder.eval()


def picture(size, batch=3):
    return torch.randn(batch, 3, size, size * 4 // 3, generator=torch.Generator().manual_seed(1))


def unfused(encoder, image):
    """What timm computes without the fused kernel, seen by hooks on its dropouts."""
    encoder, seen = copy.deepcopy(encoder), []
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
            module.attn_drop.register_forward_hook(lambda *a: seen.append(a[2].mean(1)))
    return encoder.final(image), seen


@pytest.mark.parametrize(("name", "size"), NETWORKS)
@torch.no_grad()
def test_attention_is_timms_and_the_output_is_untouched(name, size):
    encoder, image = built(name), picture(size)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    final, attention = read_attention(encoder, image)
    reference, expected = unfused(encoder, image)
    assert torch.equal(final, encoder.final(image))
    torch.testing.assert_close(final, reference, rtol=1e-4, atol=1e-4)
    tokens = prefix_tokens(encoder) + final.shape[-2] * final.shape[-1]
    assert final.shape[-2] != final.shape[-1]
    assert len(attention) == len(expected) == require_class_token(encoder)
    for ours, theirs in zip(attention, expected, strict=True):
        assert ours.shape == (3, tokens, tokens)
        torch.testing.assert_close(ours.sum(-1), torch.ones(3, tokens))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert attention[-1].std() > 0.1 / tokens  # there is something to compare
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert all("forward" not in vars(module) for module in encoder.modules())


@torch.no_grad()
def test_the_first_rows_alone_are_those_of_the_whole():
    encoder, image = built("test_vit"), picture(48)
    final, whole = read_attention(encoder, image)
    same, rows = read_attention(encoder, image, rows=1)
    assert torch.equal(same, final)
    for one, all_rows in zip(rows, whole, strict=True):
        assert one.shape == (3, 1, all_rows.shape[-1])
        torch.testing.assert_close(one, all_rows[:, :1])


@torch.no_grad()
def test_a_mask_is_added_to_the_scores():
    """BEiT adds a position bias; other masks are refused."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 7, 8, generator=generator)
    bias = torch.randn(1, 4, 7, 7, generator=generator)
    for scale in (None, 0.3):
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        weights = attention_scores(q, k, attn_mask=bias, scale=scale).softmax(-1)
        torch.testing.assert_close(weights @ v, expected)
    torch.testing.assert_close(
        attention_scores(q[:, :, :1], k, attn_mask=bias),
        attention_scores(q, k, attn_mask=bias)[:, :, :1],
    )
    for options in ({"is_causal": True}, {"attn_mask": bias > 0}):
        with pytest.raises(ValueError, match="without causal and boolean masks"):
            attention_scores(q, k, **options)


@torch.no_grad()
def test_another_rule_holds_inside_only():
    encoder, image = built("test_vit"), picture(48)
    final = encoder.final(image)
    elsewhere = []

    def mean(query, key, value, **options):
        return value.mean(dim=2, keepdim=True).expand_as(value)

    with attend_by(mean):
        changed = encoder.final(image)
        thread = threading.Thread(target=lambda: elsewhere.append(encoder.final(image).detach()))
        thread.start()
        thread.join()
    assert not torch.allclose(changed, final, atol=1e-2)
    torch.testing.assert_close(elsewhere[0], final)

    def fail(*args, **options):
        raise KeyError("rule")

    with pytest.raises(KeyError, match="rule"), attend_by(fail):
        encoder.final(image)
    assert torch.equal(encoder.final(image), final)


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224", "qk_norm"])
@torch.no_grad()
def test_tokens_that_nobody_attends_to_change_nothing(name):
    encoder, image = built(name), picture(48)
    tokens = encoder.model.forward_features(image)
    extra = torch.randn(1, 2, tokens.shape[-1])

    def blind(query, key, value, **options):
        return F.scaled_dot_product_attention(query, key[:, :, :-2], value[:, :, :-2], **options)

    with attend_by(blind):
        prefix, patches, ours = forward_tokens(encoder, image, extra)
    count = prefix_tokens(encoder)
    torch.testing.assert_close(prefix, tokens[:, :count], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(patches, encoder.final(image), rtol=1e-4, atol=1e-4)
    assert ours.shape == (3, 2, tokens.shape[-1])
    _, seen, _ = forward_tokens(encoder, image, extra)
    assert not torch.allclose(seen, patches, atol=1e-2)


def test_attention_is_in_the_graph_and_exact_in_half_precision():
    encoder, image = built("test_vit"), picture(48)
    _, attention = read_attention(encoder, image, rows=1)
    (gradient,) = torch.autograd.grad(attention[0][:, 0, 1].sum(), encoder.model.cls_token)
    assert gradient.abs().max() > 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, half = read_attention(encoder, image)
    assert half[0].dtype == torch.float32
    torch.testing.assert_close(half[0].sum(-1), torch.ones(half[0].shape[:2]))
    torch.testing.assert_close(half[0][:, :1], attention[0].detach(), rtol=0.2, atol=0.02)


def test_attention_dropout_drops_and_is_not_read():
    encoder, image = built("test_vit"), picture(48)
    for module in encoder.modules():
        if hasattr(module, "attn_drop"):
            module.attn_drop = nn.Dropout(0.5)
    encoder.train()
    torch.manual_seed(1)
    final, attention = read_attention(encoder, image)
    torch.manual_seed(1)
    assert torch.equal(final, encoder.final(image))
    assert not torch.equal(final, encoder.final(image))
    torch.testing.assert_close(attention[0].sum(-1), torch.ones(attention[0].shape[:2]))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit4", "swin_tiny_patch4_window7_224"])
def test_networks_without_class_token_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} has no class token .* use a ViT or DeiT"):
        require_class_token(Encoder(name))


def test_blocks_that_attend_otherwise_are_refused():
    """A block without attention; XCiT's, which attend over channels."""
    encoder = built("test_vit")
    encoder.model.blocks[2] = nn.Identity()
    with pytest.raises(ValueError, match="6 blocks over 13 tokens attended 5 times"):
        read_attention(encoder, picture(48))
    with pytest.raises(ValueError, match=r"xcit_nano_12_p16_224.* ViT"):  # why: by timm's release
        require_class_token(Encoder("xcit_nano_12_p16_224"))


def test_networks_that_take_no_further_tokens_are_refused():
    encoder = Encoder("eva02_tiny_patch14_224")
    with pytest.raises(ValueError, match="takes no further tokens; ViT and DeiT do"):
        forward_tokens(encoder, torch.zeros(1, 3, 56, 56), torch.zeros(1, 1, 192))
    with pytest.raises(ValueError, match=r"images \(B, 3, H, W\)"):
        forward_tokens(Encoder("test_vit"), torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 64))


def test_unfused_networks_are_refused():
    timm.layers.set_fused_attn(False)
    try:
        encoder = Encoder("test_vit")
    finally:
        timm.layers.set_fused_attn(True)
    with pytest.raises(ValueError, match=r"do not use torch's fused attention.*TIMM_FUSED_ATTN"):
        require_class_token(encoder)
    require_class_token(Encoder("test_vit"))
