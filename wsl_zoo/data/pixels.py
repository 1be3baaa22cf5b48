"""Images of 8 or 16 bits as arrays (C, H, W): their files, smaller copies and crops of pairs.

A pair is one field seen twice: `image` (C, h, w), and `target` (C, sh, sw), which is s times larger
(s is the scale). Whatever is done to one is done to the other, so that they show the same.

The sampler of crops is that of SR-CACO-2 (arXiv 2406.09168): the image is enlarged to the size of
the target by cubic interpolation, roi = enlarged >= threshold, and the centre of the crop is drawn
from the pixels at which the crop fits, each with probability proportional to e^{5 roi} + 1. The
published code then cuts the target at any corner x0 and the image at x0 // s, so that the two are
off by x0 mod s pixels of the target; we snap the corner down to a multiple of s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch.nn import functional

from wsl_zoo.data.manifest import DataError
from wsl_zoo.files import write_whole

Degradation = Literal["area", "bicubic"]
Sampling = Literal["roi", "uniform"]

PIXELS = (np.dtype(np.uint8), np.dtype(np.uint16))
ENDINGS = (".png", ".tif", ".tiff")
ROI_WEIGHT = math.exp(5.0) + 1.0  # 149.41: e^{5 roi} + 1 of the published sampler at roi = 1
GROUND_WEIGHT = 2.0  # and at roi = 0
TRANSFORMS = 8  # of the dihedral group of the square


def read_pixels(path: Path, channels: int = 1) -> np.ndarray:
    """Read an image as (C, H, W) uint8 or uint16, as its file has it; of several pages the first.

    Pixels stand as they are stored, whatever orientation the file states.

    Args:
        path: The file.
        channels: 1 (colours become grey as by OpenCV's `IMREAD_GRAYSCALE`, but of 16 bits where the
            file has 16) or 3 (red, green, blue).

    Raises:
        DataError: It is no readable image, has pixels of another type, or lacks colours.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} must be 1 (grey) or 3 (red, green, blue)")
    if not path.is_file():
        raise DataError("Image", [f"{path} does not exist"])
    grey = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imread(str(path), grey if channels == 1 else cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError("Image", [f"{path} is not a readable image ({error.err})"]) from error
    if pixels is None:
        raise DataError("Image", [f"{path} is not a readable image"])
    if pixels.dtype not in PIXELS:
        kind = "floating-point" if pixels.dtype.kind == "f" else "signed or 32-bit"
        expected = "expected uint8 or uint16"
        raise DataError("Image", [f"{path} has {kind} pixels ({pixels.dtype}), {expected}"])
    found = 1 if pixels.ndim == 2 else pixels.shape[2]
    if found != channels:
        raise DataError("Image", [f"{path} has {found} channels, expected channels={channels}"])
    if channels == 1:
        return pixels[None]
    return np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1))  # OpenCV's are blue first


def write_pixels(path: Path, array: np.ndarray) -> Path:
    """Write (C, H, W) uint8 or uint16, C 1 or 3, as TIFF or PNG, whole or not at all.

    Raises:
        ValueError: Another type, shape or ending.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path}: the ending must be one of {', '.join(ENDINGS)}")
    if array.dtype not in PIXELS or array.ndim != 3 or array.shape[0] not in (1, 3):
        raise ValueError(
            f"{path}: expected uint8 or uint16 of shape (1 or 3, H, W), got {array.dtype} "
            f"{tuple(array.shape)}"
        )
    pixels = np.ascontiguousarray(array[::-1].transpose(1, 2, 0))
    done, content = cv2.imencode(path.suffix.lower(), pixels)
    if not done:
        raise ValueError(f"{path}: OpenCV cannot write {array.dtype} {tuple(array.shape)} there")
    return write_whole(path, lambda file: file.write_bytes(content.tobytes()))


def cut_to_multiple(array: np.ndarray, scale: int) -> np.ndarray:
    """Cut (C, H, W) at the bottom and on the right to sides that are multiples of the scale."""
    height, width = (n - n % scale for n in array.shape[1:])
    return array[:, :height, :width]


def downsample(array: np.ndarray, scale: int, how: Degradation = "area") -> np.ndarray:
    """Return (C, H/s, W/s) of (C, H, W), in its type: rounded, half to even, and clipped.

    Args:
        array: uint8 or uint16; its sides are multiples of the scale.
        scale: s.
        how: "area", the mean of s x s pixels, or "bicubic", that of torch with antialias (a = -0.5,
            as Pillow's).
    """
    channels, height, width = array.shape
    low = (height // scale, width // scale)
    if how == "area":
        blocks = array.reshape(channels, low[0], scale, low[1], scale)
        smaller = blocks.mean(axis=(2, 4), dtype=np.float64)
    else:
        pixels = torch.from_numpy(array.astype(np.float64))[None]
        smaller = functional.interpolate(pixels, low, mode="bicubic", antialias=True)[0].numpy()
    rounded: np.ndarray = np.rint(smaller).clip(0, np.iinfo(array.dtype).max).astype(array.dtype)
    return rounded


def dihedral(array: np.ndarray, which: int) -> np.ndarray:
    """Turn (C, H, W) by `which` % 4 right angles, and mirror it left to right from 4 on.

    >>> square = np.arange(4).reshape(1, 2, 2)
    >>> dihedral(square, 1).ravel().tolist(), dihedral(square, 4).ravel().tolist()
    ([1, 3, 0, 2], [1, 0, 3, 2])
    """
    turned = np.rot90(array, which % 4, axes=(1, 2))
    return turned[:, :, ::-1] if which >= 4 else turned


def draw_centre(roi: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a pixel (row, column) of (H, W) bool with probability proportional to e^{5 roi} + 1."""
    inside = int(np.count_nonzero(roi))
    weight = ROI_WEIGHT * inside
    drawn = rng.random() * (weight + GROUND_WEIGHT * (roi.size - inside)) < weight
    places = np.flatnonzero(roi == drawn)
    row, column = divmod(int(places[rng.integers(len(places))]), roi.shape[1])
    return row, column


@dataclass(frozen=True)
class RandomCrop:
    """A random crop of a pair, turned and mirrored; a function of the pair and a seed.

    Attributes:
        scale: s.
        side: Of the crop of the target, a multiple of s; None: no crop.
        sampling: "roi", the published sampler, or "uniform", any corner alike.
        threshold: Grey level of 255 from which a pixel of the enlarged image, in one of its
            channels, counts as region of interest.
        misaligned: Cut as the published code does: the crops are off by x0 mod s.
        dihedral: Turn and mirror both by one of the 8 symmetries of the square; where the sides
            differ, by one of the 4 that keep the shape.
    """

    scale: int
    side: int | None
    sampling: Sampling = "roi"
    threshold: int = 4
    misaligned: bool = False
    dihedral: bool = True

    def __call__(
        self, image: np.ndarray, target: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the crops of (C, h, w) and (C, sh, sw), views of them.

        Raises:
            ValueError: The target is smaller than the crop.
        """
        rng = np.random.default_rng(seed)
        if self.side is not None:
            top, left = self.corner(image, rng)
            target = target[:, top : top + self.side, left : left + self.side]
            low, top, left = (n // self.scale for n in (self.side, top, left))
            image = image[:, top : top + low, left : left + low]
        if self.dihedral:
            step = 1 if image.shape[1] == image.shape[2] else 2
            which = step * int(rng.integers(TRANSFORMS // step))
            image, target = dihedral(image, which), dihedral(target, which)
        return image, target

    def corner(self, image: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
        """Draw the upper left corner (y0, x0) of the crop of the target.

        The published sampler draws centres at least side / 2 from each border. Crops that fit have
        their corner side / 2 above and left of those, so that the corner is what is drawn.
        """
        assert self.side is not None
        height, width = (self.scale * n for n in image.shape[1:])
        rows, columns = height - self.side + 1, width - self.side + 1
        if min(rows, columns) < 1:
            raise ValueError(f"crop_size={self.side} does not fit into {width}x{height} pixels")
        if self.sampling == "uniform":
            top, left = int(rng.integers(rows)), int(rng.integers(columns))
        else:
            pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
            enlarged = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
            brightest = enlarged if enlarged.ndim == 2 else enlarged.max(axis=2)
            half = self.side // 2
            grey = self.threshold * (np.iinfo(image.dtype).max // 255)  # 65535 is 257 times 255
            roi = brightest[half : half + rows, half : half + columns] >= grey
            top, left = draw_centre(roi, rng)
        if self.misaligned:
            return top, left
        return top - top % self.scale, left - left % self.scale


@dataclass(frozen=True)
class CentreCrop:
    """The central crop of a pair.

    Attributes:
        scale: s.
        side: Of the crop of the target, a multiple of s.
    """

    scale: int
    side: int

    def __call__(
        self, image: np.ndarray, target: np.ndarray, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the crops of (C, h, w) and (C, sh, sw), views of them, whatever the seed.

        Raises:
            ValueError: The target is smaller than the crop.
        """
        low = self.side // self.scale
        if min(image.shape[1:]) < low:
            height, width = target.shape[1:]
            raise ValueError(f"eval_crop={self.side} does not fit into {width}x{height} pixels")
        top, left = ((n - low) // 2 for n in image.shape[1:])
        image = image[:, top : top + low, left : left + low]
        top, left = self.scale * top, self.scale * left
        return image, target[:, top : top + self.side, left : left + self.side]
