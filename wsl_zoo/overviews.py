"""Plots of a folder of runs: what methods, checkpoints, thresholds, rounds and epochs are worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsl_zoo.plots import (
    draw_auc,
    draw_bias,
    draw_learning,
    draw_selection,
    draw_sensitivity,
)
from wsl_zoo.runs import CURVE, JOB, runs_below
from wsl_zoo.titles import horizon_of, title_of

if TYPE_CHECKING:  # imported where it is needed, so that a listing stays quick
    import pandas as pd

Runs = dict[str, list[list[float]]]
"""Method -> per run its values."""


def write_plots(root: Path, frame: pd.DataFrame) -> list[Path]:
    """Draw, for a folder of runs, what thresholds and checkpoints are worth, per test split.

    `selection_<split>.png`: PxAP (else MaxBoxAccV2) of each checkpoint, by method.
    `sensitivity_<split>.png`: foreground Dice (else BoxAcc of all contours at IoU 0.5) over the map
    threshold, by method, the mean of its runs at `best_loc`.
    `learning_<split>.png`: of rounds of active learning, Dice per image over annotated images.
    `auc_<split>.png`: of risks, the AUC of each horizon, by method.
    `bias_<split>.png`: of adaptation, how unevenly classes are predicted after each epoch.

    Args:
        root: The folder, also of the plots.
        frame: Its results, of `collect`.

    Returns:
        The files.
    """
    written = []
    for split in dict.fromkeys(c.partition("/")[0] for c in frame.columns if "/" in c):
        for metric, kind, column, y in (
            ("pxap", "pixels", "dice_foreground", "foreground Dice, %"),
            ("maxboxacc_v2", "all", "accuracy_iou50", "images localised at IoU 0.5 (BoxAcc), %"),
        ):
            name = f"{split}/{metric}"
            if name not in frame or frame[name].isna().all():
                continue
            values = {
                str(method): {
                    str(checkpoint): part[name].dropna().tolist()
                    for checkpoint, part in rows.groupby("checkpoint", sort=False)
                }
                for method, rows in frame.groupby("method", sort=False)
            }
            guess = frame.get(f"{split}/prevalence") if metric == "pxap" else None
            base = None if guess is None else ("constant map", float(guess.mean()))
            path = root / f"selection_{split}.png"
            x = f"{title_of(metric)}, %"
            written.append(draw_selection(values, path, title=split, x=x, baseline=base))
            lines = _mean_curves(root, f"{split}_best_loc_{kind}.csv", column)
            if lines:
                path = root / f"sensitivity_{split}.png"
                written.append(draw_sensitivity(lines, path, title=split, y=y))
            break
        by_horizon = _auc(frame, split)
        if by_horizon:
            path = root / f"auc_{split}.png"
            written.append(draw_auc(by_horizon, path, title=split))
        lines, levels = _learning(root, frame, f"{split}/image_dice")
        if lines:
            path = root / f"learning_{split}.png"
            written.append(draw_learning(lines, path, levels=levels, title=split))
    for split, (bias, shares) in _bias_over_epochs(root).items():
        written.append(draw_bias(bias, shares, root / f"bias_{split}.png", split))
    return written


def _auc(frame: pd.DataFrame, split: str) -> dict[str, dict[float, list[float]]]:
    """Method -> horizon -> AUC of every run, of their first checkpoint; empty without horizons."""
    horizons: dict[float, str] = {}
    for column in frame.columns:
        of, _, metric = column.partition("/")
        horizon = horizon_of(metric)
        if of == split and horizon is not None:
            horizons[horizon] = column
    found: dict[str, dict[float, list[float]]] = {}
    for method, rows in frame.groupby("method", sort=False) if horizons else ():
        first = rows[rows["checkpoint"] == rows["checkpoint"].iloc[0]]
        values = {t: first[horizons[t]].dropna().tolist() for t in sorted(horizons)}
        if all(values.values()):
            found[str(method)] = values
    return found


def _bias_over_epochs(root: Path) -> dict[str, tuple[Runs, Runs]]:
    """Validation split -> the bias of predictions after each validation, and a class's share.

    The class is the one that the runs of a seed (fold, ...) favour before their first step, all
    methods together.
    """
    import pandas as pd

    found: dict[str, list[tuple[str, str, dict[str, list[float]]]]] = {}
    for folder, job in runs_below(root, JOB):
        path = folder / "metrics.csv"
        logged = pd.read_csv(path) if path.is_file() else pd.DataFrame()
        cells = dict(job["cells"])
        method, group = cells.pop("method"), json.dumps(cells, sort_keys=True)
        own: dict[str, dict[str, list[float]]] = {}
        for column in logged.columns:
            split, _, name = column.partition("/")
            if split.startswith("val") and (name == "bias" or name.startswith("share_")):
                own.setdefault(split, {})[name] = logged[column].dropna().tolist()
        for split, values in own.items():
            if "bias" in values:
                found.setdefault(split, []).append((method, group, values))
    drawn: dict[str, tuple[Runs, Runs]] = {}
    for split, runs in found.items():
        at_first: dict[str, dict[str, float]] = {}
        for _, group, values in runs:
            sums = at_first.setdefault(group, {})
            for name in values.keys() - {"bias"}:
                sums[name] = sums.get(name, 0.0) + values[name][0]
        bias, shares = drawn.setdefault(split, ({}, {}))
        for method, group, values in runs:
            bias.setdefault(method, []).append(values["bias"])
            favoured = max(at_first[group], key=lambda name: at_first[group][name], default="")
            if favoured in values:
                shares.setdefault(method, []).append(values[favoured])
    return drawn


def _learning(
    root: Path, frame: pd.DataFrame, metric: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Method -> learning curve over its runs, and method of one fit -> values of its runs.

    Of a run that has fewer rounds than others of its method, those that all have are drawn.
    """
    import pandas as pd

    found: dict[str, list[pd.DataFrame]] = {}
    for folder, job in runs_below(root, CURVE):
        curve = pd.read_csv(folder / CURVE)
        if metric in curve:
            found.setdefault(job["cells"]["method"], []).append(curve)
    lines = {}
    for method, curves in found.items():
        rounds = min(map(len, curves))
        runs = [curve[metric].tolist()[:rounds] for curve in curves]
        lines[method] = (curves[0]["labelled"].tolist()[:rounds], runs)
    once = {method for method, (images, _) in lines.items() if len(images) == 1}
    levels = {method: [run[0] for run in lines[method][1]] for method in once}
    for name, rows in frame.groupby("method", sort=False):
        if name not in lines and metric in rows and rows[metric].notna().any():
            levels[str(name)] = rows[metric].dropna().tolist()
    return {m: line for m, line in lines.items() if m not in once}, levels


def _mean_curves(root: Path, file: str, column: str) -> dict[str, tuple[Any, Any]]:
    """Method -> thresholds and the mean over its runs of a column of their curves."""
    import pandas as pd

    found: dict[str, list[pd.DataFrame]] = {}
    for folder, job in runs_below(root, JOB):
        path = folder / "curves" / file
        if path.is_file():
            found.setdefault(job["cells"]["method"], []).append(pd.read_csv(path))
    return {
        method: (
            curves[0]["threshold"].to_numpy(),
            sum(curve[column].to_numpy() for curve in curves) / len(curves),
        )
        for method, curves in found.items()
    }
