"""Procedural scenes: textured objects on textured ground, with label, mask and boxes.

The built-in data of the zoo. No files are read: a scene is a pure function of its arguments. It is
made so that a class activation map finds the object but does not delineate it, while all that a
decoder needs to do better is in the pixels:

* the class is the *texture* of the object. Its angle, phase, period, sign, contrast and colours are
  random, so that neither colour nor brightness tells the class;
* the texture is clear in one part of the object and fades into a neutral one elsewhere, so that a
  classifier looks at that part;
* objects are blobs with bent arms, one or two in a scene, bounded by edges of colour and texture;
* the ground and one to three distractors have the colours and the contrast of objects but only
  neutral textures, so that what stands out is not yet an object.

All lengths are relative to the side of the image, so that a scene looks alike at any size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating]  # float32 throughout
Mask = NDArray[np.uint8]

MIN_SIZE = 32
MAX_OBJECTS = 4
PERIOD = 0.08  # of a class texture, relative to the side; at least 4 pixels
REACH = 0.6  # radius of an object's clear part, relative to the square root of its area
TAU = 2 * np.pi

_THETA = np.linspace(0, TAU, 120, endpoint=False)


def _cos(turns: Field) -> Field:
    return np.asarray(np.cos(np.float32(TAU) * turns))


def _saw(turns: Field) -> Field:
    return np.asarray(np.abs(turns - np.rint(turns)))  # distance to the nearest integer


# Each texture is a function of two coordinates that count periods along perpendicular axes.
_TEXTURES: dict[str, Callable[[Field, Field], Field]] = {
    "stripes": lambda u, v: _cos(u),
    # three plane waves at 60 degrees make round spots on a hexagonal lattice
    "dots": lambda u, v: _cos(u) + _cos(u / 2 + 0.866 * v) + _cos(u / 2 - 0.866 * v),
    "checks": lambda u, v: np.clip(3 * _cos(u / 2) * _cos(v / 2), -1, 1),
    "rings": lambda u, v: _cos(2.5 * np.hypot(_saw(u / 1.6), _saw(v / 1.6))),
    "waves": lambda u, v: _cos(u + 2 * _saw(v / 2)),
    "mesh": lambda u, v: np.maximum(_cos(u), _cos(v)),
    "bricks": lambda u, v: np.clip(6 * np.maximum(_cos(v), _cos((u + np.floor(v)) / 2)) - 4, -1, 1),
    "scales": lambda u, v: _cos(np.hypot(_saw((u + np.floor(v)) / 2) * 2, v - np.floor(v))),
}
TEXTURES: tuple[str, ...] = tuple(_TEXTURES)


@dataclass(frozen=True)
class Scene:
    """One image with its labels.

    Attributes:
        image: `(H, W, 3)` uint8, RGB.
        mask: `(H, W)` uint8, 1 on objects, 0 elsewhere (distractors included).
        boxes: `(n, 4)` float64, `x0 y0 x1 y1` of each object in pixels, inclusive: `x1` and `y1`
            are its last column and row. Objects never touch, so these are the boxes of the
            8-connected components of `mask`.
        label: The class, an index into `TEXTURES`.
    """

    image: NDArray[np.uint8]
    mask: Mask
    boxes: NDArray[np.float64]
    label: int


def _standardize(field: Field) -> Field:
    mean, deviation = cv2.meanStdDev(field)
    return (field - np.float32(mean.item())) / np.float32(max(deviation.item(), 1e-6))


def noise(rng: np.random.Generator, size: int, cells: float) -> Field:
    """Smooth noise with `cells` values along a side: `(size, size)`, mean 0, deviation 1."""
    count = min(size, max(2, round(cells)))
    coarse = rng.standard_normal((count, count), dtype=np.float32)
    field: Field = np.empty((size, size), np.float32)
    cv2.resize(coarse, (size, size), dst=field, interpolation=cv2.INTER_CUBIC)
    return _standardize(field)


# The next three are fields for images of side `size`; with `sides` they span so many sides of them,
# their texture as large as on the image.
def ground(rng: np.random.Generator, size: int, sides: float = 1.0) -> Field:
    """Noise at four scales, from a third of the side down: `(size, size)`, mean 0, deviation 1."""
    length = round(size * sides)
    field = np.zeros((length, length), np.float32)
    for cells, weight in ((3, 0.8), (8, 0.5), (16, 0.5), (32, 0.4)):
        field += np.float32(weight) * noise(rng, length, cells * sides)
    return _standardize(field)


def neutral_texture(rng: np.random.Generator, size: int, sides: float = 1.0) -> Field:
    """Noise in the band of the class textures: `(size, size)`, mean 0, deviation 1."""
    return noise(rng, round(size * sides), rng.uniform(1.1, 2.2) / PERIOD * sides)


def class_texture(rng: np.random.Generator, size: int, label: int, sides: float = 1.0) -> Field:
    """The texture of class `label`, slightly bent: `(size, size)`, mean 0, deviation 1."""
    angle, phase = rng.uniform(0, TAU), rng.uniform(0, 4, (2, 1, 1)).astype(np.float32)
    period = max(PERIOD * size, 4.0) * rng.uniform(0.85, 1.15)
    size = round(size * sides)
    steps = np.arange(size, dtype=np.float32) / np.float32(period)
    along, across = steps * np.float32(np.cos(angle)), steps * np.float32(np.sin(angle))
    bend = np.float32(0.15) * noise(rng, size, 3 * sides)
    u = along + across[:, None] + phase[0] + bend
    v = along[:, None] - across + phase[1] - bend
    return _standardize(_TEXTURES[TEXTURES[label]](u, v)) * np.float32(rng.choice((-1, 1)))


def outline(rng: np.random.Generator) -> NDArray[np.float64]:
    """A closed curve with deep lobes, bent around its centre: `(n, 2)` x y, enclosing area 1."""
    orders = np.array([rng.integers(2, 6), 1, 2, 3, 5])
    depths = np.append(rng.uniform(0.35, 0.6), rng.uniform(0, 0.18, 4))
    radius = 1 + depths @ np.cos(orders[:, None] * _THETA + rng.uniform(0, TAU, (5, 1)))
    radius = np.maximum(radius, 0.25)
    angle = _THETA + rng.uniform(-0.7, 0.7) * radius + rng.uniform(0, TAU)
    x, y = rng.uniform(0.7, 1.0) * radius * np.cos(angle), radius * np.sin(angle)
    area = abs(x[:-1] @ y[1:] - y[:-1] @ x[1:] + x[-1] * y[0] - y[-1] * x[0]) / 2
    return np.asarray(np.stack((x, y), axis=1) / np.sqrt(area))


def fill(curve: NDArray[np.float64], size: int) -> Mask:
    """The region within a closed curve `(n, 2)`, x y in pixels: `(size, size)` uint8 in {0, 1}."""
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.rint(16 * curve).astype(np.int32)], 1, shift=4)
    return mask


def blob(rng: np.random.Generator, curve: NDArray[np.float64], size: int, coverage: float) -> Mask:
    """The region within `curve` (of `outline`) at a random place clear of the image's border.

    `coverage` is its area as a fraction of the image; it gets less where the arms would not fit.
    Returns `(size, size)` uint8 in {0, 1}, one 8-connected component.
    """
    extent, room = np.ptp(curve, axis=0), size - 3
    scale = min(np.sqrt(coverage) * size, room / extent.max())
    corner = 1 + (room - scale * extent) * rng.uniform(size=2)
    return fill(scale * (curve - curve.min(axis=0)) + corner, size)


def free_blob(rng: np.random.Generator, size: int, coverage: float, taken: Mask) -> Mask | None:
    """A blob that touches nothing in `taken`, smaller at each attempt; None if there is no room."""
    curve = outline(rng)
    blocked = cv2.dilate(taken, np.ones((5, 5), np.uint8))
    for attempt in range(60):
        mask = blob(rng, curve, size, coverage * 0.95**attempt)
        if not np.logical_and(mask, blocked).any():
            return mask
    return None


def evidence(rng: np.random.Generator, mask: Mask, rest: float) -> Field:
    """Clarity of the class in an object: `(H, W)`, 1 around a random pixel, `rest` far from it."""
    ys, xs = np.nonzero(mask)
    at = rng.integers(len(xs))
    return clarity(xs[at], ys[at], REACH**2 * len(xs), len(mask), rest)


def clarity(x: float, y: float, square: float, size: int, rest: float) -> Field:
    """1 around the pixel (x, y), `rest` beyond the root of `square` pixels: `(size, size)`."""
    steps = np.arange(size, dtype=np.float32)
    dx, dy = steps - np.float32(x), (steps - np.float32(y))[:, None]
    near: Field = np.exp(-(((dx * dx + dy * dy) / np.float32(square)) ** 2))
    return np.float32(rest) + np.float32(1 - rest) * near


def palette(rng: np.random.Generator, hue: float) -> tuple[Field, Field]:
    """Mean colour and contrast direction of a region: two `(3, 1, 1)` RGB vectors, 0..1 scale."""
    mean = rng.uniform(0.4, 0.62) + rng.uniform(0.08, 0.2) * np.cos(TAU * (hue - np.arange(3) / 3))
    axis = rng.uniform(0.10, 0.15) * (1 + rng.uniform(-0.35, 0.35, 3))
    return mean.astype(np.float32).reshape(3, 1, 1), axis.astype(np.float32).reshape(3, 1, 1)


def paint(image: Field, field: Field, colors: tuple[Field, Field], mask: Mask) -> None:
    """Draw a region over `image` `(3, H, W)`, in place, its edge softened by about a pixel.

    `field` `(H, W)` is its texture, `colors` come from `palette`, `mask` `(H, W)` from `blob`.
    """
    x, y, width, height = cv2.boundingRect(mask)
    rows = slice(max(y - 1, 0), y + height + 1)
    cols = slice(max(x - 1, 0), x + width + 1)
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0.6)[rows, cols]
    part = image[:, rows, cols]
    part += alpha * (colors[0] + field[rows, cols] * colors[1] - part)


def span(name: str, number: tuple[int, int] | int, least: int, most: int) -> tuple[int, int]:
    """Return `number` as an inclusive range; ValueError if it leaves `least`..`most`."""
    low, high = (number, number) if isinstance(number, int) else number
    if not least <= low <= high <= most:
        raise ValueError(f"{name}={number}: give a number or (low, high) within {least}..{most}")
    return low, high


def check_scene(
    index: int,
    seed: int,
    size: int,
    num_classes: int,
    coverage: tuple[float, float],
    rest: float,
    grain: float,
) -> None:
    """Refuse arguments of `render_scene` that are out of their range."""
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed count from 0, got index={index} and seed={seed}")
    if size < MIN_SIZE:
        raise ValueError(f"size={size} is too small for a texture: at least {MIN_SIZE} pixels")
    if not 1 <= num_classes <= len(TEXTURES):
        raise ValueError(f"num_classes={num_classes}: within 1..{len(TEXTURES)}, for {TEXTURES}")
    if not 0 < coverage[0] <= coverage[1] <= 0.5:
        raise ValueError(f"coverage={coverage}: give (low, high) with 0 < low <= high <= 0.5")
    if not (0 <= rest <= 1 and grain >= 0):
        raise ValueError(f"rest={rest}, grain={grain}: rest lies in 0..1, grain is not negative")


def render_scene(
    index: int,
    *,
    seed: int = 0,
    size: int = 96,
    num_classes: int = 4,
    num_objects: tuple[int, int] | int = (1, 2),
    num_distractors: tuple[int, int] | int = (1, 3),
    coverage: tuple[float, float] = (0.12, 0.30),
    rest: float = 0.25,
    grain: float = 0.02,
    negatives: bool = False,
) -> Scene:
    """Render one scene, the same for the same arguments in any process and any order of calls.

    Args:
        index: Number of the scene, from 0. The label is `index % num_classes`, so that any run of
            successive scenes is balanced.
        seed: Family of scenes, from 0.
        size: Side of the image in pixels, at least `MIN_SIZE`.
        num_classes: 1 to `len(TEXTURES)`.
        num_objects: Number of objects or its inclusive range, 1 to `MAX_OBJECTS`. An object for
            which no room is found is left out (never the first).
        num_distractors: Number of distractors or its inclusive range, from 0.
        coverage: Range of the objects' joint area as a fraction of the image, within (0, 0.5];
            less where there is no room.
        rest: Clarity of the class away from an object's clear part, in [0, 1]: lower is harder.
        grain: Deviation of the pixel noise, 0..1 scale.
        negatives: One more class, `num_classes`, of ground and distractors only.

    Raises:
        ValueError: An argument is out of its range.
    """
    check_scene(index, seed, size, num_classes, coverage, rest, grain)
    objects = span("num_objects", num_objects, 1, MAX_OBJECTS)
    distractors = span("num_distractors", num_distractors, 0, 2 * MAX_OBJECTS)

    rng = np.random.default_rng((seed, index))
    label, hue = index % (num_classes + negatives), rng.uniform()
    mean, axis = palette(rng, hue)
    image = mean + axis * ground(rng, size)
    for _ in range(rng.integers(*distractors, endpoint=True)):
        shape = blob(rng, outline(rng), size, rng.uniform(0.03, 0.10))
        paint(image, neutral_texture(rng, size), palette(rng, hue + rng.uniform(0.2, 0.8)), shape)

    mask, boxes = np.zeros((size, size), np.uint8), []
    count = 0 if label == num_classes else rng.integers(*objects, endpoint=True)
    for _ in range(count):
        placed = free_blob(rng, size, rng.uniform(*coverage) / count, mask)
        if placed is None:
            continue
        clarity = evidence(rng, placed, rest)
        field = clarity * class_texture(rng, size, label)
        field += np.sqrt(1 - clarity * clarity) * neutral_texture(rng, size)
        paint(image, field, palette(rng, hue + rng.uniform(0.2, 0.8)), placed)
        mask |= placed
        x, y, width, height = cv2.boundingRect(placed)
        boxes.append((x, y, x + width - 1, y + height - 1))
    image += np.float32(grain) * rng.standard_normal((size, size), dtype=np.float32)
    pixels = np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)
    array = np.array(boxes, np.float64).reshape(-1, 4)
    return Scene(pixels.transpose(1, 2, 0).copy(), mask, array, label)


def render_hue_scene(index: int, *, seed: int = 0, size: int = 96, num_classes: int = 4) -> Scene:
    """Render a scene with one object whose class is its hue: what a small ViT learns in seconds.

    Args:
        index: Number of the scene, from 0. The label is `index % num_classes`.
        seed: Family of scenes, from 0.
        size: Side of the image in pixels.
        num_classes: Number of hues, evenly spaced.
    """
    rng = np.random.default_rng((seed, index))
    label = index % num_classes
    image = np.full((3, 1, 1), 0.5, np.float32) + np.float32(0.12) * ground(rng, size)
    mask = blob(rng, outline(rng), size, rng.uniform(0.12, 0.3))
    hue = (label + rng.uniform(-0.2, 0.2)) / num_classes
    paint(image, neutral_texture(rng, size), palette(rng, hue), mask)
    x, y, width, height = cv2.boundingRect(mask)
    boxes = np.array([(x, y, x + width - 1, y + height - 1)], np.float64)
    pixels = np.clip(255 * image, 0, 255).astype(np.uint8)
    return Scene(pixels.transpose(1, 2, 0).copy(), mask, boxes, label)
