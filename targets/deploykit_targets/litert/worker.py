"""The converter's process as its parent sees it: started early, reused for every conversion, gone with its parent.

A crash or an error of the converter ends that process only; the next conversion starts a fresh one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from deploykit.contract.errors import ConversionError
from deploykit.places import frames
from deploykit.places.frames import Frame
from deploykit.places.peer import Peer
from deploykit.places.process import Process, module_command, time_limit
from deploykit_targets.litert import convert_child
from deploykit_targets.litert.failures import HasSource, crashed, translated
from deploykit_targets.litert.float_files import has

_TIMEOUT_S = 3600.0  # of one conversion


@dataclass(frozen=True)
class Request:
    """One conversion.

    Attributes:
        settings: JSON values; see `convert_child`.
        write_program: writes the graph to a path; not called where the process has the float file already.
        origins: the origins of the captured graph, for messages.
        destination: the destination of the finished file.
    """

    settings: Mapping[str, Any]
    write_program: Callable[[Path], None]
    origins: Mapping[str, HasSource]
    destination: Path


@dataclass(frozen=True)
class _Running:
    """A process, and the temporary folder that it shares with us and removes at its end."""

    process: Process
    folder: Path
    owner: int = field(default_factory=os.getpid)

    @property
    def alive(self) -> bool:
        """Whether it can be asked; without its folder, which somebody cleaned up, it cannot."""
        return self.process.alive and self.folder.is_dir()

    def ask(self, request: Mapping[str, Any]) -> Frame:
        """Its answer, an error included.

        Raises:
            ConversionError: it ended, was stopped or took too long.
        """
        self.process.forget_log()
        return Peer(self.process).exchange(Frame(frames.CALL, dict(request)))

    def end(self) -> None:
        """Kill it and remove its folder."""
        self.process.kill()
        self.process.close()
        if self.owner == os.getpid():
            shutil.rmtree(self.folder, ignore_errors=True)


class _Left(Exception):  # noqa: N818  (not an error)
    """The process had been idle for long, and ended before it was asked."""


class Worker:
    """Converts one model after the other; for any number of threads, which wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def start(self) -> None:
        """Start the process unless it runs: its imports take seconds, while the caller has other work."""
        with self._lock:
            self._process()

    def convert(self, request: Request) -> tuple[dict[str, Any], str]:
        """Write the file of a request.

        Returns:
            What the file takes and gives, and all that the converter printed.
        Raises:
            ConversionError: it refused or crashed.
        """
        with self._lock, self._ended_on_error():
            answer, log = self._asked(request)
            if answer.kind == frames.ERROR:
                raise translated(answer.facts["message"], log, request.origins)
            return answer.facts, log

    def _asked(self, request: Request) -> tuple[Frame, str]:
        for _ in range(2):
            with contextlib.suppress(_Left):
                return _ask(self._process(), request)
        raise ConversionError("the process of litert-torch ends before it is asked", hint="try again")

    def close(self) -> None:
        """End the process; the next conversion starts another."""
        if self._running is not None:
            self._running.end()
            self._running = None

    @property
    def process_id(self) -> int | None:
        """The number of the process, None where none runs."""
        return self._running.process.pid if self._running is not None and self._running.alive else None

    def _process(self) -> _Running:
        if self._running is None or not self._running.alive:
            self.close()
            self._running = _started()
        return self._running

    @contextlib.contextmanager
    def _ended_on_error(self) -> Iterator[None]:
        """What failed, or was interrupted, may have left anything behind in the process."""
        try:
            yield
        except BaseException:
            self.close()
            raise


@cache
def worker() -> Worker:
    """The one of this program."""
    found = Worker()
    atexit.register(found.close)
    return found


if hasattr(os, "register_at_fork"):  # a copy would wait for a lock that nobody there holds
    os.register_at_fork(after_in_child=worker.cache_clear)


def _started() -> _Running:
    folder = Path(tempfile.mkdtemp(prefix="deploykit-litert-"))
    child = Process(
        module_command(convert_child.__name__, folder),
        what="the process of litert-torch",
        timeout_s=time_limit(_TIMEOUT_S),
        error=ConversionError,
        failed=_ended,
    )
    return _Running(child, folder)


def _ended(code: int, log: str) -> Exception:
    return _Left() if code == 0 else crashed(code, log)


def _ask(running: _Running, request: Request) -> tuple[Frame, str]:
    """The answer and the log.

    Raises:
        ConversionError: there is none.
    """
    folder, key = running.folder / "request", request.settings["float_key"]
    try:
        folder.mkdir()
        if key is None or not has(running.folder, key):
            request.write_program(folder / convert_child.PROGRAM)
        answer = running.ask({**request.settings, "folder": str(folder)})
        if answer.kind == frames.ANSWER:
            shutil.copyfile(folder / convert_child.OUTPUT, request.destination)
    except OSError as error:
        message = f"the temporary folder of litert-torch cannot be used: {error}"
        raise ConversionError(message, hint="try again; is something cleaning up, or the disk full?") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return answer, running.process.log.replace(str(folder), "<folder>").replace(str(running.folder), "<folder>")
