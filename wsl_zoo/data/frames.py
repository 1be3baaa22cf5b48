"""Which frames of a shot a training step sees.

The styles of CoLo-CAM (Belharbi et al., Pattern Recognition 162, 2025, arXiv 2303.09044). One item
of a video data set is a shot, which an epoch visits once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np

Style = Literal["before", "after", "before-after", "random", "interval"]
Dist = Literal["uniform", "gaussian"]


class FrameSampling:
    """Draws frames of a shot by chance: one, or a group of neighbours.

    Args:
        frames: Number n of frames drawn. A shot, or its window, that has fewer gives all.
        style: How the others follow a first one, the anchor, which is drawn uniformly. "before":
            the frames just before it, "after": just after it, neither beyond the window, so that
            there may be fewer than n; "before-after": the nearest on both sides; "random": n frames
            from anywhere; "interval": one from each of n equal parts of the window. Of a single
            frame all are the same.
        dist: Of "random": "uniform", or "gaussian", which prefers the middle a little (weights
            `pdf + 1`, of a normal distribution over the window; its deviation, a sixth of the
            window, is ours).
        limit: Part q in (0, 1] of the shot, around its middle, that frames are drawn from; None:
            everywhere.

    Raises:
        ValueError: An option is unknown, out of its range or of no effect.
    """

    def __init__(
        self,
        frames: int = 1,
        style: Style = "before",
        dist: Dist = "uniform",
        limit: float | None = None,
    ) -> None:
        if frames < 1:
            raise ValueError(f"frames={frames} must be at least 1")
        for name, value, known in (("frame_style", style, Style), ("frame_dist", dist, Dist)):
            if value not in get_args(known):
                raise ValueError(f"{name}={value!r} must be one of {', '.join(get_args(known))}")
        if dist != "uniform" and style != "random":
            raise ValueError(f"frame_dist={dist!r} goes with frame_style='random', not {style!r}")
        if limit is not None and not 0 < limit <= 1:
            raise ValueError(f"frame_limit={limit} must lie in (0, 1]; null takes the whole shot")
        self.frames = frames
        self.style: Style = style
        self.dist: Dist = dist
        self.limit = limit

    def window(self, count: int) -> range:
        """Return the positions that frames of a shot of `count` frames are drawn from.

        Of two frames both, of three the middle one, else those from `count // 2 - h` to
        `count // 2 + h`, both included, with `h = max(max(floor(q count), 1) // 2, 1)`.

        >>> FrameSampling(limit=0.6).window(10)
        range(2, 9)
        """
        if self.limit is None or count <= 2:
            return range(count)
        if count == 3:
            return range(1, 2)
        half = max(max(int(self.limit * count), 1) // 2, 1)
        return range(max(count // 2 - half, 0), min(count // 2 + half + 1, count))

    def draw(self, count: int, rng: np.random.Generator) -> list[int]:
        """Draw positions in a shot of `count` frames, in temporal order and all different."""
        window = self.window(count)
        if len(window) <= self.frames:
            return list(window)
        if self.style == "random":
            chosen = rng.choice(len(window), self.frames, replace=False, p=self._weights(window))
        elif self.style == "interval":
            ends = np.arange(self.frames + 1) * len(window) // self.frames
            chosen = rng.integers(ends[:-1], ends[1:])
        else:
            anchor = int(rng.integers(len(window)))
            chosen = np.array(list(self._around(anchor, len(window))))
        return sorted(window[i] for i in chosen.tolist())

    def _weights(self, window: range) -> np.ndarray | None:
        if self.dist == "uniform":
            return None
        sigma = len(window) / 6
        z = (np.arange(len(window)) - (len(window) - 1) / 2) / sigma
        weights = np.exp(-0.5 * z**2) / (sigma * np.sqrt(2 * np.pi)) + 1
        return weights / weights.sum()

    def _around(self, anchor: int, size: int) -> Iterator[int]:
        """Yield up to `frames` positions in [0, size), from the anchor on."""
        if self.style == "before":
            yield from range(anchor, max(anchor - self.frames, -1), -1)
        elif self.style == "after":
            yield from range(anchor, min(anchor + self.frames, size))
        else:  # the nearest ones, an earlier before a later one
            order = sorted(range(size), key=lambda i: (abs(i - anchor), i))
            yield from order[: self.frames]
