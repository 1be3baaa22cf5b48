"""Pseudo-labels from features and the roles of images, against plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsl_zoo.losses import (
    anchored_clusters,
    centroid_labels,
    class_gaussians,
    forget_set,
    nearest_fraction,
    overpredicted,
    prediction_bias,
)

DOUBLE = torch.float64
SIZES = [(40, 2), (40, 3), (40, 5), (1, 2), (3, 5)]  # N, K


def cosine(u, v):
    norms = np.linalg.norm(u) * np.linalg.norm(v)
    return float(u @ v) / norms if norms else 0.0


def first_least(values):
    return min(range(len(values)), key=lambda k: (values[k], k))


def first_most(values):
    return first_least([-v for v in values])


# SHOT's labels


def labels_by_loops(features, probabilities, metric, original):
    f, p = features.numpy(), probabilities.numpy()
    classes = p.shape[1]
    if original:
        f = [np.append(x, 1.0) / math.sqrt(x @ x + 1) for x in f]
    predicted = [first_most(row) for row in p]
    allowed = {k for k in range(classes) if k in predicted or not original}
    weights = [list(row) for row in p]
    for _ in range(2):
        centres, mass = [], []
        for k in range(classes):
            mass.append(sum(a[k] for a in weights))
            total = sum(a[k] * x for a, x in zip(weights, f, strict=True))
            centres.append(total / (1e-8 + mass[k]))
        labels = []
        for x in f:
            distances = [
                1 - cosine(x, c) if metric == "cosine" else np.linalg.norm(x - c) for c in centres
            ]
            for k in range(classes):
                if k not in allowed or (original and mass[k] == 0):
                    distances[k] = np.inf
            labels.append(first_least(distances))
        weights = [[float(k == label) for k in range(classes)] for label in labels]
    return labels


@pytest.mark.parametrize(("count", "classes"), SIZES)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("original", [True, False])
def test_centroid_labels_are_those_of_plain_loops(count, classes, metric, original):
    count += (count == 1) and not original  # all centroids of one feature are equally far from it
    for spread in (0.3, 0.3, 0.3, 5.0, 5.0):
        features = torch.randn(count, 4, dtype=DOUBLE)
        probabilities = (spread * torch.randn(count, classes, dtype=DOUBLE)).softmax(1)
        options = {} if original else {"normalize": False, "append_one": False, "min_count": -1}
        labels = centroid_labels(features, probabilities, metric=metric, **options)
        assert labels.tolist() == labels_by_loops(features, probabilities, metric, original)


def separable():
    labels = torch.arange(30) % 3
    return torch.eye(3)[labels] * (1 + torch.rand(30, 1)), labels


def test_labels_of_separable_features_are_a_fixed_point_and_follow_the_images():
    features, labels = separable()
    probabilities = (4 * F.one_hot(labels, 3).float()).softmax(1)
    for iterations in (1, 2, 5):
        assert centroid_labels(features, probabilities, iterations).equal(labels)
    noisy, order = features + 0.5 * torch.randn(30, 3), torch.randperm(30)
    found = centroid_labels(noisy, probabilities)
    assert centroid_labels(noisy[order], probabilities[order]).equal(found[order])


def test_labels_do_not_depend_on_the_features_scale_unless_a_one_is_appended():
    features, probabilities = torch.randn(200, 4), torch.randn(200, 3).softmax(1)
    raw = centroid_labels(features, probabilities, append_one=False)
    each = (torch.rand(200, 1) + 0.5) * features
    assert centroid_labels(each, probabilities, append_one=False).equal(raw)
    options = {"append_one": False, "normalize": False}
    whole = centroid_labels(features, probabilities, **options)
    assert centroid_labels(9 * features, probabilities, **options).equal(whole)
    first = centroid_labels(features, probabilities)
    assert not centroid_labels(100 * features, probabilities).equal(first)


def test_cosine_and_euclidean_rank_unit_vectors_alike():
    weights = torch.cat([torch.eye(4), torch.zeros(96, 4)])  # every centroid is one unit vector
    features = torch.randn(100, 6)
    by_cosine = centroid_labels(features, weights, 1, "cosine", append_one=False)
    by_distance = centroid_labels(features, weights, 1, "euclidean", append_one=False)
    assert by_cosine.equal(by_distance)
    assert len(by_cosine.unique()) == 4


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_small_classes_do_not_compete(metric):
    features, labels = separable()
    probabilities = F.one_hot(labels, 4).float()
    probabilities[0] = torch.tensor([0.0, 0.0, 0.0, 1.0])  # class 3: one image
    assert centroid_labels(features, probabilities, metric=metric)[0] == 3
    assert centroid_labels(features, probabilities, metric=metric, min_count=1).equal(labels)
    with pytest.raises(ValueError, match="min_count=10"):
        centroid_labels(features, probabilities, metric=metric, min_count=10)
    without = F.one_hot(labels, 4)  # class 3: none
    assert centroid_labels(features, without, metric=metric, min_count=-1).equal(labels)


def test_an_empty_class_attracts_features_opposite_to_all_others_in_the_raw_form_alone():
    features = torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
    p = torch.tensor([[0.6, 0.4]] * 3 + [[0.49, 0.51]])  # both centroids are on the right at first
    for min_count in (0, -1):
        options = {"append_one": False, "min_count": min_count}
        assert centroid_labels(features, p, 1, **options).tolist() == [0, 0, 0, 0]
        assert centroid_labels(features, p, 2, **options).tolist() == [0, 0, 0, -min_count]


def test_wrong_arguments_of_centroid_labels():
    features, p = torch.randn(4, 3), torch.full((4, 2), 0.5)
    with pytest.raises(ValueError, match=r"probabilities must have shape \(4, ...\)"):
        centroid_labels(features, p[:3])
    with pytest.raises(ValueError, match="features are not finite in 1 of 4 rows"):
        centroid_labels(features.index_fill(0, torch.tensor(2), torch.nan), p)
    with pytest.raises(ValueError, match="metric"):
        centroid_labels(features, p, metric="dot")
    with pytest.raises(ValueError, match="iterations=0"):
        centroid_labels(features, p, iterations=0)
    assert centroid_labels(features[:0], p[:0]).shape == (0,)


# SFDA-DE's clusters


def clusters_by_loops(features, anchors, tolerance=1e-3, cap=100):
    f, w = features.numpy(), anchors.numpy()
    classes = len(w)

    def distance(u, v):
        return (1 - cosine(u, v)) / 2

    def nearest(x):
        return first_least([distance(x, c) for c in centres])

    centres = list(w)
    for _ in range(cap):
        labels = [nearest(x) for x in f]
        new = []
        for k in range(classes):
            own = [x for x, label in zip(f, labels, strict=True) if label == k]
            new.append(np.sum(own, axis=0) if own else w[k])
        moved = np.mean([distance(a, b) for a, b in zip(new, centres, strict=True)])
        centres = new
        if moved < tolerance:
            break
    labels = [nearest(x) for x in f]
    distances = [distance(x, centres[k]) for x, k in zip(f, labels, strict=True)]
    match = min(
        itertools.permutations(range(classes)),
        key=lambda m: sum(distance(centres[k], w[m[k]]) for k in range(classes)),
    )
    ordered = [centres[match.index(j)] for j in range(classes)]
    return [match[k] for k in labels], ordered, distances


@pytest.mark.parametrize(("count", "classes"), SIZES)
def test_clusters_are_those_of_plain_loops(count, classes):
    for _ in range(10):
        features = torch.randn(count, 3, dtype=DOUBLE)
        anchors = torch.randn(classes, 3, dtype=DOUBLE)
        labels, centres, distances = clusters_by_loops(features, anchors)
        found = anchored_clusters(features, anchors)
        assert found.labels.tolist() == labels
        np.testing.assert_allclose(found.centres, np.stack(centres), rtol=1e-12)
        np.testing.assert_allclose(found.distances, distances, atol=1e-15)
        once = anchored_clusters(features, anchors, max_iterations=1)
        assert once.labels.tolist() == clusters_by_loops(features, anchors, cap=1)[0]


def test_features_along_their_anchors_are_found_at_once():
    anchors = torch.randn(5, 8)
    truth = torch.arange(40) % 5
    features = anchors[truth] * (0.1 + torch.rand(40, 1))
    for cap in (1, 100):
        found = anchored_clusters(features, anchors, max_iterations=cap)
        assert found.labels.equal(truth)
        assert found.distances.max() < 1e-7
    assert nearest_fraction(found.labels, found.distances, 1.0, 5).all()


def circle(*degrees):
    angle = torch.deg2rad(torch.tensor(degrees, dtype=DOUBLE))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_centres_that_changed_places_in_a_cycle_of_three_get_their_own_names():
    # A heavy feature at 59 degrees draws the centre of the anchor at 0, then one at 100 draws it
    # on to 69: nearer to the anchor at 120. So do the two other thirds of the circle.
    turns = (0.0, 120.0, 240.0)
    features = torch.cat(
        [6 * circle(*(59 + t for t in turns)), 2 * circle(*(100 + t for t in turns))]
    )
    found = anchored_clusters(features, circle(*turns), tolerance=1e-9)
    assert found.labels.tolist() == [1, 2, 0, 1, 2, 0]
    degrees = torch.rad2deg(torch.atan2(found.centres[:, 1], found.centres[:, 0])) % 360
    assert degrees.tolist() == pytest.approx([308.9, 68.9, 188.9], abs=0.1)
    to_own = 1 - F.cosine_similarity(features, found.centres[found.labels])
    torch.testing.assert_close(found.distances, to_own / 2)


def test_clusters_without_features_stay_at_their_anchors():
    anchors = torch.eye(3)
    features = torch.tensor([[1.0, 0.1, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    found = anchored_clusters(features, anchors)
    assert found.labels.tolist() == [0, 0, 0]  # no direction: all are equally far, the first wins
    assert found.distances[2] == 0.5
    torch.testing.assert_close(found.centres[1:], anchors[1:].double())
    none = anchored_clusters(features[:0], anchors)
    assert none.labels.shape == none.distances.shape == (0,)
    assert none.centres.equal(anchors.double())


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8, 1.0])
def test_nearest_fraction_is_that_of_plain_loops(fraction):
    for _ in range(10):
        labels = torch.randint(4, (30,)) % 3  # class 3 of 4 stays empty
        distances = torch.randint(5, (30,)) / 4  # many are equal
        keep = nearest_fraction(labels, distances, fraction, 4)
        for k in range(4):
            own = [i for i in range(30) if labels[i] == k]
            own.sort(key=lambda i: (distances[i].item(), i))
            kept = own[: math.floor(fraction * len(own))]
            assert [i for i in own if keep[i]] == kept
    with pytest.raises(ValueError, match=r"fraction=1\.5"):
        nearest_fraction(labels, distances, 1.5, 4)


def test_class_gaussians():
    features, anchors = torch.rand(40, 6) + torch.randn(6), torch.randn(4, 6)
    features[:, 2] = 0  # a dead channel
    labels = torch.tensor([0] * 20 + [1] * 15 + [2] * 5)
    keep = torch.arange(40) % 20 < 18  # of class 2 three of five
    mean, std, usable = class_gaussians(features, labels, keep, anchors)
    assert usable.tolist() == [True, True, False, False]
    for k in range(2):
        own, anchor = features[(labels == k) & keep].double(), anchors[k].double()
        torch.testing.assert_close(mean[k], own.mean(0).norm() * anchor / anchor.norm())
        assert F.cosine_similarity(mean[k], anchor, dim=0).item() == pytest.approx(1)
        expected = own.std(0)
        expected[2] = 1e-4
        torch.testing.assert_close(std[k], 1.5 * expected)
    assert mean[2:].abs().max() == std[2:].abs().max() == 0
    exact = class_gaussians(features, labels, keep, anchors, gamma=0, min_count=1)
    assert exact.usable.tolist() == [True] * 3 + [False]
    assert torch.equal(torch.normal(exact.mean, exact.std), exact.mean)
    assert class_gaussians(features, labels, keep & False, anchors, min_count=0).mean.eq(0).all()


# SFDA-DeP's roles


def forget_by_loops(probabilities, ratio):
    p = probabilities.tolist()
    classes, count = len(p[0]), len(p)
    predicted = [first_most(row) for row in p]
    over = {k for k in range(classes) if predicted.count(k) / count > 1 / classes}
    entropy = [-sum(x * math.log(x) for x in row if x) for row in p]
    candidates = [i for i in range(count) if predicted[i] in over]
    candidates.sort(key=lambda i: (-entropy[i], i))
    order = [sorted(range(classes), key=lambda k, row=row: -row[k]) for row in p]
    second = [best[1] for best in order]
    return candidates[: math.floor(ratio * len(candidates))], candidates, predicted, second, entropy


@pytest.mark.parametrize(("count", "classes"), SIZES)
@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.5, 1.0])
def test_forget_set_is_that_of_plain_loops(count, classes, ratio):
    for _ in range(10):
        logits = 2 * torch.randn(count, classes, dtype=DOUBLE)
        logits[:, 0] += 1
        p = logits.softmax(1)
        chosen, candidates, predicted, second, entropy = forget_by_loops(p, ratio)
        roles = forget_set(p, ratio)
        assert sorted(chosen) == roles.forget.nonzero()[:, 0].tolist()
        assert (roles.prediction.tolist(), roles.second.tolist()) == (predicted, second)
        np.testing.assert_allclose(roles.entropy, entropy, rtol=1e-12)
        assigned = [second[i] if i in chosen else predicted[i] for i in range(count)]
        assert roles.assigned.tolist() == assigned
        rest = [entropy[i] for i in candidates if i not in chosen]
        assert min((entropy[i] for i in chosen), default=9) >= max(rest, default=0) - 1e-12
        assert overpredicted(roles.prediction, classes)[roles.prediction[roles.forget]].all()
        order = torch.randperm(count)
        assert forget_set(p[order], ratio).forget.equal(roles.forget[order])


def test_ties_go_to_the_lower_index():
    roles = forget_set(torch.tensor([[0.4, 0.2, 0.2, 0.2]] * 2000), ratio=0.35)
    assert roles.forget.nonzero()[:, 0].tolist() == list(range(700))
    assert roles.second.tolist() == [1] * 2000
    keep = nearest_fraction(roles.second, torch.zeros(2000), 0.5, 2)
    assert keep.nonzero()[:, 0].tolist() == list(range(1000))
    assert forget_set(torch.full((4, 2), 0.5)).prediction.tolist() == [0] * 4


def test_the_threshold_is_on_the_entropy_relative_to_its_largest():
    p = torch.tensor([[0.5, 0.5], [0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
    relative = [1.0, 0.97095, 0.46900, 0.72193]
    assert (forget_set(p).entropy / math.log(2)).tolist() == pytest.approx(relative, abs=1e-5)
    for threshold, forgotten in ((0.7, 2), (0.4, 3), (0.0, 3), (1.0, 1)):
        chosen = forget_set(p, entropy_threshold=threshold).forget
        assert chosen.tolist() == [True] * forgotten + [False] * (4 - forgotten)


def test_a_random_part_of_the_choice():
    p = torch.tensor([[0.7, 0.3]]).repeat(50, 1) + torch.randn(50, 1) * torch.tensor([0.05, -0.05])
    whole = forget_set(p, 0.4).forget
    part, again = (
        forget_set(p, 0.4, subsample=0.5, generator=torch.Generator().manual_seed(3)).forget
        for _ in range(2)
    )
    assert part.sum() == 10
    assert not (part & ~whole).any()
    assert part.equal(again)
    assert forget_set(p, 0.4, subsample=0.0).forget.sum() == 1
    assert not forget_set(p, 0.0, subsample=0.5).forget.any()
    with pytest.raises(ValueError, match="subsample=2"):
        forget_set(p, subsample=2)
    with pytest.raises(ValueError, match="at least 2 classes"):
        forget_set(p[:, :1])


def test_bias_of_the_published_row():
    predictions = torch.tensor([0] * 33 + [1] * 139)  # confusion [[24, 62], [9, 77]]
    bias = prediction_bias(predictions, 2)
    assert bias["kl"].item() == pytest.approx(0.204238, abs=5e-7)
    assert bias["ratio"].item() == pytest.approx(4.2121, abs=5e-5)
    reverse = -(bias["counts"] / 86).log().mean().item()  # KL(uniform || pi): published selection
    assert reverse == pytest.approx(0.238857, abs=5e-7)


def test_bias_at_its_bounds():
    def numbers(predictions, probabilities):
        bias = prediction_bias(torch.tensor(predictions), 3, probabilities)
        return [bias[name].item() for name in ("kl", "ratio", "marginal_entropy")]

    one = torch.tensor([[1.0, 0.0, 0.0]])
    assert numbers([0] * 7, one) == pytest.approx([math.log(3), 7, 0])
    assert numbers([0, 1, 2] * 2, torch.eye(3)) == pytest.approx([0, 1, math.log(3)], abs=1e-15)
    with pytest.raises(ValueError, match="no predictions"):
        prediction_bias(torch.zeros(0, dtype=torch.int64), 3)


# All of them


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_is_float64_without_gradients_whatever_comes_in(dtype):
    features, anchors = torch.randn(30, 5).to(dtype).requires_grad_(), torch.randn(3, 5).to(dtype)
    p = torch.randn(30, 3).softmax(1).to(dtype).requires_grad_()

    def everything(features, anchors, p):
        clusters = anchored_clusters(features, anchors)
        keep = nearest_fraction(clusters.labels, clusters.distances, 0.8, 3)
        yield from (centroid_labels(features, p), *clusters, keep)
        yield from class_gaussians(features, clusters.labels, keep, anchors)
        roles = forget_set(p)
        yield from vars(roles).values()
        yield from prediction_bias(roles.prediction, 3, p).values()

    with torch.autocast("cpu", torch.bfloat16):
        found = list(everything(features, anchors, p))
    expected = everything(features.double(), anchors.double(), p.double())
    for value, exact in zip(found, expected, strict=True):
        assert value.dtype in (torch.bool, torch.int64, DOUBLE)
        assert not value.requires_grad
        assert value.equal(exact)
