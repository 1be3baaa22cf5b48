"""Final maps of a frozen encoder, computed once per image: in memory, and in a folder if asked.

Heads, folds and seeds over one frozen encoder read the same maps. In a folder these outlive the
run: a file is named by what its map depends on (image file, input size, weights, release), so it
is never out of date, and runs at the same time may share it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsl_zoo import __version__
from wsl_zoo.encoders.timm import Encoder
from wsl_zoo.files import write_array


class FeatureCache:
    """Calls `encoder.final` for images that it has not seen.

    Images must come the same each time: no augmentation. A map of C channels takes 4 C h w bytes,
    1 MB for 1280 channels of 14 x 14.

    Args:
        encoder: In eval mode, and never trained after the first call.
        folder: Where maps are kept too, as `<hash>.npy`; None: in memory only. Images that are no
            files (built-in ones) are kept in memory in any case.
    """

    def __init__(self, encoder: Encoder, folder: str | Path | None = None) -> None:
        self.encoder = encoder
        self.folder = None if folder is None else Path(folder)
        self._maps: dict[tuple[str, int, int], Tensor] = {}
        self._weights = b""

    def __call__(self, image: Tensor, paths: Sequence[str]) -> Tensor:
        """Return the final maps (B, C, h, w) of images (B, C, H, W) that come from `paths`."""
        height, width = image.shape[-2:]
        keys = [(path, height, width) for path in paths]
        files = {key: self._file(key) for key in keys if key not in self._maps}
        for key, file in files.items():
            if file is not None and file.is_file():
                self._maps[key] = torch.from_numpy(np.load(file))
        new = [i for i, key in enumerate(keys) if key not in self._maps]
        if new:
            for i, final in zip(new, self.encoder.final(image[new]).detach().cpu(), strict=True):
                self._maps[keys[i]] = final.float().clone()
                file = files[keys[i]]
                if file is not None:
                    write_array(file, self._maps[keys[i]].numpy())
        return torch.stack([self._maps[key] for key in keys]).to(image.device)

    def _file(self, key: tuple[str, int, int]) -> Path | None:
        """Return the file of a map; None where there is no folder, or no file to go by."""
        if self.folder is None:
            return None
        source = Path(key[0].partition("#")[0])  # a frame of a video is `<file>#<index>`
        if not source.is_file():
            return None
        stat = source.stat()
        parts = (os.path.abspath(key[0]), stat.st_mtime_ns, stat.st_size, *key[1:], __version__)
        name = hashlib.blake2b(repr(parts).encode() + self.digest(), digest_size=16).hexdigest()
        return self.folder / f"{name}.npy"

    def digest(self) -> bytes:
        """Return a hash of what the encoder computes: its form, and every weight."""
        if not self._weights:
            form = repr((self.encoder, self.encoder.mean, self.encoder.std))
            digest = hashlib.blake2b(form.encode())
            for name, value in self.encoder.state_dict().items():
                digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
            self._weights = digest.digest()
        return self._weights
