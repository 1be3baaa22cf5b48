import pytest
import torch
from torch.nn import functional as F

from tests.methods.test_adaptation import TWO, bank_of, batch_of, ready
from wsl_zoo.losses import anchored_clusters
from wsl_zoo.methods import CDCL
from wsl_zoo.types import Output

PREDICTION = torch.arange(12) % 3 == 0


def model_of(**changes):
    torch.manual_seed(0)
    return ready(CDCL(**TWO | changes), PREDICTION)


def output_of(model):
    torch.manual_seed(1)
    return Output(embedding=torch.randn(12, model.head.in_channels, requires_grad=True))


def value_of(model, output):
    return model.adaptation_loss(batch_of(), output)["contrast"]


def test_the_contrast_is_a_cross_entropy_of_cosines_summed_over_the_batch():
    model = model_of(contrast_weight=0.5, temperature=0.1)
    output = output_of(model)
    cosines = F.normalize(output.embedding) @ F.normalize(model.head.fc.weight).T
    expected = F.cross_entropy(cosines / 0.1, model.pseudo["label"], reduction="sum")
    torch.testing.assert_close(value_of(model, output), 0.5 * expected)


def test_the_mean_is_over_the_trusted_images():
    whole, mean = model_of(), model_of(reduction="mean")
    output = output_of(whole)
    torch.testing.assert_close(value_of(whole, output), 12 * value_of(mean, output))
    for model in (whole, mean):
        model.pseudo["trusted"][:4] = False
    torch.testing.assert_close(value_of(whole, output), 8 * value_of(mean, output))


def test_untrusted_images_have_no_gradient():
    model = model_of(reduction="mean")
    output = output_of(model)
    model.pseudo["trusted"][:4] = False
    value_of(model, output).backward()
    reached = output.embedding.grad.abs().sum(1) > 0
    assert reached.tolist() == [False] * 4 + [True] * 8


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_without_a_trusted_image_it_is_zero_with_a_graph(reduction):
    model = model_of(reduction=reduction)
    output = output_of(model)
    model.pseudo["trusted"][:] = False
    value = value_of(model, output)
    value.backward()
    assert value == 0
    assert output.embedding.grad.abs().sum() == 0


def test_the_bias_of_the_head_is_not_used():
    model = model_of()
    output = output_of(model)
    before = value_of(model, output)
    torch.nn.init.constant_(model.head.fc.bias, 7.0)
    assert torch.equal(value_of(model, output), before)


def test_labels_are_clusters_around_the_rows_of_the_classifier():
    model = model_of(nearest=0.5)
    bank = bank_of(model, PREDICTION)
    bank["features"] += torch.randn_like(bank["features"])
    found = model.assign(bank)
    clusters = anchored_clusters(bank["features"], model.head.fc.weight.detach())
    assert torch.equal(found["label"], clusters.labels)
    for k in (0, 1):
        own = clusters.labels == k
        assert (own & found["trusted"]).sum() == own.sum() // 2
        far = clusters.distances[own & ~found["trusted"]].min()
        assert clusters.distances[own & found["trusted"]].max() <= far


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"reduction": "max"}, 'must be "sum" or "mean"'),
    ],
)
def test_wrong_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        CDCL(**TWO | changes)
