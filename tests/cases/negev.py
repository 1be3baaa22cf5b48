"""NEGEV on scenes of which one class holds no object."""

from pathlib import Path
from typing import Any

from tests.cases import Case, tiny_data
from tests.cases.fcam import beats_its_seeder, scenes
from tests.cases.stages import SMALL, filled_classifier
from wsl_zoo.data import ZooDataModule
from wsl_zoo.methods import NEGEV


def arguments(folder: Path) -> dict[str, Any]:
    return SMALL | {"classifier": filled_classifier(folder)}


def data(**kwargs: Any) -> ZooDataModule:
    return tiny_data(**{"classes": 3, "negatives": True} | kwargs)


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return beats_its_seeder(NEGEV, folder, scenes(classes=3, negatives=True), margin=0.05)


CASES = {"NEGEV": Case(arguments, golden=0.7134, learns=learns, data=data)}
