import re
import statistics
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.reports import Report, clean_report, empty_and_repeated, read_reports


@pytest.fixture
def corpus(tmp_path):
    """A function that writes a file and returns its path."""

    def write(text, name="reports.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return path

    return write


def problems_of(path):
    with pytest.raises(DataError, match="Reports ") as caught:
        read_reports(path)
    return caught.value.problems


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_line_is_a_report(corpus, end):
    path = corpus(f" Tumor of 4.5 cm.\fG2 {end or chr(10)}\ufeffNo tumor.\x85R0{end}")
    # A form feed or another control character ends no line.
    expected = [Report("Tumor of 4.5 cm.\fG2", "line 1"), Report("\ufeffNo tumor.\x85R0", "line 2")]
    assert read_reports(path) == expected
    assert read_reports(str(path)) == expected


def test_a_byte_order_mark_is_no_text(corpus):
    assert read_reports(corpus("\ufeffTumor.\n"))[0].text == "Tumor."


def test_empty_and_repeated_reports_are_kept_and_told(corpus):
    path = corpus("a b\n\n a  b\nc\n \t\nc\na b\n")
    with pytest.warns(UserWarning, match="of 7 reports") as caught:
        reports = read_reports(path)
    assert [report.text for report in reports] == ["a b", "", "a  b", "c", "", "c", "a b"]
    assert [str(warning.message) for warning in caught] == [
        f"{path}: 2 of 7 reports are empty: line 2, line 5",
        f"{path}: 3 of 7 reports repeat an earlier one: "
        "line 3 (line 1), line 6 (line 4), line 7 (line 1)",
    ]
    assert empty_and_repeated(reports) == (
        ["line 2", "line 5"],
        {"line 3": "line 1", "line 6": "line 4", "line 7": "line 1"},
    )


def test_a_warning_names_the_first_five(corpus):
    with pytest.warns(UserWarning, match=r"8 of 9 reports repeat .* line 6 \(line 1\) and 3 more$"):
        read_reports(corpus("a\n" * 9))


def test_a_folder_has_a_report_in_every_file(corpus, tmp_path):
    corpus("Second.\nOf two lines.\n", "folder/b.txt")
    corpus("Third.", "folder/colon/TCGA-AA-1.x.txt")
    corpus("First.", "folder/a.txt")
    corpus("Not one.", "folder/readme.md")
    corpus("Nor this.", "folder/.hidden/c.txt")
    assert read_reports(tmp_path / "folder") == [
        Report("First.", "a"),
        Report("Second.\nOf two lines.", "b"),
        Report("Third.", "colon/TCGA-AA-1.x"),
    ]
    (tmp_path / "empty").mkdir()
    assert problems_of(tmp_path / "empty")[0] == "it holds no .txt file"


def test_a_table_has_a_report_in_every_row(corpus):
    full = corpus(
        'group, text,stage,label,name\np1,"Tumor, of\ntwo lines",I,colon,r1\n\n,No tumor,II,,\n',
        "full.csv",
    )
    assert read_reports(full) == [
        Report("Tumor, of\ntwo lines", "r1", "colon", "p1"),
        Report("No tumor", "row 2"),
    ]
    assert read_reports(corpus("text\nA\nB\n", "bare.CSV")) == [
        Report("A", "row 1"),
        Report("B", "row 2"),
    ]


def test_bad_tables_are_refused_with_their_lines(corpus):
    assert problems_of(corpus("Text,label\nA,1\n", "a.csv")) == [
        "line 1: there is no column 'text'; found: Text, label (did you mean 'Text'?)"
    ]
    assert problems_of(corpus("", "b.csv")) == ["line 1: there is no column 'text'; found: none"]
    assert problems_of(corpus('text,name\n"A\nB",n\nC\nD,n\nE,m,F\n', "c.csv")) == [
        "line 4: expected 2 cells",
        "line 6: expected 2 cells",
        "name 'n' stands there 2 times",
    ]
    (problem,) = problems_of(corpus('text\n"A"B\n', "d.csv"))
    assert "cannot be read as a UTF-8 table" in problem


def test_a_corpus_must_be_there_and_hold_text(corpus, tmp_path):
    assert problems_of(corpus("\n \n")) == ["it holds no report"]
    assert problems_of(corpus("", "none.txt")) == ["it holds no report"]
    (problem,) = problems_of(tmp_path / "nowhere.txt")
    assert "nowhere.txt cannot be read as UTF-8 text" in problem
    (tmp_path / "latin.txt").write_bytes("Gärtner".encode("latin-1"))
    (problem,) = problems_of(tmp_path / "latin.txt")
    assert "latin.txt cannot be read as UTF-8 text" in problem


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("", ""),
        (
            "Stage III, G2 in 11 of 111 nodes, grade ii",
            "Stage III, G2 in 11 of 111 nodes, grade ii",
        ),
        ("PR IIIIIIIII 1111111 II11II Diagnosis", "PR Diagnosis"),
        ("5311IIIIII Diagnosis", "53 Diagnosis"),
        ("case 211114 and 11112, 1111 too", "case 211114 and 11112, too"),
        ("stage III|II|||grade", "stage III II grade"),
        ("PRRedacted II, redacted", "PR II, redacted"),
        ("a\x00b\x1fc\x7f\x85d\te\n", "a b c d e"),
        ("__name__ **bold**", "name bold"),
        ("margin B2 --distal - - - end - IIII - x", "margin B2 -distal - end - x"),
        ("tumor -free low-grade", "tumor -free low-grade"),
        ("Mets or mets, not METS or Metsa", "Metastases or metastases, not METS or Metsa"),
        ("colon.Tumor:yes,no;1st", "colon. Tumor: yes, no;1st"),
        ("4.5 cm, e.g.this; U.S.A. pT3.2", "4.5 cm, e.g.this; U.S.A. pT3.2"),
    ],
)
def test_what_ocr_left_goes_and_words_stay(text, cleaned):
    assert clean_report(text) == cleaned


def test_the_published_rule_takes_every_i_and_one():
    text = "Invasive differentiated adenocarcinoma, stage III | pT1 11/2011 Mets"
    assert clean_report(text, published=True) == (
        "nvasve dfferentated adenocarcnoma, stage pT /20 Metastases"
    )
    assert clean_report("__A--B.Redacted", published=True) == "A-B."


PIECES = st.sampled_from(
    [*"1Ii|-_*.,: aZ09\n\x00\u00a0é", "III", "Mets", "mets", "Redacted", "IIII", "1111"]
)
TEXTS = st.lists(PIECES, max_size=25).map("".join)


@given(TEXTS, st.booleans())
def test_cleaning_a_clean_report_changes_nothing(text, published):
    once = clean_report(text, published)
    assert clean_report(once, published) == once
    assert once == once.strip()
    assert not re.search(r"[\x00-\x1f|_*]|--|  |Redacted|\b[Mm]ets\b|I{4}", once)


@given(TEXTS)
def test_the_published_rule_is_the_default_on_a_text_without_ones_and_i(text):
    bare = "".join(c for c in text if c not in "1Ii|")
    assert clean_report(text, published=True) == clean_report(bare)


@given(st.lists(st.text("Ii1aZ2", min_size=1, max_size=3), max_size=8).map(" ".join))
def test_words_of_three_are_never_touched(text):
    assert clean_report(text) == text


@pytest.fixture(scope="module")
def real(real_data):
    path = real_data / "reports" / "colon_reports.txt"
    if not path.is_file():
        pytest.skip("the real colon reports are not there")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reports = read_reports(path)
    return reports, [str(warning.message) for warning in caught]


def test_the_real_reports(real):
    reports, told = real
    words = [len(report.text.split()) for report in reports]
    assert (len(reports), statistics.median(words), min(words), max(words)) == (376, 182, 26, 3422)
    empty, repeated = empty_and_repeated(reports)
    assert (len(empty), len(repeated)) == (0, 1)
    assert len(told) == 1
    assert "1 of 376 reports repeat an earlier one" in told[0]


def test_cleaning_the_real_reports_keeps_their_words(real):
    raw = " ".join(report.text for report in real[0])
    cleaned = " ".join(clean_report(report.text) for report in real[0])
    published = " ".join(clean_report(report.text, published=True) for report in real[0])
    assert not re.search(r"I{4}|\||--|Redacted", cleaned)
    assert not set("1Ii|") & set(published)
    for word in ("differentiated", "infiltration", "Diagnosis", "III", "pT1"):
        count = len(re.findall(rf"\b{word}\b", raw))
        assert count > 5
        assert len(re.findall(rf"\b{word}\b", cleaned)) >= count  # some lose what stuck to them
        assert not re.search(rf"\b{word}\b", published)
    assert 0.97 < len(cleaned) / len(raw) < 1
    assert 0.8 < len(published) / len(raw) < 0.95
