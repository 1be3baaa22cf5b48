"""CDCL contrasts features with the rows of the classifier."""

from pathlib import Path

from tests.cases import Case
from tests.cases.adaptation import adapts, arguments, ready, tiny
from wsl_zoo.methods import CDCL


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return adapts(CDCL, folder, margin=0.1)


CASES = {"CDCL": Case(arguments, golden=4.4656e-4, learns=learns, data=tiny, count=12, ready=ready)}
