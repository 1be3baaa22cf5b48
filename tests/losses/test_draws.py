"""Draws without replacement: exact laws, by enumeration of every outcome."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from wsl_zoo.losses import draws
from wsl_zoo.losses.draws import draw_uniform, draw_weighted

BATCH = 30_000


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outcomes(rows: torch.Tensor) -> dict[tuple[int, ...], int]:
    found, counts = rows.unique(dim=0, return_counts=True)
    return dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True))


def follows(observed: dict[tuple[int, ...], int], law: dict[tuple[int, ...], float]) -> bool:
    assert set(observed) <= set(law)
    expected = np.array([law[key] for key in law]) * BATCH
    assert expected.sum() == pytest.approx(BATCH)
    return stats.chisquare([observed.get(key, 0) for key in law], expected).pvalue > 1e-4


@pytest.mark.parametrize("few", [0, 16], ids=["keys", "one by one"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_ordered_subset_is_equally_likely(k, few, monkeypatch):
    monkeypatch.setattr(draws, "FEW", few)
    region = torch.tensor([0, 1, 1, 0, 1, 0, 1, 1]).bool()
    index, found = draw_uniform(region.expand(BATCH, -1), k, 8, seeded())
    assert found.all()
    subsets = list(permutations(region.nonzero()[:, 0].tolist(), k))
    assert follows(outcomes(index), dict.fromkeys(subsets, 1 / len(subsets)))


@pytest.mark.parametrize("few", [0, 16], ids=["race", "inversion"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_every_ordered_outcome_of_weighted_draws(k, few, monkeypatch):
    """P(i, j, l) = w_i / S * w_j / (S - w_i) * w_l / (S - w_i - w_j), zero weights never."""
    monkeypatch.setattr(draws, "FEW", few)
    weights = torch.tensor([[0.5, 0.0, 2.0], [1.0, 0.0, 4.0]])
    index, found = draw_weighted(weights.expand(BATCH, -1, -1), k, seeded())
    assert found.all()
    flat = weights.flatten().tolist()
    law = {}
    for order in permutations([0, 2, 3, 5], k):
        left, probability = sum(flat), 1.0
        for position in order:
            probability *= flat[position] / left
            left -= flat[position]
        law[order] = probability
    assert follows(outcomes(index), law)


@pytest.mark.parametrize("few", [0, 16], ids=["race", "inversion"])
def test_regions_of_different_sizes(few, monkeypatch):
    monkeypatch.setattr(draws, "FEW", few)
    weights = torch.zeros(5, 3, 4)
    for i in range(5):
        weights[i].view(-1)[2 * i : 4 * i] = 1e-8 * torch.rand(min(2 * i, 12 - 2 * i)).clamp(0.1)
    sizes = (weights > 0).flatten(1).sum(dim=1)
    assert sizes.tolist() == [0, 2, 4, 6, 4]
    for index, found in (
        draw_weighted(weights, 5, seeded()),
        draw_uniform(weights.flatten(1) > 0, 5, 6, seeded()),
    ):
        assert index.shape == found.shape == (5, 5)
        assert found.sum(dim=1).tolist() == [0, 2, 4, 5, 4]
        assert (found.int().diff(dim=1) <= 0).all(), "found draws come first"
        for i in range(5):
            drawn = index[i][found[i]]
            assert len(drawn.unique()) == len(drawn)
            assert (weights[i].view(-1)[drawn] > 0).all()
        assert ((index >= 0) & (index < 12)).all()


@pytest.mark.parametrize("few", [0, 16], ids=["race", "inversion"])
@pytest.mark.parametrize("k", [0, 1, 12, 13])
def test_numbers_of_draws(k, few, monkeypatch):
    monkeypatch.setattr(draws, "FEW", few)
    ones = torch.ones(2, 3, 4)
    for index, found in (
        draw_weighted(ones, k, seeded()),
        draw_uniform(ones.flatten(1) > 0, k, 12, seeded()),
    ):
        assert found.all()
        assert index.shape == (2, min(k, 12))
        assert all(len(row.unique()) == min(k, 12) for row in index)
    assert torch.equal(ones, torch.ones(2, 3, 4)), "the weights are not changed"
    index, found = draw_uniform(ones.flatten(1) < 0, k, 0, seeded())
    assert not found.any()


def test_tiny_and_huge_weights():
    weights = torch.full((400, 50, 50), 1e-8)
    weights[:, 7, 7] = 1.0
    for k in (1, 40):
        index, found = draw_weighted(weights, k, seeded())
        assert found.all()
        assert (index[:, 0] == 357).float().mean() > 0.99  # 1 / (1 + 2499e-8)
        assert all(len(row.unique()) == k for row in index)


def test_inversion_keeps_precision_over_many_pixels():
    """Halves of 224 x 224 pixels, one 1 % likelier: float32 sums over all pixels would round it."""
    weights = torch.ones(1, 224, 224)
    weights[:, 112:] = 1.01
    index, _ = draw_weighted(weights.expand(200_000, -1, -1)[:4000], 16, seeded())
    lower = (index >= 112 * 224).double().mean().item()
    assert lower == pytest.approx(1.01 / 2.01, abs=4 * 0.5 / 64_000**0.5)
