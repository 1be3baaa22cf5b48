"""Tables and plots: of one test, and of a folder of runs (mean and deviation over the seeds)."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # each is imported where it is needed, so that a listing stays quick
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    Curves = Mapping[str, Mapping[str, Tensor]]
    Thresholds = Mapping[str, float | Sequence[float] | None]

RESULTS = "results.jsonl"
JOB = "job.json"

TITLES = {
    "acc": "accuracy",
    "balanced_acc": "balanced accuracy",
    "top5_acc": "top-5 accuracy",
    "pxap": "PxAP",
    "prevalence": "prevalence (PxAP of a constant map)",
    "peak_iou": "peak IoU",
    "dice": "Dice (validation threshold)",
    "dice_bg": "background Dice (validation threshold)",
    "image_dice": "Dice per image (validation threshold)",
    "dice_oracle": "Dice (best threshold)",
    "dice_bg_oracle": "background Dice (best threshold)",
    "maxboxacc": "MaxBoxAcc",
    "maxboxacc_v2": "MaxBoxAccV2",
    "boxacc": "BoxAcc (validation threshold)",
    "boxacc_v2": "BoxAccV2 (validation threshold)",
    "top1_loc": "top-1 localisation (validation threshold)",
    "top5_loc": "top-5 localisation (validation threshold)",
    "top1_loc_oracle": "top-1 localisation (best threshold)",
    "top5_loc_oracle": "top-5 localisation (best threshold)",
}

KINDS = ("pixels", "largest", "all")
"""Kinds of curves: those of PxAP, and of BoxLocalization on the largest contour and on all."""

# Okabe and Ito's palette, told apart with any colour vision; its yellow is too pale for a line.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def title_of(metric: str) -> str:
    """Return the heading of a metric."""
    return TITLES.get(metric, metric.replace("_", " "))


def percent(value: float) -> str:
    """Format a fraction as percent with two decimals."""
    return f"{100 * value:.2f}"


def results_table(columns: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a table with one row per metric and one column per entry, in percent.

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
        cells = [percent(v[key]) if key in v else "" for v in columns.values()]
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
    for path in sorted(root.rglob(RESULTS)):
        job_file = path.parent / JOB
        job = json.loads(job_file.read_text(encoding="utf-8")) if job_file.is_file() else {}
        name = path.parent.relative_to(root).as_posix()
        cells = job.get("cells", {"method": root.resolve().name if name == "." else name})
        rows += [
            {**cells, "checkpoint": row["checkpoint"], **row["metrics"]}
            for row in read_results(path.parent)
        ]
    if not rows:
        raise FileNotFoundError(
            f"no {RESULTS} below {root}: run `wsl-zoo test` or `wsl-zoo run` first"
        )
    return pd.DataFrame(rows)


def summarize(frame: pd.DataFrame, over: Sequence[str] = ("seed", "fold")) -> pd.DataFrame:
    """Return mean, standard deviation (n - 1) and number of runs over seeds and folds.

    One row per combination of the other columns; a column per metric, "mean ± sd" in percent.
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
                spread = f" ± {percent(float(seen.std()))}" if len(seen) > 1 else ""
                row[metric] = percent(float(seen.mean())) + spread
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def to_markdown(frame: pd.DataFrame) -> str:
    """Format a frame as a Markdown table."""
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def write_tables(root: Path) -> tuple[Path, Path]:
    """Write `results.csv` (every run) and `summary.md` (mean ± sd) into a folder of runs."""
    frame = collect(root)
    table = root / "results.csv"
    frame.to_csv(table, index=False, quoting=csv.QUOTE_MINIMAL)
    summary = root / "summary.md"
    summary.write_text(to_markdown(summarize(frame)), encoding="utf-8")
    return table, summary


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
    """Write the tables of a folder of runs and print the summary."""
    table, summary = write_tables(root)
    console = Console()
    console.print("Mean ± standard deviation, %")
    for part in summary_tables(summarize(collect(root)), console.width):
        console.print(part)
    print(f"written: {table}, {summary}")


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


def write_curves(
    curves: Curves,
    folder: Path,
    stem: str,
    *,
    title: str = "",
    thresholds: Thresholds | None = None,
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
        written.append(_write(folder / f"{stem}_{kind}.csv", write))
    return written


def draw_curves(
    curves: Curves, path: Path, *, title: str = "", thresholds: Thresholds | None = None
) -> Path:
    """Draw the curves of one split as PNG: those of pixels in three panels, of boxes in one each.

    Args:
        curves: Kind, of `KINDS`, -> `curves()` of the metric. The legend tells which are undefined
            (NaN).
        path: Of the PNG, written whole or not at all.
        title: Above the panels.
        thresholds: Kind -> map threshold chosen on validation, for boxes one per IoU threshold.
            Above 1 (nothing is predicted) only the legend tells it.

    Raises:
        ValueError: For an unknown kind, no curves, or not one threshold per IoU threshold.
    """
    if not curves or not set(curves) <= set(KINDS):
        raise ValueError(f"curves of {sorted(curves)}: one or more of {KINDS} are needed")
    chosen = {}
    for kind, given in (thresholds or {}).items():
        chosen[kind] = [given] if isinstance(given, float | int) else list(given or ())
    count = sum(3 if kind == "pixels" else 1 for kind in curves)
    figure, axes = _panels(count, title)
    if "pixels" in curves:
        pixels = curves["pixels"]
        _draw_precision(axes.pop(0), pixels)
        _draw_overlap(axes.pop(0), pixels, chosen.get("pixels", []))
        _draw_rates(axes.pop(0), pixels)
    for kind in KINDS[1:]:
        if kind in curves:
            _draw_boxes(axes.pop(0), kind, curves[kind], chosen.get(kind, []))
    return _save(figure, path)


def draw_localization(
    iou_thresholds: Sequence[float], accuracy: Mapping[str, Tensor], path: Path, *, title: str = ""
) -> Path:
    """Draw localisation accuracy at σ as PNG: the best BoxAcc over map thresholds for IoU >= σ.

    Args:
        iou_thresholds: The D values of σ, of a `BoxLocalization`.
        accuracy: Name in the legend -> `(D, n)` of its `curves()`.
        path: Of the PNG, written whole or not at all.
        title: Above the plot.
    """
    figure, (ax,) = _panels(1, title)
    sigma = [100 * iou for iou in iou_thresholds]
    for i, (name, values) in enumerate(accuracy.items()):
        color, width = COLORS[i % len(COLORS)], max(1.2, 4 - 1.4 * i)  # lines often coincide
        _plot(ax, sigma, values.amax(-1), name, color=color, linewidth=width, marker=".")
    _finish(ax, "", "IoU threshold σ, %", "images localised at the best map threshold, %")
    return _save(figure, path)


def _panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure, free of pyplot's state, and its panels in reading order."""
    from matplotlib.figure import Figure

    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(5 * columns, 5 * rows), layout="constrained")
    figure.suptitle(title)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _write(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file whole or not at all; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.partial")
    write(unfinished)
    unfinished.replace(path)
    return path


def _save(figure: Figure, path: Path) -> Path:
    return _write(path, partial(figure.savefig, format="png", dpi=100))


def _finish(ax: Axes, title: str, x: str, y: str) -> None:
    """Label a panel in percent, with the legend below it, where no line runs."""
    ax.set(title=title, xlabel=x, ylabel=y, xlim=(0, 100), ylim=(0, 100))
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4, frameon=False, fontsize=9
    )


def _shown(value: Tensor | float) -> str:
    return "undefined" if math.isnan(value) else f"{percent(float(value))} %"


def _plot(ax: Axes, x: Any, y: Tensor, label: str, **style: Any) -> None:
    """Plot fractions over percent, whole at 0 and 100 too; the legend tells if all are NaN."""
    if y.isnan().all():
        label += ": undefined"
    ax.plot(x, 100 * y.cpu(), label=label, clip_on=False, zorder=3, **style)


def _mark(ax: Axes, threshold: float, label: str, **style: Any) -> None:
    """Mark a map threshold by a vertical line; NaN is none."""
    if not math.isnan(threshold):
        ax.axvline(100 * threshold, label=f"{label} {_shown(threshold)}", linewidth=1, **style)


def _draw_precision(ax: Axes, curves: Mapping[str, Tensor]) -> None:
    """Precision over recall as the steps that PxAP sums, by descending threshold."""
    precision, recall = curves["precision"].cpu().flip(0), curves["tp_rate"].cpu().flip(0)
    gained = recall.diff(prepend=recall.new_zeros(1))
    area = (precision.nan_to_num(0) * gained).sum()  # NaN where nothing is predicted
    x, y = [0, *(100 * recall).tolist()], [math.nan, *(100 * precision).tolist()]
    style: dict[str, Any] = {"drawstyle": "steps-pre", "clip_on": False, "zorder": 3}
    ax.plot(x, y, label=f"PxAP {_shown(area)}", color=COLORS[0], **style)
    prevalence = precision[-1]  # at threshold 0 all pixels are predicted
    label = f"prevalence {_shown(prevalence)}"
    ax.axhline(100 * float(prevalence), label=label, color="0.4", linestyle=":")
    _finish(ax, "Precision and recall of pixels", "recall, %", "precision, %")


def _draw_overlap(ax: Axes, curves: Mapping[str, Tensor], chosen: Sequence[float]) -> None:
    """Dice and mean IoU over the threshold; of equally good thresholds the highest is marked."""
    x, miou = 100 * curves["threshold"].cpu(), curves["miou"].cpu()
    names = {"dice_foreground": "Dice, foreground", "dice_background": "Dice, background"}
    for (name, label), color in zip(names.items(), COLORS, strict=False):
        _plot(ax, x, curves[name], label, color=color)
    best = len(miou) - 1 - int(miou.flip(0).argmax())
    _plot(ax, x, miou, "mean IoU", color=COLORS[2])
    if not curves["tp_rate"].isnan().any():  # without a foreground pixel no threshold is best
        label = f"highest mean IoU {_shown(miou[best])} at threshold"
        _mark(ax, float(curves["threshold"][best]), label, color=COLORS[2])
    for threshold in chosen:
        _mark(ax, threshold, "validation threshold", color="0.2", linestyle="--")
    _finish(ax, "Overlap of pixels", "map threshold, %", "Dice and IoU, %")


def _draw_rates(ax: Axes, curves: Mapping[str, Tensor]) -> None:
    """Rates over the threshold: one colour per region, solid where the pixels are right."""
    lines = {
        "tp_rate": ("true positives of foreground", COLORS[0], "-"),
        "fn_rate": ("false negatives of foreground", COLORS[0], "--"),
        "tn_rate": ("true negatives of background", COLORS[1], "-"),
        "fp_rate": ("false positives of background", COLORS[1], "--"),
    }
    x = 100 * curves["threshold"].cpu()
    for name, (label, color, style) in lines.items():
        _plot(ax, x, curves[name], label, color=color, linestyle=style)
    _finish(ax, "Rates of pixels", "map threshold, %", "share of the region's pixels, %")


def _draw_boxes(ax: Axes, kind: str, curves: Mapping[str, Tensor], chosen: Sequence[float]) -> None:
    """BoxAcc over the map threshold, a line per IoU threshold; of top-1 too if there is but one."""
    x, count = 100 * curves["threshold"].cpu(), len(curves["accuracy"])
    if chosen and len(chosen) != count:
        raise ValueError(f"{kind}: {len(chosen)} thresholds chosen, {count} needed, one per IoU")
    names = [f"IoU {100 * iou:g} %" for iou in curves["iou_threshold"].tolist()]
    lines = [(*line, 1.5) for line in zip(names, curves["accuracy"].cpu(), strict=True)]
    if count == 1 and "accuracy_top1" in curves:
        lines.append((f"{names[0]}, top-1", curves["accuracy_top1"][0].cpu(), 0.8))
    for i, (label, values, width) in enumerate(lines):
        color, best = COLORS[i % count % len(COLORS)], int(values.argmax())
        if not values.isnan().any():
            label += f": highest {_shown(values[best])} at {_shown(curves['threshold'][best])}"
            ax.plot(x[best], 100 * values[best], "o", color=color, clip_on=False, zorder=4)
        _plot(ax, x, values, label, color=color, linewidth=width)
    for i, threshold in enumerate(chosen):
        color = COLORS[i % len(COLORS)]
        _mark(ax, threshold, "validation threshold", color=color, linestyle="--")
    title = {"largest": "Boxes of the largest contour", "all": "Boxes of all contours"}[kind]
    _finish(ax, title, "map threshold, % of the map's maximum", "images localised (BoxAcc), %")
