import shutil
from collections import Counter

import pytest
from PIL import Image

from wsl_zoo.data.folds import fifths, one_fold, shuffled
from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.ordinal import (
    AFAD_AGES,
    AFAD_IMAGES,
    DECADES,
    GRADES,
    AFADData,
    FGNETData,
    HCIData,
    ICIARData,
    listing,
)

# What a miniature copy differs in from the published set; one test looks at the warning itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*is not the whole published set")

PREFIXES = {"Normal": "n", "Benign": "b", "InSitu": "is", "Invasive": "iv"}


def write_images(root, names):
    """Images of 6 x 4 pixels, all of one format copies of the first."""
    files = {}
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        first = files.setdefault(path.suffix, path)
        if first is path:
            Image.new("RGB", (6, 4), (200, 100, 150)).save(path)
        else:
            shutil.copy(first, path)
    return root


def iciar_names(count=100, ending=".tif"):
    return [f"{k}/{p}{i:03d}{ending}" for k, p in PREFIXES.items() for i in range(1, count + 1)]


def hci_names(count=20):
    return [f"{decade}/{i:04d}_flickr.jpg" for decade in DECADES for i in range(count)]


def fgnet_names(subjects=82):
    """Each subject at three ages, with two images of one of them."""
    return [
        f"{s:03d}A{age:02d}{copy}.JPG"
        for s in range(1, subjects + 1)
        for age, copy in ((s % 5, ""), (s % 50 + 5, "a"), (s % 50 + 5, "b"), (s % 7 + 60, ""))
    ]


def afad_names(ages=range(18, 40), male=7, female=5):
    return [
        f"{age}/{gender}/{age}{i}-0.jpg"
        for age in ages
        for gender, count in (("111", male), ("112", female))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def iciar(tmp_path_factory):
    root = write_images(tmp_path_factory.mktemp("iciar"), [f"Photos/{n}" for n in iciar_names()])
    (root / "Photos" / "microscopy_ground_truth.csv").write_text("n001.tif,Normal\n")
    (root / "Photos" / "Normal" / "Thumbs.db").write_bytes(b"\0")
    return root


@pytest.fixture(scope="module")
def hci(tmp_path_factory):
    root = tmp_path_factory.mktemp("hci")
    return write_images(root, [f"data/imgs/decade_database/{name}" for name in hci_names()])


@pytest.fixture(scope="module")
def fgnet(tmp_path_factory):
    root = tmp_path_factory.mktemp("fgnet")
    (root / "points").mkdir()
    return write_images(root, [f"images/{name}" for name in fgnet_names()])


@pytest.fixture(scope="module")
def afad(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("AFAD-Lite"), afad_names())


def places(data):
    """What lies in every split, by its path below the images, in order."""
    return {name: [r.place for r in source.records] for name, source in data.sources.items()}


def sizes(data):
    return {name: len(source) for name, source in data.sources.items()}


def classes(data, split):
    return Counter(data.class_names[r.label] for r in data.sources[split].records)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (ICIARData("nowhere"), ["Normal", "Benign", "InSitu", "Invasive"]),
        (HCIData("nowhere"), ["1930s", "1940s", "1950s", "1960s", "1970s"]),
        (FGNETData("nowhere"), [str(age) for age in range(70)]),
        (AFADData("nowhere"), [str(age) for age in range(18, 40)]),
        (AFADData("nowhere", "full"), [str(age) for age in range(15, 73)]),
    ],
)
def test_class_names_are_known_without_the_data(data, names):
    assert (data.class_names, data.num_classes) == (names, len(names))
    with pytest.raises(DataError, match=r"nowhere: 1 problem\n.*does not exist or is no folder"):
        data.setup("fit")


def test_iciar_is_dealt_as_published(iciar):
    """400 images: 200 for test, and 160 and 40 of the others."""
    data = ICIARData(str(iciar))
    data.setup("fit")
    assert sizes(data) == {"train": 160, "val": 40, "test": 200}
    for split, count in (("train", 40), ("val", 10), ("test", 50)):
        assert classes(data, split) == dict.fromkeys(GRADES, count)
    for source in data.sources.values():
        for record in source.records:
            folder, name = record.place.split("/")
            assert record.label == GRADES.index(folder)
            assert record.image == iciar / "Photos" / folder / name
            assert record.group == ""
    assert data.selection() == {"cl": "val/acc", "loc": None}


def test_the_test_part_of_iciar_is_the_same_for_every_split_and_fold(iciar):
    def run_of(*args, **kwargs):
        return places(ICIARData(str(iciar), *args, verify="none", **kwargs))

    runs = {(s, f): run_of(s, f) for s in range(2) for f in range(5)}
    whole = {name for split in runs[0, 0].values() for name in split}
    assert len(whole) == 400
    tested = runs[0, 0]["test"]
    for run in runs.values():
        assert run["test"] == tested
        assert sum(map(len, run.values())) == 400
        assert {name for split in run.values() for name in split} == whole
    for s in range(2):  # every image that is not tested is validated once
        folds = [name for f in range(5) for name in runs[s, f]["val"]]
        assert sorted(folds) == sorted(whole - set(tested))
    assert runs[0, 0]["val"] != runs[1, 0]["val"]
    assert run_of(split_seed=1)["test"] != tested
    assert run_of(seed=1) == runs[0, 0]


def test_splits_are_the_same_on_every_machine(iciar, hci, fgnet, afad):
    """They are stored in nobody's file: a change here changes every published number."""
    tested = places(ICIARData(str(iciar)))["test"]
    assert tested[:3] == ["Normal/n002.tif", "Normal/n005.tif", "Normal/n006.tif"]
    validated = places(ICIARData(str(iciar), 1, 3))["val"]
    assert validated[:3] == ["Normal/n003.tif", "Normal/n015.tif", "Normal/n016.tif"]
    decades = places(HCIData(str(hci), 2, 1))["val"]
    assert [name[:10] for name in decades[:3]] == ["1930s/0003", "1930s/0007", "1940s/0001"]
    subjects = {r.group for r in FGNETData(str(fgnet), 7).sources["test"].records}
    assert sorted(subjects)[:5] == ["004", "011", "022", "023", "025"]
    faces = places(AFADData(str(afad), split=99))["val"]
    assert faces[:3] == ["18/111/185-0.jpg", "19/111/190-0.jpg", "20/111/201-0.jpg"]


def test_other_formats_of_images_have_the_same_splits(tmp_path):
    found = []
    for ending in (".tif", ".png"):
        names = [f"{k}/{stem}{ending}" for k in GRADES for stem in ("a", "a-1")]
        root = write_images(tmp_path / ending[1:], names + iciar_names(10, ending))
        splits = places(ICIARData(str(root), fold=2))
        found.append({k: {name.removesuffix(ending) for name in v} for k, v in splits.items()})
    assert found[0] == found[1]


def test_hci_is_dealt_as_published():
    names = {decade: [f"{decade}/{i}.jpg" for i in range(265)] for decade in DECADES}
    for decade in DECADES:
        tested, validated = set(), []
        for fold in range(10):
            test, val, train = HCIData("nowhere", 4, fold).deal(decade, names[decade])
            assert (len(test), len(val)) == (50, 22 if fold < 5 else 21)
            assert sorted(test + val + train) == sorted(names[decade])
            tested.add(tuple(test))
            validated += val
        assert len(tested) == 1
        assert sorted(validated + list(*tested)) == sorted(names[decade])
    parts = [HCIData("nowhere", split).deal("1930s", names["1930s"]) for split in range(10)]
    assert len({tuple(sorted(test)) for test, _, _ in parts}) == 10


def test_a_part_of_hci_is_dealt_in_proportion(hci):
    """Of 20 images of every decade 3 are tested; 17 are dealt into ten folds."""
    data = HCIData(str(hci), split=9, fold=9)
    data.setup("fit")
    assert sizes(data) == {"train": 80, "val": 5, "test": 15}
    for split, count in (("train", 16), ("val", 1), ("test", 3)):
        assert classes(data, split) == dict.fromkeys(DECADES, count)
    more = [str(i) for i in range(400)]
    assert len(HCIData("nowhere").deal("1930s", more)[0]) == 50


def test_fgnet_is_dealt_by_subject_as_published(fgnet):
    """82 subjects: 16 to test, 13 to validate, 53 to train; an age may have no training image."""
    tested = set()
    for split in (0, 1, 99):
        data = FGNETData(str(fgnet), split)
        data.setup("fit")
        groups = {name: {r.group for r in s.records} for name, s in data.sources.items()}
        assert {name: len(subjects) for name, subjects in groups.items()} == {
            "train": 53,
            "val": 13,
            "test": 16,
        }
        assert len(set.union(*groups.values())) == 82
        assert sum(sizes(data).values()) == 4 * 82
        assert len(classes(data, "train")) < 70
        tested.add(frozenset(groups["test"]))
    assert len(tested) == 3
    for record in data.sources["train"].records:
        subject, age = record.place[:3], record.place[4:6]
        assert (record.group, record.label) == (subject, int(age))
        assert record.image == fgnet / "images" / record.place


def test_afad_is_dealt_by_age_and_gender(afad):
    """Of 7 male and 5 female images of every age, 1 and 1 are tested, 1 and 0 validated."""
    data = AFADData(str(afad))
    data.setup("fit")
    ages = data.class_names
    cells = {
        split: Counter(place.rpartition("/")[0] for place in names)
        for split, names in places(data).items()
    }
    assert cells["test"] == dict.fromkeys([f"{age}/{g}" for age in ages for g in (111, 112)], 1)
    assert cells["val"] == dict.fromkeys([f"{age}/111" for age in ages], 1)
    assert cells["train"] == {f"{age}/{g}": n for age in ages for g, n in ((111, 5), (112, 4))}
    assert sum(sizes(data).values()) == len(afad_names())
    for record in data.sources["val"].records:
        assert record.label == int(record.place[:2]) - 18
        assert record.group == ""
    other = AFADData(str(afad), split=1)
    assert places(other)["test"] != places(data)["test"]
    assert sizes(other) == sizes(data)


def test_an_age_of_afad_may_be_empty(tmp_path):
    root = write_images(tmp_path, afad_names((15, 40, 72), male=7, female=0))
    (root / "71" / "112").mkdir(parents=True)
    data = AFADData(str(root), "full")
    data.setup("fit")
    assert data.num_classes == 58
    assert {r.label for r in data.sources["train"].records} == {0, 25, 57}


def test_the_published_counts_of_afad():
    assert sum(AFAD_IMAGES["lite"].values()) == 59_344
    assert sum(AFAD_IMAGES["full"].values()) == 165_501
    assert {variant: len(ages) for variant, ages in AFAD_AGES.items()} == {"lite": 22, "full": 58}


@pytest.mark.parametrize(
    ("count", "parts"),
    [(0, [0, 0, 0]), (4, [0, 0, 4]), (5, [1, 0, 4]), (10, [2, 1, 7]), (82, [16, 13, 53])],
)
def test_fifths_are_rounded_down(count, parts):
    order = [str(i) for i in range(count)]
    dealt = fifths(order)
    assert [len(part) for part in dealt] == parts
    assert parts[:2] == [int(0.2 * count), int(0.2 * (count - int(0.2 * count)))]
    assert [unit for part in dealt for unit in part] == order


def test_dealing_depends_on_names_and_seed_alone():
    units = [str(i) for i in range(30)]
    assert shuffled(units[::-1] + units, "a") == shuffled(units, "a")
    assert shuffled(units, "a") != shuffled(units, "b")
    folds = [one_fold(units, fold, 7) for fold in range(7)]
    assert sorted(unit for own, _ in folds for unit in own) == sorted(units)
    for own, others in folds:
        assert len(own) in (4, 5)
        assert sorted(own + others) == sorted(units)


@pytest.mark.parametrize(
    ("kind", "copy", "levels"),
    [
        (ICIARData, "iciar", ["", "Photos"]),
        (HCIData, "hci", ["", "data", "data/imgs", "data/imgs/decade_database"]),
        (FGNETData, "fgnet", ["", "images"]),
    ],
)
def test_the_root_may_be_any_level_above_the_images(kind, copy, levels, request):
    root = request.getfixturevalue(copy)
    found = [places(kind(str(root / level), verify="none")) for level in levels]
    assert all(splits == found[0] for splits in found)


@pytest.mark.parametrize(
    ("kind", "copy"),
    [(ICIARData, "iciar"), (HCIData, "hci"), (FGNETData, "fgnet"), (AFADData, "afad")],
)
def test_batches_hold_labels_and_groups(kind, copy, request):
    root = request.getfixturevalue(copy)
    data = kind(str(root), batch_size=4, image_size=[16, 24], crop_size=8, verify="none")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 8, 8)
    train = data.sources["train"].records
    for index, label, group in zip(batch["index"], batch["label"], batch["group"], strict=True):
        assert (label.item(), group) == (train[index].label, train[index].group)
    (loader,) = data.test_dataloader()
    assert next(iter(loader))["image"].shape == (4, 3, 16, 24)


@pytest.mark.parametrize(
    ("kind", "names", "found"),
    [
        (ICIARData, iciar_names(12)[:-1], "12 Normal (published: 100), 12 Benign"),
        (HCIData, hci_names(), "20 1930s (published: 265), 20 1940s"),
        (FGNETData, fgnet_names(9), "9 subjects (published: 82)"),
        (AFADData, afad_names(), "154 male (published: 34,817), 110 female (published: 24,527)"),
    ],
)
def test_a_set_that_is_not_whole_gives_a_warning(kind, names, found, tmp_path):
    write_images(tmp_path, names)
    with pytest.warns(UserWarning, match="is not the whole published set") as caught:
        kind(str(tmp_path)).setup("fit")
    (warning,) = caught
    assert found in str(warning.message)


@pytest.mark.filterwarnings("error")
def test_a_whole_set_gives_none(iciar, fgnet):
    ICIARData(str(iciar), verify="none").setup("fit")
    FGNETData(str(fgnet), verify="none").setup("fit")


def test_bad_class_folders_come_at_once(tmp_path):
    names = [name for name in iciar_names(12) if not name.startswith(("Benign", "InSitu"))]
    names = [name for name in names if name <= "Invasive/iv008.tif" or name.startswith("Normal")]
    write_images(tmp_path, [*names, "Benin/b001.tif", "n001.tif", "Normal/more/n013.tif"])
    (tmp_path / "InSitu").mkdir()
    (tmp_path / "Normal" / "n003.tif").write_text("no image")
    with pytest.raises(DataError, match=r"ICIARData .*: 7 problems") as caught:
        ICIARData(str(tmp_path), fold=4).setup("fit")
    *problems, unreadable = caught.value.problems
    assert problems == [
        "Benin: unknown class (did you mean 'Benign'?)",
        "n001.tif: expected it in the folder of its class",
        "Normal/more: a folder, expected images",
        "there is no folder Benign",
        "InSitu: it holds no image",
        "Invasive: 8 images are too few: 4 in test, 0 in val, 4 in train",
    ]
    assert unreadable.startswith("Normal/n003.tif: ")
    assert "is not a readable image" in unreadable


def test_an_unknown_decade_is_named(tmp_path):
    names = hci_names(12)
    write_images(tmp_path, [*names, *(f"1980s/{i}.jpg" for i in range(3))])
    with pytest.raises(DataError, match=r"1 problem\n  - 1980s: unknown class \(did you mean"):
        HCIData(str(tmp_path)).setup("fit")


def test_bad_names_of_faces_come_at_once(tmp_path):
    bad = ["001A5.JPG", "01A05.JPG", "001B05.JPG", "001A70.JPG", "002A05ab.JPG", "old/003A05.JPG"]
    write_images(tmp_path / "images", [*fgnet_names(9), "010a05A.jpg", *bad])
    expected = "expected a name such as 001A43a.JPG: subject, A, age, letter of a copy"
    with pytest.raises(DataError, match=r"FGNETData .*images: 6 problems") as caught:
        FGNETData(str(tmp_path)).setup("fit")
    assert caught.value.problems == [
        "old: a folder, expected images",
        f"001A5.JPG: {expected}",
        "001A70.JPG: age 70, expected 00 to 69",
        f"001B05.JPG: {expected}",
        f"002A05ab.JPG: {expected}",
        f"01A05.JPG: {expected}",
    ]


def test_too_few_subjects_leave_a_split_empty(tmp_path):
    write_images(tmp_path, fgnet_names(5))
    with pytest.raises(DataError, match=r"1 problem\n  - split 'val' is empty"):
        FGNETData(str(tmp_path)).setup("fit")


def test_bad_folders_of_ages_come_at_once(tmp_path):
    bad = [
        "15/111/a.jpg",
        "twenty/111/a.jpg",
        "18/113/a.jpg",
        "19/a.jpg",
        "a.jpg",
        "20/111/b/a.jpg",
    ]
    write_images(tmp_path, [*afad_names(), *bad])
    where = "expected it in <age>/111 (male) or <age>/112 (female)"
    ages = "expected a folder of one of the ages 18 to 39 of variant='lite'"
    with pytest.raises(DataError, match=r"AFADData .*: 6 problems") as caught:
        AFADData(str(tmp_path)).setup("fit")
    assert caught.value.problems == [
        f"a.jpg: {where}",
        f"15: {ages}",
        "18/113: expected 111 (male) or 112 (female)",
        f"19/a.jpg: {where}",
        "20/111/b: a folder, expected images",
        f"twenty: {ages}",
    ]
    full = AFADData(str(tmp_path), "full")
    with pytest.raises(DataError, match="of the ages 15 to 72 of variant='full'"):
        full.setup("fit")


def test_a_folder_without_images_is_refused(tmp_path):
    for kind in (FGNETData, AFADData):
        with pytest.raises(DataError, match="it holds no image"):
            kind(str(tmp_path)).setup("fit")
    with pytest.raises(DataError, match="4 problems\n  - there is no folder Normal"):
        ICIARData(str(tmp_path)).setup("fit")


def test_listing_leaves_out_what_is_no_image(tmp_path):
    write_images(tmp_path, ["b.JPG", "a.png", ".hidden.png", "d/c.png", ".e/c.png"])
    (tmp_path / "readme.txt").touch()
    assert listing(tmp_path) == (["d"], ["a.png", "b.JPG"])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ICIARData, {"split": 2}, "split=2 does not exist: there are splits 0 to 1"),
        (ICIARData, {"fold": 5}, "fold=5 does not exist: there are folds 0 to 4"),
        (ICIARData, {"fold": -1}, "fold=-1 does not exist"),
        (HCIData, {"split": 10}, "there are splits 0 to 9"),
        (HCIData, {"fold": 10}, "there are folds 0 to 9"),
        (FGNETData, {"split": 100}, "there are splits 0 to 99"),
        (AFADData, {"split": -1}, "split=-1 does not exist: there are splits 0 to 99"),
        (AFADData, {"variant": "light"}, "variant='light' must be one of lite, full"),
    ],
)
def test_bad_arguments_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind("nowhere", **settings)
