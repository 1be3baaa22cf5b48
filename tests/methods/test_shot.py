import pytest
import torch

from tests.methods.test_adaptation import TWO, bank_of, batch_of, ready
from wsl_zoo.losses import centroid_labels
from wsl_zoo.methods import SHOT
from wsl_zoo.types import Output


def output_of(count=12):
    torch.manual_seed(1)
    return Output(logits=torch.randn(count, 2, requires_grad=True))


def terms_of(output, **changes):
    model = ready(SHOT(**TWO | changes), torch.arange(12) % 3 == 0)
    return model, model.adaptation_loss(batch_of(), output)


def test_terms_equal_a_hand_computation():
    output = output_of()
    weights = {"ce_weight": 0.7, "entropy_weight": 0.5, "diversity_weight": 0.2}
    model, terms = terms_of(output, label_smoothing=0.1, **weights)
    p, label = output.logits.detach().double().softmax(1), model.pseudo["label"][:12]
    logarithm = p.log()
    chosen = logarithm[torch.arange(12), label]
    ce = -(0.9 * chosen + 0.1 * logarithm.mean(1)).mean()
    mean = p.mean(0)
    expected = {
        "ce": 0.7 * ce,
        "entropy": -0.5 * (p * logarithm).sum(1).mean(),
        "diversity": 0.2 * (mean * mean.log()).sum(),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert float(terms[name].detach()) == pytest.approx(float(value), rel=1e-5), name


def test_defaults_are_bits_of_the_study_in_nats():
    h = SHOT(**TWO).hparams
    assert h["ce_weight"] == 0.3
    assert h["label_smoothing"] == 0.1
    assert h["entropy_weight"] == pytest.approx(0.3 / torch.log(torch.tensor(2.0)).item(), abs=1e-3)
    assert h["diversity_weight"] == pytest.approx(h["entropy_weight"] / 3, abs=1e-3)


def test_information_maximisation_alone_does_not_see_pseudo_labels():
    output = output_of()
    model, terms = terms_of(output, ce_weight=0.0)
    sum(terms.values()).backward()
    before = output.logits.grad.clone()
    output.logits.grad = None
    model.pseudo["label"] = 1 - model.pseudo["label"]
    other = model.adaptation_loss(batch_of(), output)
    sum(other.values()).backward()
    assert float(sum(other.values()).detach()) == float(sum(terms.values()).detach())
    assert torch.equal(output.logits.grad, before)
    assert before.abs().sum() > 0


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_labels_are_those_of_centroids_in_the_original_or_the_published_form(metric):
    model = SHOT(**TWO, metric=metric)
    bank = bank_of(model, torch.arange(20) % 4 == 0)
    bank["features"] += 2 * torch.randn_like(bank["features"])
    original = centroid_labels(bank["features"], bank["probabilities"], metric=metric)
    assert torch.equal(model.assign(bank)["label"], original)
    published = SHOT(**TWO, metric=metric, published_centres=True)
    raw = {"normalize": False, "append_one": False, "min_count": -1}
    expected = centroid_labels(bank["features"], bank["probabilities"], metric=metric, **raw)
    assert torch.equal(published.assign(bank)["label"], expected)


def test_an_empty_class_competes_in_the_published_form_alone():
    bank = bank_of(SHOT(**TWO), torch.zeros(20))
    bank["features"][0] = -bank["features"][1:].sum(0)  # opposite to all others
    found = [SHOT(**TWO, published_centres=raw).assign(bank)["label"] for raw in (False, True)]
    assert not found[0].any()
    assert found[1].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "manhattan"}, 'must be "cosine" or "euclidean"'),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0 must lie in \[0, 1\)"),
    ],
)
def test_wrong_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        SHOT(**TWO | changes)
