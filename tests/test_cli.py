"""The command line as its users meet it: what it writes, what it says, what survives a kill."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from google.protobuf.message import DecodeError
from PIL import Image
from safetensors.torch import save_file

import wsl_zoo
from wsl_zoo import __version__, catalogue, cli
from wsl_zoo.__main__ import COMMANDS, main
from wsl_zoo.arguments import complete
from wsl_zoo.encoders import Encoder
from wsl_zoo.methods import CAMClassifier
from wsl_zoo.metrics import MaxBoxAcc

ROOT = Path(__file__).resolve().parents[1]
CPU = ["--trainer.accelerator", "cpu", "--trainer.enable_model_summary", "false"]
SMALL = [
    "--data.val", "8", "--data.test", "8", "--data.image_size", "48", "--data.batch_size", "4",
    "--trainer.num_sanity_val_steps", "0", *CPU,
]  # fmt: skip
TINY = ["--data.train", "16", "--trainer.max_epochs", "2", *SMALL]
FIT = ["fit", "--config", "cam/synthetic", *TINY]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def run(arguments, capsys):
    """Exit status, stdout and stderr of one command."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return status, out, err


def state_of(checkpoint):
    return torch.load(checkpoint, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder; its map order is not the default of the class."""
    folder = tmp_path_factory.mktemp("trained") / "a run, with spaces"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.chdir(folder.parent):
        arguments = ["--run_dir", "a run, with spaces", "--then_test", '["best_cl","best_loc"]',
                     "--model.norm_order", "after_upsample", "--seed_everything", "5"]  # fmt: skip
        assert main([*FIT, *arguments]) == 0
    (folder / "stdout.txt").write_text(out.getvalue())
    return folder


@pytest.fixture
def checkpoint(trained):
    return trained / "checkpoints" / "best_loc.ckpt"


# What needs no training --------------------------------------------------------------------------


def test_version_and_help(capsys):
    assert run(["--version"], capsys) == (0, f"wsl-zoo {__version__}\n", "")
    for arguments in ([], ["--help"], ["-h"], ["help"], ["run", "--help"], ["table", "-h"]):
        status, out, err = run(arguments, capsys)
        assert (status, err) == (0, "")
        assert all(f"\n  {command} " in out for command in COMMANDS)


def test_list(capsys):
    status, out, _ = run(["list"], capsys)
    assert status == 0
    for kind in catalogue.KINDS:
        assert kind in out
        assert all(f" {entry.name} " in out for entry in catalogue.entries(kind))
    assert "arXiv" in out
    status, out, _ = run(["list", "configs"], capsys)
    assert " cam/synthetic " in out
    assert "CAMClassifier" not in out


def test_help_of_a_command_names_the_options_of_a_run(capsys):
    status, out, _ = run(["fit", "--help"], capsys)
    assert status == 0
    for option in ("--config", "--model", "--data", "--trainer.max_epochs", "--ckpt_path",
                   "--run_dir", "--wandb", "--then_test",
                   "--last.every_n_train_steps"):  # fmt: skip
        assert f"{option} " in out
    status, out, _ = run(["fit", "--model.help", "CAMClassifier"], capsys)
    assert status == 0
    assert "--model.norm_order {before_upsample,after_upsample}" in out


@pytest.mark.parametrize("option", [["--config"], ["-c"], ["--config="]])
@pytest.mark.parametrize("name", ["cam/synthetic", "cam/synthetic.yaml"])
def test_shipped_configs_by_name(option, name, capsys):
    given = [option[0] + name] if option[0].endswith("=") else [*option, name]
    status, out, _ = run(["fit", *given, "--print_config"], capsys)
    assert status == 0
    assert yaml.safe_load(out)["data"]["class_path"] == "wsl_zoo.data.SyntheticData"


def test_of_two_configs_the_later_wins_and_flags_win_over_both(tmp_path, capsys):
    Path("my config, small.yaml").write_text("model: {init_args: {lr: 0.25, stride: 8}}")
    status, out, _ = run(
        ["fit", "--config", "cam/synthetic", "--config", "my config, small.yaml",
         "--model.stride", "32", "--print_config"], capsys,
    )  # fmt: skip
    assert status == 0
    config = yaml.safe_load(out)
    assert config["model"]["init_args"]["lr"] == 0.25
    assert config["model"]["init_args"]["stride"] == 32
    assert config["model"]["init_args"]["schedule"] == "cosine"  # of the first
    assert config["trainer"]["max_epochs"] == 10


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["--config", "cam/synthetic"], "cam_synthetic"),
        (["--config=here.yaml"], "here"),
        (["-c", "cam/synthetic", "-c", "here.yaml"], "here"),
        (["--config", "sub folder/there.yaml"], "sub folder_there"),
        (["--model", "CAMClassifier"], "fit"),
    ],
)
def test_name_of_a_run(given, name):
    Path("sub folder").mkdir()
    for path in (Path("here.yaml"), Path("sub folder/there.yaml")):
        path.write_text("trainer: {max_epochs: 1}")
    assert complete("fit", given)[1] == name


# Bad input ---------------------------------------------------------------------------------------


def picture(path, size=(40, 32), value=128, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode).save(path)
    return path


def manifest(root):
    """A small set of two classes with masks, by a manifest; its rows, to be spoilt."""
    rows = []
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for i in range(count):
            name = f"{split}_{i}.png"
            picture(root / name, value=len(rows))
            picture(root / "masks" / name, mode="L")
            rows.append([split, name, "ab"[i % 2], f"masks/{name}"])
    return rows


def write_manifest(root, rows):
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["split", "image", "label", "mask"], *rows])


def fit_on(root):
    return ["fit", "--model", "CAMClassifier", "--model.encoder", "test_resnet", "--data",
            "FolderData", "--data.root", root, "--data.image_size", "32", "--data.batch_size", "2",
            "--trainer.max_epochs", "1", "--run_dir", "run", *CPU]  # fmt: skip


def missing_image(root, rows):
    (root / rows[1][1]).unlink()
    return "manifest.csv, line 3: image .*train_1.png does not exist"


def unreadable_image(root, rows):
    (root / rows[4][1]).write_bytes(b"no image")
    return "manifest.csv, line 6: .*val_0.png is not a readable image"


def label_out_of_range(root, rows):
    for i, row in enumerate(rows):
        row[2] = i % 2
    rows[2][2] = 70  # more classes than images cannot be meant
    return r"line 4: label 70 is out of range: with \d classes it must be in \[0, \d\]"


def unknown_label(root, rows):
    rows[7][2] = "c"
    return "class 'c' .label 2. has no training image"


def mask_of_another_size(root, rows):
    picture(root / rows[5][3], size=(41, 32), mode="L")
    return "line 7: mask val_1.png is 41x32 pixels, its image val_1.png is 40x32"


def image_in_two_splits(root, rows):
    rows[6][1] = rows[0][1]
    return "line 8: train_0.png stands in splits 'train' and 'test' .*line 2"


def empty_class(root, rows):
    for row in rows[:4]:
        row[2] = "a"
    return "class 'b' .label 1. has no training image"


@pytest.mark.parametrize(
    "spoil",
    [
        missing_image, unreadable_image, label_out_of_range, unknown_label, mask_of_another_size,
        image_in_two_splits, empty_class,
    ],
)  # fmt: skip
def test_bad_data_is_named_by_line(spoil, tmp_path, capsys):
    root = tmp_path / "my data"
    rows = manifest(root)
    expected = spoil(root, rows)
    write_manifest(root, rows)
    status, _, err = run(fit_on(root), capsys)
    assert status == 1
    assert "error: FolderData" in err or "error: Manifest" in err
    assert pd.Series([err]).str.contains(expected, regex=True).item(), err
    assert not Path("run/checkpoints").exists()


def test_all_problems_of_the_data_come_at_once(tmp_path, capsys):
    rows = manifest(tmp_path)
    lines = [spoil(tmp_path, rows) for spoil in (missing_image, mask_of_another_size)]
    write_manifest(tmp_path, rows)
    _, _, err = run(fit_on(tmp_path), capsys)
    assert "2 problems" in err
    assert len(lines) == 2
    assert "line 3" in err
    assert "line 7" in err


def test_good_data_trains(tmp_path, capsys):
    write_manifest(tmp_path, manifest(tmp_path))
    status, out, _ = run(fit_on(tmp_path), capsys)
    assert status == 0
    assert "epoch 1/1: train/loss " in out
    assert f"run folder: {tmp_path}/run" in out
    assert Path("run/checkpoints/best_loc.ckpt").is_file()


def test_an_empty_class_folder(tmp_path, capsys):
    picture(tmp_path / "train/a/1.png")
    (tmp_path / "train/b").mkdir()
    status, _, err = run(fit_on(tmp_path), capsys)
    assert status == 1
    assert "train/b: it holds no image" in err


def test_a_missing_data_folder(capsys):
    status, _, err = run(fit_on("nowhere, at all"), capsys)
    assert status == 1
    assert "Folder nowhere, at all" in err
    assert "does not exist" in err


def broken_weights():
    state = {k: v.clone() for k, v in Encoder("test_resnet").model.state_dict().items()}
    state["conv1.weight" if "conv1.weight" in state else next(iter(state))].view(-1)[3] = np.nan
    save_file(state, "weights.safetensors")


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--model.weights", "no.pth"], ["no weight file no.pth"]),
        (["--model.weights", "weights.safetensors"], ["weights.safetensors holds NaN or infinite"]),
        (["--model.encoder", "resnet5"], ["timm has no network 'resnet5'", "resnet50"]),
        (["--model.stride", "7"], ["7"]),
        (["--data.train", "1"], ["train=1", "every split needs all 4 classes"]),
        (["--data.train_resize", "20"], ["train_resize=20 is smaller"]),
        (["--trainer.accelerator", "gpux"], ["accelerator='gpux'"]),
        (["--trainer.enable_checkpointing", "false"], ["enable_checkpointing=False"]),
    ],
)
def test_bad_values(arguments, messages, capsys):
    broken_weights()
    status, _, err = run([*FIT, *arguments], capsys)
    assert status == 1
    for message in messages:
        assert message in err
    assert "Union" not in err
    assert "Namespace" not in err


CONFIG = {
    "model": {
        "class_path": "wsl_zoo.methods.CAMClassifier",
        "init_args": {"encoder": "test_resnet"},
    },
    "data": {"class_path": "wsl_zoo.data.SyntheticData", "init_args": {"train": 16}},
    "trainer": {"max_epochs": 1},
}


@pytest.mark.parametrize(
    ("place", "messages"),
    [
        ({"model": {"init_args": {"encodr": "x"}}}, ["encodr", "Did you mean 'encoder'?"]),
        ({"data": {"init_args": {"batchsize": 2}}}, ["batchsize", "Did you mean 'batch_size'?"]),
        ({"trainer": {"max_epoch": 2}}, ["max_epoch'", "Did you mean 'max_epochs'?"]),
        ({"traner": {"max_epochs": 2}}, ["traner", "Did you mean 'trainer'?"]),
        ({"rundir": "x"}, ["rundir", "Did you mean 'run_dir'?"]),
        ({"model": {"class_path": "CAMClasifier"}}, ["Did you mean 'CAMClassifier'?"]),
        (
            {"data": {"class_path": "wsl_zoo.data.SyntheticDat"}},
            ["'SyntheticDat'", "Did you mean 'SyntheticData'?"],
        ),
        ({"model": {"init_args": {"lr": "fast"}}}, ['"lr"', "float", "fast"]),
        ({"data": {"init_args": {"batch_size": "four"}}}, ['"batch_size"', "int", "four"]),
        ({"trainer": {"max_epochs": "ten"}}, ['"trainer.max_epochs"', "int", "ten"]),
        ({"model": {"init_args": {"norm_order": "after"}}}, ["before_upsample", "after_upsample"]),
        ({"model": {"ini_args": {}, "init_args": None}}, ["keys class_path and init_args"]),
    ],
)
def test_wrong_keys_and_types_in_a_config(place, messages, capsys):
    config = json.loads(json.dumps(CONFIG))
    for part, value in place.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                old = config.setdefault(part, {}).get(key)
                config[part][key] = old | inner if isinstance(old, dict) and inner else inner
        else:
            config[part] = value
    if config["model"].get("init_args", 0) is None:
        del config["model"]["init_args"]
    Path("bad.yaml").write_text(yaml.safe_dump(config))
    status, _, err = run(["fit", "--config", "bad.yaml"], capsys)
    assert status == 2
    assert err.startswith("error: ")
    for message in messages:
        assert message in err
    assert "Union" not in err
    assert "NoneType" not in err


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["fitt"], ["unknown command 'fitt'", "Did you mean 'fit'?"]),
        (["xyz"], ["unknown command 'xyz'"]),
        (["fit", "--config", "cam/synthetik"], ["'cam/synthetik'", "cam/synthetic"]),
        (["fit", "--config"], ["--config needs a value"]),
        (["fit"], ["required", "--config FILE"]),
        (["fit", "-c", "cam/synthetic", "--model.encodr", "x"], ["Did you mean 'encoder'?"]),
        (["fit", "-c", "cam/synthetic", "--trainer.max_epoch", "1"], ["'max_epochs'?"]),
        (["fit", "-c", "cam/synthetic", "--runs_dir", "x"], ["Did you mean 'run_dir'?"]),
        (["fit", "-c", "cam/synthetic", "--model", "CAMClasifier"], ["'CAMClassifier'?"]),
        (["fit", "-c", "cam/synthetic", "--then_test", "[best]"], ["best_cl", "best_loc", "last"]),
        (["fit", "-c", "cam/synthetic", "--then_test", "[best_loc_a]"], ["'best_loc'?"]),
        (["fit", "-c", "broken.yaml"], ["broken.yaml is not valid YAML", "line 1"]),
        (["fit", "-c", "list.yaml"], ["list.yaml: expected the keys model, data, trainer"]),
        (["test", "-c", "cam/synthetic"], ["test needs --ckpt_path", "untrained"]),
        (["test", "--ckpt_path", "no.ckpt"], ["there is no checkpoint no.ckpt"]),
        (["test", "--ckpt_path", "broken.yaml"], ["broken.yaml is damaged or not a checkpoint"]),
        (["test", "--ckpt_path", "cut.ckpt"], ["cut.ckpt is damaged or not a checkpoint"]),
        (["test", "--ckpt_path", "foreign.ckpt"], ["foreign.ckpt is not a checkpoint of wsl_zoo"]),
        (["test", "--ckpt_path", "tensor.ckpt"], ["tensor.ckpt is not a checkpoint of wsl_zoo"]),
        (["predict", "--images", "x"], ["predict --ckpt_path CKPT --images DIR"]),
        (["test", "--ckpt_path", "CKPT", "--images", "x"], ["predict --ckpt_path CKPT --images"]),
        (["predict", "--ckpt_path", "CKPT", "--images", "no dir"], ["no dir", "does not exist"]),
        (["predict", "--ckpt_path", "CKPT", "--images", "broken.yaml"], ["not a readable image"]),
        (["predict", "--ckpt_path", "CKPT"], ["--images DIR"]),
        (["list", "method"], ["no list of 'method'", "methods, data"]),
        (["table", "nowhere"], ["no results.jsonl below nowhere"]),
        (["table"], ["usage: wsl-zoo table DIR"]),
        (["run", "no.yaml"], ["config 'no.yaml'", "pipelines/glas_cv"]),
        (["run", "cam/synthetic"], ["unknown key 'seed_everything'"]),
    ],
)
def test_wrong_usage(arguments, messages, checkpoint, capsys):
    Path("broken.yaml").write_text("model: [")
    Path("list.yaml").write_text("- 1")
    Path("cut.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    torch.save({"state_dict": {}}, "foreign.ckpt")
    torch.save(torch.zeros(2), "tensor.ckpt")
    before = sorted(Path().rglob("*"))
    arguments = [str(checkpoint) if argument == "CKPT" else argument for argument in arguments]
    status, _, err = run(arguments, capsys)
    assert status in {1, 2}
    assert "error: " in err
    for message in messages:
        assert message in err
    assert sorted(Path().rglob("*")) == before  # a mistake leaves nothing behind


def test_a_used_run_folder_is_refused_and_not_touched(trained, capsys):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    status, _, err = run([*FIT, "--run_dir", trained], capsys)
    assert status == 1
    assert "holds a run already" in err
    assert f"--ckpt_path {trained}/checkpoints/last.ckpt" in err
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_traceback_on_request(monkeypatch):
    monkeypatch.setenv("WSL_ZOO_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint no\.ckpt"):
        main(["test", "--ckpt_path", "no.ckpt"])


# A run and what it leaves ------------------------------------------------------------------------


def test_layout_of_a_run_folder(trained):
    files = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    assert files >= {
        "metrics.csv", "config.yaml", "results.jsonl",
        "checkpoints/last.ckpt", "checkpoints/best_cl.ckpt", "checkpoints/best_loc.ckpt",
        "panels/val/epoch_000.png", "panels/val/epoch_001.png",
        "panels/test_best_cl.png", "panels/test_best_loc.png",
    }  # fmt: skip
    metrics = pd.read_csv(trained / "metrics.csv")
    assert metrics["val/acc"].count() == 2
    assert metrics["val/pxap"].between(0, 1).sum() == 2
    assert metrics["train/loss"].count() == 2
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["init_args"]["norm_order"] == "after_upsample"
    assert config["seed_everything"] == 5
    with Image.open(trained / "panels" / "test_best_cl.png") as image:
        assert min(image.size) > 90
    rows = [json.loads(line) for line in (trained / "results.jsonl").read_text().splitlines()]
    assert [row["checkpoint"] for row in rows] == ["best_cl", "best_loc"]
    assert all(0 <= row["metrics"]["test/pxap"] <= 1 for row in rows)


def test_checkpoints_are_the_best_by_validation(trained):
    metrics = pd.read_csv(trained / "metrics.csv")
    for name, metric in (("best_cl", "val/acc"), ("best_loc", "val/pxap")):
        epoch = int(metrics.dropna(subset=[metric]).set_index("epoch")[metric].idxmax())
        assert state_of(trained / "checkpoints" / f"{name}.ckpt")["epoch"] == epoch
    assert state_of(trained / "checkpoints" / "last.ckpt")["global_step"] == 2 * 4


def test_output_of_a_run_is_quiet_and_fits_a_terminal(trained):
    out = (trained / "stdout.txt").read_text()
    lines = out.splitlines()
    assert "\r" not in out  # no progress bar where stdout is no terminal
    assert [line.split(":")[0] for line in lines if line.startswith("epoch ")] == [
        "epoch 1/2",
        "epoch 2/2",
    ]
    metrics = pd.read_csv(trained / "metrics.csv")
    loss = metrics["train/loss"].dropna().tolist()
    assert f"train/loss {loss[1]:.4f}" in out
    assert f"val/pxap {metrics['val/pxap'].dropna().iloc[1]:.4f}" in out
    assert out.count("Results, %") == 1  # one table for both tests, not Lightning's beside it
    assert "DataLoader 0" not in out
    row = json.loads((trained / "results.jsonl").read_text().splitlines()[0])
    assert f"{100 * row['metrics']['test/pxap']:.2f}" in out
    folder = str(trained)
    assert folder in out.replace("\n", "").replace("  ", "") or folder.split("/")[-1] in out


def test_runs_are_numbered(capsys):
    one = [*FIT, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
    for version in (0, 1):
        assert run(one, capsys)[0] == 0
        folder = Path(f"runs/cam_synthetic/version_{version}")
        assert (folder / "config.yaml").is_file()
        assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert not Path("checkpoints").exists()


def test_test_and_validate_from_elsewhere(trained, checkpoint, capsys):
    results = trained / "results.jsonl"
    before = results.read_text()
    panels = {path: path.read_bytes() for path in (trained / "panels" / "val").iterdir()}
    config = ["--config", trained / "config.yaml", "--ckpt_path", checkpoint]
    status, out, err = run(["test", *config], capsys)
    assert status == 0
    assert "DataLoader 0" not in out
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert results.read_text().startswith(before)
    assert rows[-1]["checkpoint"] == "best_loc"
    assert rows[-1]["metrics"] == rows[1]["metrics"]  # what `then_test` found
    assert f"{100 * rows[-1]['metrics']['test/acc']:.2f}" in out
    assert "dirpath" not in err

    status, out, err = run(["validate", *config], capsys)
    assert status == 0
    assert "val/pxap" in out
    epoch = state_of(checkpoint)["epoch"]
    metrics = pd.read_csv(trained / "metrics.csv")
    value = metrics.dropna(subset=["val/pxap"]).set_index("epoch")["val/pxap"][epoch]
    assert str(value)[:6] in out
    now = {path: path.read_bytes() for path in panels}
    assert now == panels  # the pictures of the training stay
    assert list(Path().iterdir()) == []


# Selection by pseudo-boxes -----------------------------------------------------------------------

SIDE = 64


def pseudo_boxed(root):
    """Images in class folders, true boxes of the test only, and two roots that disagree."""
    names = []
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        for label in "ab":
            for i in range(count):
                name = f"{split}/{label}/{i}.png"
                picture(root / name, (SIDE, SIDE), value=len(names))
                names.append(name)
    rows = {
        "whole": [[0, 0, SIDE, SIDE]],
        # Some of them fits whatever is left of a map at a high threshold.
        "small": [[x, y, x + 20, y + 20] for x in range(0, 50, 5) for y in range(0, 50, 5)],
    }
    for folder, boxes in rows.items():
        path = root / "meta" / folder / "val" / "localization.txt"
        path.parent.mkdir(parents=True)
        lines = [[n, *box] for n in names if n.startswith("val") for box in boxes]
        path.write_text("\n".join(",".join(map(str, line)) for line in lines))
    tests = [f"{name},0,0,{SIDE},{SIDE}" for name in names if name.startswith("test")]
    (root / "boxes.csv").write_text("\n".join(["image,x0,y0,x1,y1", *tests]))
    return {name: f"{root}/meta/{name}" for name in rows}


def best_threshold(model, root, boxes):
    """The threshold of MaxBoxAcc over the validation images of a folder."""
    metric = MaxBoxAcc()
    for label, name in enumerate(("a", "b")):
        for path in sorted((root / "val" / name).iterdir()):
            score_map = torch.from_numpy(model.predict_image(path, target=label).map)
            metric.update(score_map[None], [torch.tensor(boxes, dtype=torch.float64)])
    return metric.best_threshold().item()


def test_threshold_and_checkpoint_by_pseudo_boxes(tmp_path, capsys):
    root = tmp_path / "images"
    roots = pseudo_boxed(root)
    tested = ["best_loc", "best_loc_whole", "best_loc_small"]
    status, out, _ = run(
        [*fit_on(root), "--data.image_size", SIDE, "--data.val_roots", json.dumps(roots),
         "--trainer.max_epochs", "2", "--then_test", json.dumps(tested)], capsys,
    )  # fmt: skip
    assert status == 0
    assert all(name in out for name in tested)
    folder = Path("run/checkpoints")
    assert sorted(path.stem for path in folder.iterdir()) == [
        "best_cl", "best_loc", "best_loc_small", "best_loc_whole", "last",
    ]  # fmt: skip
    metrics = pd.read_csv("run/metrics.csv")
    chosen = {}
    for name in roots:
        text = (Path(roots[name]) / "val" / "localization.txt").read_text()
        rows = [line.split(",") for line in text.splitlines() if line.startswith("val/a/0.png")]
        boxes = [list(map(float, row[1:])) for row in rows]
        model = wsl_zoo.load(folder / f"best_loc_{name}.ckpt")
        chosen[name] = model.chosen_threshold
        # Images came in batches there: a level of 1/255 may round to its neighbour.
        assert chosen[name] == pytest.approx(best_threshold(model, root, boxes), abs=0.01)
        scores = metrics.dropna(subset=[f"val_{name}/maxboxacc"]).set_index("epoch")
        state = state_of(folder / f"best_loc_{name}.ckpt")
        assert state["epoch"] == int(scores[f"val_{name}/maxboxacc"].idxmax())
        assert scores[f"val_{name}/maxboxacc"].max() > 0
    assert chosen["whole"] + 0.1 < chosen["small"]
    assert "val/maxboxacc" not in metrics  # no true box to select by
    judge = wsl_zoo.load(folder / "best_loc.ckpt")
    assert judge.chosen_threshold == chosen["whole"]  # the first root, without any truth
    rows = [json.loads(line) for line in Path("run/results.jsonl").read_text().splitlines()]
    assert [row["checkpoint"] for row in rows] == tested
    # Each is tested at its own threshold: true boxes are whole images here.
    judged, whole, small = (row["metrics"]["test/boxacc"] for row in rows)
    assert judged == whole > small


def test_unknown_checkpoints_are_refused_before_the_fit(tmp_path, capsys):
    roots = pseudo_boxed(tmp_path / "images")
    status, _, err = run(
        [*fit_on(tmp_path / "images"), "--data.val_roots", json.dumps(roots),
         "--then_test", '["best_cl","best_loc_smal"]'], capsys,
    )  # fmt: skip
    assert status == 1
    assert "keeps best_cl, best_loc, best_loc_whole, best_loc_small, last" in err
    assert "no 'best_loc_smal' (did you mean 'best_loc_small'?)" in err
    assert not Path("run").exists()


def test_bad_pseudo_boxes_are_named_by_line(tmp_path, capsys):
    roots = pseudo_boxed(tmp_path / "images")
    path = Path(roots["whole"]) / "val" / "localization.txt"
    path.write_text("val/a/0.png,0,0,5\n" + path.read_text())
    status, _, err = run(
        [*fit_on(tmp_path / "images"), "--data.val_roots", json.dumps(roots)], capsys
    )
    assert status == 1
    assert f"{path}, line 1: expected path,x0,y0,x1,y1, found 'val/a/0.png,0,0,5'" in err


# Prediction --------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "my images, mixed"
    picture(folder / "a.jpg", (60, 40), 1)
    picture(folder / "a.png", (31, 47), 2)
    picture(folder / "sub one" / "a.png", (50, 50), 3)
    picture(folder / "sub one" / "grey.png", (33, 20), 4, "L")
    picture(folder / "rgba.png", (20, 64), 5, "RGBA")
    with Image.open(picture(folder / "palette.bmp", (48, 48), 6)) as image:
        image.quantize(16).save(folder / "palette.png")
    (folder / "palette.bmp").unlink()
    (folder / "notes.txt").write_text("no image")
    return folder


def test_predict_on_a_folder_of_images(trained, checkpoint, images, capsys):
    status, out, _ = run(
        [
            "predict",
            "--ckpt_path",
            checkpoint,
            "--images",
            images,
            *CPU,
            "--maps.folder",
            "out dir",
        ],
        capsys,
    )
    assert status == 0
    assert "6 predictions in out dir" in out
    found = sorted(path.relative_to("out dir").as_posix() for path in Path("out dir").rglob("*.*"))
    stems = ["a_jpg", "a_png", "palette_png", "rgba_png", "sub one/a_png", "sub one/grey_png"]
    assert found == sorted(
        [f"{stem}{ending}" for stem in stems for ending in (".npz", ".png")] + ["predictions.csv"]
    )
    model = wsl_zoo.load(checkpoint)
    with Path("out dir/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        path = Path(row["image"])
        stem = path.relative_to(images)
        written = np.load(Path("out dir") / stem.with_name(f"{stem.stem}_{stem.suffix[1:]}.npz"))
        with Image.open(path) as image:
            height, width = image.size[::-1]
        score_map = written["map"]
        assert score_map.shape == (height, width)
        assert score_map.min() >= 0
        assert score_map.max() <= 1
        expected = model.predict_image(path)
        assert row["class"] == expected.class_name == model.class_names[int(written["label"])]
        assert float(row["probability"]) == pytest.approx(expected.probability, abs=1e-4)
        np.testing.assert_allclose(score_map, expected.map, atol=2e-3)
        boxes = [list(map(int, box.split())) for box in row["boxes"].split(";") if box]
        assert boxes == written["boxes"].tolist()
        drawn = Path("out dir") / stem.with_name(f"{stem.stem}_{stem.suffix[1:]}.png")
        with Image.open(drawn) as image:
            assert image.size == (width, height)


def test_predict_one_image_with_a_config_and_flags_beside(trained, checkpoint, images, capsys):
    # `--images` wins over the data of the config, flags over what it says of them.
    status, out, _ = run(
        ["predict", "--config", trained / "config.yaml", "--ckpt_path", checkpoint,
         f"--images={images / 'a.jpg'}", "--data.batch_size", "1", "--maps.folder=out"], capsys,
    )  # fmt: skip
    assert status == 0
    assert "1 predictions in out" in out
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "a_jpg.npz", "a_jpg.png", "predictions.csv",
    ]  # fmt: skip


def test_predictions_stand_in_the_run_folder(trained, checkpoint, images, capsys):
    assert run(["predict", "--ckpt_path", checkpoint, "--images", images, *CPU], capsys)[0] == 0
    assert (trained / "predictions" / "predictions.csv").is_file()
    assert not Path("predictions").exists()


def test_a_checkpoint_elsewhere_is_enough(checkpoint, images, capsys):
    Path("best model.ckpt").write_bytes(checkpoint.read_bytes())
    status, _, _ = run(["predict", "--ckpt_path=best model.ckpt", "--images", images, *CPU], capsys)
    assert status == 0
    assert Path("predictions/predictions.csv").is_file()


def test_predict_without_class_names(images, capsys, tmp_path):
    from tests.cases import tiny_data, trainer

    model = CAMClassifier(encoder="test_resnet", num_classes=4)
    run_ = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run_.fit(model, tiny_data())
    run_.save_checkpoint("plain.ckpt")
    status, _, _ = run(["predict", "--ckpt_path", "plain.ckpt", "--images", images, *CPU], capsys)
    assert status == 0
    classes = pd.read_csv("predictions/predictions.csv")["class"]
    assert set(classes.astype(str)) <= {"0", "1", "2", "3"}


# Precedence --------------------------------------------------------------------------------------


def hparams_of(command, *arguments):
    """The model's hyper-parameters as a command builds it; nothing is run."""
    full, name = complete(command, [str(argument) for argument in arguments])
    with cli.command_line(full), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.ZooCLI, "_run_subcommand", lambda self, subcommand: None)
        return cli.ZooCLI(name).model.hparams


def test_what_wins_over_what(trained, checkpoint):
    data = ["--data", "SyntheticData", "--data.image_size", "48"]
    saved = hparams_of("test", "--ckpt_path", checkpoint, *data)
    assert CAMClassifier().hparams["norm_order"] == "before_upsample"
    assert saved["norm_order"] == "after_upsample"  # of the checkpoint, not the class's default
    assert saved["stride"] == 16
    assert saved["encoder"] == "test_resnet"
    shipped = hparams_of("test", "--config", "cam/synthetic", "--ckpt_path", checkpoint)
    assert shipped["norm_order"] == "after_upsample"  # this config says nothing of it
    flag = hparams_of(
        "test", f"--ckpt_path={checkpoint}", *data, "--model.norm_order", "before_upsample"
    )
    assert flag["norm_order"] == "before_upsample"
    assert flag["stride"] == 16
    Path("my.yaml").write_text("model: {init_args: {norm_order: before_upsample}}")
    by_config = hparams_of("test", "--config", "my.yaml", "--ckpt_path", checkpoint, *data)
    assert by_config["norm_order"] == "before_upsample"
    both = hparams_of("test", "--config", "my.yaml", "--ckpt_path", checkpoint, *data,
                      "--model.norm_order", "after_upsample")  # fmt: skip
    assert both["norm_order"] == "after_upsample"


def test_a_flag_changes_the_result(trained, checkpoint, capsys):
    for order in ("after_upsample", "before_upsample"):
        flag = ["--model.norm_order", order]
        arguments = ["--config", trained / "config.yaml", "--ckpt_path", checkpoint, *flag]
        assert run(["test", *arguments], capsys)[0] == 0
    rows = [json.loads(line) for line in (trained / "results.jsonl").read_text().splitlines()]
    assert rows[-2]["metrics"]["test/acc"] == rows[-1]["metrics"]["test/acc"]
    assert rows[-2]["metrics"]["test/pxap"] != rows[-1]["metrics"]["test/pxap"]


def test_a_resumed_run_keeps_its_seed(trained, checkpoint):
    data = ["--data", "SyntheticData"]
    assert hparams_of("fit", "--ckpt_path", checkpoint, *data)["seed"] == 5
    assert (
        hparams_of("fit", "--ckpt_path", checkpoint, *data, "--seed_everything", "6")["seed"] == 6
    )


def test_a_checkpoint_named_by_a_config(trained, checkpoint):
    # The `config.yaml` of a resumed run names the checkpoint that it went on from.
    Path("resumed.yaml").write_text(yaml.safe_dump(CONFIG | {"ckpt_path": str(checkpoint)}))
    assert hparams_of("test", "--config", "resumed.yaml")["norm_order"] == "after_upsample"
    fresh = hparams_of("fit", "--config", "resumed.yaml", "--ckpt_path", "null")
    assert fresh["norm_order"] == "before_upsample"


# Interruptions -----------------------------------------------------------------------------------

LONG = ["--config", "cam/synthetic", "--data.train", "64", "--trainer.max_epochs", "3", *SMALL]
STEPS = 64 // 4


def start(*arguments):
    """`python -m wsl_zoo fit ...` in a process of its own, with our number of threads."""
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}
    log = Path("log.txt").open("w")  # noqa: SIM115
    return subprocess.Popen(
        [sys.executable, "-m", "wsl_zoo", "fit", *map(str, arguments)],
        env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def wait_until(condition, process):
    """Wait as long as the process lives: a slow machine takes its time."""
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, Path("log.txt").read_text()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_run_resumed_equals_an_unbroken_one(capsys):
    last = Path("killed/checkpoints/last.ckpt").absolute()
    long = [*LONG, "--trainer.max_epochs", "10"]  # so that a busy machine kills it in time
    workers = ["--data.num_workers", "2", "--last.every_n_train_steps", "1"]
    process = start(*long, *workers, "--run_dir", "killed")
    try:
        wait_until(lambda: last.exists() and state_of(last)["global_step"] > STEPS + 2, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    reached = state_of(last)["global_step"]
    assert STEPS + 2 < reached < 10 * STEPS
    early = pd.read_csv("killed/metrics.csv")  # nothing logged is lost with the process
    assert early["val/acc"].count() == reached // STEPS or reached % STEPS < 2

    arguments = [*long, "--data.num_workers", "0", "--last.every_n_train_steps", "1"]
    status, _, _ = run(["fit", *arguments, "--ckpt_path", last], capsys)
    assert status == 0
    assert not Path("runs").exists()
    assert run(["fit", *long, "--run_dir", "unbroken"], capsys)[0] == 0
    resumed, unbroken = state_of(last), state_of("unbroken/checkpoints/last.ckpt")
    assert resumed["global_step"] == unbroken["global_step"] == 10 * STEPS
    assert resumed["state_dict"].keys() == unbroken["state_dict"].keys()
    for name, value in unbroken["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    assert (Path("killed") / "metrics_0.csv").is_file()
    pd.testing.assert_frame_equal(pd.read_csv("killed/metrics_0.csv"), early)
    assert (Path("killed") / "config_0.yaml").is_file()
    if reached % STEPS == 0:
        return  # killed within a validation, which a resumed run does not go through again
    late = pd.read_csv("killed/metrics.csv")
    whole = pd.read_csv("unbroken/metrics.csv")
    for key in ("val/acc", "val/pxap"):
        theirs = whole.dropna(subset=[key]).set_index("epoch")[key]
        ours = pd.concat([early, late]).dropna(subset=[key]).set_index("epoch")[key]
        assert ours.to_dict() == theirs.to_dict()
    for name in ("best_cl", "best_loc"):
        a, b = (state_of(f"{run_}/checkpoints/{name}.ckpt") for run_ in ("killed", "unbroken"))
        assert a["epoch"] == b["epoch"]


def test_a_terminated_run_saves_and_does_not_look_finished():
    last = Path("run/checkpoints/last.ckpt")  # after each epoch, of 100 steps
    process = start(*LONG, "--run_dir", "run", "--data.train", "400", "--trainer.max_epochs", "50")
    try:
        wait_until(last.exists, process)
        assert state_of(last)["global_step"] == 100
        process.terminate()
        assert process.wait(300) == 128 + signal.SIGTERM
    finally:
        if process.poll() is None:
            process.kill()
    assert 100 < state_of(last)["global_step"] < 5000


def test_an_interrupted_run_saves(capsys, monkeypatch):
    step = CAMClassifier.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == STEPS + 3:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(CAMClassifier, "training_step", interrupted)
    try:
        status, _, _ = run(["fit", *LONG, "--run_dir", "run"], capsys)
    finally:
        signal.signal(signal.SIGINT, before)
    assert status not in {0, None}
    assert state_of("run/checkpoints/last.ckpt")["global_step"] == STEPS + 3


@pytest.mark.parametrize("spelling", ["relative", "absolute"])
def test_a_resumed_run_remembers_its_best(spelling, trained, capsys):
    """A last epoch that is worse must not take the place of the best one before it."""
    Path("run").mkdir()
    assert run([*FIT, "--run_dir", "run"], capsys)[0] == 0
    folder = Path("run").absolute() if spelling == "absolute" else Path("run")
    best = state_of("run/checkpoints/best_loc.ckpt")["callbacks"]
    score = max(v["best_model_score"] for k, v in best.items() if k == "BestCheckpoint-loc")
    status, _, _ = run(
        [*FIT, "--ckpt_path", folder / "checkpoints" / "last.ckpt", "--trainer.max_epochs", "3"],
        capsys,
    )
    assert status == 0
    callbacks = state_of("run/checkpoints/last.ckpt")["callbacks"]
    assert callbacks["BestCheckpoint-loc"]["best_model_score"] >= score


# Weights & Biases --------------------------------------------------------------------------------


def wandb_records(path):
    """The records of an offline run (LevelDB's log format after a header of 7 bytes)."""
    from wandb.proto import wandb_internal_pb2

    data, records, part = path.read_bytes(), [], b""
    position = 7
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in {1, 4}:  # whole, or the last of several
            records.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return records


def all_wandb_records(path, seconds=300):
    """The records up to a run's exit: W&B may write on when `finish` has returned."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(DecodeError):  # cut off in a record
            records = wandb_records(path)
            if any(record.HasField("exit") for record in records):
                return records
        assert time.monotonic() < end, "the run has no end"
        time.sleep(0.1)


def test_wandb_by_one_flag(capsys):
    import wandb

    try:
        status, _, _ = run([*FIT, "--run_dir", "run", "--wandb", "my-project"], capsys)
    finally:
        wandb.finish()
    assert status == 0
    (folder,) = Path("run/wandb").glob("offline-run-*")
    pictures = list((folder / "files" / "media" / "images" / "panels").glob("*.png"))
    assert len(pictures) == 2  # one per epoch
    with Image.open(pictures[0]) as image, Image.open("run/panels/val/epoch_000.png") as panel:
        assert image.size == panel.size
    (file,) = folder.glob("run-*.wandb")
    records = all_wandb_records(file)
    history: dict[str, list[float]] = {}
    config = {}
    for record in records:
        if record.HasField("run"):
            assert record.run.project == "my-project"
        for item in record.history.item:
            key = item.key or "/".join(item.nested_key)
            history.setdefault(key, []).append(json.loads(item.value_json))
        for update in (*record.config.update, *record.run.config.update):
            config[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
    metrics = pd.read_csv("run/metrics.csv")
    for key in ("val/acc", "val/pxap", "train/loss"):
        assert history[key] == pytest.approx(metrics[key].dropna().tolist())
    whole = config["config"]
    assert whole["data"]["init_args"]["image_size"] == 48
    assert whole["trainer"]["max_epochs"] == 2
    assert config["norm_order"] == "before_upsample"
