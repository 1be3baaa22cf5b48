"""NL-CCAM: a small ResNet on tiny scenes."""

from pathlib import Path
from typing import Any

from tests.cases import Case, trainer
from wsl_zoo.data import SyntheticData
from wsl_zoo.methods import NLCCAM


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "encoder": "test_resnet", "lr": 0.01, "layers": ["layer2", "layer4"]}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    """Accuracy beats 0.7 (chance 0.25) and PxAP one and a half times the prevalence."""
    data = SyntheticData(
        train=400, val=100, test=100, image_size=64, batch_size=16, rotate90=True
    )  # fmt: skip
    model = NLCCAM(
        num_classes=4, encoder="test_resnet", optimizer="adamw", lr=3e-3, weight_decay=1e-2,
        head_lr_factor=1.0, schedule="cosine", layers=["layer2", "layer4"],
    )  # fmt: skip
    run = trainer(folder, max_epochs=10, limit_val_batches=0)
    run.fit(model, data)
    values = trainer(folder).validate(model, data, verbose=False)[0]
    return {
        "accuracy": (values["val/acc"], 0.7),
        "PxAP": (values["val/pxap"], 1.5 * values["val/prevalence"]),
    }


CASES = {"NLCCAM": Case(arguments, golden=12.8821, learns=learns)}
