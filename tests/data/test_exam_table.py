"""The zoo's table of exams: outcomes, features, and every refusal with its line."""

import csv
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from wsl_zoo.data.csaw_cc import CSAWCCData
from wsl_zoo.data.exam_table import (
    LABELS,
    Anchor,
    labels_of_outcome,
    outcome_of_labels,
    write_anchors,
)
from wsl_zoo.data.manifest import DataError

M, F, U = LABELS
SLOTS = [f"npy_{t}" for t in range(-4, 1)]
DX = [f"dx_{k}" for k in range(1, 6)]


def write_table(root, rows, name="table.csv"):
    """Write rows (dicts); columns in the order in which they come first."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (root / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return root / name


def row(n, split="train", exam="a.npy", patient=None, **cells):
    patient = f"p{n}" if patient is None else patient
    start = {"patient_id": patient, "exam_id": f"e{n}", "split": split}
    return start | dict.fromkeys(SLOTS, "") | {"npy_0": exam, "time": "2", "event": "1"} | cells


@pytest.fixture
def root(tmp_path):
    for n, name in enumerate("abc"):
        np.save(tmp_path / f"{name}.npy", np.arange(3, dtype=np.float32) + 10 * n)
    return tmp_path


def problems_of(root, rows, **kwargs):
    write_table(root, rows)
    with pytest.raises(DataError) as caught:
        CSAWCCData(str(root), **kwargs).setup("fit")
    return caught.value.problems


# Outcomes -----------------------------------------------------------------------------------------


def test_outcomes_and_labels_are_one_another():
    for years, event in product(range(1, 9), (True, False)):
        for time in range(int(event), years + 1):
            dx = labels_of_outcome(time, event, years)
            assert len(dx) == years
            assert outcome_of_labels(dx) == (time, event)
    assert labels_of_outcome(7, event=True) == [F] * 5  # not within five years
    assert labels_of_outcome(2.5, event=True) == [F, F, M, M, M]
    assert labels_of_outcome(2.5, event=False) == [F, F, U, U, U]


@pytest.mark.parametrize(
    ("dx", "outcome"),
    [
        ([U] * 5, (0, False)),
        ([F, U, F, U, U], (3, False)),  # free in year 3, so before too
        ([F, U, M, U, U], (3, True)),  # the first year of which a diagnosis is known
        ([U, U, U, U, M], (5, True)),
    ],
)
def test_gaps_follow_from_what_is_known(dx, outcome):
    assert outcome_of_labels(dx) == outcome


def test_labels_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="dx_3 is 'Not Malignant' after dx_2 'Malignant'"):
        outcome_of_labels([F, M, F, U, U])
    with pytest.raises(ValueError, match=r"dx_1 'malignant' is none .*mean 'Malignant'"):
        outcome_of_labels(["malignant"])


# Reading ------------------------------------------------------------------------------------------


def test_features_of_all_slots(root):
    (root / "sub").mkdir()
    np.save(root / "sub" / "d.npy", np.full(3, 7.0))
    rows = [
        row(1, exam="b.npy", **{"npy_-3": "a.npy", "npy_-1": str(root / "sub" / "d.npy")}),
        row(2, time="4.0", event="False"),
        row(3, "val", time="", event="", dx_1=F, dx_2="", dx_3="NaN"),
        row(4, "test", dx_1=F, dx_2=M, dx_3=U),
    ]
    write_table(root, rows)
    data = CSAWCCData(str(root), batch_size=2)
    data.setup("fit")
    assert (data.in_chans, data.images, data.num_classes) == (3, False, 5)
    assert data.preprocessing() == {"image_size": None}
    train = data.rows("train").fields
    a, b, d, none = (torch.tensor(v) for v in ([0.0, 1, 2], [10.0, 11, 12], [7.0] * 3, [0.0] * 3))
    assert torch.equal(train["features"][0], torch.stack([none, a, none, d, b]))
    assert train["exam_mask"].tolist() == [[False, True, False, True, True], [False] * 4 + [True]]
    assert train["time"].tolist() == [2, 4]
    assert train["event"].tolist() == [True, False]
    assert torch.equal(data.training_features(), torch.stack([a, d, b, a]))
    outcomes = {s: [f.tolist() for f in (data.rows(s).fields["time"], data.rows(s).fields["event"])]
                for s in ("val", "test")}  # fmt: skip
    assert outcomes == {"val": [[1], [False]], "test": [[2], [True]]}
    (batch,) = data.predict_dataloader()[0]
    assert sorted(batch) == ["event", "exam_mask", "features", "group", "index", "path", "time",
                             "valid"]  # fmt: skip
    assert (batch["path"], batch["group"]) == (["e4"], ["p4"])
    shorter = CSAWCCData(str(root), slots=2)
    assert torch.equal(shorter.rows("train").fields["features"][0], torch.stack([d, b]))


def test_labels_alone_give_the_outcome_and_times_need_not_be_whole(root):
    rows = [row(n, split) for n, split in enumerate(("train", "val"))]
    labelled = [{k: v for k, v in r.items() if k not in ("time", "event")} for r in rows]
    write_table(root, [r | dict(zip(DX, [F, F, M, M, M], strict=True)) for r in labelled])
    data = CSAWCCData(str(root))
    data.setup("fit")
    assert data.training_outcomes()[0].tolist() == [3]
    assert data.whole_times
    write_table(root, [r | {"time": "2.5"} for r in rows])
    data = CSAWCCData(table=str(root / "table.csv"))
    data.setup("fit")
    assert not data.whole_times


def test_every_bad_row_comes_at_once_with_its_line(root):
    np.save(root / "long.npy", np.zeros(4))
    np.save(root / "flat.npy", np.zeros((3, 1)))
    np.save(root / "nan.npy", np.array([0, np.nan, 1]))
    (root / "text.npy").write_text("no array")
    rows = [
        row(2),
        row(3, dx_1="Malignent"),
        row(4, dx_1=F, dx_2=M, dx_3=F),
        row(5, dx_1=M),
        row(6, dx_2=F),
        row(7, time="1", event="0", dx_2=F),
        row(8, time="-1"),
        row(9, time="two"),
        row(10, event="yes"),
        row(11, time="0"),
        row(12, time="", event=""),
        row(13, time="2", event=""),
        row(14, exam=""),
        row(15, **{"npy_-2": "gone.npy"}),
        row(16, exam="long.npy"),
        row(17, exam="flat.npy"),
        row(18, exam="nan.npy"),
        row(19, exam="text.npy"),
        row(20, "val", patient="p2"),
        row(21, "vall"),
        row(2) | {"patient_id": "q"},
        row(23, patient=""),
        row(24, exam="b.npy"),
    ]
    found = problems_of(root, rows)
    assert found[:-1] == [
        "line 3: dx_1 'Malignent' is none of 'Malignant', 'Not Malignant', 'Unknown' "
        "(did you mean 'Malignant'?)",
        "line 4: dx_3 is 'Not Malignant' after dx_2 'Malignant'",
        "line 5: dx_1 'Malignant' contradicts time=2, event=1",
        "line 6: dx_2 'Not Malignant' contradicts time=2, event=1",
        "line 7: dx_2 'Not Malignant' contradicts time=1, event=0",
        "line 8: time must be a number of years >= 0, found '-1'",
        "line 9: time must be a number of years >= 0, found 'two'",
        "line 10: event must be 0, 1, true or false, found 'yes'",
        "line 11: an event at time 0 is at the exam itself: within its year is time 1",
        "line 12: there is no outcome: time and event are empty",
        "line 13: event must be 0, 1, true or false, found ''",
        "line 14: npy_0 is empty, but the current exam must be there",
        f"line 15: npy_-2: there is no file {root / 'gone.npy'}",
        "line 20: patient 'p2' is in val, but in train in line 2",
        "line 21: split 'vall' must be one of train, val, test (did you mean 'val'?)",
        "line 22: exam_id 'e2' stands there twice (first: line 2)",
        "line 23: patient_id or exam_id is empty",
        f"line 17: npy_0: {root / 'flat.npy'} must hold a vector of numbers, found float64 of "
        "shape (3, 1)",
        f"line 18: npy_0: {root / 'nan.npy'} holds numbers that are not finite",
        found[19],
    ]
    assert found[19].startswith(f"line 19: npy_0: {root / 'text.npy'} cannot be read (")
    assert found[-1] == f"line 16: npy_0: {root / 'long.npy'} has 4 features, most have 3"


def test_a_header_that_lacks_columns_is_refused(root):
    plain = {k: v for k, v in row(1).items() if k not in ("npy_-4", "event")}
    assert problems_of(root, [plain | {"npy_1": "", "dx_2": F}]) == [
        "line 1: column npy_-4 is missing",
        "line 1: the outcome needs the columns dx_1, dx_2, ..., or time and event",
        "line 1: dx_1 to dx_2 must all be there, found 1 of them",
        "line 1: unknown column 'npy_1' (did you mean 'npy_-1'?)",
    ]
    assert problems_of(root, [{"patient": "p", "time": "1"}]) == [
        "line 1: it has neither 'anon_patientid' (original) nor 'patient_id' (the zoo's) among "
        "its columns"
    ]


def test_the_table_is_found_or_asked_for(root):
    with pytest.raises(DataError, match=r"it holds neither CSAW-CC_\S+\.csv nor table\.csv"):
        CSAWCCData(str(root)).setup("fit")
    write_table(root, [row(1), row(2, "val")])
    write_table(root, [row(1), row(2, "val")], "CSAW-CC_breast_cancer_screening_data.csv")
    with pytest.raises(DataError, match=r"it holds both CSAW-CC.* and table\.csv: choose by table"):
        CSAWCCData(str(root)).setup("fit")
    CSAWCCData(str(root), str(root / "table.csv")).setup("fit")
    with pytest.raises(DataError, match=r"gone\.csv: 1 problem"):
        CSAWCCData(str(root), str(root / "gone.csv")).setup("fit")


# Subsets ------------------------------------------------------------------------------------------


def repeated(**cells):
    rows = [row(1), row(2, "test", patient="q"), row(3, "test", patient="q"), row(4, "test")]
    return [r | {name: values[n] for name, values in cells.items()} for n, r in enumerate(rows)]


def test_subsets_of_the_table(root):
    cells = {"pseudo_1": ["", "0", "TRUE", "False"], "pseudo_0": ["", "True", "false", "1"]}
    write_table(root, repeated(**cells))
    data = CSAWCCData(str(root))
    data.setup("test")
    subset = data.rows("test").fields["subset"]
    assert subset.tolist() == [[True, False], [False, True], [True, False]]
    assert "subset" not in data.rows("train").fields
    (batch,) = data.predict_dataloader()[0]
    assert torch.equal(batch["subset"], subset)


def test_bad_subsets_are_refused(root):
    cells = {"pseudo_0": ["1", "1", "1", "0"], "pseudo_1": ["0", "ja", "0", "0"]}
    assert problems_of(root, repeated(**cells)) == [
        "line 3: pseudo_1 must be true or false, found 'ja'",
        "pseudo_0 holds patient 'q' more than once: lines 3, 4",
    ]


def test_without_subsets_several_exams_of_a_woman_are_told(root):
    write_table(root, repeated())
    data = CSAWCCData(str(root))
    with pytest.warns(UserWarning, match=r"several exams in test.*no columns pseudo_0") as caught:
        data.setup("test")
    assert len(caught) == 1
    assert "subset" not in data.rows("test").fields


# Writing ------------------------------------------------------------------------------------------


def test_what_is_written_is_read(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("elsewhere") / "x.npy"
    np.save(outside, np.ones(3))
    exams = ((outside,), (None,), (root / "b.npy",), (None,), (root / "a.npy",))
    anchors = [
        Anchor("p", "e", exams, 2.5, event=True, split="train", line=2),
        Anchor("p", "f", exams, 3.0, event=False, split="train", line=3),
        Anchor("q", "g", exams, 1.0, event=True, split="test", subset=(True, False), line=4),
        Anchor("q", "h", exams, 9.0, event=True, split="test", subset=(False, True), line=5),
    ]
    table = write_anchors(root / "table.csv", anchors)
    text = table.read_text().splitlines()
    assert text[0].startswith("patient_id,exam_id,split,npy_-4,npy_-3,npy_-2,npy_-1,npy_0,dx_1,")
    assert text[1].split(",")[:8] == ["p", "e", "train", str(outside), "", "b.npy", "", "a.npy"]
    assert text[1].split(",")[8:] == [F, F, M, M, M, "2.5", "1", "False", "False"]
    read = CSAWCCData(str(root)).anchors
    assert read["test"] == anchors[2:]
    assert read["train"] == [replace(anchor, subset=(False, False)) for anchor in anchors[:2]]
    with pytest.raises(ValueError, match="anchors of one shape"):
        write_anchors(table, [anchors[0], replace(anchors[0], exams=exams[:2])])
    with pytest.raises(ValueError, match="anchors of one shape"):
        write_anchors(table, [])
