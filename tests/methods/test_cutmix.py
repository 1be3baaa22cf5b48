"""CutMix: the box, the share, the loss."""

import pytest
import torch
from torch.nn import functional as F

from wsl_zoo.methods import CutMix
from wsl_zoo.methods.cutmix import box
from wsl_zoo.types import Output

K = 4


def model_of(**kwargs):
    return CutMix(**{"num_classes": K, "encoder": "test_resnet"} | kwargs)


def batch_of(count=5, height=40, width=64):
    """Image i has the value i + 1 everywhere and the label i % K."""
    image = torch.arange(1.0, count + 1)[:, None, None, None].expand(count, 3, height, width)
    index = torch.arange(count)
    return {"image": image.contiguous(), "label": index % K, "index": index}


@pytest.mark.parametrize("seed", range(20))
def test_a_box_of_another_image_is_pasted_and_the_share_is_that_of_the_pixels(seed):
    model, batch = model_of(), batch_of()
    before = batch["image"].clone()
    torch.manual_seed(seed)
    mixed = model.prepare_batch(batch)
    assert torch.equal(batch["image"], before)
    assert "own" not in batch
    foreign = mixed["image"] != before
    assert torch.equal(foreign, foreign[:, :1].expand_as(foreign))
    masks = foreign[:, 0]
    moved = masks.flatten(1).any(1)
    assert torch.equal(masks[moved], masks[moved][:1].expand_as(masks[moved]))  # one box for all
    for i in torch.nonzero(moved).flatten().tolist():
        (source,) = set(mixed["image"][i][foreign[i]].tolist())
        assert int(mixed["other"][i]) == (int(source) - 1) % K
        assert 1 - float(masks[i].float().mean()) == pytest.approx(mixed["own"], abs=1e-6)
        rows, columns = masks[i].any(1), masks[i].any(0)
        assert torch.equal(masks[i], rows[:, None] & columns[None])
    if moved.any():
        assert 0 <= mixed["own"] < 1
    assert torch.equal(mixed["label"], batch["label"])


def test_boxes_follow_the_formula_and_are_clipped():
    # 1 - 0.75 = 1/4 of the area: sides of a half.
    assert box(40, 64, 0.75, (20, 32)) == (10, 16, 30, 48)
    assert box(40, 64, 0.75, (0, 63)) == (0, 47, 10, 64)
    assert box(40, 64, 0.0, (20, 32)) == (0, 0, 40, 64)
    assert box(40, 64, 0.0, (0, 0)) == (0, 0, 20, 32)
    top, left, bottom, right = box(40, 64, 1.0, (7, 9))
    assert (bottom - top) * (right - left) == 0
    # int(10 * sqrt(0.5)) = 7, and 7 // 2 = 3 pixels to either side.
    assert box(10, 10, 0.5, (5, 5)) == (2, 2, 8, 8)


def test_a_large_beta_shares_evenly_and_beta_one_is_uniform():
    def shares(beta, count=400):
        torch.manual_seed(0)
        return torch.distributions.Beta(beta, beta).sample((count,))

    model, batch = model_of(beta=1e6), batch_of(height=64)
    torch.manual_seed(0)
    own = [model.prepare_batch(batch)["own"] for _ in range(100)]
    # Sides of sqrt(1/2) = 45 of 64 pixels, 44 after halving; clipped boxes leave more.
    assert min(own) == pytest.approx(1 - (44 / 64) ** 2)
    model = model_of(beta=1.0)
    torch.manual_seed(0)
    uniform = torch.tensor([model.prepare_batch(batch)["own"] for _ in range(400)])
    assert float(uniform.min()) < 0.2
    assert float(uniform.max()) > 0.98
    assert float(uniform.mean()) > float(shares(1.0).mean())  # clipping only takes from the box


def test_the_loss_is_linear_in_the_share():
    model = model_of()
    logits = torch.randn(5, K, generator=torch.Generator().manual_seed(0))
    batch = batch_of()
    other = (batch["label"] + 1) % K
    output = Output(logits=logits)
    first, second = F.cross_entropy(logits, batch["label"]), F.cross_entropy(logits, other)
    assert torch.equal(model.loss(batch, output)["ce"], first)
    for own in (0.0, 0.25, 1.0):
        value = model.loss({**batch, "other": other, "own": own}, output)["ce"]
        torch.testing.assert_close(value, own * first + (1 - own) * second)


def test_a_rate_of_zero_never_mixes_and_a_half_at_times():
    batch = batch_of()
    assert model_of(mix_rate=0.0).prepare_batch(batch) is batch
    torch.manual_seed(0)
    model = model_of(mix_rate=0.5)
    mixed = sum("own" in model.prepare_batch(batch) for _ in range(200))
    assert 70 < mixed < 130


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"mix_rate": 1.1}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        model_of(**settings)
