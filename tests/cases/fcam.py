"""F-CAM over a small ResNet on textured scenes: the decoder beats the CAM that seeds it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import wsl_zoo
from tests.cases import Case, trainer
from tests.cases.stages import FAST, SMALL, filled_classifier, trained_classifier
from wsl_zoo.data import SyntheticData
from wsl_zoo.methods import FCAM
from wsl_zoo.methods.base import ZooModule

DECODER = {"decoder_channels": [64, 32, 16, 16, 8]}


def arguments(folder: Path) -> dict[str, Any]:
    return SMALL | {"classifier": filled_classifier(folder), "size_weight": 0.01}


def scenes(**kwargs: Any) -> SyntheticData:
    settings = {"train": 400, "val": 100, "test": 100, "image_size": 64, "batch_size": 16}
    return SyntheticData(**settings | {"rotate90": True} | kwargs)


def beats_its_seeder(
    method: Callable[..., ZooModule],
    folder: Path,
    data: SyntheticData,
    margin: float,
    *,
    first: SyntheticData | None = None,
    epochs: int = 6,
    **args: Any,
) -> dict[str, tuple[float, float]]:
    """Train both stages, stage 1 on `first`; return metrics with those of stage 1 plus a margin."""
    path = trained_classifier(folder, first or data)
    names = {"num_classes": data.num_classes, "class_names": data.class_names}
    model = method(classifier=path, decoder_args=DECODER, **SMALL | FAST | names | args)
    trainer(folder, max_epochs=epochs, limit_val_batches=0).fit(model, data)
    before = trainer(folder).validate(wsl_zoo.load(path), data, verbose=False)[0]
    after = trainer(folder).validate(model, data, verbose=False)[0]
    return {
        "PxAP": (after["val/pxap"], before["val/pxap"] + margin),
        "MaxBoxAccV2": (after["val/maxboxacc_v2"], before["val/maxboxacc_v2"]),
        "accuracy": (after["val/acc"], before["val/acc"] - 1e-6),
    }


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    return beats_its_seeder(FCAM, folder, scenes(), margin=0.10)


CASES = {"FCAM": Case(arguments, golden=0.6644, learns=learns)}
