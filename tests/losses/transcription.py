"""What the dense-CRF losses are compared with: photo-like images, a plain permutohedral lattice.

The lattice is written after its description (Adams et al., 2010; the dense-CRF family of programs):
one image, one pixel after the other, a hash table of the vertices' coordinates, one channel at a
time, one order of the blurs.
"""

import math

import numpy as np
import torch
from numba import njit
from torch.nn import functional


def photo(size, seed=0, frames=1, detail=0.65):
    """Return `(frames, 3, size, size)` uint8: clouds at all scales, with an object that is orange.

    At 224 x 224 about 10,000 simplices and 2,200 vertices, as bird photos have (4,000 to 19,000 and
    1,300 to 5,400).
    """
    random = torch.Generator().manual_seed(seed)

    def clouds(channels, octave):
        coarse = torch.randn(frames, channels, 2**octave, 2**octave, generator=random)
        return functional.interpolate(coarse, (size, size), mode="bicubic")

    image = torch.zeros(frames, 3, size, size)
    for octave in range(1, min(8, int(math.log2(size))) + 1):
        image += detail**octave * (clouds(1, octave) + 0.35 * clouds(3, octave))
    image *= 35 / image.std()
    image += (clouds(1, 2) > 0.3) * torch.tensor([60.0, 20.0, -40.0])[:, None, None]
    return (image + 110).clamp(0, 255).round().to(torch.uint8)


def noise(size, seed=0, frames=1):
    """Return `(frames, 3, size, size)` uint8, uniform."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(256, (frames, 3, size, size), dtype=torch.uint8, generator=random)


def blob_maps(size, seed=0, frames=1):
    """Return `(frames, 2, size, size)` probabilities: a disk in the middle, and noise."""
    random = torch.Generator().manual_seed(seed)
    line = torch.linspace(-1, 1, size)
    logits = 3 - 8 * (line[:, None] ** 2 + line**2)
    logits = logits + torch.randn(frames, size, size, generator=random)
    return torch.stack([-logits, logits], 1).softmax(1)


def scaled_features(image, sigma_rgb=15.0, sigma_xy=100.0):
    """Return `(H W, 5)` float32 features of `(3, H, W)`, in standard deviations."""
    _, height, width = image.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1) / sigma_xy
    colors = image.numpy().reshape(3, -1) / sigma_rgb
    return np.stack([x, y, *colors], 1).astype(np.float32)


@njit(cache=True, nogil=True)
def find(table, keys, key, mask):
    d = len(key)
    mixed = np.uint64(0)
    for i in range(d):
        mixed = (mixed + np.uint64(key[i])) * np.uint64(2531011)
    slot = np.int64(mixed & np.uint64(mask))
    while table[slot] >= 0:
        same = True
        for i in range(d):
            if keys[table[slot], i] != key[i]:
                same = False
                break
        if same:
            break
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, nogil=True)
def build(features):
    """Return vertex and weight of each pixel's corners, `(N, d + 1)`, and neighbours."""
    count, d = features.shape
    slots = 1
    while slots < 2 * count * (d + 1):
        slots *= 2
    table = np.full(slots, -1, np.int32)
    keys = np.empty((count * (d + 1), d), np.int16)
    vertices = np.empty((count, d + 1), np.int32)
    weights = np.empty((count, d + 1), np.float32)
    scale = np.empty(d, np.float32)
    for i in range(d):
        scale[i] = math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2))
    lifted = np.empty(d + 1, np.float32)
    base = np.empty(d + 1, np.float32)
    rank = np.empty(d + 1, np.int64)
    barycentric = np.empty(d + 2, np.float32)
    key = np.empty(d, np.int16)
    known = 0
    for p in range(count):
        total = np.float32(0)
        for i in range(d, 0, -1):
            feature = features[p, i - 1] * scale[i - 1]
            lifted[i] = total - i * feature
            total += feature
        lifted[0] = total
        shift = 0
        for i in range(d + 1):
            whole = np.rint(lifted[i] / np.float32(d + 1))
            base[i] = whole * (d + 1)
            shift += int(whole)
        rank[:] = 0
        for i in range(d):
            for j in range(i + 1, d + 1):
                if lifted[i] - base[i] < lifted[j] - base[j]:
                    rank[i] += 1
                else:
                    rank[j] += 1
        for i in range(d + 1):
            rank[i] += shift
            if rank[i] < 0:
                rank[i] += d + 1
                base[i] += d + 1
            elif rank[i] > d:
                rank[i] -= d + 1
                base[i] -= d + 1
        barycentric[:] = 0
        for i in range(d + 1):
            part = (lifted[i] - base[i]) / np.float32(d + 1)
            barycentric[d - rank[i]] += part
            barycentric[d + 1 - rank[i]] -= part
        barycentric[0] += 1 + barycentric[d + 1]
        for m in range(d + 1):
            for i in range(d):
                key[i] = base[i] + (m if rank[i] <= d - m else m - (d + 1))
            slot = find(table, keys, key, slots - 1)
            if table[slot] < 0:
                keys[known] = key
                table[slot] = known
                known += 1
            vertices[p, m] = table[slot]
            weights[p, m] = barycentric[m]
    neighbours = np.empty((d + 1, known, 2), np.int32)
    for j in range(d + 1):
        for v in range(known):
            for side in range(2):
                sign = 2 * side - 1
                for i in range(d):
                    key[i] = keys[v, i] + sign
                if j < d:
                    key[j] = keys[v, j] - sign * d
                found = table[find(table, keys, key, slots - 1)]
                neighbours[j, v, side] = found if found >= 0 else known
    return vertices, weights, neighbours


@njit(cache=True, nogil=True)
def apply(vertices, weights, neighbours, values):
    """Filter one channel `(N,)`."""
    count, size = vertices.shape
    known = neighbours.shape[1]
    table = np.zeros(known + 1, np.float32)
    other = np.zeros(known + 1, np.float32)
    for p in range(count):
        for m in range(size):
            table[vertices[p, m]] += weights[p, m] * values[p]
    for j in range(size):
        for v in range(known):
            near = table[neighbours[j, v, 0]] + table[neighbours[j, v, 1]]
            other[v] = table[v] + np.float32(0.5) * near
        table, other = other, table
    filtered = np.zeros(count, np.float32)
    gain = np.float32(1 / (1 + 2.0 ** (1 - size)))
    for p in range(count):
        for m in range(size):
            filtered[p] += gain * weights[p, m] * table[vertices[p, m]]
    return filtered


def loss_and_gradient(maps, image):
    """Return the loss of `(K, H, W)` maps over a `(3, H, W)` image, and `-2 A S` as published."""
    lattice = build(scaled_features(image))
    loss = 0.0
    gradient = np.empty(maps.shape, np.float32)
    for k, channel in enumerate(maps.numpy().reshape(len(maps), -1)):
        filtered = apply(*lattice, channel)
        loss -= float(channel @ filtered)
        gradient[k] = -2 * filtered.reshape(maps.shape[1:])
    return loss, gradient
