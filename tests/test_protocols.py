"""Pipelines: what a file asks for, and what `wsl-zoo run` makes of it. Runs have a stand-in."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from wsl_zoo import catalogue, jobs, protocols, reports
from wsl_zoo.__main__ import main
from wsl_zoo.runs import JOB

ROOT = Path(__file__).resolve().parents[1]


def write_grid(folder: Path, **changes) -> Path:
    grid = {
        "output": str(folder / "out"), "config": "cam/synthetic",
        "seeds": [0, 1], "folds": [0, 1, 2],
        "methods": {"CAM": {}, "GAP": {"model.head": "gap", "data.color_jitter": [0.1, 0.2]}},
    }  # fmt: skip
    path = folder / "grid.yaml"
    merged = {k: v for k, v in (grid | changes).items() if v is not None}
    path.write_text(yaml.safe_dump(merged, sort_keys=False))
    return path


STAGES = {
    "F-CAM": {
        "config": "fcam/synthetic", "test": ["best_loc"],
        "model.classifier": "{CAM:best_cl}", "model.seeder": "{CAM:best_loc}",
    },
    "GAP": {"model.head": "gap"},
    "NEGEV": {"config": "negev/synthetic", "model.classifier": "{CAM:best_cl}"},
    "CAM": {"test": []},
}  # fmt: skip


def write_stages(folder: Path, **changes) -> Path:
    """Two second stages of one first stage, which stands last in the file."""
    return write_grid(folder, **{"folds": None, "methods": STAGES, **changes})


def value_after(option, command):
    return command[command.index(option) + 1] if option in command else None


class Launcher:
    """Stands for `fit` in a process of its own: writes what a finished run leaves."""

    def __init__(self):
        self.commands = []
        self.fails = set()
        self.keeps = ("best_cl", "best_loc", "last")
        self.content = "weights"

    def __call__(self, command, log):
        self.commands.append(list(command))
        folder = Path(value_after("--run_dir", command))
        assert folder == log.parent
        (folder / "checkpoints").mkdir(exist_ok=True)
        last = folder / "checkpoints" / "last.ckpt"
        last.touch()
        if self.names()[-1] in self.fails:
            log.write_text("loading\nout of memory\n")
            return 1
        last.unlink()
        for name in self.keeps:
            text = f"{name} of {folder.name}: {self.content}"
            (folder / "checkpoints" / f"{name}.ckpt").write_text(text)
        seed, fold = (
            int(value_after(f"--{k}", command) or 0) for k in ("seed_everything", "data.fold")
        )
        metrics = {"test/acc": 0.5 + 0.1 * seed + 0.01 * fold}
        for name in json.loads(value_after("--then_test", command)):
            reports.append_result(folder, {"checkpoint": name, "metrics": metrics})
        return 0

    def names(self):
        """`METHOD/seed0` of every run so far."""
        folders = [Path(value_after("--run_dir", command)) for command in self.commands]
        return ["/".join(f.parts[f.parts.index("out") + 1 :]) for f in folders]


@pytest.fixture
def launcher(monkeypatch):
    stand_in = Launcher()
    monkeypatch.setattr(jobs, "launch", stand_in)
    return stand_in


def test_a_grid_is_the_product_of_methods_folds_and_seeds(tmp_path):
    runs = protocols.read_pipeline(write_grid(tmp_path), ["--data.root", "my data"])
    assert len(runs) == 2 * 2 * 3
    assert len({job.folder for job in runs}) == len(runs)
    for job in runs:
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
    jitter = value_after("--data.color_jitter", runs[-1].args)
    assert json.loads(jitter) == [0.1, 0.2]


def test_options_that_vary(tmp_path):
    vary = {"data.marker": ["CELL0", "CELL1"], "data.scale, model.scale": [2, 4, 8]}
    path = write_grid(tmp_path, vary=vary, seeds=[0], folds=None, methods=STAGES)
    runs = protocols.read_pipeline(path)
    assert len({job.folder for job in runs}) == len(runs) == len(STAGES) * 2 * 3
    for job in runs:
        marker, scale = job.cells["marker"], job.cells["scale"]
        assert list(job.cells) == ["method", "marker", "scale", "seed"]
        place = Path(f"marker{marker}", f"scale{scale}", "seed0")
        assert job.folder == tmp_path / "out" / job.cells["method"] / place
        assert value_after("--data.marker", job.args) == marker
        assert value_after("--data.scale", job.args) == str(scale)
        assert value_after("--model.scale", job.args) == str(scale)
        for checkpoint in job.inputs.values():  # of the same marker and scale
            assert checkpoint.parents[1] == tmp_path / "out" / "CAM" / place
    varied = {(job.cells["marker"], job.cells["scale"]) for job in runs}
    assert len(varied) == 6
    own = write_grid(tmp_path, vary=vary, methods={"CAM": {"data.scale": 8}})
    for job in protocols.read_pipeline(own):  # what a method says itself comes last
        assert [b for a, b in zip(job.args, job.args[1:], strict=False) if a == "--data.scale"][
            -1
        ] == "8"


def test_a_grid_that_selects_by_pseudo_boxes(tmp_path):
    roots = {"clip": "meta/clip", "ss": "meta/selective search"}
    path = write_grid(
        tmp_path, test=["best_loc_clip", "best_loc_ss"], methods={"CAM": {"data.val_roots": roots}}
    )
    for job in protocols.read_pipeline(path):
        tested = json.loads(value_after("--then_test", job.args))
        assert tested == ["best_loc_clip", "best_loc_ss"]
        assert json.loads(value_after("--data.val_roots", job.args)) == roots


@pytest.mark.parametrize(
    ("chosen", "folders"),
    [
        (["NEGEV"], ["CAM/seed0", "NEGEV/seed0"]),
        (["GAP"], ["GAP/seed0"]),
        (["F-CAM", "GAP"], ["CAM/seed0", "F-CAM/seed0", "GAP/seed0"]),
    ],
)
def test_chosen_methods_bring_what_they_need(tmp_path, chosen, folders):
    jobs_ = protocols.read_pipeline(write_stages(tmp_path, seeds=[0]))
    kept = protocols.needed(jobs_, chosen)
    assert [job for job in jobs_ if job in kept] == kept  # in their order
    assert sorted(str(job.folder.relative_to(tmp_path / "out")) for job in kept) == folders


@pytest.mark.parametrize("given", [["--output", "DIR"], ["--output=DIR"]])
def test_another_output_takes_the_place_of_the_files(tmp_path, launcher, given, capsys):
    path = write_grid(tmp_path, methods={"CAM": {}})
    given = [text.replace("DIR", str(tmp_path / "out" / "else")) for text in given]
    assert main(["run", str(path), *given]) == 0
    assert (tmp_path / "out" / "else" / "summary.md").is_file()
    assert not (tmp_path / "out" / "CAM").exists()
    assert main(["run", str(path), "--output"]) == 1
    assert "--output needs a folder" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--methods", "NEGEV, GAP"], ["--methods=NEGEV,GAP"]])
def test_run_takes_methods(tmp_path, launcher, given):
    main(["run", str(write_stages(tmp_path, seeds=[0])), *given])
    assert sorted(path.parent.name for path in (tmp_path / "out").glob("*/seed0")) == [
        "CAM", "GAP", "NEGEV",
    ]  # fmt: skip


def test_unknown_methods_are_refused(tmp_path, launcher, capsys):
    assert main(["run", str(write_stages(tmp_path)), "--methods", "NEGEF"]) != 0
    assert "did you mean 'NEGEV'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_grid_without_seeds_and_folds(tmp_path):
    path = write_grid(tmp_path, seeds=None, folds=None, test=["last"], config=None,
                      methods={"A": {"config": "cam/glas"}})  # fmt: skip
    (job,) = protocols.read_pipeline(path)
    assert job.cells == {"method": "A", "seed": 0}
    assert "--data.fold" not in job.args
    assert value_after("--config", job.args) == "cam/glas"
    assert json.loads(value_after("--then_test", job.args)) == ["last"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [0]}, r"unknown key 'seed'; did you mean 'seeds'\?"),
        ({"xyz": [0]}, r"unknown key 'xyz'; there are: output, config, seeds"),
        ({"methods": None}, "the key 'methods' must hold names and options"),
        ({"methods": ["CAM"]}, "the key 'methods' must hold names and options"),
        ({"output": None}, "the key 'output' must hold a folder"),
        ({"config": None}, "method 'CAM' has no config"),
        (
            {"methods": {"CAM": {}, "B": {"model.classifier": "{CMA:best_cl}"}}},
            r"method 'B' refers to the unknown method 'CMA'; did you mean 'CAM'\?",
        ),
        (
            {"methods": {"CAM": {}, "B": {"model.classifier": "{nothing:best_cl}"}}},
            r"method 'B' refers to the unknown method 'nothing'; there are: CAM, B",
        ),
        (
            {"methods": {"CAM": {}, "B": {"model.classifier": "{CAM:best_lco}"}}},
            r"method 'B' refers to the unknown checkpoint 'best_lco'; did you mean 'best_loc'\?",
        ),
        (
            {"methods": {"A": {"x": "{B:last}"}, "B": {"x": "{C:last}"}, "C": {"x": "{A:last}"},
                         "D": {"x": "{A:last}"}, "E": {}}},
            "nothing can run first: (A needs B needs C needs A|B needs C needs A needs B"
            "|C needs A needs B needs C)$",
        ),
        ({"methods": {"A": {"x": "{A:last}"}}}, "nothing can run first: A needs A"),
        ({"vary": {"data.marker": "CELL0"}}, "vary.data.marker must hold a list of values"),
        ({"vary": {"data.marker": []}}, "vary.data.marker must hold a list of values"),
        ({"vary": {"data.fold": [1]}}, "vary.data.fold is a column already"),
        ({"vary": {"a.x": [1], "b.x": [1]}}, "vary.b.x is a column already"),
    ],
)  # fmt: skip
def test_a_wrong_grid_is_refused(tmp_path, launcher, capsys, changes, message):
    path = write_grid(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        protocols.read_pipeline(path)
    assert main(["run", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: ")
    assert launcher.commands == []


def test_a_grid_that_is_no_mapping(tmp_path, capsys):
    path = tmp_path / "grid.yaml"
    path.write_text("- 1\n")
    assert main(["run", str(path)]) == 1
    assert "expected the keys output, config" in capsys.readouterr().err


def test_a_reference_is_a_checkpoint_of_the_same_seed_and_fold(tmp_path):
    path = write_stages(tmp_path, folds=[3, 4])
    out = tmp_path / "out"
    runs = [job for job in protocols.read_pipeline(path) if job.cells["method"] == "F-CAM"]
    assert [(job.cells["seed"], job.cells["fold"]) for job in runs] == [
        (0, 3), (1, 3), (0, 4), (1, 4),
    ]  # fmt: skip
    for job in runs:
        stage = out / "CAM" / f"seed{job.cells['seed']}" / f"fold{job.cells['fold']}"
        assert job.inputs == {
            "{CAM:best_cl}": stage / "checkpoints" / "best_cl.ckpt",
            "{CAM:best_loc}": stage / "checkpoints" / "best_loc.ckpt",
        }
        assert job.needs == {stage}
        assert value_after("--config", job.args) == "fcam/synthetic"
        assert value_after("--model.seeder", job.args) == "{CAM:best_loc}"  # moves with the folder
        assert value_after("--then_test", job.args) == '["best_loc"]'


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("{CAM (ViT), trained:best_loc_clip}", ["CAM (ViT), trained"]),
        (["{A:best_cl}", "{B:last}"], ["A", "B"]),
        ({"A:best_cl": None}, ["A"]),  # what YAML makes of {A:best_cl} without quotes
        ('{"fg":1,"bg":2}', []),
        ({"fg": None}, []),
        ({"fg": {"A": 1}}, []),
        ("{fg: 1}", []),
    ],
)
def test_what_is_a_reference(tmp_path, value, found):
    methods = {"A": {}, "B": {}, "CAM (ViT), trained": {}, "last": {"model.x": value}}
    job = protocols.read_pipeline(write_grid(tmp_path, methods=methods))[-1]
    assert [path.parents[3].name for path in job.inputs.values()] == found
    given = value_after("--model.x", job.args)
    assert all(reference in given for reference in job.inputs)


def test_stages_run_after_what_they_need_and_stand_in_the_table_as_in_the_file(
    tmp_path, launcher, capsys
):
    path = write_stages(tmp_path)
    assert main(["run", str(path), "--data.root", "a b"]) == 0
    assert launcher.names() == [
        "GAP/seed0", "GAP/seed1", "CAM/seed0", "CAM/seed1",
        "F-CAM/seed0", "F-CAM/seed1", "NEGEV/seed0", "NEGEV/seed1",
    ]  # fmt: skip
    for i, name in enumerate(launcher.names()):
        method, seed = name.split("/")
        stage = tmp_path / "out" / "CAM" / seed / "checkpoints"
        command = launcher.commands[i]
        second = method in {"F-CAM", "NEGEV"}
        assert value_after("--data.root", command) == "a b"
        assert value_after("--model.classifier", command) == (
            str(stage / "best_cl.ckpt") if second else None
        )
        assert value_after("--model.seeder", command) == (
            str(stage / "best_loc.ckpt") if method == "F-CAM" else None
        )
    frame = reports.collect(tmp_path / "out")
    seen = frame[["method", "seed", "checkpoint"]].to_numpy().tolist()
    assert seen == [
        ["F-CAM", 0, "best_loc"],
        ["F-CAM", 1, "best_loc"],
        *(["GAP", s, c] for s in (0, 1) for c in ("best_cl", "best_loc")),
        *(["NEGEV", s, c] for s in (0, 1) for c in ("best_cl", "best_loc")),
    ]  # fmt: skip  (nothing of CAM is tested)
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert summary.index("F-CAM") < summary.index("GAP") < summary.index("NEGEV")

    changed = dict(reversed(STAGES.items()))
    assert main(["run", str(write_stages(tmp_path, methods=changed)), "--data.root", "a b"]) == 0
    assert len(launcher.commands) == 8
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert summary.index("NEGEV") < summary.index("GAP") < summary.index("F-CAM")
    assert capsys.readouterr().out.count("finished before") == 8


def test_nothing_to_test_is_no_error(tmp_path, launcher, capsys):
    path = write_grid(tmp_path, methods={"CAM": {}}, test=[])
    assert main(["run", str(path)]) == 0
    assert [value_after("--then_test", command) for command in launcher.commands] == ["[]"] * 6
    assert "Mean" not in capsys.readouterr().out


def test_best_loc_is_best_cl_where_there_is_none(tmp_path, launcher, capsys):
    launcher.keeps = ("best_cl", "last")
    path = write_stages(tmp_path, seeds=[0])
    for _ in range(2):
        assert main(["run", str(path)]) == 0
        out = capsys.readouterr().out
    assert len(launcher.commands) == 4
    assert "is best_cl" not in out
    launcher.commands.clear()
    (tmp_path / "out" / "F-CAM" / "seed0" / JOB).unlink()
    assert main(["run", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.count("{CAM:best_loc} is best_cl: nothing to select best_loc by") == 1
    (command,) = launcher.commands
    checkpoint = tmp_path / "out" / "CAM" / "seed0" / "checkpoints" / "best_cl.ckpt"
    assert value_after("--model.seeder", command) == str(checkpoint)


@pytest.mark.parametrize("name", ["best_cl", "best_loc_clip", "last"])
def test_a_checkpoint_that_was_not_kept(tmp_path, launcher, capsys, name):
    launcher.keeps = tuple({"best_cl", "best_loc", "last"} - {name})
    methods = {"CAM": {}, "B": {"model.x": f"{{CAM:{name}}}"}}
    path = write_grid(tmp_path, methods=methods, folds=None, seeds=[0])
    assert main(["run", str(path)]) == 1
    missing = tmp_path / "out" / "CAM" / "seed0" / "checkpoints" / f"{name}.ckpt"
    assert f"needs {missing}, which that run did not keep" in capsys.readouterr().err
    assert launcher.names() == ["CAM/seed0"]


def test_a_failed_stage_stops_only_what_needs_it(tmp_path, launcher, capsys):
    path = write_stages(tmp_path)
    launcher.fails = {"CAM/seed1"}
    methods = STAGES | {"third": {"model.teacher": "{F-CAM:best_loc}"}}
    path = write_stages(tmp_path, methods=methods)
    assert main(["run", str(path)]) == 1
    out, err = capsys.readouterr()
    assert launcher.names() == [
        "GAP/seed0", "GAP/seed1", "CAM/seed0", "CAM/seed1", "F-CAM/seed0", "NEGEV/seed0",
        "third/seed0",
    ]  # fmt: skip
    root = tmp_path / "out"
    assert f"{root}/F-CAM/seed1\n  not run: it needs {root}/CAM/seed1\n" in out
    assert f"{root}/third/seed1\n  not run: it needs {root}/F-CAM/seed1\n" in out
    assert f"1 of 10 runs failed, 3 wait for them: {root}/CAM/seed1; the same command" in err
    assert not (root / "F-CAM" / "seed1").exists()
    launcher.fails = set()
    launcher.commands.clear()
    assert main(["run", str(path)]) == 0
    assert launcher.names() == ["CAM/seed1", "F-CAM/seed1", "NEGEV/seed1", "third/seed1"]
    resumed = root / "CAM" / "seed1" / "checkpoints" / "last.ckpt"
    assert value_after("--ckpt_path", launcher.commands[0]) == str(resumed)


def test_a_stage_made_anew_is_not_mixed_with_what_came_from_the_old_one(tmp_path, launcher, capsys):
    path = write_stages(tmp_path, seeds=[0])
    root = tmp_path / "out"
    assert main(["run", str(path)]) == 0
    launcher.commands.clear()
    checkpoint = root / "CAM" / "seed0" / "checkpoints" / "best_loc.ckpt"
    weights = checkpoint.read_text()

    os.utime(checkpoint, (0, 0))  # copied, for instance
    assert main(["run", str(path)]) == 0

    capsys.readouterr()
    checkpoint.write_text("others")
    assert main(["run", str(path)]) == 1
    err = capsys.readouterr().err
    assert f"{root}/F-CAM/seed0 was run from another {{CAM:best_loc}}: {root}/CAM/seed0" in err
    checkpoint.write_text(weights)

    record = root / "CAM" / "seed0" / JOB  # as when the folder is gone, or begun anew
    text = record.read_text()
    record.unlink()
    assert main(["run", str(path)]) == 1
    assert f"Remove {root}/F-CAM/seed0 as well" in capsys.readouterr().err
    record.write_text(text)
    assert launcher.commands == []

    begun = root / "F-CAM" / "seed0" / JOB  # killed: must not go on from other weights
    begun.write_text(begun.read_text().replace('"finished": true', '"finished": false'))
    checkpoint.write_text("others")
    assert main(["run", str(path)]) == 1
    checkpoint.write_text(weights)
    assert main(["run", str(path)]) == 0
    assert launcher.names() == ["F-CAM/seed0"]


def test_stages_whose_checkpoints_were_removed_stay_finished(tmp_path, launcher):
    path = write_stages(tmp_path)
    assert main(["run", str(path)]) == 0
    launcher.commands.clear()
    for checkpoint in (tmp_path / "out").rglob("*.ckpt"):
        checkpoint.unlink()
    assert main(["run", str(path)]) == 0
    assert launcher.commands == []


def test_a_run_killed_before_its_first_last_checkpoint_starts_again(tmp_path, launcher):
    path = write_grid(tmp_path, methods={"CAM": {}}, folds=None, seeds=[0])
    early = tmp_path / "out" / "CAM" / "seed0" / "checkpoints" / "best_cl.ckpt"
    early.parent.mkdir(parents=True)
    early.write_text("early")
    launcher.keeps = ("best_loc", "last")
    assert main(["run", str(path)]) == 0
    assert "--ckpt_path" not in launcher.commands[0]
    assert not early.exists()  # else `fit` refuses the folder


def test_arguments_of_one_method(tmp_path):
    path = write_stages(tmp_path, seeds=[0])
    extra = [
        "--F-CAM:model.lr", "0.1", "-c", "more.yaml", "--NEGEV:model.lr=0.2",
        "--data.x", "a:b", "--data.y=a:b", "--GAP:model.x", "-1", "{NEGEV:last}",
        "--trainer.max_epochs", "1",
    ]  # fmt: skip
    runs = {job.cells["method"]: job for job in protocols.read_pipeline(path, extra)}
    shared = ["--data.x", "a:b", "--data.y=a:b"]
    end = ["--trainer.max_epochs", "1"]
    first = ["-c", "more.yaml"]
    assert runs["F-CAM"].args[-9:] == ["--model.lr", "0.1", *first, *shared, *end]
    assert runs["NEGEV"].args[-8:] == [*first, "--model.lr=0.2", *shared, *end]
    assert runs["GAP"].args[-10:] == [*first, *shared, "--model.x", "-1", "{NEGEV:last}", *end]
    assert runs["CAM"].args[-7:] == [*first, *shared, *end]
    assert list(runs["GAP"].inputs) == ["{NEGEV:last}"]
    with pytest.raises(ValueError, match=r"--FCAM:lr is for the unknown method 'FCAM'.*'F-CAM'"):
        protocols.read_pipeline(path, ["--FCAM:lr", "1"])


PAIRED = {
    "CLIP-IT": {"model.pairs": "{pairing:pairs}"},
    "pairing": {
        "command": "pair", "config": "cam/glas", "reports": "my reports.txt", "encoder": "tiny",
        "shuffle": 1, "data.x": [1, 2],
    },
}  # fmt: skip


def test_a_pairing_is_a_run_of_pair(tmp_path):
    vary = {"data.marker": ["A"], "data.scale, model.scale": [2], "model.lr": [0.1]}
    extra = [
        "--data.root", "a b", "-c", "more.yaml", "--trainer.max_epochs", "1", "--database", "x",
        "--pairing:reports", "other.txt", "--data=FolderData", "--CLIP-IT:model.x", "2",
    ]  # fmt: skip
    path = write_grid(tmp_path, methods=PAIRED, seeds=[5], folds=[3], vary=vary)
    first, second = protocols.read_pipeline(path, extra)
    assert first.command == "pair"
    assert first.args == [
        "--config", "cam/glas", "--data.fold", "3", "--data.marker", "A", "--data.scale", "2",
        "--reports", "my reports.txt", "--encoder", "tiny", "--shuffle", "1", "--data.x", "[1, 2]",
        "--data.root", "a b", "--reports", "other.txt", "--data=FolderData",
    ]  # fmt: skip
    place = Path("markerA", "scale2", "lr0.1", "seed5", "fold3")
    assert first.folder == tmp_path / "out" / "pairing" / place
    assert second.command == "fit"
    assert second.needs == {first.folder}
    assert second.inputs == {"{pairing:pairs}": first.folder / "pairs" / "pairing.json"}
    assert value_after("--model.lr", second.args) == "0.1"
    assert second.args[-9:] == [
        "-c", "more.yaml", "--trainer.max_epochs", "1", "--database", "x", "--data=FolderData",
        "--model.x", "2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"A": {"command": "piar"}}, "'A' has the unknown command 'piar'; did you mean 'pair'"),
        (
            {"A": {"command": "pair", "rounds": {"count": 1}}},
            "'A' is a pair, which has no 'rounds'",
        ),
        ({"A": {"command": "pair", "test": ["last"]}}, "'A' is a pair, which has no 'test'"),
        (
            {"A": {"command": "pair"}, "B": {"model.x": "{A:best_cl}"}},
            "'B' refers to the unknown part of a pairing 'best_cl'; there are: pairs",
        ),
        (
            {"A": {}, "B": {"model.x": "{A:pairs}"}},
            "'B' refers to the unknown checkpoint 'pairs'; there are: best_cl",
        ),
    ],
)
def test_wrong_pairings_are_refused(tmp_path, methods, message):
    with pytest.raises(ValueError, match=message):
        protocols.read_pipeline(write_grid(tmp_path, methods=methods))


class PairLauncher(Launcher):
    """Stands for `pair` too: writes a pairing."""

    content = "pairs"

    def __call__(self, command, log):
        if command[1] != "pair":
            return super().__call__(command, log)
        self.commands.append(list(command))
        folder = Path(value_after("--out", command))
        assert folder == log.parent / "pairs"
        if "pair" in self.fails:
            log.write_text("no such file\n")
            return 1
        folder.mkdir(exist_ok=True)
        (folder / "pairing.json").write_text(f"{folder.parent.name}: {self.content}")
        return 0

    def names(self):
        return [command[1] for command in self.commands]


def test_pairings_run_first_and_are_skipped_refused_and_left_out_of_the_table(
    tmp_path, monkeypatch, capsys
):
    launcher = PairLauncher()
    monkeypatch.setattr(jobs, "launch", launcher)
    path = write_grid(tmp_path, methods=PAIRED, folds=None)
    root = tmp_path / "out"
    launcher.fails = {"pair"}
    assert main(["run", str(path)]) == 1
    assert "2 of 4 runs failed, 2 wait for them" in capsys.readouterr().err
    launcher.fails.clear()
    launcher.commands.clear()
    assert main(["run", str(path), "--data.root", "r"]) == 1  # not as it was begun
    assert "pairing/seed0 was run with other arguments" in capsys.readouterr().err
    assert main(["run", str(path)]) == 0
    assert launcher.names() == ["pair", "pair", "fit", "fit"]
    for seed in (0, 1):
        pair, fit = launcher.commands[seed], launcher.commands[2 + seed]
        place = root / "pairing" / f"seed{seed}" / "pairs"
        assert pair[-4:] == ["--out", str(place), "--cache", str(root / "cache")]
        assert value_after("--model.pairs", fit) == str(place / "pairing.json")
        record = json.loads((place.parent / JOB).read_text())
        assert record["finished"]
        assert record["cells"] == {"method": "pairing", "seed": seed}
    capsys.readouterr()
    assert main(["table", str(root)]) == 0
    for table in ("summary.md", "results.csv"):
        text = (root / table).read_text()
        assert "CLIP-IT" in text
        assert "pairing" not in text
    assert set(reports.collect(root)["method"]) == {"CLIP-IT"}
    assert main(["run", str(path)]) == 0
    assert capsys.readouterr().out.count("finished before") == 4
    (root / "pairing" / "seed1" / "pairs" / "pairing.json").write_text("seed1: others")
    assert main(["run", str(path)]) == 1
    assert "CLIP-IT/seed1 was run from another {pairing:pairs}" in capsys.readouterr().err
    assert len(launcher.commands) == 4


def test_pairings_alone_have_no_table_and_may_have_a_cache_of_their_own(
    tmp_path, monkeypatch, capsys
):
    launcher = PairLauncher()
    monkeypatch.setattr(jobs, "launch", launcher)
    path = write_grid(tmp_path, methods=PAIRED, folds=None, seeds=[0])
    arguments = ["run", str(path), "--methods", "pairing", "--pairing:cache=elsewhere"]
    assert main(arguments) == 0
    (command,) = launcher.commands
    assert command[-3:] == ["--cache=elsewhere", "--out", str(tmp_path / "out/pairing/seed0/pairs")]
    assert "Mean" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [e.name for e in catalogue.configs() if e.name.startswith("pipelines/")]
)
def test_shipped_pipelines(name):
    runs = protocols.read_pipeline(catalogue.config_path(name))
    folders = [job.folder for job in runs]
    for i, job in enumerate(runs):
        assert catalogue.config_path(value_after("--config", job.args)).is_file()
        assert job.needs <= set(folders[:i])


def test_run_prints_the_table_and_skips_what_is_finished(tmp_path, launcher, capsys):
    path = write_grid(tmp_path, methods={"CAM": {}})
    assert main(["run", str(path), "--trainer.max_epochs", "1"]) == 0
    assert len(launcher.commands) == 6
    for command in launcher.commands:
        assert command[:2] == ["wsl_zoo", "fit"]
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
    assert json.loads((failed / JOB).read_text())["finished"] is False
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
    assert "usage: wsl-zoo run PIPELINE.yaml" in capsys.readouterr().err


TINY = [
    "--data.train", "16", "--data.val", "8", "--data.test", "8", "--data.image_size", "48",
    "--data.batch_size", "4", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1",
]  # fmt: skip


@pytest.mark.slow
def test_a_real_grid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    path = write_grid(tmp_path, methods={"CAM": {}}, folds=None, test=["best_cl", "last"])
    assert main(["run", str(path), *TINY]) == 0
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


@pytest.mark.slow
def test_two_real_stages_the_second_killed_and_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    methods = {"CAM": {}, "F-CAM": STAGES["F-CAM"]}
    path = write_stages(tmp_path, methods=methods, seeds=[0], test=["best_loc"])
    arguments = ["run", str(path), *TINY, "--last.every_n_train_steps", "1"]
    arguments += ["--F-CAM:trainer.max_epochs", "3"]
    first, second = (tmp_path / "out" / name / "seed0" for name in ("CAM", "F-CAM"))
    last = second / "checkpoints" / "last.ckpt"
    with (tmp_path / "pipeline.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "wsl_zoo", *arguments],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + 300
        while not last.is_file():
            assert process.poll() is None, (tmp_path / "pipeline.txt").read_text()
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its run too
            process.wait()
    assert not json.loads((second / JOB).read_text())["finished"]
    reached = torch.load(last, weights_only=True)["global_step"]
    assert 0 < reached < 3 * 16 // 4
    stage = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}

    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"[1/2] {first}\n  finished before" in out
    assert out.count("finished before") == 1
    assert {path: path.read_bytes() for path in stage} == stage
    state = torch.load(last, weights_only=True)
    assert state["global_step"] == 3 * 16 // 4
    assert state["hyper_parameters"]["classifier"] == str(first / "checkpoints" / "best_cl.ckpt")
    assert state["hyper_parameters"]["seeder"] == str(first / "checkpoints" / "best_loc.ckpt")
    config = yaml.safe_load((second / "config.yaml").read_text())
    assert config["ckpt_path"] == str(last)  # it went on, and did not begin again
    of_cam = torch.load(state["hyper_parameters"]["classifier"], weights_only=True)["state_dict"]
    ours = {k: v for k, v in state["state_dict"].items() if k.startswith("encoder.")}
    assert ours
    assert all(torch.equal(value, of_cam[name]) for name, value in ours.items())
    frame = reports.collect(tmp_path / "out")
    assert frame["method"].tolist() == ["CAM", "F-CAM"]
    assert frame["test/pxap"].between(0, 1).all()

    assert main(arguments) == 0
    assert capsys.readouterr().out.count("finished before") == 2
    assert torch.load(last, weights_only=True)["global_step"] == state["global_step"]
