"""The built-in data module."""

import numpy as np
import pytest
import torch

from wsl_zoo.data import SyntheticData
from wsl_zoo.data.scenes import TEXTURES, render_scene
from wsl_zoo.data.synthetic import SPLIT_OFFSET, SceneSource


def small(**kwargs):
    return SyntheticData(**{"train": 9, "val": 6, "test": 7, "image_size": 48} | kwargs)


def test_a_sample_is_its_scene():
    source = SceneSource(5, 30, seed=2, size=40, num_classes=3)
    sample = source.load(4, annotations=True)
    scene = render_scene(34, seed=2, size=40, num_classes=3)
    np.testing.assert_array_equal(sample.image, scene.image)
    np.testing.assert_array_equal(sample.mask, scene.mask)
    assert sample.label == scene.label == 34 % 3
    assert sample.size == (40, 40)
    assert sample.path == "scene-34"
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"scene {index} of 5"):
            source.load(index, annotations=True)


def test_boxes_are_the_edges_of_the_objects():
    for index in range(6):
        sample = SceneSource(6, 0, 0, 48, 4).load(index, annotations=True)
        rows, columns = np.nonzero(sample.mask)
        x0, y0, x1, y1 = sample.boxes.T
        assert (x0.min(), y0.min()) == (columns.min(), rows.min())
        assert (x1.max(), y1.max()) == (columns.max() + 1, rows.max() + 1)


def test_annotations_can_be_withheld():
    sample = SceneSource(5, 0, 0, 40, 3).load(1, annotations=False)
    assert sample.mask is None
    assert sample.boxes is None
    train = small().dataset("train")[0]
    assert not {"mask", "boxes"} & set(train)
    assert {"mask", "boxes"} <= set(small().dataset("val")[0])


def test_splits_are_balanced_and_share_no_scene():
    data = small(train=40, val=40, test=40, classes=4)
    seen = {}
    for split, offset in SPLIT_OFFSET.items():
        dataset = data.dataset(split)
        assert len(dataset) == 40
        items = [data.sources[split].load(i, annotations=False) for i in range(40)]
        assert sorted(item.label for item in items) == sorted(list(range(4)) * 10)
        assert items[0].path == f"scene-{offset}"
        seen[split] = {item.image.tobytes() for item in items}
    assert len(set.union(*seen.values())) == 120


def test_scenes_follow_their_own_seed_only():
    def image(**kwargs):
        return small(**kwargs).dataset("val")[2]["image"]

    assert torch.equal(image(seed=0), image(seed=1))
    assert not torch.equal(image(scene_seed=0), image(scene_seed=1))


def test_training_images_are_rendered_for_the_crop():
    data = small(image_size=48, train_resize=56)
    assert data.sources["train"].load(0, annotations=False).size == (56, 56)
    assert data.dataset("train")[0]["image"].shape == (3, 48, 48)
    val = data.dataset("val")[0]
    assert val["image"].shape == (3, 48, 48)
    assert val["mask"].shape == (48, 48)
    assert float(val["boxes"].max()) <= 48


@pytest.mark.parametrize("classes", [2, 5, len(TEXTURES)])
def test_classes_are_the_textures(classes):
    data = small(train=20, val=20, test=20, classes=classes)
    assert data.class_names == list(TEXTURES)[:classes]
    assert data.num_classes == classes
    dataset = data.dataset("test")
    assert {dataset[i]["label"] for i in range(20)} == set(range(classes))


def test_what_judges_a_model():
    assert small().selection() == {"cl": "val/acc", "loc": "val/pxap"}
    assert small().split_names("test") == ["test"]


def test_cached_scenes_are_rendered_once(monkeypatch):
    calls = []
    load = SceneSource.load
    monkeypatch.setattr(
        SceneSource, "load", lambda self, i, **kw: calls.append(i) or load(self, i, **kw)
    )
    for cache, count in ((True, 1), (False, 2)):
        calls.clear()
        dataset = small(cache=cache).dataset("val")
        assert torch.equal(dataset[3]["image"], dataset[3]["image"])
        assert calls == [3] * count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 1}, "classes=1 must be between 2 and 8"),
        ({"classes": 9, "train": 50, "val": 50, "test": 50}, "classes=9"),
        ({"classes": 7}, "every split needs all 7 classes"),
        ({"val": 0}, "val=0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_the_class_may_be_a_hue():
    data = SyntheticData(train=8, val=8, test=8, cue="hue", image_size=64)
    assert data.class_names == ["hue 0", "hue 1", "hue 2", "hue 3"]
    sample = data.sources["train"].load(5, annotations=True)
    assert sample.label == 1
    inside = sample.image[sample.mask == 1].mean(0)
    ground = sample.image[sample.mask == 0].mean(0)
    assert np.ptp(inside) > 10 * np.ptp(ground)  # the ground is grey
    x0, y0, x1, y1 = sample.boxes[0].astype(int)
    assert sample.mask[y0:y1, x0:x1].sum() == sample.mask.sum()
    again = data.sources["train"].load(5, annotations=True)
    assert (again.image == sample.image).all()
    assert {data.sources["test"].load(i, annotations=False).label for i in range(4)} == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="cue='shape' must be one of texture, hue"):
        SyntheticData(cue="shape")
