"""Pairings as files: what is written comes back by name, and what is wrong is told at once."""

import csv
import json

import numpy as np
import pytest
import torch

from wsl_zoo.data import texts
from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.reports import Report
from wsl_zoo.data.texts import Pairs, Texts, read_texts, write_pairing, write_pairs

REPORTS = [Report("No tumor.", "line 1"), Report('Tumor, "pT1".', "line 2"), Report("x", "line 4")]
FEATURES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, -2.0]])
PAIRS = Pairs(["a.png", "b, c.png", "d.png"], torch.tensor([2, 1, 2]),
              torch.tensor([0.5, 0.25, -0.75], dtype=torch.float64))  # fmt: skip


def write(folder, reports=REPORTS, features=FEATURES, pairs=None, made_of=b"model", **about):
    return write_pairing(folder, reports, features, pairs or {"train": PAIRS}, made_of, about)


def test_texts_are_the_features_of_the_reports():
    given = Texts(FEATURES, torch.tensor([2, 0]))
    assert len(given) == 2
    assert given.dim == 2
    assert given[0].tolist() == [0.5, -2.0]
    assert given[1].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("where", ["folder", "file"])
def test_a_pairing_comes_back_in_the_order_that_is_asked_for(tmp_path, where):
    path = write(tmp_path / "a" / "pairs")
    assert path == tmp_path / "a" / "pairs" / "pairing.json"
    read = read_texts(
        path.parent if where == "folder" else str(path), "train", ["d.png", "b, c.png"]
    )
    assert read.report.tolist() == [2, 1]
    assert read.report.dtype == torch.int64
    assert read.features.dtype == torch.float32
    assert torch.equal(read.features, FEATURES)
    assert read[1].tolist() == [0.0, 1.0]
    assert len(read_texts(path, "train", [])) == 0


def test_what_is_written(tmp_path):
    val = Pairs(["v.png"], torch.tensor([0]), torch.tensor([1.0]))
    path = write(tmp_path, pairs={"train": PAIRS, "val": val}, encoder="ViT", shuffle=None)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "pairing.json", "reports.csv", "reports.npy", "train.csv", "val.csv",
    ]  # fmt: skip
    assert np.load(tmp_path / "reports.npy").dtype == np.float32
    with (tmp_path / "reports.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "text"], *([r.name, r.text] for r in REPORTS)]
    assert (tmp_path / "train.csv").read_text().splitlines() == [
        "image,report,similarity", "a.png,line 4,0.500000", '"b, c.png",line 2,0.250000',
        "d.png,line 4,-0.750000",
    ]  # fmt: skip
    about = json.loads(path.read_text())
    assert len(about.pop("hash")) == 32
    assert about == {
        "encoder": "ViT", "shuffle": None, "reports": 3, "dim": 2,
        "splits": {
            "train": {
                "file": "train.csv", "images": 3, "reports": 2, "mean_similarity": 0.0,
                "min_similarity": -0.75, "most_used": {"report": "line 4", "images": 2},
            },
            "val": {
                "file": "val.csv", "images": 1, "reports": 1, "mean_similarity": 1.0,
                "min_similarity": 1.0, "most_used": {"report": "line 1", "images": 1},
            },
        },
    }  # fmt: skip


def test_the_hash_is_of_model_texts_and_pairs(tmp_path):
    def digest(**changes):
        return json.loads(write(tmp_path, **changes).read_text())["hash"]

    first = digest()
    assert digest(encoder="another name") == first
    other = Pairs(PAIRS.images, torch.tensor([2, 0, 2]), PAIRS.similarity)
    named = Pairs(["a.png", "b.png", "d.png"], PAIRS.report, PAIRS.similarity)
    changed = [
        digest(made_of=b"another"),
        digest(reports=[*REPORTS[:2], Report("y", "line 4")]),
        digest(reports=[*REPORTS[:2], Report("x", "line 3")]),
        digest(pairs={"train": other}),
        digest(pairs={"train": named}),
        digest(pairs={"val": PAIRS}),
    ]
    assert len({first, *changed}) == 7
    assert digest() == first


def test_a_pairing_that_is_half_replaced_is_none(tmp_path, monkeypatch):
    write(tmp_path)

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(texts, "write_array", fail)
        with pytest.raises(OSError, match="disk full"):
            write(tmp_path)
    with pytest.raises(DataError, match=r"there is no pairing\.json in it: make one with wsl-zoo"):
        read_texts(tmp_path, "train", ["a.png"])


def test_names_that_do_not_fit_are_not_written(tmp_path):
    twice = Pairs(["y.png", "y.png"], torch.tensor([1, 0]), torch.tensor([0.5, 0.25]))
    with pytest.raises(ValueError, match=r"two images are called 'y\.png'"):
        write_pairs(tmp_path / "pairs.csv", twice, ["p", "q"])
    one = Pairs(["y.png"], twice.report, twice.similarity)
    with pytest.raises(ValueError, match="1 names for 2 pairs"):
        write_pairs(tmp_path / "pairs.csv", one, ["p", "q"])
    with pytest.raises(ValueError, match="two reports are called 'p'"):
        write_pairs(tmp_path / "pairs.csv", PAIRS, ["p", "q", "p"])
    with pytest.raises(ValueError, match=r"features \(2, 2\) for 3 reports"):
        write(tmp_path, features=FEATURES[:2])
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_pairing(tmp_path):
    for path in (tmp_path / "nothing", tmp_path / "nothing" / "pairing.json"):
        with pytest.raises(DataError, match="there is no such folder: make one with wsl-zoo pair"):
            read_texts(path, "train", ["a.png"])
    for content in (
        "[]",
        "{",
        '{"reports": 3, "dim": 2}',
        '{"reports":3,"dim":2,"splits":{"a":1}}',
    ):
        (tmp_path / "pairing.json").write_text(content)
        with pytest.raises(DataError, match=r"pairing\.json is not what wsl-zoo pair writes"):
            read_texts(tmp_path, "train", ["a.png"])


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "train.csv").unlink(), r"there is no train\.csv: pair anew"),
        (lambda f: (f / "reports.npy").unlink(), r"there is no reports\.npy: pair anew"),
        (lambda f: (f / "reports.csv").unlink(), r"there is no reports\.csv: pair anew"),
        (
            lambda f: edit(f / "train.csv", "line 2", "line 22"),
            r"train\.csv, row 3: reports\.csv has no report 'line 22' \(did you mean 'line 2'\?\) "
            r"\(1 such rows\)",
        ),
        (
            lambda f: edit(f / "train.csv", "image,", "picture,"),
            r"train\.csv: expected the columns image,report,similarity, found: picture,report,sim",
        ),
        (lambda f: edit(f / "train.csv", "0.25", "0,25"), "expected 3 cells in row 3"),
        (
            lambda f: edit(f / "train.csv", "d.png", "a.png"),
            r"train\.csv: a\.png stands there twice",
        ),
        (
            lambda f: np.save(f / "reports.npy", np.zeros((2, 2), np.float32)),
            r"reports\.npy is \(2, 2\) float32, expected \(3, 2\) float32",
        ),
        (
            lambda f: np.save(f / "reports.npy", np.zeros((3, 2))),
            r"float64, expected \(3, 2\) float32",
        ),
        (
            lambda f: np.save(f / "reports.npy", np.full((3, 2), np.nan, np.float32)),
            "holds what is no number",
        ),
        (lambda f: (f / "reports.npy").write_bytes(b"no array"), "cannot be read as an array"),
        (lambda f: (f / "train.csv").write_bytes(b"\xff\xfe"), "cannot be read as a UTF-8 table"),
        (lambda f: (f / "train.csv").write_text(""), "found: none"),
    ],
)
def test_spoilt_files(tmp_path, spoil, message):
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        read_texts(tmp_path, "train", ["a.png", "b, c.png"])
    assert len(error.value.problems) == 1


def test_images_without_a_pair_and_splits(tmp_path):
    write(tmp_path)
    names = ["a.png", *(f"{i}.png" for i in range(5))]
    with pytest.raises(
        DataError,
        match=r"train\.csv: 5 of 6 images have no pair: 0\.png, 1\.png, 2\.png, \.\.\. "
        r"\(it names a\.png, for instance\): pair the data",
    ):
        read_texts(tmp_path, "train", names)
    with pytest.raises(
        DataError,
        match=r"the split 'val' is not paired: it holds train; pair it with "
        r"--splits '\[train, val\]'",
    ):
        read_texts(tmp_path, "val", ["a.png"])
    (tmp_path / "train.csv").write_text("image,report,similarity\n")
    with pytest.raises(DataError, match=r"1 of 1 images have no pair: a\.png: pair the data"):
        read_texts(tmp_path, "train", ["a.png"])


def test_all_problems_at_once(tmp_path):
    write(tmp_path)
    (tmp_path / "reports.npy").unlink()
    with pytest.raises(DataError) as error:
        read_texts(tmp_path, "train", ["a.png", "x.png"])
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "there is no reports.npy", "train.csv",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"(?s)no reports\.npy.*split 'val' is not paired"):
        read_texts(tmp_path, "val", ["a.png"])
