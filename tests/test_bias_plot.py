"""How unevenly classes are predicted over epochs, drawn from the logs of runs."""

import json

import numpy as np
import pandas as pd

from wsl_zoo import plots, reports
from wsl_zoo.runs import JOB


def lines_of(ax):
    return {line.get_label(): line.get_ydata() for line in ax.lines}


def test_mean_and_deviation_of_the_runs_are_drawn(tmp_path, figures):
    bias = {"SHOT": [[0.5, 0.2, 0.1], [0.3, 0.2, 0.3]], "SFDA-DE": [[0.4, 0.4, 0.4]]}
    shares = {"SHOT": [[0.9, 0.7, 0.6], [0.7, 0.7, 0.4]], "SFDA-DE": [[0.8, 0.8, 0.8]]}
    path = plots.draw_bias(bias, shares, tmp_path / "bias.png", "val")
    assert path.is_file()
    (figure,) = figures
    assert figure.get_suptitle() == "val"
    share, kl = figure.axes
    assert "%" in share.get_ylabel()
    assert "KL" in kl.get_ylabel()
    assert share.get_xlabel() == kl.get_xlabel() == "epoch"
    np.testing.assert_allclose(lines_of(share)["SHOT"], [80, 70, 50])
    np.testing.assert_allclose(lines_of(kl)["SHOT"], [40, 20, 20])
    np.testing.assert_allclose(lines_of(kl)["SFDA-DE"], [40, 40, 40])
    for line in (*share.lines, *kl.lines):
        np.testing.assert_allclose(line.get_xdata(), [0, 1, 2])
    band = kl.collections[0].get_paths()[0].vertices
    spread = 100 * np.std([0.5, 0.3], ddof=1)
    at_start = band[band[:, 0] == 0][:, 1]
    np.testing.assert_allclose([at_start.min(), at_start.max()], [40 - spread, 40 + spread])


def test_runs_of_different_length_end_with_the_shortest(tmp_path, figures):
    bias = {"SHOT": [[0.5, 0.2, 0.1], [0.3, 0.2]], "source": [[0.5]]}
    plots.draw_bias(bias, bias, tmp_path / "bias.png")
    lines = lines_of(figures[0].axes[1])
    assert len(lines["SHOT"]) == 2
    assert len(lines["source"]) == 1


def test_without_shares_there_is_one_panel(tmp_path, figures, recwarn):
    plots.draw_bias({"SHOT": [[0.5, 0.2]]}, {}, tmp_path / "bias.png")
    (kl,) = figures[0].axes
    assert "KL" in kl.get_ylabel()
    assert not recwarn.list


def write_run(root, method, seed, shares):
    """A run whose metrics.csv has rows of validations and, between them, of training alone."""
    folder = root / method / f"seed{seed}"
    folder.mkdir(parents=True)
    job = {"cells": {"method": method, "seed": seed}}
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    reports.append_result(folder, {"checkpoint": "last", "metrics": {"test/acc": 0.5}})
    rows = []
    for epoch, share in enumerate(shares):
        own = {"val/share_0": 1 - share, "val/share_1": share, "val/bias": abs(2 * share - 1)}
        rows += [{"epoch": epoch, "train/loss": 1.0}, {"epoch": epoch} | own]
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False)


def test_the_bias_of_a_folder_of_runs_is_drawn(tmp_path, figures):
    write_run(tmp_path, "SHOT", 0, [0.9, 0.7, 0.5])
    write_run(tmp_path, "SHOT", 1, [0.3, 0.5, 0.5])  # the other class is favoured
    write_run(tmp_path, "SFDA-DE", 0, [0.9, 0.9, 0.1])
    write_run(tmp_path, "AdaDSA", 1, [0.6, 0.4, 0.4])
    written = reports.write_plots(tmp_path, reports.collect(tmp_path))
    assert written == [tmp_path / "bias_val.png"]
    assert written[0].is_file()
    share, kl = figures[0].axes
    np.testing.assert_allclose(lines_of(share)["SHOT"], [80, 60, 50])  # of 1, in seed 1 of 0
    np.testing.assert_allclose(lines_of(share)["AdaDSA"], [40, 60, 60])  # as both together favour
    np.testing.assert_allclose(lines_of(share)["SFDA-DE"], [90, 90, 10])
    np.testing.assert_allclose(lines_of(kl)["SHOT"], [60, 20, 0], atol=1e-9)
    assert (lines_of(kl)["AdaDSA"] >= 0).all()
    np.testing.assert_allclose(lines_of(kl)["SFDA-DE"], [80, 80, 80])


def test_every_validation_split_has_its_plot_and_runs_without_bias_none(tmp_path, figures):
    write_run(tmp_path, "SHOT", 0, [0.9, 0.5])
    for method in ("other", "plain"):
        (tmp_path / method).mkdir()
        job = json.dumps({"cells": {"method": method}})
        (tmp_path / method / JOB).write_text(job, encoding="utf-8")
    splits = {"val": [0.1, 0.0], "val_a": [0.2, 0.3], "test": [0.4, 0.4]}
    rows = {f"{split}/{name}": v for split, v in splits.items() for name in ("bias", "share_0")}
    pd.DataFrame(rows).to_csv(tmp_path / "other" / "metrics.csv", index=False)
    written = reports.write_plots(tmp_path, reports.collect(tmp_path))
    assert {path.name for path in written} == {"bias_val.png", "bias_val_a.png"}
    by_name = dict(zip((path.name for path in written), figures, strict=True))
    assert set(lines_of(by_name["bias_val.png"].axes[1])) == {"SHOT", "other"}
    assert set(lines_of(by_name["bias_val_a.png"].axes[1])) == {"other"}
