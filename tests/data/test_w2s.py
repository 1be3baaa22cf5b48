"""W2S: its index, folds of fields, and what the images are made from."""

import numpy as np
import pytest

from wsl_zoo.data import DataError, W2SData
from wsl_zoo.data.pixels import downsample, read_pixels, write_pixels

FIELDS = ("001", "008", "010", "014", "020")


def write_index(root, *lines, header="name,field,channel"):
    (root / "index.csv").write_text("\n".join([header, *lines]) + "\n")


@pytest.fixture
def copy(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{field}_{channel},{field},{channel}" for field in FIELDS for channel in range(3)]
    for line in lines:
        for kind in ("clean", "noisy"):
            pixels = rng.integers(0, 256, (1, 64, 64), dtype=np.uint8)
            write_pixels(tmp_path / kind / f"{line.split(',')[0]}.png", pixels)
    write_index(tmp_path, *lines)
    return tmp_path


def data_of(root, **kwargs):
    return W2SData(str(root), **{"crop_size": 16} | kwargs)


def fields_of(data):
    return {split: [r.group for r in source.records] for split, source in data.sources.items()}


@pytest.mark.parametrize("source", ["clean", "noisy"])
def test_images_are_made_from_the_frames_asked_for(copy, source):
    data = data_of(copy, source=source, scale=4)
    for split in ("train", "val", "test"):
        pairs = data.sources[split]
        for i, record in enumerate(pairs.records):
            image, target = pairs.load(i)
            name = record.target.name
            assert name.startswith(f"{record.group}_")
            np.testing.assert_array_equal(target, read_pixels(copy / "clean" / name))
            np.testing.assert_array_equal(image, downsample(read_pixels(copy / source / name), 4))
            assert pairs.path(i) == str(copy / source / name)


def test_every_field_is_tested_once_with_all_its_channels(copy):
    tested = []
    for fold in range(5):
        fields = fields_of(data_of(copy, fold=fold))
        assert {split: len(own) for split, own in fields.items()} == {
            "train": 9,
            "val": 3,
            "test": 3,
        }
        assert not set(fields["train"]) & {*fields["val"], *fields["test"]}
        tested += fields["test"]
    assert sorted(tested) == sorted(FIELDS * 3)
    assert fields_of(data_of(copy)) != fields_of(data_of(copy, split_seed=1))
    assert fields_of(data_of(copy, seed=5)) == fields_of(data_of(copy))


def test_folds_are_the_same_for_every_channel(copy):
    whole = fields_of(data_of(copy))
    for channel in range(3):
        data = data_of(copy, channel=channel)
        assert {k: set(v) for k, v in fields_of(data).items()} == {
            k: set(v) for k, v in whole.items()
        }
        records = [r for source in data.sources.values() for r in source.records]
        assert len(records) == 5
        assert all(record.target.stem.endswith(f"_{channel}") for record in records)


def test_all_problems_are_reported_at_once(copy):
    write_index(
        copy,
        "001_0,001,0",
        "001_1,008,1",
        "008_0,008,",
        "999_2,999,2",
        "010_x,010,x",
        "001_0,001,0",
    )
    with pytest.raises(DataError) as found:
        _ = data_of(copy, source="noisy", channel=7).sources
    assert found.value.problems == [
        "index.csv, line 3: expected the name 008_1, found '001_1'",
        "index.csv, line 4: expected a name, a field and a number, found '008_0', '008', ''",
        "index.csv, line 6: expected a name, a field and a number, found '010_x', '010', 'x'",
        "channel=7 does not exist: there are 0, 2",
        "index.csv, line 7: the pair stands in 'all' twice (first: index.csv, line 2)",
        f"index.csv, line 5: frame {copy / 'noisy' / '999_2.png'} does not exist",
        f"index.csv, line 5: target {copy / 'clean' / '999_2.png'} does not exist",
    ]


def test_an_index_without_its_columns_is_refused(copy):
    write_index(copy, "001_0,001", header="name,fields")
    expected = "index.csv, line 1: expected the columns name,field,channel; missing: field, channel"
    with pytest.raises(DataError, match=expected):
        _ = data_of(copy).sources
    (copy / "index.csv").unlink()
    with pytest.raises(DataError, match=r"index.csv: 1 problem\n  - cannot be read"):
        _ = data_of(copy).sources


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "average"}, "source='average' must be one of clean, noisy"),
        ({"folds": 2}, "folds=2: one to test, one to validate and one to train, >= 3"),
        ({"fold": 5}, "fold=5 does not exist: there are folds 0 to 4"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        data_of(tmp_path, **settings)


def test_too_few_fields_for_the_folds(copy):
    with pytest.raises(ValueError, match="folds=6: there are only 5 groups to deal"):
        _ = data_of(copy, folds=6).sources


def test_the_real_data(real_data):
    root = real_data / "W2S"
    if not root.is_dir():
        pytest.skip(f"no W2S: {root} is not a folder")
    data = W2SData(str(root), source="noisy", scale=4, crop_size=128, batch_size=4)
    data.setup("fit")
    sizes = {split: len(source) for split, source in data.sources.items()}
    assert sizes == {"train": 18, "val": 6, "test": 6}
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["image"].shape == (4, 1, 32, 32)
    assert batch["target"].shape == (4, 1, 128, 128)
    assert 0 <= batch["target"].min() < batch["target"].max() <= 1
    image, target = data.sources["test"].load(0)
    assert (image.shape, target.shape) == ((1, 128, 128), (1, 512, 512))
    # The noisy frame shows what its mean does.
    small = downsample(target, 4).astype(float)
    assert np.corrcoef(image.ravel(), small.ravel())[0, 1] > 0.7
