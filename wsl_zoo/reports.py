"""Tables: of one test, and of a folder of runs (mean and deviation over the seeds)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wsl_zoo.files import write_whole
from wsl_zoo.plots import (
    draw_bias,
    draw_curves,
    draw_learning,
    draw_selection,
    draw_sensitivity,
    percent,
)

if TYPE_CHECKING:  # each is imported where it is needed, so that a listing stays quick
    import pandas as pd
    from torch import Tensor

RESULTS = "results.jsonl"
JOB = "job.json"
CURVE = "curve.csv"

Runs = dict[str, list[list[float]]]
"""Method -> per run its values."""

TITLES = {
    "acc": "accuracy",
    "balanced_acc": "balanced accuracy",
    "top5_acc": "top-5 accuracy",
    "mae": "mean absolute error, ranks",
    "soi": "SOI around the prediction",
    "soi_label": "SOI around the label",
    "loss": "loss",
    "bias": "bias of predictions (0: every class as often, 100: one class)",
    "pxap": "PxAP",
    "prevalence": "prevalence (PxAP of a constant map)",
    "peak_iou": "peak IoU",
    "dice": "Dice (validation threshold)",
    "dice_bg": "background Dice (validation threshold)",
    "image_dice": "Dice per image (validation threshold)",
    "image_dice_auc": "area under the learning curve of Dice per image",
    "image_dice_present": "Dice per image with a region (validation threshold)",
    "image_dice_bg": "background Dice per image (validation threshold)",
    "dice_oracle": "Dice (best threshold)",
    "dice_bg_oracle": "background Dice (best threshold)",
    "maxboxacc": "MaxBoxAcc",
    "maxboxacc_v2": "MaxBoxAccV2",
    "boxacc": "BoxAcc (validation threshold)",
    "boxacc_v2": "BoxAccV2 (validation threshold)",
    "corloc_oracle": "CorLoc (best threshold)",
    "corloc_class_oracle": "CorLoc (best threshold of each class)",
    "corloc": "CorLoc (validation threshold)",
    "top1_loc": "top-1 localisation (validation threshold)",
    "top5_loc": "top-5 localisation (validation threshold)",
    "top1_loc_oracle": "top-1 localisation (best threshold)",
    "top5_loc_oracle": "top-5 localisation (best threshold)",
}


NUMBERS = frozenset({"mae", "loss"})
"""Metrics that are no fractions: they are shown as they are."""


def shown(metric: str, value: float) -> str:
    """Format a value: a fraction in percent, a number with three decimals."""
    return f"{value:.3f}" if metric in NUMBERS else percent(value)


def title_of(metric: str) -> str:
    """Return the heading of a metric."""
    return TITLES.get(metric, metric.replace("_", " "))


def results_table(columns: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a table with one row per metric and one column per entry, fractions in percent.

    Args:
        columns: Column title -> {"split/metric": fraction}.
    """
    table = Table(title="Results, %", title_justify="left")
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    rows = list(dict.fromkeys(key for values in columns.values() for key in values))
    order = {name: i for i, name in enumerate(TITLES)}
    rows.sort(key=lambda key: (key.partition("/")[0], order.get(key.partition("/")[2], len(order))))
    for key in rows:
        split, _, metric = key.partition("/")
        cells = [shown(metric, v[key]) if key in v else "" for v in columns.values()]
        table.add_row(f"{split}: {title_of(metric)}", *cells)
    return table


def print_results(columns: Mapping[str, Mapping[str, float]], below: str | None = None) -> None:
    """Print `results_table`, and a line below it that is never wrapped (it holds a path)."""
    Console().print(results_table(columns))
    if below is not None:
        print(below)


def append_result(folder: Path, row: Mapping[str, Any]) -> Path:
    """Append one result to `results.jsonl` of a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULTS
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return path


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Return the results of one run; of equal checkpoints the newest."""
    path = folder / RESULTS
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return list({row["checkpoint"]: row for row in rows}.values())


def collect(root: Path) -> pd.DataFrame:
    """Read all results below a folder, one row per run and checkpoint.

    Raises:
        FileNotFoundError: There are none.
    """
    import pandas as pd

    rows = []
    for folder, job in runs_below(root, RESULTS):
        name = folder.relative_to(root).as_posix()
        cells = job.get("cells", {"method": root.resolve().name if name == "." else name})
        rows += [
            {**cells, "checkpoint": row["checkpoint"], **row["metrics"]}
            for row in read_results(folder)
        ]
    if not rows:
        raise FileNotFoundError(
            f"no {RESULTS} below {root}: run `wsl-zoo test` or `wsl-zoo run` first"
        )
    return pd.DataFrame(rows)


def runs_below(root: Path, file: str) -> list[tuple[Path, dict[str, Any]]]:
    """Folders below one that hold a file, with their jobs, methods as in the pipeline's file."""
    runs = []
    for folder in sorted(path.parent for path in root.rglob(file)):
        path = folder / JOB
        runs.append((folder, json.loads(path.read_text("utf-8")) if path.is_file() else {}))
    return sorted(runs, key=lambda run: run[1].get("order", 0))


def summarize(frame: pd.DataFrame, over: Sequence[str] = ("seed", "fold")) -> pd.DataFrame:
    """Return mean, standard deviation (n - 1) and number of runs over seeds and folds.

    One row per combination of the other columns; a column per metric, "mean ± sd", fractions in percent.
    """
    import pandas as pd

    metrics = [column for column in frame.columns if "/" in column]
    keys = [c for c in frame.columns if c not in metrics and c not in over]
    rows = []
    for values, group in frame.groupby(keys, sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(keys, values, strict=True))
        row["runs"] = len(group)
        for metric in metrics:
            seen = group[metric].dropna()
            if len(seen):
                name = metric.partition("/")[2]
                spread = f" ± {shown(name, float(seen.std()))}" if len(seen) > 1 else ""
                row[metric] = shown(name, float(seen.mean())) + spread
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def to_markdown(frame: pd.DataFrame) -> str:
    """Format a frame as a Markdown table."""
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def write_tables(root: Path, frame: pd.DataFrame, means: pd.DataFrame) -> tuple[Path, Path]:
    """Write `results.csv`, of `collect`, and `summary.md`, of `summarize`, into `root`."""
    table = root / "results.csv"
    frame.to_csv(table, index=False, quoting=csv.QUOTE_MINIMAL)
    summary = root / "summary.md"
    summary.write_text(to_markdown(means), encoding="utf-8")
    return table, summary


def write_plots(root: Path, frame: pd.DataFrame) -> list[Path]:
    """Draw, for a folder of runs, what thresholds and checkpoints are worth, per test split.

    `selection_<split>.png`: PxAP (else MaxBoxAccV2) of each checkpoint, by method.
    `sensitivity_<split>.png`: foreground Dice (else BoxAcc of all contours at IoU 0.5) over the map
    threshold, by method, the mean of its runs at `best_loc`.
    `learning_<split>.png`: of rounds of active learning, Dice per image over annotated images.
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
        lines, levels = _learning(root, frame, f"{split}/image_dice")
        if lines:
            path = root / f"learning_{split}.png"
            written.append(draw_learning(lines, path, levels=levels, title=split))
    for split, (bias, shares) in _bias_over_epochs(root).items():
        written.append(draw_bias(bias, shares, root / f"bias_{split}.png", split))
    return written


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


def summary_tables(frame: pd.DataFrame, width: int) -> list[Table]:
    """Return a summary with one row per metric, as many columns in a table as fit.

    Args:
        frame: Of `summarize`.
        width: Of the terminal, in characters.
    """
    names = sorted(frame.columns, key=lambda column: "/" in column)
    head = sum("/" not in name for name in names)
    edge = 3  # a border and two spaces
    groups: list[list[list[str]]] = []
    room = 0
    for _, row in frame.iterrows():
        cells = [str(row[name]) for name in names]
        needed = max(map(len, cells)) + edge
        if needed > room:
            groups.append([names])
            room = width - max(map(len, names)) - edge - 1
        groups[-1].append(cells)
        room -= needed
    tables = []
    for group in groups:
        table = Table(show_header=False)
        for i in range(len(group)):
            table.add_column(justify="right" if i else "left", no_wrap=True)
        for i, line in enumerate(zip(*group, strict=True), start=1):
            table.add_row(*line, end_section=i == head)
        tables.append(table)
    return tables


def print_summary(root: Path) -> None:
    """Write tables and plots of a folder of runs and print the summary."""
    frame = collect(root)
    means = summarize(frame)
    table, summary = write_tables(root, frame, means)
    drawn = write_plots(root, frame)
    console = Console()
    console.print("Mean ± standard deviation, %")
    for part in summary_tables(means, console.width):
        console.print(part)
    print(f"written: {', '.join(map(str, (table, summary, *drawn)))}")


def print_entries(entries: Iterable[Any], kind: str) -> None:
    """Print a listing of the catalogue."""
    table = Table(title=kind, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for entry in entries:
        file = "" if kind in {"encoders", "configs"} else entry.file
        lines = [entry.summary, entry.paper, file]
        table.add_row(entry.name, Text("\n".join(line for line in lines if line)))
    Console().print(table)


def curves_table(curves: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return the curves of one kind as fractions, one row per map threshold.

    A curve per IoU threshold becomes a column each, `accuracy_iou50` for IoU 0.5.
    """
    import pandas as pd

    columns: dict[str, Tensor] = {}
    for name, values in curves.items():
        if values.ndim == 2:
            ends = [f"iou{100 * iou:g}" for iou in curves["iou_threshold"].tolist()]
            columns |= {f"{name}_{end}": row for end, row in zip(ends, values, strict=True)}
        elif name != "iou_threshold":
            columns[name] = values
    return pd.DataFrame({name: values.numpy(force=True) for name, values in columns.items()})


def write_classes(values: Mapping[str, Tensor], class_names: Sequence[str], path: Path) -> Path:
    """Write metrics per class `(K,)` by name as CSV: a row per class, fractions."""
    import pandas as pd

    columns = {"class": list(class_names)} | {name: v.tolist() for name, v in values.items()}
    return write_whole(path, partial(pd.DataFrame(columns).to_csv, index=False))


def write_curves(
    curves: Mapping[str, Mapping[str, Tensor]],
    folder: Path,
    stem: str,
    *,
    title: str = "",
    thresholds: Mapping[str, float | Sequence[float] | None] | None = None,
) -> list[Path]:
    """Write `<stem>.png` of `draw_curves` and, per kind, `<stem>_<kind>.csv` of `curves_table`.

    Returns:
        The files; none if there are no curves.
    """
    if not curves:
        return []
    written = [draw_curves(curves, folder / f"{stem}.png", title=title, thresholds=thresholds)]
    for kind, values in curves.items():
        write = partial(curves_table(values).to_csv, index=False)
        written.append(write_whole(folder / f"{stem}_{kind}.csv", write))
    return written
