"""The classifier of text, on the texts that built-in scenes are paired with."""

from pathlib import Path
from typing import Any

import torch

from tests.cases import Case, tiny_data, trainer
from tests.cases.clipit import DIM, paired
from wsl_zoo.data.texts import Texts
from wsl_zoo.methods import ReportClassifier


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "text_dim": DIM, "text_hidden": 16}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    """Texts whose direction is that of the class, under noise."""
    torch.manual_seed(0)
    data = tiny_data(train=64, val=64, batch_size=16)
    directions = torch.randn(4, DIM)
    for split, source in data.sources.items():
        label = torch.arange(len(source)) % 4  # scenes come in the order of their classes
        features = directions[label] + 0.3 * torch.randn(len(source), DIM)
        data.texts[split] = Texts(features, torch.arange(len(source)))
    model = ReportClassifier(**arguments(folder) | {"lr": 1e-2})
    trainer(folder, max_epochs=10, limit_val_batches=0).fit(model, data)
    values = trainer(folder).validate(model, data, verbose=False)[0]
    return {"accuracy": (values["val/acc"], 0.9)}


CASES = {"ReportClassifier": Case(arguments, golden=1.4088, learns=learns, data=paired)}
