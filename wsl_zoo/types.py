"""The two contracts that everything in the zoo meets: what a batch holds and what a model returns.

Letters in shapes, here and everywhere: `B` batch, `T` frames, `E` exams, `V` views, `C` channels,
`K` classes, `H W` image, `h w` feature map, `N` data-set size, `D` feature size, `Y` horizons.
"""

from dataclasses import dataclass, field
from typing import Literal, TypedDict

from torch import Tensor

IGNORE = 255
"""Mask value of pixels that neither count as foreground nor as background."""

Target = Literal["label", "pred"] | int
"""Whose map to read: the label's (GT-known protocol), the predicted class's, or a fixed class's."""


class Batch(TypedDict, total=False):
    """What a data module gives and a method reads. Every key but `index` is optional."""

    index: Tensor
    """(B,) int64, position of the sample in its split."""
    image: Tensor
    """(B, C, H, W) float | (B, T, C, H, W) clips | (B, E, V, C, H, W) exams, normalised."""
    raw: Tensor
    """(B, 3, H, W) uint8, the same pixels before the jitter of colours and normalisation."""
    features: Tensor
    """(B, D) | (B, E, D) float, pre-computed or tabular features."""
    label: Tensor
    """(B,) int64 in [0, K)."""
    mask: Tensor
    """(B, H, W) uint8: 1 foreground, 0 background, 255 ignored."""
    has_mask: Tensor
    """(B,) bool: False where the image has no mask (its `mask` is all 255)."""
    pseudo: Tensor
    """(B,) bool: True where a model drew the mask, False where an annotator did."""
    boxes: list[Tensor]
    """B tensors (n, 4) float64 xyxy, in pixels of the evaluation size, untruncated; n may be 0."""
    valid: Tensor
    """(B,) bool: False for the copies by which a distributed sampler pads the last round."""
    cam: Tensor
    """(B, H, W) float in [0, 1], class map that followed the geometry of its image."""
    target: Tensor
    """(B, C, H, W) float, high-resolution image."""
    levels: Tensor
    """(B,) int64, highest grey level of the file type of image and target: 255 or 65535."""
    text: Tensor
    """(B, D) float, text features."""
    report: Tensor
    """(B,) int64, position in its corpus of the report that an image is paired with."""
    frame_mask: Tensor
    """(B, T) bool, real frames."""
    exam_mask: Tensor
    """(B, E) bool, real exams."""
    view_mask: Tensor
    """(B, E, V) bool, real views of an exam."""
    exam_time: Tensor
    """(B, E) float, when each exam took place."""
    event: Tensor
    """(B,) bool, the event was observed."""
    time: Tensor
    """(B,) float, time of the event or of censoring."""
    subset: Tensor
    """(B, S) bool, which of S evaluation subsets a sample belongs to; metrics are their means."""
    sequence: Tensor
    """(B,) int64, which shot of the batch a frame belongs to, from 0."""
    frame: Tensor
    """(B,) int64, position of a frame in its shot."""
    group: list[str]
    """B group names (patient, video, centre)."""
    path: list[str]
    """B sources of the images, for messages and written predictions."""
    size: Tensor
    """(B, 2) int64, (height, width) of the image before any resizing."""


@dataclass
class Output:
    """What `forward` returns: raw scores, never activated or normalised. All are optional."""

    logits: Tensor | None = None
    """(B, K) class scores."""
    map: Tensor | None = None
    """(B, K', h, w) raw localisation scores."""
    final: Tensor | None = None
    """(B, C, h, w) the encoder's last map."""
    pyramid: list[Tensor] | None = None
    """The encoder's maps, shallow to deep."""
    embedding: Tensor | None = None
    """(B, D) pooled features."""
    sr: Tensor | None = None
    """(B, C, H, W) super-resolved image."""
    hazard: Tensor | None = None
    """(B, Y) risk per horizon."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Branches and intermediates that a method's own loss reads."""
