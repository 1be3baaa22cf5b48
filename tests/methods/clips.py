"""A tiny set of coloured shots, and batches of them, for the methods that read videos."""

import numpy as np
import torch

from wsl_zoo.data import VideoDataModule
from wsl_zoo.data.transforms import Sample

RED, GREEN, BLUE = (200, 30, 30), (30, 180, 60), (30, 60, 200)


class Shots(VideoDataModule):
    """A red square on green that moves by `step` pixels per frame; four shots, one per class."""

    class_names = ("0", "1", "2", "3")
    has_masks = True
    has_boxes = True

    def __init__(self, length=4, step=6, size=32, **kwargs):
        super().__init__(**{"image_size": size, "batch_size": 8, "hflip": 0.0} | kwargs)
        self.length, self.step, self.size = length, step, size
        self._shots = [range(k * length, (k + 1) * length) for k in range(4)]

    def read(self):
        return {"train": self, "val": self}

    def shots(self, split="train"):
        return self._shots

    def __len__(self):
        return 4 * self.length

    def load(self, index, *, annotations):
        shot, frame = divmod(index, self.length)
        x, y = 2 + self.step * frame, 4 + 5 * shot
        mask = np.zeros((self.size, self.size), np.uint8)
        mask[y : y + 8, x : x + 8] = 1
        image = np.where(mask[..., None], RED, GREEN).astype(np.uint8)
        boxes = np.array([(x, y, x + 8, y + 8)], np.float64)
        return Sample(
            image, shot, mask if annotations else None, boxes if annotations else None,
            path=f"{shot}/{frame}.png", size=mask.shape, group=str(shot),
        )  # fmt: skip


def clip_batch(counts=(2, 2), size=32, seed=0):
    """A batch of shots with so many frames each, of random colours."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    raw = torch.randint(0, 256, (total, 3, size, size), generator=generator, dtype=torch.uint8)
    sequence = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return {
        "index": torch.arange(total),
        "raw": raw,
        "image": raw.float() / 255 - 0.5,
        "label": sequence % 4,
        "sequence": sequence,
        "cam": torch.rand(total, size, size, generator=generator),
    }
