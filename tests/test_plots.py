import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from wsl_zoo import plots, reports
from wsl_zoo.metrics import BoxLocalization, MaxBoxAcc, MaxBoxAccV2, PxAP
from wsl_zoo.runs import JOB


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
    plots.draw_curves({"pixels": curves}, tmp_path / "a.png")
    ax = panel(figures[0], "Precision and recall of pixels")
    drawn = line(ax, "PxAP")
    assert drawn.get_drawstyle() == "steps-pre"  # a step has the height of its right end
    recall, precision = (np.asarray(values) / 100 for values in drawn.get_data())
    assert recall[0] == 0
    assert recall[-1] == 1
    area = np.nansum(precision[1:] * np.diff(recall))
    assert area == pytest.approx(metric.compute().item(), abs=1e-12)
    shown = [plots.percent(value) for value in (area, mask.mean())]
    assert legend(ax) == [f"PxAP {shown[0]} %", f"prevalence {shown[1]} %"]
    assert line(ax, "prevalence").get_linestyle() == ":"
    assert line(ax, "prevalence").get_ydata()[0] == pytest.approx(100 * mask.mean())


def test_the_best_and_the_validation_threshold_are_marked(metrics, curves, tmp_path, figures):
    plots.draw_curves(curves, tmp_path / "a.png", thresholds={"pixels": 0.25})
    ax = panel(figures[0], "Overlap of pixels")
    best = metrics["pixels"].best_threshold()
    assert vertical(ax) == [("-", 100 * best), ("--", 25)]
    highest = plots.percent(curves["pixels"]["miou"].max().item())
    assert legend(ax)[-2:] == [
        f"highest mean IoU {highest} % at threshold {plots.percent(best)} %",
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
    plots.draw_curves({"pixels": curves}, tmp_path / "a.png")
    assert metric.best_threshold() == 0.5  # 0.2, 0.3 and 0.4 are as good
    assert vertical(panel(figures[0], "Overlap of pixels")) == [("-", 50)]


def test_rates_are_drawn(curves, tmp_path, figures):
    plots.draw_curves(curves, tmp_path / "a.png")
    ax = panel(figures[0], "Rates of pixels")
    names = {"true pos": "tp_rate", "false neg": "fn_rate", "true neg": "tn_rate"}
    for label, name in (names | {"false pos": "fp_rate"}).items():
        np.testing.assert_array_equal(line(ax, label).get_ydata(), 100 * curves["pixels"][name])


def test_the_maxima_of_boxes_are_marked(metrics, curves, tmp_path, figures):
    thresholds = {"largest": 0.5, "all": (0.25, math.nan, 0.75)}
    plots.draw_curves(curves, tmp_path / "a.png", thresholds=thresholds)
    largest = panel(figures[0], "Boxes of the largest contour")
    dots = [line for line in largest.lines if line.get_marker() == "o"]
    top1 = metrics["largest"].topk_accuracy()[1]
    values = [metrics["largest"].compute().item(), top1.item()]
    assert 0 < values[1] < values[0] < 1
    assert [dot.get_ydata()[0] for dot in dots] == pytest.approx([100 * v for v in values])
    assert dots[0].get_xdata()[0] == pytest.approx(100 * metrics["largest"].best_threshold().item())
    shown = [
        f"highest {plots.percent(v)} % at {plots.percent(dot.get_xdata()[0] / 100)} %"
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
        plots.draw_curves(some, tmp_path / "a.png", title="a title", thresholds=thresholds)
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
        plots.draw_curves({"boxes": curves["all"]}, path)
    with pytest.raises(ValueError, match=r"curves of \[\]"):
        plots.draw_curves({}, path)
    with pytest.raises(ValueError, match="all: 1 thresholds chosen, 3 needed"):
        plots.draw_curves(curves, path, thresholds={"all": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_without_foreground_the_legend_says_so(tmp_path, figures):
    _, pixels = pixel_curves([0.9, 0.5, 0.1], [0, 0, 0])
    curves = {"pixels": pixels, "largest": MaxBoxAcc().curves()}  # and no image with a box
    plots.draw_curves(curves, tmp_path / "a.png", thresholds={"pixels": 0.5, "largest": 0.5})
    texts = [legend(ax) for ax in figures[0].axes]
    assert texts[0] == ["PxAP undefined", "prevalence 0.00 %"]
    assert vertical(figures[0].axes[1]) == [("--", 50)]  # no threshold is best
    assert [text.endswith(": undefined") for text in texts[2]] == [True, True, False, False]
    assert texts[3] == ["IoU 50 %: undefined", "validation threshold 50.00 %"]
    assert not any(line.get_marker() == "o" for line in figures[0].axes[3].lines)


def test_foreground_alone_has_no_background_rates(tmp_path, figures):
    _, pixels = pixel_curves([0.9, 0.5, 0.1], [1, 1, 1])
    plots.draw_curves({"pixels": pixels}, tmp_path / "a.png")
    assert legend(figures[0].axes[0]) == ["PxAP 100.00 %", "prevalence 100.00 %"]
    assert legend(figures[0].axes[2])[2:] == [
        "true negatives of background: undefined",
        "false positives of background: undefined",
    ]


def test_curves_without_any_pixel_are_drawn(tmp_path, figures):
    plots.draw_curves({"pixels": PxAP().curves()}, tmp_path / "a.png")
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
        plots.draw_curves(curves, path)
    assert path.read_bytes() == b"old"


def test_plots_load_no_pyplot_and_tables_no_matplotlib(tmp_path):
    program = """
import sys
from pathlib import Path
from wsl_zoo import plots, reports
assert sys.modules.keys().isdisjoint({"matplotlib", "pandas", "torch"}), "at import"
import torch
ious = torch.tensor([0.3, 0.5, 0.7])
curves = {"threshold": torch.arange(4) / 4, "iou_threshold": ious, "accuracy": torch.rand(3, 4)}
reports.write_curves({"all": curves}, Path(sys.argv[1]), "a")
plots.draw_localization(ious, {"a": curves["accuracy"]}, Path(sys.argv[1]) / "b.png")
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
    path = plots.draw_localization(ious, accuracy, tmp_path / "new" / "a.png", title="test")
    assert path.is_file()
    (ax,) = figures[0].axes
    assert legend(ax) == ["GT-known", "top-1", "empty: undefined"]
    for name, best in (("GT-known", metric.compute()), ("top-1", metric.topk_accuracy()[1])):
        x, y = line(ax, name).get_data()
        assert list(x) == pytest.approx([10, 30, 50, 70, 90])
        assert list(y) == pytest.approx((100 * best).tolist())
        assert y[0] > y[-1]


def test_selection_shows_mean_and_deviation_of_each_checkpoint(tmp_path, figures):
    values = {
        "CAM": {"best_cl": [0.2, 0.3, 0.7], "best_loc": [0.5]},
        "GAP": {"best_loc": [0.25, 0.75]},
    }
    path = tmp_path / "new" / "a.png"
    plots.draw_selection(values, path, baseline=("constant map", 0.4))
    assert path.is_file()
    (ax,) = figures[0].axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["CAM", "GAP"]
    assert legend(ax) == ["constant map 40.00 %", "best_cl", "best_loc"]
    drawn = {bar.get_label(): bar for bar in ax.containers}
    points = {name: bar[0].get_xdata().tolist() for name, bar in drawn.items()}
    assert points == {"best_cl": [pytest.approx(40)], "best_loc": pytest.approx([50, 50])}
    (low, high), _ = (segment[:, 0] for segment in drawn["best_loc"][2][0].get_segments())
    assert low == high == 50  # one run has no deviation
    (left, right) = drawn["best_cl"][2][0].get_segments()[0][:, 0]
    assert (right - left) / 2 == pytest.approx(26.4575, abs=1e-4)


def test_sensitivity_has_a_line_per_method(tmp_path, figures):
    threshold = np.linspace(0, 1, 5)
    names = [f"method {i}" for i in range(9)]
    lines = {name: (threshold, threshold**i) for i, name in enumerate(names)}
    plots.draw_sensitivity(lines, tmp_path / "a.png", y="Dice")
    (ax,) = figures[0].axes
    assert legend(ax) == names
    looks = {(drawn.get_color(), drawn.get_linestyle()) for drawn in ax.lines}
    assert len(looks) == 9
    np.testing.assert_allclose(ax.lines[2].get_ydata(), 100 * threshold**2)


@pytest.mark.parametrize("kinds", [("pixels", "all"), ("all",)])
def test_a_folder_of_runs_is_drawn(kinds, curves, tmp_path, figures):
    for method in ("CAM", "GAP"):
        for seed in (0, 1):
            folder = tmp_path / method / f"seed{seed}"
            for checkpoint in ("best_cl", "best_loc"):
                metrics = {"test/maxboxacc_v2": 0.5 + 0.1 * seed}
                if "pixels" in kinds:
                    metrics |= {"test/pxap": 0.4 + 0.1 * seed, "test/prevalence": 0.25}
                reports.append_result(folder, {"checkpoint": checkpoint, "metrics": metrics})
                some = {kind: curves[kind] for kind in kinds}
                reports.write_curves(some, folder / "curves", f"test_{checkpoint}")
            job = {"cells": {"method": method, "seed": seed}}
            (folder / JOB).write_text(json.dumps(job))
    figures.clear()
    written = reports.write_plots(tmp_path, reports.collect(tmp_path))
    assert [path.name for path in written] == ["selection_test.png", "sensitivity_test.png"]
    selection, sensitivity = (figure.axes[0] for figure in figures)
    center = 45 if "pixels" in kinds else 55
    assert selection.containers[0][0].get_xdata() == pytest.approx([center, center])
    assert selection.get_xlabel().startswith("PxAP" if "pixels" in kinds else "MaxBoxAccV2")
    assert legend(sensitivity) == ["CAM", "GAP"]
    expected = curves["pixels"]["dice_foreground"] if "pixels" in kinds else None
    expected = curves["all"]["accuracy"][1] if expected is None else expected
    np.testing.assert_allclose(sensitivity.lines[0].get_ydata(), 100 * expected)
