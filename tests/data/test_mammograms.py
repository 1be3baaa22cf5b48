"""The built-in exams as images: what is drawn follows the numbers, and is read as CSAW-CC is."""

import numpy as np
import pytest
import torch

from wsl_zoo.data.csaw_cc import CSAWCCData
from wsl_zoo.data.histories import simulate
from wsl_zoo.data.mammograms import MARKS, render_exams, write_mammograms

SIZE = (64, 48)


def mark_of(views, k):
    """Grey of a mark's centre, less that of its plate, in the first view."""
    row, column = round(MARKS[k][0] * SIZE[0]), round(MARKS[k][1] * SIZE[1])
    return views[:, 0, row, column] - 0.5


def test_views_show_the_numbers():
    u = np.random.default_rng(0).standard_normal((200, 8))
    views = render_exams(u, 0, SIZE)
    assert views.shape == (200, 4, *SIZE)
    assert views.dtype == np.float32
    assert views.min() == 0
    assert views.max() <= 1
    for k in range(2):
        assert np.corrcoef(mark_of(views, k), 0.15 * u[:, 2 + k])[0, 1] > 0.98
        assert abs(np.polyfit(u[:, 2 + k], mark_of(views, k), 1)[0] - 0.15) < 0.02
    left, right = views[:, 0], views[:, 2, :, ::-1]  # CC views: the lesion is in the left breast
    extra = left - right
    row, column = np.unravel_index(extra.mean(axis=0).argmax(), SIZE)
    lesion = extra[:, row - 1 : row + 2, column - 1 : column + 2].mean(axis=(1, 2))
    assert np.corrcoef(lesion, 1 / (1 + np.exp(-u[:, 0])))[0, 1] > 0.5  # blocks vary by as much
    tissue = right[:, 20:44, 4:20].mean(axis=(1, 2))
    assert np.corrcoef(tissue, np.tanh(u[:, 1]))[0, 1] > 0.9
    corner = views[:, 1, 4:8, 0:4], views[:, 3, 4:8, -4:]  # the muscle, on the chest wall's side
    assert all(c.mean() == pytest.approx(0.7, abs=0.01) for c in corner)


def test_drawing_depends_on_the_seed_alone():
    u = simulate(1, 0, 0.25, 0.5, 1.0).numbers[0]
    assert np.array_equal(render_exams(u, (1, 2), SIZE), render_exams(u, (1, 2), SIZE))
    assert not np.array_equal(render_exams(u, (1, 2), SIZE), render_exams(u, (1, 3), SIZE))


def test_what_is_written_is_read_as_csaw_cc(tmp_path):
    women = {split: simulate(4, n, 0.25, 0.5, 0.7) for n, split in enumerate(("train", "val"))}
    table = write_mammograms(tmp_path, women, SIZE)
    assert table == tmp_path / "table.csv"
    data = CSAWCCData(str(tmp_path), image_size=list(SIZE), mean=0, std=65_535, batch_size=4)
    data.setup("fit")
    for n, split in enumerate(women):
        (batch,) = data.whole_images(split)
        assert batch["image"].shape == (4, 5, 4, 1, *SIZE)
        for name in ("exam_mask", "time", "event"):
            assert torch.equal(batch[name], torch.from_numpy(getattr(women[split], name)))
        assert batch["view_mask"].equal(batch["exam_mask"][:, :, None].expand(-1, -1, 4))
        drawn = render_exams(women[split].numbers[2, women[split].exam_mask[2]], (0, n, 2), SIZE)
        drawn[:, 2:] = drawn[:, 2:, :, ::-1]
        seen = batch["image"][2, batch["exam_mask"][2], :, 0]
        np.testing.assert_allclose(seen, drawn, atol=1e-5)
