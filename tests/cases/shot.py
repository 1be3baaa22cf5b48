"""SHOT moves features towards a frozen hypothesis."""

from pathlib import Path

from tests.cases import Case
from tests.cases.adaptation import adapts, arguments, ready, tiny
from wsl_zoo.methods import SHOT


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return adapts(SHOT, folder, margin=0.1)


CASES = {"SHOT": Case(arguments, golden=0.1604, learns=learns, data=tiny, count=12, ready=ready)}
