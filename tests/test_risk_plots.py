"""AUC over horizons by method, and predicted against observed risk, drawn and written."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from tests.cases import trainer
from tests.cases.phd import TINY, exams
from tests.cases.unimodal import grades
from wsl_zoo import plots, reports
from wsl_zoo.callbacks import MapWriter, ResultWriter
from wsl_zoo.methods import PHDTeacher, UnimodalOrdinal
from wsl_zoo.runs import JOB

GROUPS = {
    "horizon": torch.tensor([1.0, 2.0]),
    "predicted": torch.tensor([[0.1, 0.2], [0.3, 0.5]]),
    "observed": torch.tensor([[0.0, 0.25], [0.4, 0.6]]),
}


def lines_of(ax):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in ax.lines}


@pytest.mark.parametrize("methods", [2, 7])
def test_auc_is_drawn_over_horizons(tmp_path, figures, methods):
    values = {f"m{i}": {1.0: [0.8, 0.9], 2.5: [0.6, 0.7]} for i in range(methods)}
    path = plots.draw_auc(values, tmp_path / "auc.png", "test")
    assert path.is_file()
    (ax,) = figures[0].axes
    x, y = lines_of(ax)["m0"]
    np.testing.assert_allclose(x, [1, 2.5])
    np.testing.assert_allclose(y, [85, 65])
    spread = [np.ptp(band.get_paths()[0].vertices[:, 1]) > 21 for band in ax.collections]
    assert any(spread) == (methods == 2)  # more bands would hide one another


def test_risk_is_drawn_and_written(tmp_path, figures):
    path = reports.write_risk(GROUPS, tmp_path, "risk", title="test")
    assert path == tmp_path / "risk.png"
    assert path.is_file()
    (ax,) = figures[0].axes
    np.testing.assert_allclose(lines_of(ax)["group 2 of 2, highest"][1], [30, 50])
    np.testing.assert_allclose(lines_of(ax)["group 1 of 2, lowest"][1], [10, 20])
    dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    points = [line.get_ydata() for line in dots]
    np.testing.assert_allclose(sorted(map(list, points)), [[0, 25], [40, 60]])
    table = pd.read_csv(tmp_path / "risk.csv")
    assert table["group"].tolist() == [1, 1, 2, 2]
    np.testing.assert_allclose(table["observed"], [0, 0.25, 0.4, 0.6])


def test_a_folder_of_runs_gets_the_plot_of_its_risks(tmp_path, figures):
    for method, seed, last in (("full", 0, 0.8), ("full", 1, 0.9), ("student", 0, 0.7)):
        folder = tmp_path / method / f"seed{seed}"
        metrics = {"test/auc_1": 0.6, "test/auc_5": last, "test/auc_ipcw": 0.1, "test/auc": 0.5}
        reports.append_result(folder, {"checkpoint": "best_cl", "metrics": metrics})
        cells = {"cells": {"method": method, "seed": seed}}
        (folder / JOB).write_text(json.dumps(cells), encoding="utf-8")
    written = reports.write_plots(tmp_path, reports.collect(tmp_path))
    assert written == [tmp_path / "auc_test.png"]
    lines = lines_of(figures[0].axes[0])
    np.testing.assert_allclose(lines["full"][0], [1, 5])
    np.testing.assert_allclose(lines["full"][1], [60, 85])
    np.testing.assert_allclose(lines["student"][1], [60, 70])


def test_a_test_and_a_prediction_write_risks(tmp_path):
    data = exams(val=40, test=40)
    model = PHDTeacher(**TINY)
    run = trainer(
        tmp_path, callbacks=[ResultWriter(show=False), MapWriter(str(tmp_path / "predictions"))]
    )
    run.test(model, data, verbose=False)
    run.predict(model, data)
    (row,) = reports.read_results(tmp_path)
    assert {"test/auc_5", "test/auc", "test/c_index", "test/bce"} <= row["metrics"].keys()
    assert (tmp_path / "curves" / "test_model_risk.png").is_file()
    predicted = pd.read_csv(tmp_path / "predictions" / "predictions.csv")
    assert list(predicted) == ["exam", *(f"risk_{k}" for k in range(1, 6))]
    assert len(predicted) == 40
    risks = torch.cat([batch["risk"] for batch in run.predict(model, data)])
    np.testing.assert_allclose(predicted.iloc[:, 1:], risks, atol=1e-6)


def test_a_writer_of_risks_then_writes_classes(tmp_path):
    writer = MapWriter(str(tmp_path / "predictions"))
    run = trainer(tmp_path, callbacks=[writer])
    run.predict(PHDTeacher(**TINY), exams())
    run.predict(UnimodalOrdinal(num_classes=4, encoder="test_resnet", stride=16), grades())
    predicted = pd.read_csv(tmp_path / "predictions" / "predictions.csv")
    assert list(predicted) == ["image", "class", "probability", "boxes"]
    assert len(predicted) == 8


def test_numbers_that_are_no_fractions_are_shown_as_they_are():
    assert reports.shown("mae", 0.5) == "0.500"
    assert reports.shown("soi", 0.5) == "50.00"
    assert reports.title_of("auc_2.5") == "AUC at horizon 2.5"
    assert reports.title_of("auc_ipcw").startswith("AUC (IPCW)")
