"""Checkpoints, panels, predictions and results, written by real runs."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.loggers import CSVLogger

import wsl_zoo
from tests.cases import tiny_data, trainer
from tests.methods.clips import Shots
from wsl_zoo import pictures, reports
from wsl_zoo.callbacks import (
    MapWriter,
    PanelWriter,
    ResultWriter,
    relative_stem,
    run_folder,
)
from wsl_zoo.checkpointing import BestCheckpoint, LastCheckpoint
from wsl_zoo.data import FolderData, UnlabelledImages
from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.synthetic import SceneSource
from wsl_zoo.methods import CAMClassifier
from wsl_zoo.metrics.split import Thresholds


def tiny(**kwargs):
    torch.manual_seed(0)
    return CAMClassifier(**{"num_classes": 4, "encoder": "test_resnet", "stride": 16} | kwargs)


class Scored(CAMClassifier):
    """Reports given scores, one per validation."""

    def __init__(self, scores=(), **kwargs):
        super().__init__(num_classes=4, encoder="test_resnet", lr=0.0)
        self.scores = scores

    def on_validation_epoch_end(self):
        values = self.scores[self.current_epoch] if not self.trainer.sanity_checking else {}
        for name, value in values.items():
            self.log(f"val/{name}", value)


def fit(folder, model, *callbacks, data=None, **settings):
    run = trainer(folder, **{"enable_checkpointing": True, "callbacks": list(callbacks)} | settings)
    run.fit(model, data or tiny_data(), ckpt_path=settings.pop("ckpt_path", None))
    return run


def epoch_of(path):
    return torch.load(path, weights_only=True)["epoch"]


# Checkpoints


def test_the_best_of_each_kind_is_kept_and_of_equals_the_first(tmp_path):
    scores = [
        {"acc": 0.5, "pxap": 0.2},
        {"acc": 0.7, "pxap": 0.3},
        {"acc": 0.7, "pxap": 0.6},
        {"acc": 0.6, "pxap": 0.6},
        {"acc": 0.7, "pxap": 0.1},
    ]
    kept = [BestCheckpoint(kind, dirpath=tmp_path) for kind in ("cl", "loc")]
    fit(tmp_path, Scored(scores), *kept, max_epochs=5)
    assert [b.monitor for b in kept] == ["val/acc", "val/pxap"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best_cl.ckpt", "best_loc.ckpt"]
    assert epoch_of(tmp_path / "best_cl.ckpt") == 1
    assert epoch_of(tmp_path / "best_loc.ckpt") == 2
    assert [float(b.best_model_score) for b in kept] == pytest.approx([0.7, 0.6])


def test_the_best_score_goes_on_after_a_resume(tmp_path):
    scores = [{"acc": 0.5, "pxap": 0.9}, {"acc": 0.4, "pxap": 0.1}, {"acc": 0.6, "pxap": 0.8}]

    def callbacks():
        best = [BestCheckpoint(kind, dirpath=tmp_path) for kind in ("cl", "loc")]
        return [*best, LastCheckpoint(dirpath=tmp_path)]

    fit(tmp_path, Scored(scores), *callbacks(), max_epochs=1)
    again = callbacks()
    run = trainer(tmp_path, enable_checkpointing=True, callbacks=again, max_epochs=3)
    run.fit(Scored(scores), tiny_data(), ckpt_path=tmp_path / "last.ckpt")
    assert run.current_epoch == 3
    assert epoch_of(tmp_path / "best_cl.ckpt") == 2
    assert epoch_of(tmp_path / "best_loc.ckpt") == 0  # 0.9 of before was never reached again
    assert float(again[1].best_model_score) == pytest.approx(0.9)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["best_cl.ckpt", "best_loc.ckpt", "last.ckpt"]


class Plain(ZooDataModule):
    """Scenes without masks and boxes, or with empty masks only."""

    class_names = ("a", "b", "c", "d")

    def __init__(self, empty=False):
        super().__init__(batch_size=4, image_size=48)
        self.empty = empty

    def read(self):
        sources = {}
        for split, start in (("train", 0), ("val", 100)):
            source = SceneSource(8, start, 0, 48, 4)
            source.has_masks, source.has_boxes = self.empty, False
            load = source.load

            def hidden(index, *, annotations, load=load):
                sample = load(index, annotations=annotations)
                sample.mask = np.zeros_like(sample.mask) if self.empty and annotations else None
                return sample

            source.load = hidden
            sources[split] = source
        return sources


@pytest.mark.parametrize("empty", [False, True], ids=["no masks", "no foreground"])
def test_without_ground_truth_there_is_no_best_loc(tmp_path, empty):
    kept = [BestCheckpoint(kind, dirpath=tmp_path) for kind in ("cl", "loc")]
    run = fit(tmp_path, tiny(), *kept, data=Plain(empty))
    assert [p.name for p in tmp_path.iterdir()] == ["best_cl.ckpt"]
    assert "val/pxap" not in run.callback_metrics
    assert wsl_zoo.load(tmp_path / "best_cl.ckpt").chosen_threshold is None


def test_a_validation_before_the_fit_and_a_fit_without_one(tmp_path):
    best = BestCheckpoint("cl", dirpath=tmp_path)
    run = trainer(tmp_path, enable_checkpointing=True, callbacks=[best])
    run.validate(tiny(), tiny_data(), verbose=False)
    run.fit(tiny(), tiny_data())
    assert (tmp_path / "best_cl.ckpt").is_file()
    blind = BestCheckpoint("cl", dirpath=tmp_path / "blind")
    fit(tmp_path, tiny(), blind, limit_val_batches=0)
    assert not (tmp_path / "blind" / "best_cl.ckpt").exists()


def test_the_threshold_in_a_checkpoint_is_that_of_its_epoch(tmp_path, monkeypatch):
    best = [BestCheckpoint(kind, dirpath=tmp_path) for kind in ("cl", "loc")]
    model, thresholds, log = tiny(), [0.25, 0.5, 0.75], CAMClassifier._log_metrics

    def scores(split, values):
        epoch = model.current_epoch
        log(model, split, {"acc": torch.tensor(-epoch), "pxap": torch.tensor(epoch % 2)})

    def compute(self):
        return {}, Thresholds(thresholds[model.current_epoch])

    monkeypatch.setattr(model, "_log_metrics", scores)
    monkeypatch.setattr("wsl_zoo.metrics.split.SplitMetrics.compute", compute)
    fit(tmp_path, model, *best, max_epochs=3)
    assert model.chosen_threshold == 0.75
    assert wsl_zoo.load(tmp_path / "best_cl.ckpt").chosen_threshold == 0.25
    assert wsl_zoo.load(tmp_path / "best_loc.ckpt").chosen_threshold == 0.5


class Judged(Scored):
    """Judged on two further splits with thresholds of their own; here they are plain numbers."""

    thresholds = 0.0

    def on_validation_epoch_end(self):
        self.thresholds_of = {"val_a": 0.1 + self.current_epoch, "val_b": 0.2 + self.current_epoch}
        self.thresholds = 0.3 + self.current_epoch
        scores = self.scores[self.current_epoch]
        for split in ("val", "val_a", "val_b"):
            self.log(f"{split}/acc", scores["acc"])
            self.log(f"{split}/maxboxacc", scores.get(split, 0))

    def on_save_checkpoint(self, checkpoint):
        checkpoint["thresholds"] = self.thresholds

    def on_load_checkpoint(self, checkpoint):
        pass


class TwoRoots(Plain):
    def selection(self):
        roots = {f"loc_{name}": f"val_{name}/maxboxacc" for name in "ab"}
        return {"cl": "val/acc", "loc": "val_b/maxboxacc", **roots}


def test_a_checkpoint_holds_the_thresholds_of_its_judge(tmp_path):
    kinds = ("cl", "loc", "loc_a", "loc_b")
    best = [BestCheckpoint(kind, dirpath=tmp_path) for kind in kinds]
    scores = [{"acc": 0.5, "val_a": 0.6, "val_b": 0.1}, {"acc": 0.7, "val_a": 0.5, "val_b": 0.2}]
    model = Judged(scores)
    fit(tmp_path, model, *best, LastCheckpoint(dirpath=tmp_path), data=TwoRoots(), max_epochs=2)
    found = {
        path.stem: torch.load(path, weights_only=True)["thresholds"] for path in tmp_path.iterdir()
    }
    assert found == {
        "best_cl": 1.3, "best_loc": 1.2, "best_loc_a": 0.1, "best_loc_b": 1.2, "last": 1.3,
    }  # fmt: skip
    assert epoch_of(tmp_path / "best_loc_a.ckpt") == 0
    assert model.thresholds == 1.3  # what is in use stays


def test_the_thresholds_in_use_come_back_when_saving_fails(tmp_path, monkeypatch):
    model = Judged([{"acc": 0.5}])
    monkeypatch.setattr(torch, "save", lambda *args, **kwargs: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):  # noqa: PT011 - the disk is full
        fit(tmp_path, model, BestCheckpoint("loc_a", dirpath=tmp_path), data=TwoRoots())
    assert model.thresholds == 0.3


class Foreign(LightningModule):
    """A module that is none of ours: no thresholds."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["image"].mean((2, 3))).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/pxap", 0.5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_foreign_module_is_kept_too(tmp_path):
    fit(tmp_path, Foreign(), BestCheckpoint("loc", dirpath=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["best_loc.ckpt"]


def test_an_unknown_kind_is_refused(tmp_path):
    for kind in ("acc", "loc_", "loc_a b", "cl_a"):
        with pytest.raises(ValueError, match=f"kind='{kind}' must be 'cl', 'loc' or 'loc_<root>'"):
            BestCheckpoint(kind)
    with pytest.raises(ValueError, match="kind='loc_clip': the data have only cl, loc"):
        fit(tmp_path, tiny(), BestCheckpoint("loc_clip", dirpath=tmp_path))


class Stop(RuntimeError):
    pass


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise Stop


def test_the_last_is_that_of_every_epoch_and_every_so_many_steps(tmp_path):
    steps = []

    class Look(Callback):
        def on_train_batch_start(self, *args):
            file = tmp_path / "last.ckpt"
            step = torch.load(file, weights_only=True)["global_step"] if file.exists() else 0
            steps.append(step)

    settings = {"max_epochs": 3, "limit_val_batches": 0}
    last = LastCheckpoint(dirpath=tmp_path, every_n_train_steps=3)
    fit(tmp_path, tiny(), Look(), last, data=tiny_data(train=20), **settings)
    assert steps == [0, 0, 0, 3, 3, 5, 6, 6, 6, 9, 10, 10, 12, 12, 12]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 15
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    steps.clear()
    (tmp_path / "last.ckpt").unlink()
    fit(tmp_path, tiny(), Look(), LastCheckpoint(dirpath=tmp_path), **settings)
    assert steps == [0, 0, 2, 2, 4, 4]


def test_an_interrupted_run_leaves_its_last_state(tmp_path):
    last = LastCheckpoint(dirpath=tmp_path)
    with pytest.raises(Stop):
        fit(tmp_path, tiny(), StopAt(3), last, max_epochs=3)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    run = fit(tmp_path, tiny(), LastCheckpoint(dirpath=tmp_path))
    before = (tmp_path / "last.ckpt").read_bytes()
    monkeypatch.setattr(torch, "save", lambda *args, **kwargs: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):  # noqa: PT011 - the disk is full
        run.save_checkpoint(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before


# Folder of the run


def test_the_folder_of_a_run(tmp_path):
    def folder(fn, checkpoint, log_dir=None):
        state = SimpleNamespace(fn=fn)
        return run_folder(
            SimpleNamespace(state=state, ckpt_path=checkpoint, log_dir=log_dir,
                            default_root_dir="root")
        )  # fmt: skip

    assert folder("fit", None) == Path("root")
    assert folder("fit", None, "logs") == Path("logs")
    assert folder("fit", "other/checkpoints/last.ckpt", "logs") == Path("logs")
    assert folder("test", "run/checkpoints/last.ckpt", "logs") == Path("run")
    assert folder("predict", Path("run/a.ckpt")) == Path("run")
    assert folder("validate", None, "logs") == Path("logs")


# Panels

SIDE = 48


def tile(picture, row, column, across=2):
    """The tile at (row, column) of a grid with captions, rows laid `across`."""
    block = 4 * (SIDE + pictures.GAP) + 2 * pictures.GAP
    step = SIDE + pictures.GAP + pictures.LINE
    y = pictures.GAP + (row // across) * step
    x = pictures.GAP + (row % across) * block + column * (SIDE + pictures.GAP)
    return picture[y : y + SIDE, x : x + SIDE]


@pytest.mark.parametrize("batch", [3, 8, 5])
def test_panels_show_image_mask_map_and_boxes_of_evenly_spaced_images(tmp_path, batch):
    data, model, panels = tiny_data(val=8, eval_batch_size=batch), tiny(), PanelWriter(count=3)
    fit(tmp_path, model, panels, data=data, num_sanity_val_steps=1, max_epochs=2)
    names = [f"panels/val/epoch_{epoch:03d}.png" for epoch in (0, 1)]
    assert panels.written == [tmp_path / name for name in names]
    picture = np.asarray(Image.open(tmp_path / names[1]))
    dataset = data.dataset("val")
    for row, index in enumerate((0, 4, 7)):  # round of 0, 3.5, 7
        item = dataset[index]
        image = item["image"].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(tile(picture, row, 0), image)
        np.testing.assert_array_equal(
            tile(picture, row, 1), pictures.mask_image(item["mask"].numpy())
        )
        score = model.predict_image(image, target=item["label"]).map
        difference = tile(picture, row, 2).astype(int) - pictures.overlay(image, score)
        assert np.abs(difference).mean() < 2
        boxes = tile(picture, row, 3)
        x0, y0, x1, _ = map(int, item["boxes"][0].tolist())
        green = (boxes == pictures.TRUTH).all(2)
        red = (boxes == pictures.PREDICTED).all(2)
        drawn = green | red  # a predicted box may cross it
        assert drawn[y0, x0 : min(x1, SIDE - 1)].all()
        assert green.any()
    assert not list(tmp_path.rglob("*.partial"))


def test_panels_do_not_depend_on_the_batches(tmp_path):
    written = []
    for batch in (1, 3, 8):
        panels = PanelWriter(count=5)
        folder = tmp_path / str(batch)
        run = trainer(folder, callbacks=[panels])
        run.test(tiny(), tiny_data(eval_batch_size=batch), verbose=False)
        assert panels.written == [folder / "panels" / "test_model.png"]
        written.append(np.asarray(Image.open(panels.written[0])).astype(int))
    assert written[0].shape == written[1].shape == written[2].shape
    for other in written[1:]:
        assert (np.abs(other - written[0]) > 1).mean() < 0.01  # rounding of a batched convolution


def test_panels_come_every_so_many_epochs_and_hide_what_is_not_there(tmp_path):
    panels = PanelWriter(count=2, every_n_epochs=2)
    fit(tmp_path, tiny(), panels, data=Plain(), max_epochs=4)
    assert [path.name for path in panels.written] == ["epoch_000.png", "epoch_002.png"]
    picture = np.asarray(Image.open(panels.written[0]))
    block = 3 * (SIDE + pictures.GAP) + 2 * pictures.GAP  # image, map, predicted boxes
    assert picture.shape[1] == 2 * block - pictures.GAP
    few = PanelWriter(count=50)
    fit(tmp_path / "few", tiny(), few, data=Plain())
    height = pictures.GAP + 4 * (SIDE + pictures.GAP + pictures.LINE)
    assert np.asarray(Image.open(few.written[0])).shape[0] == height  # all 8, two side by side


def test_a_validation_by_itself_does_not_overwrite_the_pictures_of_the_fit(tmp_path):
    panels = PanelWriter(count=2)
    last = LastCheckpoint(dirpath=tmp_path / "checkpoints")
    run = fit(tmp_path, tiny(), panels, last)
    before = panels.written[0].read_bytes()
    run.validate(tiny(lr=0.5), tiny_data(), ckpt_path=last.best_model_path, verbose=False)
    assert panels.written[0].read_bytes() == before
    assert panels.written[1] == tmp_path / "panels" / "val_last.png"


def test_wrong_guesses_are_said(tmp_path, monkeypatch):
    captions = []
    grid = pictures.grid
    monkeypatch.setattr(
        pictures, "grid", lambda rows, **kw: captions.extend(kw["captions"]) or grid(rows, **kw)
    )
    model = tiny(class_names=["a", "b", "c", "d"])
    with torch.no_grad():
        model.head.fc.weight.zero_()
        model.head.fc.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))  # always b
    run = trainer(tmp_path, callbacks=[PanelWriter(count=8)])
    run.test(model, tiny_data(), verbose=False)
    assert captions == ["a (said b)", "b", "c (said b)", "d (said b)"] * 2


# Predictions


def write_images(folder, names, side=40):
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side + i, side + 2 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def test_predictions_are_written_at_the_size_of_each_image(tmp_path):
    names = ["a.png", "sub/a.png", 'sub/b, "c".png', "a.jpg", "é.png"]
    write_images(tmp_path / "images", names)
    model = tiny(class_names=["one", 'two "2"', "three, 3", "four"])
    with torch.no_grad():
        model.head.fc.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))
    model.image_size, model.thresholds = 48, Thresholds(0.6)
    data = UnlabelledImages(
        classes=model.class_names, predict_images=str(tmp_path / "images"), image_size=48,
        batch_size=2,
    )  # fmt: skip
    writer = MapWriter()
    trainer(tmp_path, callbacks=[writer]).predict(model, data)
    out = tmp_path / "predictions"
    assert writer.folder == out
    assert writer.count == 5
    stems = ["a_png", "sub/a_png", 'sub/b, "c"_png', "a_jpg", "é_png"]
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert files == {f"{s}.{end}" for s in stems for end in ("npz", "png")} | {"predictions.csv"}
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = {Path(row["image"]).relative_to(tmp_path / "images").as_posix(): row
                for row in csv.DictReader(file)}  # fmt: skip
    assert set(rows) == set(names)
    for name, stem in zip(names, stems, strict=True):
        expected = model.predict_image(tmp_path / "images" / name)
        saved = np.load(out / f"{stem}.npz")
        assert saved["map"].dtype == np.float16
        assert saved["map"].shape == expected.map.shape
        np.testing.assert_allclose(saved["map"], expected.map, atol=2e-3)
        assert int(saved["label"]) == expected.label == 1
        np.testing.assert_allclose(saved["probabilities"], expected.probabilities, atol=1e-5)
        assert rows[name]["class"] == 'two "2"'
        assert float(rows[name]["probability"]) == pytest.approx(expected.probability, abs=1e-5)
        boxes = [[int(n) for n in box.split()] for box in rows[name]["boxes"].split(";") if box]
        assert boxes == saved["boxes"].tolist()
        assert np.asarray(Image.open(out / f"{stem}.png")).shape == (*expected.map.shape, 3)


def test_images_of_one_name_in_two_classes_do_not_overwrite_each_other(tmp_path):
    names = [f"{s}/{c}/{i}.png" for s in ("train", "val", "test") for c in "xy" for i in (1, 2)]
    write_images(tmp_path / "set", names)
    data = FolderData(root=str(tmp_path / "set"), image_size=48, batch_size=3)
    trainer(tmp_path, callbacks=[MapWriter()]).predict(tiny(num_classes=2), data)
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.npz"))
    assert found == [f"predictions/test/{c}/{i}_png.npz" for c in "xy" for i in (1, 2)]


def test_where_predictions_go():
    def stem(path, **data):
        return relative_stem(path, SimpleNamespace(datamodule=SimpleNamespace(**data))).as_posix()

    assert stem("/d/images/a/b.png", predict_images="/d/images") == "a/b_png"
    assert stem("/d/images/b.png", predict_images="/d/images/b.png") == "b_png"  # one image
    assert stem("/d/set/test/a.jpg", root=Path("/d/set"), predict_images=None) == "test/a_jpg"
    assert stem("/d/set/test/a.jpg", root=None, manifest=Path("/d/set/m.csv")) == "test/a_jpg"
    assert stem("/elsewhere/a.b.jpg", root=Path("/d/set")) == "a.b_jpg"
    assert stem("scene-200") == "scene-200"
    assert relative_stem("x/a.png", SimpleNamespace()).as_posix() == "a_png"


def test_a_second_prediction_starts_a_new_table(tmp_path):
    write_images(tmp_path / "images", ["a.png", "b.png"])
    data = UnlabelledImages(
        classes=list("abcd"), predict_images=str(tmp_path / "images"), image_size=48
    )
    writer = MapWriter(str(tmp_path / "out"))
    run = trainer(tmp_path, callbacks=[writer])
    for _ in range(2):
        run.predict(tiny(), data)
        lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
        assert len(lines) == 3
        assert writer.count == 2


def test_padded_duplicates_are_not_written(tmp_path):
    data = tiny_data()

    def padded(batch, dataloader_idx, after=data.on_after_batch_transfer):
        batch = after(batch, dataloader_idx)
        batch["valid"][1:] = False
        return batch

    data.on_after_batch_transfer = padded
    writer = MapWriter(str(tmp_path / "out"))
    trainer(tmp_path, callbacks=[writer]).predict(tiny(), data)
    written = sorted(p.stem for p in (tmp_path / "out").glob("*.npz"))
    assert written == ["scene-20000000", "scene-20000004"]
    assert writer.count == 2


def test_nothing_is_left_half_written(tmp_path, monkeypatch):
    data, writer = tiny_data(), MapWriter(str(tmp_path / "out"))
    run = trainer(tmp_path, callbacks=[writer])
    run.predict(tiny(), data)
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def broken(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", broken)
    with pytest.raises(OSError, match="no space left"):
        trainer(tmp_path, callbacks=[MapWriter(str(tmp_path / "out"))]).predict(tiny(), data)
    after = {p: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.suffix != ".partial"}
    assert after == before


# Results


def test_corloc_of_every_class_is_written_for_videos(tmp_path):
    model, data = tiny(), Shots(image_size=48)
    last = LastCheckpoint(dirpath=tmp_path / "run" / "checkpoints")
    run = fit(tmp_path, model, last, ResultWriter(show=False), data=data)
    data.split_names = lambda stage: {"test": ["val"]}.get(stage, [])
    (values,) = run.test(model, data, ckpt_path=last.best_model_path, verbose=False)
    table = pd.read_csv(tmp_path / "run" / "curves" / "val_last_classes.csv")
    assert table["class"].astype(str).tolist() == ["0", "1", "2", "3"]
    for name in ("corloc", "corloc_oracle", "corloc_class_oracle"):
        assert table[name].mean() == pytest.approx(values[f"val/{name}"])
        assert table[name].between(0, 1).all()


def test_results_are_appended_and_shown(tmp_path, capsys):
    last = LastCheckpoint(dirpath=tmp_path / "run" / "checkpoints")
    results = ResultWriter()
    logger = CSVLogger(tmp_path / "run", name="", version="")
    model = tiny()
    run = fit(tmp_path, model, last, results, logger=logger)
    run.test(model, tiny_data(), verbose=False)
    run.test(model, tiny_data(), ckpt_path=last.best_model_path, verbose=False)
    lines = (tmp_path / "run" / reports.RESULTS).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["checkpoint"] for row in rows] == ["model", "last"]
    assert set(results.columns) == {"model", "last"}
    for row in rows:
        assert all(key.startswith("test/") for key in row["metrics"])
        assert {"test/acc", "test/pxap", "test/dice"} <= set(row["metrics"])
    assert rows[0]["metrics"] == rows[1]["metrics"] == results.columns["last"]
    shown = capsys.readouterr().out
    assert f"{100 * rows[0]['metrics']['test/acc']:.2f}" in shown
    written = {path.name for path in (tmp_path / "run" / "curves").iterdir()}
    endings = (".png", "_pixels.csv", "_largest.csv", "_all.csv")
    assert written == {f"test_{name}{end}" for name in ("model", "last") for end in endings}
    curve = pd.read_csv(tmp_path / "run" / "curves" / "test_last_largest.csv")
    assert curve["accuracy_iou50"].max() == pytest.approx(rows[1]["metrics"]["test/maxboxacc"])
    quiet = ResultWriter(show=False)
    trainer(tmp_path, callbacks=[quiet]).test(model, tiny_data(), verbose=False)
    assert capsys.readouterr().out == ""
    assert quiet.columns
