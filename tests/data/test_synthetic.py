"""The built-in data modules."""

from collections import Counter

import numpy as np
import pytest
import torch

from wsl_zoo.data import SyntheticData
from wsl_zoo.data import synthetic as module
from wsl_zoo.data.moving import render_clip
from wsl_zoo.data.scenes import TEXTURES, render_hue_scene, render_scene
from wsl_zoo.data.shift import shift_image
from wsl_zoo.data.synthetic import (
    SPLIT_OFFSET,
    TO_EDGES,
    ClipSource,
    SceneSource,
    SyntheticVideoData,
    class_counts,
    scenes_of,
)


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


def same(sample, scene):
    """Whether a sample is a scene: image, label, mask and boxes."""
    return (
        np.array_equal(sample.image, scene.image)
        and sample.label == scene.label
        and np.array_equal(sample.mask, scene.mask)
        and np.array_equal(sample.boxes, scene.boxes + TO_EDGES)
    )


@pytest.mark.parametrize(
    ("options", "render"),
    [
        ({}, render_scene),
        ({"negatives": True}, lambda i, **kw: render_scene(i, negatives=True, **kw)),
        ({"cue": "hue"}, render_hue_scene),
    ],
)
@pytest.mark.parametrize("shift", [None, {}, {"stain": 0.0, "blur": 0.0, "scanner": 0.0}])
def test_without_a_shift_scenes_are_as_they_are_rendered(options, render, shift):
    data = small(classes=3, scene_seed=4, shift=shift, **options)
    for split, offset in SPLIT_OFFSET.items():
        source = data.sources[split]
        for i in range(len(source)):
            scene = render(offset + i, seed=4, size=48, num_classes=3)
            sample = source.load(i, annotations=True)
            assert same(sample, scene)
            assert sample.path == f"scene-{offset + i}"


@pytest.mark.parametrize("negatives", [False, True])
def test_a_shift_changes_pixels_only(negatives):
    shift = {"stain": 0.5, "blur": 0.2, "scanner": 1.0}
    plain, shifted = (small(negatives=negatives, shift=s, scene_seed=2) for s in (None, shift))
    for split, offset in SPLIT_OFFSET.items():
        for i in range(6):
            before, after, again = (
                data.sources[split].load(i, annotations=True) for data in (plain, shifted, shifted)
            )
            expected = shift_image(before.image, shift, (2, offset + i, 1))
            np.testing.assert_array_equal(after.image, expected)
            np.testing.assert_array_equal(after.image, again.image)
            assert np.abs(after.image - before.image.astype(float)).mean() > 10
            np.testing.assert_array_equal(after.mask, before.mask)
            np.testing.assert_array_equal(after.boxes, before.boxes)
            assert (after.label, after.path) == (before.label, before.path)


@pytest.mark.parametrize(
    ("count", "proportions", "counts"),
    [
        (10, [0.5, 0.26, 0.24], [5, 3, 2]),
        (100, [0.29, 0.71], [29, 71]),  # 100 * 0.29 is below 29 in floating point
        (10, [0.25] * 4, [3, 3, 2, 2]),  # of equal remainders, that of the first class
        (800, [0.7, 0.1, 0.1, 0.1], [560, 80, 80, 80]),
        (3, [0.999, 0.001], [3, 0]),
    ],
)
def test_counts_by_the_largest_remainder(count, proportions, counts):
    assert class_counts(count, proportions) == counts


@pytest.mark.parametrize("offset", [0, 5, 10_000_000])
def test_scenes_of_classes(offset):
    assert scenes_of([4, 4, 4], offset) == list(range(offset, offset + 12))
    scenes = scenes_of([1, 5, 2], offset)
    assert Counter(scene % 3 for scene in scenes) == {0: 1, 1: 5, 2: 2}
    assert scenes == sorted(set(scenes))
    assert offset <= scenes[0] < offset + 3


@pytest.mark.parametrize("options", [{"classes": 4}, {"classes": 3, "negatives": True}])
def test_training_classes_have_their_proportions(options):
    proportions = [0.5, 0.25, 0.05, 0.2]
    data = small(train=40, val=8, test=8, proportions=proportions, **options)
    train = [data.sources["train"].load(i, annotations=True) for i in range(40)]
    assert Counter(sample.label for sample in train) == {0: 20, 1: 10, 2: 2, 3: 8}
    assert len({sample.path for sample in train}) == 40
    balanced = small(train=40, val=8, test=8, **options)
    for split in ("val", "test"):
        for i in range(8):
            one, other = (d.sources[split].load(i, annotations=True) for d in (data, balanced))
            assert (one.label, one.path) == (other.label, other.path)
            np.testing.assert_array_equal(one.image, other.image)
    for sample in train:  # still a pure function of the index of the scene
        keywords = {"num_classes": options["classes"], "negatives": "negatives" in options}
        scene = render_scene(int(sample.path.removeprefix("scene-")), size=48, **keywords)
        assert same(sample, scene)
        assert bool(sample.mask.any()) == (sample.label != data.negative_class)


def test_equal_proportions_are_the_balanced_scenes():
    data = small(train=10, proportions=[0.25] * 4)
    assert list(data.sources["train"].scenes) == list(range(10))
    with_shift = small(train=10, proportions=[0.4, 0.2, 0.2, 0.2], shift={"stain": 1.0})
    sample = with_shift.sources["train"].load(9, annotations=False)
    scene = render_scene(12, size=48)  # 0 to 3, ..., 8, 12
    np.testing.assert_array_equal(sample.image, shift_image(scene.image, {"stain": 1.0}, ()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proportions": [0.5, 0.5]}, "expected 4 numbers, for stripes, dots, checks, rings"),
        ({"proportions": [0.25] * 4, "negatives": True}, "expected 5 numbers, .*, none"),
        ({"proportions": [0.5, 0.5, 0.0, 0.0]}, "every class needs a part above 0"),
        ({"proportions": [0.7, 0.7, -0.2, -0.2]}, "every class needs a part above 0"),
        ({"proportions": [float("nan")] * 4}, "every class needs a part above 0"),
        ({"proportions": [0.25, 0.25, 0.25, 0.24]}, r"they sum to 0\.99, not to 1"),
        (
            {"proportions": [0.97, 0.01, 0.01, 0.01], "train": 20},
            r"proportions=\[0.97, .*\]: of train=20 images class '\w+' would get none",
        ),
        ({"shift": {"stains": 0.5}}, "shift has no kind 'stains'"),
        ({"shift": {"blur": 2.0}}, r"blur=2\.0 must be a strength in"),
    ],
)
def test_bad_shifts_and_proportions_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


CLIPS = {"train": 6, "val": 4, "test": 5, "frames_per_clip": 3, "image_size": 40, "batch_size": 4}


def clips(**kwargs):
    return SyntheticVideoData(**CLIPS | kwargs)


@pytest.fixture
def rendered(monkeypatch):
    """Return the list of the clips that get rendered from now on."""
    calls = []
    monkeypatch.setattr(
        module, "render_clip", lambda i, **kw: calls.append(i) or render_clip(i, **kw)
    )
    return calls


def test_a_sample_is_its_frame():
    source = ClipSource(5, 30, frames=3, seed=2, size=40, num_classes=3)
    assert len(source) == 15
    assert source.shots == [range(0, 3), range(3, 6), range(6, 9), range(9, 12), range(12, 15)]
    clip = render_clip(33, frames=3, seed=2, size=40, num_classes=3)
    for frame in range(3):
        sample = source.load(9 + frame, annotations=True)
        np.testing.assert_array_equal(sample.image, clip.images[frame])
        np.testing.assert_array_equal(sample.mask, clip.masks[frame])
        np.testing.assert_array_equal(sample.boxes, clip.boxes[frame] + [0, 0, 1, 1])
        assert sample.label == clip.label == 33 % 3
        assert sample.size == (40, 40)
        assert sample.group == "clip-33"
        assert sample.path == f"clip-33/{frame}"
    for index in (-1, 15):
        with pytest.raises(IndexError, match=f"frame {index} of 15"):
            source.load(index, annotations=True)
    bare = source.load(4, annotations=False)
    assert bare.mask is None
    assert bare.boxes is None


def test_the_boxes_of_a_frame_are_the_edges_of_its_mask():
    source = ClipSource(80, 0, frames=4, size=48, leave=1.0, motion=(0.1, 0.2))
    shown = 0
    for index in range(len(source)):
        sample = source.load(index, annotations=True)
        rows, columns = np.nonzero(sample.mask)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else []
        assert sample.boxes.ravel().tolist() == edges
        shown += bool(edges)
    assert 0 < shown < len(source)  # some frames show no object


def test_frames_of_one_clip_are_rendered_together(rendered):
    source = ClipSource(9, 0, frames=3, size=32, keep=2)
    for index in (0, 2, 1, 3, 0, 6, 2, 4):  # clips 0, 1, 0, 2, 0, and 1 again, used least lately
        source.load(index, annotations=False)
    assert rendered == [0, 1, 2, 1]


@pytest.mark.parametrize("cache", [True, False])
def test_cached_clips_are_rendered_once(rendered, cache):
    data = clips(cache=cache)
    rendered.clear()  # the one that tries the options
    dataset = data.dataset("train")
    for epoch in range(6):
        for shot in range(6):
            dataset[(epoch, shot, True)]
    assert sorted(set(rendered)) == list(range(6))
    assert len(rendered) == (6 if cache else 36)


def test_every_frame_of_the_other_splits_is_evaluated():
    data = clips()
    assert len(data.dataset("train")) == 6
    assert data.shots("train") == [range(3 * i, 3 * i + 3) for i in range(6)]
    assert len(data.dataset("val")) == 12
    assert len(data.dataset("test")) == 15
    assert {"mask", "boxes"} <= set(data.dataset("val")[0])
    assert not {"mask", "boxes"} & set(data.dataset("train")[0][0])
    assert data.class_names == list(TEXTURES)[:4]


def test_a_batch_holds_whole_groups_of_a_clip():
    batches = list(clips(frames=2, frame_style="interval", hflip=0.0).train_dataloader())
    assert [len(batch["label"]) for batch in batches] == [4, 4, 4]
    for batch in batches:
        assert batch["sequence"].tolist() == [0, 0, 1, 1]
        assert batch["group"][0] == batch["group"][1] != batch["group"][2]
        assert batch["label"][0] == batch["label"][1]
        assert not torch.equal(batch["image"][0], batch["image"][1])


def test_splits_share_no_clip_and_follow_the_seed_of_scenes():
    def frames(**kwargs):
        data = clips(train=4, val=4, test=4, **kwargs)
        return {
            source.load(i, annotations=False).image.tobytes()
            for source in data.sources.values()
            for i in range(12)
        }

    assert len(frames()) == 36
    assert frames(seed=1) == frames()
    assert not frames(scene_seed=1) & frames()


def test_options_reach_the_clips():
    options = {"motion": (0.2, 0.2), "turn": (0.3, 0.3), "wander": (0.1, 0.1), "leave": 1.0}
    options |= {"camera": (0.1, 0.1)}
    data = clips(train_resize=48, classes=3, scene_seed=7, **options)
    clip = render_clip(4, frames=3, size=48, num_classes=3, seed=7, **options)
    sample = data.sources["train"].load(4 * 3 + 2, annotations=False)
    np.testing.assert_array_equal(sample.image, clip.images[2])
    assert data.dataset("val")[0]["image"].shape == (3, 40, 40)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 1}, "classes=1 must be between 2 and 8"),
        ({"val": 3}, "train=6, val=3, test=5: every split needs all 4 classes"),
        ({"frames_per_clip": 0}, "frames=0"),
        ({"motion": (0.2, 0.1)}, "motion="),
        ({"leave": 2.0}, r"leave=2\.0"),
    ],
)
def test_bad_settings_of_clips_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        clips(**settings)
