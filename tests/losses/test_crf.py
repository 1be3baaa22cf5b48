"""Dense-CRF losses: closed forms, invariances, gradients, and what they refuse."""

import math
import pickle
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.autograd import gradcheck

from tests.losses.transcription import blob_maps, noise, photo
from wsl_zoo.losses import DenseCRF, JointColorCRF

BACKENDS = ["exact", "permutohedral", "grid"]
GRID = {"backend": "grid"}


def evaluate(crf, probs, raw):
    probs = probs.clone().requires_grad_()
    loss = crf(probs, raw)
    return loss.detach(), torch.autograd.grad(loss, probs)[0]


def flat(size, level=77.0):
    return torch.full((1, 3, size, size), level)


# Values


@pytest.mark.parametrize(
    ("options", "ratio", "tolerance"),
    [
        ({"backend": "exact"}, 1.0, 1e-9),
        ({"backend": "permutohedral"}, 0.5, 0.02),
        ({"backend": "grid", "order": "linear"}, 1.14, 0.01),
        ({"backend": "grid", "order_xy": "linear"}, 1.008, 0.004),
        ({"backend": "grid"}, 1.003, 0.001),
    ],
)
def test_constant_image_is_separable(options, ratio, tolerance):
    line = torch.arange(64, dtype=torch.float64)
    total = torch.exp(-((line[:, None] - line) ** 2) / (2 * 100**2)).sum() ** 2
    assert total.item() == pytest.approx(1.569542e7, rel=1e-6)
    probs = torch.ones(1, 1, 64, 64, dtype=torch.float64)
    loss = DenseCRF(**options)(probs, flat(64).double())
    assert -loss.item() / total.item() == pytest.approx(ratio, abs=tolerance)


def test_wide_kernel_counts_pixels():
    probs, raw = blob_maps(16), noise(16)
    loss = DenseCRF(sigma_rgb=1e6, sigma_xy=1e6, backend="exact")(probs, raw)
    assert loss.item() == pytest.approx(-probs.sum((2, 3)).square().sum().item(), rel=1e-5)

    def share(part):
        half = torch.stack([torch.full((1, 16, 16), part), torch.full((1, 16, 16), 1 - part)], 1)
        return DenseCRF(sigma_rgb=1e6, sigma_xy=1e6, backend="exact")(half, raw).item()

    assert share(1.0) < share(0.8) < share(0.5)


def test_narrow_kernel_is_the_identity():
    raw = torch.arange(64).view(1, 1, 8, 8).expand(1, 3, 8, 8).to(torch.uint8)
    probs = blob_maps(8)
    loss, gradient = evaluate(DenseCRF(sigma_rgb=0.05, backend="exact"), probs, raw)
    assert loss.item() == pytest.approx(-probs.square().sum().item(), rel=1e-5)
    torch.testing.assert_close(gradient, -2 * probs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_aligned_map_costs_less(backend):
    raw = torch.zeros(1, 3, 24, 24)
    raw[:, :, :, 12:] = 200
    left = torch.zeros(24, 24)
    left[:, :12] = 1
    losses = [DenseCRF(backend=backend)(torch.stack([1 - m, m])[None], raw) for m in (left, left.T)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_pulls_to_the_label_of_the_colour(backend):
    raw = torch.zeros(1, 3, 24, 24)
    raw[:, :, :, 12:] = 200
    fg = torch.full((24, 24), 0.5)
    fg[4:8, 4:8] = 0.95
    fg[4:8, 16:20] = 0.05
    _, gradient = evaluate(DenseCRF(backend=backend), torch.stack([1 - fg, fg])[None], raw)
    pull = gradient[0, 0] - gradient[0, 1]  # towards foreground where positive
    assert pull[16, 6] > 0 > pull[16, 18]


# Invariances


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_may_swap_and_the_batch_may_double(backend):
    crf = DenseCRF(backend=backend)
    probs, raw = blob_maps(24, frames=2), photo(24, frames=2)
    loss = crf(probs, raw)
    torch.testing.assert_close(crf(probs.flip(1), raw), loss)
    torch.testing.assert_close(crf(probs.repeat(2, 1, 1, 1), raw.repeat(2, 1, 1, 1)), loss)
    alone = (crf(probs[:1], raw[:1]) + crf(probs[1:], raw[1:])) / 2
    torch.testing.assert_close(alone, loss)


@pytest.mark.parametrize(
    ("backend", "tolerance"), [("exact", 1e-5), ("permutohedral", 0.1), ("grid", 0.01)]
)
def test_frames_may_flip_and_brighten(backend, tolerance):
    crf = DenseCRF(backend=backend)
    probs, raw = blob_maps(32), photo(32).clamp(0, 200)
    loss = crf(probs, raw).item()
    assert crf(probs.flip(3), raw.flip(3)).item() == pytest.approx(loss, rel=tolerance)
    assert crf(probs, raw + 50).item() == pytest.approx(loss, rel=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_is_negative_and_homogeneous(backend):
    probs, raw = blob_maps(24, frames=2), photo(24, frames=2)
    loss, gradient = evaluate(DenseCRF(backend=backend), probs, raw)
    assert (gradient <= 0).all()
    assert (probs * gradient).sum().item() == pytest.approx(2 * loss.item(), rel=1e-5)


def test_more_or_fewer_maps_than_two():
    raw, maps = photo(16), torch.rand(1, 5, 16, 16).softmax(1)
    crf = DenseCRF()
    together = crf(maps, raw)
    alone = sum(crf(maps[:, k : k + 1], raw) for k in range(5))
    torch.testing.assert_close(together, alone)


# Gradients


def check_gradient(crf, frames=1):
    probs = torch.rand(frames, 2, 6, 6, dtype=torch.float64).softmax(1).requires_grad_()
    raw = photo(8, 3, frames)[:, :, 1:7, 1:7]
    return gradcheck(crf, (probs, raw), raise_exception=False)


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "exact"},
        {"backend": "permutohedral"},
        {"backend": "permutohedral", "calibrated": True},
        {"backend": "permutohedral", "scale": 0.7},
        {"backend": "grid"},
        {"backend": "grid", "order": "linear"},
        {"backend": "grid", "order": "cubic", "order_xy": "linear"},
    ],
)
def test_gradient_is_that_of_the_value(options):
    assert check_gradient(DenseCRF(sigma_xy=5.0, **options))


def test_one_order_of_blurs_has_another_gradient():
    assert not check_gradient(DenseCRF(sigma_xy=5.0, symmetric=False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_joint_gradient_is_that_of_the_value(backend):
    assert check_gradient(JointColorCRF(backend=backend), frames=2)


def test_image_and_weight():
    raw = photo(12).float().requires_grad_()
    probs = blob_maps(12).requires_grad_()
    (3.0 * DenseCRF()(probs, raw)).backward()
    assert raw.grad is None
    _, gradient = evaluate(DenseCRF(), probs.detach(), raw.detach())
    torch.testing.assert_close(probs.grad, 3 * gradient)


# Types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [DenseCRF, JointColorCRF])
def test_half_precision_maps_are_filtered_in_float32(dtype, build):
    raw = photo(16)
    probs = blob_maps(16).to(dtype)
    loss, gradient = evaluate(build(), probs, raw)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss, build()(probs.float(), raw))
    torch.testing.assert_close(build()(probs, raw.to(dtype)), loss, rtol=2e-2, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend):
    probs, raw = blob_maps(16), photo(16)
    loss, gradient = evaluate(DenseCRF(backend=backend), probs, raw)
    with torch.autocast("cpu", torch.bfloat16):
        cast, same = evaluate(DenseCRF(backend=backend), probs, raw)
    assert torch.equal(cast, loss)
    assert torch.equal(same, gradient)


@pytest.mark.parametrize("backend", BACKENDS)
def test_type_and_layout_of_the_pixels_do_not_matter(backend):
    probs, raw = blob_maps(16), photo(16)
    loss = DenseCRF(backend=backend)(probs, raw)
    for other in (raw.float(), raw.double(), raw.mT.contiguous().mT):
        torch.testing.assert_close(DenseCRF(backend=backend)(probs, other), loss)
    channels_last = probs.to(memory_format=torch.channels_last)
    torch.testing.assert_close(DenseCRF(backend=backend)(channels_last, raw), loss)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (2, 3)])
def test_tiny_and_constant(backend, shape):
    probs = torch.full((1, 2, *shape), 0.5)
    loss, gradient = evaluate(DenseCRF(backend=backend), probs, torch.zeros(1, 3, *shape))
    assert loss < 0
    assert gradient.isfinite().all()
    loss, gradient = evaluate(JointColorCRF(backend=backend), probs, torch.zeros(1, 3, *shape))
    assert loss < 0
    assert gradient.isfinite().all()


def test_scale_resizes_maps_pixels_and_sigma():
    probs, raw = blob_maps(32), photo(32)
    loss = DenseCRF(scale=0.5, backend="exact")(probs, raw)
    small = torch.nn.functional.interpolate(probs, scale_factor=0.5, mode="bilinear")
    expected = DenseCRF(sigma_xy=50.0, backend="exact")(small, raw[:, :, ::2, ::2])
    torch.testing.assert_close(loss, expected)
    _, gradient = evaluate(DenseCRF(scale=0.5), probs, raw)
    assert gradient.shape == probs.shape
    assert (gradient < 0).all()


# The joint loss


def test_joint_loss_forgets_places():
    probs, raw = blob_maps(16, frames=3), photo(16, frames=3)
    order = torch.randperm(256)
    for backend, tolerance in (("exact", 1e-5), ("grid", 1e-5), ("permutohedral", 1e-5)):
        crf = JointColorCRF(backend=backend)
        loss = crf(probs, raw).item()
        assert crf(probs.flip(0), raw.flip(0)).item() == pytest.approx(loss, rel=tolerance)
        shuffled = probs.flatten(2)[:, :, order].view_as(probs)
        pixels = raw.flatten(2)[:, :, order].view_as(raw)
        assert crf(shuffled, pixels).item() == pytest.approx(loss, rel=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_of_far_colours_do_not_meet(backend):
    raw = torch.cat([photo(16).float() * 0.25, 190 + photo(16, 1).float() * 0.25])
    raw = raw.round()
    probs = blob_maps(16, frames=2)
    crf = JointColorCRF(backend=backend)
    alone = crf(probs[:1], raw[:1]) + crf(probs[1:], raw[1:])
    torch.testing.assert_close(crf(probs, raw), alone, rtol=2e-2, atol=0)
    changed = torch.cat([probs[:1], probs[1:].flip(1)])
    _, one = evaluate(crf, probs, raw)
    _, other = evaluate(crf, changed, raw)
    torch.testing.assert_close(one[0], other[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_frames_count_with_their_square(backend):
    probs, raw = blob_maps(16), photo(16)
    crf = JointColorCRF(backend=backend)
    twice = crf(probs.repeat(2, 1, 1, 1), raw.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, 4 * crf(probs, raw))


@pytest.mark.parametrize("backend", ["exact", "grid"])
def test_colours_merge_without_a_trace(backend):
    probs = blob_maps(24, frames=2).double()
    raw = (photo(24, frames=2) // 16 * 16).double()
    merged, gradient = evaluate(JointColorCRF(backend=backend), probs, raw)
    # Half a level on one channel makes the colours no whole numbers; a shift changes no distance.
    apart, other = evaluate(JointColorCRF(backend=backend), probs, raw + 0.5)
    torch.testing.assert_close(merged, apart)
    torch.testing.assert_close(gradient, other)


def test_joint_grid_is_close_to_the_sum():
    probs, raw = blob_maps(32, frames=3), photo(32, frames=3)
    loss, exact = evaluate(JointColorCRF(backend="exact"), probs, raw)
    for order, in_value, in_gradient in (("linear", 0.01, 0.03), ("quadratic", 2e-3, 3e-3)):
        value, gradient = evaluate(JointColorCRF(order=order), probs, raw)
        assert value.item() == pytest.approx(loss.item(), rel=in_value)
        assert (gradient - exact).norm() < in_gradient * exact.norm()
    value, gradient = evaluate(JointColorCRF(backend="permutohedral"), probs, raw)
    assert torch.cosine_similarity(gradient.flatten(), exact.flatten(), 0) > 0.99
    assert 0.5 < (value / loss).item() < 0.9
    calibrated = JointColorCRF(backend="permutohedral", calibrated=True)(probs, raw)
    assert calibrated.item() == pytest.approx(loss.item(), rel=0.02)


def test_adaptive_weight():
    probs, raw = blob_maps(16, frames=2).requires_grad_(), photo(16, frames=2)
    gradients = []
    for crf in (JointColorCRF(backend="permutohedral"), JointColorCRF()):
        joint = crf(probs, raw)
        loss = 4.0 * joint / joint.detach().abs()
        assert loss.item() == pytest.approx(-4)
        (gradient,) = torch.autograd.grad(loss, probs)
        assert (probs * gradient).sum().item() == pytest.approx(-8, rel=1e-5)
        gradients.append(gradient)
    # The factor c of the lattice is gone.
    torch.testing.assert_close(gradients[0].sum(), gradients[1].sum(), rtol=0.05, atol=0)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "fast"}, "backend='fast': choose one of 'permutohedral', 'grid', 'exact'"),
        ({"sigma_rgb": 0}, "sigma_rgb=0: must be positive"),
        ({"sigma_xy": math.inf}, "sigma_xy=inf: must be positive"),
        ({"scale": -1.0}, "scale=-1.0: must be positive"),
        ({"backend": "grid", "calibrated": True}, "are for 'permutohedral'"),
        ({"backend": "exact", "symmetric": False}, "are for 'permutohedral'"),
        ({"order": "quartic"}, "order='quartic': choose one of 'linear', 'quadratic', 'cubic'"),
        ({"order_xy": "none"}, "order_xy='none': choose one of"),
        ({"spacing": 1.5}, r"spacing=1.5: must lie in \(0, 1.41\) for splines of order 2"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DenseCRF(**options)


@pytest.mark.parametrize("build", [DenseCRF, JointColorCRF])
@pytest.mark.parametrize(
    ("probs", "raw", "message"),
    [
        (torch.rand(2, 8, 8), torch.zeros(1, 3, 8, 8), r"probs must be \(B, K, H, W\) and raw"),
        (torch.rand(1, 2, 8, 8), torch.zeros(1, 1, 8, 8), r"raw \(B, 3, H, W\), got .*1, 1, 8, 8"),
        (torch.rand(1, 2, 4, 8), torch.zeros(1, 3, 8, 8), "resize the maps to the image"),
        (torch.rand(2, 2, 8, 8), torch.zeros(1, 3, 8, 8), "must agree in the number of images"),
        (torch.rand(0, 2, 8, 8), torch.zeros(0, 3, 8, 8), "is empty"),
        (torch.ones(1, 2, 8, 8).long(), torch.zeros(1, 3, 8, 8), "pass the softmax, not labels"),
        (torch.rand(1, 2, 8, 8), torch.zeros(1, 3, 8, 8).long(), "raw must be uint8 or floating"),
        (torch.rand(1, 2, 8, 8) - 2, torch.zeros(1, 3, 8, 8), r"probs must lie in \[0, 1\], found"),
        (torch.rand(1, 2, 8, 8), torch.randn(1, 3, 8, 8) - 9, r"undo the normalisation: 255 \*"),
        (torch.rand(1, 2, 8, 8), torch.full((1, 3, 8, 8), 256.0), r"raw must lie in \[0, 255\]"),
        (torch.rand(1, 2, 8, 8), torch.full((1, 3, 8, 8), torch.nan), "found nan to nan"),
        (
            torch.rand(1, 2, 8, 8),
            torch.zeros(1, 3, 8, 8, device="meta"),
            "probs are on cpu, raw on",
        ),
    ],
)
def test_bad_tensors_are_refused(build, probs, raw, message):
    with pytest.raises(ValueError, match=message):
        build()(probs, raw)


def test_scale_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"scale=0\.1 leaves no pixel"):
        DenseCRF(scale=0.1)(torch.rand(1, 2, 8, 8), torch.zeros(1, 3, 8, 8))


def test_colours_of_0_to_1_are_noticed():
    probs = blob_maps(8)
    with pytest.warns(UserWarning, match="colours are expected in 0 to 255, not 0 to 1"):
        DenseCRF()(probs, photo(8) / 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DenseCRF()(probs, torch.zeros(1, 3, 8, 8))  # a black image is one


def test_losses_travel():
    crf = DenseCRF(sigma_rgb=10.0, backend="grid")
    again = pickle.loads(pickle.dumps(crf))
    probs, raw = blob_maps(8), photo(8)
    torch.testing.assert_close(again(probs, raw), crf(probs, raw))
    assert not crf.state_dict()


# Speed and real photos


@pytest.mark.parametrize(
    ("crf", "frames", "limit"),
    [
        (DenseCRF(), 1, 0.3),
        (DenseCRF(backend="grid", order_xy="linear"), 1, 1.5),
        (JointColorCRF(), 4, 0.1),
    ],
    ids=["permutohedral", "grid", "joint"],
)
def test_speed_at_224(crf, frames, limit):
    probs, raw = blob_maps(224, frames=frames), photo(224, frames=frames)
    evaluate(crf, blob_maps(8), photo(8))  # compiles
    times = []
    for _ in range(3):
        start = time.thread_time()
        evaluate(crf, probs, raw)
        times.append(time.thread_time() - start)
    assert min(times) < limit


def test_targets_on_real_photos(real_data):
    folder = real_data / "CUB_200_2011" / "images"
    paths = sorted(folder.glob("*/*.jpg"))[::150] if folder.is_dir() else []
    if not paths:
        pytest.skip(f"no photos under {folder}")

    for path in paths:
        image = np.array(Image.open(path).convert("RGB").resize((48, 48)))
        raw = torch.from_numpy(image).permute(2, 0, 1)[None]
        probs = blob_maps(48)
        loss, exact = evaluate(DenseCRF(backend="exact"), probs, raw)
        value, gradient = evaluate(DenseCRF(), probs, raw)
        assert torch.cosine_similarity(gradient.flatten(), exact.flatten(), 0) > 0.99
        assert 0.4 < (value / loss).item() < 0.8
        value, gradient = evaluate(DenseCRF(backend="grid"), probs, raw)
        assert value.item() == pytest.approx(loss.item(), rel=0.005)
        assert (gradient - exact).norm() < 0.006 * exact.norm()
