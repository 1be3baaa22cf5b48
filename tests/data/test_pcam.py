import multiprocessing
import pickle
import sys

import h5py
import numpy as np
import pytest
import torch

from wsl_zoo.data import PCamData
from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.pcam import PUBLISHED, PCamSource

# What a miniature copy differs in from the published set; one test looks at the warning itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*is not the whole published set")

COUNTS = {"train": 6, "valid": 4, "test": 3}


def file_of(folder, split, part):
    return folder / f"camelyonpatch_level_2_split_{split}_{part}.h5"


def write(path, key, rows, **kwargs):
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=rows, **kwargs)


def write_split(folder, split, count):
    rng = np.random.default_rng(count)
    patches = rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 2
    write(file_of(folder, split, "x"), "x", patches)
    write(file_of(folder, split, "y"), "y", labels.reshape(-1, 1, 1, 1))
    return patches, labels


def write_copy(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return {split: write_split(folder, split, count) for split, count in COUNTS.items()}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A miniature copy: its folder, and patches and labels by split as files call it."""
    root = tmp_path_factory.mktemp("pcam-copy")
    return root, write_copy(root)


def problems_of(folder, **kwargs):
    with pytest.raises(DataError, match="PCamData ") as caught:
        PCamData(str(folder), **kwargs).setup("fit")
    return caught.value.problems


def test_every_row_is_a_patch_of_its_split(copy):
    root, content = copy
    data = PCamData(str(root), image_size=96)
    assert data.class_names == ["normal", "tumor"]
    assert data.negative_class is None
    data.setup("fit")
    assert list(data.sources) == ["train", "val", "test"]
    assert data.selection() == {"cl": "val/acc", "loc": None}
    paths = set()
    for split, filed in (("train", "train"), ("val", "valid"), ("test", "test")):
        source, (patches, labels) = data.sources[split], content[filed]
        assert len(source) == COUNTS[filed]
        for i in reversed(range(len(source))):
            sample = source.load(i, annotations=True)
            np.testing.assert_array_equal(sample.image, patches[i])
            assert (sample.label, sample.size) == (labels[i], (96, 96))
            assert sample.path == str(file_of(root, filed, "x") / f"00000{i}")
            paths.add(sample.path)
    assert len(paths) == sum(COUNTS.values())
    assert data.image_names(data.sources["val"])[3] == (
        "camelyonpatch_level_2_split_valid_x.h5/000003"
    )


def test_no_row_outside_the_split(copy):
    source = PCamData(str(copy[0])).sources["test"]
    for index in (-1, 3):
        with pytest.raises(IndexError, match=rf"patch {index} of 3 in camelyonpatch.*test_x\.h5"):
            source.load(index, annotations=False)


def test_patches_are_named_without_reading_them(copy):
    source = PCamData(str(copy[0])).sources["train"]
    read = [source.load(i, annotations=False).path for i in range(len(source))]
    assert source.paths == read
    source.images = source.images.with_name("gone.h5")  # which nothing opens
    assert source.paths[1].endswith("gone.h5/000001")


def test_torchvision_keeps_the_files_in_a_folder(tmp_path):
    content = write_copy(tmp_path / "pcam")
    sample = PCamData(str(tmp_path)).sources["val"].load(2, annotations=False)
    np.testing.assert_array_equal(sample.image, content["valid"][0][2])


def test_batches_are_the_patches(copy):
    root, (patches, labels) = copy[0], copy[1]["test"]
    data = PCamData(str(root), image_size=96)
    data.setup("test")
    (loader,) = data.test_dataloader()
    (batch,) = list(loader)
    assert torch.equal(batch["image"], torch.from_numpy(patches.transpose(0, 3, 1, 2)))
    assert batch["label"].tolist() == labels.tolist()


def test_a_forked_process_opens_the_file_for_itself(copy):
    source = PCamData(str(copy[0])).sources["test"]
    source.load(0, annotations=False)  # this process has it open when it forks
    opened = source._file
    context = multiprocessing.get_context("fork")
    there, here = context.Pipe()

    def load():
        image = source.load(2, annotations=False).image
        there.send((image, source._file is not opened))

    worker = context.Process(target=load)
    worker.start()
    assert here.poll(20)
    image, reopened = here.recv()
    worker.join(20)
    assert worker.exitcode == 0
    assert reopened
    np.testing.assert_array_equal(image, copy[1]["test"][0][2])
    np.testing.assert_array_equal(source.load(1, annotations=False).image, copy[1]["test"][0][1])
    assert source._file is opened


def test_a_source_is_pickled_without_its_file(copy):
    root, (patches, _) = copy[0], copy[1]["train"]
    source = PCamData(str(root)).sources["train"]
    source.load(1, annotations=False)
    opened = source._file
    source.load(2, annotations=False)
    assert source._file is opened
    again = pickle.loads(pickle.dumps(source))
    assert again._file is None
    np.testing.assert_array_equal(again.load(4, annotations=False).image, patches[4])


def test_training_augments_as_published(copy):
    data = PCamData(str(copy[0]))
    assert data.hparams["color_jitter"] == [0.5, 0.5, 0.5, 0.05]
    assert (data.hparams["hflip"], data.hparams["vflip"]) == (0.5, 0.5)
    assert data.augment.jitters
    assert PCamData(str(copy[0]), hflip=0, vflip=0, color_jitter=None).augment.identity


def test_problems_of_all_files_come_at_once(tmp_path):
    write_copy(tmp_path)
    y = np.zeros((4, 1, 1, 1), np.uint8)
    write(file_of(tmp_path, "train", "x"), "images", y)
    write(file_of(tmp_path, "train", "y"), "y", y)
    write(file_of(tmp_path, "valid", "x"), "x", np.zeros((4, 3, 96, 96), np.uint8))
    y[1], y[3] = 7, 2
    write(file_of(tmp_path, "valid", "y"), "y", y)
    file_of(tmp_path, "test", "x").write_bytes(b"no HDF5 at all")
    write(file_of(tmp_path, "test", "y"), "y", np.zeros((4, 1), np.float32))
    name = "camelyonpatch_level_2_split_"
    found = problems_of(tmp_path)
    assert found[0] == f"{name}train_x.h5: there is no data set 'x'; found: images"
    assert found[1] == f"{name}train_y.h5: class 'tumor' (label 1) has no training patch"
    assert found[2] == (
        f"{name}valid_x.h5: 'x' is (4, 3, 96, 96) uint8, expected (N, 96, 96, 3) uint8"
    )
    assert found[3] == (f"{name}valid_y.h5: 2 labels are neither 0 nor 1, the first is 7 in row 1")
    assert found[4].startswith(f"{name}test_x.h5 cannot be read as HDF5 (")
    assert found[5] == f"{name}test_y.h5: 'y' is (4, 1) float32, expected (N, 1, 1, 1) uint8"
    assert len(found) == 6


def test_patches_and_labels_must_be_as_many(tmp_path):
    write_copy(tmp_path)
    write(file_of(tmp_path, "train", "y"), "y", np.ones((7, 1, 1, 1), np.uint8) % 2)
    for part, row in (("x", (96, 96, 3)), ("y", (1, 1, 1))):
        write(file_of(tmp_path, "test", part), part, np.zeros((0, *row), np.uint8))
    assert problems_of(tmp_path) == [
        "camelyonpatch_level_2_split_train_y.h5: class 'normal' (label 0) has no training patch",
        "camelyonpatch_level_2_split_train_x.h5 has 6 patches, "
        "camelyonpatch_level_2_split_train_y.h5 7 labels",
        "camelyonpatch_level_2_split_test_x.h5 holds no patch",
    ]


def test_files_that_are_missing_or_still_packed(tmp_path):
    write_copy(tmp_path)
    packed = file_of(tmp_path, "train", "x")
    packed.rename(f"{packed}.gz")
    file_of(tmp_path, "valid", "y").unlink()
    assert problems_of(tmp_path) == [
        "camelyonpatch_level_2_split_train_x.h5.gz is still packed: unpack it "
        f"(gunzip --keep {packed}.gz)",
        "there is no file camelyonpatch_level_2_split_valid_y.h5",
    ]
    assert problems_of(tmp_path / "nowhere") == ["it does not exist or is no folder"]


def test_a_damaged_patch_is_found_by_decoding_or_named_when_it_is_read(tmp_path):
    write_copy(tmp_path)
    path = file_of(tmp_path, "test", "x")
    patches = np.zeros((3, 96, 96, 3), np.uint8)
    write(path, "x", patches, chunks=(1, 96, 96, 3), compression="gzip")
    with h5py.File(path) as file:
        start = file["x"].id.get_chunk_info(2).byte_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 16)
    assert problems_of(tmp_path)[0].startswith(f"{path.name} cannot be read as HDF5 (")
    source = PCamData(str(tmp_path), verify="header").sources["test"]
    np.testing.assert_array_equal(source.load(1, annotations=False).image, patches[1])
    with pytest.raises(DataError, match=r"test_x\.h5: patch 2 is not readable"):
        source.load(2, annotations=False)
    with pytest.raises(DataError, match=r"gone\.h5: patch 0 is not readable"):
        PCamSource(tmp_path / "gone.h5", np.zeros(1, np.uint8)).load(0, annotations=False)


def test_without_h5py_the_extra_is_named(copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"needs h5py: pip install 'wsl-zoo\[histology\]'"):
        PCamData(str(copy[0])).setup("fit")


def test_a_copy_that_is_not_whole_gives_a_warning(copy):
    assert PUBLISHED == {"train": 262_144, "val": 32_768, "test": 32_768}
    with pytest.warns(UserWarning, match="is not the whole published set") as caught:
        PCamData(str(copy[0])).setup("fit")
    (warning,) = caught
    assert str(warning.message).endswith(
        "6 train (published: 262,144), 4 val (published: 32,768), 3 test (published: 32,768)"
    )
