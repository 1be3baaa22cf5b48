"""SR-CACO-2: split files, names of patches, and what is wrong with them."""

import numpy as np
import pytest

from wsl_zoo.data import DataError, SRCACO2Data
from wsl_zoo.data.pixels import downsample, write_pixels
from wsl_zoo.data.sr_caco2 import parse_name

SIDE = 64
SCANS = {1: "HighRes1024", 2: "LowRes512", 4: "LowRes256", 8: "LowRes128"}
TILES = {"train": (1, 22), "val": (7,), "test": (9, 10)}  # as published, each with two patches
PATCHES = ((0, 640, 256, 896), (512, 1152, 768, 1408))


def path_of(tile, patch, scale=1, marker="CELL2", at=None):
    at = "_".join(str(n // scale) for n in at or PATCHES[patch])
    return f"caco2/hr_div_{scale}/tile_{SCANS[scale]}-{tile}_{patch}_{at}_{marker}.tif"


def folder_of(split, scale=2, marker="CELL2"):
    return f"caco2_{split}_X_{scale}_in_{512 // scale}_out_512_cell_{marker}"


def write_fold(root, split, lines, scale=2, marker="CELL2", name="h_l.txt"):
    folder = root / "folds" / folder_of(split, scale, marker)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")


def lines_of(split, scale=2, marker="CELL2"):
    return [
        f"{path_of(tile, patch, 1, marker)},{path_of(tile, patch, scale, marker)}"
        for tile in TILES[split]
        for patch in range(len(PATCHES))
    ]


@pytest.fixture
def copy(tmp_path):
    """The patches of a small copy, in the original layout, with the folds of one scale."""
    rng = np.random.default_rng(0)
    for split, tiles in TILES.items():
        for tile in tiles:
            for patch in range(len(PATCHES)):
                for marker in ("CELL1", "CELL2"):
                    high = rng.integers(0, 256, (1, SIDE, SIDE), dtype=np.uint8)
                    write_pixels(tmp_path / path_of(tile, patch, 1, marker), high)
                    for scale in (2, 4):
                        low = downsample(high, scale)
                        write_pixels(tmp_path / path_of(tile, patch, scale, marker), low)
        for scale in (2, 4):
            for marker in ("CELL1", "CELL2"):
                write_fold(tmp_path, split, lines_of(split, scale, marker), scale, marker)
    return tmp_path


def data_of(root, **kwargs):
    return SRCACO2Data(str(root), **{"crop_size": 16} | kwargs)


def problems(root, **kwargs):
    with pytest.raises(DataError) as found:
        _ = data_of(root, **kwargs).sources
    return found.value.problems


def test_names_of_patches():
    name = parse_name("anywhere/tile_HighRes1024-14_320_256_896_5120_5760_CELL0.tif")
    assert name == ("14", (256, 896, 5120, 5760), "CELL0")
    for wrong in ("tile_HighRes1024-14_320_256_896_5120_CELL0.tif", "x.tif", "tile_-1_2_3.tif"):
        with pytest.raises(ValueError, match="is no name of a patch, expected tile_<scan>"):
            parse_name(wrong)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("marker", ["CELL1", "CELL2"])
def test_splits_are_those_of_the_files(copy, scale, marker):
    data = data_of(copy, scale=scale, marker=marker)
    assert {split: len(source) for split, source in data.sources.items()} == {
        "train": 4,
        "val": 2,
        "test": 4,
    }
    for split, tiles in TILES.items():
        source = data.sources[split]
        expected = [str(tile) for tile in tiles for _ in PATCHES]
        assert [source.group(i) for i in range(len(source))] == expected
    record = data.sources["train"].records[3]
    assert record.target == copy / path_of(22, 1, 1, marker)
    assert record.image == copy / path_of(22, 1, scale, marker)
    assert record.place == f"{folder_of('train', scale, marker)}/h_l.txt, line 4"
    image, target = data.sources["test"].load(2)
    assert image.shape == (1, SIDE // scale, SIDE // scale)
    np.testing.assert_array_equal(image, downsample(target, scale))


def test_a_training_batch(copy):
    data = data_of(copy, batch_size=4)
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (4, 1, 8, 8)
    assert sorted(batch["group"]) == ["1", "1", "22", "22"]
    np.testing.assert_array_equal(
        downsample(batch["target"].numpy()[:, 0], 2), batch["image"].numpy()[:, 0]
    )


def records_of(data):
    return {
        split: [(r.image, r.target) for r in source.records]
        for split, source in data.sources.items()
    }


def test_either_file_and_paths_without_their_first_folder_will_do(copy, tmp_path):
    expected = records_of(data_of(copy))
    for split in TILES:
        lines = [line.replace("caco2/", "") for line in lines_of(split)]
        (copy / "folds" / folder_of(split) / "h_l.txt").unlink()
        swapped = [",".join(line.split(",")[::-1]) for line in lines]
        write_fold(copy, split, [*swapped, ""], name="l_h.txt")
    assert records_of(data_of(copy)) == expected
    moved = copy / "elsewhere"
    (copy / "folds").rename(moved)
    assert records_of(data_of(copy, folds_root=str(moved))) == expected


def test_validation_is_limited_to_its_first_patches(copy):
    many = [f"{path_of(7, i)},{path_of(7, i, 2)}" for i in range(2)]
    assert data_of(copy).val_limit == 128
    data = data_of(copy, val_limit=1)
    assert [r.target for r in data.sources["val"].records] == [copy / many[0].split(",")[0]]
    assert len(data_of(copy, val_limit=None).sources["val"]) == 2
    assert len(data.sources["test"]) == 4


def test_bad_lines_are_reported_at_once(copy):
    high, low = lines_of("train")[0].split(",")
    off = path_of(1, 0, 2, at=(2, 640, 256, 896))
    lines = [
        f"{high},{low}",
        high,
        f"{high},{low.replace('CELL2', 'CELL1')}",
        f"{high},{off}",
        f"{high},{path_of(22, 0, 2)}",
        f"{high},caco2/hr_div_2/a.tif",
        f"{path_of(3, 0)},{path_of(3, 0, 2)}",
        f"{low},{high}",
    ]
    write_fold(copy, "train", lines)
    shared = lines_of("val") + lines_of("test")[:2]
    write_fold(copy, "val", shared)
    train, val, test = (f"{folder_of(split)}/h_l.txt, line" for split in TILES)
    name = "tile_LowRes512-1_0_0_320_128_448_CELL2.tif"
    target = "tile_HighRes1024-1_0_0_640_256_896_CELL2.tif"
    resolved = "at 1/2 of its resolution, of tile 1 at 0_320_128_448"
    expected = [
        f"{train} 2: expected two paths 'high,low', found {high!r}",
        f"{train} 3: {name.replace('CELL2', 'CELL1')} is of CELL1, expected CELL2",
        f"{train} 4: tile_LowRes512-1_0_1_320_128_448_CELL2.tif is of tile 1 at 1_320_128_448; "
        f"its target {target} is, {resolved}",
        f"{train} 5: {name.replace('-1_', '-22_')} is of tile 22 at 0_320_128_448; "
        f"its target {target} is, {resolved}",
        f"{train} 6: 'a.tif' is no name of a patch, expected "
        "tile_<scan>-<tile>_<patch>_<i>_<ii>_<j>_<jj>_<CELLc>.tif",
        f"{train} 8: {target} is of tile 1 at 0_640_256_896; its target {name} is, "
        "at 1/2 of its resolution, of tile 1 at 0_160_64_224",
        f"{test} 1: tile 9 stands in splits 'val' ({val} 3) and 'test': splits share no tile",
        f"{test} 1: {path_of(9, 0, 2).split('/')[-1]} stands in splits 'val' and 'test' "
        f"(first: {val} 3)",
        f"{test} 2: {path_of(9, 1, 2).split('/')[-1]} stands in splits 'val' and 'test' "
        f"(first: {val} 4)",
        f"{train} 7: image {copy / path_of(3, 0, 2)} does not exist",
        f"{train} 7: target {copy / path_of(3, 0)} does not exist",
    ]
    assert problems(copy) == expected


def test_tiles_are_disjoint_also_where_patches_are(copy):
    write_fold(copy, "val", [lines_of("train")[3]])
    write_fold(copy, "train", [lines_of("train")[2]])
    assert problems(copy) == [
        f"{folder_of('val')}/h_l.txt, line 1: tile 22 stands in splits 'train' "
        f"({folder_of('train')}/h_l.txt, line 1) and 'val': splits share no tile"
    ]


def test_missing_and_empty_split_files_are_named(copy):
    (copy / "folds" / folder_of("val") / "h_l.txt").unlink()
    (copy / "folds" / folder_of("test") / "h_l.txt").unlink()
    folds = copy / "folds"
    assert problems(copy) == [
        f"{folds / folder_of(split)} holds neither h_l.txt nor l_h.txt" for split in ("val", "test")
    ]
    write_fold(copy, "val", lines_of("val"))
    write_fold(copy, "test", [""])
    assert problems(copy) == ["split 'test' is empty"]
    with pytest.raises(DataError, match=rf"^SRCACO2Data {copy}: "):
        _ = data_of(copy).sources


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"marker": "CELL3"}, "marker='CELL3' must be one of CELL0, CELL1, CELL2"),
        ({"val_limit": 0}, "val_limit=0 must be positive, or None"),
        ({"scale": 5}, "scale=5 must be one of 2, 4, 8"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        data_of(tmp_path, **settings)
