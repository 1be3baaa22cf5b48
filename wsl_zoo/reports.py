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
from wsl_zoo.overviews import write_plots
from wsl_zoo.plots import draw_curves, draw_risk
from wsl_zoo.runs import RESULTS, runs_below
from wsl_zoo.titles import order_of, shown, title_of

if TYPE_CHECKING:  # each is imported where it is needed, so that a listing stays quick
    import pandas as pd
    from torch import Tensor


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
    rows.sort(key=lambda key: (key.partition("/")[0], order_of(key.partition("/")[2])))
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


def summarize(frame: pd.DataFrame, over: Sequence[str] = ("seed", "fold")) -> pd.DataFrame:
    """Return mean, standard deviation (n - 1) and number of runs over seeds and folds.

    One row per combination of the other columns; a column per metric, "mean ± sd" (percent).
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


def spread(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the means of `summarize` with the values of a column side by side, and their mean.

    A cell reads "a / b / c / mean", in the order in which the values of `column` come, as tables of
    several markers are printed; "-" stands for what was not run, and leaves no mean.

    Raises:
        ValueError: There is no such column.
    """
    import pandas as pd

    metrics = [name for name in frame.columns if "/" in name]
    others = [name for name in frame.columns if name not in metrics]
    if column not in others or column in {"method", "checkpoint"}:
        known = [name for name in others if name not in {"method", "checkpoint"}]
        raise ValueError(f"--across {column}: results differ by {', '.join(known) or 'nothing'}")
    order = list(frame[column].dropna().unique())
    keys = [name for name in others if name not in {column, "seed", "fold"}]
    rows = []
    for values, group in frame.groupby(keys, sort=False, dropna=False):
        means = group.groupby(column, sort=False)[metrics].mean().reindex(order)
        row: dict[str, Any] = dict(zip(keys, values, strict=True))
        row[column] = " / ".join([*map(str, order), "mean"])
        for metric in metrics:
            found, name = means[metric], metric.partition("/")[2]
            if found.notna().any():
                cells = ["-" if pd.isna(value) else shown(name, value) for value in found]
                whole = shown(name, float(found.mean())) if found.notna().all() else "-"
                row[metric] = " / ".join([*cells, whole])
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


def print_summary(root: Path, across: str | None = None) -> None:
    """Write tables and plots of a folder of runs and print the summary.

    Args:
        root: The folder.
        across: Column whose values stand side by side, see `spread`; None: a row each.
    """
    frame = collect(root)
    means = summarize(frame) if across is None else spread(frame, across)
    table, summary = write_tables(root, frame, means)
    drawn = write_plots(root, frame)
    console = Console()
    console.print("Mean ± standard deviation, %" if across is None else "Means, %")
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


def write_risk(groups: Mapping[str, Tensor], folder: Path, stem: str, *, title: str = "") -> Path:
    """Write `<stem>.png` of `draw_risk` and `<stem>.csv`, a row per group and horizon; fractions.

    Returns:
        The picture.
    """
    import pandas as pd

    count, horizons = groups["predicted"].shape
    columns = {
        "group": [g + 1 for g in range(count) for _ in range(horizons)],
        "horizon": groups["horizon"].tolist() * count,
        "predicted": groups["predicted"].flatten().tolist(),
        "observed": groups["observed"].flatten().tolist(),
    }
    write_whole(folder / f"{stem}.csv", partial(pd.DataFrame(columns).to_csv, index=False))
    return draw_risk(groups, folder / f"{stem}.png", title)
