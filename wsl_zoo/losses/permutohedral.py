"""Gaussian filtering on the permutohedral lattice (Adams, Baek and Davis, Eurographics 2010).

Features of d dimensions are scaled and lifted to the hyperplane of coordinate sum 0 in d + 1
dimensions. Each point spreads its value over the d + 1 vertices of the simplex that holds it, by
barycentric weights; vertices are blurred along the d + 1 lattice directions by (1/2, 1, 1/2), where
a vertex that no point touched counts as 0; each point reads back with its own weights, times
`1 / (1 + 2^-d)`. As in the dense-CRF code whose loss weights were published, nothing is
normalised: the result is about `c * W v`, with c between 0.4 and 0.8, depending on the data.

One order of the blurs gives a slightly unsymmetric operator (2 to 8 %); the mean of an order and
its reverse, the default, is symmetric, so that `2 A v` is the exact gradient of `v' A v`.

On the CPU the work is done by `lattice_kernels.py`, one image per thread; elsewhere by torch
operations on groups of images. Both do the same arithmetic in the same order up to the vertices, so
they find the same lattice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wsl_zoo.losses.exact import Points
from wsl_zoo.losses.lattice import Packing, filter_on_cpu

GROUP = 1 << 23
"""Point-vertex pairs filtered at once: 27 images of 224 x 224, about 0.5 GB."""


def scales(sigmas: Sequence[float]) -> list[float]:
    """Return the factor of each feature that makes the lattice blur a Gaussian of these sigmas."""
    width = math.sqrt(2 / 3) * (len(sigmas) + 1)
    return [width / math.sqrt((i + 1) * (i + 2)) / sigma for i, sigma in enumerate(sigmas)]


def permutohedral_filter(points: Points, values: Tensor, symmetric: bool = True) -> Tensor:
    """Approximate `c * W v` with `W_ij = exp(-|f_i - f_j|^2 / 2)`, and c unknown.

    On a GPU the host waits once per group, for the number of vertices (`torch.unique`).

    Args:
        points: B images of N pixels.
        values: `(B, K, N)` float32 or float64, as the positions.
        symmetric: Average two opposite orders of the blurs.

    Returns:
        `(B, K, N)`.

    Raises:
        ValueError: The lattice is too large for integer keys.
    """
    factors = scales(points.sigmas)
    packing = Packing.of([(a * s, b * s) for (a, b), s in zip(points.limits, factors, strict=True)])
    if values.device.type == "cpu":
        filtered = filter_on_cpu(points, values, factors, packing, symmetric)
        if filtered is not None:
            return filtered
    return filter_anywhere(points, values, factors, packing, symmetric)


def filter_anywhere(
    points: Points, values: Tensor, factors: list[float], packing: Packing, symmetric: bool
) -> Tensor:
    """Filter groups of images with torch operations; arguments as in `permutohedral_filter`."""
    batch, _, count = values.shape
    group = max(1, min(GROUP // (count * (len(factors) + 1)), (1 << 62) // packing.span))
    parts = [
        _filter_group(
            points[i : i + group].times(factors), values[i : i + group], packing, symmetric
        )
        for i in range(0, batch, group)
    ]
    return torch.cat(parts)


def _simplices(scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex of each point.

    Args:
        scaled: `(G, d, N)` features times `scales`.

    Returns:
        The vertex of remainder 0 divided by d + 1, the rank of each coordinate (both int64), and
        the barycentric weights, all `(d + 1, G, N)`.
    """
    d = scaled.shape[1]
    planes = scaled.unbind(1)
    total = torch.zeros_like(planes[0])
    lifted = []
    for i in range(d, 0, -1):
        lifted.append(total - i * planes[i - 1])
        total = total + planes[i - 1]
    point = torch.stack([total, *reversed(lifted)])
    base = torch.round(point * (1 / (d + 1)))
    rest = point - base * (d + 1)
    earlier = torch.ones(d + 1, d + 1, dtype=torch.bool, device=scaled.device).tril(-1)
    ahead = (rest[None] > rest[:, None]) | (
        (rest[None] == rest[:, None]) & earlier[:, :, None, None]
    )
    base = base.long()
    rank = ahead.sum(1) + base.sum(0)
    wrap = (rank < 0).long() - (rank > d).long()
    rank += (d + 1) * wrap
    base += wrap
    rest = (point - (base * (d + 1)).to(point)) * (1 / (d + 1))
    ordered = torch.empty_like(rest).scatter_(0, rank, rest)
    weights = torch.empty_like(rest)
    weights[0] = 1 + ordered[d] - ordered[0]
    weights[1:] = (ordered[:-1] - ordered[1:]).flip(0)
    return base, rank, weights


def _filter_group(scaled: Tensor, values: Tensor, packing: Packing, symmetric: bool) -> Tensor:
    """Filter some images with torch operations.

    Args:
        scaled: `(G, d, N)` features times `scales`.
        values: `(G, K, N)`.
        packing: Layout of the keys.
        symmetric: Average two opposite orders of the blurs.

    Returns:
        `(G, K, N)`.
    """
    images, d, count = scaled.shape
    base, rank, weights = _simplices(scaled)
    low = torch.tensor([*packing.low, 0], device=scaled.device)
    strides = torch.tensor(packing.strides, device=scaled.device)
    key = (((d + 1) * base - low[:, None, None]) * strides[:, None, None]).sum(0)
    key += packing.span * torch.arange(images, device=scaled.device)[:, None]
    # Vertex m has added 1 m times to all coordinates, and taken d + 1 from the m of highest rank.
    ranked = torch.empty_like(rank).scatter_(0, rank, strides[:, None, None].expand_as(rank))
    keys = torch.empty_like(rank)
    keys[0] = key
    keys[1:] = key + (sum(packing.strides) - (d + 1) * ranked[1:].flip(0)).cumsum(0)
    vertices, places = torch.unique(keys, return_inverse=True)
    neighbours = []
    for step in packing.steps():
        for target in (vertices + step, vertices - step):
            place = torch.searchsorted(vertices, target).clamp_(max=len(vertices) - 1)
            place[vertices[place] != target] = len(vertices)  # a row of zeros
            neighbours.append(place)

    rows = values.transpose(1, 2).reshape(images * count, -1)
    place, weight = places.view(d + 1, -1), weights.view(d + 1, -1, 1)
    table = rows.new_zeros(len(vertices) + 1, rows.shape[1])
    for m in range(d + 1):
        table.index_add_(0, place[m], weight[m] * rows)
    order = list(range(d + 1))
    blurred = _blur(table, neighbours, order)
    if symmetric:
        blurred = 0.5 * (blurred + _blur(table, neighbours, order[::-1]))
    found = torch.zeros_like(rows)
    for m in order:
        found += weight[m] * blurred[place[m]]
    return (found * (1 / (1 + 2.0**-d))).view(images, count, -1).transpose(1, 2)


def _blur(table: Tensor, neighbours: list[Tensor], order: list[int]) -> Tensor:
    """Blur `(M + 1, K)` vertex values, of which the last row is 0, along the axes in order."""
    for j in order:
        blurred = torch.zeros_like(table)
        both = table[neighbours[2 * j]] + table[neighbours[2 * j + 1]]
        blurred[:-1] = table[:-1] + 0.5 * both
        table = blurred
    return table
