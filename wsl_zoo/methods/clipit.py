"""CLIP-IT: reports that belong to no image teach an image classifier; at test it sees images only.

Paper: Karimian et al., "CLIP-IT: CLIP-based Pairing for Histology Images Classification", 2025
(arXiv 2504.16181).
Loss: CE(logits, y) + lambda mean_b (1 - cos(u'_b, u_b)), where u (D) is the text of the report that
an image is paired with, frozen, and u' = W v what the image's own features v tell of it.
Logits: W_f [z_v, z_t] + b_f, late fusion of z_v = W_v v + b_v and of z_t, a small network over u'.
z_t is computed from u' in training too, so that text reaches the loss and never the logits.

    wsl-zoo pair      each training image and its nearest report, by an image-text encoder
    CAMClassifier     `head: wgap` over a frozen encoder: the linear probe, which gives v and z_v
    CLIPIT            LoRA on the encoder and on W_v; the rest of the above from random weights
    wsl-zoo test      images alone: no text, no text encoder

| `branches` | what it is |
|---|---|
| "distilled" | CLIP-IT; with `kd_weight=0` the same network without text |
| "vision" | z_v alone: LoRA without text |
| "report" | z_t of the true text, at test too, by a frozen `ReportClassifier`: the upper bound |

Map: that of z_v, sum_c W_v[k, c] A_c(p); the paper has none.

Deviations: the cross-entropy is that of logits (published: of their softmax once more,
`double_softmax`). u is a cached feature that stands still (published: LoRA on the text tower as
well, to which gradients flow, so that u and u' may meet in a direction that tells nothing:
`text_encoder`; `train/text_alike` tells, which then goes to 1). W_f starts as the sum of both
branches (published: from random weights, which may turn what the linear probe says around, and
training then unlearns it). Batch norms keep their
statistics. The best checkpoint has the highest accuracy on validation images (published: the lowest
CE + KD on pairs of these). Of a transformer v is the class token, as published, with
`form="class_token"`, which gives no map, and else the mean of its patch tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.checkpoints import load_checkpoint
from wsl_zoo.encoders import adapt, load_plain
from wsl_zoo.heads import WGAP, TextHead, text_map
from wsl_zoo.losses.distill import cosine_distillation, double_softmax_cross_entropy
from wsl_zoo.methods.cam import CAMClassifier
from wsl_zoo.methods.paired import give_texts, text_of
from wsl_zoo.methods.report_classifier import ReportClassifier
from wsl_zoo.methods.text_tuning import TextTuning
from wsl_zoo.types import Batch, Output

BRANCHES = ("distilled", "vision", "report")


class CLIPIT(TextTuning):
    """An image classifier that learns to guess the text of reports, and what it is compared with.

    Published too: batches of 64, gradients clipped to a norm of 0.5 (`trainer.gradient_clip_val`).

    Args:
        branches: "distilled", "vision" or "report"; see the table of this file.
        classifier: Checkpoint of a `CAMClassifier` with head "wgap": its encoder and head are what
            is adapted. None: encoder from `weights` or `pretrained`, head from random weights.
        text_classifier: Checkpoint of a `ReportClassifier`: with "report" what reads the text;
            with "distilled" what z_t starts from (published: None, random weights).
        pairs: Folder that `wsl-zoo pair` wrote; None: batches hold `text` anyway.
        text_hidden: Width of the network of z_t.
        text_encoder: Arguments of an `ImageTextEncoder`, that of the pairing, e.g.
            `{"name": "ViT-B-32", "weights": "clip.pt"}`: its text tower learns by LoRA too, of the
            same rank, and u moves (published). None: u is the pairing's, and stands still.
        kd_weight: lambda; 0: no text is read.
        kd_layers: Layers of the map from v to u', 1 or 2.
        double_softmax: The published cross-entropy; see `double_softmax_cross_entropy`.
        fusion: W_f starts as the "sum" of z_v and z_t, or from "random" weights (published).
        lora_head: W_v is adapted too (published); False: it is trained.
        select: `best_cl` by the highest accuracy on validation images ("acc"), the mean recall of
            their classes ("balanced_acc"), or the lowest cross-entropy ("loss").
        **kwargs: See `TextTuning` (size of texts, LoRA, recipe) and `ZooModule`.

    Raises:
        ValueError: Options that do not go together, or are out of their range.
    """

    def __init__(
        self,
        branches: Literal["distilled", "vision", "report"] = "distilled",
        classifier: str | None = None,
        text_classifier: str | None = None,
        pairs: str | None = None,
        text_hidden: int = 512,
        text_encoder: dict[str, Any] | None = None,
        kd_weight: float = 1.0,
        kd_layers: int = 1,
        double_softmax: bool = False,
        fusion: Literal["sum", "random"] = "sum",
        lora_head: bool = True,
        select: Literal["acc", "balanced_acc", "loss"] = "acc",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if branches not in BRANCHES:
            raise ValueError(f"branches={branches!r} must be one of {', '.join(BRANCHES)}")
        if select not in ("acc", "balanced_acc", "loss"):
            raise ValueError(f'select={select!r} must be "acc", "balanced_acc" or "loss"')
        if fusion not in ("random", "sum"):
            raise ValueError(f'fusion={fusion!r} must be "sum" or "random"')
        if kd_weight < 0:
            raise ValueError(f"kd_weight={kd_weight} must not be negative")
        if branches == "vision" and (pairs is not None or text_classifier is not None):
            raise ValueError('branches="vision" reads no text: leave pairs and text_classifier')
        if text_encoder is not None and (branches != "distilled" or not kd_weight):
            raise ValueError(
                f"text_encoder={text_encoder} is of the text that is distilled: give it with "
                'branches="distilled" and kd_weight above 0'
            )
        classes, width = self.num_classes, self.encoder.final_channels
        self.head = WGAP(width, classes)
        if lora_head:
            adapt(self.head, **self.lora)
        if branches != "vision":
            self.text_head = TextHead(self.hparams["text_dim"], classes, text_hidden)
            self.fusion = nn.Linear(2 * classes, classes)
        if branches == "distilled":
            self.guess = text_map(width, self.hparams["text_dim"], kd_layers)
        self._alike: dict[str, Tensor] = {}
        if branches != "vision" and fusion == "sum":
            with torch.no_grad():
                self.fusion.weight.copy_(torch.eye(classes).repeat(1, 2))
                self.fusion.bias.zero_()

    @property
    def reads_text(self) -> Sequence[str]:
        """The kinds of splits whose text is read: training alone, or with "report" all."""
        if self.hparams["branches"] == "report":
            return ("train", "val", "test")
        distils = self.hparams["branches"] == "distilled" and self.hparams["kd_weight"] > 0
        return ("train",) if distils else ()

    def setup(self, stage: str) -> None:
        """Let the data carry the texts of the pairing, or take the corpus to a tower of its own."""
        super().setup(stage)
        h = self.hparams
        give_texts(self.trainer, h["pairs"], stage, self.reads_text, h["text_dim"])
        if stage == "fit" and h["text_encoder"] is not None:
            self.text_tower = self.make_tower(h["text_encoder"], self._reports())

    def _reports(self) -> Sequence[str]:
        texts = getattr(self.trainer.datamodule, "texts", {}).get("train")  # type: ignore[attr-defined]
        if texts is None or not texts.words:
            raise ValueError("text_encoder reads the reports of a pairing: give --model.pairs DIR")
        words: Sequence[str] = texts.words
        return words

    def frozen(self) -> Iterable[nn.Module]:
        """Return what is not trained at all; what is adapted is frozen inside its adapters."""
        yield from super().frozen()
        if self.hparams["branches"] == "report":
            yield self.text_head

    def load_start_weights(self) -> None:
        """Take encoder and head of the linear probe, and what reads the text.

        Raises:
            ValueError: A checkpoint does not fit, or there is none where one is needed.
        """
        h = self.hparams
        if h["classifier"] is None:
            if h["lora_head"]:
                raise ValueError(
                    "lora_head=True adapts a head that was trained before: give --model.classifier "
                    "PROBE.ckpt (a CAMClassifier with head wgap), or --model.lora_head false"
                )
            super().load_start_weights()
        else:
            self._take_classifier(h["classifier"])
        if h["text_classifier"] is not None:
            self._take_text_classifier(h["text_classifier"])
        elif h["branches"] == "report":
            raise ValueError(
                'branches="report" reads text by a classifier that was trained before: give '
                "--model.text_classifier TEXT.ckpt (a ReportClassifier)"
            )

    def _take_classifier(self, path: str) -> None:
        source = load_checkpoint(path)
        if not isinstance(source, CAMClassifier) or source.hparams["head"] != "wgap":
            raise ValueError(
                f"classifier={path} holds a {type(source).__name__}: no CAMClassifier with "
                "head wgap"
            )
        if source.class_names != self.class_names:
            raise ValueError(
                f"classifier={path} knows the classes {', '.join(source.class_names)}, this model "
                f"{', '.join(self.class_names)}"
            )
        for name in ("encoder", "head"):
            try:
                load_plain(getattr(self, name), getattr(source, name).state_dict())
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"classifier={path} has another {name}: {error}") from error
        if (source.encoder.mean, source.encoder.std) != (self.encoder.mean, self.encoder.std):
            raise ValueError(
                f"classifier={path} reads images normalised by {source.encoder.mean} and "
                f"{source.encoder.std}: give this model the same mean and std"
            )

    def _take_text_classifier(self, path: str) -> None:
        source = load_checkpoint(path)
        if not isinstance(source, ReportClassifier):
            raise ValueError(f"text_classifier={path} holds a {type(source).__name__}")
        try:
            self.text_head.load_state_dict(source.head.state_dict())
        except RuntimeError as error:
            raise ValueError(f"text_classifier={path} is another network: {error}") from error

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K), `map` (B, K, h, w) and `embedding` v (B, D).

        `extra` holds the logits of the branches, `vision` and `report` (B, K), and with "distilled"
        the guessed `text` u' (B, D').
        """
        final = self.encoder.final(batch["features"] if "features" in batch else batch["image"])
        embedding = self.head.embed(final)
        vision, maps = self.head(final)
        logits, extra = vision, {}
        if self.hparams["branches"] != "vision":
            if self.hparams["branches"] == "distilled":
                text = extra["text"] = self.guess(embedding)
            else:
                text = text_of(batch, 'branches="report"', self.hparams["text_dim"])
            report = self.text_head(text)
            logits = self.fusion(torch.cat([vision.to(report.dtype), report], dim=1))
            extra |= {"vision": vision, "report": report}
        return Output(
            logits=logits,
            map=maps if maps[0, 0].numel() > 1 else None,
            final=final,
            embedding=embedding,
            extra=extra,
        )

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return `ce`, and `kd` where there is something to distil."""
        assert output.logits is not None
        terms = {"ce": self._cross_entropy(output.logits, batch["label"]).mean()}
        if self.hparams["branches"] == "distilled" and self.hparams["kd_weight"]:
            if self.text_tower is None:
                text = text_of(batch, "CLIP-IT", self.hparams["text_dim"])
            else:
                text = self.text_tower(batch["report"])
            found, still = output.extra["text"], self.text_tower is None
            terms["kd"] = self.hparams["kd_weight"] * cosine_distillation(found, text, detach=still)
            self._alike = {"text": _alikeness(text), "guess": _alikeness(found)}
        return terms

    def _cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.hparams["double_softmax"]:
            return double_softmax_cross_entropy(logits, label, reduction="none")
        return F.cross_entropy(logits, label, reduction="none")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Train; log how alike the texts of a batch are, and the guessed ones: 1 tells nothing."""
        total = super().training_step(batch, batch_idx)
        for name, value in self._alike.items():
            self.log(
                f"train/{name}_alike", value, on_step=False, on_epoch=True, sync_dist=True,
                batch_size=len(batch["index"]),
            )  # fmt: skip
        return total

    @property
    def selects_by(self) -> tuple[str, Literal["min", "max"]]:
        """Metric that `best_cl` is chosen by: that of `select`."""
        return self.hparams["select"], "min" if self.hparams["select"] == "loss" else "max"

    def judged(self, batch: Batch, output: Output) -> tuple[Tensor | None, Tensor | None]:
        """Return the logits (B, K) and their cross-entropies (B,)."""
        assert output.logits is not None
        return output.logits, self._cross_entropy(output.logits.float(), batch["label"])


@torch.no_grad()
def _alikeness(vectors: Tensor) -> Tensor:
    """Return the mean cosine of any two vectors (B, D) of a batch; of one alone 1."""
    unit = F.normalize(vectors.float(), dim=1)
    count = len(unit)
    if count < 2:
        return unit.new_ones(())
    return (unit.sum(dim=0).square().sum() - unit.square().sum()) / (count * (count - 1))
