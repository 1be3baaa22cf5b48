import pytest
import torch
from torch.nn import functional as F

import wsl_zoo
from tests.cases import fill, tiny_data, trainer
from tests.cases.stages import SMALL, filled_classifier, save
from tests.methods.test_fcam import batch_of
from tests.methods.test_fcam import model_of as any_model_of
from wsl_zoo.cams import normalize_map
from wsl_zoo.cams.normalize import resize_maps
from wsl_zoo.losses import SEED_IGNORE
from wsl_zoo.methods import FCAM, CAMClassifier, HaS, PixelCAM

NEGATIVE = 3
NEGATIVES = torch.tensor([False, False, False, True])


def model_of(stage1, **changes):
    return any_model_of(stage1, PixelCAM, **changes)


def with_maps(count=4):
    generator = torch.Generator().manual_seed(3)
    return batch_of(count) | {"cam": torch.rand(count, 48, 48, generator=generator)}


def forward(model, batch):
    """An output whose pixel logits keep their gradient."""
    output = model(batch)
    output.map.retain_grad()
    return output


def terms_of(model, batch, output):
    torch.manual_seed(0)
    return model.loss(batch, output)


def seeds_of(model, batch, output):
    torch.manual_seed(0)
    return model.seeds(batch, output)


# The loss -----------------------------------------------------------------------------------------


def test_at_low_resolution_it_is_the_cross_entropy_on_seeds(stage1):
    model, batch = model_of(stage1, low_res=True, seed_weight=0.7), with_maps()
    output = forward(model, batch)
    term = terms_of(model, batch, output)["seed"]
    seeds = seeds_of(model, batch, output)
    assert seeds.shape == (4, 3, 3)
    expected = F.cross_entropy(output.map, seeds, ignore_index=SEED_IGNORE)
    torch.testing.assert_close(term, 0.7 * expected)
    term.backward()
    assert torch.equal(output.map.grad.abs().sum(dim=1) > 0, seeds != SEED_IGNORE)


def test_at_full_resolution_logits_are_brought_there_first(stage1):
    model, batch = model_of(stage1), with_maps()
    output = forward(model, batch)
    term = terms_of(model, batch, output)["seed"]
    full = F.interpolate(output.map, (48, 48), mode="bilinear", align_corners=False)
    output.map = full
    seeds = seeds_of(model, batch, output)
    assert seeds.shape == (4, 48, 48)
    assert (seeds != SEED_IGNORE).sum((1, 2)).max() <= 10
    torch.testing.assert_close(term, F.cross_entropy(full, seeds, ignore_index=SEED_IGNORE))


@pytest.mark.parametrize("low_res", [False, True])
@pytest.mark.parametrize("detach", [False, True])
def test_detached_pixels_teach_the_pixel_head_alone(stage1, low_res, detach):
    model, batch = model_of(stage1, low_res=low_res, detach_pixels=detach).train(), with_maps()
    output = model(batch)
    terms = terms_of(model, batch, output)
    assert output.final.requires_grad
    terms["seed"].backward(retain_graph=True)
    assert all(p.grad.abs().sum() > 0 for p in model.decoder.parameters())
    assert all((p.grad is None) == detach for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.head.parameters())
    model.zero_grad()
    terms["ce"].backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.decoder.parameters())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_without_any_seed_the_term_is_zero_with_a_graph(stage1, precision):
    model, batch = model_of(stage1, sampler_args={"fg": 0, "bg": 0}).train(), with_maps()
    with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
        term = terms_of(model, batch, model(batch))["seed"]
    assert term == 0
    term.backward()
    assert all(p.grad.abs().sum() == 0 for p in model.decoder.parameters())


@pytest.mark.parametrize("idle", [{"seed_weight": 0.0}, {"windows": {"seed": [2, -1]}}])
def test_where_its_term_rests_nothing_that_learns_is_out_of_the_graph(stage1, idle):
    model, batch = model_of(stage1, **idle).train(), with_maps()
    for module in model.frozen():
        module.requires_grad_(requires_grad=False)
    terms = terms_of(model, batch, model(batch))
    assert terms["seed"] == 0
    sum(terms.values()).backward()  # else DDP waits for gradients that never come
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not any(p.grad is not None and p.grad.any() for p in model.decoder.parameters())


def test_dropped_channels_are_those_of_the_image_head(stage1):
    whole, dropped = model_of(stage1), model_of(stage1, feature_dropout=0.9)
    batch = batch_of()
    for model in (whole, dropped):
        model.load_state_dict(whole.state_dict())
        model.train()
        model.encoder.eval()
    whole.dropout.eval()
    ours, theirs = whole(batch), dropped(batch)
    assert torch.equal(ours.map, theirs.map)
    assert not torch.allclose(ours.logits, theirs.logits)


def fit(model, folder, *callbacks, ckpt_path=None, **changes):
    settings = {"max_epochs": 2, "limit_val_batches": 0, "callbacks": list(callbacks)} | changes
    data = tiny_data(hflip=0.5, train_resize=52)
    trainer(folder, **settings).fit(model, data, ckpt_path=ckpt_path)
    return model


def test_without_its_loss_it_trains_as_the_plain_classifier(stage1, tmp_path):
    settings = {"lr": 0.01, "step_size": 250, "min_lr": 1e-6}
    plain = CAMClassifier(**SMALL | settings)
    plain.load_state_dict(wsl_zoo.load(stage1).state_dict())
    plain._started = True
    model = model_of(stage1, seed_weight=0.0, feature_dropout=0.0, **settings)
    start = {key: value.clone() for key, value in model.decoder.state_dict().items()}
    fit(plain, tmp_path)
    fit(model, tmp_path)
    for part in ("encoder", "head"):
        ours, theirs = getattr(model, part).state_dict(), getattr(plain, part).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert all(torch.equal(value, start[key]) for key, value in model.decoder.state_dict().items())


def test_encoder_head_and_pixel_head_learn_from_stage_1_on(stage1, tmp_path):
    model = model_of(stage1)
    pixel = model.decoder.classifier.weight.clone()
    fit(model, tmp_path, max_steps=1)
    first = wsl_zoo.load(stage1)
    for name, parameter in first.named_parameters():
        moved = (model.get_parameter(name) - parameter).abs().max()
        assert 0 < moved < 1, name
    assert not torch.equal(model.decoder.classifier.weight, pixel)
    names = {group["name"]: group["lr"] for group in model.param_groups()}
    assert names == {"trunk": 0.001, "head": pytest.approx(0.01)}


@pytest.mark.parametrize("low_res", [False, True])
def test_the_best_map_so_far_may_seed(stage1, tmp_path, low_res):
    model = model_of(stage1, low_res=low_res, self_training_epoch=1)
    fit(model, tmp_path, max_steps=1)
    output, size = model(batch_of()), (3, 3) if low_res else (48, 48)
    model._best = [model.decoder]
    best = resize_maps(output.map.softmax(1)[:, 1], size)
    output.map = output.map.new_zeros(4, 2, *size)
    torch.manual_seed(0)
    expected = model.draw_seeds(best)
    assert torch.equal(seeds_of(model, batch_of(), output), expected)


# Negative images ----------------------------------------------------------------------------------


def negative_model(stage1, **changes):
    model = model_of(stage1, low_res=True, **changes)
    model.negative_class = None if changes.get("negatives") is False else NEGATIVE
    return model


def test_negative_images_give_background_alone_from_everywhere(stage1):
    model, batch = negative_model(stage1), with_maps()
    output = model(batch)
    places = torch.zeros(3, 3, dtype=torch.bool)
    for seed in range(20):
        torch.manual_seed(seed)
        seeds = model.seeds(batch, output)
        assert ((seeds == 0).sum((1, 2))[NEGATIVES] == 5).all()
        assert torch.equal((seeds == 1).flatten(1).any(dim=1), ~NEGATIVES)
        places |= seeds[NEGATIVE] == 0
    assert places.all()


def test_the_map_of_a_negative_image_does_not_matter(stage1):
    model, batch = negative_model(stage1), with_maps()
    output = model(batch)
    other = dict(batch, cam=batch["cam"].clone())
    other["cam"][NEGATIVE] = 1 - other["cam"][NEGATIVE]
    assert torch.equal(seeds_of(model, batch, output), seeds_of(model, other, output))


def test_without_negatives_all_images_are_treated_alike(stage1):
    model, batch = negative_model(stage1, negatives=False), with_maps()
    seeds = seeds_of(model, batch, model(batch))
    assert (seeds == 1).flatten(1).any(dim=1).all()


def test_the_negative_class_comes_from_the_data(stage1, tmp_path):
    for wanted, data, expected in [
        (None, tiny_data(classes=3, negatives=True), 3),
        (False, tiny_data(classes=3, negatives=True), None),
        (None, tiny_data(), None),
    ]:
        model = model_of(stage1, negatives=wanted)
        trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(model, data)
        assert model.negative_class == expected
    with pytest.raises(ValueError, match="SyntheticData has no class without a region"):
        trainer(tmp_path).fit(model_of(stage1, negatives=True), tiny_data())


# The map ------------------------------------------------------------------------------------------


def test_the_map_is_the_softmax_as_it_is_whatever_the_class(stage1):
    model, batch = model_of(stage1).eval(), batch_of()
    with torch.no_grad():
        output = model(batch)
        maps = model.localize(batch, output)
        small = output.map.softmax(1)[:, 1:]
        full = F.interpolate(small, (48, 48), mode="bilinear", align_corners=False)
    assert output.map.shape == (4, 2, 3, 3)
    torch.testing.assert_close(maps, full[:, 0])
    assert torch.equal(maps, model.localize(batch, output, "pred"))
    assert torch.equal(maps, model.localize(batch, output, NEGATIVE))
    assert maps.min() > 0  # no min-max
    assert maps.max() < 1


@pytest.mark.parametrize("low_res", [False, True])
def test_it_trains_over_the_patches_of_a_vit(tmp_path, low_res):
    settings = {"encoder": "test_vit", "stride": None}
    path = filled_classifier(tmp_path, **settings)
    model = model_of(path, low_res=low_res, **settings)
    data = tiny_data(image_size=64)
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(model, data)
    assert data.cams.shape == (8, 4, 4)
    output = model.eval()(batch_of(2, size=64))
    assert output.map.shape == (2, 2, 4, 4)
    assert output.logits.shape == (2, 4)


# The seeder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [HaS, FCAM, PixelCAM])
def test_another_method_may_seed(stage1, tmp_path, method):
    other = method(**SMALL)
    fill(other)
    path = save(other, tmp_path / "other.ckpt")
    model, batch = model_of(stage1, seeder=path), batch_of()
    with torch.no_grad():
        output = other.eval()(batch)
        raw = other.class_map(batch, output, batch["label"])
    torch.testing.assert_close(model.seed_maps(batch), normalize_map(raw))
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(model, tiny_data())


# Wrong options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "otsu"}, "sampler='otsu' must be one of threshold"),
        ({"sampler_args": {"min_p": 2}}, r"min_p=2 must lie in \[0, 1\]"),
        ({"sampler_args": {"erode_k": 3}}, r"sampler_args=.*erode_k"),
        ({"decoder_args": {"hidden": 2}}, "hidden=2 must be one of 0, 1, 3"),
        ({"windows": {"pixel": [1, 2]}}, "give .* for seed, crf, size, entropy"),
        ({"cam_source": "disk"}, "cam_source='disk'"),
        ({"low_res": True, "crf_weight": 1.0}, "crf_weight=1.0 .* low_res=True .* use one"),
    ],
)
def test_wrong_options_are_named(stage1, changes, message):
    with pytest.raises(ValueError, match=message):
        model_of(stage1, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier": None}, r"needs the classifier of stage 1: --model.classifier runs/"),
        ({"stride": 8}, "set model.stride to 16"),
        ({"head": "mil"}, "set model.head to 'wgap'"),
        ({"num_classes": 3}, "knows the classes 0, 1, 2, 3, this model 0, 1, 2"),
    ],
)
def test_another_network_than_stage_1_is_refused(stage1, changes, message):
    with pytest.raises(ValueError, match=message):
        model_of(stage1, **changes).load_start_weights()


def test_a_pixelcam_is_no_stage_1(stage1, tmp_path):
    path = save(model_of(stage1), tmp_path / "pixelcam.ckpt")
    with pytest.raises(ValueError, match="holds a PixelCAM: no CAMClassifier"):
        model_of(path).load_start_weights()
