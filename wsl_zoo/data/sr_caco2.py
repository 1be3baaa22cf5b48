"""SR-CACO-2: confocal fluorescence micrographs of Caco-2 cysts, scanned at four resolutions.

Paper: Belharbi et al., "SR-CACO-2: A Dataset for Confocal Fluorescence Microscopy Image
    Super-Resolution", NeurIPS 2024 Datasets and Benchmarks (arXiv 2406.09168).

Original layout of the patches (8-bit TIFF of one channel; the data are CC BY-NC-SA 4.0):

    caco2/hr_div_1/tile_HighRes1024-{tile}_{patch}_{i}_{ii}_{j}_{jj}_{CELLc}.tif
    caco2/hr_div_{s}/tile_{LowRes512|LowRes256|LowRes128}-{tile}_..._{CELLc}.tif
    folds/caco2_{train|val|test}_X_{s}_in_{512/s}_out_512_cell_{CELLc}/h_l.txt

A line of `h_l.txt` is `high,low`, one of `l_h.txt` is `low,high`; paths start at the folder that
holds `caco2`, with or without `caco2/` before them. Of the 22 tiles 15 are `train` (7,349 patches),
three `val` (7, 11, 19: 1,117) and four `test` (9, 10, 14, 20: 1,471). Names hold the coordinates of
the 640-pixel window whose centre the patch is, at their own resolution.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from wsl_zoo.data.folder import SPLITS
from wsl_zoo.data.pair_files import PairRecord
from wsl_zoo.data.pairs import PairDataModule

Marker = Literal["CELL0", "CELL1", "CELL2"]
"""Survivin (dim), E-cadherin or GFP-tubulin, mCherry-Histone H2B (brightest)."""

SIDE = 512  # of a high-resolution patch
VAL_LIMIT = 128  # lines of `val` by which the benchmark selects
NAME = re.compile(
    r"tile_(?:HighRes|LowRes)\d+-(?P<tile>\d+)_[^_]+_(?P<at>\d+_\d+_\d+_\d+)_(?P<marker>CELL\d+)"
)


class PatchName(NamedTuple):
    """What the name of a patch tells.

    Attributes:
        tile: The tile that it was cut from.
        at: (i, ii, j, jj), the window's coordinates at the resolution of the scan.
        marker: The marker, as of "CELL0".
    """

    tile: str
    at: tuple[int, ...]
    marker: str


def parse_name(path: str) -> PatchName:
    """Read the name of a patch.

    Raises:
        ValueError: It is none.

    >>> parse_name("caco2/hr_div_2/tile_LowRes512-9_12_0_320_128_448_CELL2.tif")
    PatchName(tile='9', at=(0, 320, 128, 448), marker='CELL2')
    """
    found = NAME.fullmatch(Path(path).stem)
    if found is None:
        expected = "tile_<scan>-<tile>_<patch>_<i>_<ii>_<j>_<jj>_<CELLc>.tif"
        raise ValueError(f"{Path(path).name!r} is no name of a patch, expected {expected}")
    at = tuple(map(int, found["at"].split("_")))
    return PatchName(found["tile"], at, found["marker"])


class SRCACO2Data(PairDataModule):
    """SR-CACO-2 in its original layout, with the published splits.

    Args:
        root: Folder that holds `caco2`.
        marker: Which marker's images: "CELL0", "CELL1" or "CELL2".
        folds_root: Folder of the split files; default: `folds` in the root.
        val_limit: How many patches of `val`, from its first on; the benchmark selects by 128. None:
            all.
        **kwargs: See `PairDataModule`.
    """

    def __init__(
        self,
        root: str,
        marker: Marker = "CELL2",
        folds_root: str | None = None,
        val_limit: int | None = VAL_LIMIT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if marker not in get_args(Marker):
            raise ValueError(f"marker={marker!r} must be one of {', '.join(get_args(Marker))}")
        if val_limit is not None and val_limit < 1:
            raise ValueError(f"val_limit={val_limit} must be positive, or None for all of `val`")
        self.root = Path(root)
        self.marker: Marker = marker
        self.folds_root = self.root / "folds" if folds_root is None else Path(folds_root)
        self.val_limit = val_limit

    def read(self) -> dict[str, list[PairRecord]]:  # type: ignore[override]
        """Read the split files.

        Raises:
            DataError: All problems at once, with their lines.
        """
        problems: list[str] = []
        splits = {split: self._read_split(split, problems) for split in SPLITS}
        first: dict[str, tuple[str, str]] = {}  # tile -> split and place of its first patch
        for split, records in splits.items():
            shared = set()
            for record in records:
                other, place = first.setdefault(record.group, (split, record.place))
                if other != split and record.group not in shared:
                    shared.add(record.group)
                    where = f"splits {other!r} ({place}) and {split!r}: splits share no tile"
                    problems.append(f"{record.place}: tile {record.group} stands in {where}")
        splits["val"] = splits["val"][: self.val_limit]
        if problems:
            # That a split is empty has then been said.
            self.refuse(problems, {name: own for name, own in splits.items() if own})
        return splits

    def _read_split(self, split: str, problems: list[str]) -> list[PairRecord]:
        size = SIDE // self.scale
        name = f"caco2_{split}_X_{self.scale}_in_{size}_out_{SIDE}_cell_{self.marker}"
        files = [self.folds_root / name / file for file in ("h_l.txt", "l_h.txt")]
        path = next((file for file in files if file.is_file()), None)
        if path is None:
            problems.append(f"{self.folds_root / name} holds neither h_l.txt nor l_h.txt")
            return []
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path} cannot be read ({error})")
            return []
        records: list[PairRecord] = []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{name}/{path.name}, line {number}"
                try:
                    records.append(self._record(line, place, high_first=path.name == "h_l.txt"))
                except ValueError as error:
                    problems.append(f"{place}: {error}")
        return records

    def _record(self, line: str, place: str, *, high_first: bool) -> PairRecord:
        """Turn a line of a split file into its pair.

        Raises:
            ValueError: It is none of this marker and scale.
        """
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 2 or not all(cells):
            order = "high,low" if high_first else "low,high"
            raise ValueError(f"expected two paths '{order}', found {line.strip()!r}")
        high, low = cells if high_first else cells[::-1]
        target, image = parse_name(high), parse_name(low)
        for path, found in ((high, target), (low, image)):
            if found.marker != self.marker:
                raise ValueError(f"{Path(path).name} is of {found.marker}, expected {self.marker}")
        expected = (target.tile, tuple(n // self.scale for n in target.at))
        if (image.tile, image.at) != expected:
            raise ValueError(
                f"{Path(low).name} is of tile {image.tile} at {_text(image.at)}; its target "
                f"{Path(high).name} is, at 1/{self.scale} of its resolution, of tile "
                f"{expected[0]} at {_text(expected[1])}"
            )
        return PairRecord(self._file(low), self._file(high), group=target.tile, place=place)

    def _file(self, path: str) -> Path:
        return self.root / "caco2" / path.removeprefix("./").removeprefix("caco2/")


def _text(coordinates: tuple[int, ...]) -> str:
    return "_".join(map(str, coordinates))
