"""What long work says while it runs: steps that begin, advance and end. Who shows it, and where, is decided above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["begins", "advances", "ends", "fails"]


@dataclass(frozen=True)
class Event:
    """One thing that was said.

    Attributes:
        step: name of the step, such as `capture`, `calibrate`, `convert`, `validate` or `profile`.
        state: what it does; between `begins` and `ends` (or `fails`) it may advance any number of times.
        seconds: since the step began.
        done, total: how much of what is counted (calibration batches) is done, from 0, and how much there is; None
            where it is not known.
    """

    step: str
    state: State
    seconds: float = 0.0
    done: int | None = None
    total: int | None = None

    def __str__(self) -> str:
        counted = "" if self.done is None else f" {self.done}" + ("" if self.total is None else f"/{self.total}")
        return {
            "begins": f"{self.step} ...",
            "advances": f"{self.step}{counted} ... {self.seconds:.1f} s",
            "ends": f"{self.step} {self.seconds:.1f} s",
            "fails": f"{self.step} failed after {self.seconds:.1f} s",
        }[self.state]


Listener = Callable[[Event], None]
Progress = bool | Listener
"""What `progress=` takes: True shows steps on a terminal or in a notebook, False nothing; a function is told each."""

Advance = Callable[[int, int | None], None]
"""Tells how many of how many (None: not known) are done."""
