import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from wsl_zoo import catalogue, reports
from wsl_zoo.metrics import BoxLocalization, MaxBoxAcc, MaxBoxAccV2, PxAP


def write_run(folder, checkpoint="best_cl", cells=None, **metrics):
    row = {"checkpoint": checkpoint, "metrics": {f"test/{k}": v for k, v in metrics.items()}}
    reports.append_result(folder, row)
    if cells is not None:
        (folder / reports.JOB).write_text(json.dumps({"cells": cells}))


def text_of(table, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_of_equal_checkpoints_the_newest_counts(tmp_path):
    write_run(tmp_path / "a", acc=0.25)
    write_run(tmp_path / "a", checkpoint="last", acc=0.5)
    write_run(tmp_path / "a", acc=0.75)
    assert len((tmp_path / "a" / reports.RESULTS).read_text().splitlines()) == 3  # all are kept
    rows = reports.read_results(tmp_path / "a")
    assert [(row["checkpoint"], row["metrics"]) for row in rows] == [
        ("best_cl", {"test/acc": 0.75}),
        ("last", {"test/acc": 0.5}),
    ]
    frame = reports.collect(tmp_path)
    assert frame["test/acc"].tolist() == [0.75, 0.5]
    assert frame["method"].tolist() == ["a", "a"]


def test_mean_and_standard_deviation_by_hand(tmp_path):
    values = [0.2, 0.3, 0.7]
    for seed, value in enumerate(values):
        cells = {"method": "A", "seed": seed}
        write_run(tmp_path / f"A/seed{seed}", cells=cells, acc=value, pxap=0.5)
    write_run(tmp_path / "B/seed0", cells={"method": "B", "seed": 0}, acc=1.0)
    summary = reports.summarize(reports.collect(tmp_path))
    assert summary["method"].tolist() == ["A", "B"]
    assert summary["runs"].tolist() == [3, 1]
    # mean 0.4; squared differences 0.04 + 0.01 + 0.09 = 0.14; over n - 1 = 2: sqrt(0.07) = 0.26458
    assert summary["test/acc"].tolist() == ["40.00 ± 26.46", "100.00"]
    assert summary["test/pxap"].tolist() == ["50.00 ± 0.00", ""]


def test_seeds_and_folds_are_pooled_and_checkpoints_are_not(tmp_path):
    for seed in range(2):
        for fold in range(2):
            cells = {"method": "A", "seed": seed, "fold": fold}
            folder = tmp_path / f"A/seed{seed}/fold{fold}"
            write_run(folder, cells=cells, acc=(seed + fold) / 2)
            write_run(folder, "last", cells=cells, acc=1.0)
    summary = reports.summarize(reports.collect(tmp_path))
    assert summary["checkpoint"].tolist() == ["best_cl", "last"]
    assert summary["runs"].tolist() == [4, 4]
    spread = 100 * np.std([0, 0.5, 0.5, 1], ddof=1)
    assert summary["test/acc"].tolist() == [f"50.00 ± {spread:.2f}", "100.00 ± 0.00"]


def test_an_undefined_metric_does_not_count(tmp_path):
    for seed, value in enumerate([0.2, float("nan"), 0.4]):
        write_run(tmp_path / str(seed), cells={"method": "A", "seed": seed}, dice=value)
    summary = reports.summarize(reports.collect(tmp_path))
    assert summary["test/dice"].tolist() == ["30.00 ± 14.14"]


def test_results_of_the_folder_itself_carry_its_name(tmp_path):
    write_run(tmp_path / "my run", acc=0.5)
    assert reports.collect(tmp_path / "my run")["method"].tolist() == ["my run"]


def test_no_results_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results.jsonl below .*wsl-zoo test"):
        reports.collect(tmp_path)


def test_tables_are_written(tmp_path, capsys):
    write_run(tmp_path / "a, b", acc=0.123456789)
    reports.print_summary(tmp_path)
    frame = pd.read_csv(tmp_path / "results.csv")
    assert frame.to_dict("records") == [
        {"method": "a, b", "checkpoint": "best_cl", "test/acc": 0.123456789}
    ]
    markdown = (tmp_path / "summary.md").read_text(encoding="utf-8").splitlines()
    assert markdown[0] == "| method | checkpoint | runs | test/acc |"
    assert markdown[1] == "|---|---|---|---|"
    assert markdown[2] == "| a, b | best_cl | 1 | 12.35 |"
    out = capsys.readouterr().out
    assert "12.35" in out
    assert str(tmp_path / "summary.md") in out


@pytest.mark.parametrize("width", [60, 80, 200])
def test_summary_fits_the_terminal(width):
    metrics = {f"test/{name}": "12.34 ± 5.67" for name in reports.TITLES}
    frame = pd.DataFrame(
        [
            {"method": m, "checkpoint": c, "runs": 3, **metrics}
            for m in ("CAMClassifier", "PixelCAM")
            for c in ("best_cl", "best_loc", "last")
        ]
    )
    tables = reports.summary_tables(frame, width)
    texts = [text_of(table, width) for table in tables]
    assert all(len(line) <= width for text in texts for line in text.splitlines())
    assert sum(text.count("12.34 ± 5.67") for text in texts) == 6 * len(metrics)  # none is cut
    assert sum(text.count("CAMClassifier") for text in texts) == 3
    assert all("test/dice_bg_oracle" in text for text in texts)
    assert len(tables) == {60: 3, 80: 2, 200: 1}[width]


def test_results_table_orders_metrics_and_prints_percent():
    columns = {
        "best_cl": {"test/pxap": 0.5, "test/acc": 0.25, "test/new_metric": 0.125},
        "last": {"test/acc": 1.0},
    }
    lines = text_of(reports.results_table(columns), 100).splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "test:" in line]
    assert rows == [
        ["test: accuracy", "25.00", "100.00"],
        ["test: PxAP", "50.00", ""],
        ["test: new metric", "12.50", ""],
    ]


@pytest.mark.parametrize("kind", catalogue.KINDS)
def test_listing_shows_every_name_in_full(kind, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    entries = catalogue.entries(kind)
    assert entries
    reports.print_entries(entries, kind)
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "…" not in out
    for entry in entries:
        assert f" {entry.name} " in out
    words = out.replace("│", " ").split()
    assert set(entries[0].summary.split()) <= set(words)


@pytest.fixture
def figures(monkeypatch):
    """The figures that were written, in order."""
    written, savefig = [], Figure.savefig

    def record(figure, *args, **kwargs):
        written.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return written


def blobs():
    """Maps (24, 32, 32) that miss their disc a little, masks, boxes, logits and labels."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    grid = torch.stack([x, y])
    center = torch.randint(10, 22, (24, 2, 1, 1), generator=generator)
    miss = torch.randint(-3, 4, center.shape, generator=generator)
    radius = torch.randint(4, 9, (24, 1, 1, 1), generator=generator)
    mask = ((grid - center) ** 2).sum(1) <= radius[:, 0] ** 2
    scores = torch.exp(-(((grid - center - miss) / radius) ** 2).sum(1))
    scores += 0.3 * torch.rand(scores.shape, generator=generator)
    boxes = torch.cat([center - radius, center + radius], 1).flatten(1).double()
    logits = torch.randn(24, 4, generator=generator)
    label = torch.randint(4, (24,), generator=generator)
    return scores / scores.amax((1, 2), keepdim=True), mask.long(), boxes, logits, label


@pytest.fixture(scope="module")
def metrics():
    scores, mask, boxes, logits, label = blobs()
    found = {"pixels": PxAP(), "largest": MaxBoxAcc(250, topk=(1,)), "all": MaxBoxAccV2(250)}
    found["pixels"].update(scores, mask)
    found["largest"].update(scores, boxes[:, None], logits, label)
    found["all"].update(scores, boxes[:, None])
    return found


@pytest.fixture
def curves(metrics):
    return {kind: metric.curves() for kind, metric in metrics.items()}


def pixel_curves(scores, mask, num_thresholds=1000):
    metric = PxAP(num_thresholds)
    metric.update(torch.tensor([[scores]]), torch.tensor([[mask]]))
    return metric, metric.curves()


def panel(figure, title):
    return next(ax for ax in figure.axes if ax.get_title() == title)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def line(ax, label):
    return next(line for line in ax.lines if line.get_label().startswith(label))


def vertical(ax):
    """Style and place, in percent, of each vertical line."""
    across = [line for line in ax.lines if line.get_transform() == ax.get_xaxis_transform()]
    return [(line.get_linestyle(), pytest.approx(line.get_xdata()[0])) for line in across]


@pytest.mark.parametrize("num_thresholds", [1, 3, 1000])
def test_the_area_of_the_drawn_steps_is_pxap(num_thresholds, tmp_path, figures):
    generator = np.random.default_rng(0)
    mask = generator.integers(0, 2, 500)
    scores = (generator.random(500) + 0.5 * mask).clip(max=1.4) / 1.4
    metric, curves = pixel_curves(scores.tolist(), mask.tolist(), num_thresholds)
    reports.draw_curves({"pixels": curves}, tmp_path / "a.png")
    ax = panel(figures[0], "Precision and recall of pixels")
    drawn = line(ax, "PxAP")
    assert drawn.get_drawstyle() == "steps-pre"  # a step has the height of its right end
    recall, precision = (np.asarray(values) / 100 for values in drawn.get_data())
    assert recall[0] == 0
    assert recall[-1] == 1
    area = np.nansum(precision[1:] * np.diff(recall))
    assert area == pytest.approx(metric.compute().item(), abs=1e-12)
    shown = [reports.percent(value) for value in (area, mask.mean())]
    assert legend(ax) == [f"PxAP {shown[0]} %", f"prevalence {shown[1]} %"]
    assert line(ax, "prevalence").get_linestyle() == ":"
    assert line(ax, "prevalence").get_ydata()[0] == pytest.approx(100 * mask.mean())


def test_the_best_and_the_validation_threshold_are_marked(metrics, curves, tmp_path, figures):
    reports.draw_curves(curves, tmp_path / "a.png", thresholds={"pixels": 0.25})
    ax = panel(figures[0], "Overlap of pixels")
    best = metrics["pixels"].best_threshold()
    assert vertical(ax) == [("-", 100 * best), ("--", 25)]
    highest = reports.percent(curves["pixels"]["miou"].max().item())
    assert legend(ax)[-2:] == [
        f"highest mean IoU {highest} % at threshold {reports.percent(best)} %",
        "validation threshold 25.00 %",
    ]
    lines = {
        "Dice, foreground": "dice_foreground",
        "Dice, background": "dice_background",
        "mean IoU": "miou",
    }
    for label, name in lines.items():
        x, y = line(ax, label).get_data()
        np.testing.assert_array_equal(x, 100 * curves["pixels"]["threshold"])
        np.testing.assert_array_equal(y, 100 * curves["pixels"][name])


def test_of_equal_thresholds_the_metrics_choice_is_marked(tmp_path, figures):
    metric, curves = pixel_curves([0.9, 0.5, 0.1], [1, 1, 0], 10)
    reports.draw_curves({"pixels": curves}, tmp_path / "a.png")
    assert metric.best_threshold() == 0.5  # 0.2, 0.3 and 0.4 are as good
    assert vertical(panel(figures[0], "Overlap of pixels")) == [("-", 50)]


def test_rates_are_drawn(curves, tmp_path, figures):
    reports.draw_curves(curves, tmp_path / "a.png")
    ax = panel(figures[0], "Rates of pixels")
    names = {"true pos": "tp_rate", "false neg": "fn_rate", "true neg": "tn_rate"}
    for label, name in (names | {"false pos": "fp_rate"}).items():
        np.testing.assert_array_equal(line(ax, label).get_ydata(), 100 * curves["pixels"][name])


def test_the_maxima_of_boxes_are_marked(metrics, curves, tmp_path, figures):
    thresholds = {"largest": 0.5, "all": (0.25, math.nan, 0.75)}
    reports.draw_curves(curves, tmp_path / "a.png", thresholds=thresholds)
    largest = panel(figures[0], "Boxes of the largest contour")
    dots = [line for line in largest.lines if line.get_marker() == "o"]
    top1 = metrics["largest"].topk_accuracy()[1]
    values = [metrics["largest"].compute().item(), top1.item()]
    assert 0 < values[1] < values[0] < 1
    assert [dot.get_ydata()[0] for dot in dots] == pytest.approx([100 * v for v in values])
    assert dots[0].get_xdata()[0] == pytest.approx(100 * metrics["largest"].best_threshold().item())
    shown = [
        f"highest {reports.percent(v)} % at {reports.percent(dot.get_xdata()[0] / 100)} %"
        for v, dot in zip(values, dots, strict=True)
    ]
    assert legend(largest) == [
        f"IoU 50 %: {shown[0]}",
        f"IoU 50 %, top-1: {shown[1]}",
        "validation threshold 50.00 %",
    ]
    known, with_class = line(largest, "IoU 50 %:"), line(largest, "IoU 50 %, top-1")
    assert with_class.get_linewidth() < known.get_linewidth()
    assert with_class.get_color() == known.get_color()

    ax = panel(figures[0], "Boxes of all contours")
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    maxima = [dot.get_ydata()[0] / 100 for dot in dots]
    assert np.mean(maxima) == pytest.approx(metrics["all"].compute().item())
    best = metrics["all"].best_threshold()
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx((100 * best).tolist())
    assert vertical(ax) == [("--", 25), ("--", 75)]  # NaN is none
    colors = [line(ax, f"IoU {iou} %").get_color() for iou in (30, 50, 70)]
    assert len(set(colors)) == 3
    assert [dot.get_color() for dot in dots] == colors
    dashed = [line.get_color() for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed == [colors[0], colors[2]]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_only_what_exists_has_panels_and_none_overlap(count, curves, tmp_path, figures):
    panels = {"pixels": 3, "largest": 1, "all": 1}
    thresholds = {"pixels": 0.5, "largest": None, "all": (0.25, 0.5, 0.75)}
    for kinds in itertools.combinations(panels, count):
        some = {kind: curves[kind] for kind in kinds}
        reports.draw_curves(some, tmp_path / "a.png", title="a title", thresholds=thresholds)
        figure = figures.pop()
        assert len(figure.axes) == sum(panels[kind] for kind in kinds)
        assert figure.get_suptitle() == "a title"
        parts = [ax.get_tightbbox() for ax in figure.axes]  # with titles, labels and legend
        assert not any(a.overlaps(b) for a, b in itertools.combinations(parts, 2))
        assert all(
            figure.bbox.x0 <= part.x0
            and part.x1 <= figure.bbox.x1
            and figure.bbox.y0 <= part.y0
            and part.y1 <= figure.bbox.y1
            for part in parts
        )
        for ax in figure.axes:
            assert ax.get_legend().get_window_extent().y1 <= ax.xaxis.get_tightbbox().y0
            assert (ax.get_xlim(), ax.get_ylim()) == ((0, 100), (0, 100))
            assert ax.get_xlabel().count("%") == ax.get_ylabel().count("%") == 1


def test_what_cannot_be_drawn_is_refused(curves, tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match=r"curves of \['boxes'\]: one or more of \('pixels',"):
        reports.draw_curves({"boxes": curves["all"]}, path)
    with pytest.raises(ValueError, match=r"curves of \[\]"):
        reports.draw_curves({}, path)
    with pytest.raises(ValueError, match="all: 1 thresholds chosen, 3 needed"):
        reports.draw_curves(curves, path, thresholds={"all": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_without_foreground_the_legend_says_so(tmp_path, figures):
    _, pixels = pixel_curves([0.9, 0.5, 0.1], [0, 0, 0])
    curves = {"pixels": pixels, "largest": MaxBoxAcc().curves()}  # and no image with a box
    reports.draw_curves(curves, tmp_path / "a.png", thresholds={"pixels": 0.5, "largest": 0.5})
    texts = [legend(ax) for ax in figures[0].axes]
    assert texts[0] == ["PxAP undefined", "prevalence 0.00 %"]
    assert vertical(figures[0].axes[1]) == [("--", 50)]  # no threshold is best
    assert [text.endswith(": undefined") for text in texts[2]] == [True, True, False, False]
    assert texts[3] == ["IoU 50 %: undefined", "validation threshold 50.00 %"]
    assert not any(line.get_marker() == "o" for line in figures[0].axes[3].lines)


def test_foreground_alone_has_no_background_rates(tmp_path, figures):
    _, pixels = pixel_curves([0.9, 0.5, 0.1], [1, 1, 1])
    reports.draw_curves({"pixels": pixels}, tmp_path / "a.png")
    assert legend(figures[0].axes[0]) == ["PxAP 100.00 %", "prevalence 100.00 %"]
    assert legend(figures[0].axes[2])[2:] == [
        "true negatives of background: undefined",
        "false positives of background: undefined",
    ]


def test_curves_without_any_pixel_are_drawn(tmp_path, figures):
    reports.draw_curves({"pixels": PxAP().curves()}, tmp_path / "a.png")
    assert legend(figures[0].axes[0]) == ["PxAP undefined", "prevalence undefined"]


def test_curves_are_written_in_full(curves, tmp_path):
    folder = tmp_path / "new" / "folder"
    written = reports.write_curves(curves, folder, "test.best")
    names = ["test.best.png", "test.best_pixels.csv", "test.best_largest.csv", "test.best_all.csv"]
    assert written == [folder / name for name in names]
    assert sorted(folder.iterdir()) == sorted(written)  # nothing unfinished is left
    with Image.open(written[0]) as picture:
        assert picture.format == "PNG"
        assert picture.size == (1500, 1000)
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 100
    pixels, largest, every = (np.genfromtxt(p, delimiter=",", names=True) for p in written[1:])
    assert pixels.dtype.names == tuple(curves["pixels"])
    for name, values in curves["pixels"].items():
        np.testing.assert_array_equal(pixels[name], values)
    assert largest.dtype.names == ("threshold", "accuracy_iou50", "accuracy_top1_iou50")
    top1 = curves["largest"]["accuracy_top1"][0]
    np.testing.assert_array_equal(largest["accuracy_top1_iou50"], top1)
    names = [f"accuracy_iou{iou}" for iou in (30, 50, 70)]
    assert every.dtype.names == ("threshold", *names)
    np.testing.assert_array_equal([every[name] for name in names], curves["all"]["accuracy"])


def test_no_curves_are_no_files(tmp_path):
    assert reports.write_curves({}, tmp_path / "a", "test") == []
    assert not (tmp_path / "a").exists()


def test_a_plot_that_fails_leaves_the_old_one(curves, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(figure, target, **kwargs):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        reports.draw_curves(curves, path)
    assert path.read_bytes() == b"old"


def test_plots_load_no_pyplot_and_tables_no_matplotlib(tmp_path):
    program = """
import sys
from pathlib import Path
from wsl_zoo import reports
assert sys.modules.keys().isdisjoint({"matplotlib", "pandas", "torch"}), "at import"
import torch
ious = torch.tensor([0.3, 0.5, 0.7])
curves = {"threshold": torch.arange(4) / 4, "iou_threshold": ious, "accuracy": torch.rand(3, 4)}
reports.write_curves({"all": curves}, Path(sys.argv[1]), "a")
reports.draw_localization(ious, {"a": curves["accuracy"]}, Path(sys.argv[1]) / "b.png")
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules, "pyplot"
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a_all.csv", "b.png"}


def test_localization_over_iou_thresholds(tmp_path, figures):
    scores, _, boxes, logits, label = blobs()
    ious = (0.1, 0.3, 0.5, 0.7, 0.9)
    metric = BoxLocalization(ious, num_thresholds=50, topk=(1,))
    metric.update(scores, boxes[:, None], logits, label)
    found = metric.curves()
    accuracy = {
        "GT-known": found["accuracy"],
        "top-1": found["accuracy_top1"],
        "empty": BoxLocalization(ious).curves()["accuracy"],
    }
    path = reports.draw_localization(ious, accuracy, tmp_path / "new" / "a.png", title="test")
    assert path.is_file()
    (ax,) = figures[0].axes
    assert legend(ax) == ["GT-known", "top-1", "empty: undefined"]
    for name, best in (("GT-known", metric.compute()), ("top-1", metric.topk_accuracy()[1])):
        x, y = line(ax, name).get_data()
        assert list(x) == pytest.approx([10, 30, 50, 70, 90])
        assert list(y) == pytest.approx((100 * best).tolist())
        assert y[0] > y[-1]
