import pytest
from PIL import Image

from wsl_zoo.data import ILSVRCData
from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.metadata import read_split

WNIDS = ["n01440764", "n01443537", "n01484850"]


@pytest.fixture
def copy(tmp_path):
    """Three classes in the layout of ImageNet; `val` of the metadata is `val2`, `test` is `val`."""
    names = {
        "train": {f"train/{w}/{w}_{i}.JPEG": k for i in (10, 2) for k, w in enumerate(WNIDS)},
        "val": {f"val2/{k}/{i}.jpeg": k for k in range(3) for i in range(2)},
        "test": {f"val/ILSVRC2012_val_{i:08d}.JPEG": 2 - i % 3 for i in range(1, 5)},
    }  # fmt: skip
    for split, labels in names.items():
        for name in labels:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 8)).save(path, format="JPEG")
        rows = {
            "image_ids": list(labels),
            "class_labels": [f"{name},{label}" for name, label in labels.items()],
            "image_sizes": [] if split == "train" else [f"{name},12,8" for name in labels],
            "localization": [] if split == "train" else [
                f"{name},{i},1,11,7" for name in labels for i in (0, 3)
            ],
        }  # fmt: skip
        (tmp_path / "meta" / split).mkdir(parents=True)
        for name, lines in rows.items():
            (tmp_path / "meta" / split / f"{name}.txt").write_text("\n".join(lines))
    return tmp_path


def data_of(copy, **kwargs):
    return ILSVRCData(str(copy / "images"), str(copy / "meta"), **kwargs)


def test_splits_come_from_the_folders_of_imagenet(copy):
    data = data_of(copy, image_size=24)
    assert data.class_names == WNIDS  # before setup, from the folders of the training images
    data.setup("fit")
    records = {split: source.records for split, source in data.sources.items()}
    images = copy / "images"
    assert [r.image.relative_to(images).parts[0] for split in records.values() for r in split] == (
        ["train"] * 6 + ["val2"] * 6 + ["val"] * 4
    )
    assert [r.label for r in records["train"]] == [0, 1, 2] * 2
    assert [r.label for r in records["test"]] == [1, 0, 2, 1]
    assert not data.sources["train"].has_boxes
    assert data.selection()["loc"] == "val/maxboxacc"
    batch = next(iter(data.test_dataloader()[0]))
    assert batch["boxes"][0].tolist() == [[0, 3, 22, 21], [6, 3, 22, 21]]


def test_validation_images_of_every_class_are_sampled(copy):
    data = data_of(copy, num_val_sample_per_class=1)
    assert [record.label for record in data.sources["val"].records] == [0, 1, 2]


def test_lists_may_lie_in_the_folders_of_the_images(copy):
    for split, files in (("train", "train"), ("val", "val")):
        for path in (copy / "meta" / split).iterdir():
            path.rename(copy / "images" / files / path.name)
    data = ILSVRCData(str(copy / "images"))
    assert [len(records) for records in data.read_splits().values()] == [6, 6]


def test_pseudo_boxes_have_paths_like_those_of_the_metadata(copy):
    boxes = copy / "clip" / "localization.txt"
    boxes.parent.mkdir()
    boxes.write_text("".join(f"val2/{k}/{i}.jpeg,0,0,6,4\n" for k in range(3) for i in range(2)))
    data = data_of(copy, val_roots={"clip": str(boxes.parent)})
    data.setup("fit")
    assert {record.boxes for record in data.sources["val_clip"].records} == {((0, 0, 6, 4),)}
    assert len(data.sources["val_clip"]) == 6


def test_missing_images_are_named_with_their_lines(copy):
    (copy / "images" / "val2" / "1" / "0.jpeg").unlink()
    with pytest.raises(DataError) as caught:
        data_of(copy).setup("validate")
    (problem,) = caught.value.problems
    assert problem.startswith("val/image_ids.txt, line 3: image ")
    assert problem.endswith("val2/1/0.jpeg does not exist")


def test_the_published_validation_list(real_data, tmp_path):
    folder = real_data / "splits" / "wsol" / "ILSVRC" / "val"
    if not folder.is_dir():
        pytest.skip(f"the published split files are not there: {folder}")
    problems = []
    records = read_split(folder, tmp_path, problems)
    assert problems == []
    assert len(records) == 10_000
    assert sum(len(record.boxes) for record in records) == 18_532
    assert sorted(record.label for record in records) == [k for k in range(1000) for _ in range(10)]
    assert records[0].image == tmp_path / "val2" / "0" / "0.jpeg"
    assert records[0].boxes == ((156, 163, 318, 230),)
