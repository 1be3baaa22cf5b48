import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from wsl_zoo import catalogue, reports, titles
from wsl_zoo.__main__ import main
from wsl_zoo.runs import JOB


def write_run(folder, checkpoint="best_cl", cells=None, **metrics):
    row = {"checkpoint": checkpoint, "metrics": {f"test/{k}": v for k, v in metrics.items()}}
    reports.append_result(folder, row)
    if cells is not None:
        (folder / JOB).write_text(json.dumps({"cells": cells}))


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


def test_values_of_a_column_side_by_side(tmp_path):
    values = {("A", "x"): (40.0, 0.9), ("A", "y"): (30.0, 0.5), ("B", "x"): (20.0, 0.1)}
    for (method, marker), (psnr, acc) in values.items():
        for seed in (0, 1):
            cells = {"method": method, "marker": marker, "seed": seed}
            write_run(
                tmp_path / method / marker / str(seed), cells=cells, psnr=psnr + seed, acc=acc
            )
    table = reports.spread(reports.collect(tmp_path), "marker")
    assert list(table.columns) == ["method", "checkpoint", "marker", "test/psnr", "test/acc"]
    assert table["marker"].tolist() == ["x / y / mean"] * 2
    assert table["test/psnr"].tolist() == ["40.50 / 30.50 / 35.50", "20.50 / - / -"]
    assert table["test/acc"].tolist() == ["90.00 / 50.00 / 70.00", "10.00 / - / -"]
    for column in ("scale", "method", "test/psnr"):
        with pytest.raises(ValueError, match=f"--across {column}: results differ by marker, seed"):
            reports.spread(reports.collect(tmp_path), column)


def test_the_command_takes_a_column(tmp_path, capsys):
    write_run(tmp_path / "a", cells={"method": "A", "marker": "x"}, ssim=0.5)
    assert main(["table", str(tmp_path), "--across", "marker"]) == 0
    assert "0.5000 / 0.5000" in capsys.readouterr().out
    assert main(["table", str(tmp_path), "--over", "marker"]) == 1
    assert "usage: wsl-zoo table DIR [--across COLUMN]" in capsys.readouterr().err


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
    metrics = {f"test/{name}": "12.34 ± 5.67" for name in titles.TITLES}
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
