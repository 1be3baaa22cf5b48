"""CLIP-IT against a plain transcription of its network, and what its parts may and may not see."""

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wsl_zoo
from tests.cases import fill, trainer
from tests.cases.clipit import DIM, TINY, filled_text_classifier, paired
from tests.cases.stages import filled_classifier, save
from wsl_zoo.checkpoints import load_checkpoint
from wsl_zoo.data.texts import Texts
from wsl_zoo.encoders import lora_parameters
from wsl_zoo.methods import CLIPIT, SCM, CAMClassifier


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    return filled_classifier(tmp_path_factory.mktemp("probe"), stride=None)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return filled_text_classifier(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "index": torch.arange(4),
        "image": torch.randn(4, 3, 48, 48, generator=generator),
        "label": torch.tensor([0, 1, 2, 3]),
        "text": torch.randn(4, DIM, generator=generator),
    }


def started(**options):
    """The method as training starts it."""
    torch.manual_seed(0)
    model = CLIPIT(**TINY | options)
    model._trainer = SimpleNamespace(datamodule=None)
    model.load_start_weights()
    return model.train()


def test_it_is_the_published_network(probe, batch):
    """LateFuser of the specification, section 3, written out over the same weights."""
    model = CLIPIT(**TINY | {"classifier": probe})
    fill(model)
    model.eval()
    source = load_checkpoint(probe)
    encoder, head = source.encoder, source.head  # plain layers that get W + (alpha / r) B A
    adapted = dict(model.named_modules())
    for part, plain in (("encoder", encoder), ("head", head)):
        for name, layer in plain.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                adapter = adapted[f"{part}.{name}"]
                a, b = adapter.down.weight, adapter.up.weight
                delta = torch.einsum("or,r...->o...", b.flatten(1), a) * 8.0 / 2
                layer.weight.data = adapter.layer.weight + delta
                if layer.bias is not None:
                    layer.bias.data = adapter.layer.bias
            elif isinstance(layer, nn.BatchNorm2d):
                layer.load_state_dict(adapted[f"{part}.{name}"].state_dict())
    v = encoder.final(batch["image"]).mean(dim=(2, 3))
    z_v = head.fc(v)
    u_hat = F.linear(v, model.guess.weight, model.guess.bias)
    first, _, second = model.text_head
    hidden = F.linear(u_hat, first.weight, first.bias)
    hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
    z_t = F.linear(hidden, second.weight, second.bias)
    logits = F.linear(torch.cat([z_v, z_t], 1), model.fusion.weight, model.fusion.bias)
    output = model(batch)
    scale = logits.abs().max()
    torch.testing.assert_close(output.logits / scale, logits / scale, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(output.embedding, v, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.extra["text"], u_hat, rtol=1e-4, atol=1e-4)
    u = batch["text"]
    cosine = (u_hat * u).sum(1) / (u_hat.norm(dim=1) * u.norm(dim=1))
    expected = {"ce": F.cross_entropy(output.logits, batch["label"]), "kd": (1 - cosine).mean()}
    torch.testing.assert_close(model.loss(batch, output), expected, rtol=1e-5, atol=1e-5)


def test_it_starts_as_the_linear_probe(probe, batch):
    model = started(classifier=probe, branches="vision")
    source = load_checkpoint(probe)
    assert torch.equal(model(batch).logits, source(batch).logits)
    assert torch.equal(model(batch).map, source(batch).map)
    fused = started(classifier=probe)
    assert torch.equal(fused(batch).extra["vision"], source(batch).logits)


def test_only_lora_and_what_is_new_learns(probe):
    model = started(classifier=probe)
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    factors = {name for name in learns if ".down." in name or ".up." in name}
    assert factors
    assert {name.split(".")[0] for name in learns - factors} == {"guess", "text_head", "fusion"}
    trained = {id(p) for group in model.param_groups() for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in lora_parameters(model)} < trained
    plain = started(classifier=probe, lora_head=False)
    assert {n for n, p in plain.head.named_parameters() if p.requires_grad} == {
        "fc.weight",
        "fc.bias",
    }
    still = started(classifier=probe, lora_targets=None)
    assert list(still.frozen()) == [still.encoder]
    assert not list(lora_parameters(still.encoder))


def test_gradients_reach_every_adapted_projection(tmp_path):
    classifier = CAMClassifier(num_classes=4, encoder="test_vit")
    path = save(classifier, tmp_path / "vit.ckpt")
    model = started(encoder="test_vit", classifier=path)
    generator = torch.Generator().manual_seed(0)
    size = model.encoder.model.patch_embed.img_size
    batch = {
        "index": torch.arange(3),
        "image": torch.randn(3, 3, *size, generator=generator),
        "label": torch.tensor([0, 1, 2]),
        "text": torch.randn(3, DIM, generator=generator),
    }
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # A learns once B is no longer 0
        optimizer.zero_grad()
        sum(model.loss(batch, model(batch)).values()).backward()
        optimizer.step()
    factors = {n: p for n, p in model.named_parameters() if ".down." in n or ".up." in n}
    assert {"qkv", "proj", "fc1", "fc2"} <= {name.split(".")[-3] for name in factors}
    for name, factor in factors.items():
        assert factor.grad is not None, name
        assert factor.grad.abs().max() > 0, name


def test_text_reaches_the_loss_and_never_the_logits(probe, batch):
    model = started(classifier=probe)
    other = batch | {"text": batch["text"].flip(0)}
    silent = {key: value for key, value in batch.items() if key != "text"}
    ours, theirs = model(batch), model(other)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.logits, model(silent).logits)
    assert model.loss(batch, ours)["kd"] != model.loss(other, theirs)["kd"]
    assert torch.equal(model.loss(batch, ours)["ce"], model.loss(other, theirs)["ce"])
    with pytest.raises(ValueError, match=r"give --model\.pairs DIR"):
        model.loss(silent, ours)


def test_the_target_does_not_move(probe, batch):
    model = started(classifier=probe)
    text = batch["text"].clone().requires_grad_()
    batch = batch | {"text": text}
    model.loss(batch, model(batch))["kd"].backward()
    assert text.grad is None
    assert model.guess.weight.grad.abs().max() > 0


def test_without_weight_no_text_is_read(probe, batch):
    model = started(classifier=probe, kd_weight=0)
    silent = {key: value for key, value in batch.items() if key != "text"}
    assert set(model.loss(silent, model(silent))) == {"ce"}
    assert model.reads_text == ()
    assert started(classifier=probe).reads_text == ("train",)
    double = started(classifier=probe, kd_weight=2.0)
    single = started(classifier=probe)
    torch.testing.assert_close(
        double.loss(batch, double(batch))["kd"], 2 * single.loss(batch, single(batch))["kd"]
    )


def test_fusion_starts_as_the_sum(probe, batch):
    model = started(classifier=probe)
    output = model(batch)
    torch.testing.assert_close(output.logits, output.extra["vision"] + output.extra["report"])
    published = started(classifier=probe, fusion="random").fusion
    assert not torch.equal(published.weight, model.fusion.weight)
    assert published.weight.abs().max() <= (2 * 4) ** -0.5  # as of any linear layer


def test_the_published_cross_entropy_is_bounded(probe, batch):
    model = started(classifier=probe, double_softmax=True)
    found = model.loss(batch, model(batch))["ce"]
    assert math.log(math.e + 3) - 1 <= found <= math.log(math.e + 3)
    _, each = model.judged(batch, model(batch))
    torch.testing.assert_close(each.mean(), found)


def test_two_layers_guess_the_text(probe, batch):
    model = started(classifier=probe, kd_layers=2)
    first, slope, last = model.guess
    assert first.weight.shape == (model.encoder.final_channels,) * 2
    assert slope.negative_slope == 0.1
    assert last.weight.shape == (DIM, model.encoder.final_channels)
    with pytest.raises(ValueError, match="layers=3 must be 1 or 2"):
        CLIPIT(**TINY | {"kd_layers": 3})


def test_the_upper_bound_reads_true_text(probe, reader, batch):
    model = started(branches="report", classifier=probe, text_classifier=reader)
    source = load_checkpoint(reader)
    output = model(batch)
    assert torch.equal(output.extra["report"], source(batch).logits)
    assert not torch.equal(output.logits, model(batch | {"text": batch["text"].flip(0)}).logits)
    assert set(model.loss(batch, output)) == {"ce"}
    assert model.reads_text == ("train", "val", "test")
    assert model.text_head in list(model.frozen())
    with pytest.raises(ValueError, match="reads the text of the report"):
        model({key: value for key, value in batch.items() if key != "text"})
    with pytest.raises(ValueError, match="reads texts"):
        model(batch | {"text": batch["text"][:, :-1]})


def test_the_branch_of_text_may_start_from_a_classifier_of_text(probe, reader, batch):
    model = started(classifier=probe, text_classifier=reader)
    source = load_checkpoint(reader)
    for ours, theirs in zip(model.text_head.parameters(), source.head.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad


def test_what_does_not_fit_is_refused(tmp_path, probe, reader):
    def refused(message, error=ValueError, **options):
        with pytest.raises(error, match=message):
            started(**options)

    refused("lora_head=True adapts a head that was trained before")
    refused("no CAMClassifier with head wgap", classifier=reader)
    gap = filled_classifier(tmp_path, stride=None, head="gap")
    refused("no CAMClassifier with head wgap", classifier=gap)
    names = filled_classifier(tmp_path, stride=None, class_names=["a", "b", "c", "d"])
    refused("knows the classes a, b, c, d, this model 0, 1, 2, 3", classifier=names)
    vit = filled_classifier(tmp_path, stride=None, encoder="test_vit")
    refused("has another encoder", classifier=vit)
    mean = filled_classifier(tmp_path, stride=None, mean=[0.1, 0.1, 0.1])
    refused("give this model the same mean and std", classifier=mean)
    scm = save(SCM(num_classes=4, encoder="test_vit"), tmp_path / "scm.ckpt")
    refused("holds a SCM", classifier=scm)
    refused("text_classifier=.* holds a CAMClassifier", classifier=probe, text_classifier=probe)
    refused("is another network", classifier=probe, text_classifier=reader, text_hidden=8)
    refused("give --model.text_classifier", classifier=probe, branches="report")
    refused("reads no text", classifier=probe, branches="vision", pairs="pairs")
    refused("branches='both' must be one of", branches="both")
    refused("select='auc' must be", select="auc")
    refused("fusion='mean' must be", fusion="mean")
    refused("kd_weight=-1 must not be negative", kd_weight=-1)
    refused("no layer", lora_targets="qkv_of_nothing")


def test_a_head_without_a_probe_is_trained(batch):
    model = started(lora_head=False)
    assert model.head.fc.weight.requires_grad
    assert torch.isfinite(model(batch).logits).all()


def test_weights_of_a_file_are_read_below_the_adapters(tmp_path, batch):
    source = CAMClassifier(num_classes=4, encoder="test_resnet")
    fill(source)
    torch.save(source.encoder.model.state_dict(), tmp_path / "weights.pth")
    model = started(lora_head=False, weights=str(tmp_path / "weights.pth"))
    assert torch.equal(model.encoder.final(batch["image"]), source.eval()(batch).final)
    for name, value in source.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value), name


def test_texts_travel_with_the_images_of_training_alone(probe, tmp_path):
    seen = {"train": set(), "val": set()}

    class Watching(CLIPIT):
        def training_step(self, batch, batch_idx):
            for index, text in zip(batch["index"], batch["text"], strict=True):
                expected = data.texts["train"][int(index)]
                assert torch.equal(text, expected)
                seen["train"].add(int(index))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            seen["val"].add("text" in batch)
            super().validation_step(batch, batch_idx, dataloader_idx)

    data = paired()
    data.texts = {"train": data.texts["train"]}
    model = Watching(**TINY | {"classifier": probe})
    run = trainer(tmp_path)
    run.fit(model, data)
    assert seen == {"train": set(range(8)), "val": {False}}
    logged = run.callback_metrics
    assert {"train/ce", "train/kd", "train/text_alike", "train/guess_alike"} <= set(logged)
    unit = F.normalize(torch.stack([data.texts["train"][i] for i in range(8)]), dim=1)
    assert -1 <= logged["train/text_alike"] <= 1
    assert float(logged["train/text_alike"]) != pytest.approx(1.0)
    assert unit.shape == (8, DIM)


def test_alikeness_is_the_mean_cosine_of_pairs():
    from wsl_zoo.methods.clipit import _alikeness

    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(vectors, dim=1)
    pairs = [float(unit[i] @ unit[j]) for i in range(5) for j in range(5) if i != j]
    assert float(_alikeness(vectors)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert float(_alikeness(vectors[:1])) == 1.0
    assert float(_alikeness(vectors[:1].expand(4, -1))) == pytest.approx(1.0, abs=1e-6)


WITHOUT_TEXT = """
import sys
sys.modules["open_clip"] = None
import torch, wsl_zoo
model = wsl_zoo.load(sys.argv[1])
batch = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(model(batch).logits, sys.argv[3])
"""


def test_inference_needs_neither_text_nor_its_encoder(probe, batch, tmp_path):
    model = CLIPIT(**TINY | {"classifier": probe})
    run = trainer(tmp_path)
    run.fit(model, paired())
    run.save_checkpoint(tmp_path / "model.ckpt")
    images = {key: batch[key] for key in ("index", "image")}
    torch.save(images, tmp_path / "batch.pt")
    arguments = [str(tmp_path / name) for name in ("model.ckpt", "batch.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", WITHOUT_TEXT, *arguments], check=True)
    with torch.no_grad():
        ours = model.eval()(images).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), ours)
    loaded = wsl_zoo.load(tmp_path / "model.ckpt")
    assert not any("open_clip" in type(m).__module__ for m in loaded.modules())


def test_texts_of_another_size_are_refused(probe, batch):
    model = started(classifier=probe, text_dim=DIM + 1)
    with pytest.raises(ValueError, match=r"CLIP-IT reads texts \(B, 9\), got \(4, 8\)"):
        model.loss(batch, model(batch))
    texts = Texts(torch.zeros(2, 3), torch.tensor([0, 1, 1]))
    assert len(texts) == 3
