"""The loss of F-CAM: its terms, when they are on, and what they do to a decoder."""

import pytest
import torch
from torch.nn import functional as F

import wsl_zoo
from tests.cases import tiny_data, trainer
from tests.methods.test_fcam import batch_of, model_of
from wsl_zoo.checkpointing import BestCheckpoint
from wsl_zoo.methods import SupervisedUNet
from wsl_zoo.types import Output

# Terms -----------------------------------------------------------------------------------------


def test_true_masks_as_seeds_make_it_supervised_segmentation(stage1):
    model = model_of(stage1, SupervisedUNet).train()
    batch = batch_of() | {"mask": torch.randint(0, 2, (4, 48, 48), dtype=torch.uint8)}
    batch["mask"][0, :5] = 255
    output = model(batch)
    expected = F.cross_entropy(output.map, batch["mask"].long(), ignore_index=255)
    terms = model.loss(batch, output)
    assert terms.keys() == {"seed"}
    torch.testing.assert_close(terms["seed"], expected)


def test_boxes_stand_for_masks_where_there_are_none(stage1):
    model = model_of(stage1, SupervisedUNet)
    boxes = [torch.tensor([[2.0, 3.0, 5.2, 8.0]], dtype=torch.float64), torch.zeros(0, 4)]
    seeds = model.seeds({"boxes": boxes}, Output(map=torch.zeros(2, 2, 10, 12)))
    assert int(seeds.sum()) == 3 * 5
    assert (seeds[0, 3:8, 2:5] == 1).all()
    with pytest.raises(ValueError, match="masks or boxes"):
        model.seeds({}, Output(map=torch.zeros(2, 2, 10, 12)))


def test_terms_are_the_weighted_losses(stage1):
    model = model_of(stage1, entropy_weight=0.5)
    batch = batch_of()
    output = Output(map=torch.randn(4, 2, 48, 48), logits=torch.zeros(4, 4))
    torch.manual_seed(0)
    terms = model.loss(batch, output)
    assert terms.keys() == {"seed", "crf", "size", "entropy"}
    probabilities = output.map.softmax(1)
    seeds = model.seeds(batch, output)
    torch.testing.assert_close(terms["seed"], F.cross_entropy(output.map, seeds, ignore_index=-255))
    torch.testing.assert_close(terms["crf"], 2e-9 * model.crf(probabilities, batch["raw"]))
    # t = 1, and areas are far above one pixel: -(1/2) mean ln(a_0 a_1)
    areas = probabilities.sum((2, 3))
    torch.testing.assert_close(terms["size"], -0.1 * 0.5 * areas.log().sum(1).mean())
    bits = -(probabilities * probabilities.log2()).sum(1).mean()
    torch.testing.assert_close(terms["entropy"], 0.5 * bits)


def test_colours_come_from_the_image_where_a_loader_gives_no_pixels(stage1):
    model = model_of(stage1)
    batch = batch_of()
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (model.encoder.mean, model.encoder.std))
    batch["image"] = (batch["raw"].float() / 255 - mean) / std
    output = Output(map=torch.randn(4, 2, 48, 48), logits=torch.zeros(4, 4))
    torch.manual_seed(0)
    with_raw = model.loss(batch, output)
    del batch["raw"]
    torch.testing.assert_close(model.loss(batch, output), with_raw, rtol=1e-3, atol=1e-6)


def test_windows_count_epochs_from_1_and_the_barrier_steps_per_epoch(stage1, tmp_path):
    model = model_of(stage1, windows={"crf": [2, 2], "size": [3, -1]})
    seen = []
    loss = model.loss
    model.loss = lambda batch, output: (
        seen.append((model.current_epoch + 1, set(terms := loss(batch, output)))) or terms
    )
    trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(model, tiny_data())
    on = {epoch: terms for epoch, terms in seen}
    assert on == {1: {"seed"}, 2: {"seed", "crf"}, 3: {"seed", "size"}}
    (t,) = (v for k, v in model.state_dict().items() if k.startswith("size") and k.endswith("t"))
    assert float(t) == pytest.approx(1.01**3)


def test_where_all_terms_are_off_there_is_still_a_graph(stage1):
    model = model_of(stage1, windows={"seed": [5, -1]}, crf_weight=0.0, size_weight=0.0).train()
    batch = batch_of()
    total = sum(model.loss(batch, model(batch)).values())
    assert float(total.detach()) == 0
    total.backward()
    assert all(p.grad is not None for p in model.decoder.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampler", ["threshold", "probability", "uniform", "weighted"])
@pytest.mark.parametrize("cam", [0.0, 1.0, "half"])
def test_a_constant_map_gives_no_nan(stage1, dtype, sampler, cam):
    model = model_of(stage1, sampler=sampler).train()
    batch = batch_of()
    cams = torch.zeros(4, 48, 48) if cam == "half" else torch.full((4, 48, 48), cam)
    if cam == "half":
        cams[:2, 10:20, 10:20] = 1
    batch["cam"] = cams
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        total = sum(model.loss(batch, model(batch)).values())
    assert torch.isfinite(total)
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.decoder.parameters())


def test_from_an_epoch_on_the_best_decoder_seeds(stage1, tmp_path, monkeypatch):
    model = model_of(stage1, self_training_epoch=2, cam_source="live")
    cams, asked = [], []
    monkeypatch.setattr(
        model.sampler, "forward", lambda cam, generator: cams.append(cam) or cam.long()
    )
    seed_maps = model.seed_maps
    monkeypatch.setattr(model, "seed_maps", lambda b: asked.append(1) or seed_maps(b))
    run = trainer(
        tmp_path, max_epochs=2, enable_checkpointing=True,
        callbacks=[BestCheckpoint("cl"), BestCheckpoint("loc")],
    )  # fmt: skip
    data = tiny_data()
    run.fit(model, data)
    steps = len(data.train_dataloader())
    assert len(cams) == 2 * steps
    assert len(asked) == steps  # those of the first epoch
    best = wsl_zoo.load(next(tmp_path.rglob("best_loc.ckpt")))
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    output = best(batch)
    torch.testing.assert_close(model._best_map(output), best.localize(batch, output))


# What the losses are for --------------------------------------------------------------------------


def two_colours(size=32):
    """A red blob on green, slightly noisy, and its mask."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = ((rows - 14) ** 2 + ((columns - 18) / 1.5) ** 2) < 64
    raw = torch.where(mask, torch.tensor([190, 40, 40]).view(3, 1, 1),
                      torch.tensor([40, 160, 60]).view(3, 1, 1)).float()  # fmt: skip
    raw = (raw + 6 * torch.randn(3, size, size, generator=generator)).clamp(0, 255)
    return raw.to(torch.uint8)[None], mask[None]


def grown(stage1, crf_weight, steps=100):
    """Train a decoder on one image, with one seed of each kind per step near the blob's centre."""
    raw, mask = two_colours()
    model = model_of(stage1, crf_weight=crf_weight, size_weight=0.0, cam_source="live",
                     sampler_args={"ksz": 1}).train()  # fmt: skip
    batch = {"raw": raw, "image": raw.float() / 127.5 - 1, "label": torch.tensor([0])}
    cam = torch.zeros(1, 32, 32)
    cam[:, 4:28, 8:28] = 0.05 + 0.01 * torch.rand(20)  # half of the region is no object
    cam[:, 12:16, 14:22] = 1.0
    batch["cam"] = cam
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=3e-3)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        sum(model.loss(batch, model(batch)).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.localize(batch, model(batch)) > 0.5
    return float((found & mask).sum() / (found | mask).sum())


def test_a_seed_and_the_crf_find_a_blob_by_its_colour(stage1):
    with_crf, without = grown(stage1, crf_weight=4e-6), grown(stage1, crf_weight=0.0)
    assert with_crf > 0.9
    assert without < 0.8


def test_the_crf_draws_a_pixel_to_the_label_of_its_colour(stage1):
    model = model_of(stage1, seed_weight=0.0, size_weight=0.0)
    raw, mask = two_colours()
    logits = torch.zeros(1, 2, 32, 32)
    logits[:, 1] = torch.where(mask, 2.0, -2.0)
    odd = {"inside": (14, 20), "outside": (2, 2)}
    for row, column in odd.values():
        logits[0, 1, row, column] = 0.0
    logits.requires_grad_()
    model.loss({"raw": raw}, Output(map=logits, logits=torch.zeros(1, 4)))["crf"].backward()
    assert logits.grad[0, 1, 14, 20] < 0  # a step against it raises the foreground
    assert logits.grad[0, 1, 2, 2] > 0
