"""One run of a pipeline: its process, its record, what it is refused for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsl_zoo import jobs


def test_launch_writes_the_log_and_returns_the_status(tmp_path, monkeypatch):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    code = (
        "import os, sys\nprint('out', *sys.argv[1:], os.environ['OF_THE_RUN'], os.getcwd())\n"
        "print('err', file=sys.stderr)\nsys.exit(int(sys.argv[1]))"
    )
    (tmp_path / "some_run.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OF_THE_RUN", "here")
    monkeypatch.chdir(tmp_path)
    assert jobs.launch(["some_run", "3"], log) == 3
    lines = log.read_text().splitlines()
    assert lines[0] == "before"  # a resumed run appends
    assert set(lines[1:]) == {f"out 3 here {tmp_path}", "err"}
    assert jobs.launch(["some_run", "0"], log) == 0


RUN = """
import signal, sys, time
from pathlib import Path
here = Path(sys.argv[1])
def stop(*_):
    (here / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(here / "started").touch()
time.sleep(600)
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_grid_stops_its_run_and_lets_it_save(tmp_path, sent):
    (tmp_path / "some_run.py").write_text(RUN)
    command = ["some_run", str(tmp_path)]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path; from wsl_zoo.jobs import launch\n"
        f"launch({command!r}, Path({str(tmp_path / 'log.txt')!r}))"
    )
    root = str(Path(__file__).parents[1])
    grid = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not (tmp_path / "started").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(grid.pid, sent)
    assert grid.wait(300) != 0
    assert (tmp_path / "saved").exists()
