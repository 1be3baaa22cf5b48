"""HaS: a small ResNet on tiny scenes, tiles of their size."""

from pathlib import Path
from typing import Any

from tests.cases import Case, learned
from wsl_zoo.methods import HaS


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "encoder": "test_resnet", "lr": 0.01, "grid_size": [0, 16]}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return learned(HaS, folder, epochs=14, pxap=1.6, grid_size=[0, 8, 16], drop_rate=0.3)


CASES = {"HaS": Case(arguments, golden=7.5667, learns=learns)}
