"""What a run leaves behind: `release.json` and `junit.xml`, logs of what failed, one folder for each release.

A run that brought nothing new is no further release: the newest of its name stays, so that collecting old ones does not
lose what changed last.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from pathlib import Path

import msgspec

from deploykit._version import __version__
from deploykit.artifact.storage import write_file
from deploykit.contract.errors import ArtifactError
from deploykit.contract.host import this_host
from deploykit_fleet import junit, outcome
from deploykit_fleet.engine.child import LOG
from deploykit_fleet.outcome import FAILED, Cell, Release
from deploykit_fleet.store import Store

_LOG_BYTES = 1 << 20
_STAMP = "%Y%m%dT%H%M%SZ"


def described(name: str, cells: tuple[Cell, ...], engine: str, started: datetime.datetime, seconds: float) -> Release:
    """A release of these cells, with where and when it was made.

    Args:
        started: UTC.
        seconds: of the wall.
    """
    host = this_host()
    return Release(
        deploykit=__version__,
        name=name,
        started=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        host=os.uname().nodename if hasattr(os, "uname") else "",
        cpu=host.kind,
        cells=cells,
        engine=engine,
        seconds=round(seconds, 3),
    )


def write(made: Release, store: Store, work: Path, started: datetime.datetime) -> None:
    """Write a release into its store, as its newest, and by itself where it brought something new.

    Args:
        work: folder of the run's lease, with the logs of its jobs.
    Raises:
        ArtifactError: the disk refuses.
    """
    if not _is_as_before(made, store):
        folder = store.releases / f"{_after_all(store, started):{_STAMP}}-{work.name[:8]}"
        _keep_logs(made, work, folder)
        junit.write(made, folder)
        outcome.write(_moved(made), folder)
    junit.write(made, store.root)
    outcome.write(made, store.root)


def _is_as_before(made: Release, store: Store) -> bool:
    """Whether the newest release of the same name says the same."""
    for path in sorted(store.releases.iterdir(), reverse=True):
        try:
            before = outcome.read(path)
        except ArtifactError:
            continue
        if before.name == made.name:
            same = before.deploykit == made.deploykit
            return same and [*map(_lasting, before.cells)] == [*map(_lasting, _moved(made).cells)]
    return False


def _after_all(store: Store, started: datetime.datetime) -> datetime.datetime:
    """When a run started, or a second after the latest in the store: names keep the order of runs if clocks do not."""
    found = [started]
    for path in store.releases.iterdir():
        with contextlib.suppress(ValueError, OverflowError):  # not ours
            latest = datetime.datetime.strptime(path.name.partition("-")[0], _STAMP).replace(tzinfo=datetime.UTC)
            found.append(latest + datetime.timedelta(seconds=1))
    return max(found)


def _keep_logs(made: Release, work: Path, folder: Path) -> None:
    """What processes said while a cell failed without an artifact."""
    failed = {cell.model for cell in made.cells if cell.status == FAILED and cell.artifact is None}
    for path in sorted(work.glob(f"*/{LOG}")):
        name = path.parent.name.partition("-")[2]
        if name in failed:
            write_file(folder / "logs" / f"{name}.txt", path.read_bytes()[-_LOG_BYTES:])


def _lasting(cell: Cell) -> Cell:
    return msgspec.structs.replace(cell, cached=False, seconds=0.0)


def _moved(made: Release) -> Release:
    """The same release as it is read from `releases/ID`."""
    cells = tuple(
        cell if cell.artifact is None else msgspec.structs.replace(cell, artifact=f"../../{cell.artifact}")
        for cell in made.cells
    )
    return msgspec.structs.replace(made, cells=cells)
