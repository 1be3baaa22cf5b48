"""The built-in grades: what a rank is, what it looks like, and which images a split has."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from wsl_zoo.data import SyntheticGradesData, grades
from wsl_zoo.data.grades import GradeSource, render_grade
from wsl_zoo.data.synthetic import SPLIT_OFFSET

RANKS = 8


def small(**kwargs):
    settings = {"train": 9, "val": 8, "test": 10, "classes": 4, "image_size": 32}
    return SyntheticGradesData(**settings | kwargs)


@cache
def darkness(each=24):
    """255 minus the mean grey value, (RANKS, each)."""
    found = np.array([255 - render_grade(i, 0, 40, RANKS)[0].mean() for i in range(RANKS * each)])
    return found.reshape(each, RANKS).T


def position(ends, value):
    """Where a value stands between two others, in [0, 1]."""
    return (value - ends[0]) / (ends[1] - ends[0])


@pytest.fixture
def cues(monkeypatch):
    """How crowded, coarse and dark images are, in units of severity, (RANKS, 60, 3)."""
    nuclei = []
    monkeypatch.setattr(
        grades.cv2, "ellipse", lambda canvas, box, depth, _: nuclei.append((box[1][1], depth))
    )
    found = []
    for index in range(RANKS * 60):
        nuclei.clear()
        render_grade(index, 0, 16, RANKS)
        axis, depth = np.mean(nuclei, axis=0)
        crowd = position(grades.NUCLEI, len(nuclei))
        coarse = position(grades.RADIUS, axis / 2 / (4 * 16))  # drawn at four times the size
        found.append((crowd, coarse, position(grades.DARKNESS, depth)))
    return np.array(found).reshape(60, RANKS, 3).transpose(1, 0, 2)


def test_an_image_is_a_function_of_seed_and_index():
    image, rank = render_grade(5, 3, 32, 4)
    assert (image.shape, image.dtype, rank) == ((32, 32, 3), np.uint8, 1)
    np.testing.assert_array_equal(render_grade(5, 3, 32, 4)[0], image)
    for index, seed in ((6, 3), (9, 3), (5, 4)):
        assert (render_grade(index, seed, 32, 4)[0] != image).mean() > 0.5


@pytest.mark.parametrize("classes", [2, 4, 7])
def test_ranks_of_successive_images_go_round(classes):
    ranks = [render_grade(index, 0, 16, classes)[1] for index in range(2 * classes + 1)]
    assert ranks == [*range(classes), *range(classes), 0]


def test_tissue_darkens_with_the_rank():
    assert (np.diff(darkness().mean(axis=1)) > 0).all()
    ranks = np.repeat(np.arange(RANKS), darkness().shape[1])
    assert spearmanr(ranks, darkness().ravel()).statistic > 0.8


def test_three_cues_tell_the_severity_with_noise_of_their_own(cues):
    middle = (np.arange(RANKS) + 0.5) / RANKS
    np.testing.assert_allclose(cues.mean(axis=1)[1:-1], middle[1:-1, None].repeat(3, 1), atol=0.06)
    off = (cues - middle[:, None, None])[2:-2].reshape(-1, 3)  # where no noise is cut off
    assert (np.abs(off.std(axis=0) - grades.CUE_NOISE) < 0.03).all()
    assert np.abs(np.corrcoef(off.T) - np.eye(3)).max() < 0.3


def test_neighbouring_ranks_overlap_and_distant_ones_do_not():
    found = darkness()
    for rank in range(RANKS - 1):
        assert found[rank].max() > found[rank + 1].min()
    assert found[0].max() < found[-2:].min()
    assert found[:2].max() < found[-1].min()


def test_a_sample_is_its_image():
    sample = GradeSource(5, 30, seed=2, size=24, num_classes=3).load(4, annotations=True)
    image, rank = render_grade(34, 2, 24, 3)
    np.testing.assert_array_equal(sample.image, image)
    assert (sample.label, sample.path, sample.size) == (rank, "grade 34", (24, 24))
    assert rank == 34 % 3
    assert sample.mask is None
    assert sample.boxes is None


def test_splits_are_balanced_and_share_no_image():
    data = small(train=12, val=12, test=12)
    seen = {}
    for split, offset in SPLIT_OFFSET.items():
        items = [data.sources[split].load(i, annotations=False) for i in range(12)]
        assert len(data.sources[split]) == 12
        assert [item.label for item in items] == [*range(4)] * 3
        assert items[0].path == f"grade {offset}"
        seen[split] = {item.image.tobytes() for item in items}
    assert list(seen) == ["train", "val", "test"]
    assert len(set.union(*seen.values())) == 36


def test_images_follow_their_own_seed_only():
    def image(**kwargs):
        return small(**kwargs).dataset("val")[2]["image"]

    assert torch.equal(image(seed=0), image(seed=1))
    assert not torch.equal(image(scene_seed=0), image(scene_seed=1))
    assert image(image_size=40).shape == (3, 40, 40)


def test_the_classes_are_the_grades_and_nothing_is_localised():
    data = small()
    assert data.class_names == ["grade 0", "grade 1", "grade 2", "grade 3"]
    assert data.num_classes == 4
    assert data.selection() == {"cl": "val/acc", "loc": None}
    batch = next(iter(data.val_dataloader()[0]))
    assert batch["label"].tolist() == [0, 1, 2, 3] * 2
    assert not {"mask", "boxes"} & set(batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 1}, "classes=1: there must be two grades at least"),
        ({"classes": 9}, "train=9, val=8, test=10: every split needs all 9 classes"),
        ({"val": 0}, "val=0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)
