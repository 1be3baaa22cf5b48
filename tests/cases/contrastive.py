"""Contrastive fine-tuning with the prompts of a tiny text tower, and on features of tissue."""

from pathlib import Path
from typing import Any

import torch

from tests.cases import Case, trainer
from tests.cases.clip import tiny_clip
from tests.cases.clipit import DIM, FEATURES, rows
from wsl_zoo.methods import ContrastiveCLIP

TINY = {"num_classes": 4, "encoder": "test_resnet", "text_dim": DIM, "lora_rank": 2}


def arguments(folder: Path) -> dict[str, Any]:
    return TINY | {"text_encoder": {"name": tiny_clip(folder)}, "templates": ["{}.", "a {}"]}


def ready(model: Any) -> None:
    """Texts of the classes, as if prompts had been embedded."""
    count = model.class_text.numel()
    wave = torch.cos(torch.arange(count, dtype=torch.float64) * 1.7).float()
    model.class_text.copy_(wave.view_as(model.class_text))


def accuracy(folder: Path, **changes: Any) -> float:
    torch.manual_seed(0)
    torch.save(torch.randn(2, DIM), folder / "prompts.pt")
    settings = {
        "num_classes": 2, "encoder": "mlp", "encoder_args": {"hidden": []}, "in_chans": FEATURES,
        "prompt_features": str(folder / "prompts.pt"), "lora_targets": None, "text_dim": DIM,
    }  # fmt: skip
    model = ContrastiveCLIP(**settings | changes)
    trainer(folder, max_epochs=20, limit_val_batches=0).fit(model, rows(192, 0.0, 0))
    found = trainer(folder).test(model, rows(1000, 0.0, 100), verbose=False)
    return float(found[0]["test/acc"])


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    """Features of tissue are brought to the prompt of their grade."""
    return {
        "accuracy": (accuracy(folder), 0.85),
        "accuracy, told from its batch": (accuracy(folder, negatives="batch"), 0.85),
    }


CASES = {"ContrastiveCLIP": Case(arguments, golden=5.2892, learns=learns, ready=ready)}
