import pandas as pd
import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger
from torch.nn import functional as F

import wsl_zoo
from tests.cases import tiny_data, trainer
from tests.cases.adaptation import arguments, tiny
from tests.cases.killing import KillAt, Killed
from tests.cases.stages import SMALL, filled_classifier, save
from wsl_zoo.checkpointing import LastCheckpoint, StartValidation
from wsl_zoo.data.transforms import normalize
from wsl_zoo.losses import prediction_bias
from wsl_zoo.methods import CDCL, FCAM, SFDE, SHOT, AdaDSA, PixelCAM, SFDADeP
from wsl_zoo.types import Output

METHODS = [SHOT, SFDE, CDCL, AdaDSA, SFDADeP]
TWO = SMALL | {"num_classes": 2}


def model_of(method, path, **changes):
    torch.manual_seed(0)
    return method(**TWO | {"source": path} | changes)


def pixel_model_of(method, path, **changes):
    return model_of(method, path, **{"pixel": True, "pixel_weight": 1.0} | changes)


def batch_of(count=12, seed=0, size=48):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    image = normalize(raw, [0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
    cam = torch.rand(count, size, size, generator=generator)
    return {"index": torch.arange(count), "raw": raw, "image": image, "cam": cam}


def bank_of(model, prediction, margin=2.0, seed=0):
    """Features and predictions of images, of which one class may be missing."""
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.as_tensor(prediction).long()
    anchors = F.normalize(model.head.anchors().detach(), dim=1)
    noise = torch.randn(len(prediction), anchors.shape[1], generator=generator)
    logits = margin * F.one_hot(prediction, 2) + torch.rand(len(prediction), 2, generator=generator)
    return {
        "features": 3 * anchors[prediction] + 0.1 * noise,
        "logits": logits,
        "probabilities": logits.softmax(dim=1),
    }


def pixelcam_of(source, folder):
    """A PixelCAM of a classifier's encoder and head."""
    start, model = wsl_zoo.load(source), PixelCAM(**TWO)
    model.encoder.load_state_dict(start.encoder.state_dict())
    model.head.load_state_dict(start.head.state_dict())
    return save(model, folder / "pixelcam.ckpt")


def ready(model, prediction):
    """Give a model what it found, of images predicted so."""
    model.pseudo = model.found(bank_of(model, prediction))
    if isinstance(model, AdaDSA):
        model._seeder = [wsl_zoo.load(model.hparams["source"])]
    return model.train()


def fit(model, folder, *callbacks, data=None, ckpt_path=None, **changes):
    settings = {"max_steps": 2, "limit_val_batches": 0, "callbacks": list(callbacks)} | changes
    run = trainer(folder, **settings)
    run.fit(model, data or tiny(), ckpt_path=ckpt_path)
    return run


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A classifier whose head splits the tiny scenes, three to one."""
    return arguments(tmp_path_factory.mktemp("source"))["source"]


@pytest.fixture(scope="module")
def pixel_source(source, tmp_path_factory):
    return pixelcam_of(source, tmp_path_factory.mktemp("pixel_source"))


# Labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_training_sees_no_label_and_no_mask(pixel_source, tmp_path, method):
    data, seen = tiny(), []
    transfer = data.on_after_batch_transfer
    data.on_after_batch_transfer = lambda batch, i: seen.append(set(batch)) or transfer(batch, i)
    model = pixel_model_of(method, pixel_source, refresh_every=1)
    run = fit(model, tmp_path, data=data, max_epochs=2, max_steps=-1)
    assert len(seen) >= 2 * 2 + 2 * 2 + 2  # two epochs, two looks at all, the source's maps
    assert not set().union(*seen) & {"label", "mask", "boxes"}
    assert "train/acc" not in run.callback_metrics
    assert {"target/share_0", "target/bias_kl", "target/bias_ratio"} <= run.callback_metrics.keys()


def test_evaluation_sees_labels_and_measures_the_bias(source, tmp_path):
    run = trainer(tmp_path)
    values = run.validate(model_of(SHOT, source), tiny(), verbose=False)[0]
    assert {"val/acc", "val/pxap", "val/bias", "val/share_0", "val/share_1"} <= values.keys()
    assert values["val/share_0"] + values["val/share_1"] == pytest.approx(1)


# Looking at all images ----------------------------------------------------------------------------


class Look(Callback):
    """Looks once more after a step, from odd modes, and notes what changed."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        pl_module.encoder.model.layer1.eval()
        pl_module.encoder.model.layer2[0].bn1.momentum = 0.5
        state = {key: value.clone() for key, value in pl_module.state_dict().items()}
        grads = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}
        modes = [module.training for module in pl_module.modules()]
        self.seen = []
        hook = pl_module.encoder.model.conv1.register_forward_pre_hook(
            lambda module, inputs: self.seen.append((inputs[0], module.training))
        )
        self.bank = pl_module.look()
        hook.remove()
        assert [module.training for module in pl_module.modules()] == modes
        assert all(torch.equal(v, state[k]) for k, v in pl_module.state_dict().items())
        assert grads
        assert all(torch.equal(pl_module.get_parameter(n).grad, g) for n, g in grads.items())


def test_a_look_sees_every_image_once_in_evaluation_mode_and_leaves_no_trace(source, tmp_path):
    look, data = Look(), tiny(eval_batch_size=7, color_jitter=[0.5, 0.5, 0.5, 0.05])
    model = model_of(SHOT, source)
    fit(model, tmp_path, look, data=data, max_steps=1)
    images, modes = zip(*look.seen, strict=True)
    assert not any(modes)
    whole = tiny(hflip=0.0).dataset("train")
    expected = torch.stack([whole[i]["image"] for i in range(32)])
    expected = normalize(expected, model.encoder.mean, model.encoder.std)
    assert torch.equal(torch.cat(images), expected)
    assert [len(image) for image in images] == [7, 7, 7, 7, 4]
    with torch.no_grad():
        output = model.eval()({"image": expected})
    rows = {"features": output.embedding, "logits": output.logits}
    rows["probabilities"] = output.logits.softmax(dim=1)
    for name, value in rows.items():
        torch.testing.assert_close(look.bank[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [1, 2, 4]), (5, [1, 5]), (0, [1])]
)
def test_images_are_looked_at_every_so_many_epochs(source, tmp_path, monkeypatch, every, expected):
    model, seen = model_of(SHOT, source, refresh_every=every), []
    look = model.look
    monkeypatch.setattr(model, "look", lambda: seen.append(model.current_epoch + 1) or look())
    data = tiny(train=4, batch_size=4)
    fit(model, tmp_path, data=data, max_epochs=5, max_steps=-1)
    assert seen == expected


def test_another_fit_looks_anew(source, tmp_path):
    model = model_of(SHOT, source, refresh_every=0)
    fit(model, tmp_path, data=tiny(train=4), max_steps=1)
    assert len(model.pseudo["label"]) == 4
    fit(model, tmp_path, data=tiny(train=6), max_steps=1)
    assert len(model.pseudo["label"]) == 6


def test_what_is_found_of_all_methods(source):
    prediction = torch.arange(20) % 4 == 0
    for method in METHODS:
        model = model_of(method, source, pixel_fraction=0.5)
        bank = bank_of(model, prediction)
        found = model.found(bank)
        assert torch.equal(found["prediction"], prediction.long())
        p = bank["probabilities"].double()
        torch.testing.assert_close(found["entropy"], -(p * p.log()).sum(1).float())
        assert found["reliable"].sum() == 7 + 2
        for k in (0, 1):
            own = found["prediction"] == k
            sure = found["entropy"][own & found["reliable"]].max()
            assert sure <= found["entropy"][own & ~found["reliable"]].min()


def test_the_bias_of_the_target_is_logged(source, tmp_path):
    model = model_of(SHOT, source)
    metrics = fit(model, tmp_path, max_steps=-1, max_epochs=1).callback_metrics
    bias = prediction_bias(model.pseudo["prediction"], 2)
    assert float(metrics["target/bias_kl"]) == pytest.approx(float(bias["kl"]))
    assert float(metrics["target/bias_ratio"]) == pytest.approx(float(bias["ratio"]))
    assert float(metrics["target/share_1"]) == pytest.approx(float(bias["counts"][1]) / 32)
    assert bias["counts"].tolist() == [8, 24]


def test_the_bias_on_validation_is_logged_from_the_start_on(source, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    changes = {"max_steps": -1, "max_epochs": 2, "limit_val_batches": 1.0, "logger": logger}
    fit(model_of(SHOT, source), tmp_path, StartValidation(), **changes)
    logged = pd.read_csv(tmp_path / "metrics.csv")
    bias, share = (logged[f"val/{name}"].dropna() for name in ("bias", "share_1"))
    assert len(bias) == len(share) == 3
    assert logged["target/bias_kl"].notna().sum() == 2


# Resuming -----------------------------------------------------------------------------------------


def run_of(method, source, folder, step=None, ckpt_path=None):
    """Losses by step, final weights and pseudo-labels of a run of three epochs of two steps."""
    model = pixel_model_of(method, source, lr=0.01, refresh_every=2, norm_mode="train")
    losses, step_of_model = [], model.training_step
    model.training_step = lambda *batch: losses.append(step_of_model(*batch)) or losses[-1]
    last = LastCheckpoint(dirpath=folder, every_n_train_steps=1, save_on_exception=False)
    callbacks = [last] if step is None else [last, KillAt(step)]
    settings = {"max_steps": -1, "max_epochs": 3, "enable_checkpointing": True}
    data = tiny(train=16, batch_size=8)
    try:
        fit(model, folder, *callbacks, data=data, ckpt_path=ckpt_path, **settings)
    except Killed:
        assert step is not None
    return [float(loss.detach()) for loss in losses], model.state_dict(), model.pseudo


@pytest.mark.parametrize(
    ("method", "step"),  # what was saved is one step behind
    [(SHOT, 3), (SHOT, 6), (SFDE, 4), (CDCL, 4), (AdaDSA, 2), (SFDADeP, 6)],
)
def test_a_resumed_run_equals_an_unbroken_one(pixel_source, tmp_path, method, step):
    losses, weights, pseudo = run_of(method, pixel_source, tmp_path / "whole")
    before, *_ = run_of(method, pixel_source, tmp_path / "killed", step)
    kept = tmp_path / "killed" / "last.ckpt"
    stored = torch.load(kept, weights_only=True)["wsl_zoo"]["pseudo"]
    assert stored.keys() == pseudo.keys()
    after, resumed, found = run_of(method, pixel_source, tmp_path / "killed", ckpt_path=kept)
    assert before == losses[:step]
    assert after == losses[step - 1 :]
    assert all(torch.equal(resumed[key], value) for key, value in weights.items())
    assert all(torch.equal(found[name], value) for name, value in pseudo.items())


# The source ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, r"SHOT needs the model to adapt: --model.source runs/"),
        ({"source": "nowhere.ckpt"}, "there is no checkpoint nowhere.ckpt"),
        ({"stride": 8}, "trained with stride=16, this model has 8: set model.stride to 16"),
        ({"encoder": "test_vit", "stride": None}, "set model.encoder to 'test_resnet'"),
        ({"head": "mil"}, "set model.head to 'wgap'"),
        ({"mean": [0.1, 0.1, 0.1]}, "saw images normalised with mean"),
        ({"pixel": True}, "CAMClassifier without a pixel classifier: set model.pixel to false"),
        (
            {"num_classes": 3, "class_names": ["a", "b", "c"]},
            r"knows 2 classes \(0, 1\), the target data have 3 \(a, b, c\)",
        ),
    ],
)
def test_another_network_than_the_source_is_refused(source, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        model_of(SHOT, source, **changes).load_start_weights()


def test_what_does_not_classify_by_itself_is_no_source(tmp_path):
    path = save(FCAM(**TWO), tmp_path / "fcam.ckpt")
    with pytest.raises(ValueError, match="holds a FCAM: adapt a CAMClassifier, a PixelCAM"):
        model_of(SHOT, path).load_start_weights()


def test_classes_may_have_other_names(source, tmp_path):
    model = model_of(SHOT, source, class_names=["benign", "malignant"])
    model.load_start_weights()
    assert torch.equal(model.head.fc.weight, wsl_zoo.load(source).head.fc.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_weight": 1.0}, "pixel_weight=1.0 needs a source with a pixel classifier"),
        ({"pixel_fraction": 0.0}, r"pixel_fraction=0.0 must lie in \(0, 1\]"),
        ({"pixel_scope": "image"}, 'pixel_scope=\'image\' must be "dataset" or "batch"'),
        ({"norm_mode": "none"}, 'norm_mode=\'none\' must be "train" or "eval"'),
        ({"refresh_every": -1}, "refresh_every=-1 must not be negative"),
        ({"sampler": "otsu"}, "sampler='otsu' must be one of"),
    ],
)
@pytest.mark.parametrize("method", [SHOT, SFDADeP])
def test_wrong_options_are_named(method, changes, message):
    with pytest.raises(ValueError, match=message):
        method(**TWO | changes)


@pytest.mark.parametrize("method", [CDCL, AdaDSA])
def test_what_stands_on_the_hypothesis_does_not_free_it(method):
    with pytest.raises(ValueError, match=rf"freeze_hypothesis=False: {method.__name__} needs"):
        method(**TWO, freeze_hypothesis=False)


@pytest.mark.parametrize("method", [SFDE, CDCL])
def test_clusters_need_a_head_with_anchors(method):
    with pytest.raises(ValueError, match="a MaxPool head has no anchors"):
        method(**TWO, head="max")
    with pytest.raises(ValueError, match=r"nearest=1.5 must lie in \[0, 1\]"):
        method(**TWO, nearest=1.5)


def test_other_loaders_than_of_a_data_module_are_refused(source, tmp_path):
    loader = tiny_data(classes=2).train_dataloader()
    with pytest.raises(ValueError, match="SHOT looks at all training images at once: give a data"):
        trainer(tmp_path).fit(model_of(SHOT, source), loader)


def predictions(model, batch):
    with torch.no_grad():
        return model.eval()(batch)


def test_what_was_adapted_is_adapted_again(pixel_source, tmp_path):
    batch = batch_of()
    first = pixel_model_of(AdaDSA, pixel_source, lr=0.5)
    fit(first, tmp_path)
    adapted = predictions(first, batch)
    before = predictions(wsl_zoo.load(pixel_source), batch)
    assert not torch.allclose(adapted.logits, before.logits, atol=0.01)
    path = save(first, tmp_path / "adadsa.ckpt")
    for method in (SHOT, SFDADeP):
        second = pixel_model_of(method, path)
        second.load_start_weights()
        found = predictions(second, batch)
        torch.testing.assert_close(found.logits, adapted.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.map, adapted.map, atol=1e-4, rtol=1e-4)
    again = pixel_model_of(AdaDSA, path)
    fit(again, tmp_path)
    source = again.mixed[0].norm
    torch.testing.assert_close(source.running_mean, first.mixed[0].statistics()[0].detach())


# What moves ---------------------------------------------------------------------------------------


def is_statistic(key):
    return "running_" in key or "num_batches" in key


@pytest.mark.parametrize("norm_mode", ["train", "eval"])
@pytest.mark.parametrize("method", [SHOT, SFDE, CDCL, SFDADeP])
def test_hypothesis_and_in_evaluation_mode_norms_stay_to_the_bit(
    source, tmp_path, method, norm_mode
):
    weight = {"discrepancy_weight": 10.0} if method is SFDE else {}
    model = model_of(method, source, norm_mode=norm_mode, freeze_hypothesis=True, lr=0.01, **weight)
    fit(model, tmp_path)
    start = wsl_zoo.load(source).state_dict()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, start[key])}
    assert not any(key.startswith("head.") for key in moved)
    assert any(key.startswith("encoder.") and not is_statistic(key) for key in moved)
    assert any(map(is_statistic, moved)) == (norm_mode == "train")
    assert model.training
    assert model.encoder.training == (norm_mode == "train")


def test_a_free_hypothesis_learns(source, tmp_path):
    model = model_of(SFDADeP, source, lr=0.01)
    fit(model, tmp_path)
    assert not torch.equal(model.head.fc.weight, wsl_zoo.load(source).head.fc.weight)


def test_in_evaluation_mode_nothing_is_dropped(source):
    batch = batch_of()
    for norm_mode in ("train", "eval"):
        model = model_of(SHOT, source, norm_mode=norm_mode, feature_dropout=0.9, freeze_bn=True)
        model.train()
        same = torch.equal(model(batch).logits, model(batch).logits)
        assert same == (norm_mode == "eval")


def test_a_pixel_classifier_without_its_loss_rests_and_shows_its_map(pixel_source, tmp_path):
    model = pixel_model_of(SHOT, pixel_source, pixel_weight=0.0)
    run = fit(model, tmp_path)
    assert "train/pixel" not in run.callback_metrics
    start = wsl_zoo.load(pixel_source)
    assert torch.equal(model.decoder.classifier.weight, start.decoder.classifier.weight)
    batch = batch_of() | {"label": torch.zeros(12, dtype=torch.long)}
    output = predictions(model, batch)
    maps = model.localize(batch, output)
    small = output.map.softmax(1)[:, 1]
    torch.testing.assert_close(model.class_map(batch, output, batch["label"]), small)
    full = F.interpolate(small[:, None], (48, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(maps, full[:, 0])
    assert torch.equal(maps, model.localize(batch, output, 1))


# The pixel loss -----------------------------------------------------------------------------------


def pixel_output(count=12):
    torch.manual_seed(5)
    return Output(map=torch.randn(count, 2, 3, 3, requires_grad=True))


def reached(model, batch):
    """Which images get a gradient, and of which of them foreground is never asked for."""
    output = pixel_output(len(batch["index"]))
    model.pixel_loss(batch, output).backward()
    grad = output.map.grad
    return grad.abs().sum((1, 2, 3)) > 0, (grad[:, 1] >= 0).flatten(1).all(dim=1)


@pytest.mark.parametrize("method", METHODS)
def test_only_reliable_images_carry_the_pixel_loss(pixel_source, method):
    model = pixel_model_of(method, pixel_source, pixel_fraction=0.5)
    ready(model, torch.arange(20) % 4 == 0)
    got, background = reached(model, batch_of())
    assert torch.equal(got, model.pseudo["reliable"][:12])
    assert 0 < got.sum() < 12
    assert not background[got].any()


def test_reliable_within_a_batch_are_the_surest_of_each_predicted_class(pixel_source):
    model = pixel_model_of(SHOT, pixel_source, pixel_fraction=0.3, pixel_scope="batch")
    ready(model, torch.arange(40) % 5 == 0)
    batch = batch_of(20)
    batch["index"] = torch.arange(40).flip(0)[:20]
    entropy, prediction = (model.looked_up(n, batch) for n in ("entropy", "prediction"))
    expected = torch.zeros(20, dtype=torch.bool)
    for k, quota in ((0, 4), (1, 1)):  # floor(0.3 n) of 16 and 4
        own = (prediction == k).nonzero()[:, 0]
        expected[own[entropy[own].argsort()[:quota]]] = True
    got, _ = reached(model, batch)
    assert torch.equal(got, expected)


def test_a_class_that_is_rare_in_a_batch_has_pixels_by_the_data_set_alone(pixel_source):
    for scope, expected in (("batch", False), ("dataset", True)):
        model = pixel_model_of(SHOT, pixel_source, pixel_fraction=0.3, pixel_scope=scope)
        ready(model, torch.arange(40) < 10)
        sure = model.pseudo["entropy"][:10].argmin()
        batch = batch_of(12)
        batch["index"] = torch.cat([sure[None], torch.arange(20, 31)])
        got, _ = reached(model, batch)
        assert got[0] == expected


def test_without_a_reliable_image_the_pixel_loss_is_zero_with_a_graph(pixel_source):
    model = ready(pixel_model_of(SHOT, pixel_source), torch.arange(12) % 2)
    model.pseudo["reliable"][:] = False
    output = pixel_output()
    loss = model.pixel_loss(batch_of(), output)
    loss.backward()
    assert loss == 0
    assert output.map.grad.abs().sum() == 0


@pytest.mark.parametrize("method", METHODS)
def test_images_taken_for_the_negative_class_give_background_alone(pixel_source, method):
    model = pixel_model_of(method, pixel_source, pixel_fraction=1.0)
    ready(model, torch.arange(12) % 3 == 0)
    _, background = reached(model, batch_of())
    assert not background.any()
    model.negative_class = 0
    taken = {SFDADeP: "assigned", AdaDSA: "prediction"}.get(method, "label")
    got, background = reached(model, batch_of())
    assert got.all()
    assert torch.equal(background, model.pseudo[taken] == 0)
    assert 0 < background.sum() < 12


def test_the_negative_class_is_that_of_the_target(pixel_source, tmp_path):
    for wanted, expected in ((None, 1), (False, None)):
        model = pixel_model_of(SHOT, pixel_source, negatives=wanted)
        fit(model, tmp_path, data=tiny(classes=1, negatives=True), max_steps=1)
        assert model.negative_class == expected


def test_seeds_come_from_the_map_of_the_class_that_the_source_predicts(source):
    reader, batch = wsl_zoo.load(source), batch_of()
    with torch.no_grad():
        output = reader(batch)
    model = model_of(SHOT, source)
    raw = output.map[torch.arange(12), output.logits.argmax(1)]
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    torch.testing.assert_close(model.seed_maps(batch), (raw - low) / (high - low))


# Degenerate batches -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_empty_clusters_and_batches_of_one_class_give_no_nan(pixel_source, method, precision):
    cases = {
        "both classes": (torch.arange(24) % 2, torch.arange(12)),
        "one class in the batch": (torch.arange(24) >= 12, torch.arange(12)),
        "an empty cluster": (torch.zeros(24), torch.arange(12)),
        "a single image": (torch.arange(24) % 2, torch.arange(1)),
    }
    for name, (prediction, index) in cases.items():
        model = pixel_model_of(method, pixel_source, norm_mode="eval")
        ready(model, prediction)
        batch = {key: value[: len(index)] for key, value in batch_of(size=32).items()}
        with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
            terms = model.loss(batch, model(batch))
        assert len(terms) >= 2
        for term, value in terms.items():
            assert value.requires_grad, (name, term)
            assert value.isfinite(), (name, term)
        torch.stack([value.float() for value in terms.values()]).sum().backward()
        for parameter in model.parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head", ["gap", "mil"])
def test_other_heads_with_anchors_are_adapted(tmp_path, method, head):
    source = filled_classifier(tmp_path, num_classes=2, head=head)
    model = model_of(method, source, head=head)
    fit(model, tmp_path, max_steps=1)
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_unadapted_map_is_that_of_the_source(source):
    model, batch = model_of(SHOT, source), batch_of()
    model.load_start_weights()
    start = wsl_zoo.load(source)
    maps = [m.localize(batch, predictions(m, batch), "pred") for m in (model, start)]
    torch.testing.assert_close(*maps)
