import pytest
import torch
from torch.nn import functional as F

from tests.cases import trainer
from tests.methods.clips import BLUE, GREEN, RED, Shots, clip_batch
from tests.methods.test_fcam import model_of
from tests.methods.test_tcam import trained
from wsl_zoo.losses import SEED_IGNORE, JointColorCRF, seed_loss
from wsl_zoo.methods import FCAM, CoLoCAM
from wsl_zoo.methods.colocam import SEEDS

EXACT = {"joint_args": {"backend": "exact"}}


def maps_of(batch, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(batch["index"]), 2, 32, 32, generator=generator).softmax(1)


def joint(model, batch, probabilities):
    return model._mean(model.joint_energies(batch, probabilities), probabilities)


def test_single_frames_have_no_joint_term_and_train_as_fcam(stage1, tmp_path):
    with pytest.warns(UserWarning, match=r"no joint term on single frames: set data\.frames"):
        ours = trained(model_of(stage1, CoLoCAM), tmp_path, Shots(frames=1))
    fcam = model_of(
        stage1, FCAM, sampler="weighted", sampler_args=SEEDS, size_weight=0.01, step_size=5,
        gamma=0.9,
    )  # fmt: skip
    theirs = trained(fcam, tmp_path, Shots(frames=1))
    assert ours.losses == theirs.losses


def test_single_frames_give_a_zero_with_a_graph(stage1):
    model, batch = model_of(stage1, CoLoCAM), clip_batch((1, 1, 1))
    output = model(batch)
    terms = model.loss(batch, output)
    assert float(terms["joint"].detach()) == 0
    terms["joint"].backward()
    assert all((p.grad == 0).all() for p in model.decoder.parameters())


@pytest.mark.parametrize("counts", [(2, 2), (3, 1, 2), (1, 4)])
def test_the_adaptive_term_is_its_weight_and_obeys_euler(stage1, counts):
    model, batch = model_of(stage1, CoLoCAM, joint_weight=4.0, **EXACT), clip_batch(counts)
    probabilities = maps_of(batch).requires_grad_()
    value = model.hparams["joint_weight"] * joint(model, batch, probabilities)
    assert value.item() == pytest.approx(-4.0, rel=1e-6)
    value.backward()
    assert (probabilities * probabilities.grad).sum().item() == pytest.approx(-8.0, rel=1e-5)
    assert (probabilities.grad <= 0).all()
    alone = batch["sequence"].bincount()[batch["sequence"]] == 1
    assert (probabilities.grad[alone] == 0).all()
    assert (probabilities.grad[~alone] < 0).any()


def test_the_joint_term_is_the_mean_over_shots_with_neighbours(stage1):
    batch = clip_batch((2, 1, 3))
    probabilities = maps_of(batch)
    crf = JointColorCRF(backend="exact")
    parts = [(0, 2), (3, 6)]
    energies = torch.stack([crf(probabilities[a:b], batch["raw"][a:b]) for a, b in parts])
    constant = model_of(stage1, CoLoCAM, joint_adaptive=False, joint_weight=2e-9, **EXACT)
    found = joint(constant, batch, probabilities)
    torch.testing.assert_close(found, energies.mean())
    assert (energies < 0).all()


def test_the_adaptive_gradient_does_not_depend_on_the_scale_of_the_kernel(stage1):
    model, batch = model_of(stage1, CoLoCAM, **EXACT), clip_batch((3, 2))
    probabilities = maps_of(batch).requires_grad_()
    joint(model, batch, probabilities).backward()
    expected = probabilities.grad.clone()
    probabilities.grad = None
    energies = 1000.0 * model.joint_energies(batch, probabilities)
    model._mean(energies, probabilities).backward()
    torch.testing.assert_close(probabilities.grad, expected)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_identical_frames_grow_with_the_square_of_their_number(stage1, n):
    one = clip_batch((1,))
    probabilities = maps_of(one)
    single = JointColorCRF(backend="exact")(probabilities, one["raw"])
    batch = {"raw": one["raw"].expand(n, -1, -1, -1), "sequence": torch.zeros(n).long()}
    model = model_of(stage1, CoLoCAM, **EXACT)
    (found,) = model.joint_energies(batch, probabilities.expand(n, -1, -1, -1))
    torch.testing.assert_close(found, n**2 * single)


def test_neither_the_order_of_frames_nor_the_place_of_colours_matters(stage1):
    """Shuffling the pixels over all frames of a shot, with their maps, changes nothing."""
    model, batch = model_of(stage1, CoLoCAM, **EXACT), clip_batch((3,))
    probabilities = maps_of(batch)
    (expected,) = model.joint_energies(batch, probabilities)
    order = torch.tensor([2, 0, 1])
    (found,) = model.joint_energies(batch | {"raw": batch["raw"][order]}, probabilities[order])
    torch.testing.assert_close(found, expected)
    mixed = torch.randperm(3 * 32 * 32, generator=torch.Generator().manual_seed(0))

    def shuffled(frames):
        return frames.transpose(0, 1).flatten(1)[:, mixed].view(-1, 3, 32, 32).transpose(0, 1)

    (found,) = model.joint_energies(
        batch | {"raw": shuffled(batch["raw"])}, shuffled(probabilities)
    )
    torch.testing.assert_close(found, expected)


def test_colours_far_apart_send_no_gradient_between_frames(stage1):
    raw = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    raw[1] = 200
    batch = {"raw": raw, "sequence": torch.zeros(2).long()}
    model = model_of(stage1, CoLoCAM, **EXACT)
    probabilities = maps_of({"index": range(2)})

    def gradient_of_the_first(other):
        both = torch.stack([probabilities[0], other]).requires_grad_()
        model.joint_energies(batch, both).sum().backward()
        return both.grad[0]

    first = gradient_of_the_first(probabilities[1])
    second = gradient_of_the_first(probabilities[1].flip(0))
    torch.testing.assert_close(first, second)


def test_a_seed_in_one_frame_spreads_to_its_colour_in_the_other(stage1):
    """Red in both frames, at other places; seeds in the first frame only."""
    raw = torch.tensor(GREEN, dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 32, 32).clone()
    red, blue = torch.zeros(2, 32, 32).bool(), torch.zeros(2, 32, 32).bool()
    red[0, 4:12, 4:12] = red[1, 18:28, 16:28] = True
    blue[1, 2:10, 2:10] = True
    raw.transpose(0, 1)[:, red] = torch.tensor(RED, dtype=torch.uint8)[:, None]
    raw.transpose(0, 1)[:, blue] = torch.tensor(BLUE, dtype=torch.uint8)[:, None]
    seeds = torch.full((2, 32, 32), SEED_IGNORE)
    seeds[0, 6:9, 6:9] = 1
    seeds[0, 20:23, 20:23] = 0
    batch = {"raw": raw, "sequence": torch.zeros(2).long()}

    def after(sequence, steps=60):
        model = model_of(stage1, CoLoCAM, joint_weight=1.0)
        logits = torch.zeros(2, 2, 32, 32).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.1)
        for _ in range(steps):
            probabilities = logits.softmax(1)
            loss = seed_loss(logits, seeds)
            loss = loss + joint(model, batch | {"sequence": sequence}, probabilities)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return logits.softmax(1)[:, 1].detach()

    together = after(torch.tensor([0, 0]))
    assert together[1][red[1]].min() > 0.7
    assert together[1][blue[1]].max() < 0.6
    assert together[1][~red[1] & ~blue[1]].max() < 0.3
    apart = after(torch.tensor([0, 1]))
    torch.testing.assert_close(apart[1], torch.full((32, 32), 0.5))


def test_colours_are_those_before_normalisation(stage1):
    model, batch = model_of(stage1, CoLoCAM, **EXACT), clip_batch((2, 2))
    probabilities = maps_of(batch)
    expected = model.joint_energies(batch, probabilities)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.encoder.mean, model.encoder.std))
    image = (batch["raw"].float() / 255 - mean) / std
    without = {"image": image, "sequence": batch["sequence"]}
    torch.testing.assert_close(
        model.joint_energies(without, probabilities), expected, rtol=1e-4, atol=0
    )


def test_half_precision_gives_no_nan(stage1):
    model, batch = model_of(stage1, CoLoCAM).train(), clip_batch((2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(batch, model(batch))
    assert terms["joint"].dtype == torch.float32
    assert set(terms) == {"seed", "crf", "size", "joint"}
    sum(terms.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.decoder.parameters())


def test_the_energy_is_logged_and_windows_know_the_term(stage1, tmp_path):
    run = trainer(tmp_path, limit_val_batches=0, max_epochs=1)
    run.fit(model_of(stage1, CoLoCAM, joint_weight=3.0), Shots(frames=2, frame_style="random"))
    assert float(run.callback_metrics["train/joint"]) == pytest.approx(-3.0, rel=1e-5)
    assert float(run.callback_metrics["train/joint_energy"]) > 1e3
    model, batch = model_of(stage1, CoLoCAM, windows={"joint": [2, -1]}), clip_batch()
    assert "joint" not in model.loss(batch, model(batch))
    with pytest.raises(ValueError, match=r"'colour'.*seed, crf, size, entropy, joint"):
        CoLoCAM(windows={"colour": [1, 2]})


def test_the_published_defaults():
    model = CoLoCAM()
    s, h = model.sampler, model.hparams
    assert (s.fg, s.bg, s.ksz, s.max_p, s.min_p) == (1000, 1000, 3, 0.7, 0.1)
    assert (s.roi, s.roi_shape) == ("largest", "bbox")
    assert (h["joint_weight"], h["neighbors"], h["crf_weight"], h["size_weight"]) == (
        9.0, 0, 2e-9, 0.01,
    )  # fmt: skip
    assert (h["lr"], h["step_size"], h["gamma"]) == (0.01, 5, 0.9)
    changed = CoLoCAM(sampler_args={"fg": 5}).sampler
    assert (changed.fg, changed.bg, changed.roi_shape) == (5, 1000, "bbox")


def test_the_region_is_the_filled_box_of_the_largest_blob(stage1):
    """An L-shaped blob and a dot: seeds fall in the L's box, its empty corner included."""
    cam = torch.full((1, 32, 32), 0.1)
    cam[0, 4:24, 4:8] = cam[0, 20:24, 4:24] = 1.0
    cam[0, 28:30, 28:30] = 1.0
    cam[0, 10, 10] = 0.3  # Otsu's threshold itself, which is a blob too
    model = CoLoCAM(sampler_args={"ksz": 1, "max_p": 1.0, "bg": 0})
    seeds = model.sampler(cam, torch.Generator().manual_seed(0))[0] == 1
    box = F.pad(torch.ones(20, 20), (4, 8, 4, 8)).bool()
    assert not seeds[~box].any()
    assert seeds[4:19, 9:24].any()
