import numpy as np
import pytest
import torch
from PIL import Image

from tests.cases import trainer
from wsl_zoo.data import DataError, Record, VideoDataModule
from wsl_zoo.data.video import shots_of

LENGTHS = (1, 2, 5, 9, 4, 3, 7, 6)


class Videos(VideoDataModule):
    """Shots of one colour each, `shot` in red and the frame's number in green."""

    class_names = ("a", "b")
    shared = (frozenset({"train", "val"}),)

    def __init__(self, folder, lengths=LENGTHS, **kwargs):
        super().__init__(**{"image_size": 16, "batch_size": 8} | kwargs)
        self.folder, self.lengths = folder, lengths

    def read(self):
        records = []
        for shot, length in enumerate(self.lengths):
            for frame in range(length):
                path = self.folder / f"{shot}_{frame}.png"
                if not path.exists():
                    image = np.zeros((24, 24, 3), np.uint8)
                    image[..., 0], image[..., 1] = 10 * shot, 10 * frame
                    Image.fromarray(image).save(path)
                box = ((1.0, 1.0, 9.0, 9.0),)
                records.append(Record(path, shot % 2, boxes=box, group=f"shot {shot}"))
        return {"train": records, "val": [r for r in records if r.image.stem.endswith("_0")]}


def batches_of(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_a_batch_holds_whole_groups_of_its_shots(tmp_path, frames, workers):
    data = Videos(tmp_path, frames=frames, frame_style="random", num_workers=workers)
    batches = batches_of(data)
    seen = []
    for batch in batches:
        counts = torch.bincount(batch["sequence"])
        assert len(counts) <= 8 // frames
        assert batch["sequence"].tolist() == sorted(batch["sequence"].tolist())
        shots, numbers = batch["image"][:, 0, 0, 0] // 10, batch["image"][:, 1, 0, 0] // 10
        assert torch.equal(numbers.long(), batch["frame"])
        for sequence, count in enumerate(counts.tolist()):
            own = batch["sequence"] == sequence
            (shot,) = set(shots[own].tolist())  # a group is of one shot
            seen.append(shot)
            assert count == min(frames, LENGTHS[shot])  # nothing is repeated to fill a batch
            assert len(set(numbers[own].tolist())) == count
            assert set(batch["label"][own].tolist()) == {shot % 2}
            assert {batch["group"][i] for i in own.nonzero()[:, 0]} == {f"shot {shot}"}
    assert sorted(seen) == list(range(len(LENGTHS)))  # every shot once


def test_frames_depend_on_seed_epoch_and_shot_alone(tmp_path):
    def drawn(epoch=0, **kwargs):
        batches = batches_of(Videos(tmp_path, frames=2, **kwargs), epoch)
        return {
            (group, index)
            for batch in batches
            for group, index in zip(batch["group"], batch["index"].tolist(), strict=True)
        }

    assert drawn() == drawn(num_workers=2) == drawn(batch_size=4)
    assert drawn() != drawn(epoch=1)
    assert drawn() != drawn(seed=1)


def test_frames_are_cropped_and_flipped_one_by_one(tmp_path):
    """Over epochs the frames of a group are flipped independently."""

    class Halves(Videos):
        def read(self):
            splits = super().read()
            for record in splits["train"]:
                image = np.zeros((24, 24, 3), np.uint8)
                image[:, :12] = 255
                Image.fromarray(image).save(record.image)
            return splits

    data = Halves(tmp_path, lengths=(4, 4), frames=2, frame_style="random", hflip=0.5)
    loader = data.train_dataloader()
    pairs = set()
    for epoch in range(40):
        loader.sampler.set_epoch(epoch)
        (batch,) = list(loader)
        pairs.add(tuple((batch["image"][:2, 0, 0, 0] > 128).tolist()))
    assert pairs == {(False, False), (False, True), (True, False), (True, True)}


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_shots_and_never_a_group(tmp_path, monkeypatch, world):
    """The shots that the processes get are those of one process, each whole in one of them."""

    class Place:
        world_size = world

    dealt = {}
    for rank in range(world):
        data = Videos(tmp_path, frames=3, frame_style="random", batch_size=6)
        run = trainer(tmp_path)
        data.trainer = run
        monkeypatch.setattr(type(run), "world_size", world)
        monkeypatch.setattr(type(run), "global_rank", rank)
        for batch in batches_of(data):
            for sequence in batch["sequence"].unique():
                own = batch["sequence"] == sequence
                groups = {batch["group"][i] for i in own.nonzero()[:, 0]}
                assert len(groups) == 1
                if batch["valid"][own].all():
                    frames = batch["frame"][own].tolist()
                    dealt.setdefault(groups.pop(), []).append((rank, frames))
    assert len(dealt) == len(LENGTHS)
    for shot, places in dealt.items():
        ((_, frames),) = places  # one process has it, once
        assert len(frames) == min(3, LENGTHS[int(shot.split()[1])])


def test_evaluation_reads_single_frames(tmp_path):
    data = Videos(tmp_path, frames=3)
    (loader,) = data.val_dataloader()
    batches = list(loader)
    assert sum(len(batch["index"]) for batch in batches) == len(LENGTHS)
    assert all("sequence" not in batch for batch in batches)
    assert all(len(boxes) == 1 for batch in batches for boxes in batch["boxes"])
    whole = list(data.whole_images("train"))
    assert torch.cat([batch["index"] for batch in whole]).tolist() == list(range(sum(LENGTHS)))


def test_training_sees_no_boxes(tmp_path):
    assert all("boxes" not in batch for batch in batches_of(Videos(tmp_path)))


def test_class_maps_go_with_their_frames(tmp_path):
    data = Videos(tmp_path, frames=2, frame_style="random", train_resize=16)
    count = sum(LENGTHS)
    data.cams = torch.arange(count).float()[:, None, None].expand(count, 4, 4) / count
    for batch in batches_of(data):
        torch.testing.assert_close(batch["cam"][:, 3, 3], batch["index"] / count)


def test_shots_are_runs_of_one_group(tmp_path):
    def record(group, name):
        return Record(tmp_path / name, 0, group=group)

    records = [record("x", "0"), record("x", "1"), record("y", "2"), record("z", "3")]
    assert shots_of(records) == [range(2), range(2, 3), range(3, 4)]
    assert shots_of([]) == []
    with pytest.raises(DataError, match=r"4: the frames of 'x' are scattered"):
        shots_of([*records, record("x", "4")])
    data = Videos(tmp_path)
    assert [len(shot) for shot in data.shots()] == list(LENGTHS)


def test_a_batch_must_hold_a_group(tmp_path):
    with pytest.raises(ValueError, match="batch_size=2 cannot hold frames=3"):
        Videos(tmp_path, batch_size=2, frames=3)
    assert Videos(tmp_path, batch_size=32, frames=3).items_per_batch == 10


def test_boxes_judge_localisation_before_masks(tmp_path):
    data = Videos(tmp_path)
    assert data.selection() == {"cl": "val/acc", "loc": "val/maxboxacc"}
    data.sources["val"].has_masks = True
    assert data.selection()["loc"] == "val/maxboxacc"
    data.sources["val"].has_boxes = False
    assert data.selection()["loc"] == "val/pxap"


def test_a_pass_that_resumes_skips_whole_batches_of_shots(tmp_path):
    data = Videos(tmp_path, frames=2, frame_style="random")
    whole = batches_of(data, epoch=3)
    loader = data.train_dataloader()
    loader.position = lambda: (3, 1)
    rest = list(loader)
    assert len(rest) == len(whole) - 1 >= 1
    for ours, theirs in zip(rest, whole[1:], strict=True):
        assert torch.equal(ours["index"], theirs["index"])
        assert torch.equal(ours["image"], theirs["image"])
