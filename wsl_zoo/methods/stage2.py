"""What methods of two stages share: the classifier of stage 1, held still under a decoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from wsl_zoo.checkpoints import load_checkpoint
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.methods.cam import HEADS, CAMClassifier, Head, build
from wsl_zoo.types import Batch, Output

SAME_AS_STAGE_1 = (
    "encoder",
    "in_chans",
    "stride",
    "stride_mode",
    "form",
    "img_size",
    "head",
    "head_args",
)


class SecondStage(ZooModule):
    """Base of methods that train a `decoder` over the encoder and head of a `CAMClassifier`.

    Args:
        classifier: Checkpoint of a `CAMClassifier` (or HaS, CutMix, ...): the encoder and head.
            Read when training starts; a trained checkpoint does not need it.
        head: Pooling head of the classifier; see `CAMClassifier`.
        head_args: Its arguments.
        freeze_classifier: Hold encoder and head; False trains both at the rates of `ZooModule`.
        **kwargs: See `ZooModule`.

    Raises:
        ValueError: Unknown head.
    """

    decoder: nn.Module
    """What stage 2 trains; a method makes it."""

    def __init__(
        self,
        classifier: str | None = None,
        head: Head = "wgap",
        head_args: dict[str, Any] | None = None,
        freeze_classifier: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.freezes = freeze_classifier
        self.head = build(
            "head", HEADS, head, head_args, self.encoder.final_channels, self.num_classes
        )

    @abstractmethod
    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the weighted terms."""

    def frozen(self) -> Iterable[nn.Module]:
        """Return encoder and head, unless they are trained."""
        return [self.encoder, self.head] if self.freezes else []

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the decoder, and the groups of the classifier if it is trained."""
        decoder = list(self.decoder.parameters())
        own = {id(p) for p in decoder}
        groups = super().param_groups()
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in own]
        first = {"name": "decoder", "params": decoder, "lr": self.hparams["lr"]}
        return [first, *(group for group in groups if group["params"])]

    def classify(self, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return logits (B, K), the final map, and the levels cut from the graph.

        The decoder never sends gradients to the classifier.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freezes):
            final, levels = self.encoder(image)
            logits = self.head(final)[0]
        return logits, final, [level.detach() for level in levels]

    def load_start_weights(self) -> None:
        """Take encoder and head from the classifier of stage 1.

        Raises:
            ValueError: There is none, or it is another network.
        """
        path = self.hparams["classifier"]
        if path is None:
            raise ValueError(
                f"{type(self).__name__} needs the classifier of stage 1: "
                "--model.classifier runs/.../checkpoints/best_cl.ckpt"
            )
        source = load_checkpoint(path)
        if not isinstance(source, CAMClassifier):
            raise ValueError(f"classifier={path} holds a {type(source).__name__}: no CAMClassifier")
        self.check_stage_1("classifier", path, source)
        check_same_network(self, "classifier", path, source)
        self.encoder.load_state_dict(source.encoder.state_dict())
        self.head.load_state_dict(source.head.state_dict())

    def check_stage_1(self, what: str, path: str, source: ZooModule) -> None:
        """Refuse a model of stage 1 that knows other classes.

        Raises:
            ValueError: It does.
        """
        if source.class_names != self.class_names:
            raise ValueError(
                f"{what}={path} knows the classes {', '.join(source.class_names)}, this model "
                f"{', '.join(self.class_names)}"
            )


def check_same_network(model: ZooModule, what: str, path: str, source: ZooModule) -> None:
    """Refuse a model to start from whose encoder or head is another.

    Raises:
        ValueError: It is; names the option, and what would be right.
    """
    for name in SAME_AS_STAGE_1:
        own, theirs = model.hparams[name], source.hparams[name]
        if own != theirs:
            raise ValueError(
                f"{what}={path} was trained with {name}={theirs!r}, this model has "
                f"{own!r}: set model.{name} to {theirs!r}"
            )
    if source.encoder.mean != model.encoder.mean or source.encoder.std != model.encoder.std:
        raise ValueError(
            f"{what}={path} saw images normalised with mean {source.encoder.mean} and std "
            f"{source.encoder.std}, this model has {model.encoder.mean} and {model.encoder.std}"
        )
