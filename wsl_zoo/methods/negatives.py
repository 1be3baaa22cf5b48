"""Images without a region: the class that tells them, and means over part of a batch."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from wsl_zoo.methods.base import ZooModule
from wsl_zoo.types import Batch, Output


class WithNegatives(ZooModule):
    """Base of methods that use the images of a data set's fully negative class as background.

    Args:
        negatives: Use them. None: where there is such a class; True refuses data without one;
            False: treat them as all others.
        **kwargs: See `ZooModule`.
    """

    def __init__(self, negatives: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.negative_class: int | None = None
        """The class whose images are background all over; the data set's, known in `setup`."""

    @abstractmethod
    def loss(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the weighted terms."""

    def setup(self, stage: str) -> None:
        """Ask the data set for its fully negative class.

        Raises:
            ValueError: It has none, but `negatives=True`.
        """
        super().setup(stage)
        wanted = self.hparams["negatives"]
        data = getattr(self.trainer, "datamodule", None)
        found = negative_class(data, "negatives=True" if stage == "fit" and wanted else None)
        self.negative_class = None if wanted is False else found

    def is_negative(self, batch: Batch) -> Tensor:
        """Return which images are background all over, (B,) bool."""
        return self.of_negative_class(batch["label"])

    def of_negative_class(self, label: Tensor) -> Tensor:
        """Return which labels (B,) are that class, bool."""
        if self.negative_class is None:
            return torch.zeros_like(label, dtype=torch.bool)
        return label == self.negative_class


def negative_class(data: Any, required_by: str | None = None) -> int | None:
    """Return the class of a data module whose images hold no region; None if it has none.

    Args:
        data: The trainer's data module, or None.
        required_by: The setting that cannot do without, for the message.

    Raises:
        ValueError: It has none, but `required_by` asks for one.
    """
    index: int | None = getattr(data, "negative_class", None)
    if required_by and index is None:
        raise ValueError(
            f"{required_by}: {type(data).__name__} has no class without a region "
            "(of your own images, name it with data.negatives)"
        )
    return index


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of those chosen of (B,) values; 0 with a graph of none."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)
