"""Pictures by their pixels."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from wsl_zoo import pictures

GREY = np.full((20, 30, 3), 100, np.uint8)


def test_colours_run_along_the_palette_and_stay_in_range():
    colors = pictures.colorize(np.array([[-1.0, 0.0, 0.5, 1.0, 2.0]]))
    turbo = matplotlib.colormaps["turbo"]
    assert colors.shape == (1, 5, 3)
    assert colors.dtype == np.uint8
    for value, color in zip((0.0, 0.0, 0.5, 1.0, 1.0), colors[0], strict=True):
        np.testing.assert_allclose(color, 255 * np.array(turbo(value)[:3]), atol=0.51)
    assert colors[0, 0].argmax() != colors[0, 3].argmax()  # low is not high


@pytest.mark.parametrize("opacity", [0.0, 0.25, 1.0])
def test_overlay_blends(opacity):
    score = np.linspace(0, 1, 600).reshape(20, 30)
    blend = pictures.overlay(GREY, score, opacity)
    expected = (1 - opacity) * GREY + opacity * pictures.colorize(score)
    assert blend.dtype == np.uint8
    np.testing.assert_allclose(blend, expected, atol=0.51)
    assert (GREY == 100).all()


def test_boxes_are_drawn_on_their_first_and_last_pixels():
    drawn = pictures.draw_boxes(GREY, np.array([[3.0, 4.0, 9.0, 12.0]]), (1, 2, 3))
    changed = (drawn != GREY).any(2)
    rows, columns = np.nonzero(changed)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (3, 4, 9, 12)
    assert (drawn[changed] == (1, 2, 3)).all()
    assert not changed[5:12, 4:9].any()  # an outline
    assert changed[4, 3:10].all()
    assert (GREY == 100).all()


def test_boxes_may_be_many_none_empty_or_outside():
    assert (pictures.draw_boxes(GREY, np.zeros((0, 4)), (0, 0, 0)) == GREY).all()
    boxes = np.array([[2, 2, 2, 2], [25, 15, 400, 300]])
    drawn = pictures.draw_boxes(GREY, boxes, (0, 0, 0))
    assert (drawn[2, 2] == 0).all()
    assert (drawn[15:, 25] == 0).all()
    backwards = pictures.draw_boxes(GREY, np.array([[9, 9, 3, 3]]), (0, 0, 0))
    assert (backwards[9, 9] == 0).all()


def test_masks_are_black_white_and_grey():
    drawn = pictures.mask_image(np.array([[0, 1, 255]], np.uint8))
    assert drawn.tolist() == [[[0] * 3, [255] * 3, [128] * 3]]


def test_a_panel_holds_what_there_is():
    score, mask = np.zeros((20, 30)), np.zeros((20, 30), np.uint8)
    boxes, found = np.array([[2, 2, 12, 12]]), np.array([[15, 3, 22, 12]])
    assert len(pictures.panel(GREY, score)) == 2
    assert len(pictures.panel(GREY, score, mask=mask)) == 3
    tiles = pictures.panel(GREY, score, mask=mask, boxes=boxes, predicted=found)
    assert len(tiles) == 4
    np.testing.assert_array_equal(tiles[0], GREY)
    np.testing.assert_array_equal(tiles[1], pictures.mask_image(mask))
    np.testing.assert_array_equal(tiles[2], pictures.overlay(GREY, score))
    assert tuple(tiles[3][2, 2]) == pictures.TRUTH
    assert tuple(tiles[3][3, 15]) == pictures.PREDICTED
    nothing = pictures.panel(GREY, score, predicted=np.zeros((0, 4)))
    np.testing.assert_array_equal(nothing[-1], GREY)


def colored(value, height=20, width=30):
    return np.full((height, width, 3), value, np.uint8)


def test_the_grid_puts_every_tile_in_its_place():
    rows = [[colored(10), colored(20)], [colored(30), colored(40)], [colored(50)]]
    picture = pictures.grid(rows)
    step, block = 20 + pictures.GAP, 30 + pictures.GAP
    assert picture.shape == (pictures.GAP + 3 * step, 2 * block + pictures.GAP, 3)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            y, x = pictures.GAP + i * step, pictures.GAP + j * block
            np.testing.assert_array_equal(picture[y : y + 20, x : x + 30], tile)
            assert (picture[y - 1, x : x + 30] == 255).all()
    y, x = pictures.GAP + 2 * step, pictures.GAP + block
    assert (picture[y : y + 20, x:] == 255).all()  # the missing tile


def test_rows_side_by_side_with_header_and_captions():
    rows = [[colored(10), colored(20)]] * 3
    plain = pictures.grid(rows, across=2)
    labelled = pictures.grid(rows, header=("image", "map"), captions=["a", "b", "c"], across=2)
    block = 2 * (30 + pictures.GAP) + 2 * pictures.GAP
    assert plain.shape[1] == labelled.shape[1] == 2 * block - pictures.GAP
    assert plain.shape[0] == pictures.GAP + 2 * (20 + pictures.GAP)
    top, step = pictures.LINE + pictures.GAP, 20 + pictures.GAP + pictures.LINE
    assert labelled.shape[0] == top + 2 * step
    for i in range(3):
        y, x = top + (i // 2) * step, pictures.GAP + (i % 2) * block
        assert (labelled[y : y + 20, x : x + 30] == 10).all()
        caption = labelled[y + 20 : y + 20 + pictures.LINE, x : x + 60]
        assert (caption < 128).any(), f"caption {i} is missing"
    assert (labelled[:top] < 128).any()


def test_tiles_are_scaled_to_one_height():
    picture = pictures.grid([[colored(9, 40, 60), colored(8, 10, 20)]], tile=20)
    assert picture.shape == (pictures.GAP + 24, 2 * (40 + pictures.GAP) + pictures.GAP, 3)
    assert (picture[4:24, 4:34] == 9).all()  # 60 x 40 became 30 x 20
    assert (picture[4:24, 34:38] == 255).all()


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "down" / "a.png"
    assert pictures.save(GREY, path) == path
    np.testing.assert_array_equal(np.asarray(Image.open(path)), GREY)
    with pytest.raises((TypeError, ValueError, KeyError)):
        pictures.save(np.zeros((2, 3, 5), np.float64), path)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), GREY)  # the old one stands
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
