"""UnimodalOrdinal: every loss with every constraint, selection, maps, tables."""

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

import wsl_zoo
from tests.cases import trainer
from tests.cases.unimodal import grades, toy
from wsl_zoo.checkpointing import BestCheckpoint
from wsl_zoo.data import SyntheticData, TableData
from wsl_zoo.losses import UnimodalityConstraint
from wsl_zoo.methods import UnimodalOrdinal
from wsl_zoo.methods.unimodal import LOSSES
from wsl_zoo.metrics import OrdinalMAE, SidesOrderIndex

K = 5
SMALL = {"num_classes": K, "encoder": "mlp", "in_chans": 6, "head": "wgap"}


def rows(count=16, **changes):
    torch.manual_seed(0)
    model = UnimodalOrdinal(**SMALL | changes)
    batch = {
        "index": torch.arange(count),
        "features": torch.randn(count, 6),
        "label": torch.arange(count) % K,
    }
    return model, batch


@pytest.mark.parametrize("constraint", [None, "barrier", "rectified", "penalty"])
@pytest.mark.parametrize("loss", LOSSES)
def test_any_loss_joins_any_constraint(loss, constraint):
    model, batch = rows(loss=loss, constraint=constraint)
    output = model(batch)
    terms = model.loss(batch, output)
    assert list(terms) == [loss, *(["constraint"] if constraint else [])]
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert output.logits.shape == (16, K)
    probabilities = output.logits.softmax(1)
    given = model.ordinal.probabilities(output.extra["numbers"]).clamp(min=1e-12)
    torch.testing.assert_close(probabilities, given / given.sum(1, keepdim=True))
    assert torch.equal(model.predicted(output), model.ordinal.predict(output.extra["numbers"]))


def test_cross_entropy_and_its_constraint_are_those_of_the_scores():
    model, batch = rows(constraint_reduction="sum")
    output = model(batch)
    scores = model.head(model.encoder.final(batch["features"]))[0]
    terms = model.loss(batch, output)
    expected = torch.nn.functional.cross_entropy(scores, batch["label"])
    torch.testing.assert_close(terms["ce"], expected)
    barrier = UnimodalityConstraint("barrier", "sum")
    torch.testing.assert_close(terms["constraint"], barrier(scores, batch["label"]))


@pytest.mark.parametrize("loss", ["ren", "coral"])
def test_order_is_judged_on_probabilities_that_may_be_negative(loss):
    model, batch = rows(count=64, loss=loss, constraint=None)
    with torch.no_grad():
        if loss == "coral":
            model.link.biases.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]))
        output = model(batch)
    p = model.ordinal.probabilities(output.extra["numbers"])
    assert (p < 0).any()
    for mode in (batch["label"], output.extra["prediction"]):
        found, expected = SidesOrderIndex("label"), SidesOrderIndex("label")
        found.update(output.extra["scores"], mode)
        expected.update(p, mode)
        assert found.compute() == expected.compute()


def test_the_barrier_sharpens_with_the_epochs_and_a_checkpoint_holds_it(tmp_path):
    model = UnimodalOrdinal(num_classes=4, encoder="test_resnet", stride=16, t_factor=1.5, t_max=2)
    run = trainer(tmp_path, max_epochs=3, limit_val_batches=0)
    run.fit(model, grades())
    assert float(model.constraint.barrier.t) == 2.0
    run.save_checkpoint(tmp_path / "model.ckpt")
    assert float(wsl_zoo.load(tmp_path / "model.ckpt").constraint.barrier.t) == 2.0


def test_the_loss_may_be_weighed_by_t():
    model, batch = rows(weigh_loss=True, t=4.0)
    plain, _ = rows(t=4.0)
    output = model(batch)
    terms, expected = model.loss(batch, output), plain.loss(batch, plain(batch))
    torch.testing.assert_close(terms["ce"], 4 * expected["ce"])
    torch.testing.assert_close(terms["constraint"], expected["constraint"])


@pytest.mark.parametrize(
    ("select", "monitor", "best"), [("mae", "mae", min), ("acc", "acc", max), ("loss", "loss", min)]
)
def test_best_cl_is_chosen_by_what_select_says(tmp_path, select, monitor, best):
    data = TableData(str(toy(tmp_path / "toy.csv", train=60, test=20)), split="split")
    model = UnimodalOrdinal(
        num_classes=data.num_classes, in_chans=32, encoder="mlp", head="wgap", lr=0.02,
        select=select, class_names=data.class_names,
    )  # fmt: skip
    kept = BestCheckpoint("cl", dirpath=tmp_path / "kept")
    seen = []

    step = model.on_validation_epoch_end

    def on_validation_epoch_end():
        step()
        seen.append(float(run.callback_metrics[f"val/{monitor}"]))

    model.on_validation_epoch_end = on_validation_epoch_end
    run = trainer(
        tmp_path, max_epochs=5, callbacks=[kept], enable_checkpointing=True,
        logger=CSVLogger(tmp_path),
    )  # fmt: skip
    run.fit(model, data)
    assert kept.monitor == f"val/{monitor}"
    assert float(kept.best_model_score) == best(seen)
    assert len(set(seen)) > 1


def test_the_error_of_the_mean_is_that_of_the_decoded_ranks(tmp_path):
    data = TableData(str(toy(tmp_path / "toy.csv", train=60, test=50)), split="split")
    model = UnimodalOrdinal(
        num_classes=10, in_chans=32, encoder="mlp", head="wgap", loss="mv", constraint=None
    )
    found = trainer(tmp_path).test(model, data, verbose=False)[0]
    expected = OrdinalMAE()
    argmax = OrdinalMAE()
    for batch in data.test_dataloader()[0]:
        output = model(batch)
        expected.update(output.logits, batch["label"], output.extra["prediction"])
        argmax.update(output.logits, batch["label"])
    assert found["test/mae"] == pytest.approx(float(expected.compute()), rel=1e-6)
    assert float(argmax.compute()) != float(expected.compute())
    first = next(iter(data.test_dataloader()[0]))
    predicted = trainer(tmp_path).predict(model, data)[0]["label"]
    assert torch.equal(predicted, model(first).extra["prediction"])


@pytest.mark.parametrize("loss", ["ce", "corn"])
def test_images_have_maps_where_every_rank_has_one(tmp_path, loss):
    model = UnimodalOrdinal(num_classes=4, encoder="test_resnet", stride=16, loss=loss)
    data = SyntheticData(train=8, val=8, test=8, image_size=64)
    values = trainer(tmp_path).validate(model, data, verbose=False)[0]
    assert ("val/pxap" in values) == (loss == "ce")
    assert {"val/acc", "val/mae", "val/soi", "val/soi_label", "val/loss"} <= values.keys()
    assert "val/balanced_acc" not in values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "cee"}, "loss='cee' must be one of ce, ren"),
        ({"loss": "ld", "loss_args": {"sigma": 1}}, "loss_args"),
        ({"loss": "poisson", "link_args": {"tau": 0.0}}, "tau=0.0 must be positive"),
        ({"constraint": "hard"}, "kind='hard'"),
        ({"select": "best"}, "select='best'"),
        ({"constraint": "penalty", "weigh_loss": True}, "weigh_loss=True"),
        ({"encoder": "test_resnet", "encoder_args": {"hidden": []}}, "takes no arguments"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        UnimodalOrdinal(**SMALL | changes)


def test_published_bugs_are_there_for_the_asking():
    model, batch = rows(loss="poisson", link_args={"sign": -1}, constraint=None)
    right, _ = rows(loss="poisson", constraint=None)
    torch.testing.assert_close(model(batch).extra["numbers"], -right(batch).extra["numbers"])
