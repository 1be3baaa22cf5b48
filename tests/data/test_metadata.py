import time
from pathlib import Path

import pytest
from PIL import Image

from wsl_zoo.data import FolderData, Record, SyntheticData, WSOLData
from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.metadata import class_names_of, draw, read_localization, read_split

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


# A split -----------------------------------------------------------------------------------------

IDS = ["b/1 (2).png", "a/0.png", "a/1.png"]
LABELS = ["a/0.png,0", "a/1.png,0", "b/1 (2).png,1"]


def write_split(folder, ids=IDS, labels=LABELS, sizes=(), localization=(), **others):
    """Write the four files as published: without a last line end."""
    files = {"image_ids": ids, "class_labels": labels, "image_sizes": sizes}
    for name, rows in (files | {"localization": localization} | others).items():
        write(folder / f"{name}.txt", "\n".join(rows))
    return folder


def read(folder, images="/images", **kwargs):
    problems = []
    records = read_split(folder, Path(images), problems, **kwargs)
    assert problems == []
    return records


def test_a_split_comes_in_the_order_of_its_ids(tmp_path):
    boxes = ["a/1.png,1,2,3,4", "b/1 (2).png,0,0,5,6", "a/0.png,2,2,3,3", "a/1.png,0,1,2,3.5"]
    records = read(write_split(tmp_path / "val", localization=boxes))
    assert [record.image for record in records] == [Path("/images") / name for name in IDS]
    assert [record.label for record in records] == [1, 0, 0]
    assert [record.boxes for record in records] == [
        ((0, 0, 5, 6),), ((2, 2, 3, 3),), ((1, 2, 3, 4), (0, 1, 2, 3.5)),
    ]  # fmt: skip
    assert not any(record.has_mask for record in records)
    assert records[1].place == "val/image_ids.txt, line 2"


def test_masks_of_an_image_are_joined_and_none_is_background(tmp_path):
    rows = [
        "a/0.png,m/0_a.png,m/0_ignore.png",
        "a/0.png,m/0_b.png,",
        "b/1 (2).png,None,",
        "a/1.png,,m/1_ignore.png",
    ]
    background, two, ignored = read(
        write_split(tmp_path / "test", localization=rows), "/x", masks=True
    )
    assert (background.masks, background.empty_mask, background.ignore) == ((), True, None)
    assert two.masks == (Path("/x/m/0_a.png"), Path("/x/m/0_b.png"))
    assert (two.empty_mask, two.ignore) == (False, Path("/x/m/0_ignore.png"))
    assert (ignored.masks, ignored.empty_mask) == ((), True)
    assert ignored.ignore == Path("/x/m/1_ignore.png")
    assert all(record.boxes is None for record in (background, two, ignored))


def test_a_split_without_annotation(tmp_path):
    for masks in (False, True):
        records = read(write_split(tmp_path / "train"), masks=masks)
        assert len(records) == 3
        assert not any(r.boxes or r.has_mask for r in records)
    (tmp_path / "train" / "localization.txt").unlink()
    (tmp_path / "train" / "image_sizes.txt").unlink()
    assert read(tmp_path / "train") == records
    # Of `train`, some images may be annotated.
    write(tmp_path / "train" / "localization.txt", "a/1.png,0,0,1,1\n")
    boxes = [record.boxes for record in read(tmp_path / "train")]
    assert boxes == [None, None, ((0, 0, 1, 1),)]


def test_a_proxy_list_takes_its_part(tmp_path):
    folder = write_split(tmp_path / "train", image_ids_proxy=["a/1.png"])
    assert [record.image.name for record in read(folder, proxy=True)] == ["1.png"]
    assert len(read(folder)) == 3
    assert class_names_of(folder) == ["a", "b"]


def test_all_problems_of_a_split_come_at_once(tmp_path):
    folder = write_split(
        tmp_path / "val",
        ids=["a/0.png", "b,1.png", "a/0.png"],
        labels=["a/0.png,-1", "a/1.png,x", "a/2.png", "a/3.png,0", "a/3.png,1"],
        sizes=["a/0.png,0,5", "a/1.png,5,5.5"],
        localization=["a/0.png,1,2,3", "a/9.png,1,2,3,4"],
    )
    problems = ["of another file"]
    assert read_split(folder, tmp_path, problems) == []
    assert problems[1:] == [
        f"{folder}/image_ids.txt, line 2: expected path, found 'b,1.png'",
        f"{folder}/image_ids.txt, line 3: 'a/0.png' is listed twice (first: line 1)",
        f"{folder}/class_labels.txt, line 1: class must be integers from 0 on, found '-1'",
        f"{folder}/class_labels.txt, line 2: class must be integers from 0 on, found 'x'",
        f"{folder}/class_labels.txt, line 3: expected path,class, found 'a/2.png'",
        f"{folder}/class_labels.txt, line 5: 'a/3.png' is listed twice",
        f"{folder}/localization.txt, line 1: expected path,x0,y0,x1,y1, found 'a/0.png,1,2,3'",
        f"{folder}/image_sizes.txt, line 1: width, height must be integers from 1 on, found '0,5'",
        f"{folder}/image_sizes.txt, line 2: width, height must be integers from 1 on, "
        "found '5,5.5'",
        f"{folder}/localization.txt, line 2: no image 'a/9.png' in class_labels.txt",
    ]


def test_lists_must_agree(tmp_path):
    folder = write_split(
        tmp_path / "val", labels=LABELS[:2], localization=["a/0.png,m,i", "a/0.png,n,j"]
    )
    problems = []
    records = read_split(folder, tmp_path, problems, masks=True)
    assert [record.label for record in records] == [0, 0]
    assert problems == [
        f"{folder}/image_ids.txt, line 1: 'b/1 (2).png' has no line in class_labels.txt",
        f"{folder}/image_ids.txt, line 1: 'b/1 (2).png' has no line in localization.txt",
        f"{folder}/image_ids.txt, line 3: 'a/1.png' has no line in localization.txt",
        f"{folder}/localization.txt, line 1: 0.png has more than one ignore mask: i, j",
    ]
    (folder / "class_labels.txt").unlink()
    problems = []
    assert read_split(folder, tmp_path, problems) == []
    assert len(problems) == 1
    assert "class_labels.txt cannot be read" in problems[0]


def test_boxes_follow_an_image_of_another_size(tmp_path):
    for name, size in zip(IDS, ((10, 8), (10, 8), (20, 4)), strict=True):
        write(tmp_path / "images" / name, "")
        Image.new("RGB", size).save(tmp_path / "images" / name)
    folder = write_split(
        tmp_path / "val",
        sizes=[f"{name},10,8" for name in IDS],
        localization=[f"{name},1,2,5,7" for name in IDS],
    )
    with pytest.warns(UserWarning, match="1 of 3 images are not of the size that") as caught:
        records = read(folder, tmp_path / "images")
    assert len(caught) == 1
    assert [r.boxes for r in records] == [((1, 2, 5, 7),), ((1, 2, 5, 7),), ((2, 1, 10, 3.5),)]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["train/n02/0.png,0", "train/n01/0.png,1", "train/n02/1.png,0"], ["n02", "n01"]),
        (["n02/0.png,0", "n01/0.png,2"], ["n02", "1"]),  # 2 of two images is out of range
        (["n02/0.png,0", "n02/1.png,0", "n01/0.png,2"], ["n02", "1", "n01"]),
        (["all/0.png,0", "all/1.png,1"], ["0", "1"]),
        (["a/0.png,0", "b/1.png,0", "c/1.png,1"], ["0", "1"]),
        (["0.png,0", "1.png,0"], ["0"]),
        (["a/0.png,-1", "", "a/1.png,x"], []),
    ],
)
def test_classes_have_the_names_of_their_folders(tmp_path, labels, names):
    write(tmp_path / "class_labels.txt", "\n".join(labels))
    assert class_names_of(tmp_path) == names


def test_a_draw_is_even_repeatable_and_without_replacement():
    records = [Record(Path(f"{i}.png"), i % 3) for i in range(30)] + [Record(Path("30.png"), 3)]
    drawn, rest = draw(records, 4, seed=0)
    assert [r for r in records if r in drawn] == drawn  # in their order
    assert [r for r in records if r not in drawn] == rest
    assert sorted(r.label for r in drawn) == [0] * 4 + [1] * 4 + [2] * 4 + [3]
    assert draw(records, 4, seed=0)[0] == drawn
    assert draw(records, 4, seed=1)[0] != drawn
    # A class is drawn on its own: other classes do not change which of its images come.
    alone = [r for r in records if r.label == 1]
    assert draw(alone, 4, seed=0)[0] == [r for r in drawn if r.label == 1]


def test_reading_a_large_list_is_not_quadratic(tmp_path):
    """50,000 lines take about a second; a look-up in a list for each takes a minute."""
    names = [f"train/{k % 1000}/{k}.JPEG" for k in range(50_000)]
    folder = write_split(
        tmp_path / "train",
        names,
        [f"{name},{k % 1000}" for k, name in enumerate(names)],
        localization=[f"{name},0,0,1,1" for name in names],
    )
    start = time.process_time()
    records = read(folder)
    assert len(class_names_of(folder)) == 1000
    drawn, _ = draw(records, 1, seed=0)
    assert len(drawn) == 1000
    assert time.process_time() - start < 20


# A data set ------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(tmp_path):
    """Two classes; one image per class in `train`, four and one in `val`, two in `test`."""
    names = {
        "train": ["train/cat/0.png", "train/dog/0.png"],
        "val": [f"val/cat/{i}.png" for i in range(4)] + ["val/dog/0.png"],
        "test": ["test/cat/0.png", "test/dog/0.png"],
    }
    for split, paths in names.items():
        for path in paths:
            write(tmp_path / "images" / path, "")
            Image.new("RGB", (10, 8)).save(tmp_path / "images" / path)
        write_split(
            tmp_path / "meta" / split,
            paths,
            [f"{path},{int('dog' in path)}" for path in paths],
            [f"{path},10,8" for path in paths],
            [f"{path},1,2,5,6" for path in paths] if split != "train" else [],
        )
    write(tmp_path / "meta" / "train" / "image_ids_proxy.txt", "train/dog/0.png")
    return tmp_path


def benchmark_data(folder, **kwargs):
    return WSOLData(str(folder / "images"), str(folder / "meta"), image_size=20, **kwargs)


def test_a_metadata_folder_is_a_data_set(benchmark):
    data = benchmark_data(benchmark)
    assert data.class_names == ["cat", "dog"]  # before setup
    data.setup("fit")
    assert {k: len(v) for k, v in data.sources.items()} == {"train": 2, "val": 5, "test": 2}
    assert data.selection() == {"cl": "val/acc", "loc": "val/maxboxacc"}
    batch = next(iter(data.val_dataloader()[0]))
    assert batch["label"].tolist() == [0, 0, 0, 0, 1]
    assert batch["boxes"][0].tolist() == [[2, 5, 10, 15]]
    assert "boxes" not in next(iter(data.train_dataloader()))


def test_metadata_may_lie_beside_the_images(benchmark):
    write(benchmark / "images" / "train" / "image_ids.txt", "train/cat/0.png")
    write(benchmark / "images" / "train" / "class_labels.txt", "train/cat/0.png,0")
    data = WSOLData(str(benchmark / "images"))
    assert data.class_names == ["cat"]
    assert [len(split) for split in data.read_splits().values()] == [1]


def test_val_may_be_a_sample_of_every_class(benchmark):
    def names(**kwargs):
        data = benchmark_data(benchmark, num_val_sample_per_class=2, **kwargs)
        assert len(data.sources["test"]) == 2
        return [record.image.name for record in data.sources["val"].records]

    cats, dogs = names()[:2], names()[2:]
    assert len(set(cats)) == 2
    assert dogs == ["0.png"]
    assert names() == names(seed=5)
    assert len({tuple(names(split_seed=seed)) for seed in range(8)}) > 1
    with pytest.raises(ValueError, match="num_val_sample_per_class=-1 must be >= 0"):
        benchmark_data(benchmark, num_val_sample_per_class=-1)


def test_a_proxy_trains_on_its_images_and_keeps_the_classes(benchmark):
    data = benchmark_data(benchmark, proxy=True)
    assert data.class_names == ["cat", "dog"]
    with pytest.raises(DataError, match=r"class 'cat' \(label 0\) has no training image"):
        data.setup("fit")
    write(benchmark / "meta" / "train" / "image_ids_proxy.txt", "train/dog/0.png\ntrain/cat/0.png")
    data = benchmark_data(benchmark, proxy=True)
    data.setup("fit")
    assert [r.label for r in data.sources["train"].records] == [1, 0]


def test_problems_of_lists_and_files_come_at_once(benchmark):
    (benchmark / "images" / "val" / "cat" / "1.png").unlink()
    write(benchmark / "images" / "val" / "cat" / "2.png", "no image")
    meta = benchmark / "meta"
    write(meta / "test" / "localization.txt", "test/cat/0.png,1,2,5,6\ntest/dog/0.png,1,2,12,6")
    write(meta / "train" / "class_labels.txt", "train/cat/0.png,0\ntrain/dog/0.png,dog")
    with pytest.raises(DataError) as caught:
        benchmark_data(benchmark).setup("fit")
    problems = caught.value.problems
    assert problems[0] == (
        f"{meta}/train/class_labels.txt, line 2: class must be integers from 0 on, found 'dog'"
    )
    assert [problem.split(":")[0] for problem in problems[1:]] == [
        # Of one training label, one class is known: the images of the other are out of range.
        "val/image_ids.txt, line 5",
        "test/image_ids.txt, line 2",
        "val/image_ids.txt, line 2",
        "val/image_ids.txt, line 3",
        "test/image_ids.txt, line 2",
    ]
    assert "does not exist" in problems[3]
    assert "is not a readable image" in problems[4]
    assert "leaves its image 0.png of 10x8 pixels" in problems[5]


def test_a_folder_without_lists_is_refused(tmp_path):
    data = WSOLData(str(tmp_path))
    with pytest.raises(DataError, match=r"class_labels\.txt cannot be read"):
        _ = data.class_names
    with pytest.raises(DataError, match="2 problems") as caught:
        data.setup("fit")
    for file, problem in zip(("image_ids", "class_labels"), caught.value.problems, strict=True):
        assert f"train/{file}.txt cannot be read" in problem


# Pseudo-boxes ------------------------------------------------------------------------------------


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
