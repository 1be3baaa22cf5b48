"""CLIP-IT on the built-in scenes, each paired with one of a few texts."""

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.cases import Case, fill, tiny_data, trainer
from tests.cases.stages import filled_classifier, save
from wsl_zoo.data import ZooDataModule
from wsl_zoo.data.texts import Texts
from wsl_zoo.methods import CLIPIT, ReportClassifier

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


FEATURES = 64


def rows(count: int, confounded: float, seed: int, shuffle: bool = False) -> DataLoader[Any]:
    """Vision features of tissue, its grade, and the text of a report on its findings.

    The grade is whether a severity is above 0. The stain is half as strong in the features; in a
    share of the rows it follows the grade. Text tells the severity, and nothing of the stain.
    """
    g = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(0)
    severity = torch.randn(count, generator=g)
    label = (severity > 0).long()
    follows = torch.rand(count, generator=g) < confounded
    either = torch.randint(2, (count,), generator=g)
    stain = 2.0 * torch.where(follows, label, either) - 1
    seen = 8 * F.normalize(torch.randn(3, FEATURES, generator=shared), dim=1)
    told = torch.randn(2, DIM, generator=shared)
    other = torch.randn(count, generator=g)
    image = severity[:, None] * seen[0] + 0.5 * stain[:, None] * seen[1] + other[:, None] * seen[2]
    image = image + torch.randn(count, FEATURES, generator=g)
    text = severity[:, None] * told[0] + other[:, None] * told[1]
    text = text + 0.1 * torch.randn(count, DIM, generator=g)
    if shuffle:
        text = text[torch.randperm(count, generator=g)]
    batches = [
        {"index": torch.tensor(i), "features": image[i], "label": label[i], "text": text[i]}
        for i in range(count)
    ]
    return DataLoader(batches, batch_size=48)  # type: ignore[arg-type]


def accuracy(folder: Path, seed: int, shuffle: bool = False, **changes: Any) -> float:
    """Accuracy on rows whose stain tells nothing, after training on 48 in which it follows."""
    torch.manual_seed(seed)
    settings = {
        "num_classes": 2, "encoder": "mlp", "encoder_args": {"hidden": []}, "in_chans": FEATURES,
        "lora_targets": None, "lora_head": False, "text_dim": DIM, "text_hidden": 32, "lr": 5e-3,
    }  # fmt: skip
    model = CLIPIT(**settings | changes)
    run = trainer(folder, max_epochs=150, limit_val_batches=0, gradient_clip_val=0.5)
    run.fit(model, rows(48, 1.0, seed, shuffle))
    loader = rows(2000, 0.0, 100 + seed)
    return float(trainer(folder).test(model, loader, verbose=False)[0]["test/acc"])


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    """Text tells the severity apart from the stain, which the few labels do not."""
    found = {
        name: sum(accuracy(folder, seed, **changes) for seed in range(2)) / 2
        for name, changes in {
            "CLIP-IT": {},
            "without text": {"kd_weight": 0.0},
            "vision alone": {"branches": "vision"},
            "shuffled": {"shuffle": True},
        }.items()
    }
    return {
        "accuracy over that without text": (found["CLIP-IT"], found["without text"] + 0.05),
        "accuracy over that of vision alone": (found["CLIP-IT"], found["vision alone"] + 0.05),
        "accuracy over that of shuffled text": (found["CLIP-IT"], found["shuffled"] + 0.05),
    }


CASES = {"CLIPIT": Case(arguments, golden=161.663, learns=learns, data=paired)}
