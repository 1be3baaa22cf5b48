"""Peak stimulation against its closed forms."""

import pytest
import torch

from wsl_zoo.heads import PRM


def gradient_of(head, z):
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(head.pool(z).sum(), z)
    return gradient


def cone(h, w, y, x):
    """1 at (y, x), strictly decreasing away from it along every window."""
    rows, columns = torch.arange(h)[:, None], torch.arange(w)[None]
    return (1.0 - 0.01 * ((rows - y) ** 2 + 1.1 * (columns - x) ** 2))[None, None]


def by_hand(z, window):
    """Peaks by the definition: before all earlier positions of the window, not below later ones."""
    peaks, reach, (h, w) = torch.zeros_like(z, dtype=torch.bool), window // 2, z.shape
    for y in range(h):
        for x in range(w):
            around = [
                (a, b)
                for a in range(max(0, y - reach), min(h, y + reach + 1))
                for b in range(max(0, x - reach), min(w, x + reach + 1))
            ]
            best = max(around, key=lambda p: z[p])  # the first of equal ones
            peaks[y, x] = best == (y, x)
    return peaks


def test_survey_form_is_the_mean_of_the_max_pooled_map():
    head = PRM(2, 3, variant="survey")
    assert torch.equal(head.pool(torch.full((2, 3, 6, 7), 1.5)), torch.full((2, 3), 1.5))
    z = torch.zeros(1, 1, 6, 7)
    z[0, 0, 2, 3] = 0.8  # two positions from every border: nine windows see it
    torch.testing.assert_close(head.pool(z), torch.full((1, 1), 9 * 0.8 / (4 * 5)))
    noise = torch.randn(1, 1, 6, 7)
    windows = [noise[0, 0, y : y + 3, x : x + 3].max() for y in range(4) for x in range(5)]
    torch.testing.assert_close(head.pool(noise)[0, 0], torch.stack(windows).mean())
    small = torch.randn(1, 1, 2, 4)  # the window is cut to the map: 2 x 3
    expected = torch.stack([small[0, 0, :, x : x + 3].max() for x in range(2)]).mean()
    torch.testing.assert_close(head.pool(small)[0, 0], expected)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_peaks_are_the_maxima_of_their_windows(window):
    head = PRM(2, 3, window=window)
    z = torch.randint(0, 4, (2, 3, 7, 9)).double()  # with many equal scores
    expected = torch.stack([torch.stack([by_hand(m, window) for m in maps]) for maps in z])
    assert torch.equal(head.peaks(z), expected)
    scores = [
        m[p].mean()
        for maps, ps in zip(z, expected, strict=True)
        for m, p in zip(maps, ps, strict=True)
    ]
    torch.testing.assert_close(head.pool(z), torch.stack(scores).view(2, 3))


def test_one_maximum_is_the_score():
    head = PRM(2, 1)
    for y, x in [(3, 4), (0, 0), (6, 7), (0, 5)]:
        z = cone(7, 8, y, x)
        assert head.peaks(z).nonzero()[:, 2:].tolist() == [[y, x]]
        assert head.pool(z).item() == 1.0


def test_the_first_of_a_plateau_is_its_peak():
    head = PRM(2, 1)
    assert head.peaks(torch.zeros(1, 1, 4, 5)).nonzero()[:, 2:].tolist() == [[0, 0]]
    z = torch.zeros(1, 1, 5, 7)
    z[0, 0, 2, 2:4] = 1.0
    found = head.peaks(z).nonzero()[:, 2:].tolist()
    assert [2, 2] in found
    assert [2, 3] not in found


def test_only_peaks_get_a_gradient():
    head, z = PRM(2, 3), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    peaks, gradient = head.peaks(z), gradient_of(head, z)
    assert torch.equal(gradient != 0, peaks)
    share = 1 / peaks.sum((2, 3), keepdim=True)
    torch.testing.assert_close(gradient, peaks * share.double())
    assert (peaks.sum((2, 3)) > 1).all()


def test_shift_equivariance():
    for head in (PRM(2, 3), PRM(2, 3, variant="survey"), PRM(2, 3, median_filter=True)):
        z = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(head.pool(z + 1.5), head.pool(z) + 1.5)


def test_median_filter():
    z = torch.zeros(1, 1, 5, 9)
    z[0, 0, :, 3:] = 5.0 - torch.arange(6)  # falls from 5 to 0: the median lies at 1
    z[0, 0, 2, 0] = 0.5  # a peak of its window, below the median
    plain, kept = PRM(2, 1).peaks(z), PRM(2, 1, median_filter=True).peaks(z)
    assert plain[0, 0, 2, 0]
    assert torch.equal(kept, plain & (z >= z.median()))
    assert not kept[0, 0, 2, 0]
    assert kept.any()
    constant = PRM(2, 1, median_filter=True).peaks(torch.ones(1, 1, 4, 4))
    assert constant.sum() == 1  # the maximum is never below the median


def test_maps_are_the_convolution():
    features = torch.randn(2, 5, 6, 6)
    for variant in ("paper", "survey"):
        head = PRM(5, 3, variant=variant)
        assert torch.equal(head(features)[1], head.conv(features))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "reference"}, "variant must be"),
        ({"window": 4}, "window must be odd"),
        ({"window": -1}, "window must be odd"),
        ({"variant": "survey", "median_filter": True}, "median_filter belongs"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PRM(5, 3, **arguments)
