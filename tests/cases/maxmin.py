"""Max-min uncertainty over a small ResNet, as on GlaS: every image holds a region."""

from pathlib import Path
from typing import Any

from tests.cases import Case, learned
from tests.cases.stages import SMALL
from wsl_zoo.methods import MaxMin


def arguments(folder: Path) -> dict[str, Any]:
    return SMALL | {"background_weight": 0.01}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    # The class is that of the masked image, harder to tell than the whole: chance is 0.25.
    return learned(MaxMin, folder, accuracy=0.4, pxap=1.3, head_args={"dropout": 0.0})


CASES = {"MaxMin": Case(arguments, golden=1.8982, learns=learns)}
