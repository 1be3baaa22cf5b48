import io
from collections import Counter

import pytest
from PIL import Image

from wsl_zoo.data import BACHData
from wsl_zoo.data.bach import CLASSES, bach_positions
from wsl_zoo.data.manifest import DataError

# The published ranges of positions, ends exclusive, as text.
TRAIN = "0-41, 59-60, 90-139, 169-240, 258-260, 273-345, 368-400"
TEST = "41-59, 60-90, 139-169, 240-258, 260-273, 345-368"
PREFIX = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}


def positions_of(text):
    parts = [tuple(map(int, part.split("-"))) for part in text.split(",")]
    return [i for first, end in parts for i in range(first, end)]


def photo(shade):
    file = io.BytesIO()
    Image.new("RGB", (12, 9), (shade, 100, 150)).save(file, format="TIFF")
    return file.getvalue()


def write_photos(folder, names="{}{:03d}.tif", count=100, skip=()):
    for k, (kind, prefix) in enumerate(PREFIX.items()):
        if kind in skip:
            continue
        (folder / kind).mkdir(parents=True)
        for i in range(1, count + 1):
            (folder / kind / names.format(prefix, i)).write_bytes(photo(50 * k + 1))
    return folder


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("ICIAR2018_BACH_Challenge")
    write_photos(root / "Photos")
    (root / "Photos" / "microscopy_ground_truth.csv").write_text("n001.tif,Normal\n")
    (root / "Photos" / "Benign" / "Thumbs.db").write_bytes(b"")
    return root


def test_the_published_ranges_are_disjoint_and_cover_all():
    found = bach_positions()
    assert {split: len(own) for split, own in found.items()} == {
        "train": 254,
        "val": 14,
        "test": 132,
    }
    trained = positions_of(TRAIN)
    assert found["test"] == positions_of(TEST)
    assert found["val"] == [trained[i] for i in range(0, 268, 20)]
    assert sorted(found["train"] + found["val"]) == trained
    assert sorted(i for own in found.values() for i in own) == list(range(400))
    assert Counter(i // 100 for i in found["val"]) == {0: 3, 1: 4, 2: 3, 3: 4}


@pytest.mark.parametrize("folds", [2, 5, 10, 52])
def test_folds_are_stratified_and_leave_the_test_alone(folds):
    parts = [bach_positions(fold, folds) for fold in range(folds)]
    trained = positions_of(TRAIN)
    counts = Counter(i // 100 for i in trained)
    assert counts == {0: 52, 1: 70, 2: 69, 3: 77}
    assert sorted(i for part in parts for i in part["val"]) == trained
    for part in parts:
        assert part["test"] == positions_of(TEST)
        assert sorted(part["train"] + part["val"]) == trained
        own = Counter(i // 100 for i in part["val"])
        assert all(counts[k] // folds <= own[k] <= -(-counts[k] // folds) for k in range(4))


def test_folds_depend_on_their_seed_alone():
    assert bach_positions(1) == bach_positions(1, seed=0)
    assert bach_positions(1) != bach_positions(1, seed=1)
    assert bach_positions(1)["val"] != bach_positions(2)["val"]
    assert bach_positions(seed=1) == bach_positions()  # the published split draws nothing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fold": 5}, "fold=5 does not exist: there are folds 0 to 4"),
        ({"fold": -1}, "fold=-1 does not exist"),
        ({"fold": 0, "folds": 1}, "folds=1 must be 2 to 52"),
        ({"fold": 0, "folds": 53}, "folds=53 must be 2 to 52, so that every fold has every class"),
    ],
)
def test_folds_that_do_not_exist_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        BACHData(str(tmp_path), **settings)


def test_photographs_are_dealt_by_their_sorted_paths(copy):
    data = BACHData(str(copy), image_size=[9, 12], verify="none")
    assert data.class_names == ["Benign", "InSitu", "Invasive", "Normal"]
    data.setup("fit")
    files = sorted((copy / "Photos").glob("*/*.tif"))
    for split, positions in bach_positions().items():
        records = data.sources[split].records
        assert [record.image for record in records] == [files[i] for i in positions]
        assert all(record.image.parent.name == CLASSES[record.label] for record in records)
    assert data.sources["val"].records[1].image.name == "b021.tif"
    assert data.sources["test"].records[-1].image.name == "n068.tif"
    batch = next(iter(data.val_dataloader()[0]))
    assert (batch["image"][:, 0, 0, 0] == 50 * batch["label"] + 1).all()
    assert data.augment.identity
    assert data.selection() == {"cl": "val/acc", "loc": None}


def test_the_root_may_be_the_folder_of_the_photographs(copy):
    data = BACHData(str(copy / "Photos"), fold=2, verify="none")
    assert [r.image for r in data.sources["val"].records] == [
        sorted((copy / "Photos").glob("*/*.tif"))[i] for i in bach_positions(2)["val"]
    ]


def test_a_class_of_another_size_has_no_positions(tmp_path):
    write_photos(tmp_path, count=3, skip={"InSitu"})
    (tmp_path / "Normals").mkdir()
    with pytest.raises(DataError, match=r"BACHData .*: 5 problems") as caught:
        BACHData(str(tmp_path)).setup("fit")
    why = "3 photographs, expected 100: the splits are positions in the sorted list of all files"
    assert caught.value.problems == [
        "Normals: unknown class (did you mean 'Normal'?)",
        "there is no folder InSitu",
        *(f"{name}: {why}" for name in ("Benign", "Invasive", "Normal")),
    ]
    with pytest.raises(DataError, match="does not exist or is no folder"):
        BACHData(str(tmp_path / "nowhere")).setup("fit")


def test_numbers_that_do_not_sort_are_refused(tmp_path):
    write_photos(tmp_path, names="{}{}.tif")
    with pytest.raises(DataError, match="4 problems") as caught:
        BACHData(str(tmp_path), verify="none").setup("fit")
    assert caught.value.problems[1].startswith(
        "InSitu: is11.tif sorts behind a higher number: pad the numbers with zeros"
    )


def test_other_names_are_taken_as_they_sort(tmp_path):
    write_photos(tmp_path, names="{0}{1:03d}_{0}.png")
    assert len(BACHData(str(tmp_path), verify="none").sources["train"]) == 254
