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
      pairing:                        # a `wsl-zoo pair` with these options, not a fit
        command: pair
        reports: reports.txt
        encoder: ViT-B-32
      CLIP-IT:
        model.pairs: "{pairing:pairs}"

A run that finished is skipped, one that was killed goes on from its last checkpoint, one that was
run with other options, or from checkpoints that were made anew since, is refused. Further
command-line arguments go to every run; `--F-CAM:model.lr 0.1` goes to those of one method. Rounds
are options as well: `--rounds.count 3`. `--methods "CAM, F-CAM"` runs those and what they need;
`--methods all`, every one, is the default. `--output DIR` takes the place of the file's.

A pairing has the data of its config, with fold and options of data that vary, and of further
arguments only `--data...` and its own, `--pairing:reports F`. It is repeated for each seed, as what
reads it is, but features are computed once: they are kept in `cache` below the output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml

from wsl_zoo import reports
from wsl_zoo.jobs import PAIRS, Job, execute_all
from wsl_zoo.options import arguments, of_data, refuse_unknown, rounds_apart, share, take_out
from wsl_zoo.runs import RESULTS

KEYS = ("output", "config", "seeds", "folds", "vary", "test", "methods")
CHECKPOINTS = ("best_cl", "best_loc", "last")
COMMANDS = ("fit", "pair")
# Itself, method and checkpoint. Without quotes, YAML reads a mapping: {"CAM:best_cl": null}.
REFERENCE = re.compile(r"""(\{"?([^{}"']+):(\w+)(?:": null)?\})""")


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
        refuse_unknown(f"{path}: unknown key", key, KEYS)
    for key, kind, what in (("output", str, "a folder"), ("methods", dict, "names and options")):
        if not file.get(key) or not isinstance(file[key], kind):
            raise ValueError(f"{path}: the key {key!r} must hold {what}")
    methods = {str(name): dict(options or {}) for name, options in file["methods"].items()}
    varied = _varied(path, file.get("vary") or {})
    pairs = _pairs(path, methods)
    shares = share(extra, methods, pairs)
    own = {m: [*arguments(options), *shares[m]] for m, options in methods.items()}
    references = {m: REFERENCE.findall("\n".join(args)) for m, args in own.items()}
    root, jobs = Path(output or file["output"]), []
    for method in _in_order(path, references, pairs):
        config, test = (methods[method].get(key, file.get(key)) for key in ("config", "test"))
        if config is None:
            raise ValueError(f"{path}: method {method!r} has no config")
        tests = json.dumps(["best_cl", "best_loc"] if test is None else test)
        order = list(methods).index(method)
        grid = product(varied, file.get("folds") or [None], file.get("seeds") or [0])
        for values, fold, seed in grid:
            args = ["--config", str(config)]
            if method not in pairs:
                args += ["--seed_everything", str(seed), "--then_test", tests]
            args += [] if fold is None else ["--data.fold", str(fold)]
            options = {o: v for key, v in values.items() for o in _options(key)}
            kept = {o: v for o, v in options.items() if method not in pairs or of_data(f"--{o}")}
            args += [*arguments(kept), *own[method]]
            rounds = methods[method].get("rounds")
            if rounds is not None:
                args, rounds = rounds_apart(f"{path}: method {method!r}", args, rounds)
            cells = {_column(key): value for key, value in values.items()}
            cells |= {"seed": seed} | ({} if fold is None else {"fold": fold})
            place = Path(*(f"{key}{value}" for key, value in cells.items()))
            inputs = {
                reference: root / source / place / (
                    f"{PAIRS}/pairing.json" if source in pairs else f"checkpoints/{name}.ckpt"
                )
                for reference, source, name in references[method]
            }  # fmt: skip
            cells = {"method": method, **cells}
            command: Literal["fit", "pair"] = "pair" if method in pairs else "fit"
            folder = root / method / place
            jobs.append(Job(root, folder, cells, args, inputs, order, rounds, command))
    return jobs


def _pairs(path: Path, methods: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the methods that are pairings.

    Raises:
        ValueError: There is no such command, or a pairing has rounds or something to test.
    """
    pairs = set()
    for method, options in methods.items():
        command = options.get("command", "fit")
        refuse_unknown(f"{path}: method {method!r} has the unknown command", command, COMMANDS)
        if command == "pair":
            pairs.add(method)
            for key in ("rounds", "test"):
                if options.get(key):
                    raise ValueError(f"{path}: method {method!r} is a pair, which has no {key!r}")
    return pairs


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


def _in_order(
    path: Path, references: Mapping[str, Sequence[tuple[str, ...]]], pairs: Collection[str]
) -> list[str]:
    """Return the methods as they stand in the file, but each after those that it needs."""
    graph = TopologicalSorter(dict.fromkeys(references, ()))
    for method, found in references.items():
        for _, source, checkpoint in found:
            what = f"{path}: method {method!r} refers to the unknown"
            refuse_unknown(f"{what} method", source, references)
            if source in pairs:
                refuse_unknown(f"{what} part of a pairing", checkpoint, [PAIRS])
            elif not checkpoint.startswith("best_loc_"):
                refuse_unknown(f"{what} checkpoint", checkpoint, CHECKPOINTS)
            graph.add(method, source)
    try:
        return list(graph.static_order())
    except CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise ValueError(f"{path}: nothing can run first: {circle}") from error


def needed(jobs: Sequence[Job], methods: Collection[str]) -> list[Job]:
    """Return the jobs of methods and of those that they start from, in their order.

    Raises:
        ValueError: There is no such method.
    """
    known = {job.cells["method"] for job in jobs}
    for method in methods:
        refuse_unknown("--methods: unknown method", method, known)
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

    rest, output = take_out(args[1:], "--output", "a folder")
    rest, chosen = take_out(rest, "--methods", 'names: --methods "A, B", or all')
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
