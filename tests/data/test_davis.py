from collections import Counter

import numpy as np
import pytest
from PIL import Image

from wsl_zoo.data.davis import DAVISData, read_table
from wsl_zoo.data.manifest import DataError, read_mask

SIZE = (12, 8)
TAGS = {"dog": "animal", "bear": "animal", "ape": "animal", "van": "car", "bus": "car"}


def write_table(root, *rows, header="sequence,label", name="index.csv"):
    (root / name).write_text("\n".join([header, *rows]))


def write_sequence(root, name, frames=10, resolution=""):
    """A square of two instances moves to the right; it has left the last frame."""
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / resolution / name).mkdir(parents=True)
    for i in range(frames):
        ids = np.zeros(SIZE[::-1], np.uint8)
        if i + 1 < frames:
            ids[2:5, i % 8 : i % 8 + 2], ids[2:5, i % 8 + 2 : i % 8 + 4] = 1, 2
        Image.new("RGB", SIZE).save(root / "JPEGImages" / resolution / name / f"{i:05}.jpg")
        Image.fromarray(ids).save(root / "Annotations" / resolution / name / f"{i:05}.png")


@pytest.fixture
def copy(tmp_path):
    for name in TAGS:
        write_sequence(tmp_path, name)
    write_table(tmp_path, *(f"{name},{tag}" for name, tag in TAGS.items()))
    return tmp_path


def sequences(data, split):
    return Counter(record.group for record in data.sources[split].records)


def test_each_fold_tests_one_sequence_of_every_tag(copy):
    data = [DAVISData(str(copy), fold=fold, folds=2) for fold in range(2)]
    assert data[0].class_names == ["animal", "car"]
    assert sequences(data[0], "test") == {"ape": 10, "bus": 10}
    assert sequences(data[1], "test") == {"bear": 10, "van": 10}
    assert sequences(data[0], "train") == {"bear": 8, "dog": 8, "van": 8}
    assert sequences(data[0], "val") == {"bear": 2, "dog": 2, "van": 2}
    for record in data[1].sources["train"].records:
        assert record.label == ["animal", "car"].index(TAGS[record.group])


def test_a_tag_needs_as_many_sequences_as_there_are_folds(copy):
    with pytest.raises(DataError) as caught:
        DAVISData(str(copy)).setup("fit")
    assert caught.value.problems == ["tag 'car' has 2 sequences (bus, van), folds=3 needs as many"]


def test_single_frames_of_the_training_sequences_validate(copy):
    data = DAVISData(str(copy), folds=2)
    names = [(r.group, r.image.stem) for r in data.sources["val"].records]
    assert names[:3] == [("bear", "00002"), ("bear", "00007"), ("dog", "00002")]
    held_out = {r.image for r in data.sources["val"].records}
    assert not held_out & {r.image for r in data.sources["train"].records}
    every_third = DAVISData(str(copy), folds=2, val_every=3)
    assert [r.image.stem for r in every_third.sources["val"].records[:3]] == [
        "00001", "00004", "00007",
    ]  # fmt: skip
    without = DAVISData(str(copy), folds=2, val_every=0)
    assert list(without.sources) == ["train", "test"]
    assert sequences(without, "train") == {"bear": 10, "dog": 10, "van": 10}


def test_a_sequence_is_a_shot_of_frames_in_temporal_order(copy):
    data = DAVISData(str(copy), folds=2, frames=3, batch_size=9, image_size=8)
    assert data.shots() == [range(8), range(8, 16), range(16, 24)]
    stems = [r.image.stem for r in data.sources["train"].records[:8]]
    assert stems == ["00000", "00001", "00003", "00004", "00005", "00006", "00008", "00009"]
    batch = next(iter(data.train_dataloader()))
    assert set(batch["sequence"].tolist()) == {0, 1, 2}
    assert not {"mask", "boxes"} & batch.keys()


def test_boxes_surround_all_instances_of_the_mask(copy):
    data = DAVISData(str(copy), folds=2, image_size=24)
    records = {r.image.stem: r for r in data.sources["test"].records if r.group == "ape"}
    assert records["00000"].boxes == ((0, 2, 4, 5),)
    assert records["00006"].boxes == ((6, 2, 10, 5),)
    assert records["00009"].boxes == ()  # the object has gone: CorLoc leaves the frame out
    assert read_mask(records["00006"], SIZE[::-1]).sum() == 12
    assert all(r.boxes is None for r in data.sources["train"].records)
    batch = next(iter(data.test_dataloader()[0]))
    assert batch["boxes"][6].tolist() == [[12, 6, 20, 15]]
    assert len(batch["boxes"][9]) == 0
    assert batch["has_mask"].all()
    assert data.sources["val"].has_boxes


def test_palette_masks_with_instance_ids_are_united(copy):
    path = copy / "Annotations" / "ape" / "00000.png"
    ids = np.zeros(SIZE[::-1], np.uint8)
    ids[1:3, 1:3], ids[6, 9] = 1, 2
    image = Image.fromarray(ids, mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(path)
    record = DAVISData(str(copy), folds=2).sources["test"].records[0]
    assert record.boxes == ((1, 1, 10, 7),)


def test_boxes_of_the_table_come_before_those_of_masks(copy):
    rows = [f"{name},{tag},00000,,,,,0.1" for name, tag in TAGS.items()]
    rows += ["ape,animal,00001,0,1,11.5,7,0.2", "ape,animal,00001,2,2,3,3,0.2"]
    rows += ["dog,animal,00001,1,1,2,2,0.2", "dog,animal,00002,1,1,2,2,0.2"]
    write_table(copy, *rows, header="sequence,label,frame,x0,y0,x1,y1,fg", name="tags.csv")
    data = DAVISData(str(copy), table=str(copy / "tags.csv"), folds=2)
    boxes = {r.image.stem: r.boxes for r in data.sources["test"].records if r.group == "ape"}
    assert boxes["00001"] == ((0, 1, 11.5, 7), (2, 2, 3, 3))
    assert boxes["00000"] == ((0, 2, 4, 5),)
    assert boxes["00002"] == ((2, 2, 6, 5),)
    assert all(r.boxes is None for r in data.sources["train"].records)
    (record,) = (r for r in data.sources["val"].records if r.place == "dog/00002")
    assert record.boxes == ((1, 1, 2, 2),)


@pytest.mark.parametrize("resolution", ["480p", "1080p"])
def test_layouts_with_a_folder_of_the_resolution(tmp_path, resolution):
    for name in ("ape", "bear"):
        write_sequence(tmp_path, name, resolution=resolution)
    write_table(tmp_path, "ape,animal", "bear,animal")
    if resolution == "480p":
        (tmp_path / "JPEGImages" / "1080p" / "ape").mkdir(parents=True)
    data = DAVISData(str(tmp_path), folds=2, fold=1)
    assert sequences(data, "test") == {"bear": 10}
    assert data.sources["test"].records[0].image.parent.parent.name == resolution


def test_sequences_without_a_tag_are_left_out_with_a_warning(copy):
    write_sequence(copy, "tree")
    write_sequence(copy, "rock")
    with pytest.warns(UserWarning, match=r"index.csv has no tag of rock, tree: left out"):
        data = DAVISData(str(copy), folds=2).sources
    assert {r.group for source in data.values() for r in source.records} == set(TAGS)


def test_files_that_are_missing_are_named_at_once(copy):
    write_table(
        copy, *(f"{name},{tag},00000" for name, tag in TAGS.items()), "hut,car,00000",
        "cab,car,00000", "van,car,00010", header="sequence,label,frame,x0,y0,x1,y1",
    )  # fmt: skip
    frames, masks = copy / "JPEGImages", copy / "Annotations"
    for kind in (frames, masks):
        (kind / "cab").mkdir()
    (masks / "bus" / "00003.png").unlink()
    (frames / "dog" / "00004.jpg").unlink()
    with pytest.raises(DataError) as caught:
        DAVISData(str(copy), folds=2).setup("test")
    assert caught.value.problems == [
        f"{frames / 'bus' / '00003.jpg'}: there is no annotation {masks / 'bus' / '00003.png'}",
        f"index.csv, line 8: {frames / 'cab'} holds no image",
        f"{masks / 'dog' / '00004.png'}: there is no frame {frames / 'dog' / '00004.jpg'}",
        f"index.csv, line 7: there is no folder {frames / 'hut'}",
        f"index.csv, line 7: there is no folder {masks / 'hut'}",
        "index.csv, line 9: there is no frame '00010' of 'van'",
    ]


def test_damaged_files_are_named_at_once(copy):
    (copy / "Annotations" / "ape" / "00003.png").write_bytes(b"no image")
    (copy / "JPEGImages" / "dog" / "00000.jpg").write_bytes(b"no image")
    Image.new("L", (12, 9)).save(copy / "Annotations" / "van" / "00000.png")
    with pytest.raises(DataError, match="3 problems") as caught:
        DAVISData(str(copy), folds=2).setup("fit")
    found = sorted(caught.value.problems)
    assert found[0].startswith(f"ape/00003: {copy / 'Annotations/ape/00003.png'} is not a readable")
    assert found[1].startswith(f"dog/00000: {copy / 'JPEGImages/dog/00000.jpg'} is not a readable")
    assert found[2].startswith("van/00000: mask 00000.png is 12x9 pixels, its image")


def test_bad_tables_are_refused_with_their_lines(tmp_path):
    header = "sequence, label, frame, x0, y0, x1, y1"
    write_table(
        tmp_path, "ape, animal, 0, 1, 2, 3, 4", "ape, car, 1, 1, 2, 3, 4",
        ", animal, 2, 1, 2, 3, 4", "bus, , 0, 1, 2, 3, 4", "ape, animal, 3, 1, 2, 3",
        "ape, animal, 4, 5, 2, 3, 4", header=header,
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "index.csv")
    assert caught.value.problems == [
        "line 3: the tag of 'ape' is 'car', but 'animal' in line 2",
        "line 4: empty sequence or label",
        "line 5: empty sequence or label",
        "line 6: a box needs four numbers 'x0 y0 x1 y1', got '1 2 3'",
        "line 7: a box needs finite x0 <= x1 and y0 <= y1, got '5 2 3 4'",
    ]
    write_table(tmp_path, "ape,animal", header="name,label")
    with pytest.raises(DataError, match="column 'sequence' is missing; found: name, label"):
        DAVISData(str(tmp_path)).class_names  # noqa: B018 - reads the table
    write_table(tmp_path)
    with pytest.raises(DataError, match="it lists no sequence"):
        read_table(tmp_path / "index.csv")
    with pytest.raises(DataError, match=r"nowhere.csv.*\n.*does not exist"):
        DAVISData(str(tmp_path), table=str(tmp_path / "nowhere.csv")).setup("fit")


def test_what_is_not_davis_is_refused(tmp_path):
    write_table(tmp_path, "ape,animal", "bear,animal")
    with pytest.raises(DataError, match="there is no folder JPEGImages in it"):
        DAVISData(str(tmp_path), folds=2).setup("fit")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fold": 3}, "fold=3 does not exist: with folds=3 it is 0 to 2"),
        ({"fold": -1}, "fold=-1 does not exist"),
        ({"folds": 1}, "folds=1 must be at least 2"),
        ({"val_every": 1}, "val_every=1 must be at least 2, or 0"),
        ({"val_every": -5}, "val_every=-5 must be"),
    ],
)
def test_wrong_options_are_refused(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        DAVISData(str(tmp_path), **kwargs)


@pytest.fixture(scope="module")
def real_davis(real_data):
    if not (real_data / "DAVIS" / "index.csv").is_file():
        pytest.skip("the real DAVIS sequences are not there")
    return real_data / "DAVIS"


@pytest.fixture(scope="module")
def real_folds(real_davis):
    folds = [DAVISData(str(real_davis), fold=fold) for fold in range(3)]
    for data in folds:
        data.setup("fit")
    return folds


def test_the_folds_of_the_real_sequences(real_folds):
    tested = [sequences(data, "test") for data in real_folds]
    assert tested == [
        {"blackswan": 25, "bmx-trees": 40, "breakdance": 42, "car-roundabout": 38},
        {"camel": 45, "drift-chicane": 26, "paragliding-launch": 40, "scooter-black": 22},
        {"cows": 52, "drift-straight": 25, "parkour": 50, "soapbox": 50},
    ]
    for data, of_fold in zip(real_folds, tested, strict=True):
        assert data.class_names == ["animal", "car", "person", "two_wheeler"]
        assert Counter(
            {r.group: r.label for r in data.sources["test"].records}.values()
        ) == dict.fromkeys(range(4), 1)
        train, val = sequences(data, "train"), sequences(data, "val")
        assert train.keys() == val.keys()
        assert len(train) == len(data.shots()) == 10
        assert not train.keys() & of_fold.keys()
        assert (train + val + of_fold).total() == 530
        assert val == {name: (train[name] + val[name] + 2) // 5 for name in val}


def test_the_boxes_of_the_real_table_are_edges_around_the_masks(real_davis, real_folds, tmp_path):
    """Its x1 and y1 are one after the last pixel: without the table's boxes, the same come out."""
    lines = [line.split(",") for line in (real_davis / "index.csv").read_text().splitlines()]
    write_table(tmp_path, *(f"{row[0]},{row[2]}" for row in lines[1:]))
    for fold, data in enumerate(real_folds):
        masks = DAVISData(str(real_davis), str(tmp_path / "index.csv"), fold, verify="none")
        for split in ("val", "test"):
            boxes = [record.boxes for record in data.sources[split].records]
            assert boxes == [record.boxes for record in masks.sources[split].records]
            assert all(len(of_frame) == 1 for of_frame in boxes)
