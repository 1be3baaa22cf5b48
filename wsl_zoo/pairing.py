"""Which report is nearest to which image: the pairing stage of CLIP-IT.

Paper: Karimian et al., "CLIP-IT: CLIP-based Pairing for Histology Images Classification", 2025
(arXiv 2504.16181).
psi(i) = argmax_j cos(f(image_i), g(report_j)): no label is used, and images may share a report.

Similarities are found by float32 products of a block of images with all reports. Where those cannot
tell which of several is the nearest, these few are compared again in float64; of equal ones the
first counts. So the result is that of float64 throughout, whatever the size of the blocks.

The result is a folder (`data/texts.py`) that holds the features of the reports too, so that
training needs neither corpus nor encoder. Only training images are paired unless told to: the
reports of others are read by upper bounds alone.

Deviation: the published code keeps positions in a list of reports; here reports have names, a hash
tells of corpus, model and pairs, and reports that are empty after cleaning are nobody's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from wsl_zoo import __version__
from wsl_zoo.data import ZooDataModule
from wsl_zoo.data.feature_files import read_features
from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.reports import Report, clean_report, read_reports
from wsl_zoo.data.texts import Pairs, write_pairing
from wsl_zoo.embedding import EmbeddingCache
from wsl_zoo.encoders import ImageTextModel

BLOCK = 2**26  # similarities that are held at once: 256 MiB

Clean = Literal["default", "published", "none"]
CLEANERS: dict[str, Callable[[str], str]] = {
    "default": clean_report,
    "published": partial(clean_report, published=True),
    "none": str.strip,
}
STAGES = ("train", "val", "test")

Progress = Callable[[str, int, int], None]


@runtime_checkable
class BringsReports(Protocol):
    """Data with a corpus of their own, and features of it and of their images in one space."""

    def corpus(self) -> tuple[list[Report], Tensor]:
        """Return the M reports and their features (M, D)."""

    def image_features(self, split: str) -> Tensor:
        """Return the features (N, D) of the images of a split, in its order."""


def pair(
    data: ZooDataModule,
    reports: str | Path | Sequence[Report] | None,
    out: str | Path,
    encoder: ImageTextModel | None = None,
    *,
    image_features: str | Path | None = None,
    report_features: str | Path | None = None,
    splits: Sequence[str] = ("train",),
    clean: Clean = "default",
    shuffle: int | None = None,
    cache: str | Path | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Path:
    """Pair the images of a data set with reports, and write the pairing.

    Features come from an encoder, from two files, or, without either, from data that bring reports
    of their own (`BringsReports`).

    Args:
        data: The images; those of other splits than asked for are not loaded.
        reports: The corpus: a file or folder (see `data/reports.py`), or the reports; None: that of
            the data. Those that are empty after cleaning are left out.
        out: Folder of the pairing.
        encoder: The image-text encoder, on its device. Images are read at their original size by
            `data.num_workers` threads.
        image_features: File of the features of the images (see `data/feature_files.py`), in the
            order of the split or with names; `{split}` in its path stands for the split.
        report_features: File of those of the reports, in their order (empty ones too), or by name.
        splits: What to pair: "train", "val" (every validation split), "test", or names of splits.
        clean: How reports are cleaned: "default" and "published" as `clean_report`, "none".
        shuffle: Seed by which the reports are dealt to the images anew, the control; None: not.
        cache: Folder of the features that an encoder makes, see `EmbeddingCache`; None: `cache` in
            `out`.
        batch_size: Images, or reports, per batch of the encoder.
        progress: Called with the split, how many of its images are encoded, and how many there are.

    Returns:
        The path of `pairing.json`.

    Raises:
        DataError: The data, the reports or the files cannot be used.
        ValueError: Options do not go together.
    """
    folder = Path(out)
    if clean not in CLEANERS:
        raise ValueError(f"clean={clean!r} must be one of {', '.join(CLEANERS)}")
    _check_sources(data, reports, encoder, image_features, report_features)
    names = {split: data.image_names(data.sources[split]) for split in _split_names(data, splits)}
    own: Tensor | None = None
    if reports is None and isinstance(data, BringsReports):
        corpus, own = data.corpus()
    elif isinstance(reports, str | Path):
        corpus = read_reports(reports)
    else:
        corpus = list(reports or ())
    cleaned = [replace(report, text=CLEANERS[clean](report.text)) for report in corpus]
    kept = [j for j, report in enumerate(cleaned) if report.text]
    if not kept:
        raise DataError("Reports", [f"all {len(corpus)} are empty after cleaning"])
    texts = [cleaned[j].text for j in kept]

    images_of: Callable[[str], Tensor]
    if encoder is not None:
        embedded = EmbeddingCache(encoder, cache or folder / "cache", batch_size)
        made_of = hashlib.blake2b(embedded.digest)
        features = embedded.texts(texts)
        images_of = partial(_encoded, embedded, data, progress)
    else:
        if own is not None:
            features = own[kept].float().cpu()
            images_of = partial(_own_images, data)
        else:
            features = read_features(str(report_features), [r.name for r in corpus], "report", kept)
            images_of = partial(_read_images, str(image_features), names)
        made_of = hashlib.blake2b(features.contiguous().numpy().data)

    pairs: dict[str, Pairs] = {}
    for split, own_names in names.items():
        images = images_of(split)
        if encoder is None:
            made_of.update(images.contiguous().numpy().data)
        if len(images) != len(own_names):
            raise ValueError(f"{len(images)} features for the {len(own_names)} images of {split}")
        index, similarity = nearest_reports(images, features)
        if shuffle is not None:
            index = dealt_anew(index, shuffle)
            similarity = cosines(images, features, index)
        pairs[split] = Pairs(own_names, index, similarity)
    about = {
        "version": __version__,
        "encoder": None if encoder is None else getattr(encoder, "name", type(encoder).__name__),
        "image_features": None if image_features is None else str(image_features),
        "report_features": None if report_features is None else str(report_features),
        "data": type(data).__name__,
        "corpus": str(reports) if isinstance(reports, str | Path) else None,
        "clean": clean,
        "shuffle": shuffle,
        "empty": [report.name for report in cleaned if not report.text],
        "cut": None if encoder is None else sum(encoder.cut(texts)),
    }
    kept_reports = [cleaned[j] for j in kept]
    return write_pairing(folder, kept_reports, features, pairs, made_of.digest(), about)


def _encoded(
    embedded: EmbeddingCache, data: ZooDataModule, progress: Progress | None, split: str
) -> Tensor:
    show = None if progress is None else partial(progress, split)
    return embedded.images(split, data.sources[split], data.num_workers, show)


def _own_images(data: Any, split: str) -> Tensor:
    features: Tensor = data.image_features(split)
    return features.float().cpu()


def _read_images(path: str, names: dict[str, list[str]], split: str) -> Tensor:
    return read_features(path.replace("{split}", split), names[split], "image")


def _check_sources(
    data: ZooDataModule, reports: object, encoder: object, images: object, texts: object
) -> None:
    """Refuse features from two places, or from none.

    Raises:
        ValueError: They are.
    """
    if encoder is not None and (images is not None or texts is not None):
        raise ValueError("give an encoder or files of features, not both")
    if (images is None) != (texts is None):
        lacking = "image_features" if images is None else "report_features"
        raise ValueError(f"image_features and report_features go together: {lacking} is missing")
    if reports is None and (encoder is not None or images is not None):
        raise ValueError("reports is missing: the file or folder of the reports")
    if reports is not None and encoder is None and images is None:
        raise ValueError("features of these reports are missing: give an encoder, or the files "
                         "image_features and report_features")  # fmt: skip
    if reports is None and encoder is None and not isinstance(data, BringsReports):
        raise ValueError(f"{type(data).__name__} brings no reports of its own: give reports, and "
                         "an encoder or files of features")  # fmt: skip


def _split_names(data: ZooDataModule, asked: Sequence[str]) -> list[str]:
    """Return the splits that are meant, each once.

    Raises:
        DataError: There is no such split, or it is empty.
    """
    found: dict[str, None] = {}
    for name in asked:
        own = data.split_names(name) if name in STAGES else [s for s in data.sources if s == name]
        if not own:
            there = ", ".join(data.sources) or "none"
            raise DataError(type(data).__name__, [f"there is no {name!r} split; found: {there}"])
        found |= dict.fromkeys(own)
    empty = [f"the split {name!r} holds no image" for name in found if not len(data.sources[name])]
    if empty or not found:
        raise DataError(type(data).__name__, empty or ["splits: there is none to pair"])
    return list(found)


def nearest_reports(images: Tensor, reports: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Return the most similar report of every image.

    Args:
        images: `(N, D)` features, of any length, none of them 0.
        reports: `(M, D)` likewise.
        block: Similarities that are held at once.

    Returns:
        Indices `(N,)` int64 in [0, M), and cosines `(N,)` float64, on the CPU.

    Raises:
        ValueError: Shapes do not fit, there is no report, or features are 0 or no numbers.
    """
    if images.ndim != 2 or reports.ndim != 2 or images.shape[1] != reports.shape[1]:
        raise ValueError(
            "images (N, D) and reports (M, D) must have features of one length, got "
            f"{tuple(images.shape)} and {tuple(reports.shape)}"
        )
    if not len(reports):
        raise ValueError("reports: there is none to pair with")
    for name, features in (("images", images), ("reports", reports)):
        length = features.double().norm(dim=1)
        wrong = (~torch.isfinite(length) | (length == 0)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(f"{name}: row {wrong[0]} is 0 or no number ({len(wrong)} in all)")
    texts = F.normalize(reports.double(), dim=1)
    coarse = texts.float().T.contiguous()
    # A product of two unit vectors of D float32 values is off by no more than (D + 2) 2^-24.
    unsure = 2 * (images.shape[1] + 4) * 2.0**-24
    index = torch.empty(len(images), dtype=torch.int64)
    cosine = torch.empty(len(images), dtype=torch.float64)
    rows = max(1, block // len(reports))
    for start in range(0, len(images), rows):
        vision = F.normalize(images[start : start + rows].double(), dim=1)
        similarity = vision.float() @ coarse
        best, first = similarity.max(dim=1)
        near = similarity >= (best - unsure)[:, None]
        several = near.sum(dim=1) > 1
        found = first.clone()
        for row in several.nonzero().flatten().tolist():
            candidates = near[row].nonzero().flatten()
            found[row] = candidates[(texts[candidates] * vision[row]).sum(dim=1).argmax()]
        index[start : start + rows] = found.cpu()
        cosine[start : start + rows] = (vision * texts[found]).sum(dim=1).cpu()
    return index, cosine


def cosines(images: Tensor, reports: Tensor, index: Tensor, block: int = BLOCK) -> Tensor:
    """Return the cosine of every image and the report that it is paired with.

    Args:
        images: `(N, D)` features, none of them 0.
        reports: `(M, D)` likewise.
        index: `(N,)` int64 in [0, M).
        block: Numbers that are compared at once.

    Returns:
        `(N,)` float64, on the CPU.
    """
    rows = max(1, block // images.shape[1])
    parts = [
        F.cosine_similarity(images[s : s + rows].double(), reports[index[s : s + rows]].double())
        for s in range(0, len(images), rows)
    ]
    return torch.cat(parts).cpu() if parts else torch.empty(0, dtype=torch.float64)


def dealt_anew(index: Tensor, seed: int) -> Tensor:
    """Return pairs whose reports were dealt to the images by a random permutation.

    Each report stays with as many images as before, so that only what a pair tells of its image is
    lost: the control of whether pairs matter.

    Args:
        index: `(N,)` reports of the images.
        seed: Of the permutation.
    """
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))
    return index[order]
