"""Time the metrics of censored outcomes beside scikit-survival, and draw how they grow.

    python -m experiments.performance.survival [--quick] [--plot survival.png]

To be run from the root of the repository. Risks are standard normal, times exponential in the risk,
a third is censored; both sides get the same rows and their values are compared first. The IPCW AUC
is taken at five horizons (N = 200,000), Harrell's index at N = 100,000, where scikit-survival,
which compares every event with all later samples, is called once; with `--quick` at a tenth of
these numbers. The floor is one sort of the risks. `--plot` draws the seconds of ours over N and a
line of N log N through the largest.

Times: medians of sides that take turns, after a call that warms up.
"""

import argparse
import math
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from sksurv.metrics import concordance_index_censored, cumulative_dynamic_auc
from sksurv.util import Surv
from torch import Tensor

from experiments.performance.timing import CONSOLE, medians
from wsl_zoo.metrics import ConcordanceIndex, TimeDependentAUC
from wsl_zoo.metrics.survival import SurvivalMetric

HORIZONS = (0.2, 0.4, 0.6, 0.8, 1.0)
Rows = tuple[Tensor, Tensor, Tensor]


def made(samples: int) -> Rows:
    """Return risk, time and event of so many samples, float64 and bool."""
    random = np.random.default_rng(samples)
    risk = random.standard_normal(samples)
    event_time = random.exponential(np.exp(-risk))
    censoring = random.exponential(2.0, samples)
    event = torch.tensor(event_time <= censoring)
    return torch.tensor(risk), torch.tensor(np.minimum(event_time, censoring)), event


def value_of(metric: SurvivalMetric, rows: Rows) -> Tensor:
    """Return a metric's value, computed anew."""
    metric.reset()
    metric.update(*rows)
    value: Tensor = metric.compute()
    return value


def auc() -> TimeDependentAUC:
    """Return the metric that equals scikit-survival's."""
    return TimeDependentAUC(HORIZONS, censoring="ipcw", at_horizon="drop")


def sides(rows: Rows) -> dict[str, dict[str, Callable[[], object]]]:
    """Return by metric both sides and the floor."""
    risk, time, event = rows
    outcome = Surv.from_arrays(event.numpy(), time.numpy())
    ours, theirs = auc(), ConcordanceIndex()
    return {
        "AUC(t), IPCW, 5 horizons": {
            "ours": lambda: value_of(ours, rows),
            "scikit-survival": lambda: cumulative_dynamic_auc(
                outcome, outcome, risk.numpy(), HORIZONS
            )[0],
            "sort": risk.sort,
        },
        "concordance index": {
            "ours": lambda: value_of(theirs, rows),
            "scikit-survival": lambda: concordance_index_censored(
                event.numpy(), time.numpy(), risk.numpy()
            )[0],
            "sort": risk.sort,
        },
    }


def compare(samples: dict[str, int], repeats: int) -> Table:
    """Return the table of both metrics."""
    table = Table(
        "metric", "N", "ours, ms", "scikit-survival, ms", "ratio", "sort, ms", "differ by"
    )
    for name, count in samples.items():
        pair = sides(made(count))[name]
        quadratic = name == "concordance index"
        if quadratic:  # its one call is the measurement and the value
            start = perf_counter()
            theirs = pair.pop("scikit-survival")()
            slow = perf_counter() - start
        else:
            theirs = pair["scikit-survival"]()
        ours = pair["ours"]()
        difference = float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())
        times = medians(pair, repeats)
        slow = slow if quadratic else times["scikit-survival"]
        table.add_row(
            name, f"{count:,}", f"{1000 * times['ours']:.1f}", f"{1000 * slow:,.0f}",
            f"{slow / times['ours']:,.0f}x", f"{1000 * times['sort']:.1f}", f"{difference:.0e}",
        )  # fmt: skip
    return table


def draw(path: Path, largest: int) -> None:
    """Draw the seconds of both metrics over N."""
    counts = [int(largest / 2**k) for k in range(9, -1, -1)]
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    ax = figure.subplots()
    for name, metric in (("AUC(t), 5 horizons", auc()), ("concordance index", ConcordanceIndex())):
        times = []
        for count in counts:
            rows = made(count)
            times.append(medians({name: lambda m=metric, r=rows: value_of(m, r)}, 5)[name])
        (line,) = ax.plot(counts, times, "o-", markersize=3, label=name)
        growth = [n * math.log(n) for n in counts]
        scaled = [times[-1] * g / growth[-1] for g in growth]
        ax.plot(counts, scaled, "--", color=line.get_color(), alpha=0.6, label="N log N")
    ax.set(xscale="log", yscale="log", xlabel="samples N", ylabel="seconds")
    ax.legend()
    ax.grid(visible=True, which="major", alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="also draw the growth to this PNG")
    arguments = parser.parse_args()
    share = 10 if arguments.quick else 1
    samples = {"AUC(t), IPCW, 5 horizons": 200_000 // share, "concordance index": 100_000 // share}
    CONSOLE.print(
        f"{os.cpu_count()} CPUs, torch {torch.__version__}, scikit-survival "
        f"{version('scikit-survival')}"
    )
    CONSOLE.print(compare(samples, arguments.repeats))
    if arguments.plot:
        draw(arguments.plot, 1_000_000 // share)
        CONSOLE.print(f"written: {arguments.plot}")


if __name__ == "__main__":
    main()
