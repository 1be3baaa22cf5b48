"""What a folder of runs holds: which files, and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"
JOB = "job.json"
CURVE = "curve.csv"


def runs_below(root: Path, file: str) -> list[tuple[Path, dict[str, Any]]]:
    """Folders below one that hold a file, with their jobs, methods as in the pipeline's file."""
    runs = []
    for folder in sorted(path.parent for path in root.rglob(file)):
        path = folder / JOB
        runs.append((folder, json.loads(path.read_text("utf-8")) if path.is_file() else {}))
    return sorted(runs, key=lambda run: run[1].get("order", 0))
