"""Ordinal classification: any ordinal loss, with constraints of uni-modality on its scores.

Paper: Belharbi et al., "Non-parametric Uni-modality Constraints for Deep Ordinal Classification",
2019 (arXiv 1911.10720).
Loss: L + w mean_i C(z_i) over the K-1 signed differences z of neighbouring scores around the true
rank, which must be negative: `constraint="barrier"` is the paper's method (ELB), an extended
log-barrier psi_t whose t grows by 1 % per epoch up to 10, "rectified" (RLB) its positive part,
"penalty" (PN) 1[z >= 0] (z + 0.1)^2 with w = 1e-5. L is the cross-entropy (CE) in the paper, and
here any loss of `losses/ordinal.py`: the constraint acts on the logarithms of its probabilities,
which for CE is the same as on its scores. Prediction: what the loss says (`OrdinalLoss.predict`).
Map: that of the pooling head.

| `loss` | what it is | head of |
|---|---|---|
| "ce" | cross-entropy | K scores |
| "ren", "ld", "mv", "sord" | Cheng 2008, label distribution, mean-variance, SORD | K scores |
| "poisson" (PO), "binomial" | cross-entropy over a parametric pmf | K numbers, or one |
| "pom", "coral" | cumulative links over one score | one number and K-1 biases |
| "corn" | conditional tasks | K-1 logits |

Published bugs that are options here: PO's inverted sign and its factorial that overflows from 35
ranks on (`link_args: {sign: -1}` restores the former), LD's target, which is the softmax of the
*values* of a density (`loss_args: {flat: true}`), the floor of MV's expectation
(`loss_args: {decode: floor}`). REN and CORAL have probabilities that may be negative; order is
judged on these as they are, `logits` hold their logarithms above 1e-12.

Deviations: the constraint is the mean over the K-1 pairs unless `constraint_reduction="sum"`, the
published form, which outweighs the cross-entropy where ranks are many and images few. `best_cl` is
the lowest validation error in ranks (MAE) for every loss; published: that for the age sets, the
accuracy for the others, and its own validation loss for every loss without a constraint (`select`).
WILDCAT's part of lowest activations, which the published code computes and drops, counts.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from wsl_zoo import heads, losses
from wsl_zoo.heads import OrdinalHead
from wsl_zoo.losses import OrdinalLoss, UnimodalityConstraint
from wsl_zoo.methods.cam import HEADS, Head, build
from wsl_zoo.methods.frozen import FreezableEncoder
from wsl_zoo.types import Batch, Output

Loss = Literal["ce", "ren", "ld", "mv", "sord", "poisson", "binomial", "pom", "coral", "corn"]
LOSSES: dict[str, type[OrdinalLoss]] = {
    "ce": losses.OrdinalCrossEntropy,
    "ren": losses.CodeVector,
    "ld": losses.LabelDistribution,
    "mv": losses.MeanVariance,
    "sord": losses.SoftOrdinal,
    "poisson": losses.OrdinalCrossEntropy,
    "binomial": losses.OrdinalCrossEntropy,
    "pom": losses.ProportionalOdds,
    "coral": losses.CORAL,
    "corn": losses.CORN,
}
LINKS: dict[str, type[OrdinalHead]] = dict.fromkeys(LOSSES, OrdinalHead) | {
    "poisson": heads.PoissonScores,
    "binomial": heads.BinomialScores,
    "pom": heads.CutPoints,
    "coral": heads.SharedRank,
    "corn": heads.Cumulative,
}
SELECT: dict[str, tuple[str, Literal["min", "max"]]] = {
    "mae": ("mae", "min"),
    "acc": ("acc", "max"),
    "loss": ("loss", "min"),
}
LEAST = 1e-12


class UnimodalOrdinal(FreezableEncoder):
    """Ranks of images or of rows of features, with uni-modal scores.

    Args:
        loss: The base loss L; see the table of this file.
        loss_args: Arguments of it, e.g. `{"variance": 2.0}` of "ld".
        link_args: Arguments of what makes its numbers, e.g. `{"tau": 0.5}` of "poisson".
        constraint: "barrier", "rectified", "penalty", or None.
        constraint_weight: w of the constraint; published: 1 of both barriers, 1e-5 of the penalty.
        constraint_reduction: "mean" or "sum" (published) over the K-1 pairs.
        margin: Of the penalty.
        t: First sharpness of the barrier.
        t_factor: Its factor per epoch.
        t_max: Its upper limit.
        weigh_loss: Multiply L by t (published, off by default).
        head: Pooling head; see `CAMClassifier`. Published: "wildcat".
        head_args: Arguments of the head.
        select: `best_cl` by the lowest error in ranks on validation ("mae"), the highest accuracy
            ("acc") or the lowest L ("loss").
        **kwargs: See `FreezableEncoder` and `ZooModule`.

    Raises:
        ValueError: Unknown loss, head, constraint or arguments.
    """

    measures_order = True

    def __init__(
        self,
        loss: Loss = "ce",
        loss_args: dict[str, Any] | None = None,
        link_args: dict[str, Any] | None = None,
        constraint: Literal["barrier", "rectified", "penalty"] | None = "barrier",
        constraint_weight: float = 1.0,
        constraint_reduction: Literal["mean", "sum"] = "mean",
        margin: float = 0.1,
        t: float = 1.0,
        t_factor: float = 1.01,
        t_max: float = 10.0,
        weigh_loss: bool = False,
        head: Head = "wildcat",
        head_args: dict[str, Any] | None = None,
        select: Literal["mae", "acc", "loss"] = "mae",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if select not in SELECT:
            raise ValueError(f"select={select!r} must be one of {', '.join(SELECT)}")
        if weigh_loss and constraint in (None, "penalty"):
            raise ValueError(f"weigh_loss=True takes t of a barrier, constraint={constraint!r}")
        self.ordinal: OrdinalLoss = build("loss", LOSSES, loss, loss_args, self.num_classes)
        self.link: OrdinalHead = build("link", LINKS, loss, link_args, self.num_classes)
        self.head = build(
            "head", HEADS, head, head_args, self.encoder.final_channels, self.link.inputs
        )
        self.constraint = (
            None
            if constraint is None
            else UnimodalityConstraint(constraint, constraint_reduction, margin, t, t_factor, t_max)
        )

    @property
    def selects_by(self) -> tuple[str, Literal["min", "max"]]:
        """Metric that `best_cl` is chosen by: that of `select`."""
        return SELECT[self.hparams["select"]]

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K), whose softmax are the probabilities, and `map` (B, K, h, w).

        `extra` holds the `numbers` (B, W) of the loss, the `scores` (B, K) that constraints act on
        and order is judged by, and the `prediction` (B,). Of losses with another number of logits
        than K there is no map.
        """
        final = self.final(batch)
        pooled, maps = self.head(final)
        numbers = self.link(pooled)
        scores = self.ordinal.constrained(numbers)
        positive = self.ordinal.positive
        logits = scores if positive else self.ordinal.probabilities(numbers).clamp(min=LEAST).log()
        return Output(
            logits=logits,
            map=maps if maps.shape[1] == self.num_classes and maps[0, 0].numel() > 1 else None,
            final=final,
            extra={
                "numbers": numbers,
                "scores": scores,
                "prediction": self.ordinal.predict(numbers),
            },
        )

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the base loss by its name, and `constraint`."""
        name, label = self.hparams["loss"], batch["label"]
        terms = {name: self.ordinal(output.extra["numbers"], label)}
        if self.constraint is not None:
            found = self.constraint(output.extra["scores"], label)
            terms["constraint"] = self.hparams["constraint_weight"] * found
            barrier = self.constraint.barrier
            if self.hparams["weigh_loss"] and barrier is not None:
                terms[name] = barrier.t * terms[name]
        return terms

    def predicted(self, output: Output) -> Tensor:
        """Return the ranks (B,) that the loss predicts."""
        return output.extra["prediction"]

    def judged(self, batch: Batch, output: Output) -> tuple[Tensor | None, Tensor | None]:
        """Return the scores (B, K) that order is judged by, and the base losses (B,)."""
        numbers = output.extra["numbers"].float()
        return output.extra["scores"], self.ordinal.per_sample(numbers, batch["label"])
