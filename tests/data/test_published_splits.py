"""The splits of min-max entropy and of those who follow it: published lists, and our rules."""

import hashlib
import random
from collections import Counter

import pytest
import torch

from wsl_zoo.data import CUBData, GlaSData
from wsl_zoo.data.cub import CUB5, minmax_split
from wsl_zoo.data.glas import VALCL, read_grades
from wsl_zoo.data.lists import read_list
from wsl_zoo.data.manifest import read_image, read_mask
from wsl_zoo.metrics import ImageDice

SPLITS = ("train", "valid", "test")
FOLDERS = {"CUB": "CUB/fold_0", "CUB5": "CUB5/split_0/fold_0", "OxF": "OxF/split_0/fold_0"}
CUB = {
    "valid": "ed8b191624a4ad29192b0c0f45e13fea76d2676c1e13f0a55552647565190ef4",
    "train": "c48d94c90a13864b8ec0f20a5828abe5d7e8be03f2449d54dd9f3002df335cfc",
    "test": "0c4e769f00133fa16432b0ecb6ceb10a682ec0d2325c09187911422ee723b988",
}
CUB5_VALID = "69056c83772be445e87ed4a59a7e4891375363896d8bcdadfd2b282892ea0b57"


def checksum(records):
    """SHA-256 of the sorted `class/file.jpg`, one per line."""
    names = sorted("/".join(record.image.parts[-2:]) for record in records)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


@pytest.fixture(scope="module")
def official(real_data, tmp_path_factory):
    """The official training images of CUB, which these lists have in the order of `images.txt`."""
    folder = real_data / "splits" / "wsol" / "CUB"
    if not folder.is_dir():
        pytest.skip(f"the published split files are not there: {folder}")
    data = CUBData(str(tmp_path_factory.mktemp("CUB_200_2011")), str(folder))
    return data.class_names, data.read_splits()["train"]


def published(real_data, name, class_names):
    folder = real_data / "splits" / "minmax" / FOLDERS[name]
    if not folder.is_dir():
        pytest.skip(f"the published split files are not there: {folder}")
    problems = []
    splits = {
        split: read_list(folder / f"{split}_s_0_f_0.csv", folder, class_names, problems)
        for split in SPLITS
    }
    assert not problems
    return splits


def test_the_published_lists_of_cub(real_data, official):
    splits = published(real_data, "CUB", official[0])
    assert {k: len(v) for k, v in splits.items()} == {"train": 4794, "valid": 1200, "test": 5794}
    assert {split: checksum(records) for split, records in splits.items()} == CUB
    for record in splits["test"]:
        assert record.masks[0].parts[-3:-1] == ("segmentations", record.image.parts[-2])
        assert record.masks[0].stem == record.image.stem


def test_our_rule_gives_the_published_split_of_cub(official):
    val, train = minmax_split(official[1])
    assert (len(train), len(val)) == (4794, 1200)
    assert checksum(val) == CUB["valid"]
    assert checksum(train) == CUB["train"]


def test_the_published_lists_of_cub5(real_data):
    splits = published(real_data, "CUB5", CUB5)
    assert checksum(splits["valid"]) == CUB5_VALID
    counts = {split: Counter(r.label for r in records) for split, records in splits.items()}
    assert counts["train"] == dict.fromkeys(range(5), 24)
    assert counts["valid"] == dict.fromkeys(range(5), 6)
    assert sum(counts["test"].values()) == 145
    rows = (real_data / "splits/minmax/CUB5/encoding.yaml").read_text().strip("{}\n").split(",")
    labels = {name.strip(): int(label) for name, label in (row.split(":") for row in rows)}
    assert sorted(labels, key=lambda name: labels[name]) == CUB5


def test_our_rule_gives_the_published_split_of_cub5(real_data, official, tmp_path):
    """By way of the original layout; the five are shuffled in label order, not in that of ids."""
    names, records = official
    lines = {"images": [], "image_class_labels": [], "train_test_split": [], "bounding_boxes": []}
    for number, record in enumerate(records, start=1):
        lines["images"].append(f"{number} {'/'.join(record.image.parts[-2:])}")
        lines["image_class_labels"].append(f"{number} {record.label + 1}")
        lines["train_test_split"].append(f"{number} 1")
        lines["bounding_boxes"].append(f"{number} 0 0 1 1")
    lines["classes"] = [f"{k} {name}" for k, name in enumerate(names, start=1)]
    for name, rows in lines.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(rows))
    splits = CUBData(str(tmp_path), split="minmax", classes="cub5").read_splits()
    assert checksum(splits["val"]) == CUB5_VALID
    assert checksum(splits["train"]) == checksum(published(real_data, "CUB5", CUB5)["train"])
    by_id = CUBData(str(tmp_path), split="minmax", classes=sorted(CUB5)).read_splits()
    assert checksum(by_id["val"]) != CUB5_VALID


def test_the_published_lists_of_flowers(real_data):
    splits = published(real_data, "OxF", [str(k) for k in range(102)])
    assert {k: len(v) for k, v in splits.items()} == {"train": 1020, "valid": 1020, "test": 6149}
    for split in ("train", "valid"):
        assert Counter(r.label for r in splits[split]) == dict.fromkeys(range(102), 10)
    counts = Counter(record.label for record in splits["test"])
    assert (len(counts), min(counts.values()), max(counts.values())) == (102, 20, 238)
    numbers = [int(r.image.stem.removeprefix("image_")) for s in splits.values() for r in s]
    assert sorted(numbers) == list(range(1, 8190))


@pytest.fixture(scope="module")
def glas(real_data):
    if not (real_data / "GlaS" / "Grade.csv").is_file():
        pytest.skip("the real GlaS images are not there")
    return real_data / "GlaS"


def test_the_published_validation_images_of_glas():
    expected = {2, 5, 12, 18, 24, 26, 36, 38, 51, 52, 54, 63, 65, 68, 72, 74, 77, 83}
    assert set(VALCL[0]) == expected


def test_the_rule_gives_the_published_validation_images_of_glas(glas):
    """Both classes are shuffled in turn, a thousand times; fold 0 is the first fifth of each."""
    grades = read_grades(glas / "Grade.csv")
    benign, malignant = (
        sorted(
            name
            for name, (_, _, label) in grades.items()
            if label == k and name.startswith("train_")
        )
        for k in range(2)
    )
    rng = random.Random(0)
    for _ in range(1000):
        rng.shuffle(benign)
        rng.shuffle(malignant)
    drawn = benign[:8] + malignant[:10]
    assert {int(name.removeprefix("train_")) for name in drawn} == set(VALCL[0])


@pytest.mark.parametrize(("part", "count", "dice"), [("train", 85, 0.653), ("testB", 20, 0.716)])
def test_all_gland_is_the_yardstick_of_glas(glas, part, count, dice):
    """At the original resolution, where images differ in size."""
    data = GlaSData(str(glas), test="B", verify="none")
    names = ("train", "valcl") if part == "train" else ("test",)
    records = [record for name in names for record in data.sources[name].records]
    metrics = {
        region: ImageDice(0.5, region, empty="skip") for region in ("foreground", "background")
    }
    assert len(records) == count
    for k in range(0, count, 5):
        masks = [
            torch.from_numpy(read_mask(record, read_image(record.image).shape[:2]))
            for record in records[k : k + 5]
        ]
        for metric in metrics.values():
            metric.update([torch.ones(mask.shape) for mask in masks], masks)
    assert metrics["foreground"].compute().item() == pytest.approx(dice, abs=0.001)
    assert metrics["background"].compute().item() == 0
