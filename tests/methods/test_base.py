"""What all methods share: groups, schedules, modes, metrics, thresholds, checkpoints."""

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import Timer
from torch import nn
from torch.utils.data import DataLoader

import wsl_zoo
from tests.cases import tiny_data, trainer
from tests.cases.killing import KillAt, Killed
from wsl_zoo.checkpointing import LastCheckpoint
from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.synthetic import SceneSource
from wsl_zoo.methods import CAMClassifier
from wsl_zoo.metrics import DiceAtThreshold, MaxBoxAcc, PxAP
from wsl_zoo.schedules import EpochSchedule
from wsl_zoo.types import Output


def tiny(**kwargs: Any) -> CAMClassifier:
    return CAMClassifier(**{"num_classes": 4, "encoder": "test_resnet"} | kwargs)


def group_names(model):
    names = {id(p): n for n, p in model.named_parameters()}
    return {g["name"]: [names[id(p)] for p in g["params"]] for g in model.param_groups()}


# Parameter groups


@pytest.mark.parametrize(
    ("settings", "fast"),
    [
        ({"encoder": "test_resnet"}, ("head.", "encoder.model.layer4.")),
        ({"encoder": "resnet18"}, ("head.", "encoder.model.layer4.")),
        ({"encoder": "test_vit"}, ("head.",)),
        ({"encoder": "mobilenetv2_100"}, ("head.",)),
        ({"encoder": "vgg16", "form": "wsol"}, ("head.", "conv6")),
        ({"encoder": "inception_v3", "form": "wsol"}, ("head.", "a3")),
    ],
    ids=lambda value: value["encoder"] if isinstance(value, dict) else "",
)
def test_groups_follow_the_recipe(settings, fast):
    model = tiny(**settings, lr=0.25, head_lr_factor=8.0)
    new = {f"encoder.model.{name}." for name in model.encoder._new_layers}
    if settings.get("form") == "wsol":
        assert new
        fast = ("head.", *new)
    groups = group_names(model)
    assert sorted(groups) == ["head", "trunk"]
    everything = [name for name, _ in model.named_parameters()]
    assert sorted(groups["trunk"] + groups["head"]) == sorted(everything)
    assert set(groups["head"]) == {name for name in everything if name.startswith(tuple(fast))}
    assert all(any(n.startswith(f) for n in groups["head"]) for f in fast)
    assert {g["name"]: g["lr"] for g in model.param_groups()} == {"trunk": 0.25, "head": 2.0}


class Frozen(CAMClassifier):
    """Its encoder is held."""

    def frozen(self):
        return (self.encoder,)


def test_what_is_frozen_is_in_no_group_and_stays_as_it_is(tmp_path):
    model = Frozen(num_classes=4, encoder="test_resnet", lr=0.1)
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    modes = []

    class Modes(Callback):
        def on_train_batch_start(self, trainer, module, *args):
            modes.append((module.head.training, module.encoder.training))
            modes.append((True, any(m.training for m in module.encoder.modules())))

    head = model.head.fc.weight.detach().clone()
    trainer(tmp_path, max_epochs=2, callbacks=[Modes()]).fit(model, tiny_data())
    assert set(modes) == {(True, False)}  # also in the first epoch, and after a validation
    assert list(group_names(model)) == ["head"]
    assert all(name.startswith("head.") for name in group_names(model)["head"])
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not torch.equal(model.head.fc.weight, head)


def test_frozen_batch_norms_train_their_weights_but_not_their_statistics(tmp_path):
    def changes(**settings):
        model = tiny(lr=0.1, **settings)
        before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
        trainer(tmp_path, max_epochs=2).fit(model, tiny_data())
        after = model.encoder.state_dict()
        return {k for k in before if not torch.equal(before[k], after[k])}

    changed = changes(freeze_bn=True)
    assert "model.bn1.weight" in changed
    assert "model.bn1.bias" in changed
    assert not [k for k in changed if "running_" in k or "num_batches" in k]
    assert "model.bn1.running_mean" in changes()


def test_training_sets_the_mode_of_a_loaded_model_and_leaves_evaluation_alone(tmp_path):
    model = tiny().eval()  # as `wsl_zoo.load` gives it
    modes = []

    class Modes(Callback):
        def on_train_batch_start(self, trainer, module, *args):
            modes.append(module.training and module.encoder.model.bn1.training)

        def on_validation_batch_start(self, trainer, module, *args):
            assert not any(m.training for m in module.modules())

    trainer(tmp_path, callbacks=[Modes()]).fit(model, tiny_data())
    assert modes == [True, True]


# Optimiser and schedules


class Rates(Callback):
    """The rates of the groups at the start of each epoch, or of each step."""

    def __init__(self, every="epoch"):
        self.seen, self.every = [], every

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.every == "step":
            self.see(trainer)

    def on_train_epoch_start(self, trainer, module):
        if self.every == "epoch":
            self.see(trainer)

    def see(self, trainer):
        groups = trainer.optimizers[0].param_groups
        self.seen.append({g["name"]: g["lr"] for g in groups})


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_rates_of_a_fit_follow_the_formula(tmp_path, schedule):
    lr, floor, gamma, epochs = 0.1, 0.02, 0.2, 5
    model = tiny(lr=lr, min_lr=floor, gamma=gamma, step_size=2, schedule=schedule)
    rates = Rates()
    run = trainer(
        tmp_path, max_epochs=epochs, callbacks=[rates], limit_train_batches=1, limit_val_batches=0
    )
    run.fit(model, tiny_data())
    for name, base in (("trunk", lr), ("head", 10 * lr)):
        expected = {
            "step": [max(base * gamma ** (e // 2), floor) for e in range(epochs)],
            "cosine": [
                floor + (base - floor) * (1 + np.cos(np.pi * e / epochs)) / 2 for e in range(epochs)
            ],
            "constant": [base] * epochs,
        }[schedule]
        assert [rate[name] for rate in rates.seen] == pytest.approx(expected, rel=1e-12)
    if schedule == "step":  # the floor holds for the trunk while the head is still above it
        assert rates.seen[-1]["trunk"] == pytest.approx(0.02)
        assert rates.seen[-1]["head"] == pytest.approx(0.04)


def test_a_cosine_comes_down_over_max_steps_where_epochs_have_no_end(tmp_path):
    rates = Rates("step")
    run = trainer(tmp_path, max_epochs=-1, max_steps=8, limit_val_batches=0, callbacks=[rates])
    run.fit(tiny(schedule="cosine", lr=0.1, min_lr=0.02), tiny_data())
    expected = [0.02 + 0.08 * (1 + np.cos(np.pi * step / 8)) / 2 for step in range(8)]
    assert [rate["trunk"] for rate in rates.seen] == pytest.approx(expected)


def test_a_cosine_comes_down_over_the_time_to_train(tmp_path, monkeypatch):
    rates = Rates("step")
    run = trainer(
        tmp_path, max_epochs=-1, max_time={"hours": 1}, limit_val_batches=0, callbacks=[rates]
    )
    (timer,) = (c for c in run.callbacks if isinstance(c, Timer))
    monkeypatch.setattr(timer, "time_elapsed", lambda *_: run.global_step * 3600 / 8)
    run.fit(tiny(schedule="cosine", lr=0.1, min_lr=0.02), tiny_data())
    expected = [0.02 + 0.08 * (1 + np.cos(np.pi * step / 8)) / 2 for step in range(8)]
    assert [rate["trunk"] for rate in rates.seen] == pytest.approx(expected)


def test_a_cosine_needs_a_last_epoch_or_step(tmp_path):
    run = trainer(tmp_path, max_epochs=-1)
    with pytest.raises(ValueError, match=r"set trainer.max_epochs, trainer.max_steps or"):
        run.fit(tiny(schedule="cosine"), tiny_data())


def test_optimizers_get_their_settings(tmp_path):
    for settings, kind, expected in (
        ({"momentum": 0.8}, torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ({"optimizer": "adamw"}, torch.optim.AdamW, {"betas": (0.9, 0.999)}),
    ):
        run = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
        run.fit(tiny(weight_decay=0.03, **settings), tiny_data())
        assert type(run.optimizers[0]) is kind
        for group in run.optimizers[0].param_groups:
            assert {k: group[k] for k in expected} == expected
            assert group["weight_decay"] == 0.03


class Barrier(nn.Module):
    """As a loss whose weight grows."""

    steps_every_epoch = True

    def __init__(self):
        super().__init__()
        self.register_buffer("t", torch.tensor(1.0))

    def step(self):
        self.t *= 2


class Stepper(nn.Module):
    """Has a `step` of its own that is none of the base's business."""

    def step(self):
        raise AssertionError("nobody asked for this")


class Scheduled(CAMClassifier):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.losses = nn.ModuleList([Barrier(), nn.Sequential(Barrier()), Stepper()])
        self.refreshed, self.seen = [], []

    def loss(self, batch, output):
        self.seen.append((self.current_epoch, float(self.losses[0].t)))
        return super().loss(batch, output)

    def refresh(self):
        self.refreshed.append(self.current_epoch)


def test_schedules_step_once_per_epoch_and_travel_in_checkpoints(tmp_path):
    model = Scheduled(num_classes=4, encoder="test_resnet")
    assert list(model.schedules()) == [model.losses[0], model.losses[1][0]]
    assert isinstance(Barrier(), EpochSchedule)
    model.losses[0].steps_every_epoch = False  # switched off
    assert len(list(model.schedules())) == 1
    model.losses[0].steps_every_epoch = True
    run = trainer(tmp_path, max_epochs=3, check_val_every_n_epoch=2)
    run.fit(model, tiny_data())
    assert [float(b.t) for b in model.schedules()] == [8.0, 8.0]
    assert model.refreshed == [0, 1, 2]
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = Scheduled(num_classes=4, encoder="test_resnet")
    trainer(tmp_path, max_epochs=5).fit(again, tiny_data(), ckpt_path=tmp_path / "a.ckpt")
    assert [float(b.t) for b in again.schedules()] == [32.0, 32.0]
    assert again.refreshed == [3, 4]
    trainer(tmp_path, max_epochs=1).fit(again, tiny_data())  # another run starts counting anew
    assert float(again.losses[0].t) == 64.0


@pytest.mark.parametrize("step", [1, 2, 3, 4])  # two steps per epoch: within and at the end of one
def test_schedules_miss_no_step_where_a_run_is_killed(tmp_path, step):
    def fit(*callbacks, **kwargs):
        model = Scheduled(num_classes=4, encoder="test_resnet")
        last = LastCheckpoint(dirpath=tmp_path, every_n_train_steps=1)
        run = trainer(
            tmp_path, max_epochs=3, callbacks=[last, *callbacks], enable_checkpointing=True
        )
        try:
            run.fit(model, tiny_data(), **kwargs)
        except Killed:
            assert callbacks
        return model

    fit(KillAt(step))
    resumed = fit(ckpt_path=tmp_path / "last.ckpt")
    assert float(resumed.losses[0].t) == 8.0
    steps = [(epoch, 2.0**epoch) for epoch in (0, 0, 1, 1, 2, 2)]
    assert resumed.seen == steps[step:]
    assert resumed.refreshed == ([1, 2] if step <= 2 else [2])


# Start weights


def test_start_weights_are_read_when_a_new_run_starts_and_never_again(tmp_path):
    donor = tiny()
    with torch.no_grad():
        for parameter in donor.encoder.parameters():
            parameter.fill_(0.125)
    file = tmp_path / "start.pth"
    torch.save(donor.encoder.model.state_dict(), file)

    model = tiny(weights=str(file), lr=0.0)
    weight = model.encoder.model.conv1[0].weight
    assert not (weight == 0.125).all()  # not when it is built
    run = trainer(tmp_path, limit_train_batches=1)
    run.fit(model, tiny_data())
    assert (weight == 0.125).all()

    with torch.no_grad():
        weight.fill_(0.5)  # what was trained since
    checkpoint = tmp_path / "trained.ckpt"
    run.save_checkpoint(checkpoint)
    trainer(tmp_path, limit_train_batches=1).fit(model, tiny_data())  # trained on
    assert (weight == 0.5).all()

    file.unlink()
    loaded = wsl_zoo.load(checkpoint)
    assert (loaded.encoder.model.conv1[0].weight == 0.5).all()
    trainer(tmp_path, limit_train_batches=1).fit(loaded, tiny_data())  # fine-tuned
    assert (loaded.encoder.model.conv1[0].weight == 0.5).all()
    resumed = tiny(weights=str(file), lr=0.0)
    resume = trainer(tmp_path, max_epochs=2, limit_train_batches=1)
    resume.fit(resumed, tiny_data(), ckpt_path=checkpoint)
    assert (resumed.encoder.model.conv1[0].weight == 0.5).all()
    assert resume.current_epoch == 2
    trainer(tmp_path).test(tiny(weights=str(file)), tiny_data(), verbose=False)  # no training
    with pytest.raises(FileNotFoundError, match=r"start\.pth"):
        trainer(tmp_path).fit(tiny(weights=str(file)), tiny_data())


# Training step


def test_a_loss_that_is_not_finite_says_where(tmp_path):
    class Broken(CAMClassifier):
        def loss(self, batch, output):
            terms = super().loss(batch, output)
            if self.current_epoch == 1 and self.global_step == 3:
                terms["size"] = terms["ce"] * torch.inf
            return terms

    model = Broken(num_classes=4, encoder="test_resnet")
    with pytest.raises(FloatingPointError, match=r"epoch 1, batch 1 \(ce=[0-9.]+, size=inf\)"):
        trainer(tmp_path, max_epochs=3).fit(model, tiny_data())


def test_batches_are_prepared_in_training_only(tmp_path):
    seen = {"prepared": 0, "forward": []}

    class Prepared(CAMClassifier):
        def prepare_batch(self, batch):
            seen["prepared"] += 1
            return batch | {"image": torch.full_like(batch["image"], 7.0)}

        def forward(self, batch):
            seen["forward"].append((self.training, bool((batch["image"] == 7.0).all())))
            return super().forward(batch)

    model = Prepared(num_classes=4, encoder="test_resnet")
    trainer(tmp_path).fit(model, tiny_data())
    trainer(tmp_path).test(model, tiny_data(), verbose=False)
    trainer(tmp_path).predict(model, tiny_data())
    assert seen["prepared"] == 2
    assert len(seen["forward"]) == 8
    assert all(training == prepared for training, prepared in seen["forward"])


def test_what_a_step_draws_follows_from_seed_epoch_and_step(tmp_path):
    def draws(seed):
        drawn = []

        class Drawing(CAMClassifier):
            def prepare_batch(self, batch):
                drawn.append(float(torch.rand(())))
                return batch

        model = Drawing(num_classes=4, encoder="test_resnet", seed=seed)
        trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(model, tiny_data())
        return drawn

    first = draws(0)
    assert len(set(first)) == 4
    torch.rand(3)  # what was drawn before does not matter
    assert draws(0) == first
    assert not set(draws(1)) & set(first)


# Localisation


def ramp(batch=3, classes=4):
    """Maps of 2x2, another corner per class."""
    maps = torch.zeros(batch, classes, 2, 2)
    for k in range(classes):
        maps[:, k, k // 2, k % 2] = 1.0 + k
    return maps


def test_localize_reads_the_map_that_is_asked_for():
    model = tiny()
    logits = torch.eye(4)[[3, 1, 0]]
    batch = {"image": torch.zeros(3, 3, 8, 8), "label": torch.tensor([0, 1, 2])}
    output = Output(logits=logits, map=ramp())
    corner = {0: (0, 0), 1: (0, 7), 2: (7, 0), 3: (7, 7)}
    for target, classes in (("label", [0, 1, 2]), ("pred", [3, 1, 0]), (2, [2, 2, 2])):
        maps = model.localize(batch, output, target)
        assert maps.shape == (3, 8, 8)
        for score_map, k in zip(maps, classes, strict=True):
            assert float(score_map.min()) == 0.0
            assert float(score_map.max()) == 1.0
            assert float(score_map[corner[k]]) == 1.0
    assert torch.equal(model.localize(batch, output), model.localize(batch, output, "label"))


@pytest.mark.parametrize(
    ("target", "output", "message"),
    [
        (4, Output(map=ramp()), r"\[0, 3\]"),
        (-1, Output(map=ramp()), r"\[0, 3\]"),
        ("best", Output(map=ramp()), "'best' must be 'label', 'pred'"),
        ("pred", Output(map=ramp()), "needs logits"),
        ("label", Output(logits=torch.zeros(3, 4)), "returned no map"),
    ],
)
def test_localize_refuses_with_a_reason(target, output, message):
    batch = {"image": torch.zeros(3, 3, 8, 8), "label": torch.tensor([0, 1, 2])}
    with pytest.raises(ValueError, match=message):
        tiny().localize(batch, output, target)


def test_the_order_of_normalising_and_the_interpolation_are_settings():
    batch = {"image": torch.zeros(1, 3, 8, 8), "label": torch.tensor([0])}
    raw = torch.tensor([[[[1.0, 2.0, 0.0], [3.0, 7.0, 1.0], [0.0, 2.0, 1.0]]]]).repeat(1, 4, 1, 1)
    maps = {}
    for order in ("before_upsample", "after_upsample"):
        for how in ("bilinear", "bicubic"):
            model = tiny(norm_order=order, interpolation=how)
            maps[order, how] = model.localize(batch, Output(map=raw))
    both = nn.functional.interpolate(raw[:, :1] / 7, (8, 8), mode="bilinear")[:, 0]
    torch.testing.assert_close(maps["before_upsample", "bilinear"], both)
    wide = nn.functional.interpolate(raw[:, :1], (8, 8), mode="bicubic")[:, 0]
    wide = (wide - wide.min()) / (wide.max() - wide.min())
    torch.testing.assert_close(maps["after_upsample", "bicubic"], wide)
    assert len({round(float(m.sum()), 4) for m in maps.values()}) == 4


# Evaluation


class Planted(CAMClassifier):
    """Answers from a table by the index of the sample: logits and map (values in [0, 1])."""

    def plant(self, logits, maps):
        self.table = logits, maps
        return self

    def forward(self, batch):
        final = super().forward(batch)
        logits, maps = (t[batch["index"]].to(batch["image"].device) for t in self.table)
        maps = maps[:, None].expand(-1, self.num_classes, -1, -1)
        return Output(logits=logits + 0 * final.logits, map=maps)


def planted(size=8, side=48, classes=4):
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(size, side, side, generator=generator)
    maps.flatten(1)[:, 0], maps.flatten(1)[:, 1] = 0.0, 1.0  # min-max leaves them as they are
    logits = torch.randn(size, classes, generator=generator)
    return Planted(num_classes=classes, encoder="test_resnet").plant(logits, maps), logits, maps


def truth(data, split):
    dataset = data.dataset(split)
    items = [dataset[i] for i in range(len(dataset))]
    return (
        torch.tensor([item["label"] for item in items]),
        torch.stack([item["mask"] for item in items]),
        [item["boxes"] for item in items],
    )


@pytest.mark.parametrize("batch", [3, 8])
def test_evaluation_is_gt_known_on_the_whole_split(tmp_path, batch):
    model, logits, maps = planted()
    data = tiny_data(eval_batch_size=batch)
    values = trainer(tmp_path).validate(model, data, verbose=False)[0]
    label, mask, boxes = truth(data, "val")
    pxap, boxacc = PxAP(), MaxBoxAcc()
    pxap.update(maps, mask)
    boxacc.update(maps, boxes)
    assert values["val/pxap"] == pytest.approx(float(pxap.compute()), rel=1e-6)
    assert values["val/maxboxacc"] == pytest.approx(float(boxacc.compute()), rel=1e-6)
    assert values["val/acc"] == pytest.approx(float((logits.argmax(1) == label).float().mean()))
    assert values["val/prevalence"] == pytest.approx(float((mask == 1).float().mean()))
    assert model.chosen_threshold == pxap.best_threshold()


def test_the_test_uses_the_threshold_of_the_validation(tmp_path):
    model, _, maps = planted()
    data = tiny_data()
    # Maps of which the validation split likes a low threshold and the test split a high one.
    noise = torch.rand(maps.shape, generator=torch.Generator().manual_seed(4))
    _, val_mask, _ = truth(data, "val")
    _, test_mask, _ = truth(data, "test")
    low = torch.where(val_mask == 1, 0.3 + 0.7 * noise, 0.29 * noise)
    high = torch.where(test_mask == 1, 0.8 + 0.2 * noise, 0.79 * noise)
    for table in (low, high):
        table.flatten(1)[:, 0], table.flatten(1)[:, 1] = 0.0, 1.0
    logits = torch.zeros(8, 4)
    trainer(tmp_path).validate(model.plant(logits, low), data, verbose=False)
    curve = PxAP()
    curve.update(low, val_mask)
    assert model.chosen_threshold == model.map_threshold == curve.best_threshold()
    assert 0.28 < model.chosen_threshold < 0.32
    run = trainer(tmp_path)
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "a.ckpt")

    fresh, _, _ = planted()
    assert fresh.chosen_threshold is None
    assert fresh.map_threshold == 0.5
    values = trainer(tmp_path).test(
        fresh.plant(logits, high), data, ckpt_path=tmp_path / "a.ckpt", verbose=False
    )[0]
    fixed, best = DiceAtThreshold(model.chosen_threshold), DiceAtThreshold("best")
    fixed.update(high, test_mask)
    best.update(high, test_mask)
    assert values["test/dice"] == pytest.approx(float(fixed.compute()), rel=1e-6)
    assert values["test/dice_oracle"] == pytest.approx(float(best.compute()), rel=1e-6)
    assert values["test/dice"] < values["test/dice_oracle"] - 0.1
    assert "test/image_dice" in values
    without = trainer(tmp_path).test(planted()[0].plant(logits, high), data, verbose=False)[0]
    assert "test/dice" not in without
    assert "test/dice_oracle" in without


class Blank:
    """A source that shows only the masks and boxes of some of its scenes."""

    def __init__(self, source, masks=(), boxes=()):
        self.source, self.masks, self.boxes = source, set(masks), set(boxes)
        self.has_masks, self.has_boxes = bool(masks), bool(boxes)

    def __len__(self):
        return len(self.source)

    def load(self, index, *, annotations):
        sample = self.source.load(index, annotations=annotations)
        sample.mask = sample.mask if index in self.masks else None
        sample.boxes = sample.boxes if index in self.boxes else None
        return sample


class Splits(ZooDataModule):
    """Named splits of scenes."""

    class_names = ("a", "b", "c", "d")

    def __init__(self, sources, **kwargs):
        super().__init__(**{"image_size": 48, "batch_size": 4} | kwargs)
        self.given = sources

    def read(self):
        return self.given


def scenes(count=8, offset=0):
    return SceneSource(count, offset, 0, 48, 4)


def test_named_validation_splits_log_apart_and_the_judge_gives_the_threshold(tmp_path):
    model, logits, maps = planted()
    every = range(8)
    data = Splits(
        {
            "train": scenes(),
            "valcl": Blank(scenes(6, 100)),
            "val.a": Blank(scenes(8, 200), boxes=every),
            "values": Blank(scenes(8, 300), masks=every),  # a name that a ModuleDict would refuse
            "valpx": Blank(scenes(4, 400), masks=every, boxes=every),
            "test_one": scenes(3, 500),
            "test_two": Blank(scenes(5, 600)),
        }
    )
    run = trainer(tmp_path)
    results = run.validate(model, data, verbose=False)
    values = {k: v for part in results for k, v in part.items()}
    splits = {key.partition("/")[0] for key in values}
    assert splits == {"valcl", "val.a", "values", "valpx"}
    assert data.selection() == {"cl": "valcl/acc", "loc": "values/pxap"}
    for split, count in (("valcl", 6), ("valpx", 4)):
        label = torch.tensor([data.dataset(split)[i]["label"] for i in range(count)])
        accuracy = float((logits[:count].argmax(1) == label).float().mean())
        assert values[f"{split}/acc"] == pytest.approx(accuracy)
    assert "valcl/pxap" not in values
    assert "valcl/maxboxacc" not in values
    assert "val.a/maxboxacc" in values
    assert "val.a/pxap" not in values
    assert "values/maxboxacc" not in values
    mask = torch.stack([data.dataset("values")[i]["mask"] for i in range(8)])
    curve = PxAP()
    curve.update(maps, mask)
    assert values["values/pxap"] == pytest.approx(float(curve.compute()), rel=1e-6)
    other = PxAP()
    other.update(maps[:4], torch.stack([data.dataset("valpx")[i]["mask"] for i in range(4)]))
    assert model.chosen_threshold == curve.best_threshold() != other.best_threshold()
    tested = {k for part in trainer(tmp_path).test(model, data, verbose=False) for k in part}
    assert {"test_one/acc", "test_two/acc", "test_one/dice"} <= tested
    assert "test_two/dice" not in tested


def test_images_without_a_mask_count_nowhere(tmp_path):
    model, logits, maps = planted()
    some = [1, 4, 6]
    val = Blank(scenes(8, 100), masks=some)
    data = Splits({"train": scenes(), "val": val, "test": val})
    trainer(tmp_path).validate(model, data, verbose=False)
    values = trainer(tmp_path).test(model, data, verbose=False)[0]
    only = Splits({"train": scenes(), "val": scenes(8, 100), "test": scenes(8, 100)})
    mask = torch.stack([only.dataset("val")[i]["mask"] for i in some])
    threshold = model.chosen_threshold
    predicted, foreground = maps[some].double() >= threshold, mask == 1
    overlap = (predicted & foreground).sum((1, 2)).double()
    dice = 2 * overlap / (predicted.sum((1, 2)) + foreground.sum((1, 2)))
    assert values["test/image_dice"] == pytest.approx(float(dice.mean()), rel=1e-6)
    assert values["test/prevalence"] == pytest.approx(float(foreground.float().mean()), rel=1e-6)
    assert values["test/acc"] == pytest.approx(
        float((logits.argmax(1) == torch.arange(8) % 4).float().mean())
    )


def test_padded_duplicates_do_not_count(tmp_path):
    model, _, _ = planted()
    data = tiny_data()
    whole = trainer(tmp_path).validate(model, data, verbose=False)[0]

    def doubled(batch, dataloader_idx, after=data.on_after_batch_transfer):
        batch = after(batch, dataloader_idx)
        for key, value in batch.items():
            batch[key] = torch.cat([value, value]) if torch.is_tensor(value) else value + value
        batch["index"][4:] = (batch["index"][4:] + 1) % 8  # other answers than the first copies
        batch["valid"][4:] = False
        return batch

    data.on_after_batch_transfer = doubled
    assert trainer(tmp_path).validate(model, data, verbose=False)[0] == whole


def test_the_sanity_check_chooses_no_threshold(tmp_path):
    model = tiny()
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            seen.append(module.chosen_threshold)

    run = trainer(tmp_path, num_sanity_val_steps=2, callbacks=[Look()])
    run.fit(model, tiny_data())
    assert seen == [None]
    assert model.chosen_threshold is not None


# Loaders without a data module


class Plain(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        image = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(i))
        return {"image": image, "label": i % 2, "index": i}


def test_plain_loaders_will_do(tmp_path):
    loader = DataLoader(Plain(), batch_size=4)
    model = tiny(num_classes=2)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, loader, loader)
    assert {"train/ce", "train/loss", "val/acc"} <= set(run.callback_metrics)
    values = trainer(tmp_path).validate(model, loader, verbose=False)[0]
    batch = next(iter(DataLoader(Plain(), batch_size=6)))
    with torch.no_grad():
        right = model.eval()(batch).logits.argmax(1) == batch["label"]
    assert values["val/acc"] == pytest.approx(float(right.float().mean()))
    assert set(values) == {"val/acc", "val/balanced_acc"}
    assert model.chosen_threshold is None
    assert model.image_size is None
    both = trainer(tmp_path).validate(model, [loader, loader], verbose=False)
    names = {k for part in both for k in part}
    assert {"val_0/acc", "val_1/acc"} <= names
    assert "test/acc" in trainer(tmp_path).test(model, loader, verbose=False)[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 3, "class_names": ["a", "b"]}, "2 class_names for num_classes=3"),
        ({"num_classes": 1}, "at least two"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_a_method_must_say_what_it_computes():
    class Nothing(wsl_zoo.methods.ZooModule):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Nothing()
