"""Compiled CPU kernel of the permutohedral lattice: one image, all of its maps.

What `permutohedral.py` does with torch operations, to the same bits, in passes over the pixels:

1. Simplices: a block of pixels at a time, so that lifting, rounding, ranking and sorting are loops
   over pixels, which vectorise, on arrays that stay in the first cache.
2. Numbers: the simplex of a pixel (its base point and the ranks of its coordinates) is packed into
   64 bits and looked up in a hash table, once per pixel instead of once per vertex. Only the first
   pixel of a simplex looks up its d + 1 vertices, in a second table.
3. Splat, blur and slice, two maps at a time.

The kernel releases the global interpreter lock, so images run in threads. It allocates nothing that
grows with the image: fresh memory, at a page fault per 4 KB, would cost about as much time as the
lattice. `lattice.py` keeps it between calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

if TYPE_CHECKING:
    from wsl_zoo.losses.lattice import Layout, Workspace

BLOCK = 256
RANK_BITS = 3
"""Bits of a rank in the packed simplex, for at most 7 features."""

START_BITS = 13
"""The hash table of the vertices starts with 8192 slots, and grows."""

FREE = np.int64(-1)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing

Floats = NDArray[Any]
Ints = NDArray[np.int32]
Keys = NDArray[np.int64]


def entry_point(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call; keep the result on disk where there is a place."""
    try:
        return njit(function, nogil=True, cache=True)
    except RuntimeError:  # no writable folder
        return njit(function, nogil=True)


@njit(nogil=True)
def _lift(source: Floats, factor: Any, i: Any, total: Floats, row: Floats) -> None:
    """Write coordinate i of the lifted points, and add the feature to their running sum."""
    for p in range(len(source)):
        feature = total.dtype.type(source[p]) * factor
        row[p] = total[p] - i * feature
        total[p] = total[p] + feature


@njit(nogil=True)
def _find_simplices(
    places: Floats,
    colors: Any,
    factors: Floats,
    point: Floats,
    base: Floats,
    rest: Floats,
    rank: Ints,
    weights: Floats,
) -> None:
    """Find base point, ranks and barycentric weights of n <= BLOCK pixels.

    Args:
        places: `(p, n)` features.
        colors: `(d - p, n)` more features.
        factors: `(d,)` to multiply them by.
        point: `(d + 1, BLOCK)`, overwritten: lifted features.
        base: `(d + 1, BLOCK)`, overwritten: vertex of remainder 0, divided by d + 1.
        rest: `(d + 1, BLOCK)`, overwritten.
        rank: `(d + 1, BLOCK)`, overwritten: how many coordinates stand further from the base.
        weights: `(d + 1, n)`, overwritten.
    """
    size, count = len(point), weights.shape[1]
    d = size - 1
    number = point.dtype.type
    whole, part = number(size), number(1 / size)
    total, first = point[0], rank[0]
    for p in range(count):
        total[p] = 0
        first[p] = 0
    for i in range(d, 0, -1):
        if i > len(places):
            _lift(colors[i - 1 - len(places)], factors[i - 1], number(i), total, point[i])
        else:
            _lift(places[i - 1], factors[i - 1], number(i), total, point[i])
    for i in range(size):
        x, b, r = point[i], base[i], rest[i]
        for p in range(count):
            b[p] = np.rint(x[p] * part)
            r[p] = x[p] - b[p] * whole
            first[p] += np.int32(b[p])
    for i in range(1, size):
        for p in range(count):
            rank[i, p] = first[p]
    for i in range(size):
        for j in range(i + 1, size):
            x, y, before, behind = rest[i], rest[j], rank[i], rank[j]
            for p in range(count):
                ahead = np.int32(y[p] > x[p])
                before[p] += ahead
                behind[p] += np.int32(1) - ahead
    for i in range(size):
        x, b, r, k = point[i], base[i], rest[i], rank[i]
        for p in range(count):
            wrap = np.int32(k[p] < 0) - np.int32(k[p] > d)
            k[p] += np.int32(size) * wrap
            b[p] += number(wrap)
            r[p] = (x[p] - b[p] * whole) * part
    for turn in range(size):  # odd-even transposition sort, descending
        for i in range(turn & 1, d, 2):
            x, y = rest[i], rest[i + 1]
            for p in range(count):
                high, low = max(x[p], y[p]), min(x[p], y[p])
                x[p] = high
                y[p] = low
    x, y, w = rest[0], rest[d], weights[0]
    for p in range(count):
        w[p] = number(1) + y[p] - x[p]
    for m in range(1, size):
        x, y, w = rest[d - m], rest[size - m], weights[m]
        for p in range(count):
            w[p] = x[p] - y[p]


@njit(nogil=True)
def _pack_simplices(base: Floats, rank: Ints, lows: Keys, shifts: Keys, codes: Keys) -> None:
    """Write the base point and the ranks of each pixel of a block into one integer.

    Args:
        base: `(d + 1, BLOCK)`.
        rank: `(d + 1, BLOCK)`.
        lows: `(d,)` lowest base.
        shifts: `(d,)` bits below each base.
        codes: `(n,)`, overwritten.
    """
    for p in range(len(codes)):
        codes[p] = 0
    for i in range(len(lows)):
        b, k, low, shift, bits = base[i], rank[i], lows[i], shifts[i], np.int64(RANK_BITS * i)
        for p in range(len(codes)):
            codes[p] |= ((np.int64(np.int32(b[p])) - low) << shift) | (np.int64(k[p]) << bits)


@njit(nogil=True)
def _slot(keys: Keys, key: Any, shift: Any) -> Any:
    """Return where a key stands in an open hash table, or the free slot where it belongs."""
    mask = (np.int64(1) << np.int64(np.uint64(64) - shift)) - 1
    slot = np.int64((np.uint64(key) * GOLDEN) >> shift)
    while keys[slot] != key and keys[slot] != FREE:
        slot = (slot + 1) & mask
    return slot


@njit(nogil=True)
def _enlarge(keys: Keys, numbers: Ints, bits: int, vertices: Keys) -> None:
    """Make the first 2^bits slots a hash table of these keys, numbered in order."""
    shift = np.uint64(64 - bits)
    keys[: 1 << bits] = FREE
    for number in range(len(vertices)):
        slot = _slot(keys, vertices[number], shift)
        keys[slot] = vertices[number]
        numbers[slot] = number


@njit(nogil=True)
def _number(
    codes: Keys,
    base: Floats,
    rank: Ints,
    layout: Layout,
    work: Workspace,
    shifts: tuple[Any, Any],
    counts: tuple[Any, Any],
    places: Ints,
) -> tuple[Any, Any]:
    """Number the simplices of a block of pixels, and the vertices of those that are new.

    Args:
        codes: `(n,)` packed simplices.
        base: `(d + 1, BLOCK)`.
        rank: `(d + 1, BLOCK)`.
        layout: Of the keys.
        work: Hash tables, with room for all vertices of n simplices; rows are added to `corners`
            and `vertices`.
        shifts: 64 less the logarithm of the size of either table.
        counts: Simplices and vertices so far.
        places: `(n,)`, overwritten: number of each pixel's simplex.

    Returns:
        `counts` after this block.
    """
    found, known = counts
    strides = layout.strides
    size = len(strides)
    ones = strides.sum()
    ranked = np.empty(size, np.int64)
    last = FREE
    number = np.int32(0)
    for p in range(len(codes)):
        if codes[p] != last:
            last = codes[p]
            slot = _slot(work.simplex_keys, last, shifts[0])
            if work.simplex_keys[slot] == FREE:
                work.simplex_keys[slot] = last
                work.simplex_numbers[slot] = found
                key = np.int64(0)
                for i in range(size - 1):
                    key += (size * np.int64(base[i, p]) - layout.low[i]) * strides[i]
                for i in range(size):
                    ranked[rank[i, p]] = strides[i]
                for m in range(size):
                    # Vertex m has added 1 m times everywhere, and d + 1 less where rank > d - m.
                    if m > 0:
                        key += ones - size * ranked[size - m]
                    place = _slot(work.vertex_keys, key, shifts[1])
                    if work.vertex_keys[place] == FREE:
                        work.vertex_keys[place] = key
                        work.vertex_numbers[place] = known
                        work.vertices[known] = key
                        known += 1
                    work.corners[found, m] = work.vertex_numbers[place]
                found += 1
            number = work.simplex_numbers[slot]
        places[p] = number
    return found, known


@njit(nogil=True)
def _build(
    positions: Floats, colors: Any, factors: Floats, layout: Layout, work: Workspace
) -> tuple[Any, Any]:
    """Build the lattice of one image in the workspace; return how many simplices and vertices."""
    size, count = work.weights.shape
    kind = work.weights.dtype
    point = np.empty((size, BLOCK), kind)
    base, rest = np.empty_like(point), np.empty_like(point)
    rank = np.empty((size, BLOCK), np.int32)
    codes = np.empty(BLOCK, np.int64)
    bits = 0
    while 1 << bits < len(work.simplex_keys):
        bits += 1
    shift = np.uint64(64 - bits)
    work.simplex_keys[:] = FREE
    bits = START_BITS
    work.vertex_keys[: 1 << bits] = FREE
    counts = (0, 0)
    for begin in range(0, count, BLOCK):
        end = min(begin + BLOCK, count)
        part = work.weights[:, begin:end]
        _find_simplices(
            positions[:, begin:end], colors[:, begin:end], factors, point, base, rest, rank, part
        )
        code = codes[: end - begin]
        _pack_simplices(base, rank, layout.lows, layout.shifts, code)
        if 2 * (counts[1] + size * BLOCK) > 1 << bits:
            while 2 * (counts[1] + size * BLOCK) > 1 << bits:
                bits += 1
            _enlarge(work.vertex_keys, work.vertex_numbers, bits, work.vertices[: counts[1]])
        shifts = (shift, np.uint64(64 - bits))
        counts = _number(code, base, rank, layout, work, shifts, counts, work.places[begin:end])
    found, known = counts
    work.neighbours[:, :known] = known
    for axis in range(size):
        step = size * layout.strides[axis] - layout.strides.sum()
        for vertex in range(known):
            slot = _slot(work.vertex_keys, work.vertices[vertex] + step, np.uint64(64 - bits))
            if work.vertex_keys[slot] != FREE:
                other = work.vertex_numbers[slot]
                work.neighbours[axis, vertex, 0] = other
                work.neighbours[axis, other, 1] = vertex
    return found, known


@njit(nogil=True)
def _splat(
    first: Floats, second: Floats, places: Ints, corners: Ints, weights: Floats, table: Floats
) -> None:
    """Add two maps `(N,)` to the vertices, `table (M + 1, 2)`."""
    for p in range(len(places)):
        corner = corners[places[p]]
        a, b = first[p], second[p]
        for m in range(len(weights)):
            w, v = weights[m, p], corner[m]
            table[v, 0] += w * a
            table[v, 1] += w * b


@njit(nogil=True)
def _blur(source: Floats, target: Floats, neighbours: Ints) -> None:
    """Blur `(M + 1, 2)` values by (1/2, 1, 1/2) along an axis; the last row is and stays 0."""
    half = source.dtype.type(0.5)
    for v in range(len(source) - 1):
        i, j = neighbours[v]
        target[v, 0] = source[v, 0] + half * (source[i, 0] + source[j, 0])
        target[v, 1] = source[v, 1] + half * (source[i, 1] + source[j, 1])
    target[-1] = 0


@njit(nogil=True)
def _blur_all(source: Floats, targets: Floats, neighbours: Ints, backwards: bool) -> Floats:
    """Blur along all axes, and return that of the two targets `(2, M + 1, 2)` with the result."""
    size = len(neighbours)
    for turn in range(size):
        axis = size - 1 - turn if backwards else turn
        _blur(source, targets[turn & 1], neighbours[axis])
        source = targets[turn & 1]
    return source


@njit(nogil=True)
def _average(table: Floats, other: Floats) -> None:
    """Write the mean of two tables `(M + 1, 2)` into the first."""
    half = table.dtype.type(0.5)
    for v in range(len(table)):
        table[v, 0] = half * (table[v, 0] + other[v, 0])
        table[v, 1] = half * (table[v, 1] + other[v, 1])


@njit(nogil=True)
def _slice(
    table: Floats,
    places: Ints,
    corners: Ints,
    weights: Floats,
    gain: Any,
    first: Floats,
    second: Floats,
) -> None:
    """Read two maps `(N,)` back from the vertices, times a gain."""
    for p in range(len(places)):
        corner = corners[places[p]]
        a = b = table.dtype.type(0)
        for m in range(len(weights)):
            w, v = weights[m, p], corner[m]
            a += w * table[v, 0]
            b += w * table[v, 1]
        first[p] = a * gain
        second[p] = b * gain


@entry_point
def filter_image(
    positions: Floats,
    colors: Any,
    factors: Floats,
    values: Floats,
    symmetric: bool,
    filtered: Floats,
    layout: Layout,
    work: Workspace,
) -> tuple[int, int]:
    """Filter the maps of one image.

    Args:
        positions: `(p, N)` features, float32 or float64 as `values`.
        colors: `(d - p, N)` more features, of any type.
        factors: `(d,)` what the lattice wants them multiplied by.
        values: `(K, N)`.
        symmetric: Average two opposite orders of the blurs.
        filtered: `(K, N)`, overwritten.
        layout: Of the keys.
        work: Memory for N pixels.

    Returns:
        Numbers of simplices and of vertices.
    """
    found, known = _build(positions, colors, factors, layout, work)
    places, corners, weights = work.places, work.corners, work.weights
    gain = values.dtype.type(1 / (1 + 2.0 ** -len(factors)))
    source = work.tables[0, : known + 1]
    for k in range(0, len(values), 2):
        also = min(k + 1, len(values) - 1)  # an odd last map goes twice
        source[:] = 0
        _splat(values[k], values[also], places, corners, weights, source)
        blurred = _blur_all(source, work.tables[1:3, : known + 1], work.neighbours, False)
        if symmetric:
            other = _blur_all(source, work.tables[3:, : known + 1], work.neighbours, True)
            _average(blurred, other)
        _slice(blurred, places, corners, weights, gain, filtered[k], filtered[also])
    return found, known
