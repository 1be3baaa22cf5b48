"""Lists of one split as CSV without a header, `image,mask,class`, as min-max entropy publishes its.

Belharbi et al., "Min-max Entropy for Weakly Supervised Pointwise Localization", arXiv 1907.12934.
Paths are relative to one root; an empty mask cell means "no mask"; the class is a name.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from wsl_zoo.data.manifest import Foreground, Record, parse_label

CELLS = ("image", "mask", "class")


def read_list(
    path: Path,
    root: Path,
    class_names: Sequence[str],
    problems: list[str],
    *,
    foreground: Foreground = "nonzero",
) -> list[Record]:
    """Read one list in file order.

    Args:
        path: The CSV file.
        root: Folder that its paths start from.
        class_names: The K classes.
        problems: Receives everything that is wrong, with file and line.
        foreground: Which pixels of a mask file are foreground.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read ({error})")
        return []
    records = []
    reader = csv.reader(lines, skipinitialspace=True)
    for row in reader:
        line = reader.line_num
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != len(CELLS) or not cells[0]:
            problems.append(
                f"{path}, line {line}: expected {','.join(CELLS)}, found {','.join(row)!r}"
            )
            continue
        image, mask, name = cells
        try:
            label = parse_label(name, class_names)
        except ValueError as error:
            problems.append(f"{path}, line {line}: {error}")
            continue
        records.append(
            Record(
                root / image,
                label,
                masks=(root / mask,) if mask else (),
                place=f"{path.name}, line {line}",
                foreground=foreground,
            )
        )
    return records
