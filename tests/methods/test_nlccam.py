"""NL-CCAM against its formula, computed apart from the model."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsl_zoo.methods import NLCCAM, CAMClassifier
from wsl_zoo.methods.nlccam import rank_weights


def model_of(classes=7, **arguments):
    model = NLCCAM(num_classes=classes, encoder="test_resnet", **arguments).eval()
    nn.init.normal_(model.head.fc.bias)
    return model


def batch_of(size=64, count=3):
    image = torch.randn(count, 3, size, size)
    return {"image": image, "label": torch.tensor([4, 0, 2])[:count], "index": torch.arange(count)}


@pytest.mark.parametrize(("classes", "top"), [(200, 100), (1000, 100), (9, 4), (102, 100)])
def test_rank_weights(classes, top):
    h = rank_weights(classes, top)
    assert h.shape == (classes,)
    assert h[0] == 1  # h_1
    assert h[top - 1] == 0  # h_t
    assert h[-1] == -1  # h_K
    assert (h.diff() <= 0).all()
    for j in range(top):
        assert h[j].item() == pytest.approx((1 - j / (top - 1)) ** 2, abs=1e-6)
    for j in range(classes - top):
        expected = -((j / (classes - top - 1)) ** 2)
        assert h[top + j].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("classes", "top", "expected"),
    [
        (2, 100, [1, 0]),
        (2, 1, [1, 0]),
        (3, 100, [1, 0, -1]),
        (4, 4, [1, 0, 0, -1]),  # the rule for K <= t
        (4, 3, [1, 0.25, 0, 0]),
        (6, 100, [1, 0.25, 0, 0, -0.25, -1]),
    ],
)
def test_few_classes(classes, top, expected):
    assert rank_weights(classes, top).tolist() == expected


def test_top_must_be_positive():
    with pytest.raises(ValueError, match="top must be positive, got 0"):
        rank_weights(5, 0)


@torch.no_grad()
@pytest.mark.parametrize("mode", [True, False])
def test_at_the_start_the_network_is_the_plain_one(mode):
    """With leaky ReLUs, and without them the very classifier of CAM."""
    model, batch = model_of(stride=None), batch_of()
    assert len(model.nonlocal_blocks) == 4
    for part in model.encoder.model.modules():
        assert not isinstance(part, nn.ReLU)
    slopes = {m.negative_slope for m in model.encoder.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2}
    plain = CAMClassifier(num_classes=7, encoder="test_resnet")
    plain.encoder.load_state_dict(model.encoder.state_dict())
    plain.head.load_state_dict(model.head.state_dict())
    relu = model_of(stride=None, negative_slope=0.0)
    relu.encoder.load_state_dict(model.encoder.state_dict())
    relu.head.load_state_dict(model.head.state_dict())
    for m in (model, plain, relu):
        m.train(mode)
    ours, theirs = relu(batch), plain(batch)
    for field in ("logits", "map", "final"):
        assert torch.equal(getattr(ours, field), getattr(theirs, field))
    for name, part in list(plain.encoder.named_modules()):
        if isinstance(part, nn.ReLU):
            plain.encoder.set_submodule(name, nn.LeakyReLU(0.2))
    assert torch.equal(model(batch).logits, plain(batch).logits)
    assert not torch.equal(model(batch).logits, ours.logits)


@torch.no_grad()
def test_maps_are_combined_by_rank():
    model, batch = model_of(top=3), batch_of()
    output = model(batch)
    maps = model.class_map(batch, output, batch["label"])
    h = rank_weights(7, 3)
    for i in range(3):
        order = sorted(range(7), key=lambda k: -output.logits[i, k])
        expected = sum(
            w * torch.einsum("c,chw->hw", model.head.fc.weight[k], output.final[i])
            for w, k in zip(h, order, strict=True)
        )
        torch.testing.assert_close(maps[i], expected, rtol=1e-4, atol=1e-4)
    located = model.localize(batch, output, "label")
    z = (maps - maps.amin((1, 2), keepdim=True)) / (
        maps.amax((1, 2), keepdim=True) - maps.amin((1, 2), keepdim=True)
    )
    expected = F.interpolate(z[:, None], (64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(located, expected, rtol=1e-4, atol=1e-4)
    for target in ("pred", 5):
        assert torch.equal(model.localize(batch, output, target), located)


@torch.no_grad()
def test_two_classes_give_the_cam_of_the_predicted_one():
    model, batch = model_of(classes=2), batch_of()
    output = model(batch)
    own = output.map[torch.arange(3), output.logits.argmax(1)]
    torch.testing.assert_close(model.class_map(batch, output, batch["label"]), own)


@torch.no_grad()
def test_half_precision_gives_float32_maps():
    model, batch = model_of(), batch_of()
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        maps = model.class_map(batch, exact, batch["label"])
    assert torch.equal(maps, model.class_map(batch, exact, batch["label"]))
    assert maps.dtype == torch.float32


def test_another_map_may_be_read():
    model, batch = model_of(cam="layercam"), batch_of()
    with torch.no_grad():
        output = model(batch)
    located = [model.localize(batch, output, k) for k in (0, 1)]
    assert not torch.equal(*located)


def test_the_blocks_learn_with_the_head():
    model = model_of()
    groups = {group["name"]: group for group in model.param_groups()}
    head = {id(p) for p in groups["head"]["params"]}
    assert all(id(p) in head for p in model.nonlocal_blocks.parameters())
    assert groups["head"]["lr"] == pytest.approx(10 * groups["trunk"]["lr"])


def test_the_papers_trunk():
    model = NLCCAM(num_classes=200)
    assert model.encoder.name == "vgg16"
    assert [block.query.in_channels for block in model.nonlocal_blocks] == [128, 256, 512, 512]
    with torch.no_grad():
        output = model.eval()({"image": torch.randn(1, 3, 224, 224)})
    assert output.map.shape == (1, 200, 14, 14)
