"""Risky or foreign code in a process of its own: how it is started, talked to, waited for and ended.

- **What it imports.** Never from the working directory, nor from a folder that a command line names: a `json.py` that
  lies in an artifact is not ours. A Python of this process's kind imports from where this process does, so that
  development trees and editable installs work; another Python from its own packages.
- **How it answers.** Over pipes. A time limit, a stopped process, an end, or junk instead of an answer ends every wait
  and becomes an error in words. After a wait that was cut off the process is ended: a late answer to an earlier
  question would be taken for the answer to the next one.
- **How it ends.** With this process, whatever ends that: its standard input is then at its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO

from deploykit.contract.errors import DeploykitError, DeviceError

_LOG_CHARACTERS = 1500
_CHUNK_BYTES = 1 << 20
_GOODBYE_S = 10.0
_LOOK_S = 1.0
_STOPPED_S = 10.0
_LIMIT = "DEPLOYKIT_CHILD_TIMEOUT_S"

OTHER_VERSION = 70
"""Exit code of `server_code` where the deploykit that is installed has no server, or lacks what it imports."""

# `-c` puts the working directory first; nothing may be imported before it is gone.
_FORGET = (
    "import sys, os\ntry: here = os.getcwd()\nexcept OSError: here = ''\n"
    "sys.path[:] = [entry for entry in sys.path if entry not in ('', '.', here)]\n"
)
_RUN_MODULE = (
    "import sys, json; found = json.loads(sys.argv[1]); sys.path[:] = found[0]; del sys.argv[1]\n"
    "import runpy; runpy.run_module(found[1], run_name='__main__', alter_sys=True)\n"
)
_LOOKS = "import importlib.util as u; sys.exit(u.find_spec('deploykit') is None)"
_SERVES = (
    "try: from {module} import main\nexcept ImportError as why: sys.stderr.write(str(why)); sys.exit({other})\nmain()\n"
)


def time_limit(default_s: float) -> float:
    """Seconds that a child may take for one answer: `$DEPLOYKIT_CHILD_TIMEOUT_S` where that is a number above 0."""
    try:
        own = float(os.environ[_LIMIT])
    except (KeyError, ValueError):
        return default_s
    return own if own > 0 else default_s


def module_command(name: str, *arguments: str | Path) -> list[str]:
    """The command line that runs a module in a Python like this one, which imports from where this one does.

    Python's environment variables count as they did for this process: `sys.path` has what they added.
    """
    flags = ["-E", "-P", *(["-s"] if sys.flags.no_user_site else []), *(["-B"] if sys.dont_write_bytecode else [])]
    flags += ["-X", "utf8"] if sys.flags.utf8_mode else []
    found = json.dumps([import_path(name), name])
    return [sys.executable, *flags, "-c", _RUN_MODULE, found, *map(str, arguments)]


def code_command(python: str, code: str, *arguments: str | Path) -> list[str]:
    """The command line that runs `code` in any Python (3.8 or newer) with nothing of the working directory.

    Its own environment counts: vendors' bindings are found through `PYTHONPATH` or in the user's packages.
    """
    return [python, "-c", _FORGET + code, *map(str, arguments)]


def server_code(module: str = "deploykit.places.serve", *, looks: bool = False) -> str:
    """Code for `python -c` that serves the session protocol, or only `looks` whether deploykit is installed there.

    Args:
        module: the module whose `main` serves.
        looks: only end with 0 where it is installed.
    """
    return _FORGET + (_LOOKS if looks else _SERVES.format(module=module, other=OTHER_VERSION))


def import_path(module: str) -> list[str]:
    """`sys.path` without relative entries, and without the working directory unless our own code is there."""
    ours = {_root(name) for name in (__name__, module, *_PLUGINS) if name.partition(".")[0] in sys.modules}
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # it was removed
        here = ""
    absolute = [entry for entry in sys.path if os.path.isabs(entry)]
    return [entry for entry in absolute if (real := os.path.realpath(entry)) != here or real in ours]


_PLUGINS = ("deploykit_targets", "deploykit_calibration")


def _root(name: str) -> str:
    """The folder that a module's top package is imported from."""
    file = sys.modules[name.partition(".")[0]].__file__
    return "" if file is None else str(Path(file).resolve().parents[1])


def start_module(
    module: ModuleType, folder: Path, *, what: str, error: type[DeploykitError], timeout_s: float
) -> Process:
    """Start `python -m module folder` for one task, done to its end; see `module_command` and `Process.finish`.

    Args:
        module: its `main` takes the folder.
        folder: shared with the child.
        what: it is, for messages.
        error: the error that its silence becomes.
        timeout_s: how long it may take.
    """
    command = module_command(module.__name__, folder)
    return Process(command, what=what, error=error, timeout_s=timeout_s, answers=False)


def ending(code: int) -> str:
    """What an exit code says, as the end of a sentence: from outside, a crash, or its own decision."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"was killed by signal {-code}"
    if from_outside(code):
        why = ": by the system for lack of memory, or by somebody" if name == "SIGKILL" else ""
        return f"was killed from outside ({name}){why}"
    return f"was killed by signal {-code} ({name})"


def from_outside(code: int) -> bool:
    """Whether an exit code is that of a signal which programs do not send themselves by failing."""
    return -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class EndedError(DeviceError):
    """A process ended, crashed perhaps, before it answered.

    Args:
        what: it was.
        how: it ended, as the end of a sentence.
        said: on standard error.
    """

    def __init__(self, what: str, how: str, said: str) -> None:
        super().__init__(f"{what} {how}", hint=said or None)
        self.how, self.said = how, said


class Process:
    """Starts a command; `send` and `receive` bytes until `close`.

    Args:
        command: program and arguments.
        what: it is, for messages.
        environment: the environment of the process; None for ours.
        timeout_s: how long one `receive` may take.
        error: the error that its end, its silence and its junk become.
        failed: the error of an end, from exit code and log, in place of `error`.
        answers: whether its standard output is read by us, instead of going into the log.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        what: str,
        timeout_s: float,
        environment: Mapping[str, str] | None = None,
        error: type[DeploykitError] = DeviceError,
        failed: Callable[[int, str], Exception] | None = None,
        answers: bool = True,
    ) -> None:
        self._what, self._timeout_s = what, timeout_s
        self._error, self._failed = error, failed
        self._owner, self._found, self._broken = os.getpid(), bytearray(), False
        self._why: DeploykitError | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `close`)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if answers else self._log,
                stderr=self._log,
                env=None if environment is None else dict(environment),
                bufsize=0,
            )
        except OSError as refused:
            self._log.close()
            raise error(f"{what} cannot be started: {refused}") from refused

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked: a forked copy of this program has only a copy of the pipes."""
        return self._owner == os.getpid() and not self._broken and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it printed to standard error so far."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")

    def forget_log(self) -> None:
        """Begin the log anew; the process shares the place in the file."""
        os.ftruncate(self._log.fileno(), 0)
        os.lseek(self._log.fileno(), 0, os.SEEK_SET)

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """One question and its whole answer; where that is cut off, by Ctrl-C too, the process is ended.

        Raises:
            DeploykitError: an earlier exchange was cut off; or what came is no answer, which ValueError and the like
                say that are raised inside.
        """
        if self._why is not None:
            raise self._why
        if self._broken:
            raise self._error(f"{self._what} was ended when it was interrupted", hint="open the artifact again")
        try:
            yield
        except DeploykitError as why:
            self._why = why
            self.kill()
            raise
        except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, RecursionError) as junk:
            self.kill()
            said = self.log.strip()[-_LOG_CHARACTERS:]
            message = f"{self._what} gave something that is no answer ({type(junk).__name__}: {junk})"
            self._why = self._error(message, hint=said or "something else writes to its standard output")
            raise self._why from junk
        except BaseException:
            self.kill()
            raise

    def send(self, *parts: bytes | memoryview) -> None:
        """Write to its standard input; that it is gone is for `receive` to say."""
        assert self._process.stdin is not None
        limit = _Limit(self._timeout_s)
        with contextlib.suppress(BrokenPipeError):
            for part in parts:
                self._write(self._process.stdin.fileno(), memoryview(part), limit)

    def receive(self, count: int) -> bytes:
        """Exactly `count` bytes of its standard output.

        Raises:
            DeploykitError: it ended, was stopped or took too long.
        """
        limit = _Limit(self._timeout_s)
        while len(self._found) < count:
            self._found += self._chunk(limit)
        data = bytes(self._found[:count])
        del self._found[:count]
        return data

    def finish(self) -> int:
        """Close its input and wait for its end.

        Returns:
            Its exit code.
        Raises:
            DeploykitError: it was stopped or took too long.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        limit, pause = _Limit(self._timeout_s), 0.001
        while (code := self._process.poll()) is None:
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
            self._look(limit)
        return code

    def close(self) -> None:
        """Close its input, and end it where it does not end itself."""
        if self._owner != os.getpid():
            self._process.returncode = 0  # it is not our child: nothing to wait for
            return
        self._close_pipes()
        try:
            self._process.wait(timeout=_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._log.close()

    def kill(self) -> None:
        """End it at once; `close` is still to be called."""
        self._broken = True
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _write(self, descriptor: int, data: memoryview, limit: _Limit) -> None:
        os.set_blocking(descriptor, False)
        while data:
            self._wait(limit, writing=descriptor)
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(descriptor, data[:_CHUNK_BYTES]) :]

    def _chunk(self, limit: _Limit) -> bytes:
        assert self._process.stdout is not None
        self._wait(limit, reading=self._process.stdout.fileno())
        found = os.read(self._process.stdout.fileno(), _CHUNK_BYTES)
        if not found:
            raise self._ended()
        return found

    def _wait(self, limit: _Limit, *, reading: int | None = None, writing: int | None = None) -> None:
        wanted = [fd for fd in (reading,) if fd is not None], [fd for fd in (writing,) if fd is not None]
        while not any(select.select(*wanted, [], min(_LOOK_S, limit.left_s))):
            self._look(limit)

    def _look(self, limit: _Limit) -> None:
        """Give up on a process that takes too long, or that somebody stopped."""
        limit.tick(stopped=_is_stopped(self._process.pid))
        if limit.left_s <= 0.0:
            self.kill()
            hint = f"{_LIMIT} allows more seconds"
            raise self._error(f"{self._what} did not answer within {self._timeout_s:g} s", hint=hint)
        if limit.stopped_s >= _STOPPED_S:
            self.kill()
            message = f"{self._what} was stopped from outside (SIGSTOP), and did not go on within {_STOPPED_S:g} s"
            raise self._error(message, hint="try again")

    def _ended(self) -> Exception:
        try:
            code = self._process.wait(timeout=_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._error(f"{self._what} closed its output and did not end")
        if self._failed is not None:
            return self._failed(code, self.log)
        said = self.log.strip()[-_LOG_CHARACTERS:]
        how = ending(code)
        if self._error is not DeviceError:
            return self._error(f"{self._what} {how}", hint=said or None)
        return EndedError(self._what, how, said)


class _Limit:
    """Counts waiting. Time in which this process did not run itself (Ctrl-Z, a suspended machine) does not count."""

    def __init__(self, seconds: float) -> None:
        self.left_s, self.stopped_s = seconds, 0.0
        self._last = time.monotonic()

    def tick(self, *, stopped: bool) -> None:
        """Count what passed since the last time."""
        now = time.monotonic()
        passed, self._last = min(now - self._last, 2 * _LOOK_S), now
        self.left_s -= passed
        self.stopped_s = self.stopped_s + passed if stopped else 0.0


def _is_stopped(process: int) -> bool:
    """Whether our child is stopped, by SIGSTOP say; False where the system cannot tell."""
    if not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, process, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except OSError:
        return False
