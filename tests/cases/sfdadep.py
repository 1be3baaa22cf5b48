"""SFDA-DeP unlearns over-predicted classes."""

from pathlib import Path

from tests.cases import Case
from tests.cases.adaptation import adapts, arguments, ready, tiny
from wsl_zoo.methods import SFDADeP


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return adapts(SFDADeP, folder, margin=0.1, lr=1e-4, refresh_every=2)


CASES = {"SFDADeP": Case(arguments, golden=0.8742, learns=learns, data=tiny, count=12, ready=ready)}
