"""CLIP-IT from reports and images to a student, on the command line and offline."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml

import wsl_zoo
from tests.cases import trainer
from tests.cases.clip import tiny_clip
from tests.cases.stages import filled_classifier
from wsl_zoo.__main__ import main
from wsl_zoo.data import SyntheticData
from wsl_zoo.data.texts import read_texts
from wsl_zoo.methods import CLIPIT
from wsl_zoo.reports import read_results

REPORTS = ["no tumour in any node", "carcinoma of low grade", "carcinoma of high grade", "a polyp"]
DATA = {"train": 8, "val": 8, "test": 8, "image_size": 48, "batch_size": 4}
SMALL = {"text_dim": 8, "text_hidden": 8}
TRAINER = {
    "max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0
}  # fmt: skip


def corpus(folder):
    path = folder / "reports.txt"
    path.write_text("\n".join(REPORTS) + "\n", encoding="utf-8")
    return str(path)


def config(folder, method, **arguments):
    path = folder / f"{method}.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "seed_everything": 0,
                "model": {"class_path": f"wsl_zoo.methods.{method}", "init_args": arguments},
                "data": {"class_path": "wsl_zoo.data.SyntheticData", "init_args": DATA},
                "trainer": TRAINER,
            }
        ),
        encoding="utf-8",
    )
    return str(path)


@pytest.mark.slow
def test_the_whole_pipeline_runs_offline(tmp_path, capsys):
    pytest.importorskip("open_clip")
    pair = {"command": "pair", "reports": corpus(tmp_path), "encoder": tiny_clip(tmp_path)}
    every = pair | {"splits": ["train", "val", "test"]}
    probe = {"model.classifier": "{linear probe:best_cl}"}
    text = {"model.text_classifier": "{text classifier:best_cl}"}
    pipeline = {
        "output": str(tmp_path / "out"),
        "config": config(tmp_path, "CLIPIT", encoder="test_resnet", **SMALL),
        "test": ["best_cl"],
        "methods": {
            "pairing": pair,
            "pairing of all": every,
            "text classifier": {
                "config": config(tmp_path, "ReportClassifier", **SMALL),
                "model.pairs": "{pairing of all:pairs}",
            },
            "linear probe": {
                "config": config(
                    tmp_path, "CAMClassifier", encoder="test_resnet", freeze_encoder=True
                )
            },
            "LoRA": probe | {"model.branches": "vision"},
            "CLIP-IT": probe | {"model.pairs": "{pairing:pairs}"},
            "text at test": probe | text | {
                "model.branches": "report", "model.pairs": "{pairing of all:pairs}"
            },
        },
    }  # fmt: skip
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline, sort_keys=False), encoding="utf-8")
    assert main(["run", str(path)]) == 0
    out = tmp_path / "out"
    pairing = out / "pairing" / "seed0" / "pairs"
    assert sorted(file.name for file in pairing.glob("*.csv")) == ["reports.csv", "train.csv"]
    rows = [
        row
        for name in ("text classifier", "linear probe", "LoRA", "CLIP-IT", "text at test")
        for row in read_results(out / name / "seed0")
    ]
    assert len(rows) == 5
    model = wsl_zoo.load(out / "CLIP-IT" / "seed0" / "checkpoints" / "best_cl.ckpt")
    assert isinstance(model, CLIPIT)
    capsys.readouterr()
    assert main(["run", str(path)]) == 0
    assert capsys.readouterr().out.count("finished before") == 7


def test_features_of_files_need_no_text_encoder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.normal(size=(8, 8)).astype("float32"))
    np.save(tmp_path / "texts.npy", rng.normal(size=(4, 8)).astype("float32"))
    fit = config(tmp_path, "CLIPIT", encoder="test_resnet", lora_head=False, **SMALL)
    pair = [
        "pair", "--config", fit, "--reports", corpus(tmp_path), "--out", str(tmp_path / "pairs"),
        "--image_features", str(tmp_path / "images.npy"),
        "--report_features", str(tmp_path / "texts.npy"),
    ]  # fmt: skip
    assert main(pair) == 0
    texts = read_texts(tmp_path / "pairs", "train", [f"scene-{i}" for i in range(8)])
    images, reports = np.load(tmp_path / "images.npy"), np.load(tmp_path / "texts.npy")
    cosines = (images / np.linalg.norm(images, axis=1)[:, None]) @ (
        reports / np.linalg.norm(reports, axis=1)[:, None]
    ).T
    assert texts.report.tolist() == cosines.argmax(1).tolist()
    run = ["fit", "--config", fit, "--model.pairs", str(tmp_path / "pairs")]
    assert main([*run, "--run_dir", str(tmp_path / "run")]) == 0
    names = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert {"train/ce", "train/kd", "train/text_alike", "val/acc"} <= set(names.split(","))


def paired_by(folder):
    """A pairing of the built-in scenes by a tiny image-text model."""
    arguments = [f"--data.{key}={value}" for key, value in DATA.items()]
    command = ["pair", "--data", "SyntheticData", *arguments, "--reports", corpus(folder)]
    assert main([*command, "--encoder", tiny_clip(folder), "--out", str(folder / "pairs")]) == 0
    return str(folder / "pairs")


def test_the_published_text_tower_learns_too_and_resumes(tmp_path):
    pytest.importorskip("open_clip")
    pairs, name = paired_by(tmp_path), tiny_clip(tmp_path)
    classifier = filled_classifier(tmp_path, stride=None)
    arguments = {
        "num_classes": 4, "encoder": "test_resnet", "classifier": classifier, "pairs": pairs,
        "lora_rank": 2, "text_encoder": {"name": name}, **SMALL,
    }  # fmt: skip

    def trained(epochs, checkpoint=None):
        torch.manual_seed(0)
        model = CLIPIT(**arguments)
        run = trainer(tmp_path, max_epochs=epochs, limit_val_batches=0)
        run.fit(model, SyntheticData(**DATA), ckpt_path=checkpoint)
        path = tmp_path / f"{epochs}{checkpoint is not None}.ckpt"
        run.save_checkpoint(path)
        return model, path

    one, path = trained(1)
    first = [f.clone() for f in one.text_tower.factors()]
    unbroken, _ = trained(2)
    resumed, end = trained(2, path)
    for ours, theirs in zip(
        resumed.text_tower.factors(), unbroken.text_tower.factors(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert any(not torch.equal(a, b) for a, b in zip(first, resumed.text_tower.factors()))  # noqa: B905
    for key, value in unbroken.state_dict().items():
        assert "text_tower" not in key
        assert torch.equal(resumed.state_dict()[key], value)
    loaded = wsl_zoo.load(end)  # the tower is of training alone
    assert loaded.text_tower is None
    image = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(loaded({"image": image}).logits, resumed.eval()({"image": image}).logits)


def test_a_text_tower_that_does_not_fit_is_refused(tmp_path):
    pytest.importorskip("open_clip")
    arguments = {"num_classes": 4, "encoder": "test_resnet", "lora_head": False, **SMALL}
    tower = {"text_encoder": {"name": tiny_clip(tmp_path)}}
    with pytest.raises(ValueError, match="is of the text that is distilled"):
        CLIPIT(**arguments, **tower, kd_weight=0)
    with pytest.raises(ValueError, match=r"reads the reports of a pairing"):
        trainer(tmp_path).fit(CLIPIT(**arguments, **tower), SyntheticData(**DATA))


def test_pairs_of_another_size_are_refused(tmp_path):
    pytest.importorskip("open_clip")
    pairs = paired_by(tmp_path)
    model = CLIPIT(num_classes=4, encoder="test_resnet", lora_head=False, pairs=pairs, text_dim=9)
    with pytest.raises(ValueError, match=r"--model\.text_dim 8"):
        trainer(tmp_path).fit(model, SyntheticData(**DATA))
    about = json.loads((tmp_path / "pairs" / "pairing.json").read_text(encoding="utf-8"))
    assert list(about["splits"]) == ["train"]
