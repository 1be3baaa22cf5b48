"""One run of a pipeline: a `wsl-zoo fit`, or `pair`, in a process of its own, with its record."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import runpy
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from wsl_zoo.files import write_text
from wsl_zoo.runs import JOB

PAIRS = "pairs"
"""Folder of the pairing below the run folder of a `pair`."""


@dataclass(frozen=True)
class Job:
    """One run of a pipeline.

    Attributes:
        root: The pipeline's output folder.
        folder: Its run folder below that.
        cells: What tells it apart: method, seed, fold.
        args: Arguments of its command.
        inputs: Reference in `args` -> the checkpoint, or the pairing, of another run that it stands
            for.
        order: Place of its method in the pipeline's file, and so in the table.
        rounds: Options of rounds of active learning, of many fits (see `wsl_zoo.rounds`); None: one
            fit.
        command: What it runs.
    """

    root: Path
    folder: Path
    cells: dict[str, Any]
    args: list[str]
    inputs: Mapping[str, Path] = field(default_factory=dict)
    order: int = 0
    rounds: Mapping[str, Any] | None = None
    command: Literal["fit", "pair"] = "fit"

    @property
    def needs(self) -> set[Path]:
        """Folders of the runs that must be finished before."""
        return {path.parents[1] for path in self.inputs.values()}


def is_finished(job: Job) -> bool:
    """Return whether a job was run to its end.

    Raises:
        ValueError: The folder holds a run with other arguments, or from other checkpoints.
    """
    before = _record(job.folder)
    if before.get("args", job.args) != job.args:
        raise ValueError(
            f"{job.folder} was run with other arguments:\n  then: {shlex.join(before['args'])}\n"
            f"  now:  {shlex.join(job.args)}\nChoose another output, or remove the folder."
        )
    if before.get("rounds", job.rounds) != job.rounds:
        raise ValueError(
            f"{job.folder} was run with other rounds:\n  then: {before['rounds']}\n"
            f"  now:  {job.rounds}\nChoose another output, or remove the folder."
        )
    for reference, digest in before.get("inputs", {}).items():
        folder = job.inputs[reference].parents[1]
        path = _found(job.inputs[reference])
        if not _record(folder).get("finished") or (path and _digest(path) != digest):
            raise ValueError(
                f"{job.folder} was run from another {reference}: {folder} was made anew, or "
                f"removed, since. Remove {job.folder} as well, or choose another output."
            )
    return bool(before.get("finished"))


def execute(job: Job) -> bool:
    """Run a job unless it is finished; return whether it ran.

    Raises:
        RuntimeError: The run failed; a later call resumes it.
        ValueError: The folder holds a run with other arguments, or from other checkpoints.
    """
    if is_finished(job):
        _write(job, _record(job.folder) | {"order": job.order})  # the file may have changed
        return False
    args, digests = list(job.args), {}
    for reference, asked in job.inputs.items():
        path = _found(asked)
        if path is None:
            raise RuntimeError(f"{job.folder} needs {asked}, which that run did not keep")
        if path != asked:
            print(f"  {reference} is {path.stem}: nothing to select {asked.stem} by", flush=True)
        args = [arg.replace(reference, str(path)) for arg in args]
        digests[reference] = _digest(path)
    state = {"cells": job.cells, "order": job.order, "args": job.args, "inputs": digests}
    state |= {} if job.rounds is None else {"rounds": job.rounds}
    job.folder.mkdir(parents=True, exist_ok=True)
    _write(job, state | {"finished": False})
    log = job.folder / "log.txt"
    if job.command == "pair":
        pair(args, job.folder, job.root, log)
    elif job.rounds is None:
        fit(args, job.folder, log)
    else:
        from wsl_zoo.rounds import Procedure  # which starts fits as here
        from wsl_zoo.roundstate import Rounds

        rounds = Rounds.from_mapping(job.rounds)
        Procedure(job.folder, args, rounds, int(job.cells["seed"]), log).run()
    _write(job, state | {"finished": True})
    return True


def fit(args: Sequence[str], folder: Path, log: Path) -> None:
    """Run `wsl-zoo fit` in a folder; go on from the last checkpoint of a run that was stopped.

    Raises:
        RuntimeError: It failed.
    """
    command = ["fit", *args, "--run_dir", str(folder)]
    checkpoints = folder / "checkpoints"
    if (checkpoints / "last.ckpt").is_file():
        command += ["--ckpt_path", str(checkpoints / "last.ckpt")]
    elif checkpoints.is_dir():  # killed in its first epoch: nothing to go on from
        shutil.rmtree(checkpoints)
    run_module("wsl_zoo", command, folder, log)


def pair(args: Sequence[str], folder: Path, root: Path, log: Path) -> None:
    """Run `wsl-zoo pair` in a folder; features are kept below `root`, for all runs, unless told.

    Raises:
        RuntimeError: It failed.
    """
    command = ["pair", *args, "--out", str(folder / PAIRS)]
    if not any(arg.partition("=")[0] == "--cache" for arg in args):
        command += ["--cache", str(root / "cache")]
    run_module("wsl_zoo", command, folder, log)


def run_module(module: str, args: Sequence[str], folder: Path, log: Path) -> None:
    """Run `python -m module` with its output in a file.

    Args:
        module: Dotted name.
        args: Its arguments.
        folder: What it works on, for the message.
        log: The file, appended to.

    Raises:
        RuntimeError: It failed.
    """
    status = launch([module, *args], log)
    if status:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{folder} failed (exit {status}); {log} ends:\n{tail}")


def execute_all(jobs: Sequence[Job]) -> tuple[list[Path], list[Path]]:
    """Run jobs in their order; one that fails stops only those that need it.

    Returns:
        Folders of the jobs that failed, and of those that were not run because of them.

    Raises:
        ValueError: A folder holds a run with other arguments, or from other checkpoints; nothing
            is run then.
    """
    for job in jobs:
        is_finished(job)
    failed: list[Path] = []
    waiting: list[Path] = []
    for i, job in enumerate(jobs, start=1):
        print(f"[{i}/{len(jobs)}] {job.folder}", flush=True)
        lacking = job.needs.intersection([*failed, *waiting])
        if lacking:
            print(f"  not run: it needs {', '.join(map(str, lacking))}", flush=True)
            waiting.append(job.folder)
            continue
        try:
            if not execute(job):
                print("  finished before", flush=True)
        except RuntimeError as error:
            print(f"  {error}", file=sys.stderr, flush=True)
            failed.append(job.folder)
    return failed, waiting


def launch(command: Sequence[str], log: Path) -> int:
    """Run `python -m module args` with its output in a file; return its exit status.

    When this process is interrupted or terminated, so is the run, which then writes `last.ckpt`.
    Runs are forked, where the system can, from a process that has imported the package once: a
    start takes a moment instead of ten seconds.

    Args:
        command: The module, and its arguments.
        log: The file, appended to.
    """

    def stop(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["wsl_zoo.cli"])
    process = context.Process(target=_work, args=(list(command), str(log), dict(os.environ)))
    before = signal.signal(signal.SIGTERM, stop)
    try:
        process.start()
        try:
            process.join()
        except BaseException:
            process.terminate()
            process.join()
            raise
        return process.exitcode or 0
    finally:
        process.close()
        signal.signal(signal.SIGTERM, before)


def _work(command: Sequence[str], log: str, environment: Mapping[str, str]) -> None:
    """Be the process of a run."""
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    module, *args = command
    sys.argv = [module, *args]  # the first becomes the module's file
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _found(path: Path) -> Path | None:
    """Return a checkpoint that a run kept; in place of a missing `best_loc`, `best_cl`."""
    others = [path.with_stem("best_cl")] if path.stem == "best_loc" else []
    return next((p for p in (path, *others) if p.is_file()), None)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record(folder: Path) -> dict[str, Any]:
    path = folder / JOB
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return record


def _write(job: Job, record: Mapping[str, Any]) -> None:
    write_text(job.folder / JOB, json.dumps(record, indent=1))
