"""SFDA-DeP unlearns an over-predicted class: of a source whose threshold lies wrong."""

from pathlib import Path
from typing import Any

import torch

import wsl_zoo
from tests.cases import Case
from tests.cases.adaptation import adapts, arguments, ready, source, tiny, two_textures
from tests.cases.stages import save
from wsl_zoo.data.transforms import normalize
from wsl_zoo.methods import SFDADeP


def favouring(folder: Path, share: float = 0.8) -> str:
    """A source that takes so many of the training scenes, half of which are, for class 1."""
    model: Any = wsl_zoo.load(source(folder))
    dataset = two_textures().dataset("train")
    images = torch.stack([dataset[i]["image"] for i in range(len(dataset))])
    image = normalize(images, model.encoder.mean, model.encoder.std)
    with torch.no_grad():
        margin = model({"image": image}).logits @ torch.tensor([-1.0, 1.0])
        model.head.fc.bias[1] -= margin.quantile(1 - share)
    return save(model, folder / "favouring.ckpt")


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    path = favouring(folder)
    return adapts(
        SFDADeP, folder, margin=0.1, data=two_textures(), path=path, lr=1e-4, refresh_every=1
    )


CASES = {"SFDADeP": Case(arguments, golden=0.8742, learns=learns, data=tiny, count=12, ready=ready)}
