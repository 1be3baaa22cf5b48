"""CAM against its formula, computed apart from the model."""

import pytest
import torch
from torch.nn import functional as F

from wsl_zoo.methods import CAMClassifier

K = 5


def model_of(head="wgap", encoder="test_resnet", bias=10.0):
    torch.manual_seed(0)
    model = CAMClassifier(head=head, num_classes=K, encoder=encoder).eval()
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            parameter.copy_(torch.randn_like(parameter) + (bias if name.endswith("bias") else 0.0))
    return model


def batch_of(size=64, count=3):
    image = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return {"image": image, "label": torch.tensor([4, 0, 2])[:count], "index": torch.arange(count)}


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit"])
def test_maps_are_the_weights_times_the_features(encoder):
    model, batch = model_of(encoder=encoder), batch_of()
    with torch.no_grad():
        output = model(batch)
        features = model.encoder.model.forward_features(batch["image"])
    if features.ndim == 3:  # tokens after the class token
        features = features[:, 1:].transpose(1, 2).unflatten(2, (64 // 16, 64 // 16))
    weight, bias = model.head.fc.weight, model.head.fc.bias
    expected = (weight[None, :, :, None, None] * features[:, None]).sum(2)
    torch.testing.assert_close(output.final, features)
    torch.testing.assert_close(output.map, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.map.mean((2, 3)) + bias, output.logits, rtol=1e-4, atol=1e-4)
    assert output.logits.shape == (3, K)


def test_class_k_is_row_k():
    """No background row: the map and the logit of class k answer to row k of the weights alone."""
    model, batch = model_of(), batch_of()
    with torch.no_grad():
        before = model(batch)
        model.head.fc.weight[3] += 1.0
        after = model(batch)
    changed = (before.map != after.map).flatten(2).any(2)
    assert changed.tolist() == [[False, False, False, True, False]] * 3
    assert (before.logits != after.logits).tolist() == changed.tolist()
    assert model.head.fc.weight.shape[0] == K
    maps = model.localize(batch, after, "label")
    for i, k in enumerate(batch["label"].tolist()):
        z = torch.einsum("c,chw->hw", model.head.fc.weight[k], after.final[i])
        z = (z - z.min()) / (z.max() - z.min())
        expected = F.interpolate(z[None, None], (64, 64), mode="bilinear")[0, 0]
        torch.testing.assert_close(maps[i], expected, rtol=1e-3, atol=1e-4)


def test_gap_and_wgap_are_one_function():
    wgap, gap, batch = model_of("wgap"), model_of("gap"), batch_of()
    gap.encoder.load_state_dict(wgap.encoder.state_dict())
    with torch.no_grad():
        gap.head.conv.weight.copy_(wgap.head.fc.weight[:, :, None, None])
        gap.head.conv.bias.copy_(wgap.head.fc.bias)
        ours, theirs = wgap(batch), gap(batch)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    bias = wgap.head.fc.bias.view(1, K, 1, 1)
    assert not torch.allclose(ours.map, theirs.map, atol=1.0)  # the bias is in GAP's map
    torch.testing.assert_close(ours.map + bias, theirs.map, rtol=1e-4, atol=1e-4)
    for target in ("label", "pred", 3):
        torch.testing.assert_close(
            wgap.localize(batch, ours, target), gap.localize(batch, theirs, target),
            rtol=1e-3, atol=1e-4,
        )  # fmt: skip


@pytest.mark.parametrize("head", ["gap", "wgap"])
def test_half_precision_gives_float32_maps_near_the_exact_ones(head):
    model, batch = model_of(head, bias=0.0), batch_of()
    with torch.no_grad():
        exact = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(batch)
            maps = model.localize(batch, half, "label")
            terms = model.loss(batch, half)
    assert half.final.dtype == torch.bfloat16
    assert half.logits.dtype == half.map.dtype == maps.dtype == terms["ce"].dtype == torch.float32
    spread = exact.map.std()
    assert ((half.map - exact.map).abs().max() / spread) < 0.2
    assert (maps - model.localize(batch, exact, "label")).abs().mean() < 0.02
    assert float(maps.min()) >= 0.0
    assert float(maps.max()) <= 1.0


def test_the_loss_is_the_cross_entropy():
    model, batch = model_of(), batch_of()
    output = model(batch)
    terms = model.loss(batch, output)
    log_softmax = output.logits - output.logits.exp().sum(1, keepdim=True).log()
    assert list(terms) == ["ce"]
    torch.testing.assert_close(terms["ce"], -log_softmax[range(3), batch["label"]].mean())


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="head='max' must be one of gap, wgap"):
        CAMClassifier(head="max", encoder="test_resnet")
