import pytest
import torch
from torch.nn import functional as F

from tests.methods.test_adaptation import TWO, bank_of, ready
from wsl_zoo.losses import contrastive_domain_discrepancy
from wsl_zoo.methods import SFDE
from wsl_zoo.types import Output

PER_CLASS = 3


def model_of(prediction, classes=2, **changes):
    torch.manual_seed(0)
    return ready(SFDE(**TWO | {"num_classes": classes} | changes), prediction)


def output_of(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    prediction = model.pseudo["label"]
    features = bank_of(model, prediction, seed=seed)["features"][: len(prediction)]
    noise = torch.randn(features.shape, generator=generator)
    return Output(embedding=(features + noise).requires_grad_())


def value_of(model, output, index, seed=0):
    torch.manual_seed(seed)
    batch = {"index": torch.tensor(index)}
    rows = Output(embedding=output.embedding[batch["index"]])
    return model.adaptation_loss(batch, rows)["discrepancy"]


def by_loops(model, output, index, classes, groups, seed=0):
    """The discrepancies of the groups, from the same draws, one after the other."""
    torch.manual_seed(seed)
    width = output.embedding.shape[1]
    draws = torch.randn(groups, len(classes), PER_CLASS, width)
    found = []
    for group in range(groups):
        source, target = [], []
        for place, k in enumerate(classes):
            own = [i for i in index if model.pseudo["label"][i] == k and model.pseudo["trusted"][i]]
            rows = own[PER_CLASS * group : PER_CLASS * (group + 1)]
            target.append(output.embedding[rows])
            drawn = model.pseudo["mean"][k] + model.pseudo["std"][k] * draws[group, place]
            source.append(drawn)
        layers = []
        for blocks in (source, target):
            features = torch.stack(blocks)
            logits = F.linear(features, model.head.fc.weight, model.head.fc.bias)
            layers.append([features, logits.softmax(dim=-1)])
        found.append(contrastive_domain_discrepancy(*layers))
    return torch.stack(found)


def test_groups_are_those_of_a_plain_loop():
    model = model_of(torch.arange(40) % 3 == 0, discrepancy_weight=0.5, nearest=0.8)
    output, index = output_of(model), torch.randperm(40).tolist()
    trusted = [model.pseudo["trusted"] & (model.pseudo["label"] == k) for k in (0, 1)]
    assert [int(own.sum()) for own in trusted] == [20, 11]  # floor(0.8 n) of 26 and 14
    expected = by_loops(model, output, index, (0, 1), groups=3)
    torch.testing.assert_close(value_of(model, output, index), 0.5 * expected.sum())


def test_the_mean_over_groups_is_the_sum_over_their_number():
    prediction = torch.arange(40) % 2
    values = []
    for reduction in ("sum", "mean"):
        model = model_of(prediction, group_reduction=reduction, nearest=1.0)
        values.append(value_of(model, output_of(model), list(range(26))))
    torch.testing.assert_close(values[0], 4 * values[1])  # 13 of each class


def test_draws_are_a_function_of_the_steps_seed():
    model = model_of(torch.arange(40) % 2)
    output, index = output_of(model), list(range(20))
    first = value_of(model, output, index, seed=3)
    assert torch.equal(first, value_of(model, output, index, seed=3))
    assert not torch.equal(first, value_of(model, output, index, seed=4))


@pytest.mark.parametrize("index", [list(range(0, 40, 2)), [0, 2, 4, 6, 1, 3], [5]])
def test_fewer_than_two_complete_classes_are_zero_with_a_graph(index):
    model = model_of(torch.arange(40) % 2, nearest=1.0)
    output = output_of(model)
    value = value_of(model, output, index)
    value.backward()
    assert value == 0
    assert output.embedding.grad.abs().sum() == 0


def test_untrusted_images_and_unusable_classes_are_left_out():
    model = model_of(torch.arange(40) % 2, nearest=1.0)
    output = output_of(model)
    model.pseudo["trusted"][4:] = False
    assert value_of(model, output, list(range(40))) == 0
    model = model_of(torch.arange(40) < 4, nearest=1.0)  # five make a class usable
    assert model.pseudo["usable"].tolist() == [True, False]
    assert value_of(model, output, list(range(40))) == 0


def test_gradients_reach_the_images_of_complete_groups():
    model = model_of(torch.arange(40) % 2, nearest=1.0)
    model.head.requires_grad_(False)
    output, index = output_of(model), [0, 2, 4, 6, 8, 1, 3, 5, 7]  # five and four: one group
    value_of(model, output, index).backward()
    reached = output.embedding.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert reached == [0, 1, 2, 3, 4, 5]


def test_the_surrogate_points_along_the_anchors():
    model = model_of(torch.arange(40) % 3 == 0, gamma=2.0)
    bank = bank_of(model, torch.arange(40) % 3 == 0)
    found = model.pseudo
    anchors = model.head.anchors().detach()
    cosine = F.cosine_similarity(found["mean"], anchors)
    torch.testing.assert_close(cosine, torch.ones(2))
    for k in (0, 1):
        kept = bank["features"][found["trusted"] & (found["label"] == k)]
        torch.testing.assert_close(found["mean"][k].norm(), kept.mean(0).norm())
        torch.testing.assert_close(found["std"][k], 2 * kept.std(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": -1.0}, "gamma=-1.0 must not be negative"),
        ({"group_reduction": "max"}, 'must be "sum" or "mean"'),
    ],
)
def test_wrong_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        SFDE(**TWO | changes)
