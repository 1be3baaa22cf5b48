"""Features that were computed elsewhere: read from files, matched to what they are of.

    .npy                      an array (N, D)
    .npz                      `features` (N, D), and perhaps `names` (N,)
    .csv                      a name and D numbers per line, with or without a header
    .pt, .pth                 a tensor (N, D), or a dict with `features` and perhaps `names`
    .safetensors              `features` (N, D), or the only tensor that it holds

Features with names are matched by them, in any order, and more of them may be there; without names,
row i is of item i.
"""

from __future__ import annotations

import csv
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wsl_zoo.data.manifest import DataError, suggestion

ENDINGS = (".npy", ".npz", ".csv", ".pt", ".pth", ".safetensors")
KEY, NAMES = "features", "names"
SHOWN = 3  # names that a message lists


def read_features(
    path: str | Path, names: Sequence[str], what: str, only: Sequence[int] | None = None
) -> Tensor:
    """Read the features of items.

    Args:
        path: The file.
        names: The N items; without names in the file, row i is of item i.
        what: What they are, for messages ("image").
        only: Positions of the n items whose features are read; None: all.

    Returns:
        `(n, D)` float32, in the order of `names`, or of `only`.

    Raises:
        DataError: There is no such file, it cannot be read, items have none, or features are 0 or
            no numbers.
    """
    problems: list[str] = []
    known, features = _read(Path(path), problems)
    asked = list(range(len(names)) if only is None else only)
    if features is not None and (features.ndim != 2 or features.dtype.kind not in "fiu"):
        problems.append(f"expected numbers (N, D), found {features.shape} {features.dtype}")
    elif features is not None and known is not None:
        features = features[_order(known, len(features), [names[i] for i in asked], what, problems)]
    elif features is not None and len(features) != len(names):
        problems.append(
            f"{len(features)} rows for {len(names)} {what}s, and no names to match them by"
        )
    elif features is not None and only is not None:
        features = features[asked]
    if problems or features is None:
        raise DataError(f"Features {path}", problems)
    found = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    length = torch.linalg.vector_norm(found, dim=1, dtype=torch.float64)
    wrong = (~torch.isfinite(length) | (length == 0)).nonzero().flatten().tolist()
    if wrong:
        some = _few([names[asked[i]] for i in wrong])
        problem = f"those of {len(wrong)} {what}s are 0 or no numbers: {some}"
        raise DataError(f"Features {path}", [problem])
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _order(
    known: Sequence[str], rows: int, names: Sequence[str], what: str, problems: list[str]
) -> list[int]:
    """Return the row of every item; add to `problems` why there is none."""
    if len(known) != rows:
        problems.append(f"{len(known)} names for {rows} rows")
        return []
    position = {name: i for i, name in enumerate(known)}
    asked = set(names)
    twice = [name for name, times in Counter(known).items() if times > 1 and name in asked]
    if twice:
        problems.append(f"{len(twice)} {what}s stand there more than once: {_few(twice)}")
    missing = [name for name in names if name not in position]
    if missing:
        near = suggestion(missing[0], known[:1000]) or (f" (it names {known[0]})" if known else "")
        problems.append(
            f"{len(missing)} of {len(names)} {what}s are not in it: {_few(missing)}{near}"
        )
        return []
    return [position[name] for name in names]


def _read(path: Path, problems: list[str]) -> tuple[list[str] | None, np.ndarray | None]:
    """Return names, if there are, and features; None, and a problem, where they cannot be read."""
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        problems.append(f"a file of features ends in {', '.join(ENDINGS)}")
        return None, None
    if not path.is_file():
        problems.append("there is no such file")
        return None, None
    try:
        if ending == ".csv":
            return _read_table(path)
        if ending == ".npy":
            return None, np.load(path, allow_pickle=False)
        content: Any
        if ending == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                content = dict(archive)
        elif ending == ".safetensors":
            content = load_file(path)
            if KEY not in content and len(content) == 1:
                content = next(iter(content.values()))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, EOFError, RuntimeError, BadZipFile, csv.Error, SafetensorError,
            pickle.UnpicklingError) as error:  # fmt: skip
        problems.append(f"it cannot be read ({error})")
        return None, None
    if not isinstance(content, dict):
        content = {KEY: content}
    if KEY not in content:
        problems.append(f"there is no {KEY!r} in it; found: {', '.join(map(str, content))}")
        return None, None
    features, names = content[KEY], content.get(NAMES)
    if isinstance(features, Tensor):
        features = features.detach()
        features = (features.float() if features.is_floating_point() else features).numpy()
    return None if names is None else [str(name) for name in names], np.asarray(features)


def _read_table(path: Path) -> tuple[list[str], np.ndarray]:
    """Return the names and the numbers of a table.

    Raises:
        ValueError: Rows of different length, or cells that are no numbers; tells the line.
    """
    names: list[str] = []
    rows: list[np.ndarray] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True)
        for cells in lines:
            if not cells:
                continue
            try:
                row = np.array(cells[1:], dtype=np.float32)
            except ValueError as error:
                if lines.line_num == 1:  # a header
                    continue
                raise ValueError(f"line {lines.line_num}: {error}") from error
            if rows and len(row) != len(rows[0]):
                raise ValueError(f"line {lines.line_num}: {len(row)} numbers after {len(rows[0])}")
            names.append(cells[0].strip())
            rows.append(row)
    if not rows:
        raise ValueError("there is no row of a name and numbers")
    return names, np.stack(rows)
