"""CAM-TMP: the maximum of class maps over neighbouring frames.

TCAM (Belharbi et al., WACV 2023, arXiv 2208.14542): what moves or turns shows another part in every
frame, so a map of frame t gathers those of its neighbours, `max_j C_{t-j}`, element by element.
The maps are normalised one by one before, and not again after; shots are never crossed.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Direction = Literal["before", "after", "both", "instant"]


def temporal_max(
    cams: Tensor, shots: Sequence[range], neighbors: int = 1, direction: Direction = "before"
) -> Tensor:
    """Replace the map of every frame by the maximum over it and its neighbours.

    Args:
        cams: `(N, h, w)` maps of all frames, each normalised, of the class of its shot.
        shots: Positions of the frames of every shot, in temporal order. Frames of none stay.
        neighbors: Number n >= 0 of frames beside frame t itself, on each side that `direction`
            names; at the ends of a shot there are fewer.
        direction: "before": t - n to t (published); "after": t to t + n; "both": t - n to t + n;
            "instant": t alone.

    Returns:
        `(N, h, w)`; the maps themselves for n = 0.

    Raises:
        ValueError: An argument is out of its range.

    >>> cams = torch.eye(3)[:, None]  # three frames of 1 x 3 pixels: something moves to the right
    >>> temporal_max(cams, [range(3)])[:, 0].tolist()
    [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
    """
    check_direction(neighbors, direction)
    pooled = cams.clone()
    for shot in shots:
        part = cams[shot.start : shot.stop]
        own = pooled[shot.start : shot.stop]  # a view
        for k in range(1, min(neighbors, len(shot) - 1) + 1):
            if direction in ("before", "both"):
                torch.maximum(own[k:], part[:-k], out=own[k:])
            if direction in ("after", "both"):
                torch.maximum(own[:-k], part[k:], out=own[:-k])
    return pooled


def check_direction(neighbors: int, direction: str) -> None:
    """Raise a ValueError if an argument of `temporal_max` is out of its range."""
    if neighbors < 0:
        raise ValueError(f"neighbors={neighbors} must not be negative")
    if direction not in get_args(Direction):
        known = ", ".join(get_args(Direction))
        raise ValueError(f"direction={direction!r} must be one of {known}")
