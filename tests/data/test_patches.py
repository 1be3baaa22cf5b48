from pathlib import Path

import pytest

from wsl_zoo.data.manifest import DataError, Record
from wsl_zoo.data.patches import TumorPatches


class Patches(TumorPatches):
    """Patches that were read elsewhere."""

    def read(self):
        return self.complete({})


def records(split, count=8, masks=True):
    """Every other one is a tumor patch."""
    return [
        Record(
            Path(f"{split}/{i}.png"),
            i % 2,
            masks=(Path(f"masks/{i}.png"),) if masks and i % 2 else (),
            place=f"{split}, line {i + 1}",
        )
        for i in range(count)
    ]


def splits(*names, **kwargs):
    return {name: records(name, **kwargs) for name in names}


def test_normal_patches_are_background_and_valpx_is_drawn():
    data = Patches("patches", valpx_per_class=2)
    complete = data.complete(splits("test", "train", "valcl"))
    assert list(complete) == ["train", "valcl", "valpx", "test"]
    assert [record.label for record in complete["valpx"]].count(0) == 2
    assert len(complete["valpx"]) == 4
    assert set(complete["valpx"]) <= set(complete["valcl"])
    assert all(
        record.empty_mask == (record.label == data.negative_class) for record in complete["test"]
    )
    others = Patches("patches", valpx_per_class=2, split_seed=1).complete(
        splits("test", "train", "valcl")
    )
    assert others["valpx"] != complete["valpx"]
    given = splits("train", "valcl", "valpx", "test")
    assert [r.image for r in data.complete(given)["valpx"]] == [r.image for r in given["valpx"]]


def test_without_masks_nothing_is_annotated():
    bare = splits("train", "valcl", "test", masks=False)
    complete = Patches("patches").complete(bare, masks=False)
    assert not any(record.has_mask for split in complete.values() for record in split)
    with pytest.raises(DataError, match="8 problems") as caught:
        Patches("patches").complete(bare)
    assert caught.value.problems[0] == "valcl, line 2: tumor patch 1.png has no mask"
    assert caught.value.problems[-1] == "test, line 8: tumor patch 7.png has no mask"


def test_other_splits_and_bad_arguments_are_refused():
    message = "expected the splits train, valcl, test and perhaps valpx, found "
    with pytest.raises(DataError, match=f"{message}none"):
        Patches("patches").read()
    with pytest.raises(DataError, match=f"{message}train, valid, test"):
        Patches("patches").complete(splits("train", "valid", "test"))
    with pytest.raises(ValueError, match="valpx_per_class=0 must be >= 1"):
        Patches("patches", valpx_per_class=0)
