"""What rounds of active learning are told, and where they are; see `wsl_zoo.rounds`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from wsl_zoo.files import write_text

Acquisition = Literal["random", "entropy", "mc_dropout", "core_set"]
ACQUISITIONS = ("random", "entropy", "mc_dropout", "core_set")
ALL = "all"


@dataclass(frozen=True)
class Rounds:
    """Options of rounds; see the module.

    Raises:
        ValueError: One is out of its range.
    """

    count: int = 25
    initial: int | Literal["all"] = 8
    budget: int = 2
    acquisition: Acquisition = "random"
    neighbors: int | None = None
    retrain: bool = True
    protect: bool = True
    passes: int = 50
    published: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)!r} must be an integer >= {least}"
            for name, least in (("count", 1), ("budget", 1), ("passes", 2))
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least
        ]
        if self.initial != ALL and (not isinstance(self.initial, int) or self.initial < 1):
            problems.append(f'initial={self.initial!r} must be a positive integer or "all"')
        if self.acquisition not in ACQUISITIONS:
            problems.append(
                f"acquisition={self.acquisition!r} must be one of {', '.join(ACQUISITIONS)}"
            )
        if self.neighbors is not None and (
            not isinstance(self.neighbors, int) or self.neighbors < 1
        ):
            problems.append(f"neighbors={self.neighbors!r} must be a positive integer or null")
        if problems:
            raise ValueError(f"rounds: {'; '.join(problems)}")

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> Rounds:
        """Return what a pipeline's file says.

        Raises:
            ValueError: There is no such option, or it is out of its range.
        """
        known = [f.name for f in fields(cls)]
        unknown = [key for key in options if key not in known]
        if unknown:
            raise ValueError(f"rounds: unknown key {unknown[0]!r}; there are: {', '.join(known)}")
        return cls(**options)


@dataclass
class State:
    """Where rounds are. Plain values; written whole before the next phase begins.

    Attributes:
        round: The round, from 0.
        phase: The phase to come.
        chosen: Images to ask the oracle for.
        labelled: Image -> round in which the oracle drew its mask.
        pseudo: Image -> its pseudo-mask, as the rounds before left it: `mask` (a file below the
            run), `donor`, the annotated neighbour, and `round`.
        pairs: Image -> donor, in this round.
        judged: What phase `judge` found in this round.
        rounds: What each round gave.
    """

    round: int = 0
    phase: str = "label"
    chosen: list[str] = field(default_factory=list)
    labelled: dict[str, int] = field(default_factory=dict)
    pseudo: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: dict[str, str] = field(default_factory=dict)
    judged: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> State:
        """Return what stands in a file; the beginning, if there is none."""
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else cls()

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=1, sort_keys=True))
