"""Pipelines as data: method x seed x fold, each a plain `wsl-zoo fit`, in stages where need be.

    output: runs/glas_fcam
    config: cam/glas_small            # fit config of every run
    seeds: [0, 1, 2]
    folds: [0, 1, 2, 3, 4]            # optional: --data.fold
    vary:                             # optional: every run once for each value of these options
      data.marker: [CELL0, CELL1]
      data.scale, model.scale: [2, 4]   # both have the value
    test: [best_cl, best_loc]         # checkpoints to test; also: last, best_loc_<root>
    methods:                          # name -> options on top of the config
      CAM: {}
      GAP: {model.head: gap}
      F-CAM:                          # runs after CAM: takes checkpoints of the same seed and fold
        config: fcam/glas_small
        test: [best_loc]              # []: none
        model.classifier: "{CAM:best_cl}"
        model.seeder: "{CAM:best_loc}"  # best_cl where CAM had nothing to select best_loc by
      random:                         # rounds of active learning, of many fits: `wsl_zoo.rounds`
        config: active/glas
        rounds: {count: 25, initial: 8, budget: 2}

A run that finished is skipped, one that was killed goes on from its last checkpoint, one that was
run with other options, or from checkpoints that were made anew since, is refused. Further
command-line arguments go to every run; `--F-CAM:model.lr 0.1` goes to those of one method. Rounds
are options as well: `--rounds.count 3`. `--methods "CAM, F-CAM"` runs those and what they need;
`--methods all`, every one, is the default. `--output DIR` takes the place of the file's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from wsl_zoo import reports
from wsl_zoo.jobs import Job, execute_all
from wsl_zoo.runs import RESULTS

KEYS = ("output", "config", "seeds", "folds", "vary", "test", "methods")
CHECKPOINTS = ("best_cl", "best_loc", "last")
# Itself, method and checkpoint. Without quotes, YAML reads a mapping: {"CAM:best_cl": null}.
REFERENCE = re.compile(r"""(\{"?([^{}"']+):(\w+)(?:": null)?\})""")
OF_ONE = re.compile(r"--([^=:]+):(.+)")


def read_pipeline(path: Path, extra: Sequence[str] = (), output: str | None = None) -> list[Job]:
    """Return the runs of a pipeline, each after those that it needs.

    Args:
        path: The YAML file.
        extra: Arguments of every run; `--METHOD:option value` for those of one method.
        output: Folder of the runs; None: the file's.

    Raises:
        ValueError: Unknown or missing keys, methods or checkpoints, or methods in a circle.
    """
    file = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(file, dict):
        raise ValueError(f"{path}: expected the keys {', '.join(KEYS)}")
    for key in file:
        _refuse_unknown(f"{path}: unknown key", key, KEYS)
    for key, kind, what in (("output", str, "a folder"), ("methods", dict, "names and options")):
        if not file.get(key) or not isinstance(file[key], kind):
            raise ValueError(f"{path}: the key {key!r} must hold {what}")
    methods = {str(name): dict(options or {}) for name, options in file["methods"].items()}
    varied = _varied(path, file.get("vary") or {})
    shares = _share(extra, methods)
    own = {m: [*_arguments(options), *shares[m]] for m, options in methods.items()}
    references = {m: REFERENCE.findall("\n".join(args)) for m, args in own.items()}
    root, jobs = Path(output or file["output"]), []
    for method in _in_order(path, references):
        config, test = (methods[method].get(key, file.get(key)) for key in ("config", "test"))
        if config is None:
            raise ValueError(f"{path}: method {method!r} has no config")
        tests = json.dumps(["best_cl", "best_loc"] if test is None else test)
        order = list(methods).index(method)
        grid = product(varied, file.get("folds") or [None], file.get("seeds") or [0])
        for values, fold, seed in grid:
            args = ["--config", str(config), "--seed_everything", str(seed), "--then_test", tests]
            args += [] if fold is None else ["--data.fold", str(fold)]
            args += _arguments({o: v for key, v in values.items() for o in _options(key)})
            args += own[method]
            rounds = methods[method].get("rounds")
            if rounds is not None:
                args, rounds = _rounds(f"{path}: method {method!r}", args, rounds)
            cells = {_column(key): value for key, value in values.items()}
            cells |= {"seed": seed} | ({} if fold is None else {"fold": fold})
            place = Path(*(f"{key}{value}" for key, value in cells.items()))
            inputs = {
                reference: root / source / place / "checkpoints" / f"{name}.ckpt"
                for reference, source, name in references[method]
            }
            cells = {"method": method, **cells}
            jobs.append(Job(root, root / method / place, cells, args, inputs, order, rounds))
    return jobs


def _varied(path: Path, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every combination of the values of options, `{option: value}` each."""
    taken = {"method", "seed", "fold"}
    for key, values in options.items():
        name = _column(key)
        if not isinstance(values, list) or not values or name in taken:
            what = "must hold a list of values" if name not in taken else "is a column already"
            raise ValueError(f"{path}: vary.{key} {what}")
        taken.add(name)
    return [dict(zip(options, values, strict=True)) for values in product(*options.values())]


def _options(key: str) -> list[str]:
    """Return the options that a key of `vary` names: one, or several with commas between them."""
    return [option.strip() for option in key.split(",")]


def _column(key: str) -> str:
    """Return what results call a key of `vary`: the last part of its first option."""
    return _options(key)[0].rpartition(".")[2]


def _arguments(options: Mapping[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        if key not in {"config", "test", "rounds"}:
            yield from (f"--{key}", value if isinstance(value, str) else json.dumps(value))


def _rounds(
    what: str, args: Sequence[str], options: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Split arguments into those of each fit and the options of rounds.

    Raises:
        ValueError: There is no such option, or it is out of its range.
    """
    from wsl_zoo.roundstate import Rounds

    rest, found = [], dict(options)
    queue = list(args)
    while queue:
        option, given, value = queue.pop(0).partition("=")
        if option.startswith("--rounds."):
            value = value if given or not queue else queue.pop(0)
            found[option.removeprefix("--rounds.")] = yaml.safe_load(value)
        elif option == "--then_test":  # a model of one round is tested in its phase `judge`
            queue.pop(0)
        else:
            rest.append(option + given + value)
    try:
        Rounds.from_mapping(found)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return rest, found


def _share(extra: Sequence[str], methods: Collection[str]) -> dict[str, list[str]]:
    """Give `--METHOD:option value` to that method, all else to every one."""
    shares: dict[str, list[str]] = {method: [] for method in methods}
    receivers = list(methods)
    for arg in extra:
        of_one = OF_ONE.fullmatch(arg)
        if of_one:
            _refuse_unknown(f"{arg} is for the unknown method", of_one[1], methods)
            receivers = [of_one[1]]
        elif arg.startswith(("--", "-c")):
            receivers = list(methods)
        for receiver in receivers:
            shares[receiver].append(f"--{of_one[2]}" if of_one else arg)
    return shares


def _in_order(path: Path, references: Mapping[str, Sequence[tuple[str, ...]]]) -> list[str]:
    """Return the methods as they stand in the file, but each after those that it needs."""
    graph = TopologicalSorter(dict.fromkeys(references, ()))
    for method, found in references.items():
        for _, source, checkpoint in found:
            what = f"{path}: method {method!r} refers to the unknown"
            _refuse_unknown(f"{what} method", source, references)
            if not checkpoint.startswith("best_loc_"):
                _refuse_unknown(f"{what} checkpoint", checkpoint, CHECKPOINTS)
            graph.add(method, source)
    try:
        return list(graph.static_order())
    except CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise ValueError(f"{path}: nothing can run first: {circle}") from error


def _refuse_unknown(what: str, name: Any, known: Collection[str]) -> None:
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise ValueError(f"{what} {name!r}; {hint}")


def _taken(args: Sequence[str], wanted: str, needs: str) -> tuple[list[str], str | None]:
    """Take `--option value` out of the arguments; None: it is not there, the last one counts."""
    rest, found = [], None
    queue = list(args)
    while queue:
        option, given, value = queue.pop(0).partition("=")
        if option != wanted:
            rest.append(option + given + value)
            continue
        if not given and not queue:
            raise ValueError(f"{wanted} needs {needs}")
        found = value if given else queue.pop(0)
    return rest, found


def needed(jobs: Sequence[Job], methods: Collection[str]) -> list[Job]:
    """Return the jobs of methods and of those that they start from, in their order.

    Raises:
        ValueError: There is no such method.
    """
    known = {job.cells["method"] for job in jobs}
    for method in methods:
        _refuse_unknown("--methods: unknown method", method, known)
    wanted = {job.folder for job in jobs if job.cells["method"] in methods}
    for job in reversed(jobs):  # each stands after those that it needs
        if job.folder in wanted:
            wanted |= job.needs
    return [job for job in jobs if job.folder in wanted]


def run(args: Sequence[str]) -> None:
    """Run `wsl-zoo run PIPELINE.yaml [arguments of every fit]` and print the table."""
    if not args or args[0].startswith("-"):
        raise ValueError("usage: wsl-zoo run PIPELINE.yaml [--data.root DIR ...]")
    from wsl_zoo.catalogue import config_path

    rest, output = _taken(args[1:], "--output", "a folder")
    rest, chosen = _taken(rest, "--methods", 'names: --methods "A, B", or all')
    jobs = read_pipeline(config_path(args[0]), rest, output)
    if chosen is not None and chosen != "all":
        jobs = needed(jobs, [name.strip() for name in chosen.split(",")])
    failed, waiting = execute_all(jobs)
    if any(jobs[0].root.rglob(RESULTS)):
        reports.print_summary(jobs[0].root)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} runs failed, {len(waiting)} wait for them: "
            f"{', '.join(map(str, failed))}; the same command resumes them"
        )
