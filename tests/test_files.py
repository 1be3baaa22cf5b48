import pytest

from wsl_zoo.files import write_text, write_whole


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_is_written_into_a_folder_that_is_made(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    assert write_text(path, "größe\n") == path
    assert path.read_bytes() == "größe\n".encode()
    assert names(tmp_path) == ["a", "a/b", "a/b/c.txt"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "state.json"
    write_text(path, "old")

    def write(file):
        assert file.parent == path.parent  # to take its place at once, on the same disk
        assert file.name.startswith(".")
        file.write_bytes(b"new")
        assert path.read_text() == "old"

    assert write_whole(path, write) == path
    assert path.read_text() == "new"
    assert names(tmp_path) == ["state.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_writer_that_is_stopped_leaves_what_was_there(tmp_path, error, before, begun):
    path = tmp_path / "state.json"
    if before is not None:
        path.write_text(before)

    def write(file):
        if begun:
            file.write_text("ne")
        raise error("stopped")

    with pytest.raises(error, match="stopped"):
        write_whole(path, write)
    assert names(tmp_path) == ([] if before is None else ["state.json"])
    assert before is None or path.read_text() == before


def test_what_cannot_be_text_leaves_what_was_there(tmp_path):
    path = write_text(tmp_path / "state.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["state.json"]


def test_what_a_killed_process_left_is_no_obstacle(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    monkeypatch.setattr("os.getpid", lambda: 7)
    (tmp_path / ".state.json.7.partial").write_text("half of something longer")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["state.json"]
