import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.cases.clip import TINY_CLIP, tiny_clip
from wsl_zoo.encoders import ImageTextEncoder, TextTower, lora_parameters

pytest.importorskip("open_clip")

TEXTS = ["no tumour", "invasive carcinoma of the colon", "polyp"]


def made(folder, **changes):
    torch.manual_seed(0)
    return TextTower(ImageTextEncoder(tiny_clip(folder, **changes)), TEXTS, rank=2)


def test_it_starts_as_the_encoder(tmp_path):
    torch.manual_seed(0)
    expected = ImageTextEncoder(tiny_clip(tmp_path)).encode_texts(TEXTS)
    tower = made(tmp_path)
    found = tower(torch.tensor([2, 0, 2]))
    torch.testing.assert_close(found, expected[[2, 0, 2]])
    assert not hasattr(tower.model, "visual")


def test_every_factor_learns_and_nothing_else(tmp_path):
    tower = made(tmp_path)
    learns = [p for p in tower.parameters() if p.requires_grad]
    assert {id(p) for p in learns} == {id(p) for p in lora_parameters(tower)}
    names = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert any("out_proj" in name for name in names)  # which peft's form cannot teach
    optimizer = torch.optim.SGD(learns, lr=1.0)
    target = F.normalize(torch.randn(3, tower.dim), dim=1)
    for _ in range(2):
        optimizer.zero_grad()
        (tower(torch.arange(3)) * target).sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learns)


def test_towers_of_their_own_are_adapted_alone(tmp_path):
    tower = made(tmp_path, custom_text=True)
    assert all(name.startswith("model.text.") for name, p in tower.named_parameters()
               if p.requires_grad)  # fmt: skip
    assert tower(torch.arange(3)).shape == (3, TINY_CLIP["embed_dim"])


def test_no_state_holds_it(tmp_path):
    class Holder(nn.Module):
        def __init__(self, tower=None):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            if tower is not None:
                self.tower = tower

    tower = made(tmp_path)
    with torch.no_grad():
        for factor in lora_parameters(tower):
            factor.add_(0.1)
    before = tower(torch.arange(3))
    holder = Holder(tower)
    state = holder.state_dict()
    assert set(state) == {"layer.weight", "layer.bias"}
    Holder().load_state_dict(state)
    changed = {key: value + 1 for key, value in state.items()}
    holder.load_state_dict(changed)
    assert torch.equal(holder.layer.weight, changed["layer.weight"])
    assert torch.equal(tower(torch.arange(3)), before)


def test_factors_are_taken_up_again(tmp_path):
    tower, other = made(tmp_path), made(tmp_path)
    with torch.no_grad():
        for factor in lora_parameters(tower):
            factor.normal_()
    assert not torch.allclose(other(torch.arange(3)), tower(torch.arange(3)))
    other.take_factors(tower.factors())
    assert torch.equal(other(torch.arange(3)), tower(torch.arange(3)))
    with pytest.raises(ValueError, match="factors of LoRA do not fit"):
        other.take_factors(tower.factors()[1:])
