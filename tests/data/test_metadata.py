from pathlib import Path

import pytest
from PIL import Image

from wsl_zoo.data import FolderData, SyntheticData
from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.metadata import read_localization

VAL = ["val/cat/0.png", "val/cat/1.png", "val/dog/0 (big).png"]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def root(tmp_path):
    """Images of 10 x 8 pixels in the layout of the benchmark: no true box, no mask."""
    for name in (*VAL, *(f"{s}/{c}/0.png" for s in ("train", "test") for c in ("cat", "dog"))):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8)).save(path)
    return tmp_path / "images"


def with_roots(root, *roots, **kwargs):
    return FolderData(
        str(root), image_size=20, val_roots={path.name: str(path) for path in roots}, **kwargs
    )


def lines(name, *boxes):
    return "".join(f"{name},{box}\n" for box in boxes)


# The file ----------------------------------------------------------------------------------------


def test_boxes_of_an_image_are_joined_in_order(tmp_path):
    text = "a (1).png,1,2,3.5,4\n\nb/c.png, 0 ,0, 5 ,6\r\n./a (1).png,5,6,7,8"
    path = write(tmp_path / "localization.txt", "\ufeff" + text)  # without a last line end
    assert read_localization(path) == {
        "a (1).png": [(1, (1, 2, 3.5, 4)), (4, (5, 6, 7, 8))],
        "b/c.png": [(3, (0, 0, 5, 6))],
    }
    assert read_localization(write(path, "")) == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,1,2,3", "expected path,x0,y0,x1,y1, found 'a.png,1,2,3'"),
        ("a.png,masks/a.png,", "expected path,x0,y0,x1,y1, found 'a.png,masks/a.png,'"),
        ("a,b.png,1,2,3,4", "expected path,x0,y0,x1,y1, found 'a,b.png,1,2,3,4'"),
        (",1,2,3,4", "expected path,x0,y0,x1,y1, found ',1,2,3,4'"),
        ("a.png,1,2,3,x", "could not convert string to float: 'x'"),
        ("a.png,1,2,3,", "could not convert string to float: ''"),
        ("a.png,1 2,2,3,4", "could not convert string to float: '1 2'"),
        ("a.png,5,2,3,4", "x0 <= x1 and y0 <= y1, got '5.0 2.0 3.0 4.0'"),
        ("a.png,1,5,3,4", "x0 <= x1 and y0 <= y1, got '1.0 5.0 3.0 4.0'"),
        ("a.png,1,2,nan,4", "finite x0 <= x1"),
        ("a.png,1,2,inf,4", "finite x0 <= x1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
    path = write(tmp_path / "localization.txt", f"a.png,1,2,3,4\n{row}\na.png,2,2,3,3\n")
    with pytest.raises(DataError) as caught:
        read_localization(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}, line 2: ")
    assert message in problem
    problems = []
    assert [line for line, _ in read_localization(path, problems)["a.png"]] == [1, 3]
    assert problems == [problem]


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt cannot be read"):
        read_localization(tmp_path / "nowhere.txt")
    path = tmp_path / "localization.txt"
    path.write_bytes(b"caf\xe9.png,1,2,3,4")
    with pytest.raises(DataError, match=r"localization\.txt cannot be read .*utf-8"):
        read_localization(path)


# The splits --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*has no box of 1 of 3 validation images")
def test_every_root_is_a_validation_split_of_its_own(root, tmp_path):
    clip, search = tmp_path / "clip", tmp_path / "selective_search"
    write(clip / "localization.txt", lines(VAL[2], "0,0,5,4", "1,1,2,2") + lines(VAL[0], "2,2,4,8"))
    write(search / "val" / "localization.txt", "".join(lines(name, "0,0,10,8") for name in VAL))
    data = with_roots(root, clip, search)
    data.setup("fit")
    assert data.split_names("val") == ["val", "val_clip", "val_selective_search"]
    found = {
        split: {r.image.relative_to(root).as_posix(): r for r in data.sources[split].records}
        for split in data.split_names("val")
    }
    assert list(found["val"]) == VAL
    assert all(record.boxes is None for record in found["val"].values())
    assert list(found["val_clip"]) == [VAL[0], VAL[2]]  # in the order of `val`
    assert [r.label for r in found["val_clip"].values()] == [0, 1]
    assert found["val_clip"][VAL[2]].boxes == ((0, 0, 5, 4), (1, 1, 2, 2))
    assert list(found["val_selective_search"]) == VAL
    _, batch, _ = (next(iter(loader)) for loader in data.val_dataloader())
    assert [boxes.tolist() for boxes in batch["boxes"]] == [
        [[4, 5, 8, 20]],
        [[0, 0, 10, 10], [2, 2.5, 4, 5]],
    ]
    assert data.selection() == {
        "cl": "val/acc", "loc": "val_clip/maxboxacc", "loc_clip": "val_clip/maxboxacc",
        "loc_selective_search": "val_selective_search/maxboxacc",
    }  # fmt: skip


def test_truth_stays_the_judge_where_there_is_any_and_is_no_part_of_a_root(root, tmp_path):
    write(root / "boxes.csv", f"image,x0,y0,x1,y1\n{VAL[0]},1,1,3,3\n")
    clip = tmp_path / "clip"
    write(clip / "localization.txt", "".join(lines(name, "0,0,10,8") for name in VAL))
    data = with_roots(root, clip)
    data.setup("fit")
    assert data.selection()["loc"] == "val/maxboxacc"
    assert [r.boxes for r in data.sources["val"].records] == [((1, 1, 3, 3),), None, None]
    Image.new("L", (10, 8), 1).save(write(root / "masks" / "val" / "cat" / "0.png", ""))
    data = with_roots(root, clip)
    data.setup("fit")
    assert data.selection()["loc"] == "val/pxap"
    assert data.sources["val"].has_masks
    assert not data.sources["val_clip"].has_masks
    assert {r.boxes for r in data.sources["val_clip"].records} == {((0, 0, 10, 8),)}


def test_images_without_a_pseudo_box_are_counted_in_a_warning(root, tmp_path):
    path = write(tmp_path / "clip" / "localization.txt", lines(VAL[0], "0,0,5,4"))
    with pytest.warns(UserWarning, match="has no box of 2 of 3 validation images") as caught:
        with_roots(root, tmp_path / "clip").setup("fit")
    assert str(path) in str(caught[0].message)


def test_boxes_of_other_splits_are_left_aside(root, tmp_path):
    # A drawn validation split or a fold takes its part of a file that lists all images.
    rows = "".join(lines(name, "0,0,5,4") for name in (*VAL, "train/cat/0.png", "test/dog/0.png"))
    write(tmp_path / "clip" / "localization.txt", rows)
    data = with_roots(root, tmp_path / "clip")
    data.setup("fit")
    assert len(data.sources["val_clip"]) == 3
    assert not data.sources["train"].has_boxes
    assert not data.sources["test"].has_boxes


@pytest.mark.parametrize("given", [True, False], ids=["beside the images", "elsewhere"])
def test_paths_start_where_those_of_the_manifest_do(root, tmp_path, given):
    folder = root if not given else tmp_path / "lists"
    rows = ["split,image,label", *(f"val,{name},a" for name in VAL), "train,train/cat/0.png,a"]
    manifest = write(folder / "list.csv", "\n".join(rows))
    write(tmp_path / "clip" / "localization.txt", "".join(lines(n, "0,0,5,4") for n in VAL))
    data = FolderData(
        str(root) if given else None, str(manifest), test_fraction=0,
        val_roots={"clip": str(tmp_path / "clip")},
    )  # fmt: skip
    data.setup("fit")
    assert [r.image for r in data.sources["val_clip"].records] == [root / name for name in VAL]


def test_all_problems_of_data_and_roots_come_at_once(root, tmp_path):
    write(root / "train" / "dog" / "0.png", "no image")
    good = "".join(lines(name, "-1,0,11,9") for name in VAL)  # a pixel over the edge is rounding
    a = write(
        tmp_path / "a" / "localization.txt",
        good
        + lines(VAL[0], "0,0,11.5,8", "-1.5,0,5,5", "0,0,5")
        + lines("val/cat/00.png", "1,1,2,2"),
    )
    b = write(tmp_path / "b" / "localization.txt", good + lines(VAL[1], "0,0,5,9.5"))
    c = write(tmp_path / "c" / "localization.txt", lines("cat/0.png", "1,1,2,2"))
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match=f"^FolderData {root}: 10 problems") as caught:
        with_roots(root, *(tmp_path / name for name in "abcde")).setup("fit")
    assert "train/dog/0.png is not a readable image" in caught.value.problems[0]
    assert caught.value.problems[1:] == [
        f"{a}, line 6: expected path,x0,y0,x1,y1, found 'val/cat/0.png,0,0,5'",
        f"{a}, line 7: no image 'val/cat/00.png' (did you mean 'val/cat/0.png'?)",
        f"{a}, line 4: box (0.0, 0.0, 11.5, 8.0) leaves its image 0.png of 10x8 pixels",
        f"{a}, line 5: box (-1.5, 0.0, 5.0, 5.0) leaves its image 0.png of 10x8 pixels",
        f"{b}, line 4: box (0.0, 0.0, 5.0, 9.5) leaves its image 1.png of 10x8 pixels",
        f"{c} has no box of any validation image; their paths are like 'val/cat/0.png'",
        f"{c}, line 1: no image 'cat/0.png' (did you mean 'val/cat/0.png'?)",
        f"folder {tmp_path / 'd'} holds no localization.txt (nor val/)",
        f"folder {tmp_path / 'e'} does not exist",
    ]


def test_names_of_roots(root, tmp_path):
    for bad in ("a b", "", "a/b", "a-b", "é"):
        with pytest.raises(ValueError, match="letters, digits and underscores"):
            FolderData(str(root), val_roots={"ok_1": "x", bad: "y"})
    clip = tmp_path / "clip"
    write(clip / "localization.txt", lines("a.png", "0,0,5,4"))
    for name in ("a", "b", "c"):
        Image.new("RGB", (10, 8)).save(root / f"{name}.png")
    rows = ["split,image,label", "train,c.png,x", "val,a.png,x", "val_clip,b.png,x"]
    write(root / "manifest.csv", "\n".join(rows))
    with pytest.raises(DataError, match="has a split 'val_clip': rename 'clip'"):
        with_roots(root, clip).setup("fit")


def test_roots_need_validation_images_in_files(root, tmp_path):
    write(tmp_path / "clip" / "localization.txt", lines(VAL[0], "0,0,5,4"))
    roots = {"clip": str(tmp_path / "clip")}
    with pytest.raises(DataError, match="val_roots: 'val' is not read from files"):
        SyntheticData(val_roots=roots).setup("fit")
    for name in VAL:
        (root / name).unlink()
    for name in ("cat", "dog"):
        (root / "val" / name).rmdir()
    (root / "val").rmdir()
    with pytest.raises(DataError, match="val_roots: no validation split, so"):
        FolderData(str(root), val_fraction=0, val_roots=roots).setup("fit")


def test_nothing_is_opened_where_nothing_is_verified(root, tmp_path):
    write(root / VAL[0], "no image")
    path = write(tmp_path / "clip" / "localization.txt", lines(VAL[0], "0,0,50,40"))
    write(path, path.read_text() + "".join(lines(name, "0,0,5,4") for name in VAL[1:]))
    data = with_roots(root, Path(tmp_path / "clip"), verify="none")
    data.setup("fit")
    assert data.sources["val_clip"].records[0].boxes == ((0, 0, 50, 40),)
