"""Features of images and texts by an image-text encoder, made once and kept in files.

A file holds the features of one split, or of one corpus, and is named by all that they depend on:
the model's digest, the release, and the texts, or the images by path, size and time of change (of
images that are no files, their pixels). So it is never out of date, and calls may share a folder.
Until it is whole its parts are files as well: what is stopped goes on from the last of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from wsl_zoo import __version__
from wsl_zoo.data.dataset import RecordSource, Source
from wsl_zoo.encoders import ImageTextModel
from wsl_zoo.files import write_array

Progress = Callable[[int, int], None]
PART = 4096  # images, or texts, of which the features are kept at once


class EmbeddingCache:
    """Encodes images and texts that it finds no file of.

    Args:
        encoder: On its device, and not changed after this.
        folder: Of the files, `<split>-<hash>.npy` and `reports-<hash>.npy`, float32.
        batch_size: Images, or texts, per batch.

    Raises:
        ValueError: `batch_size` below 1.
    """

    def __init__(self, encoder: ImageTextModel, folder: str | Path, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be >= 1")
        self.encoder = encoder
        self.folder = Path(folder)
        self.batch_size = batch_size
        self.digest = encoder.digest()
        """Hash of what the encoder computes."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the features (M, D) of texts, on the CPU."""

        def encode(rows: range) -> Tensor:
            return self.encoder.encode_texts(texts[rows.start : rows.stop], self.batch_size)

        return self._kept("reports", repr(list(texts)).encode(), len(texts), encode)

    def images(
        self, split: str, source: Source, threads: int = 1, progress: Progress | None = None
    ) -> Tensor:
        """Return the features (N, D) of the images of a source, on the CPU.

        Args:
            split: What the source is called.
            source: The images, at their original size.
            threads: That read and prepare them; 0 is 1.
            progress: Called with how many images are encoded, and how many there are.
        """
        encode = partial(encode_source, source, self.encoder, self.batch_size, threads, progress)
        return self._kept(split, fingerprint(source), len(source), encode)

    def _kept(
        self, name: str, made_of: bytes, count: int, encode: Callable[[range], Tensor]
    ) -> Tensor:
        """Return features from their file, or of `encode` by parts of which each is kept."""
        key = hashlib.blake2b(self.digest + __version__.encode() + made_of, digest_size=16)
        file = self.folder / f"{name}-{key.hexdigest()}.npy"
        if (whole := _read(file)) is not None:
            return torch.from_numpy(whole)
        parts = []
        files = {
            file.with_suffix(f".{start}.npy"): range(start, min(start + PART, count))
            for start in range(0, count, PART)
        }
        for part, rows in files.items():
            features = _read(part)
            if features is None:
                features = encode(rows).float().cpu().numpy()
                write_array(part, features)
            parts.append(features)
        whole = np.concatenate(parts) if parts else np.empty((0, self.encoder.dim), np.float32)
        write_array(file, whole)
        for part in files:
            part.unlink(missing_ok=True)
        return torch.from_numpy(whole)


def _read(file: Path) -> np.ndarray | None:
    """Return an array, or None where there is no such file, perhaps not any more."""
    try:
        array: np.ndarray = np.load(file)
    except FileNotFoundError:
        return None
    return array


def encode_source(
    source: Source,
    encoder: ImageTextModel,
    batch_size: int = 64,
    threads: int = 1,
    progress: Progress | None = None,
    rows: range | None = None,
) -> Tensor:
    """Return the features of the images of a source.

    While a batch is encoded the next one is read; no more images than these are in memory. Only
    image files are read at the same time: other sources share what they are read from.

    Args:
        source: N images, at their original size; annotations are not read.
        encoder: On its device.
        batch_size: Images per batch.
        threads: That read and prepare images; 0 is 1.
        progress: Called with the position after the last image that is encoded, and with N.
        rows: Positions of n images, one after the other; None: all.

    Returns:
        `(n, D)` float32, on the CPU.
    """
    one_reads = nullcontext() if isinstance(source, RecordSource) else Lock()
    rows = range(len(source)) if rows is None else rows
    features = torch.empty(len(rows), encoder.dim)

    def prepared(index: int) -> Tensor:
        with one_reads:
            picture = source.load(index, annotations=False).image
        return encoder.prepare(picture)

    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:

        def begin(start: int) -> list[Future[Tensor]]:
            return [pool.submit(prepared, i) for i in rows[start : start + batch_size]]

        coming = begin(0)
        for start in range(0, len(rows), batch_size):
            image = torch.stack([future.result() for future in coming])
            coming = begin(start + batch_size)
            features[start : start + len(image)] = encoder.encode_images(image).float().cpu()
            if progress is not None:
                progress(rows[start + len(image) - 1] + 1, len(source))
    return features


def fingerprint(source: Source) -> bytes:
    """Return a hash of the images of a source, in their order: another one if any may be another.

    Of files, and of rows or frames of a file, path, time of change and size count; nothing of them
    is read. Of images that are no files, the pixels do.
    """
    digest = hashlib.blake2b()
    paths: Sequence[str] | None = getattr(source, "paths", None)  # known without reading pixels
    for index in range(len(source)):
        sample = source.load(index, annotations=False) if paths is None else None
        path = sample.path if sample is not None else paths[index] if paths is not None else ""
        file = _file_of(path)
        if file is not None:
            stat = file.stat()
            digest.update(repr((os.path.abspath(path), stat.st_mtime_ns, stat.st_size)).encode())
        else:
            image = (sample or source.load(index, annotations=False)).image
            digest.update(repr((path, image.shape)).encode() + image.tobytes())
    return digest.digest()


def _file_of(path: str) -> Path | None:
    """Return the file that an image is in: itself, `FILE/row`, or `FILE#frame`; None: in none."""
    whole = Path(path)
    candidates = (whole, *whole.parents, Path(path.partition("#")[0]))
    return next((candidate for candidate in candidates if candidate.is_file()), None)
