"""What the zoo holds, read from its files without importing them (and so without torch).

`wsl-zoo list`, the completeness of the README's table and the shared tests all start here.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
KINDS = ("methods", "data", "metrics", "encoders", "configs")


@dataclass(frozen=True)
class Entry:
    """One thing that users can name.

    Attributes:
        name: Class name, or the name of a config.
        summary: One line.
        paper: Title, venue and arXiv id; empty where there is none.
        file: Where it stands, relative to the package or to `experiments`.
    """

    name: str
    summary: str
    paper: str
    file: str


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n\n")[0].replace("\n", " ").strip()


def _paper(docstring: str | None) -> str:
    """Return the paragraph after "Paper:" of a file's docstring, on one line."""
    _, found, after = (docstring or "").partition("Paper:")
    lines: list[str] = []
    for line in after.splitlines() if found else []:
        if lines and (not line.strip() or ":" in line.split(" ")[0]):
            break
        lines.append(line.strip())
    return " ".join(lines).strip()


def _classes(folder: str, base: str) -> list[Entry]:
    """Return the public classes of a folder that extend, over any steps, a class named `base`.

    Those with abstract methods of their own are left out: they are there to be extended.
    """
    found: dict[str, tuple[set[str], Entry]] = {}
    hidden: set[str] = set()
    for path in sorted((PACKAGE / folder).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        paper = _paper(ast.get_docstring(tree))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(b).rpartition(".")[2] for b in node.bases}
                summary = _first_line(ast.get_docstring(node))
                entry = Entry(node.name, summary, paper, f"{folder}/{path.name}")
                found[node.name] = (bases, entry)
                if node.name.startswith("_") or any(map(_is_abstract, node.body)):
                    hidden.add(node.name)

    def extends(name: str) -> bool:
        bases = found[name][0] if name in found else set()
        return base in bases or any(extends(b) for b in bases)

    listed = (e for n, (_, e) in found.items() if extends(n) and n not in hidden)
    return sorted(listed, key=lambda e: e.name)


def _is_abstract(node: ast.stmt) -> bool:
    marks = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return any(ast.unparse(mark).endswith("abstractmethod") for mark in marks)


def methods() -> list[Entry]:
    """Return the methods, sorted by name."""
    return [entry for entry in _classes("methods", "Trained") if entry.name != "ZooModule"]


def data() -> list[Entry]:
    """Return the data modules, sorted by name."""
    return _classes("data", "ZooDataModule")


def metrics() -> list[Entry]:
    """Return the metrics, sorted by name."""
    return _classes("metrics", "Metric")


def encoders() -> list[Entry]:
    """Return the encoder families that are tested; every other timm name may be tried."""
    tree = ast.parse((PACKAGE / "encoders" / "timm.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign | ast.Assign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id == "TESTED" and node.value is not None:
                tested: dict[str, str] = ast.literal_eval(node.value)
                return [Entry(name, what, "", "encoders/timm.py") for name, what in tested.items()]
    return []


def experiments() -> Path:
    """Return the folder of the shipped configs: inside the wheel, or beside the package."""
    inside = PACKAGE / "experiments"
    return inside if inside.is_dir() else PACKAGE.parent / "experiments"


def configs() -> list[Entry]:
    """Return the shipped configs as `<method>/<data set>`, with their first comment line."""
    root = experiments()
    found = []
    for path in sorted(root.glob("*/*.yaml")):
        name = path.relative_to(root).with_suffix("").as_posix()
        first = path.read_text(encoding="utf-8").splitlines()[0]
        summary = first.lstrip("# ").strip() if first.startswith("#") else ""
        found.append(Entry(name, summary, "", path.relative_to(root).as_posix()))
    return found


def entries(kind: str) -> list[Entry]:
    """Return the entries of one of `KINDS`.

    Raises:
        ValueError: There is no such kind.
    """
    listing = {
        "methods": methods,
        "data": data,
        "metrics": metrics,
        "encoders": encoders,
        "configs": configs,
    }
    if kind not in listing:
        raise ValueError(f"there is no list of {kind!r}; lists: {', '.join(KINDS)}")
    return listing[kind]()


def config_path(name: str) -> Path:
    """Return the file of a config: a path as it is, or the name of a shipped one.

    Raises:
        FileNotFoundError: Neither exists; names the nearest shipped ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = experiments() / (name if path.suffix in {".yaml", ".yml"} else f"{name}.yaml")
    if shipped.is_file():
        return shipped
    names = [entry.name for entry in configs()]
    near = get_close_matches(name.removesuffix(path.suffix), names, n=3, cutoff=0.4) or names
    raise FileNotFoundError(
        f"config {name!r} is neither a file nor a shipped config; nearest: {', '.join(near)}"
    )
