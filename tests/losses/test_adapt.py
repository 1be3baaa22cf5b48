"""Losses of source-free adaptation, against plain loops and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsl_zoo.losses import (
    anchor_contrast,
    contrastive_domain_discrepancy,
    forget_set,
    marginal_entropy,
    negative_entropy,
    overpredicted,
    suppression_loss,
)
from wsl_zoo.methods.negatives import mean_over

DOUBLE = torch.float64
WIDTHS = [0.25, 0.5, 1, 2, 4]


# SHOT's information maximisation


def test_certain_and_balanced_predictions_are_the_optimum_of_both_entropies():
    logits = 200 * torch.eye(4).repeat(3, 1)
    assert negative_entropy(logits).abs().max() == 0
    assert marginal_entropy(logits.softmax(1)).item() == pytest.approx(math.log(4))
    one_sided = torch.tensor([[1.0, 0.0]] * 5)
    assert marginal_entropy(one_sided) == 0


def test_uniform_predictions_have_the_largest_entropies_and_no_gradient():
    logits = torch.zeros(6, 3, dtype=DOUBLE, requires_grad=True)
    each, mean = -negative_entropy(logits).mean(), marginal_entropy(logits.softmax(1))
    assert each.item() == pytest.approx(math.log(3))
    assert mean.item() == pytest.approx(math.log(3))
    for value in (each, mean):
        assert torch.autograd.grad(value, logits, retain_graph=True)[0].abs().max() < 1e-15


def test_marginal_entropy_in_bits_and_its_gradient():
    logits = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    mean = logits.softmax(1).mean(0)
    expected = -sum(m * math.log(m) for m in mean.tolist())
    assert marginal_entropy(logits.softmax(1)).item() == pytest.approx(expected, abs=1e-12)
    assert marginal_entropy(logits.softmax(1), 2).item() == pytest.approx(1.4426950 * expected)
    assert torch.autograd.gradcheck(lambda z: marginal_entropy(z.softmax(1)), logits)


def test_the_published_entropy_is_nan_at_zero_where_this_one_and_its_gradient_are_finite():
    logits = torch.tensor([[200.0, 0.0]] * 3, requires_grad=True)
    probs = logits.softmax(1)
    assert (probs * probs.log2()).sum().isnan()
    marginal_entropy(probs).backward()
    assert logits.grad.isfinite().all()
    assert marginal_entropy(probs.bfloat16()).dtype == torch.float32


# CDCL's contrast


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("temperature", [0.04, 0.5])
def test_contrast_is_cross_entropy_of_cosines(classes, temperature):
    f, w = torch.randn(7, 6, dtype=DOUBLE), torch.randn(classes, 6, dtype=DOUBLE)
    target = torch.randint(classes, (7,))
    loss = anchor_contrast(f, w, target, temperature)
    logits = F.normalize(f) @ F.normalize(w).T / temperature
    expected = F.cross_entropy(logits, target, reduction="sum")
    torch.testing.assert_close(loss.sum(), expected)
    for i in range(7):
        u = f[i].numpy()
        cosines = [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for v in w.numpy()]
        odds = [math.exp((c - cosines[target[i]]) / temperature) for c in cosines]
        assert loss[i].item() == pytest.approx(math.log(sum(odds)), rel=1e-9)
    scaled = anchor_contrast(f * torch.rand(7, 1) * 9, w * torch.rand(classes, 1), target, 0.5)
    torch.testing.assert_close(scaled, anchor_contrast(f, w, target, 0.5))


def test_gradient_of_contrast_is_orthogonal_to_the_feature_and_never_reaches_anchors():
    f = torch.randn(7, 6, dtype=DOUBLE, requires_grad=True)
    w = torch.randn(3, 6, dtype=DOUBLE, requires_grad=True)
    target = torch.randint(3, (7,))
    anchor_contrast(f, w, target, 0.05).sum().backward()
    assert w.grad is None
    assert (f * f.grad).sum(1).abs().max() < 1e-12
    assert f.grad.abs().amax(1).min() > 1e-6
    assert torch.autograd.gradcheck(lambda f: anchor_contrast(f, w, target, 0.05), f)


@pytest.mark.parametrize("classes", [2, 5])
def test_closed_forms_of_contrast(classes):
    w, target = 3 * torch.eye(classes, dtype=DOUBLE), torch.arange(classes)
    equal = anchor_contrast(torch.randn(classes, classes, dtype=DOUBLE), w, target, 1e9)
    torch.testing.assert_close(equal.sum().item(), classes * math.log(classes))
    at_anchor = anchor_contrast(w, w, target, 0.5)
    expected = math.log(1 + (classes - 1) * math.exp(-2))
    torch.testing.assert_close(at_anchor, torch.full_like(at_anchor, expected))


def test_zero_features_of_the_contrast():
    f = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [1.0, 2.0]], requires_grad=True)
    loss = anchor_contrast(f, torch.eye(2), torch.tensor([0, 1, 0]), 0.05)
    loss.sum().backward()
    assert loss[:2].tolist() == pytest.approx([math.log(2)] * 2)
    assert f.grad[:2].abs().max() == 0
    assert f.grad[2].abs().max() > 0
    with pytest.raises(ValueError, match="must be positive"):
        anchor_contrast(f, torch.eye(2), torch.tensor([0, 1, 0]), 0.0)


# SFDA-DE's discrepancy


def discrepancy_by_loops(source, target, compat=False, widths_of=None):
    """One group, layers of (K, n, D); bandwidths from the target `widths_of`, if given."""

    def distance(u, v):
        return sum((a - b) ** 2 for a, b in zip(u, v, strict=True))

    source, target = [s.tolist() for s in source], [t.tolist() for t in target]
    others = target if widths_of is None else [t.tolist() for t in widths_of]
    classes, result = len(source[0]), 0.0
    for s, t, o in zip(source, target, others, strict=True):
        n, m = len(s[0]), len(t[0])
        for c in range(classes):
            for k in range(classes):
                cross = o[c] if compat else o[k]
                total = sum(distance(u, v) for u in s[c] for v in s[c])
                total += sum(distance(u, v) for u in o[k] for v in o[k])
                total += 2 * sum(distance(u, v) for u in s[c] for v in cross)
                gamma = total / (n**2 + m**2 + 2 * n * m - n - m)

                def kernel(u, v, gamma=gamma):
                    widths = [max(gamma * factor, 1e-5) for factor in WIDTHS]
                    return sum(math.exp(-min(max(distance(u, v) / w, 1e-5), 1e5)) for w in widths)

                mmd = sum(kernel(u, v) for u in s[c] for v in s[c]) / n**2
                mmd += sum(kernel(u, v) for u in t[k] for v in t[k]) / m**2
                mmd -= 2 * sum(kernel(u, v) for u in s[c] for v in t[k]) / (n * m)
                result += mmd / classes if c == k else -mmd / (classes * (classes - 1))
    return result


def blocks(*leading, classes=3, n=3, sizes=(4,), shift=1.0):
    """Return one layer of blocks per size, the classes apart."""
    apart = shift * torch.arange(classes, dtype=DOUBLE)[:, None, None]
    return [torch.randn(*leading, classes, n, d, dtype=DOUBLE) + apart for d in sizes]


@pytest.mark.parametrize("classes", [1, 2, 3, 5])
@pytest.mark.parametrize("compat", [False, True])
def test_discrepancy_is_that_of_plain_loops(classes, compat):
    source = blocks(2, classes=classes, sizes=(4, 2))
    target = blocks(2, classes=classes, n=4, sizes=(4, 2), shift=0.7)
    value = contrastive_domain_discrepancy(source, target, compat)
    for g in range(2):
        group = [s[g] for s in source], [t[g] for t in target]
        assert value[g].item() == pytest.approx(discrepancy_by_loops(*group, compat), abs=1e-12)
        assert contrastive_domain_discrepancy(*group, compat).item() == pytest.approx(value[g])


def test_the_published_cross_block_changes_the_terms_between_classes_alone():
    one = blocks(classes=1), blocks(classes=1)
    assert torch.equal(*(contrastive_domain_discrepancy(*one, compat) for compat in (False, True)))
    two = blocks(classes=2), blocks(classes=2)
    right, published = (contrastive_domain_discrepancy(*two, c) for c in (False, True))
    assert abs(right - published) > 1e-3


def test_layers_add_up():
    source, target = blocks(2, sizes=(4, 3)), blocks(2, sizes=(4, 3))
    each = [contrastive_domain_discrepancy([source[i]], [target[i]]) for i in range(2)]
    torch.testing.assert_close(contrastive_domain_discrepancy(source, target), sum(each))
    with pytest.raises(ValueError, match="no layer"):
        contrastive_domain_discrepancy([], [])
    with pytest.raises(ValueError, match="shorter"):
        contrastive_domain_discrepancy(source, target[:1])


def test_equal_domains_have_no_discrepancy_within_classes():
    s = blocks(20, classes=3)
    assert contrastive_domain_discrepancy([s[0][:, :1]], [s[0][:, :1]]).abs().max() == 0
    assert (contrastive_domain_discrepancy(s, s) <= 0).all()


def test_discrepancy_within_classes_is_not_negative_and_does_not_depend_on_scale():
    one, other = blocks(50, classes=1), blocks(50, classes=1, shift=0.1)
    assert (contrastive_domain_discrepancy(one, other) > 0).all()
    source, target = blocks(50), blocks(50)
    value = contrastive_domain_discrepancy(source, target)
    assert value.abs().max() <= 10
    scaled = contrastive_domain_discrepancy([7 * source[0]], [7 * target[0]])
    torch.testing.assert_close(scaled, value)


@pytest.mark.parametrize("distance", [1.0, 100.0])
def test_discrepancy_of_two_tight_clusters_is_a_constant(distance):
    # No spread: g_cc = 0, and g_ck = 2 * 9 d^2 / 30 for two times three samples.
    points = torch.tensor([[0.0], [distance]], dtype=DOUBLE)[:, None].expand(2, 3, 1)
    between = 2 * sum(math.exp(-1e-5) - math.exp(-1 / (0.6 * w)) for w in WIDTHS)
    value = contrastive_domain_discrepancy([points], [points])
    assert value.item() == pytest.approx(-between, rel=1e-12)
    spread = points + 1e-3 * distance * torch.randn(2, 3, 1, dtype=DOUBLE)
    assert contrastive_domain_discrepancy([spread], [spread]).item() == pytest.approx(
        -between, rel=1e-3
    )


def test_gradient_of_discrepancy_is_that_of_fixed_bandwidths():
    source, target = blocks(classes=2, sizes=(3, 2)), blocks(classes=2, sizes=(3, 2))
    leaves = [t.clone().requires_grad_() for t in target]
    frozen = [s.clone().requires_grad_() for s in source]
    contrastive_domain_discrepancy(frozen, leaves).backward()
    assert all(s.grad is None for s in frozen)
    step = 1e-6
    for layer, leaf in enumerate(leaves):
        for place in np.ndindex(*leaf.shape):
            ends = []
            for sign in (1, -1):
                moved = [t.clone() for t in target]
                moved[layer][place] += sign * step
                ends.append(discrepancy_by_loops(source, moved, widths_of=target))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert leaf.grad[place].item() == pytest.approx(slope, abs=1e-7)


def test_no_group_is_a_sum_of_zero_with_a_graph():
    target = torch.randn(0, 2, 3, 4, requires_grad=True)
    contrastive_domain_discrepancy([torch.randn(0, 2, 3, 4)], [target]).sum().backward()
    assert target.grad.shape == target.shape


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-3, 1e6])
def test_discrepancy_stays_finite_in_float32(scale):
    source, target = scale * torch.randn(2, 2, 3, 64), scale * torch.randn(2, 2, 3, 64)
    target.requires_grad_()
    contrastive_domain_discrepancy([source], [target]).sum().backward()
    assert target.grad.isfinite().all()


# SFDA-DeP's suppression


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_suppression_and_its_gradient_have_their_closed_forms(classes):
    logits = (3 * torch.randn(6, classes, dtype=DOUBLE)).requires_grad_()
    label = torch.randint(classes, (6,))
    p, row = logits.detach().softmax(1), torch.arange(6)
    loss = suppression_loss(logits, label)
    torch.testing.assert_close(loss, -torch.log1p(-p[row, label]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    chosen = p[row, label][:, None]
    expected = (-p * chosen / (1 - chosen)).scatter(1, label[:, None], chosen)
    torch.testing.assert_close(gradient, expected)
    assert gradient.sum(1).abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda z: suppression_loss(z, label), logits)


def test_suppression_of_two_classes_is_a_flip():
    logits, label = 5 * torch.randn(50, 2, dtype=DOUBLE), torch.randint(2, (50,))
    flip = suppression_loss(logits, label, 1 - label, variant="flip")
    torch.testing.assert_close(flip, F.cross_entropy(logits, 1 - label, reduction="none"))
    torch.testing.assert_close(suppression_loss(logits, label), flip)


def test_ascent_is_the_cross_entropy_negated():
    logits, label = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True), torch.randint(3, (5,))
    loss = suppression_loss(logits, label, variant="ascent").sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    (descent,) = torch.autograd.grad(F.cross_entropy(logits, label, reduction="sum"), logits)
    assert torch.equal(gradient, -descent)


def test_suppression_of_uniform_and_of_excluded_classes():
    loss = suppression_loss(torch.zeros(1, 4), torch.tensor([2]))
    assert loss.item() == pytest.approx(-math.log(3 / 4))
    assert suppression_loss(torch.tensor([[0.0, 1e4]]), torch.tensor([0])).item() == 0


@pytest.mark.parametrize("margin", [18.0, 100.0, 1e4])
def test_certain_images_are_suppressed_where_the_gradient_of_the_published_form_fades(margin):
    logits = torch.tensor([[margin, 0.0]], requires_grad=True)
    label = torch.tensor([0])
    published = -(1 - logits.softmax(1)[0, 0] + 1e-6).log()
    (faded,) = torch.autograd.grad(published, logits)
    assert faded[0, 0] == 0
    assert faded[0, 1].abs() < 0.02
    loss = suppression_loss(logits, label)
    assert loss.item() == pytest.approx(margin)
    assert torch.autograd.grad(loss, logits)[0].tolist() == [[pytest.approx(1), pytest.approx(-1)]]


def test_wrong_use_of_the_suppression():
    logits, label = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="second choices"):
        suppression_loss(logits, label, variant="flip")
    with pytest.raises(ValueError, match="'flop'"):
        suppression_loss(logits, label, variant="flop")
    with pytest.raises(ValueError, match="2 classes"):
        suppression_loss(torch.zeros(2, 1), label)


@pytest.mark.parametrize(("classes", "ratio"), [(2, 1.0), (3, 1.0), (3, 0.0)])
def test_balanced_predictions_and_a_ratio_of_zero_leave_plain_self_training(classes, ratio):
    logits = torch.eye(classes).repeat(4, 1) + 0.3 * torch.rand(4 * classes, classes)
    logits = logits[int(ratio == 0) :]  # without its first image class 0 is not over-predicted
    roles = forget_set(logits.softmax(1), ratio)
    assert overpredicted(roles.prediction, classes).any() == (ratio == 0)
    forget = mean_over(suppression_loss(logits, roles.prediction), roles.forget)
    retain = mean_over(F.cross_entropy(logits, roles.assigned, reduction="none"), ~roles.forget)
    assert forget == 0
    torch.testing.assert_close(retain, F.cross_entropy(logits, logits.argmax(1)))


def toy(forget_weight, rounds):
    """Shares of class 1 after each round, from the score 2x + 4 of 500 points on either side."""
    x = torch.cat([torch.randn(500) - 2, torch.randn(500) + 2])
    slope, offset = torch.tensor(2.0, requires_grad=True), torch.tensor(4.0, requires_grad=True)
    optimizer = torch.optim.SGD([slope, offset], lr=0.05)

    def logits():
        score = slope * x + offset
        return torch.stack([torch.zeros_like(score), score], dim=1)

    shares = [(logits().argmax(1) == 1).float().mean().item()]
    for _ in range(rounds):
        roles = forget_set(logits().softmax(1), ratio=0.15)
        for _ in range(20):
            z = logits()
            retain = mean_over(
                F.cross_entropy(z, roles.prediction, reduction="none"), ~roles.forget
            )
            forget = mean_over(suppression_loss(z, roles.prediction), roles.forget)
            optimizer.zero_grad()
            (retain + forget_weight * forget).backward()
            optimizer.step()
        shares.append((logits().argmax(1) == 1).float().mean().item())
    return shares


def test_forgetting_balances_the_toy_faster_than_self_training():
    debiased = toy(forget_weight=1, rounds=35)
    assert debiased[0] == pytest.approx(0.752, abs=0.03)
    assert debiased[5] == pytest.approx(0.51, abs=0.03)
    assert all(0.47 < share < 0.53 for share in debiased[6:])
    trained = toy(forget_weight=0, rounds=35)
    assert trained[5] == pytest.approx(0.66, abs=0.03)
    assert trained[35] == pytest.approx(0.56, abs=0.03)


# All of them


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(dtype, autocast):
    f, target = torch.randn(6, 5).to(dtype), torch.tensor([0, 1, 2, 0, 1, 2])
    w, s = torch.randn(3, 5).to(dtype), torch.randn(3, 2, 5).to(dtype)
    losses = {
        "contrast": lambda f: anchor_contrast(f, w.to(f.dtype), target, 0.05),
        "discrepancy": lambda f: contrastive_domain_discrepancy([s], [f.view(3, 2, 5)]),
        "suppress": lambda f: suppression_loss(f, target),
        "flip": lambda f: suppression_loss(f, target, target + 1, "flip"),
        "ascent": lambda f: suppression_loss(f, target, variant="ascent"),
    }
    for loss in losses.values():
        leaf = f.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=autocast):
            value = loss(leaf)
            value.sum().backward()
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(f.float()))
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()
