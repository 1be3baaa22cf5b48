"""Seed samplers: where seeds lie, how many there are, by which law, from which generator."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from wsl_zoo.losses import SAMPLERS, SEED_IGNORE, seed_loss
from wsl_zoo.schedules import EpochSchedule

NAMES = sorted(SAMPLERS)
NEEDS_CONTRAST = ["threshold", "uniform", "weighted"]
LOWEST = ["threshold", "probability_negative_area", "uniform", "weighted"]


def square(size: int = 64, low: int = 20, high: int = 44) -> torch.Tensor:
    """A bright square on black: rows and columns low..high - 1 are 1."""
    cam = torch.zeros(size, size)
    cam[low:high, low:high] = 1
    return cam


def blobs(batch: int, size: int = 56) -> torch.Tensor:
    """Smooth maps, each with minimum 0 and maximum 1."""
    cam = F.interpolate(torch.rand(batch, 1, 7, 7), size, mode="bilinear")[:, 0]
    low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
    return (cam - low) / (high - low)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def agrees(observed: np.ndarray, probability: np.ndarray) -> bool:
    """Whether counts follow a law: chi-squared, at a level that a right law fails once in 10^4."""
    probability = probability.astype(np.float64)
    assert observed[probability == 0].sum() == 0
    kept = probability > 0
    expected = probability[kept] / probability[kept].sum() * observed.sum()
    assert expected.min() > 5
    return stats.chisquare(observed[kept], expected).pvalue > 1e-4


def test_bright_square_threshold():
    cam = square().expand(400, -1, -1)
    seeds = SAMPLERS["threshold"](ksz=1)(cam)
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[25:39, 25:39] = True  # 11 x 11 erosion takes five pixels off every side
    assert (seeds == 1).sum(dim=(1, 2)).eq(1).all()
    assert (seeds == 0).sum(dim=(1, 2)).eq(1).all()
    assert (seeds == 1)[:, inside].sum() == 400
    assert (seeds == 0)[:, square() == 0].sum() == 400


@pytest.mark.parametrize("name", ["uniform", "weighted"])
@pytest.mark.parametrize("erode_iter", [0, 1, 2])
def test_bright_square_region(name, erode_iter):
    cam = square()
    cam[0, 0] = 0.1  # Otsu's threshold, which belongs to the blobs
    sampler = SAMPLERS[name](fg=200, bg=20, ksz=1, max_p=0.25, erode_iter=erode_iter)
    seeds = sampler(cam[None])[0]
    side, start = 24 - 10 * erode_iter, 20 + 5 * erode_iter
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[start : start + side, start : start + side] = True
    later = expected.flatten().nonzero()[side * side // 4 :]
    expected.view(-1)[later] = False  # of equal activations the first in raster order
    assert torch.equal(seeds == 1, expected)
    assert (seeds == 0).sum() == 20
    assert (seeds == 0)[cam > 0].sum() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("fg", "bg", "ksz"), [(1, 1, 3), (7, 3, 1), (40, 60, 5), (1, 0, 3), (0, 2, 3)]
)
def test_counts(name, fg, bg, ksz):
    seeds = SAMPLERS[name](fg=fg, bg=bg, ksz=ksz)(blobs(6))
    assert seeds.shape == (6, 56, 56)
    assert seeds.dtype == torch.int64
    assert set(seeds.unique().tolist()) <= {0, 1, SEED_IGNORE}
    assert ((seeds == 1).sum(dim=(1, 2)) <= fg * ksz**2).all()
    assert ((seeds == 0).sum(dim=(1, 2)) <= bg * ksz**2).all()
    for label, draws in ((1, fg), (0, bg)):
        assert (seeds == label).flatten(1).any(dim=1).eq(draws > 0).all()
    if ksz == 1 and name in NEEDS_CONTRAST:  # regions apart, draws distinct
        assert (seeds == 1).sum(dim=(1, 2)).eq(fg).all()
        assert (seeds == 0).sum(dim=(1, 2)).eq(bg).all()


def test_isolated_interior_seeds_label_whole_squares():
    cam = torch.zeros(1, 40, 40)
    cam[0, 30, 30] = 1
    cam[0, 5, 5] = 0.9
    seeds = SAMPLERS["uniform"](fg=2, bg=0, ksz=5, max_p=2 / 1600)(cam)[0]
    expected = torch.full((40, 40), SEED_IGNORE)
    expected[28:33, 28:33] = 1
    expected[3:8, 3:8] = 1
    assert torch.equal(seeds, expected)


def test_squares_end_at_the_border():
    cam = torch.zeros(1, 12, 9)
    cam[0, 11, 0] = 1
    seeds = SAMPLERS["uniform"](fg=1, bg=0, ksz=5, max_p=1 / 108)(cam)[0]
    expected = torch.full((12, 9), SEED_IGNORE)
    expected[9:, :3] = 1
    assert torch.equal(seeds, expected)


@pytest.mark.parametrize("k", [1, 4, 30])
def test_what_both_kinds_label_is_ignored(k):
    """Seeds are the two dilated sets of drawn pixels; what is in both is ignored."""
    cam = torch.rand(50, 9, 9)
    sampler = SAMPLERS["probability"](fg=k, bg=k, ksz=3)
    generator = seeded()
    masks = []
    for index, found in (sampler.background(cam, generator), sampler.foreground(cam, generator)):
        assert found.all()
        drawn = torch.zeros(50, 81).scatter_(1, index, 1.0).view(50, 9, 9)
        assert drawn.sum(dim=(1, 2)).eq(k).all()
        masks.append(F.max_pool2d(drawn, 3, 1, 1).bool())
    background, foreground = masks
    assert (foreground & background).any()
    expected = torch.full((50, 9, 9), SEED_IGNORE)
    expected[foreground & ~background] = 1
    expected[background & ~foreground] = 0
    assert torch.equal(sampler(cam, seeded()), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_constant_maps(name, value):
    cam = torch.stack([torch.full((30, 30), value), blobs(1, 30)[0]])
    seeds = SAMPLERS[name](fg=5, bg=5)(cam)
    labelled = (seeds != SEED_IGNORE).flatten(1).any(dim=1)
    assert labelled.tolist() == [name not in NEEDS_CONTRAST, True]


@pytest.mark.parametrize("k", [1, 3, 5000])
def test_region_without_a_pixel(k):
    """Nearly constant: no 8-bit level above Otsu's threshold, and no room for a background."""
    cam = torch.full((1, 8, 8), 0.5)
    cam[0, 0, 0] = 0.5001
    seeds = SAMPLERS["threshold"](fg=k, bg=k, min_p=0.01)(cam)
    assert (seeds == SEED_IGNORE).all()
    seeds = SAMPLERS["threshold"](fg=k, bg=k, min_p=0.5, ksz=1)(cam)
    assert (seeds == 1).sum() == 0
    assert (seeds == 0).sum() == min(k, 32)
    seeds = SAMPLERS["weighted"](fg=k, bg=k, min_p=0.0, max_p=0.01)(cam)
    assert (seeds == SEED_IGNORE).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 100])
def test_no_image(name, k):
    arguments = {"roi": "high_density", "roi_shape": "bbox"} if name == "uniform" else {}
    seeds = SAMPLERS[name](fg=k, bg=k, **arguments)(torch.rand(0, 16, 12))
    assert seeds.shape == (0, 16, 12)
    assert seed_loss(torch.rand(0, 2, 16, 12), seeds) == 0


@pytest.mark.parametrize("name", NAMES)
def test_no_more_draws_than_pixels(name):
    cam = blobs(3, 12)
    sampler = SAMPLERS[name](fg=10**6, bg=10**6, ksz=1)
    seeds = sampler(cam)
    if name in NEEDS_CONTRAST:
        assert torch.equal(seeds == 1, sampler.high_region(cam))
        assert torch.equal(seeds == 0, sampler.low_region(cam))
        assert (seeds == 1).any()
    else:  # the foreground may be anywhere
        # Of 144 pixels: all, a tenth, a fifth are also background.
        both = {"probability": 144, "probability_negative_area": 14, "pixelcam": 28}[name]
        assert (seeds == SEED_IGNORE).sum() == 3 * both


@pytest.mark.parametrize("fg", [1, 40])  # by inversion, by the exponential race
def test_weighted_frequencies_follow_the_levels(fg):
    """Three levels above a background, whose own higher level is Otsu's threshold."""
    cam = torch.zeros(12, 12)
    cam[0, :], cam[1, :], cam[2, :], cam[11, :] = 0.6, 0.8, 1.0, 0.1
    sampler = SAMPLERS["weighted"](fg=fg, bg=0, ksz=1, max_p=1.0)
    index, found = sampler.foreground(cam.expand(10_000, -1, -1).contiguous(), seeded())
    assert found.all()
    counts = np.bincount(index[:, 0].numpy(), minlength=144)  # the first draw
    assert agrees(counts, cam.flatten().double().numpy())


def test_probability_frequencies():
    cam = torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.4, 1.0]])
    batch = cam.expand(20_000, -1, -1)
    for law, weights in (("inverse", 1 + 1e-6 - cam), ("code", 1 - cam / cam.sum())):
        seeds = SAMPLERS["probability"](ksz=1, fg=0, bg_law=law)(batch)
        counts = (seeds == 0).sum(dim=0).flatten().numpy()
        assert agrees(counts + 0, np.where(weights > 1e-3, weights, 0).flatten())
    counts = (SAMPLERS["probability"](ksz=1, bg=0)(batch) == 1).sum(dim=0).flatten().numpy()
    assert agrees(counts, np.where(cam > 0, cam, 0).flatten())


@pytest.mark.parametrize("law", ["inverse", "code"])
def test_negative_area_frequencies(law):
    cam = torch.tensor([[0.5, 0.1, 0.9], [0.4, 0.3, 1.0]])
    sampler = SAMPLERS["probability_negative_area"](ksz=1, fg=0, min_p=0.5, bg_law=law)
    counts = (sampler(cam.expand(20_000, -1, -1)) == 0).sum(dim=0).flatten().numpy()
    weights = (1 - cam if law == "inverse" else 1 - cam / cam.sum()) * (cam < 0.45)
    assert agrees(counts, weights.flatten().numpy())


@pytest.mark.parametrize("name", ["threshold", "uniform"])
def test_uniform_frequencies(name):
    cam = blobs(1, 24)
    sampler = SAMPLERS[name](ksz=1, **({"erode_k": 3} if name == "threshold" else {}))
    seeds = sampler(cam.expand(20_000, -1, -1))
    for label, region in ((1, sampler.high_region(cam)), (0, sampler.low_region(cam))):
        counts = (seeds == label).sum(dim=0).flatten().numpy()
        assert agrees(counts, region.flatten().double().numpy())


@pytest.mark.parametrize("name", LOWEST)
def test_background_region_is_invariant_to_monotone_transforms(name):
    cam = (blobs(4) * 1000).round() / 1000  # with equal values
    sampler = SAMPLERS[name](min_p=0.3)
    region = sampler.low_region(cam)
    assert region.sum(dim=(1, 2)).eq(int(0.3 * 56 * 56)).all()
    for transformed in (cam**2, cam.sqrt(), 0.1 + cam / 2):
        assert torch.equal(sampler.low_region(transformed), region)


@pytest.mark.parametrize("name", NAMES)
def test_same_generator_same_seeds(name):
    cam = blobs(4)
    sampler = SAMPLERS[name](fg=20, bg=2)
    first = sampler(cam, seeded(3))
    state = torch.get_rng_state()
    torch.rand(7)  # the global state is somewhere else
    again = sampler(cam, seeded(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, sampler(cam, seeded(4)))
    torch.set_rng_state(state)
    sampler(cam, seeded(3))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    generator = seeded(3)
    sampler(cam, generator)
    assert not torch.equal(sampler(cam, generator), first), "the next step draws anew"


@pytest.mark.parametrize("name", NAMES)
def test_without_a_generator_the_global_one(name):
    cam = blobs(2)
    torch.manual_seed(5)
    first = SAMPLERS[name](fg=3)(cam)
    torch.manual_seed(5)
    assert torch.equal(SAMPLERS[name](fg=3)(cam), first)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 3])
def test_batch_is_a_loop_in_distribution(name, k):
    cam = torch.tensor([[0.0, 0.1, 0.2, 0.7], [0.3, 0.9, 0.8, 1.0], [0.1, 0.2, 0.8, 0.7]])
    sampler = SAMPLERS[name](fg=k, bg=k, ksz=1, **({"min_p": 0.4} if name in LOWEST else {}))
    generator = seeded()
    loop = torch.cat([sampler(cam[None], generator) for _ in range(1500)])
    batch = sampler(cam.expand(1500, -1, -1), generator)
    table = np.array(
        [[(s.flatten(1) == label).sum(dim=0).tolist() for label in (0, 1)] for s in (loop, batch)]
    ).reshape(2, -1)
    table = table[:, table.sum(axis=0) > 0]
    assert len(table[0]) > 4
    assert stats.chi2_contingency(table).pvalue > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_images_do_not_share_draws(name):
    seeds = SAMPLERS[name](ksz=1)(blobs(1).expand(30, -1, -1))
    assert len({tuple(s.flatten().tolist()) for s in seeds}) > 15


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(name, dtype):
    cam = blobs(3).to(dtype)
    sampler = SAMPLERS[name](fg=30, bg=30)
    expected = sampler(cam.float(), seeded())
    assert torch.equal(sampler(cam, seeded()), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sampler(cam.float(), seeded()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_broken_and_gradient_carrying_maps(name):
    cam = blobs(2)
    strange = cam.clone()
    strange[0, 3, 3], strange[0, 4, 4], strange[0, 5, 5] = torch.nan, 7.0, -7.0
    mended = cam.clone()
    mended[0, 3, 3], mended[0, 4, 4], mended[0, 5, 5] = 0.0, 1.0, 0.0
    kept = strange.clone()
    seeds = SAMPLERS[name](fg=9)(strange.requires_grad_(), seeded())
    assert not seeds.requires_grad
    assert torch.equal(seeds, SAMPLERS[name](fg=9)(mended, seeded()))
    torch.testing.assert_close(strange.detach(), kept, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("roi", ["all", "largest", "high_density"])
@pytest.mark.parametrize("shape", ["mask", "bbox"])
def test_regions_of_interest(roi, shape):
    cam = torch.zeros(40, 40)
    cam[0, 0] = 0.1  # Otsu's threshold, which belongs to the blobs
    cam[2:22, 2:12] = 0.7  # large
    cam[10:14, 10:12] = 0.0  # a notch on its right side
    cam[30:38, 30:39] = 0.9  # dense
    cam[39, 39] = 1.0  # denser, a single pixel; touches the block by its corner only
    region = SAMPLERS["uniform"](roi=roi, roi_shape=shape).region_of_interest(cam[None])[0]
    expected = torch.zeros(40, 40, dtype=torch.bool)
    if roi == "all":
        expected = torch.ones_like(expected) if shape == "bbox" else cam > 0
        if shape == "bbox":
            expected[-1], expected[:, -1] = False, False
    else:  # the densest component is below 5 % of the image, so that the largest replaces it
        expected[2:22, 2:12] = True
        if shape == "mask":
            expected[10:14, 10:12] = False
    assert torch.equal(region, expected)


def test_densest_region():
    cam = torch.zeros(40, 40)
    cam[0, 0] = 0.1
    cam[2:22, 2:12] = 0.7
    cam[30:38, 30:39] = 0.9
    sampler = SAMPLERS["uniform"](roi="high_density", roi_min_size=72 / 1600)
    assert torch.equal(sampler.region_of_interest(cam[None])[0], cam == 0.9)
    sampler = SAMPLERS["uniform"](roi="high_density", roi_min_size=73 / 1600)
    assert torch.equal(sampler.region_of_interest(cam[None])[0], cam == 0.7)


@pytest.mark.parametrize("name", ["uniform", "weighted"])
@pytest.mark.parametrize("roi", ["all", "largest", "high_density"])
@pytest.mark.parametrize("shape", ["mask", "bbox"])
def test_seeds_lie_in_the_highest_part_of_the_region(name, roi, shape):
    cam = blobs(5)
    sampler = SAMPLERS[name](fg=10**6, bg=0, ksz=1, max_p=0.3, roi=roi, roi_shape=shape)
    seeds = sampler(cam)
    for i, region in enumerate(sampler.region_of_interest(cam)):
        inside = cam[i][region]
        chosen = cam[i][seeds[i] == 1]
        assert len(chosen) == int(0.3 * len(inside))
        assert (seeds[i] == 1)[~region].sum() == 0
        assert torch.equal(chosen.sort().values, inside.sort().values[-len(chosen) :])


def test_heating_law():
    cam = torch.tensor([[0.0, 0.9, 0.8], [1.0, 0.85, 0.9]])
    sampler = SAMPLERS["weighted"](ksz=1, bg=0, max_p=1.0, heat=6.0)
    counts = (sampler(cam.expand(20_000, -1, -1)) == 1).sum(dim=0).flatten().numpy()
    weights = torch.exp(6 * (cam + 1e-6)) / torch.exp(6 * (cam + 1e-6)).max()
    assert agrees(counts, weights.flatten().double().numpy())


@pytest.mark.parametrize("name", ["weighted", "probability"])
def test_heating_schedule(name):
    whole = {"max_p": 1.0} if name == "weighted" else {}
    sampler = SAMPLERS[name](ksz=1, bg=0, heat=7.0, heat_min=1.0, uniform_epoch=4, **whole)
    (heating,) = (m for m in sampler.modules() if isinstance(m, EpochSchedule))
    assert heating.steps_every_epoch
    seen = [heating.heat.item()]
    for _ in range(6):
        heating.step()
        seen.append(heating.heat.item())
    assert seen == pytest.approx([7, 5, 3, 1, 0, 0, 0])
    fresh = SAMPLERS[name](heat=7.0, uniform_epoch=4)
    fresh.load_state_dict(sampler.state_dict())
    assert (fresh.heating.heat, fresh.heating.epoch) == (0, 7)
    cam = torch.tensor([[0.0, 0.9, 0.8], [1.0, 0.0, 0.75]])
    counts = (sampler(cam.expand(20_000, -1, -1)) == 1).sum(dim=0).flatten().numpy()
    assert agrees(counts, np.ones(6))


def test_heating_without_an_end():
    sampler = SAMPLERS["weighted"](heat=3.0)
    for _ in range(5):
        sampler.heating.step()
    assert sampler.heating.heat == 3
    assert not SAMPLERS["weighted"]().state_dict()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_no_wait_for_the_device(name, k):
    """On a pretended GPU, reading a value on the host raises."""
    with FakeTensorMode():
        cam = torch.rand(3, 32, 32, device="cuda")
        seeds = SAMPLERS[name](fg=k, bg=k)(cam)
        assert seeds.device.type == "cuda"
        if name in ("uniform", "weighted"):
            with pytest.raises(Exception, match="numpy"):
                SAMPLERS[name](roi="largest")(cam)
        logits = torch.rand(3, 2, 32, 32, device="cuda", requires_grad=True)
        assert seed_loss(logits, seeds).shape == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 100])
def test_other_devices_take_the_same_seeds(name, k, monkeypatch):
    cam = (blobs(4) * 50).round() / 50  # many equal values
    sampler = SAMPLERS[name](fg=k, bg=k)
    expected = sampler(cam, seeded())
    for module in ("draws", "regions"):
        monkeypatch.setattr(f"wsl_zoo.losses.{module}.on_cpu", lambda tensor: False)
    assert torch.equal(sampler(cam, seeded()), expected)


def test_loss_of_a_full_mask_is_the_cross_entropy():
    logits = torch.randn(3, 2, 16, 16, requires_grad=True)
    mask = torch.randint(2, (3, 16, 16))
    loss = seed_loss(logits, mask)
    (ours,) = torch.autograd.grad(loss, logits)
    reference = F.cross_entropy(logits, mask)
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(ours, torch.autograd.grad(reference, logits)[0])


def test_loss_is_the_mean_over_the_pooled_pixels():
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    seeds = torch.full((2, 8, 8), SEED_IGNORE)
    seeds[0, 0, :5] = 1
    seeds[1, 3, 3] = 0
    losses = [-logits[0, :, 0, x].log_softmax(0)[1] for x in range(5)]
    losses.append(-logits[1, :, 3, 3].log_softmax(0)[0])
    loss = seed_loss(logits, seeds)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    loss.backward()
    assert torch.equal(logits.grad.abs().sum(dim=1) > 0, seeds != SEED_IGNORE)


def test_loss_without_seeds_is_zero_with_a_graph():
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    loss = seed_loss(logits, torch.full((2, 8, 8), SEED_IGNORE))
    assert loss == 0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_loss_of_half_precision_is_float32():
    logits = 20 * torch.randn(1, 2, 64, 64)
    seeds = torch.randint(2, (1, 64, 64))
    loss = seed_loss(logits.half(), seeds)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, seed_loss(logits, seeds), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("threshold", {"fg": -1}, "must not be negative"),
        ("threshold", {"ksz": 2}, "ksz=2 must be odd"),
        ("threshold", {"erode_k": 10}, "erode_k=10 must be odd"),
        ("threshold", {"min_p": 1.5}, "min_p=1.5 must lie"),
        ("probability", {"bg_law": "paper"}, "bg_law='paper' must be"),
        ("probability", {"heat": 2.0, "uniform_epoch": 0}, "uniform_epoch=0"),
        ("probability_negative_area", {"min_p": -0.1}, "min_p=-0.1 must lie"),
        ("uniform", {"max_p": 60}, "max_p=60 must lie"),
        ("uniform", {"roi": "smallest"}, "roi='smallest' must be"),
        ("weighted", {"roi_shape": "box"}, "roi_shape='box' must be"),
    ],
)
def test_wrong_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        SAMPLERS[name](**arguments)


def test_wrong_shape():
    with pytest.raises(ValueError, match=r"\(B, H, W\), got shape \(1, 1, 8, 8\)"):
        SAMPLERS["threshold"]()(torch.rand(1, 1, 8, 8))
