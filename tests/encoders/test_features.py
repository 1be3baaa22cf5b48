"""Final maps of a frozen encoder in memory and in a folder."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from wsl_zoo.encoders import Encoder, FeatureCache


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder("test_resnet", stride=16).eval().requires_grad_(requires_grad=False)


@pytest.fixture
def paths(tmp_path):
    made = [tmp_path / f"{name}.png" for name in "abc"]
    for path in made:
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return [str(path) for path in made]


class Counting:
    """An encoder that counts the images it sees."""

    def __init__(self, encoder):
        self.encoder, self.seen = encoder, 0

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def __repr__(self):
        return repr(self.encoder)

    def final(self, image):
        self.seen += len(image)
        return self.encoder.final(image)


def test_maps_are_those_of_the_encoder_and_made_once(encoder, paths):
    image = torch.randn(3, 3, 32, 48)
    counting = Counting(encoder)
    cache = FeatureCache(counting)
    expected = encoder.final(image)
    torch.testing.assert_close(cache(image, paths), expected)
    torch.testing.assert_close(cache(image[[2, 0]], [paths[2], paths[0]]), expected[[2, 0]])
    assert counting.seen == 3
    cache(torch.randn(1, 3, 32, 32), paths[:1])  # another size is another map
    assert counting.seen == 4


def test_a_folder_outlives_the_cache(encoder, paths, tmp_path):
    image = torch.randn(3, 3, 32, 32)
    first = FeatureCache(encoder, tmp_path / "kept" / "maps")(image, paths)
    files = sorted((tmp_path / "kept" / "maps").iterdir())
    assert [file.suffix for file in files] == [".npy"] * 3
    counting = Counting(encoder)
    again = FeatureCache(counting, tmp_path / "kept" / "maps")(torch.zeros_like(image), paths)
    assert torch.equal(first, again)
    assert counting.seen == 0


@pytest.mark.parametrize("change", ["weights", "form", "normalisation", "file", "size"])
def test_what_a_map_depends_on_makes_another(encoder, paths, tmp_path, change):
    image = torch.randn(3, 3, 32, 32)
    folder = tmp_path / "maps"
    FeatureCache(encoder, folder)(image, paths)
    if change == "weights":
        next(encoder.parameters()).add_(1)
    elif change == "form":
        state = encoder.state_dict()
        encoder = Encoder("test_resnet", stride=16, stride_mode="dilated").eval()
        encoder.load_state_dict(state)
    elif change == "normalisation":
        encoder = Encoder("test_resnet", stride=16, mean=[0.1] * 3).eval()
    elif change == "file":
        os.utime(paths[0], ns=(1, 1))
    else:
        image = image[..., :16]
    counting = Counting(encoder)
    found = FeatureCache(counting, folder)(image, paths)
    torch.testing.assert_close(found[:1], encoder.final(image)[:1])
    assert counting.seen == (1 if change == "file" else 3)


def test_frames_of_a_file_are_told_apart_and_what_is_no_file_stays_in_memory(
    encoder, paths, tmp_path
):
    image = torch.randn(3, 3, 32, 32)
    cache = FeatureCache(encoder, tmp_path / "maps")
    torch.testing.assert_close(
        cache(image, [f"{paths[0]}#0", f"{paths[0]}#1", "scene 7"]), encoder.final(image)
    )
    assert len(list((tmp_path / "maps").iterdir())) == 2


def test_a_write_that_fails_leaves_no_map(encoder, paths, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="no space"):
        FeatureCache(encoder, tmp_path / "maps")(torch.randn(1, 3, 32, 32), paths[:1])
    assert not list((tmp_path / "maps").iterdir())
