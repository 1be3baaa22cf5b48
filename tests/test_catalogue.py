"""What the catalogue reads out of the files is what Python finds in the modules."""

import inspect
import textwrap
from pathlib import Path

import pytest
from torchmetrics import Metric

import wsl_zoo.data
import wsl_zoo.encoders
import wsl_zoo.methods
import wsl_zoo.metrics
from wsl_zoo import catalogue
from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.encoders.timm import TESTED
from wsl_zoo.methods.training import Trained


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty package and its configs, to plant files in."""
    root = tmp_path / "wsl_zoo"
    for folder in ("methods", "data", "metrics", "encoders"):
        (root / folder).mkdir(parents=True)
    monkeypatch.setattr(catalogue, "PACKAGE", root)
    return root


def plant(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")


PLANTED = '''
    """PLANT: how to grow maps.

    Paper: Gärtner et al., "A Title: With a Colon, Over
    Two Lines", CVPR 2031 (arXiv 3101.00001).
    Loss: none, it must not be listed with the paper.
    """

    import no_such_module
    from wsl_zoo.methods import base
    from wsl_zoo.methods.base import ZooModule


    class Plant(ZooModule):
        """Grows maps
        over two lines.

        Args: none.
        """


    class Graft(Plant): pass


    class Other(base.ZooModule):
        """By its module."""


    class _Hidden(ZooModule):
        """Not for users."""


    class Loss:
        """No method."""
'''


def test_a_planted_method_is_found_without_importing_it(package):
    plant(package / "methods" / "plant.py", PLANTED)
    plant(package / "encoders" / "timm.py", 'TESTED: dict[str, str] = {"net": "a net"}')
    plant(
        package / "methods" / "base.py", '"""Base."""\nclass ZooModule(Trained):\n    """Base."""'
    )
    plant(package / "methods" / "late.py", 'class Late(Plant):\n    """Extends another file."""')
    found = {entry.name: entry for entry in catalogue.methods()}
    assert list(found) == ["Graft", "Late", "Other", "Plant"]
    assert found["Plant"].summary == "Grows maps over two lines."
    paper = 'Gärtner et al., "A Title: With a Colon, Over Two Lines", CVPR 2031 (arXiv 3101.00001).'
    assert found["Plant"].paper == found["Other"].paper == paper
    assert found["Plant"].file == "methods/plant.py"
    assert (found["Graft"].summary, found["Late"].paper) == ("", "")
    assert wsl_zoo.list_methods() == list(found)
    assert catalogue.data() == catalogue.metrics() == []
    assert [(e.name, e.summary) for e in catalogue.encoders()] == [("net", "a net")]


@pytest.mark.parametrize(
    ("text", "paper"),
    [
        ("", ""),
        ("No paper.", ""),
        ("Paper: A.", "A."),
        ("Paper: A,\nB.\n\nMore.", "A, B."),
        ("Paper:\n    A,\n    B.\nMap: x", "A, B."),
        ("Paper: A.\nLoss: b.\nPaper: c.", "A."),
    ],
)
def test_the_paper_is_one_paragraph(text, paper):
    assert catalogue._paper(text) == paper


def subclasses(module, base):
    return {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value is not base
        and not inspect.isabstract(value)
    }


@pytest.mark.parametrize(
    ("kind", "module", "base"),
    [
        ("methods", wsl_zoo.methods, Trained),
        ("data", wsl_zoo.data, ZooDataModule),
        ("metrics", wsl_zoo.metrics, Metric),
    ],
)
def test_listings_are_what_the_modules_export(kind, module, base):
    entries = catalogue.entries(kind)
    assert {entry.name for entry in entries} == subclasses(module, base)
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    for entry in entries:
        assert entry.name in module.__all__
        value = getattr(module, entry.name)
        assert Path(inspect.getfile(value)) == catalogue.PACKAGE / entry.file
        assert entry.summary.endswith(".")
        assert inspect.getdoc(value).startswith(entry.summary[:30])


def test_every_method_names_its_paper():
    for entry in catalogue.methods():
        assert "arXiv" in entry.paper, entry.name
    (cam,) = (entry for entry in catalogue.methods() if entry.name == "CAMClassifier")
    assert cam.paper.startswith("Zhou et al., ")
    assert "Loss" not in cam.paper


def test_encoders_are_those_of_the_module():
    assert {entry.name: entry.summary for entry in catalogue.encoders()} == TESTED


def test_there_is_no_other_kind():
    with pytest.raises(ValueError, match="no list of 'losses'; lists: methods, data"):
        catalogue.entries("losses")


def test_configs_stand_inside_the_wheel_or_beside_the_package(package, tmp_path):
    plant(tmp_path / "experiments" / "cam" / "beside.yaml", "# Beside: the package.\na: 1\n")
    plant(tmp_path / "experiments" / "cam" / "silent.yaml", "a: 1\n")
    assert [(e.name, e.summary) for e in catalogue.configs()] == [
        ("cam/beside", "Beside: the package."),
        ("cam/silent", ""),
    ]
    plant(package / "experiments" / "cam" / "inside.yaml", "# Inside.\n")
    assert [e.name for e in catalogue.configs()] == ["cam/inside"]
    assert catalogue.config_path("cam/inside") == package / "experiments" / "cam" / "inside.yaml"


def test_a_config_is_a_file_or_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = catalogue.experiments() / "cam" / "synthetic.yaml"
    assert catalogue.config_path("cam/synthetic") == shipped
    assert catalogue.config_path("cam/synthetic.yaml") == shipped
    assert catalogue.config_path(str(shipped)) == shipped
    plant(tmp_path / "cam" / "synthetic.yaml", "own: 1\n")
    assert catalogue.config_path("cam/synthetic.yaml") == Path("cam/synthetic.yaml")  # own first
    assert catalogue.config_path("cam/synthetic") == shipped


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cam/synthetc", "cam/synthetic"),
        ("cam/gals_small.yaml", "cam/glas_small"),
        ("synthetic", "cam/synthetic"),
        ("qqqq", "cam/folder"),
        ("", "cam/folder"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(FileNotFoundError, match=f"nearest: .*{nearest}"):
        catalogue.config_path(name)
