"""A tiny case per method, by which the shared contract tests run it (`tests/test_contract.py`).

`tests/cases/<stem of the method's file>.py` holds `CASES: dict[class name, Case]`. A method without
one fails the tests.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer

import wsl_zoo.methods
from wsl_zoo import catalogue
from wsl_zoo.data import SyntheticData, ZooDataModule
from wsl_zoo.methods.base import ZooModule


def tiny_data(**kwargs: Any) -> ZooDataModule:
    """Built-in scenes, a few and small."""
    settings = {"train": 8, "val": 8, "test": 8, "image_size": 48, "batch_size": 4}
    return SyntheticData(**settings | kwargs)


def unannotated(data: ZooDataModule) -> ZooDataModule:
    """Hide the masks and boxes of a data module's sources."""
    read = data.read

    def hidden() -> Any:
        sources: Any = read()
        for source in sources.values():
            source.has_masks = source.has_boxes = False
        return sources

    data.read = hidden  # type: ignore[method-assign]
    return data


@dataclass(frozen=True)
class Case:
    """How to build a method in seconds.

    Attributes:
        arguments: Constructor arguments by stage-1 folder: files that it needs are written there.
        golden: Total loss of the first training batch with weights from `fill`.
        learns: Train briefly; return what was reached and what must be exceeded.
        data: Its data, tiny.
        batch_tolerance: By how much an image's output may depend on its batch.
        count: Images of the batch that the golden loss is of.
        ready: Give a model what it finds when training starts, for losses without a fit.
    """

    arguments: Callable[[Path], dict[str, Any]]
    golden: float
    learns: Callable[[Path], dict[str, tuple[float, float]]]
    data: Callable[..., ZooDataModule] = tiny_data
    batch_tolerance: float = 1e-5
    count: int = 4
    ready: Callable[[Any], None] = lambda model: None


def case_of(name: str) -> Case:
    """Return the case of a method."""
    (entry,) = (entry for entry in catalogue.methods() if entry.name == name)
    module = importlib.import_module(f"tests.cases.{Path(entry.file).stem}")
    case: Case = module.CASES[name]
    return case


def build(name: str, folder: Path, **changes: Any) -> ZooModule:
    """Build a method by its case."""
    method = getattr(wsl_zoo.methods, name)
    model: ZooModule = method(**case_of(name).arguments(folder) | changes)
    return model


def trainer(folder: Path, **changes: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    settings = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False,
        "inference_mode": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "default_root_dir": folder, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return Trainer(**settings | changes)


def learned(
    method: Callable[..., ZooModule],
    folder: Path,
    *,
    epochs: int = 10,
    accuracy: float = 0.6,
    pxap: float = 1.5,
    **changes: Any,
) -> dict[str, tuple[float, float]]:
    """Train a small ResNet on textured scenes for some seconds.

    Returns accuracy with what it must exceed (chance is 0.25), and PxAP with `pxap` times the
    prevalence.
    """
    torch.manual_seed(0)
    data = SyntheticData(train=400, val=100, test=100, image_size=64, batch_size=16, rotate90=True)
    settings = {
        "num_classes": 4, "encoder": "test_resnet", "stride": 16, "optimizer": "adamw",
        "lr": 3e-3, "weight_decay": 1e-2, "head_lr_factor": 1.0, "schedule": "cosine",
    }  # fmt: skip
    model = method(**settings | changes)
    trainer(folder, max_epochs=epochs, limit_val_batches=0).fit(model, data)
    values = trainer(folder).validate(model, data, verbose=False)[0]
    return {
        "accuracy": (values["val/acc"], accuracy),
        "PxAP": (values["val/pxap"], pxap * values["val/prevalence"]),
    }


def fill(model: torch.nn.Module) -> None:
    """Give every weight a value that depends on nothing but its position."""
    with torch.no_grad():
        for parameter in model.parameters():
            n = parameter.numel()
            wave = torch.sin(torch.arange(n, dtype=torch.float64) * 12.9898 + 0.5)
            parameter.copy_((wave * (1 / max(1, n / parameter.shape[0]) ** 0.5)).view_as(parameter))
