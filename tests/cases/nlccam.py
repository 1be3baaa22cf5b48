"""NL-CCAM: a small ResNet on tiny scenes."""

from pathlib import Path
from typing import Any

from tests.cases import Case, learned
from wsl_zoo.methods import NLCCAM


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "encoder": "test_resnet", "lr": 0.01, "layers": ["layer2", "layer4"]}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return learned(NLCCAM, folder, epochs=12, accuracy=0.7, layers=["layer2", "layer4"])


CASES = {"NLCCAM": Case(arguments, golden=12.8821, learns=learns)}
