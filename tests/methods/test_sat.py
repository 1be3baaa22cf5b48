"""SAT against its formula, block by block in plain matrices, and the closed forms of its loss."""

import pytest
import torch
from torch.nn import functional as F

from tests.methods.vits import K, batch_of, uneven
from wsl_zoo.methods import SAT
from wsl_zoo.types import Output


def model_of(**changes):
    return uneven(SAT, **changes).eval()


def by_hand(model, image, masked):
    """Logits and mask, with attention written out."""
    vit, heads = model.encoder.model, model.encoder.model.blocks[0].attn.num_heads
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(image)))
    x = torch.cat([x, model.location_token.expand(len(x), -1, -1)], dim=1)
    masks = []
    for i, block in enumerate(vit.blocks):
        qkv = block.attn.qkv(block.norm1(x)).unflatten(2, (3, heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        if i >= len(vit.blocks) - masked:
            masks.append(1 / (1 + (-scores[:, :, -1].mean(1)).exp()))
            weights = weights * masks[-1].view(len(x), 1, 1, -1)
        x = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    mask = sum(masks) / len(masks)
    return model.head(vit.norm(x)[:, 0]), mask[:, 1:-1]


@pytest.mark.parametrize(("changes", "masked"), [({}, 1), ({"masked_blocks": 3}, 3)])
@torch.no_grad()
def test_logits_and_mask_are_the_formula(changes, masked):
    model, batch = model_of(**changes).double(), batch_of()
    batch["image"] = batch["image"].double()
    output = model(batch)
    logits, mask = by_hand(model, batch["image"], masked)
    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(output.extra["mask"], mask.view(3, 1, 3, 4))
    assert mask.std() > 0.05
    others, _ = by_hand(model, batch["image"], masked + 1)
    assert not torch.allclose(others, logits, atol=1e-3)


@torch.no_grad()
def test_one_map_for_all_classes():
    model, batch = model_of(), batch_of()
    output = model(batch)
    assert output.map.shape == (3, K, 3, 4)
    assert all(torch.equal(output.map[:, k], output.extra["mask"][:, 0]) for k in range(K))
    assert 0 < output.map.min() <= output.map.max() < 1
    maps = model.localize(batch, output, "label")
    assert maps.shape == (3, 48, 64)
    assert torch.equal(maps, model.localize(batch, output, 1))


@torch.no_grad()
def test_without_queries_the_mask_is_one_half():
    model, batch = (
        model_of(masked_blocks=6, area=0.2, area_weight=2.0, binary_weight=3.0),
        batch_of(),
    )
    width = model.encoder.final_channels
    for block in model.encoder.model.blocks:
        block.attn.qkv.weight[:width] = 0
        block.attn.qkv.bias[:width] = 0
    output = model(batch)
    torch.testing.assert_close(output.map, torch.full((3, K, 3, 4), 0.5))
    terms = model.loss(batch, output)
    assert list(terms) == ["ce", "area", "binary"]
    torch.testing.assert_close(terms["ce"], F.cross_entropy(output.logits, batch["label"]))
    assert float(terms["area"]) == pytest.approx(2 * 0.3)
    assert float(terms["binary"]) == pytest.approx(3 * 0.25)


def terms_of(mask, **changes):
    model = SAT(num_classes=2, encoder="test_vit", **changes)
    size = len(mask)
    output = Output(logits=torch.zeros(size, 2), extra={"mask": mask[:, None]})
    return model.loss({"label": torch.zeros(size, dtype=torch.long)}, output)


def test_the_area_is_the_batchs():
    """A full and an empty map meet a = 0.5 together, each misses it alone; borders are no edges."""
    full, empty = torch.ones(1, 5, 5), torch.zeros(1, 5, 5)
    both = terms_of(torch.cat([full, empty]), area=0.5)
    assert float(both["area"]) == 0.0
    assert float(both["binary"]) == pytest.approx(0.0, abs=1e-6)
    assert float(terms_of(full, area=0.5)["area"]) == 0.5
    assert float(terms_of(empty, area=0.3)["area"]) == pytest.approx(0.3)


def test_a_lonely_point_is_no_object():
    """Smoothed, it is 1/9 around itself: binary as it is, the map pays for its roughness."""
    point = torch.zeros(1, 7, 7)
    point[0, 3, 3] = 1
    expected = 9 * (1 / 9) * (8 / 9) / 49
    assert float(terms_of(point)["binary"]) == pytest.approx(expected)


def test_the_last_quarter_is_masked():
    assert SAT(encoder="deit_tiny_patch16_224").first_masked == 9
    assert SAT(encoder="test_vit").first_masked == 5
    assert SAT(encoder="test_vit", masked_blocks=6).first_masked == 0


def test_the_loss_reaches_every_weight():
    model, batch = model_of().train(), batch_of()
    terms = model.loss(batch, model(batch))
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, model.location_token, retain_graph=True)
        assert gradient.abs().max() > 0, name
    sum(terms.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    in_head = {id(p) for p in model.param_groups()[1]["params"]}
    assert in_head == {id(p) for p in (model.location_token, *model.head.parameters())}


@torch.no_grad()
def test_half_precision_gives_float32_maps_near_the_exact_ones():
    model, batch = model_of(), batch_of()
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)
    assert half.logits.dtype == half.map.dtype == torch.float32
    assert (half.map - exact.map).abs().mean() < 0.02


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"area=1.5 is a fraction"):
        SAT(encoder="test_vit", area=1.5)
    for count in (0, 7):
        with pytest.raises(ValueError, match=rf"masked_blocks={count} must lie in 1..6"):
            SAT(encoder="test_vit", masked_blocks=count)
    with pytest.raises(ValueError, match="test_resnet has no class token"):
        SAT(encoder="test_resnet")
    model = model_of()
    model.encoder.model.blocks[0].attn.fused_attn = False
    with pytest.raises(ValueError, match="6 blocks attended 5 times"):
        model(batch_of())
