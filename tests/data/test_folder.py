from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsl_zoo.data import FolderData, UnlabelledImages
from wsl_zoo.data.manifest import DataError


def picture(path, size=(10, 8), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "L" if "masks" in path.parts else "RGB"
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)
    return path


def folders(root, **counts):
    """Write `split_class=count` images, of `all_class` right below the root."""
    for name, count in counts.items():
        split, class_name = name.split("_")
        parent = root / class_name if split == "all" else root / split / class_name
        for i in range(count):
            picture(parent / f"{i:03}.jpg")
    return root


def splits_of(root, **kwargs):
    """Names of the images below the root and their labels, by split."""
    data = FolderData(str(root), **kwargs)
    data.setup("fit")
    return {
        split: {r.image.relative_to(root).as_posix(): r.label for r in source.records}
        for split, source in data.sources.items()
    }


def test_given_splits_are_taken_as_they_are(tmp_path):
    root = folders(tmp_path, train_dog=3, train_cat=2, val_dog=1, val_cat=1, test_dog=2)
    splits = splits_of(root)
    assert list(splits) == ["train", "val", "test"]
    assert splits["train"] == {
        "train/cat/000.jpg": 0, "train/cat/001.jpg": 0,
        "train/dog/000.jpg": 1, "train/dog/001.jpg": 1, "train/dog/002.jpg": 1,
    }  # fmt: skip
    assert splits["val"] == {"val/cat/000.jpg": 0, "val/dog/000.jpg": 1}
    assert splits["test"] == {"test/dog/000.jpg": 1, "test/dog/001.jpg": 1}
    assert FolderData(str(root)).class_names == ["cat", "dog"]  # before setup
    assert splits_of(root, classes=["dog", "cat"])["test"]["test/dog/001.jpg"] == 0


def test_a_flat_folder_is_dealt_class_by_class(tmp_path):
    root = folders(tmp_path, all_cat=50, all_dog=20, all_owl=5)
    splits = splits_of(root, val_fraction=0.2, test_fraction=0.2)
    counts = {split: Counter(found.values()) for split, found in splits.items()}
    assert counts == {
        "train": {0: 30, 1: 12, 2: 3},
        "val": {0: 10, 1: 4, 2: 1},
        "test": {0: 10, 1: 4, 2: 1},
    }
    names = [name for found in splits.values() for name in found]
    assert len(set(names)) == len(names) == 75
    assert splits_of(root) == splits
    other = splits_of(root, split_seed=1)
    assert other["val"] != splits["val"]
    assert splits_of(root, seed=1) == splits  # runs of other seeds share the split


def test_only_what_is_missing_is_drawn(tmp_path):
    root = folders(tmp_path, train_cat=10, train_dog=10, test_cat=3, test_dog=3)
    splits = splits_of(root, val_fraction=0.3)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [14, 6, 6]
    assert all(name.startswith("test/") for name in splits["test"])
    assert list(splits_of(root, val_fraction=0)) == ["train", "test"]


def test_the_draw_of_val_does_not_depend_on_that_of_test(tmp_path):
    root = folders(tmp_path, all_cat=20, all_dog=20)
    with_test = splits_of(root)
    assert splits_of(root, test_fraction=0)["val"] == with_test["val"]
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    folders(moved, all_cat=20, all_dog=20)
    assert splits_of(moved) == with_test  # nor on where the folder lies


@pytest.mark.parametrize(("count", "train"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 3)])
def test_some_of_every_class_stays_in_train(tmp_path, count, train):
    root = folders(tmp_path, all_cat=count, all_dog=30)
    splits = splits_of(root)
    assert sum(label == 0 for label in splits["train"].values()) == train
    root = folders(tmp_path / "high", all_cat=count, all_dog=30)
    splits = splits_of(root, val_fraction=0.9, test_fraction=0)
    assert sum(label == 0 for label in splits["train"].values()) >= 1


def write_manifest(root, rows):
    text = "\n".join(["split,image,label,group", *rows])
    (root / "manifest.csv").write_text(text)


def test_groups_are_drawn_whole(tmp_path):
    rows = []
    for group in range(30):
        for i in range(1 + group % 4):
            picture(tmp_path / f"{group}_{i}.png")
            rows.append(f"train,{group}_{i}.png,{'ab'[group % 2]},patient {group}")
    write_manifest(tmp_path, rows)
    data = FolderData(str(tmp_path))
    data.setup("fit")
    groups = {k: {r.group for r in source.records} for k, source in data.sources.items()}
    assert sorted(map(len, groups.values())) == [6, 6, 18]
    assert len(set.union(*groups.values())) == 30
    for name in ("val", "test"):  # three of the fifteen groups of each class
        assert Counter(
            r.label for r in {r.group: r for r in data.sources[name].records}.values()
        ) == {
            0: 3,
            1: 3,
        }


def test_groups_of_several_classes_are_not_drawn_twice_as_often(tmp_path):
    rows = []
    for group in range(40):
        for label in "abcd":
            picture(tmp_path / f"{group}_{label}.png")
            rows.append(f"train,{group}_{label}.png,{label},patient {group}")
    write_manifest(tmp_path, rows)
    data = FolderData(str(tmp_path), val_fraction=0.25, test_fraction=0)
    data.setup("fit")
    assert {k: len(source.records) for k, source in data.sources.items()} == {
        "train": 120,
        "val": 40,
    }


def test_masks_are_found_beside_the_classes(tmp_path):
    root = folders(tmp_path, train_cat=1, train_dog=1, val_cat=2, val_dog=1, test_cat=1)
    picture(root / "val" / "cat" / "a.b.png")
    masks = [
        picture(root / "masks" / "val" / "cat" / "000.png", value=1),
        picture(root / "masks" / "val" / "cat" / "a.b.bmp", value=1),
        picture(root / "masks" / "test" / "cat" / "000.tif", value=1),
    ]
    data = FolderData(str(root), image_size=8)
    data.setup("fit")
    assert data.class_names == ["cat", "dog"]
    found = {s: [r.masks for r in source.records] for s, source in data.sources.items()}
    assert found["train"] == [(), ()]
    assert found["val"] == [(masks[0],), (), (masks[1],), ()]
    assert found["test"] == [(masks[2],)]
    batch = next(iter(data.val_dataloader()[0]))
    assert batch["has_mask"].tolist() == [True, False, True, False]
    assert [set(mask.unique().tolist()) for mask in batch["mask"]] == [{1}, {255}, {1}, {255}]
    assert data.selection() == {"cl": "val/acc", "loc": "val/pxap"}


def test_masks_of_a_flat_folder_are_no_class(tmp_path):
    root = folders(tmp_path, all_cat=5, all_dog=5)
    picture(root / "masks" / "cat" / "002.png", value=1)
    (root / ".cache").mkdir()
    data = FolderData(str(root))
    data.setup("fit")
    records = [r for source in data.sources.values() for r in source.records]
    assert data.class_names == ["cat", "dog"]
    assert len(records) == 10
    (record,) = (r for r in records if r.masks)
    assert record.image == root / "cat" / "002.jpg"


def test_a_mask_of_another_size_is_refused(tmp_path):
    root = folders(tmp_path, all_cat=5, all_dog=5)
    picture(root / "masks" / "dog" / "001.png", (10, 9))
    with pytest.raises(DataError, match=r"dog/001.jpg: mask 001.png is 10x9 pixels, its .* 10x8"):
        FolderData(str(root)).setup("fit")


def write_boxes(root, *rows, header="image,x0,y0,x1,y1"):
    (root / "boxes.csv").write_text("\n".join([header, *rows]))


def test_boxes_are_read_and_what_is_not_listed_is_not_annotated(tmp_path):
    root = folders(tmp_path, train_cat=2, train_dog=1, val_cat=1, val_dog=2, test_cat=1)
    write_boxes(
        root, "val/dog/000.jpg,1,2,3.5,4", "", "train/cat/001.jpg,0,0,10,8",
        "val/dog/000.jpg, 5, 6, 7, 8",
    )  # fmt: skip
    data = FolderData(str(root), image_size=20)
    data.setup("fit")
    found = {s: [r.boxes for r in source.records] for s, source in data.sources.items()}
    assert found["train"] == [None, ((0, 0, 10, 8),), None]
    assert found["val"] == [None, ((1, 2, 3.5, 4), (5, 6, 7, 8)), None]
    assert found["test"] == [None]
    assert not data.sources["test"].has_boxes  # no metric on boxes that nobody drew
    batch = next(iter(data.val_dataloader()[0]))
    assert batch["boxes"][1].tolist() == [[2, 5, 7, 10], [10, 15, 14, 20]]
    assert [len(boxes) for boxes in batch["boxes"]] == [0, 2, 0]
    assert data.selection() == {"cl": "val/acc", "loc": "val/maxboxacc"}


def test_bad_boxes_are_listed_with_their_lines(tmp_path):
    root = folders(tmp_path, train_cat=2, train_dog=1)
    write_boxes(
        root, "train/cat/000.jpg,1,2,3", "train/cat/000.jpg,1,2,3,x", "train/cat/000.jpg,1,2,3,4,5",
        "train/cat/000.jpg,5,2,3,4",
    )  # fmt: skip
    with pytest.raises(DataError, match="4 problems") as caught:
        FolderData(str(root)).setup("fit")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "line 2", "line 3", "line 4", "line 5",
    ]  # fmt: skip

    write_boxes(root, "train/cat/000.jpg,1,2,3,4", "train/dog/00.jpg,1,2,3,4", "x,1,2,3,4")
    with pytest.raises(DataError) as caught:
        FolderData(str(root)).setup("fit")
    assert caught.value.problems == [
        "boxes.csv, line 3: no image 'train/dog/00.jpg' (did you mean 'train/dog/000.jpg'?)",
        "boxes.csv, line 4: no image 'x'",
    ]

    write_boxes(root, "train/cat/000.jpg,1,2,3,10")
    with pytest.raises(DataError, match=r"cat/000.jpg: box .* leaves its image 000.jpg of 10x8"):
        FolderData(str(root)).setup("fit")

    write_boxes(root, "train/cat/000.jpg,1,2,3,4", header="image,x,y,w,h")
    with pytest.raises(
        DataError, match=r"boxes.csv, line 1.*\n.*image,x0,y0,x1,y1, found image,x,"
    ):
        FolderData(str(root)).setup("fit")


def test_problems_of_the_folders_come_at_once(tmp_path):
    root = folders(tmp_path, train_cat=2, train_dog=1, val_cta=1, test_cow=1, test_dog=1)
    (root / "train" / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        FolderData(str(root)).setup("fit")
    assert caught.value.problems == [
        f"{root / 'train' / 'empty'}: it holds no image (looked for .bmp, .jpeg, .jpg, .png, "
        ".ppm, .tif, .tiff, .webp)",
        f"{root / 'val' / 'cta'}: unknown class (did you mean 'cat'?)",
        f"{root / 'test' / 'cow'}: unknown class",
    ]


def test_a_class_without_training_images_is_named(tmp_path):
    root = folders(tmp_path, train_cat=2, train_dog=1)
    with pytest.raises(DataError, match=r"class 'cow' \(label 2\) has no training image"):
        FolderData(str(root), classes=["cat", "dog", "cow"]).setup("fit")


def test_folders_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*\n.*does not exist"):
        FolderData(str(tmp_path / "nowhere")).setup("fit")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="one folder of images per class"):
        FolderData(str(tmp_path)).setup("fit")


def test_a_manifest_takes_the_place_of_folders(tmp_path):
    root = folders(tmp_path, train_cat=1)
    picture(root / "a.png")
    picture(root / "b.png")
    write_manifest(root, ["train,a.png,x,", "valcl,b.png,x,", "test,train/cat/000.jpg,x,"])
    assert splits_of(root) == {
        "train": {"a.png": 0},
        "valcl": {"b.png": 0},
        "test": {"train/cat/000.jpg": 0},
    }
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "manifest.csv").rename(elsewhere / "list.csv")
    data = FolderData(str(root), manifest=str(elsewhere / "list.csv"))
    data.setup("test")
    assert data.sources["train"].records[0].image == root / "a.png"
    beside = FolderData(manifest=str(elsewhere / "list.csv"))
    with pytest.raises(DataError, match=f"line 2: image {elsewhere / 'a.png'} does not exist"):
        beside.setup("test")


def test_manifests_without_train_or_with_unknown_splits(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    write_manifest(tmp_path, ["training,a.png,x,", "test,b.png,x,"])
    with pytest.raises(DataError, match="no 'train' split; found: training, test"):
        FolderData(str(tmp_path)).setup("fit")
    write_manifest(tmp_path, ["train,a.png,x,", "dev,b.png,x,"])
    with pytest.raises(DataError, match="split 'dev' would never be used"):
        FolderData(str(tmp_path)).setup("fit")


@pytest.mark.parametrize(
    "kwargs",
    [{"val_fraction": 0.5, "test_fraction": 0.5}, {"val_fraction": -0.1}, {"test_fraction": 1}],
)
def test_fractions_must_leave_something(tmp_path, kwargs):
    with pytest.raises(ValueError, match="leave something to train on"):
        FolderData(str(tmp_path), **kwargs)
    with pytest.raises(ValueError, match="give root="):
        FolderData()


def test_unlabelled_images_are_only_predicted(tmp_path):
    root = folders(tmp_path, all_new=3)
    data = UnlabelledImages(["cat", "dog"], predict_images=str(root), image_size=8)
    assert data.num_classes == 2
    data.setup("predict")
    (loader,) = data.predict_dataloader()
    (batch,) = list(loader)
    assert [Path(path).name for path in batch["path"]] == ["000.jpg", "001.jpg", "002.jpg"]
    assert batch["label"].tolist() == [-1] * 3
    assert np.array_equal(batch["size"], [[8, 10]] * 3)
    with pytest.raises(DataError, match="no 'test' split; found: none"):
        data.setup("test")
    with pytest.raises(ValueError, match="needs predict_images="):
        UnlabelledImages(["cat"])
