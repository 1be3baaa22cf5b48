"""Soft masks of class maps against a plain transcription and closed forms."""

import math

import pytest
import torch

from wsl_zoo.cams import PseudoMask, expected_map
from wsl_zoo.cams.pseudo_mask import upsample
from wsl_zoo.schedules import EpochSchedule

GLAS = {"sharpness": 5.0, "sigma": 0.15, "sigma_step": 0.001, "sigma_max": 0.20}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def maps_of(count=3, h=4, w=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, h, w, generator=generator).to(dtype)


def transcribed(maps, size, sharpness, sigma):
    """The mask of each image on its own, pixel by pixel: aligned corners, min-max, sigmoid."""
    masks = []
    for small in maps.double():
        h, w = small.shape
        rows = [y * (h - 1) / (size[0] - 1) for y in range(size[0])]
        columns = [x * (w - 1) / (size[1] - 1) for x in range(size[1])]
        big = torch.zeros(size, dtype=torch.float64)
        for i, y in enumerate(rows):
            for j, x in enumerate(columns):
                top, left = min(int(y), h - 2), min(int(x), w - 2)
                down, right = y - top, x - left
                big[i, j] = (
                    (1 - down) * (1 - right) * small[top, left]
                    + (1 - down) * right * small[top, left + 1]
                    + down * (1 - right) * small[top + 1, left]
                    + down * right * small[top + 1, left + 1]
                )
        u = (big - big.min()) / (big.max() - big.min())
        masks.append(1 / (1 + (-sharpness * (u - sigma)).exp()))
    return torch.stack(masks).float()


def test_the_expected_map_weights_class_maps_by_their_probabilities():
    logits, maps = torch.randn(2, 3), torch.randn(2, 3, 4, 5)
    found = expected_map(logits, maps)
    for b in range(2):
        p = logits[b].exp() / logits[b].exp().sum()
        by_hand = p[0] * maps[b, 0] + p[1] * maps[b, 1] + p[2] * maps[b, 2]
        torch.testing.assert_close(found[b], by_hand)
    torch.testing.assert_close(expected_map(torch.zeros(2, 3), maps), maps.mean(1))
    certain = torch.tensor([[0.0, 99.0, 0.0], [0.0, 0.0, 99.0]])
    torch.testing.assert_close(expected_map(certain, maps), maps[[0, 1], [1, 2]])


@pytest.mark.parametrize("size", [(16, 20), (9, 31)])
@pytest.mark.parametrize(("sharpness", "sigma"), [(8.0, 0.5), (5.0, 0.15)])
def test_masks_are_those_of_a_plain_transcription(size, sharpness, sigma):
    maps = maps_of()
    mask = PseudoMask(sharpness, sigma)(maps, size)
    assert mask.shape == (3, *size)
    torch.testing.assert_close(mask, transcribed(maps, size, sharpness, sigma), rtol=0, atol=1e-5)


def test_corners_stay_where_they_are():
    maps = maps_of()
    big = upsample(maps, (17, 23))
    corners = [0, 0, -1, -1], [0, -1, 0, -1]
    torch.testing.assert_close(big[:, *corners], maps[:, *corners])


@pytest.mark.parametrize(
    ("sharpness", "sigma", "low", "high"),
    [(8.0, 0.5, 0.0180, 0.9820), (5.0, 0.15, 0.3208, 0.9859), (5.0, 0.20, 0.2689, 0.9820)],
)
def test_masks_reach_the_published_extremes(sharpness, sigma, low, high):
    mask = PseudoMask(sharpness, sigma)(maps_of(), (16, 20)).flatten(1)
    assert sigmoid(-sharpness * sigma) == pytest.approx(low, abs=5e-5)
    assert sigmoid(sharpness * (1 - sigma)) == pytest.approx(high, abs=5e-5)
    torch.testing.assert_close(mask.amin(1), torch.full((3,), sigmoid(-sharpness * sigma)))
    torch.testing.assert_close(mask.amax(1), torch.full((3,), sigmoid(sharpness * (1 - sigma))))


@pytest.mark.parametrize(("a", "b"), [(3.0, 0.0), (0.1, -7.0), (20.0, 5.0)])
def test_scale_and_offset_of_a_map_do_not_matter(a, b):
    maps, mask = maps_of(), PseudoMask()
    torch.testing.assert_close(
        mask(a * maps + b, (16, 20)), mask(maps, (16, 20)), rtol=0, atol=1e-4
    )
    assert (mask(-maps, (16, 20)) - mask(maps, (16, 20))).abs().max() > 0.5


@pytest.mark.parametrize("sharpness", [0.5, 5.0, 8.0, 16.0])
def test_half_is_where_the_normalised_map_reaches_sigma(sharpness):
    maps = maps_of()
    u = upsample(maps, (16, 20))
    low, high = u.amin((1, 2), keepdim=True), u.amax((1, 2), keepdim=True)
    found = PseudoMask(sharpness, 0.2)(maps, (16, 20)) >= 0.5
    assert torch.equal(found, (u - low) / (high - low + 1e-6) >= 0.2)
    assert 0 < found.float().mean() < 1


def test_each_image_has_its_own_extremes_unless_the_batch_shares_them():
    maps = maps_of()
    maps[0] *= 10
    own, shared = PseudoMask(), PseudoMask(scope="batch")
    torch.testing.assert_close(own(maps, (8, 8))[1:], own(maps[1:], (8, 8)))
    torch.testing.assert_close(shared(maps[:1], (8, 8)), own(maps[:1], (8, 8)))
    together = shared(maps, (8, 8))
    u = upsample(maps, (8, 8))
    u = (u - u.min()) / (u.max() - u.min())
    torch.testing.assert_close(together, torch.sigmoid(8 * (u - 0.5)))
    assert (together[1:] - shared(maps[1:], (8, 8))).abs().max() > 0.1


def test_without_a_scope_the_map_is_taken_as_it_is():
    maps = maps_of()
    mask = PseudoMask(5.0, 0.0, scope="none")(maps, (16, 20))
    torch.testing.assert_close(mask, torch.sigmoid(5 * upsample(maps, (16, 20))))
    assert torch.equal(mask >= 0.5, upsample(maps, (16, 20)) >= 0)


@pytest.mark.parametrize("scope", ["image", "batch", "none"])
def test_a_constant_map_has_a_finite_mask_and_gradient(scope):
    maps = torch.full((2, 3, 3), 4.0, requires_grad=True)
    mask = PseudoMask(scope=scope)(maps, (6, 6))
    expected = sigmoid(8 * 3.5) if scope == "none" else sigmoid(-4)
    torch.testing.assert_close(mask.detach(), torch.full((2, 6, 6), expected))
    mask.sum().backward()
    assert maps.grad.isfinite().all()


def test_the_mask_is_in_the_graph():
    maps = maps_of(1).requires_grad_()
    weights = torch.randn(16, 20)
    (PseudoMask()(maps, (16, 20)) * weights).sum().backward()
    step, numeric = 1e-3, torch.zeros(4, 5)
    for i in range(4):
        for j in range(5):
            moved = maps.detach().clone().repeat(2, 1, 1)
            moved[0, i, j] += step
            moved[1, i, j] -= step
            values = (transcribed(moved, (16, 20), 8.0, 0.5) * weights).double().sum((1, 2))
            numeric[i, j] = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(maps.grad[0], numeric, rtol=0.02, atol=0.02)
    assert maps.grad.abs().max() > 1


def test_sigma_rises_by_epoch_to_its_maximum_and_stays():
    mask, seen = PseudoMask(**GLAS), []
    assert isinstance(mask, EpochSchedule)
    for _ in range(80):
        seen.append(float(mask.sigma))
        mask.step()
    expected = [min(0.15 + 0.001 * epoch, 0.20) for epoch in range(80)]
    assert seen == pytest.approx(expected, abs=1e-6)
    assert seen[49] < seen[50] - 5e-4
    constant = PseudoMask()
    constant.step()
    assert float(constant.sigma) == 0.5


def test_sigma_is_stored():
    mask = PseudoMask(**GLAS)
    for _ in range(7):
        mask.step()
    assert list(mask.state_dict()) == ["sigma"]
    again = PseudoMask(**GLAS)
    again.load_state_dict(mask.state_dict())
    assert float(again.sigma) == pytest.approx(0.157)
    assert torch.equal(again(maps_of(), (8, 8)), mask(maps_of(), (8, 8)))


def test_the_last_sigma_is_that_of_evaluation_only_where_asked():
    own, last = PseudoMask(**GLAS), PseudoMask(**GLAS, eval_sigma="last")
    now, then = PseudoMask(5.0, 0.15), PseudoMask(5.0, 0.20)
    maps = maps_of()
    for mask, expected in ((own, now), (last, then)):
        assert torch.equal(mask.train()(maps, (8, 8)), now(maps, (8, 8)))
        assert torch.equal(mask.eval()(maps, (8, 8)), expected(maps, (8, 8)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_give_float32_masks(dtype):
    maps = maps_of(dtype=dtype)
    mask = PseudoMask()(maps, (16, 20))
    assert mask.dtype == torch.float32
    assert torch.equal(mask, PseudoMask()(maps.float(), (16, 20)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sharpness": 0.0}, "sharpness=0.0, .*must be sharpness > 0"),
        ({"sigma": -0.1}, "sigma=-0.1"),
        ({"sigma": 1.1}, "sigma=1.1"),
        ({"sigma": 0.3, "sigma_max": 0.2}, "sigma=0.3, .*sigma_max=0.2: .*sigma <= sigma_max"),
        ({"sigma_step": -0.001}, "sigma_step=-0.001"),
        ({"scope": "pixel"}, "scope='pixel' must be 'image', 'batch' or 'none'"),
        ({"eval_sigma": "best"}, "eval_sigma='best' 'own' or 'last'"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PseudoMask(**arguments)


def test_printing_shows_the_numbers():
    assert "sharpness=5.0, sigma_max=0.2, scope=image" in repr(PseudoMask(**GLAS))
