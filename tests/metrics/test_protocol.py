"""The fast metrics against the plain transcription of the protocol: equal, not close."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.metrics import transcription
from tests.metrics.transcription import KINDS, blobs, random_boxes, special_map, to_levels
from wsl_zoo.metrics import BoxAcc, BoxAccV2, BoxLocalization, CorLoc, MaxBoxAcc, MaxBoxAccV2
from wsl_zoo.metrics.contours import CONTOURS, level_ious

PAIRS = 1000
"""Least number of different binary maps that are compared per kind and choice of contours."""


def cuts_of(levels):
    """The first and the last threshold of every different binary map."""
    present = np.unique(levels).astype(int)
    return np.unique([0, *present, *(present - 1).clip(0), 255])


def assert_equal_levels(levels, boxes, contours, cuts):
    found = level_ious(levels, boxes.astype(np.int64), contours)
    assert found.shape == (256,)
    assert found.dtype == np.float64
    expected = transcription.level_ious(levels, boxes, contours, cuts)
    wrong = np.flatnonzero(found[cuts] != expected)
    assert len(wrong) == 0, (
        f"level {cuts[wrong[0]]}: {found[cuts[wrong[0]]]}, expected {expected[wrong[0]]}, "
        f"true boxes {boxes.tolist()}, map {levels.tolist()}"
    )


@pytest.mark.parametrize("contours", CONTOURS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_level_of_every_kind_of_map(kind, contours):
    random = np.random.default_rng([KINDS.index(kind), CONTOURS.index(contours)])
    pairs = 0
    while pairs < PAIRS:
        levels = to_levels(special_map(kind, random))
        assert_equal_levels(levels, random_boxes(random, levels), contours, cuts_of(levels))
        pairs += len(np.union1d(0, levels))  # a new binary map begins at each of these
    assert pairs * len(KINDS) * len(CONTOURS) >= 40_000


@settings(max_examples=300, deadline=None)
@given(
    levels=arrays(
        np.uint8,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.sampled_from([0, 0, 1, 100, 255]),
    ),
    seed=st.integers(0, 999),
)
def test_small_maps_and_the_very_contour_of_equal_areas(levels, seed):
    boxes = random_boxes(np.random.default_rng(seed), levels)
    for contours in CONTOURS:
        assert_equal_levels(levels, boxes, contours, cuts_of(levels))
    for cut in (0, 1, 100):
        box = transcription.predicted_boxes(levels, cut, "largest")
        assert level_ious(levels, box, "largest")[cut] == 1


@pytest.mark.parametrize("contours", CONTOURS)
@pytest.mark.parametrize(
    ("name", "step"), [("several modes", 1), ("several modes, noisy", 8), ("noise", 40), ("few", 1)]
)
def test_maps_of_the_size_of_the_protocol(name, step, contours):
    random = np.random.default_rng(5)
    score_map = {
        "several modes": blobs(random, 224, 224, count=9),
        "several modes, noisy": 0.9 * blobs(random, 224, 224) + 0.1 * random.random((224, 224)),
        "noise": random.random((224, 224)),
        "few": random.choice([0.0, 0.2, 0.7, 1.0], (224, 224)),
    }[name]
    levels = to_levels(score_map)
    boxes = random_boxes(random, levels)
    assert_equal_levels(levels, boxes, contours, cuts_of(levels)[::step])


@pytest.fixture(scope="module")
def data_set():
    """One map per kind in float32, all 24 x 24, with boxes, logits full of ties, and classes."""
    random = np.random.default_rng(3)
    scores = np.stack([special_map(kind, random, (24, 24)) for kind in KINDS]).astype(np.float32)
    return {
        "scores": scores,
        "boxes": [random_boxes(random, to_levels(score_map)) for score_map in scores],
        "logits": random.integers(0, 4, (len(KINDS), 6)),
        "label": random.integers(0, 6, len(KINDS)),
    }


@pytest.fixture(scope="module")
def image_ious(data_set):
    images = data_set["scores"], data_set["boxes"]
    return {contours: transcription.data_set_ious(*images, contours) for contours in CONTOURS}


def updated(metric, data_set, batch, *names):
    for start in range(0, len(KINDS), batch):
        part = slice(start, start + batch)
        metric.update(
            torch.from_numpy(data_set["scores"][part]),
            [torch.from_numpy(box) for box in data_set["boxes"][part]],
            **{name: torch.from_numpy(data_set[name][part]) for name in names},
        )
    return metric


def test_maxboxacc_and_v2_of_a_data_set(data_set):
    images = data_set["scores"], data_set["boxes"]
    one, v2 = transcription.max_box_acc(*images), transcription.max_box_acc_v2(*images)
    assert 0.1 < one != v2 < 0.9
    for batch in (1, 8, len(KINDS)):
        assert updated(MaxBoxAcc(), data_set, batch).compute() == one
        found = updated(MaxBoxAccV2(), data_set, batch).compute().item()
        assert found == pytest.approx(v2, abs=1e-15)


@pytest.mark.parametrize("threshold", [0.0, 0.2505, 0.4567, 1.0])
def test_boxacc_and_v2_at_a_given_threshold(data_set, image_ious, threshold):
    place = transcription.nearest(threshold)
    expected = transcription.box_accuracy(image_ious["largest"], 0.5)[place]
    assert updated(BoxAcc(threshold), data_set, 8).compute() == expected
    each = [transcription.box_accuracy(image_ious["all"], iou)[place] for iou in (0.3, 0.5, 0.7)]
    found = updated(BoxAccV2(threshold), data_set, 8).compute().item()
    assert found == pytest.approx(np.mean(each), abs=1e-15)


@pytest.mark.parametrize("contours", CONTOURS)
def test_topk_localization_of_a_data_set(data_set, image_ious, contours):
    classes = data_set["logits"], data_set["label"]
    expected = {
        k: transcription.topk_localization(image_ious[contours], *classes, k) for k in (1, 2, 5)
    }
    assert 0 < expected[1] < expected[5]
    metric = BoxLocalization((0.5,), contours, topk=tuple(expected))
    updated(metric, data_set, 4, "logits", "label")
    assert {k: value.item() for k, value in metric.topk_accuracy().items()} == expected


@pytest.mark.parametrize("contours", CONTOURS)
@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize("threshold", ["global", "per_class", 0.3, 0.4567])
def test_corloc_of_a_data_set(data_set, image_ious, threshold, average, contours):
    expected, rates = transcription.corloc(
        image_ious[contours], data_set["label"], threshold, average
    )
    assert 0 < expected < 1
    metric = CorLoc(7, threshold, contours, average)  # class 6 never occurs
    updated(metric, data_set, 4, "label")
    assert metric.compute().item() == pytest.approx(expected, abs=1e-15)
    per_class = metric.per_class().tolist()
    assert np.isnan(per_class.pop())
    assert dict(enumerate(per_class)) == rates


def test_given_boxes_stand_at_every_threshold(data_set):
    truth = data_set["boxes"]
    predicted = [0.83 * box for box in truth]
    pairs = zip(predicted, truth, strict=True)
    best = [transcription.best_iou(*map(transcription.truncated, pair)) for pair in pairs]
    tensors = [[torch.from_numpy(box) for box in boxes] for boxes in (predicted, truth)]
    for iou in (0.1, 0.4, np.median(best)):
        metric = BoxLocalization((iou,))
        metric.update(*tensors)
        expected = np.mean(np.array(best) >= iou)
        assert 0 < expected < 1
        assert (metric.curves()["accuracy"] == expected).all()


def test_layout_does_not_matter(data_set):
    scores = torch.from_numpy(data_set["scores"])
    boxes = [torch.from_numpy(box) for box in data_set["boxes"]]
    plain, strided, doubled = MaxBoxAccV2(), MaxBoxAccV2(), MaxBoxAccV2()
    plain.update(scores, boxes)
    strided.update(scores.mT.contiguous().mT, boxes)
    doubled.update(torch.stack([scores, 1 - scores], dim=-1).double()[..., 0], boxes)
    assert plain.hits.sum() > 0
    assert torch.equal(plain.hits, strided.hits)
    assert torch.equal(plain.hits, doubled.hits)
