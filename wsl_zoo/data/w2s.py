"""W2S: fluorescence micrographs of human cells, as one noisy frame and as the mean of many.

Paper: Zhou et al., "W2S: Microscopy Data with Joint Denoising and Super-Resolution for Widefield to
    SIM Mapping", ECCV Workshops 2020.

Here its widefield frames alone, whose low-resolution images are made by down-sampling; the
published targets by structured illumination are not used. Layout, 8-bit PNG of 512 x 512 pixels:

    clean/{field}_{channel}.png  noisy/{field}_{channel}.png  index.csv  (name,field,channel)

`clean` is the mean of 400 frames, `noisy` one of them. Fields are dealt into folds, with all their
channels; there are no published splits of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from wsl_zoo.data.folder import SPLITS
from wsl_zoo.data.folds import check_folds, deal_rows
from wsl_zoo.data.manifest import INTEGER, DataError
from wsl_zoo.data.pair_files import PairRecord
from wsl_zoo.data.pairs import PairDataModule
from wsl_zoo.data.tables import read_table

Frames = Literal["clean", "noisy"]
COLUMNS = ("name", "field", "channel")


class W2SData(PairDataModule):
    """Widefield frames of W2S, split by field.

    Args:
        root: Folder with `index.csv`, `clean` and `noisy`.
        source: What low-resolution images are made from: "clean" (super-resolution) or "noisy"
            (with denoising, too). Targets are clean.
        channel: Only images of this fluorescence channel; None: all.
        fold: The fold of fields that is `test`; the next one is `val`, the others are `train`.
        folds: Number of folds, at least 3. They are the same for every channel.
        split_seed: Seed of the folds (apart from `seed`, so that runs share their splits).
        **kwargs: See `PairDataModule`.
    """

    def __init__(
        self,
        root: str,
        source: Frames = "clean",
        channel: int | None = None,
        fold: int = 0,
        folds: int = 5,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if source not in get_args(Frames):
            raise ValueError(f"source={source!r} must be one of {', '.join(get_args(Frames))}")
        check_folds(fold, folds)
        self.root = Path(root)
        self.source: Frames = source
        self.channel = channel
        self.fold = fold
        self.folds = folds
        self.split_seed = split_seed

    def read(self) -> dict[str, list[PairRecord]]:  # type: ignore[override]
        """Read the index and deal its fields.

        Raises:
            DataError: All problems at once, with their lines.
        """
        frame = read_table(self.root / "index.csv", "W2S")
        missing = [name for name in COLUMNS if name not in frame.columns]
        if missing:
            expected = f"expected the columns {','.join(COLUMNS)}; missing: {', '.join(missing)}"
            raise DataError(f"W2S {self.root}", [f"index.csv, line 1: {expected}"])
        problems: list[str] = []
        records: list[PairRecord] = []
        channels: list[int] = []
        for line, name, field, channel in frame[list(COLUMNS)].itertuples():
            place = f"index.csv, line {line}"
            if not (name and field and INTEGER.fullmatch(channel)):
                found = f"{name!r}, {field!r}, {channel!r}"
                problems.append(f"{place}: expected a name, a field and a number, found {found}")
            elif name != f"{field}_{channel}":
                problems.append(f"{place}: expected the name {field}_{channel}, found {name!r}")
            else:
                records.append(self._record(name, field, place))
                channels.append(int(channel))
        if self.channel is not None and channels and self.channel not in channels:
            given = ", ".join(map(str, sorted(set(channels))))
            problems.append(f"channel={self.channel} does not exist: there are {given}")
        if problems:
            self.refuse(problems, {"all": records})
        fields = [record.group for record in records]
        split_of = deal_rows(fields, channels, self.fold, self.folds, self.split_seed)
        splits: dict[str, list[PairRecord]] = {split: [] for split in SPLITS}
        for record, channel, split in zip(records, channels, split_of, strict=True):
            if self.channel in (None, channel):
                splits[split].append(record)
        return splits

    def _record(self, name: str, field: str, place: str) -> PairRecord:
        noisy = self.root / "noisy" / f"{name}.png" if self.source == "noisy" else None
        clean = self.root / "clean" / f"{name}.png"
        return PairRecord(None, clean, group=field, place=place, made_from=noisy)
