"""Dense-CRF losses: pixels that are alike and near should get the same label.

Tang et al., "On regularized losses for weakly-supervised CNN segmentation" (ECCV 2018,
arXiv:1803.09569), with the Gaussian kernel of Krähenbühl and Koltun (NeurIPS 2011,
arXiv:1210.5644): `loss = -(1/B) sum_b sum_k S_k' W S_k`, where `W_ij = exp(-|f_i - f_j|^2 / 2)`
over `f = (x / sigma_xy, y / sigma_xy, R / sigma_rgb, G / sigma_rgb, B / sigma_rgb)`, the diagonal
included and no row normalised. As the maps `S_k` sum to 1, this is the Potts relaxation
`sum_k S_k' W (1 - S_k)` less a constant. The gradient is `-(2/B) W S_k`; the image gets none.

Three back-ends approximate `W S`:

- `permutohedral`: the fastest, and the lattice of the code whose weights were published (2e-9 and
  the like). It computes `c W S`, with c about 0.5 to 0.6 on photos of 224 x 224; the cosine of its
  gradients with the exact ones is about 0.998. Unlike that code, by default it averages two
  opposite orders of the blurs, which makes the gradient that of the value.
- `grid`: splines on a regular grid. Within 0.1 % (quadratic, all axes, spacing 0.5) to 2 % (linear)
  of the exact sum on photos; linear splines are off by 15 % on images of a few flat colours.
- `exact`: every pair, in O(N^2) time; for images up to about 64 x 64.

`auto` is `exact` up to 4096 pixels and the default of the class above. The scale then changes by c
from one to the other, and with it the meaning of the loss weight, unless `calibrated=True`.

All maps are filtered, although for two of them `W S_0 = W 1 - W S_1`: W 1 is another map to filter,
as W changes with every crop.

Everything is computed in float32 (float64 for float64 maps), outside of autocast.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from wsl_zoo.losses.bilateral import Backend, Options
from wsl_zoo.losses.exact import Points
from wsl_zoo.losses.grid import ORDERS
from wsl_zoo.precision import to_float

Order = Literal["linear", "quadratic", "cubic"]

COLORS = (0.0, 255.0)
TOLERANCE = 1e-3
"""By which a probability may leave [0, 1]."""


class _QuadraticForm(torch.autograd.Function):
    """`-(1/B) sum_b v_b' W v_b`, with the gradient `-(2/B) W v`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        filtered = apply(values)
        ctx.save_for_backward(filtered)
        return -(values * filtered).sum() / len(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (filtered,) = ctx.saved_tensors
        return (-2 / len(filtered) * grad) * filtered, None


class _ColorCRF(nn.Module):
    """What both losses share: options, checks, resizing."""

    options: Options

    def __init__(self, sigma_rgb: float, scale: float) -> None:
        super().__init__()
        self.sigma_rgb = _positive("sigma_rgb", sigma_rgb)
        self.scale = _positive("scale", scale)

    def prepare(self, probs: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Check, resize and convert maps and pixels.

        Returns:
            `(B, K, H, W)` float32 or float64, and `(B, 3, H, W)` of that type or uint8.
        """
        _check(probs, raw)
        probs = to_float(probs)
        if self.scale != 1:
            if min(raw.shape[-2:]) * self.scale < 1:
                raise ValueError(f"scale={self.scale} leaves no pixel of {tuple(raw.shape)}")
            probs = functional.interpolate(probs, scale_factor=self.scale, mode="bilinear")
            raw = functional.interpolate(raw, scale_factor=self.scale, mode="nearest")
        if raw.dtype == torch.uint8:
            return probs, raw
        raw = raw.detach().to(probs.dtype)
        return probs, raw if raw.device.type == "cpu" else raw.nan_to_num(0.0).clamp(*COLORS)


class DenseCRF(_ColorCRF):
    """Dense-CRF loss over position and colour, per image.

    Args:
        sigma_rgb: Standard deviation in colour, in levels of 0 to 255.
        sigma_xy: Standard deviation in position, in pixels of the unscaled image.
        scale: Resize maps (bilinear) and pixels (nearest) by this factor first, and `sigma_xy`.
        backend: "permutohedral", "grid", "exact", or "auto": exact up to 4096 pixels (after
            resizing), else permutohedral.
        symmetric: Permutohedral only. False: one order of the blurs, as in the published code; the
            gradient is then that of the value to some 2 to 8 % only.
        calibrated: Permutohedral only. True: divide by the factor c, which is estimated per image
            from 512 rows of the exact kernel, so that the value approaches the exact one. Costs
            some 0.2 s per image of 224 x 224 on one core. Published loss weights want False.
        spacing: Grid only: of the cells, in standard deviations.
        order: Grid only: splines over colour.
        order_xy: Grid only: splines over position; None: as over colour. "linear" takes a third
            less time.

    Raises:
        ValueError: An option is unknown or of no effect, or a number is not positive.

    Example:
        >>> probs = torch.full((1, 2, 8, 8), 0.5)
        >>> round(DenseCRF(backend="exact")(probs, torch.zeros(1, 3, 8, 8)).item(), 1)
        -2045.9
    """

    def __init__(
        self,
        sigma_rgb: float = 15.0,
        sigma_xy: float = 100.0,
        scale: float = 1.0,
        backend: Backend = "permutohedral",
        symmetric: bool = True,
        calibrated: bool = False,
        spacing: float = 0.5,
        order: Order = "quadratic",
        order_xy: Order | None = None,
    ) -> None:
        super().__init__(sigma_rgb, scale)
        self.sigma_xy = _positive("sigma_xy", sigma_xy)
        position = _order("order", order) if order_xy is None else _order("order_xy", order_xy)
        orders = (position,) * 2 + (_order("order", order),) * 3
        self.options = Options(backend, symmetric, calibrated, spacing, orders)

    def forward(self, probs: Tensor, raw: Tensor) -> Tensor:
        """Return the loss, unweighted.

        Args:
            probs: `(B, K, H, W)`, probabilities; any floating type.
            raw: `(B, 3, H, W)`, colours in 0 to 255, uint8 or floating, without colour jitter or
                normalisation.

        Returns:
            Scalar float32 (float64 for float64 maps), negative; of the order of -1e8 at 224 x 224.

        Raises:
            ValueError: Shapes, types, devices or (on the CPU) ranges are not as stated; elsewhere
                colours are clamped.
        """
        with torch.autocast(probs.device.type, enabled=False):
            maps, colors = self.prepare(probs, raw)
            height, width = maps.shape[-2:]
            x = torch.arange(width, device=maps.device, dtype=maps.dtype)
            y = torch.arange(height, device=maps.device, dtype=maps.dtype)
            place = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
            sigmas = (self.sigma_xy * self.scale,) * 2 + (self.sigma_rgb,) * 3
            limits = ((0.0, width - 1.0), (0.0, height - 1.0), COLORS, COLORS, COLORS)
            points = Points(place.flatten(1), colors.flatten(2), sigmas, limits)
            options = self.options.chosen(height * width, "permutohedral")
            return _QuadraticForm.apply(maps.flatten(2), partial(options.filter, points))


class JointColorCRF(_ColorCRF):
    """Colour-only dense-CRF loss over all pixels of the frames of one sequence.

    CoLo-CAM (Belharbi et al., Pattern Recognition 162, 2025, arXiv:2303.09044): pixels of one
    colour get the same label, wherever they are and in whichever frame. The value R grows with the
    square of the number of frames, hence the paper's adaptive weight, `weight * R /
    R.detach().abs()`. It is left to the caller, as is to skip sequences of a single frame.

    Args:
        sigma_rgb: Standard deviation in colour, in levels of 0 to 255.
        scale: Resize maps (bilinear) and pixels (nearest) by this factor first.
        backend: "grid", "permutohedral", "exact", or "auto": exact for up to 4096 pixels in all
            frames together, else grid. Where colours are whole numbers, "exact" works on the
            different ones only, as does "grid" on a GPU; on the CPU "grid" then looks its splines
            up in tables, five times as fast.
        symmetric: As in `DenseCRF`.
        calibrated: As in `DenseCRF`.
        spacing: Grid only: of the cells, in standard deviations.
        order: Grid only: splines over colour.

    Raises:
        ValueError: An option is unknown or of no effect, or a number is not positive.
    """

    def __init__(
        self,
        sigma_rgb: float = 15.0,
        scale: float = 1.0,
        backend: Backend = "grid",
        symmetric: bool = True,
        calibrated: bool = False,
        spacing: float = 0.5,
        order: Order = "quadratic",
    ) -> None:
        super().__init__(sigma_rgb, scale)
        orders = (_order("order", order),) * 3
        self.options = Options(backend, symmetric, calibrated, spacing, orders)

    def forward(self, probs: Tensor, raw: Tensor) -> Tensor:
        """Return the loss of one sequence, unweighted and not divided by its length.

        Args:
            probs: `(T, K, H, W)`, probabilities; any floating type.
            raw: `(T, 3, H, W)`, colours in 0 to 255, uint8 or floating.

        Returns:
            Scalar float32 (float64 for float64 maps), negative.

        Raises:
            ValueError: As for `DenseCRF`.
        """
        with torch.autocast(probs.device.type, enabled=False):
            maps, raw = self.prepare(probs, raw)
            colors = raw.transpose(0, 1).flatten(1)
            values = maps.transpose(0, 1).flatten(1)
            options = self.options.chosen(colors.shape[1], "grid")
            if options.backend != "permutohedral" and _whole(raw):
                if options.backend == "grid" and colors.device.type == "cpu":
                    colors = colors.byte()
                else:
                    colors, values = _distinct(colors, values)
            none = values.new_empty(0, values.shape[1])
            points = Points(none, colors[None], (self.sigma_rgb,) * 3, (COLORS,) * 3)
            return _QuadraticForm.apply(values[None], partial(options.filter, points))


def _distinct(colors: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the pixels of one colour: W is constant on them, so the quadratic form stays the same.

    Args:
        colors: `(3, N)` whole numbers in 0 to 255.
        values: `(K, N)`.

    Returns:
        `(3, U)` different colours, and the sums `(K, U)` of their values, with gradient.
    """
    red, green, blue = colors.long()
    codes = (red << 16) | (green << 8) | blue
    found, inverse = torch.unique(codes, return_inverse=True)
    sums = values.new_zeros(len(values), len(found)).index_add(1, inverse, values)
    return torch.stack([found >> 16, (found >> 8) & 255, found & 255]).to(colors), sums


def _whole(raw: Tensor) -> bool:
    """Whether colours are whole numbers."""
    return not raw.is_floating_point() or bool((raw == raw.round()).all())


def _positive(name: str, value: float) -> float:
    """Return a number that is positive and finite, or raise a ValueError."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}={value}: must be positive")
    return value


def _order(name: str, order: str) -> int:
    """Return the number of a spline order, or raise a ValueError that lists them."""
    if order not in ORDERS:
        raise ValueError(f"{name}={order!r}: choose one of {', '.join(map(repr, ORDERS))}")
    return ORDERS[order]


def _check(probs: Tensor, raw: Tensor) -> None:
    """Refuse maps and pixels that do not fit each other, or lie outside of their ranges.

    Ranges are looked at on the CPU only: other devices are not made to wait.

    Raises:
        ValueError: With what was found and what is right.
    """
    if probs.ndim != 4 or raw.ndim != 4 or raw.shape[1] != 3:
        raise ValueError(
            "probs must be (B, K, H, W) and raw (B, 3, H, W), got "
            f"{tuple(probs.shape)} and {tuple(raw.shape)}"
        )
    if probs.shape[0] != raw.shape[0] or probs.shape[2:] != raw.shape[2:]:
        raise ValueError(
            f"probs {tuple(probs.shape)} and raw {tuple(raw.shape)} must agree in the number of "
            "images, height and width; resize the maps to the image"
        )
    if probs.numel() == 0:
        raise ValueError(f"probs {tuple(probs.shape)} is empty")
    if not probs.is_floating_point():
        raise ValueError(f"probs must be floating, got {probs.dtype}; pass the softmax, not labels")
    if raw.dtype != torch.uint8 and not raw.is_floating_point():
        raise ValueError(f"raw must be uint8 or floating, got {raw.dtype}")
    if probs.device != raw.device:
        raise ValueError(
            f"probs are on {probs.device}, raw on {raw.device}; move both to one device"
        )
    if probs.device.type != "cpu":
        return
    low, high = (extreme.item() for extreme in probs.detach().aminmax())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise ValueError(f"probs must lie in [0, 1], found {low} to {high}; pass the softmax")
    if raw.is_floating_point():
        low, high = (extreme.item() for extreme in raw.aminmax())
        if not (low >= 0 and high <= 255):
            raise ValueError(
                f"raw must lie in [0, 255], found {low} to {high}; undo the normalisation: "
                "255 * (image * std + mean), clamped"
            )
        if 0 < high <= 1:
            warnings.warn(
                f"raw is floating and at most {high}: colours are expected in 0 to 255, not 0 to 1",
                stacklevel=4,
            )
