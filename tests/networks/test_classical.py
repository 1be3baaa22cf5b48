import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from wsl_zoo.networks import Interpolation, upsampled
from wsl_zoo.networks.base import SCALES
from wsl_zoo.networks.classical import KINDS, lanczos, lanczos_taps

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
OPENCV = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic_opencv": cv2.INTER_CUBIC,
}
SIZES = ((1, 1), (1, 9), (2, 3), (5, 4), (6, 7), (13, 31))


def noise(height, width, low=0.0, high=1.0):
    return np.random.default_rng(0).uniform(low, high, (height, width)).astype(np.float32)


def enlarged(kind, scale, image):
    return Interpolation(scale, kind=kind)(torch.from_numpy(image)[None, None])[0, 0].numpy()


def by_pillow(kind, scale, image):
    height, width = image.shape
    done = Image.fromarray(image).resize((scale * width, scale * height), PILLOW[kind])
    assert done.mode == "F"
    return np.asarray(done)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", PILLOW)
def test_equals_pillow_everywhere(kind, scale, size):
    image = noise(*size)
    expected = by_pillow(kind, scale, image).clip(0, 1)
    np.testing.assert_allclose(enlarged(kind, scale, image), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", OPENCV)
def test_equals_opencv_everywhere(kind, scale, size):
    image = noise(*size)
    expected = cv2.resize(image, None, fx=scale, fy=scale, interpolation=OPENCV[kind])
    np.testing.assert_allclose(enlarged(kind, scale, image), expected.clip(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", PILLOW)
def test_equals_pillow_in_eight_bits(kind):
    # Of greys in the middle: Pillow clips after each axis, too.
    image = np.random.default_rng(1).integers(90, 160, (20, 17), dtype=np.uint8)
    expected = Image.fromarray(image).resize((68, 80), PILLOW[kind])
    result = 255 * enlarged(kind, 4, image.astype(np.float32) / 255)
    assert np.abs(result - np.asarray(expected)).max() <= 1.25  # it rounds as well


def test_lanczos_beyond_the_range_of_images():
    image = noise(8, 11, low=-300, high=500)
    expected = by_pillow("lanczos", 4, image)
    result = lanczos(torch.from_numpy(image)[None, None], 4)[0, 0].numpy()
    assert expected.max() > image.max()
    np.testing.assert_allclose(result, expected, rtol=0, atol=5e-4)


def test_weights_of_lanczos_within_an_image_are_the_kernels():
    index, weight = lanczos_taps(20, 2)
    # The first pixel of low-resolution pixel 10 lies at 10.25; centres are at 7.5, 8.5, ...
    assert index[:, 20].tolist() == [7, 8, 9, 10, 11, 12]
    assert index[:, 21].tolist() == [8, 9, 10, 11, 12, 13]
    distance = np.arange(7, 13) + 0.5 - 10.25
    kernel = 3 * np.sin(np.pi * distance) * np.sin(np.pi * distance / 3) / (np.pi * distance) ** 2
    np.testing.assert_allclose(weight[:, 20], kernel / kernel.sum(), rtol=1e-12)
    np.testing.assert_allclose(weight[:, 21], weight[:, 20].flip(0), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_weights_of_lanczos_sum_to_one(size):
    for scale in SCALES:
        index, weight = lanczos_taps(size, scale)
        assert index.shape == weight.shape == (6, scale * size)
        assert index.min() >= 0
        assert index.max() < size
        torch.testing.assert_close(weight.sum(dim=0), torch.ones(scale * size).double())
        torch.testing.assert_close(weight.flip(0, 1), weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_stays_and_mirrored_images_give_mirrored_results(kind):
    flat = np.full((5, 6), 0.37, np.float32)
    np.testing.assert_allclose(enlarged(kind, 4, flat), 0.37, rtol=1e-6)
    image = noise(6, 9)
    mirrored = enlarged(kind, 4, image[::-1, ::-1].copy())[::-1, ::-1]
    np.testing.assert_allclose(mirrored, enlarged(kind, 4, image), rtol=0, atol=1e-6)
    turned = enlarged(kind, 4, image.T.copy()).T
    np.testing.assert_allclose(turned, enlarged(kind, 4, image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_results_stay_within_the_range_of_images(kind):
    image = np.zeros((8, 8), np.float32)
    image[3:5, 3:6] = 1
    result = enlarged(kind, 8, image)
    assert result.min() == 0
    assert result.max() <= 1
    if kind in ("bicubic", "lanczos"):  # they would leave it
        raw = by_pillow(kind, 8, image)
        assert raw.min() < -0.01
        assert raw.max() > 1.01


def test_the_two_bicubic_kernels_differ():
    image = noise(32, 32)
    sharp, soft = enlarged("bicubic_opencv", 4, image), enlarged("bicubic", 4, image)
    assert 0.03 < np.abs(sharp - soft).max() < 0.2
    tensor = torch.from_numpy(image)[None, None]
    assert torch.equal(Interpolation(4, kind="bicubic_opencv")(tensor), upsampled(tensor, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_no_parameters_and_treats_channels_apart(kind):
    network = Interpolation(2, in_chans=3, kind=kind)
    assert not network.state_dict()
    image = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    (result,) = network.stages(image)
    assert result.shape == (2, 3, 10, 14)
    for i in range(2):
        for c in range(3):
            alone = enlarged(kind, 2, image[i, c].numpy())
            np.testing.assert_allclose(result[i, c], alone, rtol=0, atol=1e-6)


def test_lanczos_keeps_type_and_gradients():
    image = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    half = lanczos(image.bfloat16(), 2)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), lanczos(image, 2), rtol=0, atol=0.02)
    assert torch.autograd.gradcheck(lambda x: lanczos(x, 2), image.double().requires_grad_())


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"kind='cubic': there are nearest, bilinear, bicubic, "):
        Interpolation(2, kind="cubic")
    with pytest.raises(ValueError, match="scale=3"):
        Interpolation(3)
