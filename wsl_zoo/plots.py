"""Plots of results: curves over thresholds, and what a choice of checkpoint or threshold is worth.

matplotlib is imported where it is needed, without pyplot's state, so that a listing stays quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsl_zoo.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    Curves = Mapping[str, Mapping[str, Tensor]]
    Thresholds = Mapping[str, float | Sequence[float] | None]

KINDS = ("pixels", "largest", "all")
"""Kinds of curves: those of PxAP, and of BoxLocalization on the largest contour and on all."""

# Okabe and Ito's palette, told apart with any colour vision; its yellow is too pale for a line.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")


def percent(value: float) -> str:
    """Format a fraction as percent with two decimals."""
    return f"{100 * value:.2f}"


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


def draw_sensitivity(
    lines: Mapping[str, tuple[Any, Any]], path: Path, *, title: str = "", y: str = "Dice, %"
) -> Path:
    """Draw how a value depends on the map threshold as PNG, one line per method.

    Args:
        lines: Method -> (thresholds, values), fractions.
        path: Of the PNG, written whole or not at all.
        title: Above the plot.
        y: What the values are.
    """
    figure, (ax,) = _panels(1, title)
    for i, (name, (thresholds, values)) in enumerate(lines.items()):
        color, style = COLORS[i % len(COLORS)], STYLES[i // len(COLORS) % len(STYLES)]
        ax.plot(100 * thresholds, 100 * values, label=name, color=color, linestyle=style)
    _finish(ax, "", "map threshold, %", y, columns=3)
    return _save(figure, path)


def draw_selection(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    path: Path,
    *,
    title: str = "",
    x: str = "PxAP, %",
    baseline: tuple[str, float] | None = None,
) -> Path:
    """Draw what each choice of checkpoint gives as PNG: mean and deviation, a row per method.

    Args:
        values: Method -> checkpoint -> fractions of its runs.
        path: Of the PNG, written whole or not at all.
        title: Above the plot.
        x: What the values are.
        baseline: Name and value of a vertical line.
    """
    figure, (ax,) = _panels(1, title)
    names = list(values)
    checkpoints = list(dict.fromkeys(name for row in values.values() for name in row))
    for i, checkpoint in enumerate(checkpoints):
        rows = [(k, values[name].get(checkpoint, ())) for k, name in enumerate(names)]
        rows = [(k, runs) for k, runs in rows if len(runs)]
        mean = [100 * sum(runs) / len(runs) for _, runs in rows]
        spread = [100 * _deviation(runs) for _, runs in rows]
        height = [k + 0.3 * (i - (len(checkpoints) - 1) / 2) for k, _ in rows]
        ax.errorbar(
            mean, height, xerr=spread, fmt="o", capsize=2, color=COLORS[i], label=checkpoint
        )
    if baseline is not None:
        label = f"{baseline[0]} {percent(baseline[1])} %"
        ax.axvline(100 * baseline[1], color="0.4", linestyle=":", label=label)
    figure.set_size_inches(6, 1.8 + 0.4 * len(names))
    _finish(ax, "", x, "", columns=3)
    ax.set(xlim=(None, None), ylim=(len(names) - 0.5, -0.5))
    ax.set_yticks(range(len(names)), names)
    return _save(figure, path)


def draw_learning(
    lines: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]],
    path: Path,
    *,
    levels: Mapping[str, Sequence[float]] | None = None,
    title: str = "",
    y: str = "Dice per image, %",
) -> Path:
    """Draw learning curves as PNG: mean and standard deviation of the runs of each method.

    Args:
        lines: Method -> numbers of annotated images, and per run the value at each.
        path: Of the PNG, written whole or not at all.
        levels: Method without rounds -> values of its runs, a horizontal line at their mean.
        title: Above the plot.
        y: What the values are, fractions.
    """
    figure, (ax,) = _panels(1, title)
    names = [*lines, *(levels or {})]
    color = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
    for name, (images, runs) in lines.items():
        _draw_runs(ax, images, runs, label=name, marker="o", color=color[name])
    for name, values in (levels or {}).items():
        level = 100 * sum(values) / len(values)
        ax.axhline(level, linestyle="--", label=f"{name} ({level:.1f})", color=color[name])
    _finish(ax, "", "images annotated by the oracle", y, columns=2)
    ax.autoscale()
    return _save(figure, path)


def draw_bias(
    bias: Mapping[str, Sequence[Sequence[float]]],
    shares: Mapping[str, Sequence[Sequence[float]]],
    path: Path,
    title: str = "",
) -> Path:
    """Draw how unevenly classes are predicted over epochs as PNG: mean and deviation of the runs.

    Args:
        bias: Method -> per run, before the first epoch and after each, KL to uniform by ln K.
        shares: The same of the share of the class that is favoured at first; empty: unknown, no
            panel.
        path: Of the PNG, written whole or not at all.
        title: Above the plot.
    """
    panels = [(bias, "KL to uniform, % of ln K")]
    if shares:
        panels.insert(0, (shares, "images predicted as the class favoured at first, %"))
    figure, axes = _panels(len(panels), title)
    for ax, (lines, y) in zip(axes, panels, strict=True):
        for i, (name, runs) in enumerate(lines.items()):
            shown = min(map(len, runs))
            color = COLORS[i % len(COLORS)]
            style = {"linestyle": "-"} if shown > 1 else {"marker": "o"}
            cut = [run[:shown] for run in runs]
            _draw_runs(ax, range(shown), cut, label=name, color=color, **style)
        _finish(ax, "", "epoch", y, columns=2)
        ax.autoscale()
    return _save(figure, path)


def draw_auc(
    values: Mapping[str, Mapping[float, Sequence[float]]], path: Path, title: str = ""
) -> Path:
    """Draw the AUC of each horizon by method as PNG: the mean of the runs.

    Of up to six methods with bands of the runs' deviation.

    Args:
        values: Method -> horizon -> the AUC of every run, a fraction.
        path: Of the PNG, written whole or not at all.
        title: Above the plot.
    """
    figure, (ax,) = _panels(1, title)
    for i, (name, of_method) in enumerate(values.items()):
        style = {"linestyle": STYLES[i // len(COLORS) % len(STYLES)], "marker": "o"}
        runs: list[Sequence[float]] = list(zip(*of_method.values(), strict=True))
        if len(values) > 6:  # bands would hide one another
            runs = [[sum(each) / len(each) for each in of_method.values()]]
        _draw_runs(ax, list(of_method), runs, label=name, color=COLORS[i % len(COLORS)], **style)
    _finish(ax, "", "horizon", "AUC, %", columns=2)
    ax.autoscale()
    ax.set_xticks(sorted({t for of_method in values.values() for t in of_method}))
    return _save(figure, path)


def draw_risk(groups: Mapping[str, Tensor], path: Path, title: str = "") -> Path:
    """Draw predicted and observed risk over the horizons as PNG, by groups of predicted risk.

    Args:
        groups: "horizon" (Y,), "predicted" (G, Y) and "observed" (G, Y), fractions, from the group
            of the lowest risk on.
        path: Of the PNG, written whole or not at all.
        title: Above the plot.
    """
    figure, (ax,) = _panels(1, title)
    horizons, count = groups["horizon"].tolist(), len(groups["predicted"])
    for g in reversed(range(count)):
        color = COLORS[g % len(COLORS)]
        place = {0: ", lowest", count - 1: ", highest"}.get(g, "")
        label = f"group {g + 1} of {count}{place}"
        ax.plot(horizons, (100 * groups["predicted"][g]).tolist(), color=color, label=label)
        ax.plot(horizons, (100 * groups["observed"][g]).tolist(), "o", color=color)
    ax.plot([], [], "-", color="0.4", label="predicted, mean")
    ax.plot([], [], "o", color="0.4", label="observed (1 - Kaplan-Meier)")
    _finish(ax, "", "horizon", "risk, %", columns=2)
    ax.autoscale()
    ax.set_ylim(bottom=0)
    ax.set_xticks(horizons)
    return _save(figure, path)


def _draw_runs(
    ax: Axes, x: Sequence[float], runs: Sequence[Sequence[float]], *, color: str, **style: Any
) -> None:
    """Draw the mean of several runs, in percent, in a band of their deviation within 0 to 100."""
    mean = [100 * sum(values) / len(values) for values in zip(*runs, strict=True)]
    spread = [100 * _deviation(values) for values in zip(*runs, strict=True)]
    low = [max(0.0, m - s) for m, s in zip(mean, spread, strict=True)]
    high = [min(100.0, m + s) for m, s in zip(mean, spread, strict=True)]
    ax.plot(x, mean, markersize=4, color=color, **style)
    ax.fill_between(x, low, high, alpha=0.15, linewidth=0, color=color)


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation (n - 1); 0 of one value."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))


def _panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure, free of pyplot's state, and its panels in reading order."""
    from matplotlib.figure import Figure

    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(5 * columns, 5 * rows), layout="constrained")
    figure.suptitle(title)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _save(figure: Figure, path: Path) -> Path:
    return write_whole(path, partial(figure.savefig, format="png", dpi=100))


def _finish(ax: Axes, title: str, x: str, y: str, columns: int = 1) -> None:
    """Label a panel in percent, with the legend below it, where no line runs."""
    ax.set(title=title, xlabel=x, ylabel=y, xlim=(0, 100), ylim=(0, 100))
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=4,
        frameon=False,
        fontsize=9,
        ncols=columns,
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
