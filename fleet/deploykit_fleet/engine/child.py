"""Starting workers, giving them jobs, and leaving nothing of them behind.

A worker does one job after another, because a process that has imported PyTorch and a converter once is worth keeping.
What it says goes to the log of the job that it is at; that a job is done it says on a pipe of its own.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

from deploykit_fleet.engine.jobs import EXPORT, Job

LOG = "log.txt"
END = b"end\n"
"""What a worker is told when there is nothing more to do; where its input just ends, it kills itself."""
DONE = b"."
MARK = "DEPLOYKIT_RELEASE"
"""Environment variable that every process below a release has: what is left of it can be found by it."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_INSTALLED = {"site-packages", "dist-packages", "lib-dynload"}
_GRACE_S = 10.0
_LOOK_S = 0.5


class Children:
    """The workers of a release; `kill` ends them all, from any thread."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def seat(self) -> Seat:
        """A place for one worker at a time."""
        return Seat(self)

    def start(self, job: Job, done: int) -> subprocess.Popen[bytes] | None:
        """Start a worker; None where the release is ending.

        Args:
            job: its first, whose log it writes to.
            done: end of the pipe that it says on what it has done.
        """
        with self._lock, open(Path(job.work) / LOG, "ab") as log:
            if self._ended:
                return None
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "deploykit_fleet.engine.worker", str(done)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=importable(environment(job, self._mark)),
                pass_fds=[done],
                start_new_session=True,
            )
            self._running.add(process)
            return process

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        """Forget a worker that was waited for."""
        with self._lock:
            self._running.discard(process)

    def kill(self) -> None:
        """End every worker with all that it started; none can be started afterwards."""
        with self._lock:
            self._ended = True
            running = list(self._running)
        for process in running:
            _kill_group(process.pid)


class Seat:
    """A worker that does one job after another: started when one is there, and again after it died."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._process: subprocess.Popen[bytes] | None = None
        self._done = -1
        self._kind: tuple[str, int] | None = None

    def run(self, job: Job) -> int:
        """Do a job.

        Returns:
            0 where it is done; else the exit code of the process that died at it, negative for the signal that ended
            it, or where the release is ending.
        """
        Path(job.work).mkdir(parents=True, exist_ok=True)
        if self._process is not None and self._kind != (job.kind, job.threads):
            self.close()  # another environment
        if self._process is None and not self._start(job):
            return -signal.SIGTERM
        process = self._process
        assert process is not None and process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            process.stdin.flush()
        return 0 if self._is_done(process) else self._buried(process)

    def close(self) -> None:
        """Let the worker end, and end what it leaves."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(END)
            process.stdin.flush()
        end = threading.Timer(_GRACE_S, _kill_group, [process.pid])
        end.start()
        self._buried(process)
        end.cancel()

    def _start(self, job: Job) -> bool:
        self._done, theirs = os.pipe()
        try:
            self._process, self._kind = self._children.start(job, theirs), (job.kind, job.threads)
        finally:
            os.close(theirs)
        if self._process is None:
            os.close(self._done)
        return self._process is not None

    def _is_done(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until the job is done, or the process is dead, whatever it started still holds the pipe."""
        while True:
            readable, _, _ = select.select([self._done], [], [], _LOOK_S)
            if readable:
                return os.read(self._done, 1) == DONE
            if _has_ended(process):
                return False

    def _buried(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the process, and end its group before its number can be another's; gives its exit code."""
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            _kill_group(process.pid)
        code = process.wait()
        self._children.ended(process)
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        os.close(self._done)
        self._process = None
        return code


def environment(job: Job, mark: str) -> dict[str, str]:
    """Of a worker: the same whichever engine starts it, because the order of sums can move last digits.

    A profile is measured as the user's own environment has it.
    """
    found = {**os.environ, MARK: mark, "PYTHONUNBUFFERED": "1"}
    if job.kind == EXPORT:
        found |= dict.fromkeys(_THREADS, str(job.threads))
    return found


def importable(found: Mapping[str, str]) -> dict[str, str]:
    """The same modules as here, where this process was given folders that a new one would not have.

    Python's own folders and those of what is installed are left out: programs below a worker may be of another Python.
    """
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    path = [entry for entry in sys.path if entry and entry not in own and not _INSTALLED & set(Path(entry).parts)]
    return {**found, "PYTHONPATH": os.pathsep.join(dict.fromkeys(entry for entry in path if Path(entry).is_dir()))}


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended; its exit code stays to be asked for."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
