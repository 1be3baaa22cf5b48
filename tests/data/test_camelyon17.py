from collections import Counter

import numpy as np
import pytest
from PIL import Image

from wsl_zoo.data import Camelyon17Data
from wsl_zoo.data.manifest import DataError

CENTRES = range(5)


def patch_name(patient, kind, number=0):
    return f"{kind}/patient_{patient:03d}_node_{number % 5}_x_{number}_y_7.png"


def write_patch(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 100, 150)).save(path)


def write_mask(folder, name):
    path = folder / "masks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(np.uint8([255, 0]), 32).reshape(8, 8)).save(path)


def write_lists(folder, names):
    """The four files of a split: the cell of the mask is empty where all is background."""
    folder.mkdir(parents=True)
    rows = {
        "image_ids": names,
        "class_labels": [f"{name},{int('tumor/' in name)}" for name in names],
        "image_sizes": [f"{name},8,8" for name in names],
        "localization": [
            f"{name},masks/{name}," if "tumor/" in name else f"{name},," for name in names
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def names_of(centre):
    """Patients 0 to 2 of a centre are for training, 3 for validation, 4 for the test."""
    patients = {"train": (0, 1, 2), "valcl": (3,), "test": (4,)}
    return {
        split: [
            patch_name(20 * centre + i, kind, number)
            for i in numbers
            for kind in ("normal", "tumor")
            for number in range(6)
        ]
        for split, numbers in patients.items()
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Five folds with lists."""
    root = tmp_path_factory.mktemp("camelyon17")
    for centre in CENTRES:
        for split, names in names_of(centre).items():
            write_lists(root / "folds" / f"fold-{centre}" / split, names)
            for name in names:
                write_patch(root, name)
                if "tumor/" in name:
                    write_mask(root, name)
    return root


def paths(data, split):
    return [
        record.image.relative_to(data.root).as_posix() for record in data.sources[split].records
    ]


@pytest.mark.parametrize("centre", CENTRES)
def test_a_fold_is_a_centre(copy, centre):
    data = Camelyon17Data(str(copy), centre, image_size=8)
    assert (data.class_names, data.negative_class) == (["normal", "tumor"], 0)
    data.setup("fit")
    assert list(data.sources) == ["train", "valcl", "valpx", "test"]
    for split, names in names_of(centre).items():
        assert paths(data, split) == names
    assert Counter(record.label for record in data.sources["valpx"].records) == {0: 5, 1: 5}
    assert set(paths(data, "valpx")) <= set(paths(data, "valcl"))
    for source in data.sources.values():
        for record in source.records:
            assert record.label == int(record.image.parent.name == "tumor")
            assert record.group == record.image.name[:11]
            assert int(record.group[-3:]) // 20 == centre
            assert record.empty_mask == (record.label == 0)


def test_only_the_masks_of_valpx_choose_a_checkpoint(copy):
    data = Camelyon17Data(str(copy), centre=1, image_size=8)
    assert data.selection() == {"cl": "valcl/acc", "loc": "valpx/pxap"}
    valcl, valpx = (next(iter(loader)) for loader in data.val_dataloader())
    assert "mask" not in valcl
    assert "mask" not in next(iter(data.train_dataloader()))
    for label, mask in zip(valpx["label"], valpx["mask"], strict=True):
        assert int(mask.sum()) == 32 * int(label)


def test_lists_may_lie_elsewhere_and_name_valpx(copy, tmp_path):
    names = names_of(3)
    for split in ("train", "valcl", "test"):
        write_lists(tmp_path / "fold-3" / split, names[split])
    write_lists(tmp_path / "fold-3" / "valpx", [names["valcl"][8], names["valcl"][1]])
    data = Camelyon17Data(str(copy), 3, str(tmp_path))
    data.setup("fit")
    assert paths(data, "valpx") == [names["valcl"][8], names["valcl"][1]]
    with pytest.raises(DataError, match=r"fold-2/train/image_ids\.txt cannot be read"):
        Camelyon17Data(str(copy), 2, str(tmp_path)).setup("fit")


def test_patients_of_other_centres_are_refused_with_file_and_line(copy, tmp_path):
    names = names_of(1)
    for split in ("train", "valcl", "test"):
        write_lists(tmp_path / "fold-1" / split, names[split])
    strange = [patch_name(19, "normal"), patch_name(40, "tumor"), patch_name(123, "tumor")]
    ids = tmp_path / "fold-1" / "valcl" / "image_ids.txt"
    for file, label in ((ids, ""), (ids.with_name("class_labels.txt"), ",1")):
        with file.open("a") as lines:
            lines.writelines(f"{name}{label}\n" for name in strange)
    with ids.with_name("localization.txt").open("a") as lines:
        lines.writelines(f"{name},masks/{name},\n" for name in strange)
    with pytest.raises(DataError, match=r"Camelyon17Data .*, centre 1: 3 problems") as caught:
        Camelyon17Data(str(copy), 1, str(tmp_path)).setup("fit")
    assert caught.value.problems == [
        "valcl/image_ids.txt, line 13: patient_019 is of centre 0, expected centre 1",
        "valcl/image_ids.txt, line 14: patient_040 is of centre 2, expected centre 1",
        "valcl/image_ids.txt, line 15: patient_123 is of no centre with labels, expected centre 1",
    ]


def test_names_without_a_patient_of_three_digits_are_not_checked(tmp_path):
    root = tmp_path / "patient_099"  # the root is no patch's name
    names = ["normal/patient_40.png", "tumor/patient_0401.png", "normal/a.png", "normal/b.png"]
    for name in names:
        write_patch(root, name)
    write_mask(root, names[1])
    for split, part in (("train", names[:2]), ("valcl", names[2:3]), ("test", names[3:])):
        write_lists(tmp_path / "lists" / "fold-0" / split, part)
    data = Camelyon17Data(str(root), metadata=str(tmp_path / "lists"))
    data.setup("fit")
    assert paths(data, "train") == names[:2]
    assert {record.group for record in data.sources["train"].records} == {""}


def test_problems_of_lists_and_patients_come_at_once(copy, tmp_path):
    names = names_of(0)
    for split in ("train", "valcl", "test"):
        write_lists(tmp_path / "fold-0" / split, names[split])
    with (tmp_path / "fold-0" / "train" / "class_labels.txt").open("a") as lines:
        lines.write("a.png,malignant\n")
    write_lists(tmp_path / "fold-0" / "valpx", [patch_name(80, "tumor")])
    with pytest.raises(DataError, match="2 problems") as caught:
        Camelyon17Data(str(copy), 0, str(tmp_path)).setup("fit")
    assert "class_labels.txt, line 37: class must be integers" in caught.value.problems[0]
    assert "image_ids.txt, line 1: patient_080 is of centre 4" in caught.value.problems[1]


def test_tumor_patches_without_a_mask_are_refused(copy, tmp_path):
    names = names_of(4)
    for split in ("train", "valcl", "test"):
        write_lists(tmp_path / "fold-4" / split, names[split])
    regions = tmp_path / "fold-4" / "test" / "localization.txt"
    regions.write_text(regions.read_text().replace(f"masks/{names['test'][6]}", ""))
    with pytest.raises(DataError, match=r"- test/image_ids\.txt, line 7: tumor patch .* no mask$"):
        Camelyon17Data(str(copy), 4, str(tmp_path)).setup("fit")


def write_folders(folder, patients, masks=True):
    """Four patches per patient and class."""
    for patient in patients:
        for kind in ("normal", "tumor"):
            for number in range(4):
                name = patch_name(patient, kind, number)
                write_patch(folder, name)
                if masks and kind == "tumor":
                    write_mask(folder, name)


def check_patients(data, centre):
    """Three fifths of the patients of a centre train, the others judge; none does both."""
    data.setup("fit")
    groups = {
        split: {record.group for record in source.records} for split, source in data.sources.items()
    }
    assert {split: len(of) for split, of in groups.items()} == {
        "train": 6,
        "valcl": 2,
        "valpx": len(groups["valpx"]),
        "test": 2,
    }
    patients = groups["train"] | groups["valcl"] | groups["test"]
    assert patients == {f"patient_{20 * centre + i:03d}" for i in range(10)}
    assert groups["valpx"] <= groups["valcl"]
    return groups


def test_folders_of_centres(tmp_path):
    for centre in (0, 2):
        write_folders(tmp_path / f"centre-{centre}", range(20 * centre, 20 * centre + 10))
    data = Camelyon17Data(str(tmp_path), centre=2)
    groups = check_patients(data, 2)
    assert check_patients(Camelyon17Data(str(tmp_path), centre=2, seed=5), 2) == groups
    assert check_patients(Camelyon17Data(str(tmp_path), centre=2, split_seed=5), 2) != groups
    assert data.selection() == {"cl": "valcl/acc", "loc": "valpx/pxap"}
    assert all(record.has_mask for record in data.sources["test"].records)
    with pytest.raises(DataError, match=r"centre-1.*\n.*does not exist or is no folder"):
        Camelyon17Data(str(tmp_path), centre=1).setup("fit")
    write_patch(tmp_path / "centre-0", patch_name(41, "normal"))
    with pytest.raises(
        DataError, match=r"- normal/patient_041_.*\.png: patient_041 is of centre 2, expected.* 0"
    ):
        Camelyon17Data(str(tmp_path), centre=0).setup("fit")


def test_folders_with_splits_of_their_own(tmp_path):
    root = tmp_path / "centre-1"
    write_folders(root / "train", [20, 21], masks=False)
    write_folders(root / "val", [22], masks=False)
    write_folders(root / "test", [23], masks=False)
    data = Camelyon17Data(str(tmp_path), centre=1)
    data.setup("fit")
    assert {name: len(source) for name, source in data.sources.items()} == {
        "train": 16,
        "valcl": 8,
        "valpx": 8,
        "test": 8,
    }
    assert data.selection() == {"cl": "valcl/acc", "loc": None}  # no masks, no localisation
    for name in [patch_name(23, "tumor", number) for number in range(3)]:
        write_mask(root, f"test/{name}".removeprefix("masks/"))
    with pytest.raises(DataError, match="5 problems"):  # 4 patches of `valpx`, 1 of `test`
        Camelyon17Data(str(tmp_path), centre=1).setup("fit")


def test_one_set_of_all_centres(tmp_path):
    for centre in (0, 3):
        write_folders(tmp_path, range(20 * centre, 20 * centre + 10))
    check_patients(Camelyon17Data(str(tmp_path), centre=3), 3)
    check_patients(Camelyon17Data(str(tmp_path), centre=0), 0)
    with pytest.raises(DataError, match="split 'train' is empty"):
        Camelyon17Data(str(tmp_path), centre=1).setup("fit")
    write_patch(tmp_path, "normal/slide.png")
    write_patch(tmp_path, patch_name(100, "tumor"))
    with pytest.raises(DataError, match="2 problems") as caught:
        Camelyon17Data(str(tmp_path), centre=3).setup("fit")
    assert sorted(problem.split(": ")[1] for problem in caught.value.problems) == [
        "no patient_NNN tells the centre of slide.png",
        "patient_100 is of no centre with labels, expected centre 3",
    ]


def test_bad_arguments_and_folders_are_refused(tmp_path):
    for centre in (-1, 5):
        with pytest.raises(ValueError, match=f"centre={centre} does not exist: .* 0 to 4"):
            Camelyon17Data(str(tmp_path), centre)
    with pytest.raises(ValueError, match="valpx_per_class=0 must be >= 1"):
        Camelyon17Data(str(tmp_path), valpx_per_class=0)
    with pytest.raises(DataError, match="expected one folder of images per class"):
        Camelyon17Data(str(tmp_path)).setup("fit")
    with pytest.raises(DataError, match="does not exist or is no folder"):
        Camelyon17Data(str(tmp_path / "nowhere")).setup("fit")
