"""The encoder of rows: what it standardises by, and that one row is one position of a map."""

import pytest
import torch

from wsl_zoo.encoders import MLPEncoder

NAN = float("nan")


def rows(count=50, features=3):
    """Columns of other means and deviations."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, features, generator=generator)
    return x * torch.tensor([1.0, 30.0, 0.01]) + torch.tensor([0.0, 400.0, -5.0])


def fitted(hidden=(), x=None, **kwargs):
    encoder = MLPEncoder(3, hidden=hidden, **kwargs)
    encoder.standardize(rows() if x is None else x)
    return encoder.eval()


@torch.no_grad()
def test_training_rows_get_mean_0_and_deviation_1():
    x = rows()
    out = fitted(x=x).final(x).flatten(1)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    other = torch.tensor([[0.5, 100.0, -4.0]])
    expected = (other - x.mean(0)) / x.std(0, correction=0)
    torch.testing.assert_close(fitted(x=x).final(other).flatten(1), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_missing_cells_count_as_the_mean():
    x = rows()
    holes = x.clone()
    holes[::2, 0], holes[3, 2] = NAN, NAN
    encoder = fitted(x=holes)
    torch.testing.assert_close(encoder.center[0], x[1::2, 0].mean())
    torch.testing.assert_close(encoder.scale[0], x[1::2, 0].std(correction=0))
    torch.testing.assert_close(encoder.scale[1], x[:, 1].std(correction=0))
    encoder = fitted(hidden=[4], x=holes)
    row = torch.tensor([[NAN, 100.0, NAN]])
    filled = torch.where(row.isnan(), encoder.center, row)
    assert torch.equal(encoder.final(row), encoder.final(filled))
    assert not torch.equal(encoder.final(row), encoder.final(filled + encoder.scale))
    assert torch.equal(encoder.embed(row), encoder.embed(filled))


@torch.no_grad()
@pytest.mark.parametrize("constant", [0.0, 0.1, -7e6, NAN])
def test_a_constant_column_keeps_its_scale(constant):
    x = rows()
    x[:, 1] = constant
    encoder = fitted(x=x)
    center = 0.0 if x[:, 1].isnan().all() else x[0, 1]
    assert encoder.scale[1] == 1
    assert encoder.center[1] == center
    x[0, 1] = center + 2
    assert encoder.final(x)[0, 1].item() == pytest.approx(2)


def test_a_narrow_column_is_no_constant():
    x = rows()
    x[:, 1] = 3.0 + 1e-3 * (torch.arange(50) % 2)
    torch.testing.assert_close(fitted(x=x).scale[1].item(), 5e-4, rtol=1e-3, atol=0)


@torch.no_grad()
def test_without_layers_the_result_is_the_standardised_row():
    x = rows()
    encoder = fitted()
    expected = (x - encoder.center) / encoder.scale
    final, levels = encoder(x)
    assert torch.equal(final, expected[:, :, None, None])
    assert [level.shape for level in levels] == [(50, 3, 1, 1)]
    assert (encoder.final_channels, encoder.channels, encoder.strides) == (3, [3], [1])
    assert not list(encoder.parameters())
    unfitted = MLPEncoder(3, hidden=[])
    assert torch.equal(unfitted.final(x).flatten(1), x)


@torch.no_grad()
@pytest.mark.parametrize("hidden", [[5], [7, 4], [2, 6, 3]])
def test_maps_of_one_position(hidden):
    encoder = fitted(hidden=hidden)
    final, levels = encoder(rows())
    assert [level.shape for level in levels] == [(50, width, 1, 1) for width in hidden]
    assert torch.equal(levels[-1], final)
    assert encoder.channels == hidden
    assert encoder.final_channels == hidden[-1]
    assert encoder.strides == [1] * len(hidden)
    assert (final >= 0).all()
    assert final.any()
    x = ((rows() - encoder.center) / encoder.scale).clone()
    for linear in (m for m in encoder.modules() if isinstance(m, torch.nn.Linear)):
        x = (x @ linear.weight.T + linear.bias).clamp(min=0)
    torch.testing.assert_close(final.flatten(1), x)


@torch.no_grad()
@pytest.mark.parametrize("hidden", [[], [7, 4]])
def test_exams_are_embedded_as_their_rows_are(hidden):
    encoder = fitted(hidden=hidden)
    x = rows(24)
    x[5, 1] = NAN
    exams = encoder.embed(x.view(6, 4, 3))
    assert exams.shape == (6, 4, encoder.final_channels)
    torch.testing.assert_close(exams.flatten(0, 1), encoder.final(x).flatten(1))


def test_dropout_is_of_training_only():
    encoder = fitted(hidden=[32], dropout=0.5)
    x = rows()
    assert torch.equal(encoder.final(x), encoder.final(x))
    encoder.train()
    assert not torch.equal(encoder.final(x), encoder.final(x))


@torch.no_grad()
def test_a_checkpoint_holds_what_is_standardised_by():
    encoder = fitted(hidden=[4])
    again = MLPEncoder(3, hidden=[4]).eval()
    assert not torch.equal(again.final(rows()), encoder.final(rows()))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.final(rows()), encoder.final(rows()))


def test_split_gives_the_result_in_the_graph():
    encoder = fitted(hidden=[4])
    activation, rest = encoder.split(rows())
    assert torch.equal(activation, encoder.final(rows()))
    assert torch.equal(rest(activation), activation)
    activation.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert encoder.layers() == []
    assert encoder.boosted_parameters() == []
    for layer in (0, -2, "layers.0"):
        with pytest.raises(ValueError, match=f"layer={layer!r}: of features only -1"):
            encoder.split(rows(), layer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_features": 0}, r"in_features=0, hidden=\[64\]: must be positive"),
        ({"in_features": 3, "hidden": [4, 0]}, r"in_features=3, hidden=\[4, 0\]: must be positive"),
    ],
)
def test_widths_below_1_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MLPEncoder(**settings)


def test_rows_of_another_width_are_refused():
    encoder = fitted()
    for call in (encoder, encoder.final, encoder.standardize):
        with pytest.raises(ValueError, match=r"mlp reads rows \(B, 3\), got \(2, 4\)"):
            call(torch.zeros(2, 4))
        with pytest.raises(ValueError, match=r"got \(2, 3, 8, 8\)"):
            call(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="no weights to start from"):
        encoder.load_weights("weights.pth")
