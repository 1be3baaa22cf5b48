"""Image-text encoders: the features of open-clip, from names, configs and files."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from wsl_zoo.encoders import ImageTextEncoder

open_clip = pytest.importorskip("open_clip")

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "resize_mode": "shortest"}
COCA = {
    **TINY,
    "custom_text": True,
    "text_cfg": {
        **TINY["text_cfg"],
        "context_length": 15,
        "embed_cls": True,
        "output_tokens": True,
    },
    "vision_cfg": {**TINY["vision_cfg"], "attentional_pool": True, "output_tokens": True},
    "multimodal_cfg": {**TINY["text_cfg"], "attn_pooler_heads": 2},
}
COCA["multimodal_cfg"].pop("vocab_size")
TEXTS = ["", "invasive ductal carcinoma", "Normal tissue & stroma.", "lymph node " * 30]
# Each word is one token.
SENTENCE = "One two three four five six seven eight nine ten eleven twelve thirteen"


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def config(tmp_path):
    return write(tmp_path / "tiny.json", TINY)


@pytest.fixture
def encoder(config):
    torch.manual_seed(0)
    return ImageTextEncoder(config)


@pytest.fixture
def architectures(monkeypatch):
    """Architectures that open-clip knows by name, as if it had them built in."""
    known = open_clip.factory._MODEL_CONFIGS

    def add(name, content):
        monkeypatch.setitem(known, name, content)
        return name

    return add


def pictures(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.mark.parametrize("content", [TINY, COCA], ids=["clip", "coca"])
def test_features_are_those_of_open_clip(tmp_path, architectures, content):
    name = architectures("tiny", content)
    torch.manual_seed(3)
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    made = pictures((32, 32), (50, 40), (20, 61))
    image = torch.stack([transform(Image.fromarray(picture)) for picture in made])
    with torch.no_grad():
        expected = (
            model.encode_image(image, normalize=True),
            model.encode_text(tokens, normalize=True),
        )
    path = write(tmp_path / "same.json", content)
    for source in (name, path):
        torch.manual_seed(3)
        encoder = ImageTextEncoder(source)
        prepared = torch.stack([encoder.prepare(picture) for picture in made])
        assert torch.equal(prepared, image)
        assert torch.equal(encoder.tokenize(TEXTS), tokens)
        torch.testing.assert_close(encoder.encode_images(prepared), expected[0])
        torch.testing.assert_close(encoder.encode_texts(TEXTS), expected[1])
    assert len(expected[1].unique(dim=0)) == len(TEXTS)  # the features depend on the text


def test_attributes_and_shapes(encoder, config):
    assert (encoder.name, encoder.dim, encoder.context_length) == (config, 16, 16)
    assert encoder.image_size == (32, 32)
    assert encoder.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))  # OpenAI's
    assert encoder.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))
    assert encoder.encode_texts([]).shape == (0, 16)
    assert encoder.tokenize([]).shape == (0, 16)
    assert encoder.cut([]) == []


def test_preprocessing_of_an_open_clip_config(tmp_path):
    path = tmp_path / "open_clip_config.json"
    encoder = ImageTextEncoder(write(path, {"model_cfg": TINY, "preprocess_cfg": PREPROCESS}))
    assert (encoder.mean, encoder.std) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    grey = np.full((32, 48, 3), 51, np.uint8)  # 0.2
    expected = torch.tensor([(0.2 - 0.5) / 0.2, (0.2 - 0.4) / 0.25, (0.2 - 0.3) / 0.3])
    torch.testing.assert_close(encoder.prepare(grey), expected[:, None, None].expand(3, 32, 32))
    (wide,) = pictures((32, 50))  # the shorter side is S: only the centre is taken
    centre = torch.from_numpy(wide[:, 9:41]).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.mean, encoder.std))
    torch.testing.assert_close(encoder.prepare(wide), (centre - mean) / std)


def test_features_have_length_one_and_no_gradient(encoder):
    image = torch.randn(3, 3, 32, 32)
    for features in (encoder.encode_images(image), encoder.encode_texts(TEXTS, batch_size=3)):
        assert features.dtype == torch.float32
        assert not features.requires_grad
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    assert all(p.grad is None for p in encoder.parameters())


def test_batches_make_no_difference(encoder):
    whole = encoder.encode_texts(TEXTS)
    for size in (1, 3):
        torch.testing.assert_close(encoder.encode_texts(TEXTS, size), whole, atol=1e-6, rtol=0)
    image = torch.randn(3, 3, 32, 32)
    alone = torch.cat([encoder.encode_images(row[None]) for row in image])
    torch.testing.assert_close(encoder.encode_images(image), alone, atol=1e-6, rtol=0)


def test_eval_mode_is_used_and_every_mode_restored(tmp_path):
    vision = {**TINY["vision_cfg"], "patch_dropout": 0.5}  # random in training
    encoder = ImageTextEncoder(write(tmp_path / "drop.json", {**TINY, "vision_cfg": vision}))
    image = torch.randn(2, 3, 32, 32)
    expected = encoder.eval().encode_images(image)
    assert not encoder.training
    assert not any(part.training for part in encoder.modules())
    encoder.train()
    encoder.model.visual.eval()
    torch.testing.assert_close(encoder.encode_images(image), expected)
    encoder.encode_texts(TEXTS)
    assert encoder.training
    assert encoder.model.training
    assert not encoder.model.visual.training
    with pytest.raises(RuntimeError):
        encoder.encode_images(image.to("meta"))
    assert encoder.training
    assert not encoder.model.visual.training


def test_half_precision_gives_float32(encoder):
    image = torch.randn(2, 3, 32, 32)
    expected = encoder.encode_images(image)
    features = encoder.to(torch.bfloat16).encode_images(image)
    assert features.dtype == torch.float32
    assert F.cosine_similarity(features, expected).min() > 0.99


def test_random_weights_follow_the_seed(config, encoder):
    torch.manual_seed(0)
    assert ImageTextEncoder(config).digest() == encoder.digest()
    assert ImageTextEncoder(config).digest() != encoder.digest()


def test_the_end_of_a_long_text_is_lost(encoder):
    words = SENTENCE.split()
    fits, long = " ".join([*words, "cat"]), " ".join([*words, "cat", "dog"])  # 14 and 15, and 2
    assert encoder.cut([fits, long, "", "dog"]) == [False, True, False, False]
    features = encoder.encode_texts([fits, long, " ".join([*words, "dog"])])
    torch.testing.assert_close(features[0], features[1])
    assert not torch.allclose(features[0], features[2])
    assert encoder.tokenize([long])[0, -1] == 49407  # the end stays marked


@pytest.mark.parametrize("suffix", ["pt", "bin", "safetensors"])
def test_weights_from_a_file(tmp_path, config, encoder, suffix):
    state, path = encoder.model.state_dict(), tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save({"state_dict": state} if suffix == "bin" else state, path)
    torch.manual_seed(1)
    other = ImageTextEncoder(config, weights=path)
    assert torch.equal(other.encode_texts(TEXTS), encoder.encode_texts(TEXTS))
    assert other.digest() == encoder.digest()


def test_digest_changes_with_all_that_features_depend_on(tmp_path, encoder):
    digests = [encoder.digest()]
    assert encoder.digest() == digests[0]
    encoder.encode_texts(TEXTS)
    encoder.train()
    assert encoder.digest() == digests[0]
    with torch.no_grad():
        encoder.model.visual.proj[0, 0] += 1e-3
    digests.append(encoder.digest())
    case = {"tokenizer_kwargs": {"clean": "whitespace"}}  # capital letters stay
    changed = {
        "quick": {**TINY, "quick_gelu": True},
        "clean": {**TINY, "text_cfg": {**TINY["text_cfg"], **case}},
        "mean": {"model_cfg": TINY, "preprocess_cfg": PREPROCESS},
    }
    for name, content in changed.items():
        torch.manual_seed(0)
        digests.append(ImageTextEncoder(write(tmp_path / f"{name}.json", content)).digest())
    assert len(set(digests)) == len(digests)


def test_another_process_imports_without_open_clip_and_gets_the_same_digest(config, encoder):
    code = (
        "import sys, torch; sys.modules['open_clip'] = None; import wsl_zoo.encoders as encoders; "
        "del sys.modules['open_clip']; torch.manual_seed(0); "
        "print(encoders.ImageTextEncoder(sys.argv[1]).digest().hex())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, config], capture_output=True, text=True, check=True
    )
    assert run.stdout.split()[-1] == encoder.digest().hex()


def test_pretrained_tag_runs_with_the_activation_that_it_was_trained_with(
    tmp_path, architectures, encoder, monkeypatch
):
    name, path = architectures("tiny", TINY), tmp_path / "w.pt"
    torch.save(encoder.model.state_dict(), path)
    tags = {
        "first": {"url": "x", "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "std": (1, 1, 1)},
        "second": {"url": "y"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)
    asked = []
    monkeypatch.setattr(
        open_clip.factory,
        "download_pretrained",
        lambda cfg, **kwargs: asked.append(cfg["url"]) or str(path),
    )
    made = ImageTextEncoder(name, pretrained=True)
    quick = write(tmp_path / "quick.json", {**TINY, "quick_gelu": True})
    expected = ImageTextEncoder(quick, weights=path)
    assert asked == ["x"]
    assert made.mean == (0.1, 0.2, 0.3)
    assert torch.equal(made.encode_texts(TEXTS), expected.encode_texts(TEXTS))
    assert not torch.allclose(made.encode_texts(TEXTS), encoder.encode_texts(TEXTS))


def test_hugging_face_id(tmp_path, encoder, monkeypatch):
    config = tmp_path / "open_clip_config.json"
    write(config, {"model_cfg": TINY, "preprocess_cfg": PREPROCESS})
    weights = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(encoder.model.state_dict(), weights)

    def download(model_id, filename=None, **kwargs):
        assert model_id == "owner/model"
        return str(config if filename == config.name else weights)

    for module in (open_clip.factory, open_clip.pretrained):
        monkeypatch.setattr(module, "download_pretrained_from_hf", download)
    made = ImageTextEncoder("hf-hub:owner/model", pretrained=True)
    assert made.mean == (0.5, 0.4, 0.3)
    assert made.context_length == 16
    assert torch.equal(made.encode_texts(TEXTS), encoder.encode_texts(TEXTS))
    assert made.digest() == ImageTextEncoder(str(config), weights=weights).digest()
    with pytest.raises(ValueError, match=r"hf-hub:owner/model is downloaded: pass pretrained=True"):
        ImageTextEncoder("hf-hub:owner/model")


@pytest.mark.parametrize("beside", [False, True], ids=["folder", "beside"])
def test_local_hugging_face_tokenizer(tmp_path, beside):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("open_clip", "3.3", reason="releases before it need transformers 4")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c"]
    own = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    )
    fast.save_pretrained(tmp_path if beside else tmp_path / "words")
    text = {**TINY["text_cfg"], "context_length": 5, "vocab_size": 7}
    text["hf_tokenizer_name"] = "owner/model" if beside else "words"
    encoder = ImageTextEncoder(write(tmp_path / "own.json", {**TINY, "text_cfg": text}))
    texts = ["a b", "a  b c", "a b c a"]
    expected = [[2, 4, 5, 3, 0], [2, 4, 5, 6, 3], [2, 4, 5, 6, 3]]
    assert encoder.tokenize(texts).tolist() == expected
    before = encoder.digest()
    assert encoder.cut(texts) == [False, False, True]
    assert encoder.tokenize(texts).tolist() == expected  # counting leaves the tokenizer as it was
    assert encoder.digest() == before


def test_unknown_names_and_what_would_be_downloaded(tmp_path):
    with pytest.raises(ValueError, match=r"no architecture 'ViT-B32'; nearest names: .*ViT-B-32"):
        ImageTextEncoder("ViT-B32")
    with pytest.raises(ValueError, match=r"no architecture 'ViT-B32'"):
        ImageTextEncoder("ViT-B32", pretrained=True)
    with pytest.raises(ValueError, match=r"hf_model_name 'roberta-base' would be downloaded"):
        ImageTextEncoder("roberta-ViT-B-32")
    text = {**TINY["text_cfg"], "hf_tokenizer_name": "owner/words"}
    path = write(tmp_path / "hf.json", {**TINY, "text_cfg": text})
    with pytest.raises(ValueError, match=r"hf_tokenizer_name 'owner/words' would be downloaded"):
        ImageTextEncoder(path)


def test_choices_that_exclude_each_other(config, architectures):
    with pytest.raises(ValueError, match=r"either pretrained=True or a weight file"):
        ImageTextEncoder("RN50", weights="a.pt", pretrained=True)
    with pytest.raises(ValueError, match=r"has no weights to download"):
        ImageTextEncoder(config, pretrained=True)
    with pytest.raises(ValueError, match=r"no pretrained weights of tiny"):
        ImageTextEncoder(architectures("tiny", TINY), pretrained=True)


def test_wrong_configs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config .*none\.json"):
        ImageTextEncoder(str(tmp_path / "none.json"))
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ValueError, match=r"text\.json is no JSON"):
        ImageTextEncoder(str(tmp_path / "text.json"))
    for content in ([1], {"model_cfg": {"embed_dim": 16, "vision_cfg": {}}}):
        with pytest.raises(ValueError, match=r"it lacks .*text_cfg"):
            ImageTextEncoder(write(tmp_path / "part.json", content))
    vision = {**TINY["vision_cfg"], "depth": 3}
    with pytest.raises(ValueError, match=r"cannot build this architecture: .*depth"):
        ImageTextEncoder(write(tmp_path / "odd.json", {**TINY, "vision_cfg": vision}))


class Foreign:
    """Something that is no tensor."""


def test_wrong_weights(tmp_path, config, encoder):
    path = tmp_path / "weights.pt"
    with pytest.raises(FileNotFoundError, match=r"no weight file .*weights\.pt"):
        ImageTextEncoder(config, weights=path)
    state = encoder.model.state_dict()
    wrong = {
        r"Missing key.*text_projection": {k: v for k, v in state.items() if k != "text_projection"},
        r"Unexpected key.*head\.weight": {**state, "head.weight": torch.zeros(1)},
        r"size mismatch for text_projection": {**state, "text_projection": torch.zeros(2, 2)},
        r"NaN or infinite": {**state, "text_projection": state["text_projection"] * float("nan")},
        r"damaged, holds more than weights": {**state, "more": Foreign()},
        r"weights\.pt is damaged.* or does not fit": [1, 2],
    }
    for message, content in wrong.items():
        torch.save(content, path)
        with pytest.raises(ValueError, match=rf"(?s){message}"):
            ImageTextEncoder(config, weights=path)
    for suffix in ("pt", "safetensors"):
        broken = tmp_path / f"broken.{suffix}"
        broken.write_bytes(b"no weights")
        with pytest.raises(ValueError, match=rf"broken\.{suffix} is damaged"):
            ImageTextEncoder(config, weights=broken)


def test_wrong_inputs(encoder):
    with pytest.raises(ValueError, match=r"reads images \(B, 3, 32, 32\), got \(2, 3, 32, 48\)"):
        encoder.encode_images(torch.zeros(2, 3, 32, 48))
    for picture in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8"):
            encoder.prepare(picture)
    for call in (encoder.encode_texts, encoder.tokenize, encoder.cut):
        with pytest.raises(TypeError, match=r"put it into a list"):
            call("one text")
    with pytest.raises(ValueError, match=r"batch_size must be at least 1, got 0"):
        encoder.encode_texts(TEXTS, batch_size=0)


def test_without_open_clip(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"pip install 'wsl-zoo\[clip\]'"):
        ImageTextEncoder(config)
