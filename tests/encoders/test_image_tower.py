"""Image towers: the embeddings of open-clip, with the interface of an encoder."""

import json

import pytest
import torch
from torch import nn

from tests.cases.clip import TINY_CLIP, tiny_clip
from tests.cases.stages import save
from wsl_zoo.encoders import ImageTextEncoder, ImageTower, adapt, lora_parameters, make_encoder
from wsl_zoo.methods import CAMClassifier

open_clip = pytest.importorskip("open_clip")

PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
COCA = {
    "custom_text": True,
    "vision_cfg": {**TINY_CLIP["vision_cfg"], "attentional_pool": True, "output_tokens": True},
    "text_cfg": {**TINY_CLIP["text_cfg"], "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
}
TIMM = {"vision_cfg": {"timm_model_name": "test_vit", "image_size": 160}}


def made(folder, **changes):
    torch.manual_seed(0)
    return ImageTower(tiny_clip(folder, **changes))


def whole(folder, **changes):
    """The image-text network itself, and its weights in a file."""
    torch.manual_seed(1)
    network = ImageTextEncoder(tiny_clip(folder, **changes))
    for parameter in network.parameters():  # a CoCa leaves one as the memory was
        parameter.data.nan_to_num_(0.0, 0.0, 0.0)
    torch.save(network.model.state_dict(), folder / "clip.pt")
    return network, folder / "clip.pt"


@pytest.mark.parametrize("changes", [{}, {"custom_text": True}, COCA, TIMM],
                         ids=["CLIP", "own text", "CoCa", "timm"])  # fmt: skip
def test_it_embeds_as_the_whole_network(tmp_path, changes):
    network, weights = whole(tmp_path, **changes)
    tower = made(tmp_path, **changes)
    tower.load_weights(weights)
    tower.eval()
    image = torch.randn(2, 3, *network.image_size)
    final, levels = tower(image)
    assert final.shape == (2, 8, 1, 1)
    assert levels == []
    expected = network.encode_images(image)
    torch.testing.assert_close(nn.functional.normalize(final.flatten(1), dim=1), expected)
    with torch.no_grad():
        found = network.eval().model.encode_image(image, normalize=False)
    torch.testing.assert_close(final.flatten(1), found)  # not normalised


def test_no_text_tower_is_kept(tmp_path):
    tower = made(tmp_path)
    network, _ = whole(tmp_path)
    assert set(tower.model.state_dict()) == set(network.model.visual.state_dict())


def test_it_is_an_encoder(tmp_path):
    tower = made(tmp_path)
    image = torch.randn(2, 3, 32, 32)
    activation, rest = tower.split(image)
    assert torch.equal(rest(activation), tower.final(image))
    with pytest.raises(ValueError, match="of an image tower only -1"):
        tower.split(image, -2)
    assert (tower.layers(), tower.boosted_parameters(), tower.channels) == ([], [], [])
    assert (tower.final_channels, tower.in_chans) == (8, 3)
    with pytest.raises(ValueError, match=r"reads images \(B, 3, 32, 32\).*--data.image_size 32"):
        tower.final(torch.zeros(1, 3, 48, 48))


def test_normalisation_is_the_networks(tmp_path):
    assert ImageTower(tiny_clip(tmp_path)).mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert ImageTower(tiny_clip(tmp_path)).std == pytest.approx(open_clip.OPENAI_DATASET_STD)
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": PREPROCESS}))
    tower = ImageTower(str(path))
    assert list(tower.mean) == PREPROCESS["mean"]
    assert list(tower.std) == PREPROCESS["std"]
    assert ImageTower(str(path), mean=0.5).mean == (0.5, 0.5, 0.5)


def test_what_a_checkpoint_holds_builds_it_without_the_file(tmp_path):
    tower = made(tmp_path)
    (tmp_path / "tiny_clip.json").unlink()
    again = ImageTower(config=json.loads(json.dumps(tower.config)))
    again.load_state_dict(tower.state_dict())
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.eval().final(image), tower.eval().final(image))


def test_weights_come_below_lora(tmp_path):
    network, weights = whole(tmp_path)
    tower = made(tmp_path)
    names = adapt(tower, rank=2)
    assert any("mlp" in name for name in names)
    tower.load_weights(weights)
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        tower.eval().final(image).flatten(1),
        network.eval().model.encode_image(image).detach(),
    )
    tower.final(image).square().sum().backward()
    assert all(factor.grad is not None for factor in lora_parameters(tower))


@pytest.mark.parametrize("changes", [{}, COCA, TIMM], ids=["CLIP", "CoCa", "timm"])
@pytest.mark.parametrize("adapted", [False, True])
def test_it_starts_from_the_checkpoint_of_a_method(tmp_path, changes, adapted):
    settings = {"encoder": "open_clip", "encoder_args": {"name": tiny_clip(tmp_path, **changes)}}
    source = CAMClassifier(num_classes=3, **settings)
    for parameter in source.parameters():
        parameter.data.nan_to_num_(0.0, 0.0, 0.0)
    path = save(source, tmp_path / "source.ckpt")
    tower = made(tmp_path, **changes)
    if adapted:
        adapt(tower, rank=2)
    tower.load_weights(path)
    image = torch.randn(1, 3, *tower._native)
    found, expected = tower.eval().final(image), source.encoder.eval().final(image)
    torch.testing.assert_close(found, expected)


def test_the_checkpoint_of_another_encoder_is_refused(tmp_path):
    path = save(CAMClassifier(num_classes=3, encoder="test_resnet"), tmp_path / "source.ckpt")
    with pytest.raises(ValueError, match=r"holds another encoder than .*missing: "):
        made(tmp_path).load_weights(path)


def test_pretrained_weights_say_which_network_they_are_of(tmp_path, monkeypatch):
    """OpenAI's weights run with QuickGELU, whatever the architecture's name says."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY_CLIP)
    told = {"quick_gelu": True, "mean": (0.1, 0.2, 0.3)}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["tag"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: told)
    torch.manual_seed(3)
    theirs = open_clip.CLIP(**TINY_CLIP, quick_gelu=True)
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **kwargs: theirs)
    tower = ImageTower("tiny", pretrained=True)
    assert tower.mean == (0.1, 0.2, 0.3)
    tower.load_weights()
    image = torch.randn(1, 3, 32, 32)
    found = tower.eval().final(image).flatten(1)
    torch.testing.assert_close(found, theirs.eval().encode_image(image))
    with pytest.raises(ValueError, match="build it with pretrained=True"):
        ImageTower("tiny").load_weights()


def test_a_hub_id_is_read_from_its_config(tmp_path, monkeypatch):
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": PREPROCESS}))
    asked = []
    monkeypatch.setattr(
        open_clip.pretrained,
        "download_pretrained_from_hf",
        lambda name, file: asked.append((name, file)) or str(path),
    )
    tower = ImageTower("hf-hub:someone/Net", pretrained=True)
    assert asked == [("someone/Net", "open_clip_config.json")]
    assert list(tower.mean) == PREPROCESS["mean"]
    with pytest.raises(ValueError, match="pass pretrained=True"):
        ImageTower("hf-hub:someone/Net")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs the name of a network"),
        ({"args": {"name": "ViT-B-31"}}, "no architecture 'ViT-B-31'; nearest names: .*ViT-B-32"),
        ({"args": {"name": "none.json"}}, "no config none.json"),
        ({"args": {"nam": "ViT-B-32"}}, "encoder_args={'nam': 'ViT-B-32'} of"),
        ({"stride": 16, "form": "wsol", "in_chans": 1}, "leave stride=16, form=wsol, in_chans=1"),
    ],
)
def test_bad_choices_are_refused(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_encoder("open_clip", **options)


def test_a_weight_file_that_does_not_fit_is_refused(tmp_path):
    _, weights = whole(tmp_path, embed_dim=16)
    tower = made(tmp_path)
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit"):
        tower.load_weights(weights)
    with pytest.raises(FileNotFoundError, match="no weight file"):
        tower.load_weights(tmp_path / "none.pt")
    assert all(torch.equal(value, before[key]) for key, value in tower.state_dict().items())
