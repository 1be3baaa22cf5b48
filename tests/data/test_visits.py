"""Visits of patients: their slots, times and splits."""

import random
from collections import Counter

import pytest
import torch

from wsl_zoo.data import DataError, VisitTableData
from wsl_zoo.data.folds import one_of_each

HEADER = "id,year,years,status2,x"
NAN = float("nan")
FOLDS = range(5)
# Visits of one patient, with an x of their own.
VISITS = {0.0: 1.0, 0.9: 2.0, 1.1: 3.0, 3.0: 4.0, 4.7: 5.0}


def table(folder, *lines, header=HEADER):
    path = folder / "v.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def one_patient(folder, **kwargs):
    """Her visits, in another order than that of time, among others with one visit each."""
    lines = [f"ann,{visit},6,1,{x}" for visit, x in VISITS.items()]
    lines = [lines[i] for i in (3, 0, 4, 2, 1)]
    others = [f"{name},0.5,2.25,{event},9" for name, event in (("bob", 0), ("cyd", 1))]
    path = table(folder, lines[0], others[0], *lines[1:], others[1])
    return VisitTableData(path, **{"folds": 3, "subsets": 0} | kwargs)


def cohort(folder, patients=40, **kwargs):
    """Patients of one to five visits, a third of whom have the event."""
    rng = random.Random(0)
    lines = []
    for p in range(patients):
        visits = [i + rng.uniform(0, 0.4) for i in range(rng.randint(1, 5))]
        lines += [f"p{p},{visit:.3f},{7 + p / 8},{int(p % 3 == 0)},{p}" for visit in visits]
    rng.shuffle(lines)
    return VisitTableData(table(folder, *lines), **kwargs)


def anchors(data, patient):
    """Fields of the anchors of a patient, by the x of the anchor."""
    for source in data.sources.values():
        for i, group in enumerate(source.group):
            if group == patient:
                row = {name: values[i] for name, values in source.fields.items()}
                yield row["features"][-1, 0].item(), row, source.path[i]


# Slots and times


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {},
            {
                1: [0, 0, 0, 0, 1],
                2: [0, 0, 0, 1, 2],
                3: [0, 0, 0, 1, 3],  # the visit 0.2 years before is in no earlier slot
                4: [0, 1, 3, 0, 4],  # of 0.9 and 1.1, both about two years before, the later
                5: [3, 0, 4, 0, 5],  # that of 0 is too long ago
            },
        ),
        ({"slots": 3}, {4: [3, 0, 4], 5: [4, 0, 5]}),
        ({"slots": 1}, {1: [1], 4: [4], 5: [5]}),
        ({"slot": 2.0}, {2: [0, 0, 0, 0, 2], 3: [0, 0, 0, 1, 3], 5: [0, 0, 3, 4, 5]}),
        ({"slot": 0.25, "slots": 9}, {3: [0, 0, 0, 0, 1, 0, 0, 2, 3]}),
    ],
)
def test_earlier_visits_are_in_the_slots_of_their_distance(tmp_path, settings, expected):
    found = {x: row for x, row, _ in anchors(one_patient(tmp_path, **settings), "ann")}
    assert set(found) == set(VISITS.values())
    for x, slots in expected.items():
        assert found[x]["features"][:, 0].tolist() == slots
        assert found[x]["exam_mask"].tolist() == [value > 0 for value in slots]


def test_time_counts_from_the_visit_to_the_end(tmp_path):
    data = one_patient(tmp_path)
    ends = {x: 6 - visit for visit, x in VISITS.items()}
    for x, row, _ in anchors(data, "ann"):
        assert row["time"].item() == pytest.approx(ends[x], abs=1e-6)
        assert row["event"].item() is True
    ((_, row, path),) = anchors(data, "bob")
    assert (row["time"].item(), row["event"].item(), path) == (1.75, False, "v.csv, line 3")
    assert row["time"].dtype == row["features"].dtype == torch.float32


def test_a_visit_on_the_last_day_counts(tmp_path):
    path = table(tmp_path, "a,2,2,1,1", "b,0,0,0,1", "c,0,1,0,1")
    data = VisitTableData(path, folds=3)
    times = torch.cat([source.fields["time"] for source in data.sources.values()])
    assert sorted(times.tolist()) == [0, 0, 1]


def test_no_visit_is_zero_and_a_missing_cell_is_not(tmp_path):
    lines = ["a,0,9,0,,yes", "a,1,9,0,5,", "b,0,9,0,1,no", "c,0,9,1,2,yes"]
    data = VisitTableData(table(tmp_path, *lines, header=f"{HEADER},z"), folds=3, slots=3)
    assert data.sources
    assert data.feature_names == ["x", "z=yes"]
    ((exams, mask),) = [
        (row["features"], row["exam_mask"].tolist()) for x, row, _ in anchors(data, "a") if x == 5
    ]
    expected = torch.tensor([[0, 0], [NAN, 1], [5, NAN]])
    torch.testing.assert_close(exams, expected, equal_nan=True)
    assert mask == [False, True, True]


def test_columns_by_other_names(tmp_path):
    text = "who,seen,end,dead,note,x\na,0,3,0,u,1\nb,1,3,1,v,2\nc,2,3,0,w,3"
    (tmp_path / "v.csv").write_text(text)
    names = {"patient": "who", "visit": "seen", "time": "end", "event": "dead", "exclude": ["note"]}
    data = VisitTableData(str(tmp_path / "v.csv"), **names, folds=3)
    found = {
        source.group[0]: [v.squeeze().tolist() for v in (f["features"][0, -1], f["time"])]
        for source in data.sources.values()
        for f in [source.fields]
    }
    assert found == {"a": [1, 3], "b": [2, 2], "c": [3, 1]}
    assert data.feature_names == ["x"]
    assert data.in_chans == 1


# Splits


def test_patients_are_never_divided_and_folds_rotate(tmp_path):
    parts = []
    for fold in FOLDS:
        data = cohort(tmp_path, fold=fold)
        assert list(data.sources) == ["train", "val", "test"]
        groups = {split: set(source.group) for split, source in data.sources.items()}
        assert [len(own) for own in groups.values()] == [24, 8, 8]
        assert len(set.union(*groups.values())) == 40
        for source in data.sources.values():
            events = dict(zip(source.group, source.fields["event"].tolist(), strict=True))
            assert all(events[who] == (int(who[1:]) % 3 == 0) for who in events)
            assert abs(sum(events.values()) - len(events) * 14 / 40) <= 1
            own = [f"p{x:g}" for x in source.fields["features"][:, -1, 0].tolist()]
            assert own == list(source.group)
        parts.append(groups)
    assert [part["val"] for part in parts] == [parts[(k + 1) % 5]["test"] for k in FOLDS]


def test_folds_depend_on_their_seed_only(tmp_path):
    def groups(**kwargs):
        return [set(source.group) for source in cohort(tmp_path, **kwargs).sources.values()]

    assert groups(seed=3) == groups()
    assert groups(split_seed=3) != groups()
    assert [len(own) for own in groups(folds=4)] == [20, 10, 10]


def test_a_subset_has_one_anchor_of_each_patient(tmp_path):
    data = cohort(tmp_path, subsets=30)
    assert "subset" not in data.sources["train"].fields
    for split in ("val", "test"):
        source = data.sources[split]
        subset = source.fields["subset"]
        assert subset.shape == (len(source), 30)
        for rows in subset.T:
            of = Counter(source.group[i] for i in rows.nonzero().flatten().tolist())
            assert of == dict.fromkeys(source.group, 1)
        assert len({tuple(rows.tolist()) for rows in subset.T}) > 20
        assert subset.any(dim=1).all()
    assert "subset" not in cohort(tmp_path, subsets=0).sources["test"].fields
    again = cohort(tmp_path, subsets=30, seed=5).sources["test"].fields["subset"]
    assert torch.equal(again, data.sources["test"].fields["subset"])


def test_subsets_are_drawn_evenly():
    subset = one_of_each(["a", "b", "a", "a"], 3000, "seed")
    assert (subset.sum(0) == 2).all()
    share = subset.double().mean(1)
    assert share[1] == 1
    assert (share[[0, 2, 3]] - 1 / 3).abs().max() < 0.03
    assert not torch.equal(one_of_each(["a", "b", "a", "a"], 3000, "other"), subset)


def test_what_training_takes_from_its_rows(tmp_path):
    data = cohort(tmp_path)
    fields = data.sources["train"].fields
    there = fields["exam_mask"]
    assert len(fields["time"]) < int(there.sum()) < there.numel()
    assert data.training_features().shape == (int(there.sum()), 1)
    assert torch.equal(data.training_features(), fields["features"][there])
    time, event = data.training_outcomes()
    assert torch.equal(time, fields["time"])
    assert torch.equal(event, fields["event"])


def test_what_a_batch_holds(tmp_path):
    data = cohort(tmp_path, batch_size=16, horizons=[0.5, 2])
    assert (data.class_names, data.whole_times) == (["0.5", "2"], False)
    assert data.selection() == {"cl": "val/bce", "loc": None}
    exams = {"features", "exam_mask", "time", "event", "index", "valid"}
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == exams
    assert batch["features"].shape == (16, 5, 1)
    assert batch["exam_mask"][:, -1].all()
    assert set(next(iter(data.val_dataloader()[0]))) == exams | {"subset"}
    named = exams | {"subset", "path", "group"}
    assert set(next(iter(data.predict_dataloader()[0]))) == named


# Bad tables


def problems_of(folder, *lines, **kwargs):
    with pytest.raises(DataError, match=r"Visits .*v\.csv") as caught:
        VisitTableData(table(folder, *lines), **kwargs).setup("fit")
    return caught.value.problems


def test_bad_visits_come_at_once_with_their_lines(tmp_path):
    lines = [
        "a,0,5,1,1",
        "a,6,5,1,1",
        "b,-1,5,0,1",
        "c,0,5,2,1",
        "d,0,5,0,1",
        "d,1,4,0,1",
        "d,2,5,1,1",
        ",0,5,0,1",
        "e,,5,0,1",
        "f,0,NA,0,1",
        "g,0,5,,1",
        "h,0,5,0,1",
        "i,0,-1,0,1",
    ]
    assert problems_of(tmp_path, *lines) == [
        "line 3: the visit at 6 comes after the end at 5",
        "line 4: a negative time",
        "line 5: status2 must be 0 or 1, found 2",
        "line 7: patient d has another outcome than in line 6",
        "line 8: patient d has another outcome than in line 6",
        "line 9: id is empty",
        "line 10: one of year, years, status2 is empty",
        "line 11: one of year, years, status2 is empty",
        "line 12: one of year, years, status2 is empty",
        "line 14: a negative time",
    ]


def test_bad_numbers_come_at_once_with_their_lines(tmp_path):
    lines = ["a,0,5,1,1", "b,soon,5,0,1", "", "c,0,inf,0,tall", "d,0,5,dead,1"]
    assert problems_of(tmp_path, *lines) == [
        "line 5: x must be a finite number, found 'tall'",
        "line 3: year must be a finite number, found 'soon'",
        "line 5: years must be a finite number, found 'inf'",
        "line 6: status2 must be a finite number, found 'dead'",
    ]


@pytest.mark.parametrize(
    ("lines", "column"),
    [
        (["a,0,5,no,1", "b,0,5,event,1", "c,0,5,no,1"], "status2"),
        (["a,0,5,alive,1", "b,0,5,dead,1", "c,0,5,moved,1"], "status2"),
        (["a,May 1,5,1,1", "b,May 2,5,1,1", "c,May 3,5,1,1"], "year"),
    ],
)
def test_times_and_events_in_words_are_refused(tmp_path, lines, column):
    found = problems_of(tmp_path, *lines, folds=3)
    assert len(found) == 3
    assert all(f": {column} must be a finite number, found " in problem for problem in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patient": "ids"}, r"patient='ids' is no column \(did you mean 'id'\?\)"),
        ({"visit": "day"}, "visit='day' is no column"),
        ({"time": "yaers"}, r"time='yaers' is no column \(did you mean 'years'\?\)"),
        ({"event": "status"}, r"event='status' is no column \(did you mean 'status2'\?\)"),
        ({"exclude": ["sno."]}, r"exclude='sno\.' is no column"),
        ({"slot": 0.0}, "slot=0.0 must be positive"),
        ({"slot": NAN}, "slot=nan must be positive"),
        ({"subsets": -1}, "subsets=-1 not negative"),
        ({"slots": 0}, "slots=0: there must be one at least"),
        ({"horizons": []}, r"horizons=\[\] must be positive and increasing"),
        ({"horizons": [0, 1]}, r"horizons=\[0, 1\] must be positive and increasing"),
        ({"horizons": [2, 1]}, "must be positive and increasing"),
        ({"horizons": [1, 1]}, "must be positive and increasing"),
        ({"folds": 2}, "folds=2: one to test, one to validate and one to train"),
        ({"folds": 3, "fold": 3}, "fold=3 does not exist"),
        ({"folds": 4}, "folds=4: there are only 3 groups to deal"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        one_patient(tmp_path, **settings).setup("fit")


# The real cohort


@pytest.mark.parametrize("fold", [0, 3])
def test_the_real_visits_load(real_data, fold):
    path = real_data / "survival" / "pbc2.csv"
    if not path.is_file():
        pytest.skip(f"no table {path}")
    data = VisitTableData(str(path), exclude=["sno.", "status"], fold=fold, subsets=20)
    data.setup("fit")
    assert data.feature_names == [
        "drug=placebo", "age", "sex=male", "ascites=Yes", "hepatomegaly=Yes", "spiders=Yes",
        "edema=edema despite diuretics", "edema=edema no diuretics", "serBilir", "serChol",
        "albumin", "alkaline", "SGOT", "platelets", "prothrombin", "histologic",
    ]  # fmt: skip
    groups = [set(source.group) for source in data.sources.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 223
    assert sum(map(len, data.sources.values())) == 1417
    for source in data.sources.values():
        fields = source.fields
        assert fields["features"].shape[1:] == (5, 16)
        assert fields["exam_mask"][:, -1].all()
        assert (fields["features"][~fields["exam_mask"]] == 0).all()
        assert (fields["time"] >= 0).all()
        died = dict(zip(source.group, fields["event"].tolist(), strict=True))
        assert abs(sum(died.values()) / len(died) - 99 / 223) < 0.02
    missing = data.training_features().isnan().double().mean(0)
    assert missing.argmax() == data.feature_names.index("serChol")
    assert missing.max() == pytest.approx(602 / 1417, abs=0.05)
    assert data.sources["test"].fields["subset"].sum(0).unique().tolist() == [len(groups[2])]
