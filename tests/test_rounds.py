"""Rounds of active learning: who is asked, what is trained on, and that a stop changes nothing.

Fits and looks at images have stand-ins whose results depend on what they are given alone.
"""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.cases.stages import filled_classifier
from wsl_zoo import jobs, protocols, reports, rounds, roundstate
from wsl_zoo.__main__ import main
from wsl_zoo.acquisition import area_under_curve
from wsl_zoo.annotate import make_data
from wsl_zoo.data import SyntheticData
from wsl_zoo.data.masks import read_masks
from wsl_zoo.rounds import PHASES, Procedure, Rounds
from wsl_zoo.runs import JOB

CONFIG = {
    "data": {
        "class_path": "wsl_zoo.data.SyntheticData",
        "init_args": {"train": 24, "val": 4, "test": 4, "image_size": 32, "batch_size": 4},
    },
    "trainer": {},
}
SOME = {"count": 4, "initial": 4, "budget": 4}


def number(*parts) -> float:
    """A number in [0, 1) that depends on nothing but what it is of."""
    digest = hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def content(table: Path) -> str:
    """What a table and its masks say, wherever they stand."""
    rows = table.read_text().splitlines()[1:]
    files = [(table.parent / row.split(",")[1]).read_bytes() for row in rows]
    names = [(row.split(",")[0], row.split(",")[2]) for row in rows]
    return hashlib.sha256(repr((names, files)).encode()).hexdigest()


class StandIns:
    """Fits and looks that write what the real ones write; `stop` interrupts at the n-th event."""

    def __init__(self, monkeypatch):
        self.stop = None
        self.events = 0
        self.fits = []
        monkeypatch.setattr(rounds, "fit", self.fit)
        monkeypatch.setattr(rounds, "run_module", self.look)
        for name in ("write_text", "write_array", "write_mask", "write_masks"):
            monkeypatch.setattr(rounds, name, partial(self.event, getattr(rounds, name)))
        monkeypatch.setattr(roundstate, "write_text", partial(self.event, roundstate.write_text))

    def event(self, real, *args):
        self.events += 1
        if self.events == self.stop:
            raise KeyboardInterrupt
        return real(*args)

    def fit(self, args, folder, log):
        table = Path(args[args.index("--data.mask_table") + 1])
        self.fits.append((folder, table.read_text()))
        self.event(self.checkpoint, folder, content(table))

    def checkpoint(self, folder, seen):
        score = torch.tensor(number("dice", seen))
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        state = {"wsl_zoo": {}, "callbacks": {"BestCheckpoint-loc": {"best_model_score": score}}}
        for name in ("best_cl", "best_loc", "last"):
            torch.save(state | {"seen": seen}, folder / "checkpoints" / f"{name}.ckpt")

    def look(self, module, args, folder, log):
        assert module == "wsl_zoo.annotate"
        request = json.loads(Path(args[0]).read_text())
        seen = torch.load(request["checkpoint"], weights_only=True)["seen"]
        for name, path in request.get("pseudo", {}).items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            shade = (number(seen, name) > 0.5) * 255
            Image.new("L", (32, 32), int(shade)).save(path)
        found = {"threshold": 0.5, "val_miou": 0.5, "val_dice": number("val", seen)}
        found["test"] = {"test/image_dice": number("test", seen), "test/acc": 0.75}
        if "score" in request:
            key = "features" if request["score"]["by"] == "core_set" else "scores"
            found[key] = {
                n: [number(n), number(n, 1)] if key == "features" else number(seen, n, "score")
                for n in request["score"]["images"]
            }
        self.event(Path(request["answer"]).write_text, json.dumps(found))


@pytest.fixture
def stand_ins(monkeypatch):
    return StandIns(monkeypatch)


def procedure(folder, seed=0, **options):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rounds.yaml").write_text(yaml.safe_dump(CONFIG))
    return Procedure(folder, [], Rounds(**SOME | options), seed, folder / "log.txt")


def files_of(folder):
    """Every file but requests, which hold absolute paths, by its place below the run."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file() and "request" not in p.name)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def assert_same(folder, other, *context):
    ours, theirs = files_of(folder), files_of(other)
    assert ours.keys() == theirs.keys(), context
    assert [name for name in ours if ours[name] != theirs[name]] == [], context


def state_of(folder):
    return json.loads((folder / "state.json").read_text())


EVERY = [
    {},
    {"acquisition": "entropy"},
    {"acquisition": "mc_dropout"},
    {"acquisition": "core_set"},
    {"neighbors": 40},
    {"neighbors": 2, "acquisition": "entropy"},
    {"neighbors": 3, "retrain": False},
]


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_every_round_keeps_the_books(stand_ins, tmp_path, monkeypatch, options):
    """L and U are disjoint and make up the pool, P is in U, L grows, every class alike."""
    run = procedure(tmp_path, **options)
    pool, labels = set(run.names), run.labels
    before, after = set(), []
    choose = Procedure.choose

    def watched(self):
        labelled, pairs = set(self.state.labelled), dict(self.state.pairs)
        choose(self)
        after.append((labelled, pairs, set(self.state.pseudo), list(self.state.chosen)))

    monkeypatch.setattr(Procedure, "choose", watched)
    run.run()
    assert len(after) == SOME["count"]
    for labelled, pairs, pseudo, chosen in after:
        assert before < labelled <= pool
        new = [labels[name] for name in labelled - before]
        # A class may have no image left that is not pseudo-labelled.
        counts = {new.count(k) for k in range(4)}
        assert counts <= {0, 1} if "neighbors" in options else counts == {1}
        assert set(pairs) <= pool - labelled
        assert all(donor in labelled for donor in pairs.values())
        assert all(labels[image] == labels[donor] for image, donor in pairs.items())
        assert pseudo == set(pairs) - set(chosen)
        assert set(chosen) <= pool - labelled
        assert len(set(chosen)) == len(chosen)
        before = labelled
    assert after[-1][3] == []
    assert len(list((tmp_path / "oracle").iterdir())) == len(before)
    numbers = [entry["labelled"] for entry in state_of(tmp_path)["rounds"]]
    assert numbers == [len(labelled) for labelled, *_ in after]
    assert numbers == [4, 8, 12, 16] or "neighbors" in options


def test_what_each_fit_sees(stand_ins, tmp_path):
    """The oracle's masks always; pseudo-masks of the round before first, then the new ones."""
    run = procedure(tmp_path, count=3, neighbors=40)
    run.run()
    names = [folder.relative_to(tmp_path).as_posix() for folder, _ in stand_ins.fits]
    assert names == [f"round_{r:03d}/cycle_{c}" for r in range(3) for c in range(2)]
    kinds = [[row.rpartition(",")[2] for row in t.splitlines()[1:]] for _, t in stand_ins.fits]
    assert [k.count("oracle") for k in kinds] == [4, 4, 8, 8, 12, 12]
    # Every image of the pool has an annotated one among its 40 nearest of its class.
    assert [k.count("pseudo") for k in kinds] == [0, 20, 16, 16, 12, 12]
    first = stand_ins.fits[2][1]
    assert "masks_1/" in first  # drawn by the better model of round 0, in its phase `judge`
    assert "../round_000/masks_1" in first


def test_oracle_shows_the_masks_asked_for_and_no_other(stand_ins, tmp_path, monkeypatch):
    run = procedure(tmp_path, neighbors=40)
    source = run.data.sources["train"]
    load, asked = source.load, []

    def watched(index, *, annotations):
        if annotations:
            asked.append(run.names[index])
        return load(index, annotations=annotations)

    monkeypatch.setattr(source, "load", watched)
    run.run()
    labelled = state_of(tmp_path)["labelled"]
    assert sorted(asked) == sorted(labelled)  # once each
    data = make_data(CONFIG)
    for name in asked:
        truth = data.sources["train"].load(run.names.index(name), annotations=True).mask
        assert np.array_equal(np.asarray(Image.open(run.oracle_mask(name))) > 0, truth == 1)


def test_the_better_model_counts_and_of_equal_ones_the_second(stand_ins, tmp_path, monkeypatch):
    run = procedure(tmp_path, seed=1, neighbors=40, count=6)
    run.run()
    for entry in state_of(tmp_path)["rounds"]:
        place = tmp_path / f"round_{entry['round']:03d}"
        kept = sorted(p.relative_to(place).as_posix() for p in place.rglob("*.ckpt"))
        assert kept == [f"cycle_{entry['cycle']}/checkpoints/best_loc.ckpt"]
    assert {entry["cycle"] for entry in state_of(tmp_path)["rounds"]} == {0, 1}
    monkeypatch.setattr(rounds, "_score_of", lambda path: 0.5)
    procedure(tmp_path / "equal", neighbors=40, count=1).run()
    assert [e["cycle"] for e in state_of(tmp_path / "equal")["rounds"]] == [1]


def test_whom_entropy_asks(stand_ins, tmp_path):
    """The highest scores of each class, of those that have no mask."""
    run = procedure(tmp_path, count=2, acquisition="entropy")
    run.run()
    scores = json.loads((tmp_path / "round_000" / "judge.json").read_text())["scores"]
    state = state_of(tmp_path)
    first = [name for name, r in state["labelled"].items() if r == 0]
    assert sorted(scores) == sorted(set(run.names) - set(first))
    for k in range(4):
        of_class = [name for name in scores if run.labels[name] == k]
        (chosen,) = [n for n in state["rounds"][0]["chosen"] if run.labels[n] == k]
        assert scores[chosen] == max(scores[name] for name in of_class)


def test_pseudo_labelled_images_are_asked_for_last(stand_ins, tmp_path):
    """With few pairs those without one are enough; `protect=False` draws from all."""
    pairs = {}
    for protect in (True, False):
        folder = tmp_path / str(protect)
        run = procedure(folder, count=2, neighbors=1, protect=protect)
        run.label()
        pairs = dict(run.state.pairs)
        assert 0 < len(pairs) <= len(run.unlabelled) - 4
        run.run()
        chosen = set(state_of(folder)["rounds"][0]["chosen"])
        assert (chosen & set(pairs) == set()) or not protect


def test_seeds_draw_differently_and_the_same_seed_alike(stand_ins, tmp_path):
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for folder, seed in ((first, 0), (again, 0), (other, 1)):
        procedure(folder, seed=seed, neighbors=5).run()
    assert files_of(first) == files_of(again)
    assert state_of(first)["labelled"] != state_of(other)["labelled"]


def test_a_stop_anywhere_changes_nothing(stand_ins, tmp_path):
    """Stopped before every single write, fit and look, and started again: the same files."""
    options = {"count": 2, "neighbors": 3, "acquisition": "entropy"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    procedure(whole, **options).run()
    phases = set()
    for event in range(1, stand_ins.events + 1):
        shutil.rmtree(broken, ignore_errors=True)
        stand_ins.events, stand_ins.stop = 0, event
        run = procedure(broken, **options)
        with pytest.raises(KeyboardInterrupt):
            run.run()
        phases.add(run.state.phase)
        stand_ins.stop = None
        procedure(broken, **options).run()
        assert_same(broken, whole, event)
    assert phases == {*PHASES}


def test_a_stop_again_and_again(stand_ins, tmp_path):
    """However often it is stopped, each start gets further."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    procedure(whole, count=2, neighbors=40).run()
    starts = 0
    while not (broken / reports.RESULTS).exists():
        stand_ins.events, stand_ins.stop = 0, 8
        starts += 1
        assert starts < 20
        with suppress(KeyboardInterrupt):
            procedure(broken, count=2, neighbors=40).run()
    assert starts > 2
    assert_same(broken, whole)


def test_results_hold_the_curve_and_its_area(stand_ins, tmp_path):
    procedure(tmp_path).run()
    entries = state_of(tmp_path)["rounds"]
    curve = [entry["test/image_dice"] for entry in entries]
    (row,) = reports.read_results(tmp_path)
    assert row["checkpoint"] == "rounds"
    assert row["metrics"]["test/image_dice"] == curve[-1]
    assert row["metrics"]["test/image_dice_auc"] == area_under_curve(curve)
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines[0].startswith("round,labelled,pseudo,cycle,threshold,val/image_dice,test/")
    assert [float(line.split(",")[-1]) for line in lines[1:]] == curve


def test_the_curve_goes_to_wandb(stand_ins, tmp_path, monkeypatch):
    logged = []

    class Run:
        summary: ClassVar[dict[str, float]] = {}

        def __init__(self, **settings):
            logged.append(settings)

        def define_metric(self, name, step_metric):
            logged.append((name, step_metric))

        def log(self, values):
            logged.append(values)

        def finish(self):
            logged.append("finished")

    monkeypatch.setattr("wandb.init", Run)
    run = procedure(tmp_path)
    run.args = ["--wandb", "benchmarks"]
    run.run()
    assert logged[0]["project"] == "benchmarks"
    assert logged[0]["name"] == str(tmp_path)
    assert [values["labelled"] for values in logged[2:-1]] == [4, 8, 12, 16]
    assert all("test/image_dice" in values for values in logged[2:-1])
    assert set(Run.summary) == {"test/image_dice", "test/acc", "test/image_dice_auc"}
    assert logged[-1] == "finished"


def test_all_masks_at_once(stand_ins, tmp_path):
    run = procedure(tmp_path, count=1, initial="all")
    run.run()
    table = tmp_path / "round_000" / "masks_0.csv"
    assert len(read_masks(table, run.names)) == 24
    assert state_of(tmp_path)["rounds"][0]["chosen"] == []


def test_an_empty_pool_ends_the_rounds(stand_ins, tmp_path):
    procedure(tmp_path, count=9, initial=8, budget=8).run()
    assert [entry["labelled"] for entry in state_of(tmp_path)["rounds"]] == [8, 16, 24]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count=0 must be an integer >= 1"),
        ({"budget": 1.5}, "budget=1.5 must be an integer >= 1"),
        ({"initial": "some"}, "initial='some' must be a positive integer or \"all\""),
        ({"acquisition": "density"}, "acquisition='density' must be one of random, entropy, mc"),
        ({"neighbors": 0}, "neighbors=0 must be a positive integer or null"),
        ({"passes": 1}, "passes=1 must be an integer >= 2"),
        ({"bugdet": 2}, "unknown key 'bugdet'; there are: count, initial, budget"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Rounds.from_mapping(options)
    path = tmp_path / "grid.yaml"
    methods = {"ours": {"config": "active/synthetic", "rounds": options}}
    path.write_text(yaml.safe_dump({"output": str(tmp_path / "out"), "methods": methods}))
    with pytest.raises(ValueError, match="method 'ours': rounds: "):
        protocols.read_pipeline(path)


def test_data_without_masks_are_refused(stand_ins, tmp_path, monkeypatch):
    run = procedure(tmp_path)
    run.data.sources["train"].has_masks = False
    del run.__dict__["data"]
    data = make_data(CONFIG)
    data.sources["train"].has_masks = False
    monkeypatch.setattr("wsl_zoo.annotate.make_data", lambda config: data)
    with pytest.raises(ValueError, match="SyntheticData: rounds of active learning need masks"):
        run.run()


def test_rounds_in_a_pipeline(stand_ins, tmp_path):
    path = tmp_path / "grid.yaml"
    methods = {"ours": {"config": "active/synthetic", "rounds": {"count": 3}}}
    grid = {"output": str(tmp_path / "out"), "seeds": [5], "methods": methods}
    path.write_text(yaml.safe_dump(grid))
    (job,) = protocols.read_pipeline(path, ["--rounds.count", "2", "--ours:rounds.budget=4"])
    assert job.rounds == {"count": 2, "budget": 4}
    assert not [arg for arg in job.args if "rounds" in arg or "then_test" in arg]
    job.folder.mkdir(parents=True)
    (job.folder / "rounds.yaml").write_text(yaml.safe_dump(CONFIG))
    assert jobs.execute(job)
    assert not jobs.execute(job)
    assert len(state_of(job.folder)["rounds"]) == 2
    reports.print_summary(tmp_path / "out")
    (other,) = protocols.read_pipeline(path, ["--rounds.count", "1"])
    with pytest.raises(ValueError, match="was run with other rounds"):
        jobs.execute(other)


def test_learning_curves_are_drawn(stand_ins, tmp_path):
    for i, (method, options) in enumerate(
        {"random": {}, "ours": {"neighbors": 40}, "all": {"count": 1, "initial": "all"}}.items()
    ):
        for seed in (0, 1):
            folder = tmp_path / method / f"seed{seed}"
            procedure(folder, seed=seed, **options).run()
            job = {"cells": {"method": method, "seed": seed}, "order": i}
            (folder / JOB).write_text(json.dumps(job))
    reports.print_summary(tmp_path)
    picture = np.asarray(Image.open(tmp_path / "learning_test.png").convert("RGB"))
    assert (picture != 255).any(axis=-1).mean() > 0.01
    summary = (tmp_path / "summary.md").read_text()
    assert "test/image_dice_auc" in summary


@pytest.mark.slow
def test_real_rounds_killed_and_resumed(tmp_path, monkeypatch):
    """Real fits and looks of a round, killed in its second fit, end with the same files."""
    settings = {
        "model.encoder": "test_resnet", "model.head": "wgap", "data.train": 12, "data.val": 4,
        "data.test": 4, "data.image_size": 48, "trainer.max_epochs": 2, "data.batch_size": 4,
        "trainer.max_steps": -1, "trainer.val_check_interval": 1.0,
        "trainer.check_val_every_n_epoch": 1, "trainer.enable_model_summary": False,
    }  # fmt: skip
    names = SyntheticData().class_names
    classifier = filled_classifier(tmp_path, class_names=names)
    ours = {"config": "active/synthetic", "model.classifier": classifier, **settings}
    ours |= {"rounds": {"count": 1, "initial": 4, "neighbors": 2}}

    def grid(folder):
        path = tmp_path / f"{folder}.yaml"
        pipeline = {"output": folder, "seeds": [0], "methods": {"ours": ours}}
        path.write_text(yaml.safe_dump(pipeline))
        return ["run", str(path)]

    monkeypatch.chdir(tmp_path)
    assert main(grid("whole")) == 0
    command = [sys.executable, "-m", "wsl_zoo", *grid("broken")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    place = tmp_path / "broken" / "ours" / "seed0" / "round_000" / "cycle_1"
    end = time.monotonic() + 300
    while not place.exists():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(300)
    assert main(grid("broken")) == 0
    whole, broken = (tmp_path / name / "ours" / "seed0" for name in ("whole", "broken"))
    assert state_of(whole) == state_of(broken)
    assert state_of(whole)["rounds"][0]["pseudo"] > 0
    masks = [p.relative_to(whole) for p in sorted(whole.rglob("*.png")) if "mask" in p.parent.name]
    assert masks
    for path in [*masks, Path("curve.csv"), Path("results.jsonl")]:
        assert (whole / path).read_bytes() == (broken / path).read_bytes(), path
