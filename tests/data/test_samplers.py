from itertools import pairwise

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import Dataset

from wsl_zoo.data.samplers import (
    Key,
    ResumableLoader,
    SeededSampler,
    trainer_position,
    valid_mask,
)

SIZES = [(1, 1), (7, 1), (7, 2), (8, 2), (10, 3), (5, 8), (1, 4), (64, 5)]


def deals(size, world, epoch=0, shuffle=True, seed=0):
    """The keys of every process."""
    found = []
    for rank in range(world):
        sampler = SeededSampler(size, shuffle=shuffle, seed=seed, num_replicas=world, rank=rank)
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(found[-1]) == len(sampler)
    return found


@pytest.mark.parametrize(("size", "world"), SIZES)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_index_is_valid_once_and_the_padding_is_marked(size, world, shuffle):
    for epoch in (0, 3):
        dealt = deals(size, world, epoch, shuffle)
        keys = [key for keys in dealt for key in keys]
        assert all(isinstance(key, Key) and key.epoch == epoch for key in keys)
        assert sorted(key.index for key in keys if key.valid) == list(range(size))
        each = -(-size // world)
        assert [len(keys) for keys in dealt] == [each] * world
        assert sum(not key.valid for key in keys) == each * world - size
        assert all(key.index < size for key in keys)


@pytest.mark.parametrize(("size", "world"), SIZES)
def test_the_permutation_is_the_same_for_any_number_of_processes(size, world):
    alone = [key.index for key in deals(size, 1, epoch=2, seed=5)[0]]
    dealt = deals(size, world, epoch=2, seed=5)
    woven = [key.index for turn in zip(*dealt, strict=True) for key in turn]
    assert woven[:size] == alone


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {
        (seed, epoch): tuple(key.index for key in deals(50, 1, epoch, seed=seed)[0])
        for seed in (0, 7)
        for epoch in (0, 1, 2)
    }
    # torch's sampler seeds with seed + epoch; seeds this far apart share no order.
    assert len(set(orders.values())) == len(orders)
    assert orders[7, 1] == tuple(key.index for key in deals(50, 1, 1, seed=7)[0])
    torch.rand(3)
    assert orders[0, 0] == tuple(key.index for key in deals(50, 1, 0, seed=0)[0])
    assert [key.index for key in deals(5, 1, 4, shuffle=False)[0]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("size", "world"), SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_valid_mask_agrees_with_dealing_by_hand(size, world, batch):
    each = -(-size // world)
    originals = [True] * size + [False] * (each * world - size)
    for rank in range(world):
        mine = originals[rank::world]
        for start in range(0, each, batch):
            expected = mine[start : start + batch]
            found = valid_mask(start, len(expected), size, rank, world)
            assert found.dtype == torch.bool
            assert found.tolist() == expected


def test_valid_mask_of_one_process_is_all_true():
    assert valid_mask(4, 3, 7).tolist() == [True] * 3
    assert valid_mask(4, 4, 7).tolist() == [True] * 3 + [False]
    assert valid_mask(0, 0, 7).shape == (0,)


class Keys(Dataset):
    """Gives back the keys that it is asked for."""

    def __len__(self):
        return 10

    def __getitem__(self, key):
        return torch.tensor([key.epoch, key.index])


def loader(workers, position=None):
    return ResumableLoader(
        Keys(), batch_size=3, sampler=SeededSampler(10, shuffle=True, seed=3),
        num_workers=workers, persistent_workers=workers > 0, position=position,
    )  # fmt: skip


def read(batches):
    return [[tuple(key) for key in batch.tolist()] for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_pass_is_the_rest_of_the_unbroken_one(workers):
    whole = loader(0)
    epochs = []
    for epoch in (0, 1, 2):
        whole.sampler.set_epoch(epoch)
        epochs.append(read(whole))
        assert [len(batch) for batch in epochs[-1]] == [3, 3, 3, 1]
    assert all(a != b for a, b in pairwise(epochs))

    stand = (1, 2)
    resumed = loader(workers, position=lambda: stand)
    assert read(resumed) == epochs[1][2:]
    stand = (2, 0)
    assert read(resumed) == epochs[2]  # nothing is left out a second time
    stand = (2, 4)
    assert read(resumed) == []
    stand = (0, 1)
    iter(resumed)  # begun and given up
    assert read(resumed) == epochs[0][1:]


def test_a_sampler_leaves_out_what_it_is_told_to_once():
    sampler = SeededSampler(7, shuffle=True, num_replicas=2, rank=1)
    whole = list(sampler)
    assert [key.valid for key in whole] == [True, True, True, False]
    sampler.skip = 3
    assert list(sampler) == whole[3:]
    assert list(sampler) == whole


def test_the_loader_keeps_no_state_of_its_own():
    resumed = loader(0, position=lambda: (0, 1))
    state = resumed.state_dict()
    assert state == {}
    resumed.load_state_dict({"skip": 3})
    assert len(read(resumed)) == 3


class Recorder(LightningModule):
    """Notes the keys of its batches; trains nothing of use."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch):
        self.seen.append([tuple(key) for key in batch.tolist()])
        return self.weight.square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorded(LightningDataModule):
    """Loader whose position is that of the trainer."""

    def train_dataloader(self):
        return loader(0, position=lambda: trainer_position(self.trainer))


class Positions(Callback):
    """Notes the position at every hook of a run, and saves it after every batch."""

    def __init__(self, folder):
        self.folder = folder
        self.starts, self.ends = [], []

    def on_train_epoch_start(self, trainer, module):
        self.starts.append(trainer_position(trainer))

    def on_train_batch_end(self, trainer, *args):
        self.ends.append(trainer_position(trainer))
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def trainer(folder, *callbacks):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        max_epochs=3,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_run_resumed_after_any_batch_sees_what_was_left(tmp_path):
    positions, whole = Positions(tmp_path), Recorder()
    trainer(tmp_path, positions).fit(whole, Recorded())
    assert len(whole.seen) == 12
    assert positions.starts == [(0, 0), (1, 0), (2, 0)]
    batches = [(0, 1), (0, 2), (0, 3), (1, 0)]  # after the last one the next epoch is due
    assert positions.ends == [(e + k, b) for e in range(3) for k, b in batches]

    for step in (1, 3, 4, 6, 8, 11):
        rest = Recorder()
        checkpoint = tmp_path / f"{step}.ckpt"
        trainer(tmp_path).fit(rest, Recorded(), ckpt_path=checkpoint, weights_only=True)
        assert rest.seen == whole.seen[step:], step
