"""`import wsl_zoo` and `wsl_zoo.load`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import wsl_zoo
from tests.cases import tiny_data, trainer
from wsl_zoo.methods import CAMClassifier
from wsl_zoo.metrics.split import Thresholds

THRESHOLDS = Thresholds(pixels=0.375, largest=0.25, all=(0.125, 0.25, 0.5))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trained model, its checkpoint and the image it is asked about; its weight file is gone."""
    folder = tmp_path_factory.mktemp("load")
    start = folder / "start.pth"
    torch.save(CAMClassifier(encoder="test_resnet").encoder.model.state_dict(), start)
    model = CAMClassifier(
        num_classes=4, class_names=["a", "b", "c", "d"], encoder="test_resnet", weights=str(start),
        mean=[0.5] * 3, std=[0.25] * 3, stride=16, head="gap",
    )  # fmt: skip
    run = trainer(folder)
    run.fit(model, tiny_data())
    model.thresholds = THRESHOLDS
    run.save_checkpoint(folder / "model.ckpt")
    start.unlink()
    return model, folder / "model.ckpt"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_checkpoint_is_all_that_is_needed(saved, kind):
    model, path = saved
    loaded = wsl_zoo.load(kind(path))
    assert type(loaded) is CAMClassifier
    assert not loaded.training
    assert dict(loaded.hparams) == dict(model.hparams)
    assert loaded.class_names == ["a", "b", "c", "d"]
    assert loaded.image_size == 48
    assert loaded.chosen_threshold == loaded.map_threshold == 0.375
    assert loaded.thresholds == THRESHOLDS
    assert loaded.encoder.mean == (0.5,) * 3
    assert loaded.encoder.std == (0.25,) * 3
    image = tiny_data().dataset("test")[3]["image"].permute(1, 2, 0).numpy()
    ours, theirs = model.predict_image(image), loaded.predict_image(image)
    assert (ours.map == theirs.map).all()
    assert (ours.probabilities == theirs.probabilities).all()
    assert theirs.threshold == 0.375
    assert theirs.class_name in "abcd"


def test_a_loaded_model_can_be_saved_again(saved, tmp_path):
    loaded = wsl_zoo.load(saved[1])
    run = trainer(tmp_path)
    run.strategy.connect(loaded)
    run.save_checkpoint(tmp_path / "again.ckpt")
    again = wsl_zoo.load(tmp_path / "again.ckpt")
    assert (again.thresholds, again.image_size) == (THRESHOLDS, 48)
    state = saved[0].state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert again.state_dict().keys() == state.keys()


def changed(path, folder, **ours):
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["wsl_zoo"] |= ours
    torch.save(checkpoint, folder / "changed.ckpt")
    return folder / "changed.ckpt"


def test_what_is_no_checkpoint_is_refused(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*gone\.ckpt"):
        wsl_zoo.load(tmp_path / "gone.ckpt")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        wsl_zoo.load(tmp_path)  # a folder
    files = {"text": b"not a checkpoint", "empty": b"", "half": saved[1].read_bytes()[:5000]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            ValueError, match=f"{name} is (damaged or )?not a checkpoint of wsl_zoo"
        ):
            wsl_zoo.load(tmp_path / name)
    for name, content in {
        "state": {"weight": torch.zeros(2)},
        "lightning": {"state_dict": {}, "hyper_parameters": {}},
        "tensor": torch.zeros(2),
        "object": {"wsl_zoo": tmp_path},  # not among what weights_only reads
    }.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(
            ValueError, match=f"{name} is (damaged or )?not a checkpoint of wsl_zoo"
        ):
            wsl_zoo.load(tmp_path / name)


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("wsl_zoo.methods.cam.Gone", "holds a wsl_zoo.methods.cam.Gone .*cannot be imported"),
        ("wsl_zoo.methods.gone.Gone", "cannot be imported: No module named"),
        ("collections.OrderedDict", "is not a method of wsl_zoo"),
        ("wsl_zoo.catalogue.methods", "is not a method of wsl_zoo"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(saved, tmp_path, class_path, message):
    with pytest.raises(ValueError, match=message):
        wsl_zoo.load(changed(saved[1], tmp_path, class_path=class_path))


def test_parts_are_loaded_when_they_are_used():
    code = """
import sys
import wsl_zoo
assert wsl_zoo.list_methods()
assert not {"torch", "timm", "pytorch_lightning"} & set(sys.modules)
assert wsl_zoo.methods.CAMClassifier.__name__ == "CAMClassifier"
assert wsl_zoo.metrics.PxAP and wsl_zoo.data.SyntheticData and wsl_zoo.encoders.Encoder
assert wsl_zoo.heads.GAP and wsl_zoo.cams.CAM and wsl_zoo.types.IGNORE == 255
try:
    wsl_zoo.nothing
except AttributeError as error:
    assert "has no attribute 'nothing'" in str(error)
else:
    raise AssertionError("wsl_zoo.nothing exists")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_lazy_parts_are_folders_or_modules_of_the_package():
    package = Path(wsl_zoo.__file__).parent
    for folder in package.iterdir():
        if (folder / "__init__.py").is_file():
            assert folder.name in wsl_zoo._LAZY
    assert all(name in dir(wsl_zoo) or name in wsl_zoo.__all__ for name in wsl_zoo.__all__)
