import math

import pytest
import torch
from torch.nn import functional as F

from tests.cases import trainer
from tests.cases.clipit import DIM, paired
from wsl_zoo.methods import ReportClassifier

TINY = {"num_classes": 4, "text_dim": DIM, "text_hidden": 16}


def test_it_classifies_text_by_its_head():
    model = ReportClassifier(**TINY)
    batch = {"text": torch.randn(3, DIM), "label": torch.tensor([0, 3, 1])}
    output = model(batch)
    assert torch.equal(output.logits, model.head(batch["text"]))
    assert torch.equal(
        model.loss(batch, output)["ce"], F.cross_entropy(output.logits, batch["label"])
    )
    double = ReportClassifier(**TINY, double_softmax=True)
    found = double.loss(batch, output)["ce"]
    expected = F.cross_entropy(output.logits.softmax(1), batch["label"])
    torch.testing.assert_close(found, expected)
    assert math.log(math.e + 3) - 1 <= found <= math.log(math.e + 3)


def test_the_published_optimiser_is_the_default():
    model = ReportClassifier(**TINY)
    h = model.hparams
    assert (h["optimizer"], h["lr"], h["weight_decay"]) == ("adam", 1e-3, 1e-4)
    assert "in_chans" not in h


def test_images_without_text_are_refused(tmp_path):
    data = paired()
    data.texts = {"train": data.texts["train"]}
    with pytest.raises(ValueError, match=r"--splits '\[train, val, test\]'"):
        trainer(tmp_path).fit(ReportClassifier(**TINY), data)
    trainer(tmp_path, limit_val_batches=0).fit(ReportClassifier(**TINY), data)


def test_it_predicts_no_images():
    with pytest.raises(TypeError, match="classifies the text"):
        ReportClassifier(**TINY).predict_image("image.png")
    with pytest.raises(ValueError, match="2 class_names for num_classes=4"):
        ReportClassifier(**TINY | {"class_names": ["a", "b"]})
    with pytest.raises(ValueError, match="num_classes=1: a classifier needs at least two"):
        ReportClassifier(num_classes=1)
