import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from wsl_zoo import protocols, reports
from wsl_zoo.__main__ import main


def write_grid(folder: Path, **changes) -> Path:
    grid = {
        "output": str(folder / "out"), "config": "cam/synthetic",
        "seeds": [0, 1], "folds": [0, 1, 2],
        "methods": {"CAM": {}, "GAP": {"model.head": "gap", "data.color_jitter": [0.1, 0.2]}},
    }  # fmt: skip
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (grid | changes).items() if v is not None}))
    return path


def value_after(option, command):
    return command[command.index(option) + 1] if option in command else None


class Launcher:
    """Stands for `fit` in a process of its own: writes what a finished run leaves."""

    def __init__(self, fails=()):
        self.commands = []
        self.fails = set(fails)

    def __call__(self, command, log):
        self.commands.append(list(command))
        folder = Path(value_after("--run_dir", command))
        assert folder == log.parent
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").touch()
        if folder.relative_to(folder.parents[2]).as_posix() in self.fails:
            log.write_text("loading\nout of memory\n")
            return 1
        seed, fold = (int(value_after(f"--{k}", command)) for k in ("seed_everything", "data.fold"))
        metrics = {"test/acc": 0.5 + 0.1 * seed + 0.01 * fold}
        reports.append_result(folder, {"checkpoint": "best_cl", "metrics": metrics})
        return 0


@pytest.fixture
def launcher(monkeypatch):
    stand_in = Launcher()
    monkeypatch.setattr(protocols, "launch", stand_in)
    return stand_in


def test_a_grid_is_the_product_of_methods_folds_and_seeds(tmp_path):
    jobs = protocols.read_grid(write_grid(tmp_path), ["--data.root", "my data"])
    assert len(jobs) == 2 * 2 * 3
    assert len({job.folder for job in jobs}) == len(jobs)
    for job in jobs:
        assert job.root == tmp_path / "out"
        assert job.folder == job.root / job.cells["method"] / (
            f"seed{job.cells['seed']}/fold{job.cells['fold']}"
        )
        assert value_after("--config", job.args) == "cam/synthetic"
        assert value_after("--seed_everything", job.args) == str(job.cells["seed"])
        assert value_after("--data.fold", job.args) == str(job.cells["fold"])
        assert json.loads(value_after("--then_test", job.args)) == ["best_cl", "best_loc"]
        assert value_after("--model.head", job.args) == (
            "gap" if job.cells["method"] == "GAP" else None
        )
        assert job.args[-2:] == ["--data.root", "my data"]
    jitter = value_after("--data.color_jitter", jobs[-1].args)
    assert json.loads(jitter) == [0.1, 0.2]


def test_a_grid_that_selects_by_pseudo_boxes(tmp_path):
    roots = {"clip": "meta/clip", "ss": "meta/selective search"}
    path = write_grid(
        tmp_path, test=["best_loc_clip", "best_loc_ss"], methods={"CAM": {"data.val_roots": roots}}
    )
    for job in protocols.read_grid(path):
        tested = json.loads(value_after("--then_test", job.args))
        assert tested == ["best_loc_clip", "best_loc_ss"]
        assert json.loads(value_after("--data.val_roots", job.args)) == roots


def test_a_grid_without_seeds_and_folds(tmp_path):
    path = write_grid(tmp_path, seeds=None, folds=None, test=["last"], config=None,
                      methods={"A": {"config": "cam/glas"}})  # fmt: skip
    (job,) = protocols.read_grid(path)
    assert job.cells == {"method": "A", "seed": 0}
    assert "--data.fold" not in job.args
    assert value_after("--config", job.args) == "cam/glas"
    assert json.loads(value_after("--then_test", job.args)) == ["last"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [0]}, r"unknown key 'seed'; did you mean 'seeds'\?"),
        ({"xyz": [0]}, r"unknown key 'xyz'; keys: output, config, seeds"),
        ({"methods": None}, "the key 'methods' is missing"),
        ({"output": None}, "the key 'output' is missing"),
        ({"config": None}, "method 'CAM' has no config"),
    ],
)
def test_a_wrong_grid_is_refused(tmp_path, capsys, changes, message):
    path = write_grid(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        protocols.read_grid(path)
    assert main(["run", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: ")


def test_a_grid_that_is_no_mapping(tmp_path, capsys):
    path = tmp_path / "grid.yaml"
    path.write_text("- 1\n")
    assert main(["run", str(path)]) == 1
    assert "expected the keys output, config" in capsys.readouterr().err


def test_run_prints_the_table_and_skips_what_is_finished(tmp_path, launcher, capsys):
    path = write_grid(tmp_path, methods={"CAM": {}})
    assert main(["run", str(path), "--trainer.max_epochs", "1"]) == 0
    assert len(launcher.commands) == 6
    for command in launcher.commands:
        assert command[:4] == [sys.executable, "-m", "wsl_zoo", "fit"]
        assert "--ckpt_path" not in command
        assert value_after("--trainer.max_epochs", command) == "1"
    out = capsys.readouterr().out
    assert f"[6/6] {tmp_path}/out/CAM/seed1/fold2" in out
    # 0.50 0.51 0.52 0.60 0.61 0.62: mean 0.56, squares 2 (0.06² + 0.05² + 0.04²) = 0.0154, over 5
    assert "56.00 ± 5.55" in out
    assert "56.00 ± 5.55" in (tmp_path / "out" / "summary.md").read_text()
    assert main(["run", str(path), "--trainer.max_epochs", "1"]) == 0
    assert len(launcher.commands) == 6
    assert capsys.readouterr().out.count("finished before") == 6


def test_a_failed_run_stops_no_other_and_is_resumed(tmp_path, launcher, capsys):
    path = write_grid(tmp_path, methods={"CAM": {}})
    launcher.fails = {"CAM/seed0/fold1"}
    failed = tmp_path / "out" / "CAM" / "seed0" / "fold1"
    assert main(["run", str(path)]) == 1
    assert len(launcher.commands) == 6
    out, err = capsys.readouterr()
    assert f"{failed} failed (exit 1)" in err
    assert "out of memory" in err
    assert "1 of 6 runs failed" in err
    assert "runs" in out  # the table of the other five
    assert json.loads((failed / reports.JOB).read_text())["finished"] is False
    launcher.fails = set()
    assert main(["run", str(path)]) == 0
    assert len(launcher.commands) == 7
    again = launcher.commands[-1]
    assert value_after("--run_dir", again) == str(failed)
    assert value_after("--ckpt_path", again) == str(failed / "checkpoints" / "last.ckpt")


def test_all_runs_failed(tmp_path, launcher, capsys):
    launcher.fails = {"CAM/seed0/fold0"}
    path = write_grid(tmp_path, methods={"CAM": {}}, seeds=[0], folds=[0])
    assert main(["run", str(path)]) == 1
    assert "1 of 1 runs failed" in capsys.readouterr().err


def test_other_arguments_are_refused_before_anything_runs(tmp_path, launcher, capsys):
    path = write_grid(tmp_path, methods={"CAM": {}}, seeds=[1])
    assert main(["run", str(path)]) == 0
    count = len(launcher.commands)
    path = write_grid(tmp_path, methods={"CAM": {"model.lr": 0.5}}, seeds=[0, 1])
    assert main(["run", str(path)]) == 1
    err = capsys.readouterr().err
    assert "was run with other arguments" in err
    assert "--model.lr 0.5" in err
    assert len(launcher.commands) == count  # also seed 0, which is new, waits for a decision


@pytest.mark.parametrize("arguments", [[], ["--help-me"]])
def test_usage_of_run(arguments, capsys):
    assert main(["run", *arguments]) != 0
    assert "usage: wsl-zoo run GRID.yaml" in capsys.readouterr().err


def test_launch_writes_the_log_and_returns_the_status(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert protocols.launch([sys.executable, "-c", code], log) == 3
    lines = log.read_text().splitlines()
    assert lines[0] == "before"  # a resumed run appends
    assert set(lines[1:]) == {"out", "err"}


RUN = """
import signal, sys, time
from pathlib import Path
here = Path(sys.argv[1])
def stop(*_):
    (here / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(here / "started").touch()
time.sleep(120)
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_grid_stops_its_run_and_lets_it_save(tmp_path, sent):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(tmp_path)]
    code = (
        "from pathlib import Path; from wsl_zoo.protocols import launch\n"
        f"launch({command!r}, Path({str(tmp_path / 'log.txt')!r}))"
    )
    root = str(Path(__file__).parents[1])
    grid = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(grid.pid, sent)
    assert grid.wait(60) != 0
    assert (tmp_path / "saved").exists()


@pytest.mark.slow
def test_a_real_grid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[1])
    path = write_grid(tmp_path, methods={"CAM": {}}, folds=None, test=["best_cl", "last"])
    tiny = [
        "--data.train", "8", "--data.val", "8", "--data.test", "8", "--data.image_size", "48",
        "--data.batch_size", "4", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    assert main(["run", str(path), *tiny]) == 0
    frame = reports.collect(tmp_path / "out")
    assert sorted(zip(frame["seed"], frame["checkpoint"], strict=True)) == [
        (0, "best_cl"), (0, "last"), (1, "best_cl"), (1, "last"),
    ]  # fmt: skip
    assert frame["test/pxap"].between(0, 1).all()
    assert frame["test/pxap"].nunique() == 2  # one epoch: both checkpoints are the same, seeds not
    log = (tmp_path / "out" / "CAM" / "seed0" / "log.txt").read_text()
    assert "epoch 1/1: train/loss " in log
    assert "\r" not in log
    assert "±" in capsys.readouterr().out
