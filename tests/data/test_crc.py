import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import train_test_split

from wsl_zoo.data import CRCData, manifest
from wsl_zoo.data.crc import CLASSES, PUBLISHED, draw_stratified
from wsl_zoo.data.manifest import DataError, decided

# What a miniature copy differs in from the published set; one test looks at the warning itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*is not the whole published set")

# Tiles of every class of the 100K, as its authors count them.
SIZES = {
    "ADI": 10_407, "BACK": 10_566, "DEB": 11_512, "LYM": 11_557, "MUC": 8_896,
    "MUS": 13_536, "NORM": 8_763, "STR": 10_446, "TUM": 14_317,
}  # fmt: skip
TRAINED, TESTED = "NCT-CRC-HE-100K", "CRC-VAL-HE-7K"


def tile(shade=0):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 100, 150)).save(file, format="TIFF")
    return file.getvalue()


def write_tiles(root, trained=10, tested=2, skip=()):
    for name, count in ((TRAINED, trained), (TESTED, tested)):
        for k, kind in enumerate(CLASSES):
            if (name, kind) in skip:
                continue
            folder = root / name / kind
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{kind}-{name[:3]}{i:04d}.tif").write_bytes(tile(25 * k))
    return root


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return write_tiles(tmp_path_factory.mktemp("crc"))


def names_of(data, split):
    return {r.image.relative_to(data.root).as_posix() for r in data.sources[split].records}


def test_the_100k_trains_and_validates_and_the_7k_tests(copy):
    data = CRCData(str(copy), image_size=8, batch_size=18)
    assert data.class_names == ["ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"]
    assert data.negative_class is None
    data.setup("fit")
    assert list(data.sources) == ["train", "val", "test"]
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        records = data.sources[split].records
        assert Counter(r.label for r in records) == dict.fromkeys(range(9), count)
        for record in records:
            assert record.image.parent.name == CLASSES[record.label]
            assert record.image.parents[1].name == (TESTED if split == "test" else TRAINED)
            assert record.place == record.image.relative_to(copy).as_posix()
    assert len(names_of(data, "train") | names_of(data, "val")) == 90
    assert data.selection() == {"cl": "val/acc", "loc": None}
    batch = next(iter(data.test_dataloader()[0]))
    assert (batch["image"][:, 0, 0, 0] == 25 * batch["label"]).all()


def test_val_depends_on_its_seed_and_fraction_alone(copy):
    def val(**kwargs):
        return names_of(CRCData(str(copy), verify="none", **kwargs), "val")

    assert val(seed=7) == val() == val(split_seed=42)
    assert val(split_seed=0) != val()
    assert len(val(val_fraction=0.5)) == 45


def test_the_published_sizes():
    assert sum(SIZES.values()) == 100_000
    names = {kind: [f"{kind}-{i:05d}.tif" for i in range(n)] for kind, n in SIZES.items()}
    drawn = draw_stratified(names, 0.2, seed=42)
    assert len(drawn) == 20_000
    assert drawn <= {name for own in names.values() for name in own}
    # A fifth of every class; of the three tiles left, NORM (1752.6) has the largest remainder, and
    # of ADI, DEB, LYM and TUM (all .4) the first two come next.
    assert Counter(name.partition("-")[0] for name in drawn) == {
        "ADI": 2082, "BACK": 2113, "DEB": 2303, "LYM": 2311, "MUC": 1779,
        "MUS": 2707, "NORM": 1753, "STR": 2089, "TUM": 2863,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "fraction"),
    [((7, 12, 5), 0.2), ((30, 3, 9), 0.25), ((11, 11, 11), 0.1), ((40, 21, 13), 0.33)],
)
def test_numbers_are_those_of_scikit_learn(sizes, fraction):
    names = {f"c{k}": [f"c{k}-{i}" for i in range(n)] for k, n in enumerate(sizes)}
    drawn = Counter(name.partition("-")[0] for name in draw_stratified(names, fraction, seed=1))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    _, theirs = train_test_split(labels, test_size=fraction, random_state=42, stratify=labels)
    assert drawn.total() == len(theirs)
    assert all(abs(drawn[f"c{k}"] - (theirs == k).sum()) <= 1 for k in range(len(sizes)))


def test_the_draw_does_not_depend_on_order_or_endings():
    names = {"a": [f"a{i}.tif" for i in range(30)], "b": [f"b{i}.tif" for i in range(12)]}
    drawn = draw_stratified(names, 0.3, seed=0)
    assert draw_stratified({k: own[::-1] for k, own in names.items()}, 0.3, seed=0) == drawn
    others = {k: [name.replace("tif", "png") for name in own] for k, own in names.items()}
    assert {Path(n).stem for n in draw_stratified(others, 0.3, 0)} == {Path(n).stem for n in drawn}


def test_problems_of_the_folders_come_at_once(tmp_path):
    write_tiles(tmp_path, 1, 1, skip={(TRAINED, "DEB"), (TESTED, "TUM")})
    (tmp_path / TRAINED / "DEBRIS").mkdir()
    (tmp_path / TESTED / "TUM").mkdir()
    (tmp_path / TESTED / "stray.tif").write_bytes(tile())
    with pytest.raises(DataError, match=r"CRCData .*: 4 problems") as caught:
        CRCData(str(tmp_path)).setup("fit")
    assert caught.value.problems == [
        f"{TRAINED}: DEBRIS: unknown class (did you mean 'DEB'?)",
        f"{TRAINED}: there is no folder DEB",
        f"{TESTED}: stray.tif: expected it in the folder of its class",
        f"{TESTED}: TUM: it holds no image",
    ]
    with pytest.raises(DataError) as caught:
        CRCData(str(tmp_path / "nowhere")).setup("fit")
    assert caught.value.problems == [
        f"there is no folder {TRAINED}",
        f"there is no folder {TESTED}",
    ]


@pytest.mark.parametrize("fraction", [0, 1, -0.2, float("nan")])
def test_a_fraction_that_leaves_nothing_is_refused(tmp_path, fraction):
    with pytest.raises(ValueError, match=r"val_fraction=.* must be in \(0, 1\)"):
        CRCData(str(tmp_path), val_fraction=fraction)


def test_the_whole_set_is_not_decoded_by_default(copy, tmp_path, monkeypatch):
    assert CRCData(str(copy)).verify == "auto"
    assert decided("auto", sum(PUBLISHED.values())) == "header"
    write_tiles(tmp_path)
    cut = tmp_path / TESTED / "MUS" / "MUS-CRC0001.tif"
    cut.write_bytes(tile()[:-20])
    with pytest.raises(DataError, match=r"MUS-CRC0001\.tif is not a readable image"):
        CRCData(str(tmp_path)).setup("fit")
    monkeypatch.setattr(manifest, "DECODED", 107)  # one fewer than the tiles of the copy
    CRCData(str(tmp_path)).setup("fit")


def test_a_copy_that_is_not_whole_gives_a_warning(copy):
    with pytest.warns(UserWarning, match="is not the whole published set") as caught:
        CRCData(str(copy)).setup("fit")
    (warning,) = caught
    assert str(warning.message).endswith(
        "90 NCT-CRC-HE-100K (published: 100,000), 18 CRC-VAL-HE-7K (published: 7,180)"
    )


def test_training_does_not_augment(copy):
    data = CRCData(str(copy))
    assert data.augment.identity
    assert not CRCData(str(copy), hflip=0.5).augment.identity
