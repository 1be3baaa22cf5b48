"""TCAM over a small ResNet on clips: maps pooled over frames show more of an object that turns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cases import Case
from tests.cases.fcam import arguments, beats_its_seeder
from wsl_zoo.data import SyntheticVideoData
from wsl_zoo.methods import TCAM
from wsl_zoo.methods.base import ZooModule


def tiny_clips(**kwargs: Any) -> SyntheticVideoData:
    """Built-in clips, a few and small."""
    settings = {"train": 8, "val": 4, "test": 4, "frames_per_clip": 4, "image_size": 48}
    return SyntheticVideoData(**settings | {"batch_size": 4} | kwargs)


def clips(**kwargs: Any) -> SyntheticVideoData:
    settings = {"train": 400, "val": 12, "test": 12, "image_size": 64, "batch_size": 16}
    return SyntheticVideoData(**settings | {"rotate90": True} | kwargs)


def learns_on_clips(
    method: Callable[..., ZooModule], folder: Path, margin: float, frames: int = 1, **args: Any
) -> dict[str, tuple[float, float]]:
    """Train stage 1 on frames, stage 2 on clips of them; return what was reached, and the least."""
    own = {"sampler_args": {"fg": 5, "bg": 5, "min_p": 0.4}, "crf_weight": 0.0, "epochs": 3}
    data, single = clips(frames=frames), clips(frames=1)
    return beats_its_seeder(method, folder, data, margin, first=single, **own | args)


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return learns_on_clips(TCAM, folder, margin=0.05, neighbors=3)


CASES = {"TCAM": Case(arguments, golden=0.6511, learns=learns, data=tiny_clips)}
