"""PixelCAM over a small ResNet on textured scenes: the pixel classifier beats its seeding CAM."""

from pathlib import Path
from typing import Any

import wsl_zoo
from tests.cases import Case, trainer
from tests.cases.fcam import scenes
from tests.cases.stages import FAST, SMALL, filled_classifier, trained_classifier
from wsl_zoo.methods import PixelCAM


def arguments(folder: Path) -> dict[str, Any]:
    return SMALL | {"classifier": filled_classifier(folder)}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    data = scenes()
    path = trained_classifier(folder, data)
    names = {"num_classes": data.num_classes, "class_names": data.class_names}
    changes = {"lr": 1e-3, "head_lr_factor": 3.0}
    model = PixelCAM(classifier=path, **SMALL | FAST | names | changes)
    trainer(folder, max_epochs=5, limit_val_batches=0).fit(model, data)
    before = trainer(folder).validate(wsl_zoo.load(path), data, verbose=False)[0]
    after = trainer(folder).validate(model, data, verbose=False)[0]
    return {
        "PxAP": (after["val/pxap"], before["val/pxap"] + 0.02),
        "accuracy": (after["val/acc"], before["val/acc"] - 0.03),
    }


CASES = {"PixelCAM": Case(arguments, golden=14.624, learns=learns)}
