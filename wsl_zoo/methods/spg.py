"""SPG: confident pixels of a class map teach shallower maps, and those a deeper one.

Paper: Zhang et al., "Self-produced Guidance for Weakly-supervised Object Localization", ECCV 2018
(arXiv 1807.08902).
Loss: CE(s, y) + L(b2; T(minmax M_y; 0.7, 0.01)) + L(b1; T(sigmoid b2; 0.5, 0.05))
+ L(c; T((sigmoid b1 + sigmoid b2) / 2; 0.7, 0.1)), where T(Q; h, l) is 1 above h (if fewer than 30
pixels are: above 0.7 max Q), 0 below l (this rule wins), else ignored, and L is the mean binary
cross-entropy over all labelled pixels of the batch. All maps are upsampled to the image first;
targets carry no gradient.
Map: M_y; the branches b1, b2 and c are training's.

Deviations: L is 0 where no pixel is labelled (published code: 0/0), and maps are upsampled to the
size of the image, whatever it is (published code: 224).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsl_zoo.cams.normalize import normalize_map
from wsl_zoo.encoders import Encoder, surgery
from wsl_zoo.heads import GAP
from wsl_zoo.heads.pooling import xavier
from wsl_zoo.methods.base import ZooModule
from wsl_zoo.types import Batch, Output

THRESHOLDS = ((0.7, 0.01), (0.5, 0.05), (0.7, 0.1))
MIN_PIXELS = 30  # fewer are no object: the strongest pixels are taken instead
OF_MAXIMUM = 0.7
WIDTH = 512  # of the branch on the final map, and of the layers that a VGG gets


class SPG(ZooModule):
    """Classifier with three auxiliary single-channel maps that learn from its class map.

    The first two branches read two inner maps of the encoder. ResNet: after the first and after the
    last block of layer3; VGG: after its fourth and fifth group of convolutions, and two 3x3
    convolutions are added before the classifier unless `form="wsol"` has added conv6; any other
    network, and a ResNet with a single block there: the two levels before the last of its pyramid.

    Args:
        target_thresholds: Pairs (high, low) of the targets of b2, b1 and c. None: the paper's.
        **kwargs: See `ZooModule`.

    Raises:
        ValueError: `target_thresholds` are not three pairs of numbers in [0, 1], or the encoder's
            pyramid has fewer than three levels.
    """

    def __init__(self, target_thresholds: list[list[float]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        pairs = THRESHOLDS if target_thresholds is None else target_thresholds
        if [len(pair) for pair in pairs] != [2, 2, 2] or not all(
            0 <= value <= 1 for pair in pairs for value in pair
        ):
            raise ValueError(
                f"target_thresholds={target_thresholds} must be three pairs of numbers in [0, 1]"
            )
        self.target_thresholds = pairs
        encoder = self.encoder
        self.inner, channels = inner_maps(encoder)
        self.added: nn.Module = nn.Identity()
        final = encoder.final_channels
        if surgery.family(encoder.model) == "VGG" and self.hparams["form"] == "timm":
            self.added = nn.Sequential(conv_relu(final, WIDTH), conv_relu(WIDTH, WIDTH))
            final = WIDTH
        self.head = GAP(final, self.num_classes)
        width = channels[1]
        self.branch_1 = conv_relu(channels[0], width)
        self.branch_2 = conv_relu(channels[1], width)
        self.shared = nn.Sequential(conv_relu(width, width), xavier(nn.Conv2d(width, 1, 1)))
        self.branch_c = nn.Sequential(conv_relu(final, WIDTH), xavier(nn.Conv2d(WIDTH, 1, 1)))

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K), `map` (B, K, h, w), the head's `final`, two maps as `pyramid`."""
        final, inner = self._encode(batch["image"])
        final = self.added(final)
        logits, maps = self.head(final)
        return Output(logits=logits, map=maps, final=final, pyramid=inner)

    def _encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        if not self.inner:
            final, levels = self.encoder(image)
            return final, levels[-3:-1]
        x, inner = image, []
        for name, step in surgery.chain(self.encoder.model, self.inner):
            x = step(x)
            if name in self.inner:
                inner.append(x)
        return x, inner

    def branches(self, output: Output, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits b1, b2 and c, each (B, H, W)."""
        assert output.final is not None
        assert output.pyramid is not None
        first, second = output.pyramid
        return (
            upsample(self.shared(self.branch_1(first)), size),
            upsample(self.shared(self.branch_2(second)), size),
            upsample(self.branch_c(output.final), size),
        )

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the cross-entropies of the class, `ce`, and of the branches, `b1`, `b2`, `c`."""
        assert output.logits is not None
        height, width = batch["image"].shape[-2:]
        b1, b2, c = self.branches(output, (height, width))
        with torch.no_grad():
            maps = self.class_map(batch, output, batch["label"])
            scores = normalize_map(maps, (height, width), order="after_upsample")
            targets = [
                ternary(q, high, low)
                for q, (high, low) in zip(
                    (scores, b2.sigmoid(), (b1.sigmoid() + b2.sigmoid()) / 2),
                    self.target_thresholds,
                    strict=True,
                )
            ]
        return {
            "ce": F.cross_entropy(output.logits, batch["label"]),
            "b2": labelled_loss(b2, *targets[0]),
            "b1": labelled_loss(b1, *targets[1]),
            "c": labelled_loss(c, *targets[2]),
        }


def ternary(scores: Tensor, high: float, low: float) -> tuple[Tensor, Tensor]:
    """Label the confident pixels of scores in [0, 1].

    Args:
        scores: Q `(B, H, W)`.
        high: Above it a pixel is foreground; in images with fewer than 30 such pixels, above 0.7 of
            the maximum.
        low: Below it a pixel is background, whatever the rule before says.

    Returns:
        Foreground and background `(B, H, W)` bool, disjoint; the rest is ignored.
    """
    foreground = scores > high
    few = foreground.sum(dim=(1, 2), keepdim=True) < MIN_PIXELS
    strongest = scores > OF_MAXIMUM * scores.amax(dim=(1, 2), keepdim=True)
    background = scores < low
    return torch.where(few, strongest, foreground) & ~background, background


def labelled_loss(logits: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """Mean binary cross-entropy over labelled pixels of the batch; 0 if there are none."""
    labelled = foreground | background
    each = F.binary_cross_entropy_with_logits(logits, foreground.to(logits), reduction="none")
    return (each * labelled).sum() / labelled.sum().clamp(min=1)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, 1, h, w) -> (B, H, W)` float32, bilinear."""
    return F.interpolate(maps.float(), size, mode="bilinear", align_corners=False)[:, 0]


def conv_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 3x3 convolution and a ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    return nn.Sequential(xavier(conv), nn.ReLU())


def inner_maps(encoder: Encoder) -> tuple[list[str], list[int]]:
    """Names (empty: the pyramid's) and channels of the two maps that the first branches read."""
    model: Any = encoder.model
    family = surgery.family(model)
    if family == "ResNet" and len(model.layer3) > 1:
        return ["layer3.0", f"layer3.{len(model.layer3) - 1}"], [encoder.channels[-2]] * 2
    if family == "VGG":
        pools = surgery.vgg_poolings(model)
        return [f"features.{i - 1}" for i in pools[3:5]], [model.num_features] * 2
    if len(encoder.channels) < 3:
        raise ValueError(f"{encoder.name} has {len(encoder.channels)} levels, SPG needs three")
    return [], encoder.channels[-3:-1]
