"""TCAM: F-CAM for tagged videos, whose seeds come from class maps pooled over neighbouring frames.

Paper: Belharbi et al., "TCAM: Temporal Class Activation Maps for Object Localization in
Weakly-Labeled Unconstrained Videos", WACV 2023 (arXiv 2208.14542).
Loss: F-CAM's, w_s mean_{labelled p} CE(Z_p, Y_p) + w_crf L_crf(S) + w_size L_size(S), with seeds Y
drawn from C'_t = max_{j = 0..n} C_{t-j} (CAM-TMP) instead of the frame's own map C_t.
Map: S_1 of single frames.

The class maps of the frames that will be drawn, and of their neighbours, are read once
(`cam_source="cached"`), and so are their maxima: C'_t then follows the crop and the flip of frame
t, the only one that is fed to the network. Foreground seeds are drawn in proportion to C' within
the highest `max_p` of the blobs above its Otsu threshold, background uniformly in the lowest
`min_p` of the frame.

n counts the frames beside t; the published best is 1. With n = 0 this is F-CAM with that sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wsl_zoo.cams.temporal import Direction, check_direction, temporal_max
from wsl_zoo.data import VideoDataModule
from wsl_zoo.methods.fcam import FCAM, Sampler

OPPOSITE: dict[str, Direction] = {"before": "after", "after": "before"}


class TCAM(FCAM):
    """Decoder trained on seeds of class maps pooled over time.

    Defaults are those of YouTube-Objects with a ResNet-50: SGD from 0.01, times 0.9 every 15 of 100
    epochs, batches of 32 frames of as many shots.

    Args:
        neighbors: Number n of frames beside each one whose maps are pooled with its own.
        direction: Which: "before" (published), "after", "both" (n on each side), "instant" (none).
        sampler: As of F-CAM; 1 + 1 seeds, `{"roi": "all", "max_p": 0.6, "min_p": 0.1}`, are the
            sampler's own defaults.
        size_weight: As of F-CAM.
        step_size: Epochs between two decays of the rate.
        gamma: Factor of a decay.
        **kwargs: See `FCAM`.

    Raises:
        ValueError: `neighbors` or `direction` is out of its range, or neighbours are asked for with
            `cam_source="live"`, which sees one frame of a shot.
    """

    def __init__(
        self,
        neighbors: int = 1,
        direction: Direction = "before",
        sampler: Sampler = "weighted",
        size_weight: float = 0.01,
        step_size: int = 15,
        gamma: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            sampler=sampler, size_weight=size_weight, step_size=step_size, gamma=gamma, **kwargs
        )
        check_direction(neighbors, direction)
        if self._pools and self.hparams["cam_source"] == "live":
            raise ValueError(
                f'cam_source="live" knows no neighbours (neighbors={neighbors}): use "cached"'
            )

    @property
    def _pools(self) -> bool:
        return self.hparams["neighbors"] > 0 and self.hparams["direction"] != "instant"

    def seeded_from(self, drawn: Sequence[int] | None, data: Any) -> Sequence[int] | None:
        """Return the frames `drawn` and their neighbours."""
        if drawn is None or not self._pools:
            return drawn
        marks = torch.zeros(len(data.sources["train"]), 1, 1)
        marks[list(drawn)] = 1
        # A frame is needed by those whose maximum it is part of: the same in the other direction.
        h = self.hparams
        opposite = OPPOSITE.get(h["direction"], h["direction"])
        needed = temporal_max(marks, self._shots(data), h["neighbors"], opposite)
        return needed.flatten().nonzero()[:, 0].tolist()

    def _shots(self, data: Any) -> list[range]:
        """Return the shots of the training frames.

        Raises:
            ValueError: The data know no shots.
        """
        if not isinstance(data, VideoDataModule):
            raise ValueError(
                f"neighbors={self.hparams['neighbors']}: {type(data).__name__} is no data set of "
                "videos; set neighbors to 0 for single images"
            )
        return data.shots("train")

    def pooled(self, cams: Tensor, data: Any) -> Tensor:
        """Pool the maps (N, h, w) of the training frames over time."""
        if not self._pools:
            return cams
        h = self.hparams
        return temporal_max(cams, self._shots(data), h["neighbors"], h["direction"])
