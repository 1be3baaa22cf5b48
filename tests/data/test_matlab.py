import numpy as np
import pytest
from scipy.io import savemat

from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.matlab import read_frame_boxes, read_ranges, read_sticks

BOXES = {7: [(1.0, 2.0, 30.5, 40.0)], 12: [(3.0, 4.0, 5.0, 6.0), (1.0, 1.0, 2.0, 9.0)]}
MATRICES = [np.array(boxes) for boxes in BOXES.values()]


def cell(*items, shape=None):
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape or (1, -1))


def structures(**fields):
    """A structure array with one element per item of each field."""
    count = len(next(iter(fields.values())))
    array = np.zeros((1, count), [(name, object) for name in fields])
    for name, values in fields.items():
        for i, value in enumerate(values):
            array[name][0, i] = value
    return array


def save(tmp_path, **variables):
    path = tmp_path / "some.mat"
    savemat(path, variables)
    return path


@pytest.mark.parametrize(
    ("coor", "boxes"),
    [
        (np.array([[1.5, 2, 3, 4]]), [(1.5, 2, 3, 4)]),
        (np.array([[1], [2], [3], [4]]), [(1, 2, 3, 4)]),
        (np.arange(16.0).reshape(4, 4), [(k, k + 1, k + 2, k + 3) for k in (0, 4, 8, 12)]),
        (cell(np.array([[9.0, 2, 3, 4]])), [(9, 2, 3, 4)]),
        (cell(np.array([[-1.5, 2, 3, 4]]), np.arange(5, 9)), [(-1.5, 2, 3, 4), (5, 6, 7, 8)]),
        (cell(np.array([[1], [2], [3], [4]]), np.zeros((0, 0))), [(1, 2, 3, 4)]),
        (np.zeros((0, 0)), []),
    ],
)  # fmt: skip
def test_sticks_are_a_matrix_or_a_cell(tmp_path, coor, boxes):
    assert read_sticks(save(tmp_path, coor=coor)) == boxes


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"box": np.zeros((3, 4))}, "found box: float64 3x4"),
        ({"coor": np.zeros((2, 3))}, "found coor: float64 2x3"),
        ({"coor": np.array([1, 2, 3, np.nan])}, "found coor: float64 4"),
        ({"coor": cell(np.zeros(4), np.zeros(5))}, "found coor: cell 2"),
        ({"coor": "text"}, "found coor: text scalar"),
        ({}, "found nothing"),
    ],
)
def test_other_sticks_are_refused(tmp_path, variables, found):
    path = save(tmp_path, **variables)
    with pytest.raises(DataError) as caught:
        read_sticks(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: expected 'coor' with a vector x0, y0, x1, y1")
    assert problem.endswith(found)


@pytest.mark.parametrize("content", [b"", b"junk", b"MATLAB 5.0 MAT-file" + bytes(300)])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "bad.mat"
    with pytest.raises(DataError, match=r"bad\.mat does not exist"):
        read_sticks(path)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.mat is not a readable MATLAB file"):
        read_ranges(path)


def test_a_file_cut_short_is_named(tmp_path):
    path = save(tmp_path, coor=np.random.default_rng(0).random((50, 4)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"some\.mat is not a readable MATLAB file"):
        read_sticks(path)


def test_the_format_7_3_is_named(tmp_path):
    path = tmp_path / "new.mat"
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124)
    path.write_bytes(head + b"\x00\x02IM" + bytes(512))
    with pytest.raises(DataError, match=r"new\.mat is of MATLAB's format 7.3: save it again"):
        read_sticks(path)


def test_ranges(tmp_path):
    rows = np.array([[1, 9, 1], [10, 12, 1], [13, 13, 3]])
    assert read_ranges(save(tmp_path, r=rows, note="text")) == [tuple(row) for row in rows.tolist()]
    assert read_ranges(save(tmp_path, r=rows[:1].astype(np.uint16))) == [(1, 9, 1)]


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"r": np.zeros((5, 4))}, "expected one matrix of integers .* found r: float64 5x4"),
        ({"r": np.full((5, 3), 0.5)}, "expected one matrix of integers"),
        ({"r": np.ones((5, 3)), "s": np.ones((2, 3))}, "found r: float64 5x3; s: float64 2x3"),
        ({"r": np.zeros((0, 0))}, "expected one matrix"),
        (
            {"r": np.array([[1, 9, 1], [12, 10, 1]])},
            "row 2: the shot ends at frame 10, before .*12",
        ),
    ],
)
def test_other_ranges_are_refused(tmp_path, variables, problem):
    with pytest.raises(DataError, match=rf"some\.mat.*{problem}"):
        read_ranges(save(tmp_path, **variables))


NAMES = [f"cat/0000{frame:04d}.jpg" for frame in BOXES]
FLAT = np.array([[f, *box] for f, boxes in BOXES.items() for box in boxes])
COLUMNS = dict(zip(("xmin", "ymin", "xmax", "ymax"), FLAT[:, 1:].T, strict=True))
PER_BOX = {name: column.tolist() for name, column in COLUMNS.items()}
FORMS = {
    "matrix": {"gt": FLAT},
    "structures": {"gt": structures(frame=list(BOXES), boxes=MATRICES)},
    "names": {"gt": structures(im=NAMES, bb=MATRICES, difficult=[0, 1])},
    "per box": {"gt": structures(id=FLAT[:, 0].tolist(), coor=list(FLAT[:, 1:]))},
    "in cells": {"gt": cell(*structures(frame=list(BOXES), boxes=MATRICES).flat)},
    "with a class": {"gt": structures(im=NAMES, bb=MATRICES, cls=["cat1", "cat2"])},
    "one structure": {"gt": {"frames": list(BOXES), "boxes": cell(*MATRICES)}},
    "corners": {"gt": structures(frame=FLAT[:, 0].tolist(), **PER_BOX)},
    "columns": {"frame": FLAT[:, 0], **COLUMNS},
    "variables": {"frames": FLAT[:, 0], "boxes": FLAT[:, 1:]},
    "variables of names": {"files": cell(*NAMES), "boxes": cell(*MATRICES)},
    "cell": {"gt": cell(7, MATRICES[0], 12, MATRICES[1], shape=(2, 2))},
    "cell of names": {"gt": cell(NAMES[0], MATRICES[0], NAMES[1], MATRICES[1], shape=(2, 2))},
    "cell of matrices": {"gt": cell(FLAT[:1], FLAT[1:2], FLAT[2:])},
    "cell of two matrices": {"gt": cell(FLAT[:1], FLAT[1:])},
    "nested": {"gt": {"annotation": structures(frame=list(BOXES), boxes=MATRICES)}},
    "repeated": {"gt": np.vstack([FLAT, FLAT[1:2]])},
    "without boxes": {"gt": structures(frame=[7, 12, 13], boxes=[*MATRICES, np.zeros((0, 0))])},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_boxes_by_frame_in_every_form(tmp_path, form):
    assert read_frame_boxes(save(tmp_path, **FORMS[form])) == BOXES


@pytest.mark.parametrize(
    "variables",
    [
        {"gt": FLAT[:1]},
        {"gt": structures(frame=[7], boxes=MATRICES[:1])},
        {"gt": cell(7, MATRICES[0], shape=(1, 2))},
        {"frame": 7, "boxes": MATRICES[0]},
        {"frame": "00000007.jpg", "boxes": MATRICES[0]},
    ],
)
def test_one_frame_with_one_box(tmp_path, variables):
    assert read_frame_boxes(save(tmp_path, **variables)) == {7: BOXES[7]}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"gt": np.zeros((3, 7))}, "gt: float64 3x7"),
        ({"gt": np.full((3, 5), 0.5)}, "gt: float64 3x5"),
        ({"gt": np.full((3, 5), -1)}, "gt: int64 3x5"),
        ({"gt": structures(frame=[7], x=[np.ones((2, 3))])}, "gt: structure (frame: int64 scalar"),
        ({"gt": structures(a=[7, 8], b=[1, 1], c=[np.ones(4)] * 2)}, "gt: 2 x structure (a: int64"),
        ({"a": FLAT, "b": FLAT}, "a: float64 3x5; b: float64 3x5"),  # which of both?
        ({"frames": [7, 8, 9], "boxes": np.ones((2, 4))}, "frames: int64 3; boxes: float64 2x4"),
        ({"frames": cell("a", "b"), "boxes": np.ones((2, 4))}, "boxes: float64 2x4"),
        ({"gt": np.zeros((0, 0))}, "gt: float64 0"),
        ({"gt": cell(FLAT[:1], "text")}, "gt: cell 2"),
        ({}, "nothing"),
    ],
)
def test_other_ground_truth_is_refused_with_what_was_found(tmp_path, variables, found):
    path = save(tmp_path, **variables)
    with pytest.raises(DataError) as caught:
        read_frame_boxes(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: no boxes by frame: expected a matrix whose five columns")
    assert f"found {found}" in problem or found in problem.rpartition("found ")[2]
