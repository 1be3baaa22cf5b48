"""The built-in data sets: procedural scenes and clips, rendered when asked for; no files."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.dataset import Source
from wsl_zoo.data.moving import Clip, render_clip
from wsl_zoo.data.scenes import TEXTURES, render_hue_scene, render_scene
from wsl_zoo.data.transforms import Sample
from wsl_zoo.data.video import VideoDataModule

Cue = Literal["texture", "hue"]
RENDER = {"texture": render_scene, "hue": render_hue_scene}
NEGATIVE = "none"

# Splits are disjoint ranges of the index of scenes or clips.
SPLIT_OFFSET = {"train": 0, "val": 10_000_000, "test": 20_000_000}
RECENT_CLIPS = 4  # kept by a source that keeps few

# A scene's boxes name the last pixel, a sample's the edge after it.
TO_EDGES = np.array([0, 0, 1, 1])


def _split_counts(classes: int, **counts: int) -> dict[str, int]:
    if min(counts.values()) < classes:
        sizes = ", ".join(f"{split}={count}" for split, count in counts.items())
        raise ValueError(f"{sizes}: every split needs all {classes} classes")
    return counts


class SceneSource:
    """Scenes of a range of indices.

    Args:
        count: How many.
        offset: Index of the first.
        seed: Seed of the scenes.
        size: Side in pixels.
        num_classes: Number K of classes.
        cue: What the class is: "texture" or "hue".
        negatives: With texture, one more class, of scenes without objects.
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
    ) -> None:
        self.count = count
        self.offset = offset
        self.seed = seed
        self.size = size
        self.render = partial(RENDER[cue], seed=seed, size=size, num_classes=num_classes)
        if negatives:
            self.render = partial(self.render, negatives=True)

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, *, annotations: bool) -> Sample:
        """Render scene `index`."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        scene = self.render(self.offset + index)
        return Sample(
            image=scene.image,
            label=scene.label,
            mask=scene.mask if annotations else None,
            boxes=scene.boxes + TO_EDGES if annotations else None,
            path=f"scene-{self.offset + index}",
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
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, cache=cache, **kwargs)
        least = 1 if negatives else 2
        if not least <= classes <= len(TEXTURES):
            raise ValueError(f"classes={classes} must be between {least} and {len(TEXTURES)}")
        if negatives and cue != "texture":
            raise ValueError(f'negatives=True needs cue="texture", got {cue!r}')
        self.counts = _split_counts(classes + negatives, train=train, val=val, test=test)
        if cue not in RENDER:
            raise ValueError(f"cue={cue!r} must be one of {', '.join(RENDER)}")
        self.classes = classes
        self.cue: Cue = cue
        self.negatives = negatives
        self.scene_seed = scene_seed

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
        self.counts = _split_counts(classes, train=train, val=val, test=test)
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
