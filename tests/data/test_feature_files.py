"""Features from files: every format gives the same rows, matched by name or by place."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wsl_zoo.data.feature_files import read_features
from wsl_zoo.data.manifest import DataError

NAMES = ["a.png", "b.png", "c.png"]
VALUES = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
ORDER = ["c.png", "x.png", "a.png", "b.png"]  # as files with names have them
STORED = np.array([[5, 6], [9, 9], [1, 2], [3, 4]], np.float64)


def write_named(path):
    if path.suffix == ".npz":
        np.savez(path, features=STORED, names=np.array(ORDER))
    elif path.suffix == ".csv":
        rows = [f"{name},{a:g},{b:g}" for name, (a, b) in zip(ORDER, STORED, strict=True)]
        path.write_text("\n".join(["name,f0,f1", *rows, ""]))
    else:
        torch.save({"features": torch.from_numpy(STORED), "names": ORDER}, path)
    return path


def write_unnamed(path, values=VALUES):
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, features=values)
    elif path.name == "key.safetensors":
        save_file({"features": torch.from_numpy(values), "other": torch.zeros(1)}, path)
    elif path.suffix == ".safetensors":
        save_file({"any": torch.from_numpy(values)}, path)
    elif path.name == "key.pt":
        torch.save({"features": torch.from_numpy(values)}, path)
    else:
        torch.save(torch.from_numpy(values), path)
    return path


@pytest.mark.parametrize("file", ["f.npz", "f.csv", "f.pt", "f.pth"])
def test_features_with_names_are_matched_by_them(tmp_path, file):
    path = write_named(tmp_path / file)
    found = read_features(path, NAMES, "image")
    assert found.dtype == torch.float32
    assert found.tolist() == VALUES.tolist()
    assert read_features(path, NAMES, "image", only=[2, 0]).tolist() == [[5, 6], [1, 2]]
    with pytest.raises(
        DataError,
        match=r"2 of 3 images are not in it: d\.png, e\.png \(did you mean",
    ):
        read_features(path, ["a.png", "d.png", "e.png"], "image")


@pytest.mark.parametrize(
    "file", ["f.npy", "f.npz", "f.pt", "key.pt", "f.safetensors", "key.safetensors"]
)
def test_features_without_names_are_matched_by_place(tmp_path, file):
    path = write_unnamed(tmp_path / file)
    assert read_features(str(path), NAMES, "image").tolist() == VALUES.tolist()
    assert read_features(path, NAMES, "image", only=[1]).tolist() == [[3, 4]]
    with pytest.raises(DataError, match="3 rows for 2 reports, and no names to match them by"):
        read_features(path, NAMES[:2], "report")


def test_tables_need_no_header(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text("a.png, 1, 2\n\nb.png,3e0,4.0\nc.png,5,6\n")
    assert read_features(path, NAMES, "image").tolist() == VALUES.tolist()


def test_half_precision_and_integers(tmp_path):
    torch.save(torch.from_numpy(VALUES).bfloat16(), tmp_path / "f.pt")
    np.save(tmp_path / "f.npy", VALUES.astype(np.int16))
    for file in ("f.pt", "f.npy"):
        assert read_features(tmp_path / file, NAMES, "image").tolist() == VALUES.tolist()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("f.npy", None, "there is no such file"),
        ("f.txt", b"", r"a file of features ends in \.npy, \.npz"),
        ("f.npy", b"no array", "it cannot be read"),
        ("f.npz", b"no archive", "it cannot be read"),
        ("f.pt", b"no tensor", "it cannot be read"),
        ("f.safetensors", b"no tensor", "it cannot be read"),
        ("f.csv", b"a,1\nb,x\n", "it cannot be read .line 2: could not convert"),
        ("f.csv", b"a,1\nb,1,2\n", "line 2: 2 numbers after 1"),
        ("f.csv", b"name,f0\n", "there is no row of a name and numbers"),
        (
            "f.csv",
            b"a.png,1\na.png,2\nb.png,3\nc.png,4",
            r"1 images stand there more than once",
        ),
        ("f.csv", b"z,1\n", r"3 of 3 images are not in it: a\.png, b\.png, c\.png \(it names z\)"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, file, content, message):
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_features(tmp_path / file, NAMES, "image")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": np.zeros((3, 2)), "b": np.zeros(3)}, "there is no 'features' in it; found: a, b"),
        ({"features": np.zeros(3)}, r"expected numbers \(N, D\), found \(3,\) float64"),
        ({"features": np.array([["x"]] * 3)}, "expected numbers"),
        ({"features": VALUES, "names": np.array(["a.png"])}, "1 names for 3 rows"),
        ({"features": VALUES * [[1], [0], [1]]}, r"those of 1 images are 0 or no numbers: b\.png"),
        ({"features": VALUES * [[1], [np.nan], [np.inf]]}, r"of 2 images .*: b\.png, c\.png"),
    ],
)
def test_features_that_cannot_be_used(tmp_path, content, message):
    np.savez(tmp_path / "f.npz", **content)
    with pytest.raises(DataError, match=message):
        read_features(tmp_path / "f.npz", NAMES, "image")


def test_rows_that_are_not_asked_for_may_be_empty(tmp_path):
    path = write_unnamed(tmp_path / "f.npy", VALUES * np.float32([[1], [0], [1]]))
    assert read_features(path, NAMES, "report", only=[0, 2]).tolist() == [[1, 2], [5, 6]]
    with pytest.raises(DataError, match=r"those of 1 reports are 0 or no numbers: b\.png"):
        read_features(path, NAMES, "report", only=[0, 1])


def test_pickles_are_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"features": Harm()}, tmp_path / "f.pt")
    with pytest.raises(DataError, match="it cannot be read"):
        read_features(tmp_path / "f.pt", NAMES, "image")
    assert not (tmp_path / "harm").exists()
