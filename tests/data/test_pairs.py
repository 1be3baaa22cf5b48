"""Pairs from files to batches: validation, crops by (seed, epoch, item), and what a device gets."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.pair_files import FilePairs, PairRecord
from wsl_zoo.data.pairs import PairDataModule, PairDataset, collate_pairs
from wsl_zoo.data.pixels import RandomCrop, downsample, write_pixels
from wsl_zoo.data.samplers import Key

SIDE = 64


def noise(*shape, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def enlarged(array, scale):
    return array.repeat(scale, axis=-2).repeat(scale, axis=-1)


def write(folder, name, pixels):
    return write_pixels(folder / name, pixels)


def pair(folder, name, size=SIDE, scale=2, dtype=np.uint8, channels=1, **fields):
    """Files of a random image and its nearest-neighbour enlargement."""
    low = noise(channels, size // scale, size // scale, dtype=dtype, seed=sum(map(ord, name)))
    image = write(folder, f"{name}_low.tif", low)
    target = write(folder, f"{name}_high.tif", enlarged(low, scale))
    return PairRecord(image, target, place=f"list.txt, line {name}", **fields)


class Pairs(PairDataModule):
    def __init__(self, splits, **kwargs):
        super().__init__(**{"crop_size": 16} | kwargs)
        self.splits = splits

    def read(self):
        return self.splits


@pytest.fixture
def splits(tmp_path):
    names = {"train": "abcde", "val": "fg", "test": "hij"}
    return {
        split: [pair(tmp_path, name, group=f"group {name}") for name in own]
        for split, own in names.items()
    }


def problems(data):
    with pytest.raises(DataError) as found:
        _ = data.sources
    return found.value.problems


# Batches


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_aligned_crops(splits, workers):
    data = Pairs(splits, batch_size=2, num_workers=workers, seed=4)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(batch["index"]) for batch in batches] == [2, 2, 1]
    for batch in batches[:2]:
        assert batch["image"].dtype == batch["target"].dtype == torch.uint8
        assert batch["image"].shape == (2, 1, 8, 8)
        assert torch.equal(
            batch["target"], batch["image"].repeat_interleave(2, -1).repeat_interleave(2, -2)
        )
        assert batch["levels"].tolist() == [255, 255]
        assert batch["valid"].tolist() == [True, True]
        assert batch["size"].tolist() == [[32, 32]] * 2  # of the whole low-resolution image
        assert batch["index"].dtype == batch["levels"].dtype == batch["size"].dtype == torch.int64
        records = [splits["train"][i] for i in batch["index"]]
        assert batch["path"] == [str(record.image) for record in records]
        assert batch["group"] == [record.group for record in records]
    assert sorted(i for batch in batches for i in batch["index"].tolist()) == [0, 1, 2, 3, 4]


def test_a_device_gets_floats_between_0_and_1(splits):
    data = Pairs(splits, batch_size=2)
    batch = next(iter(data.train_dataloader()))
    before = {key: batch[key].clone() for key in ("image", "target")}
    after = data.on_after_batch_transfer(batch, 0)
    for key, pixels in before.items():
        assert after[key].dtype == torch.float32
        assert after[key].min() >= 0
        assert after[key].max() <= 1
        assert torch.equal(after[key], pixels.float() / 255)
    again = data.on_after_batch_transfer(after, 0)
    assert torch.equal(again["image"], before["image"].float() / 255)


def test_16_bits_travel_as_16_bits(tmp_path):
    records = [pair(tmp_path, name, dtype=np.uint16) for name in "ab"]
    data = Pairs({"train": records}, batch_size=2, dihedral=False, crop_size=None)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].dtype == batch["target"].dtype == torch.uint16
    assert batch["levels"].tolist() == [65535] * 2
    after = data.on_after_batch_transfer(batch, 0)
    for row, index in enumerate(batch["index"]):
        image, target = data.sources["train"].load(int(index))
        assert image.max() > 255
        np.testing.assert_array_equal(
            after["image"][row].numpy(), image.astype(np.float32) / np.float32(65535)
        )
        np.testing.assert_array_equal(
            after["target"][row].numpy(), target.astype(np.float32) / np.float32(65535)
        )


def test_8_and_16_bits_may_share_a_batch(tmp_path):
    records = [pair(tmp_path, "a"), pair(tmp_path, "b", dtype=np.uint16)]
    data = Pairs({"val": records}, eval_batch_size=2)
    (batch,) = data.val_dataloader()[0]
    assert batch["levels"].tolist() == [255, 65535]
    after = data.on_after_batch_transfer(batch, 0)
    for row, levels in enumerate((255, 65535)):
        image, _ = data.sources["val"].load(row)
        expected = image.astype(np.float32) / np.float32(levels)
        np.testing.assert_array_equal(after["image"][row].numpy(), expected)
        assert after["image"][row].max() > 0.9


def test_evaluation_sees_whole_pairs_in_order(splits):
    data = Pairs(splits, seed=3)
    for loader, split in ((data.val_dataloader()[0], "val"), (data.test_dataloader()[0], "test")):
        batches = list(loader)
        assert [batch["index"].item() for batch in batches] == list(range(len(splits[split])))
        for i, batch in enumerate(batches):
            image, target = data.sources[split].load(i)
            np.testing.assert_array_equal(batch["image"][0].numpy(), image)
            np.testing.assert_array_equal(batch["target"][0].numpy(), target)


def test_evaluation_on_the_central_crop(splits):
    data = Pairs(splits, eval_crop=16, eval_batch_size=3)
    (batch,) = data.test_dataloader()[0]
    image, target = data.sources["test"].load(1)
    np.testing.assert_array_equal(batch["image"][1].numpy(), image[:, 12:20, 12:20])
    np.testing.assert_array_equal(batch["target"][1].numpy(), target[:, 24:40, 24:40])
    assert batch["size"].tolist() == [[32, 32]] * 3


def test_whole_images_of_chosen_training_pairs(splits):
    data = Pairs(splits, crops_per_image=3, eval_crop=16)
    batches = list(data.whole_images("train", only=[4, 1]))
    assert [batch["index"].item() for batch in batches] == [4, 1]
    image, _ = data.sources["train"].load(4)
    np.testing.assert_array_equal(batches[0]["image"][0].numpy(), image)
    assert len(data.whole_images("test")) == 3


def test_unequal_sizes_do_not_share_a_batch(tmp_path):
    records = [pair(tmp_path, "a"), pair(tmp_path, "b", size=32)]
    data = Pairs({"val": records}, eval_batch_size=2)
    message = r"32x32 \(\S+a_low.tif\), 16x16 \(\S+b_low.tif\); use eval_batch_size=1"
    with pytest.raises(DataError, match=message):
        next(iter(data.val_dataloader()[0]))
    data = Pairs({"val": records})
    assert [batch["target"].shape[-1] for batch in data.val_dataloader()[0]] == [64, 32]


def test_several_crops_of_an_image_differ(splits):
    data = Pairs(splits, crops_per_image=4, batch_size=20)
    dataset = data.dataset("train")
    assert len(dataset) == 20
    (batch,) = data.train_dataloader()
    assert sorted(batch["index"].tolist()) == list(range(20))
    for row, item in enumerate(batch["index"].tolist()):
        assert batch["path"][row] == str(splits["train"][item // 4].image)
    crops = {dataset[Key(0, item, True)]["image"].numpy().tobytes() for item in range(4)}
    assert len(crops) == 4


# Randomness


def crops_of(data, epoch, workers=0, keys=range(5)):
    dataset = data.dataset("train")
    sampler = [Key(epoch, i, True) for i in keys]
    loader = DataLoader(
        dataset, 2, sampler=sampler, num_workers=workers, collate_fn=dataset.collate
    )
    return {
        int(index): (image, target)
        for batch in loader
        for index, image, target in zip(
            batch["index"], batch["image"], batch["target"], strict=True
        )
    }


def test_a_crop_is_a_function_of_seed_epoch_and_item(splits):
    settings = {"crop_size": 16, "seed": 7}
    first = crops_of(Pairs(splits, **settings), 2)
    for other in (
        crops_of(Pairs(splits, **settings), 2, workers=2),
        crops_of(Pairs(splits, **settings), 2, keys=[4, 2, 0, 3, 1]),
        crops_of(Pairs(splits, cache=True, **settings), 2),
    ):
        for index, crops in first.items():
            assert all(map(torch.equal, crops, other[index]))
    for other in (
        crops_of(Pairs(splits, **settings), 3),
        crops_of(Pairs(splits, **settings | {"seed": 8}), 2),
    ):
        assert sum(torch.equal(first[i][0], other[i][0]) for i in range(5)) <= 1


def test_loaders_of_two_epochs_give_other_orders_and_crops(splits):
    data = Pairs(splits, batch_size=5)
    loader = data.train_dataloader()
    (first,) = loader
    (again,) = loader
    assert torch.equal(first["index"], again["index"])
    assert torch.equal(first["image"], again["image"])
    loader.sampler.set_epoch(1)
    (second,) = loader
    by_index = [dict(zip(b["index"].tolist(), b["image"], strict=True)) for b in (first, second)]
    assert sum(torch.equal(by_index[0][i], by_index[1][i]) for i in range(5)) <= 1


def test_a_cache_reads_each_pair_once(splits, monkeypatch):
    source = FilePairs(splits["train"], 2)
    read = []
    load = source.load
    monkeypatch.setattr(source, "load", lambda i: read.append(i) or load(i))
    for cache, expected in ((True, [0, 1]), (False, [0, 1, 0, 1, 1])):
        read.clear()
        dataset = PairDataset(source, RandomCrop(2, 16), repeats=2, cache=cache)
        items = [dataset[Key(epoch, i, True)] for epoch, i in ((0, 0), (0, 2), (1, 1), (1, 3))]
        items.append(dataset[Key(1, 3, True)])
        assert read == expected
        assert torch.equal(items[-1]["image"], items[-2]["image"])


def test_padding_is_told_apart_and_plain_indices_are_of_epoch_0(splits):
    dataset = Pairs(splits).dataset("train")
    assert dataset[Key(0, 1, False)]["valid"] is False
    assert torch.equal(dataset[1]["image"], dataset[Key(0, 1, True)]["image"])
    assert dataset[1]["valid"] is True
    assert (dataset.has_masks, dataset.has_boxes, dataset.annotations) == (False, False, False)


def test_data_sets_travel_to_workers_that_are_spawned(splits):
    data = Pairs(splits, eval_crop=16)
    for split in splits:
        dataset = pickle.loads(pickle.dumps(data.dataset(split)))
        assert torch.equal(dataset[1]["target"], data.dataset(split)[1]["target"])


# What is missing is made


@pytest.mark.parametrize("how", ["area", "bicubic"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_missing_images_are_made_from_the_target(tmp_path, how, dtype):
    high = noise(1, 18, 23, dtype=dtype)
    target = write(tmp_path, "t.tif", high)
    data = Pairs(
        {"val": [PairRecord(None, target, group="g")]}, scale=4, degradation=how, crop_size=None
    )
    item = data.dataset("val")[0]
    np.testing.assert_array_equal(item["target"].numpy(), high[:, :16, :20])
    np.testing.assert_array_equal(item["image"].numpy(), downsample(high[:, :16, :20], 4, how))
    assert item["path"] == str(target)
    assert item["size"].tolist() == [4, 5]


def test_missing_images_are_made_from_another_scan(tmp_path):
    clean, noisy = noise(1, 16, 16), noise(1, 16, 16, seed=1)
    paths = write(tmp_path, "clean.png", clean), write(tmp_path, "noisy.png", noisy)
    record = PairRecord(None, paths[0], made_from=paths[1])
    item = Pairs({"val": [record]}, crop_size=None).dataset("val")[0]
    np.testing.assert_array_equal(item["image"].numpy(), downsample(noisy, 2))
    np.testing.assert_array_equal(item["target"].numpy(), clean)
    assert item["path"] == str(paths[1])


def test_targets_are_cut_to_a_multiple_of_the_scale(tmp_path):
    low, high = noise(1, 5, 6), noise(1, 21, 27)
    record = PairRecord(write(tmp_path, "l.tif", low), write(tmp_path, "h.tif", high))
    item = Pairs({"val": [record]}, scale=4, crop_size=None).dataset("val")[0]
    np.testing.assert_array_equal(item["image"].numpy(), low)
    np.testing.assert_array_equal(item["target"].numpy(), high[:, :20, :24])


def test_colours(tmp_path):
    data = Pairs({"val": [pair(tmp_path, "a", channels=3)]}, channels=3)
    assert data.in_chans == 3
    item = data.dataset("val")[0]
    assert item["image"].shape == (3, 32, 32)
    grey = Pairs(data.splits).dataset("val")[0]
    assert grey["image"].shape == (1, 32, 32)


# Validation


def test_all_problems_are_reported_at_once_with_their_places(tmp_path):
    good = pair(tmp_path, "good")
    image, target = good.image, good.target

    def bad(line, image=image, target=target, **fields):
        return PairRecord(image, target, place=f"line {line}", **fields)

    (tmp_path / "text.tif").write_text("no image")
    deep = write(tmp_path, "deep.tif", noise(1, 64, 64, dtype=np.uint16))
    small = write(tmp_path, "small.tif", noise(1, 8, 8))
    odd = write(tmp_path, "odd.tif", noise(1, 60, 66))
    records = [
        good,
        bad(2, image=tmp_path / "none.tif", target=tmp_path / "no.tif"),
        bad(3, target=tmp_path / "text.tif"),
        bad(4, target=deep),
        bad(5, target=small),
        bad(6, target=odd),
        bad(7, target=None),
        bad(8),
        bad(9, image=None, made_from=small),
    ]
    found = problems(Pairs({"train": records, "val": [bad(10, image=None)], "test": []}))
    names = ("none.tif", "no.tif", "text.tif")
    missing, absent, text = (str(tmp_path / name) for name in names)
    assert found == [
        "split 'test' is empty",
        "line 8: the pair stands in 'train' twice (first: list.txt, line good)",
        "line 10: good_high.tif stands in splits 'train' and 'val' (first: list.txt, line good)",
        f"line 2: image {missing} does not exist",
        f"line 2: target {absent} does not exist",
        f"line 3: {text} is not a readable image",
        "line 4: image good_low.tif has uint8 pixels, its target deep.tif uint16",
        "line 5: target small.tif is 8x8 pixels, expected 16x16 or more",
        "line 6: image good_low.tif is 32x32 pixels, its target odd.tif 66x60; at scale 2 expected "
        "64x64",
        "line 7: there is no target",
        "line 9: image small.tif is 4x4 pixels, its target good_high.tif 64x64; at scale 2 "
        "expected 8x8",
    ]


def test_a_message_names_the_data_set(splits):
    splits["val"] = []
    with pytest.raises(DataError, match=r"^Pairs: 1 problem\n  - split 'val' is empty$"):
        _ = Pairs(splits).sources


def test_splits_may_not_share_an_image_but_a_target_may_have_several(tmp_path):
    a, b = pair(tmp_path, "a"), pair(tmp_path, "b")
    several = [a, PairRecord(b.image, a.target), PairRecord(a.image, b.target)]
    assert len(Pairs({"train": several}).sources["train"]) == 3
    found = problems(Pairs({"train": [a], "test": [PairRecord(a.image, b.target)]}))
    assert found == [
        f"{a.image}: a_low.tif stands in splits 'train' and 'test' (first: list.txt, line a)"
    ]


@pytest.mark.parametrize(("verify", "seen"), [("none", 0), ("header", 1), ("decode", 2)])
def test_files_are_checked_as_asked(tmp_path, verify, seen):
    """A wrong size is in the header; a wrong type of pixels is found by decoding."""
    a, b = pair(tmp_path, "a"), pair(tmp_path, "b", size=32)
    deep = write(tmp_path, "deep.tif", noise(1, 64, 64, dtype=np.uint16))
    records = [PairRecord(a.image, b.target), PairRecord(a.image, deep)]
    data = Pairs({"val": records}, verify=verify)
    if seen:
        assert len(problems(data)) == seen
    else:
        for i, message in enumerate(("at scale 2 expected 64x64", "its target deep.tif uint16")):
            with pytest.raises(DataError, match=message):
                data.dataset("val")[i]
    gone = Pairs({"val": [PairRecord(tmp_path / "x.tif", a.target)]}, verify=verify)
    assert len(problems(gone)) == 1


def test_a_header_that_pillow_does_not_know_is_read_by_opencv(tmp_path):
    record = pair(tmp_path, "a", dtype=np.uint16, channels=3)
    data = Pairs({"val": [record]}, verify="header", channels=3)
    assert data.dataset("val")[0]["image"].dtype == torch.uint16


def test_crops_must_fit(tmp_path):
    records = [pair(tmp_path, "a", size=32)]
    message = "target a_high.tif is 32x32 pixels, expected 64x64 or more"
    assert message in problems(Pairs({"train": records}, crop_size=64))[0]
    assert message in problems(Pairs({"val": records}, eval_crop=64))[0]
    assert Pairs({"val": records}, crop_size=64).sources
    assert Pairs({"train": records}, eval_crop=64).sources
    unseen = Pairs({"train": records}, crop_size=64, verify="none").dataset("train")
    with pytest.raises(ValueError, match="crop_size=64 does not fit into 32x32 pixels"):
        _ = unseen[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 3}, "scale=3 must be one of 2, 4, 8"),
        ({"sampling": "cells"}, "sampling='cells' must be one of roi, uniform"),
        ({"degradation": "blur"}, "degradation='blur' must be one of area, bicubic"),
        ({"channels": 2}, "channels=2 must be one of 1, 3"),
        ({"scale": 4, "crop_size": 18}, "crop_size=18 must be a multiple of scale=4"),
        ({"crop_size": 0}, "crop_size=0 must be a multiple of scale=2"),
        ({"scale": 8, "eval_crop": 20}, "eval_crop=20 must be a multiple of scale=8"),
        ({"crops_per_image": 0}, "crops_per_image=0 must be 1 or more"),
        ({"crops_per_image": 2, "crop_size": None}, "above 1 with a crop_size"),
        ({"roi_threshold": 256}, r"roi_threshold=256 must be a grey level in \[0, 255\]"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Pairs({}, **settings)


def test_stages_need_their_splits(splits):
    data = Pairs({"test": splits["test"]})
    data.setup("test")
    with pytest.raises(DataError, match="there is no 'train' split; found: test"):
        data.setup("fit")


# The module


def test_what_a_module_says_of_itself(splits):
    data = Pairs(splits, scale=2)
    assert (data.scale, data.in_chans, data.class_names, data.num_classes) == (2, 1, [], 0)
    assert data.selection() == {"cl": "val/psnr", "loc": None}
    assert data.preprocessing() == {"image_size": None}
    assert Pairs({"test": splits["test"]}).selection() == {"cl": None, "loc": None}
    assert Pairs({"val_b": splits["val"]}).selection()["cl"] == "val_b/psnr"
    assert data.split_names("test") == ["test"]
    assert (data.batch_size, data.eval_batch_size) == (8, 1)


def test_other_data_have_no_scale():
    from wsl_zoo.data import SyntheticData

    assert SyntheticData.scale is None


@pytest.mark.parametrize("single", [False, True])
def test_images_to_predict_on(tmp_path, splits, single):
    folder = tmp_path / "new"
    shapes = {"a.tif": (5, 7), "b.png": (6, 4)}
    for name, shape in shapes.items():
        write(folder, name, noise(1, *shape))
    where = folder / "b.png" if single else folder
    data = Pairs(splits, predict_images=str(where), eval_crop=16)
    data.setup("predict")
    (loader,) = data.predict_dataloader()
    batches = list(loader)
    expected = ["b.png"] if single else ["a.tif", "b.png"]
    assert [batch["path"] for batch in batches] == [[str(folder / name)] for name in expected]
    for batch, name in zip(batches, expected, strict=True):
        assert batch["image"].shape == (1, 1, *shapes[name])
        assert batch["size"].tolist() == [list(shapes[name])]
        assert "target" not in batch
        after = data.on_after_batch_transfer(batch, 0)
        assert after["image"].dtype == torch.float32


def test_without_images_prediction_is_on_the_test_splits(splits):
    data = Pairs(splits)
    (loader,) = data.predict_dataloader()
    assert [batch["index"].item() for batch in loader] == [0, 1, 2]


def test_images_to_predict_on_are_checked(tmp_path):
    write(tmp_path, "a.tif", noise(1, 4, 4))
    (tmp_path / "b.tif").write_text("no image")
    (tmp_path / "c.png").write_text("neither")
    data = Pairs({}, predict_images=str(tmp_path))
    with pytest.raises(DataError, match="2 problems") as found:
        data.setup("predict")
    assert [problem.rpartition("/")[2] for problem in found.value.problems] == [
        "b.tif is not a readable image",
        "c.png is not a readable image",
    ]
    with pytest.raises(DataError, match="it does not exist or is no folder"):
        Pairs({}, predict_images=str(tmp_path / "none")).setup("predict")


def test_collation_keeps_the_items(splits):
    dataset = Pairs(splits).dataset("val")
    items = [dataset[0], dataset[1]]
    before = [item["image"].dtype for item in items]
    collate_pairs(items)
    assert [item["image"].dtype for item in items] == before
