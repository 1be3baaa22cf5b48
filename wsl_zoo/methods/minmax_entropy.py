"""Min-max entropy: the background must not tell the class, and regions are mined recursively.

Paper: Belharbi et al., "Min-max Entropy for Weakly Supervised Pointwise Localization" (arXiv
1907.12934, 2019).
Loss: CE(s, y) + CE(s+, y) + H(q, p-), q uniform: the localiser's, on x M+, and on x (1 - M+).
Map: M+ = sigmoid(w (u - sigma)), u the min-max normalised expected class map; M+ >= 0.5 is the
object. The class is that of x M+.

The mask is cut from the graph, so that M+ learns from CE(s, y) alone; a mask that also learns from
the other two terms is another method (`MaxMin`).

Recursive mining, in training and from the second epoch on: u times, the localiser looks at what
the regions found so far leave of the image. A region counts by trust_r = exp(-r / decay) max_k p_k
if the image was right in this and all passes before, and its loss is not above that of the first
pass, else 0. The regions add up by their maximum m <- max(m, trust_r M_r), which stands for M+, and
the image goes on as x <- x (1 - m). An image that is wrong at once gets m = 0: nothing is kept of
it in that step.

Deviations: min-max over each image; the published code takes the whole batch
(`mask_args={"scope": "batch"}`). Losses of all passes are summed and go backward once, which is the
same gradient as the published pass after pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.losses import uniform_cross_entropy
from wsl_zoo.methods.localizer import Localizer
from wsl_zoo.types import Batch, Output


class MinMaxEntropy(Localizer):
    """Localiser and classifier with recursive mining.

    Defaults are those of GlaS: ResNet-101, SGD from 0.001, divided by ten every 40 of 400 epochs,
    batches of 8 crops of 480 pixels.

    Args:
        erase: Passes u of the localiser in training; 0: one, without mining.
        erase_epoch: First epoch with mining, from 1.
        trust_decay: Passes after which trust falls by e, positive.
        background_weight: Weight of the entropy of the background; 0: it is not looked at.
        head_args: As of `Localizer`; they change `{"modalities": 5, "kmin": 0, "alpha": 0,
            "kmax": 0.09, "dropout": 0.75}` (other data sets: dropout 0.85).
        scale: Size of masked images relative to the image.
        encoder: As of `ZooModule`; "resnet101s" is the published topology.
        head_lr_factor: As of `ZooModule`, as the next four.
        weight_decay: See there.
        step_size: See there.
        min_lr: See there.
        **kwargs: See `Localizer`; the mask's defaults are w = 8, sigma = 0.5.

    Raises:
        ValueError: `erase`, `erase_epoch` or `trust_decay` is out of its range.
    """

    def __init__(
        self,
        erase: int = 4,
        erase_epoch: int = 2,
        trust_decay: float = 10.0,
        background_weight: float = 1.0,
        head_args: dict[str, Any] | None = None,
        scale: float = 0.5,
        encoder: str = "resnet101s",
        head_lr_factor: float = 1.0,
        weight_decay: float = 1.0e-5,
        step_size: int = 40,
        min_lr: float = 1.0e-7,
        **kwargs: Any,
    ) -> None:
        head_args = {"kmax": 0.09, "dropout": 0.75} | (head_args or {})
        super().__init__(
            head_args=head_args,
            scale=scale,
            encoder=encoder,
            head_lr_factor=head_lr_factor,
            weight_decay=weight_decay,
            step_size=step_size,
            min_lr=min_lr,
            **kwargs,
        )
        if erase < 0 or erase_epoch < 1 or trust_decay <= 0:
            raise ValueError(
                f"erase={erase}, erase_epoch={erase_epoch}, trust_decay={trust_decay}: "
                "must be >= 0, >= 1 and > 0"
            )

    @property
    def mines(self) -> bool:
        """Whether a training step mines: with `erase` passes, from `erase_epoch` on."""
        h = self.hparams
        return self.training and h["erase"] > 0 and self.current_epoch + 1 >= h["erase_epoch"]

    def forward(self, batch: Batch) -> Output:
        """Return `logits` s+ (B, K), the raw `map` (B, 1, h, w), and the branches.

        In `extra`: `localizer` (B, K) and `mask` (B, H, W), M+ or, where it mines, m; in training
        `background` (B, K), and where it mines `mined`, the sum over passes of the mean loss.
        """
        image = batch["image"]
        if self.mines and "label" in batch:
            extra, maps = self.mine(image, batch["label"])
        else:
            logits, maps = self.locate(image)
            extra = {"localizer": logits, "mask": self.mask_of(maps.detach(), image)}
        logits = self.classify(image, extra["mask"])
        if self.training and self.hparams["background_weight"]:
            extra["background"] = self.classify(image, 1 - extra["mask"])
        return Output(logits=logits, map=maps[:, None], extra=extra)

    def mine(self, image: Tensor, label: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Look for regions again and again; return `extra`, and the raw map of the first pass."""
        erased, mined = image, torch.zeros_like(image[:, 0], dtype=torch.float32)
        alive = torch.ones_like(label, dtype=torch.bool)
        extra: dict[str, Tensor] = {}
        total = image.new_zeros((), dtype=torch.float32)
        for turn in range(self.hparams["erase"]):
            logits, maps = self.locate(erased)
            losses = F.cross_entropy(logits.float(), label, reduction="none")
            total = total + losses.mean()
            if turn == 0:
                extra["localizer"], first, first_maps = logits, losses.detach(), maps
            with torch.no_grad():
                alive &= logits.argmax(dim=1) == label
                trust = self.trust(logits, losses, first, alive, turn)[:, None, None]
                mined = torch.maximum(mined, trust * self.mask_of(maps, image))
                left = erased * (1 - mined[:, None]).to(erased.dtype)
                erased = torch.where((trust != 0)[:, None], left, erased)
                if self._over(alive):
                    break
        return extra | {"mined": total, "mask": mined}, first_maps

    def _over(self, alive: Tensor) -> bool:
        """Return whether no image is left to mine in, on any process: all make as many passes."""
        over = not alive.any().item()
        if self._trainer is not None and self.trainer.world_size > 1:
            over = self.trainer.strategy.reduce_boolean_decision(over)
        return over

    def trust(
        self, logits: Tensor, losses: Tensor, first: Tensor, alive: Tensor, turn: int
    ) -> Tensor:
        """Return what the regions of a pass count for, (B,) in [0, 1].

        Args:
            logits: (B, K).
            losses: (B,), of this pass.
            first: (B,), of the first pass.
            alive: (B,) bool, right in this and all passes before.
            turn: Number of the pass, from 0.
        """
        certain = logits.float().softmax(dim=1).amax(dim=1)
        decay = math.exp(-turn / self.hparams["trust_decay"])
        return decay * certain * (alive & (losses <= first))

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return `localizer`, `foreground` and `background`."""
        assert output.logits is not None
        label, extra = batch["label"], output.extra
        terms = {
            "localizer": extra["mined"]
            if "mined" in extra
            else F.cross_entropy(extra["localizer"].float(), label),
            "foreground": F.cross_entropy(output.logits.float(), label),
        }
        if "background" in extra:
            entropy = uniform_cross_entropy(extra["background"]).mean()
            terms["background"] = self.hparams["background_weight"] * entropy
        return terms
