import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from wsl_zoo.data import FolderData
from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.shots import OPEN_FILES
from wsl_zoo.data.video_folder import VideoFolderData, in_order
from wsl_zoo.data.videofile import VideoFile, VideoWriter

SIZE = (16, 12)


def write_frames(folder, frames=6, first=0):
    """Frame i is all `10 * i` grey; names are not padded."""
    folder.mkdir(parents=True)
    for i in range(first, first + frames):
        Image.new("RGB", SIZE, (10 * i,) * 3).save(folder / f"frame{i}.png")
    return folder


def write_file(path, frames=6):
    pytest.importorskip("av", reason="video files need PyAV")
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, SIZE[::-1], 25) as writer:
        for i in range(frames):
            writer.write(np.full((*SIZE[::-1], 3), 8 * i, np.uint8))
    return path


def folders(root, **counts):
    """Write `split_class=count` videos of six frames, of `all_class` right below the root."""
    for name, count in counts.items():
        split, class_name = name.split("_")
        parent = root / class_name if split == "all" else root / split / class_name
        for i in range(count):
            write_frames(parent / f"v{i}")
    return root


def write_boxes(root, *rows):
    (root / "boxes.csv").write_text("\n".join(["image,x0,y0,x1,y1", *rows]))


def videos(data):
    """Names and labels of the shots of every split."""
    return {
        split: {source.load(s.start, annotations=False).group: len(s) for s in source.shots}
        for split, source in data.sources.items()
    }


def paths(data, split):
    source = data.sources[split]
    samples = [source.load(i, annotations=False) for i in range(len(source))]
    return [sample.path.removeprefix(f"{data.root}/") for sample in samples]


def test_given_splits_are_taken_as_they_are(tmp_path):
    root = folders(tmp_path, train_dog=2, train_cat=1, val_dog=1, val_cat=1, test_dog=1)
    data = VideoFolderData(str(root), image_size=8)
    assert data.class_names == ["cat", "dog"]
    data.setup("fit")
    assert videos(data) == {
        "train": {"train/cat/v0": 6, "train/dog/v0": 6, "train/dog/v1": 6},
        "val": {"val/cat/v0": 6, "val/dog/v0": 6},
        "test": {"test/dog/v0": 6},
    }
    batch = next(iter(data.val_dataloader()[0]))
    assert batch["label"].tolist() == [0] * 6 + [1] * 6
    assert "boxes" not in batch
    assert data.selection() == {"cl": "val/acc", "loc": None}
    named = VideoFolderData(str(root), classes=["dog", "cat"])
    assert named.sources["test"].load(0, annotations=True).label == 0


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("a", "b"):
        write_frames(tmp_path / "train" / "cat" / name, 13)
    data = VideoFolderData(str(tmp_path), test_fraction=0, val_fraction=0)
    train = data.sources["train"]
    assert train.shots == data.shots() == [range(13), range(13, 26)]
    greys = [int(train.load(i, annotations=False).image[0, 0, 0]) for i in train.shots[1]]
    assert greys == [10 * i for i in range(13)]
    with pytest.raises(IndexError, match="frame 26 of 26"):
        train.load(26, annotations=False)
    assert in_order(["b2", "a10.5", "a9", "a10.10"]) == ("a9", "a10.5", "a10.10", "b2")


def test_missing_splits_are_drawn_as_of_images_and_videos_whole(tmp_path):
    """The same names as images, one for each video, are dealt to the same splits."""
    for name, count in {"cat": 10, "dog": 20, "owl": 2}.items():
        for i in range(count):
            write_frames(tmp_path / "videos" / name / f"v{i}" / "s0", 1)
            if i % 2:
                write_frames(tmp_path / "videos" / name / f"v{i}" / "s1", 2)
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE).save(tmp_path / "images" / name / f"v{i}.png")
    images = FolderData(str(tmp_path / "images"))
    counts = {}
    for split, shots in videos(VideoFolderData(str(tmp_path / "videos"))).items():
        drawn = {name.rpartition("/")[0] for name in shots}
        assert all((f"{n}/s1" in shots) == (int(n.rpartition("v")[2]) % 2) for n in drawn)
        assert drawn == {r.place.removesuffix(".png") for r in images.sources[split].records}
        counts[split] = Counter(name.partition("/")[0] for name in drawn)
    assert counts == {
        "train": {"cat": 6, "dog": 12, "owl": 1},
        "val": {"cat": 2, "dog": 4, "owl": 1},
        "test": {"cat": 2, "dog": 4},
    }
    other = VideoFolderData(str(tmp_path / "videos"), split_seed=1)
    again = VideoFolderData(str(tmp_path / "videos"), seed=1)
    first = videos(VideoFolderData(str(tmp_path / "videos")))
    assert videos(again) == first
    assert videos(other)["val"] != first["val"]


def test_a_split_that_nothing_can_be_drawn_for_is_refused(tmp_path):
    root = folders(tmp_path, train_cat=1, train_dog=1, test_cat=1)
    with pytest.raises(DataError, match="split 'val' is empty: no class has a second video"):
        VideoFolderData(str(root)).setup("fit")
    assert list(videos(VideoFolderData(str(root), val_fraction=0))) == ["train", "test"]


def test_one_of_so_many_frames_is_evaluated(tmp_path):
    root = folders(tmp_path, train_cat=1, val_cat=2, test_cat=1)
    data = VideoFolderData(str(root), eval_every=4)
    assert paths(data, "val") == [
        "val/cat/v0/frame0.png", "val/cat/v0/frame4.png",
        "val/cat/v1/frame0.png", "val/cat/v1/frame4.png",
    ]  # fmt: skip
    assert len(data.sources["train"]) == 6
    with pytest.raises(ValueError, match="eval_every=0 must be at least 1"):
        VideoFolderData(str(root), eval_every=0)


def test_of_a_split_with_boxes_the_annotated_frames_are_evaluated(tmp_path):
    root = folders(tmp_path, train_cat=2, val_cat=2, val_dog=1, train_dog=1, test_cat=1)
    write_boxes(
        root, "val/dog/v0/frame3.png,1,2,3.5,4", "val/cat/v1/frame5.png,0,0,16,12",
        "val/dog/v0/frame3.png,5,6,7,8", "train/cat/v0/frame0.png,1,1,2,2",
    )  # fmt: skip
    data = VideoFolderData(str(root), image_size=32, eval_every=3)
    assert paths(data, "val") == ["val/cat/v1/frame5.png", "val/dog/v0/frame3.png"]
    assert data.sources["val"].shots == [range(1), range(1, 2)]
    assert paths(data, "test") == ["test/cat/v0/frame0.png", "test/cat/v0/frame3.png"]
    assert not data.sources["test"].has_boxes
    assert len(data.sources["train"]) == 18
    batch = next(iter(data.val_dataloader()[0]))
    assert np.allclose(batch["boxes"][1], [[2, 16 / 3, 7, 32 / 3], [10, 16, 14, 64 / 3]])
    assert batch["label"].tolist() == [0, 1]
    assert data.sources["val"].has_boxes
    assert data.sources["val"].load(0, annotations=False).boxes is None
    assert "boxes" not in next(iter(data.train_dataloader()))


def test_groups_of_frames_of_a_shot_train_together(tmp_path):
    root = folders(tmp_path, train_cat=3, train_dog=2, val_dog=1, test_dog=1)
    data = VideoFolderData(
        str(root), frames=2, frame_style="after", batch_size=10, image_size=8, hflip=0
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["sequence"].unique().tolist() == [0, 1, 2, 3, 4]
    for i in range(5):
        of_shot = (batch["sequence"] == i).nonzero().flatten().tolist()
        assert len({batch["group"][j] for j in of_shot}) == 1
        for j in of_shot:
            assert batch["path"][j].endswith(f"frame{batch['frame'][j]}.png")


def test_files_and_folders_of_frames_side_by_side(tmp_path):
    folders(tmp_path, train_cat=1, train_dog=1, test_dog=1)
    files = [write_file(tmp_path / "train" / "cat" / f"f{i}.mp4", 5 + i) for i in range(3)]
    write_file(tmp_path / "val" / "dog" / "g.MP4", 8)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not a video")
    data = VideoFolderData(str(tmp_path), image_size=8, eval_every=3)
    data.setup("fit")
    assert videos(data) == {
        "train": {
            "train/cat/f0.mp4": 5, "train/cat/f1.mp4": 6, "train/cat/f2.mp4": 7,
            "train/cat/v0": 6, "train/dog/v0": 6,
        },
        "val": {"val/dog/g.MP4": 3},
        "test": {"test/dog/v0": 2},
    }  # fmt: skip
    assert paths(data, "val") == [f"val/dog/g.MP4#{i}" for i in (0, 3, 6)]
    train = data.sources["train"]
    order = np.random.default_rng(0).permutation(len(train)).tolist()
    loaded = {i: train.load(i, annotations=True) for i in order}
    for file, shot in zip(files, train.shots, strict=False):
        with VideoFile(file) as video:
            for i, expected in zip(shot, video, strict=True):
                assert np.array_equal(loaded[i].image, expected)
                assert loaded[i].path == f"{file}#{i - shot.start}"
                assert loaded[i].label == 0
                assert loaded[i].size == SIZE[::-1]
    assert np.abs(loaded[3].image.astype(int) - 24).max() < 4


def test_boxes_of_frames_in_files(tmp_path):
    folders(tmp_path, train_cat=1, train_dog=1, test_dog=1)
    write_file(tmp_path / "val" / "cat" / "f.mp4", 6)
    write_boxes(tmp_path, "val/cat/f.mp4#4,1,2,3,4", "val/cat/f.mp4#1,0,0,16,12")
    data = VideoFolderData(str(tmp_path), image_size=16)
    assert paths(data, "val") == ["val/cat/f.mp4#1", "val/cat/f.mp4#4"]
    assert data.sources["val"].load(1, annotations=True).boxes.tolist() == [[1, 2, 3, 4]]
    write_boxes(
        tmp_path, "val/cat/f.mp4#6,1,2,3,4", "val/cat/f.mp4,1,2,3,4", "val/cat/f.mp4#2,1,2,3,14",
        "test/dog/v0/frame0.png,0,0,18,2",
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        VideoFolderData(str(tmp_path)).setup("fit")
    assert [problem.partition(" (did")[0] for problem in caught.value.problems] == [
        "boxes.csv, line 2: no image 'val/cat/f.mp4#6'",
        "boxes.csv, line 3: no image 'val/cat/f.mp4'",
        "val/cat/f.mp4#2: box (1.0, 2.0, 3.0, 14.0) leaves its image f.mp4#2 of 16x12 pixels",
        "test/dog/v0/frame0.png: box (0.0, 0.0, 18.0, 2.0) leaves its image frame0.png of 16x12 "
        "pixels",
    ]


def test_broken_files_are_named_at_once(tmp_path):
    folders(tmp_path, train_cat=1, train_dog=1, val_dog=1, test_dog=1)
    good = write_file(tmp_path / "train" / "dog" / "good.mp4", 30)
    cut = tmp_path / "train" / "dog" / "cut.mp4"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (tmp_path / "val" / "dog" / "text.avi").write_text("no video")
    (tmp_path / "train" / "cat" / "v0" / "frame2.png").write_bytes(b"no image")
    write_boxes(tmp_path, "val/dog/text.avi#0,1,1,2,2")
    with pytest.raises(DataError, match="3 problems") as caught:
        VideoFolderData(str(tmp_path)).setup("fit")
    found = caught.value.problems
    assert found[0].startswith(str(cut))
    assert found[1].startswith(str(tmp_path / "val" / "dog" / "text.avi"))
    assert found[2].startswith("train/cat/v0/frame2.png: ")


def test_decode_finds_damage_inside_a_file(tmp_path):
    av = pytest.importorskip("av", reason="video files need PyAV")
    folders(tmp_path, train_cat=1, train_dog=1, val_dog=1, test_dog=1)
    file = write_file(tmp_path / "train" / "dog" / "f.mp4", 12)
    VideoFolderData(str(tmp_path), verify="decode").setup("fit")
    with av.open(str(file)) as container:
        at, size = [(p.pos, p.size) for p in container.demux(video=0) if p.size][8]
    data = bytearray(file.read_bytes())
    data[at : at + size] = bytes(size)  # index and first frame stay as they are
    file.write_bytes(data)
    VideoFolderData(str(tmp_path), verify="header").setup("fit")
    with pytest.raises(DataError, match=r"f.mp4 is damaged or truncated: frame \d+ cannot"):
        VideoFolderData(str(tmp_path), verify="decode").setup("fit")


def test_few_files_are_open_at_a_time(tmp_path):
    root = folders(tmp_path, val_cat=1, test_cat=1)
    for i in range(OPEN_FILES + 3):
        write_file(root / "train" / "cat" / f"{i:02}.mp4", 2)
    train = VideoFolderData(str(root)).sources["train"]
    expected = [train.load(i, annotations=False).image for i in range(len(train))]
    files = [shot.file for shot in train.found]
    assert [file._reading is not None for file in files] == [False] * 3 + [True] * OPEN_FILES
    for i in (0, 7, 1, 20, 3):
        assert np.array_equal(train.load(i, annotations=False).image, expected[i])
    copied = pickle.loads(pickle.dumps(train))
    assert all(np.array_equal(copied.load(i, annotations=False).image, expected[i]) for i in (5, 0))


def test_workers_read_the_same_frames(tmp_path):
    folders(tmp_path, train_dog=1, val_dog=1, test_cat=1)
    for i in range(2):
        write_file(tmp_path / "train" / "cat" / f"{i}.mp4", 9)
    data = VideoFolderData(str(tmp_path), image_size=8, batch_size=4)
    train = data.sources["train"]
    train.load(3, annotations=False)  # its file is open when the workers start
    alone = [batch["image"] for batch in data.whole_images("train")]
    data.num_workers = 2
    loader = data.whole_images("train")
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert [b["image"].tolist() for b in loader] == [image.tolist() for image in alone]


def test_problems_of_the_folders_come_at_once(tmp_path):
    root = folders(tmp_path, train_cat=1, train_dog=1, val_cta=1)
    (root / "train" / "empty").mkdir()
    (root / "train" / "dog" / "nothing").mkdir()
    (root / "test" / "cat").mkdir(parents=True)
    Image.new("RGB", SIZE).save(root / "test" / "cat" / "a.jpg")
    Image.new("RGB", SIZE).save(root / "test" / "cat" / "b.jpg")
    with pytest.raises(DataError) as caught:
        VideoFolderData(str(root)).setup("fit")
    problems = caught.value.problems
    assert problems[0].startswith(f"{root / 'train' / 'dog' / 'nothing'}: it holds no image")
    assert problems[1].startswith(f"{root / 'train' / 'empty'}: it holds no video (looked for .avi")
    assert problems[2:] == [
        f"{root / 'val' / 'cta'}: unknown class (did you mean 'cat'?)",
        f"{root / 'test' / 'cat'}: a.jpg is an image (one of 2): expected video files, and folders "
        "with the frames of a video",
    ]


def test_a_class_without_training_videos_is_named(tmp_path):
    root = folders(tmp_path, train_cat=2, train_dog=1)
    with pytest.raises(DataError, match=r"class 'cow' \(label 2\) has no training video"):
        VideoFolderData(str(root), classes=["cat", "dog", "cow"]).setup("fit")


def test_below_train_a_class_may_have_any_name(tmp_path):
    root = folders(tmp_path, train_masks=2, train_test=2)
    assert VideoFolderData(str(root)).class_names == ["masks", "test"]
    flat = folders(tmp_path / "flat", all_masks=2, all_cat=2)
    assert VideoFolderData(str(flat)).class_names == ["cat"]


def test_folders_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*\n.*does not exist"):
        VideoFolderData(str(tmp_path / "nowhere")).setup("fit")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="one folder of videos per class"):
        VideoFolderData(str(tmp_path)).setup("fit")
    with pytest.raises(ValueError, match="leave something to train on"):
        VideoFolderData(str(tmp_path), val_fraction=0.5, test_fraction=0.5)
