import pickle

import numpy as np
import pytest
from PIL import Image

from wsl_zoo.data.manifest import DataError, Record
from wsl_zoo.data.shots import Shot, ShotSource, clean, clean_box, numbered, read_shot


def save(path, size=(20, 10), colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(path)
    return path


def test_every_frame_is_found_by_its_position(tmp_path):
    lengths = {"b": 3, "a": 1, "c": 2}
    for name, length in lengths.items():
        for i in range(length):
            save(tmp_path / name / f"frame{i}.png", colour=10 * i + ord(name))
    source = ShotSource(
        Shot(f"s/{name}", tmp_path / name, k, [f"frame{i}.png" for i in range(length)])
        for k, (name, length) in enumerate(lengths.items())
    )
    assert len(source) == 6
    assert source.shots == [range(3), range(3, 4), range(4, 6)]
    source = pickle.loads(pickle.dumps(source))  # to workers
    for k, (name, span) in enumerate(zip(lengths, source.shots, strict=True)):
        for i, index in enumerate(span):
            sample = source.load(index, annotations=True)
            assert (sample.image[..., 0] == 10 * i + ord(name)).all()
            assert (sample.label, sample.group, sample.size) == (k, f"s/{name}", (10, 20))
            assert sample.path == str(tmp_path / name / f"frame{i}.png")
            assert sample.boxes is None
            assert sample.mask is None
    assert len(ShotSource([])) == 0


def test_a_training_frame_that_cannot_be_read_is_named_when_it_is_loaded(tmp_path):
    (tmp_path / "frame1.jpg").write_bytes(b"no image")
    source = ShotSource([Shot("s", tmp_path, 0, ["frame1.jpg"])])
    with pytest.raises(DataError, match=r"frame1\.jpg is not a readable image"):
        source.load(0, annotations=False)


def test_frames_come_in_temporal_order_and_other_files_do_not_count(tmp_path):
    names = ["frame0010.jpg", "frame9999.jpg", "frame10000.jpg", "frame0002.JPG"]
    for name in [*names, "._frame0001.jpg", "frame0010.jpg_sticks.mat", "a.txt", "frame.jpg"]:
        (tmp_path / name).touch()
    shot = read_shot("s", tmp_path, 3)
    assert shot.frames == ["frame0002.JPG", "frame0010.jpg", "frame9999.jpg", "frame10000.jpg"]
    assert read_shot("s", tmp_path / "none", 3) is None
    assert read_shot("s", tmp_path / "a.txt", 3) is None
    assert numbered(["00000012.jpg", "00000003.jpg"]) == [(3, "00000003.jpg"), (12, "00000012.jpg")]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1.5, 2, 20, 10), (1.5, 2, 20, 10)),
        ((-4, -0.5, 3, 4), (0, 0, 3, 4)),
        ((9, 1, 3, 4), (3, 1, 9, 4)),
        ((3, 8, 9, 1), (3, 1, 9, 8)),
        ((9, 8, 3, -1), (3, 0, 9, 8)),
        ((2, 2, 21.9, 10.5), (2, 2, 20, 10)),
        ((-1, 2, 20.5, 3), (0, 2, 19, 3)),
        ((40, 2, -1, 3), (0, 2, 19, 3)),
        ((5, 0, 6, 99), (5, 0, 6, 9)),
        ((0, 0, 20, 10), (0, 0, 20, 10)),
    ],
)
def test_rules_of_boxes(box, expected):
    assert clean_box(box, (20, 10)) == expected


def test_boxes_are_put_right_with_a_warning_that_names_the_frame(tmp_path):
    frames = {name: save(tmp_path / f"{name}.png") for name in ("fine", "odd", "swapped", "wide")}
    boxes = {
        "fine": ((1.0, 1.0, 2.0, 2.0),),
        "odd": ((-1.0, 1.0, 12.0, 10.3), (1.0, 1.0, 2.0, 2.0)),
        "swapped": ((9.0, 1.0, 2.0, 2.0),),
        "wide": ((0.0, 1.0, 30.0, 2.0),),
    }
    records = [Record(path, 0, boxes=boxes[name]) for name, path in frames.items()]
    unlabelled = Record(frames["fine"], 0)
    problems = []
    with pytest.warns(UserWarning, match="boxes|Boxes") as warnings:
        found = clean([*records, unlabelled], problems)
    assert [str(warning.message) for warning in warnings] == [
        f"Swapped corners of boxes are put right (1): {frames['swapped']}",
        f"Boxes that leave their image by far are cut (1): {frames['wide']}",
    ]
    assert [r.boxes for r in found] == [
        boxes["fine"],
        ((0, 1, 12, 10), (1, 1, 2, 2)),
        ((2, 1, 9, 2),),
        ((0, 1, 19, 2),),
        None,
    ]
    assert [r.image for r in found[:4]] == list(frames.values())
    assert not problems


def test_a_box_outside_its_image_is_a_problem(tmp_path):
    image = save(tmp_path / "a.png")
    outside = [(20.2, 1, 20.4, 2), (1, 10.1, 2, 10.2), (-3, 1, -1, 2), (1, -3, 2, -1)]
    problems = []
    clean([Record(image, 0, boxes=tuple(outside), place="x.mat")], problems)
    assert problems == [
        f"x.mat: box {box} lies outside its image {image} of 20x10 pixels" for box in outside
    ]


def test_boxes_of_a_missing_image_are_kept_for_the_check_that_names_it(tmp_path):
    record = Record(tmp_path / "none.png", 0, boxes=((-1.0, 2.0, np.inf, 4.0),))
    problems = []
    assert clean([record], problems)[0].boxes == ((0, 2.0, np.inf, 4.0),)
    assert not problems
