"""Pairing: exact whatever the block, invariant where it should be, and clear about bad features."""

import pytest
import torch
from torch.nn import functional as F

from wsl_zoo.pairing import cosines, dealt_anew, nearest_reports


def made(images=50, reports=30, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, dim, generator=generator) for n in (images, reports))


def brute(images, reports):
    """The argmax of float64 cosines, one image after the other."""
    texts = F.normalize(reports.double(), dim=1)
    cosines = [(texts * F.normalize(x.double(), dim=0)).sum(dim=1) for x in images]
    return torch.stack([c.argmax() for c in cosines]), torch.stack([c.max() for c in cosines])


@pytest.mark.parametrize("block", [1, 30, 100, 10_000])
def test_it_is_the_brute_force_argmax(block):
    images, reports = made()
    index, cosine = nearest_reports(images, reports, block)
    expected, value = brute(images, reports)
    assert torch.equal(index, expected)
    torch.testing.assert_close(cosine, value, rtol=0, atol=1e-14)


def test_reports_that_float32_cannot_tell_apart_are_told_apart():
    images, reports = (x.double() for x in made(images=40, reports=1, dim=64))
    steps = torch.arange(20, dtype=torch.float64)[:, None]
    direction = torch.randn(1, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    near = reports + 1e-9 * steps * direction  # cosines differ by about 1e-9
    index, _ = nearest_reports(images, near)
    assert torch.equal(index, brute(images, near)[0])
    coarse = (F.normalize(images.float(), dim=1) @ F.normalize(near.float(), dim=1).T).argmax(dim=1)
    assert not torch.equal(index, coarse)


def test_of_equal_reports_the_first_counts():
    images, reports = made()
    twice = torch.cat([reports, reports.flip(0), reports])
    assert nearest_reports(images, twice)[0].max() < len(reports)


def test_lengths_do_not_matter_and_an_order_is_followed():
    images, reports = made()
    index, cosine = nearest_reports(images, reports)
    scales = torch.linspace(0.1, 9, 50)[:, None]
    again, same = nearest_reports(images * scales, reports * 0.01)
    assert torch.equal(index, again)
    torch.testing.assert_close(cosine, same, rtol=0, atol=1e-6)  # inputs were rounded
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    permuted, _ = nearest_reports(images, reports[order])
    assert torch.equal(order[permuted], index)


@pytest.mark.parametrize(
    ("images", "reports", "message"),
    [
        ((3, 4), (5, 6), r"features of one length, got \(3, 4\) and \(5, 6\)"),
        ((3, 4, 1), (5, 4), "features of one length"),
        ((3, 4), (0, 4), "there is none to pair with"),
    ],
)
def test_shapes_that_do_not_fit(images, reports, message):
    with pytest.raises(ValueError, match=message):
        nearest_reports(torch.ones(images), torch.ones(reports))


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_features_without_a_direction(value):
    images, reports = made()
    reports[7] = value
    with pytest.raises(ValueError, match=r"reports: row 7 is 0 or no number \(1 in all\)"):
        nearest_reports(images, reports)


def test_no_images_have_no_pairs():
    index, cosine = nearest_reports(torch.ones(0, 4), torch.ones(2, 4))
    assert len(index) == len(cosine) == 0


@pytest.mark.parametrize("block", [1, 100, 10_000])
def test_cosines_are_those_of_the_pairs_that_are_given(block):
    images, reports = made()
    index = torch.randint(30, (50,), generator=torch.Generator().manual_seed(3))
    expected = [
        (x @ reports[j].double() / (x.norm() * reports[j].double().norm())).item()
        for x, j in zip(images.double(), index, strict=True)
    ]
    found = cosines(images, reports, index, block)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.tolist(), expected, rtol=0, atol=1e-14)
    best, value = nearest_reports(images, reports)
    torch.testing.assert_close(cosines(images, reports, best), value, rtol=0, atol=1e-14)
    assert len(cosines(images[:0], reports, index[:0])) == 0


def test_dealing_anew_keeps_how_often_each_report_is_used():
    index = torch.arange(100) // 4
    dealt = dealt_anew(index, seed=1)
    assert torch.equal(dealt.bincount(), index.bincount())
    assert (dealt == index).sum() < 20  # 4 are expected
    assert torch.equal(dealt, dealt_anew(index, seed=1))
    assert not torch.equal(dealt, dealt_anew(index, seed=2))
