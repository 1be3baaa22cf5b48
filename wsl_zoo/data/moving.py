"""Procedural clips: one textured object that moves before a moving ground, with mask and boxes.

A clip is a pure function of its arguments, made of the pieces of `scenes.py`, and like those scenes
in what tells the class. Over its frames

* the object moves and turns in the image plane, and its texture with it;
* the clear part of the object goes round it, as if it showed the camera another side in every
  frame. A class activation map of one frame finds that part; the maximum over frames finds more of
  the object while it moves little, and ground where it was before when it moves far;
* the ground shifts with the camera; distractors lie on it or move on their own;
* the colours of object, ground and distractors stay, and those of the three differ.

All lengths are relative to the side of the image, so that a clip looks alike at any size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from wsl_zoo.data.scenes import (
    TAU,
    Field,
    Mask,
    check_scene,
    clarity,
    class_texture,
    fill,
    ground,
    neutral_texture,
    outline,
    paint,
    palette,
    span,
)

Points = NDArray[np.float64]

REACH = 0.5  # radius of the clear part, relative to the square root of the object's area
INNER = 0.6  # way of the clear part's centre, from the object's centre to its outline
VISIBLE = 0.05  # part of the object below which a frame does not show it at all

# Changes of heading in radians, the smallest first.
_TURNS = np.array(sorted(np.linspace(-np.pi, np.pi, 64, endpoint=False), key=abs))


@dataclass(frozen=True)
class Clip:
    """Successive frames with their labels.

    Attributes:
        images: `(T, H, W, 3)` uint8, RGB.
        masks: `(T, H, W)` uint8, 1 on the visible part of the object, 0 elsewhere.
        boxes: Of every frame `(n, 4)` float64, `x0 y0 x1 y1` of that part in pixels, inclusive as
            those of `Scene`; n is 1, or 0 where the mask is empty.
        label: The class, an index into `TEXTURES`.
    """

    images: NDArray[np.uint8]
    masks: Mask
    boxes: list[NDArray[np.float64]]
    label: int


def _warped(fields: Field, matrix: Points, size: int) -> Field:
    """Fields `(h, w[, C])` at the places `matrix` `(2, 3)` maps the pixels of a frame to."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    frame = (size, size)
    return np.asarray(
        cv2.warpAffine(fields, matrix, frame, flags=flags, borderMode=cv2.BORDER_REFLECT)
    )


class _Body(NamedTuple):
    """A thing in motion: outlines `(T, n, 2)`, places `(T, 2)` in pixels, turns `(T,)`."""

    curves: Points
    places: Points
    angles: NDArray[np.float64]
    side: int  # of the square around its centre that holds it at any angle

    @classmethod
    def of(cls, curve: Points, places: Points, angles: NDArray[np.float64]) -> "_Body":
        side = 2 * int(np.ceil(np.hypot(*curve.T).max())) + 5
        return cls(_turned(curve, angles) + places[:, None], places, angles, side)

    def seen(self, fields: Field, frame: int, size: int) -> Field:
        """Return textures `(side, side[, C])` of the body as they lie in a frame of side `size`."""
        rotation = _rotations(self.angles[frame : frame + 1])[0]
        offset = (self.side - 1) / 2 - self.places[frame] @ rotation
        matrix = np.column_stack((rotation.T, offset))
        return _warped(fields, matrix, size)


def _rotations(angles: NDArray[np.float64]) -> Points:
    """Matrices `(T, 2, 2)` that turn column vectors by `angles` `(T,)`."""
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack((np.stack((cos, -sin), -1), np.stack((sin, cos), -1)), -2)


def _turned(points: Points, angles: NDArray[np.float64]) -> Points:
    """Points `(n, 2)` turned around the origin by each angle: `(T, n, 2)`."""
    return np.asarray(points @ _rotations(angles).transpose(0, 2, 1))


def _walk(
    rng: np.random.Generator, frames: int, step: float, start: Points, low: Points, high: Points
) -> Points:
    """A path of places `(T, 2)`, `step` apart, that veers and turns back at its bounds.

    Where no step leads between `low` and `high` `(2,)`, the one that comes closest is taken: a path
    from outside comes in on a straight way.
    """
    path, heading = [start], rng.uniform(0, TAU)
    for _ in range(frames - 1):
        headings = heading + rng.normal(0, 0.3) + _TURNS
        places = path[-1] + step * np.stack((np.cos(headings), np.sin(headings)), axis=1)
        outside = np.maximum(low - places, 0) + np.maximum(places - high, 0)
        best = outside.sum(axis=1).argmin()  # the first, so the least turn
        heading = headings[best]
        path.append(places[best])
    return np.array(path)


def _moving(
    rng: np.random.Generator,
    size: int,
    frames: int,
    coverage: float,
    speed: float,
    turn: float,
    leaves: bool = False,
) -> _Body:
    """A body that stays within the image, or comes in over its border or goes out (`leaves`).

    It covers `coverage` of the image, less where it would have no room to move by `speed`.
    """
    angles = turn * rng.choice((-1, 1)) * np.arange(frames)
    curve = outline(rng)
    swept = _turned(curve, angles).reshape(-1, 2)
    # from any place in a square, steps of up to its side / sqrt(2) stay in it
    room = (1 - np.sqrt(2) * speed) * size - 3
    scale = min(np.sqrt(coverage) * size, room / np.ptp(swept, axis=0).max())
    low, high = 1 - scale * swept.min(axis=0), size - 2 - scale * swept.max(axis=0)
    start = rng.uniform(low, high)
    backwards = False
    if leaves:
        axis = rng.integers(2)
        out = rng.uniform(0.3, 1) * scale * np.ptp(swept[:, axis])
        start[axis] = rng.choice((low[axis] - out, high[axis] + out))
        backwards = bool(rng.integers(2))
    path = _walk(rng, frames, speed * size, start, low, high)
    if backwards:
        path, angles = path[::-1], angles[::-1]
    return _Body.of(scale * curve, path, angles)


def _drift(rng: np.random.Generator, size: int, frames: int, camera: float) -> Points:
    """Shift of the ground in every frame, at least 0, in pixels: `(T, 2)`."""
    free = np.full(2, np.inf)
    path = _walk(rng, frames, camera * size, np.zeros(2), -free, free)
    return np.asarray(path - path.min(axis=0))


def _range(name: str, value: tuple[float, float], most: float) -> None:
    if not 0 <= value[0] <= value[1] <= most:
        raise ValueError(f"{name}={value}: give (low, high) with 0 <= low <= high <= {most:g}")


def render_clip(
    index: int,
    *,
    frames: int = 8,
    seed: int = 0,
    size: int = 96,
    num_classes: int = 4,
    motion: tuple[float, float] = (0.0, 0.02),
    turn: tuple[float, float] = (0.0, 0.1),
    wander: tuple[float, float] = (0.8, 1.4),
    camera: tuple[float, float] = (0.0, 0.02),
    leave: float = 0.0,
    num_distractors: tuple[int, int] | int = (0, 2),
    coverage: tuple[float, float] = (0.12, 0.25),
    rest: float = 0.1,
    grain: float = 0.02,
) -> Clip:
    """Render one clip, the same for the same arguments in any process and any order of calls.

    Speeds are drawn from their ranges once per clip, so that each clip moves evenly.

    Args:
        index: Number of the clip, from 0. The label is `index % num_classes`.
        frames: Number T of frames.
        seed: Family of clips, from 0.
        size: Side of the images in pixels, at least `scenes.MIN_SIZE`.
        num_classes: 1 to `len(TEXTURES)`.
        motion: Range of the object's displacement from frame to frame, relative to the side, within
            [0, 0.5].
        turn: Range of its rotation in the image plane, in radians per frame, to either side.
        wander: Range of the way of the clear part round the object, in radians per frame.
        camera: Range of the ground's shift from frame to frame, relative to the side, within
            [0, 0.5].
        leave: Probability of a path over the border: in the first or the last frame about 0.3 of
            the object's length or more is outside. Else the object stays within the image.
        num_distractors: Number of distractors or its inclusive range, from 0.
        coverage: Range of the object's area as a fraction of the image, within (0, 0.5]; less where
            there is no room to move.
        rest: Clarity of the class away from the clear part, in [0, 1]: lower is harder.
        grain: Deviation of the pixel noise, 0..1 scale; every frame has its own.

    Raises:
        ValueError: An argument is out of its range.
    """
    check_scene(index, seed, size, num_classes, coverage, rest, grain)
    if frames < 1 or not 0 <= leave <= 1:
        raise ValueError(f"frames={frames}, leave={leave}: at least 1 frame, leave lies in 0..1")
    for name, value in (("motion", motion), ("camera", camera)):
        _range(name, value, 0.5)
    for name, value in (("turn", turn), ("wander", wander)):
        _range(name, value, np.pi)
    distractors = span("num_distractors", num_distractors, 0, 8)

    rng = np.random.default_rng((seed, index))
    label, hue = index % num_classes, rng.uniform()
    speed, rate = rng.uniform(*motion), rng.uniform(*turn)
    drift = _drift(rng, size, frames, rng.uniform(*camera))
    wide = ground(rng, size, 1 + np.ceil(drift.max() + 1) / size)
    backdrop = palette(rng, hue)

    gap = rng.uniform(0.3, 0.7)  # of hues, between ground and object
    others = []
    for _ in range(rng.integers(*distractors, endpoint=True)):
        share = rng.uniform(0.03, 0.10)
        if rng.integers(2):
            body = _moving(rng, size, frames, share, speed, rate)
        else:
            curve = outline(rng) * np.sqrt(share) * size
            # the camera sees the ground go the other way than it shifts
            places = drift[rng.integers(frames)] - drift + rng.uniform(0, size, 2)
            body = _Body.of(curve, places, np.zeros(frames))
        between = gap / 2 if rng.integers(2) else (1 + gap) / 2
        texture = neutral_texture(rng, size, body.side / size)
        others.append((body, texture, palette(rng, hue + between + rng.uniform(-0.05, 0.05))))

    leaves = rng.uniform() < leave
    thing = _moving(rng, size, frames, rng.uniform(*coverage), speed, rate, bool(leaves))
    sides = thing.side / size
    textures = np.dstack(
        (class_texture(rng, size, label, sides), neutral_texture(rng, size, sides))
    )
    colors = palette(rng, hue + gap)
    round_by = rng.uniform(*wander) * rng.choice((-1, 1)) * np.arange(frames) + rng.uniform(0, TAU)
    nodes = np.rint(len(thing.curves[0]) / TAU * round_by).astype(int) % len(thing.curves[0])
    area = fill(thing.curves[0] - thing.places[0] + thing.side / 2, thing.side).sum()

    masks = np.zeros((frames, size, size), np.uint8)
    images = np.empty((frames, size, size, 3), np.uint8)
    boxes = []
    for frame in range(frames):
        x, y = drift[frame]
        shift = np.array([[1, 0, x], [0, 1, y]])
        image = backdrop[0] + backdrop[1] * _warped(wide, shift, size)
        for body, texture, its in others:
            shape = fill(body.curves[frame], size)
            if shape.any():
                paint(image, body.seen(texture, frame, size), its, shape)
        mask = fill(thing.curves[frame], size)
        if mask.sum() >= VISIBLE * area:
            at = INNER * thing.curves[frame, nodes[frame]] + (1 - INNER) * thing.places[frame]
            clear = clarity(at[0], at[1], float(REACH**2 * area), size, rest)
            own, neutral = cv2.split(thing.seen(textures, frame, size))
            field = clear * own + np.sqrt(1 - clear * clear) * neutral
            paint(image, field, colors, mask)
            masks[frame] = mask
            left, top, width, height = cv2.boundingRect(mask)
            boxes.append(np.array([(left, top, left + width - 1, top + height - 1)], np.float64))
        else:
            boxes.append(np.zeros((0, 4)))
        image += np.float32(grain) * rng.standard_normal((size, size), dtype=np.float32)
        images[frame] = np.clip(255 * image + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return Clip(images, masks, boxes, label)
