"""Whether a metric gives on several processes, bit for bit, what it gives on one.

The data of a case are sharded as Lightning shards them (sample i on rank i % world, two per batch),
in two ways: "padded", where the shorter shard is filled up with repeated samples marked
`valid=False`, and "uneven", where it is not. Starting processes takes seconds: put all the metrics
of a module into one call.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics import Metric, MetricCollection

WORLDS = (2, 3)
BATCH = 2
SCHEMES = ("padded", "uneven")
READINGS = ("curves", "best_threshold", "topk_accuracy", "per_class")

Rows = Mapping[str, Any]
"""Keyword arguments of `update` for the whole data set: tensors or lists of N entries."""

Case = tuple[Callable[[], Metric | MetricCollection], Rows]
"""A constructor that can be pickled (a class, or a `functools.partial` of one) and its data."""


def _take(rows: Rows, index: list[int]) -> dict[str, Any]:
    return {
        name: column[index] if isinstance(column, Tensor) else [column[i] for i in index]
        for name, column in rows.items()
    }


def _shard(rows: Rows, rank: int, world: int, scheme: str) -> Iterator[dict[str, Any]]:
    """The batches of one rank."""
    size = len(next(iter(rows.values())))
    places = range(rank, -(-size // world) * world if scheme == "padded" else size, world)
    for start in range(0, len(places), BATCH):
        batch = list(places[start : start + BATCH])
        kwargs = _take(rows, [i % size for i in batch])
        if scheme == "padded":
            kwargs["valid"] = torch.tensor([i < size for i in batch])
        yield kwargs


def _readings(metric: Metric | MetricCollection) -> dict[str, Any]:
    """All that a metric tells; `compute` last, so that it would show states left synchronised."""
    read = {name: getattr(metric, name)() for name in READINGS if hasattr(metric, name)}
    return {**read, "compute": metric.compute()}


def _work(rank: int, world: int, cases: Mapping[str, Case], folder: str) -> None:
    if "lo" in [name for _, name in socket.if_nameindex()]:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    found: dict[str, dict[str, Any]] = {}
    for name, (build, rows) in cases.items():
        for scheme in SCHEMES:
            metric = build()
            for batch in _shard(rows, rank, world, scheme):
                metric.update(**batch)
            found.setdefault(name, {})[scheme] = _readings(metric)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def differing_on_processes(
    cases: Mapping[str, Case], atol: float = 0.0, worlds: tuple[int, ...] = WORLDS
) -> dict[str, str]:
    """Names of the cases whose readings on several processes differ from those on one, with the
    first difference; on one process, all samples come in one `update` without `valid`.

    `atol` is 0 for metrics of integer counters; metrics that gather rows may need 1e-12.
    """
    differing: dict[str, str] = {}
    for world in worlds:
        with TemporaryDirectory() as folder:
            start = partial(mp.start_processes, start_method="forkserver")
            start(_work, args=(world, dict(cases), folder), nprocs=world)
            ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
        for name, (build, rows) in cases.items():
            metric = build()
            metric.update(**rows)
            expected = _readings(metric)
            same = partial(torch.testing.assert_close, expected=expected, rtol=0, atol=atol)
            for scheme in SCHEMES:
                for rank, found in enumerate(ranks):
                    try:
                        same(found[name][scheme], equal_nan=True)
                    except AssertionError as difference:
                        place = f"{scheme}, rank {rank} of {world}"
                        differing.setdefault(name, f"{place}: {difference}")
    return differing


def assert_same_on_processes(
    cases: Mapping[str, Case], atol: float = 0.0, worlds: tuple[int, ...] = WORLDS
) -> None:
    """Fail with the list of the metrics whose values depend on the number of processes."""
    assert differing_on_processes(cases, atol, worlds) == {}
