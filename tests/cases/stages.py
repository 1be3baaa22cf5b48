"""Stage 1 for the methods that need one: a classifier, filled or trained, as a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tests.cases import fill, trainer
from wsl_zoo.data import ZooDataModule
from wsl_zoo.methods import CAMClassifier
from wsl_zoo.methods.base import ZooModule

SMALL = {"num_classes": 4, "encoder": "test_resnet", "stride": 16}
FAST = {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 1e-2, "schedule": "cosine"}


def save(model: ZooModule, path: Path) -> str:
    """Write a model that no trainer has seen as a checkpoint."""
    run = trainer(path.parent)
    run.strategy.connect(model)
    run.save_checkpoint(path)
    return str(path)


def filled_classifier(
    folder: Path, method: Callable[..., ZooModule] = CAMClassifier, **changes: Any
) -> str:
    """A classifier with weights from `fill`."""
    model = method(**SMALL | changes)
    fill(model)
    return save(model, folder / "stage1.ckpt")


_trained: dict[str, str] = {}


def trained_classifier(folder: Path, data: ZooDataModule, epochs: int = 8, **changes: Any) -> str:
    """A classifier trained for some seconds, once per process for the same data and settings."""
    key = repr((type(data).__name__, sorted(data.hparams.items()), epochs, sorted(changes.items())))
    if key not in _trained:
        names = {"num_classes": data.num_classes, "class_names": data.class_names}
        model = CAMClassifier(**SMALL | FAST | {"head_lr_factor": 1.0} | names | changes)
        run = trainer(folder, max_epochs=epochs, limit_val_batches=0)
        run.fit(model, data)
        path = Path(mkdtemp(prefix="stage1-")) / "stage1.ckpt"
        run.save_checkpoint(path)
        _trained[key] = str(path)
    return _trained[key]
