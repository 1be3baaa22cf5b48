"""SCM: a small ViT on hues, trained through diffusion, read without."""

from pathlib import Path
from typing import Any

from tests.cases import Case
from tests.cases.tscam import learned_hues
from wsl_zoo.methods import SCM


def arguments(folder: Path) -> dict[str, Any]:
    return {"num_classes": 4, "encoder": "test_vit", "blocks": 2}


def learns(folder: Path) -> dict[str, tuple[float, float]]:
    """Accuracy beats 0.9 (chance 0.25) and PxAP one and a half times the prevalence."""
    model = SCM(num_classes=4, encoder="test_vit", blocks=2, lr=1e-3, schedule="cosine")
    return learned_hues(model, folder)


CASES = {"SCM": Case(arguments, golden=1.3871, learns=learns)}
