import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsl_zoo.data import Camelyon16Data, Record
from wsl_zoo.data.camelyon16 import deal, metastatic_fraction
from wsl_zoo.data.manifest import DataError

FOLDS = range(5)


def patch_names(pool):
    """Names of one normal and one tumor patch per number; every slide has four."""
    slide = "test" if pool == "test" else None
    for i in range(12 if pool == "test" else 32):
        for kind in ("normal", "tumor"):
            fraction = "" if kind == "normal" else f"_{0.2 + i / 100:.2f}"
            yield f"{pool}/{kind}/{slide or kind}_{i // 4:03d}_x_{i}_y_7{fraction}.png"


def write_lists(folder, names, masks=True):
    folder.mkdir(parents=True)
    rows = {
        "image_ids": names,
        "class_labels": [f"{name},{int('/tumor/' in name)}" for name in names],
        "image_sizes": [],
        "localization": [
            f"{name},masks/{name}," if "/tumor/" in name else f"{name},None," for name in names
        ]
        * masks,
    }
    for name, lines in rows.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Patches of 8 pixels, tumor patches with masks, and the lists of a pool and of one fold."""
    root = tmp_path_factory.mktemp("camelyon")
    pools = {pool: list(patch_names(pool)) for pool in ("train", "test")}
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    for names in pools.values():
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (200, 100, 150)).save(root / name)
            if "/tumor/" in name:
                (root / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(root / "masks" / name)
    for pool, names in pools.items():
        write_lists(root / "pool" / pool, names)
    fold = root / "folds" / "fold-3"
    write_lists(fold / "train", pools["train"][16:])
    write_lists(fold / "valcl", pools["train"][:16])
    write_lists(fold / "test", pools["test"])
    return root


def data_of(copy, lists="pool", **kwargs):
    return Camelyon16Data(str(copy), str(copy / lists), image_size=8, **kwargs)


def images(data, split):
    return [
        record.image.relative_to(data.root).as_posix() for record in data.sources[split].records
    ]


@pytest.mark.parametrize("fold", FOLDS)
def test_a_pool_is_dealt_into_folds(copy, fold):
    data = data_of(copy, fold=fold)
    assert data.class_names == ["normal", "tumor"]
    data.setup("fit")
    assert list(data.sources) == ["train", "valcl", "valpx", "test"]
    each = 4 if fold == 4 else 7  # of 32: ceil(32 / 5) and the remainder
    counts = {
        k: Counter(record.label for record in source.records) for k, source in data.sources.items()
    }
    assert counts["valcl"] == {0: each, 1: each}
    assert counts["train"] == {0: 32 - each, 1: 32 - each}
    assert counts["valpx"] == dict.fromkeys(range(2), min(each, 5))
    assert counts["test"] == {0: 12, 1: 12}
    assert set(images(data, "valpx")) <= set(images(data, "valcl"))
    assert sorted(images(data, "train") + images(data, "valcl")) == sorted(patch_names("train"))
    for source in data.sources.values():
        for record in source.records:
            assert record.label == int(record.image.parent.name == "tumor")
            assert record.group == record.image.name[: record.image.name.index("_x_")]


def test_folds_cover_the_pool_once_and_depend_on_their_seed_only(copy):
    folds = [images(data_of(copy, fold=fold), "valcl") for fold in FOLDS]
    assert sorted(name for fold in folds for name in fold) == sorted(patch_names("train"))
    assert images(data_of(copy, fold=2, seed=3), "valcl") == folds[2]
    assert images(data_of(copy, fold=2, split_seed=3), "valcl") != folds[2]
    assert images(data_of(copy, split_seed=3), "valpx") != images(data_of(copy), "valpx")
    assert len(data_of(copy, valpx_per_class=2).sources["valpx"]) == 4


def test_the_published_pool_gives_the_published_counts():
    """33,206 patches: 6,642 in `valcl` of folds 0 to 3, 6,638 in the last."""
    records = [Record(Path(f"{i}.png"), i % 2) for i in range(33_206)]
    for fold, count in zip(FOLDS, [6_642] * 4 + [6_638], strict=True):
        train, valcl = deal(records, fold, seed=0)
        assert (len(train), len(valcl)) == (33_206 - count, count)
        assert Counter(record.label for record in valcl) == {0: count // 2, 1: count // 2}


def test_published_folds_are_taken_as_they_are(copy):
    data = data_of(copy, "folds", fold=3)
    data.setup("fit")
    pool = list(patch_names("train"))
    assert images(data, "train") == pool[16:]
    assert images(data, "valcl") == pool[:16]
    assert len(images(data, "valpx")) == 10
    assert set(images(data, "valpx")) <= set(pool[:16])
    with pytest.raises(DataError, match=r"train.image_ids\.txt cannot be read"):
        data_of(copy, "folds", fold=0).setup("fit")  # neither its folder nor a pool


def test_a_published_list_of_valpx_is_taken(copy, tmp_path):
    pool = list(patch_names("train"))
    fold = tmp_path / "fold-0"
    write_lists(fold / "train", pool[16:])
    write_lists(fold / "valcl", pool[:16], masks=False)
    write_lists(fold / "valpx", [pool[5], pool[2]])
    write_lists(fold / "test", list(patch_names("test")))
    data = Camelyon16Data(str(copy), str(tmp_path))
    data.setup("fit")
    assert images(data, "valpx") == [pool[5], pool[2]]
    assert data.sources["valpx"].records[0].masks == (copy / "masks" / pool[5],)


def write_csv(folder, pools, fold=0):
    for name, names in pools.items():
        rows = [f"{n},masks/{n},tumor" if "/tumor/" in n else f"{n},,normal" for n in names]
        (folder / f"{name}_s_0_f_{fold}.csv").write_text("\n".join(rows) + "\n")


def test_the_published_lists_of_p512(copy, tmp_path):
    pool = list(patch_names("train"))
    write_csv(tmp_path, {"train": pool[16:], "valid": pool[:16], "test": patch_names("test")})
    data = Camelyon16Data(str(copy), str(tmp_path), image_size=8)
    data.setup("fit")
    assert list(data.sources) == ["train", "valcl", "valpx", "test"]
    assert images(data, "train") == pool[16:]
    assert images(data, "valcl") == pool[:16]
    assert images(data, "test") == list(patch_names("test"))
    assert len(images(data, "valpx")) == 10
    for record in data.sources["test"].records:
        tumor = record.image.parent.name == "tumor"
        assert (record.label, record.empty_mask) == (int(tumor), not tumor)
        assert record.masks == ((copy / "masks" / record.image.relative_to(copy),) if tumor else ())
        assert record.group == record.image.name[: record.image.name.index("_x_")]
    assert data.sources["valcl"].records[1].place == "valid_s_0_f_0.csv, line 2"
    assert data.selection() == {"cl": "valcl/acc", "loc": "valpx/pxap"}
    few = Camelyon16Data(str(copy), str(tmp_path), min_fraction=0.25)
    assert len(few.sources["valcl"]) == 16 - 5


def test_published_lists_that_are_bad_come_at_once(copy, tmp_path):
    tumor = next(name for name in patch_names("test") if "/tumor/" in name)
    write_csv(tmp_path, {"train": list(patch_names("train")), "valid": []})
    (tmp_path / "valid_s_0_f_0.csv").write_text("a.png,,metastasis\n")
    with pytest.raises(DataError) as caught:
        Camelyon16Data(str(copy), str(tmp_path)).setup("fit")
    assert [problem.split(" (")[0] for problem in caught.value.problems] == [
        f"{tmp_path / 'valid_s_0_f_0.csv'}, line 1: unknown class 'metastasis'",
        f"{tmp_path / 'test_s_0_f_0.csv'} cannot be read",
    ]
    with pytest.raises(DataError, match=r"train_s_0_f_1\.csv cannot be read"):
        Camelyon16Data(str(copy), str(tmp_path), fold=1).setup("fit")
    pool = list(patch_names("train"))
    write_csv(tmp_path, {"train": pool[16:], "valid": pool[:16]})
    (tmp_path / "test_s_0_f_0.csv").write_text(f"{tumor},,tumor\n")
    with pytest.raises(DataError, match=r"test_s_0_f_0\.csv, line 1: tumor patch .* has no mask"):
        Camelyon16Data(str(copy), str(tmp_path)).setup("fit")
    (tmp_path / "test_s_0_f_0.csv").write_text(f"{tumor},masks/none.png,tumor\n")
    with pytest.raises(DataError, match=r"csv, line 1: mask .*none\.png does not exist"):
        Camelyon16Data(str(copy), str(tmp_path)).setup("fit")


def test_only_the_masks_of_valpx_choose_a_checkpoint(copy):
    data = data_of(copy)
    assert data.selection() == {"cl": "valcl/acc", "loc": "valpx/pxap"}
    valcl, valpx = (next(iter(loader)) for loader in data.val_dataloader())
    assert "mask" not in valcl
    assert "mask" not in next(iter(data.train_dataloader()))
    assert valpx["has_mask"].all()
    for label, mask in zip(valpx["label"], valpx["mask"], strict=True):
        assert int(mask.sum()) == 32 * int(label)  # a normal patch is all background


def test_normal_patches_are_background_without_any_list_of_masks(copy, tmp_path):
    write_lists(tmp_path / "train", list(patch_names("train")))
    write_lists(tmp_path / "test", list(patch_names("test"))[::2], masks=False)
    data = Camelyon16Data(str(copy), str(tmp_path))
    data.setup("test")
    assert all(record.empty_mask for record in data.sources["test"].records)
    shutil.rmtree(tmp_path / "test")
    write_lists(tmp_path / "test", list(patch_names("test")), masks=False)
    with pytest.raises(DataError, match="12 problems") as caught:
        Camelyon16Data(str(copy), str(tmp_path)).setup("test")
    assert caught.value.problems[0] == (
        "test/image_ids.txt, line 2: tumor patch test_000_x_0_y_7_0.20.png has no mask"
    )


def test_tumor_patches_below_a_fraction_are_left_out(copy, tmp_path):
    data = data_of(copy, min_fraction=0.25)
    fractions = [
        metastatic_fraction(name)
        for split in ("train", "valcl", "test")
        for name in images(data, split)
        if "/tumor/" in name
    ]
    assert min(fractions) == 0.25
    assert len(fractions) == 32 - 5 + 12 - 5
    assert sum("/normal/" in name for name in images(data, "test")) == 12
    write_lists(tmp_path / "train", ["train/tumor/tumor_001_x_1.png"])
    write_lists(tmp_path / "test", list(patch_names("test")))
    with pytest.raises(DataError, match=r"line 1: tumor_001_x_1\.png states no fraction"):
        Camelyon16Data(str(copy), str(tmp_path), min_fraction=0.2).read()


@pytest.mark.parametrize(
    ("name", "fraction"),
    [
        ("tumor_001_0.25.png", 0.25),
        ("tumor_001_x_10.5_p_0.3125_y_12.75.png", 0.3125),
        ("0.1_tumor-1.0.png", 1.0),
        ("tumor_001_1.5.png", None),
        ("tumor_001_1_0.png", None),
        ("1.2.3_tumor.png", None),
    ],
)
def test_the_fraction_in_a_name(name, fraction):
    assert metastatic_fraction(name) == fraction


def test_bad_arguments_and_folders_are_refused(tmp_path):
    for fold in (-1, 5):
        with pytest.raises(ValueError, match=f"fold={fold} does not exist"):
            Camelyon16Data(str(tmp_path), fold=fold)
    with pytest.raises(ValueError, match="valpx_per_class=0 must be >= 1"):
        Camelyon16Data(str(tmp_path), valpx_per_class=0)
    with pytest.raises(DataError, match="2 problems") as caught:
        Camelyon16Data(str(tmp_path)).setup("fit")
    assert all("image_ids.txt cannot be read" in problem for problem in caught.value.problems)
