"""The built-in data sets: procedural scenes and clips, rendered when asked for; no files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.dataset import Source
from wsl_zoo.data.moving import Clip, render_clip
from wsl_zoo.data.scenes import TEXTURES, render_hue_scene, render_scene
from wsl_zoo.data.shift import check_shift, shift_image
from wsl_zoo.data.transforms import Sample
from wsl_zoo.data.video import VideoDataModule

Cue = Literal["texture", "hue"]
RENDER = {"texture": render_scene, "hue": render_hue_scene}
NEGATIVE = "none"

# Splits are disjoint ranges of the index of scenes or clips.
SPLIT_OFFSET = {"train": 0, "val": 10_000_000, "test": 20_000_000}
SHIFT_STREAM = 1  # apart from the numbers that a scene of the same seed and index is drawn from
RECENT_CLIPS = 4  # kept by a source that keeps few

# A scene's boxes name the last pixel, a sample's the edge after it.
TO_EDGES = np.array([0, 0, 1, 1])


def split_counts(classes: int, **counts: int) -> dict[str, int]:
    """Return the sizes of splits.

    Raises:
        ValueError: One of them is smaller than the number of classes.
    """
    if min(counts.values()) < classes:
        sizes = ", ".join(f"{split}={count}" for split, count in counts.items())
        raise ValueError(f"{sizes}: every split needs all {classes} classes")
    return counts


def class_counts(count: int, proportions: Sequence[float]) -> list[int]:
    """Divide `count` among classes by the largest remainder; of equal ones, the first class's.

    >>> class_counts(10, [0.5, 0.26, 0.24])
    [5, 3, 2]
    """
    shares = [count * part / math.fsum(proportions) for part in proportions]
    counts = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda k: (round(counts[k] - shares[k], 9), k))
    for k in order[: count - sum(counts)]:
        counts[k] += 1
    return counts


def check_proportions(proportions: Sequence[float], names: Sequence[str], count: int) -> None:
    """Refuse parts of classes that are not one each, above 0, 1 in all and an image at least.

    Raises:
        ValueError: They are none.
    """
    given = f"proportions={list(proportions)}"
    if len(proportions) != len(names):
        raise ValueError(f"{given}: expected {len(names)} numbers, for {', '.join(names)}")
    if not all(0 < part <= 1 for part in proportions):
        raise ValueError(f"{given}: every class needs a part above 0")
    if abs(math.fsum(proportions) - 1) > 1e-6:
        raise ValueError(f"{given}: they sum to {math.fsum(proportions):.6g}, not to 1")
    for name, images in zip(names, class_counts(count, proportions), strict=True):
        if not images:
            raise ValueError(f"{given}: of train={count} images class {name!r} would get none")


def scenes_of(counts: Sequence[int], offset: int) -> list[int]:
    """Return the first so many scenes of every class from `offset` on, sorted.

    Of K classes, class k has the scenes k, k + K, k + 2K, ..., so that like counts give a range.
    """
    classes = len(counts)
    first = [offset + (k - offset) % classes for k in range(classes)]
    return sorted(first[k] + classes * j for k in range(classes) for j in range(counts[k]))


class SceneSource:
    """Scenes of a range of indices, or of those that give classes their proportions.

    Args:
        count: How many.
        offset: Index of the first.
        seed: Seed of the scenes.
        size: Side in pixels.
        num_classes: Number K of classes.
        cue: What the class is: "texture" or "hue".
        negatives: With texture, one more class, of scenes without objects.
        shift: Strengths of the changes of `data/shift.py`; None: none.
        proportions: Parts of the classes, "none" last; None: successive scenes, alike in number.
    """

    has_masks = True
    has_boxes = True

    def __init__(
        self,
        count: int,
        offset: int,
        seed: int,
        size: int,
        num_classes: int,
        cue: Cue = "texture",
        negatives: bool = False,
        shift: Mapping[str, float] | None = None,
        proportions: Sequence[float] | None = None,
    ) -> None:
        self.count = count
        self.offset = offset
        self.seed = seed
        self.size = size
        self.render = partial(RENDER[cue], seed=seed, size=size, num_classes=num_classes)
        if negatives:
            self.render = partial(self.render, negatives=True)
        self.shift = shift or {}
        self.scenes: Sequence[int] = range(offset, offset + count)
        """Index of the scene at every position."""
        if proportions is not None:
            self.scenes = scenes_of(class_counts(count, proportions), offset)

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Render the scene at position `index`."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        number = self.scenes[index]
        scene = self.render(number)
        return Sample(
            image=shift_image(scene.image, self.shift, (self.seed, number, SHIFT_STREAM)),
            label=scene.label,
            mask=scene.mask if annotations else None,
            boxes=scene.boxes + TO_EDGES if annotations else None,
            path=f"scene-{number}",
            size=(self.size, self.size),
        )


class ClipSource:
    """Frames of the clips of a range of indices, clip by clip.

    Args:
        count: How many clips.
        offset: Index of the first.
        frames: Number T of frames of a clip.
        keep: Clips kept in memory, those used last; None: all.
        **options: As of `render_clip`.
    """

    has_masks = True
    has_boxes = True

    def __init__(
        self, count: int, offset: int, frames: int, keep: int | None = RECENT_CLIPS, **options: Any
    ) -> None:
        self.offset = offset
        self.frames = frames
        self.keep = keep
        self.options = options | {"frames": frames}
        self.shots = [range(i * frames, (i + 1) * frames) for i in range(count)]
        self._clips: dict[int, Clip] = {}  # in the order of their last use

    def __len__(self) -> int:
        return len(self.shots) * self.frames

    def clip(self, index: int) -> Clip:
        """Return clip `index`, rendered if it is not in memory."""
        clip = self._clips.pop(index, None) or render_clip(self.offset + index, **self.options)
        self._clips[index] = clip
        if self.keep is not None and len(self._clips) > self.keep:
            del self._clips[next(iter(self._clips))]
        return clip

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Return frame `index % T` of clip `index // T`."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        number, frame = divmod(index, self.frames)
        clip = self.clip(number)
        image, mask = clip.images[frame], clip.masks[frame]
        name = f"clip-{self.offset + number}"
        return Sample(
            image=image,
            label=clip.label,
            mask=mask if annotations else None,
            boxes=clip.boxes[frame] + TO_EDGES if annotations else None,
            group=name,
            path=f"{name}/{frame}",
            size=(image.shape[0], image.shape[1]),
        )


class SyntheticData(ZooDataModule):
    """Textured objects on textured ground with labels, masks and boxes; the class is the texture.

    With `cue="hue"` it is the colour of one object on grey ground, easy enough for a small ViT that
    starts from random weights.

    Args:
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.
        classes: Number K of classes.
        cue: What the class is: "texture" or "hue".
        negatives: With texture, one more class, "none", whose images hold no object.
        scene_seed: Seed of the scenes (apart from `seed`, so that runs share their data).
        image_size: Side of the images in pixels.
        cache: Keep rendered scenes in memory.
        shift: Another domain, for all splits: strengths in [0, 1] of "stain", "blur" and "scanner"
            (see `data/shift.py`); None: none. Objects, masks and boxes stay where they are.
        proportions: Part of every class in the training split, in the order of `class_names`;
            None: alike. The other splits are balanced in any case.
        **kwargs: See `ZooDataModule`.
    """

    def __init__(
        self,
        train: int = 800,
        val: int = 100,
        test: int = 200,
        classes: int = 4,
        cue: Cue = "texture",
        negatives: bool = False,
        scene_seed: int = 0,
        image_size: int = 96,
        cache: bool = True,
        shift: dict[str, float] | None = None,
        proportions: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, cache=cache, **kwargs)
        least = 1 if negatives else 2
        if not least <= classes <= len(TEXTURES):
            raise ValueError(f"classes={classes} must be between {least} and {len(TEXTURES)}")
        if negatives and cue != "texture":
            raise ValueError(f'negatives=True needs cue="texture", got {cue!r}')
        self.counts = split_counts(classes + negatives, train=train, val=val, test=test)
        if cue not in RENDER:
            raise ValueError(f"cue={cue!r} must be one of {', '.join(RENDER)}")
        self.classes = classes
        self.cue: Cue = cue
        self.negatives = negatives
        self.scene_seed = scene_seed
        self.shift = check_shift(shift or {})
        self.proportions = proportions
        if proportions is not None:
            check_proportions(proportions, self.class_names, train)

    @property
    def class_names(self) -> list[str]:
        """Names of the textures, or numbers of the hues; "none" last, with `negatives`."""
        if self.cue == "hue":
            return [f"hue {k}" for k in range(self.classes)]
        return [*TEXTURES[: self.classes], *([NEGATIVE] if self.negatives else [])]

    @property
    def negative_class(self) -> int | None:
        """The class "none", with `negatives`."""
        return self.classes if self.negatives else None

    def read(self) -> dict[str, Source]:
        """Return a source per split."""
        return {
            split: SceneSource(
                count,
                SPLIT_OFFSET[split],
                self.scene_seed,
                max(self.train_size),
                self.classes,
                self.cue,
                self.negatives,
                self.shift,
                self.proportions if split == "train" else None,
            )
            for split, count in self.counts.items()
        }


class SyntheticVideoData(VideoDataModule):
    """Clips of one textured object moving before a moving ground; the class is the texture.

    Every frame of a training clip may be drawn; every frame of the others is evaluated. With
    `leave`, some of those frames show no object.

    Args:
        train: Number of training clips.
        val: Number of validation clips.
        test: Number of test clips.
        frames_per_clip: Number T of frames of a clip.
        classes: Number K of classes.
        motion: See `render_clip`, as of the next four.
        turn: See there.
        wander: See there.
        camera: See there.
        leave: See there.
        scene_seed: Seed of the clips (apart from `seed`, so that runs share their data).
        image_size: Side of the images in pixels.
        cache: Keep rendered clips in memory (at 96 pixels 0.3 MB per clip of 8 frames).
        **kwargs: See `VideoDataModule`.
    """

    def __init__(
        self,
        train: int = 200,
        val: int = 20,
        test: int = 40,
        frames_per_clip: int = 8,
        classes: int = 4,
        motion: tuple[float, float] = (0.0, 0.02),
        turn: tuple[float, float] = (0.0, 0.1),
        wander: tuple[float, float] = (0.8, 1.4),
        camera: tuple[float, float] = (0.0, 0.02),
        leave: float = 0.0,
        scene_seed: int = 0,
        image_size: int = 96,
        cache: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, cache=cache, **kwargs)
        if not 2 <= classes <= len(TEXTURES):
            raise ValueError(f"classes={classes} must be between 2 and {len(TEXTURES)}")
        self.counts = split_counts(classes, train=train, val=val, test=test)
        self.classes = classes
        self.options: dict[str, Any] = {
            "frames": frames_per_clip,
            "seed": scene_seed,
            "size": max(self.train_size),
            "num_classes": classes,
            "motion": motion,
            "turn": turn,
            "wander": wander,
            "camera": camera,
            "leave": leave,
        }
        render_clip(0, **self.options)  # refuses bad options here, not when training has begun

    @property
    def class_names(self) -> list[str]:
        """Names of the textures."""
        return list(TEXTURES[: self.classes])

    def read(self) -> dict[str, Source]:
        """Return a source per split."""
        keep = None if self.cache else RECENT_CLIPS
        return {
            split: ClipSource(count, SPLIT_OFFSET[split], keep=keep, **self.options)
            for split, count in self.counts.items()
        }
