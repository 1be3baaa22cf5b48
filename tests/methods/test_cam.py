"""CAM against its formula, computed apart from the model."""

import pytest
import torch
from torch.nn import functional as F

from tests.cases import tiny_data, trainer
from wsl_zoo.cams import normalize_map
from wsl_zoo.methods import CAMClassifier, HaS
from wsl_zoo.methods.cam import CAMS, HEADS

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "mean"}, "head='mean' must be one of gap, wgap, max"),
        ({"cam": "CAM"}, "cam='CAM' must be one of cam, gradcam"),
        ({"head": "lse", "head_args": {"s": 3}}, "head_args=.*of LogSumExp.*'s'"),
        ({"cam_args": {"samples": 3}}, "cam_args=.*of CAM.*'samples'"),
        ({"head": "wildcat", "head_args": {"kmax": 0}}, "kmax must be positive"),
        ({"cam_layer": -2}, "only"),
    ],
)
def test_wrong_choices_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CAMClassifier(encoder="test_resnet", **arguments)


@pytest.mark.parametrize("head", [name for name in HEADS if name not in ("gap", "wgap")])
def test_other_heads_are_those_of_the_library(head):
    options = {"background": True}
    torch.manual_seed(0)
    model = CAMClassifier(head=head, head_args=options, num_classes=K, encoder="test_resnet").eval()
    assert type(model.head) is HEADS[head]
    with torch.no_grad():
        output = model(batch_of())
        logits, maps = model.head(output.final)
    assert torch.equal(output.logits, logits)
    assert output.map.shape[:2] == (3, K)
    assert torch.equal(output.map, maps)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "cam", [name for name in CAMS if name not in ("cam", "sscam", "iscam", "peak")]
)
def test_the_chosen_map_is_read_and_normalised(cam, mode):
    torch.manual_seed(0)
    model = CAMClassifier(num_classes=K, encoder="test_resnet", cam=cam).eval()
    batch = batch_of()
    with mode():
        output = model(batch)
        maps = model.localize(batch, output, "label")
    raw = CAMS[cam](model.encoder, model.head)(batch["image"], batch["label"])
    relu = CAMS[cam].relu
    torch.testing.assert_close(maps, normalize_map(raw, 64, relu=relu), rtol=1e-3, atol=1e-4)
    assert not maps.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_peaks_are_read_at_the_image():
    torch.manual_seed(0)
    model = CAMClassifier(num_classes=K, encoder="test_resnet", head="prm", cam="peak").eval()
    batch = batch_of()
    with torch.no_grad():
        output = model(batch)
        raw = model.class_map(batch, output, batch["label"])
    assert raw.shape == (3, 64, 64)
    torch.testing.assert_close(
        raw, CAMS["peak"](model.encoder, model.head)(batch["image"], batch["label"])
    )
    with pytest.raises(ValueError, match="need a head with peaks"):
        CAMClassifier(encoder="test_resnet", cam="peak")


@pytest.mark.parametrize("layer", [-2, "layer3"])
def test_inner_layers_are_read(layer):
    model = CAMClassifier(
        num_classes=K, encoder="test_resnet", cam="layercam", cam_layer=layer
    ).eval()
    batch = batch_of()
    with torch.no_grad():
        output = model(batch)
        raw = model.class_map(batch, output, batch["label"])
    expected = CAMS["layercam"](model.encoder, model.head, layer)(batch["image"], batch["label"])
    torch.testing.assert_close(raw, expected)


def test_one_checkpoint_serves_every_map(tmp_path):
    model = CAMClassifier(num_classes=4, encoder="test_resnet")
    data = tiny_data()
    run = trainer(tmp_path)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    values = {}
    for cam in ("cam", "gradcampp"):
        other = CAMClassifier(num_classes=4, encoder="test_resnet", cam=cam)
        (values[cam],) = trainer(tmp_path).test(
            other, data, ckpt_path=tmp_path / "a.ckpt", verbose=False
        )
    assert values["cam"]["test/acc"] == values["gradcampp"]["test/acc"]
    assert values["cam"]["test/pxap"] != values["gradcampp"]["test/pxap"]


def test_a_frozen_encoder_does_not_learn(tmp_path):
    model = CAMClassifier(num_classes=4, encoder="test_resnet", freeze_encoder=True, lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(model, tiny_data())
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"head.fc.weight", "head.fc.bias"}
    assert [group["name"] for group in model.param_groups()] == ["head"]
    assert not model.encoder.training


def test_cached_features_change_nothing_but_the_time(tmp_path):
    data = {"hflip": 0.0, "batch_size": 3}
    calls, values = {}, {}
    for cache in (False, True):
        torch.manual_seed(0)
        model = CAMClassifier(
            num_classes=4, encoder="test_resnet", freeze_encoder=True, cache_features=cache, lr=0.1
        )
        final, seen = model.encoder.final, []
        model.encoder.final = lambda x, final=final, seen=seen: seen.append(len(x)) or final(x)
        run = trainer(tmp_path, max_epochs=3)
        run.fit(model, tiny_data(**data))
        calls[cache] = sum(seen)
        values[cache] = model.head.fc.weight.detach(), run.callback_metrics["val/pxap"]
    assert calls == {False: 3 * 16, True: 16}
    torch.testing.assert_close(values[True], values[False], rtol=1e-4, atol=1e-5)


def test_features_of_images_that_change_are_not_cached(tmp_path):
    settings = {"num_classes": 4, "encoder": "test_resnet", "freeze_encoder": True}
    model = CAMClassifier(**settings, cache_features=True)
    with pytest.raises(ValueError, match="the augmentation of the data changes them"):
        trainer(tmp_path).fit(model, tiny_data())
    model = HaS(**settings, cache_features=True)
    with pytest.raises(ValueError, match="HaS changes them"):
        trainer(tmp_path).fit(model, tiny_data(hflip=0.0))
    with pytest.raises(ValueError, match="needs freeze_encoder"):
        CAMClassifier(encoder="test_resnet", cache_features=True)


@pytest.mark.parametrize(
    ("settings", "maps"),
    [
        ({"encoder": "test_vit", "form": "class_token"}, False),
        ({"encoder": "test_vit", "form": "class_token", "cam": "gradcam", "cam_layer": -3}, True),
        ({"encoder": "test_vit"}, True),
        ({"encoder": "test_resnet"}, True),  # of one position at this size, but a map
    ],
)
def test_a_vector_of_the_whole_image_has_no_map(settings, maps):
    model = CAMClassifier(num_classes=3, **settings).eval()
    batch = batch_of(32, count=2) | {"label": torch.tensor([1, 2])}
    output = model(batch)
    assert (output.map is not None) is maps
    if maps:
        assert model.localize(batch, output).shape == (2, 32, 32)
