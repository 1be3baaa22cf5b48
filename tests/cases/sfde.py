"""SFDA-DE draws features to an estimate of the source's."""

from pathlib import Path

from tests.cases import Case
from tests.cases.adaptation import adapts, arguments, ready, tiny
from wsl_zoo.methods import SFDE


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return adapts(SFDE, folder, margin=0.1)


CASES = {"SFDE": Case(arguments, golden=-5.794e-3, learns=learns, data=tiny, count=12, ready=ready)}
