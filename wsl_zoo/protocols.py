"""Grids of runs as data: method x seed x fold, each a plain `wsl-zoo fit`, resumable.

    output: runs/glas_cv
    config: cam/glas_small            # fit config of every run
    seeds: [0, 1, 2]
    folds: [0, 1, 2, 3, 4]            # optional: --data.fold
    test: [best_cl, best_loc]         # checkpoints to test; also: last, best_loc_<root>
    methods:                          # name -> options on top of the config
      CAM: {}
      GAP: {model.head: gap}

A run that finished is skipped, one that was killed goes on from its last checkpoint, one that was
run with other options is refused. Further command-line arguments go to every run.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

from wsl_zoo import reports

KEYS = ("output", "config", "seeds", "folds", "test", "methods")


@dataclass(frozen=True)
class Job:
    """One run of a grid.

    Attributes:
        root: The grid's output folder.
        folder: Its run folder below that.
        cells: What tells it apart: method, seed, fold.
        args: Arguments of its `fit`.
    """

    root: Path
    folder: Path
    cells: dict[str, Any]
    args: list[str]


def read_grid(path: Path, extra: Sequence[str] = ()) -> list[Job]:
    """Return the runs of a grid file.

    Args:
        path: The YAML file.
        extra: Arguments for every run.

    Raises:
        ValueError: Unknown or missing keys.
    """
    text = path.read_text(encoding="utf-8")
    grid = yaml.safe_load(text)
    if not isinstance(grid, dict):
        raise ValueError(f"{path}: expected the keys {', '.join(KEYS)}")
    for key in grid:
        if key not in KEYS:
            near = get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"keys: {', '.join(KEYS)}"
            raise ValueError(f"{path}: unknown key {key!r}; {hint}")
    for key in ("output", "methods"):
        if not grid.get(key):
            raise ValueError(f"{path}: the key {key!r} is missing")
    return list(_jobs(path, grid, extra))


def _jobs(path: Path, grid: Mapping[str, Any], extra: Sequence[str]) -> Iterator[Job]:
    for method, options in grid["methods"].items():
        settings = {"config": grid.get("config"), **(options or {})}
        config = settings.pop("config")
        if config is None:
            raise ValueError(f"{path}: method {method!r} has no config")
        for fold in grid.get("folds") or [None]:
            for seed in grid.get("seeds") or [0]:
                cells = {"method": method, "seed": seed}
                args = ["--config", str(config), "--seed_everything", str(seed)]
                args += ["--then_test", json.dumps(grid.get("test") or ["best_cl", "best_loc"])]
                if fold is not None:
                    cells["fold"] = fold
                    args += ["--data.fold", str(fold)]
                for key, value in settings.items():
                    text = value if isinstance(value, str) else json.dumps(value)
                    args += [f"--{key}", text]
                parts = [str(method), *(f"{k}{v}" for k, v in cells.items() if k != "method")]
                root = Path(grid["output"])
                yield Job(root, root.joinpath(*parts), cells, [*args, *extra])


def is_finished(job: Job) -> bool:
    """Return whether a job was run to its end.

    Raises:
        ValueError: The folder holds a run with other arguments.
    """
    record = job.folder / reports.JOB
    if not record.is_file():
        return False
    before = json.loads(record.read_text(encoding="utf-8"))
    if before["args"] != job.args:
        raise ValueError(
            f"{job.folder} was run with other arguments:\n  then: {shlex.join(before['args'])}\n"
            f"  now:  {shlex.join(job.args)}\nChoose another output, or remove the folder."
        )
    return bool(before["finished"])


def execute(job: Job) -> bool:
    """Run a job unless it is finished; return whether it ran.

    Raises:
        RuntimeError: The run failed; a later call resumes it.
        ValueError: The folder holds a run with other arguments.
    """
    if is_finished(job):
        return False
    record = job.folder / reports.JOB
    state = {"cells": job.cells, "args": job.args, "finished": False}
    job.folder.mkdir(parents=True, exist_ok=True)
    _write(record, state)
    command = [sys.executable, "-m", "wsl_zoo", "fit", *job.args]
    command += ["--run_dir", str(job.folder)]
    last = job.folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        command += ["--ckpt_path", str(last)]
    log = job.folder / "log.txt"
    status = launch(command, log)
    if status:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{job.folder} failed (exit {status}); {log} ends:\n{tail}")
    _write(record, state | {"finished": True})
    return True


def launch(command: Sequence[str], log: Path) -> int:
    """Run a command with its output in a file; return its exit status.

    When this process is interrupted or terminated, so is the run, which then writes `last.ckpt`.
    """

    def stop(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with (
            log.open("a", encoding="utf-8") as file,
            subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process,
        ):
            try:
                return process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
    partial.replace(path)


def run(args: Sequence[str]) -> None:
    """Run `wsl-zoo run GRID.yaml [arguments of every fit]` and print the table."""
    if not args or args[0].startswith("-"):
        raise ValueError("usage: wsl-zoo run GRID.yaml [--data.root DIR ...]")
    from wsl_zoo.catalogue import config_path

    jobs = read_grid(config_path(args[0]), args[1:])
    for job in jobs:
        is_finished(job)  # refuses other arguments before anything is run
    failed: list[str] = []
    for i, job in enumerate(jobs, start=1):
        print(f"[{i}/{len(jobs)}] {job.folder}", flush=True)
        try:
            if not execute(job):
                print("  finished before", flush=True)
        except RuntimeError as error:  # the other runs do not depend on it
            print(f"  {error}", file=sys.stderr, flush=True)
            failed.append(str(job.folder))
    if len(failed) < len(jobs):
        reports.print_summary(jobs[0].root)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}; the same command "
            "resumes them"
        )
