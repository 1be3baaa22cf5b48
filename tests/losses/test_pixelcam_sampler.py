import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.losses.test_seeds import agrees, blobs, seeded
from wsl_zoo.losses import SAMPLERS, SEED_IGNORE
from wsl_zoo.losses.regions import lowest

Sampler = SAMPLERS["pixelcam"]


def counts_of(seeds, label):
    return (seeds == label).sum(dim=(1, 2))


def test_published_defaults():
    sampler = Sampler()
    assert (sampler.fg, sampler.bg, sampler.ksz, sampler.min_p) == (5, 5, 1, 0.2)


@pytest.mark.parametrize("fg", [1, 5, 20])
@pytest.mark.parametrize("min_p", [0.2, 1.0])
def test_sets_are_disjoint_and_what_both_draw_is_neither(fg, min_p):
    cams = blobs(40, 14)
    sampler = Sampler(fg=fg, bg=7, min_p=min_p)
    generator = seeded()
    drawn = []
    for index, found in (sampler.background(cams, generator), sampler.foreground(cams, generator)):
        assert found.all()
        drawn.append(F.one_hot(index, 14 * 14).sum(dim=1).view(40, 14, 14))
    background, foreground = drawn
    assert (background.sum((1, 2)) == 7).all()
    assert (foreground.sum((1, 2)) == fg).all()
    assert background.max() == foreground.max() == 1  # without replacement
    seeds = sampler(cams, seeded())
    expected = torch.where(foreground == 1, 1, torch.where(background == 1, 0, SEED_IGNORE))
    expected[(foreground == 1) & (background == 1)] = SEED_IGNORE
    assert torch.equal(seeds, expected)


@pytest.mark.parametrize("min_p", [0.1, 0.2, 0.4])
def test_background_lies_in_the_lowest_part(min_p):
    cams = blobs(30, 28)
    pool = lowest(cams.flatten(1), int(min_p * 28 * 28)).view(cams.shape)
    seen = torch.zeros_like(pool)
    for seed in range(5):
        background = Sampler(fg=0, bg=20, min_p=min_p)(cams, seeded(seed)) == 0
        assert (background.sum((1, 2)) == 20).all()
        seen |= background
    assert not (seen & ~pool).any()


def test_background_is_uniform_in_its_pool():
    cam = torch.arange(100.0).view(10, 10) / 99
    seeds = Sampler(fg=0, bg=3, min_p=0.2)(cam.expand(3000, -1, -1), seeded())
    observed = (seeds == 0).sum(0).flatten().numpy()
    assert agrees(observed, np.where(np.arange(100) < 20, 1.0, 0.0))


def test_the_same_generator_draws_the_same_seeds():
    cams, sampler = blobs(6), Sampler()
    first = sampler(cams, seeded(3))
    assert torch.equal(first, sampler(cams, seeded(3)))
    assert not torch.equal(first, sampler(cams, seeded(4)))
    shape = cams.shape
    assert torch.equal(sampler.everywhere(shape, seeded(3)), sampler.everywhere(shape, seeded(3)))


@pytest.mark.parametrize(("fg", "least"), [(1, 0.99), (5, 1.0)])
def test_a_single_peak_is_foreground(fg, least):
    cams = torch.zeros(500, 28, 28)
    cams[:, 9, 17] = 1
    seeds = Sampler(fg=fg)(cams, seeded())
    assert (seeds[:, 9, 17] == 1).float().mean() >= least


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_foreground_of_a_constant_map_is_uniform(value):
    seeds = Sampler(fg=3, bg=0)(torch.full((2000, 8, 8), value), seeded())
    assert (counts_of(seeds, 1) == 3).all()
    assert agrees((seeds == 1).sum(0).flatten().numpy(), np.ones(64))


@pytest.mark.parametrize("bg", [1, 5, 40])
def test_background_from_everywhere_is_uniform_and_alone(bg):
    seeds = Sampler(fg=9, bg=bg, min_p=0.05).everywhere((1500, 7, 9), seeded())
    assert seeds.shape == (1500, 7, 9)
    assert set(seeds.unique().tolist()) == {0, SEED_IGNORE}
    assert (counts_of(seeds, 0) == bg).all()
    assert agrees((seeds == 0).sum(0).flatten().numpy(), np.ones(63))


def test_no_background_draws_label_nothing():
    assert (Sampler(bg=0).everywhere((2, 5, 5), seeded()) == SEED_IGNORE).all()


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_draws_from_everywhere(name):
    seeds = SAMPLERS[name](bg=4, ksz=1).everywhere((10, 12, 12), seeded())
    assert (counts_of(seeds, 0) == 4).all()
    assert not (seeds == 1).any()


def test_no_image():
    sampler = Sampler()
    assert sampler(torch.zeros(0, 8, 8), seeded()).shape == (0, 8, 8)
    assert sampler.everywhere((0, 8, 8), seeded()).shape == (0, 8, 8)
