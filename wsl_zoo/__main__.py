"""`wsl-zoo` and `python -m wsl_zoo`: what needs no torch is answered here, the rest in `cli.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from wsl_zoo import __version__, catalogue

USAGE = """\
usage: wsl-zoo COMMAND [options]

Weakly-supervised learning: models that classify and show where.

commands:
  demo                     train on built-in images, print a table, write pictures (no arguments)
  fit      --config F      train; F is a YAML file or a shipped config such as cam/synthetic
  validate --config F      metrics on the validation splits (--ckpt_path CKPT)
  test     --config F      metrics on the test splits (--ckpt_path CKPT)
  predict  --ckpt_path CKPT --images DIR
                           class, map and boxes of any images
  predict  --ckpt_path CKPT --video FILE
                           the same drawn on every frame of a video
  run      PIPELINE.yaml   many runs (method x seed x fold), also in stages, resumable
  features --out DIR       features of all exams by a frozen encoder, for data of mammograms
  pair     --config F      the report that is nearest to each training image, for CLIP-IT
  table    DIR             results below DIR as CSV and Markdown, mean and standard deviation
  table    DIR --across marker
                           the same with the values of a column side by side, and their mean
  list     [KIND]          what is there: {kinds}

options:
  -h, --help               this text; `wsl-zoo fit --help` for all options of a command
  --version                the version

Messages are short; set WSL_ZOO_TRACEBACK=1 to see where an error arose."""

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
COMMANDS = ("demo", *TRAINER_COMMANDS, "run", "features", "pair", "table", "list")


def _list(args: Sequence[str]) -> None:
    from wsl_zoo import reports

    for kind in args or catalogue.KINDS:
        reports.print_entries(catalogue.entries(kind), kind)


def _table(args: Sequence[str]) -> None:
    from wsl_zoo import reports

    match args:
        case [folder]:
            reports.print_summary(Path(folder))
        case [folder, "--across", column]:
            reports.print_summary(Path(folder), column)
        case _:
            raise ValueError("usage: wsl-zoo table DIR [--across COLUMN]")


def dispatch(args: Sequence[str]) -> None:
    """Run one command line."""
    command, rest = args[0], list(args[1:])
    if command == "list":
        _list(rest)
    elif command == "table":
        _table(rest)
    elif command == "run":
        from wsl_zoo.protocols import run

        run(rest)
    elif command == "features":
        from wsl_zoo.exam_features import main as features

        features(rest)
    elif command == "pair":
        from wsl_zoo.pair import main as pair

        pair(rest)
    elif command == "demo":
        from wsl_zoo.demo import demo

        demo(rest)
    elif command == "predict" and any(arg.partition("=")[0] == "--video" for arg in rest):
        from wsl_zoo import video

        video.command(rest)
    else:
        from wsl_zoo.cli import run_trainer

        run_trainer(command, rest)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status (0 done, 1 failed, 2 wrong usage)."""
    args = list(sys.argv[1:] if argv is None else argv)
    asked = {"-h", "--help"} & set(args[1:]) and args[0] in {"run", "table", "list"}
    if not args or args[0] in {"-h", "--help", "help"} or asked:
        print(USAGE.format(kinds=", ".join(catalogue.KINDS)))
        return 0
    if args[0] == "--version":
        print(f"wsl-zoo {__version__}")
        return 0
    if args[0] not in COMMANDS:
        near = get_close_matches(args[0], COMMANDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"error: unknown command {args[0]!r}.{hint} See wsl-zoo --help.", file=sys.stderr)
        return 2
    try:
        dispatch(args)
    except KeyboardInterrupt as error:
        print("interrupted", *error.args, sep=": ", file=sys.stderr)
        return 130
    except (ValueError, OSError, ArithmeticError, RuntimeError, TypeError, ImportError) as error:
        if os.environ.get("WSL_ZOO_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
