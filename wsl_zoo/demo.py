"""`wsl-zoo demo`: CAM, then F-CAM from its checkpoints, on built-in images; no downloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wsl_zoo import pictures, reports
from wsl_zoo.arguments import value_of
from wsl_zoo.callbacks import run_folder
from wsl_zoo.cli import ZooCLI, run_trainer

COUNT = 8  # pictures, evenly spaced over the test images so that they show all classes


def demo(args: Sequence[str] = ()) -> dict[str, ZooCLI]:
    """Train both stages; print one table, and write one picture of test images.

    Args:
        args: Arguments of both fits; with `--run_dir DIR` they are `DIR/CAM` and `DIR/F-CAM`.

    Returns:
        The two stages by name, each with the checkpoint that was tested last.
    """
    print("CAM (Zhou et al., CVPR 2016): a classifier, from image labels only ...")
    stages = {"CAM": _fit("CAM", "cam/synthetic", args)}
    kept = stages["CAM"].kept()
    if "best_cl" not in kept:
        raise ValueError("the first stage kept no best_cl: the demo needs its validation")
    print("F-CAM (Belharbi et al., WACV 2022): a decoder, from pixels drawn by those maps ...")
    first = ["--model.classifier", kept["best_cl"]]
    first += ["--model.seeder", kept.get("best_loc", kept["best_cl"])]
    stages["F-CAM"] = _fit("F-CAM", "fcam/synthetic", [*first, *args])
    if stages["CAM"].trainer.is_global_zero:
        columns = {
            f"{name}\n{checkpoint}": metrics
            for name, stage in stages.items()
            for checkpoint, metrics in stage.results.columns.items()
        }
        reports.print_results(columns)
        print("The prevalence is the PxAP of a constant map: what a map must beat.")
        print("Picture of test images (boxes: true green, predicted red):")
        print(f"  {_draw(stages)}")
    return stages


def _fit(name: str, config: str, args: Sequence[str]) -> ZooCLI:
    run_dir = value_of("--run_dir", args)
    own = ["--run_dir", f"{run_dir}/{name}"] if run_dir is not None else []
    first = ["--config", config, "--then_test", '["best_loc"]']
    return run_trainer("fit", [*first, *args, *own], show=False)


def _draw(stages: Mapping[str, ZooCLI]) -> Path:
    """Write image | mask | a map with boxes per stage, beside the last stage's other pictures."""
    last = list(stages.values())[-1]
    samples = last.datamodule.dataset("test")
    rows, captions = [], []
    for index in np.linspace(0, len(samples) - 1, min(COUNT, len(samples))).round().astype(int):
        sample = samples.sample(int(index))
        row = [sample.image, pictures.mask_image(sample.mask)]
        for stage in stages.values():
            found = stage.model.predict_image(sample.image, sample.label)
            tile = pictures.overlay(sample.image, found.map)
            tile = pictures.draw_boxes(tile, sample.boxes, pictures.TRUTH)
            row.append(pictures.draw_boxes(tile, found.boxes, pictures.PREDICTED))
        rows.append(row)
        captions.append(last.model.class_names[sample.label])
    picture = pictures.grid(rows, ["image", "mask", *stages], captions, across=2)
    return pictures.save(picture, run_folder(last.trainer) / "panels" / "demo.png")
