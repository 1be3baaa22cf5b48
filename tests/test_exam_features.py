"""Features of exams: those of the encoder, made once, whole or not at all."""

import csv

import numpy as np
import pytest
import torch

from wsl_zoo.data.csaw_cc import CSAWCCData
from wsl_zoo.data.exam_table import Anchor, write_anchors
from wsl_zoo.data.histories import simulate
from wsl_zoo.data.mammograms import write_mammograms
from wsl_zoo.encoders import Encoder
from wsl_zoo.exam_features import cache_exam_features, main

SIZE = [32, 32]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mammograms")
    women = {s: simulate(4, n, 0.25, 0.5, 0.5) for n, s in enumerate(("train", "val", "test"))}
    write_mammograms(folder, women)
    return folder


@pytest.fixture
def data(root):
    return CSAWCCData(str(root), image_size=SIZE)


def make_encoder(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Encoder("test_resnet", **{"in_chans": 1} | kwargs)


class Counting:
    """Counts the images that an encoder sees; stops it after some calls."""

    def __init__(self, encoder, calls=None):
        self.images, self.batches, self.left = 0, [], calls
        self.inner, encoder.final = encoder.final, self.final

    def final(self, image):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        self.batches.append(len(image))
        return self.inner(image)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_features_are_the_means_of_the_views_final_maps(data, tmp_path):
    encoder = make_encoder()
    encoder.train()
    table = cache_exam_features(data, encoder, tmp_path / "a" / "b", batch_size=3)
    assert table == tmp_path / "a" / "b" / "table.csv"
    assert all(module.training for module in encoder.modules())
    encoder.eval()
    made = CSAWCCData(str(table.parent))
    assert made.in_chans == encoder.final_channels
    for split, anchors in data.anchors.items():
        (images,), (features,) = data.whole_images(split), made.whole_images(split)
        for name in ("exam_mask", "time", "event", "group"):
            np.testing.assert_array_equal(images[name], features[name])
        for n in range(len(anchors)):
            for t in images["exam_mask"][n].nonzero().flatten():
                with torch.no_grad():
                    expected = encoder.final(images["image"][n, t]).mean(dim=(0, 2, 3))
                torch.testing.assert_close(features["features"][n, t], expected)
        assert (features["features"][~features["exam_mask"]] == 0).all()


def test_every_exam_is_computed_once_in_bounded_batches(data, tmp_path):
    encoder = make_encoder()
    seen = Counting(encoder)
    done = []
    cache_exam_features(data, encoder, tmp_path, 3, lambda *args: done.append(args))
    exams = sum(int(data.rows(s).fields["exam_mask"].sum()) for s in data.anchors)
    assert sum(seen.batches) == 4 * exams
    assert max(seen.batches) == 12
    assert done[-1] == (exams, exams)
    assert len(list(tmp_path.glob("*.npy"))) == exams
    before = contents(tmp_path)
    again = make_encoder()
    seen = Counting(again)
    cache_exam_features(CSAWCCData(str(data.root), image_size=SIZE), again, tmp_path)
    assert seen.batches == []
    assert contents(tmp_path) == before


def test_exams_that_anchors_share_have_one_file_and_missing_views_do_not_count(data, tmp_path):
    (exam, *_), blank = data.anchors["train"][0].exams[-1:], (None,) * 4
    partial = (None, *exam[1:3], None)
    rows = [
        Anchor("p", "p0", (blank, exam), 3.0, event=True, split="test", subset=(True, False)),
        Anchor("p", "p1", (exam, partial), 2.5, event=True, split="test", subset=(False, True)),
        Anchor("q", "q0", (blank, exam), 1.0, event=False, split="train"),
    ]
    write_anchors(tmp_path / "in" / "table.csv", rows)
    shared = CSAWCCData(
        str(tmp_path / "in"), image_size=SIZE, slots=2, missing_views="mask", num_workers=2
    )
    encoder = make_encoder()
    table = cache_exam_features(shared, encoder, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.npy"))) == 2
    encoder.eval()
    with torch.no_grad():
        views = encoder.final(shared.reader.exam(exam)).mean(dim=(2, 3))
    test = CSAWCCData(str(table.parent), slots=2).rows("test").fields
    whole, half = views.mean(dim=0), views[1:3].mean(dim=0)
    expected = torch.stack([torch.stack([0 * whole, whole]), torch.stack([whole, half])])
    torch.testing.assert_close(test["features"], expected)
    names = ("patient_id", "exam_id", "split", "dx_2", "dx_3", "time", "event", "pseudo_0",
             "pseudo_1")  # fmt: skip
    with table.open(newline="") as file:
        kept = [[row[name] for name in names] for row in csv.DictReader(file)]
    free, cancer = "Not Malignant", "Malignant"
    assert sorted(kept) == [
        ["p", "p0", "test", free, cancer, "3", "1", "True", "False"],
        ["p", "p1", "test", free, cancer, "2.5", "1", "False", "True"],
        ["q", "q0", "train", "Unknown", "Unknown", "1", "0", "False", "False"],
    ]
    assert test["subset"].tolist() == [[True, False], [False, True]]


def test_a_stopped_call_leaves_whole_files_and_goes_on(data, tmp_path, monkeypatch):
    encoder = make_encoder()
    Counting(encoder, calls=2)
    with pytest.raises(KeyboardInterrupt):
        cache_exam_features(data, encoder, tmp_path / "stopped", 3)
    assert len(list((tmp_path / "stopped").iterdir())) == 6  # two batches of three, and no table

    def half(file, array):
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", half)
        with pytest.raises(OSError, match="disk full"):
            cache_exam_features(data, make_encoder(), tmp_path / "stopped", 3)
    files = list((tmp_path / "stopped").iterdir())
    assert len(files) == 6
    assert all(np.load(file).shape == (encoder.final_channels,) for file in files)
    again = make_encoder()
    seen = Counting(again)
    cache_exam_features(data, again, tmp_path / "stopped", 3)
    whole = cache_exam_features(data, make_encoder(), tmp_path / "whole", 3).parent
    assert contents(tmp_path / "stopped").keys() == contents(whole).keys()
    assert sum(seen.batches) == 4 * (len(contents(whole)) - 1 - 6)


@pytest.mark.parametrize("change", ["weights", "size", "std", "mirror", "file"])
def test_what_features_depend_on_makes_others(root, tmp_path, change):
    data = CSAWCCData(str(root), image_size=SIZE)
    cache_exam_features(data, make_encoder(), tmp_path / "f", 8)
    before = set(contents(tmp_path / "f"))
    other = {"size": {"image_size": 64}, "std": {"std": 1.0}, "mirror": {"mirror": False}}
    data = CSAWCCData(str(root), **{"image_size": SIZE} | other.get(change, {}))
    if change == "file":
        (file, *_) = data.anchors["val"][0].exams[-1]
        file.write_bytes(file.read_bytes())
    encoder = make_encoder(seed=int(change == "weights"))
    table = cache_exam_features(data, encoder, tmp_path / "f", 8)
    added = set(contents(tmp_path / "f")) - before
    assert len(added) == (1 if change == "file" else len(before) - 1)
    used = {f.name for rows in CSAWCCData(table=str(table)).anchors.values()
            for anchor in rows for (f,) in anchor.exams if f}  # fmt: skip
    assert added <= used
    assert len(used) == len(before) - 1


def test_what_cannot_be_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="the images are grey: build test_resnet with in_chans=1"):
        cache_exam_features(data, make_encoder(in_chans=3), tmp_path)
    with pytest.raises(ValueError, match="batch_size=0"):
        cache_exam_features(data, make_encoder(), tmp_path, batch_size=0)
    table = cache_exam_features(data, make_encoder(), tmp_path / "f")
    with pytest.raises(ValueError, match=r"f/table\.csv lists features, no images"):
        cache_exam_features(CSAWCCData(table=str(table)), make_encoder(), tmp_path)


def test_the_command_line(root, tmp_path, capsys):
    torch.save(make_encoder(seed=5).model.state_dict(), tmp_path / "weights.pth")
    options = tmp_path / "options.yaml"
    options.write_text(f"data:\n  root: {root}\n  image_size: [32, 32]\nencoder: test_resnet\n")
    args = ["--config", str(options), "--out", str(tmp_path / "out"), "--device", "cpu"]
    main([*args, "--weights", str(tmp_path / "weights.pth")])
    said = capsys.readouterr().out
    assert said.endswith(f"features: {tmp_path / 'out' / 'table.csv'}\n")
    assert "random weights" not in said
    expected = cache_exam_features(
        CSAWCCData(str(root), image_size=SIZE), make_encoder(seed=5), tmp_path / "direct"
    )
    assert contents(tmp_path / "out").keys() == contents(expected.parent).keys()
    for _ in range(2):  # random weights are the same ones the next time
        main(["--data.root", str(root), "--data.image_size=32", "--encoder", "test_resnet",
              "--out", str(tmp_path / "random")])  # fmt: skip
    first, second = capsys.readouterr().out.split("features:")[:2]
    assert "random weights" in first
    assert "exams" in first
    assert "exams" not in second
    for wrong, message in (
        (["--data.rot", "x"], "rot"),
        (["--encoder", "test_resnet"], "out"),
        (["--out", "x", "--encoder", "test_resnet", "--batch_size", "many"], "batch_size"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
        assert message in capsys.readouterr().err
