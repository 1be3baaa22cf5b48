"""ADL: what the layer does, where it stands, and that nothing else notices it."""

import copy
import pickle

import pytest
import torch

from wsl_zoo.methods import ADL, CAMClassifier
from wsl_zoo.methods.adl import attend, positions

K = 4

WHERE = [
    ({"encoder": "vgg16", "form": "wsol"}, ["features.16", "features.22", "features.29"]),
    ({"encoder": "vgg16"}, ["features.16", "features.22", "features.29"]),
    ({"encoder": "vgg11_bn"}, ["features.14", "features.20", "features.27"]),
    ({"encoder": "resnet50", "form": "wsol"}, ["layer3.0", "layer4.0", "layer4.2"]),
    ({"encoder": "resnet18"}, ["layer3.0", "layer4.0", "layer4.1"]),
    ({"encoder": "test_resnet"}, ["layer3.0", "layer4.0"]),
    ({"encoder": "inception_v3", "form": "wsol"}, ["Mixed_5d", "Mixed_6e", "A3_2"]),
    ({"encoder": "inception_v3"}, ["Mixed_5d", "Mixed_6e", "Mixed_7c"]),
    ({"encoder": "mobilenetv2_100"}, ["blocks.2", "blocks.4", "blocks.6"]),
    ({"encoder": "convnext_atto"}, ["stages.1", "stages.2", "stages.3"]),
    ({"encoder": "swin_tiny_patch4_window7_224"}, ["layers.1", "layers.2", "layers.3"]),
    ({"encoder": "test_vit"}, ["blocks.2", "blocks.3", "blocks.5"]),
]


def model_of(**kwargs):
    torch.manual_seed(0)
    return ADL(**{"num_classes": K, "encoder": "test_resnet"} | kwargs)


def test_features_are_weighted_by_the_sigmoid_of_their_mean_with_its_gradient():
    features = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    out = attend(features, False, 0.9)
    mean = features.sum(1, keepdim=True) / 5
    torch.testing.assert_close(out, features / (1 + (-mean).exp()))
    (gradient,) = torch.autograd.grad(out.sum(), features)
    s = mean.sigmoid()
    torch.testing.assert_close(
        gradient, (s + features.sum(1, keepdim=True) * s * (1 - s) / 5).expand_as(features)
    )


def test_positions_from_the_threshold_on_are_dropped():
    mean = torch.tensor([[[0.0, 0.5, 0.9], [0.89, 1.0, 0.2]], [[2.0, 1.7, 1.8], [0.1, 1.79, 0.0]]])
    features = mean[:, None] * torch.tensor([0.5, 1.5])[None, :, None, None]
    out = attend(features, True, 0.9)
    keep = torch.tensor([[[1, 1, 0], [1, 0, 1]], [[0, 1, 0], [1, 1, 1]]])  # of each image's maximum
    assert torch.equal(out, features * keep[:, None])
    strongest = torch.rand(3, 4, 5, 5) + 0.1
    dropped = attend(strongest, True, 1.0)
    place = strongest.mean(1).flatten(1).argmax(1)
    assert not dropped.flatten(2)[torch.arange(3), :, place].any()
    assert (dropped.flatten(2) == 0).all(1).sum(1).tolist() == [1, 1, 1]
    assert not attend(strongest, True, 0.0).any()


@pytest.mark.parametrize(
    ("settings", "names"), WHERE, ids=lambda v: str(v) if isinstance(v, dict) else ""
)
def test_layers_stand_where_the_paper_has_them_and_act(settings, names):
    model = model_of(**settings)
    assert model.layers == positions(model.encoder) == names
    plain = CAMClassifier(**{"num_classes": K} | settings)
    assert list(model.state_dict()) == list(plain.state_dict())
    # Every one of them changes what it is given: as many weightings per forward as layers.
    seen = []
    modules = dict(model.encoder.model.named_modules())
    for name in names:
        modules[name].register_forward_hook(lambda module, args, out: seen.append(out))
    model.drop_rate, model.threshold = 1.0, 0.0
    model.train()
    size = 224 if "swin" in settings["encoder"] else 96
    with torch.no_grad():
        model.encoder.final(torch.randn(2, 3, size, size))
    assert len(seen) == len(names)
    for out in seen:  # what is not negative in the mean is dropped: here ReLU features vanish
        prefix = model.encoder.model.num_prefix_tokens if out.ndim == 3 else 0
        channels = 1 if out.ndim == 4 and "swin" not in settings["encoder"] else -1
        assert float(out[:, prefix:].mean(channels).max()) <= 0


@pytest.mark.parametrize("encoder", ["test_vit", "test_resnet"])
def test_evaluation_and_maps_do_not_see_it(encoder):
    model = model_of(encoder=encoder, drop_rate=0.5).eval()
    plain = CAMClassifier(num_classes=K, encoder=encoder).eval()
    plain.load_state_dict(model.state_dict())
    batch = {"image": torch.randn(2, 3, 64, 64), "label": torch.tensor([0, 3])}
    with torch.no_grad():
        ours, theirs = model(batch), plain(batch)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.map, theirs.map)
    model.train()
    model.encoder.eval()  # as maps are read
    with torch.no_grad():
        assert torch.equal(model.encoder.final(batch["image"]), theirs.final)


def test_class_tokens_are_left_alone():
    model = model_of(encoder="test_vit", drop_rate=1.0, threshold=0.0, layers=["blocks.2"]).train()
    tokens = torch.rand(2, 1 + 16, 64) + 0.1
    out = model._after(model, (), tokens)
    assert torch.equal(out[:, :1], tokens[:, :1])
    assert not out[:, 1:].any()


def test_one_draw_is_for_the_whole_batch_at_the_drop_rate():
    model = model_of(drop_rate=0.3, threshold=0.5).train()
    features = torch.rand(4, 8, 6, 6) + 0.1
    drops = []
    torch.manual_seed(0)
    for _ in range(400):
        out = model._after(model, (), features)
        zeros = (out == 0).flatten(1).any(1)
        assert zeros.all() or not zeros.any()
        drops.append(bool(zeros.all()))
    assert sum(drops) / 400 == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_its_own_layer(way):
    model = model_of(drop_rate=1.0, threshold=0.0)
    other = way(model)
    other.train()
    model.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not other.encoder.final(image).any()
        assert model.encoder.final(image).any()


def test_half_precision_keeps_the_type_of_features():
    features = torch.rand(2, 8, 4, 4).bfloat16()
    for drop in (True, False):
        assert attend(features, drop, 0.9).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_rate": 1.2}, "drop_rate"),
        ({"threshold": -0.1}, "threshold"),
        ({"layers": ["layer9"]}, "no layer 'layer9'"),
        ({"freeze_encoder": True}, "freeze_encoder"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        model_of(**settings)
