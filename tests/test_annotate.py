"""What a round asks of a trained model: thresholds, masks and scores, by one process and by two."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from tests.cases import build, fill
from tests.cases.stages import save
from wsl_zoo import annotate
from wsl_zoo.acquisition import mc_variance
from wsl_zoo.annotate import THRESHOLDS
from wsl_zoo.checkpoints import load_checkpoint
from wsl_zoo.data.dataset import stable_seed

DATA = {"train": 8, "val": 5, "test": 6, "image_size": 48, "batch_size": 4}


def maps(count=4, size=(9, 7), seed=0):
    generator = np.random.default_rng(seed)
    return generator.random((count, *size)), generator.integers(0, 2, (count, *size))


def counts_of(probabilities, masks):
    return np.stack(list(map(annotate.mask_counts, probabilities, masks)))


def plain_miou(probability, mask, threshold):
    """Both IoUs of one image, each with one pixel more above and below, and their mean."""
    found, true = probability >= threshold, mask == 1
    values = [
        ((a & b).sum() + 1) / ((a | b).sum() + 1) for a, b in ((found, true), (~found, ~true))
    ]
    return sum(values) / 2


def test_mean_iou_and_dice_are_those_of_each_image():
    probabilities, masks = maps()
    probabilities[0, 0] = THRESHOLDS[:7]  # on the threshold is foreground
    masks[1] = 0
    counts = np.stack(
        [annotate.mask_counts(*pair) for pair in zip(probabilities, masks, strict=True)]
    )
    found = annotate.mean_iou(counts, np.full(4, 63))
    dices = annotate.dice(counts)
    for k, threshold in enumerate(THRESHOLDS):
        expected = [plain_miou(p, m, threshold) for p, m in zip(probabilities, masks, strict=True)]
        assert found[k] == pytest.approx(np.mean(expected), abs=1e-12)
        for i in range(4):
            predicted = probabilities[i] >= threshold
            both = predicted.sum() + masks[i].sum()
            hits = (predicted & (masks[i] == 1)).sum()
            assert dices[i, k] == pytest.approx(2 * hits / (both + 1e-8), abs=1e-12)


def test_ignored_pixels_do_not_count():
    (probability, *_), (mask, *_) = maps()
    ignored = mask.copy()
    ignored[:3] = 255
    assert np.array_equal(
        annotate.mask_counts(probability, ignored), annotate.mask_counts(probability[3:], mask[3:])
    )


def test_the_grid_is_that_of_the_paper_and_ties_go_to_the_smallest():
    assert THRESHOLDS[0] == 0.05
    assert THRESHOLDS[-1] == 0.99
    assert len(THRESHOLDS) == 95
    probability, mask = np.full((4, 4), 0.2), np.zeros((4, 4), int)
    probability[:2], mask[:2] = 0.8, 1  # all thresholds above 0.2 and to 0.8 are perfect
    counts = annotate.mask_counts(probability, mask)[None]
    assert THRESHOLDS[annotate.best_threshold(counts, np.array([16]))] == 0.21


def test_the_best_threshold_is_no_worse_than_a_half():
    probabilities, masks = maps(seed=3)
    counts = np.stack(
        [annotate.mask_counts(*pair) for pair in zip(probabilities, masks, strict=True)]
    )
    values = annotate.mean_iou(counts, np.full(4, 63))
    best = annotate.best_threshold(counts, np.full(4, 63))
    assert values[best] == values.max() >= values[np.flatnonzero(THRESHOLDS == 0.5)[0]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model as a checkpoint, and the configuration of its data."""
    folder = tmp_path_factory.mktemp("trained")
    # Means and deviations that nothing has by default.
    model = build(
        "ActiveWeakAnnotator", folder, dropout=0.3, mean=[0.3, 0.4, 0.5], std=[0.2, 0.3, 0.4]
    )
    fill(model)
    config = {
        "data": {"class_path": "wsl_zoo.data.SyntheticData", "init_args": DATA},
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    (folder / "one.yaml").write_text(yaml.safe_dump(config))
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    (folder / "two.yaml").write_text(yaml.safe_dump(config))
    return folder, save(model, folder / "model.ckpt")


def request_of(trained, answer, config="one", **changes):
    folder, checkpoint = trained
    files = {"config": str(folder / f"{config}.yaml"), "checkpoint": checkpoint}
    return files | {"answer": str(answer)} | changes


def answered(trained, folder, **changes):
    request = request_of(trained, folder / "answer.json", **changes)
    annotate.annotate(request)
    return json.loads((folder / "answer.json").read_text())


def probability_of(trained, data, index, split="train"):
    """The map of an image at its own size, straightforwardly."""
    model = load_checkpoint(trained[1])
    data.trainer = None
    item = data.dataset(split)[index] if split != "train" else None
    source = data.sources[split]
    image = torch.from_numpy(source.load(index, annotations=False).image).permute(2, 0, 1)[None]
    assert item is None or torch.equal(item["image"], image[0])
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.encoder.mean, model.encoder.std))
    with torch.no_grad():
        return model, model({"image": (image / 255 - mean) / std}), source


def test_what_is_found_is_what_the_model_says(trained, tmp_path):
    names = [f"scene-{i}" for i in (1, 4)]
    masks = {name: str(tmp_path / f"{name}.png") for name in names}
    score = {"by": "entropy", "images": ["scene-4", "scene-6"], "published": False, "seed": 3}
    found = answered(trained, tmp_path, pseudo=masks, score=score, test=True)
    data = annotate.make_data(yaml.safe_load((trained[0] / "one.yaml").read_text()))
    for index in (1, 4):
        _, output, _ = probability_of(trained, data, index)
        expected = output.map[0, 0].sigmoid() >= found["threshold"]
        mask = np.asarray(Image.open(masks[f"scene-{index}"]))
        assert set(np.unique(mask)) <= {0, 255}
        assert np.array_equal(mask > 0, expected.numpy())
    assert sorted(found["scores"]) == ["scene-4", "scene-6"]
    _, output, _ = probability_of(trained, data, 6)
    p = output.map[0, 0].sigmoid().double()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    assert found["scores"]["scene-6"] == pytest.approx(float(entropy), rel=1e-4)
    dices, right = [], []
    for index in range(DATA["test"]):
        _, output, source = probability_of(trained, data, index, "test")
        truth = source.load(index, annotations=True)
        predicted = (output.map[0, 0].sigmoid() >= found["threshold"]).numpy()
        hits = (predicted & (truth.mask == 1)).sum()
        dices.append(2 * hits / (predicted.sum() + (truth.mask == 1).sum() + 1e-8))
        right.append(int(output.logits.argmax()) == truth.label)
    assert found["test"]["test/image_dice"] == pytest.approx(np.mean(dices), abs=1e-6)
    assert found["test"]["test/acc"] == pytest.approx(np.mean(right))


def test_logits_are_resized_before_the_sigmoid():
    logits = torch.randn(2, 1, 5, 4)
    expected = F.interpolate(logits, (11, 9), mode="bilinear", align_corners=False)[:, 0].sigmoid()
    assert torch.equal(annotate.at_size(logits, (11, 9)), expected)


def test_mc_dropout_scores_vary_with_the_seed_and_the_image_alone(trained, tmp_path):
    def scores(seed, images):
        score = {"by": "mc_dropout", "passes": 13, "published": False, "seed": seed}
        return answered(trained, tmp_path, score=score | {"images": images})["scores"]

    two, one = scores(1, ["scene-2", "scene-3"]), scores(1, ["scene-3"])
    assert two["scene-3"] == one["scene-3"] > 0
    assert scores(2, ["scene-3"])["scene-3"] != one["scene-3"]
    # By hand: as many passes with that seed, dropout alone switched on.
    data = annotate.make_data(yaml.safe_load((trained[0] / "one.yaml").read_text()))
    model, _, source = probability_of(trained, data, 3)
    image = torch.from_numpy(source.load(3, annotations=False).image).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.encoder.mean, model.encoder.std))
    torch.manual_seed(stable_seed(1, 3))
    model.decoder.drop.train()
    with torch.no_grad():
        image = (image / 255 - mean) / std
        passes = [model({"image": image.expand(n, -1, -1, -1)}).map for n in (10, 3)]
    expected = mc_variance(torch.cat(passes)[:, None, 0].sigmoid())
    assert one["scene-3"] == pytest.approx(float(expected), rel=1e-4)


def test_two_processes_find_what_one_finds(trained, tmp_path):
    found = {}
    for config in ("one", "two"):
        folder = tmp_path / config
        folder.mkdir()
        masks = {f"scene-{i}": str(folder / f"scene-{i}.png") for i in range(5)}
        score = {"by": "mc_dropout", "passes": 4, "published": False, "seed": 0}
        score |= {"images": [f"scene-{i}" for i in range(3, 8)]}
        request = request_of(
            trained, folder / "answer.json", config, pseudo=masks, score=score, test=True
        )
        if config == "one":
            annotate.annotate(request)
        else:
            (folder / "request.json").write_text(json.dumps(request))
            command = [sys.executable, "-m", "wsl_zoo.annotate", str(folder / "request.json")]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
        files = {path.name: path.read_bytes() for path in folder.glob("*.png")}
        found[config] = (json.loads((folder / "answer.json").read_text()), files)
    assert found["one"] == found["two"]
    assert len(found["one"][1]) == 5


def test_another_method_is_refused(tmp_path, trained):
    model = build("CAMClassifier", tmp_path)
    path = save(model, tmp_path / "cam.ckpt")
    with pytest.raises(ValueError, match="holds a CAMClassifier: rounds of active learning need"):
        annotate.annotate(request_of((trained[0], path), tmp_path / "answer.json"))
    assert not (tmp_path / "answer.json").exists()
