"""Which methods let their start compete for the best checkpoints, and that it is fair."""

import pytest
import torch
from pytorch_lightning import Callback

import wsl_zoo
from tests.cases import tiny_data, trainer
from tests.cases.adaptation import arguments, tiny
from tests.cases.stages import SMALL, filled_classifier
from wsl_zoo.checkpointing import BestCheckpoint, LastCheckpoint, StartValidation
from wsl_zoo.methods import SHOT, CAMClassifier, PixelCAM


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return arguments(tmp_path_factory.mktemp("source"))


class Validations(Callback):
    """Notes after how many steps it was validated."""

    def __init__(self):
        self.steps, self.modes = [], []

    def on_validation_end(self, trainer, pl_module):
        self.steps.append(trainer.global_step)

    def on_train_batch_start(self, trainer, pl_module, *args):
        self.modes.append(pl_module.training)


def fit(model, folder, data=None, ckpt_path=None, **changes):
    best = [BestCheckpoint(kind, dirpath=folder) for kind in ("cl", "loc")]
    seen = Validations()
    callbacks = [StartValidation(), *best, LastCheckpoint(dirpath=folder), seen]
    settings = {"limit_val_batches": 1.0, "max_epochs": 2, "enable_checkpointing": True}
    run = trainer(folder, callbacks=callbacks, **settings | changes)
    run.fit(model, data or tiny(), ckpt_path=ckpt_path)
    return seen


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def test_the_start_is_a_candidate_for_the_best(options, tmp_path):
    model = SHOT(**options, lr=0.0, min_lr=0.0)
    seen = fit(model, tmp_path)
    assert seen.steps == [0, 2, 4]
    assert all(seen.modes)
    assert step_of(tmp_path / "best_cl.ckpt") == step_of(tmp_path / "best_loc.ckpt") == 0
    assert step_of(tmp_path / "last.ckpt") == 4
    start, last = (wsl_zoo.load(tmp_path / f"{name}.ckpt") for name in ("best_loc", "last"))
    assert start.chosen_threshold == last.chosen_threshold
    assert torch.equal(start.head.fc.weight, wsl_zoo.load(options["source"]).head.fc.weight)


def test_a_resumed_run_is_not_validated_at_its_start(options, tmp_path):
    assert fit(SHOT(**options), tmp_path, max_epochs=1).steps == [0, 2]
    assert fit(SHOT(**options), tmp_path, ckpt_path=tmp_path / "last.ckpt").steps == [4]


def test_other_methods_are_not_validated_at_their_start(tmp_path):
    assert fit(CAMClassifier(**SMALL), tmp_path, tiny_data(), max_epochs=1).steps == [2]


def test_a_pixel_head_that_learnt_nothing_is_no_candidate(tmp_path):
    model = PixelCAM(**SMALL, classifier=filled_classifier(tmp_path), lr=0.0, min_lr=0.0)
    assert 0 not in fit(model, tmp_path, tiny_data(), max_epochs=1).steps


def test_without_validation_there_is_none_at_the_start(options, tmp_path):
    assert fit(SHOT(**options), tmp_path, max_epochs=1, limit_val_batches=0).steps == []
