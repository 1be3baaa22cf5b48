from collections import Counter

import numpy as np
import pytest

from wsl_zoo.data.frames import FrameSampling

STYLES = ["before", "after", "before-after", "random", "interval"]


def draws(sampling, count, times=400):
    rng = np.random.default_rng(0)
    return [sampling.draw(count, rng) for _ in range(times)]


@pytest.mark.parametrize(
    ("count", "limit", "window"),
    [
        (1, 0.6, [0]),
        (2, 0.1, [0, 1]),
        (3, 1.0, [1]),
        (3, None, [0, 1, 2]),
        (4, 0.6, [1, 2, 3]),  # floor(2.4) = 2, half = 1, around 2
        (10, 0.6, [2, 3, 4, 5, 6, 7, 8]),
        (10, 0.01, [4, 5, 6]),  # half is at least 1
        (5, 1.0, [0, 1, 2, 3, 4]),
        (8, 1.0, list(range(8))),  # 4 + 4 is clipped
        (11, 0.5, [3, 4, 5, 6, 7]),
    ],
)
def test_the_window_lies_around_the_middle(count, limit, window):
    assert list(FrameSampling(limit=limit).window(count)) == window


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("frames", [1, 2, 4, 9])
@pytest.mark.parametrize("limit", [None, 0.6])
def test_frames_lie_in_the_window_in_order_and_differ(style, count, frames, limit):
    sampling = FrameSampling(frames, style, limit=limit)
    window = sampling.window(count)
    for drawn in draws(sampling, count, 50):
        assert drawn == sorted(set(drawn))
        assert set(drawn) <= set(window)
        assert 1 <= len(drawn) <= frames
        if len(window) <= frames:
            assert drawn == list(window)


def test_one_frame_is_uniform_over_the_shot():
    for style in STYLES:
        found = Counter(drawn[0] for drawn in draws(FrameSampling(1, style), 5, 5000))
        assert set(found) == set(range(5))
        expected = 1000
        chi2 = sum((n - expected) ** 2 / expected for n in found.values())
        assert chi2 < 20, (style, found)  # 4 degrees of freedom: p < 0.0005


def test_before_goes_back_from_an_anchor_and_stops_at_the_start():
    found = {tuple(drawn) for drawn in draws(FrameSampling(3, "before"), 6)}
    assert found == {(0,), (0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5)}


def test_before_stops_at_the_start_of_the_window():
    found = {tuple(drawn) for drawn in draws(FrameSampling(2, "before", limit=0.4), 10)}
    assert found == {(3,), (3, 4), (4, 5), (5, 6), (6, 7)}


def test_after_goes_on_from_an_anchor_and_stops_at_the_end():
    found = {tuple(drawn) for drawn in draws(FrameSampling(3, "after"), 6)}
    assert found == {(5,), (4, 5), (3, 4, 5), (2, 3, 4), (1, 2, 3), (0, 1, 2)}


def test_before_after_takes_neighbours_without_gaps_on_both_sides():
    found = {tuple(drawn) for drawn in draws(FrameSampling(3, "before-after"), 6)}
    assert found == {(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5)}
    found = {tuple(drawn) for drawn in draws(FrameSampling(2, "before-after"), 4)}
    assert found == {(0, 1), (1, 2), (2, 3)}


def test_random_takes_any_frames():
    found = {tuple(drawn) for drawn in draws(FrameSampling(2, "random"), 4)}
    assert len(found) == 6  # all pairs


def test_interval_takes_one_frame_of_each_part():
    for drawn in draws(FrameSampling(3, "interval"), 10):
        first, second, third = drawn
        assert first in range(3)
        assert second in range(3, 6)
        assert third in range(6, 10)
    assert len({tuple(drawn) for drawn in draws(FrameSampling(3, "interval"), 10, 2000)}) == 36


def test_gaussian_prefers_the_middle_a_little():
    uniform = np.concatenate(draws(FrameSampling(2, "random"), 12, 4000))
    centred = np.concatenate(draws(FrameSampling(2, "random", "gaussian"), 12, 4000))
    spread = [np.abs(found - 5.5).mean() for found in (centred, uniform)]
    assert spread[0] < spread[1] - 0.05
    assert set(centred.tolist()) == set(range(12))
    # The weights are (pdf + 1) / sum.
    weights = FrameSampling(2, "random", "gaussian")._weights(range(12))
    z = (np.arange(12) - 5.5) / 2
    pdf = np.exp(-(z**2) / 2) / (2 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(weights, (pdf + 1) / (pdf + 1).sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, "frames=0"),
        ({"style": "both"}, "frame_style='both'.*before-after"),
        ({"style": "random", "dist": "normal"}, "frame_dist='normal'.*gaussian"),
        ({"dist": "gaussian"}, "goes with frame_style='random'"),
        ({"limit": 0.0}, r"frame_limit=0.0 must lie in \(0, 1\]"),
        ({"limit": 1.5}, "frame_limit=1.5"),
    ],
)
def test_wrong_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FrameSampling(**arguments)
