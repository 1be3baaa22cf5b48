"""What a round of active learning asks of a trained model: threshold, masks, scores, test.

A process of its own, so that several devices share the work as they do in a fit:
`python -m wsl_zoo.annotate REQUEST.json`. Images go through one by one, so that what comes out does
not depend on how many processes there are; everything is measured at the images' own size.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo.acquisition import RunningVariance, pixel_entropy
from wsl_zoo.checkpoints import load_checkpoint
from wsl_zoo.data import ZooDataModule
from wsl_zoo.data.dataset import stable_seed
from wsl_zoo.data.masks import write_mask
from wsl_zoo.files import write_text
from wsl_zoo.methods import ActiveWeakAnnotator
from wsl_zoo.types import IGNORE, Batch

THRESHOLDS = np.arange(5, 100) / 100
"""0.05, 0.06, ..., 0.99."""
TRAINER = ("accelerator", "devices", "strategy", "num_nodes", "precision")
PASSES_AT_ONCE = 10


def make_data(config: Mapping[str, Any]) -> ZooDataModule:
    """Return the data module of a saved configuration, without any table of masks."""
    module, _, name = config["data"]["class_path"].rpartition(".")
    options = config["data"]["init_args"] | {"mask_table": None, "eval_batch_size": 1}
    data: ZooDataModule = getattr(importlib.import_module(module), name)(**options)
    return data


def mask_counts(probability: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Count what each threshold of `THRESHOLDS` predicts, (95, 3) int64.

    Args:
        probability: (H, W) in [0, 1]; foreground where it is >= the threshold.
        mask: (H, W) of 0, 1 and 255 (ignored).

    Returns:
        True positives, predicted pixels and true pixels.
    """
    known = mask != IGNORE
    place = np.searchsorted(THRESHOLDS, probability[known].astype(np.float64), side="right")
    size = len(THRESHOLDS) + 1
    true = mask[known] == 1
    # A pixel at place k is foreground for the thresholds before k.
    predicted = np.bincount(place, minlength=size)[::-1].cumsum()[::-1][1:]
    hits = np.bincount(place[true], minlength=size)[::-1].cumsum()[::-1][1:]
    return np.stack([hits, predicted, np.full_like(hits, true.sum())], axis=1)


def mean_iou(counts: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Mean over images of the mean IoU of foreground and background, smoothed by one pixel, (95,).

    Args:
        counts: (N, 95, 3) of `mask_counts`.
        pixels: (N,) pixels that are not ignored.
    """
    hits, predicted, true = np.moveaxis(counts, -1, 0).astype(np.float64)
    union = predicted + true - hits
    total = pixels[:, None]
    foreground = (hits + 1) / (union + 1)
    background = (total - union + 1) / (total - hits + 1)
    result: np.ndarray = ((foreground + background) / 2).mean(axis=0)
    return result


def dice(counts: np.ndarray) -> np.ndarray:
    """Dice of each image and threshold, (N, 95); 0 where truth and prediction are empty."""
    hits, predicted, true = np.moveaxis(counts, -1, 0).astype(np.float64)
    return cast("np.ndarray", 2 * hits / (predicted + true + 1e-8))


def best_threshold(counts: np.ndarray, pixels: np.ndarray) -> int:
    """Return the position in `THRESHOLDS` of the highest `mean_iou`, the first of equal ones."""
    return int(mean_iou(counts, pixels).argmax())


class Annotator(LightningModule):
    """Answers one request with a trained model.

    Args:
        model: The model.
        data: Its data module.
        request: See `answer`.
    """

    def __init__(
        self, model: ActiveWeakAnnotator, data: ZooDataModule, request: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.model = model
        self.encoder = model.encoder  # images are normalised for it
        self.data = data
        self.request = request
        self.pseudo = {name: Path(path) for name, path in request.get("pseudo", {}).items()}
        self.scored = set((request.get("score") or {"images": ()})["images"])
        self.names: dict[str, list[str]] = {}
        self.split = "train"
        self.threshold: float | None = None
        self.rows: dict[str, dict[str, Any]] = {}

    def look(self, trainer: Trainer, split: str, only: Sequence[str] | None = None) -> None:
        """Go through images of a split; `rows` then holds what was found, by name."""
        source = self.data.sources[split]
        self.split, self.rows = split, {}
        self.names[split] = self.data.image_names(source)
        places = None
        if only is not None:
            place = {name: i for i, name in enumerate(self.names[split])}
            places = [place[name] for name in only]
        if places is None or places:
            trainer.predict(self, self.data.whole_images(split, places), return_predictions=False)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Take in one image."""
        batch = self.data.on_after_batch_transfer(batch, 0)
        index = int(batch["index"][0])
        name = self.names[self.split][index]
        output = self.model(batch)
        size = (int(batch["size"][0, 0]), int(batch["size"][0, 1]))
        probability = at_size(output.map, size)
        row: dict[str, Any] = {}
        if self.split != "train":
            truth = self.data.sources[self.split].load(index, annotations=True).mask
            assert truth is not None
            row["counts"] = mask_counts(probability[0].numpy(force=True), truth)
            row["pixels"] = int((truth != IGNORE).sum())
            row["right"] = bool(output.logits.argmax(1).eq(batch["label"]).item())
        if self.split == "train" and name in self.pseudo:
            assert self.threshold is not None
            mask = (probability[0] >= self.threshold).numpy(force=True)
            write_mask(self.pseudo[name], mask)
        if self.split == "train" and name in self.scored:
            score = self.request["score"]
            row |= self._score(score, batch, probability, output.final, index)
        self.rows[name] = row

    def _score(
        self,
        score: Mapping[str, Any],
        batch: Batch,
        probability: Tensor,
        final: Tensor | None,
        index: int,
    ) -> dict[str, Any]:
        if score["by"] == "entropy":
            return {"score": float(pixel_entropy(probability, published=score["published"]))}
        if score["by"] == "core_set":
            assert final is not None
            return {"features": final[0].float().mean(dim=(1, 2)).tolist()}
        variance = RunningVariance()
        drop = self.model.decoder.drop
        torch.manual_seed(stable_seed(score["seed"], index))
        drop.train()
        try:
            left = score["passes"]
            while left:
                count = min(left, PASSES_AT_ONCE)
                several = cast("Batch", {"image": batch["image"].expand(count, -1, -1, -1)})
                maps = at_size(self.model(several).map, tuple(probability.shape[1:]))
                for one in maps:
                    variance.update(one[None])
                left -= count
        finally:
            drop.eval()
        return {"score": float(variance.compute(published=score["published"]))}

    def on_predict_epoch_end(self) -> None:
        """Put together what the processes found."""
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, self.rows)
            self.rows = {name: row for rows in gathered for name, row in rows.items()}
        self.rows = dict(sorted(self.rows.items()))

    def answer(self, trainer: Trainer) -> dict[str, Any]:
        """Do what the request asks for.

        Request: `pseudo`, image -> file for its mask; `score`, {`images`, `by`: "entropy",
        "mc_dropout" or "core_set", `passes`, `published`, `seed`}; `test`: whether to test.

        Returns:
            `threshold`, of the best mean IoU on validation; `val_dice` there and `val_miou`;
            `test`, metrics by "split/metric", fractions; `scores` or `features` by image.
        """
        split = str(self.data.selection()["loc"]).partition("/")[0]
        self.look(trainer, split)
        counts, pixels = _stacked(self.rows)
        best = best_threshold(counts, pixels)
        self.threshold = float(THRESHOLDS[best])
        found: dict[str, Any] = {
            "threshold": self.threshold,
            "val_miou": float(mean_iou(counts, pixels)[best]),
            "val_dice": float(dice(counts)[:, best].mean()),
        }
        wanted = sorted({*self.pseudo, *self.scored})
        if wanted:
            self.look(trainer, "train", wanted)
            for key, title in (("score", "scores"), ("features", "features")):
                values = {name: row[key] for name, row in self.rows.items() if key in row}
                if values:
                    found[title] = values
        if self.request.get("test"):
            found["test"] = {}
            for split in self.data.split_names("test"):
                if self.data.sources[split].has_masks:
                    self.look(trainer, split)
                    counts, _ = _stacked(self.rows)
                    right = [row["right"] for row in self.rows.values()]
                    found["test"] |= {
                        f"{split}/acc": sum(right) / len(right),
                        f"{split}/image_dice": float(dice(counts)[:, best].mean()),
                    }
        return found


def at_size(logits: Tensor | None, size: tuple[int, ...]) -> Tensor:
    """Return sigmoid(Z) (B, *size) of logits Z (B, 1, h, w), resized before the sigmoid."""
    assert logits is not None
    large = F.interpolate(logits.float(), size[-2:], mode="bilinear", align_corners=False)
    return large[:, 0].sigmoid()


def _stacked(rows: Mapping[str, Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.stack([row["counts"] for row in rows.values()])
    return counts, np.array([row["pixels"] for row in rows.values()])


def annotate(request: Mapping[str, Any]) -> None:
    """Answer a request, in the file that it names.

    Args:
        request: As of `Annotator.answer`, and `config`, the configuration of the fit; `checkpoint`;
            `answer`, the file.

    Raises:
        ValueError: The checkpoint is of another method.
    """
    config = yaml.safe_load(Path(request["config"]).read_text(encoding="utf-8"))
    model = load_checkpoint(request["checkpoint"])
    if not isinstance(model, ActiveWeakAnnotator):
        raise ValueError(
            f"{request['checkpoint']} holds a {type(model).__name__}: rounds of active learning "
            "need an ActiveWeakAnnotator"
        )
    data = make_data(config)
    options = {key: config["trainer"][key] for key in TRAINER if key in config["trainer"]}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(**options | quiet)
    answer_with(trainer, model, data, request)


def answer_with(
    trainer: Trainer, model: ActiveWeakAnnotator, data: ZooDataModule, request: Mapping[str, Any]
) -> None:
    """Answer a request with a trainer; see `annotate`."""
    annotator = Annotator(model.eval(), data, request)
    data.trainer = trainer
    found = annotator.answer(trainer)
    if trainer.is_global_zero:
        write_text(Path(request["answer"]), json.dumps(found, indent=1, sort_keys=True))


def main() -> None:
    """Answer the request that the command line names."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    annotate(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
