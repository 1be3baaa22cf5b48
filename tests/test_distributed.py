"""Two processes (gloo) train without unused parameters, agree, and measure what one measures."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import wsl_zoo
from tests.cases import build, case_of, trainer
from wsl_zoo.callbacks import PanelWriter, ResultWriter
from wsl_zoo.checkpointing import BestCheckpoint, LastCheckpoint
from wsl_zoo.data import TabularDataModule
from wsl_zoo.methods import ReportClassifier


def forked():
    """DDP whose processes are forked from one that has imported the package (see conftest)."""
    return DDPStrategy(start_method="forkserver")


class Dump(Callback):
    """Writes each process's state as it is validated; schedules step after that."""

    def __init__(self, folder):
        self.folder = folder

    def on_validation_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), self.folder / f"rank{trainer.global_rank}.pt")


@pytest.mark.parametrize("name", wsl_zoo.list_methods())
def test_two_processes(name, tmp_path):
    case = case_of(name)
    model = build(name, tmp_path)
    # 7 images on 2 processes: the sampler pads one, which no metric may count. One by one, since
    # the last bits of a map depend on the batch that its image is in.
    data = case.data(val=7, eval_batch_size=1)
    # With the callbacks of the command line: one that asks on one process only would hang.
    callbacks = [
        Dump(tmp_path), BestCheckpoint("cl"), BestCheckpoint("loc"), LastCheckpoint(),
        PanelWriter(count=2), ResultWriter(),
    ]  # fmt: skip
    two = trainer(
        tmp_path, devices=2, strategy=forked(), max_steps=2, callbacks=callbacks,
        logger=CSVLogger(tmp_path, name="", version=""), enable_checkpointing=True,
    )  # fmt: skip
    two.fit(model, data)
    if not isinstance(data, TabularDataModule) and not isinstance(model, ReportClassifier):
        assert (tmp_path / "panels" / "val" / "epoch_000.png").is_file()
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert ranks[0].keys() == ranks[1].keys()
    for key, value in ranks[0].items():
        if "running_" not in key and "num_batches" not in key:  # statistics of its own batches
            assert torch.equal(value, ranks[1][key]), key
    distributed = {k: v for k, v in two.callback_metrics.items() if k.startswith("val")}
    assert distributed
    two.test(ckpt_path=tmp_path / "checkpoints" / "best_cl.ckpt", model=model, datamodule=data)
    assert (tmp_path / "results.jsonl").is_file()

    one = trainer(tmp_path)
    model.load_state_dict(ranks[0])
    single = one.validate(model, case.data(val=7, eval_batch_size=1), verbose=False)[0]
    assert single.keys() == distributed.keys()
    for key, value in distributed.items():
        assert float(value) == single[key], key


class Groups(Callback):
    """Writes each process's groups of frames: (positions of the frames, whether they count)."""

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for sequence in batch["sequence"].unique():
            own = batch["sequence"] == sequence
            self.seen.append((batch["index"][own].tolist(), bool(batch["valid"][own].all())))

    def on_train_end(self, trainer, pl_module):
        torch.save(self.seen, self.folder / f"groups{trainer.global_rank}.pt")


def test_two_processes_never_split_a_group_of_frames(tmp_path):
    clips, length, frames = 7, 4, 3
    data = case_of("CoLoCAM").data(train=clips, frames=frames, frame_style="random", batch_size=6)
    two = trainer(
        tmp_path, devices=2, strategy=forked(), max_epochs=1, limit_val_batches=0,
        callbacks=[Groups(tmp_path)],
    )  # fmt: skip
    two.fit(build("CoLoCAM", tmp_path), data)
    ranks = [torch.load(tmp_path / f"groups{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [len(groups) for groups in ranks] == [4, 4]  # the last one is a repeated clip
    for group, _ in (entry for groups in ranks for entry in groups):
        assert len({index // length for index in group}) == 1
        assert len(set(group)) == frames
    counted = [index // length for groups in ranks for (index, *_), valid in groups if valid]
    assert sorted(counted) == list(range(clips))


def test_padding_of_foreign_loaders_is_dropped(tmp_path):
    """Without `valid` in the batch it follows from Lightning's sampler: 7 samples, 2 processes."""
    dataset = list(range(7))
    model = build(wsl_zoo.list_methods()[0], tmp_path)
    for rank, expected in ((0, [[True] * 3, [True]]), (1, [[True] * 3, [False]])):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=False)
        loader = DataLoader(dataset, batch_size=3, sampler=sampler)
        model._trainer = SimpleNamespace(world_size=2, global_rank=rank, val_dataloaders=loader)
        found = [
            model._valid("val", {"image": batch}, i, 0).tolist() for i, batch in enumerate(loader)
        ]
        assert found == expected
    model._trainer = SimpleNamespace(world_size=1)
    assert model._valid("val", {"image": torch.zeros(2, 3, 4, 4)}, 0, 0) is None
