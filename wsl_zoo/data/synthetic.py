"""The built-in data set: procedural scenes, rendered when they are asked for; no files."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np

from wsl_zoo.data.base import ZooDataModule
from wsl_zoo.data.dataset import Source
from wsl_zoo.data.scenes import TEXTURES, render_hue_scene, render_scene
from wsl_zoo.data.transforms import Sample

Cue = Literal["texture", "hue"]
RENDER = {"texture": render_scene, "hue": render_hue_scene}
NEGATIVE = "none"

# Splits are disjoint ranges of the scene index.
SPLIT_OFFSET = {"train": 0, "val": 10_000_000, "test": 20_000_000}


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
            # A scene's boxes name the last pixel, a sample's the edge after it.
            boxes=scene.boxes + np.array([0, 0, 1, 1]) if annotations else None,
            path=f"scene-{self.offset + index}",
            size=(self.size, self.size),
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
        if min(train, val, test) < classes + negatives:
            raise ValueError(
                f"train={train}, val={val}, test={test}: every split needs all "
                f"{classes + negatives} classes"
            )
        self.counts = {"train": train, "val": val, "test": test}
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
                self.train_resize,
                self.classes,
                self.cue,
                self.negatives,
            )
            for split, count in self.counts.items()
        }
