"""The converter's process as its parent sees it: started early, reused for every conversion, gone with its parent.

A crash or an error of the converter ends that process only; the next conversion starts a fresh one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

from deploykit.child import start_module
from deploykit_targets.litert import convert_child
from deploykit_targets.litert.failures import HasSource, crashed, translated
from deploykit_targets.litert.float_files import has


@dataclass(frozen=True)
class Request:
    """One conversion.

    Attributes:
        settings: JSON values; see `convert_child`.
        write_program: writes the graph to a path; not called where the process has the float file already.
        origins: of the captured graph, for messages.
        destination: of the finished file.
    """

    settings: Mapping[str, Any]
    write_program: Callable[[Path], None]
    origins: Mapping[str, HasSource]
    destination: Path


@dataclass(frozen=True)
class _Running:
    """A process, and the temporary folder that it shares with us and removes at its end."""

    process: subprocess.Popen[bytes]
    folder: Path
    owner: int = field(default_factory=os.getpid)

    @property
    def alive(self) -> bool:
        """Whether it can be asked: a forked copy of this program has only a copy of the pipes."""
        return self.owner == os.getpid() and self.process.poll() is None

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / convert_child.LOG

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Its answer; None where it ended instead."""
        os.truncate(self.log, 0)
        try:
            _pipe(self.process.stdin).write(json.dumps(request).encode() + b"\n")
            _pipe(self.process.stdin).flush()
            line = _pipe(self.process.stdout).readline()
        except BrokenPipeError:
            line = b""
        found: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return found

    def end(self) -> None:
        """Kill it and remove its folder."""
        if self.owner != os.getpid():
            self.process.returncode = 0  # it is not our child: nothing to wait for
            return
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


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
            running = self._process()
            answer, log = _ask(running, request)
            if answer is None and running.process.wait() == 0:  # it had been idle for long, and just left
                running = self._process()
                answer, log = _ask(running, request)
            if answer is None:
                raise crashed(running.process.wait(), log)
            if "error" in answer:
                raise translated(answer["error"], log, request.origins)
            interface: dict[str, Any] = answer["interface"]
            return interface, log

    def close(self) -> None:
        """End the process; the next conversion starts another."""
        if self._running is not None:
            self._running.end()
            self._running = None

    @property
    def process_id(self) -> int | None:
        """Of the process, None where none runs."""
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


def _started() -> _Running:
    folder = Path(tempfile.mkdtemp(prefix="deploykit-litert-"))
    with (folder / convert_child.LOG).open("ab") as log:
        return _Running(start_module(convert_child, folder, log=log, answers=True), folder)


def _ask(running: _Running, request: Request) -> tuple[dict[str, Any] | None, str]:
    """The answer (None where the process ended) and the log."""
    if not running.folder.is_dir():
        return None, ""
    folder, key = running.folder / "request", request.settings["float_key"]
    folder.mkdir()
    try:
        if key is None or not has(running.folder, key):
            request.write_program(folder / convert_child.PROGRAM)
        answer = running.ask({**request.settings, "folder": str(folder)})
        log = running.log.read_text(encoding="utf-8", errors="replace") if running.log.is_file() else ""
        if answer is not None and "interface" in answer:
            shutil.copyfile(folder / convert_child.OUTPUT, request.destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return answer, log.replace(str(folder), "<folder>").replace(str(running.folder), "<folder>")


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
