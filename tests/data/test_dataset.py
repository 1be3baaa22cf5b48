import numpy as np
import pytest
import torch
from PIL import Image

from wsl_zoo.data.dataset import RecordSource, ZooDataset, collate, stable_seed
from wsl_zoo.data.manifest import DataError, Record
from wsl_zoo.data.samplers import Key
from wsl_zoo.data.texts import Texts
from wsl_zoo.data.transforms import Augment, resize_image, resize_mask

SIZE = (16, 20)


@pytest.fixture
def records(tmp_path):
    """Four noise images of different sizes: mask and box, box only, no foreground, nothing."""
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 256, (24 + i, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    Image.fromarray(rng.integers(0, 2, (24, 40), dtype=np.uint8)).save(tmp_path / "m.png")
    boxes = ((0.0, 0.0, 40.0, 12.0), (10.0, 6.0, 30.0, 12.5))
    return [
        Record(tmp_path / "0.png", 2, (tmp_path / "m.png",), boxes=boxes, group="p1"),
        Record(tmp_path / "1.png", 0, boxes=((4.0, 5.0, 20.0, 25.0),), group="p2"),
        Record(tmp_path / "2.png", 1, empty_mask=True, boxes=()),
        Record(tmp_path / "3.png", 1),
    ]


def test_stable_seed_is_stable():
    """Fixed values: a change would give every trained model other augmentations."""
    assert stable_seed(0, 0, 0) == 2706114589
    assert stable_seed(1, 2, 3) == stable_seed(np.int64(1), torch.tensor(2), np.uint8(3))
    seeds = {stable_seed(s, e, i) for s in range(5) for e in range(10) for i in range(100)}
    assert len(seeds) == 5000
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_batch_has_the_fields_types_and_shapes_of_the_contract(records):
    dataset = ZooDataset(RecordSource(records), SIZE)
    assert len(dataset) == 4
    keys = [Key(5, 0, True), Key(5, 2, True), Key(5, 3, True), Key(5, 1, False)]
    batch = collate([dataset[key] for key in keys])
    tensors = {
        "index": (torch.int64, (4,)),
        "valid": (torch.bool, (4,)),
        "label": (torch.int64, (4,)),
        "image": (torch.uint8, (4, 3, *SIZE)),
        "mask": (torch.uint8, (4, *SIZE)),
        "has_mask": (torch.bool, (4,)),
        "size": (torch.int64, (4, 2)),
    }
    for name, (dtype, shape) in tensors.items():
        assert (batch[name].dtype, tuple(batch[name].shape)) == (dtype, shape), name
    assert set(batch) == {*tensors, "boxes", "group", "path"}
    assert batch["index"].tolist() == [0, 2, 3, 1]
    assert batch["valid"].tolist() == [True, True, True, False]
    assert batch["label"].tolist() == [2, 1, 1, 0]
    assert batch["size"].tolist() == [[24, 40], [26, 40], [27, 40], [25, 40]]
    assert batch["group"] == ["p1", "", "", "p2"]
    assert batch["path"] == [str(records[i].image) for i in (0, 2, 3, 1)]
    assert all(boxes.dtype == torch.float64 for boxes in batch["boxes"])
    assert [tuple(boxes.shape) for boxes in batch["boxes"]] == [(2, 4), (0, 4), (0, 4), (1, 4)]


def test_values_are_the_files_resized(records):
    dataset = ZooDataset(RecordSource(records), SIZE)
    item = dataset[0]
    pixels = np.asarray(Image.open(records[0].image))
    assert (item["image"].numpy() == resize_image(pixels, SIZE).transpose(2, 0, 1)).all()
    mask = np.asarray(Image.open(records[0].masks[0]))
    assert (item["mask"].numpy() == resize_mask(mask, SIZE)).all()
    assert item["boxes"].tolist() == [[0, 0, 20, 8], [5, 4, 15, 12.5 * 16 / 24]]
    assert item["valid"] is True
    assert dataset[1]["boxes"].tolist() == [[2, 3.2, 10, 16]]


def test_an_image_without_a_mask_is_ignored_and_one_without_foreground_is_not(records):
    dataset = ZooDataset(RecordSource(records), SIZE)
    batch = collate([dataset[i] for i in range(4)])
    assert batch["has_mask"].tolist() == [True, False, True, False]
    assert set(batch["mask"][0].unique().tolist()) == {0, 1}
    assert (batch["mask"][[1, 3]] == 255).all()
    assert (batch["mask"][2] == 0).all()


def test_fields_that_no_image_has_are_absent(records):
    without = {"mask", "has_mask"}
    assert not without & set(ZooDataset(RecordSource(records[1:2]), SIZE)[0])
    assert not {*without, "boxes"} & set(ZooDataset(RecordSource(records[3:]), SIZE)[0])
    for dataset in (
        ZooDataset(RecordSource(records, annotated=False), SIZE),
        ZooDataset(RecordSource(records), SIZE, annotations=False),
    ):
        assert not {*without, "boxes"} & set(dataset[0])
        assert not dataset.has_masks
        assert not dataset.has_boxes


def test_hidden_annotations_are_not_even_opened(records):
    records[0].masks[0].write_text("no image")
    hidden = ZooDataset(RecordSource(records), SIZE, annotations=False)
    assert hidden[0]["label"] == 2
    with pytest.raises(DataError, match=r"m\.png is not a readable image"):
        ZooDataset(RecordSource(records), SIZE)[0]


def test_annotations_do_not_change_what_training_sees(records):
    augment = Augment(12, 0.5, 0.5, color_jitter=[0.5, 0.5, 0.5, 0.05])
    with_masks = ZooDataset(RecordSource(records), SIZE, augment)
    without = ZooDataset(RecordSource(records), SIZE, augment, annotations=False)
    for epoch in range(3):
        for i in range(4):
            key = Key(epoch, i, True)
            assert torch.equal(with_masks[key]["image"], without[key]["image"])


def test_augmentation_is_a_function_of_seed_epoch_and_index(records):
    same = [records[0]] * 4
    augment = Augment(12, 0.5, 0.5, color_jitter=[0.5, 0.5, 0.5, 0.05])

    def images(seed, order):
        dataset = ZooDataset(RecordSource(same), SIZE, augment, seed=seed)
        return {(e, i): dataset[Key(e, i, True)]["image"].numpy().tobytes() for e, i in order}

    order = [(e, i) for e in range(3) for i in range(4)]
    first = images(0, order)
    assert images(0, order[::-1]) == first
    assert len(set(first.values())) == 12  # other at every epoch and index, of one image
    other = images(1, order)
    assert not set(first.values()) & set(other.values())
    dataset = ZooDataset(RecordSource(same), SIZE, augment)
    assert dataset[2]["image"].numpy().tobytes() == first[0, 2]  # a plain index is of epoch 0


class Counted(RecordSource):
    """Counts what is read."""

    reads = 0

    def load(self, index, *, annotations):
        self.reads += 1
        return super().load(index, annotations=annotations)


@pytest.mark.parametrize(
    "augment", [None, Augment(None, 0.5, 0.5, color_jitter=[0.5, 0.5, 0.5, 0])]
)
def test_the_cache_saves_reading_and_changes_nothing(records, augment):
    source = Counted(records)
    cached = ZooDataset(source, SIZE, augment, cache=True)
    plain = ZooDataset(RecordSource(records), SIZE, augment)
    for epoch in range(4):
        for i in range(4):
            a, b = cached[Key(epoch, i, True)], plain[Key(epoch, i, True)]
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["mask"], b["mask"])
            assert torch.equal(a["boxes"], b["boxes"])
    assert source.reads == 4


def test_an_augmentation_may_change_the_sample_it_is_given(records):
    def darken(sample, seed):
        sample.image = sample.image // 2
        return sample

    dataset = ZooDataset(RecordSource(records), SIZE, darken, cache=True)
    assert torch.equal(dataset[0]["image"], dataset[0]["image"])


def test_reading_stops_at_the_end(records):
    dataset = ZooDataset(RecordSource(records), SIZE)
    assert len(list(dataset)) == 4
    with pytest.raises(IndexError):
        dataset[4]


def test_some_samples_only_keep_their_index(records):
    source = RecordSource(records)
    whole = ZooDataset(source, (8, 8))
    part = ZooDataset(source, (8, 8), only=[2, 0])
    assert len(part) == 2
    for position, index in ((0, 2), (1, 0)):
        assert part[position]["index"] == index
        assert torch.equal(part[position]["image"], whole[index]["image"])


def test_texts_follow_their_images(records):
    source = RecordSource(records)
    features = torch.arange(6.0).view(2, 3)
    texts = Texts(features, torch.tensor([1, 0, 1, 1][: len(source)]))
    dataset = ZooDataset(source, (8, 8), texts=texts, only=[2, 1])
    batch = dataset.collate([dataset[0], dataset[1]])
    assert batch["index"].tolist() == [2, 1]
    assert batch["report"].tolist() == [1, 0]
    assert torch.equal(batch["text"], features[[1, 0]])
    assert "text" not in ZooDataset(source, (8, 8))[0]
    with pytest.raises(ValueError, match=f"1 texts for {len(source)} images"):
        ZooDataset(source, (8, 8), texts=Texts(features, torch.tensor([0])))
