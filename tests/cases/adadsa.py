"""AdaDSA learns one number per batch norm."""

from pathlib import Path

from tests.cases import Case
from tests.cases.adaptation import adapts, arguments, ready, tiny
from wsl_zoo.methods import AdaDSA


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return adapts(AdaDSA, folder, margin=0.1)


CASES = {"AdaDSA": Case(arguments, golden=0.4092, learns=learns, data=tiny, count=12, ready=ready)}
