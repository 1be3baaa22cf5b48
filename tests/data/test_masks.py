"""Tables of masks: written, read with every problem at once, and in the place of true masks."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsl_zoo.data import FolderData, SyntheticData
from wsl_zoo.data.dataset import RecordSource
from wsl_zoo.data.manifest import DataError, Record
from wsl_zoo.data.masks import Drawn, MaskedSource, image_names, read_masks, write_masks
from wsl_zoo.data.synthetic import SceneSource

SIZE = 32


def save(path, mask):
    """Write a mask of 0 and 1 as a PNG that one can look at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(mask, np.uint8) * 255).save(path)
    return path


def noise(seed, size=SIZE):
    """A mask that is no other's mirror image."""
    return np.random.default_rng(seed).integers(0, 2, (size, size), dtype=np.uint8)


class Guarded:
    """A source whose annotations must not be read: the oracle counts every look."""

    has_masks = has_boxes = True

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def load(self, index, *, annotations):
        assert not annotations, f"the true mask of sample {index} was read"
        return self.source.load(index, annotations=False)


def reading_masks(data):
    """Let a data module hand masks to training, as it does for a method that needs them."""
    data._training_reads = lambda *what: True
    return data


def guarded_data(table, **kwargs):
    """Scenes of which training must not see the annotations."""
    settings = {"train": 12, "val": 4, "test": 4, "image_size": SIZE, "batch_size": 2}
    data = SyntheticData(**settings | {"mask_table": str(table)} | kwargs)
    read = data.read
    data.read = lambda: {k: Guarded(v) if k == "train" else v for k, v in read().items()}
    return reading_masks(data)


@pytest.fixture
def table(tmp_path):
    """Three of twelve scenes, of which a model drew the second."""
    masks = {
        f"scene-{i}": Drawn(save(tmp_path / "masks" / f"{i}.png", noise(i)), kind)
        for i, kind in [(7, "oracle"), (2, "pseudo"), (11, "oracle")]
    }
    return write_masks(tmp_path / "table.csv", masks)


# The file -------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    inside = save(tmp_path / "run" / "masks" / "b.png", noise(0))
    outside = save(tmp_path / "data" / "a, 1.png", noise(1))
    masks = {
        "train/b.jpg": Drawn(inside, "pseudo"),
        'train/a, "1".jpg': Drawn(outside, "oracle"),
    }
    path = tmp_path / "run" / "round" / "table.csv"
    assert write_masks(path, masks) == path
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["image", "mask", "kind"],
            ['train/a, "1".jpg', "../../data/a, 1.png", "oracle"],
            ["train/b.jpg", "../masks/b.png", "pseudo"],
        ]
    found = read_masks(path, ["train/b.jpg", "train/c.jpg", 'train/a, "1".jpg'])
    assert list(found) == sorted(masks)
    for image, drawn in masks.items():
        assert found[image].mask.resolve() == drawn.mask.resolve()
        assert found[image].kind == drawn.kind


def test_a_folder_may_move_with_its_table(tmp_path, table):
    (tmp_path / "moved").mkdir()
    for path in (table, tmp_path / "masks"):
        path.rename(tmp_path / "moved" / path.name)
    found = read_masks(tmp_path / "moved" / "table.csv", [f"scene-{i}" for i in range(12)])
    assert all(drawn.mask.is_file() for drawn in found.values())


def test_files_may_be_given_relative_to_where_one_is(tmp_path, monkeypatch):
    save(tmp_path / "masks" / "a.png", noise(0))
    monkeypatch.chdir(tmp_path)
    path = write_masks(Path("run/table.csv"), {"a": Drawn(Path("masks/a.png"), "oracle")})
    assert read_masks(path, ["a"])["a"].mask.resolve() == tmp_path / "masks" / "a.png"


def test_a_table_is_written_anew(tmp_path, table):
    mask = tmp_path / "masks" / "2.png"
    write_masks(table, {"scene-2": Drawn(mask, "oracle")})
    assert read_masks(table, ["scene-2"])["scene-2"].kind == "oracle"
    with pytest.raises(AttributeError):
        write_masks(table, {"scene-3": None})
    assert list(read_masks(table, ["scene-2"])) == ["scene-2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["masks", "table.csv"]


def test_bad_rows_come_at_once_with_their_lines(tmp_path):
    save(tmp_path / "m.png", noise(0))
    path = tmp_path / "table.csv"
    rows = [
        "note,kind,image,mask",
        "first,oracle,a.png,m.png",
        ",oracle,train/b.pgn,m.png",
        ",oracle,nowhere,m.png",
        "",
        ",pseudo,a.png,m.png",
        ",drawn,train/b.png,m.png",
        ",oracle,train/c.png,m/m.png",
        ",oracle,train/c.png,",
        ",,train/c.png,m.png",
        "short,pseudo,train/c.png",
    ]
    path.write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"Masks .*table\.csv: 8 problems") as error:
        read_masks(path, ["a.png", "train/b.png", "train/c.png"])
    assert error.value.problems == [
        "line 3: the training split has no image 'train/b.pgn' (did you mean 'train/b.png'?)",
        "line 4: the training split has no image 'nowhere'",
        "line 6: a.png stands there twice",
        "line 7: kind 'drawn' must be oracle or pseudo",
        f"line 8: there is no file {tmp_path / 'm/m.png'}",
        f"line 9: there is no file {tmp_path}",
        "line 10: kind '' must be oracle or pseudo",
        f"line 11: there is no file {tmp_path}",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no such table"),
        ("", "it needs the columns image, mask, kind; found: none"),
        ("image,masks,kind\na,m.png,oracle\n", "image, mask, kind; found: image, masks, kind"),
        ("image,mask,kind\n", "it lists no image"),
    ],
)
def test_what_is_no_table(tmp_path, content, problem):
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=f"^Masks {path}: 1 problem") as error:
        read_masks(path, ["a"])
    assert error.value.problems[0].endswith(problem)


# Names ----------------------------------------------------------------------------------------


def test_images_are_called_by_their_place_below_the_root(tmp_path):
    records = [Record(tmp_path / name, 0) for name in ("train/b.png", "train/a.png")]
    source = RecordSource(records)  # no file is opened
    assert image_names(source, tmp_path) == ["train/b.png", "train/a.png"]
    assert image_names(source, tmp_path / "train") == ["b.png", "a.png"]
    whole = [record.image.as_posix() for record in records]
    assert image_names(source, tmp_path / "test") == whole
    assert image_names(source) == whole


def test_of_a_source_without_files_the_samples_tell_their_names():
    scenes = Guarded(SceneSource(3, 10, seed=0, size=SIZE, num_classes=2))
    assert image_names(scenes) == ["scene-10", "scene-11", "scene-12"]


def test_two_images_of_one_name_are_refused(tmp_path):
    records = [Record(tmp_path / name, 0) for name in ("b.png", "a.png", "c.png", "b.png", "a.png")]
    with pytest.raises(DataError) as error:
        image_names(RecordSource(records), tmp_path)
    assert error.value.problems == [
        "a.png stands there more than once",
        "b.png stands there more than once",
    ]


# The source -----------------------------------------------------------------------------------


def test_only_listed_images_come_with_the_masks_of_the_table(table):
    scenes = SceneSource(12, 0, seed=0, size=SIZE, num_classes=4)
    names = image_names(scenes)
    source = MaskedSource(Guarded(scenes), names, read_masks(table, names))
    assert len(source) == 3
    assert (source.has_masks, source.has_boxes) == (True, False)
    for position, (i, pseudo) in enumerate([(2, True), (7, False), (11, False)]):
        sample, own = source.load(position, annotations=True), scenes.load(i, annotations=True)
        assert (sample.mask == noise(i)).all()
        assert (sample.mask != own.mask).any()
        assert sample.pseudo is pseudo
        assert sample.boxes is None
        assert (sample.image == own.image).all()
        assert (sample.label, sample.path, sample.size) == (own.label, own.path, own.size)
        assert source.load(position, annotations=False).mask is None


def test_a_mask_of_another_size_than_its_image_is_named(tmp_path):
    mask = save(tmp_path / "m.png", noise(0)[:10, :20])
    table = write_masks(tmp_path / "table.csv", {"scene-1": Drawn(mask, "oracle")})
    source = guarded_data(table).sources["train"]
    with pytest.raises(DataError, match=r"m\.png is 20x10 pixels, its image 32x32"):
        source.load(0, annotations=True)


# The data module ------------------------------------------------------------------------------


def test_training_sees_the_table_and_never_a_true_mask(table):
    data = guarded_data(table, hflip=0.0)
    data.setup("fit")
    assert len(data.sources["train"]) == 3
    seen = {}
    for batch in data.train_dataloader():
        assert "boxes" not in batch
        for i, path in enumerate(batch["path"]):
            seen[path] = {k: batch[k][i] for k in ("image", "label", "mask", "pseudo", "has_mask")}
    assert sorted(seen) == ["scene-11", "scene-2", "scene-7"]
    scenes = SceneSource(12, 0, seed=0, size=SIZE, num_classes=4)
    for path, found in seen.items():
        number = int(path.removeprefix("scene-"))
        assert (found["mask"].numpy() == noise(number)).all(), path
        assert found["has_mask"]
        assert bool(found["pseudo"]) == (number == 2)
        own = scenes.load(number, annotations=False)
        assert (found["image"].numpy() == own.image.transpose(2, 0, 1)).all()
        assert found["label"] == own.label


@pytest.fixture
def bright(tmp_path):
    """Twelve files of dark and bright squares; a table has the latter as masks, a third of them by
    a model. The data set's own masks are empty."""
    root, masks = tmp_path / "data", {}
    for i in range(12):
        squares = np.kron(noise(i, 10), np.ones((8, 8), np.uint8))
        name = f"train/{'ab'[i % 2]}/{i}.png"
        for folder, pixels in ((root, squares * 150 + 50), (root / "masks", squares * 0)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
        kind = "pseudo" if i % 3 == 0 else "oracle"
        masks[name] = Drawn(save(tmp_path / "masks" / f"{i}.png", squares), kind)
    write_masks(tmp_path / "table.csv", masks)
    whole = {"val_fraction": 0.0, "test_fraction": 0.0, "batch_size": 6}
    return {"root": str(root), "mask_table": str(tmp_path / "table.csv")} | whole


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 40, "hflip": 0.5, "vflip": 0.5, "rotate90": True},
        {"image_size": 30, "train_resize": 40, "vflip": 0.5, "color_jitter": [0.1, 0.1, 0.1, 0.1]},
    ],
    ids=["flips", "crop and jitter"],
)
def test_an_image_its_mask_and_who_drew_it_stay_together(bright, options, cache):
    data = reading_masks(FolderData(**bright, **options, cache=cache))
    loader, seen = data.train_dataloader(), set()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert batch["mask"].shape == (len(batch["path"]), *[options["image_size"]] * 2)
            pixels = batch.get("raw", batch["image"])[:, 0]
            assert torch.equal(batch["mask"] == 1, pixels > 125)
            assert batch["mask"].max() == 1
            drawn = [int(Path(path).stem) % 3 == 0 for path in batch["path"]]
            assert batch["pseudo"].tolist() == drawn
            seen |= {mask.numpy().tobytes() for mask in batch["mask"]}
    assert len(seen) > 24  # of twelve images: they are augmented


def test_of_a_folder_no_true_mask_is_opened_in_training(bright):
    data = reading_masks(FolderData(**bright, image_size=40))
    data.setup("fit")  # which looks at every file
    for path in (Path(bright["root"]) / "masks").rglob("*.png"):
        path.unlink()
    assert sum(len(batch["path"]) for batch in data.train_dataloader()) == 12


def test_bad_tables_are_refused_by_the_data_module(bright, tmp_path):
    mask = tmp_path / "masks" / "0.png"
    (tmp_path / "table.csv").unlink()
    with pytest.raises(DataError, match="there is no such table"):
        FolderData(**bright).setup("fit")
    write_masks(tmp_path / "table.csv", {"train/a/00.png": Drawn(mask, "oracle")})
    with pytest.raises(DataError, match=r"no image 'train/a/00\.png'"):
        FolderData(**bright).setup("fit")


def test_evaluation_keeps_its_own_masks(table):
    with_table, without = guarded_data(table), guarded_data(table, mask_table=None)
    for split in ("val", "test"):
        ours, theirs = (data.dataset(split) for data in (with_table, without))
        assert len(ours) == len(theirs) == 4
        for i in range(4):
            assert torch.equal(ours[i]["mask"], theirs[i]["mask"])
            assert "pseudo" not in ours[i]
