"""`wsl-zoo pair`: pairs that can be told by eye, from an encoder, from files, from the data."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import wsl_zoo.pair
from tests.cases.image_text import FakeEncoder
from wsl_zoo.__main__ import main
from wsl_zoo.data import FolderData, ZooDataModule
from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.reports import Report
from wsl_zoo.data.texts import read_texts
from wsl_zoo.data.transforms import Sample
from wsl_zoo.pair import data_alone, summary
from wsl_zoo.pairing import pair

RED, GREEN, BLUE = (250, 20, 10), (10, 250, 20), (20, 10, 250)
COLOURS = {
    "train": [RED, BLUE, GREEN, BLUE, BLUE, RED], "val": [GREEN, RED], "test": [BLUE],
    "val_b": [BLUE],
}  # fmt: skip
REPORTS = "green tissue\n\nblue tissue of a long report\nred tissue\n"
FOUR = [[0, 1.0, 0], [0, 0, 0], [0, 0, 3.0], [2.0, 0, 0]]  # features of these four lines
NEAREST = {RED: 2, GREEN: 0, BLUE: 1}  # among the reports that are not empty


class Recording:
    """Images of one colour that are no files; knows which of them were loaded."""

    has_masks = has_boxes = False

    def __init__(self, split):
        self.split, self.loads = split, []

    def __len__(self):
        return len(COLOURS[self.split])

    def load(self, index, *, annotations):
        self.loads.append(index)
        image = np.full((3, 2, 3), COLOURS[self.split][index], np.uint8)
        return Sample(image, label=0, path=f"{self.split}-{index}", size=(3, 2))


class ColourData(ZooDataModule):
    """Splits of such images."""

    class_names = ["colour"]  # noqa: RUF012

    def read(self):
        return {split: Recording(split) for split in COLOURS}


class OwnReports(ColourData):
    """The same, with reports and features of their own."""

    def corpus(self):
        reports = [
            Report(text, f"own {i}") for i, text in enumerate(["Green.", "", "Blue.", "Red."])
        ]
        return reports, torch.tensor([[0, 1.0, 0], [0, 0, 0], [0, 0, 3.0], [2.0, 0, 0]])

    def image_features(self, split):
        return torch.tensor(COLOURS[split]) / 255


@pytest.fixture
def reports(tmp_path):
    path = tmp_path / "reports.txt"
    path.write_text(REPORTS)
    return path


@pytest.fixture(autouse=True)
def _no_warning_of_empty_reports(monkeypatch):
    monkeypatch.setattr("wsl_zoo.data.reports.rank_zero_warn", lambda *_: None)


def names(split):
    return [f"{split}-{i}" for i in range(len(COLOURS[split]))]


def reports_of(folder, split="train"):
    return read_texts(folder, split, names(split)).report.tolist()


def nearest(split="train"):
    return [NEAREST[colour] for colour in COLOURS[split]]


def about(folder):
    return json.loads((folder / "pairing.json").read_text())


# From an encoder ----------------------------------------------------------------------------------


def test_every_image_gets_the_report_of_its_colour(tmp_path, reports):
    encoder, seen = FakeEncoder(), []
    path = pair(ColourData(), reports, tmp_path / "out", encoder, batch_size=4,
                progress=lambda *args: seen.append(args))  # fmt: skip
    assert path == tmp_path / "out" / "pairing.json"
    assert reports_of(path) == nearest()
    assert seen == [("train", 4, 6), ("train", 6, 6)]
    found = about(path.parent)
    assert found["empty"] == ["line 2"]
    assert found["cut"] == 1
    assert found["encoder"] == "fake"
    assert found["data"] == "ColourData"
    assert found["corpus"] == str(reports)
    assert found["dim"] == 3
    assert found["splits"]["train"]["most_used"] == {"report": "line 3", "images": 3}
    texts = read_texts(path, "train", names("train"))
    unit = torch.tensor([[0.01, 1.01, 0.01], [0.01, 0.01, 1.01], [1.01, 0.01, 0.01]])
    torch.testing.assert_close(texts.features, unit / unit.norm(dim=1, keepdim=True))
    image = torch.tensor(RED) / 255 + 0.01
    cosine = torch.dot(image / image.norm(), texts.features[2]).item()
    row = (path.parent / "train.csv").read_text().splitlines()[1]
    assert row == f"train-0,line 4,{cosine:.6f}"


def test_only_what_is_asked_for_is_loaded(tmp_path, reports):
    data = ColourData()
    pair(data, reports, tmp_path / "a", FakeEncoder())
    assert {split for split, source in data.sources.items() if source.loads} == {"train"}
    assert list(about(tmp_path / "a")["splits"]) == ["train"]
    data = ColourData()
    pair(data, reports, tmp_path / "b", FakeEncoder(), splits=["val", "test"])
    assert {split for split, source in data.sources.items() if source.loads} == {
        "val", "val_b", "test",
    }  # fmt: skip
    for split in ("val", "val_b", "test"):
        assert reports_of(tmp_path / "b", split) == nearest(split)
    pair(data, reports, tmp_path / "c", FakeEncoder(), splits=["val_b"])
    assert list(about(tmp_path / "c")["splits"]) == ["val_b"]
    for wrong, message in (
        (["trian"], "there is no 'trian' split; found: train, val, test, val_b"),
        ([], "there is none to pair"),
    ):
        with pytest.raises(DataError, match=message):
            pair(data, reports, tmp_path / "d", FakeEncoder(), splits=wrong)


def test_a_second_call_computes_nothing_and_writes_the_same(tmp_path, reports):
    def contents():
        return {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}

    pair(ColourData(), reports, tmp_path / "out", FakeEncoder())
    before = contents()
    assert sum("cache" in path.parts for path in before) == 2
    again = FakeEncoder()
    pair(ColourData(), reports, tmp_path / "out", again)
    assert again.batches == again.texts == []
    assert contents() == before
    pair(ColourData(), reports, tmp_path / "b", again, cache=tmp_path / "out" / "cache")
    assert again.batches == again.texts == []
    assert not (tmp_path / "b" / "cache").exists()
    assert about(tmp_path / "b") == about(tmp_path / "out")
    pair(ColourData(), reports, tmp_path / "out", FakeEncoder(bias=0.02))
    assert about(tmp_path / "out")["hash"] != about(tmp_path / "b")["hash"]


def test_images_are_read_from_files_at_their_own_size(tmp_path, reports):
    for i, colour in enumerate(COLOURS["train"]):
        path = tmp_path / "data" / "train" / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((3 + i, 5, 3), colour, np.uint8)).save(path)
    sizes = []

    class Watching(FakeEncoder):
        def prepare(self, picture):
            sizes.append(picture.shape[:2])
            return super().prepare(picture)

    whole = {"val_fraction": 0.0, "test_fraction": 0.0, "image_size": 64, "num_workers": 2}
    data = FolderData(str(tmp_path / "data"), **whole)
    pair(data, reports, tmp_path / "out", Watching())
    own = [f"train/a/{i}.png" for i in range(6)]
    assert read_texts(tmp_path / "out", "train", own).report.tolist() == nearest()
    assert sorted(sizes) == [(3 + i, 5) for i in range(6)]


@pytest.mark.parametrize("seed", [1, 2])
def test_shuffling_deals_the_same_reports_to_other_images(tmp_path, reports, seed):
    pair(ColourData(), reports, tmp_path / "a", FakeEncoder())
    pair(ColourData(), reports, tmp_path / "b", FakeEncoder(), shuffle=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).tolist()
    dealt = reports_of(tmp_path / "b")
    assert dealt == [nearest()[i] for i in order]
    assert dealt != nearest()
    assert about(tmp_path / "b")["shuffle"] == seed
    low = about(tmp_path / "b")["splits"]["train"]["min_similarity"]
    assert low < 0.3 < 0.9 < about(tmp_path / "a")["splits"]["train"]["min_similarity"]


@pytest.mark.parametrize(
    ("clean", "texts", "empty"),
    [
        ("default", ["pT1 tissue: red", "x"], ["b"]),
        ("published", ["pT tssue: red", "x"], ["b"]),
        ("none", ["|||| pT1  tissue:red", "___", "x"], []),
    ],
)
def test_reports_are_cleaned_before_they_are_read(tmp_path, clean, texts, empty):
    read = {"a": "|||| pT1  tissue:red", "b": "___", "c": "x"}
    encoder, corpus = FakeEncoder(), [Report(text, name) for name, text in read.items()]
    pair(ColourData(), corpus, tmp_path, encoder, clean=clean)
    assert encoder.texts == [texts]
    assert about(tmp_path)["empty"] == empty
    assert about(tmp_path)["corpus"] is None


def test_nothing_is_left_of_the_reports(tmp_path):
    with pytest.raises(DataError, match="all 2 are empty after cleaning"):
        pair(ColourData(), [Report("_", "a"), Report("", "b")], tmp_path, FakeEncoder())


# From files, and from the data --------------------------------------------------------------------


def write_features(folder):
    """Features of images in another order, by name; of all four reports, by place."""
    images = np.array(COLOURS["train"])[::-1] / 255
    np.savez(folder / "f_train.npz", features=images, names=names("train")[::-1])
    np.save(folder / "reports.npy", np.array(FOUR))


def test_features_from_files_need_no_encoder(tmp_path, reports, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    write_features(tmp_path)
    images, texts = tmp_path / "f_{split}.npz", tmp_path / "reports.npy"
    options = {"image_features": images, "report_features": texts}
    pair(ColourData(), reports, tmp_path / "out", **options)
    assert reports_of(tmp_path / "out") == nearest()
    assert about(tmp_path / "out")["encoder"] is None
    assert about(tmp_path / "out")["image_features"] == str(images)
    assert read_texts(tmp_path / "out", "train", ["train-0"])[0].tolist() == [2, 0, 0]
    first = about(tmp_path / "out")["hash"]
    np.save(tmp_path / "reports.npy", 2 * np.array(FOUR))
    pair(ColourData(), reports, tmp_path / "out", **options)
    assert about(tmp_path / "out")["hash"] != first
    with pytest.raises(DataError, match=r"f_val\.npz.*\n.*there is no such file"):
        pair(ColourData(), reports, tmp_path / "out", **options, splits=["val"])


def test_features_of_reports_by_name(tmp_path, reports):
    write_features(tmp_path)
    (tmp_path / "reports.csv").write_text(
        "line 4,2,0,0\nline 9,1,1,1\nline 1,0,1,0\nline 3,0,0,3\n"  # the empty one is missing
    )
    pair(ColourData(), reports, tmp_path / "out", image_features=tmp_path / "f_train.npz",
         report_features=tmp_path / "reports.csv")  # fmt: skip
    assert reports_of(tmp_path / "out") == nearest()


def test_data_that_bring_reports_of_their_own(tmp_path):
    data = OwnReports()
    pair(data, None, tmp_path, splits=["train", "val"])
    assert reports_of(tmp_path) == nearest()
    assert reports_of(tmp_path, "val") == nearest("val")
    assert about(tmp_path)["empty"] == ["own 1"]
    assert about(tmp_path)["cut"] is None
    assert read_texts(tmp_path, "train", ["train-1"])[0].tolist() == [0, 0, 3]


def test_an_encoder_takes_the_place_of_what_the_data_bring(tmp_path, reports):
    encoder = FakeEncoder()
    pair(OwnReports(), reports, tmp_path, encoder)
    assert encoder.texts == [["green tissue", "blue tissue of a long report", "red tissue"]]


@pytest.mark.parametrize(
    ("data", "given", "message"),
    [
        (
            ColourData,
            {"reports": None},
            "ColourData brings no reports of its own: give reports",
        ),
        (OwnReports, {}, "features of these reports are missing: give an encoder, or the files"),
        (ColourData, {"image_features": "f.npy"}, "report_features is missing"),
        (ColourData, {"report_features": "f.npy"}, "image_features is missing"),
        (
            ColourData,
            {"encoder": FakeEncoder(), "image_features": "f.npy"},
            "an encoder or files of features, not both",
        ),
        (OwnReports, {"reports": None, "encoder": FakeEncoder()}, "reports is missing"),
        (
            ColourData,
            {"encoder": FakeEncoder(), "clean": "off"},
            "clean='off' must be one of",
        ),
        (ColourData, {"encoder": FakeEncoder(), "batch_size": 0}, "batch_size=0 must be >= 1"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, reports, data, given, message):
    given = {"reports": reports} | given
    with pytest.raises(ValueError, match=message):
        pair(data(), out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_own_features_of_another_number_of_images(tmp_path):
    data = OwnReports()
    data.image_features = lambda split: torch.ones(2, 3)
    with pytest.raises(ValueError, match="2 features for the 6 images of train"):
        pair(data, None, tmp_path)


# The command line ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for i, colour in enumerate(COLOURS["train"]):
        path = tmp_path / "data" / "train" / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), colour, np.uint8)).save(path)
    options = {"root": "elsewhere", "val_fraction": 0.0, "test_fraction": 0.0}
    config = {
        "seed_everything": 3,
        "model": {"class_path": "NoSuchModel"},
        "data": {"class_path": "wsl_zoo.data.FolderData", "init_args": options},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    np.save(tmp_path / "f_train.npy", np.array(COLOURS["train"]) / 255)
    np.save(tmp_path / "reports.npy", np.array(FOUR))
    return tmp_path


def arguments(folder, **more):
    given = {"config": folder / "config.yaml", "data.root": folder / "data", "out": folder / "out",
             "reports": folder / "reports.txt"} | more  # fmt: skip
    return ["pair", *(str(part) for key, value in given.items() for part in (f"--{key}", value))]


def own_reports_of(folder):
    return read_texts(folder, "train", [f"train/a/{i}.png" for i in range(6)]).report.tolist()


def test_the_command_with_files(folder, reports, capsys):
    files = {"image_features": folder / "f_{split}.npy", "report_features": folder / "reports.npy"}
    assert main(arguments(folder, **files)) == 0
    out = capsys.readouterr().out
    assert own_reports_of(folder / "out") == nearest()
    assert out.endswith(
        "1 empty reports are left out: line 2\n"
        "train: 6 images, 3 of 3 reports, similarity 0.996 on average, 0.996 at least; most used: "
        f"line 3 (3 images, 50.0 %)\npairing: {folder / 'out' / 'pairing.json'}\n"
    )
    assert main(arguments(folder, **files, shuffle=1, clean="none")) == 0
    out = capsys.readouterr().out
    assert "reports are dealt to the images at random (shuffle=1)" in out
    assert about(folder / "out")["shuffle"] == 1
    assert about(folder / "out")["clean"] == "none"


def test_the_command_with_an_encoder(folder, reports, capsys, monkeypatch):
    made = []

    class Stand(FakeEncoder):
        def __init__(self, *args):
            super().__init__()
            made.append((args, torch.initial_seed()))

        def to(self, device):
            made.append(device)

    monkeypatch.setattr(wsl_zoo.pair, "ImageTextEncoder", Stand)
    options = {"encoder": "tiny", "device": "cpu", "cache": folder / "c", "data.num_workers": 2}
    assert main(arguments(folder, **options, batch_size=4)) == 0
    assert made == [(("tiny", None, False), 0), "cpu"]
    out = capsys.readouterr().out
    assert "note: tiny has random weights" in out
    assert "train: 6 of 6 images\n" in out
    assert "1 of 3 reports are longer than fake reads: their ends are not seen" in out
    assert own_reports_of(folder / "out") == nearest()
    assert len(list((folder / "c").iterdir())) == 2
    assert main(arguments(folder, **options, weights="w.pt")) == 0
    assert made[2] == (("tiny", "w.pt", False), 0)
    out = capsys.readouterr().out
    assert "random weights" not in out
    assert "6 of 6" not in out  # nothing was encoded


def test_a_collapse_is_told(folder, reports, capsys):
    np.save(folder / "f_train.npy", np.array([BLUE] * 5 + [RED]))
    files = {"image_features": folder / "f_train.npy", "report_features": folder / "reports.npy"}
    assert main(arguments(folder, **files)) == 0
    assert "warning: line 3 takes more than half of the images of train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"weights": "w.pt"}, "--weights and --pretrained are of an encoder: give --encoder NAME"),
        ({"config": "no/such"}, "config 'no/such' is neither a file nor a shipped config"),
        ({"config": "{model: {}}"}, "{model: {}}: there is no section `data`"),
        ({"config": "{data: "}, "is not valid YAML"),
        ({}, "features of these reports are missing"),
    ],
)
def test_what_the_command_refuses(folder, reports, capsys, more, message):
    assert main(arguments(folder, **more)) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "o"], "Give the data by --config FILE or --data CLASS"),
        (["--data", "FolderDat", "--out", "o"], "Did you mean 'FolderData'?"),
        (["--data", "FolderData", "--data.rot", "x", "--out", "o"], "Did you mean 'root'?"),
        (["--data", "FolderData", "--data.root", "x"], "arguments are required: out"),
        (["--data", "FolderData", "--data.root", "x", "--out", "o", "--clean", "of"], "clean"),
    ],
)
def test_usage_of_the_command(capsys, args, message):
    with pytest.raises(SystemExit, match="2"):
        main(["pair", *args])
    assert message in capsys.readouterr().err


def test_of_a_config_the_data_are_read_alone(folder):
    inline = '{"data": {"class_path": "A"}, "model": {"lr": 1}}'
    given = ["--x", "1", f"--config={folder / 'config.yaml'}", "--data.y=2", "-c", inline]
    found = data_alone(given)
    assert found[:2] == ["--x", "1"]
    assert json.loads(found[3])["data"]["init_args"]["root"] == "elsewhere"
    assert list(json.loads(found[3])) == ["data"]
    assert found[4:6] == ["--data.y=2", "--config"]
    assert json.loads(found[6]) == {"data": {"class_path": "A"}}
    with pytest.raises(ValueError, match="--config needs a value"):
        data_alone(["--config"])


def test_data_of_their_own_by_a_shipped_config(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("wsl_zoo.data.SyntheticData.corpus", OwnReports.corpus, raising=False)
    monkeypatch.setattr("wsl_zoo.data.SyntheticData.image_features",
                        lambda self, split: torch.eye(3)[torch.arange(self.counts[split]) % 3],
                        raising=False)  # fmt: skip
    args = ["pair", "--config", "cam/synthetic", "--data.train", "9", "--data.init_args.image_size",
            "32", "--out", str(tmp_path)]  # fmt: skip
    assert main(args) == 0
    assert "train: 9 images, 3 of 3 reports, similarity 1.000" in capsys.readouterr().out
    own = [f"scene-{i}" for i in range(9)]
    assert read_texts(tmp_path, "train", own).report.tolist() == [2, 0, 1] * 3
    assert summary(tmp_path / "pairing.json")[-1] == f"pairing: {tmp_path / 'pairing.json'}"
