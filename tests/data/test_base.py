from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from wsl_zoo.data.base import ZooDataModule, find_images
from wsl_zoo.data.manifest import DataError, Record
from wsl_zoo.data.samplers import SeededSampler
from wsl_zoo.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Sample, normalize

JITTER = [0.4, 0.4, 0.4, 0.1]


class Tiny(ZooDataModule):
    """A data set of given splits; `valcl` shows no masks and shares images with `valpx`."""

    unannotated = frozenset({"valcl"})
    shared = (frozenset({"valcl", "valpx"}),)
    class_names = ("cat", "dog")

    def __init__(self, splits, **kwargs):
        super().__init__(**kwargs)
        self.splits = splits
        self.reads = 0

    def read(self):
        self.reads += 1
        return self.splits


@pytest.fixture
def splits(tmp_path):
    rng = np.random.default_rng(0)
    found = {}
    for name, count in (("train", 11), ("valcl", 4), ("test", 5)):
        found[name] = []
        for i in range(count):
            path, mask = tmp_path / f"{name}_{i}.png", tmp_path / f"{name}_{i}_mask.png"
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
            Image.fromarray(rng.integers(0, 2, (20, 24), dtype=np.uint8)).save(mask)
            found[name].append(Record(path, i % 2, (mask,), boxes=((2.0, 3.0, 12.0, 18.0),)))
    found["valpx"] = found["valcl"][:2]
    return found


def fake_trainer(needs=(), **values):
    return SimpleNamespace(lightning_module=SimpleNamespace(needs=frozenset(needs), **values))


def same(a, b):
    """Whether two batches are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def epochs_of(splits, workers, count=2, **kwargs):
    data = Tiny(
        splits, batch_size=4, image_size=12, train_resize=16, vflip=0.5, color_jitter=JITTER,
        num_workers=workers, **kwargs,
    )  # fmt: skip
    data.setup("fit")
    loader = data.train_dataloader()
    found = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        found.append(list(loader))
    return found


def test_batches_are_the_same_for_any_number_of_workers(splits):
    alone, shared = epochs_of(splits, 0), epochs_of(splits, 2)
    assert [len(batch["index"]) for batch in alone[0]] == [4, 4, 3]
    assert same(alone, shared)
    assert same(alone, epochs_of(splits, 2, cache=True))
    orders = [[i for batch in epoch for i in batch["index"].tolist()] for epoch in alone]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert orders[0] != orders[1]


def test_epochs_and_seeds_differ(splits):
    def images(epoch):
        return {
            i: image.numpy().tobytes()
            for batch in epoch
            for i, image in zip(batch["index"].tolist(), batch["image"], strict=True)
        }

    first, second = map(images, epochs_of(splits, 0))
    other = images(epochs_of(splits, 0, count=1, seed=1)[0])
    for i in range(11):
        assert len({first[i], second[i], other[i]}) == 3
    assert images(epochs_of(splits, 0, count=1, seed=0)[0]) == first


def test_every_process_has_its_part(splits):
    data = Tiny(splits, batch_size=4, image_size=12)
    seen = []
    for rank in range(2):
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, lightning_module=None)
        for batch in data.test_dataloader()[0]:
            seen += zip(batch["index"].tolist(), batch["valid"].tolist(), strict=True)
    assert sorted(i for i, valid in seen if valid) == [0, 1, 2, 3, 4]
    assert Counter(valid for _, valid in seen) == {True: 5, False: 1}


def test_loaders_of_every_split(splits):
    data = Tiny(splits, batch_size=4, eval_batch_size=3, image_size=12, drop_last=True)
    data.setup("fit")
    assert data.split_names("val") == ["valcl", "valpx"]
    assert [len(b["index"]) for b in data.train_dataloader()] == [4, 4]
    assert [[len(b["index"]) for b in loader] for loader in data.val_dataloader()] == [[3, 1], [2]]
    assert [len(b["index"]) for b in data.test_dataloader()[0]] == [3, 2]
    for loader in (*data.val_dataloader(), *data.test_dataloader()):
        assert isinstance(loader.sampler, SeededSampler)
        order = [i for batch in loader for i in batch["index"].tolist()]
        assert order == list(range(len(order)))
    assert Tiny(splits, batch_size=4).eval_batch_size == 4
    assert data.num_classes == 2


def test_evaluation_is_neither_cropped_nor_augmented(splits):
    data = Tiny(splits, image_size=12, train_resize=16, hflip=1, vflip=1, color_jitter=JITTER)
    plain = Tiny(splits, image_size=12, hflip=0)
    for a, b in zip(data.test_dataloader(), plain.test_dataloader(), strict=True):
        assert same(list(a), list(b))
    batch = next(iter(data.test_dataloader()[0]))
    assert batch["boxes"][0].tolist() == [[1, 1.8, 6, 10.8]]
    assert batch["image"].shape == (5, 3, 12, 12)


def test_training_sees_annotations_only_if_the_method_declares_it(splits):
    data = Tiny(splits, image_size=12)
    annotated = {"mask", "has_mask", "boxes"}
    assert not annotated & set(data.dataset("train")[0])
    for needs in ([], ["label"], ["raw"]):
        data.trainer = fake_trainer(needs)
        assert not annotated & set(data.dataset("train")[0])
    for needs in (["mask"], ["boxes", "label"]):
        data.trainer = fake_trainer(needs)
        assert annotated <= set(data.dataset("train")[0])


def test_training_is_the_same_where_masks_are_removed(splits):
    bare = {
        name: [Record(record.image, record.label) for record in records]
        for name, records in splits.items()
    }
    assert same(epochs_of(splits, 0), epochs_of(bare, 0))


def test_hidden_splits_show_no_masks(splits):
    data = Tiny(splits, image_size=12)
    data.setup("validate")
    valcl, valpx = (next(iter(loader)) for loader in data.val_dataloader())
    assert not {"mask", "boxes"} & set(valcl)
    assert {"mask", "boxes"} <= set(valpx)
    assert data.selection() == {"cl": "valcl/acc", "loc": "valpx/pxap"}


@pytest.mark.filterwarnings("ignore:.*has no box of 1 of 4 validation images")
def test_pseudo_boxes_are_seen_on_a_split_that_hides_its_own(splits, tmp_path):
    # Without a root the paths are those of the files.
    rows = [f"{record.image},0,0,24,10" for record in splits["valcl"][:3]]
    (tmp_path / "localization.txt").write_text("\n".join(rows))
    data = Tiny(splits, image_size=12, val_roots={"clip": str(tmp_path)})
    data.setup("fit")
    assert data.split_names("val") == ["valcl", "valpx", "val_clip"]
    batches = [next(iter(loader)) for loader in data.val_dataloader()]
    assert [len(batch["index"]) for batch in batches] == [4, 2, 3]
    assert [("boxes" in batch, "mask" in batch) for batch in batches] == [
        (False, False), (True, True), (True, False),
    ]  # fmt: skip
    assert {tuple(boxes[0].tolist()) for boxes in batches[2]["boxes"]} == {(0, 0, 12, 6)}
    assert batches[2]["path"] == batches[0]["path"][:3]
    assert data.selection() == {
        "cl": "valcl/acc", "loc": "valpx/pxap", "loc_clip": "val_clip/maxboxacc",
    }  # fmt: skip
    del splits["train"], splits["valcl"], splits["valpx"]
    with pytest.raises(DataError, match="no validation split"):
        Tiny(splits, val_roots={"clip": str(tmp_path)}).setup("test")


def test_selection_follows_what_is_annotated(splits):
    def selection(**changed):
        return Tiny({**splits, **changed}).selection()

    boxes = [Record(r.image, r.label, boxes=r.boxes) for r in splits["valpx"]]
    bare = [Record(r.image, r.label) for r in splits["valpx"]]
    assert selection(valpx=boxes) == {"cl": "valcl/acc", "loc": "valpx/maxboxacc"}
    assert selection(valpx=bare) == {"cl": "valcl/acc", "loc": None}
    train_only = {"train": splits["train"]}
    assert Tiny(train_only).selection() == {"cl": None, "loc": None}


@pytest.mark.parametrize("container", [list, tuple])
def test_bad_records_stop_setup_with_all_problems(splits, container):
    splits["train"][0].image.unlink()
    splits["test"].append(splits["train"][1])
    splits = {name: container(records) for name, records in splits.items()}
    with pytest.raises(DataError, match="Tiny: 2 problems") as caught:
        Tiny(splits).setup("fit")
    assert "does not exist" in str(caught.value)
    assert "'train' and 'test'" in str(caught.value)


def test_files_are_verified_as_asked(splits):
    path = splits["test"][2].image
    path.write_bytes(path.read_bytes()[:300])
    for verify in ("decode", "auto"):
        with pytest.raises(DataError, match="test_2"):
            Tiny(splits, verify=verify).setup("test")
    data = Tiny(splits, batch_size=2, image_size=12, num_workers=1, verify="header")
    data.setup("test")
    with pytest.raises(DataError, match=r"test_2\.png is not a readable image"):  # from a worker
        list(data.test_dataloader()[0])


@pytest.mark.parametrize(
    ("stage", "name"), [("fit", "train"), ("validate", "val"), ("test", "test")]
)
def test_a_stage_needs_its_split(splits, stage, name):
    rest = {k: v for k, v in splits.items() if not k.startswith(name)}
    with pytest.raises(DataError, match=f"there is no '{name}' split; found: {', '.join(rest)}"):
        Tiny(rest).setup(stage)
    Tiny({k: v for k, v in splits.items() if k.startswith(name)}).setup(stage)


def test_files_are_read_once(splits):
    data = Tiny(splits)
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    data.train_dataloader()
    assert data.reads == 1


def test_a_source_may_stand_in_for_records():
    class Grey:
        has_masks = has_boxes = False

        def __len__(self):
            return 3

        def load(self, index, *, annotations):
            return Sample(np.full((6, 6, 3), index, np.uint8), index % 2, size=(6, 6))

    data = Tiny({"test": Grey()}, image_size=4)
    data.setup("test")
    batch = next(iter(data.test_dataloader()[0]))
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2]


def test_predicting_a_folder_an_image_or_the_test_split(splits, tmp_path):
    folder = tmp_path / "new" / "deep"
    folder.mkdir(parents=True)
    for name in ("b.JPG", "a.png", ".hidden.png"):
        Image.new("RGB", (9, 7), (1, 2, 3)).save(folder / name)
    (folder / "notes.txt").write_text("no image")

    def predicted(**kwargs):
        data = Tiny(splits, image_size=12, **kwargs)
        data.setup("predict")
        (loader,) = data.predict_dataloader()
        (batch,) = list(loader)
        return data, batch

    data, batch = predicted(predict_images=str(tmp_path / "new"))
    assert batch["path"] == [str(folder / "a.png"), str(folder / "b.JPG")]
    assert batch["label"].tolist() == [-1, -1]
    assert batch["size"].tolist() == [[7, 9], [7, 9]]
    assert data.reads == 0
    _, batch = predicted(predict_images=str(folder / "b.JPG"))
    assert batch["path"] == [str(folder / "b.JPG")]
    _, batch = predicted()
    assert batch["path"] == [str(record.image) for record in splits["test"]]
    assert not {"mask", "boxes"} & set(batch)

    for bad, message in ((folder / "notes.txt", "readable"), (tmp_path / "none", "does not exist")):
        with pytest.raises(DataError, match=message):
            Tiny(splits, predict_images=str(bad)).setup("predict")


def test_images_are_found_in_order_and_only_images(tmp_path):
    for name in ("b/2.png", "b/10.png", "a/x.TIF", ".git/y.png", "c/._z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "Grade.csv").write_text("x")
    names = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert names == ["a/x.TIF", "b/10.png", "b/2.png"]
    with pytest.raises(DataError, match=r"holds no image \(looked for .*\.webp\)"):
        find_images(tmp_path / "c")


@pytest.mark.parametrize(
    ("encoder", "mean", "std"),
    [
        (None, IMAGENET_MEAN, IMAGENET_STD),
        (SimpleNamespace(mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.4)), (0.5,) * 3, (0.2, 0.3, 0.4)),
    ],
)
def test_normalisation_is_that_of_the_encoder_and_keeps_the_pixels(splits, encoder, mean, std):
    data = Tiny(splits, image_size=12)
    data.trainer = fake_trainer(encoder=encoder) if encoder else None
    image = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    batch = data.on_after_batch_transfer({"image": image}, 0)
    assert torch.equal(batch["raw"], image)
    assert torch.equal(batch["image"], normalize(image, mean, std))
    once = batch["image"].clone()
    batch = data.on_after_batch_transfer(batch, 0)  # floats are left alone
    assert torch.equal(batch["image"], once)
    features = {"features": torch.ones(2, 3)}
    assert data.on_after_batch_transfer(dict(features), 0) == features


def test_bad_settings_are_refused(splits):
    with pytest.raises(
        ValueError, match="train_resize=200 is smaller than the crop image_size=224"
    ):
        Tiny(splits, train_resize=200)
    with pytest.raises(ValueError, match=r"train_resize=\[16, 12\] is smaller"):
        Tiny(splits, image_size=[12, 16], train_resize=[16, 12])
    with pytest.raises(ValueError, match=r"image_size=\[12, 16\]: rotate90=True needs squares"):
        Tiny(splits, image_size=[12, 16], rotate90=True)
    with pytest.raises(ValueError, match="train_resize=64 is smaller than the crop crop_size=65"):
        Tiny(splits, image_size=64, crop_size=65)
    with pytest.raises(ValueError, match=r"size \[12\] must be the side of a square, or \[height"):
        Tiny(splits, image_size=[12])
    assert Tiny(splits, image_size=64).preprocessing() == {"image_size": 64}


def test_images_need_not_be_square(splits):
    data = Tiny(splits, batch_size=4, image_size=[12, 20], train_resize=[14, 24])
    assert data.preprocessing() == {"image_size": [12, 20]}
    train = next(iter(data.train_dataloader()))
    test = next(iter(data.test_dataloader()[0]))
    assert train["image"].shape[1:] == test["image"].shape[1:] == (3, 12, 20)
    assert test["mask"].shape[1:] == (12, 20)
    parts = Tiny(splits, batch_size=4, image_size=[12, 20], crop_size=8)
    assert next(iter(parts.train_dataloader()))["image"].shape[1:] == (3, 8, 8)
    assert next(iter(parts.test_dataloader()[0]))["image"].shape[1:] == (3, 12, 20)
    # The box of a whole image is that of the whole frame, whatever the aspect.
    sample = data.sources["test"].load(0, annotations=True)
    scale = np.tile(np.array([20, 12]) / sample.image.shape[1::-1], 2)
    np.testing.assert_allclose(test["boxes"][0].numpy(), sample.boxes * scale)
