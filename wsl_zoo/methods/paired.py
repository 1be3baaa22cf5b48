"""Methods that read the text of the report that each image is paired with: where it comes from.

A pairing is a folder that `wsl-zoo pair` wrote. Its text features travel with the images as
`text (B, D)`, so that no text encoder is needed where they are read.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from wsl_zoo.data.texts import read_texts
from wsl_zoo.types import Batch

STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


def give_texts(
    trainer: Any, pairs: str | None, stage: str, of: Collection[str], text_dim: int
) -> None:
    """Let the data of a trainer carry the texts of a pairing.

    Without `pairs` the data are left as they are: they may carry texts of their own.

    Args:
        trainer: The Trainer; its `datamodule` is set up.
        pairs: Folder of the pairing, or its `pairing.json`.
        stage: "fit", "validate", "test" or "predict".
        of: Which of "train", "val" and "test" are read.
        text_dim: Features D of a text that the model is built for.

    Raises:
        DataError: There is no such pairing, or images that are in none of its pairs.
        ValueError: The texts have another number of features, or the loaders are not ours.
    """
    kinds = [kind for kind in STAGES[stage] if kind in of]
    if stage == "fit" and trainer.limit_val_batches == 0:
        kinds = [kind for kind in kinds if kind != "val"]
    data: Any = getattr(trainer, "datamodule", None)
    if pairs is None or not kinds:
        return
    if not hasattr(data, "texts"):
        raise ValueError(
            f"pairs={pairs} needs a data module of wsl_zoo, whose images it knows by their names; "
            "with other loaders let batches hold `text` (B, D)"
        )
    for split in [name for kind in kinds for name in data.split_names(kind)]:
        texts = read_texts(pairs, split, data.image_names(data.sources[split]))
        if texts.dim != text_dim:
            raise ValueError(
                f"{pairs} holds texts of {texts.dim} features, the model is built for {text_dim}: "
                f"--model.text_dim {texts.dim}"
            )
        data.texts[split] = texts


def text_of(batch: Batch, what: str, text_dim: int) -> Tensor:
    """Return the texts (B, D) of a batch.

    Args:
        batch: The batch.
        what: Who reads them, for messages.
        text_dim: D.

    Raises:
        ValueError: It holds none, or others than expected.
    """
    text = batch.get("text")
    if text is None:
        raise ValueError(
            f"{what} reads the text of the report that an image is paired with, and there is none: "
            "give --model.pairs DIR, as `wsl-zoo pair` writes it (for the text of images to "
            "evaluate, with --splits '[train, val, test]')"
        )
    if text.ndim != 2 or text.shape[1] != text_dim:
        raise ValueError(f"{what} reads texts (B, {text_dim}), got {tuple(text.shape)}")
    return text
