"""Callbacks: pictures per validation, written predictions, results."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger

from wsl_zoo import pictures, reports
from wsl_zoo.checkpoints import run_of
from wsl_zoo.data.pixels import write_pixels
from wsl_zoo.prediction import Prediction, mask_boxes, to_prediction
from wsl_zoo.types import Batch

CENTRE = 256  # side of what panels show of an image at high resolution
IMAGE_HEADER: tuple[str, ...] = ("image", "class", "probability", "boxes")


def run_folder(trainer: Trainer) -> Path:
    """Return the folder of a run: that of the checkpoint in use, else the logger's.

    All processes must call this (the first tells the others its folder), at a stage's start or
    later: in `setup` the trainer does not know its checkpoint yet.
    """
    checkpoint = trainer.ckpt_path
    if trainer.state.fn != "fit" and isinstance(checkpoint, str | Path):
        return run_of(Path(checkpoint))
    return Path(trainer.log_dir or trainer.default_root_dir)


def to_pixels(raw: torch.Tensor) -> np.ndarray:
    """Turn one image (3, H, W) uint8 into (H, W, 3)."""
    return raw.permute(1, 2, 0).cpu().numpy()


class PanelWriter(Callback):
    """Writes image | mask | map | boxes of some images of every validation and test split.

    Of super-resolution it is image | result | target, of the central part.

    Per validation epoch of a fit one PNG `panels/<split>/epoch_000.png` in the run's folder; of a
    test, or a validation by itself, `panels/<split>_<checkpoint>.png`. W&B receives the same
    pictures.

    Args:
        count: Number of images, evenly spaced over the split so that they show several classes.
        every_n_epochs: Epochs between two pictures.
    """

    def __init__(self, count: int = 8, every_n_epochs: int = 1) -> None:
        super().__init__()
        self.count = count
        self.every_n_epochs = every_n_epochs
        self.written: list[Path] = []
        self._rows: dict[str, list[list[np.ndarray]]] = {}
        self._captions: dict[str, list[str]] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up the run's folder."""
        self._folder = run_folder(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up the run's folder."""
        self._folder = run_folder(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw this batch's share of the pictures."""
        due = trainer.state.fn != "fit" or trainer.current_epoch % self.every_n_epochs == 0
        if due and not trainer.sanity_checking:
            self._draw(trainer, pl_module, "val", batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw this batch's share of the pictures."""
        self._draw(trainer, pl_module, "test", batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the pictures."""
        epoch = f"/epoch_{trainer.current_epoch:03d}"
        self._write(trainer, epoch if trainer.state.fn == "fit" else _checkpoint_suffix(trainer))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the pictures."""
        self._write(trainer, _checkpoint_suffix(trainer))

    def _draw(self, trainer: Trainer, module: Any, stage: str, batch: Batch, loader: int) -> None:
        data = getattr(trainer, "datamodule", None)
        drawable = "raw" in batch or "target" in batch
        if not trainer.is_global_zero or data is None or not drawable:
            return
        split = data.split_names(stage)[loader]
        size = len(data.sources[split])
        wanted = set(np.linspace(0, size - 1, min(self.count, size)).round().astype(int).tolist())
        rows = [i for i, index in enumerate(batch["index"].tolist()) if index in wanted]
        if not rows:
            return
        part: Any = {k: _take(v, rows) for k, v in batch.items()}
        with torch.no_grad():
            output = module(part)
            if output.sr is not None:
                self._draw_enlarged(split, part, output.sr)
            if output.map is None:
                return
            maps = module.localize(part, output, "label").float().cpu()
        guesses = module.predicted(output).tolist()
        for i, score_map in enumerate(maps):
            has_mask = "mask" in part and bool(part["has_mask"][i])
            tiles = pictures.panel(
                to_pixels(part["raw"][i]),
                score_map.numpy(),
                mask=part["mask"][i].cpu().numpy() if has_mask else None,
                boxes=part["boxes"][i].cpu().numpy() if "boxes" in part else None,
                predicted=mask_boxes((score_map >= module.map_threshold).numpy()),
            )
            self._rows.setdefault(split, []).append(tiles)
            truth, guess = int(part["label"][i]), guesses[i]
            names = module.class_names
            self._captions.setdefault(split, []).append(
                f"{names[truth]}" if truth == guess else f"{names[truth]} (said {names[guess]})"
            )

    def _draw_enlarged(self, split: str, batch: Batch, results: torch.Tensor) -> None:
        scale = results.shape[-1] // batch["image"].shape[-1]
        for image, result, target, path in zip(
            batch["image"], results, batch["target"], batch["path"], strict=True
        ):
            coarse = image.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
            tiles = [pictures.grey(central(part, CENTRE)) for part in (coarse, result, target)]
            self._rows.setdefault(split, []).append(tiles)
            self._captions.setdefault(split, []).append(Path(path).name)

    def _write(self, trainer: Trainer, suffix: str) -> None:
        for split, rows in self._rows.items():
            picture = pictures.grid(rows, captions=self._captions[split], across=2)
            path = self._folder / "panels" / f"{split}{suffix}.png"
            self.written.append(pictures.save(picture, path))
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"panels/{split}", [Image.fromarray(picture)])
        self._rows.clear()
        self._captions.clear()


def central(image: torch.Tensor, side: int) -> np.ndarray:
    """Return the central square (C, side, side) of (C, H, W), or what there is of it."""
    height, width = image.shape[-2:]
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    return image[..., top : top + side, left : left + side].float().cpu().numpy()


def _checkpoint_suffix(trainer: Trainer) -> str:
    return f"_{Path(str(trainer.ckpt_path)).stem if trainer.ckpt_path else 'model'}"


def _take(value: Any, rows: Sequence[int]) -> Any:
    return value[rows] if isinstance(value, torch.Tensor) else [value[i] for i in rows]


class MapWriter(Callback):
    """Writes predictions: per image `<name>.npz` and `<name>.png`, and one `predictions.csv`.

    The archive holds `map` (H, W) float16 in [0, 1] at the size of the image, `probabilities` (K,),
    `label`, and `boxes` (n, 4); the picture is the map over the image with the boxes. Of exams the
    table holds the risk at every horizon, and there is nothing else. Of super-resolution there are
    the enlarged images `<name>.tif`, with as many bits as the images, and the table of them.

    Args:
        folder: Where to write; default: `predictions` in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        self.folder = Path(folder) if folder is not None else None
        self.count = 0
        self._fixed = folder is not None
        self._header = IMAGE_HEADER
        self._rows: list[tuple[str, ...]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the folder."""
        if not self._fixed:
            self.folder = run_folder(trainer) / "predictions"
        self.count = 0
        self._header = IMAGE_HEADER
        self._rows.clear()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the batch's predictions."""
        for i, path in enumerate(batch["path"]):
            if not bool(batch["valid"][i]):
                continue
            if "risk" in outputs:
                self._header = ("exam", *(f"risk_{name}" for name in pl_module.class_names))
                self._rows.append((path, *(f"{r:.6f}" for r in outputs["risk"][i].tolist())))
                self.count += 1
                continue
            if "sr" in outputs:
                self._header = ("image", "enlarged", "height", "width")
                self._write_enlarged(trainer, path, outputs["sr"][i], int(outputs["levels"][i]))
                continue
            maps = outputs["map"]
            height, width = batch["size"][i].tolist() if maps is not None else (0, 0)
            prediction = to_prediction(
                outputs["probabilities"][i],
                int(outputs["label"][i]),
                None if maps is None else maps[i],
                (height, width),
                pl_module.class_names,
                pl_module.map_threshold,
            )
            self._write(trainer, pl_module, batch, i, path, prediction)

    def _write_enlarged(
        self, trainer: Trainer, path: str, image: torch.Tensor, levels: int
    ) -> None:
        assert self.folder is not None
        stem = self.folder / relative_stem(path, trainer)
        file = write_pixels(stem.with_name(f"{stem.name}.tif"), grey_levels(image, levels))
        height, width = map(str, image.shape[-2:])
        self._rows.append((path, file.relative_to(self.folder).as_posix(), height, width))
        self.count += 1

    def _write(
        self,
        trainer: Trainer,
        module: Any,
        batch: Batch,
        i: int,
        path: str,
        prediction: Prediction,
    ) -> None:
        assert self.folder is not None
        stem = self.folder / relative_stem(path, trainer)
        stem.parent.mkdir(parents=True, exist_ok=True)
        boxes = ""
        if prediction.map is not None and prediction.boxes is not None:
            partial = stem.with_name(f".{stem.name}.partial")
            with partial.open("wb") as file:
                np.savez_compressed(
                    file,
                    map=prediction.map.astype(np.float16),
                    probabilities=prediction.probabilities,
                    label=prediction.label,
                    boxes=prediction.boxes,
                )
            partial.replace(stem.with_name(f"{stem.name}.npz"))
            size = prediction.map.shape
            pixels = Image.fromarray(to_pixels(batch["raw"][i])).resize(size[::-1])
            image = pictures.overlay(np.asarray(pixels), prediction.map)
            drawn = pictures.draw_boxes(image, prediction.boxes, pictures.PREDICTED)
            pictures.save(drawn, stem.with_name(f"{stem.name}.png"))
            boxes = ";".join(" ".join(map(str, box)) for box in prediction.boxes.tolist())
        self._rows.append((path, prediction.class_name, f"{prediction.probability:.6f}", boxes))
        self.count += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table (one per process)."""
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        rank = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(self._header)
        writer.writerows(self._rows)
        partial = self.folder / f".predictions{rank}.csv.partial"
        partial.write_text(table.getvalue(), encoding="utf-8")
        partial.replace(self.folder / f"predictions{rank}.csv")


def grey_levels(image: torch.Tensor, levels: int) -> np.ndarray:
    """Return an image (C, H, W) in [0, 1] as uint8 (`levels` 255) or uint16 (65535)."""
    rounded = (image.float() * levels).round().cpu().numpy()
    return np.asarray(rounded, dtype=np.uint8 if levels == np.iinfo(np.uint8).max else np.uint16)


def relative_stem(path: str, trainer: Trainer) -> Path:
    """Return where an image's predictions go: the same path as below the image folder.

    That is `predict_images`, or the root (or the manifest's folder) of the data set. `a.jpg` and
    `a.png` beside each other become `a_jpg` and `a_png`, so neither is overwritten.
    """
    data = getattr(trainer, "datamodule", None)
    file = Path(path)
    manifest = getattr(data, "manifest", None)
    roots = [getattr(data, name, None) for name in ("predict_images", "root")]
    roots += [Path(manifest).parent] if manifest is not None else []
    below = [root for root in roots if root is not None and file.is_relative_to(root)]
    file = file.relative_to(below[0]) if below and file != Path(below[0]) else Path(file.name)
    return file.with_name(f"{file.stem}_{file.suffix.lstrip('.')}" if file.suffix else file.name)


class ResultWriter(Callback):
    """Prints the table of a test and appends it to `results.jsonl` of the run; writes its curves.

    The curves over map thresholds, where there are masks or boxes, become `curves/<split>_<ckpt>`
    `.png` and, per kind of ground truth, `.csv` in the run's folder; of videos `_classes.csv` holds
    CorLoc of every class, of exams `_risk.png` and `.csv` predicted and observed risk. W&B receives
    the pictures.

    Args:
        show: Print the table.
    """

    def __init__(self, show: bool = True) -> None:
        super().__init__()
        self.show = show
        self.columns: dict[str, dict[str, float]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up the run's folder."""
        self._folder = run_folder(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the curves, which all processes sum together."""
        if not hasattr(pl_module, "curves"):
            return
        for split, values in pl_module.per_class("test").items():
            if values and trainer.is_global_zero:
                name = f"{split}{_checkpoint_suffix(trainer)}_classes.csv"
                reports.write_classes(values, pl_module.class_names, self._folder / "curves" / name)
        groups = getattr(pl_module, "risk_groups", None)
        for split, values in groups("test").items() if groups is not None else ():
            if values and trainer.is_global_zero:
                stem = f"{split}{_checkpoint_suffix(trainer)}_risk"
                path = reports.write_risk(values, self._folder / "curves", stem, title=split)
                for logger in trainer.loggers:
                    if isinstance(logger, WandbLogger):
                        logger.log_image(f"risk/{split}", [Image.open(path)])
        for split, curves in pl_module.curves("test").items():
            if curves and trainer.is_global_zero:
                written = reports.write_curves(
                    curves,
                    self._folder / "curves",
                    f"{split}{_checkpoint_suffix(trainer)}",
                    title=split,
                    thresholds=pl_module.thresholds.state(),
                )
                for logger in trainer.loggers:
                    if isinstance(logger, WandbLogger):
                        logger.log_image(f"curves/{split}", [Image.open(written[0])])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep, write and print the results."""
        if not trainer.is_global_zero:
            return
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test")}
        checkpoint = Path(str(trainer.ckpt_path)).stem if trainer.ckpt_path else "model"
        self.columns[checkpoint] = values
        row = {"checkpoint": checkpoint, "metrics": values}
        path = reports.append_result(self._folder, row)
        if self.show:
            reports.print_results(self.columns, below=f"appended to {path}")
