"""Min-max entropy over a small ResNet, whose maps are too small for masked images of half size."""

from pathlib import Path
from typing import Any

from tests.cases import Case, learned
from tests.cases.stages import SMALL
from wsl_zoo.methods import MinMaxEntropy


def arguments(folder: Path) -> dict[str, Any]:
    return SMALL | {"erase": 2, "erase_epoch": 1}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    head = {"kmax": 0.3, "dropout": 0.0}
    return learned(MinMaxEntropy, folder, head_args=head, scale=1.0, erase=2, erase_epoch=6)


CASES = {"MinMaxEntropy": Case(arguments, golden=4.5501, learns=learns)}
