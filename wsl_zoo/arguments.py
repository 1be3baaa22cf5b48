"""What stands on the command line: completed before it is parsed, refused with a hint if wrong."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from wsl_zoo import catalogue
from wsl_zoo.checkpoints import read_checkpoint
from wsl_zoo.data import ZooDataModule
from wsl_zoo.data.videofile import VIDEO_ENDINGS
from wsl_zoo.methods.training import Trained

UNKNOWN_KEY = re.compile(r"option '([\w.]+)'|unrecognized arguments: --([\w.]+)", re.IGNORECASE)
UNKNOWN_CLASS = re.compile(r"has no attribute '(\w+)'|dot import path string: (\w+)")
# Lines of jsonargparse about its own types: what was wrong stands between them.
TYPE_NOISE = re.compile(
    r"^[\s-]*(Does not validate against any of the Union subtypes|Subtypes: |Errors:$"
    r"|Expected a <class 'NoneType'>|Given value type: |Given value: Namespace\().*\n?",
    re.MULTILINE,
)
OPTIONS = ("config", "model", "data", "trainer", "ckpt_path", "seed_everything", "run_dir", "wandb",
           "then_test", "last", "panels", "maps", "video", "class_path", "init_args")  # fmt: skip


class ZooParser(LightningArgumentParser):
    """Parser whose message on an unknown key or class names the nearest right one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # `--trainer.max_epoch` is a mistake, not `--trainer.max_epochs`.
        super().__init__(*args, **kwargs | {"allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message with a suggestion and exit with status 2."""
        print(f"error: {plain(message)}{hint(message)}", file=sys.stderr)
        raise SystemExit(2)


def plain(message: str) -> str:
    """Drop from a message of the parser what it says about its own types."""
    return TYPE_NOISE.sub("", message).strip().removeprefix("- ")


def hint(message: str) -> str:
    """Return a line naming what a message on an unknown key or class most likely meant, or ""."""
    if found := UNKNOWN_CLASS.search(message):
        known = [entry.name for kind in ("methods", "data") for entry in catalogue.entries(kind)]
        wrong = [found[1] or found[2]]
    elif found := UNKNOWN_KEY.search(message):
        known = [*OPTIONS, *_parameters()]
        wrong = [part for part in (found[1] or found[2]).split(".") if part not in known]
    elif "is abstract" in message:
        return "\nIt takes the keys class_path and init_args, and all options stand in init_args"
    elif "arguments are required" in message:
        return (
            "\nGive --config FILE, or a name that `wsl-zoo list configs` shows; to predict on "
            "images: --ckpt_path CKPT --images DIR"
        )
    else:
        return ""
    near = [name for part in wrong for name in get_close_matches(part, known, n=1, cutoff=0.5)]
    return f"\nDid you mean {near[0]!r}?" if near else ""


def _parameters() -> set[str]:
    """Return the names of all parameters of methods, data modules and the trainer."""
    classes: list[type] = [Trainer]
    for base in (Trained, ZooDataModule):
        queue: list[type] = [base]
        while queue:
            classes.append(queue.pop())
            queue += classes[-1].__subclasses__()
    return {name for c in classes for name in inspect.signature(c).parameters} - {"self", "kwargs"}


def arguments_of_checkpoint(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return what a checkpoint says of its model, as arguments that later ones override."""
    linked = {"num_classes", "class_names", "in_chans", "seed"}
    hparams = checkpoint["hyper_parameters"]
    init_args = {k: v for k, v in hparams.items() if k not in linked and not k.startswith("_")}
    model = {"class_path": checkpoint["wsl_zoo"]["class_path"], "init_args": init_args}
    seed = {"seed_everything": hparams["seed"]} if "seed" in hparams else {}
    return ["--config", json.dumps({"model": model} | seed)]


def arguments_of_images(checkpoint: Mapping[str, Any], images: str) -> list[str]:
    """Return the data module that predicts on a folder of images with a checkpoint."""
    hparams = checkpoint["hyper_parameters"]
    if "num_classes" not in hparams:  # super-resolution
        init_args = {
            "scale": hparams["scale"], "channels": hparams["in_chans"], "predict_images": images
        }  # fmt: skip
        data = {"class_path": "wsl_zoo.data.ImagePairsData", "init_args": init_args}
        return ["--config", json.dumps({"data": data})]
    names = hparams.get("class_names") or [str(k) for k in range(hparams["num_classes"])]
    init_args = {
        "classes": names,
        "predict_images": images,
        "image_size": checkpoint["wsl_zoo"]["image_size"] or 224,
    }
    data = {"class_path": "wsl_zoo.data.UnlabelledImages", "init_args": init_args}
    return ["--config", json.dumps({"data": data})]


def value_of(option: str, args: Sequence[str]) -> str | None:
    """Return the last value of `--option value` or `--option=value`."""
    found = None
    for i, arg in enumerate(args):
        if arg == option and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(f"{option}="):
            found = arg.partition("=")[2]
    return found


def complete(command: str, args: Sequence[str]) -> tuple[list[str], str]:
    """Resolve shipped configs, and put what the checkpoint says before everything else.

    Args:
        command: The subcommand.
        args: What follows it.

    Returns:
        The full arguments, and the name of the run.

    Raises:
        FileNotFoundError: There is no such config or checkpoint.
        ValueError: A file is not what it should be, or options do not go together.
    """
    name = command
    out: list[str] = []
    images: str | None = None
    path_of_checkpoint: str | None = None
    configs_end = 0
    queue = list(args)
    while queue:
        option, given, value = queue.pop(0).partition("=")
        if option in {"--config", "-c", "--images"}:
            if not given:
                if not queue:
                    raise ValueError(f"{option} needs a value")
                value = queue.pop(0)
            if option == "--images":
                images = value
            elif value.lstrip().startswith("{"):
                out += ["--config", value]
                configs_end = len(out)
            else:
                path = catalogue.config_path(value)
                name = f"{path.parent.name}_{path.stem}" if path.parent.name else path.stem
                path_of_checkpoint = _checkpoint_of_config(path) or path_of_checkpoint
                out += ["--config", str(path)]
                configs_end = len(out)
        else:
            out.append(option + given + value)
    path_of_checkpoint = value_of("--ckpt_path", out) or path_of_checkpoint
    trained = (
        read_checkpoint(path_of_checkpoint) if path_of_checkpoint not in {None, "null"} else None
    )
    first = arguments_of_checkpoint(trained) if trained is not None else []
    if value_of("--video", out) is not None:  # of `predict` alone; see __main__.py
        raise ValueError("--video goes with: wsl-zoo predict --ckpt_path CKPT --video FILE")
    if images is not None:
        if Path(images).suffix.lower() in VIDEO_ENDINGS:
            raise ValueError(f"{images} is a video: use --video {images}")
        if command != "predict" or trained is None:
            raise ValueError("--images goes with: wsl-zoo predict --ckpt_path CKPT --images DIR")
        # After the data of any config, before further flags.
        out[configs_end:configs_end] = arguments_of_images(trained, images)
    return [command, *first, *out], name


def _checkpoint_of_config(path: Path) -> str | None:
    """Return the `ckpt_path` that a config file holds (that of a resumed run does)."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected the keys model, data, trainer, ...")
    return config.get("ckpt_path")
