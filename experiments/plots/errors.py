"""Draw the classification error of training and validation over epochs, method beside method.

    wsl-zoo run pipelines/synthetic_maxmin
    python -m experiments.plots.errors runs/synthetic_maxmin

One panel per method: mean and standard deviation over its runs, from their `metrics.csv`. The
training error is that of the batches as training saw them. `--split` names the validation split.
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsl_zoo import reports
from wsl_zoo.files import write_whole
from wsl_zoo.plots import COLORS


def errors(folder: Path, split: str) -> pd.DataFrame:
    """Return the errors in percent, a row per run, epoch and kind, below a pipeline's output."""
    rows = []
    for run, job in reports.runs_below(folder, "metrics.csv"):
        metrics = pd.read_csv(run / "metrics.csv")
        for kind, column in (("training", "train/acc"), ("validation", f"{split}/acc")):
            if column not in metrics:
                continue
            found = metrics[["epoch", column]].dropna().drop_duplicates("epoch", keep="last")
            rows += [
                {
                    "method": str(job["cells"]["method"]),
                    "kind": kind,
                    "epoch": int(epoch) + 1,
                    "error": 100 * (1 - accuracy),
                }
                for epoch, accuracy in found.to_numpy()
            ]
    if not rows:
        raise SystemExit(f"{folder}: no metrics.csv below it has train/acc or {split}/acc")
    return pd.DataFrame(rows)


def draw(axes: Axes, method: str, found: pd.DataFrame) -> None:
    """Draw one method's errors: columns `kind`, `epoch` and `error`."""
    for color, (kind, part) in zip(COLORS, found.groupby("kind"), strict=False):
        curve = part.groupby("epoch")["error"].agg(["mean", "std"]).fillna(0.0)
        axes.plot(curve.index, curve["mean"], color=color, label=str(kind))
        low, high = curve["mean"] - curve["std"], curve["mean"] + curve["std"]
        axes.fill_between(curve.index, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set_title(method, fontsize=9)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)


def main() -> None:
    """Read the options and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="+", help="as of the pipeline; default: all")
    parser.add_argument("--split", default="val", help="valcl of GlaS")
    parser.add_argument("--out", type=Path, default=Path("errors.png"))
    options = parser.parse_args()
    found = errors(options.folder, options.split)
    methods = options.methods or list(dict.fromkeys(found["method"]))
    figure = Figure(figsize=(3.2 * len(methods), 3.0), layout="constrained")
    panels = figure.subplots(1, len(methods), squeeze=False, sharey=True)[0]
    for axes, method in zip(panels, methods, strict=True):
        draw(axes, method, found[found["method"] == method])
    panels[0].set_ylabel("classification error, %")
    panels[0].legend(fontsize=8)
    write_whole(options.out, lambda path: figure.savefig(path, format="png", dpi=110))


if __name__ == "__main__":
    main()
