from itertools import pairwise

import pytest
import torch

from wsl_zoo.cams.temporal import temporal_max

DIRECTIONS = ["before", "after", "both", "instant"]


def maps(count=9, seed=0):
    return torch.rand(count, 5, 6, generator=torch.Generator().manual_seed(seed))


SHOTS = [range(4), range(4, 5), range(5, 9)]


def transcribed(cams, shots, n, direction):
    """Frame by frame, neighbour by neighbour."""
    pooled = cams.clone()
    for shot in shots:
        for t in shot:
            for j in range(1, n + 1):
                for s, names in ((t - j, ("before", "both")), (t + j, ("after", "both"))):
                    if s in shot and direction in names:
                        pooled[t] = torch.maximum(pooled[t], cams[s])
    return pooled


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 10])
def test_equals_the_plain_loop(direction, n):
    cams = maps()
    before = cams.clone()
    assert torch.equal(
        temporal_max(cams, SHOTS, n, direction), transcribed(cams, SHOTS, n, direction)
    )
    assert torch.equal(cams, before)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_neighbours_is_the_identity(direction):
    assert torch.equal(temporal_max(maps(), SHOTS, 0, direction), maps())
    assert torch.equal(temporal_max(maps(), SHOTS, 3, "instant"), maps())


@pytest.mark.parametrize("direction", DIRECTIONS[:3])
def test_covers_every_map_and_grows_with_n(direction):
    pooled = [temporal_max(maps(), SHOTS, n, direction) for n in range(4)]
    for less, more in pairwise(pooled):
        assert (more >= less).all()
    assert (pooled[1] > pooled[0]).any()


def test_equal_frames_stay_as_they_are():
    cams = maps(1).expand(9, -1, -1)
    for direction in DIRECTIONS:
        assert torch.equal(temporal_max(cams, SHOTS, 3, direction), cams)


def test_the_order_of_the_neighbours_does_not_matter():
    cams = maps(4)
    mixed = cams[[2, 0, 1, 3]]
    whole = [range(4)]
    assert torch.equal(temporal_max(cams, whole, 3)[3], temporal_max(mixed, whole, 3)[3])
    assert torch.equal(temporal_max(cams, whole, 3)[3], cams.amax(0))


def test_shots_are_never_crossed():
    cams = torch.zeros(9, 2, 2)
    cams[3] = 1  # the last frame of the first shot
    pooled = temporal_max(cams, SHOTS, 5, "both")
    assert (pooled[:4] == 1).all()
    assert (pooled[4:] == 0).all()
    assert torch.equal(temporal_max(cams, SHOTS, 5, "after")[3], cams[3])


def test_a_moving_square_gives_a_union():
    cams = torch.zeros(3, 8, 8)
    for t in range(3):
        cams[t, 2:4, 2 * t : 2 * t + 2] = 1
    pooled = temporal_max(cams, [range(3)], 2)
    assert torch.equal(pooled[2], cams.amax(0))
    assert pooled[2].sum() == 12


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="neighbors=-1"):
        temporal_max(maps(), SHOTS, -1)
    with pytest.raises(ValueError, match="direction='left' must be one of before, after, both"):
        temporal_max(maps(), SHOTS, 1, "left")
