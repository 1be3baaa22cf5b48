"""Options of pipelines as arguments: in which form, and to which of the runs they go."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import yaml

OF_ONE = re.compile(r"--([^=:]+):(.+)")
OF_DATA = re.compile(r"--data(?![^.=])")
NO_OPTIONS = ("config", "test", "rounds", "command")  # keys of a method that are read by themselves


def arguments(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options of a method as arguments, `--option`, `value`."""
    for key, value in options.items():
        if key not in NO_OPTIONS:
            yield from (f"--{key}", value if isinstance(value, str) else json.dumps(value))


def of_data(arg: str) -> bool:
    """Return whether an argument is an option of the data."""
    return OF_DATA.match(arg) is not None


def share(
    extra: Sequence[str], methods: Collection[str], pairs: Collection[str]
) -> dict[str, list[str]]:
    """Give `--METHOD:option value` to that method, all else to every one.

    Args:
        extra: The arguments.
        methods: All methods.
        pairs: Those that are pairings; of what every one is given they get options of data alone.

    Raises:
        ValueError: There is no such method.
    """
    shares: dict[str, list[str]] = {method: [] for method in methods}
    receivers = list(methods)
    for arg in extra:
        of_one = OF_ONE.fullmatch(arg)
        if of_one:
            refuse_unknown(f"{arg} is for the unknown method", of_one[1], methods)
            receivers = [of_one[1]]
        elif arg.startswith(("--", "-c")):
            receivers = [m for m in methods if m not in pairs or of_data(arg)]
        for receiver in receivers:
            shares[receiver].append(f"--{of_one[2]}" if of_one else arg)
    return shares


def rounds_apart(
    what: str, args: Sequence[str], options: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Split arguments into those of each fit and the options of rounds.

    Raises:
        ValueError: There is no such option, or it is out of its range.
    """
    from wsl_zoo.roundstate import Rounds

    rest, found = [], dict(options)
    queue = list(args)
    while queue:
        option, given, value = queue.pop(0).partition("=")
        if option.startswith("--rounds."):
            value = value if given or not queue else queue.pop(0)
            found[option.removeprefix("--rounds.")] = yaml.safe_load(value)
        elif option == "--then_test":  # a model of one round is tested in its phase `judge`
            queue.pop(0)
        else:
            rest.append(option + given + value)
    try:
        Rounds.from_mapping(found)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return rest, found


def take_out(args: Sequence[str], wanted: str, needs: str) -> tuple[list[str], str | None]:
    """Take `--option value` out of the arguments; None: it is not there, the last one counts.

    Raises:
        ValueError: There is no value; it `needs` one.
    """
    rest, found = [], None
    queue = list(args)
    while queue:
        option, given, value = queue.pop(0).partition("=")
        if option != wanted:
            rest.append(option + given + value)
            continue
        if not given and not queue:
            raise ValueError(f"{wanted} needs {needs}")
        found = value if given else queue.pop(0)
    return rest, found


def refuse_unknown(what: str, name: Any, known: Collection[str]) -> None:
    """Raise a `ValueError` that names the nearest of what is known, unless `name` is known."""
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise ValueError(f"{what} {name!r}; {hint}")
