"""Mammograms in, one vector per exam out: what risk is learned from when encoders are frozen.

Each view goes through a frozen encoder, whose final map is averaged over its positions, and an exam
is the mean of its views. A file is named by what its vector depends on (the view files, how they
are read, the weights, the release), as those of `encoders/features.py`: it is never out of date,
and a call that was stopped goes on where it was.

    wsl-zoo features --data.root CSAW-CC --encoder resnet18 --weights W.safetensors --out FEATURES
    wsl-zoo fit --config phd/csaw_cc --data.root FEATURES
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from wsl_zoo import __version__
from wsl_zoo.commands import CommandParser, ProgressLines, device_named
from wsl_zoo.data.csaw_cc import CSAWCCData
from wsl_zoo.data.exam_images import ViewReader
from wsl_zoo.data.exam_table import Exam, write_anchors
from wsl_zoo.encoders import Encoder, FeatureCache
from wsl_zoo.files import write_array

TABLE = "table.csv"

Progress = Callable[[int, int], None]


@torch.no_grad()
def cache_exam_features(
    data: CSAWCCData,
    encoder: Encoder,
    folder: str | Path,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Path:
    """Write the features of every exam that a data set of images has, and their table.

    No more than one batch of images is in memory at a time; it is read by `data.num_workers`
    threads.

    Args:
        data: The images.
        encoder: Of one channel; it computes on its device, in eval mode.
        folder: Receives `<hash>.npy`, a vector (C,) float32 per exam, and `table.csv`, which
            replaces one that is there. Exams that have their file are not computed again.
        batch_size: Exams per batch, of four images each.
        progress: Called with how many exams are done, and how many there are to do.

    Returns:
        The table, which lists the anchors as `data` has them.

    Raises:
        ValueError: The data are no images, the encoder takes no grey ones, or no batch size.
        DataError: A file cannot be read.
    """
    folder = Path(folder)
    if not data.images:
        raise ValueError(f"{data.table} lists features, no images to make them of")
    if encoder.in_chans != 1:
        raise ValueError(f"the images are grey: build {encoder.name} with in_chans=1, not "
                         f"{encoder.in_chans}")  # fmt: skip
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be >= 1")
    digest = FeatureCache(encoder).digest()  # of its form and every weight
    anchors = [anchor for rows in data.anchors.values() for anchor in rows]
    exams = {exam for anchor in anchors for exam in anchor.exams if _seen(exam)}
    file_of = {exam: folder / f"{_name(exam, data.reader, digest)}.npy" for exam in exams}
    new = sorted(
        (exam for exam, file in file_of.items() if not file.is_file()),
        key=lambda exam: [str(view) for view in exam],
    )
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with ThreadPoolExecutor(max_workers=max(1, data.num_workers)) as pool:
            for start in range(0, len(new), batch_size):
                batch = new[start : start + batch_size]
                for exam, vector in zip(
                    batch, _embed(batch, data.reader, encoder, pool), strict=True
                ):
                    write_array(file_of[exam], vector.numpy())
                if progress is not None:
                    progress(start + len(batch), len(new))
    finally:
        for module, mode in modes:
            module.training = mode
    return write_anchors(
        folder / TABLE,
        [
            replace(
                anchor,
                exams=tuple((file_of[exam] if _seen(exam) else None,) for exam in anchor.exams),
            )
            for anchor in anchors
        ],
    )


def _seen(exam: Exam) -> bool:
    return any(view is not None for view in exam)


def _embed(
    exams: Sequence[Exam], reader: ViewReader, encoder: Encoder, pool: ThreadPoolExecutor
) -> Tensor:
    """Return the features (n, C) float32 of exams, on the CPU."""
    views = [(n, v, file) for n, exam in enumerate(exams) for v, file in enumerate(exam) if file]
    image = torch.stack(list(pool.map(lambda view: reader.view(view[2], view[1]), views)))
    device = next(encoder.parameters()).device
    pooled = encoder.final(image.to(device)).float().mean(dim=(2, 3)).cpu()
    owner = torch.tensor([n for n, _, _ in views])
    total = torch.zeros(len(exams), pooled.shape[1]).index_add_(0, owner, pooled)
    return total / owner.bincount(minlength=len(exams))[:, None]


def _name(exam: Exam, reader: ViewReader, digest: bytes) -> str:
    """Return the name of the features of an exam, by all that they depend on."""
    files = []
    for file in exam:
        stat = None if file is None else file.stat()
        files.append(stat and (os.path.abspath(str(file)), stat.st_mtime_ns, stat.st_size))
    text = repr((files, reader, __version__))
    return hashlib.blake2b(text.encode() + digest, digest_size=16).hexdigest()


# The command line ---------------------------------------------------------------------------------


def parser() -> CommandParser:
    """Return the parser of `wsl-zoo features`."""
    made = CommandParser(
        prog="wsl-zoo features",
        description="Turn the mammograms of CSAW-CC into one vector per exam, and their table.",
    )
    made.add_argument("--config", action="config", help="YAML file with these options")
    made.add_argument("--out", type=str, required=True, help="folder of the features")
    made.add_argument("--encoder", type=str, required=True, help="any timm model name")
    made.add_argument("--weights", type=str | None, default=None, help="local weight file")
    made.add_argument("--pretrained", type=bool, default=False, help="download timm's weights")
    made.add_argument("--stride", type=int | None, default=None, help="output stride: 8, 16, 32")
    made.add_argument("--batch_size", type=int, default=4, help="exams per batch, of four images")
    made.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    made.add_class_arguments(
        CSAWCCData, "data", skip={"batch_size", "eval_batch_size", "drop_last"}
    )
    made.set_defaults({"data.mode": "images"})
    return made


def main(args: Sequence[str]) -> None:
    """Run `wsl-zoo features`.

    Raises:
        DataError: The data cannot be used.
        ValueError: Options do not go together.
        FileNotFoundError: There is no such weight file.
    """
    made = parser()
    config = made.parse_args(list(args))
    data = made.instantiate(config).data
    torch.manual_seed(0)  # random weights are the same ones in the next call
    encoder = Encoder(
        config.encoder,
        pretrained=config.pretrained,
        weights=config.weights,
        in_chans=1,
        stride=config.stride,
    )
    if config.weights is None and not config.pretrained:
        print(
            f"note: {config.encoder} has random weights: give --weights FILE or --pretrained true"
        )
    encoder.to(device_named(config.device))
    lines = ProgressLines("exams")
    table = cache_exam_features(data, encoder, config.out, config.batch_size, lines)
    print(f"features: {table}")
