"""Ordinal classification: tiny images of grades; on a toy table the barrier orders the scores."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.cases import Case, trainer
from wsl_zoo.data import SyntheticGradesData, TableData, ZooDataModule
from wsl_zoo.methods import UnimodalOrdinal


def grades(**kwargs: Any) -> ZooDataModule:
    settings = {
        "train": 8, "val": 8, "test": 8, "classes": 4, "image_size": 48, "batch_size": 4
    }  # fmt: skip
    return SyntheticGradesData(**settings | kwargs)


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "encoder": "test_resnet", "stride": 16}


def toy(path: Path, ranks: int = 10, train: int = 600, test: int = 2000) -> Path:
    """Ranks floor(10 u) of a uniform u, seen through 12 noisy steps and 20 columns of noise."""
    rng = np.random.default_rng(0)
    centers = rng.uniform(size=12)
    count = 2 * train + test
    u = rng.uniform(size=count)
    steps = np.tanh(3 * (u[:, None] - centers)) + 0.15 * rng.standard_normal((count, 12))
    features = np.concatenate([steps, rng.standard_normal((count, 20))], axis=1)
    splits = ["train"] * train + ["val"] * train + ["test"] * test
    lines = [",".join(["rank", "split", *(f"x{i}" for i in range(32))])]
    lines += [
        ",".join([str(int(ranks * rank)), split, *(f"{x:.6f}" for x in row)])
        for rank, split, row in zip(u, splits, features, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def on_toy(folder: Path, **changes: Any) -> dict[str, float]:
    """Metrics of the test rows after 100 epochs of a small MLP; about ten seconds."""
    torch.manual_seed(0)
    data = TableData(str(toy(folder / "toy.csv")), split="split", batch_size=32)
    model = UnimodalOrdinal(
        **{
            "num_classes": data.num_classes, "class_names": data.class_names, "in_chans": 32,
            "encoder": "mlp", "encoder_args": {"hidden": [64]}, "head": "wgap", "lr": 0.02,
            "head_lr_factor": 1.0, "weight_decay": 0.0, "schedule": "constant",
        }
        | changes
    )  # fmt: skip
    data.eval_batch_size = 2000
    trainer(folder, max_epochs=100, limit_val_batches=0).fit(model, data)
    values = trainer(folder).test(model, data, verbose=False)[0]
    return {name.partition("/")[2]: value for name, value in values.items()}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    plain, constrained = on_toy(folder, constraint=None), on_toy(folder)
    return {
        "SOI": (constrained["soi"], 0.98),
        "SOI over cross-entropy's": (constrained["soi"], plain["soi"] + 0.05),
        "ranks of error less than cross-entropy's": (plain["mae"], constrained["mae"]),
    }


CASES = {"UnimodalOrdinal": Case(arguments, golden=3.917, learns=learns, data=grades)}
