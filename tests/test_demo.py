"""`wsl-zoo demo`: two stages, one table, one picture."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsl_zoo import pictures
from wsl_zoo.__main__ import main
from wsl_zoo.demo import demo

TINY = [
    "--data.train", "16", "--data.val", "8", "--data.test", "8", "--data.image_size", "48",
    "--data.batch_size", "4", "--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "0",
    "--trainer.accelerator", "cpu", "--trainer.enable_model_summary", "false",
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def test_both_stages_in_one_table_and_one_picture(capsys):
    stages = demo(TINY)
    out = capsys.readouterr().out
    first, second = (Path(stage.trainer.log_dir) for stage in stages.values())
    assert first == Path("runs/cam_synthetic/version_0").absolute()
    assert second == Path("runs/fcam_synthetic/version_0").absolute()
    assert stages["F-CAM"].model.hparams["classifier"] == str(first / "checkpoints/best_cl.ckpt")
    assert stages["F-CAM"].model.hparams["seeder"] == str(first / "checkpoints/best_loc.ckpt")
    assert out.count("epoch 1/1: ") == 2
    assert out.count("Results, %") == 1
    rows = [line.split("│")[1:-1] for line in out.splitlines() if "PxAP  " in line]
    scores = [json.loads((folder / "results.jsonl").read_text()) for folder in (first, second)]
    assert [row["checkpoint"] for row in scores] == ["best_loc", "best_loc"]
    assert [cell.strip() for cell in rows[0][1:]] == [
        f"{100 * row['metrics']['test/pxap']:.2f}" for row in scores
    ]
    (path,) = (Path(line.strip()) for line in out.splitlines() if line.endswith(".png"))
    assert path == second / "panels" / "demo.png"

    with Image.open(path) as image:
        drawn = np.asarray(image)
    sample = stages["CAM"].datamodule.dataset("test").sample(0)
    side = pictures.GAP + 48
    assert drawn.shape[1] == 2 * (4 * side + 2 * pictures.GAP) - pictures.GAP
    tiles = [
        drawn[pictures.LINE + pictures.GAP :, pictures.GAP + i * side :][:48, :48] for i in range(4)
    ]
    assert (tiles[0] == sample.image).all()
    assert ((tiles[1][..., 0] == 255) == (sample.mask == 1)).all()
    for stage, tile in zip(stages.values(), tiles[2:], strict=True):
        path = Path(stage.trainer.log_dir) / "checkpoints" / "best_loc.ckpt"
        stored = torch.load(path, weights_only=True)["wsl_zoo"]["thresholds"]
        assert stage.model.thresholds.state() == stored
        found = stage.model.predict_image(sample.image, sample.label)
        expected = pictures.overlay(sample.image, found.map)
        same = (tile == expected).all(axis=2)
        green, red = ((tile == color).all(axis=2) for color in (pictures.TRUTH, pictures.PREDICTED))
        assert (same | green | red).all()
        assert same.any()
        x0, y0, _, y1 = sample.boxes[0].round().astype(int)
        assert (green | red)[y0 : y1 + 1, x0].all()


def test_a_folder_of_its_own_and_other_options(capsys):
    arguments = ["demo", *TINY, "--run_dir", "my demo", "--then_test=[best_cl,last]"]
    assert main([*arguments, "--model.lr", "0.002"]) == 0
    out = capsys.readouterr().out
    for name in ("CAM", "F-CAM"):
        folder = Path("my demo") / name
        kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert kept["hyper_parameters"]["lr"] == 0.002
    head = [line.split("┃")[2:-1] for line in out.splitlines() if line.startswith("┃")]
    assert [" ".join(map(str.strip, column)) for column in zip(*head, strict=True)] == [
        "CAM best_cl", "CAM last", "F-CAM best_cl", "F-CAM last",
    ]  # fmt: skip
    assert not Path("runs").exists()
    assert f"{Path.cwd()}/my demo/F-CAM/panels/demo.png" in out


def test_no_validation_no_second_stage(capsys):
    assert main(["demo", *TINY, "--trainer.limit_val_batches", "0"]) == 1
    assert "kept no best_cl: the demo needs its validation" in capsys.readouterr().err
    assert not Path("runs/fcam_synthetic").exists()
