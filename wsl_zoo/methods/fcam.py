"""F-CAM: a decoder that refines class activation maps to full resolution, without pixel labels.

Paper: Belharbi et al., "F-CAM: Full Resolution Class Activation Maps via Guided Parametric
Upscaling", WACV 2022 (arXiv 2109.07069).
Loss: w_s mean_{labelled p} CE(Z_p, Y_p) + w_crf L_crf(S) + w_size L_size(S) [+ w_h H(S)].
Map: S_1, the softmax of the decoder's logits Z; never min-max normalised.

Stage 1 trains a classifier (`CAMClassifier`). Stage 2, this class, takes its encoder and head from
`classifier` (`best_cl`), freezes them and trains a U-Net decoder. Each step draws a few foreground
and background pixels Y anew from the class map of the true label, which a second copy of the
classifier, `seeder` (`best_loc`), reads. Foreground is what the map of the *true* class shows, so
the decoder's map is class-agnostic, and needs no gradient and no CAM at test time.

Deviations: the loss on seeds is the mean over the labelled pixels of the batch, as the published
code has it (the paper writes a sum). The untrained decoder is no candidate of `best_loc`. Seeds
depend on (seed, epoch, step, process) through a generator of their own; the published code reseeds
the global one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.cams.normalize import resize_maps
from wsl_zoo.checkpoints import read_checkpoint
from wsl_zoo.data.transforms import denormalize
from wsl_zoo.heads import UNetDecoder
from wsl_zoo.losses import SAMPLERS, DenseCRF, SizeConstraint, pixel_entropy, seed_loss
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.methods.cam import CAMClassifier, Map, build
from wsl_zoo.methods.seeding import Seeded
from wsl_zoo.methods.stage2 import SecondStage
from wsl_zoo.types import Batch, Output, Target

Sampler = Literal[
    "threshold", "probability", "probability_negative_area", "pixelcam", "uniform", "weighted"
]


class FCAM(Seeded, SecondStage):
    """Frozen classifier and a decoder trained on pixels drawn from its class maps.

    Defaults are those of CUB with a ResNet-50: SGD at a constant rate of 0.01, 50 epochs, batches
    of 32. Encoder and head must be those of stage 1 (`encoder`, `stride`, `head`, ...).

    Args:
        seeder: Checkpoint whose class maps seed: any method of the zoo. None: `classifier`.
        cam: Which map the seeder reads, as of `CAMClassifier`; None: the one it was trained with.
        cam_layer: Layer that it is read at; goes with `cam`.
        cam_args: Arguments of the map; go with `cam`.
        cam_source: "cached": maps of the whole training images (of videos: of the frames that will
            be drawn) are read once, kept small (N, h, w), and cropped and flipped with the images;
            "live": read anew from every augmented image. They are not the same maps.
        sampler: How seeds are drawn: "threshold" (F-CAM: Otsu, eroded), "probability" (NEGEV),
            "probability_negative_area", "pixelcam", "uniform" and "weighted" (TCAM, CoLo-CAM).
        sampler_args: Arguments of the sampler, e.g. `{"min_p": 0.2}`; see `wsl_zoo.losses.seeds`.
        seed_weight: Weight of the cross-entropy on seeds.
        crf_weight: Weight of the dense CRF loss; 2e-9 belongs to the permutohedral lattice.
        crf_args: Arguments of `wsl_zoo.losses.DenseCRF`.
        size_weight: Weight of the absolute size constraint.
        size_args: Arguments of `wsl_zoo.losses.SizeConstraint` (barrier t, factor, t_max).
        entropy_weight: Weight of the mean entropy of pixels, in bits.
        windows: First and last epoch (from 1; -1: no end) of terms that are not always on, e.g.
            `{"crf": [5, -1]}`.
        self_training_epoch: From this epoch on (from 1), seeds come from the map of the best
            decoder so far (`best_loc`, else `best_cl`). None: never.
        decoder_args: Arguments of `wsl_zoo.heads.UNetDecoder`.
        lr: Rate of the decoder.
        step_size: Epochs between two decays.
        min_lr: Floor of the rate.
        **kwargs: See `SecondStage`; a classifier that is trained too (`freeze_classifier=False`)
            adds the cross-entropy of classes, `ce`.

    Raises:
        ValueError: Unknown sampler, head, map or term.
    """

    terms: ClassVar[tuple[str, ...]] = ("seed", "crf", "size", "entropy")
    """Terms with a weight, which `windows` can switch."""

    def __init__(
        self,
        seeder: str | None = None,
        cam: Map | None = None,
        cam_layer: int | str = -1,
        cam_args: dict[str, Any] | None = None,
        cam_source: Literal["cached", "live"] = "cached",
        sampler: Sampler = "threshold",
        sampler_args: dict[str, Any] | None = None,
        seed_weight: float = 1.0,
        crf_weight: float = 2.0e-9,
        crf_args: dict[str, Any] | None = None,
        size_weight: float = 0.1,
        size_args: dict[str, Any] | None = None,
        entropy_weight: float = 0.0,
        windows: dict[str, list[int]] | None = None,
        self_training_epoch: int | None = None,
        decoder_args: dict[str, Any] | None = None,
        lr: float = 0.01,
        step_size: int = 1000,
        min_lr: float = 1.0e-7,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, step_size=step_size, min_lr=min_lr, **kwargs)
        if cam_source not in ("cached", "live"):
            raise ValueError(f'cam_source={cam_source!r} must be "cached" or "live"')
        if cam is None and (cam_args is not None or cam_layer != -1):
            raise ValueError("cam_layer and cam_args go with cam=, which is not given")
        for term, window in (windows or {}).items():
            if term not in self.terms or len(window) != 2:
                known = ", ".join(self.terms)
                raise ValueError(f"windows={{{term!r}: {window}}}: give [first, last] for {known}")
        self.decoder = self.make_decoder(decoder_args or {})
        self.sampler = build("sampler", SAMPLERS, sampler, sampler_args)
        self.crf = DenseCRF(**(crf_args or {}))
        self.size = SizeConstraint(**(size_args or {}))
        self._best: list[nn.Module] = []
        self._best_of_epoch = -1

    def make_decoder(self, options: dict[str, Any]) -> nn.Module:
        """Return what stage 2 trains, of `decoder_args`."""
        return UNetDecoder(self.encoder.channels, self.encoder.strides, **options)

    def decode(self, decoder: nn.Module, output: Output, size: Sequence[int]) -> Tensor:
        """Return a decoder's logits (B, 2, *size) for the features of an output."""
        logits: Tensor = decoder(output.pyramid, size)
        return logits

    # Seeds -------------------------------------------------------------------------------------

    @property
    def seeder_path(self) -> str | None:
        """`seeder`, else `classifier`."""
        path: str | None = self.hparams["seeder"] or self.hparams["classifier"]
        return path

    @property
    def caches_cams(self) -> bool:
        """Whether `cam_source` is "cached"."""
        return bool(self.hparams["cam_source"] == "cached")

    def prepare_seeder(self, path: str, source: ZooModule) -> None:
        """Refuse a seeder that knows other classes; let it read `cam`."""
        h = self.hparams
        self.check_stage_1("seeder", path, source)
        if h["cam"] is not None:
            if not isinstance(source, CAMClassifier):
                raise ValueError(
                    f"cam={h['cam']!r}: seeder={path} is a {type(source).__name__}, which has "
                    "a map of its own"
                )
            source.read_map(h["cam"], h["cam_layer"], h["cam_args"])

    def on_fit_start(self) -> None:
        """Read stage 1 and, with `cam_source="cached"`, the class maps of all training images."""
        super().on_fit_start()
        self._best_of_epoch = -1

    def seeds(self, batch: Batch, output: Output) -> Tensor:
        """Draw seeds (B, H, W) int64: 1 foreground, 0 background, -255 neither."""
        assert output.map is not None
        size = output.map.shape[-2:]
        start = self.hparams["self_training_epoch"]
        if start is not None and self.current_epoch + 1 >= start:
            cams = resize_maps(self._best_map(output), size)
        else:
            cams = self.cams_of(batch, size)
        return self.draw_seeds(cams, self.everywhere_background(batch))

    def everywhere_background(self, batch: Batch) -> Tensor | None:
        """Return which images (B,) get background seeds alone, from everywhere; None: none."""
        return None

    def _best_map(self, output: Output) -> Tensor:
        """Return the map of the best decoder so far, (B, H, W)."""
        assert output.map is not None
        if self._best_of_epoch != self.current_epoch:
            kept = {
                getattr(callback, "kind", ""): getattr(callback, "best_model_path", "")
                for callback in self.trainer.checkpoint_callbacks
            }
            path = kept.get("loc") or kept.get("cl")
            best = copy.deepcopy(self.decoder)
            if path:
                state = read_checkpoint(path, self.device)["state_dict"]
                prefix = "decoder."
                best.load_state_dict(
                    {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
                )
            self._best = [best.eval()]
            self._best_of_epoch = self.current_epoch
        with torch.no_grad():
            logits = self.decode(self._best[0], output, output.map.shape[-2:])
        return foreground(logits)

    # Forward and loss --------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K), `map` Z (B, 2, H, W), `final` and `pyramid` (detached)."""
        image = batch["image"]
        logits, final, levels = self.classify(image)
        output = Output(logits=logits, final=final, pyramid=levels)
        output.map = self.decode(self.decoder, output, image.shape[-2:])
        return output

    def is_on(self, term: str) -> bool:
        """Return whether a term is on in this epoch, which are counted from 1."""
        first, last = (self.hparams["windows"] or {}).get(term, (1, -1))
        return first <= self.current_epoch + 1 and (last == -1 or self.current_epoch + 1 <= last)

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the terms that are on: `seed`, `crf`, `size`, `entropy`, `ce`."""
        assert output.map is not None
        assert output.logits is not None
        h = self.hparams
        terms: dict[str, Tensor] = {}
        with torch.autocast(output.map.device.type, enabled=False):
            logits = output.map.float()
            probabilities = logits.softmax(dim=1)
            if self._counts("seed"):
                terms["seed"] = h["seed_weight"] * seed_loss(logits, self.seeds(batch, output))
            if self._counts("crf"):
                terms["crf"] = h["crf_weight"] * self.crf(probabilities, self._pixels(batch))
            if self._counts("size"):
                terms["size"] = h["size_weight"] * self.size(probabilities)
            if self._counts("entropy"):
                terms["entropy"] = h["entropy_weight"] * pixel_entropy(probabilities)
            if not terms:  # All is off, yet optimiser and DDP need a graph of the decoder.
                terms["seed"] = 0.0 * logits.sum()
            if not self.freezes:
                terms["ce"] = F.cross_entropy(output.logits.float(), batch["label"])
            return terms

    def _counts(self, term: str) -> bool:
        return bool(self.hparams[f"{term}_weight"]) and self.is_on(term)

    def _pixels(self, batch: Batch) -> Tensor:
        """Return colours in 0..255, (B, 3, H, W): of loaders that give no `raw`, from the image."""
        if "raw" in batch:
            return batch["raw"]
        return denormalize(batch["image"], self.encoder.mean, self.encoder.std)

    # Maps --------------------------------------------------------------------------------------

    def class_map(self, batch: Batch, output: Output, index: Tensor) -> Tensor:
        """Return S_1 (B, H, W), the same for every class."""
        assert output.map is not None
        return foreground(output.map)

    def localize(self, batch: Batch, output: Output, target: Target = "label") -> Tensor:
        """Return S_1 (B, H, W), the same for every target, as it is: no min-max."""
        assert output.map is not None
        return resize_maps(foreground(output.map), batch["image"].shape[-2:])


def foreground(logits: Tensor) -> Tensor:
    """S_1 (B, H, W) float32 of decoder logits (B, 2, H, W)."""
    return logits.float().softmax(dim=1)[:, 1]
