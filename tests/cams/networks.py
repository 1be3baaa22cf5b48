"""Small networks that the tests of the class maps read, and what they compare."""

import torch
from torch import Tensor, nn

from wsl_zoo import cams
from wsl_zoo.cams.activation import identity
from wsl_zoo.encoders import Encoder
from wsl_zoo.heads import WGAP

# Every class map but CAM, with few repetitions of what costs time.
GRADIENT: dict[str, dict] = {
    "GradCAM": {},
    "GradCAMpp": {},
    "SmoothGradCAMpp": {"samples": 2},
    "XGradCAM": {},
    "LayerCAM": {},
    "HiResCAM": {},
    "ElementWiseCAM": {},
    "EigenCAM": {},
    "EigenGradCAM": {},
}
CONFIDENCE: dict[str, dict] = {
    "ScoreCAM": {},
    "SSCAM": {"samples": 2},
    "ISCAM": {"samples": 2},
    "AblationCAM": {},
}
ALL = GRADIENT | CONFIDENCE


def make(name: str, encoder: nn.Module, head: nn.Module, layer: int | str = -1, **options):
    return getattr(cams, name)(encoder, head, layer, **{**ALL[name], **options})


def model(name: str = "test_resnet", classes: int = 4, **options):
    """An encoder and a linear head whose bias is not zero, in eval mode."""
    encoder = Encoder(name, **options).eval()
    head = WGAP(encoder.final_channels, classes).eval()
    nn.init.normal_(head.fc.bias)
    return encoder, head


class Through(nn.Module):
    """An encoder whose final map is the image itself."""

    def split(self, image: Tensor, layer: int | str = -1):
        return image, identity


class Curved(nn.Module):
    """A head whose gradients vary over positions and change their sign."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, 5, 3, padding=1)
        self.outer = nn.Conv2d(5, classes, 1)

    def forward(self, features: Tensor):
        maps = self.outer(self.inner(features).tanh())
        return maps.square().sum(dim=(2, 3)), maps


class Classifier(nn.Module):
    """Encoder and head as the one module that other libraries hook."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.encoder.final(image))[0]


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def pictures(count: int = 3, size: int = 64, classes: int = 4):
    return torch.randn(count, 3, size, size), torch.arange(count).flip(0) % classes
