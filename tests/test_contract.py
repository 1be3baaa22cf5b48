"""What every method must do, run for each that `list_methods` finds."""

import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import Callback

import wsl_zoo
from tests.cases import build, case_of, fill, trainer
from wsl_zoo.data.tables import TableSource
from wsl_zoo.data.transforms import normalize

METHODS = wsl_zoo.list_methods()


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


@pytest.fixture
def case(name):
    return case_of(name)


def batch_of(case, model, split="train", count=4, **data):
    """A training or evaluation batch as the trainer would hand it over, annotations included."""
    module = case.data(**data)
    dataset = module.dataset(split)
    dataset.annotations = dataset.has_masks = dataset.has_boxes = True
    batch = dataset.collate([dataset[i] for i in range(count)])
    if "target" in batch:
        return module.on_after_batch_transfer(batch, 0)
    if "image" in batch and hasattr(model, "encoder"):
        batch["raw"] = batch["image"]
        batch["image"] = normalize(batch["raw"], model.encoder.mean, model.encoder.std)
    return batch


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_fit_trains_every_group_and_nothing_else(name, case, tmp_path):
    model = build(name, tmp_path)
    before = {}

    class Before(Callback):
        def on_train_start(self, trainer, pl_module):  # start weights are read by now
            before.update({n: p.detach().clone() for n, p in pl_module.named_parameters()})

    run = trainer(tmp_path, max_steps=2, limit_val_batches=0, callbacks=[Before()])
    run.fit(model, case.data())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    groups = model.param_groups()
    names = {id(p): n for n, p in model.named_parameters()}
    trained = [{names[id(p)] for p in group["params"]} for group in groups]
    assert len(trained) >= 1
    for group in trained:
        assert group & changed
    assert changed <= set().union(*trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_terms_are_finite_and_sum_to_the_total(name, case, tmp_path, dtype):
    model = build(name, tmp_path)
    totals = []

    model.log = lambda key, value, **kwargs: None
    model.log_dict = lambda values, **kwargs: totals.extend(
        (k, float(v)) for k, v in values.items()
    )
    model._trainer = trainer(tmp_path)
    case.ready(model)
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        total = model.training_step(batch_of(case, model, count=case.count), 0)
    logged = dict(totals)
    total = total.detach()
    assert logged.pop("train/loss") == float(total)
    assert 0 <= logged.pop("train/acc", 0.0) <= 1
    assert logged
    assert all(key.startswith("train/") for key in logged)
    assert torch.isfinite(total)
    assert sum(logged.values()) == pytest.approx(float(total), rel=1e-5)


def test_predict(name, case, tmp_path):
    model = build(name, tmp_path)
    data = case.data()
    batches = trainer(tmp_path).predict(model, data)
    for batch in batches:
        size = len(batch["path"])
        if "sr" in batch:
            assert batch["sr"].shape == (size, 1, 48, 48)
            assert batch["sr"].min() >= 0
            assert batch["sr"].max() <= 1
            continue
        if "risk" in batch:
            assert batch["risk"].shape == (size, model.num_classes)
            assert ((batch["risk"] > 0) & (batch["risk"] < 1)).all()
            continue
        assert batch["probabilities"].shape == (size, model.num_classes)
        torch.testing.assert_close(batch["probabilities"].sum(1), torch.ones(size))
        assert torch.equal(batch["label"], batch["probabilities"].argmax(1))
        if batch["map"] is not None:
            assert batch["map"].shape == (size, data.image_size, data.image_size)
            assert batch["map"].min() >= 0
            assert batch["map"].max() <= 1
            assert not batch["map"].requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_checkpoint_stands_alone(name, case, tmp_path):
    stage1, checkpoint = tmp_path / "stage1", tmp_path / "model.ckpt"
    stage1.mkdir()
    model = build(name, stage1)
    run = trainer(tmp_path)
    run.fit(model, case.data())
    run.save_checkpoint(checkpoint)
    shutil.rmtree(stage1)
    torch.load(checkpoint, weights_only=True)
    loaded = wsl_zoo.load(checkpoint)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.class_names == model.class_names
    assert loaded.image_size == case.data().preprocessing()["image_size"]
    assert loaded.chosen_threshold == model.chosen_threshold
    model.eval()
    batch = batch_of(case, model, "test")
    with torch.no_grad():
        ours, theirs = model(batch), loaded(batch)
    for field in ("logits", "map", "hazard", "sr"):
        a, b = getattr(ours, field), getattr(theirs, field)
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.equal(a, b)
    if "raw" in batch:
        image = batch["raw"][0].permute(1, 2, 0).numpy()
        assert loaded.predict_image(image).label == int(model.predicted(ours)[0])


def test_hyper_parameters_survive_yaml(name, case, tmp_path):
    model = build(name, tmp_path)
    text = yaml.safe_dump(dict(model.hparams))
    again = yaml.safe_load(text)
    assert again == dict(model.hparams)
    assert dict(type(model)(**again).hparams) == again


def test_eval_batches_do_not_mix_images(name, case, tmp_path):
    model = build(name, tmp_path).eval()
    batch = batch_of(case, model, "test")
    with torch.no_grad():
        together = model(batch)
        for i in range(len(batch["index"])):
            one = {k: v[i : i + 1] for k, v in batch.items()}
            alone = model(one)
            for field in ("logits", "map", "hazard", "sr"):
                value = getattr(together, field)
                if value is not None:
                    torch.testing.assert_close(
                        getattr(alone, field)[0], value[i],
                        atol=case.batch_tolerance, rtol=case.batch_tolerance,
                    )  # fmt: skip


def losses_of(name, case, folder, data, **changes):
    model = build(name, folder)
    fill(model)
    seen = []
    step = model.training_step

    def training_step(batch, batch_idx):
        total = step(batch, batch_idx)
        seen.append(float(total.detach()))
        return total

    model.training_step = training_step
    trainer(folder, limit_val_batches=0, **changes).fit(model, data)
    return seen, weights_of(model)


def annotation_free(source):
    return isinstance(source, TableSource) or not (source.has_masks or source.has_boxes)


class Hidden:
    """A source whose annotations are gone; labels too, for a method that does not read them."""

    has_masks = has_boxes = False

    def __init__(self, source, labels):
        self.source = source
        self.labels = labels
        self.shots = getattr(source, "shots", None)

    def __len__(self):
        return len(self.source)

    def load(self, index, *, annotations):
        sample = self.source.load(index, annotations=False)
        assert sample.mask is None
        assert sample.boxes is None
        return sample if self.labels else dataclasses.replace(sample, label=-1)


def test_training_does_not_read_annotations(name, case, tmp_path):
    model = build(name, tmp_path)
    assert model.needs <= {"label", "mask", "boxes"}
    if model.needs & {"mask", "boxes"}:
        return  # it says that it reads them
    data, blind = case.data(), case.data()
    read = blind.read
    blind.read = lambda: {
        k: v if annotation_free(v) else Hidden(v, "label" in model.needs) for k, v in read().items()
    }
    ours, weights = losses_of(name, case, tmp_path, data)
    theirs, blind_weights = losses_of(name, case, tmp_path, blind)
    assert ours == theirs
    assert all(torch.equal(weights[key], blind_weights[key]) for key in weights)


def test_same_seed_same_losses_other_seed_others(name, case, tmp_path):
    first, _ = losses_of(name, case, tmp_path, case.data(seed=1))
    second, _ = losses_of(name, case, tmp_path, case.data(seed=1))
    other, _ = losses_of(name, case, tmp_path, case.data(seed=2))
    assert first == second
    assert first != other


def test_golden_loss(name, case, tmp_path):
    model = build(name, tmp_path)
    fill(model)
    model.eval()
    case.ready(model)
    batch = batch_of(case, model, count=case.count)
    torch.manual_seed(0)
    with torch.no_grad():
        total = sum(model.loss(batch, model(batch)).values())
    assert float(total) == pytest.approx(case.golden, rel=2e-3)  # scenes may differ by a grey level


def test_batch_is_not_changed_by_evaluation(name, case, tmp_path):
    model = build(name, tmp_path).eval()
    batch = batch_of(case, model, "test")
    before = copy.deepcopy(batch)
    with torch.no_grad():
        output = model(batch)
        if output.map is not None:
            maps = model.localize(batch, output, "label")
            assert maps.shape == batch["image"][:, 0].shape
            assert torch.isfinite(maps).all()
    assert batch.keys() == before.keys()
    for key, value in before.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(batch[key], value)


@pytest.mark.slow
def test_learns(name, case, tmp_path):
    for what, (reached, bar) in case.learns(tmp_path).items():
        assert reached > bar, f"{name}: {what} {reached:.3f} must exceed {bar:.3f}"


def test_every_method_has_a_case_and_stands_in_the_readme():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for method in METHODS:
        assert case_of(method)
        assert f"`{method}`" in readme, f"{method} is missing in the README's table"
