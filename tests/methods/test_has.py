"""HaS: which pixels are hidden, how often, and when."""

import pytest
import torch

from wsl_zoo.methods import CAMClassifier, HaS
from wsl_zoo.methods.has import hide

K = 4


def model_of(**kwargs):
    torch.manual_seed(0)
    return HaS(**{"num_classes": K, "encoder": "test_resnet"} | kwargs)


def batch_of(height=48, width=48, count=3):
    image = torch.rand(count, 3, height, width) + 1
    return {"image": image, "label": torch.arange(count) % K, "index": torch.arange(count)}


@pytest.mark.parametrize(("height", "width", "size"), [(48, 48, 16), (50, 37, 8), (20, 33, 64)])
def test_what_is_hidden_are_whole_tiles_of_all_channels(height, width, size):
    image = torch.rand(6, 3, height, width) + 1
    before = image.clone()
    hidden = hide(image, size, 0.5) == 0
    assert torch.equal(image, before)  # not in place
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    for top in range(0, height, size):
        for left in range(0, width, size):
            tile = hidden[:, 0, top : top + size, left : left + size].flatten(1)
            assert (tile.all(1) | ~tile.any(1)).all()
    kept = hide(image, size, 0.5)
    assert torch.equal(kept[kept != 0], image[kept != 0])


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_the_hidden_share_is_the_drop_rate(rate):
    torch.manual_seed(0)
    hidden = hide(torch.ones(64, 1, 128, 128), 4, rate) == 0
    assert float(hidden.float().mean()) == pytest.approx(rate, abs=0.01)
    if 0 < rate < 1:  # every image has its own tiles
        assert not torch.equal(hidden[0], hidden[1])


def test_no_side_hides_nothing():
    batch = batch_of()
    assert torch.equal(model_of(grid_size=0).prepare_batch(batch)["image"], batch["image"])


def test_one_of_the_sides_is_drawn_for_the_batch():
    model, batch = model_of(grid_size=[0, 24, 48], drop_rate=0.5), batch_of(count=64)
    assert model_of().sizes == (0, 16, 32, 44, 56)
    assert model_of(grid_size=5).sizes == (5,)
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        hidden = model.prepare_batch(batch)["image"][:, 0] == 0
        corners = hidden[:, ::24, ::24].flatten(1).sum(1)  # tiles of 24 hidden, of four
        whole = bool(((corners == 0) | (corners == 4)).all())
        seen.add("none" if not corners.any() else "48" if whole else "24")
    assert seen == {"none", "24", "48"}


def test_only_training_hides(monkeypatch):
    model, batch = model_of(grid_size=16, drop_rate=1.0), batch_of()
    seen = []
    monkeypatch.setattr(model, "log", lambda *args, **kwargs: None)
    monkeypatch.setattr(model, "log_dict", lambda *args, **kwargs: None)
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda b: seen.append(b["image"]) or forward(b))
    model._trainer = type("T", (), {"current_epoch": 0, "global_rank": 0})()
    monkeypatch.setattr(HaS, "current_epoch", 0)
    monkeypatch.setattr(HaS, "global_rank", 0)
    model.training_step(batch, 0)
    assert not seen[0].any()
    model.eval()
    model.predict_step(batch, 0)
    assert torch.equal(seen[1], batch["image"])


def test_the_classifier_is_that_of_cam():
    model = model_of().eval()
    torch.manual_seed(0)
    plain = CAMClassifier(num_classes=K, encoder="test_resnet").eval()
    plain.load_state_dict(model.state_dict())
    batch = batch_of()
    with torch.no_grad():
        ours, theirs = model(batch), plain(batch)
        assert torch.equal(ours.logits, theirs.logits)
        assert torch.equal(model.localize(batch, ours), plain.localize(batch, theirs))


@pytest.mark.parametrize(
    "settings", [{"grid_size": -1}, {"grid_size": []}, {"drop_rate": 1.5}, {"drop_rate": -0.1}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        model_of(**settings)
