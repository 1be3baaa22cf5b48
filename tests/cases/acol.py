"""ACoL: a small ResNet on tiny scenes, narrow heads."""

from pathlib import Path
from typing import Any

from tests.cases import Case, learned
from wsl_zoo.methods import ACoL


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "encoder": "test_resnet", "lr": 0.01, "width": 32}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return learned(ACoL, folder, pxap=1.4, stride=8, lr=2e-3, width=32)


CASES = {"ACoL": Case(arguments, golden=3.5689, learns=learns)}
