"""Super-resolution: losses of stages, metrics of regions, tiles, files, and what is refused."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import wsl_zoo
from tests.cases import trainer
from tests.cases.superres import pairs
from wsl_zoo.__main__ import main
from wsl_zoo.data import SyntheticData
from wsl_zoo.losses.superres import ssim
from wsl_zoo.methods import SuperResolver
from wsl_zoo.methods.superres import rounded

TINY = {"network": "SRCNN", "network_args": {"widths": [8, 4]}}
TINY_LEVELS = {"network": "MSLapSRN", "network_args": {"width": 4, "depth": 1}, "scale": 8}


def model_of(**changes):
    torch.manual_seed(0)
    return SuperResolver(**TINY | changes)


def batch_of(count=2, side=12, scale=2, levels=255):
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(count, 1, scale * side, scale * side, generator=generator)
    target = (target * levels).round() / levels
    return {
        "index": torch.arange(count), "image": F.avg_pool2d(target, scale), "target": target,
        "levels": torch.full((count,), levels), "valid": torch.ones(count, dtype=torch.bool),
        "path": ["a.png"] * count,
    }  # fmt: skip


# Loss -----------------------------------------------------------------------------------------


def test_the_loss_is_l2_minus_five_ssim():
    model, batch = model_of(), batch_of()
    output = model(batch)
    terms = model.loss(batch, output)
    assert list(terms) == ["l2", "ssim"]
    torch.testing.assert_close(terms["l2"], F.mse_loss(output.sr, batch["target"]))
    torch.testing.assert_close(terms["ssim"], -5 * ssim(output.sr, batch["target"]).mean())
    perfect = type(output)(sr=batch["target"])
    assert float(sum(model.loss(batch, perfect).values())) == pytest.approx(-5, abs=1e-6)


def test_options_of_the_loss_reach_it():
    batch = batch_of()
    model = model_of(pixel_loss="l1", pixel_weight=2.0, ssim_weight=0.0)
    output = model(batch)
    (term,) = model.loss(batch, output).values()
    torch.testing.assert_close(term, 2 * F.l1_loss(output.sr, batch["target"]))
    narrow = model_of(pixel_weight=0.0, ssim_window=11)
    (term,) = narrow.loss(batch, output).values()
    torch.testing.assert_close(term, -5 * ssim(output.sr, batch["target"], window=11).mean())
    output.sr = -batch["target"]
    ours, published = (
        model_of(ssim_luminance=kind).loss(batch, output)["ssim"].item()
        for kind in ("positive", "published")
    )
    assert published < -4
    assert ours > 4


def test_every_level_of_a_progressive_network_is_judged():
    model, batch = model_of(**TINY_LEVELS), batch_of(side=8, scale=8)
    output = model(batch)
    sides = [stage.shape[-1] for stage in [*output.extra.values(), output.sr]]
    assert sides == [16, 32, 64]
    total = sum(model.loss(batch, output).values())
    single = []
    for stage in [*output.extra.values(), output.sr]:
        size = stage.shape[-2:]
        smaller = F.interpolate(batch["target"], size, mode="bicubic", antialias=True).clamp(0, 1)
        smaller = batch["target"] if stage is output.sr else smaller
        single.append(F.mse_loss(stage, smaller) - 5 * ssim(stage, smaller).mean())
    torch.testing.assert_close(total, torch.stack(single).mean())
    total.backward()
    assert all(p.grad is not None for p in model.parameters())
    published = model_of(**TINY_LEVELS, stage_targets="published")
    assert sum(published.loss(batch, output).values()).item() != pytest.approx(total.item())


def test_rate_as_published_and_as_meant(tmp_path):
    """Per step: 0.01, halved at 30, 60, ..., 1e-4 from 210 on. Per epoch: as long at 0.01."""
    rates = {}
    for interval in ("step", "epoch"):
        model = model_of(schedule_interval=interval)
        seen = rates.setdefault(interval, [])
        model.on_train_batch_start = lambda *_, m=model, s=seen: s.append(
            m.optimizers().param_groups[0]["lr"]
        )
        run = trainer(tmp_path, max_steps=212, max_epochs=-1, limit_val_batches=0)
        run.fit(model, pairs(train=16, batch_size=2, crop_size=24))
    expected = {0: 0.01, 29: 0.01, 30: 0.005, 209: 1.5625e-4, 210: 1e-4, 211: 1e-4}
    assert {i: rates["step"][i] for i in expected} == pytest.approx(expected)
    assert rates["epoch"] == [0.01] * 212  # 27 epochs


# Evaluation -----------------------------------------------------------------------------------


def test_results_are_judged_as_files_hold_them():
    batch = batch_of()
    image = torch.tensor([-0.2, 0.5001, 1.7]).view(1, 1, 1, 3)
    assert (rounded(image, torch.tensor([255])) * 255).flatten().tolist() == [0, 128, 255]
    fine = rounded(image, torch.tensor([65535])) * 65535
    assert fine.flatten().round().tolist() == [0, 32774, 65535]
    metrics = model_of(border=0, roi_thresholds=None).new_metrics()
    model = model_of(border=0, roi_thresholds=None)
    output = model(batch)
    output.sr = batch["target"] + 0.4 / 255  # less than half a level: nothing is lost
    model.update_metrics(metrics, batch, output, None)
    assert float(metrics.compute()[0]["psnr"]) > 400


def test_regions_are_what_reaches_each_grey_level():
    model = model_of(roi_thresholds=[4, 10])
    target = torch.tensor([0.0, 3, 4, 9, 10, 255]).view(1, 1, 1, 6) / 255
    regions = model.regions(target)
    assert regions.int().tolist() == [[[[0, 0, 1, 1, 1, 1]], [[0, 0, 0, 0, 1, 1]]]]
    assert model_of(roi_thresholds=None).regions(target) is None
    assert model.selects_by == ("roi_psnr", "max")
    assert model_of(roi_thresholds=None).selects_by == ("psnr", "max")


def test_values_of_a_split(tmp_path):
    values = trainer(tmp_path).validate(model_of(), pairs(), verbose=False)[0]
    names = {"psnr", "ssim", "nrmse", "roi_psnr", "roi_ssim", "roi_nrmse"}
    assert {name.partition("/")[2] for name in values} == names
    whole = trainer(tmp_path).validate(model_of(roi_thresholds=None), pairs(), verbose=False)[0]
    assert {name.partition("/")[2] for name in whole} == {"psnr", "ssim", "nrmse"}
    assert whole["val/psnr"] == values["val/psnr"]


def test_interpolation_runs_as_a_method_with_nothing_to_learn(tmp_path):
    model = SuperResolver(network="Interpolation", network_args={"kind": "nearest"})
    run = trainer(tmp_path, max_steps=1)
    run.fit(model, pairs())
    run.save_checkpoint(tmp_path / "nearest.ckpt")
    loaded = wsl_zoo.load(tmp_path / "nearest.ckpt")
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(loaded.predict_image(image), image.repeat(2, 0).repeat(2, 1))


# Whole images ---------------------------------------------------------------------------------


def test_tiles_are_used_in_evaluation_and_agree_with_the_whole():
    whole, cut = (model_of(tile=tile, tile_overlap=12).eval() for tile in (None, 20))
    cut.load_state_dict(whole.state_dict())
    batch = batch_of(side=50)
    sizes = []
    cut.network.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-2:]))
    with torch.no_grad():
        torch.testing.assert_close(cut(batch).sr, whole(batch).sr)
    assert set(sizes) == {(20, 20)}
    sizes.clear()
    cut.train()
    cut(batch)
    assert set(sizes) == set()  # training sees whole crops, by `stages`


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tile", [None, 16])
def test_predict_image_keeps_the_type(tmp_path, dtype, tile):
    model = model_of(tile=tile, tile_overlap=8).train()
    top = np.iinfo(dtype).max
    image = np.random.default_rng(0).integers(0, top, (30, 23), dtype=dtype, endpoint=True)
    result = model.predict_image(image)
    assert model.training
    assert (result.shape, result.dtype) == ((60, 46), dtype)
    with torch.no_grad():
        exact = model.eval().network(torch.from_numpy(image / top).float()[None, None])[0, 0]
    expected = exact.clamp(0, 1).double().numpy() * top
    assert np.abs(result - expected).max() <= 0.5 + 0.01 * (dtype == np.uint16)
    cv2.imwrite(str(tmp_path / "image.tif"), image)
    assert np.array_equal(model.predict_image(tmp_path / "image.tif"), result)


def test_predict_image_of_colours_and_what_it_refuses():
    model = model_of(in_chans=3)
    image = np.zeros((8, 9, 3), np.uint8)
    assert model.predict_image(image).shape == (16, 18, 3)
    with pytest.raises(TypeError, match=r"must be \(h, w, 3\) of uint8 or uint16, got \(8, 9\)"):
        model.predict_image(image[..., 0])
    with pytest.raises(TypeError, match=r"must be \(h, w\) of uint8 or uint16.*float64"):
        model_of().predict_image(image[..., 0] / 1.0)
    with pytest.raises(TypeError, match="a file or a numpy array, got list"):
        model_of().predict_image([1])


def test_predict_command_writes_tiffs_of_the_images_type(tmp_path, capsys):
    model = model_of()
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(model, pairs())
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    run.save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    rng, images = np.random.default_rng(0), tmp_path / "images"
    (images / "b").mkdir(parents=True)
    fine = rng.integers(0, 65535, (20, 16), dtype=np.uint16)
    coarse = rng.integers(0, 255, (14, 18), dtype=np.uint8)
    cv2.imwrite(str(images / "fine.tif"), fine)
    cv2.imwrite(str(images / "b" / "coarse.png"), coarse)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    code = main(["predict", "--ckpt_path", str(checkpoint), "--images", str(images),
                 "--trainer.accelerator", "cpu"])  # fmt: skip
    out = capsys.readouterr()
    assert code == 0, out.err
    assert "2 predictions in" in out.out
    folder = tmp_path / "run" / "predictions"
    model = wsl_zoo.load(checkpoint)
    for name, image in (("fine_tif.tif", fine), ("b/coarse_png.tif", coarse)):
        written = cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED)
        assert written.dtype == image.dtype
        expected = model.predict_image(image)
        assert np.abs(written.astype(int) - expected).max() <= 1
    table = (folder / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert table[0] == "image,enlarged,height,width"
    assert any(line.endswith("fine_tif.tif,40,32") for line in table)


def test_a_run_of_the_command_line_loads_and_is_tested_again(tmp_path, capsys):
    small = ["--config", "superres/synthetic", "--data.train", "8", "--data.val", "4",
             "--data.test", "4", "--data.side", "64", "--data.crop_size", "32",
             "--model.network_args", '{"width": 4, "depth": 3}',
             "--trainer.accelerator", "cpu"]  # fmt: skip
    run = tmp_path / "run"
    assert main(["fit", *small, "--trainer.max_epochs", "1", "--run_dir", str(run)]) == 0
    checkpoint = run / "checkpoints" / "best_cl.ckpt"
    model = wsl_zoo.load(checkpoint)
    assert isinstance(model, SuperResolver)
    assert not {"class_names", "num_classes"} & set(model.hparams)
    assert (run / "panels" / "val" / "epoch_000.png").is_file()
    assert main(["test", *small, "--ckpt_path", str(checkpoint), "--model.tile", "20"]) == 0
    assert "PSNR of regions, dB" in capsys.readouterr().out
    results = (run / "results.jsonl").read_text(encoding="utf-8")
    assert '"test/roi_psnr"' in results


# Refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "SRResNet"}, r"network='SRResNet': there are ACT, .*Interpolation.*VDSR"),
        ({"network": "SuperResolution"}, "network='SuperResolution': there are"),
        ({"network": "upsampled"}, "network='upsampled': there are"),
        ({"scale": 3}, "scale=3: SRCNN is for the scales 2, 4, 8"),
        ({"ssim_window": 18}, "ssim_window=18 must be odd"),
        ({"pixel_weight": 0.0, "ssim_weight": 0.0}, "must not be negative, nor both 0"),
        ({"border": -1}, "border=-1 must not be negative"),
        ({"roi_thresholds": []}, "one at least, or None"),
        ({"tile": 16}, r"tile_overlap=16 must be in \[0, tile=16\)"),
        ({"schedule_interval": "batch"}, '"epoch" or "step"'),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(ValueError, match=message):
        model_of(**changes)


def test_data_of_another_scale_or_without_pairs(tmp_path):
    with pytest.raises(ValueError, match=r"the model is of scale 4, SyntheticPairsData are of sca"):
        trainer(tmp_path).validate(model_of(scale=4), pairs())
    with pytest.raises(ValueError, match=r"scale 2, SyntheticData hold no pairs of images"):
        trainer(tmp_path).validate(model_of(), SyntheticData(train=4, val=4, test=4))
