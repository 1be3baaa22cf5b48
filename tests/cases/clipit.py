"""CLIP-IT on the built-in scenes, each paired with one of a few texts."""

from pathlib import Path
from typing import Any

import torch

from tests.cases import Case, fill, tiny_data
from tests.cases.stages import filled_classifier, save
from wsl_zoo.data import ZooDataModule
from wsl_zoo.data.texts import Texts
from wsl_zoo.methods import ReportClassifier

DIM, REPORTS = 8, 6
TINY = {
    "num_classes": 4, "encoder": "test_resnet", "text_dim": DIM, "text_hidden": 16, "lora_rank": 2
}  # fmt: skip


def paired(**kwargs: Any) -> ZooDataModule:
    """Scenes of which every split has texts."""
    data = tiny_data(**kwargs)
    features = torch.randn(REPORTS, DIM, generator=torch.Generator().manual_seed(0))
    data.texts = {
        split: Texts(features, torch.arange(count) * 5 % REPORTS)
        for split, count in data.counts.items()  # type: ignore[attr-defined]
    }
    return data


def arguments(folder: Path) -> dict[str, Any]:
    """CLIP-IT over a filled linear probe."""
    return TINY | {"classifier": filled_classifier(folder, stride=None)}


def filled_text_classifier(folder: Path, **changes: Any) -> str:
    """A classifier of text with weights from `fill`."""
    settings = {"num_classes": 4, "text_dim": DIM, "text_hidden": 16}
    model = ReportClassifier(**settings | changes)
    fill(model)
    return save(model, folder / "text.ckpt")


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    raise NotImplementedError


CASES = {"CLIPIT": Case(arguments, golden=161.663, learns=learns, data=paired)}
