"""Draw what it is worth to see n frames together, from the results of two pipelines.

    wsl-zoo run pipelines/synthetic_video
    wsl-zoo run pipelines/synthetic_video_fast
    python -m experiments.plots.frames runs/synthetic_video runs/synthetic_video_fast

One panel per folder: a metric over n for TCAM and CoLo-CAM, mean and standard deviation over seeds,
with CAM and F-CAM, which see one frame, as lines. Methods are named as in those pipelines.
"""

import argparse
import re
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsl_zoo import reports
from wsl_zoo.files import write_whole
from wsl_zoo.plots import COLORS

OF_N = re.compile(r"(.+), n = (\d+)")


def draw(axes: Axes, results: pd.DataFrame, metric: str) -> None:
    """Draw one folder's results: columns `method`, `seed` and the metric, a fraction."""
    found = results.groupby("method", sort=False)[metric].agg(["mean", "std"]) * 100
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for method, (mean, deviation) in zip(found.index, found.to_numpy(), strict=True):
        match = OF_N.fullmatch(str(method))
        if match:
            curves.setdefault(match[1], []).append((int(match[2]), mean, deviation))
    alone = found.loc["F-CAM", "mean"]
    for color, (name, points) in zip(COLORS, curves.items(), strict=False):
        n, mean, deviation = zip(*sorted(points), strict=True)
        axes.errorbar(n, mean, deviation, marker="o", capsize=3, color=color, label=name)
    axes.axhline(alone, color=COLORS[2], linestyle="--", label="F-CAM")
    axes.axhline(found.loc["CAM", "mean"], color=COLORS[3], linestyle=":", label="CAM")
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.set_xlabel("frames seen together, n")
    axes.grid(visible=True, alpha=0.3)


def main() -> None:
    """Read the options and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--metric", nargs="+", default=["test/corloc", "test/pxap"])
    parser.add_argument("--titles", nargs="+", default=["small motion", "large motion"])
    parser.add_argument("--checkpoint", default="best_loc")
    parser.add_argument("--out", type=Path, default=Path("frames.png"))
    options = parser.parse_args()
    columns, rows = len(options.folders), len(options.metric)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row")
    for j, folder in enumerate(options.folders):
        results = reports.collect(folder)
        results = results[results["checkpoint"] == options.checkpoint]
        grid[0, j].set_title(options.titles[j] if j < len(options.titles) else folder.name)
        for i, metric in enumerate(options.metric):
            draw(grid[i, j], results, metric)
            name = reports.title_of(metric.partition("/")[2])
            grid[i, 0].set_ylabel(f"{name}, %")
    grid[0, 0].legend(fontsize=8)
    write_whole(options.out, lambda path: figure.savefig(path, format="png", dpi=110))


if __name__ == "__main__":
    main()
