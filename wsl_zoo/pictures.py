"""Drawing: maps over images, and panels of image, mask, map and boxes. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsl_zoo.files import write_whole

TRUTH = (60, 220, 90)
PREDICTED = (255, 70, 60)
BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)
GAP = 4
LINE = 15
OPACITY = 0.5


def colorize(score_map: np.ndarray) -> np.ndarray:
    """Colour a map (H, W) in [0, 1] as (H, W, 3) uint8 (matplotlib's "turbo")."""
    colors = matplotlib.colormaps["turbo"](np.clip(score_map, 0, 1))[..., :3]
    return np.asarray((colors * 255).round(), dtype=np.uint8)


def overlay(image: np.ndarray, score_map: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
    """Blend a coloured map (H, W) in [0, 1] over an image (H, W, 3) uint8."""
    blend = (1 - opacity) * image + opacity * colorize(score_map)
    return np.asarray(blend.round(), dtype=np.uint8)


def draw_boxes(image: np.ndarray, boxes: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Draw (n, 4) xyxy boxes on a copy of an image (H, W, 3) uint8."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    width = max(1, round(min(image.shape[:2]) / 150))
    for x0, y0, x1, y1 in np.asarray(boxes, dtype=float).reshape(-1, 4).tolist():
        pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=color, width=width)
    return np.asarray(canvas)


def grey(image: np.ndarray) -> np.ndarray:
    """Draw an image (C, H, W) in [0, 1] as (H, W, 3) uint8: its first three channels, or grey."""
    planes = image[:3] if len(image) >= 3 else image[:1].repeat(3, axis=0)
    return np.asarray((255 * planes.clip(0, 1)).round().transpose(1, 2, 0), dtype=np.uint8)


def mask_image(mask: np.ndarray) -> np.ndarray:
    """Draw a mask (H, W) of 0, 1, 255 (ignored) in black, white and grey, as (H, W, 3) uint8."""
    grey = np.where(mask == 1, 255, np.where(mask == 0, 0, 128)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def panel(
    image: np.ndarray,
    score_map: np.ndarray,
    mask: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    predicted: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Return the tiles of one image: image, mask, map, boxes (true green, predicted red)."""
    tiles = [image]
    if mask is not None:
        tiles.append(mask_image(mask))
    tiles.append(overlay(image, score_map))
    if boxes is not None or predicted is not None:
        drawn = image
        for found, color in ((boxes, TRUTH), (predicted, PREDICTED)):
            if found is not None and len(found):
                drawn = draw_boxes(drawn, found, color)
        tiles.append(drawn)
    return tiles


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    header: Sequence[str] = (),
    captions: Sequence[str] = (),
    tile: int | None = None,
    across: int = 1,
) -> np.ndarray:
    """Lay rows of equally sized tiles out on white.

    Args:
        rows: Rows of (H, W, 3) uint8 tiles.
        header: One title per column.
        captions: One line under each row.
        tile: Scale tiles to this height in pixels.
        across: How many rows stand side by side.

    Returns:
        (H', W', 3) uint8.
    """
    if tile is not None:
        rows = [[_scaled(picture, tile) for picture in row] for row in rows]
    height = max(picture.shape[0] for row in rows for picture in row)
    width = max(picture.shape[1] for row in rows for picture in row)
    columns = max(len(row) for row in rows)
    across = min(across, len(rows))
    lines = -(-len(rows) // across)
    top = LINE + GAP if header else GAP
    block = columns * (width + GAP) + 2 * GAP
    step = height + GAP + (LINE if captions else 0)
    canvas = Image.new("RGB", (across * block - GAP, top + lines * step), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default()
    for i, row in enumerate(rows):
        left, y = GAP + (i % across) * block, top + (i // across) * step
        for column, picture in enumerate(row):
            canvas.paste(Image.fromarray(picture), (left + column * (width + GAP), y))
        if captions:
            pen.text((left, y + height + 1), captions[i], fill=INK, font=font)
    for place in range(across):
        for column, title in enumerate(header):
            x = GAP + place * block + column * (width + GAP)
            pen.text((x, GAP // 2), title, fill=INK, font=font)
    return np.asarray(canvas)


def _scaled(picture: np.ndarray, height: int) -> np.ndarray:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def save(picture: np.ndarray, path: Path) -> Path:
    """Write a picture (H, W, 3) uint8 whole or not at all; make its folder."""
    return write_whole(path, partial(Image.fromarray(picture).save, format="PNG"))
