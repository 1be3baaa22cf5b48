import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsl_zoo.data import CUBData, Record
from wsl_zoo.data.cub import CUB5, minmax_split
from wsl_zoo.data.manifest import DataError, read_mask

NAMES = ["001.Black_footed_Albatross", "003.Sooty_Albatross", "200.Common_Yellowthroat"]
FILES = ("images", "image_class_labels", "train_test_split", "bounding_boxes")


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows))


def append(path, *rows):
    path.write_text("\n".join([path.read_text(), *rows]))


def save(path, size=(10, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


@pytest.fixture
def original(tmp_path):
    """`CUB_200_2011` of three classes, each with six training and two test images."""
    root = tmp_path / "CUB_200_2011"
    rows = {name: [] for name in FILES}
    for number in range(1, 25):
        k, i = divmod(number - 1, 8)
        name = f"{NAMES[k]}/Bird_{i}_{number}.jpg"
        save(root / "images" / name)
        rows["images"].append(f"{number} {name}")
        rows["image_class_labels"].append(f"{number} {k + 1}")
        rows["train_test_split"].append(f"{number} {int(i < 6)}")
        rows["bounding_boxes"].append(f"{number} 1.0 2.5 {k + 4}.0 3.0")
    rows["classes"] = [f"{k} {name}" for k, name in enumerate(NAMES, start=1)]
    for name, lines in rows.items():
        write(root / f"{name}.txt", lines)
    return root


@pytest.fixture
def metadata(tmp_path, original):
    """The same images by metadata; `val` are two new ones of every class in a folder of theirs."""
    birds = {"train": [], "val": [], "test": []}
    for row in (original / "images.txt").read_text().split("\n"):
        name = row.split()[1]
        birds["test" if "_6_" in name or "_7_" in name else "train"].append(name)
    for name in NAMES:
        for i in (7, 3):
            birds["val"].append(f"{name}/{i}.jpg")
            save(tmp_path / "CUBV2" / birds["val"][-1], (20, 16))
    for split, names in birds.items():
        folder = tmp_path / "meta" / split
        size = "20,16" if split == "val" else "10,8"
        write(folder / "image_ids.txt", names)
        write(folder / "class_labels.txt", [f"{n},{NAMES.index(n.split('/')[0])}" for n in names])
        write(folder / "image_sizes.txt", [f"{name},{size}" for name in names])
        write(folder / "localization.txt", [f"{name},1,2,5,5" for name in names])
    return tmp_path / "meta"


def names_of(data, split):
    return [record.image.name for record in data.sources[split].records]


def test_the_original_layout(original):
    data = CUBData(str(original), image_size=20)
    assert data.class_names == NAMES  # before setup
    data.setup("fit")
    assert {k: len(v) for k, v in data.sources.items()} == {"train": 6, "val": 12, "test": 6}
    assert data.selection() == {"cl": "val/acc", "loc": "val/maxboxacc"}
    for split, each in (("train", 2), ("val", 4), ("test", 2)):
        records = data.sources[split].records
        assert Counter(r.label for r in records) == dict.fromkeys(range(3), each)
        for record in records:
            k = NAMES.index(record.image.parent.name)
            assert record.label == k
            assert record.boxes == ((1.0, 2.5, 1.0 + k + 4, 5.5),)
    assert names_of(data, "test")[:3] == ["Bird_6_7.jpg", "Bird_7_8.jpg", "Bird_6_15.jpg"]
    assert data.sources["test"].records[0].place == "images.txt, line 7"
    batch = next(iter(data.test_dataloader()[0]))
    assert batch["boxes"][0].tolist() == [[2, 6.25, 10, 13.75]]
    assert "boxes" not in next(iter(data.train_dataloader()))


def test_validation_images_are_drawn_from_training_by_a_seed_of_their_own(original):
    def val(**kwargs):
        return names_of(CUBData(str(original), **kwargs), "val")

    assert val() == val(seed=7)
    assert val(split_seed=1) != val()
    data = CUBData(str(original), val_per_class=1)
    assert [r.label for r in data.sources["val"].records] == [0, 1, 2]
    assert not set(names_of(data, "val")) & set(names_of(data, "train"))
    assert len(data.sources["train"]) == 15
    whole = CUBData(str(original), val_per_class=0)
    assert {k: len(v) for k, v in whole.sources.items()} == {"train": 18, "test": 6}
    with pytest.raises(ValueError, match="val_per_class=-1 must be >= 0"):
        CUBData(str(original), val_per_class=-1)


def test_labels_count_the_classes_that_have_images(original):
    """A subset whose other files still list everything."""
    kept = [r for r in (original / "images.txt").read_text().split("\n") if NAMES[1] not in r]
    write(original / "images.txt", kept)
    data = CUBData(str(original))
    assert data.class_names == [NAMES[0], NAMES[2]]
    data.setup("fit")
    assert {r.image.parent.name: r.label for r in data.sources["test"].records} == {
        NAMES[0]: 0,
        NAMES[2]: 1,
    }


def test_bad_lines_of_the_original_files_come_at_once(original):
    append(original / "images.txt", "25 a.jpg extra", "1 b.jpg", "", "26 c.jpg", "27 d.jpg")
    append(original / "image_class_labels.txt", "26 9", "27 1")
    append(original / "train_test_split.txt", "26 2", "27 1")
    append(original / "bounding_boxes.txt", "26 1 2 -3 4", "27 1 2 x 4")
    with pytest.raises(DataError, match=f"^CUB {original}: 5 problems") as caught:
        CUBData(str(original)).read_splits()
    assert caught.value.problems == [
        "images.txt, line 25: expected id path, found '25 a.jpg extra'",
        "images.txt, line 26: id 1 is listed twice",
        "train_test_split.txt, line 25: expected 1 (train) or 0 (test), found '2'",
        "bounding_boxes.txt, line 25: a box needs finite x0 <= x1 and y0 <= y1, "
        "got '1.0 2.0 -2.0 6.0'",
        "bounding_boxes.txt, line 26: could not convert string to float: 'x'",
    ]


def test_the_original_files_must_agree(original):
    append(original / "images.txt", "25 a.jpg", "26 b.jpg")
    append(original / "image_class_labels.txt", "26 9")
    append(original / "train_test_split.txt", "26 1")
    append(original / "bounding_boxes.txt", "26 1 2 3 4")
    with pytest.raises(DataError) as caught:
        CUBData(str(original)).read_splits()
    assert caught.value.problems == [
        "images.txt, line 25: image 25 is not in image_class_labels.txt",
        "images.txt, line 25: image 25 is not in train_test_split.txt",
        "images.txt, line 25: image 25 is not in bounding_boxes.txt",
        "image_class_labels.txt, line 25: class 9 is not in classes.txt",
    ]
    (original / "bounding_boxes.txt").unlink()
    (original / "classes.txt").unlink()
    data = CUBData(str(original))
    for read in (lambda: data.class_names, data.read_splits):
        with pytest.raises(DataError) as caught:
            read()
        assert [problem.split(" (")[0] for problem in caught.value.problems] == [
            "bounding_boxes.txt cannot be read",
            "classes.txt cannot be read",
        ]


def test_missing_images_are_named_with_their_lines(original):
    (original / "images" / NAMES[0] / "Bird_1_2.jpg").unlink()
    with pytest.raises(DataError, match=r"images\.txt, line 2: image .*Bird_1_2\.jpg does not"):
        CUBData(str(original)).setup("fit")


def test_the_metadata_of_cubv2(original, metadata):
    data = CUBData(str(original), str(metadata), str(original.parent / "CUBV2"), image_size=20)
    assert data.class_names == NAMES
    data.setup("fit")
    assert {k: len(v) for k, v in data.sources.items()} == {"train": 18, "val": 6, "test": 6}
    assert names_of(data, "val") == ["7.jpg", "3.jpg"] * 3
    batch = next(iter(data.val_dataloader()[0]))
    assert batch["boxes"][0].tolist() == [[1, 2.5, 5, 6.25]]  # a fourth: of 20 x 16 pixels
    few = CUBData(
        str(original), str(metadata), str(original.parent / "CUBV2"), num_val_sample_per_class=1
    )
    assert [record.label for record in few.sources["val"].records] == [0, 1, 2]
    with pytest.raises(ValueError, match="give metadata="):
        CUBData(str(original), num_val_sample_per_class=1)
    with pytest.raises(ValueError, match="give metadata="):
        CUBData(str(original), proxy=True)


def test_all_images_may_lie_in_one_folder_with_the_metadata(original, metadata):
    root = original / "images"
    for name in NAMES:
        for image in (original.parent / "CUBV2" / name).iterdir():
            image.rename(root / name / image.name)
    for split in ("train", "val", "test"):
        (metadata / split).rename(root / split)
    data = CUBData(str(root))
    data.setup("fit")
    assert {k: len(v) for k, v in data.sources.items()} == {"train": 18, "val": 6, "test": 6}


def test_pseudo_boxes_have_the_paths_of_the_metadata(original, metadata):
    boxes = original.parent / "clip" / "localization.txt"
    names = (metadata / "val" / "image_ids.txt").read_text().split("\n")
    write(boxes, [f"{name},0,0,6,4" for name in names])
    data = CUBData(
        str(original), str(metadata), str(original.parent / "CUBV2"),
        val_roots={"clip": str(boxes.parent)},
    )  # fmt: skip
    data.setup("fit")
    assert {record.boxes for record in data.sources["val_clip"].records} == {((0, 0, 6, 4),)}
    names = [f"{NAMES[k]}/Bird_{i}_{8 * k + i + 1}.jpg" for k in range(3) for i in range(6)]
    write(boxes, [f"{name},0,0,6,4" for name in names])  # of all training images
    data = CUBData(str(original), val_roots={"clip": str(boxes.parent)})
    data.setup("fit")
    assert names_of(data, "val_clip") == names_of(data, "val")


def test_what_is_not_cub_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds neither images\.txt nor"):
        CUBData(str(tmp_path)).read_splits()


def write_masks(folder, original):
    """Masks of which the left half is bird."""
    half = np.zeros((8, 10), np.uint8)
    half[:, :5] = 255
    for row in (original / "images.txt").read_text().split("\n"):
        path = (folder / row.split()[1]).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(half).save(path)
    return folder


def first_mask(folder):
    return folder / NAMES[0] / "Bird_0_1.png"


@pytest.mark.parametrize("place", ["inside", "beside", "stated"])
def test_masks_are_found(original, tmp_path, place):
    folders = {"inside": original, "beside": tmp_path, "stated": tmp_path / "elsewhere"}
    folder = write_masks(folders[place] / "segmentations", original)
    masks = str(folder) if place == "stated" else None
    data = CUBData(str(original), masks=masks, image_size=[8, 10])
    data.setup("fit")
    for source in data.sources.values():
        for record in source.records:
            bird = record.image.relative_to(original / "images")
            assert record.masks == (folder / bird.with_suffix(".png"),)
    batch = next(iter(data.test_dataloader()[0]))
    assert batch["has_mask"].all()
    assert (batch["mask"].sum(dim=(1, 2)) == 40).all()
    assert batch["boxes"][0].tolist() == [[1, 2.5, 5, 5.5]]


def test_boxes_judge_where_there_are_masks_too_but_not_of_the_minmax_split(original):
    assert CUBData(str(original), split="minmax").selection()["loc"] == "val/maxboxacc"
    write_masks(original / "segmentations", original)
    assert CUBData(str(original)).selection() == {"cl": "val/acc", "loc": "val/maxboxacc"}
    assert CUBData(str(original), split="minmax").selection()["loc"] == "val/pxap"
    assert CUBData(str(original), val_per_class=0).selection() == {"cl": None, "loc": None}


@pytest.mark.parametrize(
    ("mode", "pixel", "foreground"),
    [
        ("L", 127, False),
        ("L", 128, True),
        ("LA", (127, 255), False),
        ("LA", (128, 0), True),
        ("RGB", (51,) * 3, False),
        ("RGBA", (204, 204, 204, 0), True),
        ("1", 1, True),
    ],
)
def test_the_mean_of_the_annotators_is_cut_at_half(original, mode, pixel, foreground):
    path = first_mask(write_masks(original / "segmentations", original))
    Image.new(mode, (10, 8), pixel).save(path)
    record = CUBData(str(original), val_per_class=0).sources["train"].records[0]
    assert record.masks == (path,)
    assert read_mask(record, (8, 10)).sum() == 80 * foreground


def test_a_black_mask_is_empty(original):
    path = first_mask(write_masks(original / "segmentations", original))
    Image.new("L", (10, 8)).save(path)
    record = CUBData(str(original), val_per_class=0).sources["train"].records[0]
    assert record.has_mask
    assert not read_mask(record, (8, 10)).any()


def test_masks_that_are_missing_or_do_not_fit_are_named(original):
    folder = write_masks(original / "segmentations", original)
    first_mask(folder).unlink()
    other = folder / NAMES[0] / "Bird_1_2.png"
    Image.new("L", (10, 9)).save(other)
    with pytest.raises(DataError) as caught:
        CUBData(str(original), val_per_class=0).setup("fit")
    assert caught.value.problems == [
        f"images.txt, line 1: mask {first_mask(folder)} does not exist",
        "images.txt, line 2: mask Bird_1_2.png is 10x9 pixels, its image Bird_1_2.jpg is 10x8",
    ]
    with pytest.raises(DataError, match="masks: nowhere does not exist or is no folder"):
        CUBData(str(original), masks="nowhere").setup("fit")


def test_classes_are_kept_in_the_order_given(original):
    data = CUBData(str(original), classes=[NAMES[2], NAMES[0]])
    assert data.class_names == [NAMES[2], NAMES[0]]
    data.setup("fit")
    assert {k: len(v) for k, v in data.sources.items()} == {"train": 4, "val": 8, "test": 4}
    for source in data.sources.values():
        for record in source.records:
            assert data.class_names[record.label] == record.image.parent.name


def test_classes_that_cannot_be_kept_are_named(original):
    with pytest.raises(DataError) as caught:
        CUBData(str(original), classes=[NAMES[0], "003.Sooty_Albatros", NAMES[0]]).setup("fit")
    assert caught.value.problems == [
        "classes: no image is of a class '003.Sooty_Albatros' (did you mean "
        "'003.Sooty_Albatross'?)",
        f"classes: {NAMES[0]!r} is named twice",
    ]
    with pytest.raises(DataError, match="classes: it names no class"):
        _ = CUBData(str(original), classes=[]).class_names
    with pytest.raises(DataError, match="5 problems"):
        CUBData(str(original), classes="cub5").setup("fit")


def test_cub5_is_a_name_for_its_classes(original):
    for row in ("images", "classes"):
        text = (original / f"{row}.txt").read_text()
        for old, new in zip(NAMES, CUB5[2::-1], strict=True):
            text = text.replace(old, new)
        write(original / f"{row}.txt", [text])
    for old, new in zip(NAMES, CUB5[2::-1], strict=True):
        (original / "images" / old).rename(original / "images" / new)
    rows = {name: (original / f"{name}.txt").read_text() for name in (*FILES, "classes")}
    for k, name in enumerate(CUB5[3:], start=4):  # the other two, an image in each set
        for i in range(3):
            number = 10 * k + i
            save(original / "images" / name / f"{number}.jpg")
            rows["images"] += f"\n{number} {name}/{number}.jpg"
            rows["image_class_labels"] += f"\n{number} {k}"
            rows["train_test_split"] += f"\n{number} {int(i < 2)}"
            rows["bounding_boxes"] += f"\n{number} 1 1 2 2"
        rows["classes"] += f"\n{k} {name}"
    for name, text in rows.items():
        write(original / f"{name}.txt", [text])
    data = CUBData(str(original), classes="cub5", split="minmax")
    assert data.class_names == CUB5
    data.setup("fit")
    assert Counter(r.label for r in data.sources["val"].records) == {0: 2, 1: 2, 2: 2, 3: 1, 4: 1}


def test_the_minmax_split_by_an_independent_form_of_its_rule():
    """Names instead of positions, by the global generator as published, which goes on by class."""
    records = [
        Record(Path(f"{label}/{i}.jpg"), label)
        for i in range(7)
        for label in (2, 0, 1)
        if i < 5 + label
    ]
    state = random.getstate()
    random.seed(0)
    expected = set()
    for label in range(3):
        names = [record.image.as_posix() for record in records if record.label == label]
        for _ in range(2000):
            random.shuffle(names)
        expected |= set(names[: (1, 2, 2)[label]])
    random.setstate(state)
    val, train = minmax_split(records)
    assert {record.image.as_posix() for record in val} == expected
    assert val == [record for record in records if record in val]
    assert train == [record for record in records if record not in val]


def test_the_minmax_split_of_the_original_layout(original):
    data = CUBData(str(original), split="minmax", split_seed=3)
    data.setup("fit")
    assert {k: len(v) for k, v in data.sources.items()} == {"train": 12, "val": 6, "test": 6}
    assert names_of(data, "val") == names_of(CUBData(str(original), split="minmax"), "val")
    assert Counter(r.label for r in data.sources["val"].records) == dict.fromkeys(range(3), 2)
    one = CUBData(str(original), split="minmax", classes=[NAMES[0]])
    assert names_of(one, "val") == names_of(data, "val")[:2]  # the generator has not run on


def test_arguments_of_the_original_layout_only(original, metadata):
    with pytest.raises(ValueError, match="split='other' must be one of drawn, minmax"):
        CUBData(str(original), split="other")
    for arguments in ({"split": "minmax"}, {"classes": "cub5"}, {"masks": str(original)}):
        with pytest.raises(ValueError, match="are for the original layout"):
            CUBData(str(original), str(metadata), **arguments)
    write_masks(original / "segmentations", original)
    data = CUBData(str(original), str(metadata), str(original.parent / "CUBV2"))
    assert not data.sources["test"].has_masks


@pytest.fixture(scope="module")
def real_cub(real_data):
    if not (real_data / "CUB_200_2011" / "images.txt").is_file():
        pytest.skip("the real CUB images are not there")
    return real_data / "CUB_200_2011"


@pytest.fixture(scope="module")
def published(real_data):
    folder = real_data / "splits" / "wsol" / "CUB"
    if not folder.is_dir():
        pytest.skip(f"the published split files are not there: {folder}")
    return folder


def test_the_real_images(real_cub):
    data = CUBData(str(real_cub), image_size=224)
    data.setup("fit")
    classes = data.num_classes
    assert data.class_names[0] == NAMES[0]
    counts = {
        split: Counter(record.label for record in source.records)
        for split, source in data.sources.items()
    }
    assert counts["val"] == dict.fromkeys(range(classes), 4)
    assert set(counts["train"].values()) <= {25, 26}  # 29 or 30 less 4
    assert set(counts["test"]) == set(range(classes))
    if classes == 20:  # the small copy; a whole one has 5,194 and 5,794
        assert {split: sum(count.values()) for split, count in counts.items()} == {
            "train": 520, "val": 80, "test": 133,
        }  # fmt: skip
    boxes = next(iter(data.val_dataloader()[0]))["boxes"]
    for (box,) in boxes:
        assert -1 <= box.min() < box.max() <= 225
        assert (box[2:] - box[:2]).min() > 10


def test_the_published_metadata(published, tmp_path):
    data = CUBData(str(tmp_path), str(published))
    assert data.num_classes == 200
    assert (data.class_names[0], data.class_names[-1]) == (NAMES[0], NAMES[2])
    splits = data.read_splits()
    assert {k: len(v) for k, v in splits.items()} == {"train": 5994, "val": 1000, "test": 5794}
    assert all(len(r.boxes) == 1 for records in splits.values() for r in records)
    assert splits["test"][0].boxes == ((60, 27, 385, 331),)
    few = CUBData(str(tmp_path), str(published), num_val_sample_per_class=3).read_splits()
    assert Counter(r.label for r in few["val"]) == dict.fromkeys(range(200), 3)


@pytest.mark.filterwarnings("ignore:.*images are not of the size that")
def test_both_layouts_have_the_same_splits_and_boxes(real_cub, published, tmp_path):
    """The published lists are of whole images in integers; the real ones here may be smaller."""
    original = CUBData(str(real_cub), val_per_class=0)
    own = {
        f"{r.image.parent.name}/{r.image.name}": r
        for source in original.sources.values()
        for r in source.records
    }
    for split in ("train", "test"):
        for file in ("image_ids", "class_labels", "image_sizes", "localization"):
            rows = (published / split / f"{file}.txt").read_text().split("\n")
            rows = [row for row in rows if row.split(",")[0] in own]
            if file == "class_labels":  # those of the subset
                rows = [f"{n},{own[n].label}" for n in (row.split(",")[0] for row in rows)]
            write(tmp_path / split / f"{file}.txt", rows)
    data = CUBData(str(real_cub), str(tmp_path))
    assert data.class_names == original.class_names
    for split in ("train", "test"):
        records = data.sources[split].records
        assert {r.image for r in records} == {r.image for r in original.sources[split].records}
        for record in records:
            same = own[f"{record.image.parent.name}/{record.image.name}"]
            assert record.label == same.label
            assert record.boxes[0] == pytest.approx(same.boxes[0], abs=2)
