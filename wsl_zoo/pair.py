r"""The command `wsl-zoo pair`: images and reports in, pairs out, once per data set and corpus.

    wsl-zoo pair --config clipit/crc --data.root CRC --reports colon.txt --encoder ViT-B-32 \
        --weights W.safetensors --out PAIRS

Of a config of a fit it reads the section `data` alone. What it does is in `pairing.py`, what it
writes in `data/texts.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from wsl_zoo import catalogue
from wsl_zoo.commands import CommandParser, ProgressLines, device_named
from wsl_zoo.data import ZooDataModule
from wsl_zoo.encoders import ImageTextEncoder
from wsl_zoo.pairing import Clean, pair

SHOWN = 5  # empty reports that are named
COLLAPSED = 0.5  # share of the images above which one report is said to take too many


def parser() -> CommandParser:
    """Return the parser of `wsl-zoo pair`."""
    made = CommandParser(
        prog="wsl-zoo pair",
        description="Find the report that is nearest to each training image, without labels.",
    )
    made.needs = "Give the data by --config FILE or --data CLASS. "
    add = made.add_argument
    add("--config", action="config", help="config of a fit: its section data is read, no other")
    add("--out", type=str, required=True, help="folder of the pairing")
    add("--reports", type=str | None, default=None, help="reports: .txt, .csv, or a folder of .txt")
    add("--encoder", type=str | None, default=None, help="any open-clip model, or a .json config")
    add("--weights", type=str | None, default=None, help="local weight file of the encoder")
    add("--pretrained", type=bool, default=False, help="download open-clip's weights")
    add("--image_features", type=str | None, default=None, help="file of the images' features")
    add("--report_features", type=str | None, default=None, help="file of the reports' features")
    add("--splits", type=list[str], default=["train"], help="splits to pair")
    add("--clean", type=Clean, default="default", help="how reports are cleaned")
    add("--shuffle", type=int | None, default=None, help="deal the reports anew by this seed")
    add("--cache", type=str | None, default=None, help="folder of features (default: OUT/cache)")
    add("--batch_size", type=int, default=64, help="images, or reports, per batch")
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    made.add_lightning_class_args(ZooDataModule, "data", subclass_mode=True)
    return made


def data_alone(args: Sequence[str]) -> list[str]:
    """Put, in place of every `--config`, its section `data`.

    Raises:
        FileNotFoundError: There is no such config.
        ValueError: It is no YAML, or has no such section.
    """
    out: list[str] = []
    queue = list(args)
    while queue:
        option, given, value = queue.pop(0).partition("=")
        if option not in {"--config", "-c"}:
            out.append(option + given + value)
            continue
        if not given and not queue:
            raise ValueError(f"{option} needs a value")
        value = value if given else queue.pop(0)
        inline = value.lstrip().startswith("{")
        text = value if inline else catalogue.config_path(value).read_text(encoding="utf-8")
        try:
            config = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{value} is not valid YAML: {error}") from error
        if not isinstance(config, dict) or not config.get("data"):
            raise ValueError(f"{value}: there is no section `data`, the only one that is read")
        out += ["--config", json.dumps({"data": config["data"]})]
    return out


def main(args: Sequence[str]) -> None:
    """Run `wsl-zoo pair`.

    Raises:
        DataError: The data, the reports or files of features cannot be used.
        FileNotFoundError: There is no such config or weight file.
        ImportError: open-clip is not installed.
        ValueError: Options do not go together.
    """
    made = parser()
    config = made.parse_args(data_alone(args))
    data = made.instantiate(config).data
    encoder = None
    if config.encoder is not None:
        torch.manual_seed(0)  # random weights are the same ones in the next call
        encoder = ImageTextEncoder(config.encoder, config.weights, config.pretrained)
        if config.weights is None and not config.pretrained:
            print(f"note: {config.encoder} has random weights, so that pairs mean nothing: give "
                  "--weights FILE or --pretrained true")  # fmt: skip
        encoder.to(device_named(config.device))
    elif config.weights is not None or config.pretrained:
        raise ValueError("--weights and --pretrained are of an encoder: give --encoder NAME")
    lines = ProgressLines("images")
    options = ("image_features", "report_features", "splits", "clean", "shuffle", "cache",
               "batch_size")  # fmt: skip
    given = {name: config[name] for name in options}
    path = pair(data, config.reports, config.out, encoder, **given, progress=lines.of)
    print("\n".join(summary(path)))


def summary(path: Path) -> list[str]:
    """Return lines that tell what a pairing is like.

    Args:
        path: Its `pairing.json`.
    """
    about = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    if about["empty"]:
        few = ", ".join(about["empty"][:SHOWN]) + (", ..." if len(about["empty"]) > SHOWN else "")
        lines.append(f"{len(about['empty'])} empty reports are left out: {few}")
    if about["cut"]:
        lines.append(f"{about['cut']} of {about['reports']} reports are longer than "
                     f"{about['encoder']} reads: their ends are not seen")  # fmt: skip
    if about["shuffle"] is not None:
        lines.append(f"reports are dealt to the images at random (shuffle={about['shuffle']})")
    for split, own in about["splits"].items():
        most = own["most_used"]
        share = most["images"] / own["images"]
        lines.append(
            f"{split}: {own['images']} images, {own['reports']} of {about['reports']} reports, "
            f"similarity {own['mean_similarity']:.3f} on average, {own['min_similarity']:.3f} at "
            f"least; most used: {most['report']} ({most['images']} images, {100 * share:.1f} %)"
        )
        if share > COLLAPSED:
            lines.append(
                f"warning: {most['report']} takes more than half of the images of {split}: pairs "
                "tell little of their images (is the encoder right for these images and reports?)"
            )
    return [*lines, f"pairing: {path}"]
