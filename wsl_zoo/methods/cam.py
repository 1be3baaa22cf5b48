"""CAM and its family: a classifier over a pooling head, and any class map read out of the two.

Paper: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016
(arXiv 1512.04150); with `head="gap"` Lin et al., "Network In Network", ICLR 2014 (arXiv 1312.4400);
the other heads and maps name their papers in `heads/` and `cams/`.
Loss: cross-entropy on the logits. Map: M_k(p) = sum_c W_kc A_c(p), no bias, no ReLU, min-max.

Head and map are chosen apart: `head` is trained, `cam` only reads, so one checkpoint can be tested
with every map (`wsl-zoo test --ckpt_path C --model.cam layercam`). Selection by localisation
(`best_loc`) is that of the map of the run, as in the survey (arXiv 1909.03354).

Deviations: no background row. The published code can carry one (`support_background`) and then
reads the map of class y from row y instead of y + 1; here class k is row k.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from wsl_zoo import cams, heads
from wsl_zoo.cams import ClassMap
from wsl_zoo.heads import PoolingHead
from wsl_zoo.methods.frozen import FreezableEncoder
from wsl_zoo.types import Batch, Output

HEADS: dict[str, type[PoolingHead]] = {
    "gap": heads.GAP,
    "wgap": heads.WGAP,
    "max": heads.MaxPool,
    "lse": heads.LogSumExp,
    "wildcat": heads.WILDCAT,
    "mil": heads.AttentionMIL,
    "prm": heads.PRM,
}
CAMS: dict[str, type[ClassMap]] = {
    "cam": cams.CAM,
    "gradcam": cams.GradCAM,
    "gradcampp": cams.GradCAMpp,
    "smooth_gradcampp": cams.SmoothGradCAMpp,
    "xgradcam": cams.XGradCAM,
    "layercam": cams.LayerCAM,
    "hirescam": cams.HiResCAM,
    "elementwise": cams.ElementWiseCAM,
    "eigencam": cams.EigenCAM,
    "eigengradcam": cams.EigenGradCAM,
    "scorecam": cams.ScoreCAM,
    "sscam": cams.SSCAM,
    "iscam": cams.ISCAM,
    "ablationcam": cams.AblationCAM,
    "peak": cams.PeakResponse,
}

Head = Literal["gap", "wgap", "max", "lse", "wildcat", "mil", "prm"]
Map = Literal[
    "cam", "gradcam", "gradcampp", "smooth_gradcampp", "xgradcam", "layercam", "hirescam",
    "elementwise", "eigencam", "eigengradcam", "scorecam", "sscam", "iscam", "ablationcam",
    "peak",
]  # fmt: skip


class CAMClassifier(FreezableEncoder):
    """Image classifier with a pooling head and class maps.

    Args:
        head: "wgap" pools, then classifies (CAM); "gap" classifies every position, then pools (the
            same function; its map holds the bias); "max", "lse", "wildcat", "mil", "prm": see
            `wsl_zoo.heads`.
        head_args: Arguments of the head, e.g. `{"r": 5.0}` of "lse".
        cam: Which map is read: "cam" is the head's own, the others see gradients ("gradcam",
            "gradcampp", "smooth_gradcampp", "xgradcam", "layercam", "hirescam", "elementwise",
            "eigencam", "eigengradcam") or scores of masked images ("scorecam", "sscam", "iscam",
            "ablationcam"), or the image's part in the peaks of head "prm" ("peak"); see
            `wsl_zoo.cams`.
        cam_layer: Layer that the map is read at, as `Encoder.split` takes it; -1: the final map.
        cam_args: Arguments of the map, e.g. `{"samples": 8}` of "smooth_gradcampp".
        **kwargs: See `FreezableEncoder` and `ZooModule`.
    """

    def __init__(
        self,
        head: Head = "wgap",
        head_args: dict[str, Any] | None = None,
        cam: Map = "cam",
        cam_layer: int | str = -1,
        cam_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.head = build(
            "head", HEADS, head, head_args, self.encoder.final_channels, self.num_classes
        )
        self.read_map(cam, cam_layer, cam_args)

    def read_map(
        self, cam: Map, layer: int | str = -1, cam_args: dict[str, Any] | None = None
    ) -> None:
        """Read another map from now on; arguments as of the constructor.

        Raises:
            ValueError: There is no such map, or it takes no such arguments.
        """
        self.class_maps: ClassMap = build(
            "cam", CAMS, cam, cam_args, self.encoder, self.head, layer
        )

    def forward(self, batch: Batch) -> Output:
        """Return `logits` (B, K), `map` (B, K, h, w) and `final` (B, C, h, w).

        There is no map where it is read of an encoder that gives one vector of the whole image.
        """
        final = self.final(batch)
        logits, maps = self.head(final)
        shows = self.encoder.has_map or not self.class_maps.reads_final
        return Output(logits=logits, map=maps if shows else None, final=final)

    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the cross-entropy, `ce`."""
        assert output.logits is not None
        return {"ce": F.cross_entropy(output.logits, batch["label"])}

    @property
    def drops_negative(self) -> bool:
        """Whether the papers of the chosen map set its negative scores to zero."""
        return self.class_maps.relu

    def class_map(self, batch: Batch, output: Output, index: Tensor) -> Tensor:
        """Return the raw maps (B, h, w) of the classes `index` (B,)."""
        if type(self.class_maps) is cams.CAM:
            return super().class_map(batch, output, index)
        if self.class_maps.reads_final:
            assert output.final is not None
            return self.class_maps.of_final(output.final, index)
        return self.class_maps(batch["image"], index)


def build(
    what: str, kinds: Mapping[str, Any], name: str, options: dict[str, Any] | None, *args: Any
) -> Any:
    """Make one of `kinds` by its name with `options` after `args`.

    Raises:
        ValueError: There is no such name or no such option; says which there are.
    """
    if name not in kinds:
        raise ValueError(f"{what}={name!r} must be one of {', '.join(kinds)}")
    try:
        return kinds[name](*args, **(options or {}))
    except TypeError as error:
        raise ValueError(f"{what}_args={options} of {kinds[name].__name__}: {error}") from error
