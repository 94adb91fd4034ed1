"""Starting a worker, waiting for it, and leaving nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

from deploykit_fleet.engine.jobs import EXPORT, Job

LOG = "log.txt"
MARK = "DEPLOYKIT_RELEASE"
"""Environment variable that every process below a release has: what is left of it can be found by it."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_GRACE_S = 5.0


class Children:
    """The workers of a release; `kill` ends them all, from any thread."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def run(self, job: Job) -> int:
        """Do a job in a process of its own.

        Returns:
            Its exit code; negative for the signal that ended it, or where the release is ending.
        """
        Path(job.work).mkdir(parents=True, exist_ok=True)
        with open(Path(job.work) / LOG, "ab") as log:
            with self._lock:
                if self._ended:
                    return -signal.SIGTERM
                process = _started(job, log.fileno(), self._mark)
                self._running.add(process)
            try:
                _tell(process, job)
                return _ended(process)
            finally:
                _end(process)
                with self._lock:
                    self._running.discard(process)

    def kill(self) -> None:
        """End every worker with all that it started; none can be started afterwards."""
        with self._lock:
            self._ended = True
            running = list(self._running)
        for process in running:
            _kill_group(process.pid)


def environment(job: Job, mark: str) -> dict[str, str]:
    """Of a worker: the same whichever engine starts it, because the order of sums can move last digits.

    A profile is measured as the user's own environment has it.
    """
    found = {**os.environ, MARK: mark, "PYTHONUNBUFFERED": "1"}
    if job.kind == EXPORT:
        found |= dict.fromkeys(_THREADS, str(job.threads))
    return found


def _started(job: Job, log: int, mark: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "deploykit_fleet.engine.worker"]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env=importable(environment(job, mark)),
        start_new_session=True,
    )


def importable(found: Mapping[str, str]) -> dict[str, str]:
    """The same modules as here, where this process was given folders that a new one would not have."""
    path = [entry for entry in sys.path if entry and Path(entry).is_dir()]
    return {**found, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


def _tell(process: subprocess.Popen[bytes], job: Job) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        process.stdin.flush()


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Wait, and end what the worker left in its group before its number can be another process's."""
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        _kill_group(process.pid)
    return process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        _kill_group(process.pid)
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
