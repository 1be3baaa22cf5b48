"""Pairs of a user's own, named by a manifest."""

import numpy as np
import pytest

from wsl_zoo.data import DataError, ImagePairsData
from wsl_zoo.data.pixels import downsample, write_pixels


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, dtype in (("a", np.uint8), ("b", np.uint16), ("c", np.uint8)):
        top = np.iinfo(dtype).max
        high = rng.integers(0, top, (1, 64, 64), dtype=dtype, endpoint=True)
        write_pixels(tmp_path / "high" / f"{name}.tif", high)
        low = rng.integers(0, top, (1, 32, 32), dtype=dtype, endpoint=True)
        write_pixels(tmp_path / "low" / f"{name}.tif", low)
    return tmp_path


def manifest(folder, *lines, header="split,image,target,group", **kwargs):
    path = folder / "pairs.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return ImagePairsData(str(path), **{"crop_size": 16} | kwargs)


def problems(data):
    with pytest.raises(DataError) as found:
        _ = data.sources
    return found.value.problems


def test_pairs_are_those_of_the_rows(folder):
    data = manifest(
        folder,
        "train,low/a.tif,high/a.tif,patient 1",
        "train, low/b.tif, high/b.tif,",
        "val_far,,high/c.tif,patient 2",
    )
    assert list(data.sources) == ["train", "val_far"]
    train, val = data.sources.values()
    assert [(train.path(i), train.group(i)) for i in range(2)] == [
        (str(folder / "low" / "a.tif"), "patient 1"),
        (str(folder / "low" / "b.tif"), ""),
    ]
    assert train.records[1].place == "pairs.csv, line 3"
    assert train.load(1)[0].dtype == np.uint16
    image, target = val.load(0)
    np.testing.assert_array_equal(image, downsample(target, 2))
    assert val.path(0) == str(folder / "high" / "c.tif")
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch["levels"].tolist()) == [255, 65535]


def test_groups_are_optional(folder):
    data = manifest(folder, "train,low/a.tif,high/a.tif", header="split,image,target")
    assert data.sources["train"].group(0) == ""


def test_all_problems_are_reported_at_once(folder):
    data = manifest(
        folder,
        "train,low/a.tif,high/a.tif,",
        "valid,low/a.tif,high/b.tif,",
        "trian,low/b.tif,high/b.tif,",
        "train,low/b.tif,,",
        "val,low/c.tif,low/c.tif,",
        "test,low/none.tif,high/a.tif,",
    )
    assert problems(data) == [
        "pairs.csv, line 4: split 'trian' would never be used: expected 'train', 'val...' or "
        "'test...'",
        "pairs.csv, line 5: empty target",
        "pairs.csv, line 3: a.tif stands in splits 'train' and 'valid' (first: pairs.csv, line 2)",
        "pairs.csv, line 7: a.tif stands in splits 'train' and 'test' (first: pairs.csv, line 2)",
        "pairs.csv, line 3: image a.tif has uint8 pixels, its target b.tif uint16",
        "pairs.csv, line 6: image c.tif is 32x32 pixels, its target c.tif 32x32; at scale 2 "
        "expected 64x64",
        f"pairs.csv, line 7: image {folder / 'low' / 'none.tif'} does not exist",
    ]


def test_files_alone_may_be_wrong(folder):
    data = manifest(folder, "train,low/a.tif,high/b.tif,", "val,low/c.tif,high/c.tif,")
    assert problems(data) == [
        "pairs.csv, line 2: image a.tif has uint8 pixels, its target b.tif uint16"
    ]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("split,image", "column 'target' is missing"),
        ("split,image,target,grup", r"unknown column 'grup' \(did you mean 'group'\?\)"),
        ("split,image,target,target", "line 1: columns that occur twice: target"),
    ],
)
def test_bad_headers_are_refused(folder, header, message):
    cells = ",".join("x" * (header.count(",") + 1))
    with pytest.raises(DataError, match=message):
        _ = manifest(folder, cells, header=header).sources


def test_a_manifest_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"Manifest \S+none.csv: 1 problem\n  - cannot be read"):
        _ = ImagePairsData(str(tmp_path / "none.csv")).sources


def test_images_to_predict_on_need_no_manifest(folder):
    data = ImagePairsData(scale=4, predict_images=str(folder / "low"))
    data.setup("predict")
    (loader,) = data.predict_dataloader()
    assert [batch["path"] for batch in loader] == [
        [str(folder / "low" / f"{name}.tif")] for name in "abc"
    ]
    with pytest.raises(DataError, match="there is no 'train' split; found: none"):
        data.setup("fit")
    with pytest.raises(ValueError, match=r"needs manifest= \(a CSV of pairs\) or predict_images="):
        ImagePairsData()
