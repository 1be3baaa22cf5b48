"""Paired transforms of image, mask and boxes, and the normalisation that follows them.

Evaluation resizes to one size without keeping the aspect and without a crop, so that ground truth
maps by the same two factors: masks by nearest neighbour, boxes in float64, both here and not in the
augmentation library (whose boxes go through float32). Training follows the recipe of the survey
(arXiv 1909.03354): resize to 256 x 256, random crop of 224, flips, for histology colour jitter.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

# albumentations asks the network for its newest release at import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class Sample:
    """One image with what is annotated of it, before or after a transform.

    Attributes:
        image: (H, W, 3) uint8.
        label: Class index, -1 for none.
        mask: (H, W) uint8 in {0, 1, 255}, or None.
        boxes: (n, 4) float64 xyxy in pixels of the image as it is now, or None. Coordinates are
            those of pixel edges: the whole image is (0, 0, W, H).
        group: Patient, case or video.
        path: Where the image came from.
        size: (height, width) before any resizing.
        cam: (H, W) float32 in [0, 1], a class map that follows the geometry of the image, or None.
        raw: (H, W, 3) uint8, the image without the jitter of its colours; None: `image` has none.
        pseudo: Whether a model drew the mask; None: nothing is told of it.
    """

    image: np.ndarray
    label: int = -1
    mask: np.ndarray | None = None
    boxes: np.ndarray | None = None
    group: str = ""
    path: str = ""
    size: tuple[int, int] = (0, 0)
    cam: np.ndarray | None = None
    raw: np.ndarray | None = None
    pseudo: bool | None = None


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of a size as options give it: a side of a square, or both.

    Raises:
        ValueError: It is neither.

    >>> height_and_width(224), height_and_width([256, 448])
    ((224, 224), (256, 448))
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"size {size} must be the side of a square, or [height, width], in pixels")
    return sides


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to `size` = (height, width), antialiased bilinear (Pillow)."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) to `size` by nearest neighbour: source index `floor(i * H / H')`.

    This is OpenCV's INTER_NEAREST, by which the published numbers were made, down to its float64
    rounding of the factor, `1 / (H' / H)`, which moves a row or column for one size in twenty.
    """
    if mask.shape == size:
        return mask
    rows, columns = (
        np.minimum(np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64), old - 1)
        for new, old in zip(size, mask.shape, strict=True)
    )
    return np.asarray(mask[rows[:, None], columns])


def resize_cam(cam: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a map (h, w) float32 to `size` = (height, width), bilinear without aligned corners."""
    if cam.shape == size:
        return cam
    return np.asarray(cv2.resize(cam, size[::-1], interpolation=cv2.INTER_LINEAR))


def resize_boxes(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Scale (n, 4) xyxy boxes from an image of size `old` to `new` (height, width), in float64."""
    scale = np.array([new[1], new[0], new[1], new[0]], dtype=np.float64)
    extent = np.array([old[1], old[0], old[1], old[0]], dtype=np.float64)
    return boxes.astype(np.float64) * scale / extent


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize image, mask, boxes and class map together."""
    old = (sample.image.shape[0], sample.image.shape[1])
    return Sample(
        image=resize_image(sample.image, size),
        label=sample.label,
        mask=None if sample.mask is None else resize_mask(sample.mask, size),
        boxes=None if sample.boxes is None else resize_boxes(sample.boxes, old, size),
        group=sample.group,
        path=sample.path,
        size=sample.size,
        cam=None if sample.cam is None else resize_cam(sample.cam, size),
        pseudo=sample.pseudo,
    )


class Augment:
    """Random crop, flips and colour jitter of image, mask and boxes, a pure function of a seed.

    A class map follows crop and flips as a mask does, and sees no jitter.

    Boxes are clipped to the crop; those of less than one square pixel are dropped.

    Args:
        crop: Size of the crop, in pixels of the resized image, as `height_and_width` takes it;
            None: no crop.
        hflip: Probability of a horizontal flip, in [0, 1].
        vflip: Probability of a vertical flip, in [0, 1].
        rotate90: Rotate by 0, 90, 180 or 270 degrees, each as likely.
        color_jitter: Strengths of (brightness, contrast, saturation, hue); None: none.
    """

    def __init__(
        self,
        crop: int | Sequence[int] | None = 224,
        hflip: float = 0.5,
        vflip: float = 0.0,
        rotate90: bool = False,
        color_jitter: Sequence[float] | None = None,
    ) -> None:
        steps: list[A.BasicTransform] = []
        self.crop = None if crop is None else height_and_width(crop)
        if self.crop is not None:
            steps.append(A.RandomCrop(*self.crop))
        if hflip:
            steps.append(A.HorizontalFlip(p=hflip))
        if vflip:
            steps.append(A.VerticalFlip(p=vflip))
        if rotate90:
            steps.append(A.RandomRotate90(p=1.0))
        if not steps:
            steps.append(A.NoOp())  # without a geometric step, albumentations warns of the boxes
        if color_jitter is not None:
            brightness, contrast, saturation, hue = color_jitter
            steps.append(
                A.ColorJitter(
                    brightness=(max(0.0, 1 - brightness), 1 + brightness),
                    contrast=(max(0.0, 1 - contrast), 1 + contrast),
                    saturation=(max(0.0, 1 - saturation), 1 + saturation),
                    hue=(-hue, hue),
                    p=1.0,
                )
            )
        self.jitters = color_jitter is not None
        self.identity = crop is None and not (hflip or vflip or rotate90 or color_jitter)
        """Whether it leaves every sample as it is."""
        self.pipeline = A.Compose(
            steps,
            bbox_params=A.BboxParams(
                format="pascal_voc",
                label_fields=["box_ids"],
                min_area=1.0,
                clip=True,
                filter_invalid_bboxes=True,  # else a box without extent ends the run
            ),
            additional_targets={"cam": "mask", "raw": "mask"},
        )

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Transform a sample; the same seed gives the same result.

        Raises:
            ValueError: The image is smaller than the crop.
        """
        height, width = sample.image.shape[:2]
        if self.crop is not None and (height < self.crop[0] or width < self.crop[1]):
            raise ValueError(
                f"cannot crop {self.crop[1]}x{self.crop[0]} from {sample.path or 'an image'} of "
                f"{width}x{height} pixels: set train_resize >= image_size"
            )
        # `set_random_seed` would start every step from the same state: both flips always together.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        boxes = sample.boxes if sample.boxes is not None else np.zeros((0, 4))
        arguments = {"image": sample.image, "bboxes": boxes, "box_ids": np.arange(len(boxes))}
        if sample.mask is not None:
            arguments["mask"] = sample.mask
        if sample.cam is not None:
            arguments["cam"] = sample.cam
        if self.jitters:
            arguments["raw"] = sample.image  # as a mask: cropped and flipped only
        out = self.pipeline(**arguments)
        return Sample(
            image=out["image"],
            label=sample.label,
            mask=out["mask"] if sample.mask is not None else None,
            boxes=np.asarray(out["bboxes"], dtype=np.float64).reshape(-1, 4)
            if sample.boxes is not None
            else None,
            group=sample.group,
            path=sample.path,
            size=sample.size,
            cam=out["cam"] if sample.cam is not None else None,
            raw=out["raw"] if self.jitters else None,
            pseudo=sample.pseudo,
        )


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn (B, C, H, W) uint8 into float32 `(x / 255 - mean) / std`, on the tensor's device."""
    center, scale = _per_channel(mean, std, image.device)
    return (image.float() / 255 - center) / scale


def denormalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn (B, C, H, W) normalised images back into colours, float32 in 0..255, not rounded."""
    center, scale = _per_channel(mean, std, image.device)
    return (255 * (image.float() * scale + center)).clamp(0, 255)


def _per_channel(
    mean: Sequence[float], std: Sequence[float], device: torch.device
) -> tuple[Tensor, Tensor]:
    center, scale = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
    return center, scale
