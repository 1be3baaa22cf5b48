"""ACoL: what is erased for the second head, whose gradient passes, and the fused map."""

import pytest
import torch
from torch.nn import functional as F

from wsl_zoo.methods import ACoL

K = 4


def model_of(**kwargs):
    torch.manual_seed(0)
    return ACoL(**{"num_classes": K, "encoder": "test_resnet", "stride": 8, "width": 16} | kwargs)


def batch_of(count=3, size=64):
    image = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return {"image": image, "label": torch.tensor([3, 0, 2])[:count], "index": torch.arange(count)}


def min_max(z):
    low, high = z.amin((1, 2), keepdim=True), z.amax((1, 2), keepdim=True)
    return (z - low) / (high - low)


def seen_by_second(model, output, index):
    seen = []
    handle = model.second_head.register_forward_hook(
        lambda m, args, out: seen.append((args[0], out))
    )
    model.second_map(output, index)
    handle.remove()
    return seen[0]


def test_heads_are_three_convolutions_and_a_mean():
    model, batch = model_of().eval(), batch_of()
    shapes = [tuple(p.shape) for p in model.head.parameters()]
    assert shapes == [(16, 96, 3, 3), (16,), (16, 16, 3, 3), (16,), (K, 16, 1, 1), (K,)]
    assert [tuple(p.shape) for p in model.second_head.parameters()] == shapes
    assert {m.out_channels for m in ACoL(encoder="test_resnet").head[:4:2]} == {1024}
    with torch.no_grad():
        output = model(batch)
        final = model.encoder.final(batch["image"])
        a, b, c = model.head[0], model.head[2], model.head[4]
        maps = c(b(a(final).relu()).relu())
    torch.testing.assert_close(output.map, maps)
    torch.testing.assert_close(output.logits, maps.mean((2, 3)))


@pytest.mark.parametrize("delta", [0.3, 0.6, 1.0])
def test_the_second_head_sees_what_is_below_delta(delta):
    model, batch = model_of(delta=delta), batch_of()
    output = model(batch)
    label = batch["label"]
    seen, _ = seen_by_second(model, output, label)
    attention = min_max(output.map[range(3), label])
    torch.testing.assert_close(seen, output.final * (attention < delta)[:, None])
    erased = (attention >= delta).flatten(1)
    assert erased.gather(1, attention.flatten(1).argmax(1, keepdim=True)).all()
    assert not erased.all()


def test_above_one_both_heads_see_the_same():
    model, batch = model_of(delta=1.01).eval(), batch_of()
    model.second_head.load_state_dict(model.head.state_dict())
    output = model(batch)
    assert torch.equal(model.second_map(output, batch["label"]), output.map)
    terms = model.loss(batch, output)
    assert torch.equal(terms["ce"], terms["ce_second"])


def test_no_gradient_passes_erased_positions_nor_the_attention():
    model, batch = model_of(), batch_of()
    output = model(batch)
    output.final = output.final.detach().requires_grad_()
    output.map = output.map.detach().requires_grad_()
    terms = model.loss(batch, output)
    gradient, through = torch.autograd.grad(
        terms["ce_second"], [output.final, output.map], allow_unused=True
    )
    assert through is None
    attention = min_max(output.map[range(3), batch["label"]])
    erased = (attention >= 0.6)[:, None].expand_as(gradient)
    assert erased.any()
    assert not gradient[erased].any()
    assert gradient[~erased].any()


def test_a_constant_attention_erases_nothing():
    model, batch = model_of(), batch_of()
    output = model(batch)
    output.map = torch.full_like(output.map, 7.0)
    seen, _ = seen_by_second(model, output, batch["label"])
    assert torch.equal(seen, output.final)
    assert all(torch.isfinite(term) for term in model.loss(batch, output).values())


def test_the_map_is_the_larger_of_both_and_the_loss_the_sum_of_two():
    model, batch = model_of().eval(), batch_of()
    with torch.no_grad():
        output = model(batch)
        for target in ("label", "pred", 1):
            index = model.target_index(batch, output, target)
            _, second = seen_by_second(model, output, index)
            a, b = min_max(output.map[range(3), index]), min_max(second[range(3), index])
            fused = model.class_map(batch, output, index)
            torch.testing.assert_close(fused, torch.where(a > b, a, b))
            expected = F.interpolate(min_max(fused)[:, None], (64, 64), mode="bilinear")[:, 0]
            torch.testing.assert_close(model.localize(batch, output, target), expected)
        second = model.second_map(output, batch["label"]).mean((2, 3))
        terms = model.loss(batch, output)
    log = second.log_softmax(1)[range(3), batch["label"]]
    torch.testing.assert_close(terms["ce_second"], -log.mean())
    assert list(terms) == ["ce", "ce_second"]


def test_the_map_of_the_prediction_does_not_know_the_label():
    model, batch = model_of().eval(), batch_of()
    with torch.no_grad():
        first = model.localize(batch, model(batch), "pred")
        del batch["label"]
        assert torch.equal(model.localize(batch, model(batch), "pred"), first)


def test_features_of_a_vgg_are_pooled_once_more():
    model = model_of(encoder="vgg11", width=8).eval()
    batch = batch_of(count=1)
    with torch.no_grad():
        final = model.encoder.final(batch["image"])
        output = model(batch)
    assert output.final.shape == final.shape == (1, 512, 8, 8)
    window = final[:, :, 2:5, 3:6].amax((2, 3))
    assert torch.equal(output.final[:, :, 3, 4], window)


def test_half_precision_normalises_in_float32():
    model, batch = model_of().eval(), batch_of()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
        second = model.second_map(output, batch["label"])
        maps = model.localize(batch, output)
    assert output.final.dtype == torch.bfloat16
    assert output.map.dtype == second.dtype == maps.dtype == torch.float32
    assert float(maps.min()) >= 0
    assert float(maps.max()) <= 1


def test_erasing_everything_is_refused():
    with pytest.raises(ValueError, match="delta"):
        model_of(delta=0.0)
