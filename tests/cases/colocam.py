"""CoLo-CAM over a small ResNet on clips, by groups of two frames."""

from functools import partial
from pathlib import Path
from typing import Any

from tests.cases import Case
from tests.cases.fcam import arguments as of_fcam
from tests.cases.tcam import learns_on_clips, tiny_clips
from wsl_zoo.methods import CoLoCAM


def arguments(folder: Path) -> dict[str, Any]:
    return of_fcam(folder) | {"sampler_args": {"fg": 20, "bg": 20}}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return learns_on_clips(CoLoCAM, folder, margin=0.05, frames=2, joint_weight=0.5)


CASES = {
    "CoLoCAM": Case(arguments, golden=-8.3685, learns=learns, data=partial(tiny_clips, frames=2)),
}
