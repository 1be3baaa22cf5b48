"""The built-in reports: what images show, what texts tell, and how well a simulated CLIP pairs."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from wsl_zoo.data import SyntheticReportsData
from wsl_zoo.data import tissue as module
from wsl_zoo.data.reports import empty_and_repeated
from wsl_zoo.data.synthetic import SPLIT_OFFSET
from wsl_zoo.data.synthetic_reports import (
    PRETEXT_OFFSET,
    REPORT_OFFSET,
    TissueSource,
    graded_tissue,
    pretext_tissue,
)
from wsl_zoo.data.tissue import (
    GRADED,
    TOLD,
    clip_features,
    draw_tissue,
    render_tissue,
    write_report,
)
from wsl_zoo.pairing import nearest_reports


def small(**kwargs):
    settings = {"train": 9, "val": 10, "test": 11, "classes": 3, "image_size": 32, "reports": 20}
    if kwargs.get("task") == "pretext":
        settings |= {"train": 27, "val": 27, "test": 27}
    return SyntheticReportsData(**settings | kwargs)


def told(tissues):
    return np.array([[getattr(tissue, name) for name in TOLD] for tissue in tissues])


@cache
def tissues_of_images(count=150, classes=3):
    first = SPLIT_OFFSET["test"]
    return told(graded_tissue(first + i, 0, classes)[0] for i in range(count))


@cache
def tissues_of_reports(count=2000):
    return told(draw_tissue(REPORT_OFFSET + i, 0) for i in range(count))


def pairs(**kwargs):
    """How far the told attributes of images and of the nearest reports are apart, (N, 4)."""
    data = SyntheticReportsData(test=150, classes=3, **kwargs)
    index, _ = nearest_reports(data.image_features("test"), data.corpus()[1])
    return np.abs(tissues_of_images() - tissues_of_reports()[index.numpy()])


def test_an_image_is_a_function_of_its_tissue_seed_and_index():
    tissue = draw_tissue(5, 3)
    image = render_tissue(tissue, 5, 3, 32)
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    np.testing.assert_array_equal(render_tissue(draw_tissue(5, 3), 5, 3, 32), image)
    assert draw_tissue(6, 3) != tissue != draw_tissue(5, 4)
    for index, seed in ((6, 3), (5, 4)):
        assert (render_tissue(tissue, index, seed, 32) != image).mean() > 0.5


@pytest.mark.parametrize("name", ["severity", "density", "fibrosis", "inflammation", "strength"])
def test_what_is_more_abundant_makes_the_image_darker(name):
    fall = []
    for index in range(12):
        tissue = replace(draw_tissue(index, 0), severity=0.5)
        pale, dark = (
            render_tissue(replace(tissue, **{name: at}), index, 0, 48).mean() for at in (0.0, 1.0)
        )
        fall.append(pale - dark)
    assert np.mean(fall) > 0.7


def test_hue_turns_the_stain_from_pink_to_violet():
    tissue = draw_tissue(1, 0)
    pink, violet = (
        render_tissue(replace(tissue, hue=at), 1, 0, 48).mean(axis=(0, 1)) for at in (0, 1)
    )
    assert pink[0] - pink[2] > violet[0] - violet[2] + 20


@pytest.mark.parametrize("severity", [0.0, 0.33, 0.5, 1.0])
def test_the_share_of_atypical_nuclei_is_the_severity(monkeypatch, severity):
    found = {}

    def outlines(rng, radius, bumpy):
        found["atypical"] = bumpy / module.IRREGULARITY
        return np.zeros((len(radius), 20, 2))

    monkeypatch.setattr(module, "_outlines", outlines)
    tissue = replace(draw_tissue(0, 0), severity=severity, density=0.4, inflammation=0.0)
    render_tissue(tissue, 0, 0, 16)
    assert len(found["atypical"]) == 16  # 10 + 0.4 (25 - 10)
    assert found["atypical"].mean() == pytest.approx(severity)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_grade_is_the_bin_of_the_severity(classes):
    found = [graded_tissue(i, 2, classes) for i in range(40 * classes)]
    labels = [label for _, label in found]
    assert labels == [int(classes * tissue.severity) for tissue, _ in found]
    assert labels == [*range(classes)] * 40
    severity = np.array([tissue.severity for tissue, _ in found])
    assert severity.mean() == pytest.approx(0.5, abs=0.05)
    hue = np.array([tissue.hue for tissue, _ in found])
    assert abs(np.corrcoef(severity, hue)[0, 1]) < 0.3


def test_the_pretext_is_of_thirds_that_are_alike_in_number():
    found = [pretext_tissue(i, 0) for i in range(900)]
    for tissue, label in found:
        atypical = tissue.nuclei * tissue.severity
        third = 0 if atypical < 5.47 else 1 if atypical < 10.98 else 2
        assert label == 9 * third + 3 * int(3 * tissue.density) + int(3 * tissue.hue)
    labels = np.array([label for _, label in found])
    for part in (labels // 9, labels // 3 % 3, labels % 3):
        assert (np.abs(np.bincount(part) / 900 - 1 / 3) < 0.05).all()


def test_confounding_colours_the_stain_by_the_grade():
    for share in (0.0, 0.5, 1.0):
        found = [graded_tissue(i, 0, 2, share) for i in range(400)]
        alike = np.mean([int(2 * tissue.hue) == grade for tissue, grade in found])
        assert alike == pytest.approx(share + (1 - share) / 2, abs=0.06)
        assert all(int(2 * tissue.severity) == grade for tissue, grade in found)
    plain, coloured = graded_tissue(7, 0, 2), graded_tissue(7, 0, 2, 1.0)
    assert replace(coloured[0], hue=plain[0].hue) == plain[0]
    sources = SyntheticReportsData(train=40, val=40, test=40, confounding=1.0).sources
    alike = {
        split: np.mean([int(2 * t.hue) == g for t, g in map(source.tissue, source.indices)])
        for split, source in sources.items()
    }
    assert alike["train"] == 1
    assert max(alike["val"], alike["test"]) < 0.8


def test_a_report_tells_the_severity_as_its_only_number():
    for index in range(60):
        tissue = draw_tissue(index, 1)
        text = write_report(tissue, np.random.default_rng(index))
        (number,) = re.findall(r"\d+", text)
        assert f"{number} %" in text
        assert abs(int(number) / 100 - tissue.severity) <= 0.005 + 1e-9


@pytest.mark.parametrize("name", list(GRADED))
def test_a_report_grades_the_others_in_words(name):
    words, phrasings = GRADED[name]
    for quarter, word in enumerate(words):
        tissue = replace(draw_tissue(0, 0), **{name: (quarter + 0.5) / 4})
        texts = [write_report(tissue, np.random.default_rng(i)) for i in range(30)]
        expected = {phrasing.format(word) for phrasing in phrasings}
        assert all(sum(sentence in text for sentence in expected) == 1 for text in texts)
        assert all(any(sentence in text for text in texts) for sentence in expected)


def test_the_corpus_is_of_tissues_of_its_own():
    data = SyntheticReportsData(reports=30, scene_seed=4)
    reports, features = data.corpus()
    assert [report.name for report in reports[:2]] == ["report 0", "report 1"]
    assert {(report.label, report.group) for report in reports} == {("", "")}
    assert empty_and_repeated(reports) == ([], {})
    numbers = [int(re.findall(r"(\d+) %", report.text)[0]) for report in reports]
    assert numbers == [round(100 * draw_tissue(REPORT_OFFSET + j, 4).severity) for j in range(30)]
    assert data.corpus()[0] == reports
    assert torch.equal(data.corpus()[1], features)
    more, longer = SyntheticReportsData(reports=40, scene_seed=4).corpus()
    assert more[:30] == reports
    assert torch.equal(longer[:30], features)
    assert SyntheticReportsData(reports=30, scene_seed=5).corpus()[0] != reports


@pytest.mark.parametrize("dim", [8, 64])
def test_features_are_finite_and_of_unit_length(dim):
    data = small(text_dim=dim, noise=2.0)
    for features, count in ((data.corpus()[1], 20), (data.image_features("val"), 10)):
        assert features.shape == (count, dim)
        assert features.dtype == torch.float32
        assert torch.isfinite(features).all()
        torch.testing.assert_close(features.norm(dim=1), torch.ones(count))


def test_without_noise_cosines_are_those_of_a_gaussian_kernel():
    tissues = [draw_tissue(i, 0) for i in range(40)]
    features = clip_features(tissues, range(40), 0, 20_000, 0.0).double().numpy()
    scaled = 2 * told(tissues) * np.array(module.WEIGHTS)
    distance = ((scaled[:, None] - scaled) ** 2).sum(axis=2)
    np.testing.assert_allclose(features @ features.T, np.exp(-distance / 2), atol=0.05)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_noise_turns_features_by_its_length(noise):
    tissues = [draw_tissue(i, 0) for i in range(100)]
    clean = clip_features(tissues, range(100), 0, 512, 0.0)
    noisy = clip_features(tissues, range(100), 0, 512, noise)
    cosine = (clean * noisy).sum(dim=1).mean().item()
    assert cosine == pytest.approx((1 + noise**2) ** -0.5, abs=0.03)


def test_features_of_one_tissue_differ_by_their_own_noise_only():
    tissue = draw_tissue(0, 0)
    same = replace(tissue, hue=1 - tissue.hue, focus=1 - tissue.focus)  # which no text tells
    clean = clip_features([tissue, same], [1, 2], 0, 64, 0.0)
    assert torch.equal(clean[0], clean[1])
    noisy = clip_features([tissue, tissue], [1, 2], 0, 64, 0.5)
    assert not torch.equal(noisy[0], noisy[1])
    assert torch.equal(noisy, clip_features([tissue, tissue], [1, 2], 0, 64, 0.5))


def test_pairs_agree_in_all_that_is_told_as_the_documentation_says():
    chance = np.median(np.abs(tissues_of_images() - tissues_of_reports()[:150]), axis=0)
    assert (np.abs(chance - 0.3) < 0.06).all()
    apart = np.median(pairs(), axis=0)
    assert 0.01 < apart[0] < 0.035
    assert ((apart[1:] > 0.04) & (apart[1:] < 0.1)).all()
    assert chance[0] > 8 * apart[0]
    assert (chance[1:] > 3 * apart[1:]).all()


def test_a_noisier_clip_pairs_worse():
    apart = [np.median(pairs(noise=noise, reports=300), axis=0) for noise in (0.0, 1.0, 4.0)]
    assert (apart[0] < apart[1]).all()
    assert (apart[1] < apart[2]).all()


def test_a_sample_is_its_image():
    sample = TissueSource(5, 30, 2, 24, "grade", 3).load(4, annotations=True)
    tissue, label = graded_tissue(34, 2, 3)
    np.testing.assert_array_equal(sample.image, render_tissue(tissue, 34, 2, 24))
    assert (sample.label, sample.path, sample.size) == (label, "tissue 34", (24, 24))
    assert sample.mask is None
    assert sample.boxes is None
    with pytest.raises(IndexError, match="image 5 of 5"):
        TissueSource(5, 30, 2, 24, "grade", 3).load(5, annotations=False)


def test_splits_of_both_tasks_share_no_image():
    paths, images = [], set()
    for task in ("grade", "pretext"):
        data = small(task=task)
        assert list(data.sources) == ["train", "val", "test"]
        for split, source in data.sources.items():
            items = [source.load(i, annotations=False) for i in range(len(source))]
            first = SPLIT_OFFSET[split] + (PRETEXT_OFFSET if task == "pretext" else 0)
            assert items[0].path == f"tissue {first}"
            paths += [item.path for item in items]
            images |= {item.image.tobytes() for item in items}
    assert len(set(paths)) == len(images) == 9 + 10 + 11 + 3 * 27
    assert max(int(path.split()[1]) for path in paths) < REPORT_OFFSET


def test_features_are_in_the_order_of_the_images():
    for task in ("grade", "pretext"):
        data = small(task=task, noise=0.5, scene_seed=2)
        source = data.sources["val"]
        paths = [source.load(i, annotations=False).path for i in range(3)]
        assert paths == source.paths[:3]
        tissues = [source.tissue(i)[0] for i in source.indices]
        expected = clip_features(tissues, source.indices, 2, 64, 0.5)
        assert torch.equal(data.image_features("val"), expected)


@pytest.mark.parametrize("classes", [2, 4])
def test_prompts_tell_the_grade_and_nothing_else(classes):
    """Their mean is nearest to images of the grade; what a report tells beside it is unknown."""
    data = small(classes=classes, test=100, noise=0.0, text_dim=256)
    prompts = data.prompt_features()
    assert prompts.shape == (classes, 8, 256)
    torch.testing.assert_close(prompts.norm(dim=2), torch.ones(classes, 8))
    nearest = (data.image_features("test") @ prompts.mean(dim=1).T).argmax(dim=1)
    label = torch.tensor([data.dataset("test")[i]["label"] for i in range(100)])
    assert (nearest == label).float().mean() > (0.9 if classes == 2 else 0.7)
    with pytest.raises(ValueError, match="prompts of grades only"):
        small(task="pretext").prompt_features()


def test_images_follow_their_own_seed_only():
    def image(**kwargs):
        return small(**kwargs).dataset("val")[2]["image"]

    assert torch.equal(image(seed=0), image(seed=1))
    assert not torch.equal(image(scene_seed=0), image(scene_seed=1))
    assert image(image_size=40).shape == (3, 40, 40)


def test_a_batch_holds_images_and_labels():
    batch = next(iter(small().val_dataloader()[0]))
    assert batch["image"].shape == (10, 3, 32, 32)
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].tolist() == [(SPLIT_OFFSET["val"] + i) % 3 for i in range(10)]
    assert not {"mask", "boxes"} & set(batch)


def test_classes_are_known_before_setup():
    assert small(classes=4).class_names == ["grade 0", "grade 1", "grade 2", "grade 3"]
    pretext = small(task="pretext")
    assert pretext.num_classes == 27
    assert pretext.class_names[5] == "few medium violet"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 1}, "classes=1: there must be two grades at least"),
        ({"train": 2}, "train=2, val=10, test=11: every split needs all 3 classes"),
        ({"train": 8, "task": "pretext"}, "every split needs all 27 classes"),
        ({"task": "stain"}, 'task=\'stain\' must be "grade" or "pretext"'),
        ({"reports": 0}, "reports=0 must be at least 1"),
        ({"text_dim": 7}, "text_dim=7 must be at least 8"),
        ({"noise": -0.1}, "noise=-0.1 must be 0 or more"),
        ({"confounding": 1.5}, r"confounding=1.5 must be in \[0, 1\]"),
        ({"noise": float("nan")}, "noise=nan must be 0 or more"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_an_unknown_split_has_no_features():
    with pytest.raises(ValueError, match="split='predict' must be one of train, val, test"):
        small().image_features("predict")
