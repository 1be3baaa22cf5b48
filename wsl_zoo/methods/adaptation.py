"""What source-free adaptation shares: a trained source, unlabelled targets, and a look at all.

Setting (Guichemerre et al., "Source-Free Domain Adaptation of Weakly-Supervised Object Localization
Models for Histology", CVPR Workshops 2024, arXiv 2404.19113): a classifier that localises was
trained elsewhere; its data are gone. It is adapted to the images of a new organ, scanner or centre,
of which training reads neither labels nor masks. Only choosing a checkpoint (`best_cl`, `best_loc`)
reads the labels of the validation splits; the unadapted source is a candidate. `last` reads none.

At the start of every `refresh_every`-th epoch the model, in evaluation mode, sees every training
image once, in order and not augmented. From these features and probabilities each method makes its
pseudo-labels, once for all processes.

The map after adaptation is the host's, read with the adapted weights: a class map, or, with
`pixel=True`, that of a PixelCAM, whose pixel loss may then join the loss of any method.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from wsl_zoo.cams.normalize import resize_maps
from wsl_zoo.checkpoints import load_checkpoint
from wsl_zoo.data import ZooDataModule
from wsl_zoo.encoders import FeatureBank, average_norms
from wsl_zoo.encoders.mixed_norm import fold_norms
from wsl_zoo.heads import PixelHead
from wsl_zoo.losses import (
    SAMPLERS,
    SEED_IGNORE,
    nearest_fraction,
    negative_entropy,
    prediction_bias,
    seed_loss,
)
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.methods.cam import CAMClassifier, build
from wsl_zoo.methods.fcam import Sampler, foreground
from wsl_zoo.methods.negatives import WithNegatives
from wsl_zoo.methods.pixelcam import PixelCAM
from wsl_zoo.methods.seeding import Seeded
from wsl_zoo.methods.stage2 import check_same_network
from wsl_zoo.types import Batch, Output, Target


class SourceFree(Seeded, CAMClassifier, WithNegatives):
    """Base of the adaptation methods.

    Defaults are those of the study: SGD from 0.001, divided by ten every 5 epochs, layer4 of a
    ResNet ten times faster, batches of 32. Encoder and head must be the source's (`encoder`,
    `stride`, `head`, ...), and its classes as many as the target's, in the same order.

    Args:
        source: Checkpoint of a `CAMClassifier` or `PixelCAM` (or of an adaptation method): where
            adaptation starts. Read when training starts; a trained checkpoint does not need it.
        pixel: The source has a pixel classifier, whose map localises.
        pixel_args: Its arguments (`decoder_args` of the PixelCAM).
        pixel_weight: Weight of the pixel loss, at the resolution of the final map, on seeds from
            the source's maps of the classes that it predicts.
        pixel_fraction: Share in (0, 1] of the images of each predicted class, those of lowest
            entropy, that the pixel loss sees. Published for SFDA-DeP: 0.15, some scripts 0.3.
        pixel_scope: Whether that is a share of the "dataset", judged at a refresh, or of each
            "batch" (published; of fewer than 1/share images of a class it leaves none).
        sampler: How seeds are drawn; see `FCAM`.
        sampler_args: Arguments of the sampler.
        refresh_every: Epochs R from one look at all images to the next: at epoch 1 and at every
            epoch that R divides, counted from 1. 0: at epoch 1 only.
        norm_mode: "train" adapts as other training goes; "eval" keeps the network in evaluation
            mode (batch norms use and keep their running statistics, nothing is dropped).
        feature_dropout: Probability at which channels of the final map are dropped before the image
            head.
        negatives: As of `WithNegatives`, for the pixel loss: images that are *taken for* the fully
            negative class of the target data give background seeds alone, from everywhere.
        freeze_hypothesis: Hold the image head. Some methods always do.
        lr: Rate of the trunk.
        step_size: Epochs between two decays.
        **kwargs: See `CAMClassifier`.

    Raises:
        ValueError: Numbers out of their range, a pixel loss without a pixel classifier, or a free
            head where the method needs the source's.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    selects_from_start: ClassVar[bool] = True
    measures_bias: ClassVar[bool] = True
    seeder_option: ClassVar[str] = "source"
    needs_hypothesis: ClassVar[bool] = False
    """Whether the method stands on the source's image head as it is."""

    def __init__(
        self,
        source: str | None = None,
        pixel: bool = False,
        pixel_args: dict[str, Any] | None = None,
        pixel_weight: float = 0.0,
        pixel_fraction: float = 1.0,
        pixel_scope: Literal["dataset", "batch"] = "dataset",
        sampler: Sampler = "pixelcam",
        sampler_args: dict[str, Any] | None = None,
        refresh_every: int = 1,
        norm_mode: Literal["train", "eval"] = "train",
        feature_dropout: float = 0.1,
        negatives: bool | None = None,
        freeze_hypothesis: bool = True,
        lr: float = 0.001,
        step_size: int = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(negatives=negatives, lr=lr, step_size=step_size, **kwargs)
        if pixel_weight and not pixel:
            raise ValueError(
                f"pixel_weight={pixel_weight} needs a source with a pixel classifier: pixel=True"
            )
        if not 0 < pixel_fraction <= 1:
            raise ValueError(f"pixel_fraction={pixel_fraction} must lie in (0, 1]")
        if pixel_scope not in ("dataset", "batch"):
            raise ValueError(f'pixel_scope={pixel_scope!r} must be "dataset" or "batch"')
        if norm_mode not in ("train", "eval"):
            raise ValueError(f'norm_mode={norm_mode!r} must be "train" or "eval"')
        if self.needs_hypothesis and not freeze_hypothesis:
            raise ValueError(
                f"freeze_hypothesis=False: {type(self).__name__} needs the source's image head as "
                "it is, leave it at True"
            )
        if refresh_every < 0:
            raise ValueError(f"refresh_every={refresh_every} must not be negative")
        self.decoder = (
            PixelHead(self.encoder.final_channels, **(pixel_args or {})) if pixel else None
        )
        self.dropout = nn.Dropout2d(feature_dropout)
        self.sampler = build("sampler", SAMPLERS, sampler, sampler_args)
        self.pseudo: dict[str, Tensor] = {}
        """What the last refresh found, by name, row i of training image i; checkpoints keep it, so
        that a resumed run goes on with the same."""

    # What a method overrides -------------------------------------------------------------------

    def assign(self, bank: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return pseudo-labels and what goes with them, of all training images.

        Args:
            bank: `probabilities` (N, K), `features` (N, D) and `logits` (N, K), float32 on the CPU.
        """
        return {}

    @abstractmethod
    def adaptation_loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the method's weighted terms."""

    # Source ------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Forget what another fit found; a checkpoint's comes after this."""
        super().setup(stage)
        if stage == "fit":
            self.pseudo = {}

    @property
    def seeder_path(self) -> str | None:
        """`source`."""
        path: str | None = self.hparams["source"]
        return path

    @property
    def caches_cams(self) -> bool:
        """Whether there is a pixel loss."""
        return bool(self.hparams["pixel_weight"])

    def seed_labels(self, batch: Batch, output: Output) -> Tensor:
        """Return what the source predicts: labels are not known."""
        assert output.logits is not None
        return output.logits.argmax(dim=1)

    def frozen(self) -> Iterable[nn.Module]:
        """Return the head, if held, and a pixel classifier that learns nothing."""
        held: list[nn.Module] = [*super().frozen()]
        if self.hparams["freeze_hypothesis"]:
            held.append(self.head)
        if self.decoder is not None and not self.hparams["pixel_weight"]:
            held.append(self.decoder)
        return held

    def train(self, mode: bool = True) -> SourceFree:
        """Set the mode; with `norm_mode="eval"` all parts stay in evaluation mode."""
        super().train(mode)
        if mode and self.hparams["norm_mode"] == "eval":
            for child in self.children():
                child.eval()
        return self

    def load_start_weights(self) -> None:
        """Take encoder, head and pixel classifier from the source.

        Raises:
            ValueError: There is no source, or it is another network.
        """
        path = self.hparams["source"]
        if path is None:
            raise ValueError(
                f"{type(self).__name__} needs the model to adapt: "
                "--model.source runs/.../checkpoints/best_cl.ckpt"
            )
        source = load_checkpoint(path)
        if not isinstance(source, CAMClassifier | PixelCAM):
            raise ValueError(
                f"source={path} holds a {type(source).__name__}: adapt a CAMClassifier, a PixelCAM "
                "or what was adapted from one"
            )
        if source.num_classes != self.num_classes:
            raise ValueError(
                f"source={path} knows {source.num_classes} classes "
                f"({', '.join(source.class_names)}), the target data have {self.num_classes} "
                f"({', '.join(self.class_names)})"
            )
        check_same_network(self, "source", path, source)
        theirs = getattr(source, "decoder", None)
        if self.decoder is not None and theirs is None:
            raise ValueError(
                f"source={path} is a {type(source).__name__} without a pixel classifier: set "
                "model.pixel to false"
            )
        fold_norms(source.encoder)
        self.load_encoder(source)
        self.head.load_state_dict(source.head.state_dict())
        if self.decoder is not None and theirs is not None:
            self.decoder.load_state_dict(theirs.state_dict())

    def load_encoder(self, source: ZooModule) -> None:
        """Take the source's encoder."""
        self.encoder.load_state_dict(source.encoder.state_dict())

    # Pseudo-labels -----------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Read the source; check that the data can be looked at as a whole."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ZooDataModule):
            raise ValueError(
                f"{type(self).__name__} looks at all training images at once: give a data module "
                "of wsl_zoo"
            )
        super().on_fit_start()

    def refresh(self) -> None:
        """Look at all training images and assign anew, if it is time."""
        every, epoch = self.hparams["refresh_every"], self.current_epoch + 1
        if self.pseudo and (every == 0 or epoch % every):
            return
        bank = self.look()
        found = self.found(bank) if self.trainer.is_global_zero else {}
        found = self.trainer.strategy.broadcast(found)
        self.pseudo = {name: value.to(self.device) for name, value in found.items()}
        bias = prediction_bias(bank["probabilities"].argmax(dim=1), self.num_classes)
        shares = bias["counts"] / len(bank["probabilities"])
        values = {f"target/share_{name}": float(s) for name, s in enumerate(shares)}
        values |= {"target/bias_kl": float(bias["kl"]), "target/bias_ratio": float(bias["ratio"])}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1)

    @torch.no_grad()
    def look(self) -> dict[str, Tensor]:
        """See every training image once in evaluation mode; all processes must call this.

        Returns:
            `features` (N, D), `logits` (N, K) and `probabilities` (N, K), float32 on the CPU.
        """
        strategy = self.trainer.strategy
        if self.trainer.world_size > 1:
            average_norms(self.encoder, lambda t: strategy.reduce(t.clone(), reduce_op="mean"))
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        bank = FeatureBank(len(data.sources["train"]))
        modes = {module: module.training for module in self.modules()}
        self.eval()
        for batch in self.training_images():
            output = self(batch)
            features, logits = output.embedding, output.logits
            assert features is not None
            assert logits is not None
            bank.add(batch["index"], batch["valid"], features=features, logits=logits)
        for module, mode in modes.items():
            module.training = mode
        rows = self.gathered(bank)
        return rows | {"probabilities": rows["logits"].softmax(dim=1)}

    def found(self, bank: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what a refresh finds, of all training images: `assign`'s, and who is reliable."""
        entropy = -negative_entropy(bank["logits"].double())
        prediction = bank["probabilities"].argmax(dim=1)
        share = self.hparams["pixel_fraction"]
        reliable = nearest_fraction(prediction, entropy, share, self.num_classes)
        common = {"prediction": prediction, "entropy": entropy.float(), "reliable": reliable}
        return common | self.assign(bank)

    def looked_up(self, name: str, batch: Batch) -> Tensor:
        """Return what the last refresh found of the images of a batch, (B, ...)."""
        return self.pseudo[name][batch["index"]]

    # Forward and loss --------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K), `map`, `final` (B, C, h, w) and `embedding` (B, C).

        The map is the head's (B, K, h, w), or the logits (B, 2, h, w) of the pixel classifier.
        """
        final = self.final(batch)
        logits, maps = self.head(self.dropout(final))
        if self.decoder is not None:
            maps = self.decoder(final)
        return Output(logits=logits, map=maps, final=final, embedding=self.head.embed(final))

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the method's terms, and `pixel`."""
        terms = self.adaptation_loss(batch, output)
        if self.hparams["pixel_weight"]:
            terms["pixel"] = self.hparams["pixel_weight"] * self.pixel_loss(batch, output)
        return terms

    def pixel_loss(self, batch: Batch, output: Output) -> Tensor:
        """Return PixelCAM's cross-entropy on seeds of the source's maps; 0 with a graph of none."""
        assert output.map is not None
        cams = self.cams_of(batch, output.map.shape[-2:])
        taken = next(n for n in ("assigned", "label", "prediction") if n in self.pseudo)
        assigned = self.looked_up(taken, batch)
        negative = None if self.negative_class is None else self.of_negative_class(assigned)
        seeds = self.draw_seeds(cams, negative)
        left_out = ~self.reliable(batch)[:, None, None]
        return seed_loss(output.map, seeds.masked_fill(left_out, SEED_IGNORE))

    def reliable(self, batch: Batch) -> Tensor:
        """Return which images (B,) the pixel loss sees."""
        if self.hparams["pixel_scope"] == "dataset":
            return self.looked_up("reliable", batch)
        prediction, entropy = (self.looked_up(name, batch) for name in ("prediction", "entropy"))
        return nearest_fraction(
            prediction, entropy, self.hparams["pixel_fraction"], self.num_classes
        )

    # Maps and checkpoints ----------------------------------------------------------------------

    def class_map(self, batch: Batch, output: Output, index: Tensor) -> Tensor:
        """Return the raw maps (B, h, w) of the classes `index`, or S_1 of the pixel classifier."""
        if self.decoder is None:
            return super().class_map(batch, output, index)
        assert output.map is not None
        return foreground(output.map)

    def localize(self, batch: Batch, output: Output, target: Target = "label") -> Tensor:
        """Return the maps (B, H, W) in [0, 1]: of a pixel classifier as they are, no min-max."""
        if self.decoder is None:
            return super().localize(batch, output, target)
        assert output.map is not None
        return resize_maps(foreground(output.map), batch["image"].shape[-2:])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the pseudo-labels as well."""
        super().on_save_checkpoint(checkpoint)
        kept = {name: value.cpu() for name, value in self.pseudo.items()}
        checkpoint["wsl_zoo"]["pseudo"] = kept

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again."""
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint.get("wsl_zoo", {}).get("pseudo", {})
        self.pseudo = {name: value.to(self.device) for name, value in kept.items()}
