"""Losses of super-resolution against numpy, closed forms and float64."""

import numpy as np
import pytest
import torch
from PIL import Image

from wsl_zoo.losses import pixel_loss, restoration_terms, ssim, stage_target

EXACT = {"rtol": 0, "atol": 1e-12}


def images(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def by_hand(sr, target, window=19, sigma=1.5):
    """The mean of one image (H, W): every window, zeros beyond the border."""
    radius = window // 2
    offset = np.arange(-radius, radius + 1)
    kernel = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    x, y = (np.pad(image, radius) for image in (sr, target))
    values = []
    for i in range(sr.shape[0]):
        for j in range(sr.shape[1]):
            a, b = (image[i : i + window, j : j + window] for image in (x, y))
            mu_a, mu_b = (kernel * a).sum(), (kernel * b).sum()
            var_a, var_b = ((kernel * c**2).sum() - mu**2 for c, mu in ((a, mu_a), (b, mu_b)))
            cov = (kernel * a * b).sum() - mu_a * mu_b
            means = (2 * mu_a * mu_b + 1e-4) / (mu_a**2 + mu_b**2 + 1e-4)
            values.append(means * (2 * cov + 9e-4) / (var_a + var_b + 9e-4))
    return np.mean(values)


# SSIM


def test_the_negative_of_an_image_has_no_credit():
    truth = images(2, 1, 24, 24).clamp(0.05, 1)
    assert ssim(-truth, truth, luminance="published").mean() > 0.98
    assert ssim(-truth, truth).mean() < -0.9
    torch.testing.assert_close(ssim(truth, truth), torch.ones(len(truth)).to(truth))
    shifted = (truth + 0.1 * truth.flip(-1)).requires_grad_()  # of one sign: nothing changes
    both = [ssim(shifted, truth, luminance=kind).sum() for kind in ("positive", "published")]
    assert torch.equal(*both)
    assert torch.equal(*(torch.autograd.grad(loss, shifted)[0] for loss in both))
    made = (-truth).requires_grad_()  # downhill from the negative is up: towards the image
    (gradient,) = torch.autograd.grad(-ssim(made, truth).sum(), made)
    assert gradient.mean() < 0


@pytest.mark.parametrize(("window", "sigma"), [(19, 1.5), (11, 1.5), (5, 3.0), (1, 1.0)])
def test_ssim_is_that_of_every_window(window, sigma):
    sr, target = images(2, 2, 13, 21), images(2, 2, 13, 21, seed=1)
    sr[1] = target[1] + 0.1 * sr[1]
    expected = [
        np.mean([by_hand(a, b, window, sigma) for a, b in zip(x, y, strict=True)])
        for x, y in zip(sr.numpy(), target.numpy(), strict=True)
    ]
    found = ssim(sr, target, window, sigma)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_ssim_of_one_pixel_windows_compares_values():
    sr, target = images(1, 1, 8, 8), images(1, 1, 8, 8, seed=1)
    expected = (2 * sr * target + 1e-4) / (sr**2 + target**2 + 1e-4)
    torch.testing.assert_close(ssim(sr, target, window=1), expected.mean().view(1), **EXACT)
    constants = ssim(sr, target, window=1, c1=0.5)
    expected = (2 * sr * target + 0.5) / (sr**2 + target**2 + 0.5)
    torch.testing.assert_close(constants, expected.mean().view(1), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_images_have_one_and_no_gradient(dtype):
    textured = images(1, 1, 16, 16, dtype=dtype)
    for target in (textured, torch.ones_like(textured), torch.zeros_like(textured), 9 * textured):
        for window in (19, 11, 3):
            sr = target.clone().requires_grad_()
            value = ssim(sr, target, window)
            value.sum().backward()
            assert value.item() == 1
            assert (sr.grad == 0).all()
    assert ssim(textured, textured).dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )


@pytest.mark.parametrize("noise", [1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("bright", [0.0, 0.95, 3.0])
def test_float32_is_as_good_as_float64(noise, bright):
    target = bright + 0.01 * images(2, 1, 32, 32)
    target[1, ..., :16] = 0
    sr = target + noise * (images(2, 1, 32, 32, seed=1) - 0.5)
    found, exact = [], []
    for kept, dtype in ((found, torch.float32), (exact, torch.float64)):
        x = sr.float().to(dtype).requires_grad_()
        value = ssim(x, target.float().to(dtype))
        value.sum().backward()
        kept += [value.detach().double(), x.grad.double()]
    assert ((found[0] - exact[0]).abs() <= 1.2e-7 + 1e-4 * (1 - exact[0])).all()
    assert (found[1] - exact[1]).norm() < 1e-3 * exact[1].norm()


def test_gradients():
    sr, target = images(1, 2, 7, 6).requires_grad_(), images(1, 2, 7, 6, seed=1)
    for window in (3, 9, 19):
        assert torch.autograd.gradcheck(lambda x, n=window: ssim(x, target, n), sr)
    assert torch.autograd.gradcheck(lambda x: ssim(target, x, 5), sr)
    assert torch.autograd.gradgradcheck(lambda x: ssim(x, target, 3), sr)
    for kind in ("l2", "l1", "charbonnier"):
        assert torch.autograd.gradcheck(lambda x, k=kind: pixel_loss(x, target, k), sr)
    small = images(1, 2, 4, 3, seed=2).requires_grad_()
    for targets in ("antialias", "published"):
        assert torch.autograd.gradcheck(
            lambda a, b, t=targets: restoration_terms([a, b], target, stage_targets=t)["ssim"],
            (small, sr),
        )


@pytest.mark.parametrize("far", [1e3, 1e5, -1e5])
def test_far_outputs_are_unlike(far):
    target = images(1, 1, 48, 48, dtype=torch.float32)
    sr = torch.full_like(target, far).requires_grad_()
    value = ssim(sr, target)
    value.sum().backward()
    assert value.item() == pytest.approx(0, abs=1e-3)  # their means alone make it 1e-3 or less
    assert sr.grad.norm() < 1e-3


def test_autocast_changes_nothing():
    sr, target = images(1, 1, 16, 16, dtype=torch.float32), images(1, 1, 16, 16, seed=1).float()
    expected = restoration_terms([sr], target)
    with torch.autocast("cpu", torch.bfloat16):
        found = restoration_terms([sr], target)
    assert found == expected
    halves = restoration_terms([sr.bfloat16()], target)
    assert all(value.dtype == torch.float32 for value in halves.values())
    assert halves == restoration_terms([sr.bfloat16().float()], target)


# Pixels


def test_pixel_losses():
    sr, target = images(2, 1, 5, 4).requires_grad_(), images(2, 1, 5, 4, seed=1)
    d = (sr - target).detach().numpy()
    values = {"l2": (d**2).mean(), "l1": np.abs(d).mean(), "charbonnier": np.hypot(d, 1e-3).mean()}
    for kind, value in values.items():
        assert pixel_loss(sr, target, kind).item() == pytest.approx(value, rel=1e-12)
    pixel_loss(sr, target).backward()
    torch.testing.assert_close(sr.grad, 2 * (sr - target).detach() / 40, **EXACT)
    assert pixel_loss(target, target, "charbonnier").item() == pytest.approx(1e-3)


# Stages


def test_a_target_of_the_same_size_is_itself():
    target = images(1, 1, 8, 8)
    for kind in ("antialias", "published"):
        assert stage_target(target, (8, 8), kind) is target


def test_antialiasing_is_that_of_pillow():
    target = images(1, 1, 24, 32, dtype=torch.float32)
    target[..., 16:] = (target[..., 16:] > 0.5).float()  # rings: clamped
    array = target[0, 0].numpy()
    for size in ((12, 16), (6, 8)):
        pillow = Image.fromarray(array).resize(size[::-1], Image.Resampling.BICUBIC)
        found = stage_target(target, size)[0, 0].numpy()
        np.testing.assert_allclose(found, np.clip(np.asarray(pillow), 0, 1), atol=1e-5)


def cubic(row, at, a=-0.75):
    """Values of a row at places between its pixels, by the kernel of Keys; the ends repeat."""
    found = []
    for x in at:
        taps = int(np.floor(x)) + np.arange(-1, 3)
        t = np.abs(x - taps)
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        found.append((np.where(t <= 1, near, far) * row[taps.clip(0, len(row) - 1)]).sum())
    return np.array(found)


def test_the_published_target_keeps_corners():
    row = (images(16) > 0.5).double()
    target = row.expand(1, 1, 16, 16)
    expected = cubic(row.numpy(), np.linspace(0, 15, 8))
    found = stage_target(target, (8, 8), "published")[0, 0]
    assert expected.min() < 0 or expected.max() > 1
    np.testing.assert_allclose(found.numpy(), [expected.clip(0, 1)] * 8, atol=1e-12)
    assert found[0, [0, -1]].tolist() == row[[0, -1]].tolist()
    assert stage_target(target.bfloat16(), (8, 8), "published").dtype == torch.float32


@pytest.mark.parametrize("targets", ["antialias", "published"])
def test_terms_are_means_over_stages(targets):
    target = images(2, 1, 16, 16)
    stages = [images(2, 1, n, n, seed=n) for n in (4, 8, 16)]
    truths = [stage_target(target, (n, n), targets) for n in (4, 8, 16)]
    terms = restoration_terms(
        stages, target, pixel="l1", pixel_weight=3, ssim_weight=2, window=7, stage_targets=targets
    )
    assert list(terms) == ["l1", "ssim"]
    pairs = list(zip(stages, truths, strict=True))
    l1 = np.mean([(sr - truth).abs().mean().item() for sr, truth in pairs])
    similarity = np.mean([ssim(sr, truth, 7).mean().item() for sr, truth in pairs])
    assert terms["l1"].item() == pytest.approx(3 * l1, rel=1e-12)
    assert terms["ssim"].item() == pytest.approx(-2 * similarity, rel=1e-12)
    steps = restoration_terms([stages[-1], target], target)  # of a recurrent network
    assert steps["l2"].item() == pytest.approx(((stages[-1] - target) ** 2).mean().item() / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_least_loss_is_minus_five(dtype):
    target = images(2, 1, 32, 32, dtype=dtype)
    stages = [stage_target(target, (n, n)) for n in (8, 16, 32)]
    for given in (stages, [target], [torch.full_like(target, 0.7)]):
        truth = target if given[-1] is target else given[-1]
        terms = restoration_terms(given, truth)
        assert {name: term.item() for name, term in terms.items()} == {"l2": 0, "ssim": -5}
    worse = restoration_terms([*stages[:2], target + 0.01], target)
    assert sum(worse.values()) > -5


def test_a_weight_of_zero_leaves_a_term_out():
    sr, target = images(1, 1, 8, 8), images(1, 1, 8, 8, seed=1)
    assert list(restoration_terms([sr], target, ssim_weight=0)) == ["l2"]
    assert list(restoration_terms([sr], target, pixel_weight=0)) == ["ssim"]
    with pytest.raises(ValueError, match="both 0"):
        restoration_terms([sr], target, pixel_weight=0, ssim_weight=0)


def test_wrong_input_is_refused():
    sr, target = images(2, 1, 8, 8), images(2, 1, 8, 8, seed=1)
    for loss in (ssim, pixel_loss):
        with pytest.raises(ValueError, match=r"one shape .*\(2, 1, 8, 8\) and \(1, 1, 8, 8\)"):
            loss(sr, target[:1])
    with pytest.raises(ValueError, match="window=4 must be odd"):
        ssim(sr, target, window=4)
    with pytest.raises(ValueError, match="sigma=0"):
        ssim(sr, target, sigma=0)
    with pytest.raises(ValueError, match="kind='mse'"):
        pixel_loss(sr, target, "mse")
    with pytest.raises(ValueError, match="kind='bicubic'"):
        stage_target(target, (4, 4), "bicubic")
    with pytest.raises(ValueError, match=r"\(16, 8\) is larger than its target \(8, 8\)"):
        restoration_terms([images(2, 1, 16, 8)], target)
    with pytest.raises(ValueError, match="no stage"):
        restoration_terms([], target)
