"""Checkpoints of the zoo: read safely (tensors and plain values only), and turned into models."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning import LightningModule

if TYPE_CHECKING:
    from wsl_zoo.methods.training import Trained  # which reads stage 1 through here


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this package.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is damaged, or no checkpoint of this package.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except PermissionError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or not a checkpoint of wsl_zoo: it cannot be read as tensors and "
            "plain values"
        ) from error
    if not isinstance(checkpoint, dict) or "wsl_zoo" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of wsl_zoo")
    return checkpoint


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> Trained:
    """Load a checkpoint of any method; see `wsl_zoo.load`."""
    checkpoint = read_checkpoint(path, map_location)
    ours = checkpoint["wsl_zoo"]
    module_name, _, class_name = ours["class_path"].rpartition(".")
    try:
        method = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path} holds a {ours['class_path']} (of wsl_zoo {ours['version']}), which cannot be "
            f"imported: {error}"
        ) from error
    known = isinstance(method, type) and issubclass(method, LightningModule)
    if not (known and hasattr(method, "prepare_batch")):
        raise ValueError(f"{path} names {ours['class_path']}, which is not a method of wsl_zoo")
    hparams = dict(checkpoint["hyper_parameters"])
    model: Trained = method(**{k: v for k, v in hparams.items() if not k.startswith("_")})
    model.load_state_dict(checkpoint["state_dict"])
    model.on_load_checkpoint(checkpoint)
    return model.eval()


def run_of(checkpoint: Path) -> Path:
    """Return the folder of the run that a checkpoint belongs to."""
    parent = checkpoint.parent
    return parent.parent if parent.name == "checkpoints" else parent
