import pytest
import torch
from torch import nn

from wsl_zoo.encoders import Encoder, adapt, load_plain
from wsl_zoo.encoders.adapters import factor_names


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def test_factors_are_named_after_their_layers():
    module = network()
    assert factor_names(module) == []
    adapt(module, rank=2)
    assert factor_names(module) == ["0.down", "0.up", "3.down", "3.up"]


def test_plain_states_go_below_the_adapters():
    source, module = network(), network()
    adapt(module, rank=2)
    before = {n: p.clone() for n, p in module.named_parameters() if ".down." in n or ".up." in n}
    load_plain(module, source.state_dict())
    image = torch.randn(2, 3, 4, 4)
    assert torch.equal(module.eval()(image), source.eval()(image))
    for name, value in before.items():
        assert torch.equal(module.get_parameter(name), value)
    plain = network()
    load_plain(plain, source.state_dict())
    assert torch.equal(plain.eval()(image), source(image))


def test_states_of_another_network_are_refused_whole():
    module, state = network(), network().state_dict()
    adapt(module, rank=2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    lacking = {key: value for key, value in state.items() if key != "3.bias"}
    with pytest.raises(ValueError, match=r"missing: 3\.bias; unexpected: none"):
        load_plain(module, lacking)
    with pytest.raises(ValueError, match=r"missing: none; unexpected: 9\.bias"):
        load_plain(module, state | {"9.bias": torch.zeros(1)})
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_plain(module, state | {"3.bias": torch.zeros(3)})


def test_weight_files_go_below_the_adapters(tmp_path):
    source, encoder = Encoder("test_resnet"), Encoder("test_resnet")
    torch.save(source.model.state_dict(), tmp_path / "weights.pth")
    adapt(encoder, rank=2)
    encoder.load_weights(tmp_path / "weights.pth")
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(encoder.eval().final(image), source.eval().final(image))
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit"):
        encoder.load_weights(tmp_path / "other.pth")
