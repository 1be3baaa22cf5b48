"""The built-in micrographs: functions of seed and index, dim ground, scans that lose detail."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from wsl_zoo.data import SyntheticPairsData
from wsl_zoo.data.micrographs import PHOTONS, READ_NOISE, MicrographSource, render_micrograph, scan
from wsl_zoo.data.pixels import downsample
from wsl_zoo.data.synthetic import SPLIT_OFFSET


def small(**kwargs):
    settings = {"train": 5, "val": 2, "test": 3, "side": 64, "crop_size": 32}
    return SyntheticPairsData(**settings | kwargs)


def test_a_field_is_a_function_of_seed_and_index():
    field = render_micrograph(5, 3, 64)
    assert (field.shape, field.dtype) == ((1, 64, 64), np.uint8)
    np.testing.assert_array_equal(render_micrograph(5, 3, 64), field)
    for index, seed in ((6, 3), (5, 4)):
        assert (render_micrograph(index, seed, 64) != field).mean() > 0.2


def test_cells_lie_on_a_dim_ground():
    fields = np.concatenate([render_micrograph(i, 0, 128) for i in range(20)])
    cells = (fields >= 4).mean(axis=(1, 2))
    assert 0.2 < cells.mean() < 0.6
    assert cells.min() > 0.03
    assert np.percentile(fields, 20) <= 2
    assert (fields.max(axis=(1, 2)) > 80).all()
    assert (fields == 255).mean() < 0.01  # not clipped


def test_a_larger_field_shows_more_cells_of_the_same_size():
    def bright(side, count):
        return [(render_micrograph(i, 1, side) > 40).sum() for i in range(count)]

    assert np.mean(bright(256, 4)) / np.mean(bright(128, 16)) == pytest.approx(4, rel=0.35)


def test_a_scan_is_the_blurred_mean_with_shot_and_read_noise():
    flat = np.full((1, 256, 256), 100, np.uint8)
    seen = scan(flat, 2, np.random.default_rng(0)).astype(float)
    assert seen.shape == (1, 128, 128)
    assert seen.mean() == pytest.approx(100, abs=0.2)
    variance = 100 / PHOTONS + READ_NOISE**2 + 1 / 12  # and that of rounding
    assert seen.var() == pytest.approx(variance, rel=0.05)
    field = render_micrograph(0, 0, 128)
    mean = downsample(field, 2).astype(float)
    error = scan(field, 2, np.random.default_rng(0)) - mean
    assert np.abs(error).mean() < 0.35 * mean.std()  # noise and blur leave the picture


@pytest.mark.parametrize("scale", [2, 8])
def test_the_blur_of_a_scan_is_in_pixels_of_the_scan(scale):
    field = np.zeros((1, 8 * scale, 8 * scale), np.uint8)
    field[0, 4 * scale : 5 * scale, 3 * scale : 4 * scale] = 240  # one pixel of the scan
    draws = [scan(field, scale, np.random.default_rng(seed))[0] for seed in range(200)]
    blurred = gaussian_filter(field[0].astype(float), 0.35 * scale)
    expected = blurred.reshape(8, scale, 8, scale).mean(axis=(1, 3))
    near = (slice(3, 6), slice(2, 5))  # elsewhere there is nothing but noise, cut off at 0
    np.testing.assert_allclose(np.mean(draws, axis=0)[near], expected[near], atol=2.5)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_detail_is_lost_with_the_scale(scale):
    def psnr(factor):
        source = MicrographSource(8, 0, 0, 64, factor)
        found = []
        for image, field in map(source.load, range(8)):
            assert image.shape == (1, 64 // factor, 64 // factor)
            pixels = torch.from_numpy(image.astype(np.float32))[None]
            shown = torch.nn.functional.interpolate(pixels, (64, 64), mode="bicubic")[0].numpy()
            found.append(20 * np.log10(255 / np.sqrt(((shown - field) ** 2).mean())))
        return np.mean(found)

    assert 15 < psnr(scale) < 40
    if scale > 2:
        assert psnr(scale) < psnr(scale // 2) - 1


def test_noise_of_a_scan_is_its_own_but_fixed():
    source = MicrographSource(3, 7, 2, 64, 2)
    image, field = source.load(1)
    np.testing.assert_array_equal(field, render_micrograph(8, 2, 64))
    np.testing.assert_array_equal(source.load(1)[0], image)
    assert not np.array_equal(image, scan(field, 2, np.random.default_rng((2, 8))))
    assert (source.path(1), source.group(1), len(source)) == ("micrograph-8", "", 3)
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"micrograph {index} of 3"):
            source.load(index)


def test_splits_share_no_field_and_follow_their_own_seed():
    data = small(train=3, val=3, test=3)
    seen = set()
    for split, offset in SPLIT_OFFSET.items():
        source = data.sources[split]
        assert source.path(0) == f"micrograph-{offset}"
        seen |= {source.load(i)[1].tobytes() for i in range(3)}
    assert len(seen) == 9

    def first(**kwargs):
        return small(**kwargs).dataset("val")[0]["target"]

    assert torch.equal(first(seed=0), first(seed=1))
    assert not torch.equal(first(scene_seed=0), first(scene_seed=1))


def test_batches():
    data = small(batch_size=4, scale=4, num_workers=2)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["image"].shape == (4, 1, 8, 8)
    assert batch["target"].shape == (4, 1, 32, 32)
    assert 0 <= batch["target"].min() < batch["target"].max() <= 1
    whole = [batch["target"].shape for batch in data.val_dataloader()[0]]
    assert whole == [(1, 1, 64, 64)] * 2
    assert (data.scale, data.in_chans, data.class_names) == (4, 1, [])
    assert data.selection() == {"cl": "val/psnr", "loc": None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val": 0}, "train=5, val=0, test=3: every split needs a pair at least"),
        ({"side": 66, "scale": 4}, "side=66 must be a multiple of scale=4, 32 or more"),
        ({"side": 24}, "side=24 must be a multiple of scale=2, 32 or more"),
        ({"eval_crop": 80}, "side=64 must be a multiple of scale=2, 80 or more"),
        ({"channels": 3}, "channels=3: these images have 1, grey"),
        ({"scale": 3}, "scale=3 must be one of 2, 4, 8"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)
