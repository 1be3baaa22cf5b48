"""Networks that enlarge, applied to images of any size in bounded memory: overlapping windows.

The published code of super-resolution benchmarks takes whole images. Here a row of windows at a
time goes through the network; where windows overlap, their results are blended by linear ramps, and
finished rows are handed over, so that no more than a band as high as a window is kept.

What is exact: let r be the receptive radius, how far away a pixel of low resolution can matter for
a result (a network that looks at the whole image has none). Outside of the overlaps the result
is that of the whole image if r <= overlap. Within them, too, if r <= 3/8 overlap: the outermost
pixels, where a window lacks its surroundings, have weight zero, and the ramp takes the middle
quarter. (With a ramp over the whole overlap of 16, VDSR X2 with random weights was some 50 times as
far from the whole image.) There are no ramps at the image's borders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PEAKS = {"uint8": 255, "uint16": 65535}
"""Integer types of images -> highest grey level."""


def tiles(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Return windows (start, stop) that cover range(length), all of the same size.

    Args:
        length: Pixels to cover.
        tile: Size of a window; that of the only one is `length`, if this is smaller.
        overlap: Pixels that neighbours share; the last two share more where sizes do not fit.

    Raises:
        ValueError: A size is not positive, or the overlap is negative or reaches the tile's size.

    Example:
        >>> tiles(11, 5, 1)
        [(0, 5), (4, 9), (6, 11)]
    """
    if length < 1 or tile < 1:
        raise ValueError(f"length={length}, tile={tile}: both must be positive")
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap={overlap} must be in [0, tile={tile})")
    size = min(tile, length)
    starts = range(0, length - size, tile - overlap)
    return [(start, start + size) for start in [*starts, length - size]]


def blend_weights(length: int, tile: int, overlap: int, scale: int) -> Tensor:
    """Return what each window's result counts at each of its pixels of high resolution, on a line.

    A window's ramp takes the middle quarter of its outermost `scale * overlap` pixels, and before
    it the window counts nothing; then the weights at every pixel are divided by their sum.

    Args:
        length: See `tiles`.
        tile: See `tiles`.
        overlap: See `tiles`.
        scale: Pixels of high resolution per pixel of low resolution.

    Returns:
        `(N, s min(tile, length))` in [0, 1], float32, for N windows. Those at a pixel sum to one.
    """
    windows = tiles(length, tile, overlap)
    size, shared = scale * windows[0][1], scale * overlap
    unseen = 3 * shared // 8
    steps = torch.arange(size, dtype=torch.float64) + 0.5 - unseen
    ramp = (steps / max(1, shared - 2 * unseen)).clamp(0, 1)
    weights = torch.ones(len(windows), size, dtype=torch.float64)
    if overlap:
        weights[1:] = ramp
        weights[:-1] = torch.minimum(weights[:-1], ramp.flip(0))
    total = torch.zeros(scale * length, dtype=torch.float64)
    for (start, stop), weight in zip(windows, weights, strict=True):
        total[scale * start : scale * stop] += weight
    for (start, stop), weight in zip(windows, weights, strict=True):
        weight /= total[scale * start : scale * stop]
    return weights.float()


@torch.no_grad()
def enlarge_tiled(
    network: Callable[[Tensor], Tensor],
    image: Tensor | NDArray[Any],
    scale: int,
    *,
    tile: int = 128,
    overlap: int = 16,
    batch: int = 1,
    device: torch.device | str = "cpu",
    out: Tensor | NDArray[Any] | None = None,
) -> Tensor | NDArray[Any]:
    """Enlarge an image window by window, without gradients.

    Args:
        network: `(B, C, h, w) float32 -> (B, C, s h, s w)`, any floating type, on `device`. Its
            mode (training, evaluation) and autocast are the caller's.
        image: `(C, h, w)`: uint8 or uint16, divided by their highest level, or floating, as it is.
            A memory-mapped file is read window by window.
        scale: s.
        tile: Side of the windows, in pixels of the image. An image that is smaller along an axis
            has one window of its own size there.
        overlap: Pixels that neighbouring windows share along each axis, see the top of this file.
        batch: Windows in one call of the network.
        device: Where the network is.
        out: `(C, s h, s w)` to write to, such as a memory-mapped file: uint8 or uint16 get results
            clamped to [0, 1], times the highest level and rounded, floating types as they are.

    Returns:
        `out`; without it a float32 tensor on the device of the image, or an array for an array.

    Raises:
        TypeError: The image or `out` have another type.
        ValueError: A shape or size does not fit, or the network gives another size than s h by s w.
    """
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"image of shape {tuple(image.shape)}: must be (C, h, w), none of them 0")
    if scale < 1 or batch < 1:
        raise ValueError(f"scale={scale}, batch={batch}: both must be positive")
    channels, height, width = image.shape
    rows, columns = tiles(height, tile, overlap), tiles(width, tile, overlap)
    down = blend_weights(height, tile, overlap, scale).to(device)[:, :, None]
    across = blend_weights(width, tile, overlap, scale).to(device)
    _peak("image", image)
    shape = (channels, scale * height, scale * width)
    if out is None and isinstance(image, Tensor):
        out = image.new_empty(shape, dtype=torch.float32)
    elif out is None:
        out = np.empty(shape, np.float32)
    if tuple(out.shape) != shape:
        raise ValueError(f"out of shape {tuple(out.shape)}: the result is {shape}")
    _peak("out", out)

    band = torch.zeros(channels, down.shape[1], shape[2], device=device)
    following = [top for top, _ in rows[1:]]
    for (top, bottom), by_row, end in zip(rows, down, [*following, height], strict=True):
        for first in range(0, len(columns), batch):
            some = columns[first : first + batch]
            windows = torch.stack([_pixels(image[:, top:bottom, a:b]) for a, b in some])
            results = network(windows.to(device))
            expected = (*windows.shape[:2], scale * windows.shape[2], scale * windows.shape[3])
            if results.shape != expected:
                raise ValueError(
                    f"the network made {tuple(results.shape)} of {tuple(windows.shape)}; "
                    f"with scale={scale} it must be {expected}"
                )
            for result, (a, b), by_column in zip(results, some, across[first:], strict=False):
                band[:, :, scale * a : scale * b] += result.float() * by_row * by_column
        finished = scale * (end - top)
        _write(out, scale * top, band[:, :finished])
        kept = band[:, finished:].clone()
        band.zero_()[:, : kept.shape[1]] = kept
    return out


def _peak(name: str, array: Tensor | NDArray[Any]) -> int | None:
    """Return the highest grey level of an integer type, None for a floating one."""
    kind = str(array.dtype)[6:] if isinstance(array, Tensor) else array.dtype.name
    if "float" not in kind and kind not in PEAKS:
        raise TypeError(f"{name} of type {kind}: must be uint8, uint16 or floating")
    return PEAKS.get(kind)


def _pixels(part: Tensor | NDArray[Any]) -> Tensor:
    """Return a part of an image as float32, integers divided by their highest level."""
    peak = _peak("image", part) or 1
    if isinstance(part, Tensor):
        return part.float() / peak
    return torch.from_numpy(np.array(part, dtype=np.float32)) / peak


def _write(out: Tensor | NDArray[Any], start: int, rows: Tensor) -> None:
    """Write float32 rows (C, rows, s w) to `out` from row `start` on, in its type."""
    peak = _peak("out", out)
    if peak is not None:
        rows = rows.clamp(0, 1).mul_(peak).round_()
    target = out[:, start : start + rows.shape[1]]
    if isinstance(target, Tensor):
        target.copy_(rows)
    else:
        target[:] = rows.cpu().numpy()
