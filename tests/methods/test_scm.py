"""SCM: its diffusion against eigenvalues, its limit cases, and TS-CAM at inference."""

import pytest
import torch

from tests.methods.vits import K, batch_of, uneven
from wsl_zoo.encoders.attention import read_attention
from wsl_zoo.methods import SCM, TSCAM
from wsl_zoo.methods.scm import DiffusionBlock, grid_laplacian, newton_schulz, soft_shrink
from wsl_zoo.methods.tscam import token_attention


def model_of(**changes):
    return uneven(SCM, **changes)


def truncated_inverse(s):
    """What five Newton-Schulz steps make of a singular value."""
    return torch.where(s == 0, s, (1 - (1 - 0.002 * s**2) ** 32) / s)


@torch.no_grad()
def test_at_inference_it_is_ts_cam():
    model, batch = model_of().eval(), batch_of()
    plain = TSCAM(num_classes=K, encoder="test_vit").eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    ours, theirs = model(batch), plain(batch)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.map, theirs.map)
    training = model.train()(batch)
    assert torch.equal(training.map, theirs.map)
    assert not torch.allclose(training.logits, theirs.logits, atol=1e-3)


@torch.no_grad()
def test_without_what_stands_out_only_the_attention_is_left():
    """With shrink=1 nothing passes the threshold: logits are the mean over conv(S (1 + F))."""
    model, batch = model_of(shrink=1.0), batch_of()
    final, attention = read_attention(model.encoder, batch["image"])
    focus = token_attention(attention, final)
    expected = model.head(final * (1 + focus)).mean((2, 3))
    torch.testing.assert_close(model(batch).logits, expected, rtol=1e-4, atol=1e-4)
    assert focus.shape == (3, 1, 3, 4)
    total = sum(weights[:, 0, 1:].sum(1) for weights in attention)
    torch.testing.assert_close(focus.sum((1, 2, 3)), total)


def test_newton_schulz_inverts():
    values = torch.tensor([0.0, 0.5, -2.0, 8.0, 30.0], dtype=torch.float64)
    ours = newton_schulz(torch.diag(values))
    torch.testing.assert_close(ours, torch.diag(truncated_inverse(values)))
    matrix = torch.randn(2, 6, 6, dtype=torch.float64) + 5 * torch.eye(6)
    torch.testing.assert_close(newton_schulz(matrix, steps=25), torch.linalg.inv(matrix))
    s = torch.linspace(0.01, 31, 1000)
    assert truncated_inverse(s).max() < 0.17  # as the file says


def test_the_laplacian_is_the_grids():
    laplacian = grid_laplacian(3, 4)
    maps = torch.randn(5, 3, 4)
    squares = maps.diff(dim=1).square().sum((1, 2)) + maps.diff(dim=2).square().sum((1, 2))
    flat = maps.flatten(1)
    torch.testing.assert_close(((flat @ laplacian) * flat).sum(1), squares)
    assert laplacian.diag().view(3, 4).tolist() == [[2, 3, 3, 2], [3, 4, 4, 3], [2, 3, 3, 2]]


def test_soft_shrink_is_relative_to_the_largest_of_each_map():
    maps = torch.tensor([[4.0, -1.0, -3.0], [0.4, -0.1, 0.3], [0.0, 0.0, 0.0]])
    expected = [[2.0, 0.0, -1.0], [0.2, 0.0, 0.1], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(soft_shrink(maps, 0.5), torch.tensor(expected))
    assert torch.equal(soft_shrink(maps, 0.0), maps)


def test_equal_patches_diffuse_over_the_grid():
    """E = 1 and lambda = 2: Q is the Laplacian, whose eigenvectors the block scales by 1 + f(s)."""
    block = DiffusionBlock(shrink=0.0).double()
    focus = torch.rand(2, 1, 3, 4, dtype=torch.float64)
    patches = torch.ones(2, 7, 3, 4, dtype=torch.float64)
    same, spread = block(patches, focus)
    s, vectors = torch.linalg.eigh(grid_laplacian(3, 4).double())
    operator = vectors @ torch.diag(1 + truncated_inverse(s.clamp(min=0))) @ vectors.T
    torch.testing.assert_close(spread.flatten(1), focus.flatten(1) @ operator)
    torch.testing.assert_close(same, patches)  # constants are in its kernel


def test_similarity_weighs_the_edges():
    """Neighbours that oppose each other (E = -1) get Q_ij = 1 + lambda; the diagonal lambda - 1."""
    block = DiffusionBlock(shrink=0.0).double()
    with torch.no_grad():
        block.similarity.fill_(0.5)
    patches = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64).view(1, 1, 1, 3)
    focus = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64).view(1, 1, 1, 3)
    q = torch.tensor([[-0.5, 0.5, 0.0], [0.5, -1.0, 1.5], [0.0, 1.5, -0.5]], dtype=torch.float64)
    s, vectors = torch.linalg.eigh(q)
    operator = vectors @ torch.diag(1 + truncated_inverse(s)) @ vectors.T
    ours, spread = block(patches, focus)
    torch.testing.assert_close(spread.flatten(), operator @ focus.flatten())
    torch.testing.assert_close(ours.flatten(), operator @ patches.flatten())


def test_the_loss_reaches_every_weight_and_the_attention():
    model, batch = model_of(blocks=2).train(), batch_of()
    terms = model.loss(batch, model(batch))
    assert list(terms) == ["ce"]
    terms["ce"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    for block in model.diffusion:
        assert block.similarity.grad != 0
    # The class token's query in the last block leads nowhere but into the attention that is read.
    model = model_of(blocks=2).train()
    queries = []
    attention = model.encoder.model.blocks[-1].attn
    attention.q_norm.register_forward_hook(lambda *a: (a[2].retain_grad(), queries.append(a[2]))[0])
    model.loss(batch, model(batch))["ce"].backward()
    assert queries[0].grad[:, :, 0].abs().max() > 0


def test_half_precision_trains():
    model, batch = model_of().train(), batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
        loss = model.loss(batch, output)["ce"]
    assert output.logits.dtype == output.map.dtype == torch.float32
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    exact = model(batch)
    assert (output.logits - exact.logits).abs().max() < 0.1 * exact.logits.abs().max()


@pytest.mark.parametrize("changes", [{"blocks": 0}, {"shrink": -0.1}, {"shrink": 1.1}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ValueError, match=r"at least one block, shrink within 0\.\.1"):
        SCM(encoder="test_vit", **changes)
