"""Adaptation on two processes (gloo): the same look at all images, the same statistics, one model.

Starting processes takes seconds: two do all there is to do, one fit after the other.
"""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_lightning import Callback
from pytorch_lightning.plugins.environments import LightningEnvironment

import wsl_zoo
from tests.cases import trainer
from tests.cases.adaptation import arguments, tiny
from tests.methods.test_adaptation import METHODS, pixel_model_of, pixelcam_of
from wsl_zoo.data.transforms import normalize
from wsl_zoo.encoders.mixed_norm import norm_statistics
from wsl_zoo.losses import marginal_entropy
from wsl_zoo.methods import SFDE, SHOT, AdaDSA, SFDADeP
from wsl_zoo.types import Output

WORLD = 2
# 21 images on 2 processes: the sampler pads one. One by one, since the last bits of a feature
# depend on the batch that its image is in.
UNEVEN = {"train": 21, "batch_size": 8, "eval_batch_size": 1}


class Note(Callback):
    """Keeps what the first look found, and what SHOT says of given predictions."""

    def on_train_start(self, trainer, pl_module):
        look = pl_module.look
        self.banks = []
        pl_module.look = lambda: self.banks.append(look()) or self.banks[-1]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.pseudo = pl_module.pseudo
            if isinstance(pl_module, SHOT):
                self.diversity = {}
                for sync in (True, False):
                    pl_module.hparams["sync_diversity"] = sync
                    own = joint_logits().chunk(trainer.world_size)[trainer.global_rank]
                    logits = own.detach().requires_grad_()
                    index = torch.arange(len(logits))
                    terms = pl_module.adaptation_loss({"index": index}, Output(logits=logits))
                    terms["diversity"].backward()
                    self.diversity[sync] = float(terms["diversity"].detach()), logits.grad
                pl_module.hparams["sync_diversity"] = True


def joint_logits():
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()


def fit(method, source, folder, data):
    """Two steps; returns the model and what was noted."""
    settings = {"max_steps": 2, "limit_val_batches": 0, "callbacks": [note := Note()]}
    if dist.is_initialized():
        settings |= {"devices": WORLD, "strategy": "ddp", "plugins": [LightningEnvironment()]}
    model = pixel_model_of(method, source, norm_mode="eval", lr=0.01)
    trainer(folder, **settings).fit(model, data)
    return model, note


def work(rank, source, folder):
    if "lo" in [name for _, name in socket.if_nameindex()]:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["LOCAL_RANK"] = str(rank)  # Lightning starts no processes of its own
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    found, data = {}, tiny(**UNEVEN)
    for method in METHODS:
        model, note = fit(method, source, folder, data)
        noted = {"bank": note.banks[0], "pseudo": note.pseudo, "weights": model.state_dict()}
        found[method.__name__] = noted
        if method is SHOT:
            found["diversity"] = note.diversity
    # 6 and 6 images in batches of 3, or 7 and 6: the last batch of the second is padding alone.
    for count in (12, 13):
        model, _ = fit(AdaDSA, source, folder, tiny(train=count, batch_size=3))
        found[count] = [(norm.target_mean, norm.target_var) for norm in model.mixed]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return pixelcam_of(arguments(folder)["source"], folder)


@pytest.fixture(scope="module")
def ranks(source, tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(work, args=(source, str(folder)), nprocs=WORLD, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", [SHOT, SFDE, SFDADeP])
def test_two_processes_find_what_one_finds(ranks, source, tmp_path, method):
    _, note = fit(method, source, tmp_path, tiny(**UNEVEN))
    for found in ranks:
        assert_same(found[method.__name__]["bank"], note.banks[0])
        assert_same(found[method.__name__]["pseudo"], note.pseudo)
    assert len(note.pseudo["prediction"]) == 21
    assert len(note.pseudo["prediction"].unique()) == 2


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_end_with_equal_weights(ranks, source, method):
    first, second = (found[method.__name__]["weights"] for found in ranks)
    assert_same(first, second)
    start = wsl_zoo.load(source).state_dict()
    assert any(not torch.equal(first[key], value) for key, value in start.items() if key in first)


def test_diversity_is_that_of_the_joint_batch(ranks):
    logits = joint_logits()
    expected = -0.144 * marginal_entropy(logits.softmax(1))
    expected.backward()
    for rank, found in enumerate(ranks):
        value, gradient = found["diversity"][True]
        assert value == pytest.approx(float(expected.detach()), rel=1e-6)
        # The processes' gradients are averaged afterwards.
        torch.testing.assert_close(gradient / WORLD, logits.grad.chunk(WORLD)[rank])


def test_without_synchronising_diversity_is_that_of_the_own_batch(ranks):
    for rank, found in enumerate(ranks):
        own = joint_logits().detach().chunk(WORLD)[rank]
        expected = -0.144 * marginal_entropy(own.softmax(1))
        assert found["diversity"][False][0] == pytest.approx(float(expected), rel=1e-6)


def measured(source, count, world=WORLD):
    """What the source's batch norms see of the images of each process."""
    start, dataset = wsl_zoo.load(source), tiny(train=count).dataset("train")
    dataset.augment = None
    images = torch.stack([dataset[i]["image"] for i in range(count)])
    images = normalize(images, start.encoder.mean, start.encoder.std)
    shares = [images[rank::world].split(3) for rank in range(world)]
    return [norm_statistics(start.encoder, share, torch.device("cpu")) for share in shares]


@pytest.mark.parametrize("count", [12, 13])
def test_statistics_of_the_target_are_pooled_by_numbers_of_images(ranks, source, count):
    shares = measured(source, count)
    numbers = torch.tensor([share[2] for share in shares])
    weights = (numbers / numbers.sum())[:, None]
    for found in ranks:
        for k, (mean, var) in enumerate(found[count]):
            means = torch.stack([share[0][k] for share in shares])
            variances = torch.stack([share[1][k] for share in shares])
            first = (weights * means).sum(0)
            torch.testing.assert_close(mean, first, atol=1e-5, rtol=1e-4)
            between = (weights * (means - first) ** 2).sum(0)
            expected = (weights * variances).sum(0) + between
            torch.testing.assert_close(var, expected, atol=1e-4, rtol=1e-3)
    if count == 12:  # of equal shares; what the first one sees does not depend on the batch
        alone, _, _ = measured(source, count, world=1)[0]
        torch.testing.assert_close(ranks[0][count][0][0], alone[0], atol=1e-5, rtol=1e-4)
