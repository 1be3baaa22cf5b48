import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wsl_zoo
from tests.cases import trainer
from tests.cases.adaptation import arguments, tiny
from tests.methods.test_adaptation import TWO, batch_of, fit, model_of, ready
from wsl_zoo.encoders.mixed_norm import MixedNorm, norm_statistics, plain_keys
from wsl_zoo.methods import AdaDSA, adadsa
from wsl_zoo.types import Output


def norms_of(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return arguments(tmp_path_factory.mktemp("source"))["source"]


@pytest.fixture(scope="module")
def adapted(source, tmp_path_factory):
    """A model after two steps, and its trainer."""
    model = model_of(AdaDSA, source, lr=1.0, norm_mode="train")
    return model, fit(model, tmp_path_factory.mktemp("adapted"))


def test_one_number_per_batch_norm_learns_and_nothing_else(adapted, source):
    model, _ = adapted
    start = wsl_zoo.load(source)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith(".theta") for name in learning)
    numbers = sum(model.get_parameter(name).numel() for name in learning)
    assert numbers == len(norms_of(start.encoder)) == 15
    at_start = MixedNorm(nn.BatchNorm2d(1)).theta
    assert not all(torch.equal(m.theta, at_start) for m in model.mixed)
    keys = plain_keys(model.encoder)
    state = model.encoder.state_dict()
    for key, value in start.encoder.state_dict().items():
        assert torch.equal(state[keys[key]], value), key
    for key, value in start.head.state_dict().items():
        assert torch.equal(model.head.state_dict()[key], value), key


def test_numbers_have_no_weight_decay_and_those_of_layer4_learn_faster(adapted):
    model, run = adapted
    groups = {group["name"]: group for group in run.optimizers[0].param_groups}
    assert all(group["weight_decay"] == 0 for group in groups.values())
    last = [m.theta for m in model.encoder.model.layer4.modules() if isinstance(m, MixedNorm)]
    assert {id(p) for p in groups["head"]["params"]} == {id(p) for p in last}
    assert groups["head"]["initial_lr"] == pytest.approx(10 * groups["trunk"]["initial_lr"])
    assert len(groups["trunk"]["params"]) == 15 - len(last)


def test_the_targets_statistics_are_measured_with_the_source(adapted, source):
    model, _ = adapted
    start, dataset = wsl_zoo.load(source), tiny(hflip=0.0).dataset("train")
    images = torch.stack([dataset[i]["image"] for i in range(32)])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (start.encoder.mean, start.encoder.std))
    images = (images / 255 - mean) / std
    means, variances, _ = norm_statistics(start.encoder, images.split(16), torch.device("cpu"))
    for norm, first, second in zip(model.mixed, means, variances, strict=True):
        torch.testing.assert_close(norm.target_mean, first, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(norm.target_var, second, atol=1e-3, rtol=1e-3)


def test_small_variances_around_large_means_are_kept(monkeypatch):
    model = AdaDSA(**TWO)
    means = [torch.full_like(m.target_mean, 1000.3) for m in model.mixed]
    variances = [torch.full_like(m.target_var, 1e-3) for m in model.mixed]
    monkeypatch.setattr(adadsa, "norm_statistics", lambda *_: (means, variances, 67))
    alone = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor)
    model._trainer = SimpleNamespace(strategy=alone)
    model._measure(model.encoder)
    for norm in model.mixed:
        torch.testing.assert_close(norm.target_mean, torch.full_like(norm.target_mean, 1000.3))
        torch.testing.assert_close(norm.target_var, torch.full_like(norm.target_var, 1e-3))


def at(model, step, steps=10):
    model._trainer = SimpleNamespace(global_step=step, estimated_stepping_batches=steps)
    return model


def test_trust_grows_from_zero_to_almost_one():
    model = AdaDSA(**TWO)
    values = [at(model, step).trust() for step in range(11)]
    assert values[0] == 0
    assert values[10] == pytest.approx(math.tanh(5)) == pytest.approx(0.99991, abs=1e-5)
    assert values == sorted(values)
    assert values[3] == pytest.approx(2 / (1 + math.exp(-10 * 0.3)) - 1)


def test_trust_needs_a_last_step():
    with pytest.raises(ValueError, match=r"needs a last step: set trainer.max_epochs or max_steps"):
        at(AdaDSA(**TWO), 0, math.inf).trust()


@pytest.mark.parametrize(("step", "whose"), [(0, "source"), (10, "own")])
def test_labels_are_the_sources_at_first_and_its_own_at_the_end(source, step, whose):
    model = ready(model_of(AdaDSA, source, label_smoothing=0.2), [0, 1] * 6)
    at(model, step)
    batch = batch_of()
    with torch.no_grad():
        logits = wsl_zoo.load(source)(batch).logits
    own = (-3 * logits).requires_grad_()  # the other class throughout
    terms = model.adaptation_loss(batch, Output(logits=own))
    label = (logits if whose == "source" else own).argmax(1)
    expected = F.cross_entropy(own, label, label_smoothing=0.2)
    torch.testing.assert_close(terms["ce"], 0.3 * expected)
    p = own.softmax(1)
    torch.testing.assert_close(terms["entropy"], -0.433 * (p * p.log()).sum(1).mean())


def test_networks_without_batch_norms_are_refused():
    with pytest.raises(ValueError, match=r"encoder='test_vit' has no batch norms.*use a CNN"):
        AdaDSA(num_classes=2, encoder="test_vit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_dropout": 0.1}, "feature_dropout=0.1: AdaDSA drops nothing, set it to 0"),
        ({"alpha": 1.0}, r"alpha=1.0 must lie in \(0, 1\)"),
    ],
)
def test_wrong_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        AdaDSA(**TWO | changes)


def test_an_adapted_model_is_the_same_in_training_and_evaluation(adapted, tmp_path):
    model, _ = adapted
    batch = batch_of()
    with torch.no_grad():
        assert torch.equal(model.train()(batch).logits, model.eval()(batch).logits)
    values = trainer(tmp_path).validate(model, tiny(), verbose=False)[0]
    assert "val/bias" in values
