import pytest

from wsl_zoo.data.lists import read_list

NAMES = ["normal", "tumor"]


def test_images_masks_and_classes_in_file_order(tmp_path):
    path = tmp_path / "test_s_0_f_0.csv"
    path.write_text('\ufeff"b, 1.png", m/b.png ,tumor\r\n\r\na.png,,normal\r\n', encoding="utf-8")
    problems = []
    first, second = read_list(path, tmp_path, NAMES, problems, foreground="grey>127.5")
    assert not problems
    assert (first.image, first.masks) == (tmp_path / "b, 1.png", (tmp_path / "m/b.png",))
    assert (first.label, first.place) == (1, "test_s_0_f_0.csv, line 1")
    assert first.foreground == "grey>127.5"
    assert (second.image, second.masks, second.label) == (tmp_path / "a.png", (), 0)
    assert second.place == "test_s_0_f_0.csv, line 3"
    assert not second.has_mask


def test_bad_rows_come_at_once_with_their_lines(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("a.png,tumor\n,m.png,tumor\nb.png,,tumour\nc.png,,2\nd.png,,tumor,x\n")
    problems = []
    assert read_list(path, tmp_path, NAMES, problems) == []
    assert problems == [
        f"{path}, line 1: expected image,mask,class, found 'a.png,tumor'",
        f"{path}, line 2: expected image,mask,class, found ',m.png,tumor'",
        f"{path}, line 3: unknown class 'tumour' (did you mean 'tumor'?)",
        f"{path}, line 4: label 2 is out of range: with 2 classes it must be in [0, 1]",
        f"{path}, line 5: expected image,mask,class, found 'd.png,,tumor,x'",
    ]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_list_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "list.csv"
    if content is not None:
        path.write_bytes(content)
    problems = []
    assert read_list(path, tmp_path, NAMES, problems) == []
    assert len(problems) == 1
    assert problems[0].startswith(f"{path} cannot be read (")
