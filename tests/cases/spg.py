"""SPG: a small ResNet on tiny scenes."""

from pathlib import Path
from typing import Any

from tests.cases import Case, learned
from wsl_zoo.methods import SPG


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "encoder": "test_resnet", "lr": 0.01}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return learned(SPG, folder, pxap=1.4)


CASES = {"SPG": Case(arguments, golden=8.455, learns=learns)}
