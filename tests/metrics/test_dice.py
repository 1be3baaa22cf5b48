import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.segmentation import DiceScore

from wsl_zoo.metrics import DiceAtThreshold, ImageDice, MeanIoUAtThreshold, PxAP, RateAtThreshold


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(5, 16, 16, generator=generator) < 0.3).to(torch.uint8)
    scores = 0.8 * torch.rand(5, 16, 16, generator=generator) + 0.2 * mask
    mask[torch.rand(5, 16, 16, generator=generator) < 0.1] = 255
    return scores, mask


def scored(metric, scores, mask, valid=None):
    metric.update(scores, mask, valid)
    return metric.compute().item()


def raw_ious(scores, mask, threshold):
    """Foreground and background IoU of the pixels with `score >= threshold`."""
    z, g = scores[mask != 255].double(), mask[mask != 255] == 1
    predicted = z >= threshold
    return [
        ((p & t).sum() / max((p | t).sum(), 1)).item()
        for p, t in ((predicted, g), (~predicted, ~g))
    ]


@pytest.mark.parametrize("threshold", [0.0, 0.123, 0.5, 0.777, 1.0, 2.0])
def test_pooled_dice_and_miou_are_those_of_the_raw_pixels(maps, threshold):
    foreground, background = raw_ious(*maps, threshold)
    for region, iou in (("foreground", foreground), ("background", background)):
        dice = scored(DiceAtThreshold(threshold, region), *maps)
        assert dice == pytest.approx(2 * iou / (1 + iou), abs=1e-7), region
    miou = scored(MeanIoUAtThreshold(threshold), *maps)
    assert miou == pytest.approx((foreground + background) / 2, abs=1e-7)


@pytest.mark.parametrize(
    ("threshold", "edge"), [(0.4996, 0.5), (0.4994, 0.499), (1e-5, 0), (0.9996, 1)]
)
def test_threshold_is_matched_to_the_nearest_edge(maps, threshold, edge):
    assert scored(DiceAtThreshold(threshold), *maps) == scored(DiceAtThreshold(edge), *maps)


def test_best_is_the_argmax_of_miou_of_the_raw_pixels(maps):
    grid = np.append(np.arange(0, 1, 0.01), 1.0)
    miou = [np.mean(raw_ious(*maps, threshold)) for threshold in grid]
    metric = DiceAtThreshold(num_thresholds=100)
    dice = scored(metric, *maps)
    assert metric.best_threshold() == grid[np.argmax(miou)]
    assert dice == scored(DiceAtThreshold(metric.best_threshold(), num_thresholds=100), *maps)
    assert scored(MeanIoUAtThreshold(num_thresholds=100), *maps) == pytest.approx(max(miou))
    iou = [raw_ious(*maps, threshold)[0] for threshold in grid]
    assert np.argmax(iou) != np.argmax(miou), "the example tells the two criteria apart"


def test_best_takes_the_highest_of_equal_thresholds():
    mask = torch.tensor([[[1, 1, 0, 0]]])
    metric = DiceAtThreshold()
    assert scored(metric, torch.tensor([[[0.8005, 0.9, 0.2, 0.1]]]), mask) == 1
    assert metric.best_threshold() == 0.8


def test_swapping_scores_and_mask_swaps_the_regions():
    mask = (torch.rand(2, 12, 12) < 0.4).long()
    scores = (torch.randint(0, 1000, mask.shape) + 0.5) / 1000  # no score on an edge
    for threshold in (0.25, 0.5, 0.6):
        dice = scored(DiceAtThreshold(threshold, "foreground"), scores, mask)
        assert 0 < dice < 1
        swapped = scored(DiceAtThreshold(1 - threshold, "background"), 1 - scores, 1 - mask)
        assert swapped == pytest.approx(dice, abs=1e-12)


def test_missing_region_gives_nan_and_a_warning():
    scores = torch.rand(1, 4, 4)
    for region, mask in (("foreground", 0), ("background", 1)):
        with pytest.warns(UserWarning, match=f"no {region} pixel"):
            assert np.isnan(
                scored(DiceAtThreshold(region=region), scores, torch.full((1, 4, 4), mask))
            )
    with pytest.warns(UserWarning, match="no foreground"):
        assert np.isnan(scored(MeanIoUAtThreshold(), scores, torch.zeros(1, 4, 4)))
    assert scored(MeanIoUAtThreshold(0), scores, torch.ones(1, 4, 4)) == 1


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "worst", float("nan")])
def test_impossible_thresholds_are_refused(threshold):
    for build in (DiceAtThreshold, MeanIoUAtThreshold, ImageDice):
        with pytest.raises(ValueError, match="threshold="):
            build(threshold)


def test_choices_are_checked():
    with pytest.raises(ValueError, match="'foreground', 'background'"):
        DiceAtThreshold(region="object")
    with pytest.raises(ValueError, match=r"empty='nan'.*'one', 'skip', 'zero', 'truth'"):
        ImageDice(empty="nan")
    with pytest.raises(ValueError, match="threshold='best'"):
        ImageDice("best")


@pytest.mark.parametrize(("region", "column"), [("background", 0), ("foreground", 1)])
def test_image_dice_equals_torchmetrics_without_ignored_pixels(maps, region, column):
    scores, mask = maps[0], (maps[1] == 1).long()
    oracle = DiceScore(
        num_classes=2, average="none", input_format="index", aggregation_level="samplewise"
    )
    expected = oracle((scores >= 0.6).long(), mask)[column].item()
    assert scored(ImageDice(0.6, region), scores, mask) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("region", "column"), [("foreground", 0), ("background", 1)])
def test_image_dice_leaves_ignored_pixels_out(maps, region, column):
    scores, mask = maps
    iou = np.array([raw_ious(z, g, 0.5)[column] for z, g in zip(scores, mask, strict=True)])
    expected = np.mean(2 * iou / (1 + iou))
    for ignored in (0, 1):
        scores[mask == 255] = ignored
        assert scored(ImageDice(0.5, region), scores, mask) == pytest.approx(expected, abs=1e-6)


def test_image_dice_of_different_sizes_and_a_list(maps):
    scores, mask = maps
    whole = scored(ImageDice(0.5), scores, mask)
    assert scored(ImageDice(0.5), list(scores), list(mask)) == whole
    sizes = [(3, 9), (1, 1), (16, 16), (7, 2), (5, 5)]
    crops = [z[:h, :w] for z, (h, w) in zip(scores, sizes, strict=True)]
    truths = [g[:h, :w] for g, (h, w) in zip(mask, sizes, strict=True)]
    each = [scored(ImageDice(0.5), z[None], g[None]) for z, g in zip(crops, truths, strict=True)]
    assert scored(ImageDice(0.5), crops, truths) == pytest.approx(np.mean(each), abs=1e-12)
    valid = torch.tensor([True, False, True, True, False])
    assert scored(ImageDice(0.5), crops, truths, valid) == pytest.approx(
        np.mean([each[i] for i in (0, 2, 3)]), abs=1e-12
    )


def test_rules_for_images_with_nothing_to_find():
    scores = torch.tensor([[[0.9, 0.1]], [[0.1, 0.1]], [[0.9, 0.1]], [[0.1, 0.1]]])
    mask = torch.tensor([[[1, 1]], [[0, 0]], [[0, 0]], [[0, 255]]])  # 2/3, 0/0, 0, 0/0
    assert scored(ImageDice(), scores, mask) == pytest.approx((2 / 3 + 2) / 4, abs=1e-12)
    assert scored(ImageDice(empty="skip"), scores, mask) == pytest.approx((2 / 3) / 2, abs=1e-12)
    assert scored(ImageDice(empty="zero"), scores, mask) == pytest.approx((2 / 3) / 4, abs=1e-12)
    with pytest.warns(UserWarning, match="no image was counted"):
        assert np.isnan(scored(ImageDice(empty="skip"), scores[1:2], mask[1:2]))


def test_images_without_the_region_can_be_left_out_whatever_was_predicted():
    scores = torch.tensor([[[0.9, 0.1]], [[0.1, 0.1]], [[0.9, 0.1]], [[0.9, 0.9]], [[0.1, 0.1]]])
    mask = torch.tensor([[[1, 1]], [[0, 0]], [[0, 0]], [[0, 1]], [[1, 255]]])  # 2/3, -, -, 2/3, 0
    assert scored(ImageDice(empty="truth"), scores, mask) == pytest.approx(4 / 9, abs=1e-12)
    assert scored(ImageDice(empty="skip"), scores, mask) == pytest.approx(4 / 3 / 4, abs=1e-12)
    # the background: -, 1, 2/3, 0, - (an ignored pixel is no background)
    found = scored(ImageDice(region="background", empty="truth"), scores, mask)
    assert found == pytest.approx((5 / 3) / 3, abs=1e-12)
    counted = torch.tensor([False, True, True, True, True])
    left = scored(ImageDice(empty="truth"), scores, mask, counted)
    assert left == pytest.approx((2 / 3) / 2, abs=1e-12)
    with pytest.warns(UserWarning, match="no image was counted"):
        assert np.isnan(scored(ImageDice(empty="truth"), scores[1:3], mask[1:3]))


def test_image_dice_has_the_same_bits_in_any_order():
    count = 300
    scores, mask = torch.rand(count, 3, 5), torch.randint(0, 2, (count, 3, 5))
    values = set()
    for _ in range(5):
        metric = ImageDice(0.5)
        for part in torch.randperm(count).split(17):
            metric.update(scores[part], mask[part])
        values.add(metric.compute().item())
    assert len(values) == 1
    each = [scored(ImageDice(0.5), scores[i : i + 1], mask[i : i + 1]) for i in range(count)]
    assert values.pop() == pytest.approx(np.mean(each), abs=1e-11)


def test_equal_first_batch_does_not_merge_different_settings():
    collection = MetricCollection({"low": ImageDice(0.3), "high": ImageDice(0.6)})
    mask = torch.tensor([[[1, 0]]])
    collection.update(mask.float(), mask)  # perfect at both thresholds
    collection.update(torch.tensor([[[0.5, 0.5]]]), mask)
    values = collection.compute()
    assert values["low"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-12)
    assert values["high"] == 0.5


def test_image_dice_refuses_bad_input(maps):
    scores, mask = maps
    with pytest.raises(ValueError, match=r"scores must lie in"):
        ImageDice().update(scores + 0.5, mask)
    with pytest.raises(ValueError, match="one shape"):
        ImageDice().update(scores, mask[:, :-1])
    with pytest.raises(ValueError, match="4 masks"):
        ImageDice().update(scores, mask[:4])
    metric = ImageDice()
    metric.update(scores, mask)
    metric.invalid += 2  # what an accelerator counts
    with pytest.raises(ValueError, match="2 pixels"):
        metric.compute()


@pytest.mark.parametrize("threshold", [0.35, "best"])
def test_rates_are_shares_of_their_region(threshold):
    torch.manual_seed(5)
    mask = (torch.rand(3, 12, 12) < 0.4).to(torch.uint8)
    scores = (0.6 * torch.rand(3, 12, 12) + 0.4 * mask).double()
    mask[:, 0] = 255
    metrics = {rate: RateAtThreshold(rate, threshold) for rate in ("tp", "fn", "tn", "fp")}
    values = {}
    for rate, metric in metrics.items():
        metric.update(scores, mask)
        values[rate] = metric.compute().item()
    cut = metrics["tp"].best_threshold() if threshold == "best" else threshold
    assert values["tp"] == (scores[mask == 1] >= cut).double().mean()
    assert values["fp"] == (scores[mask == 0] >= cut).double().mean()
    assert values["tp"] + values["fn"] == values["tn"] + values["fp"] == 1
    curves = metrics["tp"].curves()
    at = (curves["threshold"] - cut).abs().argmin()
    assert values["tn"] == curves["tn_rate"][at]


def test_areas_integrate_the_curves_over_the_threshold():
    scores, mask = torch.tensor([[[0.75, 0.5, 0.25, 0.0]]]), torch.tensor([[[1, 1, 0, 0]]])
    metric = PxAP(num_thresholds=4)
    metric.update(scores, mask)
    areas = metric.areas()
    # at 1/4, 2/4, 3/4, 1: TP 2, 2, 1, 0 of 2; FP 1, 0, 0, 0 of 2
    assert areas["tp_rate"] == (1 + 1 + 0.5 + 0) / 4
    assert areas["fp_rate"] == 0.5 / 4
    assert areas["fn_rate"] == 1 - areas["tp_rate"]
    assert areas["dice_foreground"] == pytest.approx((4 / 5 + 1 + 2 / 3 + 0) / 4)
    assert {"threshold", "precision"}.isdisjoint(areas)
    assert areas.keys() == metric.curves().keys() - {"threshold", "precision"}


@pytest.mark.filterwarnings("ignore:.*undefined")
def test_rates_without_their_region_are_undefined():
    for rate, only in (("tp", 0), ("fn", 0), ("tn", 1), ("fp", 1)):
        metric = RateAtThreshold(rate, 0.5)
        metric.update(torch.rand(1, 4, 4), torch.full((1, 4, 4), only))
        assert metric.compute().isnan()
    with pytest.raises(ValueError, match="rate='recall'"):
        RateAtThreshold("recall")
