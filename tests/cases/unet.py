"""The supervised decoder on textured scenes."""

from pathlib import Path

from tests.cases import Case
from tests.cases.fcam import arguments, beats_its_seeder, scenes
from wsl_zoo.methods import SupervisedUNet


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return beats_its_seeder(SupervisedUNet, folder, scenes(), margin=0.2)


CASES = {"SupervisedUNet": Case(arguments, golden=0.7671, learns=learns)}
