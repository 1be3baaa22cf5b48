"""Two processes (gloo) train without unused parameters, agree, and measure what one measures."""

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger

import wsl_zoo
from tests.cases import build, case_of, trainer
from wsl_zoo.callbacks import BestCheckpoint, LastCheckpoint, PanelWriter, ResultWriter


class Dump(Callback):
    """Writes each process's weights after training."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), self.folder / f"rank{trainer.global_rank}.pt")


@pytest.mark.parametrize("name", wsl_zoo.list_methods())
def test_two_processes(name, tmp_path):
    case = case_of(name)
    model = build(name, tmp_path)
    # 7 images on 2 processes: the sampler pads one, which no metric may count.
    data = case.data(val=7)
    # With the callbacks of the command line: one that asks on one process only would hang.
    callbacks = [
        Dump(tmp_path), BestCheckpoint("cl"), BestCheckpoint("loc"), LastCheckpoint(),
        PanelWriter(count=2), ResultWriter(),
    ]  # fmt: skip
    two = trainer(
        tmp_path, devices=2, strategy="ddp_spawn", max_steps=2, callbacks=callbacks,
        logger=CSVLogger(tmp_path, name="", version=""), enable_checkpointing=True,
    )  # fmt: skip
    two.fit(model, data)
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
    single = one.validate(model, case.data(val=7), verbose=False)[0]
    assert single.keys() == distributed.keys()
    for key, value in distributed.items():
        assert float(value) == single[key], key
