import pytest
import torch
from torch.nn import functional as F

from tests.cases import tiny_data, trainer
from tests.cases.stages import SMALL, filled_classifier
from tests.methods.test_fcam import batch_of
from wsl_zoo.data import Camelyon16Data, FolderData
from wsl_zoo.losses import seed_loss
from wsl_zoo.methods import FCAM, NEGEV
from wsl_zoo.methods.negev import negative_loss
from wsl_zoo.types import Output

NEGATIVE = 3


def negev(tmp_path, negative=NEGATIVE, **changes):
    model = NEGEV(**SMALL | {"classifier": filled_classifier(tmp_path)} | changes)
    model.negative_class = negative
    return model


def output_of(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 2, 48, 48, generator=generator).requires_grad_()
    return Output(map=logits, logits=torch.zeros(count, 4))


def loss_of(model, batch, output):
    torch.manual_seed(0)
    return model.loss(batch, output)


def with_labels(*labels):
    batch = batch_of(len(labels)) | {"label": torch.tensor(labels)}
    generator = torch.Generator().manual_seed(3)
    return batch | {"cam": torch.rand(len(labels), 48, 48, generator=generator)}


def test_of_negatives_only_every_pixel_is_background(tmp_path):
    model, output = negev(tmp_path), output_of()
    terms = loss_of(model, with_labels(3, 3, 3, 3), output)
    assert float(terms["seed"].detach()) == 0
    difference = output.map[:, 1] - output.map[:, 0]
    torch.testing.assert_close(terms["negative"], F.softplus(difference).mean())
    torch.testing.assert_close(terms["negative"], -output.map.log_softmax(1)[:, 0].mean())
    sum(terms.values()).backward()
    assert (output.map.grad[:, 1] > 0).all()
    assert (output.map.grad[:, 0] < 0).all()


@pytest.mark.parametrize("labels", [(3, 3), (0, 1), (0, 3)])
def test_half_precision_gives_no_nan(tmp_path, labels):
    model = negev(tmp_path).train()
    batch = with_labels(*labels)
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss_of(model, batch, model(batch))
    total = torch.stack(list(terms.values())).sum()
    assert total.dtype == torch.float32
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.decoder.parameters())


def test_of_positives_only_it_is_the_loss_on_seeds(tmp_path):
    model, output = negev(tmp_path), output_of()
    batch = with_labels(0, 1, 2, 0)
    terms = loss_of(model, batch, output)
    assert terms.keys() == {"seed", "negative"}
    assert float(terms["negative"].detach()) == 0
    torch.manual_seed(0)
    seeds = FCAM.seeds(model, batch, output)
    torch.testing.assert_close(terms["seed"], seed_loss(output.map, seeds))


def test_maps_of_negatives_do_not_matter(tmp_path):
    model, output = negev(tmp_path), output_of()
    batch = with_labels(0, 3, 1, 3)
    before = loss_of(model, batch, output)
    torch.manual_seed(0)
    seeds = model.seeds(batch, output)
    assert (seeds[1::2] == -255).all()
    assert (seeds[::2] != -255).flatten(1).any(dim=1).all()
    other = dict(batch, cam=batch["cam"].clone())
    other["cam"][1::2] = 0
    after = loss_of(model, other, output)
    assert {k: float(v.detach()) for k, v in before.items()} == {
        k: float(v.detach()) for k, v in after.items()
    }


def test_seeds_and_negatives_are_two_means(tmp_path):
    output = output_of()
    terms = loss_of(negev(tmp_path), with_labels(0, 3, 1, 2), output)
    doubled = loss_of(negev(tmp_path, negative_weight=2.0), with_labels(0, 3, 1, 2), output)
    torch.testing.assert_close(doubled["negative"], 2 * terms["negative"])
    torch.testing.assert_close(
        terms["negative"], F.softplus(output.map[1, 1] - output.map[1, 0]).mean()
    )


def test_images_may_stand_in_any_order():
    logits = output_of(6).map.detach()
    negative = torch.tensor([True, False, False, True, True, False])
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(
        negative_loss(logits, negative), negative_loss(logits[order], negative[order])
    )


def test_no_foreground_no_loss():
    logits = torch.zeros(2, 2, 8, 8)
    logits[:, 0] = 50
    assert float(negative_loss(logits, torch.tensor([True, True]))) < 1e-20
    huge = negative_loss(-1e4 * logits, torch.tensor([True, True]))
    assert torch.isfinite(huge)


def test_the_class_comes_from_the_data(tmp_path):
    path = filled_classifier(tmp_path)
    for wanted, data, expected in [
        (None, tiny_data(classes=3, negatives=True), 3),
        (True, tiny_data(classes=3, negatives=True), 3),
        (False, tiny_data(classes=3, negatives=True), None),
        (None, tiny_data(), None),
    ]:
        model = NEGEV(**SMALL, classifier=path, negatives=wanted)
        run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
        run.fit(model, data)
        assert model.negative_class == expected
        assert ("train/negative" in run.callback_metrics) == (expected is not None)
    model = NEGEV(**SMALL, classifier=path, negatives=True)
    with pytest.raises(ValueError, match="SyntheticData has no class without a region"):
        trainer(tmp_path).fit(model, tiny_data())


def test_data_sets_know_their_negative_class(tmp_path):
    data = Camelyon16Data(str(tmp_path))
    assert data.class_names[data.negative_class] == "normal"
    own = FolderData(str(tmp_path), classes=["cancer", "healthy"], negatives="healthy")
    assert own.negative_class == 1
    assert FolderData(str(tmp_path), classes=["a", "b"]).negative_class is None
    wrong = FolderData(str(tmp_path), classes=["cancer", "healthy"], negatives="normal")
    with pytest.raises(ValueError, match="none of the classes cancer, healthy"):
        _ = wrong.negative_class
