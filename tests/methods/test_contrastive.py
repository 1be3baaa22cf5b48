"""Contrastive fine-tuning against plain formulas; what it reads, what it keeps."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

import wsl_zoo
from tests.cases import fill, tiny_data, trainer
from tests.cases.clip import TINY_CLIP, tiny_clip
from tests.cases.clipit import DIM
from tests.cases.contrastive import TINY, ready
from wsl_zoo.data import SyntheticReportsData
from wsl_zoo.encoders import ImageTextEncoder, lora_parameters
from wsl_zoo.methods import CLIPIT, CAMClassifier, ContrastiveCLIP
from wsl_zoo.methods.contrastive import TEMPLATES

NAMES = ["adipose", "debris", "mucus", "tumour"]
FEW = ["{}.", "an image of {}."]


def batch(size=48, count=6):
    generator = torch.Generator().manual_seed(1)
    return {
        "index": torch.arange(count),
        "image": torch.randn(count, 3, size, size, generator=generator),
        "label": torch.tensor([0, 1, 2, 3, 3, 0])[:count],
    }


def prompted(folder, **options):
    """A model with the prompts of a tiny text tower."""
    pytest.importorskip("open_clip")
    settings = {"text_encoder": {"name": tiny_clip(folder)}, "templates": FEW}
    return ContrastiveCLIP(**TINY | settings | {"class_names": NAMES} | options)


def fit(model, folder, data=None, **options):
    run = trainer(folder, **{"max_steps": 2, "limit_val_batches": 0} | options)
    run.fit(model, data or tiny_data())
    return run


@pytest.mark.parametrize("negatives", ["classes", "batch"])
def test_it_is_the_published_loss(negatives):
    model = ContrastiveCLIP(**TINY | {"negatives": negatives}).eval()
    fill(model)
    ready(model)
    images = batch()
    output = model(images)
    embedding = model.encoder.final(images["image"]).mean(dim=(2, 3)) @ model.projection.weight.T
    scores = F.cosine_similarity(embedding[:, None], model.class_text[None], dim=2)
    scores = scores * model.class_text.norm(dim=1) / 0.07
    torch.testing.assert_close(output.logits, scores)
    label = images["label"]
    columns = scores if negatives == "classes" else scores[:, label]
    chosen = scores[torch.arange(6), label]
    expected = (columns.exp().sum(dim=1).log() - chosen).mean()
    torch.testing.assert_close(model.loss(images, output)["contrast"], expected)


def test_the_map_is_that_of_a_linear_classifier():
    """Without lengths: the mean over places is the product of embedding and text."""
    model = ContrastiveCLIP(**TINY).eval()
    fill(model)
    ready(model)
    output = model(batch(96))
    assert output.map.shape == (6, 4, 3, 3)
    torch.testing.assert_close(output.map.mean(dim=(2, 3)), output.embedding @ model.class_text.T)


def test_logits_are_the_mean_similarity_of_all_prompts(tmp_path):
    model = prompted(tmp_path, templates=None, lora_text=False, class_words=["fat", "b", "c", "d"])
    fit(model, tmp_path)
    words = [t.format(word) for word in ("fat", "b", "c", "d") for t in TEMPLATES]
    assert model.prompts() == words
    assert len(TEMPLATES) == 22
    torch.manual_seed(0)  # the seed of the model: weights are random here
    encoder = ImageTextEncoder(tiny_clip(tmp_path))
    texts = encoder.encode_texts(words).view(4, 22, DIM)
    output = model.eval()(batch())
    unit = F.normalize(output.embedding, dim=1)
    similar = torch.einsum("bd,ktd->bkt", unit, texts).mean(dim=2)
    torch.testing.assert_close(output.logits, similar / 0.07)


def test_training_reads_the_first_prompt(tmp_path):
    model = prompted(tmp_path)
    model._trainer = trainer(tmp_path)
    model.setup("fit")
    tower = model.text_tower
    first = tower(torch.tensor([0, 2, 4, 6]))
    output = model.train()(batch())
    unit = F.normalize(output.embedding, dim=1)
    torch.testing.assert_close(output.logits, unit @ first.T / 0.07)
    assert output.logits.requires_grad
    sum(model.loss(batch(), output).values()).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in lora_parameters(tower))


def test_texts_learn_and_are_kept_as_they_are_at_the_end(tmp_path):
    model = prompted(tmp_path)
    path = tmp_path / "end.ckpt"
    fit(model, tmp_path, tiny_data(), max_steps=-1, max_epochs=2).save_checkpoint(path)
    fresh = prompted(tmp_path)
    fresh._trainer = trainer(tmp_path)
    fresh.setup("fit")
    fresh.renew_class_text()
    assert (fresh.class_text - model.class_text).abs().max() > 1e-4
    loaded = wsl_zoo.load(path)
    assert torch.equal(loaded.class_text, model.class_text)
    assert loaded.text_tower is None
    assert torch.equal(loaded(batch()).logits, model.eval()(batch()).logits)
    tower = model.text_tower.eval()
    texts = tower(torch.arange(8)).view(4, 2, DIM).mean(dim=1)
    torch.testing.assert_close(model.class_text, texts)


def test_it_resumes_bit_for_bit(tmp_path):
    ends = []
    for stops in ([2], [1, 2]):
        path = None
        for epochs in stops:
            torch.manual_seed(0)
            model = prompted(tmp_path)
            run = trainer(tmp_path, max_epochs=epochs)
            run.fit(model, tiny_data(), ckpt_path=path)
            path = tmp_path / f"{len(stops)}_{epochs}.ckpt"
            run.save_checkpoint(path)
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_features_of_prompts_need_no_text_encoder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    names = tiny_data().class_names
    features = torch.randn(4, DIM)
    rows = "\n".join(f"{n},{','.join(map(str, f.tolist()))}"
                     for n, f in reversed(list(zip(names, features, strict=True))))  # fmt: skip
    (tmp_path / "prompts.csv").write_text(rows, encoding="utf-8")
    options = {"prompt_features": str(tmp_path / "prompts.csv"), "class_names": names}
    model = ContrastiveCLIP(**TINY | options)
    fit(model, tmp_path, tiny_data())
    torch.testing.assert_close(model.class_text, F.normalize(features, dim=1))
    assert "fixed_text" in dict(model.named_buffers())  # goes where the model goes
    assert "fixed_text" not in model.state_dict()


def test_built_in_tissue_has_prompts(tmp_path):
    data = SyntheticReportsData(train=8, val=4, test=4, reports=4, text_dim=16)
    model = ContrastiveCLIP(encoder="test_resnet", class_names=data.class_names, text_dim=16)
    fit(model, tmp_path, data)
    expected = F.normalize(data.prompt_features(), dim=2).mean(dim=1)
    torch.testing.assert_close(model.class_text, expected)


def vision_language(folder, **options):
    config = tiny_clip(folder)
    settings = {
        "encoder": "open_clip", "encoder_args": {"name": config}, "text_encoder": {"name": config},
    }  # fmt: skip
    return prompted(folder, **settings | options)


def test_both_towers_of_one_network_start_as_they_were_trained(tmp_path):
    """Before a step it is the network's own zero-shot classifier."""
    pytest.importorskip("open_clip")
    torch.manual_seed(5)
    network = ImageTextEncoder(tiny_clip(tmp_path))
    torch.save(network.model.state_dict(), tmp_path / "clip.pt")
    text = {"name": tiny_clip(tmp_path), "weights": str(tmp_path / "clip.pt")}
    model = vision_language(tmp_path, text_encoder=text, weights=str(tmp_path / "clip.pt"))
    data = tiny_data(image_size=32)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=0, limit_val_batches=0)
    run.fit(model, data)  # reads the weights, takes no step
    if not model._started:
        model.on_fit_start()
    images = batch(32)
    words = [t.format(name) for name in NAMES for t in FEW]
    texts = network.encode_texts(words).view(4, 2, DIM).mean(dim=1)
    expected = network.encode_images(images["image"]) @ texts.T / 0.07
    torch.testing.assert_close(model.eval()(images).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_both_towers_needs_no_config(tmp_path):
    model = vision_language(tmp_path)
    path = tmp_path / "end.ckpt"
    fit(model, tmp_path, tiny_data(image_size=32)).save_checkpoint(path)
    assert model.hparams["encoder_args"] == {"name": tiny_clip(tmp_path)}
    (tmp_path / "tiny_clip.json").unlink()
    loaded = wsl_zoo.load(path)
    images = batch(32)
    assert torch.equal(loaded(images).logits, model.eval()(images).logits)
    assert loaded(images).map is None


def test_prompts_are_no_part_of_inference(tmp_path):
    """A process without open-clip loads what an ordinary encoder became."""
    model = prompted(tmp_path)
    path = tmp_path / "end.ckpt"
    fit(model, tmp_path, tiny_data()).save_checkpoint(path)
    code = (
        "import sys; sys.modules['open_clip'] = None\n"
        "import torch, wsl_zoo\n"
        f"model = wsl_zoo.load({str(path)!r})\n"
        "g = torch.Generator().manual_seed(1)\n"
        "image = torch.randn(6, 3, 48, 48, generator=g)\n"
        f"torch.save(model({{'image': image}}).logits, {str(tmp_path / 'out.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert torch.equal(torch.load(tmp_path / "out.pt"), model.eval()(batch()).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature=0 must be positive"),
        ({"negatives": "all"}, 'must be "classes" or "batch"'),
        ({"text_encoder": {}, "prompt_features": "a.npy"}, "give either text_encoder or prompt"),
        ({"class_words": ["a"]}, "1 class_words for 4 classes"),
        ({"templates": ["no place"]}, "must hold {} once"),
        ({"templates": []}, "templates is empty"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveCLIP(**TINY | options)


def test_texts_of_another_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match="text_encoder has 8 features: text_dim=16"):
        fit(prompted(tmp_path, text_dim=16), tmp_path, tiny_data())
    torch.save(torch.randn(4, 5), tmp_path / "prompts.pt")
    model = ContrastiveCLIP(**TINY | {"prompt_features": str(tmp_path / "prompts.pt")})
    with pytest.raises(ValueError, match=r"prompts have 5 features.*text_dim=8"):
        fit(model, tmp_path, tiny_data())
    with pytest.raises(ValueError, match="prompts of the classes must be embedded"):
        fit(ContrastiveCLIP(**TINY), tmp_path, tiny_data())
    with pytest.raises(ValueError, match="must be of one network"):
        vision_language(tmp_path, text_dim=TINY_CLIP["embed_dim"] + 1)


def test_an_image_tower_is_the_encoder_of_other_methods_too(tmp_path):
    """The probe of CLIP-IT on an image-text network, and LoRA from there."""
    pytest.importorskip("open_clip")
    settings = {
        "num_classes": 4, "encoder": "open_clip", "encoder_args": {"name": tiny_clip(tmp_path)}
    }  # fmt: skip
    probe = CAMClassifier(**settings | {"freeze_encoder": True})
    data = tiny_data(image_size=32)
    path = tmp_path / "probe.ckpt"
    fit(probe, tmp_path, data).save_checkpoint(path)
    model = CLIPIT(**settings | {"classifier": str(path), "branches": "vision", "lora_rank": 2})
    fit(model, tmp_path, data)
    learned = [factor for factor in lora_parameters(model.encoder) if factor.abs().max() > 0]
    assert len(learned) == len(lora_parameters(model.encoder))
    plain = dict(probe.encoder.named_parameters())
    for name, value in model.encoder.named_parameters():
        if name in plain:
            assert torch.equal(value, plain[name]), name
