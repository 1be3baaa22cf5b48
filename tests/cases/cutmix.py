"""CutMix: a small ResNet on tiny scenes."""

from pathlib import Path
from typing import Any

import torch

from tests.cases import Case, trainer
from wsl_zoo.data import SyntheticData
from wsl_zoo.methods import CutMix


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "encoder": "test_resnet", "lr": 0.01}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    """Accuracy beats 0.6 (chance 0.25) and PxAP 1.5 times the prevalence."""
    torch.manual_seed(0)
    data = SyntheticData(
        train=400, val=100, test=100, image_size=64, batch_size=16, rotate90=True
    )  # fmt: skip
    model = CutMix(
        num_classes=4, encoder="test_resnet", stride=16, optimizer="adamw", lr=3e-3,
        weight_decay=1e-2, head_lr_factor=1.0, schedule="cosine", mix_rate=0.5,
    )  # fmt: skip
    run = trainer(folder, max_epochs=10, limit_val_batches=0)
    run.fit(model, data)
    values = trainer(folder).validate(model, data, verbose=False)[0]
    return {
        "accuracy": (values["val/acc"], 0.6),
        "PxAP": (values["val/pxap"], 1.5 * values["val/prevalence"]),
    }


CASES = {"CutMix": Case(arguments, golden=7.5667, learns=learns)}
