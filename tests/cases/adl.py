"""ADL: a small ResNet on tiny scenes."""

from pathlib import Path
from typing import Any

from tests.cases import Case, learned
from wsl_zoo.methods import ADL


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "encoder": "test_resnet", "lr": 0.01}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return learned(ADL, folder, epochs=12, pxap=1.6, drop_rate=0.25)


CASES = {"ADL": Case(arguments, golden=7.5667, learns=learns)}
