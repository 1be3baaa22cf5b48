import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from wsl_zoo.data import GlaSData
from wsl_zoo.data.glas import VALCL, VALPX, read_grades
from wsl_zoo.data.manifest import DataError, read_mask

HEADER = "name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"
FOLDS = range(5)


def names_of(train=85, test_a=60, test_b=20):
    counts = {"testA": test_a, "testB": test_b, "train": train}
    return [f"{part}_{i}" for part, count in counts.items() for i in range(1, count + 1)]


def write_grades(root, names, newline="\r"):
    """As in the released archive: bare carriage returns, blanks after commas, none at the end."""
    grades = {name: i % 2 for i, name in enumerate(names)}
    rows = [
        f"{name},{i % 16 + 1}, {['benign', 'malignant'][grades[name]]}, moderately differentiated"
        for i, name in enumerate(names)
    ]
    (root / "Grade.csv").write_bytes(newline.join([HEADER, *rows]).encode())
    return grades


def write_copy(root, names, endings=(".bmp", ".bmp")):
    root.mkdir(exist_ok=True)
    image, mask = endings
    Image.new("RGB", (12, 8), (200, 100, 150)).save(root / f"image{image}")
    # Instance ids; benign and malignant glands alike are foreground.
    ids = np.zeros((8, 12), np.uint8)
    ids[2:4, 1:5], ids[5:7, 6:11] = 1, 2
    Image.fromarray(ids).save(root / f"mask{mask}")
    for name in names:
        shutil.copy(root / f"image{image}", root / f"{name}{image}")
        shutil.copy(root / f"mask{mask}", root / f"{name}_anno{mask}")
    (root / f"image{image}").unlink()
    (root / f"mask{mask}").unlink()
    return write_grades(root, names)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A whole copy in miniature, and the grades in it."""
    root = tmp_path_factory.mktemp("glas")
    return root, write_copy(root, names_of())


def stems(data, split):
    return [record.image.stem for record in data.sources[split].records]


def published(real_data, fold, split):
    path = real_data / "splits" / "GLAS" / f"fold-{fold}" / split / "image_ids.txt"
    if not path.is_file():
        pytest.skip(f"the published split files are not there: {path}")
    lines = path.read_text().split("\n")
    return [line.rsplit("/", 1)[1].removesuffix(".bmp") for line in lines if line]


@pytest.mark.parametrize("fold", FOLDS)
def test_folds_are_the_published_ones(copy, real_data, fold):
    data = GlaSData(str(copy[0]), fold=fold)
    for split in ("valcl", "valpx"):
        assert stems(data, split) == published(real_data, fold, split)
    for split in ("train", "test"):
        ids = published(real_data, fold, split)
        assert sorted(stems(data, split)) == sorted(ids)
        assert len(set(ids)) == len(ids)


def test_folds_by_their_numbers():
    """Without the published files: five parts that make up 1 to 85."""
    assert [len(part) for part in VALCL] == [18, 18, 18, 18, 13]
    assert sorted(number for part in VALCL for number in part) == list(range(1, 86))
    for valcl, valpx in zip(VALCL, VALPX, strict=True):
        assert len(set(valpx)) == len(valpx) == 6
        assert set(valpx) <= set(valcl)


@pytest.mark.parametrize("fold", FOLDS)
def test_splits_of_a_whole_copy(copy, fold):
    root, grades = copy
    data = GlaSData(str(root), fold=fold)
    data.setup("fit")
    sizes = {split: len(source) for split, source in data.sources.items()}
    valcl = 13 if fold == 4 else 18
    assert sizes == {"train": 85 - valcl, "valcl": valcl, "valpx": 6, "test": 80}
    parts = [set(stems(data, split)) for split in ("train", "valcl", "test")]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 165
    for source in data.sources.values():
        for record in source.records:
            assert record.label == grades[record.image.stem]
            assert record.masks == (root / f"{record.image.stem}_anno.bmp",)
    assert data.class_names == ["benign", "malignant"]
    assert data.split_names("val") == ["valcl", "valpx"]


def test_only_the_masks_of_valpx_choose_a_checkpoint(copy):
    data = GlaSData(str(copy[0]), image_size=8)
    assert data.selection() == {"cl": "valcl/acc", "loc": "valpx/pxap"}
    valcl, valpx = (next(iter(loader)) for loader in data.val_dataloader())
    assert "mask" not in valcl
    assert valpx["has_mask"].all()
    assert [int(mask.sum()) for mask in valpx["mask"]] == [int((valpx["mask"][0] == 1).sum())] * 6
    assert "mask" in next(iter(data.test_dataloader()[0]))
    assert "mask" not in next(iter(data.train_dataloader()))


def test_every_instance_of_either_grade_is_foreground(copy):
    data = GlaSData(str(copy[0]))
    labels = set()
    for record in data.sources["test"].records[:4]:
        mask = read_mask(record, (8, 12))
        assert mask.sum() == 2 * 4 + 2 * 5
        assert set(np.unique(mask)) == {0, 1}
        labels.add(record.label)
    assert labels == {0, 1}


def test_parts_of_the_test_set(copy, tmp_path):
    root = copy[0]
    assert stems(GlaSData(str(root), test="A"), "test") == [f"testA_{i}" for i in range(1, 61)]
    assert stems(GlaSData(str(root), test="B"), "test") == [f"testB_{i}" for i in range(1, 21)]
    part = tmp_path / "part"
    write_copy(part, names_of(test_a=0, test_b=3))
    assert stems(GlaSData(str(part)), "test") == ["testB_1", "testB_2", "testB_3"]
    with pytest.raises(DataError, match=r"Grade.csv lists no testA_\* image"):
        GlaSData(str(part), test="A").setup("fit")


@pytest.mark.parametrize(
    "endings", [(".png", ".png"), (".jpg", ".png"), (".tif", ".bmp"), (".BMP",) * 2]
)
def test_images_and_masks_may_have_any_ending(tmp_path, endings):
    root = tmp_path / "copy"
    write_copy(root, names_of(test_a=1, test_b=0), endings)
    data = GlaSData(str(root), fold=4)
    data.setup("fit")
    record = data.sources["test"].records[0]
    assert (record.image.name, record.masks[0].name) == (
        f"testA_1{endings[0]}",
        f"testA_1_anno{endings[1]}",
    )
    assert read_mask(record, (8, 12)).sum() == 18


def test_a_copy_that_lacks_listed_images_is_refused(tmp_path):
    root = tmp_path / "copy"
    names = names_of(test_a=2, test_b=2)
    write_copy(root, names)
    (root / "testA_2.bmp").unlink()
    (root / "train_7_anno.bmp").unlink()
    with pytest.raises(DataError, match="2 problems") as caught:
        GlaSData(str(root)).setup("fit")
    assert caught.value.problems == [
        "Grade.csv lists testA_2 (line 3), but there is no image testA_2 with an image ending",
        "Grade.csv lists train_7 (line 12), but there is no mask train_7_anno with an image ending",
    ]


def test_a_grade_file_that_lacks_training_images_is_refused(tmp_path):
    root = tmp_path / "copy"
    write_copy(root, [name for name in names_of() if name not in ("train_9", "train_85")])
    with pytest.raises(DataError) as caught:
        GlaSData(str(root)).setup("test")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "Grade.csv does not list train_9",
        "Grade.csv does not list train_85",
    ]


def test_a_mask_of_another_size_is_refused(tmp_path):
    root = tmp_path / "copy"
    write_copy(root, names_of(test_a=1, test_b=0))
    Image.new("L", (12, 9)).save(root / "train_3_anno.bmp")
    with pytest.raises(DataError, match=r"Grade.csv, line 5: mask train_3_anno.bmp is 12x9 pixels"):
        GlaSData(str(root)).setup("fit")


@pytest.mark.parametrize("newline", ["\r", "\n", "\r\n"])
def test_grades_at_any_line_end(tmp_path, newline):
    write_grades(tmp_path, ["train_1", "testB_2"], newline)
    assert read_grades(tmp_path / "Grade.csv") == {
        "train_1": (2, "1", 0),
        "testB_2": (3, "2", 1),
    }


def test_bad_grades_are_listed_with_their_lines(tmp_path):
    rows = [
        "train_1,1, benign, x",
        "train_2,1",
        "",
        "train_3,1, healthy, x",
        "train_1,2, Malignant",
    ]
    (tmp_path / "Grade.csv").write_bytes("\r".join([HEADER, *rows]).encode())
    with pytest.raises(DataError) as caught:
        read_grades(tmp_path / "Grade.csv")
    assert caught.value.problems == [
        "line 3: expected 'name, patient, grade, ...', found 'train_2,1'",
        "line 5: grade 'healthy' is neither benign nor malignant",
        "line 6: train_1 is listed twice",
    ]


def test_what_is_not_glas_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"Grade.csv is missing: is this the GlaS folder"):
        GlaSData(str(tmp_path / "nowhere")).setup("fit")
    for fold in (-1, 5):
        with pytest.raises(ValueError, match=f"fold={fold} does not exist"):
            GlaSData(str(tmp_path), fold=fold)


@pytest.fixture(scope="module")
def real_glas(real_data):
    if not (real_data / "GlaS" / "Grade.csv").is_file():
        pytest.skip("the real GlaS images are not there")
    return real_data / "GlaS"


@pytest.mark.parametrize("fold", FOLDS)
def test_the_real_images_have_the_published_counts(real_glas, fold):
    """29/38 and 8/10 benign/malignant, 32/40 and 5/8 in the last fold; three of each in valpx."""
    data = GlaSData(str(real_glas), fold=fold)
    data.setup("fit")
    counts = {
        split: Counter(record.label for record in source.records)
        for split, source in data.sources.items()
    }
    assert counts["train"] == ({0: 32, 1: 40} if fold == 4 else {0: 29, 1: 38})
    assert counts["valcl"] == ({0: 5, 1: 8} if fold == 4 else {0: 8, 1: 10})
    assert counts["valpx"] == {0: 3, 1: 3}
    whole = len(data.sources["test"]) == 80
    assert counts["test"] == ({0: 37, 1: 43} if whole else {0: 4, 1: 16})


def test_the_real_masks_show_glands_in_every_image(real_glas):
    data = GlaSData(str(real_glas), image_size=224)
    masks = next(iter(data.val_dataloader()[1]))["mask"]
    shares = (masks == 1).float().mean(dim=(1, 2))
    assert ((masks == 0) | (masks == 1)).all()
    assert shares.min() > 0.1
    assert shares.max() < 0.9
