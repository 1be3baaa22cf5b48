"""CoLo-CAM: co-localisation of an object over frames of a shot by its colours.

Paper: Belharbi et al., "CoLo-CAM: Class Activation Mapping for Object Co-Localization in
Weakly-Labeled Unconstrained Videos", Pattern Recognition 162, 2025 (arXiv 2303.09044).
Loss: F-CAM's on every frame, plus w_c mean_{shots of >= 2 frames} R_c / |R_c| with
R_c = -sum_k S_k' W S_k over all pixels of all frames of a shot, W a Gaussian of colour alone
(`JointColorCRF`): pixels of one colour get one label, wherever they are and in whichever frame, so
nothing is asked of the motion. |R_c| counts as constant: the term's value is -w_c, and only its
gradient tells. R_c grows with the square of the number of frames; its norm makes w_c independent
of it. `train/joint_energy` logs |R_c| per shot.
Map: S_1 of single frames.

Seeds are drawn from a frame's own map: up to 1000 of either kind, foreground in proportion to it
within the highest 70 % of the filled bounding box of the largest blob above its Otsu threshold.
The data module gives groups of frames: `data.frames`, published 2 with w_c = 9, best 4 with 4.

Deviations: batches are not filled up with copies of frames (these would count twice in R_c). Of the
published inputs of the colour term, pixels only: its other ones, features and class scores, are
compared there at a width that belongs to colours. `neighbors` of TCAM, off in the paper, goes too.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from wsl_zoo.data import VideoDataModule
from wsl_zoo.losses import JointColorCRF
from wsl_zoo.methods.fcam import Sampler
from wsl_zoo.methods.tcam import TCAM
from wsl_zoo.types import Batch, Output

SEEDS = {"fg": 1000, "bg": 1000, "max_p": 0.7, "roi": "largest", "roi_shape": "bbox"}


class CoLoCAM(TCAM):
    """Decoder trained on frames of a shot together.

    Defaults are those of YouTube-Objects with a ResNet-50: SGD from 0.01, times 0.9 every 5 of 10
    epochs, batches of 32 frames, groups of 2 in the middle 60 % of a shot. With groups of one frame
    (`data.frames`) the joint term is 0, and this is F-CAM with its sampler.

    Args:
        joint_weight: Weight w_c of the joint colour term; of the order of 2e-9 with
            `joint_adaptive=False`, where it has to be found anew for each number of frames.
        joint_adaptive: Divide R_c of a shot by its absolute value.
        joint_args: Arguments of `wsl_zoo.losses.JointColorCRF`.
        neighbors: As of TCAM; off in the paper.
        sampler: As of F-CAM.
        sampler_args: Its arguments; of "weighted" and "uniform" they change those of the paper,
            `{"fg": 1000, "bg": 1000, "max_p": 0.7, "roi": "largest", "roi_shape": "bbox"}`.
        step_size: Epochs between two decays of the rate.
        **kwargs: See `TCAM`; `windows` knows `joint` too.
    """

    terms = (*TCAM.terms, "joint")

    def __init__(
        self,
        joint_weight: float = 9.0,
        joint_adaptive: bool = True,
        joint_args: dict[str, Any] | None = None,
        neighbors: int = 0,
        sampler: Sampler = "weighted",
        sampler_args: dict[str, Any] | None = None,
        step_size: int = 5,
        **kwargs: Any,
    ) -> None:
        if sampler in ("uniform", "weighted"):
            sampler_args = SEEDS | (sampler_args or {})
        super().__init__(
            neighbors=neighbors,
            sampler=sampler,
            sampler_args=sampler_args,
            step_size=step_size,
            **kwargs,
        )
        self.joint = JointColorCRF(**(joint_args or {}))

    def setup(self, stage: str) -> None:
        """Look at the groups of frames that the data give."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        alone = not isinstance(data, VideoDataModule) or data.sampling.frames < 2
        if stage == "fit" and alone and self.hparams["joint_weight"]:
            rank_zero_warn(
                "CoLoCAM has no joint term on single frames: set data.frames to 2 or more, or "
                "joint_weight to 0"
            )

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return F-CAM's terms, and `joint`."""
        terms = super().loss(batch, output)
        if self._counts("joint") and "sequence" in batch:
            assert output.map is not None
            with torch.autocast(output.map.device.type, enabled=False):
                probabilities = output.map.float().softmax(dim=1)
                energies = self.joint_energies(batch, probabilities)
                terms["joint"] = self.hparams["joint_weight"] * self._mean(energies, probabilities)
        return terms

    def joint_energies(self, batch: Batch, probabilities: Tensor) -> Tensor:
        """Return R_c (negative) of every shot with two frames or more, `(s,)`; s may be 0."""
        pixels = self._pixels(batch)
        sizes = torch.bincount(batch["sequence"]).tolist()  # frames of a shot follow one another
        shots = zip(torch.split(probabilities, sizes), torch.split(pixels, sizes), strict=True)
        energies = [self.joint(s, raw) for s, raw in shots if len(s) > 1]
        return torch.stack(energies) if energies else probabilities.new_zeros(0)

    def _mean(self, energies: Tensor, probabilities: Tensor) -> Tensor:
        if not len(energies):
            return 0.0 * probabilities.sum()
        norms = energies.detach().abs()
        if self._trainer is not None:
            self.log(
                "train/joint_energy",
                norms.mean(),
                on_step=False,
                on_epoch=True,
                batch_size=len(norms),
            )
        if self.hparams["joint_adaptive"]:
            energies = energies / norms.clamp(min=torch.finfo(norms.dtype).tiny)
        return energies.mean()
