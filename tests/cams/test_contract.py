"""What every class map does alike: batches, modes, what it leaves untouched, and where it runs."""

import gc
import weakref

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.cams.networks import ALL, Curved, Through, make, model, pictures, relative
from wsl_zoo import cams
from wsl_zoo.cams import ClassMap, ScoreCAM, normalize_map
from wsl_zoo.cams.activation import identity
from wsl_zoo.heads import WGAP

EVERY = {"CAM": {}} | ALL
INNER = [(name, 1) for name in ALL]
PLACES = [(name, -1) for name in EVERY] + INNER


def build(name, encoder, head, layer=-1):
    return getattr(cams, name)(encoder, head, layer, **EVERY[name])


def test_every_map_is_here():
    """All but what reads one head only or makes a mask of a map: they have tests of their own."""
    exported = {n for n in cams.__all__ if isinstance(getattr(cams, n), type)} - {
        "ClassMap",
        "PeakResponse",
        "PseudoMask",
    }
    assert exported == set(EVERY)


@pytest.mark.parametrize("net", ["test_resnet", "test_vit"])
@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_batched_equals_looped(name, layer, net):
    encoder, head = model(net)
    image, target = pictures(3, 32 if getattr(cams, name).reads_image else 48)
    cam = build(name, encoder, head, layer)
    batched = cam(image, target)
    assert batched.shape == (3, *encoder.split(image, layer)[0].shape[2:])
    assert batched.isfinite().all()
    looped = torch.cat([cam(image[i : i + 1], target[i : i + 1]) for i in range(3)])
    assert relative(batched, looped) < 1e-5


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("SSCAM", "ISCAM")])
def test_grid_of_a_swin(name):
    encoder, head = model("swin_tiny_patch4_window7_224", img_size=56)
    image, target = pictures(1, 56)
    if name == "ScoreCAM":
        cam = make(name, encoder, head, layer=1, topk_channels=8)
    else:
        cam = build(name, encoder, head, -1 if name in ("CAM", "AblationCAM") else 1)
    maps = cam(image, target)
    assert maps.shape == ((1, 2, 2) if cam.layer == -1 else (1, 7, 7))
    assert maps.isfinite().all()
    assert maps.std() > 0


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_everything_is_left_as_it_was(name, layer):
    encoder, head = model()
    encoder.train()
    encoder.model.layer2.eval()
    head.train()
    parts = [*encoder.modules(), *head.modules()]
    parameters = [*encoder.parameters(), *head.parameters()]
    parameters[0].grad = torch.ones_like(parameters[0])
    flags = [part.training for part in parts]
    state = {k: v.clone() for k, v in {**encoder.state_dict(), **head.state_dict()}.items()}
    image, target = pictures(2, 32)
    copy = image.clone()
    image.requires_grad_()
    drawn = torch.get_rng_state()
    maps = build(name, encoder, head, layer)(image, target)
    assert not maps.requires_grad
    assert image.grad is None
    assert torch.equal(image, copy)
    assert [part.training for part in parts] == flags
    now = {**encoder.state_dict(), **head.state_dict()}
    assert all(torch.equal(value, state[key]) for key, value in now.items())
    assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0]))
    assert all(p.grad is None for p in parameters[1:])
    assert all(p.requires_grad for p in parameters)
    assert not any(part._forward_hooks or part._backward_hooks for part in parts)
    assert torch.equal(torch.get_rng_state(), drawn)  # nor are the draws of a training shifted
    encoder.eval()
    head.eval()
    assert torch.equal(build(name, encoder, head, layer)(image, target), maps)


@pytest.mark.parametrize("name", [n for n in EVERY if not getattr(cams, n).reads_image])
def test_a_final_map_in_a_graph_stays_as_it_was(name):
    head, target = WGAP(6, 3).train(), torch.tensor([1, 2])
    image = torch.rand(2, 6, 4, 4, requires_grad=True)
    final = image * 2
    copy = final.detach().clone()
    maps = build(name, Through(), head).of_final(final, target)
    assert head.training
    assert not maps.requires_grad
    assert torch.equal(final, copy)
    assert final.requires_grad
    final.sum().backward()
    assert torch.equal(image.grad, torch.full_like(image, 2.0))
    if name != "CAM":
        with pytest.raises(ValueError, match="cannot be read from the final map"):
            build(name, Through(), head, "layer3").of_final(final, target)


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_modes_of_torch(name, layer):
    encoder, head = model()
    image, target = pictures(2, 64 if "Eigen" in name else 32)
    cam = build(name, encoder, head, layer)
    expected = cam(image, target)
    with torch.no_grad():
        assert torch.equal(cam(image, target), expected)
    with torch.inference_mode():
        maps = cam(image.clone(), target.clone())
    assert torch.equal(maps, expected)
    assert torch.is_grad_enabled()
    double = cam.__class__(encoder.double(), head.double(), layer, **EVERY[name])
    exact = double(image.double(), target)
    assert exact.dtype == torch.float64
    assert relative(maps.double(), exact) < 1e-3


class Shallow(nn.Module):
    """One convolution and a ReLU: a deep random network amplifies what its own rounding does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def split(self, image, layer=-1):
        return self.conv(image).relu(), identity


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EVERY)
def test_autocast(name, dtype):
    encoder, head = Shallow(), WGAP(8, 4)
    image, target = pictures(2, 12)
    cam = build(name, encoder, head)
    full = normalize_map(cam(image, target), relu=cam.relu)
    with torch.autocast("cpu", dtype), torch.inference_mode():
        maps = cam(image, target)
    assert maps.dtype == torch.float32
    assert (normalize_map(maps, relu=cam.relu) - full).abs().max() < 2e-2


@pytest.mark.parametrize("name", EVERY)
def test_constant_features_give_zeros(name):
    encoder, target = Through(), torch.tensor([1, 2, 0])
    image = torch.stack([torch.full((6, 4, 4), value) for value in (0.0, 1.5, -2.0)])
    for head in (WGAP(6, 3), Curved(6, 3)):
        cam = build(name, encoder, head)
        for kind in (torch.float32, torch.float16, torch.bfloat16):
            with torch.autocast("cpu", kind, enabled=kind != torch.float32):
                maps = cam(image.to(kind), target)
            assert maps.isfinite().all()
            linear = isinstance(head, WGAP)
            if linear and kind == torch.float32:
                assert (maps.amax((1, 2)) - maps.amin((1, 2))).abs().max() < 1e-5


@pytest.mark.parametrize("name", [n for n in EVERY if n != "SmoothGradCAMpp"])
def test_horizontal_flip(name):
    """Mirror-symmetric kernels and odd sizes, for which a ResNet's strides are symmetric too.

    Smooth-GradCAM++ is left out: its noise is no mirror image.
    """
    encoder, head = model("resnet18")
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    image, target = pictures(2, 65)
    cam = build(
        name, encoder.double(), head.double(), -1 if name in ("CAM", "AblationCAM") else "layer1"
    )
    if isinstance(cam, ScoreCAM):
        cam.topk_channels = 4
    if name == "SSCAM":
        cam.sigma = 0.0
    maps = cam(image.double(), target)
    assert relative(cam(image.double().flip(-1), target), maps.flip(-1)) < 1e-4


def test_no_memory_is_kept():
    """What a call makes is gone when it returns, without the garbage collector."""
    seen = []

    class Watched(WGAP):
        def forward(self, features):
            out = super().forward(features)
            seen.extend(weakref.ref(x) for x in (features, *out) if x is not image)
            return out

    def tensors():
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    image, target = torch.rand(2, 6, 8, 8), torch.tensor([1, 2])
    maps = {name: build(name, Through(), Watched(6, 3)) for name in EVERY}
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        for name, cam in maps.items():
            for _ in range(100):
                cam(image, target)
            assert all(x() is None for x in seen), name
        assert tensors() <= before
    finally:
        gc.enable()


class Evaluation(pl.LightningModule):
    """Reads its maps where methods do, and keeps them."""

    def __init__(self, name: str, layer: int) -> None:
        super().__init__()
        self.encoder, self.head = model()
        self.cam: ClassMap = build(name, self.encoder, self.head, layer)
        self.maps: list[torch.Tensor] = []

    def validation_step(self, batch, batch_idx):
        image, target = batch
        final = self.encoder.final(image)
        self.head(final)
        maps = self.cam(image, target)
        if self.cam.layer == -1 and not self.cam.reads_image:
            torch.testing.assert_close(self.cam.of_final(final, target), maps)
        self.maps.append(maps)
        return maps

    test_step = predict_step = validation_step


@pytest.mark.parametrize(
    ("inference_mode", "precision"), [(True, "bf16-mixed"), (True, "32-true"), (False, "32-true")]
)
@pytest.mark.parametrize(
    ("name", "layer"), [*[(n, -1) for n in EVERY if n not in ("SSCAM", "ISCAM")], ("GradCAM", 1)]
)
def test_inside_a_trainer(name, layer, inference_mode, precision):
    module = Evaluation(name, layer).train()
    image, target = pictures(2, 64)
    loader = DataLoader(list(zip(image, target, strict=True)), batch_size=2)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        expected = module.cam(image, target)
    trainer = pl.Trainer(
        accelerator="cpu",
        inference_mode=inference_mode,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    for run in (trainer.validate, trainer.test, trainer.predict):
        run(module, loader)
    assert len(module.maps) == 3
    for maps in module.maps:
        assert maps.dtype == torch.float32
        assert relative(maps, expected) < 1e-5
    assert all(p.grad is None for p in module.parameters())
