"""Rounds of active learning: ask an oracle for some masks, train, draw others, choose whom to ask.

One method of a pipeline with the key `rounds` (Belharbi et al., WACV 2021, arXiv 2010.04889):

    rounds:
      count: 25              # rounds R
      initial: 8             # masks of the first round, dealt to the classes evenly; or "all"
      budget: 2              # masks asked for after each round, dealt likewise
      acquisition: random    # entropy, mc_dropout, core_set
      neighbors: 40          # k: pseudo-label images with an annotated one among their k nearest
      retrain: true          # train again in the same round, with the new pseudo-labels
      protect: true          # ask for pseudo-labelled images last
      passes: 50             # of mc_dropout
      published: false       # entropy and mc_dropout as published, with their bugs

Every fit is a `wsl-zoo fit` from the same start weights, every look at images a process of its own
(`wsl_zoo.annotate`). A round goes through the phases below; `state.json` names the one to come, and
each ends in files before the next begins. A run that was stopped anywhere does that phase again and
ends with the same files.

    label    ask the oracle (the data set's own masks, as files), pair the others by colour
    fit_0    train on the oracle's masks and the pseudo-masks of the round before
    draw     pseudo-mask those paired, by fit_0 at its threshold          (with `neighbors`)
    fit_1    train from the start on the oracle's and the new masks       (with `neighbors`)
    judge    of the two, that with the better Dice on validation: its threshold, its test, new
             pseudo-masks, scores
    choose   whom to ask next

Masks that no one was asked for are read by no training: their images are trained on with files.
Randomness depends on (seed, round) alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml

from wsl_zoo import reports
from wsl_zoo.acquisition import (
    area_under_curve,
    core_set,
    nearest_labelled,
    ranked,
    shuffled,
    take_per_class,
)
from wsl_zoo.arguments import value_of
from wsl_zoo.checkpoints import read_checkpoint
from wsl_zoo.colors import color_distances, color_histogram
from wsl_zoo.data.dataset import stable_seed
from wsl_zoo.data.masks import Drawn, write_mask, write_masks
from wsl_zoo.files import write_array, write_text
from wsl_zoo.jobs import fit, run_module
from wsl_zoo.roundstate import Rounds, State
from wsl_zoo.runs import CURVE, RESULTS

STATE = "state.json"
PHASES = ("label", "fit_0", "draw", "fit_1", "judge", "choose")
COLUMNS = ("round", "labelled", "pseudo", "cycle", "threshold", "val/image_dice")


class Procedure:
    """The rounds of one run.

    Args:
        folder: Of the run.
        args: Arguments of every fit, without its folder.
        options: The rounds.
        seed: Of what is drawn.
        log: File for the output of the processes.
    """

    def __init__(
        self,
        folder: Path,
        args: Sequence[str],
        options: Rounds,
        seed: int,
        log: Path,
    ) -> None:
        self.folder = folder
        self.args = list(args)
        self.options = options
        self.seed = seed
        self.log = log
        self.config = folder / "rounds.yaml"
        self.state = State.read(folder / STATE)

    # What is trained on ------------------------------------------------------------------------

    @cached_property
    def data(self) -> Any:
        """The data module, whose own masks only the oracle reads."""
        from wsl_zoo.annotate import make_data

        data = make_data(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        if not data.sources["train"].has_masks or data.selection()["loc"] is None:
            raise ValueError(
                f"{type(data).__name__}: rounds of active learning need masks of the training "
                "images, which the oracle shows one by one, and of a validation split"
            )
        return data

    @cached_property
    def names(self) -> list[str]:
        """Names of the training images in the order of the data set."""
        names: list[str] = self.data.image_names(self.data.sources["train"])
        return names

    @cached_property
    def labels(self) -> dict[str, int]:
        """Class of each training image."""
        source = self.data.sources["train"]
        records = getattr(source, "records", None)
        if records is not None:
            return {n: r.label for n, r in zip(self.names, records, strict=True)}
        return {n: source.load(i, annotations=False).label for i, n in enumerate(self.names)}

    @property
    def unlabelled(self) -> list[str]:
        """Images whose mask the oracle has not drawn."""
        return [name for name in self.names if name not in self.state.labelled]

    @property
    def last(self) -> bool:
        """Whether no round follows the current one."""
        return self.state.round == self.options.count - 1

    @property
    def place(self) -> Path:
        """Folder of the current round."""
        return self.folder / f"round_{self.state.round:03d}"

    def oracle_mask(self, name: str) -> Path:
        """Return the file of an oracle's mask."""
        return self.folder / "oracle" / _file_of(name)

    def best(self, cycle: int) -> Path:
        """Return the best checkpoint of a cycle of the current round."""
        return self.place / f"cycle_{cycle}" / "checkpoints" / "best_loc.ckpt"

    # Phases ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Do all phases that are left.

        Raises:
            RuntimeError: A process failed; the same call goes on from there.
        """
        if not self.config.is_file():
            command = [sys.executable, "-m", "wsl_zoo", "fit", *self.args, "--print_config"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{self.folder}: {done.stderr.strip()[-2000:]}")
            write_text(self.config, done.stdout)
        while self.state.round < self.options.count:
            phase = self.state.phase
            print(f"  round {self.state.round}: {phase}", flush=True)
            getattr(self, phase)()
            following = PHASES[(PHASES.index(phase) + 1) % len(PHASES)]
            if following in ("draw", "fit_1") and not (self.state.pairs and self.options.retrain):
                following = "judge"
            self.state.phase = following
            self.state.write(self.folder / STATE)
        self.finish()

    def label(self) -> None:
        """Ask the oracle for the images chosen, and pair the others by colour."""
        self.tidy()
        state = self.state
        if state.round == 0:
            order = shuffled(self.names, stable_seed(self.seed, 0))
            initial = self.options.initial
            state.chosen = (
                take_per_class(order, self.labels, initial) if isinstance(initial, int) else order
            )
        source = self.data.sources["train"]
        for name in state.chosen:
            mask = source.load(self.names.index(name), annotations=True).mask
            if mask is None:
                raise ValueError(f"{name} has no mask for the oracle to show")
            write_mask(self.oracle_mask(name), mask == 1)
        state.labelled |= dict.fromkeys(state.chosen, state.round)
        state.pseudo = {n: p for n, p in state.pseudo.items() if n not in state.labelled}
        state.pairs = self.pair()

    def pair(self) -> dict[str, str]:
        """Return image -> donor for what is to be pseudo-labelled: new pairs over older ones."""
        if self.options.neighbors is None:
            return {}
        pairs = {name: entry["donor"] for name, entry in self.state.pseudo.items()}
        for names, distances in self.distances():
            labelled = np.array([name in self.state.labelled for name in names])
            found = nearest_labelled(distances, labelled, self.options.neighbors)
            pairs |= {names[image]: names[donor] for image, donor in found.items()}
        return dict(sorted(pairs.items()))

    def distances(self) -> list[tuple[list[str], np.ndarray]]:
        """Return, class by class, the names of its images and their distances in colour."""
        path = self.folder / "histograms.npy"
        if not path.is_file():
            source = self.data.sources["train"]
            found = [
                color_histogram(source.load(i, annotations=False).image)
                for i in range(len(self.names))
            ]
            write_array(path, np.stack(found))
        histograms = np.load(path)
        classes = np.array([self.labels[name] for name in self.names])
        places = [np.flatnonzero(classes == k) for k in np.unique(classes)]
        return [([self.names[i] for i in p], color_distances(histograms[p])) for p in places]

    def fit_0(self) -> None:
        """Train on the oracle's masks and the pseudo-masks of the round before."""
        pseudo = {n: self.folder / entry["mask"] for n, entry in self.state.pseudo.items()}
        self.fit(0, pseudo)

    def draw(self) -> None:
        """Pseudo-mask the pairs by the model of `fit_0`."""
        self.ask("draw", self.best(0), pseudo=self.pseudo_files(0))

    def fit_1(self) -> None:
        """Train again from the start, with the new pseudo-masks."""
        self.fit(1, self.pseudo_files(0))

    def judge(self) -> None:
        """Take the better model: its threshold, test, pseudo-masks and scores."""
        cycles = [cycle for cycle in (0, 1) if self.best(cycle).is_file()]
        scores = {cycle: _score_of(self.best(cycle)) for cycle in cycles}
        best = max(cycles, key=lambda cycle: (scores[cycle], cycle))
        by = self.options.acquisition
        score = {
            "by": by,
            "images": self.names if by == "core_set" else self.unlabelled,
            "passes": self.options.passes,
            "published": self.options.published,
            "seed": stable_seed(self.seed, self.state.round),
        }
        self.state.judged = self.ask(
            "judge",
            self.best(best),
            pseudo=self.pseudo_files(1),
            test=True,
            **({} if by == "random" or self.last else {"score": score}),
        ) | {"cycle": best, "fit_dice": scores[best]}

    def choose(self) -> None:
        """Choose whom to ask next; close the round."""
        state, judged = self.state, self.state.judged
        pool = self.unlabelled
        classes = len(set(self.labels.values()))
        if self.options.protect and len(pool) - len(state.pairs) >= classes:
            pool = [name for name in pool if name not in state.pairs]
        order = self.order(pool)
        chosen = [] if self.last else take_per_class(order, self.labels, self.options.budget)
        files = self.pseudo_files(1)
        state.pseudo = {
            name: {
                "donor": donor,
                "mask": files[name].relative_to(self.folder).as_posix(),
                "round": state.round,
            }
            for name, donor in state.pairs.items()
            if name not in chosen
        }
        state.rounds.append(
            {
                "round": state.round,
                "labelled": len(state.labelled),
                "pseudo": len(state.pairs),
                "cycle": judged["cycle"],
                "threshold": judged["threshold"],
                "val/image_dice": judged["val_dice"],
                **judged["test"],
                "chosen": chosen,
            }
        )
        state.chosen, state.pairs, state.judged = chosen, {}, {}
        state.round = state.round + 1 if chosen else self.options.count

    def order(self, pool: Sequence[str]) -> list[str]:
        """Return the images of a pool, those to be asked for first."""
        by, judged = self.options.acquisition, self.state.judged
        if by == "random" or self.last or not pool:
            return shuffled(pool, stable_seed(self.seed, self.state.round + 1))
        if by != "core_set":
            return ranked({name: judged["scores"][name] for name in pool})
        order: list[str] = []
        known = {*self.state.labelled, *pool}
        for k in sorted({self.labels[name] for name in pool}):
            names = [n for n in self.names if self.labels[n] == k and n in known]
            features = np.array([judged["features"][name] for name in names])
            labelled = np.array([name in self.state.labelled for name in names])
            count = min(self.options.budget, int((~labelled).sum()))
            order += [names[i] for i in core_set(features, labelled, count)]
        return order

    # Processes ---------------------------------------------------------------------------------

    def pseudo_files(self, cycle: int) -> dict[str, Path]:
        """Return where the pseudo-masks that a cycle of this round draws stand."""
        return {n: self.place / f"masks_{cycle}" / _file_of(n) for n in self.state.pairs}

    def fit(self, cycle: int, pseudo: Mapping[str, Path]) -> None:
        """Train on the oracle's masks and on `pseudo`; go on from where it was stopped."""
        folder = self.place / f"cycle_{cycle}"
        masks = {name: Drawn(self.oracle_mask(name), "oracle") for name in self.state.labelled}
        masks |= {name: Drawn(path, "pseudo") for name, path in pseudo.items()}
        table = write_masks(self.place / f"masks_{cycle}.csv", masks)
        fit([*self.args, "--data.mask_table", str(table)], folder, self.log)

    def ask(self, name: str, checkpoint: Path, **request: Any) -> dict[str, Any]:
        """Ask a trained model; see `wsl_zoo.annotate`."""
        if "pseudo" in request:
            request["pseudo"] = {image: str(path) for image, path in request["pseudo"].items()}
        question, answer = self.place / f"{name}.request.json", self.place / f"{name}.json"
        files = {
            "config": str(self.config), "checkpoint": str(checkpoint), "answer": str(answer)
        }  # fmt: skip
        write_text(question, json.dumps(request | files, indent=1, sort_keys=True))
        run_module("wsl_zoo.annotate", [str(question)], self.place, self.log)
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found

    def tidy(self) -> None:
        """Drop the checkpoints of finished rounds, but the one that counts."""
        for entry in self.state.rounds:
            place = self.folder / f"round_{entry['round']:03d}"
            for path in place.glob("cycle_*/checkpoints/*.ckpt"):
                kept = path.stem == "best_loc" and path.parts[-3] == f"cycle_{entry['cycle']}"
                if not kept:
                    path.unlink()

    def finish(self) -> None:
        """Write the learning curve and the results."""
        self.tidy()
        rounds = self.state.rounds
        columns = [*COLUMNS, *sorted(key for key in rounds[0] if key.startswith("test"))]
        lines = [",".join(columns)]
        lines += [",".join(str(entry[key]) for key in columns) for entry in rounds]
        write_text(self.folder / CURVE, "\n".join(lines) + "\n")
        metrics = {key: rounds[-1][key] for key in columns if key.startswith("test")}
        for key in [key for key in metrics if key.endswith("/image_dice")]:
            curve = [entry[key] for entry in rounds]
            metrics[f"{key}_auc"] = area_under_curve(curve)
        project = value_of("--wandb", self.args)
        if project is not None:
            log_curve(project, self.folder, columns, rounds, metrics)
        (self.folder / RESULTS).unlink(missing_ok=True)
        reports.append_result(self.folder, {"checkpoint": "rounds", "metrics": metrics})


def log_curve(
    project: str,
    folder: Path,
    columns: Sequence[str],
    rounds: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, float],
) -> None:
    """Log a learning curve and its area to Weights & Biases, as one run of the name of `folder`."""
    import wandb

    run = wandb.init(project=project, name=str(folder), dir=str(folder), group="rounds")
    run.define_metric("*", step_metric="labelled")
    for entry in rounds:
        run.log({key: entry[key] for key in columns})
    run.summary.update(dict(metrics))
    run.finish()


def _file_of(name: str) -> str:
    """Return a file name for the mask of an image; different images have different ones."""
    return quote(name, safe=" ") + ".png"


def _score_of(checkpoint: Path) -> float:
    """Return the Dice on validation that a checkpoint was kept for."""
    callbacks = read_checkpoint(checkpoint)["callbacks"]
    return float(callbacks["BestCheckpoint-loc"]["best_model_score"])
