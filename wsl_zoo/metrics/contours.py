"""What the box protocol makes of one map: bytes, contours, boxes, and their IoU with the true ones.

Protocol: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
arXiv 2001.07437, and TPAMI 2022, arXiv 2007.04178.

A map becomes bytes, `u = floor(255 * score)`; threshold t keeps the pixels with
`u > int(t * max(u))`; the boxes of their contours are compared with the ground truth.

The protocol's conventions are kept, since published numbers depend on them: a predicted box ends
one pixel after its contour, clipped to the map, while IoU counts both ends (so a perfect 10 x 10
blob scores 100 / 121); the largest contour is that of the largest polygon area; contours of holes
count among "all"; ground truth is truncated to integers. `int(t * max(u))` takes at most 256
values; `kernels.level_ious` evaluates them all at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsl_zoo.metrics import kernels
from wsl_zoo.metrics.base import (
    check_choice,
    float64_device,
    in_threads,
    live_images,
    refuse_scores,
)

Contours = Literal["largest", "all"]

CONTOURS = ("largest", "all")
ROUNDING = 1 / 32
"""Part of a map's side by which a true box may leave it: annotations of resized images do."""


def _contour_boxes(binary: NDArray[np.uint8], contours: Contours) -> NDArray[np.int64]:
    """Boxes `(m, 4)` xyxy of the contours of a binary map; (0, 0, 0, 0) if it is empty."""
    found: Sequence[Any] = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if not found:
        return np.zeros((1, 4), dtype=np.int64)
    if contours == "largest":  # the first of equal areas, in OpenCV's order
        found = [max(found, key=cv2.contourArea)]
    points = np.concatenate(found)[:, 0].astype(np.int64)
    starts = np.cumsum([0] + [len(contour) for contour in found[:-1]])
    height, width = binary.shape
    end = np.minimum(np.maximum.reduceat(points, starts) + 1, [width - 1, height - 1])
    return np.concatenate([np.minimum.reduceat(points, starts), end], axis=1)


def level_ious(
    levels: NDArray[np.uint8], boxes: NDArray[np.int64], contours: Contours
) -> NDArray[np.float64]:
    """Best IoU between predicted and true boxes at every level of a map of bytes.

    Args:
        levels: `(H, W)` bytes.
        boxes: `(n, 4)` xyxy, n >= 1, ends inclusive.
        contours: "largest" takes the box of one contour, "all" of every contour, those of holes
            included.

    Returns:
        `(256,)`, entry t for the binary map `levels > t`.
    """
    found: NDArray[np.float64] = kernels.level_ious(levels, boxes, contours == "largest")
    return found


def _to_levels(scores: Tensor) -> NDArray[np.uint8]:
    """Turn scores of any shape into bytes, `floor(255 * score)` in float64, on the CPU.

    Raises:
        ValueError: For NaN or scores outside [0, 1].
    """
    scores = scores.detach()
    if scores.device.type != "cpu":
        values = scores.to(float64_device(scores.device)).double()
        refuse_scores(values, ~((values >= 0) & (values <= 1)))
        return (values * 255).to(torch.uint8).cpu().numpy()
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.double()
    levels = np.empty(scores.shape, dtype=np.uint8)
    if not kernels.quantize(scores.contiguous().view(-1).numpy(), levels.reshape(-1)):
        refuse_scores(scores, ~((scores >= 0) & (scores <= 1)))
    return levels


def _true_boxes(boxes: Tensor, image: int, size: tuple[float, float]) -> NDArray[np.int64]:
    """Boxes of one image, truncated to integers as the protocol does.

    Raises:
        ValueError: They are no finite `(n, 4)` xyxy inside a map of `size` (H, W).
    """
    values: NDArray[np.float64] = boxes.detach().cpu().double().numpy()
    height, width = size
    if values.ndim != 2 or values.shape[1] != 4 or not np.isfinite(values).all():
        need = "be finite and (n, 4)"
    elif (values[:, 2:] < values[:, :2]).any():
        need = "be xyxy with x0 <= x1 and y0 <= y1"
    elif (
        values[:, 0].min() < -ROUNDING * width
        or values[:, 1].min() < -ROUNDING * height
        or values[:, 2].max() > (1 + ROUNDING) * width
        or values[:, 3].max() > (1 + ROUNDING) * height
    ):
        need = f"lie in the map, in its pixels ({width} wide, {height} high)"
    else:
        return values.astype(np.int64)
    raise ValueError(f"boxes of image {image} of the batch must {need}, got {values.tolist()}")


def _given_iou(predicted: Tensor, truth: NDArray[np.int64]) -> float:
    """Best IoU of boxes `(m, 4)` that a method gave; 0 for what is no box."""
    boxes = predicted.detach().cpu().double().reshape(-1, 4)
    boxes = boxes[boxes.isfinite().all(1)].long()
    boxes = boxes[(boxes[:, 2:] >= boxes[:, :2]).all(1)]
    return max((kernels.best_iou(*box, truth) for box in boxes.tolist()), default=0.0)


def boxes_from_map(score_map: Tensor, threshold: float, contours: Contours = "largest") -> Tensor:
    """Boxes that the protocol predicts from one map.

    Args:
        score_map: `(H, W)` in [0, 1].
        threshold: In [0, 1], relative to the maximum of the map.
        contours: "largest" gives one box, "all" one per contour, those of holes included.

    Returns:
        `(m, 4)` int64 xyxy on the CPU, m >= 1. The right and bottom ends lie one pixel after the
        contour, clipped to the map. A map that is 0 everywhere gives (0, 0, 0, 0).

    Raises:
        ValueError: For NaN or scores outside [0, 1], or a threshold outside [0, 1].

    Example:
        >>> import torch
        >>> score_map = torch.zeros(8, 8)
        >>> score_map[2:4, 3:6] = 0.7
        >>> boxes_from_map(score_map, 0.5)
        tensor([[3, 2, 6, 4]])
    """
    check_choice("contours", contours, CONTOURS)
    if score_map.ndim != 2:
        raise ValueError(f"score_map must be (H, W), got {tuple(score_map.shape)}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must lie in [0, 1]")
    levels = _to_levels(score_map)
    binary = (levels > int(threshold * float(levels.max()))).astype(np.uint8)
    return torch.from_numpy(_contour_boxes(binary, contours))


def threshold_grid(num_thresholds: int) -> NDArray[np.float64]:
    """Map thresholds `i / n`, `(n,)`; equal to numpy's `arange(0, 1, 0.001)` for n = 1000."""
    return np.arange(num_thresholds, dtype=np.float64) * (1.0 / num_thresholds)


def ious_over_thresholds(
    levels: NDArray[np.uint8], boxes: NDArray[np.int64], contours: Contours, num_thresholds: int
) -> NDArray[np.float64]:
    """Best IoU of one image at each threshold `i / num_thresholds`; see `level_ious`."""
    cuts = (threshold_grid(num_thresholds) * float(levels.max())).astype(np.int64)
    return level_ious(levels, boxes, contours)[cuts]


def localize_batch(
    scores: Tensor | Sequence[Tensor],
    boxes: Sequence[Tensor],
    valid: Tensor | None,
    contours: Contours,
    num_thresholds: int,
) -> tuple[list[int], NDArray[np.float64]]:
    """Score the images of a batch that have a true box.

    Args:
        scores: Maps `(B, H, W)`, or B tensors `(m, 4)` of predicted boxes.
        boxes: B tensors `(n, 4)`.
        valid: `(B,)` bool, or None.
        contours: "largest" or "all".
        num_thresholds: Number n of map thresholds.

    Returns:
        The m positions of the images that count, and their best IoU at each threshold, `(m, n)`.

    Raises:
        ValueError: For wrong shapes, NaN or scores outside [0, 1], or boxes that are reversed, not
            finite or outside the map.
    """
    maps = scores if isinstance(scores, Tensor) else None
    if (maps is not None and maps.ndim != 3) or len(boxes) != len(scores):
        got = len(scores) if maps is None else tuple(maps.shape)
        raise ValueError(
            "scores must be (B, H, W), or B tensors of predicted boxes (m, 4), with B tensors of "
            f"boxes, got {got} and {len(boxes)}"
        )
    live = live_images(valid, len(scores), torch.device("cpu"))
    size = (math.inf, math.inf) if maps is None else (maps.shape[1], maps.shape[2])
    truth = {
        i: _true_boxes(boxes[i], i, size)
        for i in range(len(boxes))
        if (live is None or live[i]) and boxes[i].numel()
    }
    kept = list(truth)
    if not kept:
        return [], np.zeros((0, num_thresholds))
    if maps is None:
        given = np.array([_given_iou(scores[i], truth[i]) for i in kept])
        return kept, np.repeat(given[:, None], num_thresholds, axis=1)
    levels = _to_levels(maps if len(kept) == len(maps) else maps[kept])
    ious = in_threads(
        lambda image: ious_over_thresholds(image[0], image[1], contours, num_thresholds),
        list(zip(levels, truth.values(), strict=True)),
    )
    return kept, np.stack(ious)
