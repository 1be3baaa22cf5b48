"""A run that was stopped and resumed ends with the same weights as one that was not."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer

from tests.cases.killing import KillAt, Killed
from wsl_zoo.checkpointing import LastCheckpoint
from wsl_zoo.data import SyntheticData
from wsl_zoo.methods import CAMClassifier

EPOCHS = 3
STEPS = 5  # per epoch: 20 images in batches of 4


def fit(folder: Path, workers: int, *callbacks, ckpt_path=None, **last) -> CAMClassifier:
    data = SyntheticData(
        train=20, val=4, test=4, image_size=32, train_resize=36, batch_size=4,
        color_jitter=[0.2, 0.2, 0.2, 0.05], num_workers=workers,
    )  # fmt: skip
    model = CAMClassifier(encoder="test_resnet", num_classes=4, lr=0.01, schedule="cosine")
    # Dropout draws from the global generator: a resumed run must draw the same.
    model.head = torch.nn.Sequential(model.head)
    model.head.forward = lambda x: model.head[0](
        torch.nn.functional.dropout(x, 0.5, model.training)
    )
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
        callbacks=[LastCheckpoint(dirpath=folder, **last), *callbacks],
    )  # fmt: skip
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    try:
        trainer.fit(model, data, ckpt_path=ckpt_path)
    except (Killed, RuntimeError):
        assert callbacks
    return model


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("unbroken"), workers=0).state_dict()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("step", "error", "every"),
    [
        (8, Killed, 2),  # mid-epoch, last saved at step 8
        (9, Killed, 2),  # mid-epoch, one step lost
        (7, RuntimeError, None),  # saved by the exception itself
        (STEPS, Killed, STEPS),  # saved at the last batch of an epoch
        (STEPS + 1, Killed, None),  # saved at the end of an epoch
        (3, Killed, 3),  # in the first epoch
    ],
)
def test_resumed_equals_unbroken(tmp_path, unbroken, workers, step, error, every):
    # Validation runs in between, so that its progress is part of what is restored.
    fit(tmp_path, workers, KillAt(step, error), every_n_train_steps=every)
    resumed = fit(
        tmp_path, workers, ckpt_path=tmp_path / "last.ckpt", every_n_train_steps=every
    ).state_dict()
    for name, value in unbroken.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)
