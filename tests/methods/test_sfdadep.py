import pytest
import torch
from torch.nn import functional as F

from tests.cases.adaptation import arguments
from tests.methods.test_adaptation import (
    TWO,
    bank_of,
    batch_of,
    fit,
    pixel_model_of,
    pixelcam_of,
    reached,
    ready,
)
from wsl_zoo.methods import SFDADeP
from wsl_zoo.types import Output

TILTED = torch.arange(12) % 4 != 0  # nine of twelve are class 1


@pytest.fixture(scope="module")
def pixel_source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixel_source")
    return pixelcam_of(arguments(folder)["source"], folder)


def own_model(prediction=TILTED, **changes):
    torch.manual_seed(0)
    return ready(SFDADeP(**TWO | changes), prediction)


def output_of(seed=1):
    torch.manual_seed(seed)
    return Output(logits=torch.randn(12, 2, requires_grad=True))


def test_each_image_forgets_or_retains_the_stored_prediction():
    model = own_model(ratio=0.4, forget_weight=2.0, retain_weight=0.5)
    forget, stored = model.pseudo["forget"], model.pseudo["prediction"]
    assert torch.equal(stored, TILTED.long())
    assert forget.sum() == 3  # floor(0.4 of 9)
    assert (stored[forget] == 1).all()
    assert torch.equal(model.pseudo["assigned"], torch.where(forget, 1 - stored, stored))
    for seed in (1, 2):  # whatever it predicts by now
        output = output_of(seed)
        terms = model.adaptation_loss(batch_of(), output)
        p = output.logits.softmax(1)[torch.arange(12), stored]
        torch.testing.assert_close(terms["forget"], 2 * -(1 - p[forget]).log().mean())
        torch.testing.assert_close(terms["retain"], 0.5 * -p[~forget].log().mean())


def test_what_is_forgotten_becomes_less_likely_and_what_is_retained_more():
    model, output = own_model(ratio=0.4), output_of()
    sum(model.adaptation_loss(batch_of(), output).values()).backward()
    chosen = output.logits.grad[torch.arange(12), model.pseudo["prediction"]]
    assert torch.equal(chosen > 0, model.pseudo["forget"])
    assert torch.equal(chosen < 0, ~model.pseudo["forget"])


@pytest.mark.parametrize(("prediction", "ratio"), [(torch.arange(12) % 2, 1.0), (TILTED, 0.0)])
def test_with_nothing_to_forget_it_is_plain_self_training(prediction, ratio):
    model, output = own_model(prediction, ratio=ratio), output_of()
    terms = model.adaptation_loss(batch_of(), output)
    assert not model.pseudo["forget"].any()
    assert terms["forget"] == 0
    assert terms["forget"].requires_grad
    expected = F.cross_entropy(output.logits, prediction.long())
    torch.testing.assert_close(terms["retain"], expected)


def test_a_batch_without_an_image_to_retain_is_zero_with_a_graph():
    model, output = own_model(), output_of()
    model.pseudo["forget"][:] = True
    terms = model.adaptation_loss(batch_of(), output)
    assert terms["retain"] == 0
    assert terms["retain"].requires_grad


def test_of_two_classes_suppression_is_a_flip():
    output = output_of()
    suppress, flip = (
        own_model(ratio=0.4, forget=variant).adaptation_loss(batch_of(), output)["forget"]
        for variant in ("suppress", "flip")
    )
    torch.testing.assert_close(suppress, flip)


def test_the_random_part_depends_on_seed_and_epoch_alone():
    bank = bank_of(SFDADeP(**TWO), torch.arange(60) % 4 != 0)

    def drawn(epoch=0, **changes):
        model = SFDADeP(**TWO, ratio=1.0, subsample=0.5, **changes)
        model._trainer = type("Epoch", (), {"current_epoch": epoch})
        torch.rand(3)
        return model.assign(bank)["forget"]

    assert drawn().sum() == 22  # half of 45
    assert torch.equal(drawn(), drawn())
    assert not torch.equal(drawn(), drawn(epoch=5))
    assert not torch.equal(drawn(), drawn(seed=1))


def test_the_pixel_classifier_of_the_source_learns_along(pixel_source, tmp_path):
    model = SFDADeP(**TWO, source=pixel_source, pixel=True)
    assert model.hparams["pixel_weight"] == 1
    pixel = model.decoder.classifier.weight
    metrics = fit(model, tmp_path).callback_metrics
    assert metrics["train/pixel"] > 0
    assert pixel.requires_grad
    rests = pixel_model_of(SFDADeP, pixel_source, pixel_weight=0.0)
    assert "train/pixel" not in fit(rests, tmp_path).callback_metrics


def test_a_forgotten_tumour_gives_background_alone(pixel_source):
    model = pixel_model_of(SFDADeP, pixel_source, pixel_fraction=1.0, ratio=0.4)
    ready(model, TILTED).negative_class = 0
    forget = model.pseudo["forget"]
    got, background = reached(model, batch_of())
    assert got.all()
    assert background[forget].all()
    assert torch.equal(background, forget | ~TILTED)


def test_defaults_keep_the_network_in_evaluation_mode():
    model = SFDADeP(**TWO).train()
    assert model.training
    assert not any(module.training for module in model.encoder.modules())
    assert (model.hparams["refresh_every"], model.hparams["subsample"]) == (5, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forget": "flop"}, 'must be "suppress", "flip" or "ascent"'),
        ({"ratio": 1.5}, r"ratio=1.5 must lie in \[0, 1\]"),
        ({"entropy_threshold": 2.0}, r"entropy_threshold=2.0 must lie in \[0, 1\]"),
        ({"subsample": -0.1}, r"subsample=-0.1 must lie in \[0, 1\]"),
    ],
)
def test_wrong_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        SFDADeP(**TWO | changes)
