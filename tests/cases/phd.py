"""Risk on the built-in exams: a history tells the far risk, and a student learns it."""

from pathlib import Path
from typing import Any

import torch

from tests.cases import Case, fill, trainer
from tests.cases.stages import save
from wsl_zoo.data import SyntheticExamsData, ZooDataModule
from wsl_zoo.methods import PHDStudent, PHDTeacher
from wsl_zoo.methods.risk import LongitudinalRisk

HORIZONS = ["1", "2", "3", "4", "5"]
TINY = {
    "num_classes": 5, "class_names": HORIZONS, "in_chans": 8, "dim": 8, "num_heads": 2, "hidden": 16
}  # fmt: skip
SMALL = {
    "num_classes": 5, "class_names": HORIZONS, "in_chans": 32, "dim": 32, "num_heads": 4,
    "hidden": 64, "dropout": 0.1, "optimizer": "adamw", "lr": 2e-3, "head_lr_factor": 1.0,
    "weight_decay": 1e-5, "schedule": "constant",
}  # fmt: skip


def exams(**kwargs: Any) -> ZooDataModule:
    settings: dict[str, Any] = {"train": 8, "val": 8, "test": 8, "dim": 8, "batch_size": 4}
    return SyntheticExamsData(**settings | kwargs)


def filled_teacher(folder: Path, name: str, **changes: Any) -> str:
    model = PHDTeacher(**TINY | changes)
    fill(model)
    return save(model, folder / f"{name}.ckpt")


def student(folder: Path) -> dict[str, Any]:
    teachers = [
        filled_teacher(folder, "far", group=[4.0, 5.0]),
        filled_teacher(folder, "near", group=[1.0, 2.0]),
    ]
    return TINY | {"imputer_hidden": 16, "teachers": teachers, "rec_weight": 0.5}


def fitted(model: LongitudinalRisk, data: ZooDataModule, folder: Path, epochs: int) -> str:
    """Train for some epochs; return a checkpoint."""
    run = trainer(folder, max_epochs=epochs, limit_val_batches=0)
    run.fit(model, data)
    path = folder / f"{len(list(folder.glob('*.ckpt')))}.ckpt"
    run.save_checkpoint(path)
    return str(path)


def tested(model: LongitudinalRisk, data: ZooDataModule, folder: Path) -> dict[str, float]:
    values = trainer(folder).test(model, data, verbose=False)[0]
    return {name.partition("/")[2]: value for name, value in values.items()}


def large() -> ZooDataModule:
    return SyntheticExamsData(variant="B", batch_size=256, eval_batch_size=5000)


def teacher_learns(folder: Path) -> dict[str, tuple[float, float]]:
    torch.manual_seed(0)
    data = large()
    full = PHDTeacher(**SMALL)
    fitted(full, data, folder, 12)
    with_history = tested(full, data, folder)
    full.hparams["hide"] = [True] * 4 + [False]
    hidden = tested(full, data, folder)
    return {
        "AUC at year 1": (with_history["auc_1"], 0.82),
        "AUC at year 5": (with_history["auc_5"], hidden["auc_5"] + 0.04),
        "AUC at year 1, which no history tells": (hidden["auc_1"], with_history["auc_1"] - 0.03),
    }


def student_learns(folder: Path) -> dict[str, tuple[float, float]]:
    torch.manual_seed(0)
    data = large()
    full = PHDTeacher(**SMALL)
    teacher = fitted(full, data, folder, 12)
    imputer = fitted(PHDStudent(stage="imputer", imputer_hidden=256, **SMALL), data, folder, 30)
    distilled = PHDStudent(
        teachers=[teacher], imputer=imputer, imputer_hidden=256, kd_weight=1.0, temperature=2.0,
        **SMALL,
    )  # fmt: skip
    fitted(distilled, data, folder, 20)
    full.hparams["hide"] = [True] * 4 + [False]
    hidden = tested(full, data, folder)
    found = tested(distilled, data, folder)
    return {
        "AUC at year 5": (found["auc_5"], hidden["auc_5"] + 0.01),
        "AUC at year 4": (found["auc_4"], hidden["auc_4"]),
    }


CASES = {
    "PHDTeacher": Case(lambda folder: dict(TINY), golden=4.8017, learns=teacher_learns, data=exams),
    "PHDStudent": Case(student, golden=8.5304, learns=student_learns, data=exams),
}
