"""A tiny image-text model in open-clip's form, as a config file."""

import json
from pathlib import Path

TINY_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def tiny_clip(folder: Path, **changes: object) -> str:
    """Write the config; return its path."""
    path = folder / "tiny_clip.json"
    path.write_text(json.dumps(TINY_CLIP | changes), encoding="utf-8")
    return str(path)
