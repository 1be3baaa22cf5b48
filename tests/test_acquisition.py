"""Choosing images: scores, balance of classes, neighbours in colour, area under the curve."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.spatial.distance import jensenshannon

from wsl_zoo import colors
from wsl_zoo.acquisition import (
    RunningVariance,
    area_under_curve,
    core_set,
    mc_variance,
    nearest_labelled,
    pixel_entropy,
    ranked,
    shuffled,
    take_per_class,
)
from wsl_zoo.colors import channel_histograms, color_distances, color_histogram, js_divergence

LN2 = math.log(2)


# --- entropy ---


def entropy_by_loop(probs, published):
    scores = []
    for image in probs.double().tolist():
        pixels = [p for row in image for p in row]
        sides = [(p, p if published else 1 - p) for p in pixels]
        terms = [-sum(q * math.log(q) for q in pair if q > 0) for pair in sides]
        scores.append(sum(terms) / len(terms))
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("published", [False, True])
def test_entropy_is_the_mean_over_pixels(published):
    probs = torch.rand(4, 5, 7, dtype=torch.float64)
    probs[0, 0, :3] = torch.tensor([0.0, 1.0, 0.5])
    value = pixel_entropy(probs, published)
    assert value.shape == (4,)
    torch.testing.assert_close(value, entropy_by_loop(probs, published))


def test_entropy_is_largest_at_one_half_and_zero_where_certain():
    levels = torch.linspace(0, 1, 101, dtype=torch.float64).view(-1, 1, 1)
    value = pixel_entropy(levels)
    assert value.argmax() == 50
    assert value[50].item() == pytest.approx(LN2, rel=1e-12)
    assert value[0] == value[100] == 0
    assert (value[1:100] > 0).all()
    assert pixel_entropy(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])).item() == 0


@given(arrays(np.float64, (3, 2, 4), elements=st.floats(0, 1)))
def test_entropy_is_symmetric_in_foreground_and_background(probs):
    probs = torch.from_numpy(probs)
    torch.testing.assert_close(pixel_entropy(probs), pixel_entropy(1 - probs), rtol=0, atol=1e-12)


def test_published_entropy_prefers_a_dim_background():
    levels = torch.linspace(0, 1, 1001, dtype=torch.float64).view(-1, 1, 1)
    value = pixel_entropy(levels, published=True)
    assert levels[value.argmax()].item() == pytest.approx(1 / math.e, abs=1e-3)
    assert value.max().item() == pytest.approx(2 / math.e, abs=1e-5)
    assert value[300] > value[700] + 0.1
    dim, unsure = torch.full((1, 2, 2), 1 / math.e), torch.full((1, 2, 2), 0.5)
    assert pixel_entropy(dim, published=True) > pixel_entropy(unsure, published=True)
    assert pixel_entropy(dim) < pixel_entropy(unsure)


def test_entropy_of_nearly_certain_pixels_in_float32():
    p = 1e-9
    value = pixel_entropy(torch.full((1, 2, 2), p))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(p - p * math.log(p), rel=1e-5)


def test_half_precision_is_computed_in_float32():
    probs = torch.rand(2, 16, 16).half()
    value = pixel_entropy(probs)
    assert value.dtype == torch.float32
    assert torch.equal(value, pixel_entropy(probs.float()))
    assert mc_variance(torch.stack([probs, 1 - probs])).dtype == torch.float32


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (torch.rand(3, 4), r"\(B, H, W\)"),
        (torch.rand(2, 1, 3, 4), r"\(B, H, W\)"),
        (torch.rand(2, 0, 4), r"\(B, H, W\)"),
        (torch.tensor([[[0.5, math.nan]]]), r"\[0, 1\]"),
        (torch.tensor([[[0.5, -0.1]]]), r"\[0, 1\]"),
        (torch.tensor([[[0.5, 1.1]]]), r"\[0, 1\]"),
    ],
)
def test_entropy_of_anything_but_probability_maps(probs, message):
    with pytest.raises(ValueError, match=message):
        pixel_entropy(probs)


# --- variance over passes ---


def variance_by_loop(passes, published):
    passes = passes.double()
    scores = []
    for b in range(passes.shape[1]):
        pixels = passes[:, b].flatten(1)  # (T, H W)
        groups = [pixels.flatten()] if published else list(pixels.T)
        values = []
        for group in groups:
            numbers = group.tolist()
            mean = sum(numbers) / len(numbers)
            values.append(sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1))
        scores.append(sum(values) / len(values))
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_variance_is_the_unbiased_one(count, published):
    passes = torch.rand(count, 3, 4, 5, dtype=torch.float64)
    value = mc_variance(passes, published)
    assert value.shape == (3,)
    torch.testing.assert_close(value, variance_by_loop(passes, published))


def test_variance_of_the_same_passes_one_at_a_time():
    passes = torch.rand(6, 2, 4, 5)
    variance = RunningVariance()
    for i, probs in enumerate(passes):
        variance.update(probs)
        if i:
            torch.testing.assert_close(variance.compute(), passes[: i + 1].var(0).mean((1, 2)))
    assert torch.equal(variance.compute(True), mc_variance(passes, True))


def test_variance_holds_two_maps_per_image_however_many_passes():
    variance = RunningVariance()
    for _ in range(4):
        probs = torch.rand(2, 3, 3, requires_grad=True)
        variance.update(probs)
        held = [value for value in vars(variance).values() if isinstance(value, torch.Tensor)]
        assert sum(value.numel() for value in held) == 2 * probs.numel()
        assert not any(value.requires_grad for value in held)


def test_the_first_pass_may_be_overwritten_by_its_owner():
    first, second = torch.rand(1, 3, 3), torch.rand(1, 3, 3)
    expected = mc_variance(torch.stack([first, second]))
    variance, buffer = RunningVariance(), first.clone()
    variance.update(buffer)
    buffer.copy_(second)
    variance.update(buffer)
    assert torch.equal(variance.compute(), expected)


def test_equal_passes_have_no_variance_but_the_published_one_sees_the_picture():
    picture = torch.rand(2, 8, 8)
    passes = picture.expand(5, 2, 8, 8)
    assert torch.equal(mc_variance(passes), torch.zeros(2))
    expected = picture.flatten(1).var(dim=1, correction=0) * (5 * 64) / (5 * 64 - 1)
    torch.testing.assert_close(mc_variance(passes, published=True), expected)
    assert (expected > 0.01).all()


def test_published_variance_is_that_within_pixels_plus_that_between_them():
    passes = torch.rand(7, 3, 6, 5, dtype=torch.float64)
    within = passes.var(dim=0, correction=0).mean(dim=(1, 2))
    between = passes.mean(dim=0).flatten(1).var(dim=1, correction=0)
    total = 7 * 30
    value = mc_variance(passes, published=True) * (total - 1) / total
    torch.testing.assert_close(value, within + between)
    torch.testing.assert_close(mc_variance(passes) * 6 / 7, within)


def test_the_two_variances_rank_differently():
    calm = torch.zeros(2, 4, 4)
    calm[:, :2] = 1  # a sharp picture, equal in both passes
    shaky = torch.stack([torch.full((4, 4), 0.4), torch.full((4, 4), 0.6)])
    passes = torch.stack([calm, shaky], dim=1)
    right, published = mc_variance(passes), mc_variance(passes, published=True)
    assert right[0] < right[1]
    assert published[0] > published[1]


def test_variance_of_less_than_two_passes():
    with pytest.raises(ValueError, match="at least 2 passes, got 1"):
        mc_variance(torch.rand(1, 2, 3, 3))
    with pytest.raises(ValueError, match="at least 2 passes, got 0"):
        RunningVariance().compute()


def test_variance_of_passes_that_differ_in_shape():
    variance = RunningVariance()
    variance.update(torch.rand(2, 3, 3))
    with pytest.raises(ValueError, match=r"pass 2 has shape \(1, 3, 3\)"):
        variance.update(torch.rand(1, 3, 3))
    with pytest.raises(ValueError, match=r"\(B, H, W\)"):
        mc_variance(torch.rand(3, 4, 4))


# --- core set ---


def core_set_by_loop(features, labelled, count):
    centers = [i for i in range(len(features)) if labelled[i]]
    taken = []
    while len(taken) < count and len(centers) < len(features):
        best, farthest = -1, -1.0
        for i in range(len(features)):
            if i in centers:
                continue
            gap = min((math.dist(features[i], features[c]) for c in centers), default=math.inf)
            if gap > farthest:
                best, farthest = i, gap
        centers.append(best)
        taken.append(best)
    return taken


@settings(deadline=None)
@given(st.data())
def test_core_set_takes_the_farthest_and_of_equals_the_first(data):
    size = data.draw(st.integers(1, 8))
    points = data.draw(arrays(np.int64, (size, 2), elements=st.integers(-3, 3)))
    labelled = data.draw(arrays(np.bool_, size))
    count = data.draw(st.integers(0, 9))
    expected = core_set_by_loop(points.tolist(), labelled.tolist(), count)
    assert core_set(points, labelled, count) == expected


def test_core_set_on_a_line():
    features = np.array([[0.0], [1.0], [4.0], [10.0]])
    assert core_set(features, np.array([True, False, False, False]), 3) == [3, 2, 1]
    assert core_set(features, np.zeros(4, dtype=bool), 2) == [0, 3]
    assert core_set(features, np.ones(4, dtype=bool), 2) == []


@pytest.mark.parametrize(
    ("features", "labelled", "count", "message"),
    [
        (np.zeros(3), np.zeros(3, dtype=bool), 1, "features"),
        (np.full((3, 2), np.nan), np.zeros(3, dtype=bool), 1, "finite"),
        (np.zeros((3, 2)), np.zeros(4, dtype=bool), 1, "labelled"),
        (np.zeros((3, 2)), np.zeros(3, dtype=int), 1, "labelled"),
        (np.zeros((3, 2)), np.zeros(3, dtype=bool), -1, "count"),
    ],
)
def test_core_set_of_bad_input(features, labelled, count, message):
    with pytest.raises(ValueError, match=message):
        core_set(features, labelled, count)


# --- selection ---

IDS = st.lists(st.text("abcdefgh", min_size=1, max_size=3), unique=True, max_size=20)


def test_ranked_is_by_score_then_by_id():
    assert ranked({"b": 1.0, "c": 2.0, "a": 1.0, "d": -math.inf}) == ["c", "a", "b", "d"]
    assert ranked({}) == []


@given(IDS, st.randoms(use_true_random=False))
def test_ranked_does_not_depend_on_the_order_given(ids, rng):
    scores = {name: float(len(name)) for name in ids}  # many ties
    order = ranked(scores)
    rng.shuffle(ids)
    assert ranked({name: scores[name] for name in ids}) == order
    assert order == sorted(order, key=lambda name: (-len(name), name))


def test_ranked_names_the_ids_without_a_score():
    scores = {"fine": 1.0, "lost": math.nan}
    with pytest.raises(ValueError, match=r"NaN for lost$"):
        ranked(scores)
    with pytest.raises(ValueError, match=r"NaN for 0, 1, 2, 3, 4 and 2 more$"):
        ranked({str(i): math.nan for i in range(7)})


@given(IDS, st.integers(0, 5), st.randoms(use_true_random=False))
def test_shuffled_depends_on_seed_and_ids_alone(ids, seed, rng):
    order = shuffled(ids, seed)
    assert sorted(order) == sorted(ids)
    rng.shuffle(ids)
    assert shuffled(iter(ids), seed) == order
    assert shuffled(set(ids), seed) == order


def test_shuffled_is_the_same_in_every_process():
    assert shuffled("abcdefgh", 0) == list("ebfcadhg")
    orders = {tuple(shuffled("abcdefgh", seed)) for seed in range(20)}
    assert len(orders) > 15


def test_shuffled_leaves_the_global_generators_alone():
    def states():
        numpy = np.random.get_state()  # noqa: NPY002
        return random.getstate(), numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist()

    before = states()
    first = shuffled("abcdefgh", 3)
    assert states() == before
    random.seed(99)
    torch.manual_seed(99)
    assert shuffled("abcdefgh", 3) == first


def test_first_places_of_a_shuffle_are_uniform():
    counts = Counter(shuffled("abcd", seed)[0] for seed in range(4000))
    assert set(counts) == set("abcd")
    assert max(counts.values()) < 1150  # 1000 expected, standard deviation 27
    assert min(counts.values()) > 850


def test_take_per_class_as_in_the_protocols():
    labels = {f"{c}{i:02d}": c for c in range(2) for i in range(30)}  # GlaS: 4 per class, then 1
    order = shuffled(labels, 0)
    assert Counter(labels[i] for i in take_per_class(order, labels, 8)) == {0: 4, 1: 4}
    assert Counter(labels[i] for i in take_per_class(order, labels, 2)) == {0: 1, 1: 1}
    birds = {f"{i:04d}": i % 200 for i in range(4794)}  # CUB: 1 per class
    assert Counter(birds[i] for i in take_per_class(sorted(birds), birds, 200)) == dict.fromkeys(
        range(200), 1
    )


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1, ["a1", "b1", "c1"]),  # at least one of every class
        (5, ["a1", "b1", "c1"]),  # 5 / 3 is 1
        (6, ["a1", "a2", "b1", "c1", "c2"]),  # b has no second one
        (8, ["a1", "a2", "b1", "c1", "c2"]),  # 6 images / 3 classes
        (100, ["a1", "a2", "b1", "c1", "c2"]),
    ],
)
def test_take_per_class_by_hand(budget, expected):
    order = ["a1", "a2", "b1", "c1", "a3", "c2"]
    labels = {"a1": 7, "a2": 7, "a3": 7, "b1": 0, "c1": 3, "c2": 3, "elsewhere": 5}
    assert take_per_class(order, labels, budget) == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=25), st.integers(1, 30), st.integers(0, 9))
def test_take_per_class_is_balanced_and_takes_the_best(classes, budget, seed):
    labels = {f"i{n}": c for n, c in enumerate(classes)}
    order = shuffled(labels, seed)
    taken = take_per_class(order, labels, budget)
    share = max(1, int(min(budget, len(order)) / len(set(classes))))
    for c in set(classes):
        of_class = [name for name in order if labels[name] == c]
        assert [name for name in taken if labels[name] == c] == of_class[:share]
    assert taken == [name for name in order if name in taken]


def test_a_pool_is_emptied_round_by_round():
    labels = {f"i{n}": n % 3 if n < 9 else 0 for n in range(14)}
    pool, rounds, asked = dict(labels), 0, []
    while pool:
        taken = take_per_class(shuffled(pool, 1), labels, 3)
        assert len({labels[name] for name in taken}) == len({labels[name] for name in pool})
        asked += taken
        for name in taken:
            del pool[name]
        rounds += 1
    assert sorted(asked) == sorted(labels)
    assert rounds == 5  # 8, 3 and 3 of a class: 3 rounds of 1 each, then 3 and 2 of the last
    assert take_per_class([], labels, 3) == []


@pytest.mark.parametrize(
    ("order", "budget", "message"),
    [
        (["a"], 0, "budget=0"),
        (["a", "b", "a"], 2, "more than once: a$"),
        (["a", "x", "y"], 2, "no label for x, y$"),
    ],
)
def test_take_per_class_of_bad_input(order, budget, message):
    with pytest.raises(ValueError, match=message):
        take_per_class(order, {"a": 0, "b": 1}, budget)


# --- colours ---


def histogram_by_loop(image):
    """Of an image of height 128: grey by ITU-R 601-2, colours three times as far from it."""
    height, width, _ = image.shape
    red, green, blue = image.astype(np.int64).transpose(2, 0, 1)
    grey = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
    vivid = np.clip(3 * image.astype(np.int64) - 2 * grey[..., None], 0, 255) / 255
    side = math.exp(-1 / (2 * 0.9**2))
    kernel = np.array([side, 1, side]) / (1 + 2 * side)
    padded = np.pad(vivid, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    counts = np.zeros((3, 256))
    blurred = sum(
        kernel[i] * kernel[j] * padded[i : i + height, j : j + width]
        for i in range(3)
        for j in range(3)
    )
    for c in range(3):
        counts[c] = np.histogram(blurred[..., c].clip(0, 1), bins=256, range=(0, 1))[0]
    counts += 1e-8
    return counts / counts.sum(axis=1, keepdims=True)


def photo(height, width, seed=0):
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 200, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return (smooth + rng.integers(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8)


def test_color_histogram_against_a_transcription():
    image = photo(128, 90)
    value = color_histogram(image)
    assert value.shape == (3, 256)
    assert value.dtype == np.float64
    # a pixel may fall on the other side of the edge of a bin by rounding
    assert np.abs(value - histogram_by_loop(image)).sum() < 3 / (128 * 90)
    assert np.abs(value[0] - value[1]).sum() > 0.1


def test_color_histogram_resizes_to_height_128_by_the_bilinear_filter():
    image = photo(200, 300)
    value = color_histogram(image)
    whole = Image.fromarray(image)
    by_hand = np.asarray(whole.resize((192, 128), Image.Resampling.BILINEAR))
    assert np.array_equal(value, color_histogram(by_hand))
    lanczos = np.asarray(whole.resize((192, 128), Image.Resampling.LANCZOS))
    assert not np.array_equal(value, color_histogram(lanczos))
    plain = np.full((200, 300, 3), 90, dtype=np.uint8)
    assert round(1e-8 / color_histogram(plain).min()) == 192 * 128


def test_color_histogram_counts_pixels_wherever_they_are():
    image = photo(128, 70)
    value = color_histogram(image)
    assert np.array_equal(value, color_histogram(image[::-1, ::-1].copy()))
    pixels = image.astype(np.float64) / 255
    shuffled_pixels = (
        np.random.default_rng(0).permutation(pixels.reshape(-1, 3)).reshape(70, 128, 3)
    )
    assert np.array_equal(channel_histograms(pixels), channel_histograms(shuffled_pixels))


@settings(deadline=None, max_examples=30)
@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))))
def test_histograms_are_positive_and_sum_to_one(image):
    value = color_histogram(image)
    np.testing.assert_allclose(value.sum(axis=1), 1, rtol=1e-12)
    assert (value > 0).all()


def test_extremes_are_in_the_first_and_the_last_bin():
    pixels = np.array([0.0, 1 / 256, 0.5, 255 / 256, 1.0, 1 + 1e-15]).reshape(2, 3, 1)
    (value,) = channel_histograms(pixels)
    assert np.flatnonzero(value > 0.01).tolist() == [0, 1, 128, 255]
    assert value[255] == pytest.approx(0.5, rel=1e-5)
    white = color_histogram(np.full((4, 4, 3), 255, dtype=np.uint8))
    assert (white[:, 255] > 1 - 1e-6).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), dtype=np.uint8),
        np.zeros((8, 8, 4), dtype=np.uint8),
        np.zeros((8, 8, 3), dtype=np.float32),
        np.zeros((0, 8, 3), dtype=np.uint8),
        np.zeros((1, 8, 8, 3), dtype=np.uint8),
    ],
)
def test_histogram_of_anything_but_an_rgb_image(image):
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        color_histogram(image)


def shares(*shape, seed=0, zeros=False):
    values = np.random.default_rng(seed).random(shape)
    if zeros:
        values[values < 0.5] = 0
    return values / values.sum(axis=-1, keepdims=True)


SIDES = ((0, 99), (99, 0))
"""Bins before and after: two histograms that share none."""


def divergence_by_loop(p, q):
    total = 0.0
    for x, y in zip(p.tolist(), q.tolist(), strict=True):
        middle = (x + y) / 2
        total += sum(v * math.log(v / middle) for v in (x, y) if v > 0) / 2
    return total


@pytest.mark.parametrize("zeros", [False, True])
def test_divergence_of_all_pairs(zeros):
    a, b = shares(4, 3, 256, zeros=zeros), shares(5, 3, 256, seed=1, zeros=zeros)
    value = js_divergence(a, b)
    assert value.shape == (3, 4, 5)
    for c, i, j in np.ndindex(value.shape):
        reference = jensenshannon(a[i, c], b[j, c]) ** 2
        assert value[c, i, j] == pytest.approx(reference, rel=1e-9)
        assert value[c, i, j] == pytest.approx(divergence_by_loop(a[i, c], b[j, c]), rel=1e-9)
    assert np.array_equal(js_divergence(b, a), value.transpose(0, 2, 1))


@given(arrays(np.int64, (3, 1, 6), elements=st.integers(0, 4)))
def test_divergence_is_symmetric_bounded_and_zero_for_equals_alone(counts):
    counts[..., 0] += 1  # no empty histogram
    histograms = counts / counts.sum(axis=-1, keepdims=True)
    (value,) = js_divergence(histograms, histograms)
    assert np.array_equal(value, value.T)
    assert (value >= 0).all()
    assert (value <= LN2).all()
    for i, j in np.ndindex(value.shape):
        equal = np.allclose(histograms[i], histograms[j], rtol=0, atol=1e-12)
        assert (value[i, j] < 1e-12) == equal


def test_divergence_of_disjoint_histograms_is_ln_2():
    one, other = np.eye(2)[:, None]  # (1, 2) each
    assert js_divergence(one[None], other[None]).item() == pytest.approx(LN2, rel=1e-15)
    black, white = (color_histogram(np.full((4, 4, 3), v, dtype=np.uint8)) for v in (0, 255))
    np.testing.assert_allclose(js_divergence(black[None], white[None]), LN2, atol=1e-7)


def test_rounding_leaves_no_divergence_outside_its_range():
    alike = np.abs(shares(1, 1, 256) + 1e-9 * (shares(40, 1, 256, seed=1) - 1 / 256))
    apart = np.concatenate([np.pad(shares(20, 1, 99), [(0, 0), (0, 0), side]) for side in SIDES])
    for histograms in (alike, apart):
        value = js_divergence(histograms, histograms)
        assert (value >= 0).all()
        assert (value <= LN2).all()


def test_divergence_in_parts_is_that_in_one_go(monkeypatch):
    a, b = shares(7, 2, 16), shares(5, 2, 16, seed=1)
    whole = js_divergence(a, b)
    for chunk in (1, 2 * b.size, 3 * b.size):
        monkeypatch.setattr(colors, "CHUNK", chunk)
        assert np.array_equal(js_divergence(a, b), whole)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (shares(4, 8), shares(4, 8), "expected"),
        (shares(4, 3, 8), shares(4, 2, 8), "expected"),
        (shares(4, 3, 8), shares(4, 3, 9), "expected"),
        (shares(4, 3, 8), 2 * shares(4, 3, 8), "sum 1"),
        (np.array([[[1.5, -0.5]]]), np.array([[[0.5, 0.5]]]), "not negative"),
        (np.array([[[math.nan, 1.0]]]), np.array([[[0.5, 0.5]]]), "not negative"),
    ],
)
def test_divergence_of_bad_input(a, b, message):
    with pytest.raises(ValueError, match=message):
        js_divergence(a, b)


def test_color_distances_against_a_transcription():
    histograms = np.stack([color_histogram(photo(40, 50, seed)) for seed in range(5)])
    value = color_distances(histograms)
    expected = np.zeros((5, 5))
    for c in range(3):
        raw = np.array(
            [[divergence_by_loop(p, q) for q in histograms[:, c]] for p in histograms[:, c]]
        )
        expected += raw / raw.sum()
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-15)
    assert np.array_equal(value, value.T)
    assert (np.diag(value) == 0).all()
    assert value.sum() == pytest.approx(3)


def test_equal_images_are_at_distance_zero():
    histogram = color_histogram(photo(20, 30))
    assert np.array_equal(color_distances(histogram[None]), [[0.0]])
    assert np.array_equal(color_distances(np.stack([histogram] * 3)), np.zeros((3, 3)))


def test_a_channel_without_differences_adds_nothing():
    histograms = shares(4, 3, 256)
    histograms[:, 1] = histograms[0, 1]
    without = color_distances(histograms[:, [0, 2]])
    np.testing.assert_allclose(color_distances(histograms), without, rtol=1e-12)
    assert without.sum() == pytest.approx(2)


def test_every_channel_weighs_the_same():
    histograms = shares(6, 2, 64)
    weak = histograms.copy()
    weak[:, 1] = 0.999 / 64 + 0.001 * weak[:, 1]  # differences a thousandth as large
    far, near = js_divergence(histograms, histograms)[1], js_divergence(weak, weak)[1]
    assert near.max() < 1e-4 * far.max()
    alone = color_distances(weak[:, :1])
    assert (color_distances(weak) - alone).sum() == pytest.approx(1)


# --- neighbours ---


def pairs_by_loop(distances, labelled, k):
    pairs = {}
    for u in range(len(distances)):
        if labelled[u]:
            continue
        others = sorted((distances[u][j], j) for j in range(len(distances)) if j != u)
        for _, j in others[:k]:
            if labelled[j]:
                pairs[u] = j
                break
    return pairs


@st.composite
def neighborhoods(draw):
    size = draw(st.integers(1, 8))
    half = draw(arrays(np.float64, (size, size), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])))
    distances = np.triu(half, 1)
    return distances + distances.T, draw(arrays(np.bool_, size))


@settings(deadline=None)
@given(neighborhoods())
def test_pairs_are_those_of_the_scan_and_grow_with_k(case):
    distances, labelled = case
    before = {}
    for k in range(1, len(labelled) + 2):
        pairs = nearest_labelled(distances, labelled, k)
        assert pairs == pairs_by_loop(distances.tolist(), labelled.tolist(), k)
        assert list(pairs) == sorted(pairs)
        assert before.items() <= pairs.items()
        assert not labelled[list(pairs)].any()
        assert labelled[list(pairs.values())].all()
        before = pairs
        if k >= len(labelled) - 1 and labelled.any():
            assert set(pairs) == set(np.flatnonzero(~labelled).tolist())


def test_neighbours_passed_count_and_equal_distances_rank_by_index():
    place = np.array([0.0, 1.0, 3.0, 6.0, 6.0])
    distances = np.abs(place[:, None] - place)
    labelled = np.array([False, False, False, True, True])
    assert nearest_labelled(distances, labelled, 1) == {}
    assert nearest_labelled(distances, labelled, 2) == {}
    assert nearest_labelled(distances, labelled, 3) == {0: 3, 1: 3, 2: 3}
    assert nearest_labelled(distances[::-1, ::-1], labelled[::-1], 3) == {2: 0, 3: 0, 4: 0}


def test_a_duplicate_is_a_neighbour_and_the_image_itself_is_not():
    distances = np.zeros((3, 3))  # three times the same image
    labelled = np.array([True, False, False])
    assert nearest_labelled(distances, labelled, 1) == {1: 0, 2: 0}
    assert nearest_labelled(distances, labelled[::-1], 1) == {}  # 0 has 1 first, 1 has 0
    assert nearest_labelled(distances, labelled[::-1], 2) == {0: 2, 1: 2}


def test_nothing_to_pair():
    distances = shares(3, 3)
    assert nearest_labelled(distances, np.zeros(3, dtype=bool), 40) == {}
    assert nearest_labelled(distances, np.ones(3, dtype=bool), 40) == {}
    assert nearest_labelled(np.zeros((0, 0)), np.zeros(0, dtype=bool), 40) == {}


def test_with_k_40_every_unlabelled_image_of_glas_is_paired():
    for size in (29, 38):
        distances = color_distances(shares(size, 3, 256))
        labelled = np.arange(size) < 4
        assert list(nearest_labelled(distances, labelled, 40)) == list(range(4, size))
        assert len(nearest_labelled(distances, labelled, 3)) < size - 4


@pytest.mark.parametrize(
    ("distances", "labelled", "k", "message"),
    [
        (np.zeros((3, 2)), np.zeros(3, dtype=bool), 1, r"\(N, N\)"),
        (np.full((2, 2), math.nan), np.zeros(2, dtype=bool), 1, "numbers"),
        (np.zeros((3, 3)), np.zeros(2, dtype=bool), 1, "labelled"),
        (np.zeros((2, 2)), np.array([0, 1]), 1, "labelled"),
        (np.zeros((2, 2)), np.zeros(2, dtype=bool), 0, "k=0"),
    ],
)
def test_pairs_of_bad_input(distances, labelled, k, message):
    with pytest.raises(ValueError, match=message):
        nearest_labelled(distances, labelled, k)


# --- the curve ---

CURVES = {
    "GlaS Random 78.57": """
        67.14 70.27 71.59 71.44 74.06 75.37 73.76 72.20 74.40 79.22 79.81 82.04 80.44
        82.40 82.26 81.53 81.89 75.22 81.25 82.53 83.12 83.77 85.34 85.66 84.98""",
    "GlaS Entropy 79.13": """
        67.26 72.76 70.94 72.61 73.45 75.15 75.32 73.25 76.58 79.89 80.23 79.76 81.32
        82.31 82.34 82.29 83.11 79.25 81.26 83.64 83.67 83.61 85.36 84.88 85.28""",
    "GlaS MC-dropout 77.92": """
        70.02 68.45 69.70 69.97 72.71 73.00 74.06 72.57 76.39 78.99 78.76 80.50 79.76
        80.06 82.19 81.77 82.24 78.55 80.58 81.18 81.86 82.77 83.48 83.82 83.45""",
    "GlaS Ours 81.48": """
        67.20 71.03 74.08 76.53 77.64 78.41 79.11 80.16 80.43 81.61 82.90 82.77 83.82
        83.97 83.97 84.10 84.83 84.39 85.19 83.89 84.63 84.97 85.31 85.39 85.55""",
    "CUB Random 68.15": """
        52.95 56.86 61.39 62.98 63.56 66.99 66.48 68.78 66.31 68.80 69.42 71.31 72.04
        73.22 72.17 73.78 72.62 72.37 72.74 73.01""",
    "CUB Entropy 68.25": """
        54.05 57.38 59.11 60.48 63.82 63.59 67.07 68.81 67.29 69.79 69.98 72.11 70.46
        71.96 73.11 74.59 73.64 74.27 75.00 74.47""",
    "CUB MC-dropout 67.69": """
        54.68 57.13 59.98 63.52 63.03 64.68 64.41 67.03 68.89 68.31 69.09 69.06 70.94
        70.78 72.06 73.25 72.29 74.20 73.05 74.23""",
    "CUB Ours 71.73": """
        59.07 62.59 66.33 67.02 69.40 68.28 70.71 72.11 71.73 74.12 74.96 73.15 74.10
        74.49 74.06 74.59 74.87 77.25 75.92 75.37""",
}
"""Published mean Dice (%) over 5 runs after each round, by data set, method and published area."""


@pytest.mark.parametrize("curve", CURVES)
def test_area_is_the_published_one(curve):
    data, _, published = curve.split()
    values = [float(value) for value in CURVES[curve].split()]
    assert len(values) == {"GlaS": 25, "CUB": 20}[data]
    assert area_under_curve(values) == pytest.approx(float(published), abs=0.02)


@given(st.floats(-100, 100), st.integers(1, 30))
def test_area_under_a_constant_curve_is_the_constant(height, rounds):
    assert area_under_curve([height] * rounds) == pytest.approx(height)


@given(st.floats(-100, 100), st.floats(-10, 10), st.integers(2, 30))
def test_area_under_a_line_is_its_middle(start, step, rounds):
    values = [start + step * r for r in range(rounds)]
    middle = start + step * (rounds - 1) / 2
    assert area_under_curve(values) == pytest.approx(middle, abs=1e-9)


def test_area_weighs_the_ends_half():
    assert area_under_curve([0, 1, 0]) == 0.5
    assert area_under_curve([1, 0, 0, 1]) == pytest.approx(1 / 3)
    assert area_under_curve([4]) == 4
    assert isinstance(area_under_curve(np.array([1, 2])), float)


def test_area_under_nothing():
    with pytest.raises(ValueError, match="at least one"):
        area_under_curve([])
