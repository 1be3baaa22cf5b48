import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from wsl_zoo.data import FlowersData
from wsl_zoo.data.manifest import DataError, read_mask

COUNT = 214  # two images of every class, and ten more of the first ones
SIZE = 48
FLOWER = (slice(16, 32), slice(16, 48))  # on the grid of JPEG's blocks, so that nothing bleeds
SETS = {"trnid": range(103, 205), "valid": range(1, 103), "tstid": range(205, 215)}


def write_mat(root, labels, sets):
    """As released: row vectors of uint8 and uint16."""
    savemat(root / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(root / "setid.mat", {k: np.array([v], np.uint16) for k, v in sets.items()})


def blue_mask(path, flower=FLOWER, **kwargs):
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[..., 2] = 254
    pixels[flower] = (200, 60, 140)
    Image.fromarray(pixels).save(path, **kwargs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A miniature in the original layout; image n is of the class (n - 1) % 102 + 1."""
    root = tmp_path_factory.mktemp("flowers") / "102flowers"
    for folder in ("jpg", "segmim"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (SIZE, SIZE), (200, 60, 140)).save(root / "jpg" / "image_00001.jpg")
    blue_mask(root / "segmim" / "segmim_00001.jpg", quality=75, subsampling=0)
    for number in range(2, COUNT + 1):
        for name in ("jpg/image", "segmim/segmim"):
            shutil.copy(root / f"{name}_00001.jpg", root / f"{name}_{number:05d}.jpg")
    write_mat(root, [(number - 1) % 102 + 1 for number in range(1, COUNT + 1)], SETS)
    return root


@pytest.fixture
def copy(whole, tmp_path):
    """One that a test may break."""
    return shutil.copytree(whole, tmp_path / "102flowers")


def problems_of(data):
    with pytest.raises(DataError) as caught:
        _ = data.sources
    return caught.value.problems


def test_the_original_layout(whole):
    data = FlowersData(str(whole), image_size=SIZE)
    assert data.num_classes == 102
    assert data.class_names[:2] == ["0", "1"]
    data.setup("fit")
    counts = {split: len(source) for split, source in data.sources.items()}
    assert counts == {"train": 102, "val": 102, "test": 10}
    assert Counter(r.label for r in data.sources["train"].records) == dict.fromkeys(range(102), 1)
    record = data.sources["test"].records[1]
    assert record.image == whole / "jpg" / "image_00206.jpg"
    assert record.masks == (whole / "segmim" / "segmim_00206.jpg",)
    assert (record.label, record.place) == (1, "setid.mat, tstid 2")
    assert data.selection() == {"cl": "val/acc", "loc": "val/pxap"}


def test_blue_is_background(whole):
    data = FlowersData(str(whole), image_size=SIZE, batch_size=4)
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[FLOWER] = 1
    batch = next(iter(data.val_dataloader()[0]))
    assert batch["has_mask"].all()
    np.testing.assert_array_equal(batch["mask"], np.stack([expected] * 4))
    assert "mask" not in next(iter(data.train_dataloader()))


def test_noise_of_jpeg_is_background_but_not_by_the_published_rule(copy):
    """A flower off the grid: its colours bleed over a few pixels, noise goes further."""
    flower, around = (slice(13, 37), slice(9, 40)), (slice(10, 40), slice(6, 43))
    blue_mask(copy / "segmim" / "segmim_00205.jpg", flower, quality=75)
    record = FlowersData(str(copy)).sources["test"].records[0]
    mask = read_mask(record, (SIZE, SIZE)).astype(bool)
    assert mask[flower].all()
    assert mask.sum() == mask[around].sum()
    pixels = np.asarray(Image.open(record.masks[0])).astype(int)
    published = (pixels - (0, 0, 254)).clip(0).any(axis=-1)
    assert published.sum() > published[around].sum()


@pytest.mark.parametrize(("distance", "foreground"), [(29, False), (30, False), (31, True)])
def test_the_colour_distance(copy, distance, foreground):
    (copy / "segmim" / "segmim_00205.jpg").unlink()
    image = Image.new("RGB", (SIZE, SIZE), (0, distance, 254))
    image.save(copy / "segmim" / "segmim_00205.png")
    record = FlowersData(str(copy)).sources["test"].records[0]
    assert bool(read_mask(record, (SIZE, SIZE)).all()) is foreground
    assert bool(read_mask(record, (SIZE, SIZE)).any()) is foreground


def test_binary_masks(copy):
    folder = copy / "segmim_bin"
    shutil.move(copy / "segmim", folder)
    for path in folder.iterdir():
        path.unlink()
        pixels = np.zeros((SIZE, SIZE), np.uint8)
        pixels[FLOWER], pixels[0, 0] = 255, 3
        Image.fromarray(pixels).save(path.with_suffix(".png"))
    for arguments, pixels in (
        ({}, 16 * 32 + 1),  # as published: noise counts
        ({"foreground": "grey>127.5"}, 16 * 32),
        ({"masks": str(folder), "foreground": "nonzero"}, 16 * 32 + 1),
        ({"masks": str(folder), "foreground": "not blue"}, SIZE**2),
    ):
        record = FlowersData(str(copy), **arguments).sources["val"].records[0]
        assert read_mask(record, (SIZE, SIZE)).sum() == pixels, arguments


def test_masks_are_optional(copy):
    shutil.rmtree(copy / "segmim")
    data = FlowersData(str(copy))
    data.setup("test")
    assert not any(source.has_masks for source in data.sources.values())
    assert data.selection() == {"cl": "val/acc", "loc": None}
    assert problems_of(FlowersData(str(copy), str(copy / "segmim"))) == [
        f"masks: {copy / 'segmim'} does not exist or is no folder"
    ]


def test_images_and_masks_that_are_missing_or_do_not_fit_are_named(copy):
    (copy / "segmim" / "segmim_00205.jpg").unlink()
    (copy / "segmim" / "segmim_00003.jpg").unlink()
    assert problems_of(FlowersData(str(copy))) == [
        f"setid.mat, valid 3: there is no mask segmim_00003 in {copy / 'segmim'}",
        f"setid.mat, tstid 1: there is no mask segmim_00205 in {copy / 'segmim'}",
    ]
    for number in (3, 205):
        Image.new("RGB", (SIZE, 20)).save(copy / "segmim" / f"segmim_{number:05d}.png")
    (copy / "jpg" / "image_00206.jpg").unlink()
    assert problems_of(FlowersData(str(copy))) == [
        "setid.mat, valid 3: mask segmim_00003.png is 48x20 pixels, "
        "its image image_00003.jpg is 48x48",
        "setid.mat, tstid 1: mask segmim_00205.png is 48x20 pixels, "
        "its image image_00205.jpg is 48x48",
        f"setid.mat, tstid 2: image {copy / 'jpg' / 'image_00206.jpg'} does not exist",
    ]
    record = FlowersData(str(copy)).read()["val"][2]
    with pytest.raises(DataError, match="48x20 pixels, its image 48x48"):
        read_mask(record, (SIZE, SIZE))


def test_files_that_cannot_be_read_come_at_once(copy):
    (copy / "setid.mat").unlink()
    (copy / "imagelabels.mat").write_bytes(b"no matrix")
    problems = problems_of(FlowersData(str(copy), "nowhere"))
    assert [problem.split(" (")[0] for problem in problems] == [
        f"{copy / 'imagelabels.mat'} is not a readable MATLAB file",
        f"{copy / 'setid.mat'} does not exist",
        "masks: nowhere does not exist or is no folder",
    ]


def test_numbers_out_of_range_come_at_once(copy):
    labels = [0, 103, *range(3, 103)]
    write_mat(copy, labels, {"trnid": range(1, 103), "valid": [103, 5], "tstid": [0, 6]})
    assert problems_of(FlowersData(str(copy))) == [
        "imagelabels.mat: image 1 has label 0, expected 1 to 102",
        "imagelabels.mat: image 2 has label 103, expected 1 to 102",
        "setid.mat, valid 1: image 103 is not in imagelabels.mat, which has 1 to 102",
        "setid.mat, tstid 1: image 0 is not in imagelabels.mat, which has 1 to 102",
    ]


def test_variables_that_are_no_vectors_of_integers(copy):
    path = copy / "setid.mat"
    savemat(path, {"trnid": np.ones((2, 2)), "valid": [[1, 2.5]], "tstid": [[1.0, np.inf]]})
    savemat(copy / "imagelabels.mat", {"label": [[1]]})
    assert problems_of(FlowersData(str(copy))) == [
        f"{copy / 'imagelabels.mat'}: expected a vector of integers 'labels'",
        f"{path}: expected a vector of integers 'trnid'",
        f"{path}: 'valid' has values that are no integers",
        f"{path}: 'tstid' has values that are no integers",
    ]


def test_an_image_of_two_sets(copy):
    write_mat(copy, [n % 102 + 1 for n in range(COUNT)], SETS | {"tstid": [103, 214, 214]})
    assert problems_of(FlowersData(str(copy))) == [
        "setid.mat, tstid 1: image_00103.jpg stands in splits 'train' and 'test' "
        "(first: setid.mat, trnid 1)",
        "setid.mat, tstid 3: image_00214.jpg stands in 'test' twice (first: setid.mat, tstid 2)",
    ]


def test_one_image_is_a_set_too(copy):
    """MATLAB's vector of one comes as a scalar."""
    write_mat(copy, [n % 102 + 1 for n in range(COUNT)], SETS | {"tstid": [214]})
    (record,) = FlowersData(str(copy)).sources["test"].records
    assert record.image.name == "image_00214.jpg"
