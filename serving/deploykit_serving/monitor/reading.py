"""What a source of figures gives: readings with where they came from, and sources that are not here, with why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Reading:
    """One figure.

    Attributes:
        metric: name with its unit, such as `temperature_celsius`.
        of: what it is of: a sensor, a power rail, a GPU.
        value: in the unit of the name.
        source: where it was read: a file, a library.
        counts: it only grows (energy, processor time); else it is of now.
        help: one line for people.
    """

    metric: str
    of: str
    value: float
    source: str
    counts: bool = False
    help: str = ""


@dataclass(frozen=True)
class Absent:
    """A source that gives nothing here: never a zero.

    Attributes:
        source: which.
        reason: why, with the next step where there is one.
    """

    source: str
    reason: str


@dataclass(frozen=True)
class Snapshot:
    """All that could be read at one time.

    Attributes:
        at_s: of a clock that only goes forward.
        readings, absent: from all sources.
    """

    at_s: float
    readings: tuple[Reading, ...] = ()
    absent: tuple[Absent, ...] = ()

    def of(self, metric: str) -> tuple[Reading, ...]:
        """The readings of a metric."""
        return tuple(each for each in self.readings if each.metric == metric)


Found = tuple[tuple[Reading, ...], tuple[Absent, ...]]


class Source(Protocol):
    """Where figures are read."""

    def read(self) -> Found:
        """What is there now, and what is not."""


class Unreadable(Exception):  # noqa: N818 - becomes an `Absent`
    """A file of a sensor that is not there, may not be read, or holds no number."""


def text_of(path: Path) -> str:
    """The text of a small file of the kernel's.

    Raises:
        Unreadable: with the reason, and the path.
    """
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        hint = "; it is for root: run as root, or let the group read it" if isinstance(error, PermissionError) else ""
        raise Unreadable(f"{path}: {os.strerror(error.errno or 0)}{hint}") from error


def number_of(path: Path) -> int:
    """The whole number in a small file of the kernel's.

    Raises:
        Unreadable: it is not there, may not be read, or holds something else.
    """
    text = text_of(path)
    try:
        return int(text)
    except ValueError as error:
        raise Unreadable(f"{path}: {text[:40]!r} is no number") from error


def children(folder: Path, pattern: str) -> list[Path]:
    """What lies in a folder by a pattern, sorted by name with numbers in order; nothing where there is no folder."""
    try:
        found = list(folder.glob(pattern))
    except OSError:
        return []
    return sorted(found, key=lambda path: (len(path.name), path.name))
