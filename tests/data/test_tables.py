"""Labelled tables: what becomes of cells, labels, folds and batches."""

from collections import Counter

import pytest
import torch

from wsl_zoo.data import DataError, TableData
from wsl_zoo.data.folds import deal_rows
from wsl_zoo.data.tables import TableDataset, TableSource, numbers_of, read_table

NAN = float("nan")
FOLDS = range(5)
SPLITS = ["train", "val", "test"]
# Ranks, features and rows of the real tables.
REAL = {
    "ERA": (9, 4, 716),
    "ESL": (9, 4, 354),
    "abalone_ord": (10, 10, 2915),
    "affairs": (6, 17, 204),
    "auto_ord": (10, 7, 267),
    "bostonhousing_ord": (5, 13, 360),
    "machine_ord": (10, 6, 130),
    "skill": (7, 18, 2409),
    "stock_ord": (5, 9, 650),
    "winequality-red": (6, 11, 937),
}


def table(folder, text):
    path = folder / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def graded(folder, count=60, ranks=3, lowest=0, groups=None):
    """Rows `rank,a,b` with a the row and b its rank; with groups also `who`, its patient."""
    header = "rank,a,b" + (",who" if groups else "")
    lines = [
        f"{i % ranks + lowest},{i},{i % ranks}" + (f",p{i % groups}" if groups else "")
        for i in range(count)
    ]
    return table(folder, "\n".join([header, *lines]) + "\n")


def problems_of(data):
    with pytest.raises(DataError) as caught:
        data.setup("fit")
    return caught.value.problems


def whole(data):
    """Features and labels of all rows, in the order of the file."""
    sources = list(data.sources.values())
    lines = [int(path.rpartition(" ")[2]) for source in sources for path in source.path]
    order = torch.tensor(lines).argsort()
    features, label = (
        torch.cat([source.fields[name] for source in sources])[order]
        for name in ("features", "label")
    )
    return features, label.tolist()


def features_of(data):
    return whole(data)[0]


def labels_of(data):
    return whole(data)[1]


# Labels


@pytest.mark.parametrize(
    ("cells", "names", "ranks"),
    [
        ("0 1 2 1", ["0", "1", "2"], [0, 1, 2, 1]),
        ("1 2 3 1", ["1", "2", "3"], [0, 1, 2, 0]),
        ("-1 1 0 1", ["-1", "0", "1"], [0, 2, 1, 2]),
        ("7 4 4 5", ["4", "5", "6", "7"], [3, 0, 0, 1]),  # 6 is a rank that nobody has
    ],
)
def test_labels_count_from_the_lowest_and_gaps_are_ranks(tmp_path, cells, names, ranks):
    rows = [f"{cell},{i}" for i, cell in enumerate(cells.split())]
    data = TableData(table(tmp_path, "\n".join(["y,a", *rows])), folds=3)
    assert (data.class_names, data.num_classes) == (names, len(names))
    assert labels_of(data) == ranks
    assert data.in_chans == 1
    assert data.sources["train"].fields["label"].dtype == torch.int64


def test_named_labels_have_the_order_of_classes(tmp_path):
    text = "y,a\nmild,1\nnone,2\nsevere,3\nmild,4\n"
    data = TableData(table(tmp_path, text), classes=["none", "mild", "severe"], folds=3)
    assert data.class_names == ["none", "mild", "severe"]
    assert labels_of(data) == [1, 0, 2, 1]
    more = TableData(data.path, classes=["worst", "severe", "mild", "none"], folds=3)
    assert (labels_of(more), more.num_classes) == ([2, 3, 1, 2], 4)


@pytest.mark.parametrize("label", ["2", 1, -2])
def test_the_label_by_name_and_by_position(tmp_path, label):
    """Text is a name, and the column named 2 stands at position 1."""
    data = TableData(table(tmp_path, "0,2,1\n5,1,7\n6,2,8\n5,2,9\n"), label, folds=3)
    assert data.class_names == ["1", "2"]
    assert labels_of(data) == [0, 1, 1]
    assert features_of(data).tolist() == [[5, 7], [6, 8], [5, 9]]


# Features


def test_columns_of_text_become_one_feature_per_value_but_the_first(tmp_path):
    text = "y,sex,a,stage,site\n1,m,0.5,III,x\n2,f,NA,I,x\n1, m ,-2e3,II,x\n2,,NaN,I,\n"
    frame = read_table(tmp_path / table(tmp_path, text), "Table")
    problems = []
    features, names = numbers_of(frame, ["sex", "a", "stage", "site"], problems)
    assert (problems, names) == ([], ["sex=m", "a", "stage=II", "stage=III", "site"])
    expected = [[1, 0.5, 0, 1, 1], [0, NAN, 0, 0, 1], [1, -2000, 1, 0, 1], [NAN, NAN, 0, 0, NAN]]
    torch.testing.assert_close(
        torch.from_numpy(features), torch.tensor(expected), equal_nan=True, rtol=0, atol=0
    )
    data = TableData(str(tmp_path / "t.csv"), folds=3)
    torch.testing.assert_close(features_of(data), torch.tensor(expected), equal_nan=True)
    assert data.in_chans == 5


def test_a_column_of_nothing_is_missing(tmp_path):
    data = TableData(table(tmp_path, "y,a,b\n1,,1\n2,NA,2\n1,nan,3\n"), folds=3)
    assert features_of(data).isnan().tolist() == [[True, False]] * 3


def test_what_is_no_feature(tmp_path):
    text = "name,y,a,who,s\nu,1,5,p,train\nv,2,6,q,val\nw,1,7,r,test\n"
    data = TableData(table(tmp_path, text), "y", exclude=["name"], group="who", split="s")
    assert {
        split: source.fields["features"].tolist() for split, source in data.sources.items()
    } == {
        "train": [[5]],
        "val": [[6]],
        "test": [[7]],
    }
    assert [source.group for source in data.sources.values()] == [["p"], ["q"], ["r"]]
    assert data.sources["val"].path == ["t.csv, line 3"]
    assert torch.equal(data.training_features(), torch.tensor([[5.0]]))


def test_blank_lines_count_and_are_no_rows(tmp_path):
    text = "y,a\r\n1,2\r\n\r\n2,3\r\n,\r\n1,4\r\n\r\n"
    data = TableData(table(tmp_path, text), folds=3)
    assert (labels_of(data), data.num_classes) == ([0, 1, 0], 2)
    lines = [path for source in data.sources.values() for path in source.path]
    assert sorted(lines) == ["t.csv, line 2", "t.csv, line 4", "t.csv, line 6"]


# Bad tables


def test_all_problems_come_at_once_with_their_lines(tmp_path):
    text = (
        "grade,a,s\n"
        "mild,1,train\n"
        "mlid,2,val\n"
        "none,two,test\n"
        "none,inf,train\n"
        "\n"
        "mild,1e39,dev\n"  # no float32
        ",5,train\n"
    )
    data = TableData(table(tmp_path, text), classes=["none", "mild"], split="s")
    assert problems_of(data) == [
        "line 3: label 'mlid' is none of none, mild (did you mean 'mild'?)",
        "line 8: label '' is none of none, mild",
        "line 4: a must be a finite number, found 'two'",
        "line 5: a must be a finite number, found 'inf'",
        "line 7: a must be a finite number, found '1e39'",
        "line 7: split 'dev' must be one of train, val, test",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y,a\n1,2\nx,3\n2,4\n", r"line 3: label 'x' is none of 1, 2$"),
        ("y,a\n1,2\n2.5,3\n2,4\n", r"line 3: label '2.5' is none of 1, 2"),
        ("y,a\nlow,1\nhigh,2\n", "column 'y' must hold whole numbers .* by `classes`"),
        ("y,a\n1,1\n1,2\n", "column 'y' must hold whole numbers of two ranks at least"),
        ("y,a\n1,1\n3000,2\n", "labels from 1 to 3000, more ranks than rows"),
        ("y\n1\n2\n1\n", "line 1: there is no column of features"),
        ("y,a\n", "there are no rows below the header"),
        ("y,a\n\n,\n", "there are no rows below the header"),
        ("", r"cannot be read \(No columns to parse"),
        ("y,a, a \n1,2,3\n", "line 1: columns that occur twice: a"),
        ("y,a\n1,2,3\n2,3,4\n", "line 2: 3 cells under 2 columns"),
        ("y,a\n1,2\n2,3,4\n", r"cannot be read \(.*in line 3, saw 3\)"),
        (b"\xff\xfe\x00", "cannot be read .*utf-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"t\.csv: 1 problem\n  - .*{message}"):
        TableData(table(tmp_path, text)).setup("fit")


def test_a_table_that_is_not_there_is_refused(tmp_path):
    data = TableData(str(tmp_path / "none.csv"))
    assert data.origin == tmp_path / "none.csv"
    with pytest.raises(DataError, match=r"none\.csv: 1 problem\n.*cannot be read .*No such file"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "rnak"}, r"label='rnak' is no column \(did you mean 'rank'\?\)"),
        ({"label": 4}, "label=4: there are 4 columns"),
        ({"label": -5}, "label=-5: there are 4 columns"),
        ({"group": "whom"}, r"group='whom' is no column \(did you mean 'who'\?\)"),
        ({"split": "c"}, "split='c' is no column"),
        ({"exclude": ["a", "z"]}, "exclude='z' is no column"),
        ({"folds": 2}, "folds=2: one to test, one to validate and one to train"),
        ({"fold": 5}, "fold=5 does not exist: there are folds 0 to 4"),
        ({"fold": -1}, "fold=-1 does not exist"),
        ({"folds": 61}, "folds=61: there are only 60 groups to deal"),
        ({"folds": 8, "group": "who"}, "folds=8: there are only 7 groups to deal"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, settings, message):
    path = graded(tmp_path, groups=7)
    with pytest.raises(ValueError, match=message):
        TableData(path, **settings).setup("fit")


@pytest.mark.parametrize("classes", [[], ["a"], ["a", "b", "a"]])
def test_bad_classes_are_refused(tmp_path, classes):
    with pytest.raises(ValueError, match="there must be two different ones at least"):
        TableData(graded(tmp_path), classes=classes)


# Splits


def test_folds_are_disjoint_rotate_and_have_all_classes_alike(tmp_path):
    path = graded(tmp_path)
    parts = []
    for fold in FOLDS:
        data = TableData(path, fold=fold)
        assert list(data.sources) == SPLITS
        rows = {split: set(source.path) for split, source in data.sources.items()}
        assert [len(rows[split]) for split in SPLITS] == [36, 12, 12]
        assert len(set.union(*rows.values())) == 60
        for split, each in zip(SPLITS, (12, 4, 4), strict=True):
            counts = Counter(data.sources[split].fields["label"].tolist())
            assert counts == {0: each, 1: each, 2: each}
        parts.append(rows)
    assert [part["val"] for part in parts] == [parts[(k + 1) % 5]["test"] for k in FOLDS]
    assert len(set.union(*(part["test"] for part in parts))) == 60


def test_a_row_keeps_its_features_label_and_line(tmp_path):
    for source in TableData(graded(tmp_path, lowest=1)).sources.values():
        lines = [int(path.rpartition(" ")[2]) for path in source.path]
        assert source.fields["features"][:, 0].tolist() == [line - 2 for line in lines]
        assert source.fields["features"][:, 1].tolist() == source.fields["label"].tolist()
        assert lines == sorted(lines)


def test_folds_depend_on_their_seed_only(tmp_path):
    path = graded(tmp_path)

    def rows(**kwargs):
        return [source.path for source in TableData(path, **kwargs).sources.values()]

    assert rows(seed=3) == rows()
    assert rows(split_seed=3) != rows()
    assert rows(split_seed=3) == rows(split_seed=3)


@pytest.mark.parametrize("fold", FOLDS)
def test_groups_are_never_divided(tmp_path, fold):
    data = TableData(graded(tmp_path, count=90, groups=11), group="who", fold=fold)
    groups = [set(source.group) for source in data.sources.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 11
    assert sum(map(len, data.sources.values())) == 90
    assert all(len(own) >= 2 for own in groups)
    for source in data.sources.values():
        who = [f"p{int(row) % 11}" for row in source.fields["features"][:, 0]]
        assert list(source.group) == who


def test_rows_of_a_group_get_one_split():
    groups, labels = ["a", "a", "b", "c"], [0, 1, 0, 1]
    split = deal_rows(groups, labels, 0, 3, 0)
    assert split[0] == split[1]
    assert set(split) == {"train", "val", "test"}


def test_a_stage_without_its_split_is_refused(tmp_path):
    data = TableData(table(tmp_path, "y,a,s\n0,1,train\n1,2,test\n"), split="s")
    data.setup("fit")
    with pytest.raises(DataError, match="no 'val' split; found: train, test"):
        data.setup("validate")


# Batches


def test_loaders_give_every_row_once(tmp_path):
    data = TableData(graded(tmp_path), batch_size=8, eval_batch_size=5)
    train = list(data.train_dataloader())
    assert [len(batch["index"]) for batch in train] == [8, 8, 8, 8, 4]
    order = torch.cat([batch["index"] for batch in train])
    assert order.tolist() != list(range(36))
    assert sorted(order.tolist()) == list(range(36))
    source = data.sources["train"]
    for batch in train:
        assert set(batch) == {"index", "valid", "features", "label"}
        assert torch.equal(batch["features"], source.fields["features"][batch["index"]])
        assert torch.equal(batch["label"], source.fields["label"][batch["index"]])
        assert batch["valid"].all()
        assert batch["valid"].dtype == torch.bool
    (val,) = data.val_dataloader()
    assert torch.cat([batch["index"] for batch in val]).tolist() == list(range(12))
    assert [len(batch["index"]) for batch in data.test_dataloader()[0]] == [5, 5, 2]
    dropped = TableData(graded(tmp_path), batch_size=8, drop_last=True).train_dataloader()
    assert [len(batch["index"]) for batch in dropped] == [8, 8, 8, 8]
    assert data.preprocessing() == {"image_size": None}
    assert data.selection() == {"cl": "val/acc", "loc": None}


def test_rows_to_predict_tell_where_they_come_from(tmp_path):
    data = TableData(graded(tmp_path, groups=20), group="who", eval_batch_size=5)
    (loader,) = data.predict_dataloader()
    source = data.sources["test"]
    for start, batch in zip((0, 5, 10), loader, strict=True):
        assert batch["index"].tolist() == list(range(start, min(start + 5, 12)))
        assert batch["path"] == [source.path[i] for i in batch["index"]]
        assert batch["group"] == [source.group[i] for i in batch["index"]]


def test_worker_processes_give_the_same_batches(tmp_path):
    batches = [
        list(TableData(graded(tmp_path), num_workers=workers).train_dataloader())
        for workers in (0, 1)
    ]
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one["features"], two["features"])
        assert torch.equal(one["index"], two["index"])


def test_parts_of_a_split_in_their_order(tmp_path):
    data = TableData(graded(tmp_path))
    (batch,) = data.whole_images("train", only=[7, 2, 30])
    assert batch["index"].tolist() == [7, 2, 30]
    rows = data.sources["train"].fields["features"]
    assert torch.equal(batch["features"], rows[[7, 2, 30]])


def test_padded_copies_are_told_apart(tmp_path):
    dataset = TableData(graded(tmp_path)).rows_of("val")
    batch = dataset.__getitems__([(0, 3, True), (0, 0, False)])
    assert batch["index"].tolist() == [3, 0]
    assert batch["valid"].tolist() == [True, False]
    row = dataset[3]
    assert torch.equal(row["features"], batch["features"][0])
    assert (row["path"], row["index"]) == (batch["path"][0], 3)
    pair = dataset.collate([dataset[3], dataset[0]])
    assert torch.equal(pair["features"], batch["features"])
    assert pair["path"] == batch["path"]


def test_a_method_that_reads_no_labels_sees_none(tmp_path):
    outcomes = {"label": torch.tensor([0, 1]), "time": torch.ones(2), "event": torch.ones(2).bool()}
    fields = {"features": torch.zeros(2, 3), "subset": torch.ones(2, 1).bool(), **outcomes}
    source = TableSource(fields, ["a", "b"])
    assert set(fields) <= set(TableDataset(source)[0])
    hidden = TableDataset(source, labels=False)
    assert set(hidden[0]) == {"features", "index", "valid", "path"}
    with pytest.raises(TypeError, match="rows of features, no images"):
        source.load(0, annotations=True)

    class Blind(TableData):
        def _training_reads(self, *what):
            return "label" not in what

    data = Blind(graded(tmp_path))
    assert "label" not in next(iter(data.train_dataloader()))
    assert "label" not in next(iter(data.whole_images("train")))
    assert "label" in next(iter(data.whole_images("val")))
    assert "label" in next(iter(data.val_dataloader()[0]))


# The real tables


@pytest.fixture(scope="module")
def tables(real_data):
    if not (real_data / "ordinal").is_dir():
        pytest.skip("the real ordinal tables are not there")
    return real_data / "ordinal"


@pytest.mark.parametrize("name", REAL)
def test_the_real_tables_load(tables, name):
    ranks, features, count = REAL[name]
    label = -1 if name in ("ERA", "ESL") else "response"
    data = TableData(str(tables / f"{name}.csv"), label, batch_size=64)
    data.setup("fit")
    assert data.class_names == [str(k) for k in range(1, ranks + 1)]
    assert data.in_chans == features
    x, y = whole(data)
    assert x.shape == (count, features)
    assert x.isfinite().all()
    assert set(y) == set(range(ranks))
    sizes = [len(data.sources[split]) for split in SPLITS]
    assert max(abs(size - count / 5) for size in sizes[1:]) <= ranks
    counts = Counter(y)
    for split in ("val", "test"):
        own = Counter(data.sources[split].fields["label"].tolist())
        assert all(abs(own[k] - counts[k] / 5) <= 1 for k in range(ranks))
    batch = next(iter(data.train_dataloader()))
    assert batch["features"].shape == (64, features)


def test_every_real_table_is_known(tables):
    assert sorted(path.stem for path in tables.glob("*.csv")) == sorted(REAL)
