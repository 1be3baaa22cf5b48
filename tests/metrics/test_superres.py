"""PSNR, SSIM and NRMSE against the published protocol written plainly, and two libraries."""

from functools import partial

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio as peak_signal_noise_ratio_of_skimage
from skimage.metrics import structural_similarity
from torchmetrics import MetricCollection
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.functional.image import structural_similarity_index_measure as torchmetrics_ssim
from torchmetrics.functional.regression import normalized_root_mean_squared_error

from tests.metrics.processes import assert_same_on_processes
from wsl_zoo.metrics import NRMSE, PSNR, SSIM, comparison, image_nrmse, image_psnr, image_ssim

METRICS = {"psnr": PSNR, "ssim": SSIM, "nrmse": NRMSE}
OF_IMAGES = {"psnr": image_psnr, "ssim": image_ssim, "nrmse": image_nrmse}
EXACT = {"rtol": 0, "atol": 1e-9}
BY_NAME = pytest.mark.parametrize("name", METRICS)


def made(images=3, channels=1, side=(40, 33), seed=0):
    """Levels 0..255 of true images, smooth and not, and of others beside them; three regions."""
    generator = torch.Generator().manual_seed(seed)
    hr = 40 + 150 * torch.rand(images, channels, *side, generator=generator, dtype=torch.float64)
    hr[..., : side[1] // 2] = hr[..., : side[1] // 2].mean(dim=-1, keepdim=True)
    sr = hr + 20 * torch.randn(hr.shape, generator=generator, dtype=torch.float64)
    brightness = hr.mean(dim=1, keepdim=True)
    roi = brightness >= torch.tensor([80.0, 120.0, 160.0]).view(1, 3, 1, 1)
    return sr.clamp(0, 255).round(), hr.round(), roi


def scored(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute().item()


# The published protocol, one image and one region after the other, on the scale of 255


def published_map(sr, hr):
    """Structural similarity of every window inside an image."""
    column = cv2.getGaussianKernel(11, 1.5, cv2.CV_64F)

    def blur(image):
        return cv2.filter2D(image, cv2.CV_64F, column @ column.T)[5:-5, 5:-5]

    x, y = sr / 255, hr / 255
    mu_x, mu_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mu_x**2, blur(y * y) - mu_y**2
    cov = blur(x * y) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    first = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    return first * (2 * cov + c2) / (var_x + var_y + c2)


def published(sr, hr, roi, border):
    """The three values of one image (H, W) and one region (H, W), with the published floors."""
    height, width = hr.shape
    inside = np.s_[border : height - border, border : width - border]
    sr, hr, roi = sr[inside], hr[inside], roi[inside].astype(float)
    mse = (roi * (sr - hr) ** 2).sum() / max(1.0, roi.sum())
    psnr = 20 * np.log10(255 / np.sqrt(max(mse, 1e-45)))
    spread = (roi * hr).max() - hr.min()
    nrmse = np.sqrt(mse) / (1.0 if spread == 0 else spread)
    centres = roi[5:-5, 5:-5]
    ssim = (centres * published_map(sr, hr)).sum() / max(1.0, centres.sum())
    return {"psnr": psnr, "ssim": ssim, "nrmse": nrmse}


def published_mean(name, sr, hr, roi, border):
    """Means over regions, then over channels are not published: images of one channel."""
    images = [
        np.mean([published(s[0], h[0], region, border)[name] for region in regions])
        for s, h, regions in zip(sr.numpy(), hr.numpy(), roi.numpy(), strict=True)
    ]
    return np.array(images)


@BY_NAME
@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("data_range", [1.0, 255.0, 65535.0])
def test_values_are_the_published_ones(name, border, data_range):
    sr, hr, roi = made()
    every = torch.ones_like(roi[:, :1])
    unit = data_range / 255
    for regions, given in ((roi, roi), (every, None), (roi[:, :1], roi[:, 0])):
        expected = published_mean(name, sr, hr, regions, border)
        found = OF_IMAGES[name](sr * unit, hr * unit, given, data_range, border)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
        mean = scored(METRICS[name](data_range, border), sr * unit, hr * unit, given)
        assert mean == pytest.approx(expected.mean(), rel=1e-9)


@BY_NAME
def test_regions_without_pixels_have_the_published_values_or_none(name):
    sr, hr, roi = made(4)
    roi[0] = roi[1, 1:] = False  # one image with no region, one with one of three
    with_floor = published_mean(name, sr, hr, roi, 2)
    found = OF_IMAGES[name](sr, hr, roi, 255, 2, "floor")
    np.testing.assert_allclose(found.numpy(), with_floor, rtol=1e-9)
    floor = {"psnr": 20 * np.log10(255) + 450, "ssim": 0, "nrmse": 0}[name]
    assert found[0].item() == pytest.approx(floor, abs=1e-9)
    mean = scored(METRICS[name](255, 2, "floor"), sr, hr, roi)
    assert mean == pytest.approx(with_floor.mean(), rel=1e-9)

    found = OF_IMAGES[name](sr, hr, roi, 255, 2, "skip")
    assert found[0].isnan()
    np.testing.assert_allclose(found[1], published_mean(name, sr, hr, roi[:, :1], 2)[1], rtol=1e-9)
    np.testing.assert_allclose(found[2:], with_floor[2:], rtol=1e-9)
    skipped = scored(METRICS[name](255, 2), sr, hr, roi)
    assert skipped == pytest.approx(found[1:].mean().item(), rel=1e-12)


def test_a_region_near_the_border_has_errors_but_no_window():
    sr, hr, _ = made(1)
    roi = torch.zeros(1, 40, 33, dtype=torch.bool)
    roi[:, 3:7] = True  # of the rows 2..37 that are left, windows are centred in 7..32
    assert image_psnr(sr, hr, roi, 255, 2).isfinite()
    assert image_ssim(sr, hr, roi, 255, 2).isnan()
    assert image_ssim(sr, hr, roi, 255, 2, "floor") == 0
    roi[:, 7, 7] = True
    centre = published_map(sr[0, 0, 2:-2, 2:-2].numpy(), hr[0, 0, 2:-2, 2:-2].numpy())[0, 0]
    assert image_ssim(sr, hr, roi, 255, 2).item() == pytest.approx(centre, rel=1e-9)


def test_real_images(real_data):
    paths = sorted((real_data / "W2S" / "clean").glob("*.png"))[::7]
    if not paths:
        pytest.skip(f"no images under {real_data / 'W2S' / 'clean'}")
    true = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[100:260, 200:380] for path in paths]
    made = [
        cv2.resize(cv2.resize(x, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA), (180, 160))
        for x in true
    ]
    hr, sr = (torch.from_numpy(np.stack(x)).double()[:, None] for x in (true, made))
    roi = hr >= torch.arange(4, 11).view(1, 7, 1, 1)
    small = hr >= 256 - torch.arange(1, 180, 60).view(1, 3, 1, 1)
    for name, metric in METRICS.items():
        for regions in (roi, small, torch.ones_like(roi[:, :1])):
            expected = published_mean(name, sr, hr, regions, 4).mean()
            found = scored(
                metric(border=4, empty_roi="floor"), sr.float() / 255, hr.float() / 255, regions
            )
            assert found == pytest.approx(expected, rel=1e-6), name  # float32 images
            found = scored(metric(255.0, 4, "floor"), sr.byte(), hr.byte(), regions)
            assert found == pytest.approx(expected, rel=1e-9), name
    assert 15 < published_mean("psnr", sr, hr, roi, 4).mean() < 50


# torchmetrics


def test_psnr_is_that_of_torchmetrics_on_the_cropped_image():
    sr, hr, _ = made(4, channels=3)
    found = image_psnr(sr, hr, data_range=255, border=3)
    for i in range(4):
        cropped = (x[i : i + 1, :, 3:-3, 3:-3] for x in (sr, hr))
        expected = peak_signal_noise_ratio(*cropped, data_range=255.0)
        torch.testing.assert_close(found[i], expected.double(), rtol=1e-6, atol=0)


def test_ssim_is_that_of_torchmetrics_without_its_padding():
    sr, hr, _ = made(3, channels=2)
    found = image_ssim(sr, hr, data_range=255)
    padded, whole = torchmetrics_ssim(
        sr, hr, reduction="none", data_range=255.0, return_full_image=True
    )
    inner = whole[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, inner, rtol=1e-6, atol=1e-7)
    assert ((found - padded).abs() > 1e-4).all(), "there the reflected border counts too"


def test_nrmse_is_that_of_torchmetrics():
    sr, hr, _ = made(4)
    expected = normalized_root_mean_squared_error(
        sr.flatten(1).T, hr.flatten(1).T, normalization="range", num_outputs=4
    )
    found = image_nrmse(sr, hr, data_range=255)
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("border", [0, 3])
@pytest.mark.parametrize("broken", [False, True])
@BY_NAME
def test_other_devices_compute_what_the_compiled_kernels_do(name, broken, border, monkeypatch):
    sr, hr, roi = made(3, channels=2)
    roi[0, 0] = False
    if broken:
        sr[1, 0, 20, 12], hr[2, 1, 12, 20] = torch.nan, torch.nan
    for regions in (None, roi):
        compiled = OF_IMAGES[name](sr, hr, regions, data_range=255, border=border)
        with monkeypatch.context() as patch:
            patch.setattr(comparison, "COMPILED", ())
            plain = OF_IMAGES[name](sr, hr, regions, data_range=255, border=border)
        torch.testing.assert_close(compiled, plain, rtol=1e-12, atol=0, equal_nan=True)


# scikit-image


def test_psnr_and_ssim_are_those_of_scikit_image(real_data):
    """On real images, float64: no difference is left to explain once three options are set."""
    path = real_data / "W2S" / "clean" / "001_0.png"
    true = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[100:260, 200:380]
    small = cv2.resize(true, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    made = cv2.resize(small, true.shape[::-1], interpolation=cv2.INTER_CUBIC)
    hr, sr = (x[4:-4, 4:-4] / 255 for x in (true, made))
    images = [torch.from_numpy(x / 255)[None, None] for x in (made, true)]
    psnr = peak_signal_noise_ratio_of_skimage(hr, sr, data_range=1.0)
    assert float(image_psnr(*images, border=4)) == pytest.approx(psnr, rel=1e-9)
    # Its default window is uniform and 7 wide; its variances are unbiased by default; its border,
    # which it pads by reflection, it leaves out of the mean, as the published protocol does.
    protocol = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = structural_similarity(hr, sr, data_range=1.0, **protocol)
    assert float(image_ssim(*images, border=4)) == pytest.approx(ssim, rel=1e-9)
    for option in ({"gaussian_weights": False}, {"use_sample_covariance": True}):
        other = structural_similarity(hr, sr, data_range=1.0, **protocol | option)
        assert abs(other - ssim) > 1e-5


# Closed forms


@pytest.mark.parametrize("d", [1.0, 10.0, 255.0])
def test_psnr_of_a_constant_error(d):
    hr = torch.randint(0, 256, (2, 1, 16, 16)).double()
    found = image_psnr(hr - d, hr, data_range=255)
    torch.testing.assert_close(found, torch.full_like(found, 20 * np.log10(255 / d)), **EXACT)


@pytest.mark.parametrize("data_range", [1.0, 255.0, 65535.0])
def test_exact_images(data_range):
    for hr in (torch.rand(2, 1, 16, 16) * data_range, torch.full((2, 1, 16, 16), data_range)):
        assert image_psnr(hr, hr, None, data_range)[0].item() == pytest.approx(498.1308, abs=1e-4)
        assert image_ssim(hr, hr, None, data_range).tolist() == [1, 1]
        assert image_nrmse(hr, hr, None, data_range).tolist() == [0, 0]


def test_ssim_of_constant_images():
    a, b = torch.full((1, 1, 11, 11), 0.6), torch.full((1, 1, 11, 11), 0.5)
    expected = (2 * 0.6 * 0.5 + 1e-4) / (0.6**2 + 0.5**2 + 1e-4)
    assert image_ssim(a, b).item() == pytest.approx(expected, rel=1e-6)
    noise = (torch.rand(1, 1, 20, 20) < 0.5).double()  # its negative has like means
    assert -1 <= image_ssim(1 - noise, noise).item() < -0.7


def test_the_range_of_nrmse_is_of_the_region_and_the_whole_image():
    hr = torch.zeros(1, 1, 10, 10)
    hr[..., 5:] = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0])
    roi = torch.zeros(1, 10, 10, dtype=torch.bool)
    roi[..., 5:8] = True
    assert image_nrmse(hr + 0.3, hr, roi).item() == pytest.approx(0.3 / 0.6)
    assert image_nrmse(hr + 0.3, hr).item() == pytest.approx(0.3)
    cropped = image_nrmse(hr + 0.3, hr, roi, border=1)  # rows and columns 1..8: still a 0 outside
    assert cropped.item() == pytest.approx(0.3 / 0.6)
    flat = torch.full((1, 1, 10, 10), 0.5)
    assert image_nrmse(flat + 2 / 255, flat).item() == pytest.approx(2, rel=1e-6)
    assert image_nrmse(flat * 255 + 2, flat * 255, data_range=255).item() == pytest.approx(2)


def test_nrmse_does_not_see_an_affine_change():
    sr, hr, roi = made()
    expected = image_nrmse(sr, hr, roi, 255)
    torch.testing.assert_close(image_nrmse(3 * sr + 7, 3 * hr + 7, roi, 900), expected, **EXACT)


def test_channels_are_averaged():
    sr, hr, roi = made(2, channels=3)
    each = image_ssim(*(x.flatten(0, 1)[:, None] for x in (sr, hr)), data_range=255)
    torch.testing.assert_close(image_ssim(sr, hr, None, 255), each.view(2, 3).mean(1), **EXACT)
    mse = torch.stack([((sr - hr)[0] ** 2)[:, r].mean() for r in roi[0]])
    found = image_psnr(sr, hr, roi, 255)[0]
    torch.testing.assert_close(found, (10 * (255**2 / mse).log10()).mean(), **EXACT)
    spread = torch.stack([hr[0][:, r].max() - hr[0].min() for r in roi[0]])
    found = image_nrmse(sr, hr, roi, 255)[0]
    torch.testing.assert_close(found, (mse.sqrt() / spread).mean(), **EXACT)


# Regions and borders


@BY_NAME
def test_the_full_region_is_no_region(name):
    sr, hr, roi = made()
    whole = OF_IMAGES[name](sr, hr, None, 255, 2)
    assert torch.equal(OF_IMAGES[name](sr, hr, torch.ones_like(roi[:, 0]), 255, 2), whole)
    several = OF_IMAGES[name](sr, hr, torch.ones_like(roi), 255, 2)
    torch.testing.assert_close(several, whole, rtol=1e-15, atol=0)


@BY_NAME
def test_pixels_outside_a_region_do_not_matter(name):
    sr, hr, roi = made()
    roi = roi[:, 2]
    reach = torch.nn.functional.max_pool2d(roi[:, None].double(), 11, stride=1, padding=5) > 0
    outside = ~reach if name == "ssim" else ~roi[:, None]  # windows reach out of the region
    assert outside.any()
    expected = OF_IMAGES[name](sr, hr, roi, 255)
    for value in (0.0, 255.0, torch.nan):
        assert torch.equal(OF_IMAGES[name](sr.masked_fill(outside, value), hr, roi, 255), expected)
    changed = sr.clone()
    changed[0, 0][roi[0]] += 9
    found = OF_IMAGES[name](changed, hr, roi, 255)
    assert found[0] != expected[0]
    assert torch.equal(found[1:], expected[1:])


@BY_NAME
def test_the_border_does_not_matter(name):
    sr, hr, roi = made()
    corrupted = [x.clone() for x in (sr, hr, roi)]
    for x, value in zip(corrupted, (0, 255, True), strict=True):
        x[..., :3, :] = x[..., -3:, :] = x[..., :, :3] = x[..., :, -3:] = value
    assert not torch.equal(corrupted[2], roi)
    values = OF_IMAGES[name](sr, hr, roi, 255, 3)
    assert torch.equal(OF_IMAGES[name](*corrupted, 255, 3), values)
    assert not torch.equal(
        OF_IMAGES[name](*corrupted, 255, 2), OF_IMAGES[name](sr, hr, roi, 255, 2)
    )


@BY_NAME
def test_a_nan_stays(name):
    sr, hr, roi = made()
    roi[1] = False
    sr[0, 0, 20, 20] = torch.nan
    roi[0, 0, 20, 20] = True
    for region in (None, roi):
        assert OF_IMAGES[name](sr, hr, region, 255)[0].isnan()
        assert OF_IMAGES[name](sr, hr, region, 255)[2].isfinite()
        assert np.isnan(scored(METRICS[name](255), sr, hr, region))
        valid = torch.tensor([False, True, True])
        assert np.isfinite(scored(METRICS[name](255), sr, hr, region, valid))


# States


@BY_NAME
def test_dropped_images_and_batches(name):
    sr, hr, roi = made(5)
    valid = torch.tensor([True, False, True, True, False])
    expected = OF_IMAGES[name](sr, hr, roi, 255)[valid].mean().item()
    metric = METRICS[name](255)
    for part in (slice(0, 2), slice(2, 5)):
        metric.update(sr[part], hr[part], roi[part], valid[part])
    assert metric.compute().item() == pytest.approx(expected, rel=1e-12)
    assert metric.compute().dtype == torch.float64
    parts = [METRICS[name](255) for _ in range(2)]
    for metric, part in zip(parts, (slice(0, 2), slice(2, 5)), strict=True):
        metric.update(sr[part], hr[part], roi[part], valid[part])
    parts[0].merge_state(parts[1])
    assert parts[0].compute().item() == pytest.approx(expected, rel=1e-12)
    with pytest.warns(UserWarning, match="no image was counted"):
        assert np.isnan(scored(METRICS[name](255), sr, hr, roi, torch.zeros(5, dtype=torch.bool)))
    with pytest.warns(UserWarning, match="no image was counted"):
        assert np.isnan(scored(METRICS[name](255), sr, hr, torch.zeros_like(roi)))


def test_several_processes_give_the_value_of_one():
    sr, hr, roi = made(5, side=(16, 16))
    roi[2] = False
    rows = {"sr": sr, "hr": hr, "roi": roi}
    cases = {name: (partial(metric, 255.0, 1), rows) for name, metric in METRICS.items()}
    assert_same_on_processes(cases, atol=1e-12, worlds=(2,))


def test_a_collection_keeps_protocols_apart():
    sr, hr, roi = made()
    metrics = {"zero": PSNR(255), "two": PSNR(255, 2), "floor": PSNR(255, empty_roi="floor")}
    metrics |= {name: metric(255) for name, metric in METRICS.items()}
    collection = MetricCollection(metrics)
    roi[0] = False
    for region in (torch.zeros_like(roi), roi):  # after the first all states are equal
        collection.update(sr, hr, region)
    alone = {}
    for name, metric in metrics.items():
        copy = type(metric)(255, metric.border, metric.empty_roi)
        for region in (torch.zeros_like(roi), roi):
            copy.update(sr, hr, region)
        alone[name] = copy.compute()
    assert collection.compute() == alone
    assert alone["zero"] == alone["psnr"]
    assert len({value.item() for value in alone.values()}) == 5


def test_directions():
    assert (PSNR.higher_is_better, SSIM.higher_is_better) == (True, True)
    assert NRMSE.higher_is_better is False


# Wrong input


@BY_NAME
def test_wrong_input_is_refused(name):
    sr, hr, roi = made(2)
    value = OF_IMAGES[name]
    with pytest.raises(ValueError, match=r"one shape .*\(2, 1, 40, 33\) and \(2, 1, 40, 32\)"):
        value(sr, hr[..., 1:])
    with pytest.raises(ValueError, match="one shape"):
        value(sr[:, 0], hr[:, 0])
    for wrong in (roi[..., 1:], roi[:1], roi[:, :0], roi[:, None], roi.byte()):
        with pytest.raises(ValueError, match=r"roi must be bool .* = \(2, 40, 33\)"):
            value(sr, hr, wrong)
    with pytest.raises(ValueError, match="border=17 leaves nothing"):
        value(sr, hr, border=17)
    with pytest.raises(ValueError, match="valid must be"):
        METRICS[name]().update(sr, hr, valid=torch.ones(3, dtype=torch.bool))
    for build in (METRICS[name], partial(value, sr, hr, None)):
        with pytest.raises(ValueError, match="data_range=0"):
            build(0)
        with pytest.raises(ValueError, match="border=-1"):
            build(1, -1)
        with pytest.raises(ValueError, match=r"empty_roi='nan'.*'skip', 'floor'"):
            build(1, 0, "nan")


def test_ssim_needs_a_window():
    for side, fits in ((15, True), (14, False)):
        image = torch.rand(1, 1, 30, side)
        assert image_psnr(image, image, border=2).item() > 400
        if fits:
            assert image_ssim(image, image, border=2) == 1
        else:
            with pytest.raises(ValueError, match=r"11 x 11 pixels inside the border of 2.*30, 14"):
                image_ssim(image, image, border=2)
