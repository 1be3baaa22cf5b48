"""One image in, class and place out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.transforms import normalize, resize_image
from wsl_zoo.methods import CAMClassifier
from wsl_zoo.metrics.split import Thresholds
from wsl_zoo.prediction import as_rgb, mask_boxes, resize_map, stack_images, to_prediction
from wsl_zoo.types import Output


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = CAMClassifier(
        num_classes=3, class_names=["ant", "bee", "cat"], encoder="test_resnet", stride=16
    )
    model.image_size = 64
    return model.eval()


def picture(height=50, width=70):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_prediction_is_what_evaluation_gives_at_the_size_of_the_image(model):
    pixels = picture()
    prediction = model.predict_image(pixels)
    raw = torch.from_numpy(resize_image(pixels, (64, 64)).copy()).permute(2, 0, 1)[None]
    batch = {"image": normalize(raw, model.encoder.mean, model.encoder.std)}
    with torch.no_grad():
        output = model(batch)
        maps = model.localize(batch, output, "pred")
    probabilities = output.logits.softmax(1)[0]
    label = int(probabilities.argmax())
    assert prediction.label == label
    assert prediction.class_name == ["ant", "bee", "cat"][label]
    assert prediction.probability == pytest.approx(float(probabilities[label]))
    np.testing.assert_allclose(prediction.probabilities, probabilities.numpy(), rtol=1e-6)
    expected = F.interpolate(maps[None], (50, 70), mode="bilinear")[0, 0].numpy()
    assert prediction.map.shape == (50, 70)
    assert prediction.map.dtype == np.float32
    np.testing.assert_allclose(prediction.map, expected, atol=1e-6)
    assert prediction.threshold == 0.5
    np.testing.assert_array_equal(prediction.mask, prediction.map >= 0.5)
    assert 0 < prediction.mask.mean() < 1
    np.testing.assert_array_equal(prediction.boxes, mask_boxes(prediction.mask))


def test_models_see_the_aspect_that_they_were_trained_with(model, monkeypatch):
    monkeypatch.setattr(model, "image_size", [48, 80])
    assert stack_images(model, [picture(), picture(90, 20)]).shape == (2, 3, 48, 80)
    assert model.predict_image(picture()).map.shape == (50, 70)


def test_the_stored_threshold_cuts_the_map(model):
    pixels = picture()
    try:
        for threshold in (0.25, 0.75):
            model.thresholds = Thresholds(pixels=threshold)
            prediction = model.predict_image(pixels)
            assert prediction.threshold == threshold
            np.testing.assert_array_equal(prediction.mask, prediction.map >= threshold)
        model.thresholds = Thresholds(pixels=2.0)  # the validation liked an empty mask best
        prediction = model.predict_image(pixels)
        assert not prediction.mask.any()
        assert prediction.boxes.shape == (0, 4)
    finally:
        model.thresholds = Thresholds()


def test_a_class_may_be_asked_for(model):
    pixels = picture()
    predictions = [model.predict_image(pixels, target=k) for k in range(3)]
    assert [p.label for p in predictions] == [0, 1, 2]
    assert [p.class_name for p in predictions] == ["ant", "bee", "cat"]
    assert sum(p.probability for p in predictions) == pytest.approx(1.0)
    assert not np.allclose(predictions[0].map, predictions[1].map)
    best = model.predict_image(pixels)
    np.testing.assert_array_equal(best.map, predictions[best.label].map)


@pytest.mark.parametrize("target", [3, -1, "label", "ant"])
def test_a_target_that_is_none_is_refused(model, target):
    with pytest.raises(ValueError, match="must be 'pred' or a class index"):
        model.predict_image(picture(), target=target)


def test_without_a_size_images_are_taken_as_they_are(model):
    sizes = []

    class Spy(CAMClassifier):
        def forward(self, batch):
            sizes.append(tuple(batch["image"].shape[2:]))
            return super().forward(batch)

    spy = Spy(num_classes=3, encoder="test_resnet")
    assert spy.predict_image(picture(48, 64)).map.shape == (48, 64)
    spy.image_size = 32
    assert spy.predict_image(picture(48, 64)).map.shape == (48, 64)
    assert sizes == [(48, 64), (32, 32)]


def test_a_model_without_maps_still_classifies():
    class NoMap(CAMClassifier):
        def forward(self, batch):
            return Output(logits=super().forward(batch).logits)

    prediction = NoMap(num_classes=3, encoder="test_resnet").predict_image(picture())
    assert prediction.map is prediction.mask is prediction.boxes is None
    assert prediction.probabilities.shape == (3,)


def test_mode_and_gradients_stay_as_they_were():
    model = CAMClassifier(num_classes=3, encoder="test_resnet").train()
    model.encoder.model.layer1.eval()  # held by hand
    model.head.fc.weight.grad = torch.ones_like(model.head.fc.weight)
    modes = {name: module.training for name, module in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    first = model.predict_image(picture())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert len(set(modes.values())) == 2
    assert (model.head.fc.weight.grad == 1).all()
    assert all(p.grad is None for n, p in model.named_parameters() if n != "head.fc.weight")
    assert torch.is_grad_enabled()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    second = model.eval().predict_image(picture())
    np.testing.assert_array_equal(first.map, second.map)  # it ran in eval mode
    assert not model.training
    model.train()
    with pytest.raises(TypeError):
        model.predict_image(np.zeros((3, 3)))
    model.forward = None  # a forward that fails
    with pytest.raises(TypeError):
        model.predict_image(picture())
    assert model.training


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_an_array(model, tmp_path, kind):
    pixels = picture()
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    ours, theirs = model.predict_image(pixels), model.predict_image(kind(path))
    assert ours.label == theirs.label
    np.testing.assert_array_equal(ours.map, theirs.map)
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


def test_files_of_other_kinds_become_rgb(tmp_path):
    pixels = picture()
    grey = pixels[..., 0]
    for name, image, expected in (
        ("grey.png", Image.fromarray(grey), np.repeat(grey[..., None], 3, 2)),
        ("rgba.png", Image.fromarray(np.dstack([pixels, grey])), pixels),
        ("deep.png", Image.fromarray(grey.astype(np.uint16) * 256), np.dstack([grey] * 3)),
        ("two.png", Image.fromarray(grey > 127), np.dstack([(grey > 127) * np.uint8(255)] * 3)),
    ):
        image.save(tmp_path / name)
        found = as_rgb(tmp_path / name)
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"\(H, W, 3\) uint8 RGB, got \(4, 4\) uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"got \(4, 4, 4\)"),
        (np.zeros((3, 4, 4), np.uint8), r"got \(3, 4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "got Tensor"),
        (Image.new("RGB", (4, 4)), "got Image"),
    ],
)
def test_wrong_arrays_are_refused(model, image, message):
    with pytest.raises(TypeError, match=message):
        model.predict_image(image)


def test_bad_files_are_refused(model, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png is not a readable image"):
        model.predict_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"gone\.png"):
        model.predict_image(tmp_path / "gone.png")


@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_boxes_are_those_of_the_eight_connected_parts(density):
    rng = np.random.default_rng(int(10 * density))
    mask = rng.random((23, 31)) < density
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    expected = []
    for part in range(1, count + 1):
        rows, columns = np.nonzero(parts == part)
        box = (columns.min(), rows.min(), columns.max(), rows.max())
        expected.append((-len(rows), part, tuple(map(int, box))))
    boxes = mask_boxes(mask)
    assert boxes.dtype == np.int64
    assert boxes.shape == (count, 4)
    assert [tuple(box) for box in boxes.tolist()] == [box for *_, box in sorted(expected)]


def test_maps_keep_their_range_and_constants():
    small = torch.rand(7, 5, generator=torch.Generator().manual_seed(0))
    big = resize_map(small, (40, 33))
    assert big.shape == (40, 33)
    assert small.min() <= big.min() <= big.max() <= small.max()
    assert torch.equal(resize_map(small, (7, 5)), small)
    assert torch.equal(resize_map(torch.full((4, 4), 0.25), (9, 8)), torch.full((9, 8), 0.25))
    assert resize_map(small.bfloat16(), (9, 9)).dtype == torch.float32


def test_scores_may_come_in_half_precision():
    prediction = to_prediction(
        torch.tensor([0.25, 0.75], dtype=torch.bfloat16), 1, torch.eye(4, dtype=torch.bfloat16),
        (4, 4), ["a", "b"], 0.5,
    )  # fmt: skip
    assert prediction.probability == 0.75
    assert prediction.probabilities.dtype == prediction.map.dtype == np.float32
    assert prediction.boxes.tolist() == [[0, 0, 3, 3]]  # a diagonal is connected


def test_a_score_at_the_threshold_is_foreground():
    score_map = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    for threshold, count in ((0.0, 4), (0.25, 3), (0.5, 2), (1.0, 1), (2.0, 0)):
        prediction = to_prediction(torch.ones(1), 0, score_map, (2, 2), ["a"], threshold)
        assert prediction.mask.sum() == count
