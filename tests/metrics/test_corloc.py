"""CorLoc: which threshold, which mean, and boxes given instead of maps."""

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from wsl_zoo.metrics import CorLoc, MaxBoxAcc

K = 3


def frames(seed=0, count=40, side=24):
    """Maps in which classes like different thresholds: bright cores in wide haloes."""
    rng = np.random.default_rng(seed)
    scores, boxes, label = np.zeros((count, side, side)), [], rng.integers(0, K, count)
    label[:K] = range(K)
    for i in range(count):
        x, y = rng.integers(1, 6, 2)
        scores[i, y : y + 16, x : x + 16] = rng.uniform(0.1, 0.4) + (0.4, 0.2, 0)[label[i]]
        scores[i, y + 4 : y + 12, x + 4 : x + 12] = 1
        wide = rng.random() < (0.2, 0.5, 0.9)[label[i]]
        box = [x, y, x + 16, y + 16] if wide else [x + 4, y + 4, x + 12, y + 12]
        boxes.append(torch.tensor([box], dtype=torch.float64) + rng.integers(0, 3))
    return torch.from_numpy(scores), boxes, torch.from_numpy(label)


def by_hand(scores, boxes, label):
    """Accuracy of each class at each of the 1000 thresholds `(K, n)`, frames of each `(K,)`."""
    hits = np.zeros((K, 1000))
    for i in range(len(scores)):
        one = MaxBoxAcc()
        one.update(scores[i : i + 1], boxes[i : i + 1])
        hits[label[i]] += one.curves()["accuracy"][0].numpy()
    return hits, np.bincount(label, minlength=K)


def value(scores, boxes, label, **kwargs):
    metric = CorLoc(K, **kwargs)
    metric.update(scores, boxes, label)
    return metric


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_three_choices_of_the_threshold(average):
    data = frames()
    hits, total = by_hand(*data)
    overall = hits.sum(0)
    at = {
        "global": np.full(K, overall.argmax()),
        "per_class": hits.argmax(1),
        0.25: np.full(K, 250),
        0.4996: np.full(K, 500),
    }
    found = {}
    for threshold, place in at.items():
        metric = value(*data, threshold=threshold, average=average)
        right = hits[np.arange(K), place]
        np.testing.assert_array_equal(metric.per_class().numpy(), right / total)
        expected = (right / total).mean() if average == "macro" else right.sum() / total.sum()
        found[threshold] = metric.compute().item()
        assert found[threshold] == pytest.approx(expected, abs=1e-15)
    assert found["per_class"] > found["global"] > found[0.4996]
    grid = np.arange(0, 1, 0.001)
    assert value(*data).best_threshold() == grid[overall.argmax()]
    each = value(*data, threshold="per_class").best_threshold()
    np.testing.assert_array_equal(each.numpy(), grid[hits.argmax(1)])
    curves = value(*data).curves()
    np.testing.assert_array_equal(curves["accuracy"].numpy(), overall / total.sum())
    np.testing.assert_array_equal(curves["per_class"].numpy(), hits / total[:, None])


def test_micro_at_the_global_threshold_is_maxboxacc():
    scores, boxes, label = frames(1)
    other = MaxBoxAcc()
    other.update(scores, boxes)
    assert value(scores, boxes, label, average="micro").compute() == other.compute()


def test_a_class_without_frames_is_left_out():
    scores, boxes, label = frames(2)
    boxes = [torch.zeros(0, 4) if label[i] == 1 else box for i, box in enumerate(boxes)]
    metric = value(scores, boxes, label)
    classes = metric.per_class()
    assert classes.isnan().tolist() == [False, True, False]
    assert metric.compute() == classes[[0, 2]].mean()
    micro = value(scores, boxes, label, average="micro", threshold="per_class")
    assert 0 < micro.compute() <= 1


@pytest.mark.filterwarnings("ignore:.*undefined")
def test_no_frame_gives_nan_and_a_warning():
    metric = CorLoc(K)
    metric.update(torch.rand(2, 8, 8), [torch.zeros(0, 4)] * 2, torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match="no frame with a box"):
        assert metric.compute().isnan()
    assert metric.best_threshold().isnan()


def test_boxes_may_be_given_and_no_box_is_wrong():
    truth = [torch.tensor([[10.0, 10.0, 19.0, 19.0]])] * 6
    given = [
        torch.tensor([10.4, 10.9, 19.2, 19.0]),  # truncated: exact
        torch.tensor([[0.0, 0.0, 3.0, 3.0], [10.0, 10.0, 19.0, 14.0]]),  # one is half of it
        torch.tensor([[10.0, 10.0, 19.0, 13.0]]),  # 40 / 100
        torch.tensor([[19.0, 19.0, 10.0, 10.0]]),  # reversed
        torch.tensor([[float("nan"), 10.0, 19.0, 19.0]]),
        torch.zeros(0, 4),
    ]
    label = torch.tensor([0, 1, 1, 2, 2, 2])
    metric = value(given, truth, label)
    assert metric.per_class().tolist() == [1, 0.5, 0]
    assert metric.compute() == 0.5
    assert (metric.hits == metric.hits[:, :1]).all()  # at every threshold
    box = MaxBoxAcc()
    box.update(given, truth)
    assert box.compute() == 2 / 6


def test_iou_of_exactly_one_half_is_correct():
    truth = [torch.tensor([[0.0, 0.0, 9.0, 9.0]])]
    given = [torch.tensor([[0.0, 0.0, 9.0, 4.0]])]
    assert value(given, truth, torch.tensor([0])).compute() == 1
    assert value(given, truth, torch.tensor([0]), iou_threshold=0.5 + 1e-9).compute() == 0


def test_duplicates_are_dropped_and_partitions_do_not_matter():
    scores, boxes, label = frames(3)
    whole, parts = CorLoc(K), CorLoc(K)
    whole.update(scores, boxes, label)
    for start in range(0, 40, 8):
        rows = [*range(start, start + 8), 0]
        valid = torch.tensor([True] * 8 + [False])
        parts.update(scores[rows], [boxes[i] for i in rows], label[rows], valid)
    assert torch.equal(whole.hits, parts.hits)
    assert torch.equal(whole.total, parts.total)


def test_a_collection_shares_the_counts():
    collection = MetricCollection(
        {
            "corloc": CorLoc(K),
            "own": CorLoc(K, "per_class"),
            "fixed": CorLoc(K, 0.2),
            "all": CorLoc(K, contours="all"),
        }
    )
    scores, boxes, label = frames(4)
    for start in (0, 20):
        part = slice(start, start + 20)
        collection.update(scores[part], boxes[part], label[part])
    assert len(collection.compute_groups) == 2
    assert (
        collection.compute()["own"] == value(scores, boxes, label, threshold="per_class").compute()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": "best"}, "'global', 'per_class', or a number"),
        ({"threshold": 1.5}, "a number in"),
        ({"average": "mean"}, "choose one of 'macro', 'micro'"),
        ({"contours": "some"}, "choose one of 'largest', 'all'"),
        ({"iou_threshold": 50}, "a fraction"),
        ({"num_thresholds": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CorLoc(K, **arguments)


def test_bad_input_is_refused():
    scores, boxes, label = frames(5, count=4)
    with pytest.raises(ValueError, match=r"label must be \(4,\)"):
        CorLoc(K).update(scores, boxes, label[:3])
    with pytest.raises(ValueError, match=r"label must lie in 0\.\.2"):
        CorLoc(K).update(scores, boxes, label + 2)
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        CorLoc(K).update(scores * 2, boxes, label)
    with pytest.raises(ValueError, match="x0 <= x1"):
        CorLoc(K).update(scores, [box.flip(1) for box in boxes], label)
