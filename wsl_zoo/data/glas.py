"""GlaS, the Warwick-QU gland segmentation challenge: 165 colon histology images, benign/malignant.

Sirinukunwattana et al., "Gland segmentation in colon histology images: the GlaS challenge contest",
Medical Image Analysis 2017. Original layout: `train_1.bmp ... train_85.bmp`, `testA_*`, `testB_*`,
instance masks `<name>_anno.bmp` (any id > 0 is gland, in benign and malignant images alike) and
`Grade.csv` (bare carriage returns as line ends, blanks after the commas).

Protocol of the survey (arXiv 1909.03354): the 85 training images in five folds, of which one is
`valcl`; `valpx` is three images per class of `valcl`, the only ones whose masks selection may see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from wsl_zoo.data.base import IMAGE_SUFFIXES, ZooDataModule
from wsl_zoo.data.manifest import DataError, Record, Splits

CLASSES = ["benign", "malignant"]
OFFICIAL = {"train": 85, "testA": 60, "testB": 20}

# Published folds as numbers of the `train_*` images (split files of survey_wsl_histology). The five
# `valcl` parts are all 85 images; of each, `valpx` is three malignant and three benign ones.
VALCL = (
    (24, 54, 5, 36, 26, 77, 74, 18, 83, 68, 38, 72, 65, 51, 12, 63, 2, 52),
    (50, 14, 7, 16, 75, 76, 82, 42, 73, 48, 30, 55, 61, 9, 69, 33, 46, 59),
    (44, 19, 57, 43, 58, 70, 31, 37, 1, 11, 64, 8, 62, 34, 25, 80, 32, 47),
    (81, 60, 27, 40, 71, 3, 17, 41, 28, 78, 21, 79, 53, 6, 22, 20, 56, 4),
    (35, 66, 13, 10, 39, 49, 29, 23, 67, 45, 85, 15, 84),
)
VALPX = (
    (68, 26, 18, 51, 63, 38),
    (16, 50, 82, 33, 61, 30),
    (70, 31, 37, 8, 80, 47),
    (28, 81, 27, 20, 79, 22),
    (10, 66, 23, 67, 45, 85),
)


class GlaSData(ZooDataModule):
    """GlaS in its original layout, with images and masks in any image format.

    Args:
        root: Folder with `Grade.csv` and the images.
        fold: Published fold, 0-4; its fifth of the training images is `valcl`.
        test: Which official test images to use: "all" present, "A" or "B".
        test_fold: Also test on the fold's `valcl` images, with their masks, as `test_fold`
            (cross-validation; then report a checkpoint that was not selected on them).
        **kwargs: See `ZooDataModule`.
    """

    unannotated = frozenset({"valcl"})
    shared = (frozenset({"valcl", "valpx", "test_fold"}),)

    def __init__(
        self,
        root: str,
        fold: int = 0,
        test: Literal["all", "A", "B"] = "all",
        test_fold: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if fold not in range(len(VALPX)):
            raise ValueError(f"fold={fold} does not exist: GlaS has folds 0 to {len(VALPX) - 1}")
        self.root = Path(root)
        self.fold = fold
        self.test = test
        self.test_fold = test_fold

    @property
    def class_names(self) -> list[str]:
        """Benign (0) and malignant (1)."""
        return list(CLASSES)

    def read(self) -> Splits:
        """Read `Grade.csv` and deal the images to the splits of the fold."""
        records = self._read_records()
        train = {name: r for name, r in records.items() if name.startswith("train_")}
        valcl = [f"train_{number}" for number in VALCL[self.fold]]
        valpx = [f"train_{number}" for number in VALPX[self.fold]]
        prefix = "test" if self.test == "all" else f"test{self.test}_"
        splits = {
            "train": [r for name, r in train.items() if name not in valcl],
            "valcl": [train[name] for name in valcl],
            "valpx": [train[name] for name in valpx],
            "test": [r for name, r in records.items() if name.startswith(prefix)],
        }
        if self.test_fold:
            splits["test_fold"] = splits["valcl"]
        if not splits["test"]:
            raise DataError(f"GlaS {self.root}", [f"Grade.csv lists no {prefix}* image"])
        return splits

    def _read_records(self) -> dict[str, Record]:
        grades = read_grades(self.root / "Grade.csv")
        files = {
            path.stem: path
            for path in sorted(self.root.iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        }
        missing_train = [
            f"Grade.csv does not list train_{i}: a complete copy has train_1 to train_85"
            for i in range(1, OFFICIAL["train"] + 1)
            if f"train_{i}" not in grades
        ]
        missing_files = [
            f"Grade.csv lists {name} (line {line}), but there is no {what} {stem} "
            "with an image ending"
            for name, (line, _, _) in grades.items()
            for what, stem in (("image", name), ("mask", f"{name}_anno"))
            if stem not in files
        ]
        if missing_train or missing_files:
            raise DataError(f"GlaS {self.root}", missing_files + missing_train)
        return {
            name: Record(
                image=files[name],
                label=label,
                masks=(files[f"{name}_anno"],),
                group=f"patient-{patient}",
                place=f"Grade.csv, line {line}",
            )
            for name, (line, patient, label) in sorted(grades.items(), key=lambda item: item[1][0])
        }


def read_grades(path: Path) -> dict[str, tuple[int, str, int]]:
    r"""Read `Grade.csv`: name -> (line, patient, label). Line ends may be `\r`, `\n` or both.

    Raises:
        DataError: The file is missing, or rows are malformed, doubled or of an unknown grade.
    """
    if not path.is_file():
        problem = f"{path.name} is missing: is this the GlaS folder?"
        raise DataError(f"GlaS {path.parent}", [problem])
    grades: dict[str, tuple[int, str, int]] = {}
    problems = []
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    for line, text in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in text.split(",")]
        if not any(cells):
            continue
        if len(cells) < 3:
            problems.append(f"line {line}: expected 'name, patient, grade, ...', found {text!r}")
        elif cells[2].lower() not in CLASSES:
            problems.append(f"line {line}: grade {cells[2]!r} is neither benign nor malignant")
        elif cells[0] in grades:
            problems.append(f"line {line}: {cells[0]} is listed twice")
        else:
            grades[cells[0]] = (line, cells[1], CLASSES.index(cells[2].lower()))
    if problems:
        raise DataError(str(path), problems)
    return grades
