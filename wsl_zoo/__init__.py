"""wsl-zoo: weakly-supervised learning for images, video and medical exams.

Importing this package imports nothing heavy; `wsl_zoo.methods`, `wsl_zoo.metrics`, ... are loaded
when they are first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wsl_zoo import catalogue

if TYPE_CHECKING:
    from wsl_zoo.methods.training import Trained

__version__ = "0.1.0.dev0"
__all__ = ["__version__", "list_methods", "load"]

_LAZY = (
    "cams",
    "data",
    "encoders",
    "heads",
    "losses",
    "methods",
    "metrics",
    "networks",
    "types",
)


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"wsl_zoo.{name}")
    raise AttributeError(f"module 'wsl_zoo' has no attribute {name!r}")


def list_methods() -> list[str]:
    """Return the names of all methods, sorted; `getattr(wsl_zoo.methods, name)` is the class."""
    return [entry.name for entry in catalogue.methods()]


def load(path: str | Path, map_location: Any = "cpu") -> Trained:
    """Load a checkpoint of any method, ready to predict.

    Args:
        path: A `.ckpt` file written by the Trainer.
        map_location: As of `torch.load`.

    Returns:
        The method in eval mode. No other file is needed: start weights and stage-1 checkpoints that
        it was trained from may be gone.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is no checkpoint of this package.
    """
    from wsl_zoo.checkpoints import load_checkpoint

    return load_checkpoint(Path(path), map_location)
