"""Files that are there whole or not at all, whatever stops the program."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported where it is needed, so that a listing stays quick
    import numpy as np


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file whole or not at all; make its folder.

    Args:
        path: The file, replaced if it is there.
        write: Called with the path of a hidden file beside it, which then takes its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all; make its folder."""
    return write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_array(path: Path, array: np.ndarray) -> Path:
    """Write an array as `.npy`, whole or not at all; make its folder."""
    import numpy as np

    def save(file: Path) -> None:
        with file.open("wb") as target:  # by its name, numpy would add an ending
            np.save(target, array)

    return write_whole(path, save)
