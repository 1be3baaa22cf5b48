"""The metrics of a split: what is there, what each is, and which threshold is chosen."""

import warnings

import pytest
import torch

from wsl_zoo.metrics import (
    DiceAtThreshold,
    ImageDice,
    MaxBoxAcc,
    MaxBoxAccV2,
    PeakIoU,
    Prevalence,
    PxAP,
)
from wsl_zoo.metrics.split import SplitMetrics

K, SIDE, COUNT = 4, 16, 7
CLASSES = {"acc", "balanced_acc"}
PIXELS = {"pxap", "prevalence", "peak_iou", "dice_oracle", "dice_bg_oracle"}
FIXED = {"dice", "dice_bg", "image_dice"}
BOXES = {"maxboxacc", "maxboxacc_v2", "top1_loc"}


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(COUNT, SIDE, SIDE, dtype=torch.uint8)
    boxes = []
    for i in range(COUNT):
        x0, y0 = 1 + i, 2 + i % 3
        mask[i, y0 : y0 + 8, x0 : x0 + 7] = 1
        boxes.append(torch.tensor([[x0, y0, x0 + 7, y0 + 8]], dtype=torch.float64))
    mask[:, -1] = 255
    noise = torch.rand(COUNT, SIDE, SIDE, generator=generator)
    return {
        "logits": torch.randn(COUNT, K, generator=generator),
        "label": torch.arange(COUNT) % 3,
        "maps": 0.7 * noise + 0.3 * (mask == 1),
        "mask": mask,
        "boxes": boxes,
    }


def take(rows, index):
    return {k: [v[i] for i in index] if k == "boxes" else v[index] for k, v in rows.items()}


def values_of(rows, threshold=None, batch=COUNT, **kwargs):
    metrics = SplitMetrics(K, threshold)
    count = len(rows["mask"]) if "mask" in rows else COUNT
    for start in range(0, count, batch):
        index = list(range(count))[start : start + batch]
        part = take(rows, index)
        metrics.update(**part, **{k: v[index] for k, v in kwargs.items()})
    values, chosen = metrics.compute()
    return {k: float(v) for k, v in values.items()}, chosen


def without(rows, *names):
    return {k: v for k, v in rows.items() if k not in names}


def test_every_value_is_that_of_its_metric(rows):
    values, chosen = values_of(rows, 0.5)
    assert set(values) == CLASSES | PIXELS | FIXED | BOXES
    pixels = {
        "pxap": PxAP(), "prevalence": Prevalence(), "peak_iou": PeakIoU(),
        "dice_oracle": DiceAtThreshold("best"),
        "dice_bg_oracle": DiceAtThreshold("best", "background"),
        "dice": DiceAtThreshold(0.5), "dice_bg": DiceAtThreshold(0.5, "background"),
        "image_dice": ImageDice(0.5),
    }  # fmt: skip
    for name, metric in pixels.items():
        metric.update(rows["maps"], rows["mask"])
        assert values[name] == float(metric.compute()), name
    assert chosen == pixels["pxap"].best_threshold()
    acc, v2 = MaxBoxAcc(topk=(1,)), MaxBoxAccV2()
    acc.update(rows["maps"], rows["boxes"], rows["logits"], rows["label"])
    v2.update(rows["maps"], rows["boxes"])
    assert values["maxboxacc"] == float(acc.compute()) > 0
    assert values["maxboxacc_v2"] == float(v2.compute())
    assert values["top1_loc"] == float(acc.topk_accuracy()[1]) < values["maxboxacc"]
    right = rows["logits"].argmax(1) == rows["label"]
    assert values["acc"] == pytest.approx(float(right.float().mean()))
    recalls = [float(right[rows["label"] == k].float().mean()) for k in range(3)]
    assert values["balanced_acc"] == pytest.approx(sum(recalls) / 3)  # class 3 does not occur
    assert (rows["logits"].argmax(1) == 3).any()
    assert len(set(values.values())) > 10


def test_the_threshold_is_the_argmax_of_the_mean_iou(rows):
    _, chosen = values_of(rows)
    best, argmax = -1.0, None
    counted = rows["mask"] != 255
    truth = rows["mask"] == 1
    for threshold in [2.0, *(i / 1000 for i in range(1000, -1, -1))]:
        predicted = rows["maps"].double() >= threshold
        foreground = (predicted & truth).sum() / ((predicted | truth) & counted).sum()
        background = (~predicted & ~truth & counted).sum() / ((~predicted | ~truth) & counted).sum()
        if float(foreground + background) > best:
            best, argmax = float(foreground + background), threshold
    assert chosen == pytest.approx(argmax)
    assert 0.6 < chosen < 0.8


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_do_not_matter(rows, batch):
    whole, chosen = values_of(rows, 0.5)
    parts, again = values_of(rows, 0.5, batch=batch)
    assert parts == pytest.approx(whole, rel=1e-6)
    assert again == chosen
    assert all(parts[k] == whole[k] for k in whole if k not in CLASSES)


@pytest.mark.parametrize(
    ("gone", "threshold", "expected"),
    [
        (("mask", "boxes"), 0.5, CLASSES),
        (("maps",), 0.5, CLASSES),
        (("boxes",), None, CLASSES | PIXELS),
        (("boxes",), 0.5, CLASSES | PIXELS | FIXED),
        (("mask",), 0.5, CLASSES | BOXES),
        (("label", "boxes"), None, PIXELS),
        (("logits", "label", "boxes"), None, PIXELS),
    ],
)
def test_what_has_no_ground_truth_is_absent(rows, gone, threshold, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is computed that was not updated
        values, chosen = values_of(without(rows, *gone), threshold)
    assert set(values) == expected
    assert (chosen is None) == (not expected - CLASSES)


def test_boxes_choose_the_threshold_where_there_are_no_masks(rows):
    metric = MaxBoxAcc()
    metric.update(rows["maps"], rows["boxes"])
    _, chosen = values_of(without(rows, "mask"))
    assert chosen == float(metric.best_threshold())
    assert chosen != values_of(rows)[1]


def test_duplicates_are_dropped(rows):
    whole = values_of(take(rows, [0, 1, 2, 3, 4]), 0.5)
    valid = torch.tensor([True] * 5 + [False] * 2)
    broken = rows | {"label": torch.where(valid, rows["label"], (rows["label"] + 1) % K)}
    for batch in (2, 5, 7):  # also a batch of nothing but duplicates
        values, chosen = values_of(broken, 0.5, batch=batch, valid=valid)
        assert values == pytest.approx(whole[0], rel=1e-6)
        assert chosen == whole[1]


def test_images_without_a_mask_are_not_images_with_an_empty_one(rows):
    partial = rows | {"mask": rows["mask"].clone()}
    partial["mask"][[1, 4]] = 255
    values, chosen = values_of(partial, 0.5)
    kept, threshold = values_of(take(rows, [0, 2, 3, 5, 6]), 0.5)
    for name in PIXELS | FIXED:
        assert values[name] == kept[name], name
    assert chosen == threshold
    assert values["acc"] == values_of(rows)[0]["acc"]
    valid = torch.tensor([False, True] + [True] * 5)
    both, _ = values_of(partial, 0.5, valid=valid)
    assert both["image_dice"] == values_of(take(rows, [2, 3, 5, 6]), 0.5)[0]["image_dice"]
    empty = rows | {"mask": torch.zeros_like(rows["mask"])}
    empty["mask"][0] = rows["mask"][0]
    counted, _ = values_of(empty, 0.5)
    one, _ = values_of(take(rows, [0]), 0.5)  # the others are predicted, so their Dice is 0
    assert counted["image_dice"] == pytest.approx(one["image_dice"] / COUNT)


@pytest.mark.filterwarnings("ignore:.*is undefined")
def test_without_any_foreground_there_is_no_threshold(rows):
    empty = rows | {"mask": torch.zeros_like(rows["mask"])}
    values, chosen = values_of(without(empty, "boxes"))
    assert set(values) == CLASSES
    assert chosen is None
    _, by_boxes = values_of(empty)
    assert by_boxes == values_of(without(rows, "mask"))[1]
    nothing = without(rows, "mask") | {"boxes": [torch.zeros(0, 4)] * COUNT}
    values, chosen = values_of(nothing)
    assert set(values) == CLASSES
    assert chosen is None


def test_top_five_needs_more_than_five_classes():
    logits = torch.arange(12.0).flip(0).repeat(2, 1)
    label = torch.tensor([4, 5])
    many, few = SplitMetrics(12), SplitMetrics(5)
    many.update(logits=logits, label=label)
    few.update(logits=logits[:, :5], label=torch.tensor([0, 1]))
    assert float(many.compute()[0]["top5_acc"]) == 0.5
    assert "top5_acc" not in few.compute()[0]


def test_a_threshold_of_two_predicts_nothing(rows):
    values, _ = values_of(rows, 2.0)
    assert values["dice"] == values["image_dice"] == 0.0


def test_reset_forgets(rows):
    metrics = SplitMetrics(K, 0.5)
    metrics.update(**rows)
    metrics.reset()
    assert metrics.compute() == ({}, None)
    part = take(rows, [0, 1])
    metrics.update(**part)
    fresh = SplitMetrics(K, 0.5)
    fresh.update(**part)
    assert metrics.compute() == fresh.compute()
    assert not metrics.state_dict()  # no part of a checkpoint
