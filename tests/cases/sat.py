"""SAT: a small ViT on hues, all of its blocks masked."""

from pathlib import Path
from typing import Any

from tests.cases import Case
from tests.cases.tscam import learned_hues
from wsl_zoo.methods import SAT


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "encoder": "test_vit"}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    """Accuracy beats 0.9 (chance 0.25) and PxAP one and a half times the prevalence.

    Without pretraining the class token has collected what it needs before the last quarter, so that
    only a mask in all blocks decides anything, and the binary term must not decide before it.
    """
    model = SAT(
        num_classes=4, encoder="test_vit", masked_blocks=6, binary_weight=0.1, lr=1e-3,
        schedule="cosine",
    )  # fmt: skip
    return learned_hues(model, folder)


CASES = {"SAT": Case(arguments, golden=4.6050, learns=learns)}
