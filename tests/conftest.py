"""What every test gets: no network, one numerical thread per worker, fixed seeds, a quiet console.

All of it also holds for the examples in the docstrings of `wsl_zoo`, which are no neighbours of
this file: the environment is set when it is imported (before any test module imports torch), the
network is closed for the whole run, and the autouse fixture is registered as a plugin.
"""

import ipaddress
import multiprocessing
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
UNDER_XDIST = "PYTEST_XDIST_WORKER" in os.environ

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it looks for a newer release at import
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["MPLBACKEND"] = "Agg"
if UNDER_XDIST:  # workers share the cores; inherited by the processes that tests start
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["NUMBA_NUM_THREADS"] = "1"
# Tests of several processes fork them from one that has imported all this once.
multiprocessing.set_forkserver_preload(["pytorch_lightning", "wsl_zoo.methods", "tests.warm"])


class NetworkUsed(RuntimeError):
    """A test tried to reach another machine."""


def is_local(family: int, address: Any) -> bool:
    """Whether a socket address is on this machine (gloo and Jupyter kernels use loopback)."""
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True  # AF_UNIX, AF_NETLINK
    return is_local_host(address[0])


def is_local_host(host: Any) -> bool:
    """Whether a host name or address means this machine; no name is looked up."""
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost", "localhost.localdomain", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def block_network(patch: pytest.MonkeyPatch) -> None:
    """Make every attempt to reach or to look up another machine raise `NetworkUsed`."""

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: socket.socket, *args: Any) -> Any:
            if not is_local(self.family, args[-1]):
                raise NetworkUsed(f"tests run without a network, this one wants {args[-1]!r}")
            return method(self, *args)

        return call

    def guarded_lookup(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(host: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_local_host(host):
                raise NetworkUsed(f"tests run without a network, this one looks up {host!r}")
            return function(host, *args, **kwargs)

        return call

    for name in ("connect", "connect_ex", "sendto"):
        patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        patch.setattr(socket, name, guarded_lookup(getattr(socket, name)))


class EveryTest:
    """What surrounds each test and each docstring example."""

    @pytest.fixture(autouse=True)
    def fixed_seeds(self) -> None:
        """Every test starts from the same random state, whatever ran before it."""
        import numpy as np
        import torch

        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - libraries under test still draw from the global state
        torch.manual_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    """Close the network, during collection too, and register the fixture above."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    block_network(patch)
    config.pluginmanager.register(EveryTest(), "wsl-zoo-every-test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that at the end no worker waits for another."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Root of the real data sets: `$WSL_ZOO_DATA`, else `../shared/data` beside the repository."""
    stated = os.environ.get("WSL_ZOO_DATA")
    root = Path(stated) if stated else ROOT.parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"no real data: {root} is not a folder (set WSL_ZOO_DATA)")
    return root


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were written, in order."""
    from matplotlib.figure import Figure

    written: list[Any] = []
    savefig = Figure.savefig

    def record(figure: Any, *args: Any, **kwargs: Any) -> None:
        written.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return written
