"""One run of a pipeline: its process, its record, what it is refused for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsl_zoo import jobs


def test_launch_writes_the_log_and_returns_the_status(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert jobs.launch([sys.executable, "-c", code], log) == 3
    lines = log.read_text().splitlines()
    assert lines[0] == "before"  # a resumed run appends
    assert set(lines[1:]) == {"out", "err"}


RUN = """
import signal, sys, time
from pathlib import Path
here = Path(sys.argv[1])
def stop(*_):
    (here / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(here / "started").touch()
time.sleep(120)
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_grid_stops_its_run_and_lets_it_save(tmp_path, sent):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(tmp_path)]
    code = (
        "from pathlib import Path; from wsl_zoo.jobs import launch\n"
        f"launch({command!r}, Path({str(tmp_path / 'log.txt')!r}))"
    )
    root = str(Path(__file__).parents[1])
    grid = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(grid.pid, sent)
    assert grid.wait(60) != 0
    assert (tmp_path / "saved").exists()
