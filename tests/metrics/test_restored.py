"""Metrics of a split of super-resolved images: the values are those of the metrics themselves."""

import pytest
import torch

from wsl_zoo.metrics import NRMSE, PSNR, SSIM
from wsl_zoo.metrics import comparison as comparison_module
from wsl_zoo.metrics.restored import RestorationMetrics
from wsl_zoo.metrics.split import Thresholds

METRICS = {"psnr": PSNR, "ssim": SSIM, "nrmse": NRMSE}


def made(images=5):
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(images, 1, 24, 20, generator=generator)
    sr = (hr + 0.1 * torch.randn(hr.shape, generator=generator)).clamp(0, 1)
    return sr, hr, hr >= torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1)


def expected(rows, border, empty_roi, valid=None):
    sr, hr, roi = rows
    values = {}
    for prefix, region in (("", None), ("roi_", roi)):
        for name, build in METRICS.items():
            metric = build(border=border, empty_roi=empty_roi)
            metric.update(sr, hr, region, valid)
            values[prefix + name] = metric.compute()
    return values


@pytest.mark.parametrize("empty_roi", ["skip", "floor"])
def test_values_are_those_of_the_metrics(empty_roi):
    sr, hr, roi = made()
    roi[3] = roi[0, 2] = False
    valid = torch.tensor([True, True, False, True, True])
    alone = expected((sr, hr, roi), 2, empty_roi, valid)
    metrics = RestorationMetrics(2, True, empty_roi)
    for part in (slice(0, 3), slice(3, 5)):
        metrics.update(sr[part], hr[part], roi[part], valid[part])
    values, thresholds = metrics.compute()
    assert thresholds == Thresholds()
    assert list(values) == ["psnr", "ssim", "nrmse", "roi_psnr", "roi_ssim", "roi_nrmse"]
    torch.testing.assert_close(values, alone, rtol=1e-12, atol=0)

    whole = RestorationMetrics(2, False, empty_roi)
    whole.update(sr, hr, None, valid)
    names = {"psnr", "ssim", "nrmse"}
    torch.testing.assert_close(
        whole.compute()[0], {name: alone[name] for name in names}, rtol=1e-12, atol=0
    )
    assert (metrics.shares(), metrics.curves(), metrics.per_class()) == ({}, {}, {})


def test_two_processes_give_the_values_of_one():
    rows = made()
    rows[2][1] = False
    whole, *parts = (RestorationMetrics(1, True) for _ in range(3))
    whole.update(*rows)
    for metrics, index in zip(parts, ([0, 2, 4], [1, 3, 0]), strict=True):
        valid = torch.tensor([True, True, index[-1] != 0])  # the last of the second is a duplicate
        metrics.update(*(x[index] for x in rows), valid=valid)
    parts[0].means.merge_state(parts[1].means)
    torch.testing.assert_close(parts[0].compute(), whole.compute(), rtol=1e-12, atol=0)


def test_the_similarity_map_is_made_once(monkeypatch):
    calls = []
    ssim_map = comparison_module.ssim_map
    monkeypatch.setattr(
        comparison_module, "ssim_map", lambda *images: calls.append(1) or ssim_map(*images)
    )
    RestorationMetrics(0, False).update(*made()[:2])
    once = len(calls)
    RestorationMetrics(0, True).update(*made())
    assert once > 0
    assert len(calls) == 2 * once


def test_what_is_undefined_is_absent():
    sr, hr, roi = made()
    metrics = RestorationMetrics(0, True)
    metrics.update(sr, hr, torch.zeros_like(roi))
    assert set(metrics.compute()[0]) == {"psnr", "ssim", "nrmse"}
    metrics.update(sr, hr, roi, torch.zeros(5, dtype=torch.bool))
    assert set(metrics.compute()[0]) == {"psnr", "ssim", "nrmse"}
    metrics.update(sr, hr, roi)
    assert len(metrics.compute()[0]) == 6


def test_broken_images_are_told():
    sr, hr, roi = made()
    sr[0, 0, 12, 10] = torch.nan
    roi[0, :, 4:, :] = False  # windows that reach the pixel are centred in the rows 7..17
    metrics = RestorationMetrics(0, True)
    metrics.update(sr, hr, roi)
    with pytest.warns(UserWarning, match="is NaN") as warned:
        values, _ = metrics.compute()
    told = [str(warning.message).split()[0] for warning in warned]
    assert told == ["psnr", "ssim", "nrmse"]
    assert set(values) == {"roi_psnr", "roi_ssim", "roi_nrmse"}


def test_wrong_input_is_refused():
    sr, hr, roi = made()
    with pytest.raises(ValueError, match=r"no roi was given .*roi=True"):
        RestorationMetrics(0, True).update(sr, hr)
    with pytest.raises(ValueError, match=r"a roi was given .*roi=False"):
        RestorationMetrics(0, False).update(sr, hr, roi)
    with pytest.raises(ValueError, match="border=-2"):
        RestorationMetrics(-2)
    with pytest.raises(ValueError, match="empty_roi='one'"):
        RestorationMetrics(2, True, "one")
    with pytest.raises(ValueError, match="border of 7"):
        RestorationMetrics(7).update(sr, hr)
