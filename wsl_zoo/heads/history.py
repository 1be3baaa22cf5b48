"""Exams of several years as one vector, and earlier exams guessed from the current one.

`HistoryAggregator`: the transformer over visits of LoMaR (Karaman et al., MICCAI 2024), as
privileged history distillation takes it up (PHD, arXiv 2603.15814). `RecurrentAggregator`: the
recurrence of VMRA-MaR over visits, whose scan over the one token of a visit is a gated MLP here.
`HistoryImputer`: PHD's predictor of the past.

Slots are years relative to the current exam, the current one last. `missing (B, T)` is True where
there was no exam.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HistoryAggregator(nn.Module):
    """Linear to `dim`, the slot's sinusoidal encoding, one transformer layer, mean over exams.

    The encoding is of the slot. What a missing slot holds does not matter.

    Args:
        in_features: Features D of an exam.
        slots: Slots T.
        dim: Features d of the result.
        num_heads: Heads of attention.
        hidden: Width of the layer's MLP.
        dropout: Everywhere.

    Raises:
        ValueError: `dim` is not a multiple of `num_heads`, or odd.
    """

    encoding: Tensor

    def __init__(
        self,
        in_features: int,
        slots: int,
        dim: int = 512,
        num_heads: int = 4,
        hidden: int = 2048,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        if dim % num_heads or dim % 2:
            raise ValueError(f"dim={dim} must be even and a multiple of num_heads={num_heads}")
        self.embed = nn.Linear(in_features, dim)
        self.dropout = nn.Dropout(dropout)
        self.layer = nn.TransformerEncoderLayer(dim, num_heads, hidden, dropout, batch_first=True)
        angles = torch.arange(slots)[:, None] * torch.exp(
            torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim)
        )
        encoding = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
        self.register_buffer("encoding", encoding, persistent=False)

    def forward(self, exams: Tensor, missing: Tensor) -> Tensor:
        """Return h (B, d).

        Args:
            exams: `(B, T, D)`.
            missing: `(B, T)` bool; the current exam, slot T-1, is there.

        Raises:
            ValueError: Other slots than T, or a row without its current exam.
        """
        _check(exams, missing, len(self.encoding))
        exams = exams.masked_fill(missing[:, :, None], 0.0)
        tokens = self.dropout(self.embed(exams)) + self.encoding
        seen = self.layer(tokens, src_key_padding_mask=missing)
        there = (~missing).to(seen)[:, :, None]
        mean: Tensor = (seen.masked_fill(missing[:, :, None], 0.0)).sum(dim=1) / there.sum(dim=1)
        return mean


class RecurrentAggregator(nn.Module):
    """H_t = F tanh C_t, C_t = F (C_{t-1} + tanh o), F = sigmoid(o), o = block(x_t, H_{t-1}).

    The block: LayerNorm of the visit, beside H, a linear layer, a gated MLP with a residual. All
    slots are stepped through; a missing one enters as zeros (published).

    Args:
        in_features: Features D of an exam, and of the result.
        slots: Slots T.
        dropout: Of the gated MLP.
    """

    def __init__(self, in_features: int, slots: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.slots = slots
        self.norm = nn.LayerNorm(in_features)
        self.join = nn.Linear(2 * in_features, in_features)
        self.gate = nn.Linear(in_features, 2 * in_features)
        self.out = nn.Linear(in_features, in_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, exams: Tensor, missing: Tensor) -> Tensor:
        """Return H of the last slot, (B, D); arguments as of `HistoryAggregator`."""
        _check(exams, missing, self.slots)
        exams = exams.masked_fill(missing[:, :, None], 0.0)
        hidden = cell = torch.zeros_like(exams[:, 0])
        for visit in exams.unbind(dim=1):
            joined = self.join(torch.cat([self.norm(visit), hidden], dim=1))
            value, gate = self.gate(joined).chunk(2, dim=1)
            out = joined + self.dropout(self.out(value * F.silu(gate)))
            forget = out.sigmoid()
            cell = forget * (cell + out.tanh())
            hidden = forget * cell.tanh()
        return hidden


class HistoryImputer(nn.Module):
    """The exams of the slots before the current one, guessed from it by an MLP.

    Args:
        in_features: Features D of an exam.
        slots: Slots T; T-1 exams are guessed.
        hidden: Width of both hidden layers.
        dropout: After each of them.
    """

    def __init__(
        self, in_features: int, slots: int, hidden: int = 512, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if slots < 2:
            raise ValueError(f"slots={slots}: without an earlier slot there is nothing to guess")
        self.slots = slots
        self.net = nn.Sequential(
            nn.Linear(in_features, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, (slots - 1) * in_features),
        )  # fmt: skip

    def forward(self, current: Tensor) -> Tensor:
        """Return the earlier exams (B, T-1, D) of current ones (B, D)."""
        guessed: Tensor = self.net(current).view(len(current), self.slots - 1, -1)
        return guessed


def _check(exams: Tensor, missing: Tensor, slots: int) -> None:
    if exams.ndim != 3 or exams.shape[1] != slots or missing.shape != exams.shape[:2]:
        raise ValueError(
            f"exams {tuple(exams.shape)} and missing {tuple(missing.shape)} must be "
            f"(B, {slots}, D) and (B, {slots})"
        )
    if missing[:, -1].any():
        rows = missing[:, -1].nonzero()[:, 0].tolist()
        raise ValueError(f"the current exam of {len(rows)} rows is missing, the first is {rows[0]}")
