"""Images in, class and place out: what `model.predict_image` and `wsl-zoo predict` return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from wsl_zoo.cams.activation import evaluating
from wsl_zoo.data.manifest import read_image
from wsl_zoo.data.transforms import height_and_width, normalize, resize_cam, resize_image
from wsl_zoo.types import Batch, Target


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        label: Class index.
        class_name: Its name.
        probability: Its probability, in [0, 1].
        probabilities: (K,) float32, of all classes.
        map: (H, W) float32 in [0, 1] at the size of the image; None for models without maps.
        mask: (H, W) bool, `map >= threshold`.
        boxes: (n, 4) int64 xyxy in pixels (last column and row included), of the 8-connected parts
            of `mask`, largest first.
        threshold: The threshold chosen on validation (0.5 if there was no ground truth).
    """

    label: int
    class_name: str
    probability: float
    probabilities: np.ndarray
    map: np.ndarray | None
    mask: np.ndarray | None
    boxes: np.ndarray | None
    threshold: float


def resize_map(score_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (H, W) in [0, 1] to `size` = (height, width), bilinear, as float32."""
    resized = resize_cam(score_map.detach().float().cpu().numpy(), size)
    return torch.from_numpy(resized).clamp(0, 1)


def mask_boxes(mask: np.ndarray) -> np.ndarray:
    """Return the boxes of the 8-connected parts of a mask, largest part first.

    Args:
        mask: (H, W) bool.

    Returns:
        (n, 4) int64 xyxy, last column and row included.

    >>> mask_boxes(np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1]], dtype=bool)).tolist()
    [[2, 1, 2, 2], [0, 0, 0, 0]]
    """
    parts, stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[1:3]
    x0, y0, width, height, sizes = stats[1:].astype(np.int64).T
    boxes = np.stack((x0, y0, x0 + width - 1, y0 + height - 1), axis=1)
    first = np.zeros(len(stats), dtype=np.int64)
    if len(np.unique(sizes)) < len(sizes):  # of parts of one size, the one met first row by row
        first[parts.ravel()[::-1]] = np.arange(parts.size)[::-1]
    return np.asarray(boxes[np.lexsort((first[1:], -sizes))])


def to_prediction(
    probabilities: Tensor,
    label: int,
    score_map: Tensor | None,
    size: tuple[int, int],
    class_names: list[str],
    threshold: float,
) -> Prediction:
    """Bring one image's scores to its own size and read boxes and mask off the map.

    Args:
        probabilities: (K,).
        label: The class whose map it is.
        score_map: (H', W') in [0, 1] at the network's size, or None.
        size: (height, width) of the image.
        class_names: The K names.
        threshold: Of the map, in [0, 1].
    """
    full = None if score_map is None else resize_map(score_map, size)
    return Prediction(
        label=label,
        class_name=class_names[label],
        probability=float(probabilities[label]),
        probabilities=probabilities.float().cpu().numpy(),
        map=None if full is None else full.numpy(),
        mask=None if full is None else (full >= threshold).numpy(),
        boxes=None if full is None else mask_boxes((full >= threshold).numpy()),
        threshold=threshold,
    )


def as_rgb(image: str | Path | np.ndarray) -> np.ndarray:
    """Return (H, W, 3) uint8 of a file or an array.

    Raises:
        DataError: The file is not a readable image.
        TypeError: Neither a file nor an array (H, W, 3) uint8.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image is a file or a numpy array, got {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise TypeError(
            f"an image array must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}"
        )
    return image


def stack_images(model: Any, images: Sequence[np.ndarray]) -> Tensor:
    """Bring images (H, W, 3) uint8 to the size that a model sees: (B, 3, H', W') uint8, on the CPU.

    Models that take images as they are need them of one size.
    """
    size = None if model.image_size is None else height_and_width(model.image_size)
    sized = [resize_image(image, size) if size else image for image in images]
    return torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image in sized]))


def predict_batch(
    model: Any, raw: Tensor, target: int | Literal["pred"] = "pred"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run images through a method as evaluation would; mode and gradients stay as they were.

    Args:
        model: A method.
        raw: (B, 3, H, W) uint8, from `stack_images`, on any device.
        target: Whose maps: the predicted classes' ("pred") or those of a class index.

    Returns:
        Probabilities (B, K) float32, classes (B,) and, of models that have them, maps (B, H, W) in
        [0, 1], all on the model's device.
    """
    raw = raw.to(model.device, non_blocking=True)
    batch: Batch = {
        "index": torch.arange(len(raw), device=model.device),
        "image": normalize(raw, model.encoder.mean, model.encoder.std),
        "raw": raw,
    }
    with torch.no_grad(), evaluating(model):
        output = model(batch)
        probabilities = output.logits.float().softmax(dim=1)
        labels = model.predicted(output)
        if target != "pred":
            labels = torch.full_like(labels, target)
        maps = None if output.map is None else model.localize(batch, output, target)
    return probabilities, labels, maps


def predict_image(model: Any, image: str | Path | np.ndarray, target: Target) -> Prediction:
    """Run one image through a method as evaluation would; mode and gradients stay as they were."""
    if target != "pred" and not (isinstance(target, int) and 0 <= target < model.num_classes):
        raise ValueError(
            f"target={target!r} must be 'pred' or a class index in [0, {model.num_classes - 1}]: "
            "one image comes without its label"
        )
    pixels = as_rgb(image)
    probabilities, labels, maps = predict_batch(model, stack_images(model, [pixels]), target)
    return to_prediction(
        probabilities[0],
        int(labels[0]),
        None if maps is None else maps[0],
        (pixels.shape[0], pixels.shape[1]),
        model.class_names,
        model.map_threshold,
    )
