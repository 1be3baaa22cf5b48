"""The metrics of a split: what is there, what each is, and which threshold is chosen."""

import warnings

import pytest
import torch

from wsl_zoo.metrics import (
    BoxAcc,
    BoxAccV2,
    CorLoc,
    DiceAtThreshold,
    ImageDice,
    MaxBoxAcc,
    MaxBoxAccV2,
    PeakIoU,
    Prevalence,
    PxAP,
)
from wsl_zoo.metrics.split import SplitMetrics, Thresholds

K, SIDE, COUNT = 4, 16, 7
CLASSES = {"acc", "balanced_acc"}
PIXELS = {"pxap", "prevalence", "peak_iou", "dice_oracle", "dice_bg_oracle"}
FIXED = {"dice", "dice_bg", "image_dice", "image_dice_bg"}
BOXES = {"maxboxacc", "maxboxacc_v2", "top1_loc_oracle"}
FIXED_BOXES = {"boxacc", "boxacc_v2", "top1_loc"}
CHOSEN = Thresholds(pixels=0.5, largest=0.6, all=(0.3, 0.4, 0.7))


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


def values_of(rows, thresholds=None, batch=COUNT, corloc=False, **kwargs):
    metrics = SplitMetrics(K, thresholds, corloc=corloc)
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
    values, chosen = values_of(rows, CHOSEN)
    assert set(values) == CLASSES | PIXELS | FIXED | BOXES | FIXED_BOXES
    pixels = {
        "pxap": PxAP(), "prevalence": Prevalence(), "peak_iou": PeakIoU(),
        "dice_oracle": DiceAtThreshold("best"),
        "dice_bg_oracle": DiceAtThreshold("best", "background"),
        "dice": DiceAtThreshold(0.5), "dice_bg": DiceAtThreshold(0.5, "background"),
        "image_dice": ImageDice(0.5), "image_dice_bg": ImageDice(0.5, "background"),
    }  # fmt: skip
    for name, metric in pixels.items():
        metric.update(rows["maps"], rows["mask"])
        assert values[name] == float(metric.compute()), name
    boxes = {
        "maxboxacc": MaxBoxAcc(topk=(1,)), "maxboxacc_v2": MaxBoxAccV2(),
        "boxacc": BoxAcc(0.6, topk=(1,)), "boxacc_v2": BoxAccV2((0.3, 0.4, 0.7)),
    }  # fmt: skip
    for name, metric in boxes.items():
        metric.update(rows["maps"], rows["boxes"], rows["logits"], rows["label"])
        assert values[name] == float(metric.compute()), name
    assert values["top1_loc_oracle"] == float(boxes["maxboxacc"].topk_accuracy()[1])
    assert values["top1_loc"] == float(boxes["boxacc"].topk_accuracy()[1])
    assert 0 < values["boxacc"] < values["maxboxacc"]
    assert values["boxacc_v2"] < values["maxboxacc_v2"]
    assert values["top1_loc_oracle"] < values["maxboxacc"]
    assert chosen == Thresholds(
        pixels=pixels["pxap"].best_threshold(),
        largest=float(boxes["maxboxacc"].best_threshold()),
        all=tuple(boxes["maxboxacc_v2"].best_threshold().tolist()),
    )
    assert chosen.map == chosen.pixels
    right = rows["logits"].argmax(1) == rows["label"]
    assert values["acc"] == pytest.approx(float(right.float().mean()))
    recalls = [float(right[rows["label"] == k].float().mean()) for k in range(3)]
    assert values["balanced_acc"] == pytest.approx(sum(recalls) / 3)  # class 3 does not occur
    assert (rows["logits"].argmax(1) == 3).any()
    assert len(set(values.values())) > 10


@pytest.mark.parametrize("batch", [2, COUNT])
def test_frames_of_videos_are_judged_by_corloc_under_each_protocol(rows, batch):
    powers = 1.0 + 4 * rows["label"]  # another best threshold in each class
    noise = torch.rand(COUNT, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    rows["maps"] = (0.6 * noise + 0.4 * (rows["mask"] == 1)) ** powers[:, None, None]
    plain, _ = values_of(rows, CHOSEN, batch)
    values, _ = values_of(rows, CHOSEN, batch, corloc=True)
    protocols = {"corloc_oracle": "global", "corloc_class_oracle": "per_class", "corloc": 0.6}
    assert set(values) == set(plain) | set(protocols)
    for name, threshold in protocols.items():
        metric = CorLoc(K, threshold)
        metric.update(rows["maps"], rows["boxes"], rows["label"])
        assert values[name] == float(metric.compute()), name
    assert values["corloc"] < values["corloc_oracle"] < values["corloc_class_oracle"]
    assert "corloc" not in values_of(rows, corloc=True)[0]  # no threshold was chosen


def test_corloc_of_every_class(rows):
    metrics = SplitMetrics(K, CHOSEN, corloc=True)
    assert metrics.per_class() == {}
    metrics.update(**without(rows, "mask"))
    found = metrics.per_class()
    values, _ = metrics.compute()
    for name in ("corloc", "corloc_oracle", "corloc_class_oracle"):
        assert found[name].isnan().tolist() == [False, False, False, True]
        assert float(found[name].nanmean()) == float(values[name])
    plain = SplitMetrics(K, CHOSEN)
    plain.update(**without(rows, "mask"))
    assert plain.per_class() == {}


def test_the_thresholds_of_a_split_give_its_oracle_values(rows):
    best, chosen = values_of(rows)
    values, _ = values_of(rows, chosen)
    for fixed, oracle in (
        ("dice", "dice_oracle"), ("boxacc", "maxboxacc"), ("boxacc_v2", "maxboxacc_v2"),
    ):  # fmt: skip
        assert values[fixed] == best[oracle] == values[oracle]


def test_curves_are_those_of_the_metrics(rows):
    metrics = SplitMetrics(K, CHOSEN)
    metrics.update(**without(rows, "boxes"))
    assert set(metrics.curves()) == {"pixels"}
    metrics.reset()
    metrics.update(**rows)
    curves = metrics.curves()
    assert set(curves) == {"pixels", "largest", "all"}
    assert curves["all"]["iou_threshold"].tolist() == [0.3, 0.5, 0.7]
    values, _ = metrics.compute()
    assert curves["largest"]["accuracy"].max() == values["maxboxacc"]
    assert curves["all"]["accuracy"].amax(1).mean() == values["maxboxacc_v2"]
    assert curves["pixels"]["iou_foreground"].max() == values["peak_iou"]


def test_thresholds_survive_a_checkpoint():
    for thresholds in (Thresholds(), CHOSEN, Thresholds(largest=0.3, all=(0.1, 0.2, 0.3))):
        assert Thresholds.from_state(thresholds.state()) == thresholds


def test_the_threshold_is_the_argmax_of_the_mean_iou(rows):
    chosen = values_of(rows)[1].pixels
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
    whole, chosen = values_of(rows, CHOSEN)
    parts, again = values_of(rows, CHOSEN, batch=batch)
    assert parts == pytest.approx(whole, rel=1e-6)
    assert again == chosen
    assert all(parts[k] == whole[k] for k in whole if k not in CLASSES)


@pytest.mark.parametrize(
    ("gone", "thresholds", "expected"),
    [
        (("mask", "boxes"), CHOSEN, CLASSES),
        (("maps",), CHOSEN, CLASSES),
        (("boxes",), None, CLASSES | PIXELS),
        (("boxes",), CHOSEN, CLASSES | PIXELS | FIXED),
        (("mask",), None, CLASSES | BOXES),
        (("mask",), CHOSEN, CLASSES | BOXES | FIXED_BOXES),
        (("mask",), Thresholds(pixels=0.5), CLASSES | BOXES),
        (("label", "boxes"), None, PIXELS),
        (("logits", "label", "boxes"), None, PIXELS),
    ],
)
def test_what_has_no_ground_truth_is_absent(rows, gone, thresholds, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is computed that was not updated
        values, chosen = values_of(without(rows, *gone), thresholds)
    assert set(values) == expected
    assert (chosen.pixels is None) == (not expected & PIXELS)
    assert (chosen.largest is None) == (chosen.all is None) == (not expected & BOXES)


def test_boxes_choose_the_threshold_where_there_are_no_masks(rows):
    metric = MaxBoxAcc()
    metric.update(rows["maps"], rows["boxes"])
    _, chosen = values_of(without(rows, "mask"))
    assert chosen.map == chosen.largest == float(metric.best_threshold())
    assert chosen.map != values_of(rows)[1].map


def test_duplicates_are_dropped(rows):
    whole = values_of(take(rows, [0, 1, 2, 3, 4]), CHOSEN)
    valid = torch.tensor([True] * 5 + [False] * 2)
    broken = rows | {"label": torch.where(valid, rows["label"], (rows["label"] + 1) % K)}
    for batch in (2, 5, 7):  # also a batch of nothing but duplicates
        values, chosen = values_of(broken, CHOSEN, batch=batch, valid=valid)
        assert values == pytest.approx(whole[0], rel=1e-6)
        assert chosen == whole[1]


def test_images_without_a_mask_are_not_images_with_an_empty_one(rows):
    partial = rows | {"mask": rows["mask"].clone()}
    partial["mask"][[1, 4]] = 255
    values, chosen = values_of(partial, CHOSEN)
    kept, threshold = values_of(take(rows, [0, 2, 3, 5, 6]), CHOSEN)
    for name in PIXELS | FIXED:
        assert values[name] == kept[name], name
    assert chosen.pixels == threshold.pixels
    assert values["acc"] == values_of(rows)[0]["acc"]
    valid = torch.tensor([False, True] + [True] * 5)
    both, _ = values_of(partial, CHOSEN, valid=valid)
    assert both["image_dice"] == values_of(take(rows, [2, 3, 5, 6]), CHOSEN)[0]["image_dice"]
    empty = rows | {"mask": torch.zeros_like(rows["mask"])}
    empty["mask"][0] = rows["mask"][0]
    counted, _ = values_of(empty, CHOSEN)
    one, _ = values_of(take(rows, [0]), CHOSEN)  # the others are predicted, so their Dice is 0
    assert counted["image_dice"] == pytest.approx(one["image_dice"] / COUNT)
    assert counted["image_dice_present"] == one["image_dice"]
    assert "image_dice_present" not in one  # no image without a region


@pytest.mark.filterwarnings("ignore:.*is undefined")
def test_without_any_foreground_there_is_no_threshold(rows):
    empty = rows | {"mask": torch.zeros_like(rows["mask"])}
    values, chosen = values_of(without(empty, "boxes"))
    assert set(values) == CLASSES
    assert chosen == Thresholds()
    _, by_boxes = values_of(empty)
    assert by_boxes == values_of(without(rows, "mask"))[1]
    nothing = without(rows, "mask") | {"boxes": [torch.zeros(0, 4)] * COUNT}
    values, chosen = values_of(nothing)
    assert set(values) == CLASSES
    assert chosen == Thresholds()


def test_top_five_needs_more_than_five_classes():
    logits = torch.arange(12.0).flip(0).repeat(2, 1)
    label = torch.tensor([4, 5])
    many, few = SplitMetrics(12), SplitMetrics(5)
    many.update(logits=logits, label=label)
    few.update(logits=logits[:, :5], label=torch.tensor([0, 1]))
    assert float(many.compute()[0]["top5_acc"]) == 0.5
    assert "top5_acc" not in few.compute()[0]


def test_top_five_localisation():
    scores = torch.zeros(3, 16, 16)
    scores[:, 4:8, 4:8] = 1
    boxes = [torch.tensor([[4.0, 4.0, 8.0, 8.0]])] * 2 + [torch.tensor([[9.0, 9.0, 12.0, 12.0]])]
    logits = torch.arange(12.0).flip(0).repeat(3, 1)  # ranks: 0, 4, 4
    metrics = SplitMetrics(12, Thresholds(largest=0.5, all=(0.5, 0.5, 0.5)))
    metrics.update(logits=logits, label=torch.tensor([0, 4, 4]), maps=scores, boxes=boxes)
    values, _ = metrics.compute()
    for suffix in ("", "_oracle"):
        assert values[f"top1_loc{suffix}"] == 1 / 3
        assert values[f"top5_loc{suffix}"] == 2 / 3


def test_a_threshold_of_two_predicts_nothing(rows):
    values, _ = values_of(rows, Thresholds(pixels=2.0))
    assert values["dice"] == values["image_dice"] == 0.0


def test_reset_forgets(rows):
    metrics = SplitMetrics(K, CHOSEN)
    metrics.update(**rows)
    metrics.reset()
    assert metrics.compute() == ({}, Thresholds())
    part = take(rows, [0, 1])
    metrics.update(**part)
    fresh = SplitMetrics(K, CHOSEN)
    fresh.update(**part)
    assert metrics.compute() == fresh.compute()
    assert not metrics.state_dict()  # no part of a checkpoint
