"""CSAW-CC in its original layout, in miniature: the label rule, slots, subsets and images."""

import csv
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from wsl_zoo.data.csaw_cc import CSAWCCData, deal_patients
from wsl_zoo.data.exam_table import VIEWS, Anchor
from wsl_zoo.data.manifest import DataError

NAME = "CSAW-CC_breast_cancer_screening_data.csv"
SIDES = {"L": "Left", "R": "Right"}
# Columns that tell the outcome, or what a radiologist saw: never read.
OTHERS = {
    "x_cancer_laterality": "Left",
    "x_type": "2.0",
    "x_lymphnode_met": "0.0",
    "x_age": "1",
    "rad_r1": "1",
    "rad_r2": "1",
    "rad_recall": "1",
    "rad_recall_type_left": "1",
    "rad_recall_type_right": "0",
    "libra_breastarea": "9.5",
    "libra_densearea": "2.5",
    "libra_percentdensity": "26.3",
}
SIZE = (6, 4)


def rows_of(patient, year, timing="", case=None, views=VIEWS, number=1, **cells):
    """The rows of an exam, one per view."""
    case = bool(timing) if case is None else case
    return [
        {
            "anon_patientid": str(patient),
            "exam_year": str(year),
            "imagelaterality": SIDES[view[0]],
            "viewposition": view[2:],
            "anon_filename": f"{patient}_{year}0909_{view}_{number}.dcm",
            "x_case": str(int(case)),
            "rad_timing": str(timing),
            **OTHERS,
            **cells,
        }
        for view in views
    ]


def pixels_of(name):
    return np.random.default_rng(list(name.encode())).integers(0, 2**16, SIZE).astype(np.uint16)


def write_view(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels_of(path.stem) if pixels is None else pixels)


def write_release(root, rows, ending=".png", images=True):
    """Write the table, and beside it the converted images that it lists."""
    root.mkdir(exist_ok=True)
    with (root / NAME).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows if images else ():
        write_view((root / row["anon_filename"]).with_suffix(ending))
    return root


def data_of(root, **kwargs):
    return CSAWCCData(str(root), image_size=list(SIZE), **kwargs)


def outcomes(data):
    return {a.name: (a.time, a.event) for rows in data.anchors.values() for a in rows}


def problems_of(root, **kwargs):
    with pytest.raises(DataError) as caught:
        data_of(root, **kwargs).setup("fit")
    return caught.value.problems


# The label rule and slots -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exams", "expected"),
    [
        # Found at the exam of 2014: 4, 2 and 0 years after these exams, 0 counting as 1.
        ([(2010, 3), (2012, 3), (2014, 1)], [4, 2, 1]),
        # In the interval after that of 2013: diagnosed in 2014.
        ([(2011, 3), (2013, 2)], [3, 1]),
        # As before, but not after the end of follow-up.
        ([(2012, 3), (2016, 2)], [4, 1]),
        ([(2015, 2)], [1]),
    ],
)
def test_time_to_a_cancer(tmp_path, exams, expected):
    rows = [r for year, timing in exams for r in rows_of("7", year, f"{timing}.0")]
    data = data_of(write_release(tmp_path, rows))
    named = {f"7_{year}": (time, True) for (year, _), time in zip(exams, expected, strict=True)}
    assert outcomes(data) == named


def test_controls_are_followed_until_their_last_exam(tmp_path):
    rows = [r for year in (2009, 2011, 2014) for r in rows_of("8", f"{year}.0")]
    data = data_of(write_release(tmp_path, rows + rows_of("9", 2012)))
    expected = {"8_2009": 5, "8_2011": 3, "8_2014": 1, "9_2012": 1}
    assert outcomes(data) == {name: (time, False) for name, time in expected.items()}


def test_slots_are_years(tmp_path):
    rows = [r for year in (2008, 2011, 2012, 2014, 2016) for r in rows_of("7", year)]
    data = data_of(write_release(tmp_path, rows))
    (anchors,) = data.anchors.values()
    seen = {
        a.name: [exam[0] and exam[0].stem.split("_")[1][:4] for exam in a.exams] for a in anchors
    }
    assert seen == {
        "7_2008": [None, None, None, None, "2008"],
        "7_2011": [None, "2008", None, None, "2011"],
        "7_2012": ["2008", None, None, "2011", "2012"],
        "7_2014": [None, "2011", "2012", None, "2014"],
        "7_2016": ["2012", None, "2014", None, "2016"],
    }
    for anchor in anchors:
        views = [f.stem.split("_", 2)[2].rpartition("_")[0] for f in anchor.exams[-1]]
        assert views == list(VIEWS)
    short = data_of(tmp_path, slots=2).anchors
    assert [len(a.exams) for rows in short.values() for a in rows] == [2] * 5


def test_of_eight_views_the_first_ones_count(tmp_path):
    rows = rows_of("7", 2012) + rows_of("7", 2012, number=2)
    ((anchor,),) = data_of(write_release(tmp_path, rows)).anchors.values()
    assert [f.name for f in anchor.exams[-1]] == [f"7_20120909_{v}_1.png" for v in VIEWS]


def test_of_two_exams_in_a_year_the_one_listed_last_counts(tmp_path):
    rows = rows_of("7", 2012, 3) + rows_of("7", 2012, 1, number=2)
    rows[1]["rad_timing"] = ""  # told by the rows before it
    ((anchor,),) = data_of(write_release(tmp_path, rows)).anchors.values()
    assert [f.name for f in anchor.exams[-1]] == [f"7_20120909_{v}_2.png" for v in VIEWS]
    assert (anchor.time, anchor.event, anchor.line) == (1, True, 6)


# Refusals -----------------------------------------------------------------------------------------


def test_bad_rows_come_at_once_with_their_lines(tmp_path):
    first = rows_of("1", 2012)
    rows = [
        *first,
        *rows_of("2", "20x2", views=["L_CC"]),
        *rows_of("3", 2017, views=["L_CC"]),
        *rows_of("4", 2012, views=["L_CC"], imagelaterality="Both"),
        *rows_of("5", 2012, views=["L_CC"], viewposition="ML"),
        *rows_of("6", 2012, views=["L_CC"], x_case="yes"),
        *rows_of("7", 2012, 4, views=["L_CC"]),
        *rows_of("", 2012, views=["L_CC"]),
        *rows_of("9", 2012, views=["L_CC"], anon_filename=""),
        *rows_of("10", 2012, 3),
        *rows_of("11", 2012, 1, case=False),
        *rows_of("12", 2012, views=VIEWS[:3]),
        *rows_of("13", 2012, 1),
        *rows_of("13", 2014, 3),
        first[0] | {"anon_patientid": "14"},
    ]
    write_release(tmp_path, rows, images=False)
    for row in rows:
        if row["anon_filename"]:
            write_view((tmp_path / row["anon_filename"]).with_suffix(".png"))
    assert problems_of(tmp_path) == [
        "line 6: exam_year must be a year, found '20x2'",
        "line 7: exam_year 2017 is after the end of follow-up, 2016",
        "line 8: imagelaterality must be Left or Right, found 'Both'",
        "line 9: viewposition must be CC or MLO, found 'ML'",
        "line 10: x_case must be 0 or 1, found 'yes'",
        "line 11: rad_timing of a case must be 1, 2 or 3, found '4'",
        "line 12: anon_patientid is empty",
        "line 13: anon_filename is empty",
        "lines 14, 15, 16, 17: no exam of case '10' has rad_timing 1 or 2",
        "lines 18, 19, 20, 21: rad_timing of '11' tells a cancer, her x_case is 0",
        "lines 22, 23, 24: the exam of '12' in 2012 lacks R_MLO (missing_views=\"mask\"?)",
        "lines 29, 30, 31, 32: exam after diagnosis: '13' in 2014, diagnosed in 2012 "
        '(late_exams="drop"?)',
        "line 33: 1_20120909_L_CC_1.png is listed twice (first: line 2)",
        "line 33: the exam of '14' in 2012 lacks L_MLO, R_CC, R_MLO (missing_views=\"mask\"?)",
    ]


def test_images_that_cannot_be_read_are_named_with_their_lines(tmp_path):
    rows = rows_of("1", 2012) + rows_of("2", 2012) + rows_of("3", 2012)
    write_release(tmp_path, rows)
    names = [row["anon_filename"].removesuffix(".dcm") for row in rows]
    (tmp_path / f"{names[0]}.png").rename(tmp_path / f"{names[0]}.dcm")
    (tmp_path / f"{names[1]}.png").unlink()
    write_view(tmp_path / "sub" / f"{names[2]}.tif")
    found = problems_of(tmp_path)
    assert found == [
        f"line 2: DICOM is not read: convert {names[0]}.dcm to a grey image of 16 bits of the same "
        "stem (.png, .tif, .tiff)",
        f"line 3: there is no image {names[1]} (.png, .tif, .tiff) below {tmp_path}",
        f"line 4: {names[2]}.dcm could be any of {names[2]}.png, sub/{names[2]}.tif",
    ]
    write_release(tmp_path, rows)
    (tmp_path / "sub" / f"{names[2]}.tif").unlink()
    write_view(tmp_path / f"{names[5]}.png", np.zeros(SIZE, np.uint8))
    whole = (tmp_path / f"{names[6]}.png").read_bytes()
    (tmp_path / f"{names[6]}.png").write_bytes(whole[:-30])
    mode = f"line 7: {tmp_path / names[5]}.png has pixels of mode L, expected grey of 16 bits"
    cut = f"line 8: {tmp_path / names[6]}.png is no readable image ("
    found = problems_of(tmp_path)
    assert found[0] == mode
    assert found[1].startswith(cut)
    assert problems_of(tmp_path, verify="header") == [mode]
    data = data_of(tmp_path, verify="none")
    with pytest.raises(DataError, match="expected grey of 16 bits"):
        [batch for split in data.anchors for batch in data.whole_images(split)]


def test_a_table_without_its_columns_is_refused(tmp_path):
    rows = [{k: v for k, v in row.items() if k not in ("rad_timing", "x_case")}
            for row in rows_of("1", 2012)]  # fmt: skip
    assert problems_of(write_release(tmp_path, rows)) == [
        "line 1: column x_case is missing (did you mean 'x_age'?)",
        "line 1: column rad_timing is missing",
    ]
    write_release(tmp_path, rows_of("1", 2012))
    assert problems_of(tmp_path, mode="features") == [
        "it lists images: `wsl-zoo features` makes features of them"
    ]


def test_late_exams_are_dropped_and_views_masked_where_asked(tmp_path):
    rows = [
        *rows_of("1", 2010, 3, views=VIEWS[:3]),
        *rows_of("1", 2012, 2),
        *rows_of("1", 2013),  # not after 2012 + 1
        *rows_of("1", 2014),
    ]
    data = data_of(write_release(tmp_path, rows), late_exams="drop", missing_views="mask")
    assert outcomes(data) == {"1_2010": (3, True), "1_2012": (1, True), "1_2013": (1, True)}
    ((split, _),) = data.anchors.items()
    fields = data.rows(split).fields
    assert fields["view_mask"][1].tolist() == [
        [False] * 4, [False] * 4, [True, True, True, False], [False] * 4, [True] * 4,
    ]  # fmt: skip
    assert fields["exam_mask"][1].tolist() == [False, False, True, False, True]
    (batch,) = data.whole_images(split)
    there = batch["view_mask"][..., None, None, None]
    assert (batch["image"].abs().amax(dim=(3, 4, 5)) > 0).equal(batch["view_mask"])
    assert (batch["image"] * ~there == 0).all()


# Splits and subsets -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Forty women, every fourth with a cancer, of one to four exams; images in a sub-folder."""
    root = tmp_path_factory.mktemp("csaw")
    rows = []
    for n in range(40):
        years = [2016 - 2 * k for k in range(1 + n % 4)][::-1]
        for year in years:
            timing = "" if n % 4 else (1 if year == 2016 else 3)
            rows += rows_of(f"{n:05d}", year, timing)
    write_release(root, rows, images=False)
    for row in rows:
        write_view(
            root / "png" / row["anon_patientid"] / row["anon_filename"].replace("dcm", "tif")
        )
    return root


def test_patients_are_dealt_cases_apart(release):
    data = data_of(release, verify="none")
    patients = {s: {a.patient: a.event for a in rows} for s, rows in data.anchors.items()}
    assert {s: len(p) for s, p in patients.items()} == {"train": 20, "val": 8, "test": 12}
    assert {s: sum(p.values()) for s, p in patients.items()} == {"train": 5, "val": 2, "test": 3}
    assert len(set.union(*map(set, patients.values()))) == 40
    assert data_of(release, verify="none", seed=3).anchors == data.anchors
    other = data_of(release, verify="none", split_seed=3, fractions=[0.2, 0.2, 0.6]).anchors
    assert len({a.patient for a in other["test"]}) == 24
    anchors = [a for rows in data.anchors.values() for a in rows]
    dealt = deal_patients(anchors[::-1], (0.5, 0.2, 0.3), 0)
    assert dealt == deal_patients(anchors, (0.5, 0.2, 0.3), 0)
    assert dealt != deal_patients(anchors, (0.5, 0.2, 0.3), 1)
    assert all(dealt[a.patient] == a.split for a in anchors)


def test_subsets_hold_one_random_exam_of_every_woman(release):
    data = data_of(release, verify="none")
    for split in ("val", "test"):
        source = data.rows(split)
        subset = source.fields["subset"]
        assert subset.shape == (len(source), 100)
        for s in range(100):
            chosen = [source.group[n] for n in subset[:, s].nonzero().flatten()]
            assert sorted(chosen) == sorted(set(source.group))
        of_four = [n for n, g in enumerate(source.group) if Counter(source.group)[g] == 4]
        shares = subset[of_four].float().mean(dim=1)
        assert ((shares > 0.1) & (shares < 0.45)).all()  # 25 of 100, give or take
        assert torch.equal(data_of(release, verify="none").rows(split).fields["subset"], subset)
    assert "subset" not in data.rows("train").fields
    assert data_of(release, verify="none", subsets=7).rows("val").fields["subset"].shape[1] == 7
    with pytest.warns(UserWarning, match="several exams in val and test"):
        assert "subset" not in data_of(release, verify="none", subsets=0).rows("val").fields


# Images -------------------------------------------------------------------------------------------


def test_batches_of_images(release):
    data = data_of(release, batch_size=3, mean=1000.0, std=2000.0)
    data.setup("fit")
    assert (data.in_chans, data.images, data.preprocessing()) == (1, True, {"image_size": [6, 4]})
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (3, 5, 4, 1, *SIZE)
    assert batch["image"].dtype == torch.float32
    assert sorted(batch) == ["event", "exam_mask", "image", "index", "time", "valid", "view_mask"]
    for image, n in zip(batch["image"], batch["index"], strict=True):
        anchor = data.anchors["train"][n]
        for t, exam in enumerate(anchor.exams):
            for v, file in enumerate(exam):
                expected = np.zeros(SIZE)
                if file is not None:
                    expected = (pixels_of(file.stem).astype(float) - 1000) / 2000
                    expected = expected[:, ::-1] if VIEWS[v].startswith("R") else expected
                np.testing.assert_allclose(image[t, v, 0], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(data.on_after_batch_transfer(dict(batch), 0)["image"], batch["image"])
    with pytest.raises(ValueError, match="the exams are images"):
        data.training_features()
    time, event = data.training_outcomes()
    assert len(time) == len(event) == len(data.anchors["train"])


def test_views_are_mirrored_and_resized_as_asked(release):
    plain, mirrored = (
        next(iter(data_of(release, verify="none", mirror=mirror).whole_images("val")))["image"]
        for mirror in (False, True)
    )
    assert torch.equal(plain[:, :, :2], mirrored[:, :, :2])
    assert torch.equal(plain[:, :, 2:].flip(-1), mirrored[:, :, 2:])
    data = CSAWCCData(str(release), image_size=[3, 2], verify="none", mean=0, std=1)
    small = next(iter(data.whole_images("val")))["image"]
    file = data.anchors["val"][0].exams[-1][0]
    grey = Image.fromarray(pixels_of(file.stem).astype(np.float32))
    expected = np.asarray(grey.resize((2, 3), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(small[0, -1, 0, 0], expected)


def test_no_outcome_reaches_a_batch(release, tmp_path):
    """What is told of a cancer beyond its time changes nothing; without labels, nothing is told."""
    with (release / NAME).open(newline="") as file:
        rows = [row | dict.fromkeys(OTHERS, "") for row in csv.DictReader(file)]
    write_release(tmp_path, rows, images=False)
    (tmp_path / "png").symlink_to(release / "png")
    bare = CSAWCCData(str(tmp_path / "png"), str(tmp_path / NAME), image_size=4, verify="none")
    full = CSAWCCData(str(release), image_size=4, verify="none")
    for one, other in zip(bare.whole_images("val"), full.whole_images("val"), strict=True):
        assert all(torch.equal(one[k], other[k]) for k in one if k not in ("path", "group"))

    class Unsupervised:
        needs = frozenset()

    class Trainer:
        lightning_module, world_size, global_rank = Unsupervised(), 1, 0

    full.trainer = Trainer()
    assert {"time", "event"}.isdisjoint(next(iter(full.whole_images("train"))))


def test_bad_arguments_are_refused():
    for settings, message in (
        ({}, "give root, the folder of the data set, or table"),
        ({"root": "x", "mode": "image"}, "mode='image' must be one of features, images, auto"),
        (
            {"root": "x", "missing_views": "drop"},
            "missing_views='drop' must be one of refuse, mask",
        ),
        ({"root": "x", "late_exams": "mask"}, "late_exams='mask' must be one of refuse, drop"),
        ({"root": "x", "fractions": [0.5, 0.5]}, "three parts >= 0 of 1"),
        ({"root": "x", "fractions": [0.5, 0.5, 0.5]}, "three parts >= 0 of 1"),
        ({"root": "x", "std": 0}, "std=0 must be > 0"),
        ({"root": "x", "subsets": -1}, "subsets=-1 >= 0"),
        ({"root": "x", "image_size": [1, 2, 3]}, r"\[height, width\]"),
        ({"root": "x", "slots": 0}, "slots=0"),
    ):
        with pytest.raises(ValueError, match=message):
            CSAWCCData(**settings)


def test_a_root_that_is_not_there_is_named(tmp_path):
    write_release(tmp_path, rows_of("1", 2012))
    with pytest.raises(DataError, match=r"gone: 1 problem\n.*does not exist"):
        CSAWCCData(str(tmp_path / "gone"), str(tmp_path / NAME)).setup("fit")


def test_an_anchor_knows_where_it_was_read(release):
    data = data_of(release, verify="none")
    source = data.rows("val")
    anchor = data.anchors["val"][0]
    assert isinstance(anchor, Anchor)
    assert (source.path[0], source.group[0]) == (anchor.name, anchor.patient)
