import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.shots import clean_box
from wsl_zoo.data.youtube_objects import YouTubeObjectsData

CLASSES = ["aeroplane", "bird", "boat", "car", "cat", "cow", "dog", "horse", "motorbike", "train"]
SIZE = (32, 16)


def jpeg(size=SIZE, colour=0):
    file = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(file, "jpeg")
    return file.getvalue()


JPEG = jpeg()


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def frames_of(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(JPEG)


def cell(*items):
    array = np.empty((1, len(items)), object)
    array[0, :] = items
    return array


def stick(frame, *boxes):
    savemat(f"{frame}_sticks.mat", {"coor": cell(*(np.array(box, float) for box in boxes))})


@pytest.fixture
def v1(tmp_path):
    """v1.0: training videos 1 to 7 (all but 7 annotated), test video 11, video 12 in no set.

    A video has shots 1 (frames 1, 2, 10000; annotated 2) and 12 (one frame, not annotated).
    """
    root = tmp_path / "v1"
    for name in CLASSES:
        write(root / name / "sets" / "train.txt", [f"{video:04d}" for video in range(1, 8)])
        write(root / name / "sets" / "test.txt", ["0011"])
        for video in (*range(1, 8), 11, 12):
            shots = root / name / "data" / f"{video:04d}" / "shots"
            frames_of(shots / "001", ["frame0001.jpg", "frame0002.jpg", "frame10000.jpg"])
            frames_of(shots / "012", ["frame0001.jpg"])
            if video != 7:
                stick(shots / "001" / "frame0002.jpg", (1, 2, 3.5, 4), (5, 6, 7, 8))
    return root


SHOTS = {1: 2, 2: 1, 3: 2, 4: 1, 5: 2, 6: 1, 7: 1}  # v2.2: shots of three frames each per video
TRAIN_VIDEOS, TEST_VIDEOS = (1, 2, 4, 5, 6), (3,)  # 7 has no annotated frame


def ranges():
    """(first, last, video, name) of every shot; frames are numbered through, with gaps."""
    rows = []
    for video, count in SHOTS.items():
        for _ in range(count):
            first = 5 * len(rows) + 1
            rows.append((first, first + 2, video, f"video-{video:04d}/shot-{len(rows):06d}"))
    return rows


@pytest.fixture(params=["original", "folders"])
def v2(tmp_path, request):
    """v2.2 in both layouts; annotated is the second frame of every shot but those of video 7."""
    root = tmp_path / "v2"
    for name in CLASSES:
        truth = {"Training": [], "Test": []}
        for first, last, video, shot in ranges():
            folder = root / name / (shot if request.param == "folders" else "")
            frames_of(folder, [f"{frame:08d}.jpg" for frame in range(first, last + 1)])
            split = "Test" if video in TEST_VIDEOS else "Training"
            if video != 7:
                truth[split].append((first + 1, 1, 2, first + 1, 9))
        folder = root / "GroundTruth" / name
        folder.mkdir(parents=True)
        for split, rows in truth.items():  # not in order
            savemat(folder / f"bb_gt{split}_{name}.mat", {"gt": np.array(rows[::-1])})
        if request.param == "original":
            (root / "Ranges").mkdir(exist_ok=True)
            rows = np.array([row[:3] for row in ranges()])
            savemat(root / "Ranges" / f"ranges_{name}.mat", {"ranges": rows})
    return root


def metadata_of(folder, splits):
    """Write lists of {split: {path: boxes}}; those of `train` are shots."""
    for split, boxes in splits.items():
        labels = [f"{path},{CLASSES.index(path.split('/')[0])}" for path in boxes]
        write(folder / split / "image_ids.txt", boxes)
        write(folder / split / "class_labels.txt", labels)
        sizes = [f"{path},{SIZE[0]},{SIZE[1]}" for path in boxes] if split != "train" else []
        write(folder / split / "image_sizes.txt", sizes)
        lines = [f"{path},{','.join(map(str, box))}" for path in boxes for box in boxes[path]]
        write(folder / split / "localization.txt", lines)
    return str(folder)


BOX = (1.5, 2.0, 8.0, 9.0)


@pytest.fixture
def lists1(tmp_path, v1):
    shot = "data/{}/shots/001"
    return metadata_of(
        tmp_path / "lists1",
        {
            "train": {f"{c}/{shot.format('0005')}": () for c in CLASSES[::-1]},
            "val": {f"{c}/{shot.format('0002')}/frame0002.jpg": (BOX,) for c in CLASSES},
            "test": {f"{c}/{shot.format('0011')}/frame10000.jpg": (BOX, BOX) for c in CLASSES},
        },
    )


@pytest.fixture
def lists2(tmp_path, v2):
    return metadata_of(
        tmp_path / "lists2",
        {
            "train": {f"{c}/video-0005/shot-{i:06d}": () for c in CLASSES for i in (7, 6)},
            "val": {f"{c}/video-0002/shot-000002/00000012.jpg": (BOX,) for c in CLASSES},
            "test": {f"{c}/video-0003/shot-000003/00000018.jpg": (BOX, BOX) for c in CLASSES},
        },
    )


def names_of(data, split):
    """Groups of a split of `aeroplane`."""
    source = data.sources[split]
    if split == "train":
        return [shot.name for shot in source.found if shot.label == 0]
    return [f"{r.group}/{r.image.name}" for r in source.records if r.label == 0]


def problems_of(data):
    with pytest.raises(DataError) as caught:
        _ = data.sources
    return caught.value.problems


# v1.0


def test_splits_of_v1_by_videos(v1):
    data = YouTubeObjectsData(str(v1))
    assert data.class_names == CLASSES  # before setup
    data.setup("fit")
    train, val, test = (data.sources[split] for split in ("train", "val", "test"))
    counts = Counter(r.label for r in val.records)
    assert counts == dict.fromkeys(range(10), 5)  # videos; one annotated frame each
    assert Counter(shot.label for shot in train.found) == dict.fromkeys(range(10), 2 * 2)
    assert names_of(data, "test") == ["aeroplane/data/0011/shots/001/frame0002.jpg"]
    assert {r.boxes for r in (*val.records, *test.records)} == {((1, 2, 3.5, 4), (5, 6, 7, 8))}
    for record in val.records:
        assert record.image == v1 / record.group / "frame0002.jpg"
        assert record.image.is_file()
    for k, name in enumerate(CLASSES):
        videos = [
            {shot.split("/")[2] for shot in shots}
            for shots in (
                [shot.name for shot in train.found if shot.label == k],
                [record.group for record in val.records if record.label == k],
            )
        ]
        assert videos[0] | videos[1] == {f"{video:04d}" for video in range(1, 8)}
        assert not videos[0] & videos[1]
        assert "0007" in videos[0]  # no boxes: never in `val`
        assert all(shot.name.startswith(f"{name}/") for shot in train.found if shot.label == k)
    for shot in train.found:
        long = shot.name.endswith("/001")
        assert shot.folder == v1 / shot.name
        assert (
            shot.frames == ["frame0001.jpg", "frame0002.jpg", "frame10000.jpg"][: 3 if long else 1]
        )
    assert not train.has_boxes
    assert data.selection()["loc"] is not None


def test_validation_videos_of_v1_depend_on_the_class_alone(v1):
    def val(**kwargs):
        data = YouTubeObjectsData(str(v1), **kwargs)
        return [record.group for record in data.sources["val"].records]

    groups = val()
    assert val(seed=3) == groups
    of_class = {
        name: tuple(g.split("/")[2] for g in groups if g.startswith(f"{name}/")) for name in CLASSES
    }
    assert len(set(of_class.values())) > 1
    for name in CLASSES:
        rows = (v1 / name / "sets" / "train.txt").read_text().split()
        write(v1 / name / "sets" / "train.txt", rows[::-1])
    assert val() == groups


def test_few_annotated_videos_of_v1_all_validate(v1):
    for video in (1, 2):
        next((v1 / f"cat/data/000{video}/shots/001").glob("*.mat")).unlink()
    data = YouTubeObjectsData(str(v1))
    videos = [r.group.split("/")[2] for r in data.sources["val"].records if r.label == 4]
    assert videos == ["0003", "0004", "0005", "0006"]


def test_cleaning_of_v1(v1):
    shots = {name: v1 / f"{name}/data/0011/shots/001" for name in CLASSES}
    stick(shots["horse"] / "frame0002.jpg", (20, 2, 5, 9))
    stick(shots["boat"] / "frame0002.jpg", (-3, 2, 40, 9), (4, 5, 32.5, 16.4))
    savemat(shots["bird"] / "frame0002.jpg_sticks.mat", {"coor": np.zeros((0, 0))})
    stick(shots["bird"] / "frame10000.jpg", (-1, -2, 3, 4))
    (v1 / "car/data/0007/shots/012/frame0001.jpg").unlink()
    data = YouTubeObjectsData(str(v1))
    with pytest.warns(UserWarning, match=".") as warnings:
        sources = data.sources
    assert [str(warning.message) for warning in warnings] == [
        f"Frames whose annotation holds no box are left out (1): {shots['bird']}"
        "/frame0002.jpg_sticks.mat",
        f"Swapped corners of boxes are put right (1): {shots['horse']}/frame0002.jpg",
        f"Boxes that leave their image by far are cut (1): {shots['boat']}/frame0002.jpg",
        "Shots without a frame are left out (1): car/data/0007/shots/012",
    ]
    test = {r.label: r for r in sources["test"].records}
    assert test[7].boxes == ((5, 2, 20, 9),)
    assert test[2].boxes == ((0, 2, 31, 9), (4, 5, 32, 16))
    assert test[1].boxes == ((0, 0, 3, 4),)
    assert test[1].image.name == "frame10000.jpg"
    assert "car/data/0007/shots/012" not in [shot.name for shot in sources["train"].found]


def test_all_problems_of_v1_at_once(v1):
    sets = {name: v1 / name / "sets" for name in CLASSES}
    (sets["bird"] / "train.txt").unlink()
    write(sets["boat"] / "train.txt", ["0001", "first", "", "0002", "0001", "0099"])
    write(sets["boat"] / "test.txt", ["0002", "11"])
    shots = {name: v1 / name / "data/0011/shots/001" for name in CLASSES}
    stick(shots["car"] / "frame0003.jpg", (1, 2, 3, 4))
    savemat(shots["cat"] / "frame0002.jpg_sticks.mat", {"box": np.ones((1, 4))})
    (shots["cow"] / "frame0002.jpg_sticks.mat").write_bytes(b"junk")
    (shots["dog"] / "frame0002.jpg").write_bytes(b"junk")
    stick(shots["horse"] / "frame0002.jpg", (40, 2, 50, 9))
    for path in sorted((v1 / "train").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (v1 / "train").rmdir()
    problems = problems_of(YouTubeObjectsData(str(v1)))
    expected = [
        f"{sets['bird']}/train.txt cannot be read",
        f"{sets['boat']}/train.txt, line 2: expected the number of a video, found 'first'",
        f"{sets['boat']}/train.txt, line 5: video 1 is listed twice: {sets['boat']}/train.txt, "
        "line 1",
        f"{sets['boat']}/train.txt, line 6: folder {v1}/boat/data/0099/shots does not exist",
        f"{sets['boat']}/test.txt, line 1: video 2 is listed twice: {sets['boat']}/train.txt, "
        "line 4",
        f"{shots['car']}/frame0003.jpg_sticks.mat: there is no frame frame0003.jpg",
        f"{shots['cat']}/frame0002.jpg_sticks.mat: expected 'coor'",
        f"{shots['cow']}/frame0002.jpg_sticks.mat is not a readable MATLAB file",
        f"class folder {v1}/train does not exist",
        f"{shots['horse']}/frame0002.jpg_sticks.mat: box (40.0, 2.0, 50.0, 9.0) lies outside",
        f"{shots['dog']}/frame0002.jpg_sticks.mat: {shots['dog']}/frame0002.jpg is not a readable",
    ]
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)


# v2.2


def test_splits_of_v2_by_videos(v2):
    data = YouTubeObjectsData(str(v2), "2.2")
    data.setup("fit")
    folders = (v2 / "cat" / "video-0001").is_dir()
    named = {shot: (first, video) for first, _, video, shot in ranges()}
    for k, name in enumerate(CLASSES):
        shots = [shot for shot in data.sources["train"].found if shot.label == k]
        expected = [shot for shot, (_, video) in named.items() if video in TRAIN_VIDEOS[3:]]
        assert [shot.name for shot in shots] == [f"{name}/{shot}" for shot in expected]
        for shot in shots:
            first, _ = named[shot.name.partition("/")[2]]
            assert shot.frames == [f"{frame:08d}.jpg" for frame in range(first, first + 3)]
            assert shot.folder == (v2 / shot.name if folders else v2 / name)
        for split, videos in (("val", TRAIN_VIDEOS[:3]), ("test", TEST_VIDEOS)):
            records = [r for r in data.sources[split].records if r.label == k]
            expected = [(s, first) for s, (first, video) in named.items() if video in videos]
            assert [(r.group, r.image.name) for r in records] == [
                (f"{name}/{shot}", f"{first + 1:08d}.jpg") for shot, first in expected
            ]
            for record, (_, first) in zip(records, expected, strict=True):
                assert record.image.is_file()
                assert record.boxes == ((1, 2, first + 1, 9),)


def test_a_repeated_frame_of_v2_counts_once(v2):
    rows = [(17, 1, 2, 9, 9), (17, 1, 2, 9, 9), (17, 3, 3, 4, 4)]
    savemat(v2 / "GroundTruth/horse/bb_gtTest_horse.mat", {"gt": np.array(rows)})
    data = YouTubeObjectsData(str(v2), 2.2)
    (record,) = [r for r in data.sources["test"].records if r.label == 7]
    assert record.boxes == ((1, 2, 9, 9), (3, 3, 4, 4))


@pytest.mark.parametrize("v2", ["folders"], indirect=True)
def test_a_frame_that_two_shots_of_v2_repeat_is_annotated_in_the_first(v2):
    frames_of(v2 / "horse/video-0003/shot-000099", ["00000017.jpg"])
    data = YouTubeObjectsData(str(v2), "2.2")
    groups = [r.group for r in data.sources["test"].records if r.label == 7]
    assert groups == [f"horse/video-0003/shot-00000{i}" for i in (3, 4)]


def test_all_problems_of_v2_at_once(v2):
    truth = v2 / "GroundTruth"
    savemat(truth / "bird/bb_gtTest_bird.mat", {"other": np.ones((2, 7))})
    (truth / "bird/bb_gtTraining_bird.mat").unlink()
    (truth / "boat/bb_gtTest_boat.mat").write_bytes(b"junk")
    savemat(truth / "car/bb_gtTest_car.mat", {"gt": np.array([[999, 1, 2, 3, 4]])})
    # frames 2 and 17 are of videos 1 and 3
    savemat(truth / "cat/bb_gtTest_cat.mat", {"gt": np.array([[2, 1, 2, 3, 4], [17, 1, 2, 3, 4]])})
    expected = [
        f"{truth}/bird/bb_gtTraining_bird.mat does not exist",
        f"{truth}/bird/bb_gtTest_bird.mat: no boxes by frame: expected a matrix",
        f"{truth}/boat/bb_gtTest_boat.mat is not a readable MATLAB file",
        f"{truth}/car/bb_gtTest_car.mat, frame 999: no shot of car has this frame",
        f"{truth}/cat/bb_gtTest_cat.mat: video 1 of cat has frames here and in "
        "bb_gtTraining_cat.mat",
    ]
    if (v2 / "Ranges").is_dir():
        (v2 / "Ranges/ranges_cow.mat").unlink()
        savemat(v2 / "Ranges/ranges_dog.mat", {"rows": np.ones((3, 2))})
        expected += [
            f"{v2}/Ranges/ranges_cow.mat does not exist",
            f"{v2}/Ranges/ranges_dog.mat: expected one matrix of integers",
        ]
    problems = problems_of(YouTubeObjectsData(str(v2), "2.2"))
    # The frame of two splits is found by the check of the files too.
    assert len([p for p in problems if "stands in splits" not in p]) == len(expected)
    for start in expected:
        assert any(problem.startswith(start) for problem in problems), start


@pytest.mark.parametrize("v2", ["original"], indirect=True)
def test_overlapping_and_incomplete_ranges_of_v2(v2):
    """Frames that two shots name belong to the first; those that are missing are named."""
    rows = np.array([row[:3] for row in ranges()])
    i = [row[2] for row in ranges()].index(5)  # shots i and i + 1 are of video 5
    rows[i + 1, 0] = rows[i, 1]
    savemat(v2 / "Ranges/ranges_horse.mat", {"ranges": rows})
    (v2 / f"dog/{rows[i, 0]:08d}.jpg").unlink()
    for frame in range(rows[-1, 0], rows[-1, 1] + 1):  # all of a shot of video 7, which is not used
        (v2 / f"dog/{frame:08d}.jpg").unlink()
    data = YouTubeObjectsData(str(v2), "2.2")
    with pytest.warns(UserWarning, match=".") as warnings:
        shots = {shot.name: shot.frames for shot in data.sources["train"].found}
    messages = [str(warning.message) for warning in warnings]
    name = "{}/video-0005/shot-{:06d}"
    assert any(
        m.startswith(f"Shots of {v2}/Ranges/ranges_horse.mat repeat frames of earlier ones")
        and m.endswith(name.format("horse", i + 1))
        for m in messages
    )
    assert any(
        m.startswith(f"Shots of {v2}/Ranges/ranges_dog.mat lack frames (1): ")
        and m.endswith(name.format("dog", i))
        for m in messages
    )
    assert len(shots[name.format("dog", i)]) == 2
    first, second = (shots[name.format("horse", j)] for j in (i, i + 1))
    assert len(first) == len(second) == 3
    assert not set(first) & set(second)


# metadata


def test_published_lists_decide_for_v1(v1, lists1):
    data = YouTubeObjectsData(str(v1), metadata=lists1)
    data.setup("test")
    shots = [shot.name for shot in data.sources["train"].found]
    assert shots == [f"{name}/data/0005/shots/001" for name in CLASSES[::-1]]
    assert data.sources["train"].shots == [range(3 * i, 3 * i + 3) for i in range(10)]
    assert names_of(data, "val") == ["aeroplane/data/0002/shots/001/frame0002.jpg"]
    assert names_of(data, "test") == ["aeroplane/data/0011/shots/001/frame10000.jpg"]
    assert data.sources["val"].records[3].boxes == (BOX,)
    assert data.sources["test"].records[3].boxes == (BOX, BOX)


def test_published_lists_decide_for_v2_in_both_layouts(v2, lists2):
    data = YouTubeObjectsData(str(v2), "2.2", metadata=lists2)
    data.setup("test")
    assert names_of(data, "train") == [f"aeroplane/video-0005/shot-{i:06d}" for i in (7, 6)]
    shot = data.sources["train"].found[0]
    assert shot.frames == ["00000036.jpg", "00000037.jpg", "00000038.jpg"]
    assert all((shot.folder / frame).is_file() for frame in shot.frames)
    assert names_of(data, "val") == ["aeroplane/video-0002/shot-000002/00000012.jpg"]
    record = data.sources["test"].records[0]
    assert record.boxes == (BOX, BOX)
    assert record.image.is_file()


def test_entries_need_no_image(tmp_path, lists1):
    splits = YouTubeObjectsData(str(tmp_path / "none"), metadata=lists1).entries()
    assert {split: len(records) for split, records in splits.items()} == {
        "train": 10,
        "val": 10,
        "test": 10,
    }
    assert splits["train"][0].group == "train/data/0005/shots/001"
    assert splits["train"][0].boxes is None
    assert splits["test"][0].group == "aeroplane/data/0011/shots/001"
    with pytest.raises(DataError, match="give metadata="):
        YouTubeObjectsData(str(tmp_path)).entries()


def test_boxes_of_lists_are_rescaled_with_resized_copies_and_put_right(v1, lists1, tmp_path):
    (v1 / "aeroplane/data/0002/shots/001/frame0002.jpg").write_bytes(jpeg((64, 64)))
    path = tmp_path / "lists1/test/localization.txt"
    first, *others = path.read_text().splitlines()
    write(path, [first.replace("8.0,9.0", "32.9,16.4"), *others])
    data = YouTubeObjectsData(str(v1), metadata=lists1)
    with pytest.warns(UserWarning, match="not of the size"):
        (box,) = data.sources["val"].records[0].boxes
    assert box == (3, 8, 16, 36)
    assert data.sources["test"].records[0].boxes == ((1.5, 2, 32, 16), BOX)


def test_lists_without_boxes_have_no_boxes(v1, lists1, tmp_path):
    write(tmp_path / "lists1/val/localization.txt", [])
    data = YouTubeObjectsData(str(v1), metadata=lists1)
    assert not data.sources["val"].has_boxes
    assert data.sources["test"].has_boxes


def test_all_problems_of_lists_at_once(v1, lists1, tmp_path):
    folder = tmp_path / "lists1"
    for split, rows in {
        "train": ["cat/data/0002/shots/001", "dog/data/0005/shots/777", "cow/data/0003/shots/012"],
        "val": ["car/data/0003/shots/001/frame0009.jpg", "cow/data/0003/shots/001/frame0001.jpg"],
    }.items():
        ids, labels = (folder / split / f"{name}.txt" for name in ("image_ids", "class_labels"))
        write(ids, [*ids.read_text().split(), *rows])
        numbers = [12 if r.startswith("cow") else CLASSES.index(r.split("/")[0]) for r in rows]
        pairs = [f"{row},{number}" for row, number in zip(rows, numbers, strict=True)]
        write(labels, [*labels.read_text().split(), *pairs])
    boxes = folder / "val/localization.txt"
    added = [f"{row},1,2,3,4" for row in rows]
    write(boxes, [*boxes.read_text().split(), *added, "bird/x.jpg,9,2,3,4"])
    problems = problems_of(YouTubeObjectsData(str(v1), metadata=lists1))
    expected = [
        f"{boxes}, line 13: a box needs finite x0 <= x1",
        "val/image_ids.txt, line 12: label 12 is not that of class 'cow'",
        "train/image_ids.txt, line 13: label 12 is not that of class 'cow'",
        "val/image_ids.txt, line 5: frame0002.jpg is a frame of cat/data/0002/shots/001, a shot of",
        f"train/image_ids.txt, line 12: folder {v1}/dog/data/0005/shots/777 does not exist",
        f"val/image_ids.txt, line 11: image {v1}/car/data/0003/shots/001/frame0009.jpg does not",
    ]
    assert len(problems) == len(expected)
    for start in expected:
        assert any(problem.startswith(start) for problem in problems), start


@pytest.mark.parametrize("v2", ["original"], indirect=True)
def test_lists_that_do_not_fit_the_ranges_of_v2(v2, lists2):
    rows = np.array([row[:3] for row in ranges()])
    rows[-3, 2] += 1  # another video
    savemat(v2 / "Ranges/ranges_dog.mat", {"ranges": rows[:7]})
    (v2 / "Ranges/ranges_cow.mat").unlink()
    problems = problems_of(YouTubeObjectsData(str(v2), "2.2", metadata=lists2))
    assert sorted(problems) == sorted(
        [
            f"{v2}/Ranges/ranges_cow.mat does not exist",
            "train/image_ids.txt, line 13: Ranges has no shot dog/video-0005/shot-000007",
        ]
    )


def test_empty_shots_of_lists_are_left_out_with_one_warning(v1, lists1, tmp_path):
    train = tmp_path / "lists1/train"
    more = [f"{name}/data/0006/shots/012" for name in CLASSES[:7]]
    write(train / "image_ids.txt", [*(train / "image_ids.txt").read_text().split(), *more])
    labels = [f"{shot},{k}" for k, shot in enumerate(more)]
    write(train / "class_labels.txt", [*(train / "class_labels.txt").read_text().split(), *labels])
    for shot in more:
        (v1 / shot / "frame0001.jpg").unlink()
    data = YouTubeObjectsData(str(v1), metadata=lists1)
    with pytest.warns(UserWarning, match=r"Shots without a frame are left out \(7\)") as warnings:
        assert len(data.sources["train"].shots) == 10
    assert str(warnings[0].message).endswith(f"{', '.join(more[:5])}, ... and 2 more")


def test_a_class_without_a_shot_is_a_problem(v1, lists1, tmp_path):
    train = tmp_path / "lists1/train"
    for file in ("image_ids", "class_labels"):
        rows = (train / f"{file}.txt").read_text().split()
        write(train / f"{file}.txt", [row for row in rows if not row.startswith("boat")])
    problems = problems_of(YouTubeObjectsData(str(v1), metadata=lists1))
    assert problems == ["class 'boat' (label 2) has no shot to train on"]


@pytest.mark.parametrize("where", ["root", "metadata"])
def test_a_folder_that_is_not_there(v1, tmp_path, where):
    arguments = {"root": str(v1)} | {where: str(tmp_path / "nowhere")}
    assert "nowhere" in problems_of(YouTubeObjectsData(**arguments))[0]


@pytest.mark.parametrize("version", ["2.0", "v1.0", 3.0])
def test_an_unknown_version(tmp_path, version):
    with pytest.raises(ValueError, match=f"version={version!r} must be one of 1.0, 2.2"):
        YouTubeObjectsData(str(tmp_path), version)


@pytest.mark.parametrize(("version", "known"), [(1.0, "1.0"), (2.2, "2.2")])
def test_a_version_may_be_a_number(tmp_path, version, known):
    assert YouTubeObjectsData(str(tmp_path), version).version == known


# loaders


@pytest.mark.parametrize("frames", [1, 2])
def test_batches_hold_whole_groups_of_frames_of_shots(v2, frames):
    data = YouTubeObjectsData(str(v2), "2.2", batch_size=7, image_size=16, frames=frames)
    seen = []
    for batch in data.train_dataloader():
        assert "boxes" not in batch
        counts = torch.bincount(batch["sequence"])
        assert len(counts) <= 7 // frames
        for sequence in range(len(counts)):
            own = (batch["sequence"] == sequence).nonzero()[:, 0].tolist()
            (group,) = {batch["group"][i] for i in own}
            assert len({batch["path"][i] for i in own}) == len(own) <= frames
            assert {CLASSES[batch["label"][i]] for i in own} == {group.split("/")[0]}
            first = 5 * int(group[-6:]) + 1
            for i in own:
                number = int(batch["path"][i][-12:-4])
                assert number == first + batch["frame"][i]
            seen.append(group)
    assert sorted(seen) == sorted(shot.name for shot in data.sources["train"].found)


def test_evaluation_reads_annotated_frames_only(v1):
    data = YouTubeObjectsData(str(v1), batch_size=8, image_size=64)
    batches = list(data.val_dataloader()[0])
    assert sum(len(batch["label"]) for batch in batches) == 50
    for batch in batches:
        for path, boxes in zip(batch["path"], batch["boxes"], strict=True):
            assert path.endswith("frame0002.jpg")
            assert boxes.tolist() == [[2, 8, 7, 16], [10, 24, 14, 32]]


def test_pseudo_boxes_are_found_by_the_published_names(v2, lists2, tmp_path):
    name = "cat/video-0002/shot-000002/00000012.jpg"
    write(tmp_path / "pseudo/localization.txt", [f"{name},1,1,5,5"])
    data = YouTubeObjectsData(
        str(v2), "2.2", metadata=lists2, val_roots={"clip": str(tmp_path / "pseudo")}
    )
    with pytest.warns(UserWarning, match="9 of 10 validation images"):
        (record,) = data.sources["val_clip"].records
    assert record.boxes == ((1, 1, 5, 5),)


def test_training_frames_are_listed_once_by_folder_and_never_looked_up(v1, monkeypatch):
    """There are several 100,000."""
    looked_up, listed = [], []
    stat, scandir = os.stat, os.scandir
    monkeypatch.setattr(os, "stat", lambda p, *a, **k: looked_up.append(str(p)) or stat(p, *a, **k))
    monkeypatch.setattr(os, "scandir", lambda p: listed.append(str(p)) or scandir(p))
    (v1 / "cat/data/0007/shots/012/frame0001.jpg").write_bytes(b"no image")
    data = YouTubeObjectsData(str(v1))
    frames = {
        str(shot.folder / frame) for shot in data.sources["train"].found for frame in shot.frames
    }
    assert len(frames) == len(data.sources["train"]) == 10 * 2 * 4
    assert not frames & set(looked_up)
    folders = [folder for folder in listed if Path(folder).parent.name == "shots"]
    assert len(folders) == len(set(folders)) == 10 * 8 * 2
    annotated = {str(r.image) for r in data.sources["val"].records}
    assert annotated <= set(looked_up)  # the count sees what it should


# real lists

COUNTS = {  # train: videos, shots by class; others: videos, frames, boxes, frames by class
    "1.0": {
        "train": (78, [545, 91, 301, 41, 109, 85, 621, 179, 265, 531]),
        "val": (50, 325, 347, None),
        "test": (27, 346, 396, [84, 27, 37, 33, 33, 21, 37, 31, 27, 16]),
    },
    "2.2": {
        "train": (76, [292, 49, 104, 62, 100, 36, 121, 90, 209, 226]),
        "val": (30, 1177, 1177, None),
        "test": (49, 1781, 2667, [170, 155, 144, 363, 141, 140, 164, 181, 165, 158]),
    },
}


@pytest.fixture(params=COUNTS)
def published(request, real_data):
    folder = real_data / "splits" / f"YouTube-Objects-v{request.param}"
    if not folder.is_dir():
        pytest.skip(f"no published lists: {folder} is not a folder")
    return request.param, folder


def test_the_published_lists_count_as_stated(published, tmp_path):
    version, folder = published
    splits = YouTubeObjectsData(str(tmp_path), version, metadata=str(folder)).entries()
    assert splits.keys() == {"train", "val", "test"}
    videos = {}
    for split, records in splits.items():
        depth = 3 if version == "1.0" else 2
        videos[split] = {"/".join(record.group.split("/")[:depth]) for record in records}
        of_class = [sum(record.label == k for record in records) for k in range(10)]
        if split == "train":
            assert (len(videos[split]), of_class) == COUNTS[version][split]
            assert all(record.image == tmp_path / record.group for record in records)
        else:
            count, frames, boxes, expected = COUNTS[version][split]
            assert (len(videos[split]), len(records)) == (count, frames)
            assert sum(len(record.boxes) for record in records) == boxes
            assert expected is None or of_class == expected
    assert not videos["train"] & videos["val"]
    assert not videos["test"] & (videos["train"] | videos["val"])
    if version == "2.2":  # the rule: of the training videos of a class, the first three validate
        for name in CLASSES:
            val, train = (
                sorted(video for video in videos[split] if video.startswith(f"{name}/"))
                for split in ("val", "train")
            )
            assert len(val) == 3
            assert val[-1] < train[0]


def test_cleaning_leaves_published_boxes_as_the_protocol_reads_them(published, tmp_path):
    """Truncated at 224 they are the same but one."""
    version, folder = published
    splits = YouTubeObjectsData(str(tmp_path), version, metadata=str(folder)).entries()
    changed = []
    for split in ("val", "test"):
        rows = [row.split(",") for row in (folder / split / "image_sizes.txt").read_text().split()]
        sizes = {path: (int(width), int(height)) for path, width, height in rows}
        for record in splits[split]:
            path = record.image.relative_to(tmp_path).as_posix()
            scale = [224 / side for side in sizes[path] * 2]
            for box in record.boxes:
                old, new = (
                    [int(v * factor) for v, factor in zip(corners, scale, strict=True)]
                    for corners in (box, clean_box(box, sizes[path]))
                )
                if old != new:
                    changed.append((split, path, old[3], new[3]))
    expected = [("val", "aeroplane/data/0001/shots/029/frame0001.jpg", 225, 224)]
    assert changed == (expected if version == "1.0" else [])
