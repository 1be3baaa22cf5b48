"""Every shipped config parses as it is, and trains with a tiny encoder on tiny data."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import wsl_zoo.data
import wsl_zoo.methods
from experiments.superres.generate import configs as superres_configs
from tests.cases.clip import tiny_clip
from tests.cases.networks import TINY as NETWORKS
from tests.cases.stages import filled_classifier
from wsl_zoo import catalogue
from wsl_zoo.cli import run_trainer
from wsl_zoo.data.reports import Report
from wsl_zoo.data.texts import Pairs, write_pairing

CONFIGS = [e.name for e in catalogue.configs() if not e.name.startswith("pipelines/")]
LINES = 40
TRANSFORMER = re.compile(r"vit|deit|swin|eva", re.IGNORECASE)


def test_there_are_configs():
    assert {"cam/synthetic", "cam/folder", "cam/glas"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_short_and_says_what_it_is(name):
    text = catalogue.config_path(name).read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= LINES
    assert re.match(r"# \S.*\.$", lines[0]), "the first line is a comment of one sentence"
    (entry,) = (entry for entry in catalogue.configs() if entry.name == name)
    assert entry.summary == lines[0].removeprefix("# ")
    config = yaml.safe_load(text)
    assert list(config) == ["seed_everything", "model", "data", "trainer"]
    assert not re.search(r"[:\[,]\s*-?\d+[eE]", text), "write 1.0e-9: YAML reads 1e-9 as a string"
    for part, module in (("model", wsl_zoo.methods), ("data", wsl_zoo.data)):
        prefix, _, class_name = config[part]["class_path"].rpartition(".")
        assert prefix == module.__name__
        assert class_name in module.__all__


@pytest.mark.parametrize("name", CONFIGS)
def test_it_parses_as_it_is(name, capsys):
    with pytest.raises(SystemExit) as stop:
        run_trainer("fit", ["--config", name, "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load(catalogue.config_path(name).read_text(encoding="utf-8"))
    for part in ("model", "data"):
        for key, value in written[part]["init_args"].items():
            assert printed[part]["init_args"][key] == value, f"{part}.{key}"
    for key, value in written["trainer"].items():
        assert printed["trainer"][key] == value


def test_configs_of_the_benchmark_are_what_the_table_makes():
    made = superres_configs()
    assert len(made) == 16 * 3
    folder = catalogue.experiments() / "superres"
    for name, text in made.items():
        assert (folder / name).read_text(encoding="utf-8") == text, f"{name}: generate it anew"
    assert {p.name for p in folder.glob("*_x[248].yaml")} == set(made)


def tiny_rows(kind: type, folder: Path) -> dict[str, Any]:
    """A few rows of a table, or of the built-in exams, as the data of a config."""
    if issubclass(kind, wsl_zoo.data.ExamDataModule):
        arguments: dict[str, Any] = {"train": 8, "val": 8, "test": 8, "batch_size": 4}
        return {"class_path": "wsl_zoo.data.SyntheticExamsData", "init_args": arguments}
    lines = ["rank,a,b", *(f"{i % 3},{i},{i * i % 7}" for i in range(12))]
    (folder / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    arguments = {"path": str(folder / "rows.csv"), "folds": 3, "batch_size": 4}
    return {"class_path": "wsl_zoo.data.TableData", "init_args": arguments}


def tiny_pairing(folder: Path, data: wsl_zoo.data.ZooDataModule, dim: int) -> str:
    """Every image of a data module paired with one of two reports."""
    reports = [Report("no tumour", "0"), Report("tumour", "1")]
    pairs = {}
    for split, source in data.sources.items():
        names = data.image_names(source)
        pairs[split] = Pairs(names, torch.arange(len(names)) % 2, torch.ones(len(names)))
    features = torch.randn(2, dim, generator=torch.Generator().manual_seed(0))
    return str(write_pairing(folder / "pairs", reports, features, pairs, b"", {}))


def tiny_config(name: str, folder: Path) -> Path:
    """The config with a tiny encoder that starts from nothing, and small scenes as its data."""
    config = yaml.safe_load(catalogue.config_path(name).read_text(encoding="utf-8"))
    model = config["model"]["init_args"]
    kind_of_data = getattr(wsl_zoo.data, config["data"]["class_path"].rpartition(".")[2])
    if issubclass(kind_of_data, wsl_zoo.data.TabularDataModule):
        config["data"] = tiny_rows(kind_of_data, folder)
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path
    if issubclass(kind_of_data, wsl_zoo.data.PairDataModule):
        network = model.get("network", "SRCNN")
        model["network_args"] = NETWORKS[network]
        if network in {"SwinIR", "GRL", "OmniSR"}:
            pytest.importorskip("spandrel")
        given = config["data"]["init_args"]
        pairs = {"train": 8, "val": 4, "test": 4, "side": 64, "crop_size": 32, "batch_size": 4}
        pairs |= {key: given[key] for key in ("scale", "sampling", "drop_last") if key in given}
        config["data"] = {"class_path": "wsl_zoo.data.SyntheticPairsData", "init_args": pairs}
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path
    encoder = "test_vit" if TRANSFORMER.search(model.get("encoder", "")) else "test_resnet"
    if model.get("encoder") == "open_clip":
        encoder, model["encoder_args"] = "open_clip", {"name": tiny_clip(folder)}
    if config["model"]["class_path"].endswith("ContrastiveCLIP"):
        model |= {"text_encoder": {"name": tiny_clip(folder)}, "class_words": None, "text_dim": 8}
    reads_images = not config["model"]["class_path"].endswith("ReportClassifier")
    if reads_images:
        for key, value in {"encoder": encoder, "pretrained": False, "weights": None}.items():
            model[key] = value
    for key in ("stride", "stride_mode", "form", "img_size", "lora_targets"):
        model.pop(key, None)
    small = 48 if "decoder_args" not in model else 96  # a decoder over levels that do not vanish
    small = 32 if encoder == "open_clip" else small  # what the tiny tower reads
    data = {"train": 8, "val": 8, "test": 8, "image_size": small, "batch_size": 4}
    augment = {"hflip", "vflip", "rotate90", "color_jitter", "cache"}
    data |= {k: v for k, v in config["data"]["init_args"].items() if k in augment}
    name = config["data"]["class_path"].rpartition(".")[2]
    if issubclass(getattr(wsl_zoo.data, name), wsl_zoo.data.VideoDataModule):
        kind, sampling = (
            "SyntheticVideoData",
            ("frames", "frame_style", "frame_dist", "frame_limit"),
        )
        data |= {k: v for k, v in config["data"]["init_args"].items() if k in sampling}
    else:
        kind, data["negatives"] = (
            "SyntheticData",
            (bool(model.get("negatives")) or model.get("variant", "glas") != "glas"),
        )
    config["data"] = {"class_path": f"wsl_zoo.data.{kind}", "init_args": data}
    if "text_dim" in model and "text_encoder" not in model:
        model["text_dim"] = 8
        model["pairs"] = tiny_pairing(folder, getattr(wsl_zoo.data, kind)(**data), 8)
        if reads_images:
            model["classifier"] = None
    stage1 = next((key for key in ("classifier", "source") if key in model), None)
    if stage1 is not None:
        names = getattr(wsl_zoo.data, kind)(**data).class_names
        same = ("encoder", "mean", "std", "head", "head_args")
        settings = {key: model[key] for key in same if key in model}
        method = wsl_zoo.methods.PixelCAM if model.get("pixel") else wsl_zoo.methods.CAMClassifier
        model[stage1] = filled_classifier(
            folder, method, stride=None, num_classes=len(names), class_names=names, **settings
        )
        if "seeder" in model:
            model["seeder"] = model[stage1]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_it_trains(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # runs/ is made here
    path = tiny_config(name, tmp_path)
    cli = run_trainer(
        "fit",
        ["--config", str(path), "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"],
    )
    assert cli.trainer.global_step == 1
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    written = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    assert type(cli.model).__name__ == written["class_path"].rpartition(".")[2]
    for key, value in written["init_args"].items():
        assert cli.model.hparams[key] == value
    assert cli.model.class_names == cli.datamodule.class_names
