"""Encoders that give one vector of the whole input: nothing of it can be split, nothing boosted."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from wsl_zoo.encoders.timm import Encoder


class VectorEncoder(Encoder):
    """Base of encoders whose final map has one position, and which are no timm network.

    A subclass calls `nn.Module.__init__` and sets the attributes of `Encoder` itself.
    """

    kind: ClassVar[str]
    """What it is an encoder of, for messages."""
    has_map = False

    def split(
        self, image: Tensor, layer: int | str = -1
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the result and the identity.

        Raises:
            ValueError: Another layer than -1: there is no map to read at it.
        """
        if layer != -1:
            raise ValueError(f"layer={layer!r}: of {self.kind} only -1, the result, can be read")
        return self.final(image), lambda activation: activation

    def layers(self) -> list[str]:
        """Return no names: `split` takes -1 only."""
        return []

    def boosted_parameters(self) -> list[nn.Parameter]:
        """Return none."""
        return []
