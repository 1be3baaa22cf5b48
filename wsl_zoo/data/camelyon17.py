"""CAMELYON17 as patches of 512 x 512 pixels of lymph-node slides, its five centres as domains.

Bándi et al., "From Detection of Individual Metastases to Classification of Lymph Node Status at the
Patient Level: The CAMELYON17 Challenge", IEEE TMI 2019. Normal (0) or tumor (1). The 100 patients
with labels are numbered by centre, 20 each: patient_000 to 019 are of centre 0, ..., 080 to 099 of
centre 4. A fold is a centre; every `patient_NNN` in the path of a patch is checked against it.

Patches are read from lists (the files of `data/metadata.py` with masks), else from folders:

    root/folds/fold-<centre>/{train,valcl,test}/*.txt   `valpx` too, or it is drawn from `valcl`
    root/centre-<centre>/...                            a set of its own, as `FolderData` reads it
    root/...                                            one such set of all centres

In folders (`{normal,tumor}/*.png`, perhaps below `train`, `val` and `test`, `masks/` beside them)
the patches of a set of all centres are told apart by their patients; `val` is `valcl`; and splits
that are missing are drawn from `train`, whole patients, a fifth of them each. A set of folders may
come without any mask.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from wsl_zoo.data.folder import FolderData, draw_missing
from wsl_zoo.data.manifest import DataError, Record, Splits
from wsl_zoo.data.patches import CLASSES, TumorPatches

CENTRES = 5
PATIENTS = 20  # of a centre
NO_CENTRE = range(CENTRES, 1000 // PATIENTS)  # what other numbers of three digits amount to
PATIENT = re.compile(r"patient_([0-9]{3})(?![0-9])", re.IGNORECASE)
FRACTIONS = {"val": 0.2, "test": 0.2}  # of the patients, where folders hold no such split


class Camelyon17Data(TumorPatches):
    """Patches of one centre of CAMELYON17.

    Args:
        root: Folder that the paths of the lists start from, or of the folders.
        centre: Centre, 0-4.
        metadata: Folder of the lists `fold-<centre>`; default: `folds` in `root`, else `root`.
        **kwargs: See `TumorPatches`; `split_seed` is also that of splits drawn here.
    """

    def __init__(
        self, root: str, centre: int = 0, metadata: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(root, metadata, **kwargs)
        if metadata is None and (self.root / "folds").is_dir():
            self.metadata = self.root / "folds"
        if centre not in range(CENTRES):
            raise ValueError(
                f"centre={centre} does not exist: there are centres 0 to {CENTRES - 1}"
            )
        self.centre = centre

    def read(self) -> Splits:
        """Read the lists of the centre or, where there are none, the folders.

        Raises:
            DataError: All problems at once; so is every patient of another centre.
        """
        problems: list[str] = []
        listed = self.metadata != self.root or any(self.metadata.glob("fold-*"))
        if listed:
            folder = self.metadata / f"fold-{self.centre}"
            splits = self.read_lists(folder, ["train", "valcl", "test"], problems)
        else:
            splits = self._read_folders(problems)
        for name, records in splits.items():
            splits[name] = [self._with_patient(record, problems) for record in records]
        if problems:
            raise DataError(
                f"{type(self).__name__} {self.metadata}, centre {self.centre}", problems
            )
        if not listed:
            draw_missing(splits, lambda r: r.group or str(r.image), FRACTIONS, self.split_seed)
            splits = {"valcl" if name == "val" else name: r for name, r in splits.items()}
        masks = listed or any(record.masks for split in splits.values() for record in split)
        return self.complete(splits, masks=masks)

    def _read_folders(self, problems: list[str]) -> Splits:
        """Return the splits of the centre's own set, or its part of the set of all centres."""
        own = any(self.root.glob("centre-*"))
        folder = self.root / f"centre-{self.centre}" if own else self.root
        found = FolderData(str(folder), classes=CLASSES, val_fraction=0, test_fraction=0).read()
        if own:
            return found
        splits: Splits = {name: [] for name in found}
        for name, records in found.items():
            for record in records:
                patients = self._patients(record)
                if not patients:
                    problems.append(
                        f"{record.place}: no patient_NNN tells the centre of {record.image.name}"
                    )
                elif any(p // PATIENTS in (self.centre, *NO_CENTRE) for p in patients):
                    splits[name].append(record)
        return splits

    def _patients(self, record: Record) -> list[int]:
        """Return the numbers of the patients that the path of a patch below the root names."""
        return [int(number) for number in PATIENT.findall(self._path_in_metadata(record))]

    def _with_patient(self, record: Record, problems: list[str]) -> Record:
        """Return the record with its patient as group; add patients of other centres."""
        patients = self._patients(record)
        problems += [
            f"{record.place}: patient_{patient:03d} is of {_centre_of(patient)}, "
            f"expected centre {self.centre}"
            for patient in dict.fromkeys(patients)
            if patient // PATIENTS != self.centre
        ]
        return replace(record, group=f"patient_{patients[0]:03d}" if patients else record.group)


def _centre_of(patient: int) -> str:
    centre = patient // PATIENTS
    return f"centre {centre}" if centre < CENTRES else "no centre with labels"
