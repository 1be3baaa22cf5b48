import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from tests.metrics.transcription import (
    KINDS,
    THRESHOLDS,
    box_accuracy,
    data_set_ious,
    predicted_boxes,
    random_boxes,
    rings,
    special_map,
    to_levels,
)
from wsl_zoo.metrics import BoxAccV2, BoxLocalization, MaxBoxAcc, MaxBoxAccV2, boxes_from_map
from wsl_zoo.metrics.contours import ious_over_thresholds, level_ious, threshold_grid


@pytest.mark.parametrize("contours", ["largest", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_threshold_equals_the_plain_loop(kind, contours):
    random = np.random.default_rng(KINDS.index(kind))
    maps = [special_map(kind, random) for _ in range(3)]
    boxes = [random_boxes(random, to_levels(score_map)) for score_map in maps]
    expected = data_set_ious(maps, boxes, contours)
    metric = BoxLocalization((0.1, 0.3, 0.5, 0.7), contours)
    for score_map, box, image_ious in zip(maps, boxes, expected, strict=True):
        levels = to_levels(score_map)
        found = ious_over_thresholds(levels, box.astype(np.int64), contours, 1000)
        np.testing.assert_array_equal(found, image_ious)
        score_map = torch.from_numpy(score_map)
        for threshold in (0.0, 0.25, 0.731):
            predicted = predicted_boxes(levels, int(threshold * levels.max()), contours)
            assert boxes_from_map(score_map, threshold, contours).tolist() == predicted.tolist()
        metric.update(score_map[None], [torch.from_numpy(box)])
    accuracy = [box_accuracy(expected, iou) for iou in metric.iou_thresholds]
    np.testing.assert_array_equal(metric.curves()["accuracy"].numpy(), accuracy)
    np.testing.assert_array_equal(metric.compute().numpy(), np.max(accuracy, axis=1))
    best = THRESHOLDS[np.argmax(accuracy, axis=1)]
    np.testing.assert_array_equal(metric.best_threshold().numpy(), best)


def test_holes_have_boxes_and_are_never_the_largest():
    score_map = rings(8)  # 4..20; its hole, widened by a pixel, has the same corners
    score_map[score_map == 0] = rings(7, 6, values=(0.9, 0.9))[score_map == 0]  # hole: 7..17
    hole = np.array([[6, 6, 19, 19]])
    levels = np.floor(255 * score_map).astype(np.uint8)
    assert level_ious(levels, hole, "all")[100] == 1
    assert level_ious(levels, hole, "largest")[100] == (14 * 14) / (18 * 18)


def test_largest_is_the_polygon_area_not_the_number_of_pixels():
    score_map = torch.zeros(40, 40, dtype=torch.float64)
    score_map[2, :36] = 1  # 36 pixels, polygon area 0
    score_map[10:14, 10:14] = 1  # 16 pixels, polygon area 9
    assert boxes_from_map(score_map, 0.5).tolist() == [[10, 10, 14, 14]]


def blob(size=32):
    scores = torch.zeros(1, size, size)
    scores[0, 10:20, 10:20] = 1
    return scores


def test_boxes_end_one_pixel_late():
    truth = [torch.tensor([[10.0, 10.0, 19.0, 19.0]], dtype=torch.float64)]
    levels = (255 * blob()[0]).byte().numpy()
    assert level_ious(levels, np.array([[10, 10, 19, 19]]), "largest")[0] == 100 / 121
    metric = BoxLocalization((100 / 121, 100 / 121 + 1e-9))
    metric.update(blob(), truth)
    assert metric.compute().tolist() == [1, 0]
    at_the_border = BoxLocalization((1.0,))
    at_the_border.update(blob(20), truth)  # clipped to the map, so exact
    assert at_the_border.compute() == 1


def test_iou_threshold_is_inclusive():
    # predicted (10, 10, 20, 20): 121; truth 22 x 11 = 242 covers it
    metric = BoxLocalization((0.5, 0.5 + 1e-12))
    metric.update(blob(), [torch.tensor([[10.0, 10.0, 31.0, 20.0]])])
    assert metric.compute().tolist() == [1, 0]


def test_true_boxes_are_truncated_once():
    box = torch.tensor([[60, 27, 385, 331]], dtype=torch.float64)
    box *= torch.tensor([224 / 500, 224 / 335, 224 / 500, 224 / 335], dtype=torch.float64)
    scores = torch.zeros(1, 224, 224)
    scores[0, 18:221, 26:172] = 1  # predicted as (26, 18, 172, 221)
    metric = BoxLocalization((1.0,))
    metric.update(scores, [box])
    assert metric.compute() == 1


def test_map_of_zeros_predicts_the_corner():
    assert boxes_from_map(torch.zeros(5, 7), 0.5, "all").tolist() == [[0, 0, 0, 0]]
    assert boxes_from_map(torch.full((5, 7), 0.003), 0.0).tolist() == [[0, 0, 0, 0]]  # floor
    assert boxes_from_map(torch.rand(5, 7), 1.0).tolist() == [[0, 0, 0, 0]]
    metric = MaxBoxAcc()
    metric.update(torch.zeros(1, 8, 8), [torch.tensor([[0.0, 0.0, 0.9, 0.9]])])
    assert metric.compute() == 1


@pytest.mark.parametrize(("num", "step"), [(1000, 0.001), (250, 0.004), (100, 0.01)])
def test_threshold_grid_is_that_of_numpy(num, step):
    np.testing.assert_array_equal(threshold_grid(num), np.arange(0, 1, step))
    metric = MaxBoxAcc(num_thresholds=num)
    metric.update(blob(), [torch.tensor([[10.0, 10.0, 20.0, 20.0]])])
    curves = metric.curves()
    assert curves["threshold"].shape == (num,)
    assert curves["accuracy"].shape == (1, num)


def test_v2_is_the_mean_of_maxima_each_at_its_own_threshold():
    scores = torch.zeros(2, 32, 32)
    scores[0, 4:24, 4:24], scores[0, 4:14, 4:14] = 0.4, 1.0  # right box at low thresholds
    scores[1, 4:30, 4:30], scores[1, 8:16, 8:16] = 0.4, 1.0  # and here at high ones
    boxes = [torch.tensor([[4.0, 4.0, 24.0, 24.0]]), torch.tensor([[8.0, 8.0, 13.0, 16.0]])]
    metric, each = MaxBoxAccV2(), BoxLocalization((0.3, 0.5, 0.7), "all")
    metric.update(scores, boxes)
    each.update(scores, boxes)
    maxima = each.compute()
    assert metric.compute() == maxima.mean()
    accuracy = metric.curves()["accuracy"]
    assert metric.compute() >= accuracy.mean(0).max()
    assert each.compute().tolist() == accuracy.amax(1).tolist()

    # one image for loose boxes at high thresholds, one for tight boxes at low thresholds
    scores = torch.zeros(2, 40, 40)
    scores[:, 0:20, 0:20], scores[:, 0:12, 0:12] = 0.4, 1.0
    boxes = [torch.tensor([[0.0, 0.0, 20.0, 20.0]]), torch.tensor([[0.0, 0.0, 7.0, 7.0]])]
    metric = MaxBoxAccV2()
    metric.update(scores, boxes)
    # high thresholds: 169/441 (0.38) and 64/169 (0.38); low thresholds: 1 and 64/441
    assert metric.compute() == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert metric.curves()["accuracy"].mean(0).max() == 0.5
    assert metric.best_threshold().tolist() == pytest.approx([0.4, 0, 0], abs=0.002)


def test_maxboxacc_is_the_largest_contour_at_half():
    random = np.random.default_rng(1)
    scores = torch.from_numpy(random.random((3, 24, 24)))
    scores[:, 6:18, 6:18] += 1
    scores /= 2
    boxes = [torch.tensor([[6.0, 6.0, 6.0 + 4 * i, 17.0]]) for i in (1, 2, 3)]
    one, many = MaxBoxAcc(), BoxLocalization((0.3, 0.5), "largest")
    one.update(scores, boxes)
    many.update(scores, boxes)
    assert one.compute().shape == ()
    assert 0 < one.compute() < 1
    assert one.compute() == many.compute()[1]


def test_topk_counts_boxes_of_right_classes():
    scores = blob().repeat(4, 1, 1)
    hit, miss = torch.tensor([[10.0, 10.0, 20.0, 20.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    logits = torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.7, 0.7, 0.7]])
    metric = MaxBoxAcc(topk=(1, 2))
    metric.update(scores, [hit, hit, miss, hit], logits, torch.tensor([1, 2, 1, 1]))
    assert metric.compute() == 0.75
    # image 0 is right at 1, image 1 at 2, image 2 has no box, image 3 ties: class 1 comes second
    assert {k: v.item() for k, v in metric.topk_accuracy().items()} == {1: 0.25, 2: 0.75}


def test_equal_logits_rank_by_class():
    metric = MaxBoxAcc(topk=(1, 600))
    box = [torch.tensor([[10.0, 10.0, 20.0, 20.0]])] * 3
    logits = torch.arange(1000).remainder(2).float().expand(3, -1)  # odd classes come first
    metric.update(blob().repeat(3, 1, 1), box, logits, torch.tensor([1, 198, 200]))
    assert [v.item() for v in metric.topk_accuracy().values()] == [1 / 3, 2 / 3]


def test_topk_is_nested_at_every_threshold():
    torch.manual_seed(3)
    scores = torch.nn.functional.avg_pool2d(torch.rand(12, 24, 24), 5, 1, 2)
    boxes = [torch.tensor([[2.0, 3.0, 20.0, 21.0]])] * 12
    metric = BoxLocalization((0.3, 0.5), "all", topk=(1, 5))
    metric.update(scores, boxes, torch.rand(12, 10), torch.arange(12) % 10)
    curves = metric.curves()
    top1, top5, known = (curves[f"accuracy{suffix}"] for suffix in ("_top1", "_top5", ""))
    assert (top1 <= top5).all()
    assert (top5 <= known).all()
    assert 0 < top1.max() < top5.max() < known.max()
    for k, curve in ((1, top1), (5, top5)):
        assert metric.topk_accuracy()[k].tolist() == curve.amax(-1).tolist()
    v2 = MaxBoxAccV2(topk=(5,))
    v2.update(scores, boxes, torch.rand(12, 10), torch.arange(12) % 10)
    assert v2.topk_accuracy()[5] == v2.curves()["accuracy_top5"].amax(-1).mean()


def test_images_without_a_box_and_padded_ones_are_not_counted():
    scores = blob().repeat(4, 1, 1)
    scores[2] = float("nan")  # dropped, so never looked at
    hit, miss = torch.tensor([[10.0, 10.0, 20.0, 20.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    metric = MaxBoxAcc()
    valid = torch.tensor([True, True, False, True])
    metric.update(scores, [hit, torch.zeros(0, 4), hit, miss], valid=valid)
    assert metric.total == 2
    assert metric.compute() == 0.5


@pytest.mark.filterwarnings("ignore:.*undefined")
@pytest.mark.parametrize("build", [MaxBoxAcc, MaxBoxAccV2, BoxLocalization])
def test_no_image_gives_nan_and_a_warning(build):
    metric = build()
    metric.update(blob(), [torch.zeros(0, 4)])
    with pytest.warns(UserWarning, match="no image with a box"):
        assert metric.compute().isnan().all()
    assert metric.best_threshold().isnan().all()


def test_equal_first_batch_does_not_merge_different_protocols():
    collection = MetricCollection(
        {
            "largest": BoxLocalization((0.5,), "largest"),
            "all": BoxLocalization((0.5,), "all"),
            "strict": BoxLocalization((0.9,), "all"),
            "again": MaxBoxAcc(),
        }
    )
    exact = torch.tensor([[10.0, 10.0, 20.0, 20.0]])
    collection.update(blob(), [exact])
    two = blob()
    two[0, 2:5, 2:5] = 1
    collection.update(two, [torch.tensor([[2.0, 2.0, 5.0, 6.0]])])  # the small one, IoU 0.8
    values = {name: value.item() for name, value in collection.compute().items()}
    assert values == {"largest": 0.5, "all": 1, "strict": 0.5, "again": 0.5}
    assert len(collection.compute_groups) == 3


def test_order_and_partition_do_not_matter():
    scores = torch.rand(6, 10, 10)
    boxes = [torch.tensor([[1.0, 1.0, 5.0 + i % 4, 8.0]]) for i in range(6)]
    whole, parts = MaxBoxAccV2(), MaxBoxAccV2()
    whole.update(scores, boxes)
    for part in ([4, 0], [5], [2, 1, 3]):
        parts.update(scores[part], [boxes[i] for i in part])
    assert torch.equal(whole.hits, parts.hits)
    assert whole.hits.dtype == torch.int64
    assert whole.hits.sum() > 0


def test_a_refused_batch_leaves_the_counters_alone():
    scores = blob().repeat(3, 1, 1)
    scores[2, 4, 4] = torch.nan
    boxes = [torch.tensor([[10.0, 10.0, 20.0, 20.0]])] * 3
    metric = MaxBoxAcc()
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        metric.update(scores, boxes)
    assert metric.total == metric.hits.sum() == 0
    metric.update(scores[:2], boxes[:2])
    assert metric.compute() == 1


def test_true_boxes_may_leave_the_map_by_a_rounding():
    metric = BoxLocalization((100 / 121,))
    metric.update(blob(20), [torch.tensor([[10.0, 10.0, 20.5, 20.5]])])  # 11 x 11 pixels
    assert metric.compute() == 1


def test_each_iou_threshold_may_have_its_own_map_threshold():
    scores = torch.zeros(1, 40, 40)
    scores[0, :20, :20], scores[0, :12, :12] = 0.4, 1.0
    boxes = [torch.tensor([[0.0, 0.0, 20.0, 20.0]])]  # IoU 1 below 0.4, 169 / 441 above
    values = {}
    for threshold in (0.3, 0.6, (0.6, 0.3, 0.3), (0.6, 0.6, 0.3)):
        metric = BoxAccV2(threshold)
        metric.update(scores, boxes)
        values[threshold] = metric.compute().item()
    expected = {0.3: 1, 0.6: 1 / 3, (0.6, 0.3, 0.3): 1, (0.6, 0.6, 0.3): 2 / 3}
    assert values == pytest.approx(expected)
    with pytest.raises(ValueError, match="3 of them"):
        BoxAccV2((0.3, 0.6))


def test_bad_input_is_refused():
    box = [torch.tensor([[1.0, 1.0, 5.0, 8.0]])]
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        MaxBoxAcc().update(blob() + 0.1, box)
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        boxes_from_map(torch.full((3, 3), torch.nan), 0.5)
    with pytest.raises(ValueError, match="B tensors of boxes"):
        MaxBoxAcc().update(blob(), box * 2)
    with pytest.raises(ValueError, match=r"finite and \(n, 4\)"):
        MaxBoxAcc().update(blob(), [torch.full((1, 4), torch.nan)])
    with pytest.raises(ValueError, match=r"finite and \(n, 4\)"):
        MaxBoxAcc().update(blob(), [torch.zeros(2, 6)])
    with pytest.raises(ValueError, match=r"x0 <= x1 and y0 <= y1"):
        MaxBoxAcc().update(blob(), [torch.tensor([[5.0, 1.0, 4.0, 8.0]])])
    with pytest.raises(ValueError, match=r"image 1 .* lie in the map"):
        MaxBoxAcc().update(blob().repeat(2, 1, 1), [*box, torch.tensor([[1.0, 1.0, 5.0, 34.0]])])
    with pytest.raises(ValueError, match="valid must be"):
        MaxBoxAcc().update(blob(), box, valid=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="needs logits"):
        MaxBoxAcc(topk=(1,)).update(blob(), box)
    with pytest.raises(ValueError, match=r"label must lie in 0\.\.2"):
        MaxBoxAcc(topk=(1,)).update(blob(), box, torch.rand(1, 3), torch.tensor([3]))
    with pytest.raises(ValueError, match="threshold=2"):
        boxes_from_map(blob()[0], 2)
    with pytest.raises(ValueError, match="'largest', 'all'"):
        BoxLocalization(contours="both")
    with pytest.raises(ValueError, match="iou_thresholds"):
        BoxLocalization((50,))
