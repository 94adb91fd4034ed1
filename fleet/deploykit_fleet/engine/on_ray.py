"""Jobs on Ray: a local one that is started for the run and gone after it, or a cluster that is named.

Ray lives in a process of its own (`deploykit_fleet.engine.ray_host`), so that the release survives whatever of Ray
dies: it then ends what is left, and starts another. Results are what jobs published, as with every engine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from deploykit.contract.errors import DeviceError
from deploykit_fleet.engine.attend import result
from deploykit_fleet.engine.child import MARK, importable
from deploykit_fleet.engine.jobs import Job
from deploykit_fleet.engine.pool import Done
from deploykit_fleet.engine.remains import end_marked

_POLL_S = 0.2
_LOG = "ray.txt"
_LOG_LINES = 5


class Hosting(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is told that has Ray in it.

    Attributes:
        jobs: to be done.
        cluster: address; None for a Ray of its own on loopback.
        at_once: processes at a time, of a Ray of its own.
        retries: see `deploykit_fleet.engine.attend`.
        temporary: folder for Ray's own files and sockets.
    """

    jobs: tuple[Job, ...]
    cluster: str | None
    at_once: int
    retries: int
    temporary: str


def run(jobs: Sequence[Job], cluster: str | None, own: Path, *, at_once: int, retries: int) -> Iterator[Done]:
    """Do jobs on Ray.

    Args:
        own: folder of the release's lease; its name marks every process.
    Yields:
        Each job with its results, when all of its cells have one.
    Raises:
        DeviceError: Ray cannot be started, or the cluster not be reached.
    """
    waiting = list(jobs)
    for attempt in range(retries + 1):
        with _hosted(waiting, cluster, own, at_once, retries) as process:
            while waiting and process.poll() is None:
                yield from _finished(waiting)
                time.sleep(_POLL_S)
        yield from _finished(waiting)
        if not waiting:
            return
        if process.returncode == 0 or attempt == retries:
            break
    raise DeviceError(
        f"Ray ended {attempt + 1} times before its work was done{_last_words(own)}",
        hint="--engine pool does without Ray" if cluster is None else f"is {cluster} the address of a Ray cluster?",
    )


def _finished(waiting: list[Job]) -> Iterator[Done]:
    """Take the jobs out that are done."""
    for job in list(waiting):
        found = [each for cell in job.cells if (each := result(job, cell.key)) is not None]
        if len(found) == len(job.cells):
            waiting.remove(job)
            yield job, found


@contextlib.contextmanager
def _hosted(
    jobs: Sequence[Job], cluster: str | None, own: Path, at_once: int, retries: int
) -> Iterator[subprocess.Popen[bytes]]:
    """The process that has Ray in it; when the block ends, nothing of it is left."""
    temporary = tempfile.mkdtemp(prefix="dk-ray-")  # sockets lie in it, whose paths may have 107 characters
    told = Hosting(jobs=tuple(jobs), cluster=cluster, at_once=at_once, retries=retries, temporary=temporary)
    with open(own / _LOG, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "deploykit_fleet.engine.ray_host"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=_environment(own.name, alone=cluster is None),
            start_new_session=True,
        )
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(told) + b"\n")
            process.stdin.flush()
        yield process
    finally:
        end_marked(own.name, temporary)
        process.stdin.close()
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def _environment(mark: str, *, alone: bool) -> dict[str, str]:
    """Of the process that has Ray in it. Alone it stays on loopback: Ray replaces an address of 127.0.0.1 that it is
    given by the machine's own, unless it is told that it is no cluster, as on Windows and macOS.
    """
    found = {**os.environ, MARK: mark, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
    if alone:
        found |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        found.pop("RAY_ADDRESS", None)
    return importable(found)


def _last_words(own: Path) -> str:
    try:
        lines = (own / _LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()][-_LOG_LINES:]
    return ": " + " | ".join(said) if said else ""
