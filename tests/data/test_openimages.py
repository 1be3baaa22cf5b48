import numpy as np
import pytest
from PIL import Image

from wsl_zoo.data import OpenImagesData
from wsl_zoo.data.manifest import DataError

SIZE = (12, 8)  # width, height of the images
MIDS = ["01226z", "0138tl"]


def save_mask(path, size=SIZE, box=None):
    """A mask file whose foreground is `box` (x0, y0, x1, y1), in its own pixels."""
    pixels = np.zeros(size[::-1], np.uint8)
    if box is not None:
        x0, y0, x1, y1 = box
        pixels[y0:y1, x0:x1] = 255
    Image.fromarray(pixels).save(path)


@pytest.fixture
def copy(tmp_path):
    """Of each class one training image, and two of each class in `val` and `test`.

    Image 0 has two instances in masks twice its size and ignored pixels, image 1 has nothing.
    """
    for split in ("train", "val", "test"):
        names = [f"{split}/{mid}/{i}.jpg" for mid in MIDS for i in range(1 + (split != "train"))]
        lines = []
        for name in names:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE).save(path)
            if split != "train":
                stem = name.removesuffix(".jpg")
                if name.endswith("0.jpg"):
                    save_mask(tmp_path / "images" / f"{stem}_a.png", (24, 16), (2, 2, 8, 6))
                    save_mask(tmp_path / "images" / f"{stem}_b.png", (24, 16), (4, 4, 10, 8))
                    save_mask(tmp_path / "images" / f"{stem}_ignore.png", (24, 16), (0, 4, 6, 16))
                    lines.append(f"{name},{stem}_a.png,{stem}_ignore.png")
                    lines.append(f"{name},{stem}_b.png,")
                else:
                    lines.append(f"{name},None,")
        rows = {
            "image_ids": names,
            "class_labels": [f"{name},{MIDS.index(name.split('/')[1])}" for name in names],
            "image_sizes": [],
            "localization": lines,
        }
        (tmp_path / "meta" / split).mkdir(parents=True)
        for name, content in rows.items():
            (tmp_path / "meta" / split / f"{name}.txt").write_text("\n".join(content))
    return tmp_path


def data_of(copy, **kwargs):
    return OpenImagesData(str(copy / "images"), str(copy / "meta"), **kwargs)


def expected_mask():
    """The mask of image 0 at the size of its files."""
    mask = np.zeros((16, 24), np.uint8)
    mask[4:16, 0:6] = 255
    mask[2:6, 2:8] = 1
    mask[4:8, 4:10] = 1
    return mask


def test_masks_are_united_and_the_rest_of_the_ignore_mask_does_not_count(copy):
    data = data_of(copy, image_size=8)
    assert data.class_names == MIDS
    data.setup("fit")
    assert {k: len(v) for k, v in data.sources.items()} == {"train": 2, "val": 4, "test": 4}
    assert data.selection() == {"cl": "val/acc", "loc": "val/pxap"}
    sample = data.sources["val"].load(0, annotations=True)
    assert (sample.mask == expected_mask()).all()
    assert sample.image.shape == (8, 12, 3)
    batch = next(iter(data.val_dataloader()[0]))
    assert batch["label"].tolist() == [0, 0, 1, 1]
    assert batch["has_mask"].all()
    # Two rows and three columns of the mask for each of the network: one step of nearest neighbour.
    assert (batch["mask"][0].numpy() == expected_mask()[::2, ::3]).all()
    assert not batch["mask"][1].any()  # `None`: all background
    assert "mask" not in next(iter(data.train_dataloader()))
    assert data.sources["val"].load(0, annotations=False).mask is None


def test_masks_of_one_image_may_differ_in_size(copy):
    save_mask(copy / "images" / "val" / MIDS[0] / "0_b.png", SIZE, (2, 2, 5, 4))  # the same region
    assert (data_of(copy).sources["val"].load(0, annotations=True).mask == expected_mask()).all()


def test_only_ignored_pixels(copy):
    stem = f"val/{MIDS[0]}/1"
    path = copy / "meta" / "val" / "localization.txt"
    path.write_text(path.read_text().replace(f"{stem}.jpg,None,", f"{stem}.jpg,,{stem}_i.png"))
    save_mask(copy / "images" / f"{stem}_i.png", (24, 16), (0, 0, 2, 4))
    mask = data_of(copy).sources["val"].load(1, annotations=True).mask
    assert mask.shape == (8, 12)
    assert (mask[:2, :1] == 255).all()
    assert np.count_nonzero(mask) == 2


def test_problems_of_masks_come_at_once(copy):
    val = copy / "images" / "val" / MIDS[0]
    test = copy / "images" / "test" / MIDS[1]
    (val / "0_ignore.png").unlink()
    save_mask(val / "0_b.png", (24, 24))
    (test / "0_a.png").write_text("no image")
    (test / "1.jpg").unlink()
    with pytest.raises(DataError, match=f"^OpenImages {copy / 'images'}: 4 problems") as caught:
        data_of(copy).setup("fit")
    missing, aspect, ignore, broken = caught.value.problems
    assert missing == f"test/image_ids.txt, line 4: image {test / '1.jpg'} does not exist"
    assert aspect == (
        "val/image_ids.txt, line 1: mask 0_b.png of 24x24 pixels has not the aspect of its image "
        "0.jpg of 12x8"
    )
    assert ignore == f"val/image_ids.txt, line 1: mask {val / '0_ignore.png'} does not exist"
    assert broken.startswith(f"test/image_ids.txt, line 3: {test / '0_a.png'} is not a readable")
    with pytest.raises(DataError, match="2 problems") as caught:
        data_of(copy, verify="none").setup("fit")
    assert caught.value.problems == [missing, ignore]


@pytest.mark.parametrize("verify", ["header", "decode"])
def test_a_mask_that_breaks_off_is_found_by_decoding(copy, verify):
    path = copy / "images" / "val" / MIDS[0] / "0_a.png"
    Image.effect_noise((240, 160), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    if verify == "header":
        data_of(copy, verify=verify).setup("fit")
    else:
        with pytest.raises(DataError, match=r"0_a\.png is not a readable image"):
            data_of(copy, verify=verify).setup("fit")


@pytest.mark.parametrize(
    ("mask", "fits"), [((1600, 1068), True), ((1600, 1069), True), ((1600, 1100), False)]
)
def test_sides_are_rounded(copy, mask, fits):
    """Open Images: 1024 x 684 pixels and masks of 1600 x 1068, whose aspects differ by rounding."""
    Image.new("RGB", (1024, 684)).save(copy / "images" / "val" / MIDS[0] / "0.jpg")
    for name in ("0_a.png", "0_b.png", "0_ignore.png"):
        save_mask(copy / "images" / "val" / MIDS[0] / name, mask)
    problems = data_of(copy).file_problems(data_of(copy).read_splits())
    assert len(problems) == (0 if fits else 3)


def test_problems_of_the_lists_come_with_those_of_the_files(copy):
    (copy / "images" / "train" / MIDS[0] / "0.jpg").unlink()
    path = copy / "meta" / "test" / "localization.txt"
    path.write_text(path.read_text() + "\ntest/x.jpg,1,2,3,4")
    with pytest.raises(DataError, match=r"^Metadata .*: 2 problems") as caught:
        data_of(copy).setup("fit")
    first, second = caught.value.problems  # and none about masks twice the size of their images
    assert first.endswith("line 7: expected path,mask,ignore, found 'test/x.jpg,1,2,3,4'")
    assert second.startswith("train/image_ids.txt, line 1: image ")


def test_the_published_lists(real_data, tmp_path):
    folder = real_data / "splits" / "wsol" / "OpenImages"
    if not folder.is_dir():
        pytest.skip(f"the published split files are not there: {folder}")
    data = OpenImagesData(str(tmp_path), str(folder))
    assert data.num_classes == 100
    assert data.class_names[:2] == MIDS
    splits = data.read_splits()
    assert {k: len(v) for k, v in splits.items()} == {"train": 29819, "val": 2500, "test": 5000}
    for split, each in (("val", 25), ("test", 50)):
        assert sorted(r.label for r in splits[split]) == [
            k for k in range(100) for _ in range(each)
        ]
        assert all(r.masks and r.ignore for r in splits[split])
    assert sum(len(r.masks) for r in splits["val"]) == 3854
    assert not any(r.has_mask for r in splits["train"])
    sampled = OpenImagesData(str(tmp_path), str(folder), num_val_sample_per_class=5).read_splits()
    assert sorted(r.label for r in sampled["val"]) == [k for k in range(100) for _ in range(5)]
