"""Imports run one way, listings import no torch, and nothing here reaches another machine."""

import ast
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "wsl_zoo"

MIDDLE = {"data", "encoders", "heads", "cams", "networks", "losses", "metrics"}
OUTER = {
    "protocols",
    "rounds",
    "roundstate",
    "annotate",
    "jobs",
    "callbacks",
    "checkpointing",
    "reports",
    "plots",
    "overviews",
    "runs",
    "titles",
    "export",
    "hub",
}  # cli is above
INNER = {"types", "files", "precision", "acquisition", "colors"} | MIDDLE
BELOW_CLI = (
    INNER | {"schedules", "prediction", "checkpoints", "tiling", "methods", "pictures"} | OUTER
)

# Part of the package -> the parts that it may import besides itself and `catalogue`.
ALLOWED: dict[str, set[str]] = {
    "catalogue": set(),
    "types": set(),
    "files": set(),
    "precision": set(),
    "options": {"roundstate"},
    "embedding": INNER,
    "pairing": INNER | {"embedding"},
    "acquisition": set(),
    "colors": set(),
    **{part: {"types", "files", "precision"} for part in MIDDLE},
    "networks": {"types", "files", "precision", "heads"},
    "pictures": {"types", "files", "metrics"},
    "schedules": set(),
    "prediction": INNER,
    "checkpoints": set(),
    "tiling": set(),
    "methods": INNER | {"prediction", "schedules", "checkpoints", "tiling"},
    **{part: BELOW_CLI for part in OUTER},
    "protocols": BELOW_CLI | {"options"},
    "rounds": BELOW_CLI | {"arguments"},
    "pair": BELOW_CLI | {"arguments", "commands", "pairing"},
    "arguments": BELOW_CLI,
    "cli": BELOW_CLI | {"arguments"},
    "commands": {"arguments"},
    "exam_features": BELOW_CLI | {"arguments", "commands"},
    "demo": BELOW_CLI | {"arguments", "cli"},
    "video": BELOW_CLI | {"arguments", "commands"},
    "__init__": BELOW_CLI | {"arguments", "cli"},
    "__main__": BELOW_CLI
    | {"arguments", "cli", "demo", "video", "exam_features", "pair", "__init__"},
}
MAY_DRAW = {"callbacks", "reports", "demo", "video", "methods/base.py"}  # who may import `pictures`

EXTRAS = {"open_clip", "spandrel", "av", "h5py", "tiffslide", "onnx", "onnxruntime", "optuna"}
HEAVY = {"torch", "torchvision", "pytorch_lightning", "torchmetrics", "timm", "albumentations"}


def imported(path: Path, package: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, dotted name and whether it runs at import, for every import that ever runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:  # `from ..types import Batch` -> wsl_zoo.types.Batch
                folders = path.relative_to(package.parent).parts[: -node.level]
                base = [*folders, *base]
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name, id(node) not in lazy) for name in names)


def part_of(name: str, package: Path) -> str:
    """`wsl_zoo.losses.crf.DenseCRF` -> `losses`; a name of the package itself -> `__init__`."""
    first = name.split(".")[1] if "." in name else "__init__"
    inside = (package / first).is_dir() or (package / f"{first}.py").is_file()
    return first if inside or first in ALLOWED else "__init__"


def violations(package: Path) -> list[str]:
    """Every import that runs against the direction, as `file:line: what is wrong`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        part = place.parts[0].removesuffix(".py")
        if part not in ALLOWED:
            found.append(f"{place}:1: `{part}` has no place in the import order")
            continue
        for line, name, at_import in imported(path, package):
            where, root = f"{place}:{line}", name.partition(".")[0]
            if root == package.name:
                other = part_of(name, package)
                allowed = (
                    other in ALLOWED[part] | {part, "catalogue"}
                    or name == f"{package.name}.__version__"
                )
                if other == "pictures":
                    allowed = not MAY_DRAW.isdisjoint({part, place.as_posix()})
                if not allowed:
                    found.append(f"{where}: `{part}` may not import `{other}` ({name})")
            if part in {"losses", "metrics"} and (
                root in {"pytorch_lightning", "lightning"}
                or re.fullmatch(rf"{package.name}\.types\.(Batch|Output)", name)
            ):
                found.append(
                    f"{where}: `{part}` takes tensors, no batch, module or trainer ({name})"
                )
            if root in EXTRAS and at_import:
                found.append(f"{where}: the optional {root} is imported outside a function")
            if root == "sksurv":
                found.append(f"{where}: scikit-survival is GPL, the package is Apache-2.0")
    return found


def test_the_package_imports_one_way():
    assert (PACKAGE / "__init__.py").is_file()
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("types.py", "import wsl_zoo.losses", "`types` may not import `losses`"),
        ("losses/crf.py", "from wsl_zoo.heads import GAP", "`losses` may not import `heads`"),
        ("losses/crf.py", "from ..heads.pooling import GAP", "`losses` may not import `heads`"),
        ("heads/pooling.py", "from .. import networks", "`heads` may not import `networks`"),
        ("data/base.py", "def f():\n    from wsl_zoo import cli", "`data` may not import `cli`"),
        ("cams/activation.py", "from wsl_zoo import load", "`cams` may not import `__init__`"),
        (
            "methods/fcam.py",
            "from wsl_zoo.callbacks import X",
            "`methods` may not import `callbacks`",
        ),
        ("methods/fcam.py", "from wsl_zoo import pictures", "`methods` may not import `pictures`"),
        ("pictures.py", "from wsl_zoo.methods import FCAM", "`pictures` may not import `methods`"),
        ("reports.py", "from wsl_zoo.cli import main", "`reports` may not import `cli`"),
        ("catalogue.py", "from wsl_zoo.types import Batch", "`catalogue` may not import `types`"),
        ("metrics/boxes.py", "from wsl_zoo.types import Batch", "`metrics` takes tensors"),
        ("losses/crf.py", "from pytorch_lightning import Trainer", "`losses` takes tensors"),
        ("data/video_folder.py", "import av", "optional av is imported outside a function"),
        ("metrics/survival.py", "def f():\n    import sksurv.metrics", "is GPL"),
        ("utils.py", "", "`utils` has no place"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path, file, source, message):
    package = plant(tmp_path, {file: source})
    (only,) = violations(package)
    assert only.startswith(f"{file}:")
    assert message in only


def test_what_the_design_allows_passes(tmp_path):
    package = plant(
        tmp_path,
        {
            "networks/han.py": "from wsl_zoo.heads import GAP\nfrom ..types import Output",
            "losses/crf.py": "from .barrier import B\nfrom wsl_zoo import catalogue",
            "losses/barrier.py": "B = 1",
            "data/video_folder.py": "def f():\n    import av",
            "methods/base.py": "from wsl_zoo import __version__, pictures\nfrom ..cams import CAM",
            "callbacks.py": "from wsl_zoo.pictures import draw\nfrom .methods.base import Method",
            "cli.py": "from wsl_zoo import callbacks, data, protocols",
            "__main__.py": "from wsl_zoo import __version__\nfrom .cli import main",
        },
    )
    assert violations(package) == []


def plant(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "wsl_zoo"
    for name, source in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return package


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import wsl_zoo"],
        ["-m", "wsl_zoo", "--version"],
        ["-m", "wsl_zoo", "--help"],
        ["-m", "wsl_zoo", "list", "methods"],
    ],
    ids=" ".join,
)
def test_listings_import_no_torch(arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    modules = re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)
    assert "wsl_zoo" in modules
    assert HEAVY.isdisjoint(modules), "the answer needs no torch, and importing it takes seconds"
    assert bool(done.stdout.strip()) == ("-m" in arguments)


def test_version_is_the_packages():
    version = re.search(r'__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "wsl_zoo", "--version"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert version is not None
    assert version[1] in done.stdout


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org", "2001:db8::1"])
def test_tests_reach_no_other_machine(host):
    with pytest.raises(RuntimeError, match="without a network"):
        socket.create_connection((host, 80), timeout=1)


def test_tests_reach_their_own_machine():
    with (
        socket.create_server(("localhost", 0)) as server,
        socket.create_connection(server.getsockname()[:2], timeout=5) as client,
    ):
        assert client.getpeername() == server.getsockname()
