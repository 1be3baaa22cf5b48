"""What the cases of the adaptation methods share: a source, and a target of other looks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import wsl_zoo
from tests.cases import tiny_data, trainer
from tests.cases.stages import SMALL, save, trained_classifier
from wsl_zoo.data import SyntheticData, ZooDataModule
from wsl_zoo.data.transforms import normalize
from wsl_zoo.encoders.mixed_norm import plain_keys
from wsl_zoo.methods import CAMClassifier
from wsl_zoo.methods.adaptation import SourceFree

SHIFT = {"stain": 1.0, "scanner": 1.0, "blur": 0.6}


def arguments(folder: Path) -> dict[str, Any]:
    """A source of random features whose head splits the tiny scenes, three to one."""
    torch.manual_seed(0)
    model = CAMClassifier(**SMALL | {"num_classes": 2})
    split(model)
    path = save(model, folder / "source.ckpt")
    return SMALL | {"num_classes": 2, "source": path, "norm_mode": "eval"}


def tiny(**kwargs: Any) -> ZooDataModule:
    return tiny_data(**{"classes": 2, "train": 32, "batch_size": 16, "hflip": 0.5} | kwargs)


@torch.no_grad()
def split(model: CAMClassifier) -> dict[str, torch.Tensor]:
    """Give a model a head that parts the tiny scenes by their features; return the bank of them.

    Its rows point to either half of the scenes, its bias makes three of four predictions class 1.
    """
    dataset = tiny().dataset("train")
    images = torch.stack([dataset[i]["image"] for i in range(len(dataset))])
    image = normalize(images, model.encoder.mean, model.encoder.std)
    for norm in model.modules():  # fits the statistics to these weights: features that differ
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = 1.0
    model.train()
    model.encoder.final(image)
    final = model.eval().encoder.final(image)
    features = model.head.embed(final)
    unit = F.normalize(features)
    along = (unit - unit.mean(dim=0)) @ torch.linalg.svd(unit - unit.mean(dim=0)).Vh[0]
    upper = along >= along.median()
    rows = torch.stack([unit[~upper].mean(dim=0), unit[upper].mean(dim=0)])
    scores = features @ (rows[1] - rows[0])
    scale = 2 / scores.std()
    head: Any = model.head
    head.fc.weight.copy_(scale * rows)
    head.fc.bias.copy_(torch.stack([scale * scores.quantile(0.25), torch.tensor(0.0)]))
    logits = head(final)[0]
    return {"features": features, "logits": logits, "probabilities": logits.softmax(dim=1)}


def ready(model: SourceFree) -> None:
    """Give weights and pseudo-labels to a model that no fit has begun with.

    With weights from `fill` all images would look alike to it.
    """
    torch.manual_seed(0)
    start = CAMClassifier(**SMALL | {"num_classes": 2})
    bank = split(start)
    keys = plain_keys(model.encoder)
    state = {keys[key]: value for key, value in start.encoder.state_dict().items()}
    model.encoder.load_state_dict(model.encoder.state_dict() | state)
    model.head.load_state_dict(start.head.state_dict())
    model.pseudo = model.found(bank)


def two_textures(**kwargs: Any) -> SyntheticData:
    settings = {"train": 300, "val": 100, "test": 100, "image_size": 64, "batch_size": 16}
    return SyntheticData(**settings | {"classes": 2, "rotate90": True} | kwargs)


def target() -> SyntheticData:
    """The shifted scenes, of which training sees 7 of 10 of class 0; validation is balanced."""
    return two_textures(shift=SHIFT, proportions=[0.7, 0.3])


def source(folder: Path) -> str:
    """A classifier of the scenes as they are."""
    return trained_classifier(folder, two_textures(), epochs=12)


def adapts(
    method: Callable[..., SourceFree],
    folder: Path,
    margin: float,
    data: SyntheticData | None = None,
    path: str | None = None,
    **changes: Any,
) -> dict[str, tuple[float, float]]:
    """Adapt; return accuracy with the source's plus a margin, and the bias, both negated."""
    data, path = data or target(), path or source(folder)
    names = {"num_classes": 2, "class_names": data.class_names}
    model = method(**SMALL | {"source": path, "lr": 1e-3, "step_size": 100} | names | changes)
    before = wsl_zoo.load(path)
    before.measures_bias = True  # type: ignore[misc]
    found = trainer(folder).validate(before, data, verbose=False)[0]
    trainer(folder, max_epochs=5, limit_val_batches=0).fit(model, data)
    after = trainer(folder).validate(model, data, verbose=False)[0]
    return {
        "accuracy": (after["val/acc"], found["val/acc"] + margin),
        "bias, negated": (-after["val/bias"], -found["val/bias"]),
    }
