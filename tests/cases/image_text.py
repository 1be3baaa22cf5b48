"""An image-text encoder in three dimensions, red, green and blue, that counts what it is asked."""

import threading

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WORDS = ("red", "green", "blue")


class FakeEncoder:
    """Images are embedded by their mean colour, texts by how often they name the three colours."""

    dim = 3
    name = "fake"

    def __init__(self, bias: float = 0.01) -> None:
        self.bias = bias
        self.batches: list[int] = []
        self.texts: list[list[str]] = []
        self.threads: set[int] = set()

    def prepare(self, picture: np.ndarray) -> Tensor:
        self.threads.add(threading.get_ident())
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        colour = torch.from_numpy(picture.reshape(-1, 3).mean(axis=0)).float() / 255
        return colour[:, None, None].expand(3, 2, 2)

    def encode_images(self, image: Tensor) -> Tensor:
        self.batches.append(len(image))
        return F.normalize(image.mean(dim=(2, 3)) + self.bias, dim=1)

    def encode_texts(self, texts: list[str], batch_size: int = 64) -> Tensor:
        self.texts.append(list(texts))
        counts = [[text.lower().split().count(word) for word in WORDS] for text in texts]
        return F.normalize(torch.tensor(counts).float() + self.bias, dim=1)

    def cut(self, texts: list[str]) -> list[bool]:
        return [len(text.split()) > 4 for text in texts]

    def digest(self) -> bytes:
        return repr(self.bias).encode()
