from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAveragePrecision

from tests.metrics.processes import differing_on_processes
from tests.metrics.transcription import EDGES, histograms, peak_iou, pixel_curves, pxap
from wsl_zoo.metrics import (
    BoxAcc,
    BoxAccV2,
    BoxLocalization,
    CorLoc,
    DiceAtThreshold,
    ImageDice,
    MaxBoxAcc,
    MaxBoxAccV2,
    MeanIoUAtThreshold,
    PeakIoU,
    PixelCurve,
    Prevalence,
    PxAP,
    RateAtThreshold,
)
from wsl_zoo.metrics.pixels import _count_on_accelerator


def random_maps(seed, images=4, size=24, dtype=torch.float32, kind="uniform"):
    """Maps that know something about the mask, with ignored pixels; "grid" scores lie on edges."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(images, size, size, generator=generator) < 0.3).to(torch.uint8)
    noise = torch.rand(images, size, size, generator=generator, dtype=torch.float64)
    scores = 0.7 * noise + 0.3 * mask
    if kind == "grid":
        scores = torch.from_numpy(np.round(scores.numpy() * 1000) * 0.001).clamp(0, 1)
    scores[0, 0, :2], scores[0, 1, :2] = 0, 1
    mask[torch.rand(images, size, size, generator=generator) < 0.1] = 255
    return scores.to(dtype), mask


def scored(metric, scores, mask, valid=None):
    metric.update(scores, mask, valid)
    return metric.compute().item()


@pytest.mark.parametrize("size", [(4, 24), (3, 151)])
@pytest.mark.parametrize("kind", ["uniform", "grid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_pxap_and_histograms_equal_the_numpy_transcription(size, kind, dtype):
    scores, mask = random_maps(0, *size, kind=kind, dtype=dtype)
    metric = PxAP()
    value = scored(metric, scores, mask)
    pos, neg = histograms(scores.double(), mask)
    np.testing.assert_array_equal(metric.pos.numpy(), pos)
    np.testing.assert_array_equal(metric.neg.numpy(), neg)
    assert metric.pos.dtype == torch.int64
    assert metric.pos[-2] > 0 or metric.neg[-2] > 0, "scores of 1 have their own bin"
    assert value == pytest.approx(pxap(scores.double(), mask), abs=1e-12)
    peak = scored(PeakIoU(), scores, mask)
    assert peak == pytest.approx(peak_iou(scores.double(), mask), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_thresholds", [1, 2, 3, 7, 49, 100, 250, 998, 1000, 1021, 4096])
def test_scores_beside_every_edge_fall_on_the_right_side(num_thresholds, dtype):
    edges = np.append(np.arange(num_thresholds) * (1 / num_thresholds), [1, 2, 3])
    inner = torch.from_numpy(edges[:-2]).to(dtype)
    up, down = (inner.nextafter(torch.tensor(end, dtype=dtype)) for end in (1.0, 0.0))
    scores = torch.stack([down, inner, up])[None]
    metric = PxAP(num_thresholds)
    for mask in (torch.ones(scores.shape), torch.zeros(scores.shape)):
        metric.update(scores, mask)
    expected = histograms(scores, torch.ones(scores.shape), edges)[0]
    np.testing.assert_array_equal(metric.pos.numpy(), expected)
    np.testing.assert_array_equal(metric.neg.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int32, torch.float32])
def test_layout_and_type_of_the_mask_do_not_matter(dtype):
    scores, mask = random_maps(17, size=20)
    whole, strided, expanded = PxAP(), PxAP(), PxAP()
    whole.update(scores, mask)
    strided.update(scores.mT.contiguous().mT, torch.stack([mask, mask], dim=-1).to(dtype)[..., 0])
    assert torch.equal(whole.pos, strided.pos)
    assert torch.equal(whole.neg, strided.neg)
    expanded.update(scores[:1].expand(3, -1, -1), mask[:1].to(dtype).expand(3, -1, -1))
    pos, neg = histograms(scores[:1], mask[:1])
    np.testing.assert_array_equal(expanded.pos.numpy(), 3 * pos)
    np.testing.assert_array_equal(expanded.neg.numpy(), 3 * neg)


def test_a_bool_mask_has_no_ignored_pixel():
    scores, mask = random_maps(18)
    metric, integers = PxAP(), PxAP()
    metric.update(scores, mask == 1)
    integers.update(scores, (mask == 1).long())
    assert torch.equal(metric.pos, integers.pos)
    assert torch.equal(metric.neg, integers.neg)


@pytest.mark.parametrize("kind", ["uniform", "grid"])
def test_the_whole_curve_equals_the_numpy_transcription(kind):
    scores, mask = random_maps(19, kind=kind)
    metric = PxAP()
    metric.update(scores, mask)
    expected, curves = pixel_curves(scores, mask), metric.curves()
    best = expected["threshold"][expected["miou"].argmax()]
    assert metric.best_threshold() == best
    assert set(curves) == set(expected)
    for name, values in expected.items():  # ascending, without the threshold 2
        ascending = values[:0:-1]
        some = ~curves[name].isnan().numpy()
        assert some.all() or name == "precision"
        np.testing.assert_allclose(curves[name].numpy()[some], ascending[some], rtol=0, atol=1e-12)


def test_edges_are_those_of_numpy():
    np.testing.assert_array_equal(PxAP()._edges(torch.device("cpu")).numpy(), EDGES[:-2])
    edges = PxAP(49)._edges(torch.device("cpu"))  # 49 * (1 / 49) < 1 in float64
    assert edges[-1] == 1
    assert len(edges) == 50


def test_pxap_equals_torchmetrics_at_the_same_thresholds():
    scores, mask = random_maps(1, images=8, size=48)
    oracle = BinaryAveragePrecision(
        thresholds=torch.from_numpy(EDGES[:-2]).float(), ignore_index=255
    )
    assert scored(PxAP(), scores, mask) == pytest.approx(
        oracle(scores, mask.long()).item(), abs=1e-6
    )


@pytest.mark.parametrize("num_thresholds", [1000, 250, 10])
def test_pxap_equals_sklearn_on_bin_indices(num_thresholds):
    scores, mask = random_maps(2)
    edges = np.append(np.arange(num_thresholds) * (1 / num_thresholds), 1.0)
    index = np.digitize(scores.double().numpy(), edges).ravel()
    keep = mask.numpy().ravel() != 255
    expected = average_precision_score(mask.numpy().ravel()[keep], index[keep])
    assert scored(PxAP(num_thresholds), scores, mask) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)))
def test_any_order_and_partition_gives_the_same_integers(order, cuts):
    scores, mask = random_maps(3, images=6, size=8)
    whole, parts = PxAP(), PxAP()
    whole.update(scores, mask)
    for part in np.split(np.asarray(order), sorted(cuts)):
        parts.update(scores[part], mask[part])
    assert torch.equal(whole.pos, parts.pos)
    assert torch.equal(whole.neg, parts.neg)
    assert whole.compute() == parts.compute()


@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
def test_constant_and_inverted_maps_give_prevalence_and_perfect_ones_1(constant):
    _, mask = random_maps(4)
    prevalence = scored(Prevalence(), torch.rand(mask.shape), mask)
    assert prevalence == ((mask == 1).sum() / (mask != 255).sum().double()).item()
    foreground = (mask == 1).float()
    assert scored(PxAP(), torch.full(mask.shape, constant), mask) == pytest.approx(prevalence)
    assert scored(PxAP(), 1 - foreground, mask) == pytest.approx(prevalence)
    assert scored(PxAP(), foreground, mask) == 1
    assert scored(PeakIoU(), foreground, mask) == 1


def test_only_the_order_of_the_bins_matters():
    _, mask = random_maps(5)
    rank = torch.randint(0, 40, mask.shape) + 5 * (mask == 1)
    low, spread = EDGES[:45], EDGES[np.linspace(3, 1000, 45).astype(int)]
    values = [scored(PxAP(), torch.from_numpy(grid)[rank], mask) for grid in (low, spread)]
    assert values[0] == pytest.approx(values[1], abs=1e-13)
    assert values[0] > scored(Prevalence(), torch.zeros(mask.shape), mask)


def test_curves_equal_the_raw_pixels_at_every_threshold():
    scores, mask = random_maps(6, images=2, size=12, kind="grid", dtype=torch.float64)
    metric = PxAP(100)
    metric.update(scores, mask)
    curves = metric.curves()
    theta = curves["threshold"].numpy()
    assert len(theta) == 101
    assert theta[0] == 0
    assert theta[-1] == 1
    assert (np.diff(theta) > 0).all()
    z, g = scores.numpy()[mask != 255], mask.numpy()[mask != 255] == 1
    predicted = z[None] >= theta[:, None]
    tp, fp = (predicted & g).sum(1), (predicted & ~g).sum(1)
    fn, tn = g.sum() - tp, (~g).sum() - fp
    expected = {
        "precision": tp / (tp + fp),
        "tp_rate": tp / g.sum(),
        "fn_rate": fn / g.sum(),
        "tn_rate": tn / (~g).sum(),
        "fp_rate": fp / (~g).sum(),
        "dice_foreground": 2 * tp / (2 * tp + fp + fn),
        "dice_background": 2 * tn / (2 * tn + fp + fn),
        "iou_foreground": tp / (tp + fp + fn),
        "iou_background": tn / (tn + fp + fn),
        "miou": (tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2,
    }
    assert set(curves) == {"threshold", *expected}
    for name, values in expected.items():
        np.testing.assert_allclose(curves[name].numpy(), values, atol=1e-14, err_msg=name)
    np.testing.assert_allclose(curves["tp_rate"] + curves["fn_rate"], 1)
    np.testing.assert_allclose(curves["tn_rate"] + curves["fp_rate"], 1)

    peak = PeakIoU(100)
    assert scored(peak, scores, mask) == pytest.approx(expected["iou_foreground"].max())
    best = np.flatnonzero(expected["iou_foreground"] == expected["iou_foreground"].max())[-1]
    assert peak.best_threshold() == theta[best]


def test_best_threshold_is_the_true_one_not_its_mirror_image():
    mask = torch.arange(20000).view(1, 100, 200) % 2
    spread = 0.04 * torch.randn(mask.shape)
    metric = PxAP()
    metric.update((torch.where(mask == 1, 0.35, 0.15) + spread).clamp(0, 1), mask)
    assert 0.2 < metric.best_threshold() < 0.3
    curves = metric.curves()
    assert metric.best_threshold() == curves["threshold"][curves["miou"].argmax()]


def test_predicting_nothing_can_be_best():
    metric = PxAP()
    metric.update(torch.ones(1, 4, 4), torch.eye(4)[None])
    assert metric.best_threshold() == 2


@pytest.mark.filterwarnings("ignore:.*undefined")
def test_no_foreground_gives_nan_and_a_warning():
    for build in (PxAP, PeakIoU, Prevalence):
        metric = build()
        metric.update(torch.rand(1, 4, 4), torch.tensor([0, 255]).repeat(8).view(1, 4, 4))
        with pytest.warns(UserWarning, match=f"{build.__name__} is undefined .*foreground"):
            assert metric.compute().isnan()
        assert np.isnan(metric.best_threshold())
        assert metric.curves()["tp_rate"].isnan().all()


@pytest.mark.parametrize("bad", [float("nan"), -1e-6, 1.001, float("inf")])
def test_bad_scores_are_refused_and_leave_the_states_alone(bad):
    scores, mask = random_maps(7)
    scores[1, 2, 3] = bad
    mask[1, 2, 3] = 255
    metric = PxAP()
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        metric.update(scores, mask)
    assert metric.pos.sum() == 0
    valid = torch.tensor([True, False, True, True])
    metric.update(scores, mask, valid)
    others = PxAP()
    others.update(scores[valid], mask[valid])
    assert torch.equal(metric.pos, others.pos)
    assert torch.equal(metric.neg, others.neg)


def test_bad_masks_and_shapes_are_refused():
    scores, mask = random_maps(8)
    with pytest.raises(ValueError, match="found 7"):
        PxAP().update(scores, mask.where(mask != 1, 7))
    with pytest.raises(ValueError, match=r"\(B, H, W\)"):
        PxAP().update(scores[:, None], mask)
    with pytest.raises(ValueError, match="valid must be"):
        PxAP().update(scores, mask, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 1"):
        PxAP(0)


def test_pixels_found_invalid_on_an_accelerator_are_refused_by_compute():
    metric = PxAP()
    metric.update(*random_maps(9))
    metric.neg[-1] += 3  # where `update` counts them, there
    with pytest.raises(ValueError, match="3 pixels could not be scored"):
        metric.compute()


def test_one_pair_of_histograms_serves_a_collection():
    builds = {
        "pxap": PxAP,
        "peak": PeakIoU,
        "prevalence": Prevalence,
        "dice": DiceAtThreshold,
        "dice_background": partial(DiceAtThreshold, 0.4, "background"),
        "miou": MeanIoUAtThreshold,
    }
    collection = MetricCollection({name: build() for name, build in builds.items()})
    batches = [random_maps(seed) for seed in (10, 11, 12)]
    for batch in batches:
        collection.update(*batch)
    assert len(collection.compute_groups) == 1
    together = collection.compute()
    for name, build in builds.items():
        alone = build()
        for batch in batches:
            alone.update(*batch)
        assert together[name] == alone.compute(), name
        assert collection[name].best_threshold() == alone.best_threshold(), name


def test_inference_mode_leaves_usable_states():
    scores, mask = random_maps(13)
    metric = PxAP()
    with torch.inference_mode():
        metric.reset()
        metric.update(scores, mask)
    metric.update(scores, mask)
    assert metric.pos.sum() == 2 * (mask == 1).sum()


def test_flags_and_base():
    assert PxAP.higher_is_better
    assert Prevalence.higher_is_better is None
    assert PxAP.full_state_update is False
    assert PxAP.is_differentiable is False
    base = PixelCurve()
    base.update(*random_maps(16))
    with pytest.raises(NotImplementedError, match="PxAP"):
        base.compute()


@pytest.mark.parametrize("kind", ["uniform", "grid"])
@pytest.mark.parametrize("num_thresholds", [1, 7, 1000])
def test_the_path_of_accelerators_counts_the_same(kind, num_thresholds):
    scores, mask = random_maps(17, kind=kind)
    valid = torch.tensor([True, False, True, True])
    metric = PxAP(num_thresholds)
    metric.update(scores, mask, valid)
    counts = _count_on_accelerator(scores, mask, valid, metric._edges(scores.device))
    assert torch.equal(counts, torch.stack([metric.neg, metric.pos]))


@pytest.mark.parametrize("build", [PxAP, ImageDice])
def test_nothing_on_an_accelerator_waits_for_its_content(build):
    scores, mask = random_maps(18)
    valid = torch.tensor([True, False, True, True])
    metric = build().to("meta")  # tensors without content: to look at one is an error
    with pytest.raises(RuntimeError, match="meta"):
        bool((scores.to("meta") > 2).any())
    metric.update(scores.to("meta"), mask.to("meta"), valid.to("meta"))
    metric.update(scores.to("meta"), mask.to("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_counts_the_same_without_waiting():
    scores, mask = random_maps(14)
    valid = torch.tensor([True, True, False, True])
    here, there = PxAP(), PxAP().cuda()
    here.update(scores, mask, valid)
    arguments = scores.cuda(), mask.cuda(), valid.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there.update(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(here.pos, there.pos.cpu())
    assert torch.equal(here.neg, there.neg.cpu())
    assert here.compute() == there.compute().cpu()
    there.update(arguments[0] + 1, *arguments[1:])
    with pytest.raises(ValueError, match="could not be scored"):
        there.compute()


def test_several_processes_give_the_bits_of_one():
    scores, mask = random_maps(15, images=5, size=16)
    pixels = {"scores": scores, "mask": mask}
    boxes = [torch.tensor([[1.2, 2.9, 9.7, 12.1], [3.0, 3.0, 6.0, 6.0]][: i % 3]) for i in range(5)]
    blobs = torch.nn.functional.avg_pool2d(scores, 5, 1, 2)
    found = {"scores": blobs, "boxes": boxes}
    classed = {**found, "logits": torch.rand(5, 7), "label": torch.arange(5)}
    labelled = {**found, "label": torch.tensor([0, 1, 1, 3, 3])}
    cases = {
        "pxap": (PxAP, pixels),
        "peak": (PeakIoU, pixels),
        "prevalence": (Prevalence, pixels),
        "dice": (partial(DiceAtThreshold, region="background"), pixels),
        "rate": (partial(RateAtThreshold, "fp"), pixels),
        "miou": (partial(MeanIoUAtThreshold, 0.3), pixels),
        "image dice": (ImageDice, pixels),
        "boxes": (partial(BoxLocalization, (0.3, 0.6), "all", topk=(1, 5)), classed),
        "maxboxacc": (MaxBoxAcc, found),
        "maxboxaccv2": (MaxBoxAccV2, found),
        "boxacc": (partial(BoxAcc, 0.4, topk=(1,)), classed),
        "boxaccv2": (partial(BoxAccV2, (0.2, 0.4, 0.6)), found),
        "corloc": (partial(CorLoc, 4, num_thresholds=50), labelled),
        "corloc per class": (partial(CorLoc, 4, "per_class", average="micro"), labelled),
        "unsynchronised": (partial(PxAP, sync_on_compute=False), pixels),
    }
    assert list(differing_on_processes(cases)) == ["unsynchronised"]
