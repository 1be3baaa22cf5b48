import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from wsl_zoo.data import EBHIData
from wsl_zoo.data.ebhi import CLASSES, GRADES, case_of, read_index
from wsl_zoo.data.folds import deal_cases
from wsl_zoo.data.manifest import DataError

FOLDS = range(5)
RELEASED = {
    "normal": "Normal",
    "polyp": "Polyp",
    "low_grade_in": "Low-grade IN",
    "high_grade_in": "High-grade IN",
    "adenocarcinoma": "Adenocarcinoma",
    "serrated_adenoma": "Serrated adenoma",
}


def tiles_of(cases=10):
    """(case, class, tile) of two tiles per case, every third case with tiles of two classes."""
    for k, name in enumerate(CLASSES):
        for i in range(cases):
            case = f"GTxc20{k}{i:03d}"
            other = CLASSES[(k + 1) % len(CLASSES)] if i % 3 == 0 else name
            yield case, name, f"{case}-1-400-001"
            yield case, other, f"{case.upper()}-1-400-002"


def write_tile(image, mask, shown=slice(2)):
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 100, 150)).save(image)
    pixels = np.zeros((8, 8), np.uint8)
    pixels[shown] = 255
    Image.fromarray(pixels).save(mask)


def write_index(root, rows):
    with (root / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "case", "label", "ordinal"])
        writer.writerows(rows)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Tiles with an index."""
    root = tmp_path_factory.mktemp("ebhi")
    rows = []
    for case, label, tile in tiles_of():
        name = f"{label}__{tile}"
        write_tile(root / "images" / f"{name}.jpg", root / "masks" / f"{name}.png")
        grade = GRADES.index(label) if label in GRADES else ""
        rows.append([name, case.lower(), label, grade])
    write_index(root, rows)
    return root


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The same tiles as the public release has them."""
    root = tmp_path_factory.mktemp("EBHI-SEG")
    for _, label, tile in tiles_of():
        folder = root / RELEASED[label]
        write_tile(folder / "image" / f"{tile}.png", folder / "label" / f"{tile}.png")
    (root / "readme.md").write_text("EBHI-Seg")
    return root


def rows_of(root):
    with (root / "index.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def sizes(data):
    return {split: len(source) for split, source in data.sources.items()}


def labels_and_cases(data):
    """Label and case of every tile, by split, whatever the layout."""
    return {
        split: sorted((r.label, r.group, r.image.stem.split("__")[-1]) for r in source.records)
        for split, source in data.sources.items()
    }


@pytest.mark.parametrize(
    ("task", "names", "label_of"),
    [
        (
            "malignant",
            ["benign", "malignant"],
            {"normal": 0, "polyp": 0, "high_grade_in": 1, "adenocarcinoma": 1},
        ),
        ("grade", list(GRADES), {name: k for k, name in enumerate(GRADES)}),
        ("class", list(CLASSES), {name: k for k, name in enumerate(CLASSES)}),
    ],
)
def test_labels_of_a_task(copy, task, names, label_of):
    data = EBHIData(str(copy), task)
    assert (data.class_names, data.num_classes) == (names, len(names))
    assert data.negative_class is None  # normal tiles have glands too
    data.setup("fit")
    rows = {name: (case, label) for name, case, label, _ in rows_of(copy)}
    seen = 0
    for source in data.sources.values():
        for record in source.records:
            case, label = rows[record.image.stem]
            assert (record.label, record.group) == (label_of[label], case)
            assert record.masks == (copy / "masks" / f"{record.image.stem}.png",)
            seen += 1
    assert seen == sum(label in label_of for _, label in rows.values())


def test_folds_are_by_case_and_rotate(copy):
    parts = []
    for fold in FOLDS:
        data = EBHIData(str(copy), "class", fold)
        data.setup("fit")
        assert list(data.sources) == ["train", "val", "test"]
        groups = {k: {r.group for r in source.records} for k, source in data.sources.items()}
        assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 60
        assert sum(sizes(data).values()) == 120
        for split in ("val", "test"):
            counts = Counter(record.label for record in data.sources[split].records)
            assert all(3 <= counts[k] <= 5 for k in range(6))
        parts.append(groups)
    assert [part["val"] for part in parts] == [parts[(k + 1) % 5]["test"] for k in FOLDS]
    assert len(set.union(*(part["test"] for part in parts))) == 60


def test_folds_depend_on_their_seed_only_and_are_the_same_for_every_task(copy):
    def cases(task="class", **kwargs):
        sources = EBHIData(str(copy), task, **kwargs).sources
        return {split: {r.group for r in source.records} for split, source in sources.items()}

    assert cases(seed=3) == cases()
    assert cases(split_seed=3) != cases()
    for task in ("malignant", "grade"):
        assert all(cases(task)[split] <= cases()[split] for split in cases())
    assert len(cases(folds=3)["val"]) == 20


def test_dealing_does_not_depend_on_the_order_of_tiles(copy):
    tiles = [(tile.group, tile.label) for tile in read_index(copy)]
    assert deal_cases(tiles[::-1], 5, seed=0) == deal_cases(tiles, 5, seed=0)
    few = deal_cases([("a", 0), ("b", 0), ("b", 1)], 5, seed=0)
    assert sorted(few) == ["a", "b"]
    assert few["a"] != few["b"]


def test_the_public_release_gives_the_same_splits(copy, release):
    for task in ("malignant", "class"):
        data = EBHIData(str(release), task, fold=2)
        data.setup("fit")
        assert labels_and_cases(data) == labels_and_cases(EBHIData(str(copy), task, fold=2))
    record = data.sources["test"].records[0]
    assert record.masks == (record.image.parents[1] / "label" / record.image.name,)
    assert record.place == record.image.relative_to(release).as_posix()


@pytest.mark.parametrize("layout", ["copy", "release"])
def test_masks_judge_and_do_not_train(layout, request):
    data = EBHIData(str(request.getfixturevalue(layout)), image_size=8)
    assert data.selection() == {"cl": "val/acc", "loc": "val/pxap"}
    (val,) = data.val_dataloader()
    batch = next(iter(val))
    assert batch["has_mask"].all()
    assert set(batch["mask"].unique().tolist()) == {0, 1}
    assert (batch["mask"].sum(dim=(1, 2)) == 16).all()
    assert "mask" not in next(iter(data.train_dataloader()))


def test_without_folders_of_masks_nothing_is_localised(copy, release, tmp_path):
    (tmp_path / "images").symlink_to(copy / "images")
    (tmp_path / "index.csv").write_text((copy / "index.csv").read_text())
    bare = EBHIData(str(tmp_path))
    bare.setup("fit")
    assert bare.selection() == {"cl": "val/acc", "loc": None}
    for folder in release.iterdir():
        if folder.is_dir():
            (tmp_path / "release" / folder.name).mkdir(parents=True)
            (tmp_path / "release" / folder.name / "image").symlink_to(folder / "image")
    bare = EBHIData(str(tmp_path / "release"))
    bare.setup("fit")
    assert bare.selection() == {"cl": "val/acc", "loc": None}


def test_bad_rows_of_the_index_come_at_once_with_their_lines(tmp_path):
    for name in ("a", "b", "c", "d", "e", "g"):
        write_tile(tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.png")
    (tmp_path / "masks" / "g.png").unlink()
    good = ["a", "gt1", "normal", "0"]
    rows = [
        good,
        ["b", "gt1", "polip", "1"],
        ["c", "gt1", "polyp", "2"],
        ["d", "", "polyp", "1"],
        ["e", "gt1", "serrated_adenoma", "5"],
        good,
        ["f", "gt2", "adenocarcinoma", "4"],
        ["g", "gt2", "adenocarcinoma", "4"],
        ["h"],
    ]
    write_index(tmp_path, rows)
    with pytest.raises(DataError, match=r"EBHI-Seg .*: 9 problems") as caught:
        EBHIData(str(tmp_path)).setup("fit")
    assert caught.value.problems == [
        "index.csv, line 3: unknown class 'polip' (did you mean 'polyp'?)",
        "index.csv, line 4: polyp has grade '1', found '2'",
        "index.csv, line 5: expected name,case,label,ordinal, name or case is empty",
        "index.csv, line 6: serrated_adenoma has grade '', found '5'",
        "index.csv, line 7: a is listed twice (first: index.csv, line 2)",
        "index.csv, line 8: there is no image f",
        "index.csv, line 8: there is no mask f",
        "index.csv, line 9: there is no mask g",
        "index.csv, line 10: expected name,case,label,ordinal, name or case is empty",
    ]


def test_an_index_that_is_none_is_refused(copy, tmp_path):
    index = tmp_path / "index.csv"
    index.write_text("name,label\na,normal\n")
    expected = r"line 1: expected the columns name,case,label,ordinal; missing: case, ordinal"
    with pytest.raises(DataError, match=expected):
        EBHIData(str(tmp_path)).setup("fit")
    index.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"index\.csv cannot be read"):
        EBHIData(str(tmp_path)).setup("fit")
    index.write_text((copy / "index.csv").read_text())
    with pytest.raises(DataError, match=r"1 problem\n.*images: it does not exist"):
        EBHIData(str(tmp_path)).setup("fit")


def test_bad_class_folders_come_at_once(tmp_path):
    def write(folder, tile):
        write_tile(*(tmp_path / folder / kind / f"{tile}.png" for kind in ("image", "label")))

    write("Polyp", "GT1-1-400-001")
    write("Polyp", "GT1-1-400-002")
    (tmp_path / "Polyp" / "label" / "GT1-1-400-002.png").unlink()
    write("Adenoma carcinoma", "GT2-1-400-001")
    (tmp_path / "Normal" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"EBHI-Seg .*: 3 problems") as caught:
        EBHIData(str(tmp_path)).setup("fit")
    assert caught.value.problems == [
        "Adenoma carcinoma: unknown class (did you mean 'adenocarcinoma'?)",
        f"{tmp_path / 'Normal' / 'image'}: it does not exist or is no folder",
        "Polyp/image/GT1-1-400-002.png: there is no mask GT1-1-400-002",
    ]
    for empty in (tmp_path / "nowhere", tmp_path / "Normal" / "images"):
        with pytest.raises(DataError, match=r"neither index\.csv nor one folder per class"):
            EBHIData(str(empty)).setup("fit")


def test_a_mask_of_another_size_is_refused(copy, tmp_path):
    for tile in ("GT1-1", "GT2-1", "GT3-1"):
        for name in ("Normal", "Adenocarcinoma"):
            folder = tmp_path / name
            write_tile(folder / "image" / f"{tile}.png", folder / "label" / f"{tile}.png")
    Image.new("L", (8, 9)).save(tmp_path / "Normal" / "label" / "GT2-1.png")
    with pytest.raises(
        DataError, match=r"- Normal/image/GT2-1\.png: mask GT2-1\.png is 8x9 pixels"
    ):
        EBHIData(str(tmp_path), folds=3).setup("fit")


def test_bad_arguments_are_refused(tmp_path):
    for settings, message in (
        ({"task": "polyps"}, "task='polyps' must be one of malignant, grade, class"),
        ({"folds": 2}, "folds=2: one to test, one to validate and one to train"),
        ({"fold": 5}, "fold=5 does not exist: there are folds 0 to 4"),
        ({"fold": -1}, "fold=-1 does not exist"),
        ({"fold": 3, "folds": 3}, "there are folds 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            EBHIData(str(tmp_path), **settings)


@pytest.fixture(scope="module")
def real_ebhi(real_data):
    if not (real_data / "EBHI-Seg" / "index.csv").is_file():
        pytest.skip("the real EBHI-Seg tiles are not there")
    return real_data / "EBHI-Seg"


def test_the_real_index_names_its_cases(real_ebhi):
    tiles = read_index(real_ebhi)
    assert len(tiles) == 563
    assert len({tile.group for tile in tiles}) == 199
    for tile in tiles:
        label, _, name = tile.image.stem.partition("__")
        assert (CLASSES.index(label), case_of(name)) == (tile.label, tile.group)


@pytest.mark.parametrize("fold", FOLDS)
def test_the_real_folds_are_balanced(real_ebhi, fold):
    """39 normal tiles, 44 serrated adenomas and 120 of every other class, of 199 cases."""
    data = EBHIData(str(real_ebhi), "class", fold, verify="none")
    data.setup("fit")
    groups = [{r.group for r in source.records} for source in data.sources.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 199
    for split in ("val", "test"):
        counts = Counter(record.label for record in data.sources[split].records)
        assert [counts[k] for k in range(1, 5)] == [24] * 4
        assert counts[0] in range(7, 11)
        assert counts[5] in range(8, 11)


def test_the_real_masks_show_glands_in_tiles_of_either_kind(real_ebhi):
    data = EBHIData(str(real_ebhi), verify="header")
    data.setup("test")
    assert sizes(data) == {"train": 240, "val": 80, "test": 79}
    batch = next(iter(data.test_dataloader()[0]))
    assert set(batch["label"].tolist()) == {0, 1}
    assert batch["mask"].shape == (32, 224, 224)
    shares = (batch["mask"] == 1).float().mean(dim=(1, 2))
    assert ((batch["mask"] == 0) | (batch["mask"] == 1)).all()
    assert shares.min() > 0.1
