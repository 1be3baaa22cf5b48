"""CAM: a small ResNet on tiny scenes."""

from pathlib import Path
from typing import Any

from tests.cases import Case, trainer
from wsl_zoo.data import SyntheticData
from wsl_zoo.methods import CAMClassifier


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "encoder": "test_resnet", "lr": 0.01}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    """Accuracy beats 0.8 (chance 0.25) and PxAP one and a half times the prevalence."""
    data = SyntheticData(train=400, val=64, test=64, image_size=64, batch_size=32)
    model = CAMClassifier(
        num_classes=4, encoder="test_resnet", stride=8, optimizer="adamw", lr=2e-3,
        head_lr_factor=1.0, schedule="cosine",
    )  # fmt: skip
    run = trainer(folder, max_epochs=6)
    run.fit(model, data)
    values = run.validate(model, data, verbose=False)[0]
    return {
        "accuracy": (values["val/acc"], 0.8),
        "PxAP": (values["val/pxap"], 1.5 * values["val/prevalence"]),
    }


CASES = {"CAMClassifier": Case(arguments, golden=0.0, learns=learns)}
