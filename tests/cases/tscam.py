"""TS-CAM: a small ViT on scenes whose class is a hue, which it learns from scratch in seconds."""

from pathlib import Path
from typing import Any

from tests.cases import Case, trainer
from wsl_zoo.data import SyntheticData
from wsl_zoo.methods import TSCAM
from wsl_zoo.methods.base import ZooModule


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "encoder": "test_vit"}


def learned_hues(model: ZooModule, folder: Path) -> dict[str, tuple[float, float]]:
    """Train a few seconds on hues; accuracy against 0.9, PxAP against 1.5 times the prevalence."""
    data = SyntheticData(train=400, val=100, test=100, cue="hue", image_size=128, batch_size=16)
    trainer(folder, max_epochs=4, limit_val_batches=0).fit(model, data)
    values = trainer(folder).validate(model, data, verbose=False)[0]
    return {
        "accuracy": (values["val/acc"], 0.9),
        "PxAP": (values["val/pxap"], 1.5 * values["val/prevalence"]),
    }


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    """Accuracy beats 0.9 (chance 0.25) and PxAP one and a half times the prevalence."""
    model = TSCAM(num_classes=4, encoder="test_vit", lr=1e-3, schedule="cosine")
    return learned_hues(model, folder)


CASES = {"TSCAM": Case(arguments, golden=1.3871, learns=learns)}
