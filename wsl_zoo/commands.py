"""What commands that compute features share: their parser, the device, lines about the progress."""

from __future__ import annotations

import sys
from time import monotonic
from typing import NoReturn

import torch

from wsl_zoo.arguments import ZooParser, hint, plain

SECONDS = 10.0  # between two lines about the progress


class CommandParser(ZooParser):
    """Parser of one command, whose messages point to its help."""

    needs = ""
    """What to say where something required is missing."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message with a suggestion and exit with status 2."""
        required = "arguments are required" in message
        more = f"\n{self.needs}See {self.prog} --help" if required else hint(message)
        print(f"error: {plain(message)}{more}", file=sys.stderr)
        raise SystemExit(2)


def device_named(name: str) -> str:
    """Return a device by its name; "auto": a GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


class ProgressLines:
    """Prints how far a count is, at its end and every ten seconds.

    Args:
        what: What is counted.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._shown = monotonic()

    def __call__(self, done: int, count: int) -> None:
        """Print `<done> of <count> <what>` if it is time."""
        self._print("", done, count)

    def of(self, part: str, done: int, count: int) -> None:
        """Print the same of a part that is counted alone."""
        self._print(f"{part}: ", done, count)

    def _print(self, part: str, done: int, count: int) -> None:
        if done == count or monotonic() - self._shown > SECONDS:
            self._shown = monotonic()
            print(f"{part}{done} of {count} {self.what}", flush=True)
