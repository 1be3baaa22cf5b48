"""ADL: a classifier whose features are at times robbed of, at times weighted by, their strongest.

Paper: Choe and Shim, "Attention-based Dropout Layer for Weakly Supervised Object Localization",
CVPR 2019 (arXiv 1908.10028).
Loss: cross-entropy. In training, at some layers, T = mean of the features F over channels, and
F <- F * 1[T < threshold max_p T] with probability `drop_rate`, else F <- F * sigmoid(T).
Map: CAM; in evaluation the layers do nothing.

One draw per layer and forward, for the whole batch; the maximum is the image's. The gradient passes
through sigmoid(T). The layer has no parameters and is a forward hook, so that weights keep their
names, which they do not where published code inserts it into a trunk.

Defaults are wsolevaluation's (arXiv 2001.07437), near the paper's. The histology survey's,
`drop_rate=0.4, threshold=0.1`, leave nothing of the features but what lies below a tenth of the
maximum. Where T may be negative (not after a ReLU: ViT, Swin, ConvNeXt) and is so everywhere,
nothing is dropped.
"""

from typing import Any

import torch
from torch import Tensor, nn

from wsl_zoo.encoders import Encoder, surgery
from wsl_zoo.methods.cam import CAMClassifier
from wsl_zoo.precision import at_least_float32

LEVELS = 3  # as many layers as the paper has


class ADL(CAMClassifier):
    """Classifier with attention-based dropout at several depths of its encoder.

    Args:
        drop_rate: Probability in [0, 1] of dropping instead of weighting.
        threshold: Fraction in [0, 1] of an image's maximum from which on features are dropped.
        layers: Names of the encoder's modules after which it is done. None: the paper's. VGG:
            after the third pooling, the fourth and the fifth group of convolutions; ResNet: after
            layer3.0, layer4.0 and the last block; InceptionV3: after Mixed_5d, Mixed_6e and the
            last block; any other network: after the last three levels of its pyramid.
        **kwargs: See `CAMClassifier`.

    Raises:
        ValueError: A number outside of [0, 1], a layer that the encoder does not have, or an
            encoder that is not trained.
    """

    def __init__(
        self,
        drop_rate: float = 0.75,
        threshold: float = 0.9,
        layers: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (0 <= drop_rate <= 1 and 0 <= threshold <= 1):
            raise ValueError(f"drop_rate={drop_rate}, threshold={threshold} must lie in [0, 1]")
        if kwargs.get("freeze_encoder"):
            raise ValueError("freeze_encoder=True would switch off what acts in the encoder")
        self.drop_rate = drop_rate
        self.threshold = threshold
        self.layers = positions(self.encoder) if layers is None else list(layers)
        modules = dict(self.encoder.model.named_modules())
        for name in self.layers:
            if name not in modules:
                raise ValueError(f"{self.encoder.name} has no layer {name!r}")
            modules[name].register_forward_hook(self._after)

    def _after(self, module: nn.Module, args: Any, features: Tensor) -> Tensor:
        # Maps are read with the encoder alone in eval mode, so its flag counts, not the method's.
        if not self.encoder.training:
            return features
        model = self.encoder.model
        drop = float(torch.rand(())) < self.drop_rate  # on the CPU: an accelerator need not wait
        if features.ndim == 4:
            channels = 3 if getattr(model, "output_fmt", "NCHW") == "NHWC" else 1
            return attend(features, drop, self.threshold, channels)
        prefix = int(getattr(model, "num_prefix_tokens", 0))  # class tokens stay as they are
        patches = attend(features[:, prefix:], drop, self.threshold, channels=2)
        return torch.cat([features[:, :prefix], patches], dim=1)


def attend(features: Tensor, drop: bool, threshold: float, channels: int = 1) -> Tensor:
    """Drop the strongest positions of features, or weight all of them.

    Args:
        features: `F (B, C, h, w)`, or another order of dimensions after the batch.
        drop: F * 1[T < threshold max_p T], else F * sigmoid(T).
        threshold: Fraction of the maximum of each image.
        channels: Dimension of the channels.

    Returns:
        Shape and type of `features`.
    """
    mean = at_least_float32(features).mean(dim=channels, keepdim=True)
    if drop:
        highest = mean.flatten(1).amax(dim=1).view(-1, *[1] * (mean.ndim - 1))
        return features * (mean < threshold * highest)
    return features * mean.sigmoid().to(features.dtype)


def positions(encoder: Encoder) -> list[str]:
    """Names of the modules after which the paper, or failing that this file, puts the layer."""
    model: Any = encoder.model
    family = surgery.family(model)
    if family == "ResNet":
        names = ["layer3.0", "layer4.0", f"layer4.{len(model.layer4) - 1}"]
    elif family == "VGG":
        pools = surgery.vgg_poolings(model)
        names = [f"features.{i}" for i in (pools[2], pools[3] - 1, pools[4] - 1)]
    elif family == "InceptionV3":
        names = ["Mixed_5d", "Mixed_6e", surgery.trunk_names(model)[-1]]
    else:
        names = encoder.level_modules[-LEVELS:]
    return list(dict.fromkeys(names))
