"""PHD: what teachers, imputer and student read, lose, keep and refuse."""

import pytest
import torch
from torch.nn import functional as F

import wsl_zoo
from tests.cases import trainer
from tests.cases.phd import TINY, exams, filled_teacher, fitted, student
from tests.cases.stages import save
from wsl_zoo.data.exams import ExamDataModule
from wsl_zoo.data.tables import TableSource
from wsl_zoo.losses.survival import horizon_labels, positive_weight
from wsl_zoo.methods import CAMClassifier, PHDStudent, PHDTeacher

T, D, Y = 5, 8, 5


def batch_of(count=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, T, generator=g) < 0.6
    mask[:, -1] = True
    features = torch.randn(count, T, D, generator=g) * mask[:, :, None]
    return {
        "index": torch.arange(count),
        "features": features,
        "exam_mask": mask,
        "time": torch.randint(1, 6, (count,), generator=g).float(),
        "event": torch.rand(count, generator=g) < 0.5,
    }


def built(kind=PHDTeacher, **changes):
    torch.manual_seed(0)
    return kind(**TINY | changes).eval()


# What is read -------------------------------------------------------------------------------------


def garbage_in_the_history(batch):
    return batch | {
        "features": torch.cat([torch.full((6, T - 1, D), 1e4), batch["features"][:, -1:]], 1),
        "exam_mask": torch.cat([~batch["exam_mask"][:, :-1], batch["exam_mask"][:, -1:]], 1),
    }


@pytest.mark.parametrize("impute", ["mlp", "mean", "carry", "none"])
@pytest.mark.parametrize("aggregator", ["transformer", "recurrent"])
def test_the_student_reads_the_current_exam_only(impute, aggregator):
    model, batch = built(PHDStudent, impute=impute, aggregator=aggregator), batch_of()
    with torch.no_grad():
        before, after = model(batch), model(garbage_in_the_history(batch))
        only = model({k: v[:, -1:] if v.ndim > 1 else v for k, v in batch.items()})
    assert torch.equal(before.hazard, after.hazard)
    assert torch.equal(before.hazard, only.hazard)


def test_a_model_without_a_history_reads_none():
    model, batch = built(history="current"), batch_of()
    with torch.no_grad():
        assert torch.equal(model(batch).hazard, model(garbage_in_the_history(batch)).hazard)


@pytest.mark.parametrize("aggregator", ["transformer", "recurrent"])
def test_hidden_slots_are_as_if_they_were_missing(aggregator):
    hidden = built(hide=[True] * (T - 1) + [False], aggregator=aggregator)
    full, batch = built(aggregator=aggregator), batch_of()
    without = batch | {"exam_mask": torch.tensor([False] * (T - 1) + [True]).expand(6, T)}
    with torch.no_grad():
        assert torch.equal(hidden(batch).hazard, full(without).hazard)
        assert not torch.allclose(hidden(batch).hazard, full(batch).hazard)
        hidden.train()
        hidden.aggregator.eval(), hidden.dropout.eval()
        assert torch.equal(hidden(batch).hazard, full(batch).hazard)  # in evaluation only


def test_what_a_missing_exam_holds_does_not_matter():
    model, batch = built(), batch_of()
    noisy = batch | {
        "features": torch.where(
            batch["exam_mask"][:, :, None], batch["features"], torch.tensor(9.0)
        )
    }
    with torch.no_grad():
        torch.testing.assert_close(model(batch).hazard, model(noisy).hazard)


def test_risks_never_fall_over_the_horizons():
    output = built()(batch_of(64))
    assert (output.hazard.diff(dim=1) >= 0).all()


# Losses -------------------------------------------------------------------------------------------


def test_a_teacher_loses_on_its_group_only():
    batch = batch_of(32)
    whole, part = built(), built(group=[2.0, 5.0])
    logits = whole(batch).hazard
    label = horizon_labels(batch["time"], batch["event"], [1, 2, 3, 4, 5])
    for model, columns in ((whole, range(5)), (part, [1, 4])):
        known = [(i, k) for i in range(32) for k in columns if label[i, k] >= 0]
        each = torch.stack([
            F.binary_cross_entropy_with_logits(logits[i, k], label[i, k].float()) for i, k in known
        ])  # fmt: skip
        torch.testing.assert_close(model.loss(batch, model(batch))["bce"], each.mean())


def test_the_student_learns_each_horizon_of_its_teacher(tmp_path):
    batch, arguments = batch_of(32), student(tmp_path)
    model = PHDStudent(**arguments | {"kd_weight": 0.7, "temperature": 3.0})
    trainer(tmp_path, max_epochs=0).fit(model, exams())
    model.eval()
    output = model(batch)
    label = horizon_labels(batch["time"], batch["event"], [1, 2, 3, 4, 5])
    expected = 0.0
    for path in arguments["teachers"]:
        teacher = wsl_zoo.load(path)
        taught = teacher(batch).hazard.detach()
        for k in teacher.columns:
            soft = (taught[:, k] / 3).sigmoid()
            own = (output.hazard[:, k] / 3).sigmoid()
            each = -soft * own.log() - (1 - soft) * (1 - own).log()
            known = label[:, k] >= 0
            expected = expected + 9 * each[known].mean()
    terms = model.loss(batch, output)
    assert list(terms) == ["bce", "kd", "rec"]
    torch.testing.assert_close(terms["kd"], 0.7 * expected)
    every = PHDStudent(**arguments | {"kd_rows": "all"})
    every._teachers = model._teachers
    assert every.loss(batch, output)["kd"] != terms["kd"]


def test_no_gradient_reaches_a_teacher(tmp_path):
    model = PHDStudent(**student(tmp_path))
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(model, exams())
    assert len(model._teachers) == 2
    for teacher in model._teachers:
        assert not teacher.training
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any("teacher" in name for name in model.state_dict())


def test_reconstruction_counts_the_exams_that_there_are(tmp_path):
    model, batch = built(PHDStudent, stage="imputer"), batch_of()
    output = model(batch)
    found = model.loss(batch, output)
    guessed, true = output.extra["guessed"][:, :-1], batch["features"][:, :-1]
    there = batch["exam_mask"][:, :-1]
    torch.testing.assert_close(found["rec"], ((guessed - true) ** 2).mean(2)[there].mean())
    assert list(found) == ["rec"]
    found["rec"].backward()
    assert all(p.grad is None for p in [*model.aggregator.parameters(), *model.hazard.parameters()])


def test_an_imputer_is_trained_alone_and_handed_on(tmp_path):
    imputer = PHDStudent(**TINY | {"stage": "imputer", "imputer_hidden": 16})
    before = {k: v.clone() for k, v in imputer.state_dict().items()}
    path = fitted(imputer, exams(), tmp_path, 1)
    changed = {
        k.partition(".")[0] for k, v in imputer.state_dict().items() if (v != before[k]).any()
    }
    assert changed == {"imputer", "encoder", "positive"}  # of the encoder what it standardises by
    values = trainer(tmp_path).validate(imputer, exams(), verbose=False)[0]
    assert values.keys() == {"val/loss"}
    model = PHDStudent(**TINY | {"imputer": path, "imputer_hidden": 16})
    trainer(tmp_path, max_epochs=0).fit(model, exams())
    for key, value in imputer.imputer.state_dict().items():
        assert torch.equal(model.imputer.state_dict()[key], value)


@pytest.mark.parametrize("kind", ["scalar", "per_horizon", "none"])
def test_events_weigh_by_the_training_rows(tmp_path, kind):
    data = exams(train=200)
    model = PHDTeacher(**TINY | {"pos_weight": kind})
    trainer(tmp_path, max_epochs=0).fit(model, data)
    label = horizon_labels(*data.training_outcomes(), model.horizons)
    expected = {
        "scalar": positive_weight(label).expand(5),
        "per_horizon": positive_weight(label, per_horizon=True),
        "none": torch.ones(5),
    }[kind]
    assert torch.equal(model.positive, expected)
    batch = batch_of()
    output = model.eval()(batch)
    risk = (output.hazard - expected.log()).sigmoid()
    torch.testing.assert_close(model.risk(output), risk)


# Images -------------------------------------------------------------------------------------------


class TinyViews(ExamDataModule):
    """Two rows of exams in four random views; some views and exams are missing."""

    in_chans = 1

    def read(self):
        g = torch.Generator().manual_seed(0)
        fields = {
            "image": torch.rand(4, T, 4, 1, 32, 32, generator=g),
            "view_mask": torch.rand(4, T, 4, generator=g) < 0.7,
            "exam_mask": torch.rand(4, T, generator=g) < 0.7,
            "time": torch.tensor([1.0, 2, 5, 5]),
            "event": torch.tensor([True, True, False, True]),
        }
        fields["exam_mask"][:, -1] = fields["view_mask"][:, -1, 0] = True
        fields["view_mask"] &= fields["exam_mask"][:, :, None]
        return {name: TableSource(fields, list("abcd")) for name in ("train", "val", "test")}


def test_exams_of_images_are_means_over_their_views(tmp_path):
    changes = {"encoder": "test_resnet", "in_chans": 1, "exam_dim": 8, "dim": 8}
    model = PHDTeacher(**TINY | changes)
    run = trainer(tmp_path, max_steps=1)
    run.fit(model, TinyViews(batch_size=4))
    model.eval()
    batch = next(iter(TinyViews(batch_size=4).test_dataloader()[0]))
    with torch.no_grad():
        found, missing = model.exams(batch)
        for i, t in batch["exam_mask"].nonzero().tolist():
            views = batch["image"][i, t][batch["view_mask"][i, t]]
            if len(views):
                pooled = model.encoder.final(views).mean(dim=(2, 3)).mean(dim=0)
                torch.testing.assert_close(found[i, t], model.project(pooled), atol=1e-5, rtol=1e-5)
    assert (found[missing] == 0).all()


def test_a_student_of_images_reads_the_current_views_only():
    model = built(PHDStudent, encoder="test_resnet", in_chans=1, exam_dim=8)
    data = TinyViews(batch_size=4)
    batch = next(iter(data.test_dataloader()[0]))
    with torch.no_grad():
        before = model(batch).hazard
        batch["image"][:, :-1] = torch.nan
        assert torch.equal(before, model(batch).hazard)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (PHDTeacher, {"group": [6.0]}, r"group=\[6.0\]: the horizons are \[1.0, 2.0"),
        (PHDTeacher, {"group": []}, "group="),
        (PHDTeacher, {"history": "none"}, "history='none'"),
        (PHDTeacher, {"hide": [True] * 5}, "the last one False"),
        (PHDTeacher, {"class_names": ["a", "b", "c", "d", "e"]}, "must be horizons, as numbers"),
        (PHDTeacher, {"aggregator": "lstm"}, "aggregator='lstm'"),
        (PHDTeacher, {"pos_weight": "all"}, "pos_weight='all'"),
        (PHDTeacher, {"exam_dim": 4}, "exam_dim=4"),
        (PHDTeacher, {"num_classes": 0, "class_names": []}, "num_classes=0"),
        (PHDStudent, {"stage": "teacher"}, "stage='teacher'"),
        (PHDStudent, {"impute": "zero"}, "impute='zero'"),
        (PHDStudent, {"impute": "carry", "rec_weight": 1.0}, "impute='carry'"),
        (PHDStudent, {"impute": "none", "stage": "imputer"}, "impute='none'"),
        (PHDStudent, {"kd_rows": "some"}, "kd_rows='some'"),
    ],
)
def test_bad_options_are_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**TINY | changes)


def test_teachers_that_do_not_fit_are_refused(tmp_path):
    near = filled_teacher(tmp_path, "near", group=[1.0, 2.0])
    whole = filled_teacher(tmp_path, "whole")
    other = PHDTeacher(**TINY | {"class_names": ["1", "2", "3", "4", "6"]})
    (tmp_path / "c").mkdir()
    classifier = save(
        CAMClassifier(num_classes=5, encoder="test_resnet"), tmp_path / "c" / "c.ckpt"
    )
    for teachers, message in (
        ([near, whole], "both teach horizon 1"),
        ([save(other, tmp_path / "other.ckpt")], "knows the horizons 1, 2, 3, 4, 6"),
        ([classifier], "holds a CAMClassifier: no PHDTeacher"),
    ):
        model = PHDStudent(**TINY | {"teachers": teachers})
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, max_epochs=1).fit(model, exams())


def test_an_imputer_of_another_width_is_refused(tmp_path):
    path = save(PHDStudent(**TINY | {"imputer_hidden": 4}), tmp_path / "imputer.ckpt")
    model = PHDStudent(**TINY | {"imputer_hidden": 8, "imputer": path})
    with pytest.raises(ValueError, match="has another imputer"):
        trainer(tmp_path, max_epochs=1).fit(model, exams())


def test_an_exam_is_no_single_image():
    with pytest.raises(TypeError, match="risk of exams"):
        built().predict_image("some.png")
